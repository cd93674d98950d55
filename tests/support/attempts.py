"""A case about to be rotated: what was there before, and what must be there afterwards, by any backend."""

from __future__ import annotations

import torch
from support.calls import arguments
from support.cases import Case, Made, check, make, strided
from torch import Tensor

from rope_kernels.backends import reference
from rope_kernels.core.layouts import tokens_first
from rope_kernels.core.spec import parse_text
from rope_kernels.ops.operators import inputs_of

__all__ = ["Attempt", "bits", "gaps"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(x: Tensor) -> Tensor:
    """``x`` as integers of its size."""
    return x.view(_INTEGERS[x.element_size()])


def gaps(x: Tensor) -> Tensor:
    """The elements of a view's storage that are not in the view, as integers."""
    whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    inside = torch.zeros(whole.shape, dtype=torch.bool)
    inside.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
    return bits(whole)[~inside].clone()


class Attempt:
    """A case in place or into NaN; :meth:`check` is for after it has been rotated.

    Attributes:
        made: its tensors.
        arguments: what follows q and k in the operator's schema.
        inputs: q and, if there is one, k.
        outputs: where they go; in place these are the inputs.
        before: copies of the inputs.
        expected: what the outputs must hold.
        sides: an (input, output) each of q and k, or of q and twice ``None``.
    """

    def __init__(
        self, case: Case, in_place: bool, made: Made | None = None, view: str | None = None, atol: float | None = None
    ) -> None:
        """``made``: tensors other than simply the case's; ``view``: the layout of outputs, if not that of inputs;
        ``atol``: how far they may be from the plain torch backend's, NaN for NaN, where the oracle knows no answer.
        """
        self.case, self.in_place, self.atol = case, in_place, atol
        self.made = made or make(case)
        self.arguments = arguments(case, self.made)
        self.inputs = [x for x in (self.made.q, self.made.k) if x is not None]
        known = [y for y in self.made.expected if y is not None]
        self.expected = known if atol is None else self._by_the_reference()
        self.before = [x.clone() for x in self.inputs]
        self.outputs = self.inputs if in_place else [self._nan_like(x, view or case.view) for x in self.inputs]
        self.sides = [*zip(self.inputs, self.outputs, strict=True), (None, None)][:2]
        self._around = [gaps(y) for y in self.outputs]
        self._read_only = [(x, x.clone()) for x in self.arguments if isinstance(x, Tensor)]
        if not in_place:
            self._read_only += zip(self.inputs, self.before, strict=True)

    def __str__(self) -> str:
        return f"{self.case} {'in place' if self.in_place else 'apart'}"

    @staticmethod
    def _nan_like(x: Tensor, view: str) -> Tensor:
        return strided(torch.full_like(x, float("nan"), memory_format=torch.contiguous_format), view)

    def _by_the_reference(self) -> list[Tensor]:
        operation = parse_text(self.arguments.text)
        expected = [torch.empty_like(x) for x in self.inputs]
        q, k, q_out, k_out = (
            None if x is None else tokens_first(x, operation.layout)
            for side in (self.inputs, expected)
            for x in [*side, None][:2]
        )
        reference.rotate(q, k, q_out, k_out, inputs_of(self.arguments, operation), operation.spec)
        return expected

    def check(self) -> None:
        """Assert that the outputs are right, and that nothing else was written."""
        for x, y, expected in zip(self.before, self.outputs, self.expected, strict=True):
            if self.atol is None:
                check(self.case, x, y, expected)
            else:
                torch.testing.assert_close(y, expected, rtol=0, atol=self.atol, equal_nan=True)
        self.check_the_rest()

    def check_the_rest(self) -> None:
        """Assert that nothing but the outputs was written."""
        for y, around in zip(self.outputs, self._around, strict=True):
            assert torch.equal(gaps(y), around), f"{self}: written outside of the output"
        for x, before in self._read_only:
            assert torch.equal(bits(x), bits(before)), f"{self}: an input was written"
