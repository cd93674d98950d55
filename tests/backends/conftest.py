"""What the tests of the Triton kernels share."""

import pytest

from rope_kernels.backends.triton import plan as triton_plan


@pytest.fixture
def many_tokens(monkeypatch):
    """Launch shapes for many tokens, whatever their number."""
    monkeypatch.setattr(triton_plan, "BYTES_IN_FLIGHT", 0)
    triton_plan.launch_tile.cache_clear()
    yield
    triton_plan.launch_tile.cache_clear()
