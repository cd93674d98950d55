"""Every wrong tensor is named, with what came and what is allowed, and nothing is written."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import cases

import rope_kernels as rk

CONFIG = rk.RopeConfig(head_dim=64)
MROPE = rk.RopeConfig(**cases.CONFIGS["mrope_contiguous"])
LONGROPE = rk.RopeConfig(**cases.CONFIGS["longrope"])


def q(*shape, **kwargs):
    return torch.ones(shape or (2, 3, 4, 64), **kwargs)


BAD = {
    "layout": (dict(layout="hsbd"), r"layout: got 'hsbd', allowed are bshd, bhsd, sbhd, thd"),
    "inverse": (dict(inverse="no"), "inverse: got 'no', allowed are True and False"),
    "rank": (dict(q=q(2, 3, 64)), r"q: shape \(2, 3, 64\) has 3 dimensions, layout bshd has 4"),
    "thd rank": (dict(layout="thd"), "q: .* has 4 dimensions, layout thd has 3"),
    "head_dim": (dict(q=q(2, 3, 4, 32)), "q: last dimension is 32, must be the config's head_dim 64"),
    "dtype": (dict(q=q(dtype=torch.float64)), "q: dtype torch.float64, allowed are float32, float16, bfloat16"),
    "integer q": (dict(q=q(dtype=torch.int32)), "q: dtype torch.int32"),
    "stride": (dict(q=q(2, 3, 4, 128)[..., ::2]), r"q: last stride is 2, must be 1"),
    "k head_dim": (dict(k=q(2, 3, 1, 32)), "k: last dimension is 32"),
    "k batch": (dict(k=q(1, 3, 1, 64)), r"k: shape \(1, 3, 1, 64\).*must have batch and tokens of q's \(2, 3, 4, 64\)"),
    "k tokens": (dict(k=q(2, 4, 1, 64)), "k: shape"),
    "k dtype": (dict(k=q(dtype=torch.float16)), "k: dtype torch.float16, must be q's torch.float32"),
    "k device": (dict(k=q(device="meta")), "k: on meta, must be on q's cpu"),
    "positions length": (dict(positions=torch.arange(4)), r"positions: shape \(4,\), allowed .* \(1, 3\), \(2, 3\)"),
    "positions batch": (dict(positions=torch.zeros(3, 3, dtype=torch.int64)), r"positions: shape \(3, 3\)"),
    "positions axes": (dict(positions=torch.zeros(3, 2, 3, dtype=torch.int64)), r"positions: shape \(3, 2, 3\)"),
    "positions dtype": (dict(positions=torch.zeros(3, dtype=torch.int16)), "positions: dtype torch.int16, allowed"),
    "positions bool": (dict(positions=torch.zeros(3, dtype=torch.bool)), "positions: dtype torch.bool"),
    "positions device": (dict(positions=torch.arange(3, device="meta")), "positions: on meta, must be on q's cpu"),
    "mrope axes": (dict(cfg=MROPE, positions=torch.zeros(2, 2, 3, dtype=torch.int64)), r"\(3, 1, 3\), \(3, 2, 3\)"),
    "offset and positions": (dict(positions=torch.arange(3), offset=1), "offset: given together with positions"),
    "offset float": (dict(offset=1.5), r"offset: got 1.5, allowed are an int"),
    "offset bool": (dict(offset=True), r"offset: got True"),
    "offset shape": (dict(offset=torch.zeros(3, dtype=torch.int64)), r"offset: shape \(3,\), allowed are an int"),
    "offset dtype": (dict(offset=torch.zeros(2)), "offset: dtype torch.float32, allowed are int64, int32"),
    "seq_len shape": (dict(cfg=LONGROPE, seq_len=torch.ones(2, 1, dtype=torch.int64)), r"seq_len: shape \(2, 1\)"),
    "seq_len where unused": (dict(seq_len=torch.ones(2)), "seq_len: dtype torch.float32"),
    "cu_seqlens layout": (dict(cu_seqlens=torch.tensor([0, 3])), "cu_seqlens: given with layout bshd"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("call", [rk.apply_rope, rk.apply_rope_])
def test_bad_call(name, call):
    changes, message = BAD[name]
    options = dict(q=q(), k=None, positions=None, cfg=CONFIG) | changes
    given = [options.pop(n) for n in ("q", "k", "positions", "cfg")]
    before = given[0].clone()
    with pytest.raises(rk.RopeShapeError, match=message):
        call(*given, **options)
    assert torch.equal(given[0], before)


PACKED = {
    "with positions": (dict(positions=torch.arange(6), cu_seqlens=torch.tensor([0, 6])), "cu_seqlens: given together"),
    "dtype": (dict(cu_seqlens=torch.tensor([0.0, 6.0])), "cu_seqlens: dtype torch.float32"),
    "shape": (dict(cu_seqlens=torch.tensor([[0, 6]])), r"cu_seqlens: shape \(1, 2\), must be \(sequences \+ 1,\)"),
    "none": (dict(cu_seqlens=torch.tensor([0])), "cu_seqlens: shape"),
    "device": (dict(cu_seqlens=torch.tensor([0, 6], device="meta")), "cu_seqlens: on meta"),
    "offsets": (dict(cu_seqlens=torch.tensor([0, 2, 6]), offset=torch.zeros(3, dtype=torch.int64)), "offset: shape"),
    "lengths": (dict(cu_seqlens=torch.tensor([0, 2, 6]), seq_len=torch.ones(6, dtype=torch.int64)), "seq_len: shape"),
}


@pytest.mark.parametrize("name", PACKED)
def test_bad_packed_call(name):
    options, message = PACKED[name]
    positions = options.get("positions")
    options = {n: v for n, v in options.items() if n != "positions"}
    with pytest.raises(rk.RopeShapeError, match=message):
        rk.apply_rope(q(6, 2, 64), None, positions, LONGROPE, layout="thd", **options)


def test_positions_may_come_with_cu_seqlens_that_assign_lengths():
    x = torch.randn(6, 2, 64)
    bounds, lengths = torch.tensor([0, 2, 6]), torch.tensor([4, 400])
    counted = torch.tensor([0, 1, 0, 1, 2, 3])
    got, _ = rk.apply_rope(x, None, counted, LONGROPE, layout="thd", cu_seqlens=bounds, seq_len=lengths)
    wanted, _ = rk.apply_rope(x, None, None, LONGROPE, layout="thd", cu_seqlens=bounds, seq_len=lengths)
    assert torch.equal(got, wanted)


def test_a_config_that_is_none():
    with pytest.raises(TypeError, match="cfg: got dict, a RopeConfig is needed"):
        rk.apply_rope(q(), None, None, {"head_dim": 64})


OUT = {
    "no k_out": (lambda x: (torch.empty_like(x), None), r"out: must be \(q_out, k_out\)"),
    "shape": (lambda x: (torch.empty(2, 3, 4, 32), torch.empty_like(x)), r"out: q_out is \(2, 3, 4, 32\)"),
    "dtype": (lambda x: (torch.empty_like(x), x.half()), "out: k_out is .*float16"),
    "stride": (lambda x: (torch.empty(2, 3, 4, 128)[..., ::2], torch.empty_like(x)), "out: q_out has last stride 2"),
    "same buffer twice": (lambda x: (x, x), "out: q_out: overlaps the memory of k_out"),
    "expanded": (lambda x: (torch.empty(1, 3, 4, 64).expand(2, -1, -1, -1), torch.empty_like(x)), "overlaps itself"),
}


@pytest.mark.parametrize("positions", [None, torch.arange(3)], ids=["counted", "given"])
@pytest.mark.parametrize("name", OUT)
def test_bad_out(name, positions):
    make, message = OUT[name]
    x = q()
    with pytest.raises(rk.RopeShapeError, match=message):
        rk.apply_rope(x, q(), positions, CONFIG, out=make(torch.zeros_like(x)))


def test_what_is_wrong_with_q_is_told_before_what_is_wrong_with_out():
    with pytest.raises(rk.RopeShapeError, match=r"q: dtype torch.float64"):
        rk.apply_rope(q().double(), None, torch.arange(3), CONFIG, out=(q(), None))


@pytest.mark.parametrize("positions", [None, torch.arange(3)], ids=["counted", "given"])
def test_out_that_overlaps_an_input(positions):
    storage = torch.zeros(2 * 3 * 4 * 64 + 32)
    x, shifted = storage[:-32].view(2, 3, 4, 64), storage[32:].view(2, 3, 4, 64)
    with pytest.raises(rk.RopeShapeError, match="out: q_out overlaps an input's memory"):
        rk.apply_rope(x, None, positions, CONFIG, out=(shifted, None))
    assert not storage.any()


@given(st.lists(st.integers(0, 7), min_size=4, max_size=4))
def test_buffers_anywhere_in_one_storage(starts):
    """q, k and their outputs begin at multiples of half their size."""
    half = 64
    storage = torch.randn(9 * half)
    x, y, x_out, y_out = (storage[half * s :][: 2 * half].view(1, 2, 1, 64) for s in starts)
    at_x, at_y, at_x_out, at_y_out = starts
    allowed = (
        abs(at_x_out - at_y_out) > 1
        and all(abs(at_x_out - other) != 1 for other in (at_x, at_y))
        and all(abs(at_y_out - other) != 1 for other in (at_x, at_y))
        and at_x_out != at_y
        and at_y_out != at_x
    )
    if not allowed:
        before = storage.clone()
        with pytest.raises(rk.RopeShapeError, match="overlaps"):
            rk.apply_rope(x, y, torch.arange(2), CONFIG, out=(x_out, y_out))
        assert torch.equal(storage, before)
        return
    wanted = rk.apply_rope(x, y, torch.arange(2), CONFIG)
    rk.apply_rope(x, y, torch.arange(2), CONFIG, out=(x_out, y_out))
    assert torch.equal(x_out, wanted[0])
    assert torch.equal(y_out, wanted[1])


def test_in_place_overlap():
    with pytest.raises(rk.RopeShapeError, match=r"q: overlaps itself \(strides \(0, 256, 64, 1\)\)"):
        rk.apply_rope_(q(1, 3, 4, 64).expand(2, -1, -1, -1), None, None, CONFIG)
    x = q()
    with pytest.raises(rk.RopeShapeError, match="q: overlaps the memory of k"):
        rk.apply_rope_(x, x[:, :, 1:3], None, CONFIG)
    assert x.eq(1).all()


def test_views_of_one_projection_do_not_overlap():
    fused = torch.randn(2, 3, 8 * 64)
    expected = fused.clone()
    views = [t.unflatten(-1, (-1, 64)) for t in fused.split((4 * 64, 2 * 64, 2 * 64), -1)]
    wanted = rk.apply_rope(views[0].clone(), views[1].clone(), None, CONFIG)
    rk.apply_rope_(views[0], views[1], None, CONFIG)
    assert torch.equal(views[0], wanted[0])
    assert torch.equal(views[1], wanted[1])
    assert torch.equal(fused[..., 6 * 64 :], expected[..., 6 * 64 :])
    rk.apply_rope_(*torch.randn(2, 3, 4, 3, 64).unbind(3)[:2], None, CONFIG)
