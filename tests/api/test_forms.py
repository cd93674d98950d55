"""Flat heads, grouped heads, packed batches and "sbhd": each is the usual call on views, in every way to call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import rope_kernels as rk

CONFIG = rk.RopeConfig(head_dim=16)
MROPE = rk.RopeConfig(head_dim=16, rope_type="mrope", mrope_section=[2, 3, 3])
BATCH, SEQ = 2, 5


def usual(layout: str, heads: int, seed: int = 0) -> Tensor:
    """(batch, seq, heads, head_dim), or with one batch entry for "thd"."""
    generator = torch.Generator().manual_seed(seed + heads)
    return torch.randn(1 if layout == "thd" else BATCH, SEQ, heads, 16, generator=generator)


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "thd":
        return x[0].clone()
    swapped = {"bhsd": (1, 2), "sbhd": (0, 1)}.get(layout, (0, 0))
    return x.transpose(*swapped).contiguous()


def flat(x: Tensor, dense: bool) -> Tensor:
    joined = x.flatten(-2)
    return joined if dense else torch.cat((joined, joined), -1)[..., : joined.shape[-1]]


def grouped(x: Tensor, heads_axis: int, dense: bool) -> Tensor:
    """Two groups; without ``dense`` as Megatron's mixed projection has them, where no view joins the groups."""
    parts = x.unflatten(heads_axis, (2, -1))
    if dense:
        return parts
    wide = torch.cat((parts, parts[..., :1, :] if heads_axis == x.dim() - 2 else parts.narrow(heads_axis + 1, 0, 1)),
                     heads_axis + 1)  # fmt: skip
    return wide.narrow(heads_axis + 1, 0, parts.shape[heads_axis + 1])


HEADS_AXIS = {"bshd": 2, "bhsd": 1, "sbhd": 2, "thd": 1}


@given(st.data())
def test_results_are_those_of_the_usual_shape(data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(list(HEADS_AXIS)))
    kinds = ["grouped"] if layout == "bhsd" else ["flat", "grouped"]
    kind, dense, way = data.draw(st.sampled_from(kinds)), data.draw(st.booleans()), data.draw(st.sampled_from("aiog"))
    q, k = (laid_out(usual(layout, heads), layout) for heads in (4, 2))
    k_too, k_kind = data.draw(st.booleans()), data.draw(st.sampled_from((kind, "usual")))
    positions = torch.arange(3, 3 + SEQ) if layout == "thd" or data.draw(st.booleans()) else None
    axis = HEADS_AXIS[layout]
    make = {"flat": lambda x: flat(x, dense), "grouped": lambda x: grouped(x, axis, dense), "usual": lambda x: x}
    given_q, given_k = make[kind](q), make[k_kind](k) if k_too else None
    wanted = rk.apply_rope(q, k if k_too else None, positions, CONFIG, layout=layout)
    call: Any = rk.apply_rope
    options: dict[str, Any] = {}
    given_q, given_k = (None if x is None else kept(x) for x in (given_q, given_k))
    if way == "i":
        call = rk.apply_rope_
    elif way == "o":
        options["out"] = tuple(None if x is None else torch.full(x.shape, torch.nan) for x in (given_q, given_k))
    elif way == "g":
        given_q.requires_grad_()
    got = call(given_q, given_k, positions, CONFIG, layout=layout, **options)
    for x, y, exact in zip((given_q, given_k), got, wanted, strict=True):
        assert (x is None) == (y is None)
        if y is not None:
            assert y.shape == x.shape
            assert way != "i" or y is x
            assert torch.equal(y.reshape(exact.shape), exact)


def kept(x: Tensor) -> Tensor:
    """A tensor of its own with the same strides."""
    return torch.empty_strided(x.shape, x.stride()).copy_(x)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("layout", ["bshd", "bhsd", "sbhd", "thd"])
@pytest.mark.parametrize("is_flat", [False, True])
def test_packed_sequences_in_a_batch_of_one(layout: str, is_flat: bool, in_place: bool) -> None:
    if is_flat and layout in ("bhsd", "thd"):
        return
    q, k = (usual("thd", heads)[0] for heads in (4, 2))
    bounds, offset = torch.tensor([0, 2, 4]), torch.tensor([7, 0])
    wanted = rk.apply_rope(q, k, None, CONFIG, layout="thd", cu_seqlens=bounds, offset=offset)
    axis = {"sbhd": 1}.get(layout, 0)
    given = [(x.transpose(0, 1) if layout == "bhsd" else x).unsqueeze(axis).clone() for x in (q, k)]
    given = [x.flatten(-2) if is_flat else x for x in given]
    got = (rk.apply_rope_ if in_place else rk.apply_rope)(
        *given, None, CONFIG, layout=layout, cu_seqlens=bounds, offset=offset
    )
    for x, y, exact in zip(given, got, wanted, strict=True):
        assert y.shape == x.shape
        assert (y is x) == in_place
        flat_y = y.squeeze(axis)
        assert torch.equal((flat_y.transpose(0, 1) if layout == "bhsd" else flat_y).reshape(exact.shape), exact)


def test_results_of_sbhd_are_contiguous_as_q_is() -> None:
    q = laid_out(usual("sbhd", 4), "sbhd")
    positions = torch.stack((torch.arange(SEQ), torch.arange(SEQ) + 90))
    y, _ = rk.apply_rope(q, None, positions, CONFIG, layout="sbhd")
    assert y.is_contiguous()
    assert torch.equal(y.transpose(0, 1), rk.apply_rope(q.transpose(0, 1), None, positions, CONFIG)[0])


def test_norms_take_other_forms() -> None:
    q, k = usual("bshd", 4), usual("bshd", 2)
    norm = rk.HeadNorm(torch.linspace(0.5, 2, 16), 1e-6)
    wanted = rk.apply_rope(q, k, None, CONFIG, q_norm=norm, k_norm=norm)
    for dense in (False, True):
        given = kept(grouped(q, 2, dense)), kept(grouped(k, 2, dense))
        for call in (rk.apply_rope, rk.apply_rope_):
            for y, exact in zip(call(*given, None, CONFIG, q_norm=norm, k_norm=norm), wanted, strict=True):
                assert torch.equal(y.reshape(exact.shape), exact)


def test_gradients_reach_the_given_shape() -> None:
    x = usual("bshd", 4).flatten(-2).requires_grad_()
    y, _ = rk.apply_rope(x, None, None, CONFIG)
    (grad,) = torch.autograd.grad((y**3).sum(), x)
    z = x.detach().unflatten(-1, (4, 16)).requires_grad_()
    (wanted,) = torch.autograd.grad((rk.apply_rope(z, None, None, CONFIG)[0] ** 3).sum(), z)
    assert torch.equal(grad.view(wanted.shape), wanted)


def test_a_compiled_call_takes_flat_heads() -> None:
    torch._dynamo.reset()
    x = usual("bshd", 4).flatten(-2)
    call = torch.compile(lambda x: rk.apply_rope(x, None, None, CONFIG)[0] * 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(call(x), rk.apply_rope(x, None, None, CONFIG)[0])
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("shape", "layout", "k_shape"),
    [
        ((BATCH, SEQ, 16), "bshd", None),  # heads of a missing axis, or one flat head: not to be guessed
        ((BATCH, SEQ, 24), "bshd", None),
        ((BATCH, SEQ, 4, 16), "thd", None),
        ((SEQ, 16), "thd", None),
        ((BATCH, 64, SEQ), "bhsd", None),
        ((1, 1, BATCH, SEQ, 4, 16), "bshd", None),
        ((BATCH, SEQ, 64), "bshd", (BATCH, SEQ + 1, 32)),
        ((BATCH, SEQ, 2, 2, 16), "bshd", (BATCH, SEQ, 2, 1, 24)),
    ],
)  # fmt: skip
def test_shapes_that_could_mean_two_things_are_refused(
    shape: tuple[int, ...], layout: str, k_shape: tuple[int, ...] | None
) -> None:
    for call in (rk.apply_rope, rk.apply_rope_):
        q, k = torch.ones(shape), None if k_shape is None else torch.ones(k_shape)
        with pytest.raises(rk.RopeShapeError, match=r"^[qk]: "):
            call(q, k, None, CONFIG, layout=layout)
        assert (q == 1).all()


@pytest.mark.parametrize("layout", ["bshd", "thd"])
def test_positions_with_their_axes_last_are_named(layout: str) -> None:
    q = laid_out(usual(layout, 4), layout)
    positions = torch.zeros((SEQ, 3) if layout == "thd" else (BATCH, SEQ, 3), dtype=torch.int64)
    with pytest.raises(rk.RopeShapeError, match=r"positions: shape .*, allowed .*; axes come first"):
        rk.apply_rope(q, None, positions, MROPE, layout=layout)
