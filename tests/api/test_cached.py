"""apply_rope_cached_: rows of a table by position, as serving engines call it, on every backend of a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tolerances
from torch import Tensor
from torch.library import opcheck

import rope_kernels as rk
from rope_kernels.core.layouts import LAYOUTS, from_tokens_first, tokens_first
from rope_kernels.ops import cached_operators, direct

ROWS, BITS = 11, {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
shared_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


def table_of(pairs: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(rows, 2 * pairs) cosines, then sines."""
    angle = torch.arange(ROWS, dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(pairs) / pairs)
    return torch.cat((angle.cos(), angle.sin()), -1).to(dtype)


def by_index_select(x: Tensor, rows: Tensor, table: Tensor, interleaved: bool) -> Tensor:
    """vLLM's forward_native in float64. ``x``: (batch, tokens, heads, head_dim); ``rows``: (batch or 1, tokens)."""
    cos, sin = table.double()[rows].unsqueeze(2).chunk(2, -1)
    width, y = table.shape[1], x.double()
    turned, rest = y[..., :width], y[..., width:]
    first, second = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    results = first * cos - second * sin, second * cos + first * sin
    joined = torch.stack(results, -1).flatten(-2) if interleaved else torch.cat(results, -1)
    return torch.cat((joined, rest), -1)


def assert_rotated(y: Tensor, wanted: Tensor, layout: str) -> None:
    got = tokens_first(y, layout).double()
    limit = 2.0 ** -BITS[y.dtype] * wanted.abs() + tolerances.TABLE_PRODUCT
    assert ((got - wanted).abs() <= limit).all()


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    layout, dtype = draw(st.sampled_from(list(LAYOUTS))), draw(st.sampled_from(list(BITS)))
    batch = 1 if LAYOUTS[layout].batch is None else draw(st.integers(1, 3))
    tokens, pairs = draw(st.integers(0, 5)), draw(st.sampled_from((1, 3, 8, 32)))
    head_dim = 2 * pairs + draw(st.sampled_from((0, 0, 5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))

    def heads(count: int) -> Tensor:
        wide = torch.randn(batch, tokens, count + 1, head_dim + 2, generator=generator).to(dtype)
        x = wide[..., :count, :head_dim] if draw(st.booleans()) else wide[..., :count, :head_dim].contiguous()
        return from_tokens_first(x, layout)

    forms = [(tokens,)] if layout == "thd" else [(tokens,), (1, tokens), (batch, tokens)]
    shape = draw(st.sampled_from(forms))
    positions = torch.randint(
        0, ROWS, shape, generator=generator, dtype=draw(st.sampled_from((torch.int32, torch.int64)))
    )
    table = table_of(pairs, draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float64))))
    return dict(
        q=heads(3), k=draw(st.sampled_from((heads(2), None))), positions=positions, table=table, layout=layout,
        interleaved=draw(st.booleans()), as_pair=draw(st.booleans()), out=draw(st.booleans()),
    )  # fmt: skip


@given(call=calls())
@shared_fixture
def test_rows_are_those_of_positions(backend: str, call: dict[str, Any]) -> None:
    q, k, positions, table, layout = (call[name] for name in ("q", "k", "positions", "table", "layout"))
    rows = positions if positions.dim() == 2 else positions[None]
    wanted = [
        None if x is None else by_index_select(tokens_first(x, layout), rows, table, call["interleaved"])
        for x in (q, k)
    ]
    before = [None if x is None else x.clone() for x in (q, k)]
    out = tuple(None if x is None else torch.full_like(x, torch.nan) for x in (q, k)) if call["out"] else None
    cache = table.chunk(2, -1) if call["as_pair"] else table
    got = rk.apply_rope_cached_(q, k, positions, cache, interleaved=call["interleaved"], layout=layout, out=out)
    for y, written, x, was, exact in zip(got, out or (q, k), (q, k), before, wanted, strict=True):
        assert y is written
        if y is not None:
            assert_rotated(y, exact, layout)
            assert out is None or torch.equal(x, was)


@pytest.mark.parametrize("axis_map", ["contiguous", "interleaved", "ernie"])
@pytest.mark.parametrize("layout", ["thd", "bshd"])
def test_each_pair_takes_the_row_of_its_axis(backend: str, axis_map: str, layout: str) -> None:
    section = [3, 3, 2]
    cfg = rk.RopeConfig(head_dim=16, rope_type="mrope", mrope_section=section, axis_map=axis_map)
    shape = (3, 5) if layout == "thd" else (3, 2, 5)
    q = torch.randn(*shape[1:], 4, 16)
    positions = torch.randint(0, ROWS, shape)
    wanted = rk.apply_rope(q, None, positions, cfg, layout=layout)[0]
    rk.apply_rope_cached_(
        q, None, positions, table_of(8), layout=layout, mrope_section=section, axis_map=axis_map
    )  # fmt: skip
    torch.testing.assert_close(q, wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("position", [ROWS, -1, 1 << 40])
@pytest.mark.parametrize("axes", [1, 3])
def test_a_position_without_a_row_is_an_error_and_nothing_is_written(backend: str, position: int, axes: int) -> None:
    q = torch.randn(3, 2, 16)
    before = q.clone()
    positions = torch.zeros(3, dtype=torch.int64)
    positions[1] = position
    options = {} if axes == 1 else dict(mrope_section=[3, 3, 2])
    given = positions if axes == 1 else torch.stack((positions * 0, positions, positions * 0))
    with pytest.raises(rk.RopeShapeError, match=rf"positions: got {position}, .*rows 0 to {ROWS - 1}"):
        rk.apply_rope_cached_(q, None, given, table_of(8), **options)
    assert torch.equal(q, before)


Q, K, POSITIONS = torch.randn(3, 2, 16), torch.randn(3, 1, 16), torch.arange(3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(q=Q[0]), "q: shape"),
        (dict(q=Q.double()), "q: dtype"),
        (dict(k=K[:2]), "k: shape"),
        (dict(q=Q.transpose(0, 2).contiguous().transpose(0, 2)), "q: last stride"),
        (dict(positions=POSITIONS.float()), "positions: dtype"),
        (dict(positions=POSITIONS[:2]), "positions: shape"),
        (dict(positions=[0, 1, 2]), "positions: got list"),
        (dict(cos_sin_cache=table_of(8)[:, :15]), "cos_sin_cache: shape"),
        (dict(cos_sin_cache=table_of(8)[0]), "cos_sin_cache: shape"),
        (dict(cos_sin_cache=table_of(8).int()), "cos_sin_cache: cos is torch.int32"),
        (dict(cos_sin_cache=(table_of(8), table_of(4))), "cos_sin_cache: sin is"),
        (dict(cos_sin_cache=table_of(9)), "cos_sin_cache: has 11 rows for 18 channels"),
        (dict(cos_sin_cache=table_of(8)[:0]), "cos_sin_cache: has 0 rows"),
        (dict(cos_sin_cache="table"), "cos_sin_cache: got str"),
        (dict(rotary_dim=8), r"rotary_dim: got 8, the table is for 16 channels; give cos\[:, :rotary_dim // 2\]"),
        (dict(rotary_dim=16.5), "rotary_dim: got 16.5"),
        (dict(interleaved=1), "interleaved: got 1"),
        (dict(layout="tdh"), "layout: got 'tdh'"),
        (dict(out=(Q,)), r"out: must be \(q_out, k_out\)"),
        (dict(out=(Q[:2], K)), "out: q_out is"),
        (dict(mrope_section=[3, 3, 2]), r"positions: shape \(3,\), must have 3 axes in front"),
        (dict(mrope_section=[4, 4], positions=torch.zeros(3, 2).long()), "axes come first"),
        (dict(mrope_section=[3, 3, 2], positions=POSITIONS.expand(3, 3), axis_map="kimi"), "axis_map: got 'kimi'"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:24],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], words: str) -> None:
    q, k = Q.clone(), K.clone()
    given = dict(q=q, k=k, positions=POSITIONS, cos_sin_cache=table_of(8)) | changes
    with pytest.raises(rk.RopeShapeError, match=words):
        rk.apply_rope_cached_(**given)
    assert torch.equal(q, Q)
    assert torch.equal(k, K)


@pytest.mark.parametrize("which", ["q", "k", "table", "out"])
def test_a_gradient_that_would_be_lost_is_an_error(which: str) -> None:
    q, k, table, out = Q.clone(), K.clone(), table_of(8), (torch.empty_like(Q), torch.empty_like(K))
    dict(q=q, k=k, table=table, out=out[0])[which].requires_grad_()
    with pytest.raises(RuntimeError, match="apply_rope_cached_: a derivative is needed"):
        rk.apply_rope_cached_(q, k, POSITIONS, table, out=out if which == "out" else None)
    with torch.no_grad():
        rk.apply_rope_cached_(q, k, POSITIONS, table)


def test_tensors_that_overlap_are_refused() -> None:
    q = torch.randn(3, 2, 16)
    with pytest.raises(rk.RopeShapeError, match="overlaps the memory of k"):
        rk.apply_rope_cached_(q, q[:, 1:], POSITIONS, table_of(8))


@pytest.mark.parametrize("out", [False, True])
def test_the_direct_path_has_the_bits_of_the_operator(monkeypatch: pytest.MonkeyPatch, out: bool) -> None:
    results = []
    for refuse in (False, True):
        if refuse:
            monkeypatch.setattr(direct, "rotate_cached", lambda *a: None)
        q, k = Q.clone().bfloat16(), K.clone().bfloat16()
        to = (torch.empty_like(q), torch.empty_like(k)) if out else None
        versions = [x._version for x in to or (q, k)]
        got = rk.apply_rope_cached_(q, k, POSITIONS, table_of(8), out=to)
        assert [x._version for x in got if x is not None] == [v + 1 for v in versions]
        results.append([x.clone() for x in got if x is not None])
    for x, y in zip(*results, strict=True):
        assert torch.equal(x, y)


def test_opcheck() -> None:
    rest = (POSITIONS, *table_of(8).chunk(2, -1), "half", "thd")
    opcheck(cached_operators.rotate_cached_, (Q.clone(), K.clone(), *rest))
    opcheck(cached_operators.rotate_cached_out, (Q, None, *rest, torch.empty_like(Q), None))


@pytest.mark.parametrize("axes", [1, 3])
def test_a_compiled_call_is_whole(axes: int) -> None:
    torch._dynamo.reset()
    options: dict[str, Any] = {} if axes == 1 else dict(mrope_section=[3, 3, 2])
    positions = POSITIONS if axes == 1 else torch.stack((POSITIONS, POSITIONS + 1, POSITIONS * 2))

    def step(q: Tensor, k: Tensor, table: Tensor) -> Tensor:
        q, k = q * 2, k * 2
        rk.apply_rope_cached_(q, k, positions, table, **options)
        return q.sum(1) + k.sum(1)

    wanted = step(Q, K, table_of(8))
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(Q, K, table_of(8)), wanted)
    torch._dynamo.reset()
