"""explain() names every value, its origin, and what follows from it."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from support.comparisons import CONFIGS, shipped
from test_config import LLAMA3, SAMPLES

from rope_kernels.config import RopeConfig


def row(text: str, name: str) -> list[str]:
    """Value and origin of a field."""
    line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
    return re.split(r"\s{2,}", line)[1:]


def test_origins() -> None:
    text = RopeConfig.from_hf(shipped("glm-4-9b")).explain()
    assert row(text, "pairing") == ["interleaved", "model_type table: glm4"]
    assert row(text, "partial_rotary_factor") == ["0.5", "partial_rotary_factor"]
    assert row(text, "rope_type") == ["default", "default"]
    text = RopeConfig.from_hf(shipped("gpt-oss-20b")).explain()
    assert row(text, "factor") == ["32.0", "rope_scaling.factor"]
    assert row(text, "truncate") == ["False", "rope_scaling.truncate"]
    text = RopeConfig(**LLAMA3).explain()
    assert row(text, "factor") == ["8.0", "given"]
    assert row(text, "phase") == ["exact", "default"]


def test_defaults_that_were_used_are_shown() -> None:
    config = RopeConfig(
        head_dim=64, rope_type="yarn", original_max_position_embeddings=1024, max_position_embeddings=4096
    )
    text = config.explain()
    assert row(text, "beta_fast") == ["32.0", "default"]
    assert row(text, "truncate") == ["True", "default"]
    assert row(text, "factor") == ["4.0", "max_position_embeddings / original_max_position_embeddings"]


def test_consequences() -> None:
    text = RopeConfig.from_hf(shipped("llama-2-7b")).explain()
    longest = 2 * math.pi * 10000 ** (126 / 128)
    slow = sum(10000 ** (-2 * j / 128) * 4096 < 2 * math.pi for j in range(64))
    assert f"wavelengths from 6.28319 to {longest:.6g} tokens" in text
    assert f"{slow} of 64 pairs make less than one turn over 4096 tokens" in text
    assert "cos and sin are multiplied by 1, scores therefore by 1" in text
    assert "channel i pairs with channel i + 64" in text
    text = RopeConfig.from_hf(shipped("gpt-oss-20b")).explain()
    assert "cos and sin are multiplied by 1.34657, scores therefore by 1.81326" in text


def test_both_states_of_longrope() -> None:
    text = RopeConfig.from_hf(shipped("phi-3.5-mini")).explain()
    short, long = text.split("sequences of up to 4096 tokens:")[1].split("sequences of more than 4096 tokens:")
    assert "wavelengths from 6.28319 to" in short
    assert f"wavelengths from {2 * math.pi * 1.0800000429153442:.6g} to" in long
    assert row(text, "long_factor")[0] == "48 values from 1.08 to 64.84"


def test_dynamic_says_how_theta_grows() -> None:
    text = RopeConfig.from_hf(shipped("internlm2-chat-7b")).explain()
    assert "sequences of up to 32768 tokens:" in text
    assert "sequences of 65536 tokens (theta grows with the length):" in text


def test_axes_and_blocks() -> None:
    text = RopeConfig.from_hf(shipped("qwen2-vl-7b-text")).explain()
    assert "axis map contiguous: 3 rows of positions rotate [16, 24, 24] pairs" in text
    assert row(text, "axis_map") == ["contiguous", "default"]
    text = RopeConfig(head_dim=16, rope_type="axial", axis_map="gemma4_vision").explain()
    assert "each of 2 equal blocks of channels is paired on its own" in text
    text = RopeConfig.from_hf(shipped("gemma-4-text"), "full_attention").explain()
    assert "64 of 256 pairs rotate" in text


@pytest.mark.parametrize("values", SAMPLES, ids=lambda v: v.get("rope_type", "default"))
def test_every_given_value_is_shown(values: dict[str, Any]) -> None:
    text = RopeConfig(**values).explain()
    for name in values:
        assert row(text, name)[-1] == "given"
    assert text == "\n".join(line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_config_is_explained(name: str) -> None:
    for config in RopeConfig.per_layer(shipped(name)).values():
        text = config.explain()
        assert text.isascii()
        assert max(map(len, text.splitlines())) <= 140
        for field, origin in config.provenance.items():
            assert row(text, field)[-1] == origin


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("llama-2-7b", "4096 tokens"),
        ("qwen2.5-7b-yarn", "131072 tokens, 4 times the original 32768"),
        ("llama-3.1-8b", "65536 tokens, 8 times the original 8192; max_position_embeddings says 131072"),
        ("internlm2-chat-7b", "65536 tokens, 2 times the original 32768; max_position_embeddings says 32768"),
        ("phi-3.5-mini", "131072 tokens, 32 times the original 4096"),
    ],
)
def test_effective_context(name: str, line: str) -> None:
    assert f"effective context: {line}" in RopeConfig.from_hf(shipped(name)).explain().splitlines()


def test_no_length_no_effective_context() -> None:
    assert "effective context" not in RopeConfig(head_dim=64).explain()
