"""How a case is called: one way for every test that runs the case list."""

from __future__ import annotations

import torch

from cases import Case, Made, config_of
from rope_kernels import autograd, functional


def arguments(case: Case, made: Made) -> tuple:
    """What follows q and k in the operator's schema."""
    args = list(
        functional.prepare(made.q, made.k, made.positions, config_of(case), inverse=case.inverse, **made.options)
    )
    if case.from_seq_len is not None:
        args[3] = torch.tensor([case.from_seq_len])
    args[8] = case.unscaled
    return tuple(args)


def is_public(case: Case) -> bool:
    """Whether ``apply_rope`` can ask for it; the rest is in the operator for re-rotation."""
    return case.from_seq_len is None and not case.unscaled


def rotate(case: Case, made: Made) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Out of place."""
    if is_public(case):
        config = config_of(case)
        return functional.apply_rope(made.q, made.k, made.positions, config, inverse=case.inverse, **made.options)
    q, k = autograd.rotate(made.q, made.k, *arguments(case, made))
    return q, None if made.k is None else k
