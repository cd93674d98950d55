"""Every call that the direct path takes, made again by the checked door: the same bits and strides, and no refusal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.attempts import bits
from torch import Tensor

from rope_kernels.api import cache_checks, cached, checks, table
from rope_kernels.api.kv_cache import KVCache
from rope_kernels.api.prepare import prepare
from rope_kernels.config import RopeConfig
from rope_kernels.core.layouts import LAYOUTS
from rope_kernels.core.spec import Operation, parse_text
from rope_kernels.errors import RopeShapeError
from rope_kernels.ops import append_operators, cached_operators, direct, norm_operators, operators
from rope_kernels.ops.append_operators import Stored
from rope_kernels.ops.operators import Arguments

__all__ = ["FUNCTIONS", "WRITTEN", "Comparison", "refuse_all"]

_USUAL = 7  # arguments of a call, before outputs and the weights of norms
WRITTEN = {
    "rotate": slice(0),
    "rotate_": slice(2),
    "rotate_out": slice(_USUAL, _USUAL + 2),
    "rotate_table": slice(0),
    "rotate_cached": slice(8, 10),
    "append": slice(14, 18),
}
"""The arguments that each function writes: q_out and k_out, and for append the caches."""
FUNCTIONS = tuple(WRITTEN)
_NAMES = "q", "k", "cache.k", "cache.v"
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
            written = [x for x in arguments[WRITTEN[name]] if isinstance(x, Tensor) and not x.is_inference()]
            versions = [x._version for x in written]
            given = list(arguments)
            if arguments[WRITTEN[name]]:  # maybe q and k themselves
                given[:2] = [_copy(x) for x in arguments[:2]]
            if name == "append":
                given[16:18] = [_copy(x) for x in arguments[16:18]]
            made = function(*arguments)
            if made:
                self.calls += 1
                self._compare(name, arguments, given, made)
                if any(x._version <= version for x, version in zip(written, versions, strict=True)):
                    self.differences.append(f"{name}: the version of what was written did not rise")
            return made

        return call

    def _compare(self, name: str, arguments: tuple[Any, ...], given: list[Any], made: Any) -> None:
        outputs = arguments[WRITTEN[name]]
        try:
            _check_outputs(name, *arguments[:2], outputs)
            wanted = _by_the_checked_door(name, given)
        except (RopeShapeError, TypeError) as error:
            self.differences.append(f"{name}: taken, but the checked door says {error}")
            return
        for which, x, y in zip(_NAMES, outputs or made, wanted, strict=False):
            if (x is None) != (y is None):
                self.differences.append(f"{name}: {which} is {x}, wanted {y}")
            elif x is not None:
                self._compare_tensors(f"{name}: {which}", x, y, not outputs)

    def _compare_tensors(self, label: str, x: Tensor, y: Tensor, new: bool) -> None:
        if x.shape != y.shape or x.dtype != y.dtype or (new and x.stride() != y.stride()):
            self.differences.append(f"{label} is {_form(x)}, wanted {_form(y)}")
        elif not torch.equal(bits(x.resolve_neg()), bits(y)):
            self.differences.append(f"{label} {_form(x)} differs by {(x.double() - y.double()).abs().max()}")


def _check_outputs(name: str, q: Tensor, k: Tensor | None, outputs: tuple[Any, ...]) -> None:
    """What the checked door refuses in what is written. That of append checks with the call."""
    if outputs and name != "append":
        if outputs[0] is q and outputs[1] is k:
            checks.check_in_place(q, k)
        else:
            checks.check_outputs(q, k, (outputs[0], outputs[1]))
            checks.check_outputs_apart(q, k, (outputs[0], outputs[1]))


def _by_the_checked_door(name: str, given: list[Any]) -> tuple[Tensor | None, ...]:
    with torch.no_grad():
        if name == "rotate_table":
            return _by_the_table(*given)
        if name == "rotate_cached":
            return _by_the_rows(*given[:8])
        if name == "append":
            return _by_the_append(given)
        return _by_the_operator(given[:_USUAL], given[_USUAL + (2 if name == "rotate_out" else 0) :])


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


def _prepared(usual: list[Any]) -> Arguments:
    """The operator's arguments after q and k, checked."""
    q, k, positions, offset, seq_len, cu_seqlens, text = usual
    operation = parse_text(text)
    args = prepare(
        q, k, positions, _ConfigOfText(operation), None, operation.layout, seq_len, offset, cu_seqlens,
        operation.inverse, unscaled=operation.unscaled,
    )  # fmt: skip
    return args._replace(text=text)


def _by_the_operator(usual: list[Any], weights: list[Any]) -> Pair:
    q, k = usual[:2]
    args = _prepared(usual)
    made = norm_operators.rotate_norm(q, k, *args, *weights) if weights else operators.rotate(q, k, *args)
    return made[0], None if k is None else made[1]


def _by_the_append(given: list[Any]) -> tuple[Tensor | None, ...]:
    q, k, v = *given[:2], given[_USUAL]
    stored, layout = Stored(*given[_USUAL + 1 :]), parse_text(given[6]).layout
    cache = KVCache(stored.k_cache, stored.v_cache, stored.slots, stored.k_scale, stored.v_scale)
    cache_checks.check_caches(q, k, v, cache, layout)
    tokens = math.prod(q.shape[axis] for axis in (LAYOUTS[layout].batch, LAYOUTS[layout].tokens) if axis is not None)
    slots = cache_checks.checked_slots(cache, q, layout, tokens)
    k_scale, v_scale = map(cache_checks.flat_scale, (stored.k_scale, stored.v_scale))
    q_out, k_out = (None if x is None else torch.empty_like(x) for x in (stored.q_out, stored.k_out))
    stored = stored._replace(slots=slots, k_scale=k_scale, v_scale=v_scale, q_out=q_out, k_out=k_out)
    append_operators.rotate_append(q, k, v, *_prepared(given[:_USUAL]), *stored)
    return q_out, k_out, stored.k_cache, stored.v_cache


def _by_the_table(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, unsqueeze_dim: int, pairing: str, is_full: bool
) -> Pair:
    return table._rotate_checked(q, k, cos, sin, unsqueeze_dim, pairing, "full" if is_full else None)


def _by_the_rows(
    q: Tensor, k: Tensor | None, positions: Tensor, cos: Tensor, sin: Tensor | None, rotary_dim: int | None,
    pairing: str, layout: str,
) -> Pair:  # fmt: skip
    """In place: q and k are copies."""
    checks.check_layout(layout)
    cos, sin = cached._checked_table(q, cos if sin is None else (cos, sin), rotary_dim)
    checks.check_qk(q, k, q.shape[-1], layout)
    checks.check_position_rows(positions, q, layout, 1)
    cached_operators.rotate_cached_(q, k, positions, cos, sin, pairing, layout)
    return q, k
