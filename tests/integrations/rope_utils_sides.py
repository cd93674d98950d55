"""The two modules side by side: transformers' own, and the drop-in put in its place."""

from __future__ import annotations

import copy
import inspect
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers.modeling_rope_utils as theirs
from rope_utils_sweep import attempt, logged
from support import tolerances

import rope_kernels.integrations.rope_utils as ours

RTOL = tolerances.FP32_TABLE_REL
NAMES = [name for name in ours.__all__ if hasattr(theirs, name)]

ORIGINAL = "original_max_position_embeddings"
TYPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 8.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, ORIGINAL: 1024},
    "longrope": {"short_factor": [1.0 + i / 9 for i in range(32)], "long_factor": [2.0 + i for i in range(32)]},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 1024},
    "proportional": {"partial_rotary_factor": 0.25},
}
TYPES["longrope"][ORIGINAL] = 1024
SHAPE = {
    "head_dim": 64, "hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 4096, "rope_theta": 1e4,
}  # fmt: skip
LENGTHS = [None, 0, 1, 1024, 1025, 4096, 4097, 100_000, torch.tensor(4096), torch.tensor(4097), torch.tensor(1025)]


class PlainConfig:
    """The least that either side needs of a config: attributes, and no layers that differ."""

    is_heterogeneous = False

    @property
    def per_layer_config(self) -> Any:
        raise ValueError("the layers do not differ")


def config_of(side: ModuleType, rope_parameters: Any, **attributes: Any) -> Any:
    """A config on one side's mixin; its parameters are a copy."""
    config = type("Config", (PlainConfig, side.RotaryEmbeddingConfigMixin), {})()
    config.__dict__.update(copy.deepcopy(attributes))
    config.rope_parameters = copy.deepcopy(rope_parameters)
    return config


def put_in_place(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Swap the names in transformers' module and in ``modules``, and the mixin's methods in place."""
    for module in (theirs, *modules):
        for name in NAMES:
            if name != "RotaryEmbeddingConfigMixin" and hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(ours, name))
    mixin = theirs.RotaryEmbeddingConfigMixin
    for name in vars(mixin):
        if not name.startswith("__"):
            monkeypatch.setattr(mixin, name, inspect.getattr_static(ours.RotaryEmbeddingConfigMixin, name))
    for name in ("_check_keys_of", "_check_implied_factor", "_check_longrope_factor"):
        monkeypatch.setattr(mixin, name, inspect.getattr_static(ours.RotaryEmbeddingConfigMixin, name), raising=False)


def outcome(function: Any, *args: Any, **kwargs: Any) -> tuple[Any, list[str]]:
    """(result or name of the error, messages logged)."""
    with logged() as messages:
        return attempt(function, *args, **kwargs), list(messages)


def assert_same_table(mine: Any, wanted: Any) -> None:
    """Two results of an init function: (inv_freq, attention_factor), or the names of errors."""
    if isinstance(wanted, str) or isinstance(mine, str):
        assert mine == wanted
        return
    (inv_freq, scaling), (wanted_inv_freq, wanted_scaling) = mine, wanted
    torch.testing.assert_close(inv_freq, wanted_inv_freq, rtol=RTOL, atol=0, equal_nan=True)
    assert type(scaling) is type(wanted_scaling)
    assert scaling == pytest.approx(wanted_scaling, rel=tolerances.FORMULA_REL)


def both(rope_type: str, parameters: dict[str, Any], attributes: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Both sides' outcome, the drop-in's first."""
    return [
        outcome(side.ROPE_INIT_FUNCTIONS[rope_type], config_of(side, parameters, **attributes), *args, **kwargs)
        for side in (ours, theirs)
    ]


def assert_both_alike(rope_type: str, parameters: dict[str, Any], attributes: dict[str, Any], *args: Any) -> None:
    (mine, my_log), (wanted, wanted_log) = both(rope_type, parameters, attributes, *args)
    assert_same_table(mine, wanted)
    assert my_log == wanted_log
