"""The ninja file: what each file is compiled with, wherever the checkout, torch and the compiler lie."""

import re
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.compilers import write_compiler

from native_build import isas, ninja_file, tools
from native_build.gpu_code import GpuCode
from native_build.tools import Toolchain

ROOT = Path(__file__).parents[2]
NAMES = st.text("ab é'\"$&;#()%*?[]{}~!=,:|<>\\`\t ü漢", min_size=1, max_size=12).filter(lambda name: name.strip("."))


def toolchain(**changes):
    plain = Toolchain(["c++"], isas.all_isas(), Path("torch"), None, None, GpuCode([], []), "")
    return plain._replace(**changes)


def text_of(**changes):
    return ninja_file.ninja_file(ROOT, ROOT / "build" / "native", toolchain(**changes))


def scratch(base, names):
    """(root, build, toolchain) below folders of these names, with a compiler that keeps its arguments."""
    root, home = base / names[0], base / names[1] / "t"
    root.mkdir()
    (root / "csrc").symlink_to(ROOT / "csrc")
    (root / "build").mkdir()
    home.mkdir(parents=True)
    compiler = write_compiler(home / names[2])
    return root, root / "build", toolchain(compiler=[str(compiler), "-m64"], torch=home / "torch")


@settings(max_examples=12)
@example(["a b", "c d", "e f"])
@example(["é", "a'b", 'a"b'])
@example(["$HOME", "a$ b", "$(x)"])
@given(st.lists(NAMES, min_size=3, max_size=3, unique=True))
def test_any_path_reaches_the_compiler_as_it_is(names):
    with tempfile.TemporaryDirectory() as folder:
        root, build, found = scratch(Path(folder), names)
        (build / "build.ninja").write_text(ninja_file.ninja_file(root, build, found), encoding="utf-8")
        done = subprocess.run([tools.ninja()], cwd=build, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        assert (build / ninja_file.LIBRARY).read_text() == "made\n"
        words = (Path(found.compiler[0]).parent / "arguments.txt").read_bytes().decode().split("\0")
        beside_torch = len(list((ROOT / "csrc" / "ops").glob("*.cpp"))) - 1  # without launch_cuda.cpp
        assert words.count("-m64") == len(ninja_file.sources(found.isas)) + beside_torch + 1
        assert words.count(str(found.torch / "include")) == beside_torch
        assert words.count(f"-L{found.torch / 'lib'}") == 1
        done = subprocess.run([tools.ninja()], cwd=build, capture_output=True, text=True, check=True)
        assert "no work to do" in done.stdout


@pytest.mark.parametrize(
    ("code", "generated", "define"),
    [
        (
            GpuCode([80, 90], [90]),
            ["compute_80,code=sm_80", "compute_90,code=sm_90", "compute_90,code=compute_90"],
            "-DROPE_WITH_CUDA=80,90,90+PTX",
        ),
        (GpuCode([100], []), ["compute_100,code=sm_100"], "-DROPE_WITH_CUDA=100"),
        (GpuCode([], [120]), ["compute_120,code=compute_120"], "-DROPE_WITH_CUDA=120+PTX"),
    ],
)
def test_the_build_has_the_chosen_code_only(monkeypatch, code, generated, define):
    monkeypatch.setattr(ninja_file, "said_by", lambda *command: "")
    text = text_of(nvcc="nvcc", code=code)
    assert re.findall(r"-gencode arch=(\S+)", text) == generated
    assert len(re.findall(rf"{re.escape(define)}$", text, re.M)) == len(list((ROOT / "csrc" / "ops").glob("*.cpp")))
    assert "nvcc -shared -cudart static" in text
    assert "nvcc" not in text_of()
    assert "ROPE_WITH_CUDA" not in text_of()


def test_python_module_needs_headers():
    assert "direct/module.cpp" not in text_of()
    assert re.search(r"direct/module\.cpp\n  flags = .*-isystem '/a b'$", text_of(headers="/a b"), re.M)


@pytest.mark.parametrize(
    ("chosen", "table"),
    [
        (["avx512", "avx512_bf16", "portable"], "each(avx512_bf16) each(avx512) each(portable)"),
        (["avx2", "portable"], "each(avx2) each(portable)"),
        (["portable"], "each(portable)"),
    ],
)
def test_a_build_for_one_machine_names_its_kernels_to_the_dispatcher(monkeypatch, chosen, table):
    monkeypatch.setattr(ninja_file, "all_isas", lambda: list(isas.FLAGS))
    found = ninja_file.sources(chosen)
    assert [name for name in found if name.startswith("cpu/isa/")] == [f"cpu/isa/{isa}.cpp" for isa in chosen]
    assert found["cpu/dispatch.cpp"] == [f"-DROPE_ISAS(each)={table}"]
    assert found["cpu/isa/portable.cpp"] == (["-O1"] if len(chosen) > 1 else [])
    assert ninja_file.sources(list(isas.FLAGS))["cpu/dispatch.cpp"] == []


def test_every_source_is_built():
    built = {*re.findall(r"csrc/(\S+\.(?:cpp|cu))", text_of(headers="h"))}
    there = {str(path.relative_to(ROOT / "csrc")) for path in (ROOT / "csrc").rglob("*.cpp")}
    assert built == there - {"ops/launch_cuda.cpp"}
