"""Measures how a function rotates, on random tensors and tables."""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..transformers.surroundings import measuring
from .conventions import Convention, Key, Signature, read_signature, structure_of
from .rotating import by_table

__all__ = ["Measured", "probe_function"]

# all different, so that nothing broadcasts by accident
BATCH, FIRST, SECOND, HEAD_DIM = 2, 5, 3, 24
_TOLERANCE = 1e-5  # for sums of two fp32 products of numbers around one
_ROUNDED = 1 / 64  # for results that the function itself rounds to bf16: two units in the last place
_NUMBERS = (1, 2, -1, -2)  # for options that are numbers, beside the default


@dataclass(frozen=True)
class Measured:
    """What was found: how the function rotates, by the :data:`Key` of its calls."""

    signature: Signature
    conventions: dict[Key, Convention]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the conventions, each once."""
        return tuple(dict.fromkeys(convention.name for convention in self.conventions.values()))


_known: weakref.WeakKeyDictionary[Callable[..., Any], Measured | str] = weakref.WeakKeyDictionary()


def probe_function(function: Callable[..., Any]) -> Measured | str:
    """How a function rotates by a table, or why it follows no known convention.

    The function gets random tensors and tables with independent entries: in each form, with each number of dimensions
    and each option. A convention is accepted if the table kernel gives the same results in every trial with this form,
    rank and option that the function accepts.
    """
    if function not in _known:
        signature = read_signature(function)
        if isinstance(signature, str):
            _known[function] = signature
        else:
            with measuring(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the function, about tables that it does not take
                _known[function] = _measure(function, signature)
    return _known[function]


@dataclass
class _Trial:
    """One call: tensors to rotate, a table, and the results.

    Attributes:
        axes: for each dimension of the table before its channels, the axis of x that it was made for.
        channels: the axis of x with the channels.
    """

    tensors: list[Tensor]
    tables: tuple[Tensor, ...]
    axes: tuple[int, ...]
    channels: int
    results: tuple[Tensor, ...] = ()

    def run(self, function: Callable[..., Any], signature: Signature, options: dict[str, Any]) -> bool:
        """Call the function. Returns whether it accepts the arguments and returns tensors of the same shapes."""
        named: dict[str, Any] = dict(zip(signature.rotated, (x.clone() for x in self.tensors), strict=True))
        given = [t.clone() for t in self.tables]
        if len(signature.tables) == len(given):
            named.update(zip(signature.tables, given, strict=True))
        else:
            named[signature.tables[0]] = tuple(given)
        try:
            results = function(**named, **options)
        except Exception:  # a function may raise anything for arguments that it does not take
            return False
        self.results = tuple(results) if isinstance(results, (tuple, list)) else (results,)
        return len(self.results) == len(self.tensors) and all(
            isinstance(y, Tensor) and y.shape == x.shape for x, y in zip(self.tensors, self.results, strict=True)
        )

    def agrees(self, convention: Convention) -> bool | None:
        """Whether the table kernel has the same results; ``None`` if it does not do this call."""
        if self.channels != convention.channels or len(self.axes) != len(convention.axes):
            return False
        made = by_table(convention, self.tensors, self.tables)
        if made is None:
            return None
        limit = _TOLERANCE if convention.dtype is None else _ROUNDED
        return all(
            torch.allclose(y.float(), x.float(), rtol=0 if convention.dtype is None else limit, atol=limit)
            for x, y in zip(self.results, made, strict=True)
        )


def _measure(function: Callable[..., Any], signature: Signature) -> Measured | str:
    found: dict[Key, Convention] = {}
    accepted, widened = False, False
    for options in _options(signature):
        trials: dict[Key, list[_Trial]] = {}
        for trial in _trials(signature):
            if trial.run(function, signature, options):
                structure = structure_of(trial.tables if len(signature.tables) == 2 else [_packed(trial.tables)])
                assert structure is not None
                key = (tuple(options.values()), trial.tensors[0].dim(), structure[0], trial.tables[0].dim())
                trials.setdefault(key, []).append(trial)
                accepted = True
        for key, done in trials.items():
            convention = _common(key, done)
            if convention is None:
                continue
            promotes = _promotes(function, signature, options, done[0])
            if promotes is None:
                widened = True
            else:
                found[key] = replace(convention, promotes=promotes)
    if any(key[0] == signature.options_of({}) for key in found):  # not only with options that nobody may use
        return Measured(signature, found)
    if not accepted:
        return "it takes no table of a known form"
    return "its results have another dtype than x" if widened else "its results match no known convention"


def _packed(tables: tuple[Tensor, ...]) -> Any:
    return tables if len(tables) == 2 else tables[0]


def _common(key: Key, done: list[_Trial]) -> Convention | None:
    """The convention with which the kernel has the results of all trials that it does, and does most of them."""
    dtypes = {y.dtype for trial in done for y in trial.results}
    dtype = None if dtypes == {torch.float32} else dtypes.pop() if len(dtypes) == 1 else None
    best, most = None, 0
    for candidate in _candidates(key, done):
        convention = replace(candidate, dtype=dtype)
        said = [trial.agrees(convention) for trial in done]
        # With a table of one row, two axes can look the same; the right one agrees more often.
        if said.count(True) > most and False not in said:
            best, most = convention, said.count(True)
    return best


def _promotes(
    function: Callable[..., Any], signature: Signature, options: dict[str, Any], trial: _Trial
) -> bool | None:
    """Whether results have the wider dtype of x and the table, instead of x's; ``None`` if they have another."""
    low = torch.bfloat16

    def dtypes(tables: tuple[Tensor, ...]) -> set[torch.dtype]:
        again = _Trial([x.to(low) for x in trial.tensors], tables, trial.axes, trial.channels)
        return {y.dtype for y in again.results} if again.run(function, signature, options) else set()

    found = dtypes(trial.tables)
    if found == {low}:
        return False
    is_wider = found == {torch.float32} and not trial.tables[0].is_complex()
    return True if is_wider and dtypes(tuple(t.to(low) for t in trial.tables)) == {low} else None


def _options(signature: Signature) -> Iterator[dict[str, Any]]:
    values: list[tuple[Any, ...]] = []
    for _, default in signature.options:
        if isinstance(default, bool):
            values.append((default, not default))
        elif isinstance(default, int):
            values.append(tuple(dict.fromkeys((default, *_NUMBERS))))
        else:
            values.append((default,))
    names = [name for name, _ in signature.options]
    yield from (dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values))


def _candidates(key: Key, done: Sequence[_Trial]) -> Iterator[Convention]:
    structure, rank = key[2], key[3]
    kinds = {"two": ["cos_sin", "sin_cos"], "pair": ["cos_sin", "sin_cos"], "complex": ["complex"]}.get(
        structure, ["matrix"] if done[0].tables[0].shape[-2:] == (2, 2) else ["angles", "cos|sin", "sin|cos"]
    )
    axes = dict.fromkeys((trial.axes, trial.channels) for trial in done if len(trial.axes) in (rank - 1, rank - 3))
    for (where, channels), kind, pairing in itertools.product(axes, kinds, ("half", "interleaved")):
        reads = {"matrix": ("full",), "complex": ("pairs",)}.get(kind, ("full", "pairs", "apart"))
        for read in reads:
            if (read, pairing) != ("apart", "half") and (kind, pairing) != ("matrix", "half"):
                yield Convention(key, kind, where, pairing, read, channels)


def _trials(signature: Signature) -> Iterator[_Trial]:
    generator = torch.Generator("cpu").manual_seed(0)
    for shape, channels, sizes, order in _LAYOUTS:
        for count in range(1, len(sizes) + 1):
            for axes in [order] if order else itertools.combinations(range(len(sizes)), count):
                for ones in itertools.product((False, True), repeat=len(axes)):
                    lead = [1 if one else sizes[axis] for axis, one in zip(axes, ones, strict=True)]
                    if all(ones) or (order and count > 1):
                        continue
                    tensors = [_random(shape, channels, generator) for _ in signature.rotated]
                    for tables in _tables(signature, lead, generator):
                        yield _Trial(tensors, tables, tuple(axes), channels)


def _random(shape: tuple[int, ...], channels: int, generator: torch.Generator) -> Tensor:
    """Random numbers, with channels next to each other in memory."""
    if channels == -1:
        return torch.randn(shape, generator=generator)
    inner = [size for axis, size in enumerate(shape) if axis != channels]
    return torch.randn(*inner, shape[channels], generator=generator).movedim(-1, channels)


_LAYOUTS: tuple[tuple[tuple[int, ...], int, tuple[int, ...], tuple[int, ...]], ...] = (
    ((BATCH, FIRST, SECOND, HEAD_DIM), -1, (BATCH, FIRST, SECOND), ()),
    ((BATCH, FIRST, HEAD_DIM, SECOND), 2, (BATCH, FIRST, SECOND), ()),
    ((FIRST, SECOND, HEAD_DIM), -1, (FIRST, SECOND), ()),
    ((BATCH, FIRST, SECOND * HEAD_DIM), -1, (BATCH, FIRST, SECOND), (0, 2, 1)),
)
"""Of each kind of x: its shape, the axis of its channels, the sizes of the others, the order of a table's if fixed."""


def _tables(signature: Signature, lead: list[int], generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
    def made(*shape: int) -> Tensor:
        return torch.randn(*lead, *shape, generator=generator)

    for width in (HEAD_DIM, HEAD_DIM // 2, HEAD_DIM // 3):
        yield made(width), made(width)
    if len(signature.tables) == 2:
        return
    for width in (HEAD_DIM // 2, HEAD_DIM // 4):
        yield (torch.complex(made(width), made(width)),)
    for width in (2 * HEAD_DIM, HEAD_DIM, HEAD_DIM // 2, HEAD_DIM // 3):
        yield (made(width),)
    yield (made(HEAD_DIM // 2, 2, 2),)
