"""Errors of the tables that models of diffusers make, and of the same angles computed here, from a config.

``python -m benchmarks.diffusers_angles``, by build/engines/venv/bin/python, which `make test-engines` makes. The grids
are those of published sizes of images and videos.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from diffusers.models.transformers.transformer_cosmos import CosmosRotaryPosEmbed
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from diffusers.models.transformers.transformer_flux2 import Flux2PosEmbed
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoRotaryPosEmbed
from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from rich.console import Console
from rich.table import Table

from rope_kernels import RopeConfig, apply_rope

Tables = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Row:
    """A model's table, and the config and positions that mean the same.

    Attributes:
        name: of the model.
        theirs: cosines and sines of each pair, (tokens, pairs), from the model.
        config: the frequencies of the pairs and the axis of each.
        positions: (axes, tokens), int64 or float32.
    """

    name: str
    theirs: Tables
    config: RopeConfig
    positions: torch.Tensor

    def exact(self) -> Tables:
        """Cosines and sines of the angles in double precision."""
        axes = list(self.config.rotation().axis)
        angles = self.positions.double()[axes].T * self.config.inv_freq()
        return angles.cos(), angles.sin()

    def ours(self) -> Tables:
        """What the kernel multiplies with: a pair (1, 0) turns into (cos, sin)."""
        x = torch.zeros(1, self.positions.shape[1], 1, self.config.head_dim)
        if self.config.pairing == "half":
            x[..., : x.shape[-1] // 2] = 1
            cos, sin = apply_rope(x, None, self.positions[:, None], self.config)[0][0, :, 0].chunk(2, -1)
            return cos, sin
        x[..., ::2] = 1
        y = apply_rope(x, None, self.positions[:, None], self.config)[0][0, :, 0]
        return y[:, ::2], y[:, 1::2]

    def errors(self) -> tuple[float, float]:
        """The largest error of a cosine or sine: theirs and ours."""
        exact = torch.stack(self.exact())
        return tuple(float((torch.stack(t).double() - exact).abs().max()) for t in (self.theirs, self.ours()))  # type: ignore[return-value]


def ladder(theta: float, width: int) -> list[float]:
    """The frequencies of ``width`` channels."""
    return [theta ** (-2 * j / width) for j in range(width // 2)]


def of_axes(ladders: Sequence[list[float]], **fields: Any) -> RopeConfig:
    """A config of one ladder after another, each for an axis of positions."""
    sections = [len(frequencies) for frequencies in ladders]
    frequencies = [frequency for each in ladders for frequency in each]
    return RopeConfig.from_inv_freq(frequencies, mrope_section=sections, **{"pairing": "interleaved", **fields})


def grid(*sizes: int) -> torch.Tensor:
    """Positions of all tokens of a video or image, an axis each."""
    return torch.stack(torch.meshgrid(*map(torch.arange, sizes), indexing="ij")).flatten(1)


def _image(axes: int, size: int = 64) -> torch.Tensor:
    rows = torch.zeros(axes, size * size, dtype=torch.int64)
    rows[1:3] = grid(size, size)
    return rows


def _each_pair(tables: Any) -> Tables:
    """Without the repetition for the second channel of each pair."""
    cos, sin = (t.reshape(-1, t.shape[-1])[:, ::2] for t in tables)
    return cos, sin


def rows() -> Iterator[Row]:
    """The models."""
    flux = _image(3)
    config = of_axes([ladder(1e4, width) for width in (16, 56, 56)])
    yield Row("Flux", _each_pair(FluxPosEmbed(10000, [16, 56, 56])(flux.T)), config, flux)

    flux2 = _image(4)
    flux2[3] = torch.arange(flux2.shape[1]) % 512
    config = of_axes([ladder(2000.0, 32)] * 4)
    yield Row("Flux2", _each_pair(Flux2PosEmbed(2000, [32] * 4)(flux2.T)), config, flux2)

    qwen = _image(3)
    qwen[1:] -= 32  # the image is centred
    image, _ = QwenEmbedRope(10000, [16, 56, 56], True)((1, 64, 64), device=torch.device("cpu"), max_txt_seq_len=9)
    config = of_axes([ladder(1e4, width) for width in (16, 56, 56)])
    yield Row("Qwen-Image", (image.real, image.imag), config, qwen)

    wan = grid(21, 30, 52)
    tables = WanRotaryPosEmbed(128, (1, 2, 2), 1024)(torch.zeros(1, 1, 21, 60, 104))
    yield Row("Wan", _each_pair(tables), of_axes([ladder(1e4, width) for width in (44, 42, 42)]), wan)

    hunyuan = grid(33, 45, 80)
    tables = HunyuanVideoRotaryPosEmbed(2, 1, [16, 56, 56], 256.0)(torch.zeros(1, 1, 33, 90, 160))
    config = of_axes([ladder(256.0, width) for width in (16, 56, 56)])
    yield Row("HunyuanVideo", _each_pair(tables), config, hunyuan)

    yield _cosmos()
    yield _ltx()

    lumina = get_2d_rotary_pos_embed_lumina(96, 64, 64).flatten(0, 1)
    twice = [frequency for frequency in ladder(1e4, 48) for _ in range(2)]
    config = RopeConfig.from_inv_freq(twice, mrope_section=[24, 24], axis_map="interleaved", pairing="interleaved")
    yield Row("Lumina-Next", (lumina.real, lumina.imag), config, grid(64, 64))


def _cosmos() -> Row:
    """A ladder with a base of its own for each axis, halves as pairs, and time in frames of 24 per second."""
    frames, fps = 16, 30
    module = CosmosRotaryPosEmbed(128, rope_scale=(2.0, 1.0, 1.0))
    cos, sin = module(torch.zeros(1, 1, frames, 88, 160), fps=fps)
    bases = [1e4 * factor for factor in (module.t_ntk_factor, module.h_ntk_factor, module.w_ntk_factor)]
    ladders = [ladder(base, width) for base, width in zip(bases, (44, 42, 42), strict=True)]
    ladders[0] = [frequency * 24 / fps for frequency in ladders[0]]
    return Row("Cosmos", (cos[:, :64], sin[:, :64]), of_axes(ladders, pairing="half"), grid(frames, 44, 80))


def _ltx() -> Row:
    """All channels as one head, axes that alternate, and coordinates from -1 to 1 with high frequencies."""
    width, frames, height, wide = 2048, 16, 22, 38
    module = LTXVideoRotaryPosEmbed(width)
    cos, sin = module(torch.zeros(1, 1, 8), frames, height, wide, (8 / 25, 32, 32))
    positions = 2 * module._prepare_video_coords(1, frames, height, wide, (8 / 25, 32, 32), "cpu")[0].T - 1
    count, still = width // 6, width % 6
    frequencies = [1e4 ** (j / (count - 1)) * math.pi / 2 for j in range(count) for _ in range(3)]
    config = RopeConfig.from_inv_freq(
        frequencies, head_dim=width - still, mrope_section=[count] * 3, axis_map="interleaved", pairing="interleaved"
    )
    return Row("LTX-Video", (cos[0, :, still::2], sin[0, :, still::2]), config, positions.contiguous())


def main() -> None:
    """Print a row for each model."""
    table = Table("model", "tokens", "angles up to", "diffusers' table", "computed here")
    for row in rows():
        axes = list(row.config.rotation().axis)
        largest = (row.positions.double().abs().amax(1)[axes] * row.config.inv_freq().abs()).max()
        theirs, ours = row.errors()
        table.add_row(row.name, str(row.positions.shape[1]), f"{largest:.0f}", f"{theirs:.1e}", f"{ours:.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
