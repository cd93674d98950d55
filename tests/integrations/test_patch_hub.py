"""Our rotation behind the layer name that the kernels package knows."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from support import tolerances
from support.documents import ROOT
from torch import nn
from transformers.models.gpt_oss.modeling_gpt_oss import apply_rotary_pos_emb as half_width
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as half
from transformers.models.nanochat.modeling_nanochat import apply_rotary_pos_emb as conjugate
from transformers.utils import import_utils

from rope_kernels.integrations.transformers import hub, register_kernels, rotating

has_kernels = pytest.mark.skipif(importlib.util.find_spec("kernels") is None, reason="kernels is not installed")
FUNCTIONS = {"half": (half, 16), "conjugate": (conjugate, 16), "half_width": (half_width, 8)}
CLOSE = tolerances.TWO_WAYS


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kernels", None)
    with pytest.raises(ImportError, match=r"^kernels is not installed; pip install kernels$"):
        register_kernels()


def plain(function: Any) -> Any:
    """A function, where kernels has made a module of it as transformers was imported."""
    if not isinstance(function, nn.Module):
        return function
    original = type(function)().forward  # a new module's, which nothing has replaced

    def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
        return original(q, k, cos, sin, unsqueeze_dim)

    return apply_rotary_pos_emb


def inputs(width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 5, 16, generator=generator, requires_grad=True) for heads in (4, 2))
    return [q, k, *torch.randn(2, 2, 5, width, generator=generator)]


def as_layer(function: Any) -> nn.Module:
    """A module as transformers makes them where kernels is installed."""
    from kernels import use_kernel_forward_from_hub, use_kernelized_func

    decorated = use_kernel_forward_from_hub(hub.LAYER_NAME)(function)

    @use_kernelized_func(decorated)
    class Attention(nn.Module):
        def forward(self, *args: Any) -> Any:
            return decorated(*args)

    return Attention()


@has_kernels
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_kernelize(name: str, compiled: bool, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels import Mode, kernelize

    function, width = FUNCTIONS[name]
    args = inputs(width)
    want = plain(function)(*args)
    want_gradients = torch.autograd.grad(sum(y.square().sum() for y in want), args[:2])
    register_kernels()
    mode = Mode.TRAINING if training else Mode.INFERENCE
    layer = kernelize(as_layer(plain(function)), mode=mode | Mode.TORCH_COMPILE if compiled else mode, device="cpu")
    torch._dynamo.reset()
    call = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
    got = call(*args)
    torch.testing.assert_close(got, want, **CLOSE)
    if training:
        gradients = torch.autograd.grad(sum(y.square().sum() for y in got), args[:2])
        torch.testing.assert_close(gradients, want_gradients, **tolerances.SQUARED_GRADIENT)
    if not compiled:
        monkeypatch.setattr(rotating, "apply_rotary_pos_emb", lambda q, k, *rest, **options: (q, k))
        assert layer(*args)[0] is args[0]
    torch._dynamo.reset()


@has_kernels
def test_a_function_of_no_known_convention_goes_on_by_itself() -> None:
    from kernels import Mode, kernelize

    def odd(q, k, cos, sin, unsqueeze_dim=1):
        return q + 1, k + 1

    register_kernels()
    args = inputs(16)
    layer = kernelize(as_layer(odd), mode=Mode.INFERENCE, device="cpu")
    torch.testing.assert_close(layer(*args), odd(*args))


# The versions that transformers accepts move with its releases; here it accepts the installed one.
SET_USE_KERNELS = """
import torch
import transformers
from transformers.utils import import_utils

import_utils.is_kernels_available.__wrapped__.__defaults__ = "0", "1000"
from transformers import LlamaConfig, LlamaForCausalLM

from rope_kernels.integrations.transformers import register_kernels, rotating

sizes = dict(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
model, tokens = LlamaForCausalLM(LlamaConfig(**sizes)).eval(), torch.arange(12)[None]
calls, ours = [], rotating.apply_rotary_pos_emb
rotating.apply_rotary_pos_emb = lambda *args, **options: calls.append(len(calls)) or ours(*args, **options)
with torch.no_grad():
    before = model(tokens).logits
    register_kernels()
    model.set_use_kernels(True)
    assert not calls
    torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-4)
    calls.clear()
    model(tokens)
    assert len(calls) == 2
"""


@has_kernels
def test_the_call_of_the_documents_reaches_our_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", SET_USE_KERNELS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_documents_name_the_versions_that_transformers_accepts() -> None:
    """Those of one release of transformers, which the page names."""
    page = " ".join((ROOT / "docs/transformers.md").read_text(encoding="utf-8").split())
    named = re.search(r"`kernels`; (\S+) takes (\S+) and newer, below (\S+)\.", page)
    assert named
    least, beyond = import_utils.KERNELS_MIN_VERSION, import_utils.KERNELS_MAX_VERSION.removesuffix(".0")
    assert named.groups()[1:] == (least, beyond) or not transformers.__version__.startswith(f"{named[1]}.")
