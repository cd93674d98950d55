"""Calls through the CUDA kernels compiled as plain C++, under AddressSanitizer and UBSan, in a process of their own."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from . import build
from .calls import CudaAttempt
from .tables import TableAttempt

__all__ = ["run"]

# LeakSanitizer needs ptrace, which containers withhold; the kernels allocate nothing.
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


def _extent(x: Tensor) -> int:
    """Bytes from the first element of ``x`` to the end of the last."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.element_size()


def _text(value: str) -> bytes:
    return struct.pack("<q", len(value.encode())) + value.encode()


def _memory(attempt: CudaAttempt | TableAttempt) -> list[Tensor]:
    return [*attempt.call.tensors.values(), *attempt.call.numbers.values()]


def _record(attempt: CudaAttempt | TableAttempt) -> bytes:
    call = attempt.call
    parts = [_text(str(attempt)), _text(call.spec), struct.pack(f"<{len(call.fields)}q", *call.fields)]
    parts.append(struct.pack("<q", len(_memory(attempt))))
    for tensor in _memory(attempt):
        size = _extent(tensor)
        parts.append(struct.pack("<qq", tensor.data_ptr(), size))
        parts.append(ctypes.string_at(tensor.data_ptr(), size))
    return b"".join(parts)


def _take(results: BinaryIO, attempt: CudaAttempt | TableAttempt) -> str:
    """Copy the memory that a call left into the attempt's tensors; return the launcher's error."""
    (length,) = struct.unpack("<q", results.read(8))
    error = results.read(length).decode()
    for tensor in _memory(attempt):
        size = _extent(tensor)
        ctypes.memmove(tensor.data_ptr(), results.read(size), size)
    return error


def run(attempts: Iterable[CudaAttempt | TableAttempt], folder: Path, backwards: bool) -> list[str]:
    """Run all of ``attempts``, threads from first to last or ``backwards``; return what is wrong with any of them."""
    attempts = list(attempts)
    calls, results = folder / "calls", folder / "results"
    calls.write_bytes(b"".join(map(_record, attempts)))
    command = [str(build.host()), str(calls), str(results), "backwards" if backwards else "forwards"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT)
    if done.returncode:
        named, _, rest = done.stderr.partition("==") if "==ERROR" in done.stderr else (done.stderr, "", "")
        return [f"{named.strip().splitlines()[-1]}: {rest or done.stderr[-3000:]}"]
    wrong = []
    with results.open("rb") as file:
        for attempt in attempts:
            if error := _take(file, attempt):
                wrong.append(f"{attempt}: {error}")
                continue
            try:
                attempt.check()
            except AssertionError as failed:
                wrong.append(f"{attempt}: {failed}")
    return wrong
