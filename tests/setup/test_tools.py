"""What a build finds, and what it says about what is missing, too old or set wrongly."""

import shutil
import site
import sys
import sysconfig
from pathlib import Path

import pytest

from native_build import gpu_code, isas, settings, tools
from native_build.errors import WITHOUT, BuildError

ROOT = Path(__file__).parents[2]


def make_torch(folder, version):
    (folder / "torch" / "include").mkdir(parents=True)
    (folder / "torch" / "version.py").write_text(f"__all__ = []\n__version__ = '{version}'\n")
    return folder / "torch"


@pytest.fixture
def sites(monkeypatch):
    """An isolated build: torch cannot be imported, and the environment's packages are in the given folders."""

    def isolate(*folders):
        monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(site, "getsitepackages", lambda prefixes=None: [str(f) for f in folders] * (not prefixes))
        monkeypatch.setattr(sys, "prefix", str(folders[0]))
        (folders[0] / "pyvenv.cfg").write_text("include-system-site-packages = false\n")

    return isolate


def program(path, text="exit 0"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_torch_is_found_where_it_is_imported_from():
    import torch

    assert tools.torch_folder() == Path(torch.__file__).parent


@pytest.mark.parametrize("version", ["2.11.0", "2.13.0+cpu", "2.20.0.dev20270101", "3.0.0a0+git123"])
def test_an_isolated_build_finds_the_torch_that_it_installs_beside(tmp_path, sites, version):
    sites(tmp_path)
    make_torch(tmp_path, version)
    assert tools.torch_folder() == tmp_path / "torch"


def test_an_isolated_build_finds_the_torch_of_the_system_where_the_environment_does(tmp_path, monkeypatch, sites):
    make_torch(tmp_path / "system", "2.13.0")
    sites(tmp_path)
    monkeypatch.setattr(
        site, "getsitepackages", lambda prefixes=None: [str(tmp_path / "system" if prefixes else tmp_path)]
    )
    with pytest.raises(BuildError, match="there is no torch"):
        tools.torch_folder()
    (tmp_path / "pyvenv.cfg").write_text("include-system-site-packages = true\n")
    assert tools.torch_folder() == tmp_path / "system" / "torch"


def test_a_missing_torch_is_an_error_with_the_command(tmp_path, sites):
    sites(tmp_path)
    with pytest.raises(BuildError) as raised:
        tools.torch_folder()
    reason, remedy, without = str(raised.value).split("\n")
    assert reason.endswith(f"there is no torch for {sys.executable}")
    assert "pip install 'torch>=2.11' 'setuptools>=77' ninja && pip install --no-build-isolation ." in remedy
    assert without.strip() == WITHOUT


@pytest.mark.parametrize("version", ["1.13.1", "2.0.0", "2.9.1+cu128", "2.10.2"])
def test_an_old_torch_is_an_error_with_its_version(tmp_path, sites, version):
    sites(tmp_path)
    make_torch(tmp_path, version)
    with pytest.raises(BuildError, match=r"is too old: 2\.11 or newer is needed") as raised:
        tools.torch_folder()
    assert f"torch {version} in" in raised.value.reason


@pytest.mark.parametrize("words", [[], ["-march=native"], ["-m64", "-v"]])
@pytest.mark.parametrize("folder", ["bin", "a b", "é"])
def test_cxx_is_a_command(monkeypatch, tmp_path, folder, words):
    path = program(tmp_path / folder / "my-c++")
    monkeypatch.setenv("CXX", " ".join([f'"{path}"', *words]))
    assert tools.compiler() == [str(path), *words]


@pytest.mark.parametrize("launcher", ["ccache", "sccache", "distcc"])
def test_nvcc_gets_the_compiler_without_its_launcher(launcher):
    assert tools.host_compiler([f"/usr/bin/{launcher}", "/opt/g++-12", "-m64"]) == "/opt/g++-12"


def test_a_missing_compiler_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="there is no C\\+\\+ compiler") as raised:
        tools.compiler()
    assert "apt-get install g++" in raised.value.remedy


@pytest.mark.parametrize("name", ["g++-99", "/nowhere/clang++"])
def test_a_wrong_cxx_is_an_error_though_there_is_another_compiler(monkeypatch, name):
    monkeypatch.setenv("CXX", f"{name} -O2")
    with pytest.raises(BuildError, match=f"CXX: there is no {name}".replace("+", "\\+")):
        tools.compiler()


@pytest.mark.parametrize("missing", ["program", "package"])
def test_a_missing_ninja_is_an_error_with_the_command(monkeypatch, missing):
    if missing == "program":
        monkeypatch.setattr(shutil, "which", lambda *a, **k: None)
    else:
        monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BuildError, match="ninja") as raised:
        tools.ninja()
    assert "--no-build-isolation" in raised.value.remedy


@pytest.fixture
def cuda(monkeypatch, tmp_path):
    """A CUDA_HOME whose nvcc knows some architectures; nothing is on PATH but a compiler."""
    program(tmp_path / "bin" / "c++")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    listed = " ".join(f"compute_{arch}" for arch in (75, 80, 90))
    program(tmp_path / "cuda" / "bin" / "nvcc", f"[ \"$1\" = --list-gpu-arch ] && printf '%s\\n' {listed}; exit 0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    return tmp_path / "cuda" / "bin" / "nvcc"


@pytest.mark.parametrize("wanted", ["", "1"])
def test_cuda_is_built_where_there_is_nvcc(monkeypatch, cuda, wanted):
    monkeypatch.setenv("ROPE_KERNELS_CUDA", wanted)
    found = tools.find_toolchain(ROOT)
    assert found.nvcc == str(cuda)
    assert str(found.code) == "sm_75, sm_80, sm_90, PTX of compute_90"
    assert found.no_cuda == ""


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("off", "ROPE_KERNELS_CUDA=0"),
        ("no nvcc", "there is no nvcc"),
        ("no GPU", "there is no GPU here"),
        ("old", "older"),
    ],
)
def test_a_build_without_cuda_says_why_and_is_an_error_where_cuda_is_wanted(monkeypatch, cuda, case, why):
    if case == "off":
        monkeypatch.setenv("ROPE_KERNELS_CUDA", "0")
    if case == "no nvcc":
        cuda.unlink()
    if case in ("no GPU", "old"):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "native")
        monkeypatch.setattr(gpu_code, "gpus_here", lambda: [70] * (case == "old"))
    found = tools.find_toolchain(ROOT)
    assert found.nvcc is None
    assert why in found.no_cuda
    if case != "off":
        monkeypatch.setenv("ROPE_KERNELS_CUDA", "1")
        with pytest.raises(BuildError, match=f"ROPE_KERNELS_CUDA=1, but .*{why}"):
            tools.find_toolchain(ROOT)


def test_an_nvcc_that_fails_is_an_error_not_a_cpu_build(cuda):
    program(cuda, "echo nvcc fatal: no license >&2; exit 1")
    with pytest.raises(BuildError, match="--list-gpu-arch failed: nvcc fatal: no license") as raised:
        tools.find_toolchain(ROOT)
    assert "ROPE_KERNELS_CUDA=0" in raised.value.remedy


def test_pythons_headers_are_optional(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert tools.python_headers() is None
    (tmp_path / "Python.h").touch()
    assert tools.python_headers() == (None if sysconfig.get_config_var("Py_GIL_DISABLED") else str(tmp_path))


@pytest.mark.parametrize("value", ["2", "no", "false", "-1", "ON"])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("ROPE_KERNELS_NATIVE", settings.native_wanted),
        ("ROPE_KERNELS_CUDA", settings.cuda_wanted),
        ("ROPE_KERNELS_ISAS", isas.chosen_isas),
        ("MAX_JOBS", settings.jobs),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_variable(monkeypatch, name, read, value):
    if name == "MAX_JOBS" and value == "2":
        value = "0"
    monkeypatch.setenv(name, value)
    with pytest.raises(BuildError, match=f"{name}: got '{value}'"):
        read()


@pytest.mark.parametrize(("value", "answers"), [("", (True, None)), ("0", (False, False)), ("1", (True, True))])
def test_switches(monkeypatch, value, answers):
    for name in ("ROPE_KERNELS_NATIVE", "ROPE_KERNELS_CUDA"):
        monkeypatch.setenv(name, value)
    assert (settings.native_wanted(), settings.cuda_wanted()) == answers


@pytest.mark.parametrize("value", ["1", "2", "16"])
def test_max_jobs_is_ninjas(monkeypatch, value):
    monkeypatch.setenv("MAX_JOBS", value)
    assert settings.jobs() == ["-j", value]


AVX2 = ["avx2", "fma", "f16c"]
AVX512 = [*AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl"]


@pytest.mark.parametrize(
    ("features", "chosen"),
    [
        (None, [*isas.FLAGS]),
        ([], ["portable"]),
        (["avx2", "fma"], ["portable"]),
        (AVX2, ["avx2", "portable"]),
        (AVX512[:-1], ["avx2", "portable"]),
        (AVX512, ["avx512", "portable"]),
        ([*AVX512, "avx512_bf16"], ["avx512", "avx512_bf16", "portable"]),
    ],
)
def test_a_build_for_one_machine_has_its_best_instruction_sets(features, chosen):
    assert isas.isas_of(features) == chosen


def test_a_build_for_one_machine_has_what_this_machine_uses(monkeypatch):
    from rope_kernels.backends import native

    if not native.isas():
        pytest.fail("the native kernels are needed")
    monkeypatch.setenv("ROPE_KERNELS_ISAS", "native")
    assert native.isa() in isas.chosen_isas()
