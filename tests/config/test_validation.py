"""Wrong values are refused by name, with what came and what is allowed."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rope_kernels.config import RopeConfig
from rope_kernels.config.fields import OTHER_NAMES, RopeFields
from rope_kernels.config.rope_types import ROPE_TYPES
from rope_kernels.errors import RopeConfigError, RopeConfigWarning

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {
    "rope_type": "longrope",
    "factor": 4.0,
    "short_factor": [1.0] * 32,
    "long_factor": [2.0] * 32,
    "original_max_position_embeddings": 2048,
}


def make(strict: bool = True, **values: Any) -> RopeConfig:
    return RopeConfig(**{"head_dim": 64, **values}, strict=strict)


HARD: list[tuple[dict[str, Any], str, list[str]]] = [
    # types
    ({"head_dim": True}, "head_dim", ["True (bool)", "integer"]),
    ({"head_dim": "64"}, "head_dim", ["'64' (str)", "integer"]),
    ({"head_dim": None}, "head_dim", ["None", "integer"]),
    ({"head_dim": 64.5}, "head_dim", ["64.5 (float)", "integer"]),
    ({"rope_theta": "10000"}, "rope_theta", ["'10000' (str)", "number"]),
    ({"rope_theta": True}, "rope_theta", ["True (bool)", "number"]),
    ({"rope_theta": 1j}, "rope_theta", ["1j (complex)", "number"]),
    ({"rope_theta": None}, "rope_theta", ["None", "number"]),
    ({**YARN, "truncate": 1}, "truncate", ["1 (int)", "bool"]),
    ({"rope_type": 3}, "rope_type", ["3 (int)", "str"]),
    ({**LONG, "short_factor": 2.0}, "short_factor", ["2.0 (float)", "list of numbers"]),
    ({**LONG, "short_factor": "ab"}, "short_factor", ["'ab' (str)", "list of numbers"]),
    ({**LONG, "short_factor": {"a": 1}}, "short_factor", ["dict", "list of numbers"]),
    ({**LONG, "short_factor": [1.0] * 31 + [None]}, "short_factor[31]", ["None", "number"]),
    ({"mrope_section": [8.5, 12, 11.5]}, "mrope_section[0]", ["8.5", "integer"]),
    ({"extra": 3}, "extra", ["3", "dict"]),
    # not finite
    ({"rope_theta": math.nan}, "rope_theta", ["nan", "finite"]),
    ({"rope_theta": math.inf}, "rope_theta", ["inf", "finite"]),
    ({"rope_theta": 10**400}, "rope_theta", ["finite"]),
    ({"rope_type": "linear", "factor": math.nan}, "factor", ["nan", "finite"]),
    ({**LONG, "long_factor": [math.inf] * 32}, "long_factor[0]", ["inf", "finite"]),
    # ranges
    ({"head_dim": 0}, "head_dim", ["0", "over 0"]),
    ({"head_dim": -64}, "head_dim", ["-64", "over 0"]),
    ({"head_dim": 65}, "head_dim", ["65", "even"]),
    ({"rope_theta": 0}, "rope_theta", ["0.0", "over 0"]),
    ({"rope_theta": -1e4}, "rope_theta", ["-10000.0", "over 0"]),
    ({"partial_rotary_factor": 0.0}, "partial_rotary_factor", ["0.0", "over 0"]),
    ({"partial_rotary_factor": 1.5}, "partial_rotary_factor", ["1.5", "at most 1"]),
    ({"partial_rotary_factor": 0.01}, "partial_rotary_factor", ["0.01", "no pair would rotate"]),
    ({"rotary_offset": -1}, "rotary_offset", ["-1", "0 or more"]),
    ({"rotary_offset": 2}, "head_dim", ["64", "rotary_offset 2", "do not fit"]),
    ({"max_position_embeddings": 0}, "max_position_embeddings", ["0", "over 0"]),
    ({"rope_type": "linear", "factor": 0.0}, "factor", ["0.0", "over 0"]),
    ({"rope_type": "linear", "factor": -2.0}, "factor", ["-2.0", "over 0"]),
    ({**YARN, "beta_fast": 0.0}, "beta_fast", ["0.0", "over 0"]),
    ({**YARN, "mscale": -1.0}, "mscale", ["-1.0", "0 or more"]),
    ({**LONG, "short_factor": [0.0] * 32}, "short_factor[0]", ["0.0", "over 0"]),
    ({**LONG, "long_factor": [2.0] * 31 + [-1.0]}, "long_factor[31]", ["-1.0", "over 0"]),
    ({"mrope_section": [0, 16, 16]}, "mrope_section[0]", ["0", "over 0"]),
    ({"rope_type": "ntk_alpha", "alpha": 0}, "alpha", ["0.0", "over 0"]),
    # choices
    ({"rope_type": "yarm"}, "rope_type", ["'yarm'", "yarn", "did you mean 'yarn'"]),
    ({"pairing": "halves"}, "pairing", ["'halves'", "half, interleaved", "did you mean 'half'"]),
    ({"phase": "float64"}, "phase", ["'float64'", "exact, float32"]),
    ({"table_dtype": "float32"}, "table_dtype", ["'float32'", "bfloat16, float16"]),
    ({"rope_type": "axial", "axis_map": "spiral"}, "axis_map", ["'spiral'", "qwen_vision, pixtral"]),
    (
        {"rope_type": "axial", "axis_map": "gemma4_vision", "pairing": "interleaved"},
        "pairing",
        ["'interleaved'", "half"],
    ),
    (
        {"rope_type": "axial", "axis_map": "gemma4_vision", "pairing": "interleaved_to_half"},
        "pairing",
        ["'interleaved_to_half'", "gemma4_vision", "'half' only"],
    ),
    # keys
    ({"rope_thta": 5e5}, "rope_thta", ["500000.0", "no field of RopeConfig", "did you mean 'rope_theta'?"]),
    ({"rotary_dim": 64}, "rotary_dim", ["got 64", "no field of RopeConfig", "here it is partial_rotary_factor"]),
    ({"base": 5e5}, "base", ["got 500000.0", "here it is rope_theta"]),
    ({"is_neox_style": False}, "is_neox_style", ["got False", "pairing='half' for True, 'interleaved' for False"]),
    ({"rope_theta": -1, "short_facter": [1.0] * 32}, "short_facter", ["<32 values>", "did you mean 'short_factor'?"]),
    ({"short_factors": [1, "a"]}, "short_factors", ["got [1, 'a']", "did you mean 'short_factor'?"]),
    ({"zzz": None}, "zzz", ["None", "fields are alpha, ", "head_dim, "]),
    ({"rope_type": "linear"}, "factor", ["missing", "'linear'"]),
    ({"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings", ["missing", "'dynamic'"]),
    ({"rope_type": "llama3", "factor": 8.0}, "high_freq_factor", ["missing", "'llama3'"]),
    ({"rope_type": "yarn", "factor": 8.0}, "original_max_position_embeddings", ["missing", "'yarn'"]),
    ({**YARN, "factor": None}, "max_position_embeddings", ["missing", "yarn without factor"]),
    ({**LONG, "factor": None}, "max_position_embeddings", ["missing", "longrope without factor"]),
    ({**LONG, "long_factor": None}, "long_factor", ["missing", "'longrope'"]),
    ({"rope_type": "mrope"}, "mrope_section", ["missing", "'mrope'"]),
    ({"axis_map": "interleaved"}, "mrope_section", ["missing", "'interleaved'"]),
    ({"rope_type": "inv_freq"}, "inv_freq_table", ["missing", "'inv_freq'"]),
    # values against each other
    ({**LLAMA3, "low_freq_factor": 8.0}, "high_freq_factor", ["4.0", "at least low_freq_factor, 8.0"]),
    ({**LONG, "short_factor": [1.0] * 31}, "short_factor", ["31 entries", "one per frequency, 32"]),
    ({**LONG, "long_factor": [1.0] * 33}, "long_factor", ["33 entries", "one per frequency, 32"]),
    ({"mrope_section": [8, 12, 11]}, "mrope_section", ["[8, 12, 11]", "sum 31", "= 32"]),
    (
        {"mrope_section": [8, 8, 8, 8]},
        "mrope_section",
        ["[8, 8, 8, 8]", "at most 3 sections", "from_inv_freq takes more"],
    ),
    (
        {"mrope_section": [16, 16], "axis_map": "interleaved"},
        "mrope_section",
        ["[16, 16]", "three sections are needed", "from_inv_freq takes others"],
    ),
    ({"axis_map": "qwen_vision"}, "axis_map", ["'qwen_vision'", "allowed with default are contiguous"]),
    ({"rope_type": "axial", "axis_map": "ernie"}, "axis_map", ["'ernie'", "allowed with axial"]),
    ({"rope_type": "axial", "mrope_section": [16, 16]}, "mrope_section", ["[16, 16]", "no sections"]),
    ({"rope_type": "axial", "head_dim": 66}, "head_dim", ["66", "multiple of 4"]),
    (
        {"rope_type": "dynamic", "head_dim": 2, "factor": 2.0, "max_position_embeddings": 9},
        "head_dim",
        ["2 rotated channels", "more than 2"],
    ),
    (
        {"rope_type": "proportional", "partial_rotary_factor": 0.5, "pairing": "interleaved_to_half"},
        "pairing",
        ["'interleaved_to_half'", "16 of 32 do"],
    ),
    # what cannot be computed
    ({**LONG, "original_max_position_embeddings": 1}, "rope_type", ["'longrope' cannot be computed", "zero"]),
    ({"rope_type": "ntk_alpha", "alpha": 1e300, "rope_theta": 1e300}, "rope_type", ["'ntk_alpha' cannot be computed"]),
]

SOFT: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"factor": 8.0}, "factor", ["8.0", "'default' does not use it", "rope_theta"]),
    ({"rope_type": "linear", "factor": 2.0, "beta_fast": 3.0}, "beta_fast", ["3.0", "'linear' does not use it"]),
    ({"rope_type": "linear", "factor": 0.5}, "factor", ["0.5", "at least 1"]),
    ({**YARN, "factor": 0.5}, "factor", ["0.5", "at least 1"]),
    ({**YARN, "attention_factor": -1.0}, "attention_factor", ["-1.0", "over 0"]),
    ({**YARN, "beta_fast": 1.0, "beta_slow": 32.0}, "beta_fast", ["1.0", "at least beta_slow, 32.0"]),
    ({"max_position_embeddings": 4096.0}, "max_position_embeddings", ["4096.0 (float)", "integer"]),
    ({"rope_theta": 0.5}, "rope_theta", ["0.5", "over 1"]),
    ({"extra": {"gamma": 2}}, "gamma", ["2", "'default' does not use it"]),
]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("values", "field", "parts"), HARD)
def test_errors_whatever_strict_says(values: dict[str, Any], field: str, parts: list[str], strict: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RopeConfigError) as caught:
            make(strict, **values)
    assert caught.value.field == field, str(caught.value)
    assert str(caught.value).startswith(f"{field}: ")
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_unknown_and_missing_fields_are_errors_of_ours_on_every_way_in() -> None:
    config = make()
    wrong: list[Callable[[], object]] = [
        lambda: RopeConfig(64, thetas=3.0),  # type: ignore[call-arg]
        lambda: config.replace(thetas=3.0),
        lambda: dataclasses.replace(config, thetas=3.0),  # type: ignore[call-arg]
        lambda: RopeConfig.from_inv_freq([1.0, 0.5], thetas=3.0),
    ]
    for call in wrong:
        with pytest.raises(RopeConfigError, match=r"^thetas: got 3\.0, no field of RopeConfig") as caught:
            call()
        assert caught.value.field == "thetas"
    without: list[dict[str, Any]] = [{}, {"rope_type": "linear", "factor": 2.0}]
    for values in without:
        with pytest.raises(RopeConfigError, match=r"^head_dim: missing") as caught:
            RopeConfig(**values)
        assert caught.value.field == "head_dim"


@pytest.mark.parametrize(("values", "field", "parts"), SOFT)
def test_errors_that_become_warnings(values: dict[str, Any], field: str, parts: list[str]) -> None:
    with pytest.raises(RopeConfigError) as caught:
        make(**values)
    assert caught.value.field == field
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        config = make(strict=False, **values)
    assert [type(w.message) for w in seen] == [RopeConfigWarning]
    assert f"{seen[0].message} (strict=False only warns)" == str(caught.value)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert config.inv_freq().isfinite().all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**YARN, "max_position_embeddings": 2048}, "original_max_position_embeddings: got 2048, usually less than"),
        ({**LLAMA3, "max_position_embeddings": 1024}, "original_max_position_embeddings: got 2048, usually less than"),
        ({**YARN, "max_position_embeddings": 16384}, "factor: got 4.0, used as it is; .* is 8"),
    ],
)
def test_odd_values_warn_once(values: dict[str, Any], message: str) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        make(**values)
        make(**values)
    assert [w.category for w in seen] == [RopeConfigWarning]
    with pytest.warns(RopeConfigWarning, match=f"^{message}"):
        make(**values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {**YARN, "max_position_embeddings": 8192},
        {**LLAMA3, "max_position_embeddings": 8192},
        {**LONG, "max_position_embeddings": 8192},
        {"rope_type": "proportional", "partial_rotary_factor": 0.25},
        {"head_dim": 65, "partial_rotary_factor": 0.5},
    ],
)
def test_good_values_are_silent(values: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(**values)


JUNK = (
    st.none()
    | st.booleans()
    | st.integers(-5, 200)
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.floats() | st.integers(-1, 40), max_size=40)
)
FIELDS = [f.name for f in fields(RopeFields) if f.name not in ("rope_type", "extra", "strict", "provenance")]


@pytest.mark.parametrize(("name", "said"), OTHER_NAMES.items())
def test_other_names_lead_to_fields(name: str, said: str) -> None:
    known = {f.name for f in fields(RopeFields)}
    assert name not in known
    assert re.split(r"\W", said)[0] in known


@given(st.sampled_from(sorted(ROPE_TYPES)), st.dictionaries(st.sampled_from(FIELDS), JUNK, max_size=6), st.booleans())
def test_junk_gives_a_config_or_an_error_of_ours(rope_type: str, values: dict[str, Any], strict: bool) -> None:
    kind = ROPE_TYPES[rope_type]
    good = {**YARN, **LLAMA3, **LONG, "max_position_embeddings": 8192, "alpha": 2.0, "inv_freq_table": [1.0] * 32}
    needed = {key: good.get(key, [16, 8, 8]) for key in kind.required}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = RopeConfig(**{"head_dim": 64, **needed, **values, "rope_type": rope_type, "strict": strict})
        except RopeConfigError:
            return
    assert config.inv_freq(10**6).isfinite().all()
    assert len(config.inv_freq()) * 2 == config.rotary_dim <= config.head_dim
