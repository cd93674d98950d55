"""Patched models in ways of use that call forward differently: decoding, export, transforms, adapters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import FAMILIES
from support import tolerances
from test_models import patched
from torch import Tensor

from rope_kernels.integrations.transformers import patch_model

LLAMA = next(family for family in FAMILIES if family.name == "llama")
NEW_TOKENS = 8
MODES: dict[str, dict[str, Any]] = {
    "beams": dict(num_beams=3, do_sample=False),
    "beams, several returned": dict(num_beams=4, num_return_sequences=2, do_sample=False),
    "sampled": dict(do_sample=True, temperature=0.8, top_k=20),
    "prompt lookup": dict(prompt_lookup_num_tokens=3, do_sample=False),
}


def tokens_of(model: Any, batch: dict[str, Any], **mode: Any) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return model.generate(**batch, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, **mode)


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_generation(mode: str) -> None:
    rows = 1 if mode == "prompt lookup" else 2
    batch = {name: x[:rows] for name, x in LLAMA.batch(12).items()}
    assert torch.equal(tokens_of(patched(LLAMA), batch, **MODES[mode]), tokens_of(LLAMA.build(), batch, **MODES[mode]))


@pytest.mark.parametrize("assistant_is_patched", [False, True])
@pytest.mark.parametrize("model_is_patched", [False, True])
def test_assisted_generation(model_is_patched: bool, assistant_is_patched: bool) -> None:
    """The assistant's tokens are checked many at once, and the cache is cropped where they are refused."""
    batch = {name: x[:1] for name, x in LLAMA.batch(12).items()}
    want = tokens_of(LLAMA.build(), batch, do_sample=False)
    model, assistant = LLAMA.build(), LLAMA.build(seed=1, num_hidden_layers=1)
    for each, is_patched in ((model, model_is_patched), (assistant, assistant_is_patched)):
        if is_patched:
            patch_model(each)
    assert torch.equal(tokens_of(model, batch, do_sample=False, assistant_model=assistant), want)


class Logits(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits


def test_an_exported_program_has_the_operator_and_other_lengths() -> None:
    ids = LLAMA.batch(12)["input_ids"]
    model = Logits(patched(LLAMA))
    tokens = torch.export.Dim("tokens", min=2, max=64)
    program = torch.export.export(model, (ids,), dynamic_shapes={"ids": {1: tokens}}, strict=False)
    calls = [str(node.target) for node in program.graph.nodes]
    assert sum("rope_kernels.rotate" in call for call in calls) == model.model.config.num_hidden_layers
    for length in (5, 12, 40):
        ids = LLAMA.batch(length)["input_ids"]
        torch.testing.assert_close(program.module()(ids), Logits(LLAMA.build())(ids), **tolerances.MODEL)


def test_gradients_of_each_sample_by_vmap() -> None:
    """As in differential privacy: one gradient per sample, of the model as a function of its parameters."""
    ids = LLAMA.batch(9)["input_ids"]

    def of_samples(model: Any) -> dict[str, Tensor]:
        model.set_attn_implementation("eager")
        whole = Logits(model)

        def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
            return torch.func.functional_call(whole, parameters, (row[None],)).square().mean()

        parameters = {name: p.detach() for name, p in whole.named_parameters()}
        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, ids)

    want, got = of_samples(LLAMA.build()), of_samples(patched(LLAMA))
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, want[name], **tolerances.MODEL)


class LowRank(torch.nn.Module):
    """A linear layer with an adapter beside it, as LoRA puts in its place."""

    def __init__(self, own: torch.nn.Linear) -> None:
        super().__init__()
        self.own = own.requires_grad_(False)
        self.a, self.b = (
            torch.nn.Parameter(torch.full(shape, 0.02)) for shape in ((2, own.in_features), (own.out_features, 2))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.own(x) + x @ self.a.T @ self.b.T


def with_adapters(model: Any) -> Any:
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj"):
            setattr(layer.self_attn, name, LowRank(getattr(layer.self_attn, name)))
    return model


@pytest.mark.parametrize("order", ["adapters first", "patched first"])
@pytest.mark.parametrize("copied", [False, True])
def test_adapters_in_both_orders(order: str, copied: bool) -> None:
    """q_proj and k_proj replaced by modules with adapters; trained, then copied as trainers do."""
    batch = LLAMA.batch(12)
    want = with_adapters(LLAMA.build())
    model = LLAMA.build()
    if order == "adapters first":
        with_adapters(model)
    assert len(patch_model(model).patched) == 1 + model.config.num_hidden_layers
    if order == "patched first":
        with_adapters(model)
    if copied:
        model = copy.deepcopy(model)
    for each in (want, model):
        each(**batch).logits.square().mean().backward()
    trained = [name for name, p in model.named_parameters() if p.grad is not None and name.endswith((".a", ".b"))]
    assert len(trained) == 4 * model.config.num_hidden_layers
    for name in trained:
        torch.testing.assert_close(model.get_parameter(name).grad, want.get_parameter(name).grad, **tolerances.MODEL)
