"""Appending to a KV cache: what it stores, in every form and memory layout, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from support.appended import CALLS, EVERY_CALL, AppendCall, as_bytes

import rope_kernels as rk
from rope_kernels.backends import native

BACKENDS = ["reference", *(f"native-{isa}" for isa in native.isas())]


@pytest.fixture(params=BACKENDS)
def backend(request):
    name, _, isa = request.param.partition("-")
    native.force_isa(isa)
    with rk.use_backend(name):
        yield name
    native.force_isa("")


def assert_between(got: torch.Tensor, low: torch.Tensor, high: torch.Tensor, what: str) -> None:
    """Bit for bit one of the bounds, or a number between them; elsewhere NaN is what was there before."""
    same = (as_bytes(got) == as_bytes(low)) | (as_bytes(got) == as_bytes(high))
    good = same | ((got.double() >= low.double()) & (got.double() <= high.double()))
    assert good.all(), f"{what}: {int((~good).sum())} of {good.numel()} differ"


def assert_same_bits(got: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    same = as_bytes(got) == as_bytes(wanted)
    assert same.all(), f"{what}: {int((~same).sum())} of {same.numel()} differ"


FULL = [pytest.param(call, marks=pytest.mark.full) for call in EVERY_CALL if call not in set(CALLS)]


@pytest.mark.parametrize("call", [*CALLS, *FULL], ids=str)
def test_a_cache_holds_rotated_k_and_v(call: AppendCall, backend: str) -> None:
    filled = call.fill()
    q, k = call.rotated(filled)
    wanted = call.expected(filled)
    before = [None if x is None else x.clone() for x in (filled.made.q, filled.made.k, filled.v)]
    got, out = call.append(filled)
    for i, (memory, bounds) in enumerate(zip(filled.memory, wanted, strict=True)):
        assert_between(memory, *bounds, f"memory {i}")
    assert_same_bits(got[0].contiguous(), q.contiguous(), "q")
    assert got[0] is (filled.made.q if out is None else out[0])
    if call.kind.form in ("returned", "out with k") and k is not None:
        assert got[1] is not None
        assert_same_bits(got[1].contiguous(), k.contiguous(), "k")
    else:
        assert got[1] is None
    for x, old, is_written in zip(
        (filled.made.q, filled.made.k, filled.v), before, (out is None, False, False), strict=True
    ):
        assert is_written or x is None or torch.equal(x, old)
