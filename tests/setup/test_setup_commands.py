"""setup.py and the Makefile: a build makes the library or fails, says why, and leaves nothing that is stale."""

import os
import subprocess
import sys
import zipfile

import pytest

from native_build.errors import WITHOUT
from rope_kernels.backends import native

LINK = 'case $source in "") echo "ld: cannot find -ltorch_cpu" >&2; exit 1 ;; esac'
COMPILE = 'case $source in */operators.cpp) echo "x.cpp:1:2: error: no" >&2; exit 1 ;; esac'
KILLED = "case $source in */avx2.cpp | */portable.cpp) kill -9 $$ ;; esac"
INTERRUPTED = 'case $source in */spec.cpp) kill -9 "$(cat "$BUILD_PID")"; sleep 5 ;; esac'
FAILURES = {
    "link": (LINK, "_native.so: ld: cannot find -ltorch_cpu"),
    "compile": (COMPILE, "ops/operators.cpp.o: x.cpp:1:2: error: no"),
    "killed": (KILLED, "the compiler was killed"),
}
NOTE = "rope_kernels/_why_not_native.txt"


@pytest.fixture(autouse=True)
def _cpu_alone(monkeypatch):
    monkeypatch.setenv("ROPE_KERNELS_CUDA", "0")


def run_setup(checkout, *command, **variables):
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *command], cwd=checkout, env=os.environ | variables, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("command", [("build_ext", "--inplace"), ("bdist_wheel",)], ids=["in place", "wheel"])
def test_a_failed_build_is_an_error(checkout, compiler, kind, command):
    before, said = FAILURES[kind]
    compiler(before)
    done = run_setup(checkout, *command)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    reason, remedy, without = done.stderr.rstrip().split("\n")[-3:]
    log = checkout / "build" / "native" / "build.log"
    assert said in reason
    assert f"(all of it: {log})" in reason
    assert ("MAX_JOBS=1" if kind == "killed" else "CXX") in remedy
    assert without.strip() == WITHOUT
    assert log.is_file()
    assert not list(checkout.glob("dist/*"))
    assert said in (checkout / NOTE).read_text()


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failed_build_in_place_leaves_no_older_library(checkout, compiler, kind):
    compiler()
    assert run_setup(checkout, "build_ext", "--inplace").returncode == 0
    library = checkout / "rope_kernels" / "_native.so"
    assert library.read_text() == "made\n"
    assert not (checkout / NOTE).exists()
    compiler(FAILURES[kind][0])
    for source in ("core/spec.cpp", "ops/operators.cpp", "cpu/isa/portable.cpp"):
        os.utime(checkout / "csrc" / source)
    assert run_setup(checkout, "build_ext", "--inplace").returncode != 0
    assert not library.exists()
    compiler()
    assert run_setup(checkout, "build_ext", "--inplace").returncode == 0
    assert library.exists()
    assert not (checkout / NOTE).exists()


def test_a_build_that_is_killed_leaves_a_note(checkout, compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("BUILD_PID", str(tmp_path / "pid"))
    compiler(INTERRUPTED)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    process = subprocess.Popen(command, cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (tmp_path / "pid").write_text(str(process.pid))
    assert process.wait() == -9
    assert (checkout / NOTE).read_text() == "the last build did not end\n"
    assert not (checkout / "rope_kernels" / "_native.so").exists()


def test_a_wheel_with_the_library_serves_every_python(checkout, compiler):
    compiler()
    done = run_setup(checkout, "bdist_wheel")
    assert done.returncode == 0, done.stderr
    assert "native kernels built: CPU (" in done.stderr
    assert "without CUDA (ROPE_KERNELS_CUDA=0)" in done.stderr
    (wheel,) = checkout.glob("dist/*.whl")
    assert "-cp310-abi3-linux_" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert "rope_kernels/_native.so" in names
    assert NOTE not in names
    assert not [name for name in names if name.startswith("native_build")]


@pytest.mark.parametrize("missing", ["nothing", "compiler", "torch"])
def test_a_wheel_of_python_alone_says_so_in_its_name_and_needs_no_tool(checkout, missing):
    variables = {"ROPE_KERNELS_NATIVE": "0"} | ({"CXX": "/nowhere/c++"} if missing == "compiler" else {})
    if missing == "torch":
        (checkout / "torch.py").write_text("raise ImportError")
    (checkout / NOTE).write_text("an older note\n")
    done = run_setup(checkout, "bdist_wheel", **variables)
    assert done.returncode == 0, done.stderr
    (wheel,) = checkout.glob("dist/*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    package = zipfile.ZipFile(wheel)
    assert "rope_kernels/_native.so" not in package.namelist()
    assert package.read(NOTE) == b"the package was installed with ROPE_KERNELS_NATIVE=0\n"


def test_metadata_says_what_is_missing_before_anything_is_downloaded(checkout):
    done = run_setup(checkout, "dist_info", CXX="/nowhere/c++")
    assert done.returncode != 0
    assert "CXX: there is no /nowhere/c++" in done.stderr
    assert run_setup(checkout, "dist_info", CXX="/nowhere/c++", ROPE_KERNELS_NATIVE="0").returncode == 0


def test_an_sdist_needs_no_tool_and_has_what_a_build_reads(checkout):
    done = run_setup(checkout, "sdist", CXX="/nowhere/c++")
    assert done.returncode == 0, done.stderr
    listed = (checkout / "rope_kernels.egg-info" / "SOURCES.txt").read_text().split("\n")
    for folder in ("csrc", "native_build"):
        there = {
            str(p.relative_to(checkout))
            for p in (checkout / folder).rglob("*")
            if p.suffix in (".py", ".cpp", ".h", ".cu", ".cuh", ".txt")
        }
        assert there <= {*listed}
    assert NOTE not in listed


@pytest.mark.parametrize(
    "text", ["the last build failed: x.cpp:1: error: no\n", "the package was installed with X=0\n"]
)
def test_the_package_says_why_it_has_no_library(monkeypatch, tmp_path, text):
    monkeypatch.setattr(native, "_PATH", tmp_path / "_native.so")
    monkeypatch.setattr(native, "_NOTE", tmp_path / "note.txt")
    monkeypatch.setattr(native, "_library", None)
    monkeypatch.setattr(native, "_missing", None)
    native.load()
    assert "pip install --no-build-isolation ." in native.unavailable()
    (tmp_path / "note.txt").write_text(text)
    native.load()
    assert native.unavailable() == f"there are no native kernels: {text.strip()}"


def outside_make():
    """The environment without what `make test` passes on: it would make this make talk as an inner one."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


@pytest.fixture
def make(checkout):
    """Run make on a .venv whose Python and command are stubs; ``fails`` is the pip command that fails."""
    folder = checkout / ".venv" / "bin"
    folder.mkdir(parents=True)
    stub = 'echo "$0 $*" >> "$(dirname "$0")/calls.txt"\ncase "$*" in *"$FAILS"*) exit 1 ;; esac\n'
    for name in ("python", "rope-kernels"):
        (folder / name).write_text(f"#!/bin/sh\n{stub}")
        (folder / name).chmod(0o755)
    for name in ("requirements.txt", "requirements-demo.txt"):
        (checkout / name).write_text("")
    (folder.parent / ".created").touch()

    def run(*targets, fails="nothing at all"):
        done = subprocess.run(
            ["make", *targets], cwd=checkout, env=outside_make() | {"FAILS": fails}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        calls = (folder / "calls.txt").read_text() if (folder / "calls.txt").exists() else ""
        (folder / "calls.txt").unlink(missing_ok=True)
        return done, calls

    return run


@pytest.mark.parametrize("target", [".venv/.ready", ".venv/.demo-ready"])
def test_a_failed_build_leaves_no_stamp(checkout, make, target):
    stamp = checkout / target
    assert make(target)[0].returncode == 0
    assert stamp.exists()
    assert make(target)[1] == ""
    later = stamp.stat().st_mtime + 10
    os.utime(checkout / "csrc" / "core" / "spec.cpp", (later, later))
    for _ in range(2):
        assert make(target, fails="--editable")[0].returncode != 0
        assert not stamp.exists()
    done, calls = make(target)
    assert done.returncode == 0
    assert "--editable ." in calls


@pytest.mark.parametrize("target", [".venv/.ready", "demo"])
@pytest.mark.parametrize("step", ["-r requirements", "--editable"])
def test_a_failed_step_ends_make(make, target, step):
    done, calls = make(target, fails=step)
    assert done.returncode != 0
    assert "demo\n" not in calls.replace("requirements-demo", "")


def test_the_demo_installs_and_builds_less_than_the_tests_which_build_everything_later(checkout, make):
    done, calls = make("demo")
    assert done.stdout.split("\n")[0].startswith("Installing torch")
    assert "about" in done.stdout
    assert "-r requirements-demo.txt" in calls
    assert "-r requirements.txt" not in calls
    done, calls = make(".venv/.ready")
    assert "-r requirements.txt" in calls
    assert "--editable ." in calls
    done, calls = make("demo")
    assert calls.count("\n") == 1  # the full build serves the demo


def test_only_the_demo_builds_for_this_machine_alone(checkout, make):
    stub = checkout / ".venv" / "bin" / "python"
    stub.write_text('#!/bin/sh\necho "$ROPE_KERNELS_ISAS|$TORCH_CUDA_ARCH_LIST" >> "$(dirname "$0")/calls.txt"\n')
    _, calls = make(".venv/.demo-ready")
    assert calls.split("\n")[-2] == "native|native"
    _, calls = make(".venv/.ready")
    assert calls.split("\n")[-3] == "|"
