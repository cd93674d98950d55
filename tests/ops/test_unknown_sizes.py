"""Sizes that only the data decide: whole graphs, right results, and an error at run time where sizes differ."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.decorators import mark_unbacked

import rope_kernels as rk

CONFIGS = {
    "default": rk.RopeConfig(head_dim=16),
    "longrope": rk.RopeConfig(
        head_dim=16, rope_type="longrope", short_factor=[1.0] * 8, long_factor=[2.0] * 8,
        original_max_position_embeddings=4, max_position_embeddings=64,
    ),
    "dynamic": rk.RopeConfig(head_dim=16, rope_type="dynamic", factor=2.0, max_position_embeddings=4),
    "mrope": rk.RopeConfig(head_dim=16, rope_type="mrope", mrope_section=[2, 3, 3]),
}  # fmt: skip
MASK = torch.tensor([1, 0, 1, 1, 0, 0, 1]).bool()
Call = Callable[[Tensor, Tensor, Tensor, rk.RopeConfig], tuple[Tensor, Tensor | None]]


def chosen_tokens(x, mask, positions, config):
    index = mask.nonzero()[:, 0]
    return rk.apply_rope(x[index], 2 * x[index], positions[..., index], config, layout="thd")


def chosen_tokens_of_a_batch(x, mask, positions, config):
    index = mask.nonzero()[:, 0]
    return rk.apply_rope(x[index][None], None, positions[..., index], config)


def chosen_batch(x, mask, positions, config):
    index = mask.nonzero()[:, 0]
    return rk.apply_rope(x[index][:, None], x[index][:, None] + 1, positions[..., index][..., None], config)


def chosen_bounds(x, mask, positions, config):
    bounds = torch.cat((torch.zeros(1, dtype=torch.int64), mask.nonzero()[:, 0] + 1))
    return rk.apply_rope(x, 2 * x, None, config, layout="thd", cu_seqlens=bounds)


def counted_tokens(x, mask, positions, config):
    return rk.apply_rope(x[mask.nonzero()[:, 0]], None, None, config, layout="thd")


def chosen_offset(x, mask, positions, config):
    return rk.apply_rope(x[None], None, None, config, offset=mask.sum().item())


def in_place(x, mask, positions, config):
    index = mask.nonzero()[:, 0]
    q, k = x[index].clone(), x[index] + 1
    return rk.apply_rope_(q, k, positions[..., index], config, layout="thd")


CALLS = [chosen_tokens, chosen_tokens_of_a_batch, chosen_batch, chosen_bounds, counted_tokens, chosen_offset, in_place]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        yield
    torch._dynamo.reset()


USUAL = [(call, "longrope") for call in CALLS] + [(chosen_tokens, name) for name in CONFIGS if name != "longrope"]
REST = [(call, name) for call in CALLS for name in CONFIGS if (call, name) not in USUAL]


@pytest.mark.parametrize(("call", "name"), [*USUAL, *(pytest.param(*rest, marks=pytest.mark.full) for rest in REST)])
def test_a_whole_graph(call: Call, name: str) -> None:
    if name == "mrope" and call in (chosen_tokens_of_a_batch, chosen_batch):
        call = chosen_tokens  # with several axes a two-dimensional form would mean something else
    x, positions = torch.randn(7, 2, 16), torch.arange(7) + 3
    if name == "mrope":
        positions = torch.stack((positions, positions // 2, positions // 3))
    compiled = torch.compile(lambda *args: call(*args, CONFIGS[name]), fullgraph=True, backend="aot_eager")
    for mask in (MASK, ~MASK, torch.ones(7).bool()):
        for got, wanted in zip(compiled(x, mask, positions), call(x, mask, positions, CONFIGS[name]), strict=True):
            assert (got is None) == (wanted is None)
            assert got is None or torch.equal(got, wanted)
    if call is not in_place:
        grads = []
        for run in (compiled, lambda *args: call(*args, CONFIGS[name])):
            leaf = x.clone().requires_grad_()
            run(leaf, MASK, positions)[0].square().sum().backward()
            grads.append(leaf.grad)
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("axis", [0, 1], ids=["batch", "tokens"])
def test_an_unbacked_size(axis: int, name: str) -> None:
    q, positions = torch.randn(3, 5, 2, 16), torch.arange(15).reshape(3, 5)
    if name == "mrope":
        positions = torch.stack((positions, positions // 2, positions // 3))
    mark_unbacked(q, axis)
    mark_unbacked(positions, positions.dim() - 2 + axis)
    compiled = torch.compile(
        lambda q, p: rk.apply_rope(q, None, p, CONFIGS[name])[0], fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(q, positions), rk.apply_rope(q, None, positions, CONFIGS[name])[0])


def test_an_unbacked_table() -> None:
    q, cos, sin = torch.randn(3, 2, 5, 16), torch.randn(3, 5, 16), torch.randn(3, 5, 16)
    for x in (q, cos, sin):
        mark_unbacked(x, 0)
    compiled = torch.compile(
        lambda *args: rk.apply_rotary_pos_emb(args[0], None, *args[1:])[0], fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(q, cos, sin), rk.apply_rotary_pos_emb(q, None, cos, sin)[0])


def test_sizes_that_differ_are_an_error_when_the_graph_runs() -> None:
    def call(x, mask, other):
        return rk.apply_rope(x[mask.nonzero()[:, 0]], None, other.nonzero()[:, 0], CONFIGS["default"], layout="thd")[0]

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    x = torch.randn(7, 2, 16)
    assert torch.equal(compiled(x, MASK, MASK), call(x, MASK, MASK))
    with pytest.raises(RuntimeError):
        compiled(x, MASK, ~MASK)


def test_sizes_that_are_known_to_differ_are_an_error_when_it_is_traced() -> None:
    compiled = torch.compile(
        lambda q, p: rk.apply_rope(q, None, p, CONFIGS["default"])[0], fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(Exception, match="positions: shape"):
        compiled(torch.randn(1, 5, 2, 16), torch.arange(4))
