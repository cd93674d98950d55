"""The command of ``make gpu-check`` without a GPU: what it says, its exit codes, its report."""

import json
import sys

import pytest
import torch
import typer
from typer.testing import CliRunner

from gpu import check as command
from gpu import results, sections
from gpu.outcomes import FAILED, NOT_RUN, PASSED, Check, NotHereError, Outcome, Setup, run
from gpu.results import Section

CPU = Setup(torch.device("cpu"), "aot_eager")
APP = typer.Typer()
APP.command()(command.main)


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
    assert [outcome.name for outcome in run(checks, ["a", "d"])] == ["a", "d"]


ROW = {"out_gb_per_s": 1.0, "in_place_gb_per_s": 2.0, "copy_gb_per_s": 3.0, "out_time_over_copy": 4.0}


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
    return results.report(results.facts_of(CPU.device) | {"gpu": "NVIDIA H100 80GB HBM3 (x)"}, made)


def test_report(tmp_path):
    path = results.write(found(), tmp_path / "new")
    assert path.name == "nvidia-h100-80gb-hbm3-x.json"
    read = json.loads(path.read_text())
    assert read["checks"]["total"] == {PASSED: 4, FAILED: 30, NOT_RUN: 1}
    assert len(read["checks"]["first_failures"]) == 20
    assert read["checks"]["not_run_because"] == {"gone": 1}
    assert read["checks"]["agreement_with_emulator"] == {"triton": {"bitwise": 2, "x": 1}}
    assert read["speed"]["rows"] == [{"name": "speed/triton/decode 1", **ROW}]
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


@pytest.mark.skipif(command.no_gpu() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so(no_tools):
    said = CliRunner().invoke(APP, [])
    assert said.exit_code == 0
    assert said.stdout.startswith("there is no CUDA GPU that torch can use")
    assert said.stdout.count("\n") == 1
    assert json.loads(CliRunner().invoke(APP, ["--json"]).stdout)["gpu"] is None
    assert not any(no_tools.iterdir())


@pytest.mark.skipif(command.no_gpu() is None, reason="there is a GPU")
def test_a_gpu_that_torch_cannot_use_is_no_success(no_tools):
    tool(no_tools, "nvidia-smi", "echo NVIDIA H100")
    said = CliRunner().invoke(APP, [])
    assert said.exit_code == 1
    assert "nvidia-smi lists NVIDIA H100" in said.stderr


@pytest.mark.parametrize(("arguments", "text"), [(["--section", "graph s"], "--section"), (["--device", "tpu"], "tpu")])
def test_wrong_arguments(arguments, text):
    said = CliRunner().invoke(APP, arguments, env={"COLUMNS": "200"})
    assert said.exit_code == 2
    assert text in said.stderr


def test_exit_codes_and_what_is_printed(monkeypatch, tmp_path):
    made = {}
    monkeypatch.setattr(command, "run_apart", lambda name, setup, only: [made["outcome"]])
    call = ["--device", "cpu", "--section", "cases/native", "--results", str(tmp_path)]
    made["outcome"] = Outcome("cases/native/apart/x", PASSED)
    assert CliRunner().invoke(APP, call).exit_code == 0
    made["outcome"] = Outcome("cases/native/apart/x", FAILED, "cases.py:1: off by [a lot]")
    said = CliRunner().invoke(APP, call)
    assert said.exit_code == 1
    assert "failed: cases/native/apart/x: cases.py:1: off by [a lot]" in said.stdout
    said = CliRunner().invoke(APP, [*call, "--json"])
    assert said.exit_code == 1
    assert json.loads(said.stdout)["checks"]["total"][FAILED] == 1
    assert not any(tmp_path.iterdir()), "nothing is written where no GPU was checked"


def test_tables_are_printed(capsys):
    from rich.console import Console

    command.printed(found(), Console(width=200))
    said = capsys.readouterr().out
    assert "triton and the emulator agree: 2 bitwise, 1 x" in said
    assert "speed/triton/decode 1" in said


@pytest.mark.parametrize(
    ("script", "seconds", "note"),
    [("echo sudden >&2; exit 139", 60, "exit code 139: sudden"), ("exec sleep 9", 0.1, "end in")],
)
def test_a_section_that_dies_is_a_failure(monkeypatch, tmp_path, script, seconds, note):
    tool(tmp_path, "python", script)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sections, "SECONDS", seconds)
    (outcome,) = sections.run_apart("cases/native", CPU)
    assert (outcome.name, outcome.result) == ("cases/native", FAILED)
    assert note in outcome.note
