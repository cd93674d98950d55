"""Calls of the Triton launcher for norms, and what must come of them, whether interpreted or emulated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from support import launches, normed, tolerances
from support.attempts import Attempt, bits
from support.calls import arguments
from support.cases import Case, Made, make, rotated_exactly, seed_of, where_and_how_long
from support.normed import CALLS, CAN_BE_NORMED, NORMS, NormedCall, NormKind
from torch import Tensor

from rope_kernels.backends.inputs import Norms
from rope_kernels.backends.triton import launch as triton_launch
from rope_kernels.core.layouts import from_tokens_first, tokens_first
from rope_kernels.core.norms import Norm
from rope_kernels.core.spec import parse_text
from rope_kernels.ops.operators import inputs_of

__all__ = [
    "ALONE", "HARD_ROWS", "MANY_TOKENS", "SHORT", "WITH_TOKENS", "NormedAttempt", "norms_of", "run", "run_alone",
    "run_backward", "run_backward_of_hard_rows", "run_backward_of_one", "run_hard_rows", "run_one_of_two_in_place",
    "run_tail",
]  # fmt: skip

Weights = dict[str, Tensor | None]
Gradients = tuple[Tensor, "Tensor | None"]

MANY_TOKENS = [
    NormedCall(case, NORMS[i % len(NORMS)])
    for i, case in enumerate(case for case in launches.MANY_TOKENS if case in CAN_BE_NORMED)
]
"""Calls for the launch shapes of many tokens."""
WITH_TOKENS = [call for call in CALLS if call.case.tokens and call.case.batch]
SHORT = CALLS[::9]
"""Some of all calls."""
ALONE = [
    NormedCall(launches.BY_NAME[name], NORMS[i % len(NORMS)])
    for i, name in enumerate(
        ("half-bfloat16-forward", "interleaved-float16-forward", "interleaved_to_half-bfloat16-forward", "partial-near",
         "head_dim80-half", "head_dim512-interleaved", "head_dim512-half", "axial_qwen-near")
    )
]  # fmt: skip
"""Calls whose rows must not depend on the others."""
HARD_ROWS = [torch.float32, torch.float16, torch.bfloat16]


def norms_of(call: NormedCall, weights: Weights) -> Norms:
    """What a backend is told of a call's norms."""
    given = [call.norm(side, weights[side]) for side in "qk"]
    numbers = [None if n is None else Norm(n.eps, n.weight_offset, n.after_rope) for n in given]
    return Norms(*numbers, *(None if n is None else n.weight for n in given))


class NormedAttempt(Attempt):
    """A call in place or into NaN; :meth:`check` is for after :meth:`make`."""

    def __init__(self, call: NormedCall, in_place: bool, made: Made | None = None) -> None:
        super().__init__(call.case, in_place, made)
        self.call, self.weights = call, call.weights()
        self._read_only += [(weight, weight.clone()) for weight in self.weights.values() if weight is not None]

    def make(self, rotate_norm: Callable[..., object] = triton_launch.rotate_norm) -> None:
        """Make the call."""
        operation = parse_text(self.arguments.text)
        views = [
            None if x is None else tokens_first(x, operation.layout)
            for side in (self.inputs, self.outputs)
            for x in [*side, None][:2]
        ]
        inputs = inputs_of(self.arguments, operation)
        rotate_norm(*views, inputs, operation.spec, norms_of(self.call, self.weights))

    def check(self) -> None:
        """Assert that the outputs are right, and that nothing else was written."""
        for side, x, y in zip("qk", self.before, self.outputs, strict=False):
            norm = self.call.norm(side, self.weights[side])
            normed.check(self.case, y, normed.exactly(self.case, x, norm), norm, x)
        self.check_the_rest()


def run(call: NormedCall, in_place: bool) -> None:
    """Make and check a call."""
    attempt = NormedAttempt(call, in_place)
    attempt.make()
    attempt.check()


def run_alone(call: NormedCall) -> None:
    """The rows of the last token are the same, bit by bit, if there are no others."""
    together = NormedAttempt(call, in_place=False)
    together.make()
    made = together.made
    positions = None if made.positions is None else made.positions[..., -1:]
    alone = Made(made.q[-1:, -1:], made.k[-1:, -1:], positions, made.options, (None, None))
    if positions is not None and positions.dim() > 1:
        alone.positions = positions[..., -1:, :]
    attempt = NormedAttempt(NormedCall(call.case, call.kind), False, alone)
    attempt.make()
    for one, all_rows in zip(attempt.outputs, together.outputs, strict=True):
        assert torch.equal(bits(one), bits(all_rows[-1:, -1:]))


def _rotated(case: Case, x: Tensor, *, inverse: bool = False) -> Tensor:
    return rotated_exactly(replace(case, inverse=inverse), x)


def gradients_exactly(call: NormedCall, side: str, x: Tensor, grad: Tensor, weight: Tensor | None) -> Gradients:
    """float64: of ``x`` and of the weight, given that of the result, in the layout of the case."""
    case, norm = call.case, call.norm(side, weight)
    if norm is None:
        return _rotated(case, grad, inverse=True), None
    group = torch.from_numpy(np.asarray(where_and_how_long(case)[1]))
    outside = (group < 0)[:, :, None, None]
    outside = outside.transpose(1, 2) if case.layout == "bhsd" else outside[0] if case.layout == "thd" else outside
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


def gradients(call: NormedCall, made: Made, grads: list[Tensor | None], weights: Weights) -> list[Tensor | None]:
    """What the launcher makes of them: of q, k and both weights, in the layout of the case."""
    args = arguments(call.case, made)
    operation = parse_text(args.text)
    layout = operation.layout
    q, k, *wide = (None if x is None else tokens_first(x, layout) for x in (made.q, made.k, *grads))
    norms = norms_of(call, weights)
    found = triton_launch.rotate_norm_backward(tuple(wide), q, k, inputs_of(args, operation), operation.spec, norms)
    return [*(None if x is None else from_tokens_first(x, layout) for x in found[:2]), *found[2:]]


def run_backward(call: NormedCall) -> None:
    """The gradients are as near to the exact ones as results are; those of the weights have the same bits twice."""
    case, made, weights = call.case, make(call.case), call.weights()
    generator = torch.Generator().manual_seed(seed_of(case) + 2)
    inputs = [made.q, made.k]
    grads = [None if x is None else torch.randn(x.shape, generator=generator).to(x.dtype) for x in inputs]
    found, again = (gradients(call, made, grads, weights) for _ in range(2))
    for i, side in enumerate("qk"):
        if inputs[i] is None:
            assert found[i] is None
            continue
        weight = None if call.norm(side, weights[side]) is None else weights[side]
        of_x, of_weight = gradients_exactly(call, side, inputs[i], grads[i], weight)
        assert found[i].dtype == case.dtype
        _check_near(found[i], of_x)
        assert (of_weight is None) == (found[2 + i] is None)
        if of_weight is not None:
            assert found[2 + i].dtype == weight.dtype
            _check_near(found[2 + i], of_weight)
            assert torch.equal(bits(found[2 + i]), bits(again[2 + i]))


def _check_near(got: Tensor, exact: Tensor) -> None:
    largest = float(exact.abs().max()) if exact.numel() else 0.0
    step = torch.finfo(got.dtype).eps / 2 if got.dtype != torch.float32 else 0.0
    error = (got.double() - exact).abs()
    assert bool((error <= tolerances.NORMED_GRADIENT_EPS * largest + step * exact.abs()).all()), (
        f"off by {float(error.max()):.3g} of {largest:.3g}"
    )


def run_backward_of_one() -> None:
    """Only q's results, or only k's, have a gradient."""
    call = NormedCall(launches.BY_NAME["half-float32-forward"], NORMS[6])
    made, weights = make(call.case), call.weights()
    both = gradients(call, made, [made.q, made.k], weights)
    of_q = gradients(call, made, [made.q, None], weights)
    of_k = gradients(call, made, [None, made.k], weights)
    assert of_q[1] is of_q[3] is of_k[0] is of_k[2] is None
    for found, wanted in ((of_q[0], both[0]), (of_q[2], both[2]), (of_k[1], both[1]), (of_k[3], both[3])):
        torch.testing.assert_close(found, wanted, **tolerances.TWO_WAYS)


def run_backward_of_hard_rows(kind: NormKind) -> None:
    """Rows of the largest numbers and of numbers whose squares are below eps, each against its own largest gradient."""
    call = NormedCall(launches.BY_NAME["half-float32-forward"], kind)
    made, weights = make(call.case), call.weights()
    for x in (made.q, made.k):
        x[:, 0] *= 2.0**58
        x[:, 1] *= 2.0**-60
    grads = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) for x in (made.q, made.k)]
    found = gradients(call, made, grads, weights)
    for i, side in enumerate("qk"):
        exact, _ = gradients_exactly(call, side, (made.q, made.k)[i], grads[i], weights[side])
        for token in range(call.case.tokens):
            _check_near(found[i][:, token], exact[:, token])


def run_one_of_two_in_place() -> None:
    """q in place and k apart: two launches."""
    call = NormedCall(launches.BY_NAME["interleaved_to_half-bfloat16-forward"], NORMS[0])
    q, k = NormedAttempt(call, in_place=True), NormedAttempt(call, in_place=False)
    q.outputs = [q.outputs[0], k.outputs[1]]
    q.make()
    q.check()


def run_tail() -> None:
    """Tokens past all sequences are copied bit by bit, unnormed, in place as well."""
    for kind, in_place in ((NORMS[0], False), (NORMS[1], True)):
        attempt = NormedAttempt(NormedCall(launches.BY_NAME["packed-partial-tail"], kind), in_place)
        for x in attempt.inputs:
            x[2:] = float("nan")
            x[2:, :, ::3] = float("inf")
        before = [x[2:].clone() for x in attempt.inputs]
        attempt.make()
        for x, y in zip(before, attempt.outputs, strict=True):
            assert torch.equal(bits(x), bits(y[2:]))


def run_hard_rows(dtype: torch.dtype) -> None:
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
    attempt = NormedAttempt(NormedCall(case, NORMS[2]), False, made)
    attempt.make()
    for side, x, y in zip("qk", attempt.before, attempt.outputs, strict=True):
        norm = attempt.call.norm(side, None)
        for token in range(5):  # each against its own largest value
            expected = normed.exactly(case, x, norm)[:, token]
            normed.check(case, y[:, token], expected, norm, x[:, token])
        assert y[0, 5, 0].isnan().all()
        assert not y[0, 5, 1:].isnan().any()
