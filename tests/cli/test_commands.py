"""The command line: output, JSON, exit codes, and messages instead of tracebacks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types

import pytest
from typer.testing import CliRunner

import rope_kernels
from rope_kernels import backends, environment
from rope_kernels.backends import choice, native
from rope_kernels.cli import bench, check, demo
from rope_kernels.cli.commands import app
from rope_kernels.cli.console import device_and_backend
from rope_kernels.measuring import catalog, curves, peers

LLAMA = {"model_type": "llama", "head_dim": 64, "max_position_embeddings": 2048, "rope_theta": 1e4}


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(demo, "PREFILL_TOKENS", 8)
    monkeypatch.setattr(demo, "ROUNDS", 1)
    monkeypatch.setattr(choice, "FROM_ENVIRONMENT", None)

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return invoke


@pytest.fixture
def config_file(tmp_path):
    def write(value):
        path = tmp_path / "config.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write


def test_info_names_versions_and_every_backend(run):
    text = run("info").stdout
    assert rope_kernels.__version__ in text
    assert "backend reference" in text
    machine = json.loads(run("info", "--json").stdout)
    assert machine.keys() >= {"rope_kernels", "python", "torch", "triton", "transformers", "cuda_device", "backends"}
    assert machine["backends"]["reference"] is None


@pytest.mark.parametrize("name", backends.PREFERENCE)
def test_info_shows_the_backend_of_the_environment(run, monkeypatch, name):
    monkeypatch.setattr(choice, "FROM_ENVIRONMENT", name)
    monkeypatch.setattr(backends, "_why_not", lambda name, device: None)
    assert re.search(rf"^ROPE_KERNELS_BACKEND +{name} *$", run("info").stdout, re.M)
    machine = json.loads(run("info", "--json").stdout)
    assert machine["ROPE_KERNELS_BACKEND"] == name
    assert machine["error"] is None


@pytest.mark.parametrize("name", ["nativ", "Triton", "cuda", " native", "native,triton", "0"])
@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_info_fails_for_an_unknown_backend_of_the_environment(run, monkeypatch, name, arguments):
    monkeypatch.setattr(choice, "FROM_ENVIRONMENT", name)
    result = run("info", *arguments, code=2)
    assert result.stderr == f"error: ROPE_KERNELS_BACKEND: got {name!r}, allowed are triton, native, reference\n"
    assert name in result.stdout


@pytest.mark.parametrize(("name", "reason"), [("triton", "no CUDA device is available"), ("native", "not built")])
def test_info_fails_for_a_backend_of_the_environment_that_cannot_run(run, monkeypatch, name, reason):
    monkeypatch.setattr(choice, "FROM_ENVIRONMENT", name)
    monkeypatch.setattr(backends, "_why_not", lambda name, device: reason)
    result = run("info", code=1)
    assert result.stderr == f"error: ROPE_KERNELS_BACKEND: got {name!r}, which cannot run here: {reason}\n"
    assert json.loads(run("info", "--json", code=1).stdout)["error"] in result.stderr


@pytest.mark.parametrize("reason", ["the last build failed: a.cpp: error: x", "ROPE_KERNELS_NATIVE=0"])
def test_info_says_why_there_are_no_native_kernels(run, monkeypatch, reason):
    monkeypatch.setattr(native, "_library", None)
    monkeypatch.setattr(native, "_missing", reason)
    machine = json.loads(run("info", "--json").stdout)
    assert machine["native_kernels"] is None
    assert machine["direct_calls"] == machine["backends"]["native"] == reason


def test_info_says_what_is_not_installed(run, monkeypatch):
    monkeypatch.setattr(environment, "version_of", lambda package: None)
    machine = json.loads(run("info", "--json").stdout)
    assert machine["triton"] is machine["transformers"] is None


def test_version(run):
    assert run("--version").stdout.strip() == rope_kernels.__version__


@pytest.mark.parametrize("command", [(), ("info",), ("explain",), ("demo",), ("bench",), ("coverage",)])
def test_help_documents_the_exit_codes(run, command):
    assert "Exit codes" in run(*command, "--help").stdout


def test_explain_takes_a_file_a_directory_or_a_shipped_name(run, config_file):
    path = config_file(LLAMA)
    by_file, by_folder = run("explain", path).stdout, run("explain", path.parent).stdout
    assert by_file == by_folder
    assert by_file.strip() == rope_kernels.RopeConfig.from_hf(LLAMA).explain().strip()
    assert run("explain", "llama-3.1-8b").stdout == run("explain", "llama-3.1-8b.json").stdout


def test_explain_every_layer_type_or_one(run):
    both = run("explain", "gemma-4-text").stdout
    assert both.index("sliding_attention\n") < both.index("full_attention\n")
    one = json.loads(run("explain", "gemma-4-text", "--layer-type", "full_attention", "--json").stdout)
    assert list(one) == ["full_attention"]
    full = one["full_attention"]
    assert full.keys() == {
        "config", "effective_context", "rotary_dim", "attention_scaling", "inv_freq", "provenance",
    }  # fmt: skip
    assert full["effective_context"] == 131072
    assert rope_kernels.RopeConfig.from_hf(full["config"]).inv_freq().tolist() == full["inv_freq"]


def test_explain_prints_warnings_as_a_line(run, config_file):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    inner = LLAMA | {"original_max_position_embeddings": 1024, "rope_scaling": scaling}
    result = run("explain", config_file(inner))
    assert result.stderr.startswith("warning: original_max_position_embeddings")
    assert ".py" not in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "got list, must hold one JSON object"),
        (LLAMA | {"rope_theta": -1.0}, "rope_theta"),
        (LLAMA | {"rope_scaling": {"rope_type": "yaarn", "factor": 2.0}}, "rope_type"),
        ({"model_type": "llama"}, "head_dim"),
    ],
)
def test_explain_refuses_a_bad_config_with_exit_code_2(run, config_file, content, message):
    result = run("explain", config_file(content), code=2)
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert not result.stdout


def test_explain_refuses_what_is_not_there(run, tmp_path):
    assert "llama-3.1-8b" in run("explain", "no-such-model", code=2).stderr
    assert "the directory holds none of config.json" in run("explain", tmp_path, code=2).stderr
    assert "layer_type" in run("explain", "gemma-4-text", "--layer-type", "full", code=2).stderr
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in run("explain", tmp_path, code=2).stderr


def test_demo_table(run):
    text = run("demo", "--only", "gpt-neox-20b", "--only", "gemma-4-text").stdout
    for word in ("gpt-neox-20b", "gemma-4-text sliding", "gemma-4-text full", "proportional", "2,048"):
        assert word in text


def test_demo_json(run):
    assert json.loads(run("demo", "--only", "gpt-neox-20b", "--json").stdout)["serving"] == []
    result = json.loads(run("demo", "--all", "--only", "gpt-neox-20b", "--json").stdout)
    assert result.keys() == {"machine", "contract", "results", "serving"}
    [row] = result["results"]
    assert [row["call"] for row in result["serving"]] == ["shift_ by -1,024"]
    assert row.keys() == set(demo.DemoRow.__dataclass_fields__)
    assert row["model"] == "gpt-neox-20b"
    assert result["machine"]["backends"][row["backend"]] is None
    assert row["max_error"] <= result["contract"]


@pytest.mark.parametrize("name", backends.PREFERENCE)
def test_the_backend_that_runs_is_named(monkeypatch, name):
    module = types.ModuleType(f"rope_kernels.backends{backends._MODULES[name]}")
    monkeypatch.setattr(backends, "backend_for", lambda device: module)
    assert device_and_backend("cpu")[1] == name


def test_demo_refuses_wrong_arguments(run, monkeypatch):
    assert "llama-2-7b" in run("demo", "--only", "llama-9", code=2).stderr
    assert "allowed are cpu and cuda" in run("demo", "--device", "tpu", code=2).stderr
    monkeypatch.setattr(choice, "FROM_ENVIRONMENT", "abacus")
    assert "ROPE_KERNELS_BACKEND: got 'abacus'" in run("demo", code=2).stderr


def test_demo_says_what_this_machine_lacks(run, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "no CUDA device" in run("demo", "--device", "cuda", code=1).stderr
    assert "there is no folder" in run("demo", "--plot", tmp_path / "nowhere" / "x.png", code=1).stderr
    assert ".png" in run("demo", "--plot", tmp_path / "x.jpg", code=2).stderr
    monkeypatch.setattr(environment, "version_of", lambda package: None)
    assert "pip install matplotlib" in run("demo", "--plot", tmp_path / "x.png", code=1).stderr


def test_demo_plots(run, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("rope_kernels.measuring.curves._LAST_POSITION_LOG2", 4)
    path = tmp_path / "picture.png"
    result = run("demo", "--only", "gpt-neox-20b", "--json", "--plot", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert json.loads(result.stdout)["results"]
    path.unlink()
    path.mkdir()
    assert "cannot be written" in run("demo", "--only", "gpt-neox-20b", "--plot", path, code=1).stderr


def test_demo_exits_with_3_outside_the_contract(run, monkeypatch):
    monkeypatch.setattr("rope_kernels.measuring.accuracy.CONTRACT", 0.0)
    result = run("demo", "--only", "gpt-neox-20b", "--json", code=3)
    assert "outside the accuracy contract" in result.stderr
    assert json.loads(result.stdout)["results"]


def test_plot_writes_a_picture_or_its_numbers(run, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("rope_kernels.measuring.curves._LAST_POSITION_LOG2", 4)
    monkeypatch.chdir(tmp_path)
    assert "wrote rope.png" in run("plot", "gemma-4-text").stderr
    assert (tmp_path / "rope.png").read_bytes().startswith(b"\x89PNG")
    [part] = json.loads(run("plot", "gemma-4-text", "--layer-type", "full_attention", "--json").stdout)
    assert part.keys() == set(curves.Curves.__dataclass_fields__)
    assert run("plot", "llama-2-7b", "--json", "--output", "other.png").stdout.startswith("[")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.png", "rope.png"]


def test_plot_refuses_what_it_cannot_draw(run, monkeypatch, tmp_path):
    assert "--output" in run("plot", "llama-2-7b", "--output", tmp_path / "x.svg", code=2).stderr
    assert "there is no folder" in run("plot", "llama-2-7b", "--output", tmp_path / "no" / "x.png", code=1).stderr
    assert "no shipped config" in run("plot", "llama-9", "--json", code=2).stderr
    monkeypatch.setattr(environment, "version_of", lambda package: None)
    assert "pip install matplotlib" in run("plot", "llama-2-7b", code=1).stderr


HEADS = LLAMA | {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 256}


@pytest.fixture
def run_bench(run, monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", {"decode batch 3": (3, 1), "prefill 70": (1, 70)})
    return lambda *arguments, **options: run("bench", *arguments, "--seconds", 0, **options)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_bench_sets_every_form_beside_its_floor_and_transformers(run_bench, config_file, dtype):
    path = config_file(HEADS)
    result = json.loads(run_bench(path, "--dtype", dtype, "--json").stdout)
    met = {(r["shape"], r["form"], r["against"]) for r in result["ratios"]}
    for form, floor in (("in place", "bitwise_not_"), ("out=", "copy_"), ("allocating", "clone")):
        assert met >= {(s, form, other) for s in bench.SHAPES for other in (floor, "transformers")}
    for r in result["ratios"]:
        assert 0 < r["low"] <= r["speed"] <= r["high"]
    size = 4 if dtype == "fp32" else 2
    assert result["ratios"][-1]["gigabytes"] == pytest.approx(2e-9 * 70 * (4 + 2) * 64 * size)
    text = run_bench(path, "--dtype", dtype).stdout
    assert all(word in text for word in ("decode batch 3", "prefill 70", "of transformers' speed", dtype))


def test_bench_leaves_out_in_place_where_it_would_overflow(run_bench, config_file):
    scaled = HEADS | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert "in place" in run_bench(config_file(scaled), "--json").stdout
    scaled["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    forms = {r["form"] for r in json.loads(run_bench(config_file(scaled), "--json").stdout)["ratios"]}
    assert forms == {"out=", "allocating"}


def test_bench_goes_on_without_transformers(run_bench, config_file, monkeypatch):
    monkeypatch.setattr(peers, "version_of", lambda package: None)
    text = run_bench(config_file(HEADS)).stdout
    assert "transformers is not installed" in text


def test_bench_refuses_what_it_cannot_time(run_bench, config_file, monkeypatch):
    assert "got 'int8', allowed are bf16, fp16, fp32" in run_bench("--dtype", "int8", code=2).stderr
    assert "num_attention_heads: got None" in run_bench(config_file(LLAMA), code=2).stderr
    monkeypatch.setattr(bench, "CONTRACT", 0.0)
    assert "full_attention, in place: q is off by" in run_bench(config_file(HEADS), "--dtype", "fp32", code=3).stderr


def test_check_prints_a_row_per_backend_and_dtype(run, monkeypatch):
    some = check.calls()[::100]
    monkeypatch.setattr(check, "calls", lambda: some)
    text = run("check").stdout
    for name, why in backends.available_backends().items():
        assert (f"not run: {name}" in text) == (why is not None)
    result = json.loads(run("check", "--json").stdout)
    assert result.keys() == {"machine", "contract", "results"}
    assert {row["backend"] for row in result["results"]} >= {"reference"}
    assert all(row["worst_error"] <= result["contract"] and not row["violations"] for row in result["results"])


def test_check_exits_with_3_outside_the_contract(run, monkeypatch):
    some = check.calls()[:2]
    monkeypatch.setattr(check, "calls", lambda: some)
    monkeypatch.setattr(check, "CONTRACT", 0.0)
    result = run("check", code=3)
    assert "outside the accuracy contract" in result.stderr
    assert "deepseek-coder-6.7b, half, float32" in result.stdout


def test_the_module_runs_without_colour_or_traceback():
    warnings = "error,ignore::DeprecationWarning:typer"  # of the oldest typer about the newest click
    environ = os.environ | {"NO_COLOR": "1", "FORCE_COLOR": "1", "PYTHONWARNINGS": warnings}
    command = [sys.executable, "-m", "rope_kernels"]
    shown = subprocess.run([*command, "info"], capture_output=True, text=True, env=environ, check=True)
    assert not any(f"\x1b[{colour}" in shown.stdout for colour in range(30, 50))
    refused = subprocess.run([*command, "explain", "nothing"], capture_output=True, text=True, env=environ)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: nothing: ")


def test_shipped_configs_are_all_listed():
    assert len(catalog.names()) == 13
    with pytest.raises(catalog.SourceError, match="no shipped config"):
        catalog.shipped("nothing")
