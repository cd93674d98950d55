"""Calls of the Triton launcher for norms, and what must come of them, whether interpreted or emulated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from support import launches, normed_attempts, tolerances
from support.attempts import bits
from support.calls import arguments
from support.cases import Made, make, seed_of
from support.normed import CALLS, CAN_BE_NORMED, NORMS, NormedCall, NormKind
from support.normed_attempts import Weights, check_near, gradients_exactly, norms_of
from torch import Tensor

from rope_kernels.backends.triton import launch as triton_launch
from rope_kernels.core.layouts import from_tokens_first, tokens_first
from rope_kernels.core.spec import parse_text
from rope_kernels.ops.operators import inputs_of

__all__ = [
    "ALONE", "HARD_ROWS", "MANY_TOKENS", "SHORT", "WITH_TOKENS", "NormedAttempt", "norms_of", "run", "run_alone",
    "run_backward", "run_backward_of_hard_rows", "run_backward_of_one", "run_hard_rows", "run_one_of_two_in_place",
    "run_tail",
]  # fmt: skip

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


class NormedAttempt(normed_attempts.NormedAttempt):
    """An attempt by the Triton launcher."""

    def make(self, rotate_norm: Callable[..., object] = triton_launch.rotate_norm) -> None:
        """Make the call."""
        super().make(rotate_norm)


def run(call: NormedCall, in_place: bool) -> None:
    """Make and check a call."""
    attempt = NormedAttempt(call, in_place)
    attempt.make()
    attempt.check()


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
        check_near(found[i], of_x)
        assert (of_weight is None) == (found[2 + i] is None)
        if of_weight is not None:
            assert found[2 + i].dtype == weight.dtype
            check_near(found[2 + i], of_weight)
            assert torch.equal(bits(found[2 + i]), bits(again[2 + i]))


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
            check_near(found[i][:, token], exact[:, token])


def run_one_of_two_in_place() -> None:
    """q in place and k apart: two launches."""
    call = NormedCall(launches.BY_NAME["interleaved_to_half-bfloat16-forward"], NORMS[0])
    q, k = NormedAttempt(call, in_place=True), NormedAttempt(call, in_place=False)
    q.outputs = [q.outputs[0], k.outputs[1]]
    q.make()
    q.check()


def _attempted(call: NormedCall, in_place: bool, made: Made | None) -> NormedAttempt:
    attempt = NormedAttempt(call, in_place, made)
    attempt.make()
    return attempt


def run_alone(call: NormedCall) -> None:
    """The rows of the last token are the same, bit by bit, if there are no others."""
    normed_attempts.check_alone(_attempted, call)


def run_tail() -> None:
    """Tokens past all sequences are copied bit by bit, unnormed, in place as well."""
    normed_attempts.check_tail(_attempted)


def run_hard_rows(dtype: torch.dtype) -> None:
    """Rows of zeros, of the largest numbers, of numbers whose squares are 0 or below eps, and one with a NaN."""
    normed_attempts.check_hard_rows(_attempted, dtype)
