"""Which GPU architectures a build has."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulation import targets
from native_build import gpu_code
from native_build.errors import BuildError

ROOT = Path(__file__).parents[2]
KNOWN = [75, 80, 86, 87, 89, 90, 100, 103]
"""What an nvcc knows that is older than the list's last architecture."""


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
def test_arch_list_chooses_what_is_built(asked, machine, ptx):
    assert gpu_code.chosen_code(asked, targets.ARCHITECTURES, KNOWN) == (machine, ptx)


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
        ("native;9.0", "native", "it is not in csrc/cuda/architectures.txt"),
    ],
)
def test_other_architectures_are_an_error_that_names_them(asked, name, why):
    allowed = "allowed are 7.5, 8.0, 8.6, 8.9, 9.0, 10.0, each also with +PTX, and native"
    with pytest.raises(BuildError, match=re.escape(f"TORCH_CUDA_ARCH_LIST: got '{name}': {why}; {allowed}")):
        gpu_code.chosen_code(asked, targets.ARCHITECTURES, KNOWN)


def test_an_nvcc_that_knows_none_is_an_error():
    with pytest.raises(BuildError, match=r"architectures\.txt"):
        gpu_code.chosen_code("", targets.ARCHITECTURES, [121])


@pytest.mark.parametrize(
    ("said", "machine", "ptx"),
    [
        ("9.0\n9.0\n", [90], []),
        ("8.6\n9.0\n", [86, 90], []),
        ("8.7\n", [86], []),
        ("12.1\n", [], [100]),
        ("7.0\n", [], []),
        ("[N/A]\n", [], []),
        ("NVIDIA-SMI has failed\n", [], []),
    ],
)
def test_native_is_what_the_gpus_here_run(monkeypatch, tmp_path, said, machine, ptx):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '%s' '{said}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_code.chosen_code("native", targets.ARCHITECTURES, KNOWN) == (machine, ptx)


@given(st.sets(st.integers(30, 130)), st.sets(st.sampled_from(targets.ARCHITECTURES), min_size=1))
def test_every_gpu_gets_one_code_that_it_runs(gpus, possible):
    code = gpu_code.code_of_gpus(sorted(gpus), sorted(possible))
    assert {*code.machine, *code.ptx} <= possible
    for gpu in gpus:
        runs = [arch for arch in code.machine if arch // 10 == gpu // 10 and arch <= gpu]
        runs += [arch for arch in code.ptx if arch <= gpu]
        assert bool(runs) == (gpu >= min(possible))


def test_the_build_reads_the_list():
    assert tuple(gpu_code.listed_archs(ROOT)) == targets.ARCHITECTURES


def test_the_list_rises_and_holds_what_is_emulated():
    assert list(targets.ARCHITECTURES) == sorted({*targets.ARCHITECTURES})
    assert {*targets.TRITON, *targets.CUDA} < {*targets.ARCHITECTURES}


def test_cmake_has_no_list_of_its_own():
    text = (ROOT / "cmake" / "cuda.cmake").read_text()
    assert "csrc/cuda/architectures.txt" in text
    assert not re.search(rf"\b({'|'.join(map(str, targets.ARCHITECTURES))})\b", text)
