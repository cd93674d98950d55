"""What the library gets of a Triton launch: every parameter where CUDA's driver expects it."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rope_kernels.backends.triton.compiled import ADDRESSES, compiled_launch

PLAIN = dict(
    num_warps=4, num_ctas=1, shared=128, launch_cooperative_grid=False, launch_pdl=False, global_scratch_size=0,
    profile_scratch_size=0,
)  # fmt: skip
VALUES = {
    "*bf16": (st.builds(torch.empty, st.integers(1, 9)), lambda x: struct.pack("<Q", x.data_ptr())),
    "i1": (st.booleans(), lambda x: struct.pack("<q", x)),
    "i32": (st.integers(-(2**31), 2**31 - 1), lambda x: struct.pack("<q", x)),
    "i64": (st.integers(-(2**63), 2**63 - 1), lambda x: struct.pack("<q", x)),
    "fp32": (st.floats(width=32, allow_nan=False), lambda x: struct.pack("<f", x) + bytes(4)),
    "fp64": (st.floats(allow_nan=False), lambda x: struct.pack("<d", x)),
    "constexpr": (st.just(None), None),
}


def kernel(kinds: list[str], parameters: int, **changes: Any) -> Any:
    """A compiled kernel as Triton returns it, with this signature and this number of parameters in its PTX."""
    declared = ",\n".join(f".param .u64 rotate_param_{i}" for i in range(parameters))
    return SimpleNamespace(
        metadata=SimpleNamespace(**{**PLAIN, **changes}),
        src=SimpleNamespace(signature={f"a{i}": kind for i, kind in enumerate(kinds)}),
        asm={"ptx": f".version 8.7\n.visible .entry rotate(\n{declared}\n)\n.reqntid 128\n{{ ld.param.u64 %rd1; }}"},
        function=77,
    )


arguments = st.lists(
    st.sampled_from(sorted(VALUES)).flatmap(lambda kind: st.tuples(st.just(kind), VALUES[kind][0])), max_size=30
)


@given(arguments, st.integers(0, 2), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_each_parameter_has_a_cell(given_: Any, scratch: int, grid: tuple[int, int]) -> None:
    kinds = [kind for kind, _ in given_]
    kept = [(kind, value) for kind, value in given_ if kind != "constexpr"]
    tensors = {i: ADDRESSES[i % len(ADDRESSES)] for i, kind in enumerate(kinds) if kind.startswith("*")}
    launch = compiled_launch(kernel(kinds, len(kept) + scratch), grid, [value for _, value in given_], tensors)
    assert launch is not None
    assert launch[:6] == (77, *grid, 1, 128, 128)
    assert launch.parameters == b"".join(VALUES[kind][1](value) for kind, value in kept) + bytes(8 * scratch)
    cells = [i for i, (kind, _) in enumerate(kept) if kind.startswith("*")]
    assert list(launch.addresses[::2]) == cells
    assert [ADDRESSES[i] for i in launch.addresses[1::2]] == [tensors[i] for i in sorted(tensors)]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_ctas": 2}, {"launch_cooperative_grid": True}, {"launch_pdl": True}, {"global_scratch_size": 8},
        {"profile_scratch_size": 8},
    ],
)  # fmt: skip
def test_a_launch_that_does_more_is_not_repeated(changes: dict[str, Any]) -> None:
    assert compiled_launch(kernel(["i32"], 3), (1, 1), [1], {}) is not None
    assert compiled_launch(kernel(["i32"], 3, **changes), (1, 1), [1], {}) is None


@pytest.mark.parametrize("parameters", [0, 4, 9])
def test_another_number_of_parameters_is_not_repeated(parameters: int) -> None:
    assert compiled_launch(kernel(["i32"], parameters), (1, 1), [1], {}) is None


def test_the_interpreters_launches_are_not_repeated() -> None:
    assert compiled_launch(None, (1, 1), [1], {}) is None


def test_launches_on_an_amd_gpu_are_not_repeated() -> None:
    """They are not for CUDA's driver. Triton keeps other machine code of them, and has no clusters there."""
    made = kernel(["i32"], 3)
    made.asm = {"amdgcn": made.asm["ptx"]}
    del made.metadata.num_ctas
    assert compiled_launch(made, (1, 1), [1], {}) is None
