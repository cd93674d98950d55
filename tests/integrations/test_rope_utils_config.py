"""The config mixin of the drop-in: standardizing, validating and their logs, against transformers' own."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import transformers.modeling_rope_utils as theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from rope_utils_sides import ORIGINAL, config_of, outcome, put_in_place
from transformers import LlamaConfig, Qwen3Config

import rope_kernels.integrations.rope_utils as ours

NAMES = ["default", "axial", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional", "mine"]
ROW = [1.0] * 32
VALUES: dict[str, list[Any]] = {
    "factor": [4.0, 2, 1.0, 0.5, None, "8", True],
    "original_max_position_embeddings": [2048, 4096, 8192, 2048.0, None, 0, "x"],
    "attention_factor": [1.5, 1, -0.5, None, "x"],
    "beta_fast": [32, 16.0, 0.5, None, "x"],
    "beta_slow": [1, 2.0, 40, None, "x"],
    "mscale": [1.0],
    "mscale_all_dim": [0.7],
    "truncate": [True],
    "short_factor": [ROW, ROW[1:], (*ROW,), ["x"] * 32, None],
    "long_factor": [ROW, ROW[1:], (*ROW,), ["x"] * 32, None],
    "low_freq_factor": [1.0, 1, 4.0, None, "x"],
    "high_freq_factor": [4.0, 4, 1.0, None, "x"],
    "partial_rotary_factor": [1.0, 0.5, None],
    "rope_theta": [1e4, None],
    "mrope_section": [[16, 8, 8]],
    "unknown": [1],
    "type": ["linear", "default"],
}
# What each type is drawn with, so that its own checks are reached and not only those for missing keys.
OWN = {
    "linear": ["factor"],
    "dynamic": ["factor"],
    "yarn": ["factor", ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"],
    "longrope": ["short_factor", "long_factor", ORIGINAL, "factor", "attention_factor"],
    "llama3": ["factor", ORIGINAL, "low_freq_factor", "high_freq_factor", "rope_theta"],
    "proportional": ["rope_theta", "partial_rotary_factor"],
}
ATTRIBUTES: dict[str, list[Any]] = {
    "head_dim": [64, 64, ..., None, 63, 3, 5],
    "hidden_size": [256, 256, 256, ...],
    "num_attention_heads": [4],
    "max_position_embeddings": [4096, 4096, 8192, ...],
    "original_max_position_embeddings": [..., ..., 1024],
    "rope_theta": [1e4, 5e5, ..., None],
    "partial_rotary_factor": [..., ..., 0.5, 1.0],
    "layer_types": [..., None, ["full", "sliding", "full"]],
    "_rope_type_labels": [..., ..., ("full", "other")],
    "is_heterogeneous": [False, False, True],
    "default_theta": [..., 1e6],
    "default_rope_type": [..., ..., "axial"],
    "ignore_keys_at_rope_validation": [..., ..., {"unknown", "mrope_section"}, None, ["factor"]],
}


def chosen(draw: Any, values: dict[str, list[Any]]) -> dict[str, Any]:
    drawn = {key: draw(st.sampled_from(choices), label=key) for key, choices in values.items()}
    return {key: value for key, value in drawn.items() if value is not ...}


@st.composite
def flat_parameters(draw: Any) -> dict[str, Any] | None:
    name = draw(st.sampled_from(NAMES))
    # Mostly the first, valid choice of a key, so that one fault does not hide the next.
    own = {key: VALUES[key][:1] * 6 + VALUES[key] + [...] for key in OWN.get(name, ())}
    others = st.lists(st.sampled_from(sorted(VALUES)), max_size=2)
    more = {key: VALUES[key] for key in draw(others) if key not in own}
    spelling = draw(st.sampled_from(["rope_type", "rope_type", "rope_type", "type"]))
    return chosen(draw, own | more) | ({} if draw(st.integers(0, 9)) == 0 else {spelling: name})


@st.composite
def configs(draw: Any) -> tuple[Any, dict[str, Any]]:
    attributes = chosen(draw, ATTRIBUTES)
    kind = draw(st.sampled_from(["flat", "flat", "nested", "none", "empty"]))
    if kind == "flat":
        return draw(flat_parameters()), attributes
    if kind == "nested":
        labels = draw(st.lists(st.sampled_from(["full", "sliding", "other"]), min_size=1, unique=True))
        return {name: draw(st.one_of(st.none(), flat_parameters())) for name in labels}, attributes
    return (None if kind == "none" else {}), attributes


def state(config: Any) -> dict[str, Any]:
    return copy.deepcopy({key: value for key, value in vars(config).items() if key != "side"})


def steps(side: ModuleType, parameters: Any, attributes: dict[str, Any], kwargs: dict[str, Any]) -> list[Any]:
    """What converting, standardizing and validating give, raise, log and leave behind."""
    record = []
    config = config_of(side, parameters, **attributes)
    calls: list[tuple[str, dict[str, Any]]] = [("validate_rope", {}), ("convert_rope_params_to_dict", kwargs)]
    for name, values in [*calls, ("standardize_rope_params", {}), ("validate_rope", {})]:
        record.append((name, *outcome(getattr(config, name), **copy.deepcopy(values)), state(config)))
    return record


KWARGS = st.fixed_dictionaries(
    {"other": st.just(1)},
    optional={
        "rope_theta": st.sampled_from([2e4, None]),
        "partial_rotary_factor": st.sampled_from([0.25, None]),
        "rope_scaling": st.one_of(st.none(), flat_parameters()),
    },
)


@settings(max_examples=700)
@given(configs(), KWARGS)
def test_configs_standardize_and_validate_alike(given_config: tuple[Any, dict[str, Any]], kwargs: Any) -> None:
    assert steps(ours, *given_config, kwargs) == steps(theirs, *given_config, kwargs)


@pytest.mark.full
@settings(max_examples=10_000)
@given(configs(), KWARGS)
def test_many_more_configs_standardize_and_validate_alike(
    given_config: tuple[Any, dict[str, Any]], kwargs: Any
) -> None:
    assert steps(ours, *given_config, kwargs) == steps(theirs, *given_config, kwargs)


@settings(max_examples=300)
@given(flat_parameters(), st.sampled_from([None, {"unknown"}, {"factor", "mrope_section"}]))
def test_each_validator_alone(parameters: dict[str, Any], ignore_keys: set[str] | None) -> None:
    shape = {"head_dim": 64, "hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 4096}
    for name in NAMES[:-1]:
        results = []
        for side in (ours, theirs):
            config = config_of(side, None, **shape)
            values = {"rope_type": name, **copy.deepcopy(parameters)}
            results.append(outcome(getattr(config, f"_validate_{name}_rope_parameters"), values, ignore_keys))
        assert results[0] == results[1], name


@pytest.mark.parametrize(("layer_types", "wanted"), [([], 512), (["full"], 4096)])
def test_an_original_length_beside_the_parameters_is_for_flat_ones(layer_types: list[str], wanted: int) -> None:
    attributes = {"max_position_embeddings": 4096, ORIGINAL: 512, "layer_types": layer_types}
    for side in (ours, theirs):
        parameters = {"rope_type": "yarn", "rope_theta": 1e4}
        config = config_of(side, {"full": parameters} if layer_types else parameters, **attributes)
        config.standardize_rope_params()
        assert config.rope_parameters.get("full", config.rope_parameters)[ORIGINAL] == wanted


@pytest.fixture(params=["transformers", "drop-in"])
def config_class(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """LlamaConfig on either mixin: what transformers' own tests of the module use."""
    if request.param == "drop-in":
        put_in_place(monkeypatch)
    assert (LlamaConfig.validate_rope is theirs_validate_rope) == (request.param == "transformers")
    return LlamaConfig


theirs_validate_rope = LlamaConfig.validate_rope


def validate(config: Any, **parameters: Any) -> Any:
    """(None or the name of the error, messages)."""
    config.rope_parameters = parameters
    return outcome(config.validate_rope)


# The cases of transformers' tests/utils/test_modeling_rope_utils.py, which its wheel does not hold.


@pytest.mark.parametrize("rope_type", sorted(theirs.ROPE_INIT_FUNCTIONS))
def test_required_and_foreign_keys(config_class: Any, rope_type: str) -> None:
    config = config_class()
    assert outcome(config.validate_rope) == (None, [])
    result, _ = validate(config, rope_type=rope_type, rope_theta=1e4)
    assert result == (None if rope_type == "proportional" else "KeyError")
    taken = {
        "factor": ["linear", "dynamic", "yarn", "longrope", "llama3"],
        "attention_factor": ["yarn", "longrope"],
        "beta_fast": ["yarn"],
        "beta_slow": ["yarn"],
        "short_factor": ["longrope"],
        "long_factor": ["longrope"],
    }
    for key, types in taken.items():
        if rope_type not in types:
            result, messages = validate(config, rope_type=rope_type, rope_theta=1e4, **{key: True})
            assert result == "KeyError" or any("Unrecognized" in m and f"{{'{key}'}}" in m for m in messages)


def test_default_knows_no_factor(config_class: Any) -> None:
    result, messages = validate(config_class(), rope_type="default", rope_theta=1e4, factor=2.0)
    assert result is None
    assert len(messages) == 1
    assert "{'factor'}" in messages[0]


@pytest.mark.parametrize("factor", [0.999, -10.0, "foo", None])
@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "yarn"])
def test_a_bad_factor_is_logged(config_class: Any, rope_type: str, factor: Any) -> None:
    more = {ORIGINAL: 2048} if rope_type == "yarn" else {}
    result, messages = validate(config_class(), rope_type=rope_type, rope_theta=1e4, factor=factor, **more)
    assert result is None
    assert messages[0] == f"WARNING: `rope_parameters`'s factor field must be a float or int >= 1, got {factor}"


def test_the_original_length_of_yarn(config_class: Any) -> None:
    config, yarn = config_class(), {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    assert validate(config, **yarn, **{ORIGINAL: config.max_position_embeddings // 2}) == (None, [])
    assert validate(config, **yarn)[0] == "KeyError"
    result, messages = validate(config, **yarn, **{ORIGINAL: 1})
    assert result is None
    assert len(messages) == 1
    assert "implicit factor" in messages[0]


def test_longrope_without_factor_is_logged_once(config_class: Any) -> None:
    config, row = config_class(), [1.0] * 64
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": row, "long_factor": row, ORIGINAL: 1024}
    result, messages = validate(config, **longrope)
    assert result is None
    assert len(messages) == 1
    assert validate(config, **longrope, factor=2.0) == (None, [])


def test_old_spellings(config_class: Any) -> None:
    config = config_class(rope_scaling={"type": "linear", "factor": 2.0}, rope_theta=5e4)
    wanted = {"type": "linear", "rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}
    assert config.rope_parameters == config.rope_scaling == wanted
    config = config_class(rope_theta=2e4, partial_rotary_factor=0.5)
    assert config.rope_parameters == {"rope_theta": 2e4, "partial_rotary_factor": 0.5, "rope_type": "default"}
    assert config.ignore_keys_at_rope_validation == {"partial_rotary_factor"}
    assert config_class.ignore_keys_at_rope_validation == set()
    assert config_class().rope_parameters == {"rope_theta": 10000.0, "rope_type": "default"}


@pytest.mark.usefixtures("config_class")
def test_parameters_by_layer_type() -> None:
    nested = {"full_attention": {"rope_type": "linear", "factor": 2.0}, "sliding_attention": None}
    config = Qwen3Config(layer_types=["full_attention", "sliding_attention"] * 16, rope_parameters=nested)
    assert config.rope_parameters["full_attention"] == {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    assert config.rope_parameters["sliding_attention"] is None
    assert Qwen3Config.from_dict(config.to_dict()).rope_parameters == config.rope_parameters


def test_an_odd_head(config_class: Any) -> None:
    with pytest.raises(Exception, match=r"RoPE requires an even rotary dimension, but got `head_dim`=65"):
        config_class(head_dim=65)
    assert config_class(head_dim=65, partial_rotary_factor=0.5).head_dim == 65
