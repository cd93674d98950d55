"""The command of ``make gpu-check`` without a GPU: what it says, its exit codes, its report."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gpu import check as command
from gpu import results
from gpu.outcomes import FAILED, NOT_RUN, PASSED, Check, NotHereError, Outcome, run
from gpu.printing import as_text
from gpu.run_file import RunFile, Section, read_run
from gpu.sections import PARTS, SECTIONS, chosen_sections, needs_the_gpu_alone
from gpu.side_by_side import Plan, run_sections

SCRIPT = Path(command.__file__)
CPU = ["--device", "cpu"]
QUICK = ["--section", "streams/native", "--section", "cases/triton"]


def raises(error):
    raise error


def test_outcomes():
    checks = [
        Check("a", lambda: None),
        Check("b", lambda: raises(ValueError("no"))),
        Check("c", lambda: raises(NotHereError("nvcc"))),
        Check("d", lambda: {"ms": 1.0}),
    ]
    a, b, c, d = run(checks)
    assert (a.result, b.result, c.result, d.result) == (PASSED, FAILED, NOT_RUN, PASSED)
    assert b.note.endswith("ValueError: no")
    assert b.note.startswith("test_command.py:")
    assert c.note == "nvcc"
    assert d.figures == {"ms": 1.0}
    assert [check.name for check in checks if check.is_wanted(["a", "d"])] == ["a", "d"]


def test_a_package_that_is_missing_is_not_run_and_one_of_ours_is_a_failure():
    needs = [
        Check(name, lambda name=name: raises(ModuleNotFoundError(name=name))) for name in ("numpy.linalg", "gpu.x")
    ]
    foreign, ours = run(needs)
    assert (foreign.result, foreign.note) == (NOT_RUN, "needs the Python package numpy")
    assert ours.result == FAILED


TIMES = ("out_ms", "copy_ms", "in_place_ms", "pass_ms", "out_gb_per_s", "in_place_gb_per_s")
ROW = dict.fromkeys((*TIMES, "out_time_over_copy", "in_place_time_over_pass"), 0.5)


def found():
    emulated = [
        Outcome(f"emulator/triton/apart/{i}", PASSED, note) for i, note in enumerate(("bitwise", "bitwise", "x"))
    ]
    wrong = [Outcome(f"cases/native/{i}", FAILED, "off") for i in range(30)]
    made = [
        Section("emulator/triton", emulated, 1.0),
        Section("cases/native", [*wrong, Outcome("cases/native", NOT_RUN, "gone")], 2.0),
        Section("speed/triton", [Outcome("speed/triton/decode 1", PASSED, figures=ROW)], 3.0),
    ]
    made.append(Section("profile/native", [Outcome("profile/native/launches", PASSED, figures={"grid": 4.0})], 1.0))
    return results.report(results.facts_of(torch.device("cpu")) | {"gpu": "NVIDIA H100 80GB HBM3 (x)"}, made)


def test_report(tmp_path):
    path = results.write(found(), tmp_path / "new")
    assert path.name == "nvidia-h100-80gb-hbm3-x.json"
    read = json.loads(path.read_text())
    assert read["checks"]["total"] == {PASSED: 5, FAILED: 30, NOT_RUN: 1}
    assert len(read["checks"]["first_failures"]) == 20
    assert read["checks"]["not_run_because"] == {"gone": 1}
    assert read["checks"]["agreement_with_emulator"] == {"triton": {"bitwise": 2, "x": 1}}
    assert read["speed"]["rows"] == [{"name": "speed/triton/decode 1", **ROW}]
    assert read["profile"] == [{"name": "profile/native/launches", "grid": 4.0}]
    assert read["versions"]["torch"] == torch.__version__


@pytest.fixture
def no_tools(monkeypatch, tmp_path):
    """An empty PATH, to put tools into."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def tool(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def said_by(capsys, *arguments):
    """(exit code, stdout, stderr)"""
    code = command.main(arguments)
    return code, *capsys.readouterr()


no_gpu_here = pytest.mark.skipif(command.no_gpu() is None, reason="there is a GPU")


@no_gpu_here
def test_without_a_gpu_it_says_so(no_tools, capsys):
    code, said, _ = said_by(capsys)
    assert code == 0
    assert said.startswith("there is no CUDA GPU that torch can use")
    assert said.count("\n") == 1
    assert json.loads(said_by(capsys, "--json")[1])["gpu"] is None
    assert not any(no_tools.iterdir())


@no_gpu_here
def test_a_gpu_that_torch_cannot_use_is_no_success(no_tools, capsys):
    tool(no_tools, "nvidia-smi", "echo NVIDIA H100")
    code, _, errors = said_by(capsys)
    assert code == 1
    assert "nvidia-smi lists NVIDIA H100" in errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["--section", "graph s"], "--section"), (["--device", "tpu"], "tpu"), (["--part", "x"], "results")],
)
def test_wrong_arguments(arguments, text, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert text in capsys.readouterr().err


def test_every_section_is_in_one_part():
    assert sorted(name for part in PARTS for name in chosen_sections([part], [])) == sorted(SECTIONS)
    assert chosen_sections([], []) == SECTIONS
    assert chosen_sections(["speed"], ["speed/native"]) == ["speed/native"]


def outcomes_in(path):
    return {one.name: one for section in read_run([path]).sections for one in section.outcomes}


def test_a_run_ends_with_a_report_of_its_file(tmp_path, capsys):
    path = tmp_path / "outcomes.jsonl"
    asked = [*CPU, *QUICK, "--outcomes", str(path), "--results", str(tmp_path / "results"), "--commit", "abc"]
    code, said, errors = said_by(capsys, *asked)
    assert code == 0
    assert "streams/native" in said
    assert "backend 'triton' was chosen" in said
    assert "no report is written without cases/native" in errors
    assert read_run([path]).facts["commit"] == "abc"
    assert said_by(capsys, "merge", str(path))[:2] == (0, said)
    assert json.loads(said_by(capsys, "merge", "--json", str(path))[1])["checks"]["total"][FAILED] == 0
    assert not (tmp_path / "results").exists()


def test_a_text_that_is_in_no_name_is_an_error(tmp_path, capsys):
    asked = [*CPU, "--section", "streams/native", "--only", "nothing", "--outcomes", str(tmp_path / "a")]
    code, _, errors = said_by(capsys, *asked)
    assert code == 2
    assert "--only: got ['nothing']" in errors


def written(path, facts, sections, only=(), result=None):
    file = RunFile(path)
    file.begin({"gpu": "NVIDIA X", "commit": "a", "versions": {}, **facts}, only)
    for name in sections:
        file.record(name, [Check(f"{name}/1", lambda: raises(ValueError("off by [a lot]")) if result else None)])
    return str(path)


GPU_FACTS = {"compute_capability": "9.0"}


def test_the_report_of_all_sections_on_a_gpu_is_written(tmp_path, capsys):
    folder = tmp_path / "results"
    paths = [written(tmp_path / "a", GPU_FACTS, SECTIONS[:5]), written(tmp_path / "b", GPU_FACTS, SECTIONS[5:])]
    assert said_by(capsys, "merge", *paths, "--results", str(folder))[0] == 0
    assert json.loads((folder / "nvidia-x.json").read_text())["checks"]["total"][PASSED] == len(SECTIONS)


@pytest.mark.parametrize(("facts", "only"), [({}, ()), (GPU_FACTS, ("1",))], ids=["on a CPU", "with --only"])
def test_other_reports_are_not_written(tmp_path, capsys, facts, only):
    folder = tmp_path / "results"
    said_by(capsys, "merge", written(tmp_path / "a", facts, SECTIONS, only), "--results", str(folder))
    assert not folder.exists()


def test_a_failure_is_printed_and_in_the_exit_code(tmp_path, capsys):
    code, said, _ = said_by(capsys, "merge", written(tmp_path / "a", {}, ["cases/native"], result=FAILED))
    assert code == 1
    assert "failed: cases/native/1: test_command.py:" in said
    assert "ValueError: off by [a lot]" in said


def test_files_of_two_commits_are_an_error(tmp_path, capsys):
    paths = [written(tmp_path / name, {"commit": name}, SECTIONS[:1]) for name in "ab"]
    code, _, errors = said_by(capsys, "merge", *paths)
    assert code == 2
    assert "commit: got a and b" in errors


def test_tables_are_printed():
    said = as_text(found())
    assert "triton and the emulator agree: 2 bitwise, 1 x" in said
    assert "speed/triton/decode 1" in said
    assert "profile/native/launches: grid 4.0" in said


def run_with(monkeypatch, tmp_path, script, sections=("cases/native",), **plan):
    """Sections whose process is a shell script; what the file says."""
    tool(tmp_path, "python", script)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    file = RunFile(tmp_path / "outcomes")
    file.begin({}, ())
    run_sections(sections, Plan("cpu", **plan), file)
    return outcomes_in(file.path)


def test_a_section_that_dies_is_a_failure(monkeypatch, tmp_path):
    outcome = run_with(monkeypatch, tmp_path, "echo sudden >&2; exit 139")["cases/native"]
    assert outcome.result == FAILED
    assert "exit code 139: sudden" in outcome.note


def test_what_has_not_ended_in_time_is_a_failure(monkeypatch, tmp_path):
    begin = time.monotonic()
    stopped = run_with(monkeypatch, tmp_path, "sleep 60", SECTIONS[:3], jobs=2, seconds=0.3)
    assert time.monotonic() - begin < 20
    assert [stopped[name].note.split(",")[0].split(" 0.3")[0] for name in SECTIONS[:3]] == [
        "stopped", "stopped", "not begun within"
    ]  # fmt: skip
    assert {one.result for one in stopped.values()} == {FAILED}


LOGGING = """
while [ "$1" != --section ]; do shift; done
echo "begin $2" >> "{log}"; sleep 0.4; echo "end $2" >> "{log}"
"""


def test_what_measures_runs_alone_and_last(monkeypatch, tmp_path):
    log, sections = tmp_path / "log", ["speed/triton", "cases/native", "profile/native", "graphs/native"]
    run_with(monkeypatch, tmp_path, LOGGING.format(log=log), sections, jobs=3)
    lines = log.read_text().split("\n")[:-1]
    assert set(lines[:2]) == {"begin cases/native", "begin graphs/native"}
    alone = [name for name in sections if needs_the_gpu_alone(name)]
    assert lines[4:] == [f"{what} {name}" for name in alone for what in ("begin", "end")]


def start(path, *arguments, **variables):
    command_ = [sys.executable, str(SCRIPT), *CPU, *arguments, "--outcomes", str(path)]
    return subprocess.Popen(
        command_, cwd=path.parent, env={**os.environ, "PYTHONPATH": "", **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_keeps_what_was_done(tmp_path, number):
    path = tmp_path / "outcomes"
    process = start(path, "--section", "cases/reference")
    until = time.monotonic() + 120
    while time.monotonic() < until and (not path.exists() or path.read_text().count("outcome") < 5):
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    done = outcomes_in(path)
    assert sum(one.result == PASSED for one in done.values()) >= 5
    if number is signal.SIGTERM:  # its processes have ended, too
        assert done["cases/reference"].note.startswith("it did not end")
        size = path.stat().st_size
        time.sleep(0.5)
        assert path.stat().st_size == size


@pytest.mark.parametrize("missing", ["pytest hypothesis typer rich transformers", "numpy", "mpmath"])
def test_a_bare_checkout_needs_torch_alone(tmp_path, missing):
    """What a kind of check needs beyond torch is said by name, and the other kinds run."""
    for name in missing.split():
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name='{name}')\n")
    path = tmp_path / "outcomes"
    asked = ("--section", "cases/native", "--only", "half-float32")
    process = start(path, *asked, PYTHONPATH=str(tmp_path))
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    if missing in ("numpy", "mpmath"):
        assert f"not run (1): needs the Python package {missing}" in said
    else:
        assert {one.result for one in outcomes_in(path).values()} == {PASSED}
