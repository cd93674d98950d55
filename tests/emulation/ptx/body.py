"""The body of a kernel: declarations, scopes, labels, statements, operands."""

from __future__ import annotations

import re

from .errors import PTXError
from .syntax import Address, Immediate, Operand, Register, Sink, Special, Statement, Symbol, ValueAndPredicate, Vector
from .types import TYPES

__all__ = ["Body", "parse_body"]

_TOKEN = re.compile(r"\s*(?:([\w$]+):|(\{)|(\})|([^;{}]+(?:\{[^{}]*\}[^;{}]*)*);)")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_ADDRESS = re.compile(r"\[\s*([%\w$]+)\s*(?:([+-])\s*(-?\w+)\s*)?\]$")
_RANGE = re.compile(r"(%?[A-Za-z_$][\w$]*?)<(\d+)>$")
_NUMBERED = re.compile(r"(%?[\w$]*?)\d+$")
_SHARED = re.compile(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?$")
_SPECIAL = re.compile(r"%n?(?:tid|ctaid)\.[xyz]$|%laneid$|%warpid$")
_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?$")
_FLOAT = re.compile(r"0[fF]([0-9a-fA-F]{8})$|0[dD]([0-9a-fA-F]{16})$")


class Body:
    """What was found in a body so far."""

    def __init__(self) -> None:
        self.statements: list[Statement] = []
        self.labels: dict[str, int] = {}
        self.shared: dict[str, int] = {}
        self.shared_bytes = 0
        self.num_registers = 0
        self._scopes: list[dict[str, str | Register]] = [{}]
        """Per open block: names of registers, or prefixes of numbered ones, and their types or the registers."""

    def declare(self, text: str) -> None:
        """A directive."""
        kind, _, rest = text.partition(" ")
        if kind == ".reg":
            type_, names = rest.split(None, 1)
            if type_[1:] not in TYPES:
                raise PTXError("unknown type of a register")
            for name in names.split(","):
                match = _RANGE.match(name.strip())
                self._scopes[-1][match[1] + "#" if match else name.strip()] = type_[1:]
        elif match := _SHARED.match(text):
            align, size = int(match[1] or 8), TYPES[match[2]].itemsize * int(match[4] or 1)
            start = -(-self.shared_bytes // align) * align
            self.shared[match[3]] = start
            self.shared_bytes = start + size
        else:
            raise PTXError("unknown directive")

    def add(self, text: str) -> None:
        """An instruction."""
        rest, guard, negated = text, None, False
        if text.startswith("@"):
            predicate, rest = text.split(None, 1)
            negated = predicate.startswith("@!")
            guard = self._register(predicate.lstrip("@!"))
            if guard is None or guard.type != "pred":
                raise PTXError("unknown guard")
        name, _, operands = rest.partition(" ")
        parts = tuple(self._operand(part.strip()) for part in _OPERAND.findall(operands))
        self.statements.append(Statement(text, name, parts, guard, negated))

    def open(self) -> None:
        """A block begins."""
        self._scopes.append({})

    def close(self) -> None:
        """A block ends, and its registers with it."""
        self._scopes.pop()

    def _register(self, name: str) -> Register | None:
        if isinstance(known := self._scopes[-1].get(name), Register):
            return known
        numbered = _NUMBERED.match(name)
        for scope in reversed(self._scopes):
            found = scope.get(name) or (scope.get(numbered[1] + "#") if numbered else None)
            if isinstance(found, Register):
                return found
            if found:
                scope[name] = register = Register(self.num_registers, found, name)
                self.num_registers += 1
                return register
        return None

    def _operand(self, text: str) -> Operand:
        if isinstance(known := self._scopes[-1].get(text), Register):
            return known
        if text[0] == "{":
            return Vector(tuple(self._operand(part.strip()) for part in text[1:-1].split(",")))
        if text[0] == "[":
            match = _ADDRESS.match(text)
            if match is None:
                raise PTXError(f"unknown form of an address: {text}")
            offset = int(match[3], 0) if match[3] else 0
            return Address(self._operand(match[1]), -offset if match[2] == "-" else offset)
        if text == "_":
            return Sink()
        if "|" in text:
            value, predicate = (self._register(name) for name in text.split("|"))
            if value is None or predicate is None:
                raise PTXError(f"unknown operand {text}")
            return ValueAndPredicate(value, predicate)
        if match := _FLOAT.match(text):
            return Immediate(int(match[1] or match[2], 16), 4 if match[1] else 8)
        if _INTEGER.match(text):
            return Immediate(int(text.rstrip("U"), 0))
        if register := self._register(text):
            return register
        if _SPECIAL.match(text):
            return Special(text)
        if text[0] == "%" or not re.match(r"[\w$]+$", text):
            raise PTXError(f"unknown operand {text}")
        return Symbol(text)


def parse_body(text: str) -> Body:
    """Parse what is between a kernel's braces.

    Raises:
        PTXError: a directive, an operand or a register that is not known.
    """
    body, labels, place = Body(), {}, 0
    while match := _TOKEN.match(text, place):
        place = match.end()
        label, opening, closing, statement = match.groups()
        if label:
            labels[label] = len(body.statements)
        elif opening:
            body.open()
        elif closing:
            body.close()
        else:
            statement = " ".join(statement.split())
            try:
                (body.declare if statement.startswith(".") else body.add)(statement)
            except PTXError as error:
                raise PTXError(f"{statement}: {error}") from error
    if text[place:].strip():
        raise PTXError(f"cannot read: {text[place : place + 80].strip()}")
    targets = {s.operands[0].name for s in body.statements if s.opcode == "bra" and isinstance(s.operands[0], Symbol)}
    body.labels = {name: labels[name] for name in targets if name in labels}
    return body
