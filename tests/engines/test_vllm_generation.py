"""Greedy generation by vLLM, offline, on tiny random models: its own rotary layers and ours give the same tokens."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from vllm import LLM, SamplingParams
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers import rotary_embedding

from rope_kernels.integrations import vllm as plug_in

BASE = dict(
    vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.06,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)  # fmt: skip
LONGROPE = dict(
    rope_type="longrope", rope_theta=1e4, original_max_position_embeddings=4096,
    short_factor=[1.0 + 0.01 * i for i in range(32)], long_factor=[1.0 + 0.5 * i for i in range(32)],
)  # fmt: skip
YARN = dict(
    rope_type="yarn", rope_theta=1e4, factor=40.0, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1,
    mscale=1.0, mscale_all_dim=1.0,
)  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama31": ("LlamaConfig", dict(head_dim=64, max_position_embeddings=131072, rope_parameters=LLAMA3)),
    "qwen3": (
        "Qwen3Config",
        dict(head_dim=64, max_position_embeddings=40960, rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    ),
    "phi3": (
        "Phi3Config",
        dict(max_position_embeddings=131072, original_max_position_embeddings=4096, rope_parameters=LONGROPE),
    ),
    "deepseek_v2": (
        "DeepseekV2Config",
        dict(num_key_value_heads=4, q_lora_rank=64, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=64,
             v_head_dim=64, n_routed_experts=8, first_k_dense_replace=99, max_position_embeddings=163840,
             rope_parameters=YARN),
    ),
}  # fmt: skip
_OPTIONS: dict[str, Any] = {"deepseek_v2": dict(attention_backend="CPU_MLA")}  # the one for AMX takes no float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    for name, (kind, more) in MODELS.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**(BASE | more)))
        with torch.no_grad():
            model.lm_head.weight.mul_(8)
        model.save_pretrained(made / name)
    return made


def tokens(path: Path, eager: bool) -> list[list[int]]:
    rotary_embedding._ROPE_DICT.clear()
    llm = LLM(
        str(path), skip_tokenizer_init=True, enforce_eager=eager, max_model_len=512, dtype="float32", max_num_seqs=4,
        max_num_batched_tokens=2048, seed=0, enable_prefix_caching=False,
        **_OPTIONS.get(path.name, {}),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    prompts = [
        {"prompt_token_ids": torch.randint(3, 512, (n,), generator=generator).tolist()} for n in (5, 17, 64, 300)
    ]
    options = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, detokenize=False)
    found = [list(out.outputs[0].token_ids) for out in llm.generate(prompts, options, use_tqdm=False)]
    del llm
    gc.collect()
    return found


@pytest.mark.parametrize(
    ("name", "eager"), [*((name, True) for name in MODELS), ("llama31", False)], ids=lambda v: str(v)
)
def test_greedy_tokens_are_equal(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, eager: bool) -> None:
    for kind in list(op_registry_oot):
        monkeypatch.delitem(op_registry_oot, kind)
    longrope = rotary_embedding.Phi3LongRoPEScaledRotaryEmbedding
    if hasattr(longrope, "rope_kernels_is_ours"):
        monkeypatch.setattr(rotary_embedding, longrope.__name__, longrope.__mro__[1])
    own = tokens(folder / name, eager)
    assert len({tuple(t) for t in own}) == 4
    before = len(plug_in.report())
    plug_in.register()
    calls = []
    from rope_kernels.integrations.vllm import layers

    rotate = layers._rotate
    monkeypatch.setattr(layers, "_rotate", lambda *a: (calls.append(1), rotate(*a))[1])
    assert tokens(folder / name, eager) == own
    assert calls
    assert not any(r.reason for r in plug_in.report()[before:])
