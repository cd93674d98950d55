"""``rope-kernels demo``: rotates q and k of every shipped model at the end of its context; errors and times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ..api.apply import apply_rope
from ..measuring import exact
from ..measuring.accuracy import relative_error
from ..measuring.models import ModelLayers
from ..measuring.peers import PeerError, transformers_rotation

__all__ = ["DECODE_BATCH", "PREFILL_TOKENS", "ROUNDS", "DemoRow", "measure"]

PREFILL_TOKENS = 512
DECODE_BATCH = 8
ROUNDS = 9
_DECODE_CALLS = 10


@dataclass
class DemoRow:
    """One row of the demo's table, and one object of its JSON.

    Errors are ``max |y - exact| / max |x|`` with float32 q and k; times are medians with bfloat16 q and k.
    ``transformers_note`` says why ``transformers_max_error`` is ``None``.
    """

    model: str
    layer_type: str
    label: str
    rope_type: str
    pairing: str
    backend: str
    q_heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    context: int
    max_error: float
    transformers_max_error: float | None
    transformers_note: str | None
    prefill_us_per_token: float = field(default=0.0)
    decode_us_per_token: float = field(default=0.0)


def measure(
    todo: Sequence[ModelLayers], device: torch.device, backend: str, done: Callable[[], None] = lambda: None
) -> list[DemoRow]:
    """Measure the errors of all layers, then their times. A round times all of them, so noise affects all alike.

    Args:
        todo: the layers.
        device: device of q and k.
        backend: name of the backend that will run, for the rows.
        done: called ``len(todo) * (1 + ROUNDS)`` times, for a progress bar.
    """
    rows = []
    for layers in todo:
        rows.append(_checked(layers, device, backend))
        done()
    timed = [(_Timed(layers, PREFILL_TOKENS, 1, 1, device), _Timed(layers, 1, DECODE_BATCH, _DECODE_CALLS, device))
             for layers in todo]  # fmt: skip
    for _ in range(ROUNDS):
        for prefill, decode in timed:
            prefill.run()
            decode.run()
            done()
    for row, (prefill, decode) in zip(rows, timed, strict=True):
        row.prefill_us_per_token = prefill.microseconds_per_token()
        row.decode_us_per_token = decode.microseconds_per_token()
    return rows


def _checked(layers: ModelLayers, device: torch.device, backend: str) -> DemoRow:
    """The row of some layers, with errors and without times."""
    peer, note = None, None
    try:
        peer = transformers_rotation(layers.source, layers.layer_type)
    except PeerError as error:
        note = str(error)
    own_errors: list[float] = []
    peer_errors: list[float] = []
    for tokens, batch in ((PREFILL_TOKENS, 1), (1, DECODE_BATCH)):
        inputs = layers.inputs(tokens, batch, device, torch.float32)
        positions = layers.positions(tokens, batch, device)
        want = [exact.rotate(x, positions, layers.config) for x in inputs]
        got = cast("tuple[Tensor, Tensor]", apply_rope(*inputs, positions, layers.config))
        own_errors += map(relative_error, got, want, inputs)
        if peer is not None:
            peer_errors += map(relative_error, peer(*inputs, positions), want, inputs)
    return DemoRow(
        model=layers.model, layer_type=layers.layer_type, label=layers.label, rope_type=layers.config.rope_type,
        pairing=layers.config.pairing, backend=backend, q_heads=layers.q_heads, kv_heads=layers.kv_heads,
        head_dim=layers.config.head_dim, rotary_dim=layers.config.rotary_dim, context=layers.context,
        max_error=max(own_errors), transformers_max_error=max(peer_errors, default=None), transformers_note=note,
    )  # fmt: skip


class _Timed:
    """One call at one shape, warmed up, and the seconds of each of its runs."""

    def __init__(self, layers: ModelLayers, tokens: int, batch: int, calls: int, device: torch.device) -> None:
        self._q, self._k = layers.inputs(tokens, batch, device, torch.bfloat16)
        self._positions = layers.positions(tokens, batch, device)
        self._config, self._calls, self._tokens = layers.config, calls, tokens * batch
        self._seconds: list[float] = []
        self.run()
        self._seconds.clear()

    def run(self) -> None:
        _wait(self._q.device)
        start = time.perf_counter()
        for _ in range(self._calls):
            apply_rope(self._q, self._k, self._positions, self._config)
        _wait(self._q.device)
        self._seconds.append(time.perf_counter() - start)

    def microseconds_per_token(self) -> float:
        return statistics.median(self._seconds) / (self._calls * self._tokens) * 1e6


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
