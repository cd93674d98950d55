"""How a case is called: one way for every test that runs the case list."""

from __future__ import annotations

import torch

from cases import Case, Made, config_of
from rope_kernels import autograd, functional
from rope_kernels.spec import parse_call


def operands(case: Case, made: Made) -> tuple:
    """What follows q and k in the operator's schema."""
    return functional.prepare(
        made.q, made.k, made.positions, config_of(case), inverse=case.inverse, from_seq_len=case.from_seq_len,
        unscaled=case.unscaled, **made.options,
    )  # fmt: skip


def arguments(case: Case, made: Made) -> tuple:
    """The same for a backend: the index tensors, then the config's spec, layout, inverse and unscaled by themselves."""
    *run_time, text = operands(case, made)
    call = parse_call(text)
    return *run_time, text.partition("@")[0], call.layout, call.inverse, call.unscaled


def is_public(case: Case) -> bool:
    """Whether ``apply_rope`` can ask for it; the rest is in the operator for re-rotation."""
    return case.from_seq_len is None and not case.unscaled


def rotate(case: Case, made: Made) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Out of place."""
    if is_public(case):
        config = config_of(case)
        return functional.apply_rope(made.q, made.k, made.positions, config, inverse=case.inverse, **made.options)
    q, k = autograd.rotate(made.q, made.k, *operands(case, made))
    return q, None if made.k is None else k
