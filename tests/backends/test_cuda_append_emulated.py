"""The CUDA kernels that store in a KV cache, through their launcher, as nvcc's PTX on the emulator."""

from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from support import append_launches as launches
from support.append_launches import AppendCall, CacheKind
from support.cases import CONFIGS, Case

from emulation.cuda import build
from emulation.cuda.appended import CudaKernels, on_host
from emulation.cuda.kernels import KERNEL_CASES

if build.nvcc() is None:
    pytest.skip("there is no nvcc, which makes PTX of the CUDA kernels", allow_module_level=True)

from emulation.cuda.emulated import MULTIPROCESSORS, SUCCESS, launcher

TARGETS = build.TARGETS
EIGHT_BITS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8]
OF_EACH_KERNEL = [
    AppendCall(case, launches.KINDS[i % len(launches.KINDS)])
    for i, case in enumerate(case for case in KERNEL_CASES if not case.inverse)
]
OF_EACH_KERNEL.append(
    AppendCall(
        Case("float16 to halves", dict(head_dim=64, pairing="interleaved_to_half"), dtype=torch.float16),
        launches.KINDS[0],
    )
)
UNALIGNED = [
    AppendCall(Case(f"odd v {width}", dict(head_dim=64), dtype=dtype), CacheKind("nhd", v=v, width=width, norm=norm))
    for width, v, dtype, norm in (
        (7, "same", torch.bfloat16, launches.KINDS[2].norm), (33, "int8", torch.float16, None),
        (2, "e4m3", torch.float32, None), (516, "same", torch.bfloat16, None),
    )
]  # fmt: skip
"""Rows of v that are not units of 16 bytes: all rows are read element by element."""
WIDE_V = [
    AppendCall(Case("wide v", CONFIGS["partial"], dtype=dtype), CacheKind(memory, width=512, v_heads=1, v_norm=normed))
    for dtype, memory, normed in ((torch.bfloat16, "nhd", False), (torch.float32, "hnd", True))
]


def kernels_on(target):
    cuda = launcher()

    def launch(call):
        error = cuda.launch(call, target)
        assert error is None, f"{error}: {cuda.errors}"
        assert len(cuda.launches) == 1

    return CudaKernels(launch)


def on_targets(calls):
    """Each on one; not in step with the kinds of caches."""
    targets = [TARGETS[(i + i // 4) % len(TARGETS)] for i in range(len(calls))]
    return [pytest.param(c, t, id=f"{c}-sm_{t}") for c, t in zip(calls, targets, strict=True)]


CALLS = [*launches.SOME, *OF_EACH_KERNEL, *UNALIGNED, *WIDE_V]


def test_every_kernel_has_a_case(monkeypatch):
    """Launches succeed without being run."""
    cuda = launcher()
    monkeypatch.setattr(cuda, "stand_in", lambda launch: SUCCESS)
    launched = set()
    for call in CALLS:
        filled = call.fill()
        launches.append(call, filled, filled.made.q, None, kernels_on(TARGETS[0]))
        launched.update(launch.kernel for launch in cuda.launches)
    for program in cuda.programs.values():
        assert launched == {kernel for kernel in program.kernels if "append_kernel" in kernel}


@pytest.mark.parametrize(("call", "target"), on_targets(CALLS))
def test_call(call, target):
    launches.run(call, kernels=kernels_on(target))


@pytest.mark.full
@pytest.mark.parametrize(("call", "target"), on_targets(launches.WITH_TOKENS))
def test_every_call(call, target):
    launches.run(call, kernels=kernels_on(target))


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_call_under_sanitizers(call, backwards, tmp_path):
    launches.run(call, kernels=on_host(tmp_path, backwards))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "run",
    [
        *(partial(launches.run_every_midpoint, dtype) for dtype in EIGHT_BITS),
        launches.run_slots_past_the_cache, launches.run_k_in_place, launches.run_k_alone_in_place,
        launches.run_many_heads, launches.run_unaligned_caches,
    ],
)  # fmt: skip
def test_other_calls_under_sanitizers(run, tmp_path):
    run(kernels=on_host(tmp_path, backwards=True))


@pytest.mark.parametrize("multiprocessors", MULTIPROCESSORS[1:])
@pytest.mark.parametrize("call", launches.SOME[::6], ids=str)
def test_shapes_of_launches(call, multiprocessors):
    with launcher().on_device(multiprocessors):
        launches.run(call, kernels=kernels_on(TARGETS[0]))


@pytest.mark.parametrize("target", TARGETS)
def test_slots_past_the_cache_are_not_stored(target):
    launches.run_slots_past_the_cache(kernels_on(target))


@pytest.mark.parametrize("target", TARGETS[::2])
def test_k_in_place(target):
    launches.run_k_in_place(kernels_on(target))


def test_k_alone_in_place():
    launches.run_k_alone_in_place(kernels_on(TARGETS[0]))


@pytest.mark.parametrize("run", [launches.run_many_heads, launches.run_unaligned_caches])
@pytest.mark.parametrize("target", TARGETS[1:])
def test_many_heads_and_unaligned_caches(run, target):
    run(kernels_on(target))


def test_pages_of_more_than_32_bits(tmp_path):
    launches.run_far_apart(tmp_path, kernels_on(TARGETS[-1]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("dtype", "target"), list(zip(EIGHT_BITS, TARGETS, strict=False)), ids=str)
def test_every_midpoint_is_rounded_to_even(dtype, target):
    launches.run_every_midpoint(dtype, kernels_on(target))
