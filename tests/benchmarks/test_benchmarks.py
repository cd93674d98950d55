"""The code of the benchmarks: pairs, ratios, regressions and the report. No test depends on our speed."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
import torch
import typer
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

pytest.importorskip("matplotlib")
pytest.importorskip("transformers")

from benchmarks.report import __main__ as report
from benchmarks.report import measurements, plots, regressions, tables
from benchmarks.report.measurements import Run, read
from benchmarks.rows import complexity, cuda_rows, memory, ours, peers, static_budgets
from benchmarks.rows.budgets import budget_rows
from benchmarks.rows.cpu_limits import limit_rows
from benchmarks.rows.cpu_rows import cpu_rows
from benchmarks.rows.row import BenchmarkRow, RowResult, measure
from benchmarks.rows.shapes import LLAMA_8B, MODELS, Shape, inputs
from rope_kernels.measuring.timing import Pair, alternate

SMALL = Shape(1, 8)


def result(name, speed=2.0, spread=0.02, group="peers", needed=None, **facts):
    low, high = speed * (1 - spread / 2), speed * (1 + spread / 2)
    return RowResult(group, name, speed, low, high, 1e-3, speed * 1e-3, 9, needed, facts)


def run_of(*results, **changes):
    values = dict(
        results={r.name: r for r in results}, missing={}, records={"saved": [], "static": []},
        environment=dict(processor="a", isa="b", cores=2, torch="c", backends={"native": None}, cuda_device=None,
                         platform="d", rope_kernels="1", triton=None, transformers="5", python="3"),
        commit=dict(id="0123456789abcdef", dirty=True), command="python -m pytest benchmarks", row_seconds=1.5,
    )  # fmt: skip
    values["records"]["errors"] = dict(model="m", positions=[1, 2], ours=[1e-7, 2e-7], transformers=[], note=None)
    return Run(**(values | changes))


def all_results():
    rows = [*budget_rows(), *limit_rows(), *cpu_rows(budget_rows()), *complexity.complexity_rows()]
    return [result(r.name, group=r.group, needed=r.needed, **r.facts) for r in rows]


def test_ratios_are_of_neighbouring_rounds():
    drifting = Pair([1.0, 2.0, 4.0, 8.0, 16.0], [3.0, 6.0, 12.0, 24.0, 48.0])
    assert (drifting.speed, drifting.spread, drifting.medians) == (3.0, (3.0, 3.0), (4.0, 12.0))


def test_a_slow_round_does_not_move_the_ratio():
    pair = Pair([1.0] * 9, [2.0] * 8 + [50.0])
    assert pair.speed == 2.0
    assert pair.spread == (2.0, 2.0)


def test_both_sides_alternate():
    order = []
    alternate(lambda: order.append("ours"), lambda: order.append("peer"), seconds=0)
    rounds = re.findall(r"o+p+", "".join(side[0] for side in order))
    assert len(rounds) >= 7


def test_device_rounds_alternate():
    order = []
    pair = cuda_rows.alternate_on_device(
        "ours", "peer", 0, lambda call, **_: order.append(call) or {"ours": 1, "peer": 3}[call]
    )
    assert order == ["ours", "peer"] * cuda_rows.MIN_ROUNDS
    assert pair.speed == pytest.approx(3)


class Launches(TorchDispatchMode):
    """Counts the operations that write memory: on a GPU each is one launch."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        writes = function._schema.is_mutable or "clone" in str(function)
        self.count += writes and args[0].numel() > 0
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", ours.FLOORS)
def test_the_floor_of_a_device_is_one_launch_over_the_same_memory(form):
    x = inputs(LLAMA_8B, SMALL)
    call = cuda_rows.one_launch(form, x)
    with Launches() as launches:
        results = call()
    assert launches.count == 1
    assert sum(y.nbytes for y in results) == x[0].nbytes + x[1].nbytes


def test_a_capture_waits_for_what_made_its_tensors_and_is_waited_for(monkeypatch):
    order = []

    class Stream:
        def __init__(self, name="side"):
            self.name = name

        def wait_stream(self, other):
            order.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self):
            order.append("replay")

    fakes = {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "current_stream": lambda: Stream("current"),
        "stream": contextlib.nullcontext,
        "graph": contextlib.nullcontext,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    cuda_rows.captured(lambda: order.append("call"), None)()
    assert order == ["side waits for current", "call", "current waits for side", "call", "replay"]


def test_rows_have_names_of_their_own():
    names = [r.name for r in all_results()]
    assert len(set(names)) == len(names) > 90


@pytest.mark.parametrize("form", ours.FORMS)
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_our_calls_are_checked(model, form, monkeypatch):
    x = inputs(model, SMALL)
    ours.ours(form, model, x)()
    monkeypatch.setitem(ours.FORMS, form, lambda model, q, k, positions: lambda: (q, k))
    with pytest.raises(AssertionError, match=f"q, {form}: off by"):
        ours.ours(form, model, x)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_peers_are_checked(model):
    x = inputs(model, Shape(2, 1))
    peers.transformers(model, x)()
    with pytest.raises(AssertionError, match="the peer's q is off by"):
        peers.agrees((x[0], x[1]), model, *x)


def test_gradients_are_checked():
    q, k, positions = inputs(LLAMA_8B, SMALL)
    x = q.requires_grad_(), k.requires_grad_(), positions
    call = ours.FORMS["allocating"](LLAMA_8B.config, *x)
    ours.checked_gradients(call, LLAMA_8B, x)
    with pytest.raises(AssertionError, match="q's gradient is off by"):
        ours.checked_gradients(lambda: (x[0] * 1.5, x[1] * 1.5), LLAMA_8B, x)


def test_saved_bytes_count_each_storage_once_and_no_input():
    x = torch.randn(100, requires_grad=True)
    assert memory.saved_bytes(lambda: x * x, (x, x, x)) == 0
    assert memory.saved_bytes(lambda: x.exp(), (x, x, x)) == 400


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no high-water mark here")
def test_peak_bytes():
    size = 16 << 20  # what malloc would keep for later
    steps = [lambda: torch.ones(size // 4).sum(), lambda: [torch.ones(size // 4) for _ in range(3)]]
    assert [round(memory.peak_bytes(step) / size) for step in steps] == [1, 3]


def test_measure_restores_the_best_instruction_set():
    from rope_kernels.backends import native

    if not native.isas():
        pytest.skip("there are no native kernels")
    before, seen = native.isa(), []
    row = BenchmarkRow(
        "g", "n", lambda: (lambda: seen.append(native.isa()), lambda: None), needed=1.0, isa=native.isas()[-1]
    )
    found = measure(row, 0)
    assert set(seen) == {native.isas()[-1]}
    assert native.isa() == before
    assert found.met == (found.speed >= 1)


@pytest.mark.parametrize("exponent", [1.0, -1.0, 0.5])
def test_slope_of_a_power(exponent):
    found = [
        result(str(size), speed=(size / 4096) ** -exponent, group="complexity", axis="tokens", size=size, base=4096)
        for size in (256, 1024, 16384)
    ]
    slope, low, high = complexity.slopes(found)["tokens"]
    assert (slope, low, high) == (pytest.approx(exponent), 256, 16384)


def test_baseline_of_several_runs_takes_their_range_as_noise():
    runs = [run_of(result("a", speed)) for speed in (2.0, 2.2, 2.1)]
    assert regressions.baseline_of(runs)["rows"]["a"] == {"speed": 2.1, "noise": round(0.2 / 2.1, 4)}


@pytest.mark.parametrize(("processor", "folder"), [
    ("AMD EPYC", "amd-epyc"), ("Intel(R) Xeon(R) Processor", "intel-xeon"),
    ("Intel(R) Core(TM) i9-9900K CPU @ 3.60GHz", "intel-core-i9-9900k-3-60ghz"),
])  # fmt: skip
def test_every_processor_has_a_folder(processor, folder):
    assert run_of(environment={"processor": processor}).folder == measurements.RESULTS / folder


def test_every_folder_holds_results_and_a_baseline_of_its_processor():
    folders = [path for path in measurements.RESULTS.iterdir() if path.is_dir()]
    assert len(folders) >= 2
    for folder in folders:
        baseline = json.loads((folder / "baseline.json").read_text())
        assert run_of(environment=baseline["machine"]).folder == folder
        text = (folder / "RESULTS.md").read_text()
        assert f"| processor | {baseline['machine']['processor']} |" in text
        assert set(re.findall(r"\]\((plots/.*?)\)", text)) == {f"plots/{p.name}" for p in (folder / "plots").iterdir()}


def test_a_processor_without_a_baseline_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(measurements, "RESULTS", tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "baseline.json").touch()
    written_by_pytest(tmp_path / "now", result("a"))
    with pytest.raises(
        typer.BadParameter, match=r"a/baseline\.json: there is no such file; .*: other; --write makes one"
    ):
        regressions.main(tmp_path / "now")


@pytest.mark.parametrize(("speed", "spread", "slower"), [
    (1.0, 0.02, True), (1.9, 0.02, True), (1.96, 0.02, False), (2.0, 0.02, False), (3.0, 0.02, False),
    (1.9, 0.2, False),
])  # fmt: skip
def test_a_planted_regression_shows_beyond_the_noise(speed, spread, slower):
    baseline = regressions.baseline_of([run_of(result("a"))])
    (row,) = regressions.changes(baseline, {"a": result("a", speed, spread)})
    assert row.is_slower == slower


@pytest.mark.parametrize(("again", "count"), [(1.0, 1), (2.0, 0)])
def test_a_regression_must_show_again(again, count):
    baseline = regressions.baseline_of([run_of(result("a"), result("b"))])
    asked = []

    def measure(names):
        asked.append(names)
        return {"a": result("a", again)}

    first = regressions.changes(baseline, {"a": result("a", 1.0), "b": result("b")})
    assert len(regressions.confirmed(first, measure)) == count
    assert asked == [["a"]] * regressions.REPEATS


def written_by_pytest(path, *results):
    run = run_of(*results)
    data = {"benchmarks": [{"extra_info": r.to_dict()} for r in results], "missing": run.missing,
            "records": run.records, "machine_info": {"environment": run.environment}, "commit_info": run.commit,
            "command": run.command, "row_seconds": run.row_seconds}  # fmt: skip
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(("speed", "code", "says"), [
    (2.0, 0, "1 rows, 0 slower"), (1.0, 1, "slower: a: 1.00x, was 2.00x"),
])  # fmt: skip
def test_the_command_fails_on_a_regression(tmp_path, speed, code, says):
    before, now = tmp_path / "before.json", tmp_path / "now.json"
    written_by_pytest(before, result("a"))
    written_by_pytest(now, result("a", speed))
    baseline = f"--baseline={tmp_path / 'baseline.json'}"
    app = typer.Typer()
    app.command()(regressions.main)
    for args, expected in (([before, "--write"], 0), ([now, "--no-repeat"], code)):
        done = CliRunner().invoke(app, [*map(str, args), baseline])
        assert done.exit_code == expected, done.output
    assert says in done.output


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(typer.BadParameter, match="not a file that `make bench` writes"):
        read(tmp_path / "data.json")
    with pytest.raises(typer.BadParameter, match="no such file"):
        read(tmp_path / "absent.json")


def test_report_has_every_row_and_plot(tmp_path):
    found = all_results()
    text = report.written(run_of(*found), tmp_path)
    assert all(f"## {title}\n" in text for title in report.SECTIONS)
    budgets = tables.budgets(run_of(*found))
    for row in budget_rows():
        assert f"| {row.name} | ≥ {row.needed:.3g}x | 2.00x | 1.98–2.02 | " in budgets
        assert ("**not met**" in next(line for line in budgets.splitlines() if row.name in line)) == (row.needed > 2)
    for row in limit_rows():
        assert f"| {row.name} | 2.00x | 1.98–2.02 |" in tables.limits(run_of(*found))
    pictures = re.findall(r"\]\((plots/\w+\.svg)\)", text)
    assert len(pictures) == 3
    assert all((tmp_path / picture).stat().st_size > 10_000 for picture in pictures)
    assert tables.NO_GPU in text
    assert "0123456789ab, with changes" in text


def test_a_library_has_one_colour_and_a_line_style_per_form():
    labels = [*(f"rope_kernels, {form}" for form in ours.FORMS), "transformers", "transformers, torch.compile", "vLLM"]
    found = [plots.style_of(label) for label in [*labels, "hand-fused, torch.compile"]]
    blue, red = found[0]["color"], found[3]["color"]
    assert [style["color"] for style in found[:5]] == [blue, blue, blue, red, red]
    assert len({style["color"] for style in found}) == 4
    assert len({tuple(style.values()) for style in found}) == len(found)


def test_report_says_what_was_not_measured():
    row = budget_rows()[0]
    text = tables.budgets(run_of(missing={row.name: "pip install something"}))
    assert "not measured: pip install something" in text
    assert "2.00x" not in text
    assert "not measured: Triton" in text
    assert "| pip install something | 1 |" in tables.missing(run_of(missing={row.name: "pip install something"}))


def static_row(**changes):
    case = dict(head_dim=128, phase="prefill", pairing="half", dtype="bf16")
    row = dict(kernel="triton", target="sm_80", case=case, launches=1, registers=64, stack_bytes=0, shared_bytes=0,
               local_instructions=0, slow_instructions=0, load_widths={8: 1, 16: 8}, store_widths={16: 8},
               instructions_per_element=5.0, dram_bytes_per_element=4.002)  # fmt: skip
    return row | changes


@pytest.mark.parametrize("change", [
    dict(launches=2), dict(registers=65), dict(stack_bytes=8), dict(local_instructions=1), dict(slow_instructions=1),
    dict(load_widths={8: 9}), dict(store_widths={8: 1, 16: 8}), dict(instructions_per_element=5.01),
    dict(dram_bytes_per_element=6.0),
], ids=str)  # fmt: skip
def test_static_budgets_notice(change):
    assert all(met for _, _, met in static_budgets.static_budgets([static_row()]))
    found = static_budgets.static_budgets([static_row(), static_row(**change)])
    assert [met for _, _, met in found].count(False) == 1
