"""The demo: rotate q and k of every shipped model at the end of its context; report errors and times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from . import exact
from .catalog import names, shipped
from .config import RopeConfig
from .errors import RopeConfigError
from .functional import apply_rope
from .hf_source import TEXT_CONFIGS
from .peers import PeerError, transformers_rotation

__all__ = ["CONTRACT", "Case", "Row", "case_of", "cases", "measure", "relative_error"]

CONTRACT = 5e-7
"""Largest error allowed, relative to the largest input, at positions up to 2 ** 24."""

PREFILL_TOKENS = 512
DECODE_BATCH = 8
ROUNDS = 9
_DECODE_CALLS = 10
_USUAL_CONTEXT = 4096  # where a config tells none
_Q_HEADS = ("num_attention_heads", "n_head", "num_heads")


@dataclass(frozen=True)
class Case:
    """The layers of one model that share a rotation.

    Attributes:
        model: name of the shipped config.
        layer_type: transformers' name of the layers.
        label: ``model``, and the layer type where the model has several.
        source: the dict of the config.json.
        config: what to rotate by.
        q_heads: query heads.
        kv_heads: key heads; 1 with latent attention, whose rotated key all heads share.
        context: positions end here: the model's longest, times ``factor`` for dynamic.
    """

    model: str
    layer_type: str
    label: str
    source: Mapping[str, Any]
    config: RopeConfig
    q_heads: int
    kv_heads: int
    context: int

    def positions(self, tokens: int, batch: int, device: torch.device) -> Tensor:
        """int64 (batch, tokens) or (axes, batch, tokens): the last of the context; later sequences end earlier."""
        last = torch.arange(self.context - tokens, self.context, device=device)
        rows = last - torch.arange(batch, device=device)[:, None]
        axes = self.config.num_axes
        return rows if axes == 1 else rows - 16 * torch.arange(axes, device=device)[:, None, None]

    def inputs(self, tokens: int, batch: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Random q and k (batch, tokens, heads, head_dim), the same in every run."""
        generator = torch.Generator().manual_seed(0)
        shapes = [(batch, tokens, heads, self.config.head_dim) for heads in (self.q_heads, self.kv_heads)]
        q, k = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
        return q, k


@dataclass
class Row:
    """One line of the demo's table, and one object of its JSON.

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


def cases(only: Sequence[str] = ()) -> list[Case]:
    """A case per shipped config (those named in ``only``, or all) and layer type.

    Raises:
        SourceError: no shipped config has a name of ``only``.
        RopeConfigError: a shipped config is wrong.
    """
    found = []
    for name in only or names():
        source = shipped(name)
        layers = RopeConfig.per_layer(source)
        for layer_type, config in layers.items():
            label = f"{name} {layer_type.removesuffix('_attention')}" if len(layers) > 1 else name
            found.append(case_of(name, layer_type, label, source, config))
    return found


def case_of(model: str, layer_type: str, label: str, source: Mapping[str, Any], config: RopeConfig) -> Case:
    """The layers of any config.json that turn by ``config``.

    Raises:
        RopeConfigError: the config.json does not tell how many heads there are.
    """
    values = next((source[key] for key in TEXT_CONFIGS if isinstance(source.get(key), Mapping)), source)
    q_heads = next((values[key] for key in _Q_HEADS if key in values), None)
    if not isinstance(q_heads, int):
        raise RopeConfigError(
            _Q_HEADS[0], f"got {q_heads!r}, a number is needed here, under that key or {_Q_HEADS[1:]}"
        )
    kv_heads = values.get("num_key_value_heads") or q_heads
    if "qk_rope_head_dim" in values:
        kv_heads = 1
    elif layer_type == "full_attention":
        kv_heads = values.get("num_global_key_value_heads") or kv_heads
    context = config.max_position_embeddings or _USUAL_CONTEXT
    if config.rope_type == "dynamic" and config.factor:
        context = int(context * config.factor)
    return Case(model, layer_type, label, source, config, q_heads, kv_heads, context)


def measure(
    todo: Sequence[Case], device: torch.device, backend: str, done: Callable[[], None] = lambda: None
) -> list[Row]:
    """Check every case, then time them all, a round of every case at a time, so that a disturbance hits all alike.

    Args:
        todo: what to run.
        device: where q and k are.
        backend: name of the backend that will run, for the rows.
        done: called ``len(todo) * (1 + ROUNDS)`` times, as the work goes on.
    """
    rows = []
    for case in todo:
        rows.append(_checked(case, device, backend))
        done()
    timed = [(_Timed(case, PREFILL_TOKENS, 1, 1, device), _Timed(case, 1, DECODE_BATCH, _DECODE_CALLS, device))
             for case in todo]  # fmt: skip
    for _ in range(ROUNDS):
        for prefill, decode in timed:
            prefill.run()
            decode.run()
            done()
    for row, (prefill, decode) in zip(rows, timed, strict=True):
        row.prefill_us_per_token = prefill.microseconds_per_token()
        row.decode_us_per_token = decode.microseconds_per_token()
    return rows


def _checked(case: Case, device: torch.device, backend: str) -> Row:
    peer, note = None, None
    try:
        peer = transformers_rotation(case.source, case.layer_type)
    except PeerError as error:
        note = str(error)
    own_errors: list[float] = []
    peer_errors: list[float] = []
    for tokens, batch in ((PREFILL_TOKENS, 1), (1, DECODE_BATCH)):
        inputs = case.inputs(tokens, batch, device, torch.float32)
        positions = case.positions(tokens, batch, device)
        want = [exact.rotate(x, positions, case.config) for x in inputs]
        got = cast("tuple[Tensor, Tensor]", apply_rope(*inputs, positions, case.config))
        own_errors += map(relative_error, got, want, inputs)
        if peer is not None:
            peer_errors += map(relative_error, peer(*inputs, positions), want, inputs)
    return Row(
        model=case.model, layer_type=case.layer_type, label=case.label, rope_type=case.config.rope_type,
        pairing=case.config.pairing, backend=backend, q_heads=case.q_heads, kv_heads=case.kv_heads,
        head_dim=case.config.head_dim, rotary_dim=case.config.rotary_dim, context=case.context,
        max_error=max(own_errors), transformers_max_error=max(peer_errors, default=None), transformers_note=note,
    )  # fmt: skip


def relative_error(got: Tensor, want: Tensor, x: Tensor) -> float:
    """``max |got - want| / max |x|``, with ``want`` float64 on the host."""
    return float((got.cpu().double() - want).abs().max() / x.abs().max())


class _Timed:
    """One call at one shape, warmed up, and the seconds that each run of it took."""

    def __init__(self, case: Case, tokens: int, batch: int, calls: int, device: torch.device) -> None:
        self._q, self._k = case.inputs(tokens, batch, device, torch.bfloat16)
        self._positions = case.positions(tokens, batch, device)
        self._config, self._calls, self._tokens = case.config, calls, tokens * batch
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
