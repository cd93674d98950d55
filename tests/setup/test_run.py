"""A failed build: its first error, what to do about it, and its log."""

import os

import pytest

from native_build import run, tools
from native_build.errors import BuildError

GCC = """[1/3] compile core/spec.cpp.o
[2/3] compile ops/operators.cpp.o
FAILED: [code=1] ops/operators.cpp.o 
c++ -Werror=all-warnings -o error:not-this.o -c 'a b.cpp'
In file included from a.cpp:1:
a.cpp:7:3: warning: unused variable
a.cpp:8:3: error: 'x' was not declared in this scope
a.cpp:9:3: error: another
[3/3] compile cpu/dispatch.cpp.o
FAILED: [code=1] cpu/dispatch.cpp.o 
c++
b.cpp:1:1: error: a later one
ninja: build stopped: subcommand failed.
"""
LINK = """[12/12] link _native.so
FAILED: [code=1] _native.so 
c++ -shared
/usr/bin/ld: cannot find -ltorch_cpu: No such file or directory
collect2: error: ld returned 1 exit status
ninja: build stopped: subcommand failed.
"""
KILLED = """FAILED: [code=1] cpu/isa/portable.cpp.o 
c++ -c
c++: fatal error: Killed signal terminated program cc1plus
compilation terminated.
"""
OLD_NINJA = """FAILED: cuda/kernel.cu.o 
nvcc -c
nvcc fatal   : Unsupported gpu architecture 'compute_120'
"""
HOST = """FAILED: [code=1] cuda/kernel.cu.o 
nvcc
/usr/include/crt/host_config.h:164:2: error: #error -- unsupported GNU version! gcc versions later than 15
"""
SIGNAL = "FAILED: [code=137] _native.so \nc++\nKilled\nninja: build stopped: subcommand failed.\n"
SILENT = "FAILED: [code=3] core/spec.cpp.o \nc++\nninja: build stopped: subcommand failed.\n"
WORDS = "FAILED: [code=3] core/spec.cpp.o \nc++\nsomething odd\nsomething else\n"
NO_RULE = "ninja: error: '../../csrc/a.cpp', needed by 'a.o', missing and no known rule to make it\n"
MEMORY = "the compiler was killed, as it is when memory runs out"


@pytest.mark.parametrize(
    ("output", "target", "said"),
    [
        (GCC, "ops/operators.cpp.o: ", "a.cpp:8:3: error: 'x' was not declared in this scope"),
        (LINK, "_native.so: ", "/usr/bin/ld: cannot find -ltorch_cpu: No such file or directory"),
        (KILLED, "cpu/isa/portable.cpp.o: ", MEMORY),
        (SIGNAL, "_native.so: ", MEMORY),
        (OLD_NINJA, "cuda/kernel.cu.o: ", "nvcc fatal   : Unsupported gpu architecture 'compute_120'"),
        (SILENT, "core/spec.cpp.o: ", "the command failed silently"),
        (WORDS, "core/spec.cpp.o: ", "something odd"),
        (NO_RULE, "", NO_RULE.strip()),
        ("", "", "ninja said nothing"),
    ],
)
def test_first_error(output, target, said):
    assert run.first_error(output) == (target, said)


@pytest.mark.parametrize(
    ("output", "remedy"),
    [(GCC, "CXX"), (LINK, "CXX"), (KILLED, "MAX_JOBS=1"), (SIGNAL, "MAX_JOBS=1"), (OLD_NINJA, "ROPE_KERNELS_CUDA=0"),
     (HOST, "ROPE_KERNELS_CUDA=0")],
)  # fmt: skip
def test_a_failed_build_says_what_to_do_and_where_its_log_is(tmp_path, output, remedy):
    (tmp_path / "said.txt").write_text(output)
    ninja = tmp_path / "ninja"
    ninja.write_text("#!/bin/sh\ncat said.txt\nexit 1\n")
    ninja.chmod(0o755)
    with pytest.raises(BuildError) as raised:
        run.run_ninja(str(ninja), tmp_path)
    assert "".join(run.first_error(output)) in raised.value.reason
    assert str(tmp_path / "build.log") in raised.value.reason
    assert remedy in raised.value.remedy
    assert (tmp_path / "build.log").read_text() == output


@pytest.mark.parametrize("jobs", [None, "1", "3"])
def test_ninja_gets_max_jobs_and_english_compilers(monkeypatch, tmp_path, jobs):
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    if jobs:
        monkeypatch.setenv("MAX_JOBS", jobs)
    ninja = tmp_path / "ninja"
    ninja.write_text('#!/bin/sh\necho "$LC_ALL $LANGUAGE" "$@"\n')
    ninja.chmod(0o755)
    run.run_ninja(str(ninja), tmp_path)
    assert (tmp_path / "build.log").read_text().split() == ["C.UTF-8", "C", *(["-j", jobs] if jobs else [])]


def test_a_real_ninja_runs(tmp_path):
    (tmp_path / "build.ninja").write_text(
        "rule r\n  command = echo 'x é.cpp:1:1: error: bad' && false\nbuild a: r\n", encoding="utf-8"
    )
    with pytest.raises(BuildError, match=r"a: x é\.cpp:1:1: error: bad") as raised:
        run.run_ninja(tools.ninja(), tmp_path)
    assert raised.value.reason.endswith(f"(all of it: {tmp_path}{os.sep}build.log)")
