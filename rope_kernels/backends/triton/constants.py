"""A spec's constants for the Triton kernels: scalar arguments, and int tensors on the device.

They are computed in 50 decimal digits and rounded once, so that the kernels' float64 products stay accurate up to
position 2**31. Tables are integer tensors, which no cast to another floating dtype can change.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, localcontext
from functools import lru_cache

import torch
from torch import Tensor

from ...core.frequency import FrequencyParams
from ...core.rotation import Rotation
from ...core.spec import Spec
from .plan import power_of_2

__all__ = ["device_tensors", "ramp_of", "scalars"]

_TWO_PI = Decimal("6.28318530717958647692528676655900576839433879875021")
_UNITS = {"fixed": 2**64 / _TWO_PI, "float": 1 / _TWO_PI, "float32": Decimal(1)}
"""Per phase of plan.Angle: the kernel's unit, as a multiple of one radian per position."""
_NUM_POWERS = 9
_DIGITS = 50

Made = tuple[Tensor | None, Tensor | None]

_KEPT = 1024
_Key = tuple[Spec, str, bool, torch.device]
_on_device: dict[_Key, Made] = {}
_captured: dict[_Key, Made] = {}
"""Those of calls in CUDA graphs, which read them by address at every replay: never dropped."""


def ramp_of(params: FrequencyParams) -> str:
    """What the ramp depends on: "index", "frequency", "both", or "" if it is constant (the base then includes it)."""
    by_index, by_frequency = (x != 0.0 and params.factor != 1.0 for x in params.ramp[:2])
    return "both" if by_index and by_frequency else "index" * by_index or "frequency" * by_frequency


def _share(params: FrequencyParams, ramp: Decimal) -> Decimal:
    w = min(max(ramp, Decimal(0)), Decimal(1))
    return (1 - w) / Decimal(params.factor) + w


def _power(params: FrequencyParams, j: int) -> Decimal:
    if params.theta == 1.0 or j == 0:
        return Decimal(1)
    return Decimal(params.theta) ** (Decimal(-2 * j) / Decimal(params.freq_dim))


@lru_cache(maxsize=1024)
def scalars(params: FrequencyParams, phase: str) -> tuple[float, ...]:
    """rotate_kernel's arguments ``base`` to ``ntk_power``, in its order."""
    with localcontext() as context:
        context.prec = _DIGITS
        unit = _UNITS[phase]
        a, b, c = map(Decimal, params.ramp)
        base = unit if ramp_of(params) else unit * _share(params, c)
        powers = [_power(params, 1 << bit) for bit in range(_NUM_POWERS)]
        # (1 - w) / factor + w with w = clamp(a j + b f + c, 0, 1), as one clamped sum
        low = 1 / Decimal(params.factor)
        slope = 1 - low
        ramp = (low + slope * c, slope * a, slope * b / unit, min(low, Decimal(1)), max(low, Decimal(1)))
    ntk = 0, 0.0, 0.0
    if params.dynamic_factor:
        start = params.dynamic_length
        ntk = start, params.dynamic_factor / start, -2.0 / (params.freq_dim - 2)
    return (*map(float, (base, *powers, *ramp)), params.switch_length, *ntk)


def _finished(params: FrequencyParams, index: Sequence[int], row: int, phase: str) -> list[int]:
    """Bits of the frequencies ``index``: fixed-point turns modulo one for phase "fixed", else float64."""
    out = []
    with localcontext() as context:
        context.prec = _DIGITS
        a, b, c = map(Decimal, params.ramp)
        for j in index:
            f = _power(params, j) if j < params.num_rotated else Decimal(0)
            f *= _share(params, a * j + b * f + c) * Decimal(params.multipliers[row][j]) * _UNITS[phase]
            out.append(_wrapped(int(f.to_integral_value())) if phase == "fixed" else _bits(float(f)))
    return out


def _wrapped(n: int) -> int:
    """``n`` modulo 2**64, as an int64."""
    return (n + 2**63) % 2**64 - 2**63


def _bits(x: float) -> int:
    bits: int = struct.unpack("<q", struct.pack("<d", x))[0]
    return bits


def _pair_map(rotation: Rotation) -> list[int]:
    axes = rotation.axis or (0,) * rotation.num_pairs
    return [axis << 16 | j for axis, j in zip(axes, rotation.index, strict=True)]


def _padded(rows: list[list[int]], dtype: torch.dtype, device: torch.device) -> Tensor:
    width = power_of_2(max(len(row) for row in rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=dtype, device=device)


def device_tensors(spec: Spec, phase: str, ladder: bool, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """(map, table) of ``spec`` on ``device``, created at first use: int32 (pairs,) and int64 (rows, pairs), padded.

    Raises:
        RuntimeError: a CUDA graph is being captured and they do not exist yet.
    """
    if not (spec.rotation.axis or spec.rotation.freq_index or spec.frequency.multipliers):
        return None, None
    key = (spec, phase, ladder, device)
    is_capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    found = _on_device.get(key) or _captured.get(key)
    if found is None:
        if is_capturing:
            raise RuntimeError(
                "rope_kernels: this config keeps small tensors on the device, which cannot be made during CUDA graph "
                "capture; call rope_kernels.warm_up, or make the call once, before capturing"
            )
        if len(_on_device) >= _KEPT:
            _drop_all()
        found = _on_device[key] = _outside_pools(lambda: _made(spec, phase, ladder, device), device)
    if is_capturing:
        _captured[key] = found
    return found


def _drop_all() -> None:
    """Empty the cache, once no kernel on any stream may still read it."""
    for device in {key[3] for key in _on_device if key[3].type == "cuda"}:
        torch.cuda.synchronize(device)
    _on_device.clear()


def _outside_pools(make: Callable[[], Made], device: torch.device) -> Made:
    """What ``make`` makes, in memory that does not belong to the pool of a CUDA graph, which the graph would reuse.

    torch lets a thread allocate from a pool while it warms a graph up (``mode="reduce-overhead"``); a new thread
    allocates as usual.
    """

    if device.type != "cuda":
        return make()

    def made() -> Made:
        tensors = make()
        torch.cuda.synchronize(device)
        return tensors

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(made).result()


def _made(spec: Spec, phase: str, ladder: bool, device: torch.device) -> Made:
    params, rotation = spec.frequency, spec.rotation
    mapped = bool(rotation.axis or rotation.freq_index)
    pair_map = _padded([_pair_map(rotation)], torch.int32, device)[0] if mapped else None
    if not params.multipliers:
        return pair_map, None
    if ladder:
        rows = [[_bits(row[j]) for j in rotation.index] for row in params.multipliers]
    else:
        rows = [_finished(params, rotation.index, row, phase) for row in range(len(params.multipliers))]
    return pair_map, _padded(rows, torch.int64, device)
