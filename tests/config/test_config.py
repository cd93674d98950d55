"""RopeConfig as an object: what it derives, keeps and survives."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import comparisons
from support import exact_formulas as exact

import rope_kernels as rk
from rope_kernels.config import RopeConfig
from rope_kernels.core.rotation import MROPE_MAPS, PAIRINGS
from rope_kernels.errors import RopeConfigError, RopeConfigWarning

LLAMA3: dict[str, Any] = {
    "head_dim": 128,
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "max_position_embeddings": 131072,
}
LONGROPE: dict[str, Any] = {
    "head_dim": 8,
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2, 3, 4, 5],
    "original_max_position_embeddings": 64,
    "factor": 4.0,
}
SAMPLES: list[dict[str, Any]] = [
    {"head_dim": 64},
    LLAMA3,
    LONGROPE,
    {"head_dim": 64, "rope_type": "linear", "factor": 2, "pairing": "interleaved"},
    {"head_dim": 64, "rope_type": "dynamic", "factor": 2.0, "max_position_embeddings": 512},
    {"head_dim": 64, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "truncate": False},
    {"head_dim": 64, "rope_type": "ntk_alpha", "alpha": 1000.0, "phase": "float32", "table_dtype": "bfloat16"},
    {"head_dim": 64, "rope_type": "proportional", "partial_rotary_factor": 0.25},
    {"head_dim": 64, "rope_type": "mrope", "mrope_section": [8, 12, 12], "axis_map": "interleaved"},
    {"head_dim": 64, "rope_type": "axial", "axis_map": "gemma4_vision"},
    {"head_dim": 64, "partial_rotary_factor": 0.5, "rotary_offset": 32, "pairing": "interleaved_to_half"},
    {"head_dim": 4, "rope_type": "inv_freq", "inv_freq_table": [1.0, 0.25], "attention_factor": 1.5},
]


def specs(config: RopeConfig) -> list[str]:
    """What the op may be asked to compute."""
    flags = (None, False) if config.axis_map == "gemma4_vision" else (None, False, True)
    return [config.spec(flag) for flag in flags]


@pytest.mark.parametrize("values", SAMPLES, ids=lambda v: v.get("rope_type", "default"))
def test_a_config_survives_copies_and_spellings(values: dict[str, Any]) -> None:
    config = RopeConfig(**values)
    for again in (
        pickle.loads(pickle.dumps(config)),
        copy.deepcopy(config),
        copy.copy(config),
        dataclasses.replace(config),
        RopeConfig(**values),
        RopeConfig(**config.to_dict()),
        RopeConfig(**json.loads(json.dumps(config.to_dict()))),
        RopeConfig.from_hf(config.to_dict()),
        RopeConfig.from_hf(config.to_hf()),
        config.replace(),
    ):
        assert again == config
        assert hash(again) == hash(config)
        assert repr(again) == repr(config)
        assert specs(again) == specs(config)
        assert torch.equal(again.inv_freq(100), config.inv_freq(100))
    assert len({RopeConfig(**v) for v in SAMPLES}) == len(SAMPLES)


def test_a_config_is_frozen_and_keeps_no_list() -> None:
    lists = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = RopeConfig(**{**LONGROPE, **lists})
    lists["long_factor"][0] = 99.0
    assert config.long_factor == (2.0,) * 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rope_theta = 3.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"head_dim": 64}, "head_dim=64"),
        ({"head_dim": 64, "rope_theta": 10000.0, "pairing": "half", "strict": False}, "head_dim=64"),
        (
            {"head_dim": 64, "rope_type": "mrope", "mrope_section": [8, 12, 12], "rope_theta": 1e6},
            "head_dim=64, rope_type='mrope', rope_theta=1000000.0, mrope_section=(8, 12, 12), axis_map='contiguous'",
        ),
        (
            {**LONGROPE, "head_dim": 96, "short_factor": [1.0] * 48, "long_factor": list(range(1, 49))},
            "head_dim=96, rope_type='longrope', original_max_position_embeddings=64, factor=4.0, "
            "short_factor=<48 values>, long_factor=<48 values>",
        ),
        (
            {"head_dim": 16, "rope_type": "inv_freq", "inv_freq_table": [1.0] * 8},
            "head_dim=16, rope_type='inv_freq', inv_freq_table=(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)",
        ),
    ],
)
def test_repr_shows_what_was_given(values: dict[str, Any], text: str) -> None:
    assert repr(RopeConfig(**values)) == f"RopeConfig({text})"


def test_repr_abbreviates_inside_extra() -> None:
    extra = {"gamma": 2, "one": [[3]], "table": list(range(9))}
    with pytest.warns(RopeConfigWarning):
        config = RopeConfig(head_dim=64, extra=extra, strict=False)
    assert repr(config) == "RopeConfig(head_dim=64, extra=(('gamma', 2), ('one', ((3,),)), ('table', <9 values>)))"


def test_the_constructor_keeps_its_signature() -> None:
    names = [field.name for field in dataclasses.fields(RopeConfig) if field.init]
    assert list(inspect.signature(RopeConfig).parameters) == names
    assert RopeConfig(64, "linear", factor=2.0) == RopeConfig(head_dim=64, rope_type="linear", factor=2.0)


def test_integers_become_the_floats_they_are() -> None:
    config = RopeConfig(head_dim=64, rope_theta=10000, rope_type="linear", factor=2)
    assert config == RopeConfig(head_dim=64, rope_type="linear", factor=2.0)
    assert isinstance(config.rope_theta, float)
    assert isinstance(config.factor, float)
    assert RopeConfig(head_dim=64, rope_theta=torch.tensor(5.0).numpy()[()]).rope_theta == 5.0


def test_what_is_derived() -> None:
    config = RopeConfig(**LLAMA3)
    assert (config.rotary_dim, config.num_axes, config.depends_on_length, config.attention_scaling) == (
        128,
        1,
        False,
        1,
    )
    inv_freq = config.inv_freq()
    assert (inv_freq.dtype, inv_freq.shape, inv_freq.device.type) == (torch.float64, (64,), "cpu")
    comparisons.assert_exact(config, exact.llama3(5e5, 128, 8, 1, 4, 8192))
    partial = RopeConfig(head_dim=96, partial_rotary_factor=0.25, rotary_offset=8)
    assert (partial.rotary_dim, partial.rotation().distance, partial.rotation().rotary_offset) == (24, 12, 8)


def test_default_device_and_dtype_change_nothing() -> None:
    with torch.device("meta"):
        assert RopeConfig(head_dim=8).inv_freq().device.type == "cpu"


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_pairings(pairing: str) -> None:
    config = RopeConfig(head_dim=8, pairing=pairing)
    assert config.rotation().pairing == pairing
    assert config.rotation("interleaved").pairing == "interleaved"
    with pytest.raises(RopeConfigError, match=r"^pairing: got 'sideways', allowed are half, interleaved"):
        config.rotation("sideways")


def test_gemma4_vision_pairs_by_halves_only() -> None:
    config = RopeConfig(head_dim=64, rope_type="axial", axis_map="gemma4_vision")
    assert config.spec(False) == config.spec()
    assert config.rotation("half") == config.rotation()
    message = "^pairing: got 'interleaved', the parts of axis_map 'gemma4_vision' pair by 'half' only$"
    x = torch.zeros(1, 3, 1, 64)
    for ask in (
        lambda: config.spec(interleaved=True),
        lambda: config.rotation("interleaved"),
        lambda: config.replace(pairing="interleaved"),
        lambda: rk.apply_rope(x, None, torch.zeros(2, 1, 3), config, interleaved=True),
    ):
        with pytest.raises(RopeConfigError, match=message):
            ask()
    with pytest.raises(RopeConfigError, match=r"^pairing: got 'interleaved_to_half', the parts of"):
        config.rotation("interleaved_to_half")


def test_another_pairing_is_checked_like_the_own_one() -> None:
    config = RopeConfig(head_dim=64, rope_type="proportional", partial_rotary_factor=0.25)
    assert config.rotation("interleaved").pairing == "interleaved"
    with pytest.raises(RopeConfigError, match=r"^pairing: got 'interleaved_to_half', .* 8 of 32 do$"):
        config.rotation("interleaved_to_half")


def test_axial_geometry() -> None:
    config = RopeConfig(head_dim=80, rope_type="axial")
    assert (config.axis_map, config.num_axes, config.rotary_dim) == ("qwen_vision", 2, 80)
    assert config.inv_freq().tolist() == 2 * RopeConfig(head_dim=40).inv_freq().tolist()
    pixtral = RopeConfig(head_dim=64, rope_type="axial", axis_map="pixtral").inv_freq()
    ladder = RopeConfig(head_dim=64).inv_freq()
    assert torch.equal(pixtral, torch.cat([ladder[0::2], ladder[1::2]]))
    gemma4 = RopeConfig(head_dim=64, rope_type="axial", axis_map="gemma4_vision")
    assert (gemma4.rotation().distance, gemma4.rotation().blocks, gemma4.rotary_dim) == (16, 2, 64)


@given(st.lists(st.integers(1, 12), min_size=3, max_size=3), st.sampled_from(MROPE_MAPS), st.sampled_from([1.0, 0.5]))
def test_sections_count_pairs(sections: list[int], name: str, share: float) -> None:
    if name == "ernie":
        sections[1] = sections[0]
    head_dim = int(2 * sum(sections) / share)
    config = RopeConfig(head_dim=head_dim, mrope_section=sections, axis_map=name, partial_rotary_factor=share)
    assert len(config.rotation().axis) == sum(sections) == config.rotary_dim // 2
    comparisons.assert_exact(config, exact.ladder(10000.0, 2 * sum(sections)))


class TestFromInvFreq:
    def test_the_table_is_used_as_it_is(self) -> None:
        table = torch.tensor([7.85, 1.0, -0.5, 0.0], dtype=torch.float64)
        config = RopeConfig.from_inv_freq(table, attention_scaling=1.25, head_dim=16, pairing="interleaved")
        assert torch.equal(config.inv_freq(), table)
        assert (config.attention_scaling, config.rotary_dim, config.head_dim) == (1.25, 8, 16)
        assert config.pairing == "interleaved"
        assert RopeConfig.from_inv_freq(table).head_dim == 8

    def test_a_float32_table_keeps_its_values(self) -> None:
        table = RopeConfig(head_dim=64).inv_freq().float()
        config = RopeConfig.from_inv_freq(table, phase="float32", table_dtype="bfloat16")
        assert torch.equal(config.inv_freq().float(), table)
        assert (config.rotation().phase, config.rotation().table_dtype) == ("float32", "bfloat16")

    def test_axes(self) -> None:
        text = RopeConfig.from_inv_freq([4.0, 3.0, 2.0, 1.0], mrope_section=[1, 1, 2])
        assert (text.num_axes, text.axis_map, text.rotary_dim) == (3, "contiguous", 8)
        four = RopeConfig.from_inv_freq([4.0, 3.0, 2.0, 1.0], mrope_section=[1, 1, 1, 1])
        assert (four.num_axes, four.rotation().axis) == (4, (0, 1, 2, 3))
        two = RopeConfig.from_inv_freq([4.0, 3.0, 2.0, 1.0], mrope_section=[2, 2], axis_map="interleaved")
        assert (two.num_axes, two.rotation().axis) == (2, (0, 1, 0, 1))
        vision = RopeConfig.from_inv_freq([2.0, 1.0], axis_map="kimi", head_dim=8)
        assert vision.inv_freq().tolist() == [2.0, 2.0, 1.0, 1.0]
        assert vision.rotation().axis == (1, 0, 1, 0)

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ([], "^inv_freq: got an empty table"),
            (torch.ones(2, 2), r"^inv_freq: got shape \(2, 2\), must have one dimension"),
            ([1.0, math.nan], r"^inv_freq_table\[1\]: got nan, must be finite"),
            (torch.tensor([math.inf]), r"^inv_freq_table\[0\]: got inf, must be finite"),
            ([1.0, "2"], r"^inv_freq_table\[1\]: got '2' \(str\), must be a number"),
            (3.0, r"^inv_freq: got 3.0 \(float\), must be a list of numbers"),
            ("12", r"^inv_freq: got '12' \(str\), must be a list of numbers"),
        ],
    )
    def test_what_is_no_table(self, table: Any, message: str) -> None:
        with pytest.raises(RopeConfigError, match=message):
            RopeConfig.from_inv_freq(table)

    def test_a_table_that_does_not_fit_the_head(self) -> None:
        with pytest.raises(RopeConfigError, match=r"^head_dim: got 6, .*8 rotated channels do not fit"):
            RopeConfig.from_inv_freq([1.0] * 4, head_dim=6)

    def test_values_of_a_ladder_are_refused(self) -> None:
        with pytest.raises(RopeConfigError, match=r"^rope_theta: got 5.0, rope_type 'inv_freq' does not use it"):
            RopeConfig.from_inv_freq([1.0] * 4, rope_theta=5.0)


def test_replace_checks_again_and_forgets_the_origin() -> None:
    config = RopeConfig.from_hf({"head_dim": 64, "rope_theta": 5e5})
    assert config.provenance["rope_theta"] == "rope_theta"
    changed = config.replace(rope_theta=1e6)
    assert changed.rope_theta == 1e6
    assert "rope_theta" not in changed.provenance
    assert changed.spec() != config.spec()
    with pytest.raises(RopeConfigError, match=r"^rope_theta: got -1.0, must be over 0"):
        config.replace(rope_theta=-1)


def test_origin_and_strictness_do_not_make_configs_differ() -> None:
    read = RopeConfig.from_hf({"head_dim": 64}, strict=False)
    assert read == RopeConfig(head_dim=64)
    assert hash(read) == hash(RopeConfig(head_dim=64))


def test_an_error_survives_pickling() -> None:
    with pytest.raises(RopeConfigError) as caught:
        RopeConfig(head_dim=0)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.field, str(again)) == ("head_dim", str(caught.value))


def test_transformers_is_never_imported() -> None:
    code = (
        "import sys; from rope_kernels.config import RopeConfig;"
        "RopeConfig.from_hf({'head_dim': 64, 'model_type': 'llama'}).explain();"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_pickle_of_an_earlier_version_loads():
    """Version 0.1.0 named modules and attributes that have moved since."""
    old = pickle.loads(Path(__file__).with_name("longrope-0.1.0.pickle").read_bytes())
    same = dict(short_factor=[1.0] * 4, long_factor=[2.0] * 4, original_max_position_embeddings=16)
    new = RopeConfig(head_dim=8, rope_type="longrope", max_position_embeddings=64, **same)
    assert old == new
    assert (old.frequency_params, old.geometry, old.specs) == (new.frequency_params, new.geometry, new.specs)
    assert vars(pickle.loads(pickle.dumps(old))) == vars(new)


def test_a_config_inside_of_a_compiled_function() -> None:
    """It works where the graph may break; else the error says what to do."""
    x = torch.randn(1, 3, 2, 16)

    def rotate(x: torch.Tensor) -> torch.Tensor:
        return rk.apply_rope(x * 1, None, None, RopeConfig(head_dim=16))[0]

    torch._dynamo.reset()
    assert torch.equal(torch.compile(rotate, backend="eager")(x), rotate(x))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RopeConfig: make it outside of the compiled function"):
        torch.compile(rotate, backend="eager", fullgraph=True)(x)
    torch._dynamo.reset()
