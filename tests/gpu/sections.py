"""The sections of the checks, and the parts of a whole run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from .outcomes import Check, NotHereError, Setup, missing_package, why_not

__all__ = ["PARTS", "SECTIONS", "checks_of", "chosen_sections", "needs_the_gpu_alone"]


class Kind(NamedTuple):
    """A kind of section.

    Attributes:
        function: makes its checks, given a Setup and a backend's name; as "module.function" of this folder, imported
            when it is needed, so that a package that one kind lacks stops no other.
        part: of a whole run.
        needs_gpu: whether it says nothing where tensors are on the CPU.
        also_reference: whether the plain torch operations are checked in it, too. They make tensors as they go, which
            no capture allows.
    """

    function: str
    part: str
    needs_gpu: bool = False
    also_reference: bool = False


RESULTS, COMPILERS, SPEED = PARTS = ("results", "compilers", "speed")
"""Each takes less than ten minutes on a machine with a GPU and eight cores."""
KINDS = {
    "cases": Kind("case_checks.case_checks", RESULTS, also_reference=True),
    "append": Kind("append_checks.append_checks", RESULTS, also_reference=True),
    "others": Kind("other_checks.other_checks", RESULTS, also_reference=True),
    "graphs": Kind("graph_checks.graph_checks", RESULTS),
    "streams": Kind("stream_checks.stream_checks", RESULTS),
    "emulator": Kind("emulator_checks.emulator_checks", COMPILERS, needs_gpu=True),
    "compile": Kind("compile_checks.compile_checks", COMPILERS),
    "sanitizer": Kind("sanitizer_checks.sanitizer_checks", COMPILERS, needs_gpu=True),
    "speed": Kind("speed.speed_checks", SPEED, needs_gpu=True),
    "profile": Kind("profile_checks.profile_checks", SPEED, needs_gpu=True),
}
SECTIONS = [
    f"{kind}/{backend}"
    for kind, values in KINDS.items()
    for backend in ("triton", "native", *(("reference",) if values.also_reference else ()))
]


def chosen_sections(parts: Sequence[str], beginnings: Sequence[str]) -> list[str]:
    """The sections of these parts, if any are given, that begin so, if beginnings are."""
    return [
        name
        for name in SECTIONS
        if (not parts or _kind(name).part in parts)
        and (not beginnings or any(name.startswith(text) for text in beginnings))
    ]


def needs_the_gpu_alone(section: str) -> bool:
    """Whether a section measures, beside which nothing else may run."""
    return _kind(section).part == SPEED


def _kind(section: str) -> Kind:
    return KINDS[section.partition("/")[0]]


def _not_here(reason: str) -> None:
    raise NotHereError(reason)


def checks_of(section: str, setup: Setup) -> Iterator[Check]:
    """The checks of a section; of one that cannot run here, a check that says so."""
    made: Iterator[Check] | str = _made(section, setup)
    if isinstance(made, str):
        yield Check(section, partial(_not_here, made), always=True)
    else:
        yield from made


def _made(section: str, setup: Setup) -> Iterator[Check] | str:
    kind, backend = _kind(section), section.partition("/")[2]
    reason = why_not(backend, setup.device)
    if reason is not None:
        return reason
    if kind.needs_gpu and setup.device.type != "cuda":
        return "says something about a GPU alone"
    module, _, name = kind.function.partition(".")
    try:
        function: Callable[[Setup, str], Iterator[Check]] = getattr(
            importlib.import_module(f"{__package__}.{module}"), name
        )
    except ModuleNotFoundError as error:
        missing = missing_package(error)
        if missing is None:
            raise
        return missing
    return function(setup, backend)
