"""What all tests share: one thread per worker, hypothesis without deadlines on a busy machine, and ``--direct``."""

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


def pytest_addoption(parser):
    parser.addoption(
        "--direct", choices=("taken", "compared", "refused"), default="taken",
        help="the path past torch's dispatcher: taken, compared with the dispatcher call by call, or refused",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _direct_path(request):
    """``--direct``: what the direct path takes is compared with the checked door, or it refuses everything."""
    choice = request.config.getoption("--direct")
    if choice == "taken":
        yield
        return
    from support.direct_compared import Comparison, refuse_all

    comparison = Comparison()
    with pytest.MonkeyPatch.context() as patch:
        refuse_all(patch) if choice == "refused" else comparison.install(patch)
        yield
    assert not comparison.differences
