"""Overlap of strided views against marking every byte."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from rope_kernels.api.overlap import shares_memory, writes_twice

SIZE = 400
views = st.tuples(
    st.integers(0, 60),
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 40)), min_size=1, max_size=3),
    st.integers(1, 4),
)


def view(storage, description):
    start, outer, last = description
    return storage.as_strided((*(n for n, _ in outer), last), (*(s for _, s in outer), 1), start)


def marks(x):
    places = torch.arange(SIZE).as_strided(x.shape, x.stride(), x.storage_offset())
    return torch.bincount(places.flatten(), minlength=SIZE)


@given(views)
def test_writes_twice(description):
    x = view(torch.zeros(SIZE), description)
    assert writes_twice(x) == bool(marks(x).max() > 1)


@given(views, views)
def test_shares_memory(one, other):
    storage = torch.zeros(SIZE)
    a, b = view(storage, one), view(storage, (*other[:2], one[2]))
    if not writes_twice(a) and not writes_twice(b):
        assert shares_memory(a, b) == bool((marks(a).bool() & marks(b).bool()).any())


def test_empty_views_share_nothing():
    storage = torch.zeros(8)
    assert not shares_memory(storage[:0], storage)
    assert not writes_twice(storage[:0])
