"""The checks of ``make gpu-check`` without a GPU: they pass on the CPU, and notice what is wrong."""

import os

import pytest
import torch
from support import cases

from gpu import graph_checks, profile_checks, sections, speed
from gpu.append_checks import OnDevice
from gpu.other_checks import check_far_apart
from gpu.outcomes import FAILED, NOT_RUN, PASSED, Check, NotHereError, Setup, run
from gpu.placing import Placed, moved
from gpu.profile_checks import launches_in, profiled
from gpu.sanitizer_checks import CASES as SANITIZED
from gpu.sanitizer_checks import check_with
from rope_kernels.api import prepare
from rope_kernels.backends import reference
from rope_kernels.backends.inputs import Inputs, Norms
from rope_kernels.ops import direct

CPU = Setup(torch.device("cpu"), "aot_eager")
FEW = ("/half-bfloat16-forward", "/view-odd-bfloat16", "/packed-grown-longrope", "/rerotate-dynamic", "/empty-batch",
       "/heads5-0", "/partial_odd-last")  # fmt: skip


def outcomes_of(section, *only):
    return list(run(check for check in sections.checks_of(section, CPU) if check.is_wanted(only)))


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


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_append_checks_pass(backend):
    outcomes = outcomes_of(f"append/{backend}", "shape3x33", "packed-scaled-tail", "in place", "float8")
    assert [outcome for outcome in outcomes if outcome.result != PASSED] == []
    assert len(outcomes) > 20


def a_row_of_the_cache_lost(q, k, q_out, k_out, inputs, spec, norms, append):
    append.slots[2] = -1
    reference_rotate_append(q, k, q_out, k_out, inputs, spec, norms, append)


reference_rotate_append = reference.rotate_append


def test_a_row_that_is_not_stored_fails(monkeypatch):
    monkeypatch.setattr(reference, "rotate_append", a_row_of_the_cache_lost)
    outcomes = outcomes_of("append/reference", "default-near")
    assert failed(outcomes) == [outcome.name for outcome in outcomes]


def test_append_checks_place_every_tensor():
    seen = []

    class Backend:
        @staticmethod
        def rotate(x, inputs, norms):
            seen.extend((x, inputs.positions, norms.q_weight))
            x.fill_(1)

    given = [torch.zeros(8)[2:] for _ in range(3)]
    OnDevice(Backend, CPU.device).rotate(given[0], Inputs(given[1]), Norms(None, None, given[2], None))
    assert not {x.data_ptr() for x in seen} & {x.data_ptr() for x in given}
    assert [x.storage_offset() for x in seen] == [2, 2, 2]
    assert given[0].tolist() == [1] * 6


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
    captured = []

    def timer(calls):
        captured.append(len(calls))
        calls[-1]()
        return speed.Times(2.0, 1.0, 4.0)

    figures = speed.measured(2, 3000, "native", CPU.device, timer)
    assert figures["copy_bytes"] == figures["pass_bytes"] == 2 * 2 * 3000 * (32 + 8) * 128 * 2
    assert figures["out_bytes"] == figures["in_place_bytes"] == figures["copy_bytes"] + 2 * 3000 * 8
    assert figures["copy_gb_per_s"] == pytest.approx(figures["copy_bytes"] / 2e-3 / 1e9)
    assert (figures["out_ms"], figures["out_ms_20"], figures["out_ms_80"]) == (2.0, 1.0, 4.0)
    assert captured == 4 * [figures["launches"]]
    assert figures["launches"] * figures["copy_bytes"] / 2 >= speed.CACHES * speed.L2_BYTES


@pytest.mark.parametrize("shape", speed.SHAPES, ids=lambda shape: speed.named(*shape))
def test_the_tensors_of_all_launches_exceed_the_cache(shape):
    _, batch, tokens = shape
    number = speed.launches(batch, tokens, CPU.device)
    assert number * batch * tokens * (32 + 8) * 128 * 2 >= speed.CACHES * speed.L2_BYTES


def test_the_passes_that_are_timed_go_over_what_is_rotated():
    x = speed.tensors(2, 3, CPU.device)
    calls = speed.calls_of(x)
    calls["copy"]()
    assert torch.equal(x.q_out, x.q)
    assert torch.equal(x.k_out, x.k)
    before = x.both.clone()
    calls["pass"]()
    assert not (x.both.view(torch.int16) == before.view(torch.int16)).any()
    calls["pass"]()
    calls["out"]()
    calls["in_place"]()
    assert torch.equal(x.both, x.both_out)


@pytest.mark.parametrize("kind", ["emulator", "sanitizer", "speed", "profile"])
def test_what_says_something_about_a_gpu_alone_is_not_run_on_a_cpu(kind):
    (outcome,) = outcomes_of(f"{kind}/native")
    assert outcome.result == NOT_RUN


def test_a_backend_that_cannot_run_is_said_whatever_is_asked_for():
    (outcome,) = outcomes_of("graphs/triton", "no such name")
    assert outcome.result == NOT_RUN
    assert "triton" in outcome.note


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """Put a shell script in front of PATH; there is no CUDA toolkit beside it."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))

    def make(name, script):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return make


def outcome_with(tool_name):
    (outcome,) = run([Check("sanitizer", lambda: check_with(tool_name, "native", "cpu"))])
    return outcome


FINDS_RACES = """
case "$2 $*" in memcheck*) shift 4; exec "$@";; racecheck*check.py*) exit 86;; esac
"""


def test_sanitizer(tool):
    tool("compute-sanitizer", FINDS_RACES)
    memcheck, racecheck = outcome_with("memcheck"), outcome_with("racecheck")
    assert (memcheck.result, memcheck.note) == (PASSED, f"{2 * len(SANITIZED)} cases")
    assert racecheck.result == FAILED
    assert "racecheck found errors" in racecheck.note


def test_a_sanitizer_that_the_machine_refuses_is_not_run(tool):
    tool("compute-sanitizer", "echo Device not supported; exit 1")
    outcome = outcome_with("memcheck")
    assert outcome.result == NOT_RUN
    assert "Device not supported" in outcome.note


@pytest.mark.parametrize("check", [lambda: check_with("memcheck", "native", "cpu"), lambda: profiled("native")])
def test_a_tool_that_is_absent_is_not_run(monkeypatch, tmp_path, check):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(NotHereError, match=r"(compute-sanitizer|ncu) is neither on PATH nor in"):
        check()


PRINTED = """==PROF== Connected to process 7
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","7","rotate_kernel","Command line profiler metrics","dram__bytes_read.sum","byte","1,024"
"0","7","rotate_kernel","Command line profiler metrics","launch__grid_size","","4"
==PROF== Disconnected
"1","7","rotate_kernel","Command line profiler metrics","dram__bytes_read.sum","byte","n/a"
"""


def test_what_ncu_prints_is_read():
    first, second = launches_in(PRINTED)
    assert first == {"kernel": "rotate_kernel", "dram__bytes_read.sum [byte]": 1024.0, "launch__grid_size []": 4.0}
    assert second == {"kernel": "rotate_kernel"}
    assert launches_in("==ERROR== ERR_NVGPUCTRPERM") == []


@pytest.mark.parametrize(("target", "error"), [("true", NotHereError), ("false", AssertionError)])
def test_ncu_that_may_not_measure_is_told_from_a_program_that_fails(monkeypatch, tool, target, error):
    tool("ncu", "echo ==ERROR== ERR_NVGPUCTRPERM; exit 1")
    monkeypatch.setattr(profile_checks, "_target", lambda backend: [target])
    with pytest.raises(error, match="ERR_NVGPUCTRPERM" if error is NotHereError else "without ncu"):
        profiled("native")


def test_sections_have_checks_of_their_own_names():
    for name in sections.SECTIONS:
        assert next(iter(sections.checks_of(name, CPU))).name.startswith(name.split("/")[0])


def test_placed_leaves_the_case_as_it_was():
    case = next(c for c in cases.CASES if c.name == "view-fused-float32")
    attempt = Placed(case, CPU.device, in_place=True)
    before = attempt.made.q.clone()
    attempt.check(attempt.rotate("native"))
    assert torch.equal(attempt.made.q, before)
