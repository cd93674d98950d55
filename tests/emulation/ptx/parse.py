"""From PTX text to :mod:`.syntax`. Kernels are parsed when they are looked up: a module may hold many."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .body import parse_body
from .errors import PTXError
from .syntax import Kernel, Parameter
from .types import TYPES

__all__ = ["Program"]

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_DEBUG_LINE = re.compile(r"^\s*\.(?:loc|file|pragma)\b[^\n]*$", re.MULTILINE)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{")
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\b.*?([\w$]+)(?:\[(\d+)\])?\s*$", re.DOTALL)
_BRACE = re.compile(r"[{}]")
_SHARED_SYMBOL = re.compile(r"\.extern\s+\.shared\s+[^;]*?([\w$]+)\s*\[\s*\]\s*;")


@dataclass(frozen=True)
class Program:
    """A PTX module.

    Attributes:
        target: the architecture it was compiled for, such as ``sm_90a``.
        kernels: by name.
    """

    target: str
    kernels: Mapping[str, Kernel]

    @classmethod
    def parse(cls, text: str) -> Program:
        """Read PTX.

        Raises:
            PTXError: the text names no target; for a kernel, when it is looked up: something in it is unknown.
        """
        text = _DEBUG_LINE.sub("", _COMMENT.sub("", text))
        target = re.search(r"\.target\s+(\w+)", text)
        if target is None:
            raise PTXError("no .target in the PTX")
        return cls(target[1], _Kernels(text, target[1]))


class _Kernels(Mapping[str, Kernel]):
    def __init__(self, text: str, target: str) -> None:
        self.text, self.target = text, target
        self.found = {match[1]: match for match in _ENTRY.finditer(text)}
        self.parsed: dict[str, Kernel] = {}
        self.dynamic_shared = _SHARED_SYMBOL.findall(text)

    def __getitem__(self, name: str) -> Kernel:
        if name not in self.parsed:
            self.parsed[name] = self._parse(self.found[name])
        return self.parsed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def _parse(self, match: re.Match[str]) -> Kernel:
        try:
            body = parse_body(self.text[match.end() : _closing(self.text, match.end())])
        except PTXError as error:
            raise PTXError(f"{match[1]}: {error}") from error
        shared = dict(body.shared)
        shared.update((name, -(-body.shared_bytes // 16) * 16) for name in self.dynamic_shared)
        return Kernel(
            name=match[1],
            target=self.target,
            parameters=tuple(_parameters(match[2])),
            statements=tuple(body.statements),
            labels=body.labels,
            num_registers=body.num_registers,
            shared=shared,
            shared_bytes=body.shared_bytes,
            required_threads=_threads("reqntid", match[3]),
            most_threads=_threads("maxntid", match[3]),
        )


def _closing(text: str, start: int) -> int:
    """Where the brace closes that was opened before ``start``."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    raise PTXError("a kernel's braces do not close")


def _parameters(text: str) -> Iterator[Parameter]:
    end = 0
    for declaration in filter(str.strip, text.split(",")):
        match = _PARAMETER.search(declaration)
        if match is None or match[2] not in TYPES:
            raise PTXError(f"parameter: {' '.join(declaration.split())}")
        size = TYPES[match[2]].itemsize
        align = int(match[1] or size)
        offset = -(-end // align) * align
        end = offset + size * int(match[4] or 1)
        yield Parameter(match[3], offset, end - offset, match[2])


def _threads(directive: str, text: str) -> int | None:
    match = re.search(rf"\.{directive}\s+([\d,\s]+)", text)
    return None if match is None else math.prod(map(int, match[1].replace(",", " ").split()))
