"""What is read off machine code, on kernels whose code is known."""

import re
import sys

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.backends.nvidia.compiler import get_ptxas

from emulation import aot, sass, targets
from emulation.blocks import pieces
from emulation.figures import triton_code
from emulation.ptx import Memory, Program, run

OPTIONS = ["--regAllocOptLevel=2"]  # Triton's own
HERE = sys.modules[__name__]


@triton.jit
def doubling(x_ptr, y_ptr, TRIPS: tl.constexpr):
    i = tl.program_id(0) * 128 + tl.arange(0, 128)
    for trip in tl.range(0, TRIPS):
        tl.store(y_ptr + trip * 1024 + i, tl.load(x_ptr + trip * 1024 + i) * 2)


@triton.jit
def everything_slow(x_ptr, y_ptr, n):
    i = tl.arange(0, 128)
    value = tl.load(x_ptr + i).to(tl.float32)
    order = tl.sort(tl.sin(value) + tl.exp2(value))
    tl.store(y_ptr + i, order.to(tl.float16), mask=i < n)


def compiled(name, target, *args, **constants):
    with aot.compiling(target, HERE, name) as launches:
        getattr(HERE, name)[(2,)](*args, **constants, num_warps=4)
    return launches[0]


@pytest.mark.parametrize("target", [*targets.sm(targets.TRITON), "gfx942", "gfx1100"])
def test_facts(target):
    x = torch.zeros(128, dtype=torch.float16)
    facts, _ = triton_code(compiled("everything_slow", target, x, torch.zeros_like(x), 100), target)
    assert facts.load_widths[2] == 1  # the sine may load from a table, too
    assert set(facts.store_widths) == {2}
    assert facts.slow_instructions
    assert facts.registers > 8
    assert facts.shared_bytes > 0
    assert facts.instructions > 100
    if target.startswith("sm_"):
        assert facts.stack_bytes > 0
        assert facts.local_instructions > 0
        assert "MUFU.EX2" in facts.slow_instructions


def executed(trips):
    x, y = torch.ones(48 * 1024), torch.zeros(48 * 1024)
    launch = compiled("doubling", "sm_90", x, y, TRIPS=trips)
    ptx = launch.compiled.asm["ptx"]
    kernel, memory = Program.parse(ptx).kernels["doubling"], Memory()
    memory.add_tensor("x", x)
    memory.add_tensor("y", y)
    values = [*launch.scalars, *[0] * (len(kernel.parameters) - 2)]
    found = pieces(kernel, run(kernel, (2,), (128,), values, memory))
    assert y.sum() == 2 * 256 * trips
    code = sass.assembled(ptx, "doubling", "sm_90a", get_ptxas(90).path, OPTIONS)
    return code, sass.executed(code, found)


def test_instructions_are_counted_as_often_as_they_run():
    """One load, product and store per trip and thread, however ptxas lays the loop out."""
    for trips in (1, 2, 5, 16):
        _, counted = executed(trips)
        for opcode in ("LDG", "STG"):
            assert counted[opcode] == pytest.approx(256 * trips)


@pytest.mark.parametrize("trips", [1, 2, 5])
def test_straight_code_runs_once(trips):
    """ptxas lays out so short a loop as straight code."""
    code, counted = executed(trips)
    assert not any(opcode.startswith("BRA") for opcode in code.opcodes())
    assert sum(counted.values()) == pytest.approx(256 * len(code.instructions))


def test_a_loop_runs_as_often_as_it_turns():
    _, some = executed(16)
    _, many = executed(48)
    assert some["LDC"] == many["LDC"]  # before the loop
    per_trip = (sum(many.values()) - sum(some.values())) / (256 * 32)
    assert 3 <= per_trip <= 8  # load, product, store; addresses, condition, branch


def test_numbering_the_statements_changes_no_code():
    x = torch.zeros(16 * 1024)
    launch = compiled("doubling", "sm_90", x, x.clone(), TRIPS=3)
    _, shipped = triton_code(launch, "sm_90")
    ptx = launch.compiled.asm["ptx"]
    code = sass.assembled(ptx, "doubling", "sm_90a", get_ptxas(90).path, OPTIONS)
    assert sass.same_code(code, shipped)
    statements = Program.parse(ptx).kernels["doubling"].statements
    for opcode, statement in zip(code.opcodes(), code.statements, strict=True):
        if opcode.startswith(("LDG", "STG")):
            assert re.match(r"(ld|st)\.global", statements[statement].name)


def test_other_code_is_not_the_same():
    one, other = executed(2)[0], executed(3)[0]
    assert sass.same_code(one, one)
    assert not sass.same_code(one, other)


def test_a_missing_kernel_is_named():
    with pytest.raises(ValueError, match="there is no kernel halving"):
        sass.assembled(".version 8.0\n.entry doubling() { ret; }", "halving", "sm_90", get_ptxas(90).path)
