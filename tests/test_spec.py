"""The op's string holds everything, exactly."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rope_kernels.config import RopeConfig
from rope_kernels.frequency import FrequencyParams
from rope_kernels.rotation import AXIS_MAPS, PAIRINGS, PHASES, Rotation
from rope_kernels.spec import Call, Spec, adjoint, parse_call, parse_spec, with_call

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
ROWS = st.lists(NUMBERS, min_size=1, max_size=4).map(tuple)
FREQUENCIES = st.builds(
    FrequencyParams,
    theta=NUMBERS,
    freq_dim=st.integers(1, 512),
    num_frequencies=st.integers(1, 256),
    rotated=st.none() | st.integers(0, 256),
    factor=NUMBERS,
    ramp=st.tuples(NUMBERS, NUMBERS, NUMBERS),
    attention_scaling=NUMBERS,
    long_attention_scaling=st.none() | NUMBERS,
    multipliers=st.just(()) | ROWS.map(lambda row: (row,)) | st.tuples(ROWS, ROWS),
    switch_length=st.integers(0, 2**31),
    dynamic_factor=NUMBERS,
    dynamic_length=st.integers(0, 2**31),
)
ROTATIONS = st.builds(
    Rotation,
    head_dim=st.integers(2, 512),
    num_pairs=st.integers(1, 256),
    distance=st.integers(1, 256),
    rotary_offset=st.integers(0, 256),
    pairing=st.sampled_from(PAIRINGS),
    blocks=st.sampled_from([1, 2]),
    axis=st.lists(st.integers(0, 2), max_size=6).map(tuple),
    freq_index=st.lists(st.integers(0, 99), max_size=6).map(tuple),
    phase=st.sampled_from(PHASES),
    table_dtype=st.sampled_from(["", "bfloat16", "float16"]),
)


@given(FREQUENCIES, ROTATIONS)
def test_a_spec_survives_its_string(frequency: FrequencyParams, rotation: Rotation) -> None:
    spec = Spec(frequency, rotation)
    assert parse_spec(spec.encode()) == spec


def test_defaults_are_left_out() -> None:
    spec = Spec(FrequencyParams(10000.0, 8, 4), Rotation(head_dim=8, num_pairs=4, distance=4))
    assert spec.encode() == "theta=10000.0;freq_dim=8;num_frequencies=4;head_dim=8;num_pairs=4;distance=4"


@pytest.mark.parametrize("name", AXIS_MAPS)
def test_a_config_gives_its_spec_for_every_pairing(name: str) -> None:
    sections = {"mrope_section": [2, 2, 4]} if name in AXIS_MAPS[:3] else {"rope_type": "axial"}
    own = "half" if name == "gemma4_vision" else "interleaved_to_half"
    values: dict[str, Any] = {"head_dim": 16, "axis_map": name, "pairing": own, **sections}
    config = RopeConfig(**values, phase="float32", table_dtype="bfloat16")
    asked = [(None, own), (False, "half")] + ([(True, "interleaved")] if own != "half" else [])
    for flag, pairing in asked:
        spec = parse_spec(config.spec(flag))
        assert spec.frequency == config.frequency_params
        assert spec.rotation == config.rotation(pairing)
        assert spec.rotation.pairing == pairing
        assert (spec.rotation.phase, spec.rotation.table_dtype) == ("float32", "bfloat16")
    assert config.spec() is config.spec()


CALLS = [
    Call(layout, inverse, unscaled)
    for layout in ("bshd", "bhsd", "thd")
    for inverse in (False, True)
    for unscaled in (False, True)
]


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_text_says_how_it_is_called(call):
    spec = RopeConfig(head_dim=64).spec()
    text = with_call(spec, call.layout, call.inverse, call.unscaled)
    assert parse_call(text) == call
    assert parse_spec(text) is parse_spec(spec)
    assert parse_call(adjoint(text)) == dataclasses.replace(call, inverse=not call.inverse)
    assert adjoint(adjoint(text)) == text


def test_the_usual_call_adds_nothing_to_the_text():
    assert with_call("head_dim=64") == "head_dim=64"
