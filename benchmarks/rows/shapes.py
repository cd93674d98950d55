"""The models, shapes and dtypes that are timed, and their q, k and positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import rope_kernels as rk
from rope_kernels.measuring.catalog import shipped

__all__ = [
    "DECODE_1",
    "DECODE_32",
    "DTYPES",
    "GLM_4",
    "LLAMA_8B",
    "LONG_HEADS",
    "MODELS",
    "SHAPES",
    "Model",
    "Shape",
    "inputs",
]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LAST_POSITION = 100_000  # of a decode step


@dataclass(frozen=True, eq=False)
class Model:
    """A model's heads and its config.json."""

    name: str
    source: Mapping[str, Any]
    q_heads: int
    k_heads: int

    @cached_property
    def config(self) -> rk.RopeConfig:
        """The config of all layers."""
        return rk.RopeConfig.from_hf(self.source)

    def __str__(self) -> str:
        """The name and the heads."""
        return f"{self.name} {self.q_heads}/{self.k_heads}x{self.config.head_dim}"


@dataclass(frozen=True)
class Shape:
    """``batch`` sequences of ``tokens`` tokens each."""

    batch: int
    tokens: int

    def __str__(self) -> str:
        """The phase of serving with this shape."""
        return f"decode batch {self.batch}" if self.tokens == 1 else f"prefill {self.tokens}"


_LLAMA = shipped("llama-3.1-8b")
LLAMA_8B = Model("Llama-8B", _LLAMA, 32, 8)
MODELS = (
    LLAMA_8B,
    Model("Llama-70B", _LLAMA | {"hidden_size": 8192, "num_attention_heads": 64}, 64, 8),
    Model("Phi-3 (longrope)", shipped("phi-3.5-mini"), 32, 32),
    Model("DeepSeek-V3 MLA", shipped("deepseek-v3"), 128, 1),
    Model(
        "16x64",
        {
            "model_type": "llama", "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 16,
            "max_position_embeddings": 131072, "rope_theta": 10000.0,
        },
        16, 16,
    ),
)  # fmt: skip
GLM_4 = Model("GLM-4 (half rotated)", shipped("glm-4-9b"), 32, 2)
LONG_HEADS = Model(
    "8x512", _LLAMA | {"hidden_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 512}, 8, 2
)
DECODE_1, DECODE_32 = Shape(1, 1), Shape(32, 1)
SHAPES = (DECODE_1, DECODE_32, Shape(1, 512), Shape(1, 4096), Shape(1, 32768))


def inputs(model: Model, shape: Shape, dtype: str = "bf16", device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Random q and k (batch, tokens, heads, head_dim), and positions (tokens,), or random (batch, 1) for decode."""
    generator = torch.Generator().manual_seed(0)
    size = shape.batch, shape.tokens
    q, k = (
        torch.randn(*size, heads, model.config.head_dim, generator=generator).to(device, DTYPES[dtype])
        for heads in (model.q_heads, model.k_heads)
    )
    positions = torch.arange(shape.tokens)
    if shape.tokens == 1:
        positions = torch.randint(LAST_POSITION, size, generator=generator)
    return q, k, positions.to(device)
