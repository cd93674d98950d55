"""Norms beside the rotation: exact, rounded once, in every form of the call; and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import normed, tolerances
from support.cases import config_of
from support.direct_compared import refuse_all
from support.normed import CALLS, EVERY_CALL, NormedCall, rotated_after_norm

import rope_kernels as rk

CONFIG = rk.RopeConfig(head_dim=64)


def rotate(call: NormedCall, made, weights, **more):
    options = made.options | call.options(weights) | more
    return rk.apply_rope(made.q, made.k, made.positions, config_of(call.case), **options)


def check_call(call: NormedCall) -> None:
    made, weights, expected = rotated_after_norm(call)
    results = rotate(call, made, weights)
    for side, x, got in zip("qk", (made.q, made.k), results, strict=True):
        if x is not None:
            normed.check(call.case, got, expected[side], call.norm(side, weights[side]), x)


FULL = [pytest.param(call, marks=pytest.mark.full) for call in EVERY_CALL if call not in set(CALLS)]


@pytest.mark.parametrize("call", [*CALLS, *FULL], ids=str)
def test_a_normed_head_is_exact(call, backend):
    check_call(call)


@pytest.mark.parametrize("call", CALLS[::3], ids=str)
def test_every_form_has_the_same_bits(call, backend):
    made, weights, _ = rotated_after_norm(call)
    wanted = rotate(call, made, weights)
    out = tuple(None if x is None else torch.full_like(x, torch.nan) for x in (made.q, made.k))
    if all(x is None or x.stride(-1) == 1 for x in out):
        assert rotate(call, made, weights, out=out) is out
        assert all(x is y is None or torch.equal(x, y) for x, y in zip(out, wanted, strict=True))
    options = made.options | call.options(weights)
    rk.apply_rope_(made.q, made.k, made.positions, config_of(call.case), **options)
    assert torch.equal(made.q, wanted[0])
    assert made.k is None or torch.equal(made.k, wanted[1])


@pytest.mark.parametrize("after_rope", [False, True])
@pytest.mark.parametrize("table_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("pairing", ["half", "interleaved", "interleaved_to_half"])
@pytest.mark.parametrize("head_dim", [24, 64, 128, 256])
def test_rounded_tables(head_dim, pairing, table_dtype, after_rope, backend):
    """cos^2 + sin^2 is another number for each pair then, and heads may be large where it is far from 1."""
    config = rk.RopeConfig(head_dim=head_dim, table_dtype=table_dtype, pairing=pairing)
    positions = torch.arange(40)
    q = torch.randn(1, 40, 3, head_dim)
    q[0, 1:, 0, 1] *= 50.0
    norm = rk.HeadNorm(torch.randn(head_dim), 1e-6, after_rope=after_rope)
    x = q if after_rope else normed.normed_exactly(q, norm).float()
    rotated = rk.apply_rope(x, None, positions, config)[0]  # by the same table: an entry at a tie may round either way
    expected = normed.normed_exactly(rotated, norm) if after_rope else rotated
    got = rk.apply_rope(q, None, positions, config, q_norm=norm)[0]
    assert (got - expected).abs().max() <= tolerances.CONTRACT_EPS * expected.abs().max()


@pytest.mark.parametrize("after_rope", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_alone_and_in_a_batch(dtype, after_rope, backend):
    q, k = torch.randn(3, 70, 5, 64).to(dtype), torch.randn(3, 70, 2, 64).to(dtype)
    positions = torch.randint(0, 9000, (3, 70))
    norms = {f"{s}_norm": rk.HeadNorm(torch.randn(64), 1e-6, after_rope=after_rope) for s in "qk"}
    whole = rk.apply_rope(q, k, positions, CONFIG, **norms)
    for b, t in ((0, 0), (1, 33), (2, 69)):
        alone = rk.apply_rope(
            q[b : b + 1, t : t + 1, :1], k[b : b + 1, t : t + 1], positions[b : b + 1, t : t + 1], CONFIG, **norms
        )
        assert torch.equal(alone[0], whole[0][b : b + 1, t : t + 1, :1])
        assert torch.equal(alone[1], whole[1][b : b + 1, t : t + 1])


def test_heads_first_in_memory_have_the_same_bits(backend):
    q = torch.randn(2, 6, 300, 64).bfloat16()
    norm = rk.HeadNorm(torch.randn(64), 1e-6)
    wanted = rk.apply_rope(q.transpose(1, 2).contiguous(), None, None, CONFIG, q_norm=norm)[0]
    assert torch.equal(rk.apply_rope(q, None, None, CONFIG, q_norm=norm, layout="bhsd")[0], wanted.transpose(1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 1e-30, 6e-8, 65504.0, float("nan"), float("inf")])
def test_extreme_heads(value, dtype, backend):
    """Zeros, heads that eps decides, fp16's largest and subnormal values, and numbers that are none."""
    q = torch.full((1, 2, 1, 64), value).to(dtype)
    norm = rk.HeadNorm(torch.ones(64), 1e-6)
    got = rk.apply_rope(q, None, None, CONFIG, q_norm=norm)[0]
    wanted = normed.normed_exactly(q, norm)
    rotated = rk.apply_rope(wanted.float(), None, None, CONFIG)[0].to(dtype)
    torch.testing.assert_close(got, rotated, equal_nan=True, rtol=2e-6 if dtype == torch.float32 else 1e-2, atol=1e-6)


def test_a_nan_of_the_weight_stays_one(backend):
    weight = torch.ones(64)
    weight[3] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    got = rk.apply_rope(torch.randn(1, 3, 2, 64).bfloat16(), None, None, CONFIG, q_norm=rk.HeadNorm(weight, 1e-6))[0]
    assert got[..., [3, 35]].isnan().all()
    assert not got[..., [i for i in range(64) if i not in (3, 35)]].isnan().any()


def test_without_a_norm_nothing_changes(backend):
    q, k = torch.randn(2, 9, 4, 64), torch.randn(2, 9, 2, 64)
    wanted = rk.apply_rope(q, k, None, CONFIG)
    normed_q = rk.apply_rope(q, k, None, CONFIG, q_norm=rk.HeadNorm(None, 1e-6))
    torch.testing.assert_close(normed_q[1], wanted[1], rtol=0, atol=5e-7)
    module = rk.RotaryEmbedding(CONFIG)
    again = module(q, k, q_norm=rk.HeadNorm(None, 1e-6))
    assert torch.equal(again[0], normed_q[0])


Q, K = torch.randn(2, 3, 4, 64), torch.randn(2, 3, 2, 64)
ONES = torch.ones(64)
OUT = torch.full_like(Q, torch.nan), torch.full_like(K, torch.nan)
MISTAKES = {
    "no HeadNorm": (lambda: dict(q_norm=ONES), "q_norm: got Tensor, a HeadNorm or None is needed"),
    "a module": (lambda: dict(q_norm=torch.nn.RMSNorm(64)), "q_norm: got RMSNorm, a HeadNorm"),
    "a module as weight": (lambda: dict(q_norm=rk.HeadNorm(torch.nn.RMSNorm(64), 1e-6)), "pass the module's weight"),
    "no eps": (lambda: dict(q_norm=rk.HeadNorm(ONES, None)), "eps: got None"),
    "a negative eps": (lambda: dict(q_norm=rk.HeadNorm(ONES, -1e-6)), "eps: got -1e-06"),
    "an infinite offset": (
        lambda: dict(q_norm=rk.HeadNorm(ONES, 0.0, weight_offset=float("inf"))),
        "weight_offset: got",
    ),
    "an offset to nothing": (lambda: dict(q_norm=rk.HeadNorm(None, 1e-6, weight_offset=1.0)), "without a weight"),
    "an order": (lambda: dict(q_norm=rk.HeadNorm(ONES, 1e-6, after_rope="yes")), "after_rope: got 'yes'"),
    "backwards": (lambda: dict(q_norm=rk.HeadNorm(ONES, 1e-6), inverse=True), "q_norm: given with inverse=True"),
    "another width": (lambda: dict(k_norm=rk.HeadNorm(torch.ones(32), 1e-6)), r"k_norm: .* \(32,\), must be \(64,\)"),
    "the projection": (lambda: dict(q_norm=rk.HeadNorm(torch.ones(256), 1e-6)), "norms the whole projection"),
    "two dimensions": (lambda: dict(q_norm=rk.HeadNorm(torch.ones(4, 64), 1e-6)), r"q_norm: .* shape \(4, 64\)"),
    "integers": (lambda: dict(q_norm=rk.HeadNorm(torch.ones(64).long(), 1e-6)), "q_norm: its weight is torch.int64"),
    "another device": (lambda: dict(q_norm=rk.HeadNorm(ONES.to("meta"), 1e-6)), "q_norm: its weight is on meta"),
}


@pytest.mark.parametrize(("options", "problem"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_and_nothing_is_written(options, problem):
    for call in (rk.apply_rope, rk.apply_rope_):
        q, k = Q.clone(), K.clone()
        with pytest.raises(rk.RopeShapeError, match=problem):
            call(q, k, None, CONFIG, **options())
        assert torch.equal(q, Q)
        assert torch.equal(k, K)


@pytest.mark.parametrize("out", [(), (Q.clone(),), (Q.clone(), None), 3])
def test_outputs_that_are_no_pair_are_refused(out):
    with pytest.raises(rk.RopeShapeError, match="out: must be"):
        rk.apply_rope(Q, K, None, CONFIG, q_norm=rk.HeadNorm(ONES, 1e-6), out=out)


def test_a_norm_of_a_missing_k_is_refused():
    with pytest.raises(rk.RopeShapeError, match="k_norm: given without k"):
        rk.apply_rope(Q, None, None, CONFIG, k_norm=rk.HeadNorm(None, 1e-6))


@pytest.mark.parametrize("call", [rk.apply_rope_, lambda *args, **options: rk.apply_rope(*args, **options, out=OUT)])
def test_a_weight_that_needs_a_gradient_is_refused_where_it_would_get_none(call):
    norm = rk.HeadNorm(torch.ones(64, requires_grad=True), 1e-6)
    q, k = Q.clone(), K.clone()
    with pytest.raises(RuntimeError, match="k_norm: its weight needs a derivative"):
        call(q, k, None, CONFIG, k_norm=norm)
    assert torch.equal(q, Q)
    assert all(x.isnan().all() for x in OUT)


def test_norms_are_equal_by_identity():
    norm, other = rk.HeadNorm(ONES, 1e-6), rk.HeadNorm(ONES, 1e-6)
    assert len({norm, other, norm}) == 2
    assert norm != other
    assert repr(norm) == "HeadNorm(weight=(64,), 1e-06, weight_offset=0.0, after_rope=False)"


@pytest.mark.parametrize("call", [call for call in CALLS if call.case.positions != "float"][::4], ids=str)
def test_the_fast_path_has_the_bits_of_the_operators(call, monkeypatch):
    made, weights, _ = rotated_after_norm(call)
    taken = rotate(call, made, weights)
    refuse_all(monkeypatch)
    through = rotate(call, made, weights)
    for x, y in zip(taken, through, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert torch.equal(x, y)
            assert x.stride() == y.stride()


@given(st.integers(0, 0xFFFF))
def test_every_weight_of_16_bits_is_read_right(bits):
    for dtype in (torch.float16, torch.bfloat16):
        weight = torch.tensor([bits - (1 << 16 if bits >> 15 else 0)], dtype=torch.int16).view(dtype).expand(64)
        q = torch.ones(1, 1, 1, 64)
        got = rk.apply_rope(q, None, None, CONFIG, q_norm=rk.HeadNorm(weight, 0.0))[0]
        assert torch.equal(got.flatten(), weight.float()) or weight.isnan().all()
