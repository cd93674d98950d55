"""Every call that the direct path takes, made again by the checked door: the same bits and strides, and no refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.attempts import bits
from torch import Tensor

from rope_kernels.api import checks, table
from rope_kernels.api.prepare import prepare
from rope_kernels.config import RopeConfig
from rope_kernels.core.spec import Operation, parse_text
from rope_kernels.errors import RopeShapeError
from rope_kernels.ops import direct, norm_operators, operators

__all__ = ["FUNCTIONS", "Comparison", "refuse_all"]

_USUAL = 7  # arguments of a call, before outputs and the weights of norms
FUNCTIONS = ("rotate", "rotate_", "rotate_out", "rotate_table")
Pair = tuple[Tensor, "Tensor | None"]


def refuse_all(patch: pytest.MonkeyPatch) -> None:
    """Let the direct path refuse every call, as where the extension was built without it."""
    for name in FUNCTIONS:
        patch.setattr(direct, name, lambda *arguments: None)


class Comparison:
    """Replaces the functions of :mod:`rope_kernels.ops.direct` by ones that compare.

    Attributes:
        calls: how many calls were taken, and compared.
        differences: what was wrong, a line each. Nothing is raised in the call, whose caller might catch it.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.differences: list[str] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Compare from now on, until ``patch`` is undone."""
        for name in FUNCTIONS:
            patch.setattr(direct, name, self._compared(name, getattr(direct, name)))

    def _compared(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            written = {"rotate_": arguments[:2], "rotate_out": arguments[_USUAL : _USUAL + 2]}.get(name, ())
            written = [x for x in written if isinstance(x, Tensor) and not x.is_inference()]
            versions = [x._version for x in written]
            given = list(arguments)
            if name in ("rotate_", "rotate_out"):  # which may write their inputs
                given[:2] = [_copy(x) for x in arguments[:2]]
            made = function(*arguments)
            if made:
                self.calls += 1
                self._compare(name, arguments, given, made)
                if any(x._version <= version for x, version in zip(written, versions, strict=True)):
                    self.differences.append(f"{name}: the version of what was written did not rise")
            return made

        return call

    def _compare(self, name: str, arguments: tuple[Any, ...], given: list[Any], made: Any) -> None:
        q, k, outputs = *arguments[:2], arguments[_USUAL : _USUAL + 2]
        weights = given[_USUAL + (2 if name == "rotate_out" else 0) :]
        try:
            if name == "rotate_":
                made = q, k
                checks.check_in_place(q, k)
            elif name == "rotate_out":
                made = outputs
                checks.check_outputs(q, k, tuple(made))
                checks.check_outputs_apart(q, k, tuple(made))
            wanted = _by_the_table(*given) if name == "rotate_table" else _by_the_operator(given[:_USUAL], weights)
        except (RopeShapeError, TypeError) as error:
            self.differences.append(f"{name}: taken, but the checked door says {error}")
            return
        for which, x, y in zip("qk", made, wanted, strict=True):
            if (x is None) != (y is None):
                self.differences.append(f"{name}: {which} is {x}, wanted {y}")
            elif x is not None:
                self._compare_tensors(f"{name}: {which}", x, y, name in ("rotate", "rotate_table"))

    def _compare_tensors(self, label: str, x: Tensor, y: Tensor, new: bool) -> None:
        if x.shape != y.shape or x.dtype != y.dtype or (new and x.stride() != y.stride()):
            self.differences.append(f"{label} is {_form(x)}, wanted {_form(y)}")
        elif not torch.equal(bits(x.resolve_neg()), bits(y)):
            self.differences.append(f"{label} {_form(x)} differs by {(x.double() - y.double()).abs().max()}")


def _copy(x: object) -> object:
    return x.clone(memory_format=torch.contiguous_format) if isinstance(x, Tensor) else x


def _form(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.stride()} {x.dtype}"


class _ConfigOfText(RopeConfig):
    """What the checked door reads of a config, from an operator's text."""

    def __init__(self, operation: Operation) -> None:
        spec = operation.spec
        read = {"head_dim": spec.rotation.head_dim, "_operation": operation, "_encoded": spec.encode()}
        for name, value in read.items():
            object.__setattr__(self, name, value)

    depends_on_length = property(lambda self: self._operation.spec.frequency.depends_on_length)
    num_axes = property(lambda self: self._operation.spec.rotation.num_axes)

    def spec(self, interleaved: bool | None = None) -> str:
        return self._encoded


def _by_the_operator(usual: list[Any], weights: list[Any]) -> Pair:
    q, k, positions, offset, seq_len, cu_seqlens, text = usual
    operation = parse_text(text)
    args = prepare(
        q, k, positions, _ConfigOfText(operation), None, operation.layout, seq_len, offset, cu_seqlens,
        operation.inverse, unscaled=operation.unscaled,
    )  # fmt: skip
    with torch.no_grad():
        args = args._replace(text=text)
        made = norm_operators.rotate_norm(q, k, *args, *weights) if weights else operators.rotate(q, k, *args)
        q_out, k_out = made
    return q_out, None if k is None else k_out


def _by_the_table(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, unsqueeze_dim: int, pairing: str, is_full: bool
) -> Pair:
    with torch.no_grad():
        return table._rotate_checked(q, k, cos, sin, unsqueeze_dim, pairing, "full" if is_full else None)
