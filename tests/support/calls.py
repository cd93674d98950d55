"""How a case is called: one way for every test that runs the case list."""

from __future__ import annotations

import torch
from support.cases import Case, Made, config_of

from rope_kernels.api.apply import apply_rope
from rope_kernels.api.prepare import prepare
from rope_kernels.backends.inputs import Inputs
from rope_kernels.core.spec import Operation, parse_text
from rope_kernels.ops import autograd
from rope_kernels.ops.operators import Arguments, inputs_of

__all__ = ["arguments", "inputs", "is_public", "operation", "rotate"]


def arguments(case: Case, made: Made) -> Arguments:
    """What follows q and k in the operator's schema. It takes 16-bit positions, which the public calls refuse."""
    positions = made.positions
    if positions is not None and positions.dtype in (torch.float16, torch.bfloat16):
        positions = positions.float()
    args = prepare(
        made.q, made.k, positions, config_of(case), inverse=case.inverse, from_seq_len=case.from_seq_len,
        unscaled=case.unscaled, **made.options,
    )  # fmt: skip
    return args._replace(positions=made.positions)


def operation(case: Case, made: Made) -> Operation:
    """The parsed text of a case."""
    return parse_text(arguments(case, made).text)


def inputs(args: Arguments) -> Inputs:
    """What a backend is given of the arguments."""
    return inputs_of(args, parse_text(args.text))


def is_public(case: Case) -> bool:
    """Whether ``apply_rope`` can ask for it; the rest is in the operator for re-rotation."""
    return case.from_seq_len is None and not case.unscaled


def rotate(case: Case, made: Made) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Out of place."""
    if is_public(case):
        return apply_rope(made.q, made.k, made.positions, config_of(case), inverse=case.inverse, **made.options)
    q, k = autograd.rotate(made.q, made.k, arguments(case, made))
    return q, None if made.k is None else k
