"""The backends of a CPU, for tests that each of them must pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import rope_kernels as rk
from rope_kernels.backends import native


@pytest.fixture(params=["reference", *(f"native-{isa}" for isa in native.isas())])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Plain torch, or the native library with each of its instruction sets."""
    name, _, isa = request.param.partition("-")
    native.force_isa(isa)
    with rk.use_backend(name):
        yield name
    native.force_isa("")
