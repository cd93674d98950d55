"""The one formula, term by term, against 40 digits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf

from rope_kernels.core.frequency import FrequencyParams, fixed_point_turns

mp.dps = 60
PLAIN = FrequencyParams(theta=10000.0, freq_dim=128, num_frequencies=64)


def close(got: float, want: object, rel: float = 1e-13) -> bool:
    return abs(mpf(got) - want) <= rel * abs(mpf(want))  # type: ignore[arg-type]


@given(st.integers(0, 63), st.floats(1.5, 1e9))
def test_the_ladder(j: int, theta: float) -> None:
    assert close(replace(PLAIN, theta=theta).inv_freq(j), mpf(theta) ** (-mpf(2 * j) / 128))


@given(st.integers(0, 63), st.floats(-0.2, 0.2), st.floats(-5, 5), st.floats(-3, 3), st.floats(1, 50))
def test_the_ramp_is_clamped(j: int, a: float, b: float, c: float, factor: float) -> None:
    f = mpf(10000) ** (-mpf(2 * j) / 128)
    w = min(max(mpf(a) * j + mpf(b) * f + mpf(c), mpf(0)), mpf(1))
    got = replace(PLAIN, ramp=(a, b, c), factor=factor).inv_freq(j)
    assert close(got, f * ((1 - w) / mpf(factor) + w), rel=1e-12)


def test_ends_of_the_ramp() -> None:
    divided = replace(PLAIN, ramp=(0.0, 0.0, 0.0), factor=4.0)
    assert divided.inv_freq(3) == pytest.approx(PLAIN.inv_freq(3) / 4, rel=1e-15)
    assert replace(divided, ramp=(0.0, 0.0, 1.0)).inv_freq(3) == PLAIN.inv_freq(3)


def test_pairs_past_the_rotated_share_stand_still() -> None:
    cut = replace(PLAIN, rotated=16)
    assert cut.num_rotated == 16
    assert PLAIN.num_rotated == 64
    assert cut.inv_freqs([15, 16, 63]) == [PLAIN.inv_freq(15), 0.0, 0.0]


def test_rows_switch_strictly_above_the_length() -> None:
    rows = (tuple([1.0] * 64), tuple([0.5] * 64))
    params = replace(PLAIN, multipliers=rows, switch_length=4096, attention_scaling=1.1, long_attention_scaling=1.3)
    assert params.depends_on_length
    assert [params.is_long(n) for n in (None, 1, 4096, 4097)] == [False, False, False, True]
    assert params.inv_freq(5, 4096) == PLAIN.inv_freq(5)
    assert params.inv_freq(5, 4097) == PLAIN.inv_freq(5) / 2
    assert [params.scaling(n) for n in (None, 4096, 4097)] == [1.1, 1.1, 1.3]
    assert replace(params, long_attention_scaling=None).scaling(4097) == 1.1
    assert replace(PLAIN, multipliers=rows[1:]).inv_freq(5) == PLAIN.inv_freq(5) / 2


def test_theta_grows_strictly_above_the_length() -> None:
    params = replace(PLAIN, dynamic_factor=2.0, dynamic_length=4096)
    assert params.depends_on_length
    assert [params.alpha(n) for n in (None, 100, 4096, 8192)] == [1.0, 1.0, 1.0, 3.0]
    want = (mpf(10000) * mpf(3) ** (mpf(128) / 126)) ** (-mpf(2 * 40) / 128)
    assert close(params.inv_freq(40, 8192), want)
    assert params.inv_freq(40, 4096) == PLAIN.inv_freq(40)
    assert PLAIN.alpha(10**6) == 1.0
    assert not PLAIN.depends_on_length


@pytest.mark.parametrize(
    "change",
    [
        {"theta": math.inf},
        {"factor": math.nan},
        {"ramp": (0.0, math.inf, 0.0)},
        {"attention_scaling": math.nan},
        {"long_attention_scaling": math.inf},
        {"dynamic_factor": math.inf},
        {"multipliers": ((1.0, math.nan),)},
    ],
)
def test_numbers_that_are_not_finite_are_seen(change: dict[str, object]) -> None:
    assert PLAIN.all_finite()
    assert not replace(PLAIN, **change).all_finite()  # type: ignore[arg-type]


@given(st.floats(-50, 50).filter(lambda x: abs(x) > 1e-30) | st.floats(1e-12, 1e-3))
def test_fixed_point_turns_are_exact_modulo_a_turn(inv_freq: float) -> None:
    turns = mpf(inv_freq) / (2 * mp.pi)
    want = int(mp.floor((turns - mp.floor(turns)) * mpf(2) ** 64))
    assert fixed_point_turns(inv_freq) % 2**64 == want
    assert -(2**63) <= fixed_point_turns(inv_freq) < 2**63
