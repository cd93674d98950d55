"""Triton is asked to fuse products and sums, whatever its default is."""

import pytest
import torch

pytest.importorskip("triton")

import triton

from emulation import aot
from emulation.figures import Shape
from rope_kernels.backends.triton import kernels as triton_kernels
from rope_kernels.backends.triton import launch as triton_launch
from rope_kernels.core.spec import parse_spec

KERNELS = ("rotate_kernel", "rotate_table_kernel")


def rotate(q, k, shape):
    inputs, spec = shape.call()
    triton_launch.rotate(q, k, torch.empty_like(q), torch.empty_like(k), inputs, parse_spec(spec))


def rotate_table(q, k, shape):
    cos, sin = torch.zeros(2, *q.shape[:2], shape.head_dim, dtype=shape.dtype)
    _, spec = shape.call()
    outputs = (torch.empty_like(q), torch.empty_like(k))
    triton_launch.rotate_table(q, k, *outputs, cos, sin, parse_spec(spec).rotation, False)


def compiled(call, target, fused_by_default):
    """What Triton compiles where that is its default."""
    for name in KERNELS:
        getattr(triton_kernels, name).device_caches.clear()
    shape = Shape(head_dim=64)
    with triton.knobs.language.scope(), aot.compiling(target, triton_kernels, *KERNELS) as launches:
        triton.knobs.language.default_fp_fusion = fused_by_default
        call(*shape.tensors(), shape)
    return launches[0].compiled


@pytest.mark.parametrize("call", [rotate, rotate_table])
@pytest.mark.parametrize(("target", "assembly"), [("sm_90", "ptx"), ("gfx942", "amdgcn")])
def test_products_and_sums_are_fused(call, target, assembly):
    usual, other = (compiled(call, target, fused_by_default) for fused_by_default in (True, False))
    assert usual.metadata.enable_fp_fusion
    assert other.metadata.enable_fp_fusion
    assert usual.asm[assembly] == other.asm[assembly]
