"""The C++ mathematics, over numpy arrays: against exact integers, extended precision and the Python code."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import cases, oracle, tolerances
from support.float32_phases import ANGLES, HARDEST, flips, ulps_off

from rope_kernels.core.frequency import fixed_point_turns
from rope_kernels.core.spec import parse_text

FOLDER = Path(__file__).parents[2] / "build" / "cmake" / "python"
LENGTHS = (None, 1, 16, 17, 32, 33, 512, 4096, 2**20)
INT64 = st.integers(-(2**63), 2**63 - 1)
UINT64 = st.integers(0, 2**64 - 1)
UINT32 = st.integers(0, 2**32 - 1)
PI = np.longdouble("3.14159265358979323846264338327950288")
BFLOAT16 = np.arange(2**16, dtype=np.uint16)

with mpmath.workprec(4000):
    TWO_PI = int(mpmath.floor(2 * mpmath.pi * mpmath.mpf(2) ** 3000))
    """2 pi times 2 ** 3000."""


@pytest.fixture(scope="module")
def native():
    """The module of tests/cpp/math_module.cpp."""
    found = list(FOLDER.glob("rope_kernels_math*.so"))
    if len(found) != 1:
        pytest.fail(f"rope_kernels_math is not in {FOLDER}: build it with `make cpp-test`")
    spec = importlib.util.spec_from_file_location("rope_kernels_math", found[0])
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        pytest.fail(f"{found[0]} cannot be loaded ({error}): build it anew with `make clean cpp-test`")
    return module


def config_named(name):
    return cases.config_of(cases.Case(name, cases.CONFIGS[name]))


def exact_turns(inv_freq, places):
    """inv_freq / (2 pi) in units of 2 ** -places, rounded down."""
    numerator, denominator = inv_freq.as_integer_ratio()
    return (numerator << (3000 + places)) // (denominator * TWO_PI)


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_frequencies_are_those_of_the_config(native, name):
    config = config_named(name)
    for seq_len in LENGTHS:
        ours, theirs = native.inv_freq(config.spec(), seq_len), config.inv_freq(seq_len).numpy()
        np.testing.assert_allclose(ours, theirs[: len(ours)], rtol=1e-12, atol=0, err_msg=f"seq_len {seq_len}")
        assert not theirs[len(ours) :].any()  # pairs that are not rotated are not in the spec


def test_frequencies_past_the_rotated_ones_are_zero(native):
    found = native.inv_freq(f"{config_named('default').spec()};rotated=5")
    assert (found[:5] > 0).all()
    assert (found[5:] == 0).all()


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_frequencies_are_those_of_the_papers(native, name):
    spec = config_named(name).spec()
    for seq_len in LENGTHS:
        ours, exact = native.inv_freq(spec, seq_len), oracle.inv_freq(cases.CONFIGS[name], seq_len)[0]
        exact = exact[: len(ours)].astype(np.float64)
        np.testing.assert_allclose(ours, exact, rtol=1e-12, atol=0, err_msg=f"seq_len {seq_len}")


FREQUENCIES = st.floats(-(2.0**40), 2.0**40) | st.floats(-16, 16) | st.floats(-1e-6, 1e-6)


@given(inv_freq=FREQUENCIES)
@example(inv_freq=-1e-5)
@example(inv_freq=-5e-324)
@example(inv_freq=float(2 * np.pi))
def test_turns_are_the_nearest_integer(native, inv_freq):
    """Within half a unit of 2^-64, and 2^-17 of one for the double it is computed in."""
    turns = int(native.fixed_point_turns(inv_freq))
    off = ((turns << 64) - exact_turns(inv_freq, 128) + 2**127) % 2**128 - 2**127
    assert abs(off) <= 2**63 + 2**47


@given(inv_freq=FREQUENCIES)
@example(inv_freq=-1e-5)
def test_turns_of_python_are_at_most_one_unit_below(native, inv_freq):
    """Python rounds down and C++ to nearest, so C++ is the same or, in the upper half of a unit, one more."""
    python = fixed_point_turns(inv_freq) % 2**64
    assert python == exact_turns(inv_freq, 64) % 2**64
    difference = (int(native.fixed_point_turns(inv_freq)) - python) % 2**64
    upper_half = exact_turns(inv_freq, 128) % 2**64 / 2**64
    assert difference in (0, 1)
    assert difference == (upper_half >= 0.5) or abs(upper_half - 0.5) < 2**-16


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_turns_of_every_config(native, name):
    for inv_freq in config_named(name).inv_freq().tolist():
        assert (int(native.fixed_point_turns(inv_freq)) - fixed_point_turns(inv_freq)) % 2**64 in (0, 1)


@given(position=INT64, turns=UINT64)
@example(position=-(2**63), turns=2**64 - 1)
def test_phases_are_exact(native, position, turns):
    assert int(native.phase_of(position, np.uint64(turns))) == (position * turns >> 32) % 2**32


@given(whole=st.integers(-(2**20), 2**20), phase=UINT32)
def test_phases_of_turns_drop_whole_turns(native, whole, phase):
    assert int(native.phase_of_turns(whole + phase / 2**32)) == phase


@given(phases=st.lists(UINT32, min_size=1, max_size=200))
@example(phases=[0, 2**30, 2**31, 3 * 2**30, 2**32 - 1])
@example(phases=list(range(0, 2**32, 2**32 // 1009)))
def test_sine_and_cosine(native, phases):
    sine, cosine = native.sin_cos(np.array(phases, dtype=np.uint32))
    angle = np.array(phases, dtype=np.longdouble) * (2 * PI / 2**32)
    assert np.abs(sine - np.sin(angle)).max() < 1.5e-7
    assert np.abs(cosine - np.cos(angle)).max() < 2.6e-7


@given(radians=st.floats(width=32, allow_nan=False, allow_infinity=False) | st.floats(-4e6, 4e6, width=32))
@example(radians=HARDEST[0])
@example(radians=float(np.finfo(np.float32).max))
@example(radians=-0.5)
def test_turns_of_a_float_are_exact(native, radians):
    """Within two units of 2^-64, whatever number of whole turns there are."""
    off = (int(native.turns_of(np.float32(radians))) - exact_turns(radians, 64)) % 2**64
    assert min(off, 2**64 - off) <= 2


def check_angles(native, angles):
    sine, cosine = native.sin_cos_of_angle(angles)
    wide = angles.astype(np.longdouble)
    torchs = torch.from_numpy(angles)
    for got, exact, own in ((sine, np.sin(wide), torchs.sin()), (cosine, np.cos(wide), torchs.cos())):
        assert ulps_off(got, exact).max() <= tolerances.FLOAT32_PHASE_ULPS
        for dtype in (torch.bfloat16, torch.float16):
            assert flips(got, exact, dtype) <= flips(own.numpy(), exact, dtype)


@given(angles=ANGLES)
@example(angles=HARDEST)
def test_sine_and_cosine_of_any_float(native, angles):
    angles = np.array(angles, dtype=np.float32)
    check_angles(native, angles[np.isfinite(angles)].reshape(-1))
    none = angles[~np.isfinite(angles)]
    assert np.isnan(native.sin_cos_of_angle(none)).all()


@pytest.mark.parametrize("most", [2.0**-100, 1e-4, 1.0, 100.0, 2.0**20, 2.0**31, 2.0**100])
def test_sine_and_cosine_of_many_floats(native, most):
    """As near to the exact ones as torch's, and in tables of 16 bits nearer."""
    check_angles(native, np.random.default_rng(7).uniform(-most, most, 2**19).astype(np.float32))


def test_functions_take_arrays_of_any_shape(native):
    phases = np.arange(24, dtype=np.uint32).reshape(2, 3, 4)
    sine, cosine = native.sin_cos(phases[:, ::2].transpose(2, 0, 1))
    assert sine.shape == cosine.shape == (4, 2, 2)
    np.testing.assert_array_equal(sine, native.sin_cos(phases)[0][:, ::2].transpose(2, 0, 1))
    assert native.phase_of(np.arange(3)[:, None], np.arange(2, dtype=np.uint64)).shape == (3, 2)


def test_the_best_instruction_set_comes_first(native):
    assert native.isas()[-1] == "portable"
    with pytest.raises(ValueError, match=r"^isa: got 'sse9'"):
        native.rotate(config_named("default").spec(), np.zeros((1, 1, 64), np.float32), np.array([0]), isa="sse9")


@pytest.mark.parametrize(
    "name", ["default", "llama3", "partial_odd", "yarn_mscale", "axial_gemma4", "mrope_interleaved"]
)
@pytest.mark.parametrize("inverse", [False, True])
def test_rotation_is_that_of_the_oracle(native, name, inverse):
    config = config_named(name)
    rng = np.random.default_rng(5)
    x = rng.standard_normal((7, 3, config.head_dim)).astype(np.float32)
    positions = rng.integers(-(2**24), 2**24, (3, 7))
    passed = positions if config.rotation().num_axes > 1 else positions[0]
    for isa in native.isas():
        y = native.rotate(config.spec(), x, passed, inverse=inverse, isa=isa)
        for t in range(7):
            head = x[t].astype(np.float64)
            expected = oracle.rotate(cases.CONFIGS[name], head, positions[:, t], None, inverse=inverse)
            assert np.abs(y[t] - expected).max() <= 5e-7 * np.abs(x).max() * max(1.0, config.attention_scaling)


@given(
    pairs=st.integers(1, 70), pairing=st.sampled_from(["half", "interleaved", "interleaved_to_half"]),
    kind=st.sampled_from(["float32", "float16", "bfloat16"]), seed=UINT32,
)  # fmt: skip
def test_rotating_back_undoes_it(native, pairs, pairing, kind, seed):
    spec = (
        f"theta=10000.0;freq_dim={2 * pairs};num_frequencies={pairs};head_dim={2 * pairs};num_pairs={pairs};"
        f"distance={pairs};pairing={pairing}"
    )
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.uniform(-1, 1, (4, 2, 2 * pairs))).to(getattr(torch, kind))
    x = values.view(torch.uint16).numpy() if kind == "bfloat16" else values.numpy()
    positions = rng.integers(-(2**31), 2**31, 4)
    keywords = dict(bfloat16=kind == "bfloat16", isa=native.isas()[seed % len(native.isas())])
    y = native.rotate(spec, native.rotate(spec, x, positions, **keywords), positions, inverse=True, **keywords)
    back = torch.from_numpy(y).view(values.dtype)
    assert (back.double() - values.double()).abs().max() <= dict(float32=2e-6, float16=2e-3, bfloat16=1.6e-2)[kind]


@pytest.mark.parametrize("scaling", [1.0, 0.75, 1.375, 1e-3])
def test_bfloat16_is_rounded_as_torch_rounds_it(native, scaling):
    """Every bf16 number, denormals, infinities and NaN too, times the attention scaling."""
    spec = f"theta=1e4;freq_dim=64;num_frequencies=32;head_dim=64;num_pairs=32;distance=32;attention_scaling={scaling}"
    x = np.zeros((1, 2**16 // 32, 64), dtype=np.uint16)
    x[0, :, :32] = BFLOAT16.reshape(-1, 32)
    given = torch.from_numpy(BFLOAT16.copy()).view(torch.bfloat16)
    expected = (given.float() * np.float32(scaling)).to(torch.bfloat16)
    for isa in native.isas():
        y = native.rotate(spec, x, np.array([0]), bfloat16=True, isa=isa)[0, :, :32].copy()
        got = torch.from_numpy(y).view(torch.bfloat16).flatten()
        assert torch.equal(got.isnan(), given.isnan()), isa
        kept = ~given.isnan()
        assert torch.equal(got.view(torch.int16)[kept], expected.view(torch.int16)[kept]), isa


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("theta", "theta=big;freq_dim=2;num_frequencies=1;head_dim=2;num_pairs=1;distance=1"),
        ("num_pairs", "theta=1.0;freq_dim=2;num_frequencies=1;head_dim=2;num_pairs=0;distance=1"),
        ("head_dim", "theta=1.0;freq_dim=2;num_frequencies=1;head_dim=1;num_pairs=1;distance=1"),
        ("multipliers", "theta=1.0;freq_dim=4;num_frequencies=2;multipliers=1.0;head_dim=4;num_pairs=2;distance=2"),
        ("pairing", "theta=1.0;freq_dim=2;num_frequencies=1;head_dim=2;num_pairs=1;distance=1;pairing=both"),
        ("freq_index", "theta=1.0;freq_dim=4;num_frequencies=2;head_dim=4;num_pairs=2;distance=2;freq_index=0,2"),
        ("text", "llama3"),
    ],
)
def test_a_bad_spec_is_refused_by_its_field(native, field, spec):
    with pytest.raises(ValueError, match=f"^spec: {field} is '"):
        native.inv_freq(spec)


def test_arrays_that_do_not_fit_are_refused(native):
    spec, mrope = config_named("default").spec(), config_named("mrope_contiguous").spec()
    x = np.zeros((2, 1, 64), dtype=np.float32)
    for wrong in (x[0], x[..., :32]):
        with pytest.raises(ValueError, match=r"^x: shape"):
            native.rotate(spec, wrong, np.array([0, 1]))
    for wrong in (x.astype(np.float64), x.astype(np.uint16), x.astype(np.int16)):
        with pytest.raises(ValueError, match=r"^x: dtype"):
            native.rotate(spec, wrong, np.array([0, 1]))
    for text, positions in ((spec, [0]), (spec, [[[0, 1]]]), (mrope, [0, 1]), (mrope, [[0, 1]])):
        with pytest.raises(ValueError, match=r"^positions: shape"):
            native.rotate(text, x, np.array(positions))


WHOLE = (
    "theta=10000.0;freq_dim=8;num_frequencies=4;rotated=3;ramp=0.0,0.0,1.0;multipliers=1.0,2.0,3.0,4.0;head_dim=9;"
    "num_pairs=4;distance=4;rotary_offset=1;pairing=half;axis=0,1,0,1;freq_index=0,1,2,3;phase=exact@bhsd,inverse"
)
PIECES = sorted(
    {*WHOLE.replace("@", ";@").split(";"), "@thd", ",unscaled", ",inverse", "blocks=2", "table_dtype=float16"}
)
EDITS = st.tuples(
    st.integers(0, len(WHOLE)), st.integers(0, 3), st.text("0123456789-.,;=|@exn", max_size=2) | st.sampled_from(PIECES)
)


@settings(max_examples=500)
@given(edits=st.lists(EDITS, max_size=3))
def test_python_and_cpp_take_the_same_texts(native, edits):
    text = WHOLE
    for at, removed, inserted in edits:
        text = text[:at] + inserted + text[at + removed :]
    said = {}
    for name, parse in (("python", parse_text), ("cpp", native.parse_text)):
        try:
            parse(text)
        except ValueError as error:
            said[name] = str(error)
    # The kernels' own limits, which plain torch does not have.
    if said.keys() != {"cpp"} or not re.match("spec: (inv_freq|num_pairs) is", said["cpp"]):
        assert said.keys() in (set(), {"python", "cpp"}), (text, said)
    assert all(error.startswith("spec: ") for error in said.values()), said
