"""On a machine with a CUDA device, the checks of ``make gpu-check`` as tests; elsewhere there is nothing to run."""

import pytest

from gpu.check import CUDA, no_gpu
from gpu.outcomes import FAILED
from gpu.run_file import RunFile, read_run
from gpu.sections import SECTIONS, needs_the_gpu_alone
from gpu.side_by_side import Plan, run_sections

if no_gpu():
    pytest.skip(no_gpu(), allow_module_level=True)

LONG = ("emulator", "compile", "sanitizer")
TESTED = [
    pytest.param(name, marks=[pytest.mark.full] if name.startswith(LONG) else [])
    for name in SECTIONS
    if not needs_the_gpu_alone(name)
]


@pytest.mark.parametrize("section", TESTED)
def test_section(section, tmp_path):
    file = RunFile(tmp_path / "outcomes.jsonl")
    run_sections([section], Plan(CUDA), file)
    (ended,) = read_run([file.path]).sections
    assert ended.outcomes
    assert not [(outcome.name, outcome.note) for outcome in ended.outcomes if outcome.result == FAILED]
