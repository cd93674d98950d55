"""The order of loads and stores in the machine code: a thread waits for memory once per tile, also in place."""

from itertools import product

import pytest
import torch

pytest.importorskip("triton")

from emulation import sass, targets
from emulation.figures import Shape, library_kernels, triton_code, triton_launches
from rope_kernels.backends import native

NVIDIA = targets.sm(targets.TRITON)
WIDTH = 16
"""Bytes that a thread loads or stores at once."""
SHAPES = [
    Shape(dtype, head_dim, phase, pairing)
    for dtype, head_dim, phase, pairing in product(
        (torch.bfloat16, torch.float16, torch.float32),
        (64, 96, 128, 256),
        ("prefill", "decode"),
        ("half", "interleaved"),
    )
]
SOME = [
    shape for i, shape in enumerate(SHAPES) if shape.head_dim == 128 or (shape.dtype == torch.bfloat16 and i % 3 == 0)
]

with_cuda = pytest.mark.skipif(not native.cuda_archs(), reason="the native extension has no CUDA kernels")


def loads_of_a_tile(tile, block):
    """Of one thread, for ``block`` heads."""
    return block * tile.TOKENS * 2 * tile.CHUNK * tile.MEMORY.ITEM_BYTES // (32 * tile.WARPS * WIDTH)


def check_order(shape, target, in_place):
    (launch,) = triton_launches(shape, target, in_place)
    _, code = triton_code(launch, target)
    tile = launch.arguments["TILE"]
    assert in_place == tile.MEMORY.IN_PLACE
    runs = sass.access_runs(code, WIDTH)
    q, k = (loads_of_a_tile(tile, block) for block in (tile.Q_BLOCK, tile.K_BLOCK))
    assert (runs[0], runs[-1], set(runs)) == ((q, q), (k, k), {(q, q), (k, k)})


@pytest.mark.parametrize(("shape", "target"), [(s, NVIDIA[i % 4]) for i, s in enumerate(SOME)], ids=str)
@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in_place"])
def test_all_loads_of_a_tile_come_before_its_stores(in_place, shape, target):
    check_order(shape, target, in_place)


@pytest.mark.full
@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in_place"])
def test_all_loads_of_a_tile_come_before_its_stores_everywhere(in_place, shape, target):
    check_order(shape, target, in_place)


@with_cuda
@pytest.mark.parametrize("target", NVIDIA)
def test_the_cuda_kernels_store_as_much_as_they_have_loaded(target):
    """One code rotates in place and apart. Where threads wait for each other, a barrier keeps the order.

    Kernels that norm load weights, too, and what is not rotated twice; those that append do so, and store k twice.
    """
    checked = 0
    for name, (_, code) in library_kernels(target).items():
        if "norm_" in name or "append_" in name or any(opcode.startswith("BAR") for opcode in code.opcodes()):
            continue
        checked += 1
        runs = sass.access_runs(code, WIDTH)
        of_entries = [(loads, stores) for loads, stores in runs if loads != stores]
        # A caller's table is loaded before the first heads, once for each dtype that it may have.
        most = 4 if "TableParams" in name else 0
        assert len(of_entries) <= most, (name, runs)
        assert all(loads > stores for loads, stores in of_entries), (name, runs)
    assert checked > 20
