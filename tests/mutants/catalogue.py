"""All mutants."""

from . import cpu, cuda, formulas, triton
from .mutant import Mutant

__all__ = ["MUTANTS"]

MUTANTS: list[Mutant] = [*triton.MUTANTS, *cuda.MUTANTS, *cpu.MUTANTS, *formulas.MUTANTS]
