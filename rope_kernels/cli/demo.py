"""``rope-kernels demo``: rotates q and k of shipped models at the end of their contexts; errors and times."""

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
from ..measuring.peers import PeerError, PeerRotation, transformers_rotation

__all__ = ["DECODE_BATCH", "PREFILL_TOKENS", "ROUNDS", "SHORT", "DemoRow", "Times", "measure"]

SHORT = ("llama-3.1-8b", "phi-3.5-mini", "deepseek-v3", "qwen2-vl-7b-text", "gpt-oss-20b")
"""The models of the short demo: a rope type each."""
PREFILL_TOKENS = 512
DECODE_BATCH = 8
ROUNDS = 9
_DECODE_CALLS = 10


@dataclass
class Times:
    """Microseconds of a call, and of transformers' for the same q and k; ``faster`` is the ratio of their rounds."""

    ours_us: float
    transformers_us: float | None
    faster: float | None


@dataclass
class DemoRow:
    """One row of the demo's table, and one object of its JSON.

    Errors are ``max |y - exact| / max |x|`` with float32 q and k; times are medians with bfloat16 q and k, ours of
    angles and rotation, transformers' of ``apply_rotary_pos_emb`` alone, by a table that is there.
    ``transformers_note`` says why what is of transformers is ``None``.
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
    prefill: Times = field(default_factory=lambda: Times(0.0, None, None))
    decode: Times = field(default_factory=lambda: Times(0.0, None, None))


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
    rows, timed = [], []
    for layers in todo:
        peer, note = _peer(layers)
        rows.append(_checked(layers, device, backend, peer, note))
        timed.append(
            (_Timed(layers, peer, PREFILL_TOKENS, 1, 1, device),
             _Timed(layers, peer, 1, DECODE_BATCH, _DECODE_CALLS, device))
        )  # fmt: skip
        done()
    for _ in range(ROUNDS):
        for prefill, decode in timed:
            prefill.run()
            decode.run()
            done()
    for row, (prefill, decode) in zip(rows, timed, strict=True):
        row.prefill, row.decode = prefill.times(), decode.times()
    return rows


def _peer(layers: ModelLayers) -> tuple[PeerRotation | None, str | None]:
    """transformers' rotation, or why there is none."""
    try:
        return transformers_rotation(layers.source, layers.layer_type), None
    except PeerError as error:
        return None, str(error)


def _checked(
    layers: ModelLayers, device: torch.device, backend: str, peer: PeerRotation | None, note: str | None
) -> DemoRow:
    """The row of some layers, with errors and without times."""
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
    """One call at one shape, ours and transformers', both warmed up, and the seconds of each of their runs."""

    def __init__(
        self, layers: ModelLayers, peer: PeerRotation | None, tokens: int, batch: int, calls: int, device: torch.device
    ) -> None:
        q, k = layers.inputs(tokens, batch, device, torch.bfloat16)
        positions = layers.positions(tokens, batch, device)
        self._calls, self._device = calls, device
        self._sides: list[Callable[[], object]] = [lambda: apply_rope(q, k, positions, layers.config)]
        if peer is not None:
            cos, sin = peer.table(q, positions)
            self._sides.append(lambda: peer.apply(q, k, cos, sin))
        self._seconds: list[list[float]] = [[] for _ in self._sides]
        self.run()
        for seconds in self._seconds:
            seconds.clear()

    @torch.no_grad()
    def run(self) -> None:
        for call, seconds in zip(self._sides, self._seconds, strict=True):
            _wait(self._device)
            start = time.perf_counter()
            for _ in range(self._calls):
                call()
            _wait(self._device)
            seconds.append((time.perf_counter() - start) / self._calls)

    def times(self) -> Times:
        ours, *peers = self._seconds
        us = [statistics.median(seconds) * 1e6 for seconds in self._seconds]
        if not peers:
            return Times(us[0], None, None)
        return Times(us[0], us[1], statistics.median(b / a for a, b in zip(ours, peers[0], strict=True)))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
