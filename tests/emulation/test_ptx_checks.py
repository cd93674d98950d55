"""Wrong accesses, statements and arguments are refused, by what is wrong; right ones that look alike pass."""

import re

import numpy as np
import pytest
import torch

from emulation.ptx import Memory, Program, PTXError, run
from emulation.ptx_kernels import COPY, kernel, launch, refused


def test_right_kernel():
    x, y = launch(COPY)
    assert torch.equal(x, y)


BEYOND = torch.arange(127, dtype=torch.int32)


@pytest.mark.parametrize(("tensors", "what"), [(dict(x=BEYOND), "reads"), (dict(y=BEYOND), "writes")])
def test_one_element_too_far(tensors, what):
    refused(f"out of bounds|{what} out of bounds", COPY, **{k: v.clone() for k, v in tensors.items()})


@pytest.mark.parametrize("step", [-16, 16, 1 << 20, -(1 << 20)])
@pytest.mark.parametrize("access", ["ld.global.u32 %r4, [%a3{}];", "st.global.u32 [%a4{}], %r3;"])
def test_far_out_of_bounds(access, step):
    refused("out of bounds", access.format(f"{step:+d}"), grid=1, block=4)


def gapped():
    """A view of 128 words with gaps of one after every three."""
    return torch.full((43, 4), 7, dtype=torch.int32)[:, :3]


@pytest.mark.parametrize("name", ["x", "y"])
def test_gap_of_a_strided_view(name):
    refused(f"{'reads' if name == 'x' else 'writes'} out of bounds: byte 12", COPY, grid=1, **{name: gapped()})


def test_strided_view_itself():
    """Thread t takes column t % 3 of row t / 3."""
    body = """
        div.u32 %r4, %r3, 3; add.u32 %r4, %r4, %r3; mul.wide.u32 %a2, %r4, 4;
        add.s64 %a3, %a0, %a2; add.s64 %a4, %a1, %a2;
    """
    x, y = gapped(), gapped()
    x.copy_(torch.arange(129, dtype=torch.int32).view(43, 3))
    launch(body + COPY, x, y, grid=1, block=129)
    assert torch.equal(x, y)
    assert (y.as_strided((43,), (4,), 3) == 7).all()


@pytest.mark.parametrize("size", [2, 4, 8])
def test_misaligned(size):
    bits, register = 8 * size, {2: "%h1", 4: "%r4", 8: "%a5"}[size]
    refused(f"misaligned: an access of {size} bytes", f"ld.global.u{bits} {register}, [%a3+{size // 2}];", block=1)


def test_misaligned_vector():
    refused("misaligned: an access of 8", "add.s64 %a5, %a0, 4; ld.global.v2.u32 {%r4, %r5}, [%a5];", block=1)


UNKNOWN = [
    "add.rz.f32 %r4, %r4, %r4", "atom.global.add.u32 %r4, [%a3], 1", "ld.local.u32 %r4, [%a3]",
    "ld.global.v4.u64 {%a5, %a6, %a7, %a8}, [%a3]", "frobnicate %r4",
]  # fmt: skip
SENSELESS = [
    "add.s32 %r4, %r3, %a1", "add.s32 %r4, %r3", "mov.u32 %r4, %q1", "mov.u32 %r4, %clock", "bra nowhere",
    "selp.b32 %r4, %r3, %r3, %r3", "@%r3 mov.u32 %r4, 0", "ld.global.v2.u32 %r4, [%a3]", "ld.global.u32 %r4, %a3",
    ".local .b8 depot[16]", "mov.b32 %r4, 0d3FF0000000000000",
]  # fmt: skip


@pytest.mark.parametrize("wrong", UNKNOWN)
def test_unknown_instruction(wrong):
    refused(re.escape(f"kernel: {wrong}: unknown instruction {wrong.split()[0]}"), wrong + ";")


@pytest.mark.parametrize("wrong", SENSELESS)
def test_statement_that_cannot_be(wrong):
    refused(re.escape(f"kernel: {wrong}: "), wrong + ";")


def test_unknown_symbol():
    refused("mov.u64 %a5, nothing: unknown symbol nothing", "mov.u64 %a5, nothing;")


class TestUndefinedRegisters:
    def test_never_written(self):
        refused("register %r5 is read before it is written", "add.s32 %r4, %r5, 1;")

    def test_not_written_by_all_that_read(self):
        body = "setp.lt.u32 %p0, %r3, 5; @%p0 mov.u32 %r4, 1; st.global.u32 [%a4], %r4;"
        refused("register %r4 is read before it is written", body)

    def test_written_by_all_that_read(self):
        body = "setp.lt.u32 %p0, %r3, 5; @%p0 mov.u32 %r4, 1; @%p0 st.global.u32 [%a4], %r4;"
        assert int(launch(body)[1].sum()) == 5

    def test_written_by_all_after_some(self):
        body = "setp.lt.u32 %p0, %r3, 5; @%p0 mov.u32 %r4, 1; mov.u32 %r4, 2; st.global.u32 [%a4], %r4;"
        assert (launch(body)[1] == 2).all()

    def test_written_by_two_parts(self):
        body = "setp.lt.u32 %p0, %r3, 5; @%p0 mov.u32 %r4, 1; @!%p0 mov.u32 %r4, 2; st.global.u32 [%a4], %r4;"
        assert launch(body)[1].tolist() == [1] * 5 + [2] * 123

    def test_half_of_a_pair_is_nan_from_sm_100_on(self):
        body = """
            mov.b64 %a5, {%r3, %r5}; mul.f32x2 %a5, %a5, %a5; mov.b64 {%r6, %r7}, %a5;
            st.global.u32 [%a4], %r6; st.global.u32 [%a3], %r7;
        """
        x, y = launch(body, target="sm_100a")
        assert x.view(torch.float32).isnan().all()
        assert not y.view(torch.float32).isnan().any()
        refused("register %r5 is read", body)

    def test_floats_are_nan_from_sm_100_on(self):
        body = "neg.f32 %r4, %r5; st.global.u32 [%a4], %r4;"
        assert launch(body, target="sm_100a")[1].view(torch.float32).isnan().all()
        refused("register %r5 is read", body)
        refused("register %r5 is read", "add.s32 %r4, %r5, %r5;", target="sm_100a")


class TestLaunch:
    def test_arguments_and_block_that_do_not_fit(self):
        made = kernel("")
        with pytest.raises(PTXError, match="1 arguments for 2 parameters"):
            run(made, (1,), (1,), [0], Memory())
        text = ".target sm_90\n.entry kernel(.param .u64 x) .{} 32, 1, 1 {{ ret; }}"
        for directive, block in (("reqntid", 16), ("maxntid", 64)):
            bounded = Program.parse(text.format(directive)).kernels["kernel"]
            run(bounded, (1,), (32,), [0], Memory())
            with pytest.raises(PTXError, match=f"{block} threads"):
                run(bounded, (1,), (block,), [0], Memory())

    def test_read_only_memory(self):
        x, memory = torch.zeros(128, dtype=torch.int32), Memory()
        memory.add("x", x.data_ptr(), x.numpy().view(np.uint8), writable=np.zeros(512, bool))
        made = kernel("st.global.u32 [%a3], %r3;")
        with pytest.raises(PTXError, match="writes out of bounds"):
            run(made, (1,), (4,), [x.data_ptr(), 0], memory)
