"""Whether the bits of a kernel's results follow from its PTX, on every device that runs it.

Two things leave them open. Approximate instructions: of the kernels' own only ``rcp.approx.ftz.f64``, which the
logarithm of dynamic NTK begins with. And a product without ``.rn`` whose sum with something has no ``.rn`` either: the
PTX manual lets ptxas make one ``fma`` of the two. Everything else that the kernels compute with (integers, ``fma.rn``,
single products and sums, conversions) has one result by IEEE 754.

So it is the compiled code that decides, not a list of cases. Of Triton's for sm_90 all but dynamic is determined,
fractional positions and fp32 phases included; for sm_100 and sm_120, which have sums of two fp32 at once, attention
scaling in fp32 is not either. nvcc leaves a product and a difference in the cosine, which opens most of its kernels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from emulation.ptx.syntax import Kernel, Operand, Register, Statement, Vector

__all__ = ["is_determined", "sums_of_products"]

_PASSING_ON = ("mov", "neg", "abs", "selp")
"""What ptxas may look through on its way from a sum to a product."""


def _registers(operands: tuple[Operand, ...]) -> Iterator[int]:
    for operand in operands:
        for part in operand.parts if isinstance(operand, Vector) else (operand,):
            if isinstance(part, Register):
                yield part.slot


def _is_open(statement: Statement, *opcodes: str) -> bool:
    """Whether it is one of these, on floating numbers, without a rounding of its own."""
    modifiers = statement.name.split(".")
    return modifiers[0] in opcodes and modifiers[-1].startswith(("f", "bf")) and "rn" not in modifiers


def sums_of_products(kernel: Kernel, executed: Collection[str]) -> list[str]:
    """The texts of sums that ptxas may fuse with a product, among the instructions with the names ``executed``."""
    statements = [s for s in kernel.statements if s.name in executed]
    products: set[int] = set()
    before = -1
    while before != len(products):
        before = len(products)
        for s in statements:
            if _is_open(s, "mul") or (s.opcode in _PASSING_ON and not products.isdisjoint(_registers(s.operands[1:]))):
                products.update(_registers(s.operands[:1]))
    sums = (s for s in statements if _is_open(s, "add", "sub"))
    return [s.text for s in sums if not products.isdisjoint(_registers(s.operands[1:]))]


def is_determined(kernel: Kernel, executed: Collection[str]) -> bool:
    """Whether every execution of the instructions with these names gives the same bits."""
    return not any("approx" in name or ".full." in name for name in executed) and not sums_of_products(kernel, executed)
