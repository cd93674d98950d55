"""Measures which known convention an apply function follows, on random tensors."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .conventions import COLUMNS, Convention, Signature, read_signature
from .rotating import by_table
from .surroundings import measuring

__all__ = ["probe_function"]

# all different, so that nothing broadcasts by accident
BATCH, TOKENS, HEADS, HEAD_DIM = 2, 5, 3, 24
_WIDTHS = (HEAD_DIM, HEAD_DIM // 2, HEAD_DIM // 3)
_TOLERANCE = 1e-5  # for sums of two fp32 products of numbers around one
_SHAPES = {True: (BATCH, TOKENS, HEADS, HEAD_DIM), False: (BATCH, HEADS, TOKENS, HEAD_DIM)}

_CPU = torch.device("cpu")

_known: weakref.WeakKeyDictionary[Callable[..., Any], Convention | str | None] = weakref.WeakKeyDictionary()


def probe_function(function: Callable[..., Any], device: torch.device = _CPU) -> Convention | str | None:
    """The convention of an apply function; or why it follows no known one; or ``None`` if it takes no table.

    The function gets random q, k and tables with independent entries, of several widths, layouts and ranks. A
    convention is accepted if our table kernel with that convention gives the same results in every trial that the
    function accepts. It is called with tensors on the CPU, and if it takes none there (the kernels of other libraries),
    with tensors on ``device``.
    """
    if function not in _known:
        signature = read_signature(function)
        if not isinstance(signature, Signature):
            _known[function] = signature
        else:
            try:
                _known[function] = _measured(function, signature, device)
            except _RefusedError as error:
                return str(error)  # not kept: on another device the answer may differ
    return _known[function]


class _RefusedError(Exception):
    """The function accepts no trial."""


def _measured(function: Callable[..., Any], signature: Signature, device: torch.device) -> Convention | str:
    with measuring():
        try:
            return _measure(function, signature, _CPU)
        except _RefusedError:
            if device.type in ("cpu", "meta"):
                raise
            return _measure(function, signature, device)


class _Trial:
    """One call: tensors to rotate, a table, and the function's results."""

    def __init__(
        self, tensors: list[Tensor], tables: list[Tensor], insert: int | None, tokens_first: bool,
        device: torch.device
    ) -> None:  # fmt: skip
        self.device = device
        self.problem: Exception | None = None
        self.tensors = tensors
        self.tables = tables
        self.insert = insert
        self.tokens_first = tokens_first
        self.result: list[Tensor] = []

    def run(self, function: Callable[..., Any], signature: Signature) -> bool:
        """Call the function. Returns whether it accepts the arguments."""
        names = (*signature.rotated, *signature.tables)
        given = {
            name: t.to(self.device, copy=True) for name, t in zip(names, (*self.tensors, *self.tables), strict=True)
        }
        insert = {} if self.insert is None else {"unsqueeze_dim": self.insert}
        try:
            result = function(**given, **insert)
        except Exception as error:  # a function may raise anything for arguments that it does not take
            self.problem = error
            return False
        is_pair = isinstance(result, (tuple, list))
        self.result = [y.cpu() if isinstance(y, Tensor) else y for y in (result if is_pair else [result])]
        return is_pair == (len(self.tensors) == 2) and len(self.result) == len(self.tensors) and self._same_shapes()

    def _same_shapes(self) -> bool:
        return all(isinstance(y, Tensor) and y.shape == x.shape for x, y in zip(self.tensors, self.result, strict=True))

    def keeps_dtype(self, function: Callable[..., Any], signature: Signature) -> bool:
        """Whether the same call in bf16 has results in bf16."""
        tensors = [x.to(torch.bfloat16) for x in self.tensors]
        tables = [t if t.is_complex() else t.to(torch.bfloat16) for t in self.tables]
        low = _Trial(tensors, tables, self.insert, self.tokens_first, self.device)
        return low.run(function, signature) and all(y.dtype == torch.bfloat16 for y in low.result)

    def agrees(self, convention: Convention) -> bool:
        """Whether the table kernel with this convention has the same results."""
        q, k = self.tensors[0], self.tensors[1] if len(self.tensors) == 2 else None
        mine = by_table(convention, q, k, self.tables, self.insert)
        if mine is None:
            return False
        return all(
            torch.allclose(y.float(), x, rtol=0, atol=_TOLERANCE)
            for x, y in zip(mine, self.result, strict=False)
            if x is not None
        )


def _measure(function: Callable[..., Any], signature: Signature, device: torch.device) -> Convention | str:
    trials = list(_trials(signature, device))
    done = [trial for trial in trials if trial.run(function, signature)]
    if not done:
        problem = trials[0].problem
        raise _RefusedError(f"it takes no table of a known convention{_refusal(function, device, problem)}")
    for convention in _candidates(signature):
        mine = [t for t in done if signature.insert is not None or t.tokens_first == convention.tokens_first]
        if mine and all(trial.agrees(convention) for trial in mine):
            if not mine[0].keeps_dtype(function, signature):
                return "its results have another dtype than q"
            return _with_odd_tables(function, convention, device)
    return "its results match no known convention"


def _refusal(function: Callable[..., Any], device: torch.device, problem: Exception | None) -> str:
    if problem is None:
        return ""
    where = getattr(function, "__module__", "?")
    remedy = "; if it needs a GPU, patch the model there" if device.type == "cpu" else ""
    return f" on {device.type} tensors ({where} raised {type(problem).__name__}: {_first_line(problem)}){remedy}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _with_odd_tables(function: Callable[..., Any], convention: Convention, device: torch.device) -> Convention | str:
    """The convention with ``prefix`` or ``reshapes`` set, if the function takes a shorter or reshaped table."""
    signature, first = convention.signature, convention.tokens_first
    generator = torch.Generator("cpu").manual_seed(1)
    width = HEAD_DIM // 2 if convention.columns in ("half_width", "complex") else HEAD_DIM
    for changed, leads in (
        (replace(convention, prefix=True), [(TOKENS - 2,), (1, TOKENS - 2)]),
        (replace(convention, reshapes=True), [(TOKENS, 1)]),
    ):
        trials = [
            _Trial(
                _tensors(signature, _SHAPES[first], first, generator),
                _tables(signature, (*lead, width), generator),
                None,
                first,
                device,
            )
            for lead in leads
            if signature.insert is None
        ]
        done = [trial for trial in trials if trial.run(function, signature)]
        if done and not all(trial.agrees(changed) for trial in done):
            return "it does more than rotate if the table is shorter than q or has another shape"
        if done:
            return changed
    return convention


def _candidates(signature: Signature) -> Iterator[Convention]:
    columns = ("complex",) if len(signature.tables) == 1 else COLUMNS[:3]
    orders = [(False, False)] if signature.insert is not None else [(False, False), (False, True), (True, False)]
    for order, trailing, inverse, pairing, column in itertools.product(
        orders, (False, True), (False, True), ("half", "interleaved", "interleaved_to_half"), columns
    ):
        yield Convention(signature, pairing, column, inverse, trailing, *order)


def _trials(signature: Signature, device: torch.device) -> Iterator[_Trial]:
    generator = torch.Generator("cpu").manual_seed(0)
    for width, (tokens_first, lead, rank) in itertools.product(_WIDTHS, _layouts(signature)):
        shape = _SHAPES[tokens_first][4 - rank :]
        insert = None if signature.insert is None else (len(lead) if tokens_first else len(lead) - 1)
        yield _Trial(
            _tensors(signature, shape, tokens_first, generator),
            _tables(signature, (*lead, width), generator),
            insert,
            tokens_first,
            device,
        )


def _layouts(signature: Signature) -> list[tuple[bool, tuple[int, ...], int]]:
    """(whether tokens come first, the table's leading dimensions, rank of q) of each trial."""
    layouts: list[tuple[bool, tuple[int, ...], int]] = [
        (True, (BATCH, TOKENS), 4),
        (False, (BATCH, TOKENS), 4),
        (True, (1, TOKENS), 4),
        (False, (1, TOKENS), 4),
        (True, (TOKENS,), 3),
        (False, (TOKENS,), 4),
    ]
    return layouts


def _tensors(
    signature: Signature, shape: tuple[int, ...], tokens_first: bool, generator: torch.Generator
) -> list[Tensor]:
    heads = -2 if tokens_first else -3
    one_head = list(shape)
    one_head[heads] = 1
    return [torch.randn(s, generator=generator) for s in (shape, one_head)[: len(signature.rotated)]]


def _tables(signature: Signature, shape: tuple[int, ...], generator: torch.Generator) -> list[Tensor]:
    cos, sin = torch.randn(2, *shape, generator=generator).unbind()
    return [cos, sin] if len(signature.tables) == 2 else [torch.complex(cos, sin)]
