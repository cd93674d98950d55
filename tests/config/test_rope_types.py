"""Every rope type against extended precision and against transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import comparisons, tolerances
from support import exact_formulas as exact
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rope_kernels.config import RopeConfig
from rope_kernels.config.fields import RopeFields
from rope_kernels.config.rope_types import ROPE_TYPES, RopeType, register_rope_type
from rope_kernels.core.frequency import FrequencyParams
from rope_kernels.errors import RopeConfigError

FEW = settings(max_examples=40, deadline=None, derandomize=True)
THETAS = st.floats(1e2, 1e8)
HEADS = st.integers(4, 128).map(lambda n: 2 * n)
SHARES = st.sampled_from([1.0, 1.0, 0.75, 0.5, 0.25])
FACTORS = st.floats(1.0, 40.0)
LENGTHS = st.sampled_from([512, 1000, 2048, 4096, 8192, 32768])


def theirs(rope_type: str, head_dim: int, seq_len: int | None = None, longest: int = 131072, **values: Any) -> Any:
    """transformers' own frequencies and attention factor."""
    parameters = {"rope_type": rope_type, **{k: v for k, v in values.items() if v is not None}}
    config = LlamaConfig(head_dim=head_dim, max_position_embeddings=longest, rope_parameters=parameters)
    return ROPE_INIT_FUNCTIONS[rope_type](config, seq_len=seq_len)


@FEW
@given(HEADS, st.floats(0.26, 1.0), THETAS)
def test_default(head_dim: int, share: float, theta: float) -> None:
    config = RopeConfig(head_dim=head_dim, rope_theta=theta, partial_rotary_factor=share)
    comparisons.assert_exact(config, exact.ladder(theta, int(head_dim * share)))
    assert config.attention_scaling == 1.0


@FEW
@given(HEADS, SHARES, THETAS, FACTORS)
def test_linear(head_dim: int, share: float, theta: float, factor: float) -> None:
    values = {"rope_theta": theta, "partial_rotary_factor": share, "factor": factor}
    config = RopeConfig(head_dim=head_dim, rope_type="linear", **values)
    comparisons.assert_exact(config, exact.linear(theta, int(head_dim * share), factor))
    comparisons.assert_like_transformers(config, theirs("linear", head_dim, **values)[0])


@FEW
@given(HEADS.filter(lambda n: n > 12), SHARES, THETAS, FACTORS, LENGTHS, st.floats(0.1, 20))
def test_dynamic(head_dim: int, share: float, theta: float, factor: float, longest: int, times: float) -> None:
    values = {"rope_theta": theta, "partial_rotary_factor": share, "factor": factor}
    config = RopeConfig(head_dim=head_dim, rope_type="dynamic", max_position_embeddings=longest, **values)
    assert config.depends_on_length
    for seq_len in (None, longest, longest + 1, int(longest * times)):
        comparisons.assert_exact(config, exact.dynamic(theta, int(head_dim * share), factor, longest, seq_len), seq_len)
        inv_freq, _ = theirs("dynamic", head_dim, seq_len, longest, **values)
        comparisons.assert_like_transformers(config, inv_freq, seq_len)


@FEW
@given(HEADS, THETAS, st.floats(1.0, 2000.0))
def test_ntk_alpha(head_dim: int, theta: float, alpha: float) -> None:
    config = RopeConfig(head_dim=head_dim, rope_type="ntk_alpha", rope_theta=theta, alpha=alpha)
    comparisons.assert_exact(config, exact.ntk_alpha(theta, head_dim, alpha))
    assert not config.depends_on_length


@FEW
@given(
    HEADS.map(lambda n: n * 2),
    st.sampled_from([1.0, 0.5]),
    THETAS,
    FACTORS,
    LENGTHS,
    st.tuples(st.floats(1, 64), st.floats(0.1, 1)),
    st.booleans(),
)
def test_yarn(
    head_dim: int,
    share: float,
    theta: float,
    factor: float,
    original: int,
    betas: tuple[float, float],
    truncate: bool,
) -> None:
    values = {
        "rope_theta": theta,
        "partial_rotary_factor": share,
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": betas[0],
        "beta_slow": betas[1],
        "truncate": truncate,
    }
    config = RopeConfig(head_dim=head_dim, rope_type="yarn", **values)
    want = exact.yarn(theta, int(head_dim * share), factor, original, *betas, truncate)
    comparisons.assert_exact(config, want)
    inv_freq, scaling = theirs("yarn", head_dim, **values)
    comparisons.assert_like_transformers(config, inv_freq)
    assert config.attention_scaling == pytest.approx(scaling, rel=1e-14)


def test_yarn_with_a_ramp_of_no_width() -> None:
    theta = math.exp(64 * math.log(4096 / (2 * math.pi)) / (2 * (10 - 0.0004)))  # the ramp begins at pair 9.9996
    values = {"rope_theta": theta, "factor": 8.0, "original_max_position_embeddings": 4096}
    values |= {"beta_fast": 1.0, "beta_slow": 1.0, "truncate": False}
    config = RopeConfig(head_dim=64, rope_type="yarn", **values)
    comparisons.assert_exact(config, exact.yarn(theta, 64, 8, 4096, 1, 1, truncate=False), rel=1e-10)
    plain = RopeConfig(head_dim=64, rope_theta=theta).inv_freq() / config.inv_freq()
    assert plain[9].item() == pytest.approx(1, rel=1e-9)
    assert plain[10].item() == pytest.approx(1 / (0.6 + 0.4 / 8), rel=1e-6)
    assert plain[11].item() == pytest.approx(8, rel=1e-9)


@pytest.mark.parametrize("mscales", [(None, None), (1.0, 1.0), (0.707, 0.707), (1.0, 0.5), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("factor", [None, 1.0, 40.0])
@pytest.mark.parametrize("attention_factor", [None, 1.5])
def test_yarn_attention_factor(mscales: Any, factor: float | None, attention_factor: float | None) -> None:
    values = {"mscale": mscales[0], "mscale_all_dim": mscales[1], "original_max_position_embeddings": 4096}
    values |= {"attention_factor": attention_factor, "factor": factor}
    values |= {"max_position_embeddings": None if factor else 4096 * 32}
    config = RopeConfig(head_dim=64, rope_type="yarn", **values)
    want = attention_factor or exact.yarn_scaling(factor or 32, *mscales)
    assert config.attention_scaling == pytest.approx(float(want), rel=1e-14)
    comparisons.assert_exact(config, exact.yarn(10000.0, 64, factor or 32, 4096))


@FEW
@given(HEADS, SHARES, THETAS, FACTORS, st.floats(0.1, 4), st.floats(2, 8), LENGTHS)
def test_llama3(
    head_dim: int, share: float, theta: float, factor: float, low: float, times: float, original: int
) -> None:
    values = {
        "rope_theta": theta,
        "partial_rotary_factor": share,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": low * times,
        "original_max_position_embeddings": original,
    }
    config = RopeConfig(head_dim=head_dim, rope_type="llama3", **values)
    comparisons.assert_exact(config, exact.llama3(theta, int(head_dim * share), factor, low, low * times, original))
    comparisons.assert_like_transformers(config, theirs("llama3", head_dim, **values)[0])


@FEW
@given(st.floats(0.5, 8), st.floats(0.2, 1))
def test_llama3_whose_ramp_does_not_rise_is_a_step(low: float, times: float) -> None:
    """What transformers computes; a RopeConfig refuses it, the type's function does not."""
    values = {"factor": 8.0, "low_freq_factor": low, "high_freq_factor": low * times}
    values["original_max_position_embeddings"] = 1024
    params = ROPE_TYPES["llama3"](RopeFields(head_dim=64, rope_type="llama3", **values))
    plain = FrequencyParams(10000.0, 64, 32)
    divisors = [plain.inv_freq(j) / params.inv_freq(j) for j in range(32)]
    turns = [1024 * plain.inv_freq(j) / (2 * math.pi) for j in range(32)]
    assert divisors == pytest.approx([1.0 if turn > low else 8.0 for turn in turns])


@FEW
@given(HEADS, THETAS, st.none() | FACTORS, LENGTHS, st.integers(1, 40), st.data())
def test_longrope(head_dim: int, theta: float, factor: float | None, original: int, times: int, data: Any) -> None:
    rows = st.lists(st.floats(0.5, 70), min_size=head_dim // 2, max_size=head_dim // 2)
    short, long = data.draw(rows), data.draw(rows)
    values = {
        "rope_theta": theta,
        "factor": factor,
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": original,
    }
    longest = original * times + 1
    config = RopeConfig(head_dim=head_dim, rope_type="longrope", max_position_embeddings=longest, **values)
    want = exact.longrope_scaling(factor or longest / original, original)
    assert config.attention_scaling == pytest.approx(float(want), rel=1e-14)
    for seq_len, row in ((None, short), (original, short), (original + 1, long)):
        comparisons.assert_exact(config, exact.longrope(theta, head_dim, row), seq_len)
        inv_freq, scaling = theirs("longrope", head_dim, seq_len, longest, **values)
        comparisons.assert_like_transformers(config, inv_freq, seq_len)
        assert config.attention_scaling == pytest.approx(scaling, rel=tolerances.FORMULA_REL)


def test_longrope_mscales_are_the_scaling_of_short_and_long_lengths() -> None:
    values = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}
    config = RopeConfig(head_dim=8, rope_type="longrope", short_mscale=1.25, long_mscale=1.5, **values)
    params = config.frequency_params
    assert [params.scaling(n) for n in (None, 64, 65)] == [1.25, 1.25, 1.5]
    one = RopeConfig(head_dim=8, rope_type="longrope", short_mscale=1.25, factor=16.0, **values).frequency_params
    assert one.scaling(64) == 1.25
    assert one.scaling(65) == pytest.approx(float(exact.longrope_scaling(16, 64)))


@FEW
@given(HEADS, st.floats(0.26, 1.0), THETAS, FACTORS)
def test_proportional(head_dim: int, share: float, theta: float, factor: float) -> None:
    values = {"rope_theta": theta, "partial_rotary_factor": share, "factor": factor}
    config = RopeConfig(head_dim=head_dim, rope_type="proportional", **values)
    comparisons.assert_exact(config, exact.proportional(theta, head_dim, share, factor))
    comparisons.assert_like_transformers(config, theirs("proportional", head_dim, **values)[0])
    assert config.rotary_dim == head_dim
    assert config.rotation().distance == head_dim // 2
    assert config.rotation().num_pairs == int(share * head_dim // 2)


@pytest.mark.parametrize("share", [0.3, 0.334, 0.9])
def test_an_odd_share_of_the_head_is_rounded_up_to_whole_pairs(share: float) -> None:
    config = RopeConfig(head_dim=22, partial_rotary_factor=share)
    d = int(22 * share)
    assert config.rotary_dim == d + d % 2
    comparisons.assert_exact(config, exact.ladder(10000.0, d))


def test_mrope_has_the_default_frequencies() -> None:
    mrope = RopeConfig(head_dim=128, rope_type="mrope", mrope_section=[16, 24, 24])
    comparisons.assert_exact(mrope, exact.ladder(10000.0, 128))
    assert mrope.num_axes == 3


def test_any_type_may_carry_sections() -> None:
    config = RopeConfig(head_dim=16, rope_type="linear", factor=2.0, mrope_section=[2, 3, 3])
    comparisons.assert_exact(config, exact.linear(10000.0, 16, 2.0))
    assert config.rotation().axis == (0, 0, 1, 1, 1, 2, 2, 2)


def test_a_registered_type_gets_its_own_keys() -> None:
    def scaled(config: Any) -> FrequencyParams:
        gamma = dict(config.extra)["gamma"]
        return FrequencyParams(config.rope_theta * gamma, config.head_dim, config.head_dim // 2)

    register_rope_type("scaled", scaled, required=["gamma"])
    try:
        config = RopeConfig(head_dim=8, rope_type="scaled", extra={"gamma": 3.0})
        comparisons.assert_exact(config, exact.ladder(30000.0, 8))
        source = {"head_dim": 8, "rope_parameters": {"rope_type": "scaled", "gamma": 3.0, "list": [1, 2]}}
        read = RopeConfig.from_hf(source)
        assert read.extra == (("gamma", 3.0), ("list", (1, 2)))
        assert hash(read)
        assert RopeConfig.from_hf(config.to_hf()) == config == RopeConfig(**config.to_dict())
        assert "gamma" in config.explain()
        with pytest.raises(RopeConfigError, match=r"^gamma: missing; rope_type 'scaled' needs it"):
            RopeConfig(head_dim=8, rope_type="scaled")
    finally:
        del ROPE_TYPES["scaled"]


def test_registering_checks_the_name_and_what_comes_back() -> None:
    with pytest.raises(RopeConfigError, match="'yarn' is registered already; pass overwrite=True"):
        register_rope_type("yarn", ROPE_TYPES["default"])
    with pytest.raises(RopeConfigError, match="got '', must be a non-empty string"):
        register_rope_type("", ROPE_TYPES["default"])
    with pytest.raises(RopeConfigError, match="got 3, must be a function of the config"):
        register_rope_type("three", 3)  # type: ignore[arg-type]
    register_rope_type("wrong", lambda config: 3, optional=[])  # type: ignore[arg-type, return-value]
    try:
        with pytest.raises(RopeConfigError, match="the function of 'wrong' returned 3, must be a FrequencyParams"):
            RopeConfig(head_dim=8, rope_type="wrong")
        with pytest.raises(RopeConfigError, match=r"^factor: got 2.0, rope_type 'wrong' does not use it"):
            RopeConfig(head_dim=8, rope_type="wrong", factor=2.0)
        register_rope_type("wrong", ROPE_TYPES["default"], overwrite=True)
        assert RopeConfig(head_dim=8, rope_type="wrong").rotary_dim == 8
    finally:
        del ROPE_TYPES["wrong"]


def test_every_builtin_is_a_rope_type_with_known_keys() -> None:
    from dataclasses import fields

    from rope_kernels.config.fields import RopeFields

    known = {f.name for f in fields(RopeFields)}
    for name, kind in ROPE_TYPES.items():
        assert isinstance(kind, RopeType)
        assert kind.builtin, name
        assert kind.required | (kind.optional or frozenset()) <= known
