"""A norm is fused by what it computes: every variant is either fused with the same results, or left with a reason."""

from __future__ import annotations

import inspect
import textwrap
import types
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, NORMED, TEXT
from support import tolerances
from torch import nn
from transformers import Olmo2Config, Olmo2ForCausalLM
from transformers.models.qwen3 import modeling_qwen3

from rope_kernels.integrations.transformers import patch_model, unpatch_model

CLOSE = tolerances.MODEL
BY_NAME = {family.name: family for family in (*FAMILIES, *NORMED)}
QWEN3 = BY_NAME["qwen3"]
BATCH = QWEN3.batch(9)

WEIGHTS = {
    "weight": (lambda w: w, True),
    "1 + weight": (lambda w: 1 + w, True),
    "none": (None, True),
    "square": (lambda w: w * w, False),
    "2 + weight": (lambda w: 2 + w, False),
    "reversed": (lambda w: w.flip(0), False),
}
MEANS = {
    "of squares": (lambda x: x.pow(2).mean(-1, keepdim=True), True),
    "about the mean": (lambda x: x.var(-1, keepdim=True, unbiased=False), False),
    "unbiased": (lambda x: x.pow(2).sum(-1, keepdim=True) / (x.shape[-1] - 1), False),
    "sum": (lambda x: x.pow(2).sum(-1, keepdim=True), False),
    "of half the channels": (lambda x: x[..., ::2].pow(2).mean(-1, keepdim=True), False),
    "over all heads": (lambda x: x.pow(2).mean((-2, -1), keepdim=True), False),
}
PLACES = {
    "inside": (lambda mean, eps: (mean + eps).rsqrt(), True),
    "outside": (lambda mean, eps: 1 / (mean.sqrt() + eps), False),
    "at least": (lambda mean, eps: mean.clamp(min=eps).rsqrt(), False),
}


@dataclass(frozen=True)
class Variant:
    """A norm of one's own making."""

    weight: str
    mean: str
    place: str
    epsilon: float
    decoy: float | None
    parameter: str

    @property
    def is_head_norm(self) -> bool:
        return WEIGHTS[self.weight][1] and MEANS[self.mean][1] and PLACES[self.place][1]


class Norm(nn.Module):
    """A norm as a variant says."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        if variant.decoy is not None:
            self.eps_of_something_else = variant.decoy
        self.my_eps = variant.epsilon
        if variant.weight != "none":
            self.register_parameter(variant.parameter, nn.Parameter(torch.rand(16) + 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = MEANS[self.variant.mean][0](x)
        y = x * PLACES[self.variant.place][0](mean, self.my_eps)
        weight = WEIGHTS[self.variant.weight][0]
        return y if weight is None else y * weight(getattr(self, self.variant.parameter))


variants = st.builds(
    Variant,
    weight=st.sampled_from(list(WEIGHTS)),
    mean=st.sampled_from(["of squares"] * len(MEANS) + list(MEANS)),
    place=st.sampled_from(["inside"] * 4 + list(PLACES)),
    epsilon=st.sampled_from([1e-6, 1e-5, 0.1]),
    decoy=st.sampled_from([None, 1e-12, 3.0]),
    parameter=st.sampled_from(["weight", "scale"]),
)


def results(model: Any) -> list[torch.Tensor]:
    model.zero_grad()
    logits = model(**BATCH).logits
    logits.square().mean().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(["qwen3", "hunyuan", "gemma3"]), variant=variants)
def test_every_norm_is_fused_or_left_with_the_same_results(name: str, variant: Variant) -> None:
    model = BY_NAME[name].build()
    names = ("query_layernorm", "key_layernorm") if name == "hunyuan" else ("q_norm", "k_norm")
    for layer in model.model.layers:
        for attribute in names:
            setattr(layer.self_attn, attribute, Norm(variant))
    want = results(model)
    report = patch_model(model, fuse_norms=True)
    assert (len(report.norms_fused), len(report.norms_left)) == ((2, 0) if variant.is_head_norm else (0, 2)), report
    torch.testing.assert_close(results(model), want, **CLOSE)


def olmo2() -> Any:
    torch.manual_seed(0)
    return Olmo2ForCausalLM(Olmo2Config(**TEXT)).eval()


def with_norms(make: Any) -> Any:
    """A Qwen3 whose norms are made by ``make``."""

    def build() -> Any:
        model = QWEN3.build()
        for layer in model.model.layers:
            layer.self_attn.q_norm, layer.self_attn.k_norm = make(), make()
        return model

    return build


def with_forward(old: str, new: str) -> Any:
    """A Qwen3 whose attention has another forward."""

    def build() -> Any:
        source = textwrap.dedent(inspect.getsource(modeling_qwen3.Qwen3Attention.forward))
        assert old in source
        made: dict[str, Any] = {}
        exec(source.replace(old, new), vars(modeling_qwen3), made)
        cls = type("Qwen3Attention", (modeling_qwen3.Qwen3Attention,), {"forward": made["forward"]})
        model = QWEN3.build()
        for layer in model.model.layers:
            layer.self_attn.__class__ = cls
            layer.self_attn.q_norm.weight.data.uniform_(0.5, 1.5)
            layer.self_attn.k_norm.weight.data.uniform_(0.5, 1.5)
        return model

    return build


def quantised() -> Any:
    """A Qwen3 whose projections are not plain, and do not run where the probe runs."""

    class Projection(nn.Module):
        def __init__(self, own: nn.Linear) -> None:
            super().__init__()
            self.in_features, self.out_features, self.bias = own.in_features, own.out_features, None
            self.register_buffer("packed", own.weight.detach().to(torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[-2] != 9:
                raise RuntimeError("only on a GPU")
            return (x.double() @ self.packed.T).float()

    model = QWEN3.build()
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, Projection(getattr(layer.self_attn, name)))
    return model


ROTATION = "query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)"
TABLES = "cos, sin = position_embeddings"
OTHER = "fused with the rotation, its norms have another result"
NEEDED = "needed are at most one weight and an eps, the same for both"
TOUCHED = "a module with fused norms computes with cos; keep its norms (fuse_norms=False)"
IN_CALLS = "Qwen3Attention rotates in {} calls, not in one of q and k; keep its norms (fuse_norms=False)"


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (olmo2, "q_norm: its weight has shape (64,), must be (16,); one for all heads norms the whole projection, "
         "which is another norm"),
        (with_norms(lambda: nn.LayerNorm(16)), "q_norm (LayerNorm) has weight, bias, eps; k_norm (LayerNorm) has "
         f"weight, bias, eps; {NEEDED}"),
        (with_norms(lambda: nn.LayerNorm(16, bias=False)), OTHER),
        (with_norms(lambda: nn.LayerNorm(16, elementwise_affine=False)), OTHER),
        (with_norms(nn.Identity), "q_norm (Identity) has no weight and no eps; k_norm (Identity) has no weight and no "
         f"eps; {NEEDED}"),
        (BY_NAME["nanochat"].build, "it rotates backwards, and the kernel norms only on the way forwards"),
        (BY_NAME["gemma4"].build, "it cannot be called on its own (TypeError: its forward takes shared_kv_states)"),
        (with_forward(ROTATION, "query_states = query_states * 0.5; " + ROTATION), OTHER),
        (with_forward(ROTATION, "key_states = torch.tanh(key_states); " + ROTATION), OTHER),
        (with_forward(ROTATION, ROTATION + "; key_states = key_states + self.k_norm(key_states)"), OTHER),
        (with_forward(ROTATION, "if query_states.shape[2] > 9: " + ROTATION), IN_CALLS.format(0)),
        (with_forward(ROTATION, ROTATION + "; " + ROTATION), IN_CALLS.format(2)),
        (with_forward(TABLES, TABLES + "; cos = cos * 1.0"), TOUCHED),
    ],
)  # fmt: skip
def test_what_is_not_fused_says_why(build: Any, why: str) -> None:
    model = build()
    want = results(model)
    report = patch_model(model, fuse_norms=True)
    assert [entry.reason for entry in report.norms_left] == [why] * 2
    assert not report.norms_fused
    torch.testing.assert_close(results(model), want, **CLOSE)


@pytest.mark.parametrize("name", ["qwen3", "hunyuan"])
def test_whose_norm_is_whose_is_measured(name: str) -> None:
    """The names of the modules say the opposite."""
    model = BY_NAME[name].build()
    names = ("query_layernorm", "key_layernorm") if name == "hunyuan" else ("q_norm", "k_norm")
    own = type(model.model.layers[0].self_attn)
    code = own.forward.__code__
    renamed = code.replace(co_names=tuple(dict(zip(names, names[::-1], strict=True)).get(n, n) for n in code.co_names))
    forward = types.FunctionType(renamed, own.forward.__globals__, "forward", own.forward.__defaults__)
    cls = type("Opposite", (own,), {"forward": forward})
    for layer in model.model.layers:
        layer.self_attn.__class__ = cls
        for norm in names:
            getattr(layer.self_attn, norm).weight.data.uniform_(0.5, 1.5)
    want = results(model)
    report = patch_model(model, fuse_norms=True)
    assert [entry.what for entry in report.norms_fused] == [", ".join(names[::-1])] * 2
    torch.testing.assert_close(results(model), want, **CLOSE)


def test_layers_that_differ_are_measured_apart() -> None:
    model = QWEN3.build()
    model.model.layers[1].self_attn.q_norm.variance_epsilon = 0.25
    model.model.layers[1].self_attn.k_norm.__class__ = type("Twice", (type(model.model.norm),), {
        "forward": lambda self, x: 2 * type(model.model.norm).forward(self, x)})  # fmt: skip
    want = results(model)
    report = patch_model(model, fuse_norms=True)
    assert [entry.module for entry in report.norms_fused] == ["model.layers.0.self_attn"]
    assert [entry.reason for entry in report.norms_left] == [OTHER]
    torch.testing.assert_close(results(model), want, **CLOSE)


def test_projections_may_be_of_any_make() -> None:
    model = quantised()
    with torch.no_grad():
        want = model(**BATCH).logits
        assert len(patch_model(model, fuse_norms=True).norms_fused) == 2
        torch.testing.assert_close(model(**BATCH).logits, want, **CLOSE)


def test_a_call_that_does_not_rotate_is_an_error_and_not_a_result_without_norms() -> None:
    model = with_forward(ROTATION, "if query_states.shape[2] < 9: " + ROTATION)()
    patch_model(model, fuse_norms=True)
    with pytest.raises(RuntimeError, match=r"^Qwen3Attention rotates in 0 calls, not in one of q and k"):
        model(**BATCH)
    unpatch_model(model)(**BATCH)
