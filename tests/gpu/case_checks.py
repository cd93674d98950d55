"""The case list on a device: out of place, in place, the public call and its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from support.attempts import bits
from support.calls import rotate
from support.cases import CASES, Case, check, make, variant

from rope_kernels import use_backend

from .outcomes import Check, Setup
from .placing import Placed, moved, placed

__all__ = ["case_checks"]


def check_apart(case: Case, backend: str, device: torch.device) -> None:
    """Into NaN: right, nothing else written, and a second launch gives the same bits."""
    attempt = Placed(case, device, in_place=False)
    results = attempt.rotate(backend)
    attempt.check(results)
    again = Placed(case, device, in_place=False).rotate(backend)
    assert all(map(torch.equal, map(bits, results), map(bits, again))), "two launches differ"


def check_in_place(case: Case, backend: str, device: torch.device) -> None:
    """In place: right, and nothing else written."""
    attempt = Placed(case, device, in_place=True)
    attempt.check(attempt.rotate(backend))


def check_gradient(case: Case, backend: str, device: torch.device) -> None:
    """The public call; and its gradient, which is the exact result of the case the other way round."""
    made = make(case)
    adjoint = make(variant(case, inverse=not case.inverse))
    there = placed(made, device)
    leaves = [x.requires_grad_() for x in (there.q, there.k) if x is not None]
    with use_backend(backend):
        rotated = [y for y in rotate(case, there) if y is not None]
        upstream = [moved(g, device) for g in (adjoint.q, adjoint.k) if g is not None]
        gradients = torch.autograd.grad(rotated, leaves, upstream)
    for one, results in ((made, rotated), (adjoint, gradients)):
        for x, y, expected in zip((one.q, one.k), results, one.expected, strict=False):
            if x is not None and expected is not None:
                check(case, x, y.detach().cpu(), expected)


WAYS = {"apart": check_apart, "in place": check_in_place, "gradient": check_gradient}


def case_checks(setup: Setup, backend: str) -> Iterator[Check]:
    """Every case in every way."""
    for case in CASES:
        for way, function in WAYS.items():
            yield Check(f"cases/{backend}/{way}/{case}", partial(function, case, backend, setup.device))
