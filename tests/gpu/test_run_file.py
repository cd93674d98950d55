"""The file of a run keeps what was done when it is cut anywhere, and several files make one report."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu.outcomes import FAILED, NOT_RUN, PASSED, Check, NotHereError
from gpu.run_file import DifferentRunsError, RunFile, read_run

FACTS = {"gpu": "H200", "commit": "abc", "versions": {"torch": "2.11.0"}}
NAMES = [f"cases/native/{i}" for i in range(6)]


def fails():
    raise ValueError("off")


def not_here():
    raise NotHereError("no nvcc")


def run_of(path, names, section="cases/native", problem=None, function=lambda: None, facts=FACTS, only=()):
    file = RunFile(path)
    file.begin(facts, only)
    file.record(section, [Check(name, function) for name in names])
    if problem:
        file.end_section(section, 1.5, problem)
    return path


def results(*paths):
    (section,) = read_run(paths).sections
    return {outcome.name: outcome.result for outcome in section.outcomes}


def test_a_run_is_read_as_it_was_written(tmp_path):
    read = read_run([run_of(tmp_path / "new" / "a.jsonl", NAMES)])
    (section,) = read.sections
    assert read.facts == FACTS
    assert not read.is_partial
    assert [outcome.name for outcome in section.outcomes] == NAMES
    assert section.counts() == {PASSED: 6, FAILED: 0, NOT_RUN: 0}


@given(st.data())
def test_wherever_it_is_cut_what_was_done_stays_and_the_rest_is_a_failure(tmp_path_factory, data):
    path = run_of(tmp_path_factory.mktemp("run") / "a.jsonl", NAMES)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    cut = data.draw(st.integers(len(lines[0]) + len(lines[1]), len(whole) - 2))
    path.write_bytes(whole[:cut])
    done = [json.loads(line)["outcome"]["name"] for line in lines[2:-1] if whole.index(line) + len(line) - 1 <= cut]
    found = results(path)
    assert [name for name in found if name in NAMES] == done
    assert found["cases/native"] == FAILED
    run_of(path, [name for name in NAMES if name not in done])  # the rest, into the same file
    assert results(path) == dict.fromkeys(NAMES, PASSED)


@given(st.permutations(NAMES), st.integers(0, 6))
def test_several_files_are_one_run(tmp_path_factory, names, first):
    folder = tmp_path_factory.mktemp("run")
    paths = [run_of(folder / "a", names[:first]), run_of(folder / "b", names[first:])]
    assert results(*paths) == dict.fromkeys(NAMES, PASSED)


def test_a_later_run_of_a_check_replaces_an_earlier_one(tmp_path):
    broken = run_of(tmp_path / "a", NAMES, function=fails)
    assert results(broken, run_of(tmp_path / "b", NAMES)) == dict.fromkeys(NAMES, PASSED)
    assert results(tmp_path / "b", broken) == dict.fromkeys(NAMES, FAILED)


def test_a_section_that_could_not_run_is_replaced_by_its_checks(tmp_path):
    absent = run_of(tmp_path / "a", ["cases/native"], function=not_here)
    assert results(absent) == {"cases/native": NOT_RUN}
    assert results(absent, run_of(tmp_path / "b", NAMES)) == dict.fromkeys(NAMES, PASSED)


def test_a_problem_is_a_failure_beside_what_was_done(tmp_path):
    (section,) = read_run([run_of(tmp_path / "a", NAMES, problem="exit code 139: sudden")]).sections
    *done, last = section.outcomes
    assert [outcome.name for outcome in done] == NAMES
    assert (last.name, last.result) == ("cases/native", FAILED)
    assert last.note == f"exit code 139: sudden: 6 of 6 checks were made, the last was {NAMES[-1]}"


def test_fewer_outcomes_than_checks_are_a_failure(tmp_path):
    path = run_of(tmp_path / "a", NAMES)
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if NAMES[3] not in line))
    assert results(path)["cases/native"] == FAILED


def test_checks_that_were_left_out_are_known(tmp_path):
    assert read_run([run_of(tmp_path / "a", NAMES), run_of(tmp_path / "b", NAMES[:1], only=["0"])]).is_partial


@pytest.mark.parametrize("name", ["gpu", "commit", "versions"])
def test_a_report_is_of_one_machine_and_commit(tmp_path, name):
    paths = [run_of(tmp_path / "a", NAMES), run_of(tmp_path / "b", NAMES, facts=FACTS | {name: "other"})]
    with pytest.raises(DifferentRunsError, match=f"^{name}: got .* and other"):
        read_run(paths)
