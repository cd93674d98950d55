"""All mutants."""

from . import append, calls, cpu, cuda, direct, formulas, norms, text, triton
from .mutant import Mutant

__all__ = ["MUTANTS"]

MUTANTS: list[Mutant] = [
    *triton.MUTANTS, *cuda.MUTANTS, *cpu.MUTANTS, *direct.MUTANTS, *formulas.MUTANTS, *text.MUTANTS, *calls.MUTANTS,
    *norms.MUTANTS, *append.MUTANTS,
]  # fmt: skip
