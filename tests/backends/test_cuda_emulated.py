"""The CUDA kernels, through their launcher, as the PTX that nvcc makes of them, on the emulator."""

import ctypes
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tolerances
from support.cases import CASES, CONFIGS, Case, check, config_of, make
from support.float32_phases import ANGLES, CONFIG_NAMES, any_angles, near_and_far
from support.no_angles import NO_ANGLES

from emulation.cuda import build
from emulation.cuda.calls import CudaAttempt
from emulation.cuda.kernels import KERNEL_CASES, NUMBER_CASES
from emulation.cuda.normed import KERNEL_CALLS, CudaBackwardAttempt, CudaNormedAttempt
from emulation.cuda.tables import SOME_TABLES, TABLES, TableAttempt
from rope_kernels.backends import reference

if build.nvcc() is None:
    pytest.skip("there is no nvcc, which makes PTX of the CUDA kernels", allow_module_level=True)

from emulation.cuda.emulated import ILLEGAL_ADDRESS, MULTIPROCESSORS, SUCCESS, launcher

BY_NAME = {case.name: case for case in CASES}
ALL = [*CASES, *KERNEL_CASES]
WAYS = list(product(build.TARGETS, (False, True)))
"""(target, in place)"""
EVERYWHERE = [case for case in CASES if case.name.startswith(("interleaved", "half-", "packed-seq_len", "view"))]


@pytest.fixture(scope="module")
def cuda():
    return launcher()


@pytest.fixture
def not_run(cuda):
    """The launcher, whose launches succeed without being run."""
    cuda.stand_in = lambda launch: SUCCESS
    yield cuda
    cuda.stand_in = None


def run(cuda, attempt, arch):
    error = cuda.launch(attempt.call, arch)
    assert error is None, f"{error}: {cuda.errors}"
    assert len(cuda.launches) == (1 if any(x.numel() for x in attempt.inputs) else 0)


def names(values):
    return [f"sm_{arch}-{'in_place' if in_place else 'apart'}" for arch, in_place in values]


@pytest.mark.parametrize(("case", "way"), [(case, WAYS[i % len(WAYS)]) for i, case in enumerate(ALL)], ids=str)
def test_case(cuda, case, way):
    attempt = CudaAttempt(case, in_place=way[1])
    run(cuda, attempt, way[0])
    attempt.check()


@pytest.mark.parametrize("way", WAYS, ids=names(WAYS))
@pytest.mark.parametrize("case", EVERYWHERE, ids=str)
def test_every_target_and_way(cuda, case, way):
    test_case(cuda, case, way)


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS, ids=names(WAYS))
@pytest.mark.parametrize("case", ALL, ids=str)
def test_product(cuda, case, way):
    test_case(cuda, case, way)


@pytest.mark.parametrize(
    ("case", "arch"), [(case, build.TARGETS[i % len(build.TARGETS)]) for i, case in enumerate(NUMBER_CASES)], ids=str
)
def test_offsets_and_lengths_that_are_ints(cuda, case, arch):
    """They travel with the launch: the kernel has no memory to read them from."""
    attempt = CudaAttempt(case, False, with_numbers=True)
    assert attempt.call.numbers
    run(cuda, attempt, arch)
    attempt.check()


@pytest.mark.parametrize(("case", "way"), [(case, WAYS[i % len(WAYS)]) for i, case in enumerate(SOME_TABLES)], ids=str)
def test_table(cuda, case, way):
    attempt = TableAttempt(case, in_place=way[1])
    run(cuda, attempt, way[0])
    attempt.check()


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS, ids=names(WAYS))
@pytest.mark.parametrize("case", [*TABLES, *SOME_TABLES], ids=str)
def test_product_of_tables(cuda, case, way):
    test_table(cuda, case, way)


def test_every_kernel_has_a_case(not_run):
    """Those that append have theirs in ``test_cuda_append_emulated.py``."""
    launched = set()
    attempts = [CudaAttempt(case, in_place) for case, in_place in product(ALL, (False, True))]
    attempts += [CudaNormedAttempt(call, False) for call in KERNEL_CALLS]
    attempts += [CudaBackwardAttempt(call, parts=1) for call in KERNEL_CALLS]
    for attempt in (*attempts, *(TableAttempt(case, False) for case in SOME_TABLES)):
        assert not_run.launch(attempt.call, build.TARGETS[0]) is None
        launched.update(launch.kernel for launch in not_run.launches)
    for program in not_run.programs.values():
        assert launched == {kernel for kernel in program.kernels if "append_kernel" not in kernel}


@pytest.mark.parametrize("arch", build.TARGETS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_of_positions(cuda, dtype, arch):
    case = BY_NAME["positions-float"]
    made = make(case)
    made.positions = made.positions.to(dtype)
    attempt = CudaAttempt(case, False, made, atol=tolerances.FRACTIONAL["atol"])
    run(cuda, attempt, arch)
    attempt.check()


@pytest.mark.parametrize("arch", build.TARGETS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_table_dtype_rounds_cosines_and_sines(cuda, dtype, arch):
    """Where the two sines straddle a rounding boundary they may differ by one step."""
    case = Case("rounded", dict(head_dim=64, table_dtype=dtype, phase="float32"), start=40)
    attempt = CudaAttempt(case, False, make(case), atol=tolerances.ROUNDED_TABLE["atol"])
    run(cuda, attempt, arch)
    attempt.check()
    step = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    exact = CudaAttempt(Case("exact", dict(head_dim=64, phase="float32"), start=40), False, make(case))
    run(cuda, exact, arch)
    difference = (attempt.outputs[0] - exact.outputs[0]).abs().median()
    assert 0.05 * step < difference < step


def rotating(cuda, arch):
    """The kernels for ``arch``, for Phases.check."""

    def rotate(case, made):
        attempt = CudaAttempt(case, False, made)
        run(cuda, attempt, arch)
        return attempt.outputs[0]

    return rotate


@pytest.mark.parametrize(
    ("name", "arch"), [(name, build.TARGETS[i % len(build.TARGETS)]) for i, name in enumerate(CONFIG_NAMES)]
)
def test_float32_phases_are_as_good_as_torchs(cuda, name, arch):
    for floating in (False, True):
        near_and_far(name, floating).check(rotating(cuda, arch))


@given(ANGLES, st.sampled_from(build.TARGETS))
@settings(max_examples=20)
def test_float32_phases_of_any_angle_are_as_good_as_torchs(cuda, angles, arch):
    any_angles(angles).check(rotating(cuda, arch))


@pytest.mark.parametrize("way", WAYS, ids=names(WAYS))
def test_a_position_without_an_angle_gives_nan_to_the_pairs_it_rotates(cuda, way):
    for call in NO_ANGLES:
        attempt = call.attempt(way[1], CudaAttempt)
        run(cuda, attempt, way[0])
        attempt.check()


@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in_place"])
@pytest.mark.parametrize("name", ["partial-near", "nope_first-near", "proportional-near", "packed-scaled-tail"])
def test_channels_that_are_not_rotated_are_copied_bit_by_bit(cuda, name, in_place):
    case = BY_NAME[name]
    made = make(case)
    rotation = config_of(case).rotation()
    keep = torch.ones(rotation.head_dim, dtype=torch.bool)
    for member in reference.pairs(keep, rotation, written=True):
        member.fill_(False)
    tokens = slice(sum(case.lengths), None) if case.lengths else slice(None)
    places = (..., tokens, slice(None), slice(None) if case.lengths else keep)
    made.q[places] = float("inf")
    made.k[places] = float("nan")
    attempt = CudaAttempt(case, in_place, made)
    run(cuda, attempt, build.TARGETS[-1])
    for before, after in zip(attempt.before, attempt.outputs, strict=True):
        assert torch.equal(before[places].view(torch.int32), after[places].view(torch.int32))


@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in_place"])
def test_heads_that_are_aligned_to_less_than_tokens(cuda, in_place):
    """Four heads of 264 bytes."""
    case = Case("padded heads", CONFIGS["llama3"], dtype=torch.bfloat16)
    made = make(case)
    made.q, made.k = (torch.nn.functional.pad(x, (0, 4))[..., :128] for x in (made.q, made.k))
    attempt = CudaAttempt(case, in_place, made)
    run(cuda, attempt, build.TARGETS[0])
    attempt.check()


@pytest.mark.parametrize("arch", build.TARGETS)
def test_tensors_of_2_to_the_31_elements(cuda, arch, tmp_path):
    """Two tokens that lie 2**31 elements apart in a sparse file."""
    stride = 2**31
    whole = torch.from_file(str(tmp_path / "sparse"), shared=True, size=stride + 64, dtype=torch.bfloat16)
    case = Case("far apart", CONFIGS["default"], batch=1, tokens=2, q_heads=1, k_heads=0, dtype=torch.bfloat16)
    made = make(case)
    before, dense = made.q.clone(), CudaAttempt(case, True, made)
    q = whole.as_strided(before.shape, (stride, stride, 64, 1))
    q.copy_(before)
    dense.call.tensors["q"] = q
    rows = dense.call.fields.index(dense.inputs[0].data_ptr())
    dense.call.fields[rows : rows + 9] = [q.data_ptr(), q.data_ptr(), 1, *q.stride()[:3], *q.stride()[:3]]
    assert cuda.launch(dense.call, arch) is None, cuda.errors
    check(case, before, q, made.expected[0])


LIMIT = 2**31 - 1
GRIDS = [((LIMIT, 1, 1), (1024, 1, 1)), ((1, 65535, 65535), (1, 1, 64))]
BAD_GRIDS = [
    ((0, 1, 1), (32, 1, 1)), ((LIMIT + 1, 1, 1), (32, 1, 1)), ((1, 65536, 1), (32, 1, 1)), ((1, 1, 65536), (32, 1, 1)),
    ((1, 1, 1), (0, 1, 1)), ((1, 1, 1), (1025, 1, 1)), ((1, 1, 1), (64, 32, 1)), ((1, 1, 1), (1, 1, 65)),
]  # fmt: skip


class Size(ctypes.Structure):
    _fields_ = [(axis, ctypes.c_uint) for axis in "xyz"]


def launch_nothing(cuda, grid, block):
    """A launch of a kernel that is not registered: 98 where the grid is one, 9 where it is none."""
    return cuda.runtime.cudaLaunchKernel(ctypes.c_void_p(1), Size(*grid), Size(*block), None, ctypes.c_size_t(0), None)


@pytest.mark.parametrize(("grid", "block"), GRIDS)
def test_runtime_takes_grids_up_to_the_limits(cuda, grid, block):
    assert launch_nothing(cuda, grid, block) == 98
    assert cuda.runtime.cudaGetLastError() == 98


@pytest.mark.parametrize(("grid", "block"), BAD_GRIDS)
def test_runtime_refuses_bad_grids(cuda, grid, block):
    assert launch_nothing(cuda, grid, block) == 9
    assert cuda.runtime.cudaPeekAtLastError() == 9
    assert cuda.runtime.cudaGetLastError() == 9
    assert cuda.runtime.cudaGetLastError() == SUCCESS


def with_tokens(tokens, **options):
    """A call of one batch entry that has so many tokens, were they there."""
    case = Case("many tokens", CONFIGS["default"], batch=1, positions="none", **options)
    call = CudaAttempt(case, in_place=True).call
    call.fields[3] = tokens
    return call


@pytest.mark.parametrize("tokens", [2**20 + 1, LIMIT])
def test_grid_of_many_tokens(not_run, tokens):
    call = with_tokens(tokens)
    assert not_run.launch_fields(call.spec, call.fields) is None
    (launch,) = not_run.launches
    lanes = 32 // 4  # of a row: 32 pairs, four to a thread
    tokens_per_block = launch.block[0] // lanes
    assert launch.grid == (-(-tokens // tokens_per_block), 1, 1)


def threads_of(cuda, call, multiprocessors):
    """Of the whole launch, on a device with so many multiprocessors."""
    with cuda.planning(multiprocessors):
        assert cuda.launch_fields(call.spec, call.fields) is None
    (launch,) = cuda.launches
    return launch.grid[0] * launch.block[0]


@given(st.integers(1, 50_000), st.sampled_from(MULTIPROCESSORS))
@settings(deadline=None)
def test_heads_are_spread_over_threads_until_memory_is_busy(tokens, multiprocessors):
    """A thread has 64 bytes in flight and takes at least four of the twelve heads. Tokens fill up the blocks."""
    call = with_tokens(tokens, q_heads=8, k_heads=4, dtype=torch.bfloat16)
    lanes, busy = 32 // 8, multiprocessors * 40 * 1024 // 64
    slots = 1 if tokens * lanes >= busy else 2
    expected = -(-tokens * slots * lanes // 128) * 128
    assert threads_of(launcher(), call, multiprocessors) == expected


def test_a_device_is_asked_once_for_its_multiprocessors(not_run):
    call = with_tokens(64)
    for multiprocessors in MULTIPROCESSORS:
        threads_of(not_run, call, multiprocessors)
    before = not_run.runtime.standin_questions()
    for multiprocessors in MULTIPROCESSORS:
        threads_of(not_run, call, multiprocessors)
    assert not_run.runtime.standin_questions() == before


def test_too_many_tokens_are_refused(not_run):
    call = with_tokens(LIMIT + 1)
    assert not_run.launch_fields(call.spec, call.fields) == "2^31 tokens or more in one call"
    assert not not_run.launches


def test_frequencies_beyond_the_tables_bits_are_refused(not_run):
    call = CudaAttempt(BY_NAME["default-near"], in_place=True).call
    index = ",".join(str(1024 * (i == 31) + i) for i in range(32))
    spec = f"{call.spec};freq_index={index}".replace("num_frequencies=32", "num_frequencies=2000")
    assert not_run.launch_fields(spec, call.fields) == "a frequency index above 1023"
    assert not not_run.launches


def test_nothing_to_rotate_is_no_launch(not_run):
    for name in ("empty-tokens", "empty-batch"):
        call = CudaAttempt(BY_NAME[name], in_place=False).call
        assert not_run.launch_fields(call.spec, call.fields) is None
        assert not not_run.launches


def test_an_error_of_a_launch_is_returned_and_not_left_behind(not_run):
    attempt = CudaAttempt(BY_NAME["default-near"], in_place=False)
    not_run.stand_in = lambda launch: ILLEGAL_ADDRESS
    assert not_run.launch(attempt.call, 90) == "an illegal memory access was encountered"
    assert not_run.runtime.cudaPeekAtLastError() == SUCCESS
    not_run.stand_in = None
    run(not_run, attempt, 90)
    attempt.check()


ANOTHER_RUNTIME = """
int cudaLaunchKernel(void) { return 35; }
int cudaPeekAtLastError(void) { return 35; }
int cudaGetLastError(void) { return 35; }
"""
LAUNCH = """
import ctypes, sys
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
from support.cases import CASES
from emulation.cuda.calls import CudaAttempt
from emulation.cuda.emulated import launcher
attempt = CudaAttempt(CASES[0], in_place=False)
error = launcher().launch(attempt.call, 90)
assert error is None, error
attempt.check()
"""


def test_a_runtime_that_was_there_before_is_not_asked(tmp_path):
    """As that of a torch with CUDA is, for all to see."""
    (tmp_path / "another.c").write_text(ANOTHER_RUNTIME)
    subprocess.run(["gcc", "-shared", "-fPIC", "another.c", "-o", "another.so"], cwd=tmp_path, check=True)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(tmp_path / "another.so")],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["default-near", "view-odd-bfloat16", "half-float16-forward"])
def test_an_access_out_of_bounds_is_an_error(cuda, name):
    call = CudaAttempt(BY_NAME[name], in_place=False).call
    call.tensors["q_out"] = call.tensors["q_out"][..., :-1, :]
    assert cuda.launch(call, 90) == "an illegal memory access was encountered"
    assert "out of bounds" in cuda.errors[0]
    assert "q_out" in cuda.errors[0]


def test_threads_that_meet_in_memory_are_an_error(cuda):
    """Outputs of both heads in one place."""
    case = Case("one place", CONFIGS["default"], q_heads=2, k_heads=0)
    attempt = CudaAttempt(case, in_place=False)
    rows = attempt.call.fields.index(attempt.inputs[0].data_ptr())
    attempt.call.fields[rows + 7] = 0  # the outputs' stride from token to token
    assert cuda.launch(attempt.call, 90) is not None
    assert "race" in cuda.errors[0]
