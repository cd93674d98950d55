"""Both modules' functions over the space of configs: usual values, and one odd value at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rope_utils_sides import LENGTHS, ORIGINAL, assert_both_alike


def one_odd(draw: Any, usual: dict[str, Any], odd: dict[str, Any]) -> dict[str, Any]:
    """A value per key; of at most one key an odd value, so that one fault decides the error."""
    values = {key: draw(st.sampled_from(choices), label=key) for key, choices in usual.items()}
    key = draw(st.sampled_from([None, *odd]), label="odd key")
    if key is not None:
        values[key] = draw(st.sampled_from(odd[key]), label="odd value")
    return {key: value for key, value in values.items() if value is not ...}


USUAL_SHAPE: dict[str, list[Any]] = {
    "head_dim": [64, 128, 80, 32, 16, ...], "hidden_size": [256], "num_attention_heads": [4],
    "max_position_embeddings": [64, 4096, 131072], "rope_theta": [1e4], "partial_rotary_factor": [..., 0.5],
}  # fmt: skip
ODD_SHAPE: dict[str, list[Any]] = {
    "head_dim": [None, 66, 10], "hidden_size": [...], "num_attention_heads": [...], "max_position_embeddings": [...],
    "rope_theta": [..., None], "partial_rotary_factor": [None, 0.3],
}  # fmt: skip
USUAL: dict[str, dict[str, list[Any]]] = {
    "linear": {"factor": [1.0, 4, 8.5]},
    "dynamic": {"factor": [1.0, 4, 8.5]},
    "yarn": {
        "factor": [1.0, 4, 40.0], ORIGINAL: [16, 2048, 8192, ...], "attention_factor": [..., 1.5],
        "beta_fast": [..., 16, 32.0], "beta_slow": [..., 1, 2.0], "mscale": [..., 1.0, 0.707],
        "mscale_all_dim": [..., 1.0, 0.8], "truncate": [..., True, False],
    },
    "longrope": {"factor": [4.0, 32, ...], ORIGINAL: [32, 2048, ...], "attention_factor": [..., 1.2]},
    "llama3": {
        "factor": [1.0, 4, 8.0], ORIGINAL: [32, 2048, 8192, ...], "low_freq_factor": [1.0, 1, 0.5],
        "high_freq_factor": [4.0, 4, 8.0],
    },
    "proportional": {"factor": [..., 1.0, 4]},
}  # fmt: skip
NO_FACTOR = [..., None, "8"]
ODD: dict[str, dict[str, list[Any]]] = {
    "linear": {"factor": [*NO_FACTOR, 0, 0.5, -2.0]},
    "dynamic": {"factor": [*NO_FACTOR, 0, 0.5]},
    "yarn": {
        "factor": [*NO_FACTOR, 0.5], ORIGINAL: [None, 0, -1, "3", 2.5],
        "attention_factor": [None, 1, 0.0, -1.0], "beta_fast": [None, 0, 0.5, "b"], "beta_slow": [None, 0, 40, "b"],
        "mscale": [None, 0], "mscale_all_dim": [None, 0], "truncate": [None, 0, 1, "no"],
    },
    "longrope": {
        "factor": [None, "8", 0, 0.5], ORIGINAL: [2.5], "attention_factor": [None, 1, 0.0],
        "short_mscale": [2.0], "long_mscale": [2.0],
    },
    "llama3": {
        "factor": [*NO_FACTOR, 0, 0.5], ORIGINAL: [None, "3", 2.5], "low_freq_factor": [..., None, "a", 0, 4.0, 9.0],
        "high_freq_factor": [..., None, "a", 0, 0.5, 1.0],
    },
    "proportional": {"factor": [None, "8", 0.5]},
}  # fmt: skip
THETAS = {"rope_theta": [1e4, 5e5, 10000, 100.0, ...], "partial_rotary_factor": [..., 1.0, 0.5]}
ODD_ALWAYS: dict[str, list[Any]] = {"rope_theta": [None, "x", 2.5], "partial_rotary_factor": [0.3, None, 2.0, "a"]}
ODD_ALWAYS |= {"unknown": [3]}


@st.composite
def calls(draw: Any) -> tuple[str, dict[str, Any], dict[str, Any], Any]:
    rope_type = draw(st.sampled_from(sorted(USUAL)))
    is_odd = draw(st.sampled_from(["neither", "parameters", "shape"]))
    shape = one_odd(draw, USUAL_SHAPE, ODD_SHAPE if is_odd == "shape" else {})
    odd = ODD[rope_type] | ODD_ALWAYS if is_odd == "parameters" else {}
    parameters = one_odd(draw, USUAL[rope_type] | THETAS, odd)
    if rope_type == "longrope":
        share = parameters.get("partial_rotary_factor", shape.get("partial_rotary_factor"))
        pairs = round((shape.get("head_dim") or 64) * (share if isinstance(share, float) else 1.0) + 1) // 2
        wrong = st.sampled_from([0, 0, 0, 1, -1])
        for key in ("short_factor", "long_factor"):
            size = pairs + draw(wrong) if is_odd == "neither" else pairs
            row = [1.0 + i / 8 for i in range(size)]
            parameters[key] = draw(st.sampled_from([row, tuple(row), [2.0], torch.tensor(row)]), label=key)
    return rope_type, {"rope_type": rope_type, **parameters}, shape, draw(st.sampled_from(LENGTHS))


def holds_a_meaning(rope_type: str, parameters: dict[str, Any], shape: dict[str, Any]) -> bool:
    """Whether the frequencies are those of a head: a share over 1 of proportional's whole head is not."""
    return not (rope_type == "proportional" and parameters.get("partial_rotary_factor") == 2.0)


@settings(max_examples=600)
@given(calls())
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_results_and_errors_over_the_space_of_configs(call: tuple[str, dict[str, Any], dict[str, Any], Any]) -> None:
    rope_type, parameters, shape, seq_len = call
    if holds_a_meaning(rope_type, parameters, shape):
        assert_both_alike(rope_type, parameters, shape, None, seq_len)


@pytest.mark.full
@settings(max_examples=20_000)
@given(calls())
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_results_and_errors_over_more_of_the_space(call: tuple[str, dict[str, Any], dict[str, Any], Any]) -> None:
    rope_type, parameters, shape, seq_len = call
    if holds_a_meaning(rope_type, parameters, shape):
        assert_both_alike(rope_type, parameters, shape, None, seq_len)
