"""vLLM's rotary layers on our kernels beside vLLM's own: ``build/engines/venv/bin/python -m benchmarks.vllm_layers``.

`make test-engines` makes that environment. Both sides are vLLM's layers in eager code, with its custom operators; the
results of both are compared before they are timed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
import typer
from rich.console import Console
from rich.table import Table
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers import rotary_embedding

from rope_kernels.integrations.vllm import register
from rope_kernels.measuring.timing import Pair, alternate

YARN = dict(rope_theta=1e4, rope_type="deepseek_yarn", factor=40.0, original_max_position_embeddings=4096, mscale=1.0,
            mscale_all_dim=1.0, beta_fast=32, beta_slow=1)  # fmt: skip
LAYERS: dict[str, tuple[int, int, bool, dict[str, Any], float]] = {
    "default": (128, 131072, True, dict(rope_theta=5e5, rope_type="default"), 1.3),
    "mrope": (128, 32768, True, dict(rope_theta=1e6, rope_type="default", mrope_section=[16, 24, 24]), 5.0),
    "MLA": (64, 163840, False, YARN, 5.0),
}
"""head_size, positions, NeoX style, rope_parameters, and how many times as fast as vLLM's ours shall be."""
TOKENS = (1, 32, 1024)


def _layer(name: str) -> Any:
    head_size, length, is_neox, parameters, _ = LAYERS[name]
    rotary_embedding._ROPE_DICT.clear()
    return rotary_embedding.get_rope(
        head_size, max_position=length, is_neox_style=is_neox, rope_parameters=dict(parameters), dtype=torch.bfloat16
    )


def _inputs(name: str, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """positions, query and key: 32 and 8 heads, for MLA 32 and one of (tokens, heads, head_size)."""
    head_size = LAYERS[name][0]
    positions = torch.arange(tokens)
    if name == "MLA":
        return positions, torch.randn(tokens, 32, head_size).bfloat16(), torch.randn(tokens, 1, head_size).bfloat16()
    axes = positions.expand(3, -1).contiguous() if name == "mrope" else positions
    return axes, *(torch.randn(tokens, heads * head_size).bfloat16() for heads in (32, 8))


def measured(seconds: float) -> Iterator[tuple[str, int, Pair]]:
    """Each kind of layer and number of tokens."""
    for name in LAYERS:
        op_registry_oot.clear()
        theirs = _layer(name)
        register()
        ours = _layer(name)
        for tokens in TOKENS:
            given = _inputs(name, tokens)
            results = [layer(given[0], given[1].clone(), given[2].clone()) for layer in (ours, theirs)]
            for x, y in zip(*results, strict=True):
                torch.testing.assert_close(x, y, atol=0.05, rtol=0.02)
            pair = alternate(lambda: ours(*given), lambda: theirs(*given), seconds)  # noqa: B023  (called here)
            yield name, tokens, pair


def main(seconds: Annotated[float, typer.Option(help="seconds per row")] = 1.0) -> None:
    """Print a row for each kind of layer and number of tokens."""
    torch.set_num_threads(1)
    table = Table("layer", "tokens", "vLLM, us", "ours, us", "speed", "needed")
    config = VllmConfig(compilation_config=CompilationConfig(custom_ops=["all"]))
    with set_current_vllm_config(config), torch.inference_mode():
        for name, tokens, pair in measured(seconds):
            ours, theirs = (f"{1e6 * t:.1f}" for t in pair.medians)
            table.add_row(name, str(tokens), theirs, ours, f"{pair.speed:.2f}x", f"{LAYERS[name][4]:.1f}x")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
