"""The spellings of one config: which come to the same, which disagree, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from support import comparisons
from support import exact_formulas as exact
from support.comparisons import shipped
from transformers import LlamaConfig

from rope_kernels.config import RopeConfig
from rope_kernels.errors import RopeConfigError, RopeConfigWarning

BASE = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 8192}
YARN = {"factor": 4.0, "original_max_position_embeddings": 2048}


def read(strict: bool = True, layer_type: str | None = None, **values: Any) -> RopeConfig:
    return RopeConfig.from_hf({**BASE, **values}, layer_type, strict)


def test_spellings_come_to_the_same() -> None:
    want = read(rope_parameters={"rope_type": "yarn", "rope_theta": 5e4, "attention_factor": 1.5, **YARN})
    for config in (
        read(rope_theta=50000, rope_scaling={"type": "YARN", "attention_factor": 1.5, **YARN}),
        read(rotary_emb_base=5e4, rope_scaling={"rope_type": "yarn", "attention_factor": 1.5, **YARN}),
        read(
            rope_parameters={"type": "deepseek_yarn", "rope_theta": "5e4", "attention_factor": 1.5, **YARN},
            strict=False,
        ),
        read(
            rope_theta=5e4,
            rope_scaling={"type": "yarn", "rope_type": "yarn", "attention_factor": 1.5, **YARN},
            rope_parameters={"rope_type": "yarn", "rope_theta": 5e4, "attention_factor": 1.5, **YARN},
        ),
    ):
        assert config == want
    lists = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    outside = {"original_max_position_embeddings": 2048}
    assert read(rope_scaling={"type": "su", **lists}, **outside) == read(
        rope_parameters={"rope_type": "longrope", **lists, **outside}
    )
    shares = ({"partial_rotary_factor": 0.5}, {"rotary_pct": 0.5}, {"rotary_dim": 8})
    assert {read(**share).rotary_dim for share in shares} == {8}
    assert {read(rope_parameters={key: 0.5}).rotary_dim for key in ("partial_rotary_factor", "rotary_pct")} == {8}


def test_null_is_not_given() -> None:
    assert read(rope_scaling=None, rope_parameters=None, rope_theta=None, head_dim=None, rotary_dim=None) == read()
    assert read(rope_scaling={"type": "yarn", "attention_factor": None, **YARN}) == read(
        rope_scaling={"type": "yarn", **YARN}
    )


@pytest.mark.parametrize("head_dim", [44, 78, 88, 96])
def test_a_count_of_channels_is_met_exactly(head_dim: int) -> None:
    for count in range(2, head_dim + 1, 2):
        assert RopeConfig.from_hf({"head_dim": head_dim, "rotary_dim": count}).frequency_params.freq_dim == count


@pytest.mark.parametrize(
    ("values", "field", "parts"),
    [
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4}}, "rope_theta", ["20000.0", "10000.0"]),
        ({"rope_theta": 1e4, "rotary_emb_base": 2e4}, "rope_theta", ["rotary_emb_base", "must agree"]),
        ({"rope_scaling": {"type": "yarn", "rope_type": "linear", **YARN}}, "rope_type", ["'linear'", "'yarn'"]),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"type": "linear", "factor": 4.0}},
            "factor",
            ["2.0 from rope_scaling.factor", "4.0 from rope_parameters.factor"],
        ),
        (
            {"rope_scaling": {"type": "yarn", "attn_factor": 1.0, "attention_factor": 1.5, **YARN}},
            "attention_factor",
            ["rope_scaling.attn_factor 1.0", "1.5", "1.13863"],
        ),
        ({"partial_rotary_factor": 0.5, "rotary_pct": 0.25}, "partial_rotary_factor", ["0.5", "0.25 from rotary_pct"]),
        ({"partial_rotary_factor": 0.5, "rotary_dim": 4}, "partial_rotary_factor", ["0.5", "rotary_dim 4"]),
    ],
)
def test_spellings_that_disagree(values: dict[str, Any], field: str, parts: list[str]) -> None:
    with pytest.raises(RopeConfigError, match=f"^{field}: ") as caught:
        read(**values)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        read(strict=False, **values)
    text = str(caught.value).removesuffix(" (strict=False only warns)")
    assert text in [str(w.message) for w in seen if w.category is RopeConfigWarning]


def test_the_outer_original_length_wins_with_a_warning() -> None:
    with pytest.warns(RopeConfigWarning, match="got 2048 inside and 1024 outside; the outer is used"):
        config = read(original_max_position_embeddings=1024, rope_scaling={"type": "yarn", **YARN | {"factor": 8.0}})
    assert config.original_max_position_embeddings == 1024


def test_an_original_length_is_ignored_where_the_type_has_none() -> None:
    assert read(original_max_position_embeddings=1024) == read()


def test_a_missing_original_length_is_the_longest_as_in_transformers() -> None:
    with pytest.warns(RopeConfigWarning, match="got 8192, usually less than max_position_embeddings, 8192"):
        config = read(rope_scaling={"type": "yarn", "factor": 4.0})
    assert config.original_max_position_embeddings == 8192
    assert config.provenance["original_max_position_embeddings"] == "max_position_embeddings"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"type": "yarn", "beta_fats": 32, **YARN}, "rope_scaling.beta_fats: got 32, .*did you mean 'beta_fast'"),
        ({"type": "linear", "factor": 2.0, "gamma": [1]}, r"rope_scaling.gamma: got \[1\], unknown with rope_type"),
        ({"type": "linear", "factor": 2.0, "alpha": 3.0}, "alpha: got 3.0, rope_type 'linear' does not use it"),
    ],
)
def test_no_key_is_dropped_silently(table: dict[str, Any], message: str) -> None:
    with pytest.raises(RopeConfigError, match=f"^{message}"):
        read(rope_scaling=table)
    with pytest.warns(RopeConfigWarning, match=f"^{message}"):
        read(strict=False, rope_scaling=table)


def test_known_keys_without_effect_are_explained() -> None:
    config = RopeConfig.from_hf(comparisons.hf_config("ministral3"))
    assert "note: rope_parameters.llama_4_scaling_beta = 0.1 is not used: the model scales its queries" in (
        config.explain()
    )


@pytest.mark.parametrize("layer_type", [None, "global"])
def test_layer_types_must_be_named(layer_type: str | None) -> None:
    with pytest.raises(RopeConfigError, match=r"^layer_type: .*sliding_attention, full_attention"):
        RopeConfig.from_hf(shipped("gemma-4-text"), layer_type)


def test_nearest_layer_type_is_suggested() -> None:
    with pytest.raises(RopeConfigError, match="did you mean 'full_attention'"):
        RopeConfig.from_hf(shipped("gemma-4-text"), "full_atention")


def test_layers_that_do_not_rotate() -> None:
    nested = {"full_attention": None, "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}
    assert RopeConfig.per_layer({**BASE, "rope_parameters": nested}).keys() == {"sliding_attention"}
    with pytest.raises(RopeConfigError, match=r"^layer_type: got 'full_attention', whose parameters are null"):
        read(layer_type="full_attention", rope_parameters=nested)


def test_flat_parameters_hold_for_every_layer_type() -> None:
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    assert read(layer_type="anything") == read()
    assert RopeConfig.per_layer({**BASE, "layer_types": layers}) == dict.fromkeys(layers, read())
    assert RopeConfig.per_layer(BASE) == {"full_attention": read()}


def test_nested_parameters_fall_back_on_the_values_beside_them() -> None:
    nested = {"a": {"rope_type": "default"}, "b": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}}
    layers = RopeConfig.per_layer({**BASE, "rope_theta": 9.0, "rope_parameters": nested})
    assert {name: layer.rope_theta for name, layer in layers.items()} == {"a": 9.0, "b": 7.0}


def test_a_truncate_per_layer_is_honoured() -> None:
    table = {"rope_type": "yarn", "truncate": False, **YARN}
    config = read(layer_type="a", rope_parameters={"a": table, "b": {"rope_type": "default"}})
    comparisons.assert_exact(config, exact.yarn(10000.0, 16, 4.0, 2048, truncate=False))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_scaling": "yarn"}, r"^rope_scaling: got 'yarn' \(str\), must be a dict"),
        ({"rope_parameters": {"a": {}, "rope_theta": 3.0}}, "^rope_parameters.rope_theta: got 3.0 beside layer types"),
        (
            {"rope_scaling": {"type": "linear"}, "rope_parameters": {"a": {}}},
            "^rope_scaling: .*beside parameters nested",
        ),
        ({"rope_kernels": {"pairs": "half"}}, "^rope_kernels.pairs: got 'half', allowed are pairing, phase"),
        ({"rope_kernels": "half"}, "^rope_kernels: got 'half', must be a dict"),
        ({"hidden_size": None}, "^head_dim: missing; head_dim, qk_rope_head_dim or hidden_size"),
        ({"hidden_size": "64"}, r"^hidden_size: got '64' \(str\), must be an integer over 0"),
        ({"num_attention_heads": 0}, r"^num_attention_heads: got 0 \(int\), must be an integer over 0"),
        ({"rope_scaling": {"type": "xdrope", "xdrope_section": [1]}}, "xdrope_section: .*no rotation"),
        ({"model_type": "hunyuan_vl", "rope_scaling": {"mrope_section": [4, 4]}}, "^mrope_section: .*no rotation"),
        (
            {"model_type": "gemma4_text", "qk_rope_head_dim": 8, "partial_rotary_factor": 0.3},
            "^partial_rotary_factor: ",
        ),
    ],
)
def test_what_cannot_be_read(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RopeConfigError, match=message):
        read(layer_type="full_attention", **values)


@pytest.mark.parametrize("config", [None, 3, "config.json", LlamaConfig])
def test_what_is_no_config(config: Any) -> None:
    with pytest.raises(RopeConfigError, match=r"^config: got .*must be a transformers config or a dict"):
        RopeConfig.from_hf(config)


def test_unknown_fields_of_our_own_dict() -> None:
    with pytest.raises(RopeConfigError, match=r"^facter: got 2.0, no field of RopeConfig; did you mean 'factor'"):
        RopeConfig.from_hf({"head_dim": 8, "rope_type": "linear", "facter": 2.0})


def test_what_has_no_huggingface_key_survives() -> None:
    config = RopeConfig(
        head_dim=32,
        partial_rotary_factor=0.5,
        rotary_offset=8,
        phase="float32",
        table_dtype="bfloat16",
        pairing="interleaved",
    )
    assert config.to_hf()["rope_kernels"] == {
        "rotary_offset": 8,
        "pairing": "interleaved",
        "phase": "float32",
        "table_dtype": "bfloat16",
    }
    assert RopeConfig.from_hf(config.to_hf()) == config
    interleaved = RopeConfig(head_dim=16, rope_type="mrope", mrope_section=[4, 2, 2], axis_map="interleaved")
    assert interleaved.to_hf()["rope_parameters"]["mrope_interleaved"] is True
    table = RopeConfig.from_inv_freq([1.0, -0.5], attention_scaling=1.25)
    for other in (interleaved, table, RopeConfig(head_dim=16, rope_type="axial", axis_map="kimi")):
        assert RopeConfig.from_hf(other.to_hf()) == other


def test_the_model_type_table_is_named_as_the_origin() -> None:
    config = read(model_type="cohere")
    assert config.provenance["pairing"] == config.provenance["rope_theta"] == "model_type table: cohere"
    assert "rope_theta" not in read(model_type="unheard_of").provenance
