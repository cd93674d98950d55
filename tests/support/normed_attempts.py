"""A call with norms about to be made by any backend, and what its results and gradients must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from support import normed, tolerances
from support.attempts import Attempt, bits
from support.cases import CASES, Case, Made, from_tokens_first, make, rotated_exactly, where_and_how_long
from support.normed import NORMS, NormedCall
from torch import Tensor

from rope_kernels.backends.inputs import Norms
from rope_kernels.core.layouts import tokens_first
from rope_kernels.core.norms import Norm
from rope_kernels.core.spec import parse_text
from rope_kernels.ops.operators import inputs_of

__all__ = [
    "NormedAttempt",
    "Weights",
    "check_alone",
    "check_hard_rows",
    "check_near",
    "check_tail",
    "gradients_exactly",
    "norms_of",
]

Weights = dict[str, Tensor | None]
Gradients = tuple[Tensor, "Tensor | None"]


def norms_of(call: NormedCall, weights: Weights) -> Norms:
    """What a backend is told of a call's norms."""
    given = [call.norm(side, weights[side]) for side in "qk"]
    numbers = [None if n is None else Norm(n.eps, n.weight_offset, n.after_rope) for n in given]
    return Norms(*numbers, *(None if n is None else n.weight for n in given))


class NormedAttempt(Attempt):
    """A call in place or into NaN, with its ``weights``; :meth:`check` is for after :meth:`make`."""

    def __init__(
        self, normed_call: NormedCall, in_place: bool, made: Made | None = None, view: str | None = None
    ) -> None:
        super().__init__(normed_call.case, in_place, made, view)
        self.normed_call, self.weights = normed_call, normed_call.weights()
        self._read_only += [(weight, weight.clone()) for weight in self.weights.values() if weight is not None]

    def make(self, rotate_norm: Callable[..., object]) -> None:
        """Make the call by a backend's function."""
        operation = parse_text(self.arguments.text)
        views = [
            None if x is None else tokens_first(x, operation.layout)
            for side in (self.inputs, self.outputs)
            for x in [*side, None][:2]
        ]
        inputs = inputs_of(self.arguments, operation)
        rotate_norm(*views, inputs, operation.spec, norms_of(self.normed_call, self.weights))

    def check(self) -> None:
        """Assert that the outputs are right, and that nothing else was written."""
        for side, x, y in zip("qk", self.before, self.outputs, strict=False):
            norm = self.normed_call.norm(side, self.weights[side])
            normed.check(self.case, y, normed.exactly(self.case, x, norm), norm, x)
        self.check_the_rest()


Attempted = Callable[[NormedCall, bool, "Made | None"], NormedAttempt]
"""(call, in place, tensors or ``None``) to an attempt whose call has been made."""


def check_alone(attempted: Attempted, call: NormedCall) -> None:
    """The rows of the last token are the same, bit by bit, if there are no others."""
    together = attempted(call, False, None)
    made = together.made
    positions = None if made.positions is None else made.positions[..., -1:]
    alone = Made(made.q[-1:, -1:], made.k[-1:, -1:], positions, made.options, (None, None))
    if positions is not None and positions.dim() > 1:
        alone.positions = positions[..., -1:, :]
    attempt = attempted(NormedCall(call.case, call.kind), False, alone)
    for one, all_rows in zip(attempt.outputs, together.outputs, strict=True):
        assert torch.equal(bits(one), bits(all_rows[-1:, -1:]))


def check_tail(attempted: Attempted) -> None:
    """Tokens past all sequences are copied bit by bit, unnormed, in place as well."""
    for kind, in_place in ((NORMS[0], False), (NORMS[1], True)):
        (case,) = (case for case in CASES if case.name == "packed-partial-tail")
        made = make(case)
        for x in (made.q, made.k):
            x[2:] = float("nan")
            x[2:, :, ::3] = float("inf")
        attempt = attempted(NormedCall(case, kind), in_place, made)
        for x, y in zip(attempt.before, attempt.outputs, strict=True):
            assert torch.equal(bits(x[2:]), bits(y[2:]))


def check_hard_rows(attempted: Attempted, dtype: torch.dtype) -> None:
    """Rows of zeros, of the largest numbers, of numbers whose squares are 0 or below eps, and one with a NaN."""
    case = Case("hard rows", dict(head_dim=64), dtype=dtype, batch=1, tokens=6, q_heads=2, k_heads=1, start=3)
    made = make(case)
    largest = min(torch.finfo(dtype).max, 2.0**60)
    for x in (made.q, made.k):
        x[0, 0] = 0
        x[0, 1] = largest * x[0, 1].double().div(x[0, 1].double().abs().max()).to(dtype)
        x[0, 2] *= 1e-4
        x[0, 3] *= torch.finfo(dtype).smallest_normal
        x[0, 5, 0, 7] = float("nan")
    attempt = attempted(NormedCall(case, NORMS[2]), False, made)
    for side, x, y in zip("qk", attempt.before, attempt.outputs, strict=True):
        norm = attempt.normed_call.norm(side, None)
        for token in range(5):  # each against its own largest value
            expected = normed.exactly(case, x, norm)[:, token]
            normed.check(case, y[:, token], expected, norm, x[:, token])
        assert y[0, 5, 0].isnan().all()
        assert not y[0, 5, 1:].isnan().any()


def _rotated(case: Case, x: Tensor, *, inverse: bool = False) -> Tensor:
    return rotated_exactly(replace(case, inverse=inverse), x)


def gradients_exactly(call: NormedCall, side: str, x: Tensor, grad: Tensor, weight: Tensor | None) -> Gradients:
    """float64: of ``x`` and of the weight, given that of the result, in the layout of the case."""
    case, norm = call.case, call.norm(side, weight)
    if norm is None:
        return _rotated(case, grad, inverse=True), None
    group = torch.from_numpy(np.asarray(where_and_how_long(case)[1]))
    outside = (group < 0)[:, :, None, None]
    outside = from_tokens_first(outside, case.layout)
    live = grad.double().masked_fill(outside, 0.0)
    row = _rotated(case, x) if norm.after_rope else x.double()
    h = live if norm.after_rope else _rotated(case, live, inverse=True)
    rms = torch.sqrt(row.square().mean(-1, keepdim=True) + norm.eps)
    z = row / rms
    of_weight = None if weight is None else (h * z).sum(tuple(range(h.dim() - 1)))
    h = h if weight is None else h * (weight.double() + norm.weight_offset)
    of_x = (h - z * (h * z).mean(-1, keepdim=True)) / rms
    of_x = _rotated(case, of_x, inverse=True) if norm.after_rope else of_x
    return torch.where(outside, grad.double(), of_x), of_weight


def check_near(got: Tensor, exact: Tensor) -> None:
    """Assert that a gradient is as near to the exact one as results are."""
    largest = float(exact.abs().max()) if exact.numel() else 0.0
    step = torch.finfo(got.dtype).eps / 2 if got.dtype != torch.float32 else 0.0
    error = (got.double() - exact).abs()
    assert bool((error <= tolerances.NORMED_GRADIENT_EPS * largest + step * exact.abs()).all()), (
        f"off by {float(error.max()):.3g} of {largest:.3g}"
    )
