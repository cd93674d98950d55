"""Slots of tokens in a cache of pages, and what a KVCache refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rope_kernels as rk


def slot_by_slot(table, sequence: int, position: int, page_size: int) -> int:
    """The definition."""
    if position < 0 or position // page_size >= len(table[sequence]) or table[sequence][position // page_size] < 0:
        return -1
    return table[sequence][position // page_size] * page_size + position % page_size


@st.composite
def tables(draw):
    sequences, max_pages = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    page = st.integers(-2, 2**40)
    return draw(
        st.lists(st.lists(page, min_size=max_pages, max_size=max_pages), min_size=sequences, max_size=sequences)
    )


@given(tables(), st.data())
def test_slots_are_pages_and_entries(table, data):
    page_size = data.draw(st.integers(1, 20))
    position = st.integers(-3, len(table[0]) * page_size + 2)
    made = torch.tensor(table)
    rows = data.draw(
        st.integers(1, 4).flatmap(
            lambda n: st.lists(st.lists(position, min_size=n, max_size=n), min_size=len(table), max_size=len(table))
        )
    )
    wanted = [[slot_by_slot(table, s, p, page_size) for p in row] for s, row in enumerate(rows)]
    got = rk.slots_of(made, torch.tensor(rows), page_size)
    assert got.dtype == torch.int64
    assert got.tolist() == wanted
    first = torch.tensor([row[0] for row in rows], dtype=torch.int32)
    assert rk.slots_of(made, first, page_size).tolist() == [row[0] for row in wanted]
    lengths = data.draw(st.lists(st.integers(0, 4), min_size=len(table), max_size=len(table)))
    packed = [(s, data.draw(position)) for s, n in enumerate(lengths) for _ in range(n)]
    tail = data.draw(st.integers(0, 2))
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    positions = torch.tensor([p for _, p in packed] + [0] * tail, dtype=torch.int64)
    slots = rk.slots_of(made, positions, page_size, cu_seqlens=bounds.int())
    assert slots.tolist() == [slot_by_slot(table, s, p, page_size) for s, p in packed] + [-1] * tail


@pytest.mark.parametrize(
    ("begins", "change"),
    [
        ("block_table: got list", dict(block_table=[[0]])),
        ("block_table: dtype", dict(block_table=torch.zeros(2, 3))),
        ("block_table: shape (6,)", dict(block_table=torch.arange(6))),
        ("positions: dtype", dict(positions=torch.zeros(2, 4))),
        ("positions: shape (3, 4)", dict(positions=torch.zeros(3, 4, dtype=torch.int64))),
        ("positions: shape (5,)", dict(positions=torch.arange(5))),
        ("positions: shape (2, 4)", dict(cu_seqlens=torch.tensor([0, 1, 2]))),
        ("cu_seqlens: shape (2,)", dict(cu_seqlens=torch.tensor([0, 4]))),
        ("page_size: got 0", dict(page_size=0)),
        ("page_size: got True", dict(page_size=True)),
        ("page_size: got 2.0", dict(page_size=2.0)),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(begins, change):
    given = dict(block_table=torch.zeros(2, 3, dtype=torch.int32), positions=torch.zeros(2, 4).long(), page_size=4)
    with pytest.raises(rk.RopeShapeError) as error:
        rk.slots_of(**(given | change))
    assert str(error.value).startswith(begins)


def test_a_cache_needs_tensors():
    k, slots = torch.zeros(2, 4, 1, 8), torch.zeros(3, dtype=torch.int32)
    assert repr(rk.KVCache(k, None, slots)) == "KVCache(k=(2, 4, 1, 8, torch.float32), v=None, slots=(3,))"
    for arguments, begins in (
        ((None, None, slots), "cache: k and v"),
        ((k, None, [1]), "slots: got list"),
        ((k, [1], slots), "cache.v: got list"),
        ((k, None, slots, 0.5), "k_scale: got float"),
    ):
        with pytest.raises(rk.RopeShapeError) as error:
            rk.KVCache(*arguments)
        assert str(error.value).startswith(begins)


def test_slots_in_a_compiled_graph():
    table, positions = torch.tensor([[3, -1], [0, 7]]), torch.tensor([[0, 5], [6, 9]])
    made = torch.compile(rk.slots_of, fullgraph=True, backend="aot_eager")(table, positions, 4)
    assert made.tolist() == [[12, -1], [30, -1]]
