"""Reading what publishers ship and what transformers holds, in every spelling."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from support import comparisons, tolerances
from support import exact_formulas as exact
from support.comparisons import CONFIGS, shipped
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rope_kernels.config import RopeConfig
from rope_kernels.errors import RopeConfigError


def theirs(name: str) -> Any:
    """transformers' own config object of a shipped dict."""
    values = shipped(name)
    if values["model_type"] == "internlm2":  # transformers has no class for it
        return LlamaConfig(**{k: v for k, v in values.items() if k != "model_type"})
    return comparisons.hf_config(values.pop("model_type"), **values)


def test_there_are_thirteen_configs() -> None:
    assert len(CONFIGS) == 13


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configs_like_transformers(name: str) -> None:
    config = theirs(name)
    from_dict, from_object = RopeConfig.per_layer(shipped(name)), RopeConfig.per_layer(config)
    module = next(cls for cls in comparisons.rotary_classes(config) if "Vision" not in cls.__name__)(config)
    assert from_dict.keys() <= from_object.keys()
    for layer_type, mine in from_dict.items():
        table = getattr(module, f"{layer_type}_inv_freq", getattr(module, "inv_freq", None))
        scaling = getattr(module, f"{layer_type}_attention_scaling", getattr(module, "attention_scaling", None))
        for read in (mine, from_object[layer_type]):
            comparisons.assert_like_transformers(read, table)
            assert read.attention_scaling == pytest.approx(scaling, rel=tolerances.FORMULA_REL)
        assert (mine.head_dim, mine.pairing) == (from_object[layer_type].head_dim, from_object[layer_type].pairing)
        assert mine.frequency_params == from_object[layer_type].frequency_params


@pytest.mark.parametrize(("name", "lengths"), [("phi-3.5-mini", (4096, 4097)), ("internlm2-chat-7b", (32768, 98304))])
def test_shipped_configs_at_both_lengths(name: str, lengths: tuple[int, int]) -> None:
    mine, config = RopeConfig.from_hf(shipped(name)), theirs(name)
    tables = []
    for seq_len in lengths:
        inv_freq, scaling = ROPE_INIT_FUNCTIONS[mine.rope_type](config, seq_len=seq_len)
        comparisons.assert_like_transformers(mine, inv_freq, seq_len)
        assert mine.frequency_params.scaling(seq_len) == pytest.approx(scaling, rel=tolerances.FORMULA_REL)
        tables.append(inv_freq)
    assert not torch.equal(*tables)


def test_shipped_configs_exactly() -> None:
    llama3 = RopeConfig.from_hf(shipped("llama-3.1-8b"))
    comparisons.assert_exact(llama3, exact.llama3(500000.0, 128, 8, 1, 4, 8192))
    gpt_oss = RopeConfig.from_hf(shipped("gpt-oss-20b"))
    comparisons.assert_exact(gpt_oss, exact.yarn(150000.0, 64, 32, 4096, truncate=False))
    assert gpt_oss.attention_scaling == pytest.approx(float(exact.yarn_scaling(32)), rel=1e-15)
    phi = shipped("phi-3.5-mini")
    for seq_len, row in ((4096, "short_factor"), (4097, "long_factor")):
        want = exact.longrope(10000.0, 96, phi["rope_scaling"][row])
        comparisons.assert_exact(RopeConfig.from_hf(phi), want, seq_len)
    gemma4 = RopeConfig.from_hf(shipped("gemma-4-text"), "full_attention")
    comparisons.assert_exact(gemma4, exact.proportional(1e6, 512, 0.25))


@pytest.mark.parametrize(
    ("name", "layer_type", "want"),
    [
        ("deepseek-v3", None, {"head_dim": 64, "pairing": "interleaved_to_half", "factor": 40.0}),
        ("gemma-3-27b-text", "full_attention", {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}),
        ("gemma-3-27b-text", "sliding_attention", {"rope_type": "default", "rope_theta": 1e4, "factor": None}),
        ("gemma-4-text", "full_attention", {"rope_type": "proportional", "head_dim": 512, "rotary_dim": 512}),
        ("gemma-4-text", "sliding_attention", {"rope_type": "default", "head_dim": 256}),
        ("glm-4-9b", None, {"pairing": "interleaved", "rotary_dim": 64, "head_dim": 128}),
        ("gpt-neox-20b", None, {"rotary_dim": 24, "head_dim": 96, "pairing": "half"}),
        ("gpt-oss-20b", None, {"truncate": False, "head_dim": 64}),
        ("internlm2-chat-7b", None, {"rope_type": "dynamic", "max_position_embeddings": 32768}),
        ("phi-3.5-mini", None, {"rope_type": "longrope", "original_max_position_embeddings": 4096}),
        ("qwen2-vl-7b-text", None, {"rope_type": "mrope", "axis_map": "contiguous", "num_axes": 3}),
    ],
)
def test_what_is_read(name: str, layer_type: str | None, want: dict[str, Any]) -> None:
    config = RopeConfig.from_hf(shipped(name), layer_type)
    assert {key: getattr(config, key) for key in want} == want


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trips(name: str) -> None:
    for config in RopeConfig.per_layer(shipped(name)).values():
        assert RopeConfig.from_hf(config.to_hf()) == config
        assert RopeConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config
        assert RopeConfig.from_hf(json.loads(json.dumps(config.to_dict()))) == config
        assert RopeConfig(**config.to_dict()) == config


def test_to_hf_is_read_by_transformers() -> None:
    mine = RopeConfig.from_hf(shipped("llama-3.1-8b"))
    again = LlamaConfig(**mine.to_hf())
    comparisons.assert_like_transformers(mine, ROPE_INIT_FUNCTIONS["llama3"](again)[0])


BASE = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 8192}


def read(**values: Any) -> RopeConfig:
    return RopeConfig.from_hf({**BASE, **values})


def test_the_text_part_of_a_multimodal_config_is_read() -> None:
    text = {**BASE, "model_type": "qwen2", "rope_theta": 1e6}
    assert RopeConfig.from_hf({"model_type": "vl", "text_config": text}).rope_theta == 1e6
    assert RopeConfig.from_hf(comparisons.hf_config("qwen2_5_vl")).num_axes == 3
    scaled = {"model_type": "vl", "text_config": text, "rope_scaling": {"type": "linear", "factor": 2.0}}
    with pytest.raises(RopeConfigError, match=r"^rope_scaling: got .* beside text_config, which has None and is read"):
        RopeConfig.from_hf(scaled)


def test_any_object_with_attributes_is_read() -> None:
    class Plain:
        def __init__(self) -> None:
            self.head_dim, self.rope_theta = 32, 7e3

    assert RopeConfig.from_hf(Plain()) == RopeConfig(head_dim=32, rope_theta=7e3)


def test_gemma4_objects_are_read_without_asking_for_their_head_dim() -> None:
    config = comparisons.hf_config("gemma4_text")
    with pytest.raises(Exception, match="head_dim"):
        _ = config.head_dim
    assert {k: v.head_dim for k, v in RopeConfig.per_layer(config).items()} == {
        "sliding_attention": 256,
        "full_attention": 512,
    }


def test_hunyuan_spells_a_constant_alpha_dynamic() -> None:
    table = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0}
    config = read(rope_scaling=table)
    assert (config.rope_type, config.alpha, config.factor) == ("ntk_alpha", 1000.0, None)
    assert "rope_scaling.factor = 1.0 is not used: HunYuan's model code" in config.explain()
    theirs = comparisons.hf_config("hunyuan_v1_dense", head_dim=16, rope_parameters={**table, "rope_theta": 1e4})
    module = comparisons.rotary_classes(theirs)[0](theirs)
    comparisons.assert_like_transformers(RopeConfig.from_hf(theirs), module.inv_freq)
    comparisons.assert_exact(config, exact.ntk_alpha(1e4, 16, 1000.0))


def test_latent_attention() -> None:
    values = {"qk_rope_head_dim": 32, "qk_nope_head_dim": 96, "model_type": "mistral4"}
    config = read(**values, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.25})
    assert (config.head_dim, config.rotary_dim, config.pairing) == (32, 32, "interleaved_to_half")
    assert read(**values, rope_interleave=False).pairing == "half"
    with pytest.raises(
        RopeConfigError, match=r"^partial_rotary_factor: got 0.5 .*qk_rope_head_dim 32; they must agree"
    ):
        read(**values, rope_parameters={"partial_rotary_factor": 0.5})


def test_deepseek_v4_rotates_the_end_of_the_head() -> None:
    layers = RopeConfig.per_layer(comparisons.hf_config("deepseek_v4"))
    assert layers.keys() == {"main", "compress"}
    assert (layers["main"].rotary_offset, layers["main"].rotary_dim) == (448, 64)


def test_phimoe_scales_by_its_mscales() -> None:
    rows = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "short_mscale": 1.2, "long_mscale": 1.4}
    config = read(rope_scaling={"type": "longrope", "original_max_position_embeddings": 4096, **rows})
    assert [config.frequency_params.scaling(n) for n in (4096, 4097)] == [1.2, 1.4]
