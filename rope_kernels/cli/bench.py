"""``rope-kernels bench``: times our call against a plain pass over the same memory and against transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..measuring import exact
from ..measuring.accuracy import CONTRACT, excess
from ..measuring.forms import FLOORS, FORMS, TimedCall
from ..measuring.models import ModelLayers
from ..measuring.peers import PeerError, bound, transformers_rotation
from ..measuring.timing import Pair, alternate

__all__ = ["DTYPES", "Ratio", "WrongResultError", "bench_report", "measure", "num_steps"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SHAPES = {"decode batch 1": (1, 1), "decode batch 32": (32, 1), "prefill 512": (1, 512), "prefill 4096": (1, 4096)}
TRANSFORMERS = "transformers"
_CHECKED_TOKENS = 64


class WrongResultError(RuntimeError):
    """A call to time has a result outside the accuracy contract."""


@dataclass(frozen=True)
class Ratio:
    """The times of our call in one form and of another call.

    Attributes:
        layer: which layers of the model.
        shape: one of :data:`SHAPES`.
        form: one of :data:`rope_kernels.measuring.forms.FORMS`.
        against: the other call: the floor's name, or "transformers".
        seconds: median of our call.
        peer_seconds: median of the other call.
        gigabytes: read and written by our call.
        speed: how many times as fast as the other our call is; ``low`` to ``high`` is the middle half of the rounds.
    """

    layer: str
    shape: str
    form: str
    against: str
    seconds: float
    peer_seconds: float
    gigabytes: float
    speed: float
    low: float
    high: float


def num_steps() -> int:
    """Number of times that :func:`measure` calls ``done``."""
    return len(SHAPES) * len(FORMS)


def measure(
    layers: ModelLayers, dtype: torch.dtype, device: torch.device, seconds: float,
    done: Callable[[], None] = lambda: None,
) -> tuple[list[Ratio], str | None]:  # fmt: skip
    """Check every call, then time it against the floor of its form and against transformers.

    Args:
        layers: the layers whose calls are timed.
        dtype: of q and k.
        device: of q and k.
        seconds: per comparison.
        done: called :func:`num_steps` times, for a progress bar.

    Returns:
        The ratios, and the reason why transformers is not among them, or ``None``.

    Raises:
        WrongResultError: a result is wrong.
    """
    peer, note = None, None
    try:
        peer = transformers_rotation(layers.source, layers.layer_type)
    except PeerError as error:
        note = str(error)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    threads = torch.get_num_threads()
    ratios = []
    for shape, (batch, tokens) in SHAPES.items():
        q, k = layers.inputs(tokens, batch, device, dtype)
        positions = layers.positions(tokens, batch, device)
        others = {}
        if peer is not None:
            others[TRANSFORMERS] = _peer_call(peer, layers, q, k, positions)
        for form in FORMS:
            # Repeated in place, a rotation that scales would leave the dtype's range.
            if form != "in place" or layers.config.attention_scaling == 1:
                _check(form, layers, q, k, positions)
                name, floor = FLOORS[form]
                for against, other in {name: floor(q, k), **others}.items():
                    ours = FORMS[form](layers.config, q, k, positions)
                    pair = alternate(ours, other, seconds, (threads, threads), wait)
                    ratios.append(_ratio(layers, shape, form, against, pair, q.nbytes + k.nbytes))
            done()
    return ratios, note


def _ratio(layers: ModelLayers, shape: str, form: str, against: str, pair: Pair, num_bytes: int) -> Ratio:
    return Ratio(layers.label, shape, form, against, *pair.medians, 2e-9 * num_bytes, pair.speed, *pair.spread)


def _check(form: str, layers: ModelLayers, q: Tensor, k: Tensor, positions: Tensor) -> None:
    results = cast("tuple[Tensor, Tensor]", FORMS[form](layers.config, q.clone(), k.clone(), positions)())
    last = slice(-_CHECKED_TOKENS, None)
    for name, x, got in zip("qk", (q, k), results, strict=True):
        want = exact.rotate(x[:, last], positions[..., last], layers.config)
        error = excess(got[:, last].cpu(), want, x[:, last].cpu(), layers.config.attention_scaling)
        if error > CONTRACT:
            raise WrongResultError(f"{layers.label}, {form}: {name} is off by {error:.1e}, {CONTRACT:.0e} is allowed")


def _peer_call(
    peer: Callable[..., tuple[Tensor, Tensor]], layers: ModelLayers, q: Tensor, k: Tensor, positions: Tensor
) -> TimedCall:
    allowed = bound(q.dtype, int(positions.max()))
    got = FORMS["allocating"](layers.config, q, k, positions)()
    for name, ours, theirs in zip("qk", cast("tuple[Tensor, Tensor]", got), peer(q, k, positions), strict=True):
        error = float((ours.float() - theirs.float()).abs().max() / ours.abs().max())
        if error > allowed:
            raise WrongResultError(
                f"{layers.label}, transformers: {name} differs by {error:.1e}, {allowed:.1e} is allowed"
            )
    return lambda: peer(q, k, positions)


def bench_report(ratios: Sequence[Ratio], notes: Sequence[str], machine: Mapping[str, Any], dtype: str) -> Group:
    """A table per layer type with a line per form and shape, and a legend of the columns."""
    found: dict[str, dict[str, dict[str, dict[str, Ratio]]]] = {}
    for r in ratios:
        kind = r.against if r.against == TRANSFORMERS else "floor"
        found.setdefault(r.layer, {}).setdefault(r.shape, {}).setdefault(r.form, {})[kind] = r
    floors = ", ".join(f"{name} ({form})" for form, (name, _) in FLOORS.items())
    lines = [
        f"Medians over alternating calls (and the middle half), {dtype}; the results were checked first.",
        f"{machine['cuda_device'] or machine['processor']}, {machine['threads']} threads, torch {machine['torch']}.",
        f"Memory's speed is that of {floors}.",
        *notes,
    ]
    return Group(*(_table(*part) for part in found.items()), "", *(Text(line, style="dim") for line in lines))


def _table(layer: str, shapes: Mapping[str, Mapping[str, Mapping[str, Ratio]]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=layer, title_justify="left")
    table.add_column("", no_wrap=True)
    for header in ("µs", "GB/s", "of memory's speed", "of transformers' speed"):
        table.add_column(header, justify="right", no_wrap=True)
    for shape, forms in shapes.items():
        table.add_row(Text(shape, style="bold"))
        for form, against in forms.items():
            floor = against["floor"]
            table.add_row(
                f"  {form}", f"{1e6 * floor.seconds:.1f}", f"{floor.gigabytes / floor.seconds:.1f}",
                _times(floor, 2), _times(against[TRANSFORMERS], 1) if TRANSFORMERS in against else "-",
            )  # fmt: skip
    return table


def _times(ratio: Ratio, digits: int) -> str:
    return f"{ratio.speed:.{digits}f} ({ratio.low:.{digits}f}-{ratio.high:.{digits}f})"
