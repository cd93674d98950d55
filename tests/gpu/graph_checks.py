"""CUDA graphs: a call is captured once and replayed with other values in the same buffers.

On the CPU a replay is the call again: that tries out these checks, not the graphs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from support.cases import LONG
from torch import Tensor

import rope_kernels as rk

from .outcomes import Check, NotHereError, Setup
from .placing import config_named, moved

__all__ = ["Replayed", "captured", "graph_checks"]

NEAR = 5e-6
"""Numbers below 5 and attention scaling up to 1.5: 4e-6 by the contract, and the reference's own rounding."""
WARM_UPS = 3
Replay = Callable[[], object]


def captured(call: Replay, device: torch.device) -> Replay:
    """Replays of ``call``, which has been called before, as a capture asks for."""
    if device.type != "cuda":
        call()
        return call
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    replay: Replay = graph.replay
    return replay


def counted(start: int, tokens: int = 3) -> Tensor:
    """Positions from ``start`` on, for two sequences."""
    return torch.arange(start, start + tokens)[None].expand(2, -1).clone()


class Replayed:
    """``apply_rope`` from static buffers into static buffers, captured.

    Args:
        config: its name in ``tests/cases.py``.
        backend: whose kernels.
        device: where.
        first: values of the index tensors (positions, offset, seq_len, cu_seqlens) at the capture.
        options: other keywords of ``apply_rope``.
        history: lengths come from a DynamicState, which is captured too.
    """

    def __init__(
        self, config: str, backend: str, device: torch.device, first: dict[str, Tensor],
        history: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        self.config, self.backend, self.options = config_named(config), backend, options
        shape = (7,) if options.get("layout") == "thd" else (2, 3)
        generator = torch.Generator().manual_seed(0)
        self.made = [torch.randn(*shape, n, self.config.head_dim, generator=generator) for n in (4, 2)]
        self.q, self.k = (moved(x, device) for x in self.made)
        self.out = torch.empty_like(self.q), torch.empty_like(self.k)
        self.buffers = {name: moved(value, device) for name, value in first.items()}
        self.state = rk.DynamicState(self.config, device) if history else None
        self.twin = rk.DynamicState(self.config) if history else None
        with rk.use_backend(backend):
            self._replay = captured(self._call, device)
        if self.state is not None:
            self.state.reset()

    def _rotated(
        self, q: Tensor, k: Tensor, state: rk.DynamicState | None, values: dict[str, Tensor], out: Any = None
    ) -> Any:
        index: dict[str, Any] = dict(values)
        positions = index.pop("positions", None)
        if state is not None:
            assert positions is not None
            index["seq_len"] = state.update(positions)
        return rk.apply_rope(q, k, positions, self.config, out=out, **index, **self.options)

    def _call(self) -> None:
        self._rotated(self.q, self.k, self.state, self.buffers, self.out)

    def expect(self, values: dict[str, Tensor]) -> None:
        """Replay with ``values``: as the plain torch backend on the CPU, and bit by bit as a call without a graph."""
        for name, value in values.items():
            self.buffers[name].copy_(value)
        for y in self.out:
            y.fill_(float("nan"))
        with rk.use_backend(self.backend):  # on the CPU, where it is called again
            self._replay()
        got = [y.cpu() for y in self.out]
        with rk.use_backend("reference"):
            wanted = self._rotated(self.made[0], self.made[1], self.twin, values)
        torch.testing.assert_close(got, list(wanted), rtol=0, atol=NEAR)
        if self.state is None:
            with rk.use_backend(self.backend):
                eager = self._rotated(self.q, self.k, None, self.buffers)
            assert all(map(torch.equal, got, (y.cpu() for y in eager))), "the replay differs from a call"


def _lengths(*values: int) -> Tensor:
    return torch.tensor(values)


POSITIONS = [{"positions": counted(start)} for start in (0, 100, 131000, 5)]
SWITCH = [{"positions": counted(start)} for start in (0, 13, 14, 300, 0)]
"""LongRoPE's original length is 16: the third call is the first to reach it."""
GROWN = [{"positions": counted(start)} for start in (0, 60, 300, 40, 0, 31)]
"""dynamic's original length is 32, and a call below it forgets."""
PER_SEQUENCE = [{"positions": counted(9), "seq_len": _lengths(*n)} for n in ((16, 17), (17, 16), (3, 400), (500, 2))]
OFFSETS = [{"offset": _lengths(*n)} for n in ((0, 5), (13, 2), (14, 2), (7, 1000), (1, 1))]
PACKED = [{"cu_seqlens": _lengths(*n)} for n in ((0, 3, 5), (0, 1, 7), (0, 0, 2), (0, 6, 7))]
PACKED_LENGTHS = [
    {"cu_seqlens": bounds["cu_seqlens"], "seq_len": lengths["seq_len"]}
    for bounds, lengths in zip(PACKED, PER_SEQUENCE, strict=True)
]
AXES = [{"positions": torch.stack((counted(n), counted(2 * n), counted(n // 3)))} for n in (0, 10, 5000)]

SEQUENCES: dict[str, tuple[str, Sequence[dict[str, Tensor]], dict[str, Any]]] = {
    "positions": ("llama3", POSITIONS, {}),
    "inverse": ("llama3", POSITIONS, {"inverse": True}),
    "axes": ("mrope_interleaved", AXES, {}),
    "longrope switches by positions": ("longrope", SWITCH, {}),
    "longrope switches scaling too": ("longrope_mscale", SWITCH, {}),
    "longrope switches by offsets": ("longrope", OFFSETS, {}),
    "longrope by each sequence's length": ("longrope", PER_SEQUENCE, {}),
    "dynamic grows by positions": ("dynamic", GROWN, {}),
    "dynamic by each sequence's length": ("dynamic", PER_SEQUENCE, {}),
    "dynamic with its history": ("dynamic", GROWN, {"history": True}),
    "packed": ("longrope", PACKED, {"layout": "thd"}),
    "packed, each sequence's length": ("dynamic", PACKED_LENGTHS, {"layout": "thd"}),
}  # fmt: skip
"""Name: (config, values of the index tensors from replay to replay, options)."""


def check_sequence(name: str, backend: str, device: torch.device) -> None:
    """One of :data:`SEQUENCES`."""
    config, values, options = SEQUENCES[name]
    replayed = Replayed(config, backend, device, dict(values[0]), **options)
    for value in values:
        replayed.expect(value)


def check_in_place(backend: str, device: torch.device) -> None:
    """Every replay rotates the buffers further."""
    config = config_named("longrope")
    start = torch.randn(2, 3, 4, config.head_dim, generator=torch.Generator().manual_seed(0))
    q, positions = moved(start, device), counted(0).to(device)

    def call() -> None:
        with rk.use_backend(backend):
            rk.apply_rope_(q, None, positions, config)

    replay = captured(call, device)
    wanted = start
    q.copy_(start)
    for begin in (2, 14, 100):
        positions.copy_(counted(begin))
        replay()
        with rk.use_backend("reference"):
            wanted, _ = rk.apply_rope(wanted, None, counted(begin), config)
        scale = config.attention_scaling
        torch.testing.assert_close(q.cpu(), wanted, rtol=0, atol=3 * scale**3 * NEAR)


def check_gradient(backend: str, device: torch.device) -> None:
    """Forward and backward in one graph, across LongRoPE's switch."""
    config = config_named("longrope")
    q = torch.randn(2, 3, 4, config.head_dim, generator=torch.Generator().manual_seed(0))
    there, positions = moved(q, device).requires_grad_(), counted(0).to(device)
    gradient = torch.empty_like(q, device=device)

    def call() -> None:
        with rk.use_backend(backend):
            turned, _ = rk.apply_rope(there, None, positions, config)
            gradient.copy_(torch.autograd.grad(turned, there, there.detach())[0])

    replay = captured(call, device)
    for begin in (2, 14, 100):
        positions.copy_(counted(begin))
        replay()
        with rk.use_backend("reference"):
            wanted, _ = rk.apply_rope(q, None, counted(begin), config, inverse=True)
        torch.testing.assert_close(gradient.cpu(), wanted, rtol=0, atol=NEAR)


_unused = itertools.count()


def check_unprepared(backend: str, device: torch.device) -> None:
    """A config's first call within a capture: an error that says what to do, or right at once."""
    if device.type != "cuda":
        raise NotHereError("there is no capture on the CPU")
    divisors = [1.5 + 1e-3 * next(_unused), *LONG[1:]]  # a config that nothing has used yet
    config = config_named("longrope", long_factor=divisors)
    q, positions = torch.randn(2, 3, 4, config.head_dim, device=device), counted(14).to(device)
    out, graph = torch.full_like(q, float("nan")), torch.cuda.CUDAGraph()
    with rk.use_backend(backend):  # the same kernels, which are then loaded
        rk.apply_rope(q, None, positions, config_named("longrope"), out=(out, None))
    out.fill_(float("nan"))
    try:
        with rk.use_backend(backend), torch.cuda.graph(graph):
            rk.apply_rope(q, None, positions, config, out=(out, None))
    except RuntimeError as error:
        if "call rope_kernels.warm_up" not in str(error):
            raise
        return
    graph.replay()
    with rk.use_backend("reference"):
        wanted, _ = rk.apply_rope(q.cpu(), None, counted(14), config)
    torch.testing.assert_close(out.cpu(), wanted, rtol=0, atol=NEAR)


def graph_checks(setup: Setup, backend: str) -> Iterator[Check]:
    """All of these, for one backend."""
    device = setup.device
    for name in SEQUENCES:
        yield Check(f"graphs/{backend}/{name}", partial(check_sequence, name, backend, device))
    yield Check(f"graphs/{backend}/in place", partial(check_in_place, backend, device))
    yield Check(f"graphs/{backend}/gradient", partial(check_gradient, backend, device))
    yield Check(f"graphs/{backend}/first call in a capture", partial(check_unprepared, backend, device))
