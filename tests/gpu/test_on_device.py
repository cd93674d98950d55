"""On a machine with a CUDA device, the checks of ``make gpu-check`` as tests; elsewhere there is nothing to run."""

import pytest
import torch

from gpu.check import no_gpu
from gpu.outcomes import FAILED, Setup
from gpu.sections import SECTIONS, run_apart

if no_gpu():
    pytest.skip(no_gpu(), allow_module_level=True)

LONG = ("emulator", "compile", "sanitizer")
TESTED = [
    pytest.param(name, marks=[pytest.mark.full] if name.startswith(LONG) else [])
    for name in SECTIONS
    if not name.startswith("speed")
]


@pytest.mark.parametrize("section", TESTED)
def test_section(section):
    outcomes = run_apart(section, Setup(torch.device("cuda", torch.cuda.current_device())))
    assert outcomes
    assert not [(outcome.name, outcome.note) for outcome in outcomes if outcome.result == FAILED]
