"""The comparison with the emulator, with the CPU kernels and the emulator itself in place of a device."""

import pytest
import torch

pytest.importorskip("triton")

from support.cases import CASES
from support.launches import BY_NAME

from emulation.cuda import build
from emulation.ptx import Program
from gpu.determined import is_determined, sums_of_products
from gpu.emulator_checks import BITWISE, WITHIN, Emulated, agree, native_emulated, nearest, triton_emulated
from gpu.outcomes import NotHereError
from gpu.placing import Placed

PTX = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry kernel(.param .u64 x)
{{
.reg .f32 %f<9>;
.reg .pred %p<2>;
.reg .b64 %rd<2>;
ld.param.u64 %rd1, [x];
ld.global.f32 %f1, [%rd1];
ld.global.f32 %f2, [%rd1+4];
{body}
st.global.f32 [%rd1], %f4;
ret;
}}
"""


def kernel(body):
    return Program.parse(PTX.format(body=body)).kernels["kernel"]


def names(kernel):
    return {statement.name for statement in kernel.statements}


@pytest.mark.parametrize(
    ("body", "determined"),
    [
        ("mul.f32 %f3, %f1, %f2; add.f32 %f4, %f3, %f2;", False),
        ("mul.f32 %f3, %f1, %f2; sub.f32 %f4, %f2, %f3;", False),
        ("mul.f32 %f3, %f1, %f2; neg.f32 %f5, %f3; mov.f32 %f6, %f5; add.f32 %f4, %f6, %f2;", False),
        ("mul.rn.f32 %f3, %f1, %f2; add.f32 %f4, %f3, %f2;", True),
        ("mul.f32 %f3, %f1, %f2; add.rn.f32 %f4, %f3, %f2;", True),
        ("mul.f32 %f3, %f1, %f2; fma.rn.f32 %f4, %f1, %f2, %f3;", True),
        ("mul.f32 %f3, %f1, %f2; mul.f32 %f4, %f3, %f2;", True),
        ("add.f32 %f3, %f1, %f2; mul.f32 %f4, %f3, %f2;", True),
    ],
)
def test_what_ptxas_may_fuse(body, determined):
    made = kernel(body)
    assert is_determined(made, names(made)) == determined
    assert (sums_of_products(made, names(made)) == []) == determined
    assert is_determined(made, names(made) - {"mul.f32"}) or not determined


def test_approximations_leave_the_bits_open():
    made = kernel("add.f32 %f4, %f1, %f2;")
    assert is_determined(made, names(made))
    assert not is_determined(made, names(made) | {"rcp.approx.ftz.f64"})


@pytest.mark.parametrize(
    ("name", "determined"),
    [("default-near", True), ("half-bfloat16-forward", True), ("positions-float", True), ("dynamic-near", False)],
)
def test_what_the_triton_kernels_promise(name, determined):
    assert triton_emulated(BY_NAME[name], False, 90).determined == determined


@pytest.mark.skipif(build.nvcc() is None, reason="there is no nvcc, which makes PTX of the CUDA kernels")
@pytest.mark.parametrize("arch", [90, *(pytest.param(other, marks=pytest.mark.full) for other in (80, 100))])
def test_what_the_cuda_kernels_promise(arch):
    """All but dynamic NTK, whose logarithm begins with an approximation."""
    for case in CASES:
        dynamic = case.config.get("rope_type") == "dynamic"
        assert native_emulated(case, False, arch).determined != dynamic, case


def cpu_results(case, in_place):
    return Placed(case, torch.device("cpu"), in_place).rotate("native")


@pytest.mark.parametrize("in_place", [False, True])
def test_agreement(in_place):
    case = BY_NAME["packed-seq_len-longrope"]
    emulated = triton_emulated(case, in_place, 89)
    assert agree(case, [y.clone() for y in emulated.results], emulated) == BITWISE
    with_other_bits = [torch.nextafter(y, y + 1) for y in emulated.results]
    with pytest.raises(AssertionError, match="differ, by up to"):
        agree(case, with_other_bits, emulated)
    open_ = Emulated(emulated.results, determined=False)
    assert agree(case, with_other_bits, open_) == WITHIN
    assert agree(case, cpu_results(case, in_place), open_) == WITHIN
    with pytest.raises(AssertionError, match="differ, by up to"):
        agree(case, [y + 1e-4 for y in emulated.results], open_)
    with pytest.raises(AssertionError):
        agree(case, [torch.full_like(y, float("nan")) for y in emulated.results], open_)


def test_no_tokens_are_no_launch():
    case = BY_NAME["empty-tokens"]
    assert agree(case, cpu_results(case, False), triton_emulated(case, False, 120)) == BITWISE


@pytest.mark.skipif(build.nvcc() is None, reason="there is no nvcc, which makes PTX of the CUDA kernels")
@pytest.mark.parametrize("in_place", [False, True])
def test_the_cuda_kernels_in_the_emulator(in_place):
    case = BY_NAME["interleaved_to_half-bfloat16-forward"]
    emulated = native_emulated(case, in_place, 120)
    assert agree(case, cpu_results(case, in_place), Emulated(emulated.results, determined=False)) == WITHIN


def test_nearest_target():
    targets = (80, 90, 100, 120)
    assert [nearest(n, targets) for n in (80, 86, 89, 90, 100, 103, 120, 121)] == [80, 80, 80, 90, 100, 100, 120, 120]
    with pytest.raises(NotHereError, match="sm_75"):
        nearest(75, targets)
