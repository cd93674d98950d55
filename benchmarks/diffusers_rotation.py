"""The rotation of q and k in models of diffusers, theirs and ours: ``python -m benchmarks.diffusers_rotation``.

Run it by build/engines/venv/bin/python, the environment that `make test-engines` makes. Both sides are called as an
attention processor calls them, on tensors of the published models; their results are compared before they are timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
import typer
from diffusers.models import attention_processor
from diffusers.models.transformers import (
    transformer_cosmos,
    transformer_flux,
    transformer_hidream_image,
    transformer_hunyuan_video,
    transformer_ltx,
    transformer_qwenimage,
    transformer_wan,
)
from rich.console import Console
from rich.table import Table

from rope_kernels.integrations.tables.functions import places_of
from rope_kernels.integrations.tables.probing import Measured, probe_function
from rope_kernels.integrations.tables.rotating import replacement
from rope_kernels.measuring.timing import Pair, alternate

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
NEEDED = 5.0
"""How many times as fast as theirs our rotation shall be."""

_Apply = Callable[[Any], list[torch.Tensor]]


def _functions(processor: type) -> tuple[Any, Any]:
    """The function of a processor that rotates, and ours."""
    function = places_of(processor.__call__)[0].function
    measured = probe_function(function)
    assert isinstance(measured, Measured)
    return function, replacement(function, measured.signature, measured.conventions)


def _angles(tokens: int, width: int) -> torch.Tensor:
    return torch.arange(tokens)[:, None] * 1e4 ** (-torch.arange(0, width, 2) / width)


def _pair(tokens: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = _angles(tokens, width).repeat_interleave(2, -1)
    return angles.cos(), angles.sin()


def _apart(q: torch.Tensor, k: torch.Tensor, *args: Any, **kwargs: Any) -> _Apply:
    return lambda rotate: [rotate(q, *args, **kwargs), rotate(k, *args, **kwargs)]


def _rows(dtype: torch.dtype, tokens: int) -> Iterator[tuple[str, type, _Apply]]:
    """Names, processors, and their calls of the function that rotates."""

    def made(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(1, *shape).to(dtype), torch.randn(1, *shape).to(dtype)

    def heads_first(heads: int, width: int) -> list[torch.Tensor]:
        return [x.transpose(1, 2) for x in made(tokens, heads, width)]

    shared = _apart(*made(tokens, 24, 128), _pair(tokens, 128), sequence_dim=1)
    yield "Flux", transformer_flux.FluxAttnProcessor, shared
    complex_ = torch.polar(torch.ones(tokens, 64), _angles(tokens, 128))
    qwen = _apart(*made(tokens, 24, 128), complex_, use_real=False)
    yield "Qwen-Image", transformer_qwenimage.QwenDoubleStreamAttnProcessor2_0, qwen
    wan = [t[None, :, None] for t in _pair(tokens, 128)]
    yield "Wan", transformer_wan.WanAttnProcessor, _apart(*made(tokens, 12, 128), *wan)
    ltx = tuple(t[None] for t in _pair(tokens, 2048))
    yield "LTX-Video", transformer_ltx.LTXVideoAttnProcessor, _apart(*made(tokens, 2048), ltx)
    cosmos = _apart(*heads_first(16, 128), _pair(tokens, 128), use_real=True, use_real_unbind_dim=-2)
    yield "Cosmos", transformer_cosmos.CosmosAttnProcessor2_0, cosmos
    yield "HunyuanVideo", transformer_hunyuan_video.HunyuanVideoAttnProcessor2_0, shared
    cog = _apart(*heads_first(30, 64), _pair(tokens, 64))
    yield "CogVideoX", attention_processor.CogVideoXAttnProcessor2_0, cog
    angles = _angles(tokens, 128)[None, :, None]
    rows = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), -1).unflatten(-1, (2, 2))
    q, k = made(tokens, 20, 128)
    yield "HiDream", transformer_hidream_image.HiDreamAttnProcessor, lambda rotate: list(rotate(q, k, rows))


def measured(dtype: torch.dtype, tokens: int, seconds: float) -> Iterator[tuple[str, float, Pair]]:
    """Of each model: the seconds of the first call, which converts the table, and both sides' calls after it."""
    for name, processor, apply in _rows(dtype, tokens):
        theirs, ours = _functions(processor)
        start = time.perf_counter()
        mine = apply(ours)
        first = time.perf_counter() - start
        bound = 1e-5 if dtype == torch.float32 else 0.05
        for x, y in zip(mine, apply(theirs), strict=True):
            torch.testing.assert_close(x, y, atol=bound, rtol=bound)
        yield name, first, alternate(lambda: apply(ours), lambda: apply(theirs), seconds)  # noqa: B023  (called here)


def main(
    seconds: Annotated[float, typer.Option(help="seconds per row")] = 2.0,
    dtype: Annotated[str, typer.Option(help="bf16 or fp32")] = "bf16",
    tokens: Annotated[int, typer.Option(help="of the image or video")] = 1024,
) -> None:
    """Print a row for each model: milliseconds for q and k of a layer, by one thread."""
    torch.set_num_threads(1)
    table = Table("model", "diffusers, ms", "ours, ms", "the first, ms", "speed", "needed")
    with torch.no_grad():
        for name, first, pair in measured(DTYPES[dtype], tokens, seconds):
            ours, theirs = (f"{1e3 * t:.2f}" for t in pair.medians)
            table.add_row(name, theirs, ours, f"{1e3 * first:.2f}", f"{pair.speed:.1f}x", f"{NEEDED:.0f}x")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
