"""setup.py: which GPU architectures a build has."""

import importlib.util
import re
from pathlib import Path

import pytest
import setuptools

from emulation import targets

ROOT = Path(__file__).parents[1]
KNOWN = [75, 80, 86, 87, 89, 90, 100, 103]
"""What an nvcc knows that is older than the list's last architecture."""


@pytest.fixture
def setup(monkeypatch):
    """The module, without a build."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    spec = importlib.util.spec_from_file_location("rope_kernels_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("asked", "machine", "ptx"),
    [
        ("", [75, 80, 86, 89, 90, 100], [100]),
        (" ; ", [75, 80, 86, 89, 90, 100], [100]),
        ("9.0", [90], []),
        ("10.0;9.0", [90, 100], []),
        ("8.0 9.0+PTX", [80, 90], [90]),
        ("9.0;9.0+PTX;7.5+PTX", [75, 90], [75, 90]),
    ],
)
def test_arch_list_chooses_what_is_built(setup, asked, machine, ptx):
    assert setup.chosen_code(asked, targets.ARCHITECTURES, KNOWN) == (machine, ptx)


@pytest.mark.parametrize(
    ("asked", "name", "why"),
    [
        ("8.7", "8.7", "it is not in csrc/cuda/architectures.txt"),
        ("9.0;12.0", "12.0", "this nvcc does not know sm_120"),
        ("Hopper", "Hopper", "it is not in csrc/cuda/architectures.txt"),
        ("9.0a", "9.0a", "it is not in csrc/cuda/architectures.txt"),
        ("90", "90", "it is not in csrc/cuda/architectures.txt"),
        ("9.0+ptx", "9.0+ptx", "it is not in csrc/cuda/architectures.txt"),
        ("9.0,10.0", "9.0,10.0", "it is not in csrc/cuda/architectures.txt"),
    ],
)
def test_other_architectures_are_an_error_that_names_them(setup, asked, name, why):
    allowed = "allowed are 7.5, 8.0, 8.6, 8.9, 9.0, 10.0, each also with +PTX"
    with pytest.raises(SystemExit, match=re.escape(f"TORCH_CUDA_ARCH_LIST: got '{name}': {why}; {allowed}")):
        setup.chosen_code(asked, targets.ARCHITECTURES, KNOWN)


def test_an_nvcc_that_knows_none_is_a_missing_tool(setup):
    with pytest.raises(setup.MissingToolError, match=r"architectures\.txt"):
        setup.chosen_code("", targets.ARCHITECTURES, [121])


@pytest.mark.parametrize(
    ("asked", "code", "define"),
    [
        (
            "8.0;9.0+PTX",
            ["compute_80,code=sm_80", "compute_90,code=sm_90", "compute_90,code=compute_90"],
            "-DROPE_WITH_CUDA=80,90 ",
        ),
        ("10.0", ["compute_100,code=sm_100"], "-DROPE_WITH_CUDA=100 "),
    ],
)
def test_the_build_has_the_chosen_code_only(setup, monkeypatch, asked, code, define):
    listed = "\n".join(f"compute_{arch}" for arch in KNOWN)
    monkeypatch.setattr(setup, "nvcc", lambda: "nvcc")
    monkeypatch.setattr(setup, "tool", lambda *names: names[-1])
    monkeypatch.setattr(setup, "said_by", lambda *command: listed if "--list-gpu-arch" in command else "")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    text = setup.ninja_file(Path("out.so"), Path("build")).replace("\n", " \n")
    assert re.findall(r"-gencode arch=(\S+)", text) == code
    assert define in text


def test_setup_reads_the_list(setup):
    assert tuple(setup.listed_archs()) == targets.ARCHITECTURES


def test_the_list_rises_and_holds_what_is_emulated():
    assert list(targets.ARCHITECTURES) == sorted({*targets.ARCHITECTURES})
    assert {*targets.TRITON, *targets.CUDA} < {*targets.ARCHITECTURES}


def test_cmake_has_no_list_of_its_own():
    text = (ROOT / "cmake" / "cuda.cmake").read_text()
    assert "csrc/cuda/architectures.txt" in text
    assert not re.search(rf"\b({'|'.join(map(str, targets.ARCHITECTURES))})\b", text)
