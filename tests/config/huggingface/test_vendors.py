"""Keys of other code than transformers mean what that code computes, for any values."""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import comparisons
from support import exact_formulas as exact

from rope_kernels.config import RopeConfig
from rope_kernels.errors import RopeConfigError

HEADS = st.sampled_from([32, 64, 80, 128])
THETAS = st.floats(100, 1e7)
FACTORS = st.floats(1.5, 64)
LENGTHS = st.sampled_from([1024, 4096, 8192])


def sized(head_dim: int, **values: Any) -> dict[str, Any]:
    return {"hidden_size": 4 * head_dim, "num_attention_heads": 4, **values}


@given(
    st.sampled_from(["rope_embedding_base", "rotary_base", "rotary_embedding_base", "rope_base", "rope_freq_constant"]),
    st.sampled_from(["rotary_percent", "rope_pct", "rotary_emb_fraction", "rope_percent"]),
    st.sampled_from(["rotary_interleaved", "rotary_emb_interleaved", "rope_traditional"]),
    THETAS,
    st.sampled_from([0.25, 0.5, 1.0]),
    st.booleans(),
)
def test_other_names(theta_key: str, share_key: str, pair_key: str, theta: float, share: float, pair: bool) -> None:
    config = RopeConfig.from_hf(sized(64, **{theta_key: theta, share_key: share, pair_key: pair}))
    assert (config.rope_theta, config.rotary_dim) == (theta, int(64 * share))
    assert config.pairing == ("interleaved" if pair else "half")
    assert config.provenance["rope_theta"] == theta_key
    with pytest.raises(RopeConfigError, match=r"^rope_theta: got .*they must agree"):
        RopeConfig.from_hf(sized(64, **{theta_key: theta, "rope_theta": theta * 2}))


@given(HEADS, FACTORS, st.sampled_from(["rope_condense_ratio", "rotary_seq_len_interpolation_factor"]))
def test_divided_positions(head_dim: int, factor: float, key: str) -> None:
    comparisons.assert_exact(RopeConfig.from_hf(sized(head_dim, **{key: factor})), exact.linear(1e4, head_dim, factor))
    phi3small = RopeConfig.from_hf(sized(head_dim, model_type="phi3small", rope_position_scale=1 / factor))
    comparisons.assert_exact(phi3small, exact.linear(1e4, head_dim, factor), rel=1e-9)


@given(HEADS, THETAS, FACTORS)
def test_llama3_of_meta_torchtune_and_megatron(head_dim: int, theta: float, factor: float) -> None:
    want = exact.llama3(theta, head_dim, factor, 1, 4, 8192)
    meta = {"dim": 4 * head_dim, "n_heads": 4, "rope_theta": theta, "use_scaled_rope": True}
    torchtune = {"embed_dim": 4 * head_dim, "num_heads": 4, "rope_base": theta, "scale_factor": factor}
    megatron = sized(head_dim, rotary_base=theta, use_rope_scaling=True, rope_scaling_factor=factor)
    for values, pairing in (
        ({**meta, "rope_scaling_factor": factor}, "interleaved"),
        (torchtune, "interleaved"),
        (megatron, "half"),
    ):
        config = RopeConfig.from_hf(values)
        comparisons.assert_exact(config, want)
        assert config.pairing == pairing
    comparisons.assert_exact(RopeConfig.from_hf(meta), exact.llama3(theta, head_dim, 8, 1, 4, 8192))
    assert RopeConfig.from_hf({**megatron, "use_rope_scaling": False}).rope_type == "default"


@given(HEADS, st.floats(1e4, 1e7), FACTORS, LENGTHS, st.sampled_from([True, False, None]))
def test_yarn_of_gpt_oss_mistral_and_gguf(
    head_dim: int, theta: float, factor: float, original: int, scaled: bool | None
) -> None:
    untruncated = exact.yarn(theta, head_dim, factor, original, truncate=False)
    own = {"initial_context_length": original, "rope_scaling_factor": factor, "rope_ntk_alpha": 1, "rope_ntk_beta": 32}
    gpt_oss = RopeConfig.from_hf(sized(head_dim, rope_theta=theta, **own))
    comparisons.assert_exact(gpt_oss, untruncated)
    yarn = {"original_max_position_embeddings": original, "factor": factor, "beta": 32, "alpha": 1}
    yarn |= {} if scaled is None else {"apply_scale": scaled}
    mistral = RopeConfig.from_hf({"dim": 4 * head_dim, "n_heads": 4, "rope_theta": theta, "yarn": yarn})
    gguf = RopeConfig.from_hf(
        {
            "general.architecture": "qwen2",
            "qwen2.embedding_length": 4 * head_dim,
            "qwen2.attention.head_count": 4,
            "qwen2.rope.freq_base": theta,
            "qwen2.rope.scaling.type": "yarn",
            "qwen2.rope.scaling.factor": factor,
            "qwen2.rope.scaling.original_context_length": original,
        }
    )
    for config, pairing in ((mistral, "interleaved"), (gguf, "half")):
        comparisons.assert_exact(config, exact.yarn(theta, head_dim, factor, original))
        assert config.pairing == pairing
    for config in (gpt_oss, gguf):
        assert config.attention_scaling == pytest.approx(float(exact.yarn_scaling(factor)))
    assert mistral.attention_scaling == (1.0 if scaled is False else pytest.approx(float(exact.yarn_scaling(factor))))


@given(FACTORS, st.floats(0.5, 2.0), st.sampled_from([{}, {"mscale": 0.7, "mscale_all_dim": 1.3}]))
def test_attn_factor_multiplies(factor: float, attn_factor: float, mscales: dict[str, float]) -> None:
    table = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 1024, **mscales}
    own = RopeConfig.from_hf(sized(64, rope_scaling=table))
    config = RopeConfig.from_hf(sized(64, rope_scaling={**table, "attn_factor": attn_factor}))
    assert config.attention_scaling == pytest.approx(own.attention_scaling * attn_factor, rel=1e-12)
    assert config.inv_freq().equal(own.inv_freq())
    assert "transformers does not read attn_factor" in config.explain()
    assert RopeConfig.from_hf(config.to_hf()).attention_scaling == config.attention_scaling
    both = {**table, "attn_factor": attn_factor, "attention_factor": config.attention_scaling * 1.01}
    with pytest.raises(RopeConfigError, match=r"^attention_factor: got .*they must agree"):
        RopeConfig.from_hf(sized(64, rope_scaling=both))


@given(st.integers(1, 5), st.sampled_from([2048, 8192]))
def test_telechat_raises_theta_by_its_trained_length(doublings: int, base: int) -> None:
    values = sized(64, model_type="telechat", base_seqlen=base, training_seqlen=base * 2**doublings)
    alpha = 2 ** math.ceil(math.log2(2**doublings) + 1) - 1
    comparisons.assert_exact(RopeConfig.from_hf(values), exact.ntk_alpha(1e4, 64, alpha))


@pytest.mark.parametrize(
    ("values", "field", "part"),
    [
        ({"general.architecture": "gpt2"}, "general.architecture", "nothing to rotate"),
        ({"general.architecture": "gemma3"}, "general.architecture", "config.json instead"),
        (
            {"general.architecture": "qwen2", "qwen2.rope.scaling.yarn_log_multiplier": 0.1},
            "qwen2.rope.scaling.yarn_log_multiplier",
            "is not read",
        ),
        ({"dim": 64, "n_heads": 4, "yarn": {"factor": 2, "gamma": 1}}, "yarn.gamma", "Mistral's yarn"),
        ({"model_type": "chatglm", "position_encoding_2d": True}, "position_encoding_2d", "no axis map"),
        (
            {"model_type": "mpt", "attn_config": {"rope": True, "rope_dail_config": {"type": "xpos"}}},
            "attn_config.rope_dail_config.type",
            "scales q and k",
        ),
        ({"rotary": {"type": "linear", "base": 1e4}}, "rotary.type", "'origin' and 'dynamic'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "attn_factor": 1.2}}, "rope_scaling.attn_factor", "yarn"),
        ({"rope_scaling": {"type": "deepseek_yarn", "factor": 2.0}}, "rope_scaling.type", "interleaved pairs"),
    ],
)
def test_what_cannot_be_reproduced(values: dict[str, Any], field: str, part: str) -> None:
    with pytest.raises(RopeConfigError) as caught:
        RopeConfig.from_hf(sized(64, **values))
    assert caught.value.field == field
    assert part in str(caught.value)


NUMBERS = {"factor": 4.0, "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@given(st.sampled_from(sorted(NUMBERS)), st.sampled_from([str, lambda x: f" {x:e} ", lambda x: f"{x:g}"]))
def test_numbers_as_strings(key: str, spell: Any) -> None:
    table = {"rope_type": "LLAMA3", **NUMBERS, "original_max_position_embeddings": 8192}
    want = RopeConfig.from_hf(sized(64, rope_parameters={**table, "rope_type": "llama3"}))
    assert RopeConfig.from_hf(sized(64, rope_parameters={**table, key: spell(table[key])})) == want
    whole = {**table, "original_max_position_embeddings": 8192.0}
    assert RopeConfig.from_hf(sized(64, rope_parameters=whole, max_position_embeddings="131072")).factor == 4.0
    with pytest.raises(RopeConfigError, match=f"^{key}: got 'four'"):
        RopeConfig.from_hf(sized(64, rope_parameters={**table, key: "four"}))


KEYS = [
    *("rope_embedding_base", "rotary_percent", "rotary_interleaved", "rope_condense_ratio", "rope_position_scale"),
    *("dim", "n_heads", "use_scaled_rope", "rope_scaling_factor", "rope_high_freq_factor", "yarn", "rope_ntk_alpha"),
    *("initial_context_length", "embed_dim", "num_heads", "rope_base", "scale_factor", "use_rope_scaling"),
    *("rotary_base", "mrope_section", "attn_config", "rope_ratio", "original_rope", "position_encoding_2d", "rotary"),
    *("use_dynamic_ntk", "seq_length", "base_seqlen", "training_seqlen", "rope_3d", "max_seq_len", "layer_rope_theta"),
    *("no_rope_layers", "no_rope_layer_interval", "rope_scaling_layers", "layer_types", "num_hidden_layers", "dim"),
]
TYPES = ["", "chatglm", "mpt", "dbrx", "qwen", "telechat", "llama4_text", "cohere2_moe", "smollm3", "zamba2"]
JUNK = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 4, 1.5, math.nan, math.inf, "", "x", "4", [], [1], ["a"], {}]),
    st.sampled_from([{"type": 3}, {"rope": True, "rope_impl": "hf", "rope_hf_config": 1}, {"factor": "x"}, [0, 1e4]]),
)


@settings(max_examples=400)
@given(st.sampled_from(TYPES), st.dictionaries(st.sampled_from(KEYS), JUNK, min_size=1, max_size=5), st.booleans())
def test_junk_is_read_or_a_config_error(model_type: str, values: dict[str, Any], strict: bool) -> None:
    config = sized(64, model_type=model_type, **values)
    with warnings.catch_warnings(), contextlib.suppress(RopeConfigError):
        warnings.simplefilter("ignore")
        for layer in RopeConfig.per_layer(config, strict).values():
            assert layer.inv_freq().isfinite().all()
