"""What the kernels' machine code must hold to, target by target. No GPU runs here and nothing is timed.

Instructions are those of the code that ships, executed as often as an emulated part of the launch comes by them; NOPs,
with which ptxas pads fp64 instructions for sm_120, are left out. The few exact bounds are the project's budgets.
"""

from itertools import product

import pytest
import torch

pytest.importorskip("triton")

from emulation import targets
from emulation.cuda import build
from emulation.figures import (
    Shape,
    cuda_append_figures,
    cuda_figures,
    library_kernels,
    triton_append_figures,
    triton_figures,
    triton_norm_backward_figures,
    triton_norm_figures,
)
from rope_kernels.backends import native

NVIDIA = targets.sm(targets.TRITON)
AMD = ("gfx942", "gfx1100")
BUDGETS = {128: {"prefill": 5, "decode": 10}, None: {"prefill": 5, "decode": 13}}
"""Executed thread instructions per element in 16 bits, halves of a head of 128 channels and other heads."""
NORM_BUDGETS = {
    ("half", "prefill"): 8, ("half", "decode"): 13, ("interleaved", "prefill"): 9, ("interleaved", "decode"): 13,
}  # fmt: skip
"""The same with a norm of q and of k."""
NORM_BACKWARD_BUDGET = 16
CUDA_ROW_REGISTERS = {"append_kernel": 128, "norm_backward_kernel": 168, "norm_kernel": 128}
"""Of the native kernels that go through whole rows: what their launch bounds leave them, for any weight, any channels
that are not rotated and any cache."""
APPEND_BUDGETS = {"prefill": 5, "decode": 10}
"""The same of q, k and v where k and v are stored in a cache of their dtype; with a norm that of a norm."""
CUDA_APPEND_BUDGETS = {"prefill": 11, "decode": 21}
"""Of the native kernel, with a norm or without; and 11 more where k and v are stored in 8 bits."""
NORM_REGISTERS = 104
NORM_BACKWARD_REGISTERS = 128
REGISTERS = 64
GENERAL_REGISTERS = 80
TABLE_REGISTERS = 96  # four numbers for each pair, where angles have two
"""Of the CUDA kernels for several axes, changing lengths, fractional positions, and unequal pairings."""

with_nvcc = pytest.mark.skipif(build.nvcc() is None, reason="there is no nvcc, which makes PTX of the CUDA kernels")
with_cuda = pytest.mark.skipif(not native.cuda_archs(), reason="the native extension has no CUDA kernels")
KERNELS = [
    pytest.param(triton_figures, id="triton"),
    pytest.param(cuda_figures, marks=[with_nvcc, with_cuda], id="cuda"),
]
PHASES = ("prefill", "decode")
MAIN = [Shape(phase=phase) for phase in PHASES]
OTHERS = [
    Shape(phase=phase, head_dim=head_dim, pairing=pairing)
    for head_dim, pairing, phase in product((64, 96, 128, 256), ("half", "interleaved"), PHASES)
    if (head_dim, pairing) != (128, "half")
]
SOME_OTHERS = [OTHERS[2 * i + i % 2] for i in range(len(OTHERS) // 2)]
"""Every size and pairing of heads, in one phase each."""
DTYPES = [
    Shape(dtype, 128, phase, pairing)
    for dtype, phase, pairing in product((torch.float16, torch.float32), PHASES, ("half", "interleaved"))
]


def check_code(figures):
    """No memory but the tensors', and every element of them is loaded once and stored once, 16 bytes at a time."""
    facts, item = figures.facts, figures.shape.dtype.itemsize
    assert figures.launches == 1
    assert (facts.stack_bytes, facts.shared_bytes, facts.local_instructions) == (0, 0, 0)
    assert facts.slow_instructions == ()
    assert facts.registers <= REGISTERS
    assert figures.stores == {16: pytest.approx(item)}
    assert figures.loads[16] == pytest.approx(item)
    assert sum(figures.loads.values()) < item + 1  # positions
    assert figures.dram_bytes_per_element < 2 * item + 0.01


def check_instructions(figures):
    shape = figures.shape
    budget = BUDGETS[128 if (shape.head_dim, shape.pairing) == (128, "half") else None][shape.phase]
    assert figures.instructions_per_element <= budget


@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize("shape", MAIN, ids=str)
@pytest.mark.parametrize("figures_of", KERNELS)
def test_heads_of_128_channels(figures_of, shape, target):
    figures = figures_of(shape, target)
    check_instructions(figures)
    check_code(figures)


@pytest.mark.parametrize(("shape", "target"), [(s, NVIDIA[i % 4]) for i, s in enumerate(SOME_OTHERS)], ids=str)
@pytest.mark.parametrize("figures_of", KERNELS)
def test_other_heads(figures_of, shape, target):
    test_heads_of_128_channels(figures_of, shape, target)


@pytest.mark.parametrize(("shape", "target"), [(s, NVIDIA[i % 4]) for i, s in enumerate(MAIN + SOME_OTHERS)], ids=str)
def test_in_place(shape, target):
    figures = triton_figures(shape, target, in_place=True)
    check_instructions(figures)
    check_code(figures)


def check_norm(figures, registers):
    facts = figures.facts
    assert figures.launches == 1
    assert (facts.stack_bytes, facts.shared_bytes, facts.local_instructions) == (0, 0, 0)
    assert set(facts.slow_instructions) == {"MUFU.RSQ"}
    assert facts.registers <= registers
    assert set(facts.store_widths) == {16}
    assert set(facts.load_widths) == {8, 16}  # positions


NORMED = [Shape(phase=phase, pairing=pairing) for pairing, phase in product(("half", "interleaved"), PHASES)]


@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize("shape", NORMED, ids=str)
def test_norm(shape, target):
    figures = triton_norm_figures(shape, target)
    assert figures.instructions_per_element <= NORM_BUDGETS[shape.pairing, shape.phase]
    assert figures.stores == {16: pytest.approx(2)}
    assert figures.dram_bytes_per_element <= 4.03
    check_norm(figures, NORM_REGISTERS)


@pytest.mark.parametrize(("shape", "target"), list(zip(NORMED, NVIDIA, strict=True)), ids=str)
def test_norm_in_place(shape, target):
    figures = triton_norm_figures(shape, target, in_place=True)
    assert figures.instructions_per_element <= NORM_BUDGETS[shape.pairing, shape.phase]
    check_norm(figures, NORM_REGISTERS)


@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize("shape", NORMED[::2], ids=str)
def test_norm_backward(shape, target):
    figures = triton_norm_backward_figures(shape, target)
    assert figures.instructions_per_element <= NORM_BACKWARD_BUDGET
    assert figures.dram_bytes_per_element < 6.21  # 0.2 of them the parts of the weights' gradients
    check_norm(figures, NORM_BACKWARD_REGISTERS)


APPENDED = [(shape, normed) for normed in (False, True) for shape in NORMED]


def check_append(shape, normed, target):
    """Every row of q, k and v is read once and written once; per token also a position and a slot."""
    figures = triton_append_figures(shape, target, normed)
    facts = figures.facts
    budget = NORM_BUDGETS[shape.pairing, shape.phase] if normed else APPEND_BUDGETS[shape.phase]
    assert figures.launches == 1
    assert figures.instructions_per_element <= budget
    assert figures.stores == {16: pytest.approx(2)}
    if shape.phase == "prefill":  # a page of the cache is more than a step of decoding
        assert figures.dram_bytes_per_element * 48 <= 192.2  # of 48 heads
    assert (facts.stack_bytes, facts.shared_bytes, facts.local_instructions) == (0, 0, 0)
    assert set(facts.slow_instructions) <= {"MUFU.RSQ"}
    assert facts.registers <= NORM_REGISTERS
    assert set(facts.store_widths) == {16}
    assert set(facts.load_widths) == {8, 16}  # positions and slots


@pytest.mark.parametrize(
    ("shape", "normed", "target"), [(*each, NVIDIA[(i + i // 4) % 4]) for i, each in enumerate(APPENDED)], ids=str
)
def test_append(shape, normed, target):
    check_append(shape, normed, target)


@pytest.mark.full
@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize(("shape", "normed"), APPENDED, ids=str)
def test_append_everywhere(shape, normed, target):
    check_append(shape, normed, target)


@with_nvcc
@with_cuda
@pytest.mark.parametrize(("normed", "cached"), [(False, None), (True, None), (False, torch.float8_e4m3fn)], ids=str)
@pytest.mark.parametrize(("shape", "target"), [(MAIN[0], NVIDIA[1]), (MAIN[1], NVIDIA[-1])], ids=str)
def test_append_by_cuda(shape, target, normed, cached):
    """Every row is read once and written once, but weights once per thread."""
    figures = cuda_append_figures(shape, target, normed, cached)
    assert figures.launches == 1
    assert figures.instructions_per_element <= CUDA_APPEND_BUDGETS[shape.phase] + (11 if cached else 0)
    assert figures.loads[16] == 2 if not normed else figures.loads[16] < 2.7
    assert figures.stores == {16: pytest.approx(2)} if cached is None else set(figures.stores) == {8, 16}
    if shape.phase == "prefill":
        assert figures.dram_bytes_per_element * 48 <= (192.2 if cached is None else 176.2)


@pytest.mark.parametrize("target", NVIDIA[::2])
def test_append_in_8_bits(target):
    figures = triton_append_figures(MAIN[0], target, False, torch.float8_e4m3fn)
    facts = figures.facts
    assert figures.dram_bytes_per_element * 48 <= 176.2
    assert (facts.stack_bytes, facts.shared_bytes, facts.local_instructions) == (0, 0, 0)
    assert facts.registers <= NORM_REGISTERS
    assert set(facts.store_widths) == {8, 16}


@pytest.mark.full
@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize("shape", OTHERS, ids=str)
@pytest.mark.parametrize("figures_of", KERNELS)
def test_other_heads_everywhere(figures_of, shape, target):
    test_heads_of_128_channels(figures_of, shape, target)


@pytest.mark.full
@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize("shape", DTYPES, ids=str)
@pytest.mark.parametrize("figures_of", KERNELS)
def test_other_dtypes(figures_of, shape, target):
    check_code(figures_of(shape, target))


@pytest.mark.full
@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize("shape", MAIN + OTHERS, ids=str)
def test_in_place_everywhere(shape, target):
    test_in_place(shape, target)


@pytest.mark.full
@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize("shape", DTYPES, ids=str)
def test_other_dtypes_in_place(shape, target):
    check_code(triton_figures(shape, target, in_place=True))


@with_cuda
@pytest.mark.parametrize("target", NVIDIA)
def test_every_cuda_kernel_of_the_extension(target):
    kernels = library_kernels(target)
    assert len(kernels) > 50
    for name, (facts, _) in kernels.items():
        assert (facts.stack_bytes, facts.local_instructions) == (0, 0), name
        kernel = next((kernel for kernel in CUDA_ROW_REGISTERS if kernel in name), None)
        if kernel is not None:
            check_cuda_rows(kernel, name, facts, target)
            continue
        usual = "ELb0ENS" in name and ("ELb0ELb0E" in name or "ELb1ELb1E" in name)
        most = TABLE_REGISTERS if "TableParams" in name else REGISTERS if usual else GENERAL_REGISTERS
        assert facts.registers <= most, name
        assert facts.shared_bytes == 0, name
        assert facts.slow_instructions == (), name


def check_cuda_rows(kernel, name, facts, target):
    """Only rows of several warps need shared memory, for the sums of each. From sm_90 on CUDA takes 1 KB beside it."""
    assert facts.registers <= CUDA_ROW_REGISTERS[kernel], name
    has_wide_rows = "Elements" in name or "Float32" in name
    reserved = 1024 if int(target.removeprefix("sm_")) >= 90 else 0
    assert facts.shared_bytes <= (4 * 4 * 32 + reserved if has_wide_rows else 0), name
    divides = {"MUFU.RCP"} if kernel == "append_kernel" else set()  # by the scales of 8-bit caches
    assert set(facts.slow_instructions) == {"MUFU.RSQ"} | divides, name


@pytest.mark.parametrize("target", AMD)
@pytest.mark.parametrize("shape", MAIN, ids=str)
def test_amd(shape, target):
    """Loads and stores are wide."""
    figures = triton_figures(shape, target)
    facts = figures.facts
    assert figures.launches == 1
    assert (facts.stack_bytes, facts.shared_bytes, facts.local_instructions) == (0, 0, 0)
    assert facts.slow_instructions == ()
    assert facts.registers <= 128
    assert facts.load_widths[16] >= 4
    assert facts.store_widths[16] >= 4
    assert set(facts.load_widths) | set(facts.store_widths) <= {8, 16}


@pytest.mark.full
@pytest.mark.parametrize("target", AMD)
@pytest.mark.parametrize("shape", OTHERS + [shape for shape in DTYPES if shape.dtype == torch.float16], ids=str)
def test_other_16_bit_rows_on_amd(shape, target):
    facts = triton_figures(shape, target).facts
    assert (facts.stack_bytes, facts.shared_bytes, facts.local_instructions) == (0, 0, 0)
    assert set(facts.load_widths) | set(facts.store_widths) <= {8, 16}
