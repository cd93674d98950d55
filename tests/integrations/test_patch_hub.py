"""Our rotation behind the layer name that the kernels package knows."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
import torch
from support import tolerances
from torch import nn
from transformers.models.gpt_oss.modeling_gpt_oss import apply_rotary_pos_emb as half_width
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as half
from transformers.models.nanochat.modeling_nanochat import apply_rotary_pos_emb as conjugate

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
