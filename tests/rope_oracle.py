"""What the package is compared with: the papers' formulas in 40 digits, and transformers' own modules.

Nothing here goes through ``FrequencyParams``.
"""

from __future__ import annotations

import importlib
import inspect
import json
from importlib import resources
from pathlib import Path
from typing import Any

import mpmath
import torch
import transformers
from mpmath import mp, mpf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rope_kernels.config import RopeConfig

mp.dps = 40
transformers.logging.set_verbosity_error()


CONFIGS = sorted(
    entry.name.removesuffix(".json")
    for entry in resources.files("rope_kernels").joinpath("configs").iterdir()
    if entry.name.endswith(".json")
)


def shipped(name: str) -> dict[str, Any]:
    """A config.json of the package."""
    path = Path(str(resources.files("rope_kernels").joinpath("configs", f"{name}.json")))
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def ladder(theta: Any, d: int) -> list[mpf]:
    """RoFormer: theta ** (-2 j / d) for every pair of d channels."""
    return [mpf(theta) ** (-mpf(2 * j) / d) for j in range((d + 1) // 2)]


def linear(theta: float, d: int, factor: float) -> list[mpf]:
    """Position interpolation: the position, hence the frequency, divided by the factor."""
    return [f / mpf(factor) for f in ladder(theta, d)]


def dynamic(theta: float, d: int, factor: float, longest: int, seq_len: int | None) -> list[mpf]:
    """Dynamic NTK: theta grows with the length, from the trained length on."""
    length = max(seq_len or longest, longest)
    growth = mpf(factor) * length / longest - (mpf(factor) - 1)
    return ladder(mpf(theta) * growth ** (mpf(d) / (d - 2)), d)


def ntk_alpha(theta: float, d: int, alpha: float) -> list[mpf]:
    """HunYuan: the same growth, constant."""
    return ladder(mpf(theta) * mpf(alpha) ** (mpf(d) / (d - 2)), d)


def yarn(
    theta: float, d: int, factor: float, original: int, fast: float = 32, slow: float = 1, truncate: bool = True
) -> list[mpf]:
    """YaRN: interpolation and extrapolation mixed by a ramp over the pair's index."""

    def index(turns: float) -> mpf:
        return d * mpmath.log(original / (2 * mp.pi * mpf(turns))) / (2 * mpmath.log(theta))

    low, high = index(fast), index(slow)
    if truncate:
        low, high = mpmath.floor(low), mpmath.ceil(high)
    low, high = max(low, mpf(0)), min(high, mpf(d - 1))
    high = high + mpf("0.001") if low == high else high
    mixed = []
    for j, f in enumerate(ladder(theta, d)):
        interpolated = min(max((j - low) / (high - low), mpf(0)), mpf(1))
        mixed.append(f / mpf(factor) * interpolated + f * (1 - interpolated))
    return mixed


def yarn_scaling(factor: float, mscale: float | None = None, mscale_all_dim: float | None = None) -> mpf:
    """YaRN's attention factor, or DeepSeek's ratio of two."""

    def one(weight: float) -> mpf:
        return mpf(1) if factor <= 1 else mpf("0.1") * mpf(weight) * mpmath.log(factor) + 1

    return one(mscale) / one(mscale_all_dim) if mscale and mscale_all_dim else one(1)


def llama3(theta: float, d: int, factor: float, low: float, high: float, original: int) -> list[mpf]:
    """Llama 3.1: by wavelength; short ones stay, long ones are divided, those between are mixed."""
    out = []
    for f in ladder(theta, d):
        wavelength = 2 * mp.pi / f
        if wavelength < mpf(original) / mpf(high):
            out.append(f)
        elif wavelength > mpf(original) / mpf(low):
            out.append(f / mpf(factor))
        else:
            smooth = (original / wavelength - mpf(low)) / (mpf(high) - mpf(low))
            out.append((1 - smooth) * f / mpf(factor) + smooth * f)
    return out


def longrope(theta: float, d: int, divisors: list[float]) -> list[mpf]:
    """LongRoPE: a divisor per pair."""
    return [f / mpf(x) for f, x in zip(ladder(theta, d), divisors, strict=True)]


def longrope_scaling(factor: float, original: int) -> mpf:
    """LongRoPE's attention factor."""
    return mpf(1) if factor <= 1 else mpmath.sqrt(1 + mpmath.log(factor) / mpmath.log(original))


def proportional(theta: float, head_dim: int, share: float, factor: float = 1) -> list[mpf]:
    """Gemma 4: the ladder spans the whole head, its slow part stands still."""
    rotated = int(share * head_dim // 2)
    return [f / mpf(factor) if j < rotated else mpf(0) for j, f in enumerate(ladder(theta, head_dim))]


def assert_exact(config: RopeConfig, want: list[mpf], seq_len: int | None = None, rel: float = 1e-12) -> None:
    """Every frequency of ``config`` within ``rel`` of the exact one, zeros exactly zero."""
    got = config.inv_freq(seq_len).tolist()
    assert len(got) == len(want)
    for j, (a, b) in enumerate(zip(got, want, strict=True)):
        assert abs(mpf(a) - b) <= rel * abs(b), f"pair {j}: {a!r}, exact {mpmath.nstr(b, 20)}"


def assert_like_transformers(config: RopeConfig, inv_freq: torch.Tensor, seq_len: int | None = None) -> None:
    """The frequencies within what transformers' fp32 is off by."""
    torch.testing.assert_close(config.inv_freq(seq_len), inv_freq.double(), rtol=2e-5, atol=0)


def hf_config(model_type: str, **values: Any) -> Any:
    """transformers' own config object of a dict."""
    return CONFIG_MAPPING[model_type](**values)


def rotary_classes(config: Any) -> list[type]:
    """The rotary embedding classes of a config's modeling file that take this config."""
    module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    found = [
        cls
        for name, cls in vars(module).items()
        if inspect.isclass(cls) and "Rotary" in name and cls.__module__ == module.__name__
    ]
    takes = [cls for cls in found if type(config).__name__ in str(inspect.signature(cls.__init__))]
    return takes or [cls for cls in found if "config" in inspect.signature(cls.__init__).parameters]


def angles(config: RopeConfig, positions: torch.Tensor) -> torch.Tensor:
    """Angles (tokens, pairs) for positions (rows, tokens), in float64."""
    rotation = config.rotation()
    rows = list(rotation.axis) or [0] * rotation.num_pairs
    return positions.double()[rows].T * config.inv_freq()[: rotation.num_pairs]


def rotate(config: RopeConfig, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotate x (tokens, head_dim) by positions (rows, tokens) pair by pair, as ``Rotation`` defines it."""
    rotation, angle, out = config.rotation(), angles(config, positions) + 0.0, x.double().clone()
    per_block = rotation.num_pairs // rotation.blocks
    for i in range(rotation.num_pairs):
        block, k = divmod(i, per_block)
        start = rotation.rotary_offset + 2 * rotation.distance * block
        half, near = (start + k, start + k + rotation.distance), (start + 2 * k, start + 2 * k + 1)
        read = half if rotation.pairing == "half" else near
        write = near if rotation.pairing == "interleaved" else half
        cos, sin = angle[:, i].cos() * config.attention_scaling, angle[:, i].sin() * config.attention_scaling
        a, b = x[:, read[0]].double(), x[:, read[1]].double()
        out[:, write[0]], out[:, write[1]] = a * cos - b * sin, b * cos + a * sin
    return out
