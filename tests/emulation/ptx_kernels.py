"""Small kernels of two pointers for the emulator's tests, and how they are run."""

import pytest
import torch

from emulation.ptx import Memory, Program, PTXError, run

__all__ = ["COPY", "kernel", "launch", "refused"]

REGISTERS = ".reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %a<9>;"
ADDRESSES = """
    ld.param.u64 %a0, [x]; ld.param.u64 %a1, [y]; mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x;
    mad.lo.s32 %r3, %r1, %r2, %r0; mul.wide.u32 %a2, %r3, 4; add.s64 %a3, %a0, %a2; add.s64 %a4, %a1, %a2;
"""
"""%r0 is the thread in its CTA, %r3 in the grid; %a3 and %a4 are the addresses of its words of x and y."""


def kernel(body, target="sm_90", shared=""):
    """One with two pointers."""
    text = f"""
        .version 8.0
        .target {target}
        {shared}
        .visible .entry kernel(.param .u64 x, .param .u64 y)
        {{ {REGISTERS} {ADDRESSES} {body} ret; }}
    """
    return Program.parse(text).kernels["kernel"]


def launch(body, x=None, y=None, *, grid=2, block=64, target="sm_90", shared="", **limits):
    """Run on tensors x and y, of one word per thread unless they are given; both, as they are then."""
    x = torch.arange(grid * block, dtype=torch.int32) if x is None else x
    y = torch.zeros(grid * block, dtype=torch.int32) if y is None else y
    memory = Memory()
    memory.add_tensor("x", x)
    memory.add_tensor("y", y)
    run(kernel(body, target, shared), (grid,), (block,), [x.data_ptr(), y.data_ptr()], memory, **limits)
    return x, y


def refused(match, body, **options):
    with pytest.raises(PTXError, match=match):
        launch(body, **options)


COPY = "ld.global.u32 %r4, [%a3]; st.global.u32 [%a4], %r4;"
"""Each thread's word of x to y."""
