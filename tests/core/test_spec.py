"""The operator's text holds everything, exactly, and nothing that is not of its grammar."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rope_kernels.config import RopeConfig
from rope_kernels.core.frequency import FrequencyParams
from rope_kernels.core.layouts import LAYOUTS
from rope_kernels.core.norms import Norm
from rope_kernels.core.rotation import AXIS_MAPS, PAIRINGS, PHASES, Rotation
from rope_kernels.core.spec import FLAGS, Operation, Spec, adjoint, parse_spec, parse_text, text_of, with_norms
from rope_kernels.errors import RopeConfigError

GOOD = "theta=10000.0;freq_dim=8;num_frequencies=4;head_dim=8;num_pairs=4;distance=4"
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def frequencies(count: int) -> st.SearchStrategy[FrequencyParams]:
    rows = st.lists(NUMBERS, min_size=count, max_size=count).map(tuple)
    return st.builds(
        FrequencyParams,
        theta=NUMBERS,
        freq_dim=st.integers(1, 512),
        num_frequencies=st.just(count),
        rotated=st.none() | st.integers(0, 256),
        factor=NUMBERS,
        ramp=st.tuples(NUMBERS, NUMBERS, NUMBERS),
        attention_scaling=NUMBERS,
        long_attention_scaling=st.none() | NUMBERS,
        multipliers=st.just(()) | rows.map(lambda row: (row,)) | st.tuples(rows, rows),
        switch_length=st.integers(0, 2**62),
        dynamic_factor=NUMBERS,
        dynamic_length=st.integers(0, 2**62),
    )


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Specs whose parts fit each other, as a config's do."""
    blocks, width = draw(st.sampled_from([1, 2])), draw(st.integers(1, 12))
    pairing = draw(st.sampled_from(PAIRINGS)) if blocks == 1 else "half"
    gap = draw(st.integers(0, 3)) if blocks == 1 and pairing == "half" else 0
    offset, num_pairs, count = draw(st.integers(0, 9)), blocks * width, draw(st.integers(24, 30))
    of_pairs = st.just(()) | st.lists(st.integers(0, 2), min_size=num_pairs, max_size=num_pairs).map(tuple)
    rotation = Rotation(
        head_dim=offset + blocks * 2 * (width + gap) + draw(st.integers(0, 5)),
        num_pairs=num_pairs,
        distance=width + gap,
        rotary_offset=offset,
        pairing=pairing,
        blocks=blocks,
        axis=draw(of_pairs),
        freq_index=draw(of_pairs),
        phase=draw(st.sampled_from(PHASES)),
        table_dtype=draw(st.sampled_from(["", "bfloat16", "float16"])),
    )
    return Spec(draw(frequencies(count)), rotation)


@given(specs())
def test_a_spec_survives_its_text(spec: Spec) -> None:
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


OPERATIONS = [
    Operation(parse_spec(RopeConfig(head_dim=64).spec()), layout, inverse, unscaled)
    for layout in LAYOUTS
    for inverse in (False, True)
    for unscaled in (False, True)
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: f"{o.layout}-{o.inverse}-{o.unscaled}")
def test_a_text_says_how_it_is_called(operation: Operation) -> None:
    spec = RopeConfig(head_dim=64).spec()
    text = text_of(spec, operation.layout, operation.inverse, operation.unscaled)
    assert parse_text(text) == operation
    assert parse_text(text).spec is parse_spec(spec)
    assert parse_text(adjoint(text)) == dataclasses.replace(operation, inverse=not operation.inverse)
    assert adjoint(adjoint(text)) == text


def test_the_usual_call_adds_nothing_to_the_text() -> None:
    assert text_of(GOOD) == GOOD


FIELDS = [f for part in (FrequencyParams, Rotation) for f in dataclasses.fields(part)]
REQUIRED = [f.name for f in FIELDS if f.default is dataclasses.MISSING]


@pytest.mark.parametrize("key", [f.name for f in FIELDS])
def test_a_misspelt_key_is_named(key: str) -> None:
    for wrong in (key[:-1], key + "x", key.upper(), f" {key}"):
        with pytest.raises(RopeConfigError, match=f"^spec: unknown key '{wrong}', allowed are theta, .*"):
            parse_text(f"{GOOD};{wrong}=1")
    with pytest.raises(RopeConfigError, match=f"; did you mean '{key}'"):
        parse_text(f"{GOOD};{key[:-1]}=1")


@pytest.mark.parametrize("key", [f.name for f in FIELDS])
def test_a_key_comes_once(key: str) -> None:
    with pytest.raises(RopeConfigError, match=f"^spec: key '{key}' comes twice$"):
        parse_text(f"{GOOD};{key}=4;{key}=4")


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named(key: str) -> None:
    parts = [part for part in GOOD.split(";") if not part.startswith(f"{key}=")]
    with pytest.raises(RopeConfigError, match=f"^spec: key '{key}' is missing$"):
        parse_text(";".join(parts))


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ("@bhdd", "unknown layout 'bhdd', allowed are bshd, bhsd, sbhd, thd; did you mean"),
        ("@", "unknown layout '', allowed are"),
        ("@bshd@bshd", "unknown layout 'bshd@bshd'"),
        (
            "@bshd,invers",
            "unknown flag 'invers', allowed are inverse, unscaled, q_norm, k_norm, v_norm; did you mean 'inverse'",
        ),
        ("@bshd,", "unknown flag ''"),
        *((f"@thd,{flag},{flag}", f"flag '{flag}' comes twice") for flag in FLAGS),
    ],
)
def test_a_wrong_layout_or_flag_is_named(call: str, problem: str) -> None:
    with pytest.raises(RopeConfigError, match=f"^spec: {problem}"):
        parse_text(GOOD + call)


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ("pairing=halves", "pairing is 'halves', allowed are half, interleaved, interleaved_to_half"),
        ("phase=", "phase is '', allowed are exact, float32"),
        ("table_dtype=float8", "table_dtype is 'float8', allowed are bfloat16, float16"),
        ("blocks=1.0", "blocks is '1.0', must be an integer of 32 bits"),
        ("rotated=2147483648", "rotated is '2147483648', must be an integer of 32 bits"),
        ("switch_length=9223372036854775808", "switch_length is .*, must be an integer of 64 bits"),
        ("factor=inf", "factor is 'inf', must be a finite number"),
        ("factor=1_0", "factor is '1_0', must be a finite number"),
        ("ramp=1,2", r"ramp is '\(1.0, 2.0\)', does not fit the other values"),
        ("axis=0,0,1", "axis is .*, does not fit the other values"),
        ("freq_index=0,1,2,4", "freq_index is .*, does not fit the other values"),
        ("rotary_offset=1", "head_dim is '8', does not fit the other values"),
        ("multipliers=1,2,3", "multipliers is .*, does not fit the other values"),
        ("interleaved", "got 'interleaved', must be key=value"),
    ],
)
def test_a_wrong_value_is_named(part: str, problem: str) -> None:
    with pytest.raises(RopeConfigError, match=f"^spec: {problem}"):
        parse_text(f"{GOOD};{part}")


@given(st.floats(0, 1e300), st.floats(-1e300, 1e300), st.booleans(), st.sampled_from(sorted(LAYOUTS)))
def test_norms_come_back_from_the_text(eps: float, offset: float, after: bool, layout: str) -> None:
    q, k = Norm(eps, offset, after), Norm(offset * offset if offset * offset < 1e300 else 1.0, eps, not after)
    for norms in ({"q_norm": q}, {"k_norm": k}, {"q_norm": q, "k_norm": k}):
        text = text_of(RopeConfig(head_dim=64).spec(), layout, unscaled=after)
        found = parse_text(with_norms(text, norms.get("q_norm"), norms.get("k_norm")))
        assert (found.q_norm, found.k_norm) == (norms.get("q_norm"), norms.get("k_norm"))
        assert (found.layout, found.unscaled) == (layout, after)


@pytest.mark.parametrize(
    "value", ["", "1e-06", "1e-06|0.0", "1e-06|0.0|later", "x|0.0|after", "-1.0|0.0|after", "1e-06|nan|after",
              "inf|0.0|after", "1e-06|0.0|after|1"],
)  # fmt: skip
def test_a_wrong_norm_is_named(value: str) -> None:
    with pytest.raises(RopeConfigError, match="spec: q_norm is "):
        parse_text(f"{RopeConfig(head_dim=64).spec()}@bshd,q_norm={value}")
