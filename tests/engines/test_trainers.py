"""Patched models beside PEFT, accelerate and Liger, in both orders: equal logits and gradients, or a named reason."""

from __future__ import annotations

import copy
from typing import Any

import accelerate
import pytest
import torch
from liger_kernel.transformers import apply_liger_kernel_to_llama
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from rope_kernels.integrations.transformers import patch_model, unpatch_model

IDS = torch.arange(24).view(2, 12) % 61
CLOSE: dict[str, float] = dict(rtol=1e-4, atol=1e-4)
ADAPTERS = {
    "lora": lambda: LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    "ia3": lambda: IA3Config(
        target_modules=["k_proj", "v_proj"], feedforward_modules=[], init_ia3_weights=False, task_type="CAUSAL_LM"
    ),
    "prompt": lambda: PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prefix": lambda: PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2)).eval()


def rotates(report: Any) -> bool:
    return [entry.action for entry in report.entries] == ["angles", "rotation", "rotation"]


def step(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradients of what is trained."""
    model.zero_grad()
    logits = model(input_ids=IDS).logits
    logits.square().mean().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), grads


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("patch_first", [True, False])
def test_adapters_train_the_same(kind, patch_first):
    torch.manual_seed(1)
    plain = get_peft_model(tiny(), ADAPTERS[kind]())
    want, want_grads = step(plain)
    torch.manual_seed(1)
    model = tiny()
    if patch_first:
        assert rotates(patch_model(model))
    adapted = get_peft_model(model, ADAPTERS[kind]())
    if not patch_first:
        assert rotates(patch_model(adapted))
    adapted.load_state_dict(plain.state_dict())
    got, grads = step(adapted)
    torch.testing.assert_close(got, want, **CLOSE)
    assert grads.keys() == want_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, want_grads[name], **CLOSE)


def test_a_merged_adapter_stays_patched_until_it_is_unpatched(tmp_path):
    adapted = get_peft_model(tiny(), ADAPTERS["lora"]())
    patch_model(adapted)
    want = adapted(input_ids=IDS).logits
    adapted.save_pretrained(tmp_path)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits, want, **CLOSE)
    unpatch_model(merged)
    torch.testing.assert_close(merged(IDS).logits, want, **CLOSE)


@pytest.mark.parametrize("patch_first", [True, False])
def test_accelerates_offload_hooks(patch_first):
    """Weights come to the device when a module is called, and leave it again."""
    want = tiny()(IDS).logits
    model = tiny()
    if patch_first:
        patch_model(model)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    if not patch_first:
        assert rotates(patch_model(model))
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, want, **CLOSE)
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    unpatch_model(model)


def test_accelerates_training_loop():
    want, want_grads = step(tiny())
    model = tiny()
    patch_model(model)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="no")
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    logits = model(input_ids=IDS).logits
    accelerator.backward(logits.square().mean())
    torch.testing.assert_close(logits.detach(), want, **CLOSE)
    for name, parameter in accelerator.unwrap_model(model).named_parameters():
        torch.testing.assert_close(parameter.grad, want_grads[name], **CLOSE)
    optimizer.step()


@pytest.fixture
def liger():
    """Liger's function in transformers' file, as its own call puts it there."""
    own = copy.copy(vars(modeling_llama))

    def apply() -> None:
        others = dict.fromkeys(("swiglu", "rms_norm", "cross_entropy", "fused_linear_cross_entropy"), False)
        apply_liger_kernel_to_llama(rope=True, **others)

    yield apply
    vars(modeling_llama).update(own)


def test_liger_after_the_patch_changes_nothing(liger):
    """A patched model calls its own functions, not those of the file."""
    model = tiny()
    want = model(IDS).logits
    patch_model(model)
    liger()
    assert modeling_llama.apply_rotary_pos_emb.__module__.startswith("liger_kernel")
    torch.testing.assert_close(model(IDS).logits, want, **CLOSE)


def test_liger_before_the_patch_is_named_in_the_report(liger):
    """Its function needs a GPU, so here nothing can be measured."""
    liger()
    with pytest.warns(UserWarning, match=r"nothing was patched in LlamaForCausalLM.*liger_kernel"):
        report = patch_model(tiny())
    reasons = [entry.reason for entry in report.left_alone if entry.kind == "LlamaAttention"]
    assert len(reasons) == 2
    assert all("liger_kernel.transformers.rope raised" in r and "patch the model there" in r for r in reasons)
