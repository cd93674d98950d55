"""The checks of ``make gpu-check`` without a GPU: they pass on the CPU, and notice what is wrong."""

import os
from pathlib import Path

import pytest
import torch
from support import cases

from gpu import check as command
from gpu import graph_checks, sections, speed
from gpu.other_checks import check_far_apart
from gpu.outcomes import FAILED, NOT_RUN, PASSED, Setup, run
from gpu.placing import Placed, moved
from gpu.sanitizer_checks import CASES as SANITIZED
from rope_kernels.api import prepare
from rope_kernels.backends import reference
from rope_kernels.ops import direct

CPU = Setup(torch.device("cpu"), "aot_eager")
FEW = ("/half-bfloat16-forward", "/view-odd-bfloat16", "/packed-grown-longrope", "/rerotate-dynamic", "/empty-batch",
       "/heads5-0", "/partial_odd-last")  # fmt: skip


def outcomes_of(section, *only):
    return list(run(sections.checks_of(section, CPU), only))


def failed(outcomes):
    return [outcome.name for outcome in outcomes if outcome.result == FAILED]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_cases_pass(backend):
    outcomes = outcomes_of(f"cases/{backend}", *FEW)
    assert [outcome for outcome in outcomes if outcome.result != PASSED] == []
    assert len(outcomes) == 3 * len(FEW)


def test_every_case_is_checked_in_every_way():
    names = [check.name for check in sections.checks_of("cases/reference", CPU)]
    assert len(set(names)) == len(names) == 3 * len(cases.CASES)


def test_the_sanitizer_has_its_cases():
    ways = [f"/{way}/{case}" for case in SANITIZED for way in ("apart", "in place")]
    names = [check.name for check in sections.checks_of("cases/native", CPU)]
    assert all(sum(way in name for name in names) == 1 for way in ways)


def wrong_results(*args):
    reference_rotate(*args)
    args[2][..., 0] += 0.05


def nothing_written(*args):
    pass


def a_gap_written(*args):
    reference_rotate(*args)
    out = args[2]
    torch.empty(0, dtype=out.dtype).set_(out.untyped_storage())[0] = 1.0


def an_input_written(*args):
    reference_rotate(*args)
    args[4].positions[..., 0] += 1


def other_bits_each_time(*args):
    reference_rotate(*args)
    args[2].view(torch.int16).bitwise_xor_(torch.randint(2, args[2].shape, dtype=torch.int16))


reference_rotate = reference.rotate


@pytest.mark.parametrize(
    ("planted", "noticed"),
    [
        (wrong_results, {"apart", "in place", "gradient"}),
        (nothing_written, {"apart", "in place", "gradient"}),
        (a_gap_written, {"apart", "in place"}),
        (an_input_written, {"apart", "in place"}),
        (other_bits_each_time, {"apart"}),
    ],
)
def test_a_wrong_kernel_fails_and_stops_nothing(monkeypatch, planted, noticed):
    monkeypatch.setattr(reference, "rotate", planted)
    outcomes = outcomes_of("cases/reference", "/view-odd-bfloat16")
    assert len(outcomes) == 3
    found = {name.split("/")[2] for name in failed(outcomes)}
    assert noticed <= found
    monkeypatch.undo()
    assert not failed(outcomes_of("cases/reference", "/view-odd-bfloat16"))


@pytest.mark.parametrize("view", ["dense", "fused", "odd", "transposed"])
def test_moved_tensors_keep_their_strides_and_gaps(view):
    x = cases.strided(torch.randn(2, 3, 4, 8), view)
    y = moved(x, "cpu")
    assert y.stride() == x.stride()
    assert y.untyped_storage().nbytes() == x.untyped_storage().nbytes()
    assert y.data_ptr() != x.data_ptr()
    assert torch.equal(x, y)


def test_other_checks_pass():
    outcomes = outcomes_of("others/native", "positions", "rounded", "copied", "(96, 24)/half")
    assert not failed(outcomes)
    assert len(outcomes) == 4 + 2 + 8 + 4
    check_far_apart("native", CPU.device, stride=2**20)


@pytest.mark.parametrize(("section", "number"), [("graphs/native", 14), ("streams/native", 4)])
def test_graph_and_stream_checks_pass(section, number):
    outcomes = outcomes_of(section)
    assert not failed(outcomes)
    assert [outcome.result for outcome in outcomes].count(PASSED) == number


def test_a_graph_that_does_not_follow_fails(monkeypatch):
    def once(call, device):
        call()
        return lambda: None

    monkeypatch.setattr(graph_checks, "captured", once)
    assert len(failed(outcomes_of("graphs/native"))) == 14


def test_a_length_that_was_read_at_the_capture_fails(monkeypatch):
    """What a host read of max(position) would come to in a captured graph."""

    def frozen(call, device):
        call()

        def replay():
            with monkeypatch.context() as read:
                read.setattr(prepare, "longest", lambda *args: torch.full((1,), 3))
                read.setattr(direct, "rotate_out", lambda *args: False)  # as of tensors on a GPU
                call()

        return replay

    monkeypatch.setattr(graph_checks, "captured", frozen)
    names = " ".join(failed(outcomes_of("graphs/native")))
    assert all(text in names for text in ("switches by positions", "switches by offsets", "grows by positions"))
    assert "graphs/native/positions" not in names


def test_a_compile_check_passes():
    outcomes = outcomes_of("compile/native", "bits/longrope")
    assert [outcome.result for outcome in outcomes] == [PASSED]


def test_speed_counts_bytes():
    figures = speed.measured(2, 3, "native", CPU.device, lambda call: (call(), (2.0, 1.0, 4.0))[1])
    assert figures["copy_bytes"] == 2 * 2 * 3 * (32 + 8) * 128 * 2
    assert figures["out_bytes"] == figures["copy_bytes"] + 2 * 3 * 8
    assert figures["copy_gb_per_s"] == pytest.approx(figures["copy_bytes"] / 2e-3 / 1e9)
    assert (figures["out_ms"], figures["out_ms_20"], figures["out_ms_80"]) == (2.0, 1.0, 4.0)
    assert {outcome.result for outcome in outcomes_of("speed/native")} == {NOT_RUN}


def test_a_backend_that_cannot_run_is_said_whatever_is_asked_for():
    (outcome,) = outcomes_of("graphs/triton", "no such name")
    assert outcome.result == NOT_RUN
    assert "triton" in outcome.note


def test_sanitizer(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text('#!/bin/sh\n[ "$2" = memcheck ] || exit 86\nshift 4\nexec "$@"\n')
    sanitizer.chmod(0o755)
    memcheck, racecheck = outcomes_of("sanitizer/native")
    assert (memcheck.result, memcheck.note) == (PASSED, f"{2 * len(SANITIZED)} cases")
    assert racecheck.result == FAILED
    assert "racecheck found errors" in racecheck.note


def test_sections_have_checks_of_their_own_names():
    for name in sections.SECTIONS:
        assert next(iter(sections.checks_of(name, CPU))).name.startswith(name.split("/")[0])
    assert Path(command.__file__).name == "check.py"


def test_placed_leaves_the_case_as_it_was():
    case = next(c for c in cases.CASES if c.name == "view-fused-float32")
    attempt = Placed(case, CPU.device, in_place=True)
    before = attempt.made.q.clone()
    attempt.check(attempt.rotate("native"))
    assert torch.equal(attempt.made.q, before)
