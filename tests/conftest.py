"""What all tests share: one thread per worker, and hypothesis without deadlines on a busy machine."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("rope_kernels", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("rope_kernels")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _dispatch_rule():
    """A test that picks a backend leaves none behind."""
    from rope_kernels import use_backend

    with use_backend(None):
        yield
