"""``dynamic_rope_update`` on transformers' own rotary modules, and the drop-in put wholly in transformers' place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import rope_utils_sweep as sweep
import torch
import transformers.modeling_rope_utils as theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from rope_utils_sides import RTOL, put_in_place
from support import tolerances
from transformers import Gemma3TextConfig, LlamaConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.llama import modeling_llama

import rope_kernels.integrations.rope_utils as ours

LONGEST, ORIGINAL, HEAD_DIM = 64, 24, 32
PARAMETERS: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0 + i / 8 for i in range(HEAD_DIM // 2)],
        "long_factor": [2.0 + i for i in range(HEAD_DIM // 2)],
    },
    "default": {"rope_type": "default", "rope_theta": 1e4},
}
SHAPE = {"head_dim": HEAD_DIM, "hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": LONGEST}


def module_of(side: ModuleType, rope_type: str, layer_types: bool = False) -> Any:
    """Llama's rotary embedding, or Gemma 3's with two layer types; its forward decorated by one side."""
    if layer_types:
        nested = {"full_attention": PARAMETERS[rope_type], "sliding_attention": PARAMETERS["dynamic"]}
        config = Gemma3TextConfig(rope_parameters=nested, **SHAPE)
        cls = modeling_gemma3.Gemma3RotaryEmbedding
    else:
        config = LlamaConfig(rope_parameters=PARAMETERS[rope_type], **SHAPE)
        cls = modeling_llama.LlamaRotaryEmbedding
    forward = cls.forward.__wrapped__.__wrapped__  # below no_grad and transformers' decorator
    decorated = type(cls.__name__, (cls,), {"forward": torch.no_grad()(side.dynamic_rope_update(forward))})
    return decorated(config)


def tables(module: Any) -> dict[str, Any]:
    """Buffers, the tables beside them, the lengths and the scalings."""
    named = {name: value for name, value in vars(module).items() if "freq" in name or "max_seq" in name}
    named |= {name: value for name, value in vars(module).items() if "scaling" in name}
    return {**dict(module.named_buffers()), **named}


def assert_same_state(mine: Any, wanted: Any) -> None:
    mine, wanted = tables(mine), tables(wanted)
    assert mine.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(torch.as_tensor(mine[name]), torch.as_tensor(value), rtol=RTOL, atol=0)


def assert_same_calls(rope_type: str, lengths: list[int], layer_types: bool) -> None:
    mine, wanted = (module_of(side, rope_type, layer_types) for side in (ours, theirs))
    assert_same_state(mine, wanted)
    for i, length in enumerate(lengths):
        # The positions need not begin at 0; the length is that of the last.
        positions = torch.tensor([[0, 1, length - 1], [0, 0, length // 2]])
        layer = (["full_attention", "sliding_attention"][i % 2],) if layer_types else ()
        outputs = [module(torch.zeros(1), positions, *layer) for module in (mine, wanted)]
        torch.testing.assert_close(*outputs, rtol=0, atol=2 * length * RTOL)
        assert_same_state(mine, wanted)


LENGTHS = st.lists(
    st.one_of(st.sampled_from([1, ORIGINAL, ORIGINAL + 1, LONGEST, LONGEST + 1]), st.integers(1, 300)), max_size=8
)


@settings(max_examples=40)
@given(st.sampled_from(["dynamic", "longrope", "default"]), LENGTHS, st.booleans())
def test_any_sequence_of_calls(rope_type: str, lengths: list[int], layer_types: bool) -> None:
    assert_same_calls(rope_type, lengths, layer_types)


@pytest.mark.parametrize("layer_types", [False, True])
@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_growing_shrinking_and_below_the_original(rope_type: str, layer_types: bool) -> None:
    lengths = [10, 65, 200, 100, 64, 63, 64, 300, 24, 25, 24]
    assert_same_calls(rope_type, [n for n in lengths for _ in range(1 + layer_types)], layer_types)


@pytest.mark.parametrize("side", [theirs, ours], ids=["transformers", "drop-in"])
def test_dynamic_grows_and_goes_back(side: ModuleType) -> None:
    module = module_of(side, "dynamic")
    initial, seen = module.inv_freq.clone(), []
    for length in (64, 128, 100, 64, 63):
        module(torch.zeros(1), torch.arange(length)[None])
        seen.append(int(module.max_seq_len_cached))
    assert seen == [64, 128, 128, 128, 64]
    assert torch.equal(module.inv_freq, initial)


@pytest.mark.parametrize("side", [theirs, ours], ids=["transformers", "drop-in"])
def test_longrope_writes_the_buffer_in_place_and_compiles_as_one_graph(side: ModuleType) -> None:
    torch._dynamo.reset()
    module, eager = module_of(side, "longrope"), module_of(side, "longrope")
    address = module.inv_freq.data_ptr()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for length in (ORIGINAL, ORIGINAL + 1, 5):
        positions = torch.arange(length)[None]
        got, wanted = compiled(torch.zeros(1), positions), eager(torch.zeros(1), positions)
        torch.testing.assert_close(got, wanted)
        assert module.inv_freq.data_ptr() == address
    torch._dynamo.reset()


def test_dynamic_compiles_without_recompiling_for_a_length() -> None:
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    module, eager, graphs = module_of(ours, "dynamic"), module_of(ours, "dynamic"), []
    compiled = torch.compile(module, backend="aot_eager", dynamic=True)
    for length in (10, 70, 80, 20, 90, 100, 110, 120):
        positions = torch.arange(length)[None]
        got, wanted = compiled(torch.zeros(1), positions), eager(torch.zeros(1), positions)
        torch.testing.assert_close(got, wanted)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[-3]
    torch._dynamo.reset()


def model_of(rope_type: str) -> Any:
    config = LlamaConfig(
        rope_parameters=PARAMETERS[rope_type], num_hidden_layers=1, vocab_size=16, intermediate_size=16, **SHAPE
    )
    torch.manual_seed(0)
    return modeling_llama.LlamaModel(config).eval()


@pytest.mark.parametrize("rope_type", PARAMETERS)
def test_a_model_does_not_notice_the_swap(rope_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import modeling_utils

    tokens = torch.arange(80)[None] % 16
    wanted = model_of(rope_type)(tokens).last_hidden_state
    put_in_place(monkeypatch, modeling_llama, modeling_utils)
    assert modeling_llama.ROPE_INIT_FUNCTIONS is modeling_utils.ROPE_INIT_FUNCTIONS is ours.ROPE_INIT_FUNCTIONS
    forward = modeling_llama.LlamaRotaryEmbedding.forward.__wrapped__.__wrapped__
    decorated = torch.no_grad()(ours.dynamic_rope_update(forward))
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", decorated)
    torch.testing.assert_close(model_of(rope_type)(tokens).last_hidden_state, wanted, **tolerances.SWAPPED)


# All of transformers, built on the drop-in in a process of its own.

# Nested and flat parameters, labels that are no layer types, heterogeneous heads, vision towers, and classes that
# override the mixin's methods each in its own way.
SOME = [
    *(
        "llama",
        "gemma3",
        "gemma3n",
        "gemma4",
        "modernbert",
        "phi3",
        "phimoe",
        "qwen2_vl",
        "gpt_oss",
        "gpt_neox",
        "lfm2",
    ),
    *("deepseek_v3", "deepseek_v4", "hunyuan_vl", "dots3_note", "laguna", "minimax_m2", "mistral4", "pixtral", "zaya"),
]


def assert_alike(mine: Any, wanted: Any, path: str) -> int:
    """Compare records; how many tensors were compared."""
    if isinstance(wanted, dict):
        assert mine.keys() == wanted.keys(), path
        return sum(assert_alike(mine[key], wanted[key], f"{path} / {key}") for key in wanted)
    if isinstance(wanted, (tuple, list)):
        assert len(mine) == len(wanted), path
        return sum(assert_alike(a, b, path) for a, b in zip(mine, wanted, strict=True))
    if isinstance(wanted, torch.Tensor):
        atol = 0 if path.endswith("inv_freq") else 3 * RTOL  # cos and sin are of positions up to 3
        torch.testing.assert_close(mine, wanted, rtol=RTOL, atol=atol, msg=lambda text: f"{path}: {text}")
        return 1
    if isinstance(wanted, float):
        assert mine == pytest.approx(wanted, rel=tolerances.FORMULA_REL), path
    else:
        assert mine == wanted, path
    return 0


def sweep_both(names: list[str], with_types: bool, path: Path) -> int:
    tests = Path(sweep.__file__).parents[1]
    command = [sys.executable, sweep.__file__, str(path), "types" if with_types else "defaults", *names]
    environment = os.environ | {"PYTHONPATH": str(tests)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    mine = torch.load(path, weights_only=False)
    return assert_alike(mine, sweep.collect(names, with_types), "")


@pytest.mark.filterwarnings("ignore")
def test_transformers_built_on_the_drop_in(tmp_path: Path) -> None:
    assert sweep_both(SOME, True, tmp_path / "records.pt") > 1000


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_all_of_transformers_built_on_the_drop_in(tmp_path: Path) -> None:
    assert sweep_both(list(CONFIG_MAPPING_NAMES), True, tmp_path / "records.pt") > 20_000
