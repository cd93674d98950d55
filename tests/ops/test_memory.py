"""The cheap test of overlap says yes only where no byte is shared, and always does for contiguous tensors apart."""

from __future__ import annotations

from itertools import combinations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rope_kernels.ops.memory import are_clearly_apart

SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=4)


@given(SPANS, st.sampled_from([torch.float32, torch.bfloat16]))
def test_contiguous_tensors_are_apart_where_no_element_is_shared(
    spans: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    buffer = torch.empty(64, dtype=dtype)
    elements = [set(range(start, start + size)) for start, size in spans]
    apart = all(not a & b for a, b in combinations(elements, 2))
    views = [buffer[start : start + size] for start, size in spans]
    assert are_clearly_apart(*views) == are_clearly_apart(None, *views) == apart


@given(st.integers(2, 5), st.integers(2, 3))
def test_gaps_are_not_clear(tokens: int, step: int) -> None:
    buffer = torch.empty(tokens * step, 4)
    assert not are_clearly_apart(buffer[::step])
    assert not are_clearly_apart(torch.empty(3), buffer[::step])
