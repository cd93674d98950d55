"""How a RopeConfig is compared: with exact frequencies, with transformers' own modules, and pair by pair."""

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
from mpmath import mpf
from support import tolerances
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rope_kernels.config import RopeConfig

transformers.logging.set_verbosity_error()

CONFIGS = sorted(
    entry.name.removesuffix(".json")
    for entry in resources.files("rope_kernels.measuring").joinpath("configs").iterdir()
    if entry.name.endswith(".json")
)


def shipped(name: str) -> dict[str, Any]:
    """A config.json of the package."""
    path = Path(str(resources.files("rope_kernels.measuring").joinpath("configs", f"{name}.json")))
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def assert_exact(config: RopeConfig, want: list[mpf], seq_len: int | None = None, rel: float = 1e-12) -> None:
    """Every frequency of ``config`` within ``rel`` of the exact one, zeros exactly zero."""
    got = config.inv_freq(seq_len).tolist()
    assert len(got) == len(want)
    for j, (a, b) in enumerate(zip(got, want, strict=True)):
        assert abs(mpf(a) - b) <= rel * abs(b), f"pair {j}: {a!r}, exact {mpmath.nstr(b, 20)}"


def assert_like_transformers(config: RopeConfig, inv_freq: torch.Tensor, seq_len: int | None = None) -> None:
    """The frequencies within what transformers' fp32 is off by."""
    torch.testing.assert_close(config.inv_freq(seq_len), inv_freq.double(), rtol=tolerances.FP32_TABLE_REL, atol=0)


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
