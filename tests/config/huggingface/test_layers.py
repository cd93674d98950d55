"""Labels of layers, what is left out of them and how it is said; the defaults of a composite's text part."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_model_types import BROKEN_DEFAULTS, NO_MAP, NO_ROPE_BY_DEFAULT
from tiny_models import default_configs, has_rope_parameters

from rope_kernels.config import RopeConfig
from rope_kernels.config.huggingface.model_sizes import HEAD_DIM, SIZES
from rope_kernels.config.huggingface.model_types import UNSUPPORTED
from rope_kernels.errors import RopeConfigError

BASE = {"hidden_size": 64, "num_attention_heads": 4}
TYPES = st.sampled_from(["full_attention", "sliding_attention"])
LAYERS = st.lists(st.tuples(TYPES, st.sampled_from([0, 1e4, 5e5]), st.sampled_from([0, 1])), min_size=1, max_size=9)


@given(LAYERS)
def test_lists_by_layer(layers: list[tuple[str, float, int]]) -> None:
    types, thetas, rotates = (list(column) for column in zip(*layers, strict=True))
    config = {**BASE, "layer_types": types, "layer_rope_theta": thetas, "no_rope_layers": rotates}
    want = {(name, theta) for name, theta, flag in layers if theta and flag}
    if not any(rotates):
        rotates[0] = 1  # an empty list of layers that rotate means the model's default
        return
    if not want:
        with pytest.raises(RopeConfigError, match=r"^layer_types: got .*; no layer rotates"):
            RopeConfig.per_layer(config)
        return
    got = RopeConfig.per_layer(config)
    assert {(label.split(",")[0], layer.rope_theta) for label, layer in got.items()} == want
    for label, layer in got.items():
        alone = len({theta for name, theta in want if name == label.split(",")[0]}) == 1
        assert (", rope_theta" in label) == (not alone)
        assert RopeConfig.from_hf(config, label) == layer
        for name in set(types) - {name for name, _ in want}:
            assert f"note: {name} = " in layer.explain()
    if len({theta for _, theta in want}) > 1:
        with pytest.raises(RopeConfigError, match=r"^layer_type: missing; the rotation differs by layer, allowed are"):
            RopeConfig.from_hf(config)


@pytest.mark.parametrize(
    ("values", "layer_type", "message"),
    [
        ({"model_type": "cohere2"}, "full_attention", "^layer_type: got 'full_attention': cohere2 does not rotate"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention", "no attention that rotates"),
        ({"layer_types": ["mamba", "mamba2"]}, None, r"^layer_types: got .*; no layer rotates"),
        (
            {"no_rope_layers": [1, 0], "layer_rope_theta": [1e4]},
            None,
            "^no_rope_layers: got 2 layers, layer_rope_theta",
        ),
        ({"no_rope_layers": "1101"}, None, "^no_rope_layers: got '1101', must be a list with a number per layer"),
        ({"no_rope_layers": [3, 7]}, None, r"^no_rope_layers: got \[3, 7\], must be 1 for layers that rotate"),
        (
            {"layer_rope_theta": [1e4, 5e5]},
            "other",
            r"^layer_type: got 'other', allowed are full_attention, rope_theta",
        ),
    ],
)
def test_what_is_refused(values: dict[str, Any], layer_type: str | None, message: str) -> None:
    with pytest.raises(RopeConfigError, match=message):
        RopeConfig.from_hf({**BASE, **values}, layer_type)


def test_explain_says_which_layers_do_not_rotate() -> None:
    smollm3 = RopeConfig.from_hf({**BASE, "model_type": "smollm3", "num_hidden_layers": 8})
    assert "note: full_attention, layers 3, 7 = these layers do not rotate" in smollm3.explain()
    cohere2 = RopeConfig.per_layer({**BASE, "model_type": "cohere2"})
    assert cohere2.keys() == {"sliding_attention"}
    assert "note: full_attention = cohere2 does not rotate in full attention" in cohere2["sliding_attention"].explain()


def test_a_text_part_has_the_defaults_of_its_class() -> None:
    """A composite config saves of a text part only what differs: here nothing does."""
    left_out = BROKEN_DEFAULTS | NO_MAP | NO_ROPE_BY_DEFAULT | UNSUPPORTED.keys()
    compared, wrong = set(), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for config in default_configs(has_rope_parameters):
            model_type = config.model_type
            if model_type in left_out or model_type not in HEAD_DIM.keys() | SIZES.keys():
                continue
            bare = {"max_position_embeddings": getattr(config, "max_position_embeddings", None)}
            bare |= {"model_type": model_type, "layer_types": getattr(config, "layer_types", None)}
            theirs = RopeConfig.per_layer(config, strict=False)
            mine = RopeConfig.per_layer({"model_type": "composite", "text_config": bare}, strict=False)
            for label in mine.keys() & theirs.keys():
                compared.add(model_type)
                a, b = mine[label], theirs[label]
                if (a.frequency_params, a.geometry) != (b.frequency_params, b.geometry):
                    wrong[f"{model_type} {label}"] = (a, b)
    assert not wrong
    assert len(compared) > 150
