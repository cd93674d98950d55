"""The rows of a CUDA device, timed by Triton's ``do_bench``, which empties the L2 cache.

GB/s count the bytes that must move: q and k read once and written once, and the positions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

import rope_kernels as rk
from rope_kernels.backends import available_backends
from rope_kernels.measuring.timing import Pair

from . import peers
from .ours import FLOORS, Inputs, TimedCall, floor, ours
from .peers import MissingPeerError, Peer, agrees, phase_table
from .row import BenchmarkRow, facts_of
from .shapes import DECODE_32, LLAMA_8B, MODELS, SHAPES, Model, Shape, inputs
from .whole_model import whole_model_rows

__all__ = ["alternate_on_device", "captured", "cuda_rows", "one_launch"]

DEVICE = "cuda"
MIN_ROUNDS = 7
ROUND_MS = 20


def alternate_on_device(
    ours_: TimedCall, peer: TimedCall, seconds: float, time: Callable[..., float] | None = None
) -> Pair:
    """Alternate rounds of ``do_bench`` of the two sides; each round counts by its median."""
    if time is None:
        from triton.testing import do_bench as time
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(max(MIN_ROUNDS, int(seconds / (4e-3 * ROUND_MS)))):
        for call, into in zip((ours_, peer), times, strict=True):
            into.append(time(call, warmup=ROUND_MS // 4, rep=ROUND_MS, return_mode="median") * 1e-3)
    return Pair(*times)


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPeerError(f"{package}: pip install {package}") from error


def _liger(model: Model, x: Inputs) -> TimedCall:
    """Liger's kernel, which writes to its inputs, with a table made beforehand."""
    rotate = _imported("liger_kernel.transformers.rope", "liger-kernel").liger_rotary_pos_emb
    q, k, positions = x
    cos, sin = rk.cos_sin(positions.expand(q.shape[:2]), model.config, q.dtype)
    first = rotate(q.clone().transpose(1, 2), k.clone().transpose(1, 2), cos, sin)
    agrees(first, model, q.transpose(1, 2), k.transpose(1, 2), positions, "bhsd")
    return lambda: rotate(q.transpose(1, 2), k.transpose(1, 2), cos, sin)


def _flash_attn(model: Model, x: Inputs) -> TimedCall:
    """flash-attn's kernel, in place, once for q and once for k, with a table made beforehand."""
    rotate = _imported("flash_attn.layers.rotary", "flash-attn").apply_rotary_emb
    q, k, positions = x
    cos, sin = phase_table(model, int(positions.max()) + 1, q).chunk(2, -1)
    offsets: Any = 0 if q.shape[1] > 1 else positions[:, 0].to(torch.int32)
    cos, sin = cos.contiguous(), sin.contiguous()

    def run(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(rotate(t, cos, sin, inplace=True, seqlen_offsets=offsets) for t in (q, k))  # type: ignore

    agrees(run(q.clone(), k.clone()), model, q, k, positions)
    return lambda: run(q, k)


def _flashinfer(model: Model, x: Inputs) -> TimedCall:
    """FlashInfer's kernel, in place, with a float32 table made beforehand."""
    rotate = _imported("flashinfer.rope", "flashinfer-python").apply_rope_with_cos_sin_cache_inplace
    q, k, positions = x
    table = phase_table(model, int(positions.max()) + 1, q).float()
    flat = positions.expand(q.shape[:2]).flatten().contiguous()

    def run(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        rotate(flat, q.flatten(0, 1).flatten(1), k.flatten(0, 1).flatten(1), q.shape[-1], table)
        return q, k

    agrees(run(q.clone(), k.clone()), model, q, k, positions)
    return lambda: run(q, k)


def _vllm(model: Model, x: Inputs) -> TimedCall:
    _imported("vllm._custom_ops", "vllm")
    return peers.vllm(model, x)


PEERS: dict[str, tuple[str, Peer]] = {
    "transformers": ("in place", peers.transformers),
    "transformers, torch.compile": ("allocating", peers.transformers_compiled),
    "hand-fused, torch.compile": ("allocating", peers.fused_compiled),
    "Liger": ("in place", _liger),
    "flash-attn": ("in place", _flash_attn),
    "FlashInfer": ("in place", _flashinfer),
    "vLLM": ("in place", _vllm),
}


def _row(model: Model, shape: Shape, dtype: str, form: str, name: str, peer: Peer,
         backend: str | None = None, graph: bool = False) -> BenchmarkRow:  # fmt: skip
    facts: dict[str, Any] = facts_of(model, shape, dtype, form, name)

    def build() -> tuple[TimedCall, TimedCall]:
        x = inputs(model, shape, dtype, DEVICE)
        facts["bytes"] = 2 * (x[0].nbytes + x[1].nbytes) + x[2].nbytes
        with rk.use_backend(backend):
            mine = ours(form, model, x)
        other = peer(model, x)
        if graph:
            return captured(mine, backend), captured(other, None)
        return _on(backend, mine), other

    words = ["CUDA", model.name, dtype, str(shape), form, f"against {name}", backend or "", "CUDA graph" * graph]
    name = ", ".join(word for word in words if word)
    return BenchmarkRow("cuda", name, build, facts=facts, timer=alternate_on_device)


def one_launch(form: str, x: Inputs) -> TimedCall:
    """The memory floor of a form over as much memory as q and k have, as one launch: our call is one, too."""
    both = torch.cat([t.flatten() for t in x[:2]])
    return floor(form, (both, both[:0], x[2]))


def _on(backend: str | None, call: TimedCall) -> TimedCall:
    def run() -> object:
        with rk.use_backend(backend):
            return call()

    return run


def captured(call: TimedCall, backend: str | None) -> TimedCall:
    """The call captured in a CUDA graph."""
    run = _on(backend, call)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _floor_rows() -> Iterator[BenchmarkRow]:
    backends = [name for name, reason in available_backends().items() if reason is None and name != "reference"]
    for shape, form, backend in product(SHAPES, FLOORS, backends):
        yield _row(LLAMA_8B, shape, "bf16", form, FLOORS[form][0], lambda _, x, form=form: one_launch(form, x), backend)
    for shape, backend in product((SHAPES[0], DECODE_32), backends):
        yield _row(LLAMA_8B, shape, "bf16", "in place", "bitwise_not_", lambda _, x: one_launch("in place", x), backend,
                   graph=True)  # fmt: skip
    for model, shape in product(MODELS[1:], (DECODE_32, SHAPES[3])):
        yield _row(model, shape, "bf16", "out=", "copy_", lambda _, x: one_launch("out=", x))
    for dtype, shape in product(("fp16", "fp32"), (DECODE_32, SHAPES[3])):
        yield _row(LLAMA_8B, shape, dtype, "in place", "bitwise_not_", lambda _, x: one_launch("in place", x))


def cuda_rows() -> list[BenchmarkRow]:
    """Every row of the device; none without a device."""
    if not torch.cuda.is_available():
        return []
    with_peers = [_row(LLAMA_8B, shape, "bf16", form, name, peer)
                  for shape, (name, (form, peer)) in product(SHAPES, PEERS.items())]  # fmt: skip
    return [*with_peers, *_floor_rows(), *whole_model_rows(DEVICE)]
