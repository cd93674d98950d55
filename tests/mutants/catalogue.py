"""All mutants."""

from . import cpu, cuda, direct, formulas, triton
from .mutant import Mutant

__all__ = ["MUTANTS"]

MUTANTS: list[Mutant] = [*triton.MUTANTS, *cuda.MUTANTS, *cpu.MUTANTS, *direct.MUTANTS, *formulas.MUTANTS]
