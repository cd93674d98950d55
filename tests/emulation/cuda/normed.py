"""Calls with norms as the CUDA launcher takes them, and calls that make it choose each kernel that norms."""

from __future__ import annotations

import torch
from support.calls import arguments, inputs
from support.cases import Case, Made, make
from support.normed import CAN_BE_NORMED, NORMS, NormedCall
from support.normed_attempts import NormedAttempt, check_near, gradients_exactly, norms_of

from rope_kernels.backends.inputs import Norms
from rope_kernels.core.layouts import tokens_first
from rope_kernels.core.spec import parse_text

from .calls import Gradient, cuda_call
from .kernels import KERNEL_CASES

__all__ = ["EVERY_CUDA_CALL", "KERNEL_CALLS", "CudaBackwardAttempt", "CudaNormedAttempt"]

_WIDE = dict(batch=1, tokens=2, q_heads=2, k_heads=1, start=77)
_WIDE_HEADS = [
    Case("norm of 512 pairs", dict(head_dim=1024), dtype=torch.bfloat16, **_WIDE),
    Case("norm of 1024 pairs", dict(head_dim=2048, pairing="interleaved"), **_WIDE),
    Case("norm of 1024 mixed pairs", dict(head_dim=2048, pairing="interleaved_to_half"), **_WIDE),
    Case("norm of 8192 channels", dict(head_dim=8192, partial_rotary_factor=1 / 64), dtype=torch.float16, **_WIDE),
    Case("norm of 8192 channels one by one", dict(head_dim=8192, partial_rotary_factor=9 / 4096), **_WIDE),
]
_MIXED = [case for case in CAN_BE_NORMED if case.name.startswith("interleaved_to_half-") and "forward" in case.name]
KERNEL_CALLS = [
    NormedCall(case, NORMS[i % len(NORMS)])
    for i, case in enumerate(case for case in (*KERNEL_CASES, *_WIDE_HEADS, *_MIXED) if not case.inverse)
]
EVERY_CUDA_CALL = [
    NormedCall(case, kind) for case in (*CAN_BE_NORMED, *KERNEL_CASES) for kind in NORMS if not case.inverse
]


class CudaNormedAttempt(NormedAttempt):
    """An attempt at a call with norms by the launcher: its ``call``. Outputs may have other strides than inputs."""

    def __init__(self, normed_call: NormedCall, in_place: bool, made: Made | None = None) -> None:
        super().__init__(normed_call, in_place, made, "fused" if normed_call.case.view == "dense" else "dense")
        operation = parse_text(self.arguments.text)
        self.call = cuda_call(self.sides, inputs(self.arguments), operation.spec.encode(), operation.layout)
        self.put_norms()

    def put_norms(self) -> None:
        """Give the call the weights that the attempt has now."""
        self.call.put_norms(norms_of(self.normed_call, self.weights))


class CudaBackwardAttempt:
    """The gradients of a call with norms about to be made by the launcher: its ``call``; then :meth:`check` them.

    ``parts``: tokens are shared out to so many, at most; ``without``: "q" or "k", whose results have no gradient.
    """

    def __init__(self, normed_call: NormedCall, parts: int, without: str = "") -> None:
        self.normed_call, self.weights = normed_call, normed_call.weights()
        made = make(normed_call.case)
        args = arguments(normed_call.case, made)
        operation = parse_text(args.text)
        generator = torch.Generator().manual_seed(parts)
        given = {side: x for side, x in zip("qk", (made.q, made.k), strict=True) if x is not None and side != without}
        self.inputs = given
        self.grads = {side: torch.randn(x.shape, generator=generator).to(x.dtype) for side, x in given.items()}
        self.outputs = {side: torch.full_like(x, float("nan")) for side, x in given.items()}
        norms, head_dim = norms_of(normed_call, self.weights), made.q.shape[-1]
        norms_by_side = {side: (norms[i], norms[2 + i]) for i, side in enumerate("qk") if side in given}
        self.partials = {
            side: torch.zeros((parts, head_dim)) for side, (_, weight) in norms_by_side.items() if weight is not None
        }
        sides = [*((self.grads[side], self.outputs[side]) for side in given), (None, None)][:2]
        self.call = cuda_call(sides, inputs(args), operation.spec.encode(), operation.layout)
        wide = [Gradient(tokens_first(x, operation.layout), self.partials.get(side)) for side, x in given.items()]
        used = [*norms_by_side.values(), (None, None)][:2]
        self.call.put_norms(Norms(*(n for n, _ in used), *(w for _, w in used)), [*wide, None][:2], parts)

    def __str__(self) -> str:
        return f"gradients of {self.normed_call}"

    def check(self) -> None:
        """Assert that the gradients are as near to the exact ones as results are."""
        for side, x in self.inputs.items():
            weight = self.weights[side] if side in self.partials else None
            of_x, of_weight = gradients_exactly(self.normed_call, side, x, self.grads[side], weight)
            check_near(self.outputs[side], of_x)
            if of_weight is not None:
                check_near(self.partials[side].sum(0), of_weight)
