"""No key that looks like RoPE is dropped in silence, wherever it stands, in dicts and in config objects."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import PreTrainedConfig

from rope_kernels.config import RopeConfig
from rope_kernels.config.huggingface.unread import OUTSIDE, refuse_unread
from rope_kernels.errors import RopeConfigError, RopeConfigWarning

BASE = {"model_type": "unheard_of", "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 4096}
WORDS = st.sampled_from(
    ["rope", "rotary", "ROPE", "rot_emb", "ntk", "yarn", "theta", "condense", "mscale", "xpos", "alibi_slope"]
)
STARTS, ENDS = st.sampled_from(["", "use_", "inner_", "x"]), st.sampled_from(["", "_x", "_ratio", "_mode2", "_list"])
NAMES = st.builds("{}{}{}".format, STARTS, WORDS, ENDS)
SAYS = st.one_of(st.just(True), st.floats(1, 9), st.integers(1, 9), st.just("on"), st.just([1, 2]), st.just({"a": 1}))
NOTHING = st.sampled_from([None, False, [], {}, ""])


def is_known(name: str) -> bool:
    """Whether the reader reads the key."""
    try:
        refuse_unread({name: 1.0}, strict=True)
    except RopeConfigError:
        return False
    return True


def values_with(name: str, value: Any, outer: str | None) -> dict[str, Any]:
    return {**BASE, **({name: value} if outer is None else {outer: {name: value}})}


@given(NAMES, SAYS, st.sampled_from([None, "attn_config", "attention", "extra_settings"]))
def test_an_unread_key_is_an_error_that_names_it(name: str, value: Any, outer: str | None) -> None:
    assume(outer is not None or not is_known(name))
    values, key = values_with(name, value, outer), name if outer is None else f"{outer}.{name}"
    result = outcome(values)
    if isinstance(result, str):
        assert key in result or name in result
        assert "strict=False" in result or not result.startswith(key)
    else:  # a vendor's key made a difference
        assert result != RopeConfig.from_hf(BASE)


@given(NAMES, NOTHING, st.sampled_from([None, "attn_config", "attention"]))
def test_a_key_that_says_nothing_is_none(name: str, value: Any, outer: str | None) -> None:
    config, base = RopeConfig.from_hf(values_with(name, value, outer)), RopeConfig.from_hf(BASE)
    assert config.frequency_params == base.frequency_params


@given(NAMES, SAYS)
def test_without_strict_it_is_a_warning(name: str, value: Any) -> None:
    assume(not is_known(name))
    with pytest.warns(RopeConfigWarning, match="which looks like RoPE and is not read"):
        refuse_unread({**BASE, name: value}, strict=False)


@given(NAMES, SAYS, st.sampled_from(["class", "property", "instance"]))
def test_config_objects_are_read_like_dicts(name: str, value: Any, where: str) -> None:
    attribute = {"class": value, "property": property(lambda self: value)}.get(where)
    cls = type("Remote", (PreTrainedConfig,), {"model_type": "unheard_of", **({name: attribute} if attribute else {})})
    config = cls(**{k: v for k, v in BASE.items() if k != "model_type"})
    if where == "instance":
        setattr(config, name, value)
    assert outcome(config) == outcome({**BASE, name: value})


def outcome(config: Any) -> Any:
    try:
        return RopeConfig.from_hf(config)
    except RopeConfigError as error:
        return str(error)


@pytest.mark.parametrize("key", [key for keys in OUTSIDE.values() for key in keys])
def test_class_attributes_and_properties_are_values(key: str) -> None:
    value = 0.5 if "partial" in key or "pct" in key else 4e6
    for attribute in (value, property(lambda self: value)):
        cls = type("Remote", (PreTrainedConfig,), {"model_type": "unheard_of", key: attribute})
        config = cls(hidden_size=64, num_attention_heads=4)
        if key == "n_positions":
            continue
        assert RopeConfig.from_hf(config) == RopeConfig.from_hf({**BASE, "max_position_embeddings": None, key: value})


def test_a_property_that_raises_is_no_value() -> None:
    def broken(self: Any) -> float:
        raise ValueError("not set up")

    cls = type("Remote", (PreTrainedConfig,), {"model_type": "unheard_of", "rope_theta": property(broken)})
    assert RopeConfig.from_hf(cls(hidden_size=64, num_attention_heads=4)).rope_theta == 10000.0


def test_other_parts_of_a_composite_are_not_searched() -> None:
    other = {"model_type": "siglip", "rope_something": 3, "hidden_size": 8}
    assert RopeConfig.from_hf({**BASE, "vision_config": other, "talker": other}) == RopeConfig.from_hf(BASE)


def test_dim_means_another_format() -> None:
    with pytest.raises(RopeConfigError, match=r"^dim: got 4096 without hidden_size; a params.json has n_heads too"):
        RopeConfig.from_hf({"dim": 4096, "head_dim": 128})


def test_the_near_key_is_suggested() -> None:
    with pytest.raises(
        RopeConfigError, match=r"^rope_tehta: got 5.0, which looks like RoPE .*did you mean 'rope_theta'"
    ):
        RopeConfig.from_hf({**BASE, "rope_tehta": 5.0})
    with pytest.raises(RopeConfigError, match=r"^rope_scaling_type: got 'yarn', which looks like RoPE and is not read"):
        RopeConfig.from_hf({**BASE, "rope_scaling_type": "yarn"})
