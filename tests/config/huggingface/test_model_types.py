"""The model_type tables against the code of every model in transformers that has a rotary embedding."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import warnings
from typing import Any

import pytest
import torch
from support import comparisons, tolerances
from tiny_models import default_configs, has_rope_parameters
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from rope_kernels.config import RopeConfig
from rope_kernels.config.huggingface.model_types import (
    AXIAL_MAP,
    GLOBAL_HEAD_DIM,
    LAYERS,
    MROPE_MAP,
    PAIRING,
    PARTIAL,
    SECTIONS,
    THETA,
    UNSUPPORTED,
)
from rope_kernels.errors import RopeConfigError

# Default configs that contradict themselves: sections that do not fit the head, a head without a size, or
# (minimax_m3_vl_text) a rotary_dim beside a missing share of the head.
BROKEN_DEFAULTS = {
    "blt",
    "glm4v_text",
    "glm4v_moe_text",
    "glm_image_text",
    "minimax_m3_vl_text",
    "musicflamingo",
    "qwen3_omni_moe_text",
    "qwen3_omni_moe_talker_text",
    "qwen4_exp_text",
}
# Hybrids whose default config does not rotate; test_every_layer.py has them with RoPE.
NO_ROPE_BY_DEFAULT = {"bamba", "granitemoehybrid", "zamba2"}
# Vision towers whose axes no map here describes, so that from_hf refuses them.
NO_MAP = {"edgetam_video", "inkling2_vision", "minimax_m3_vl_vision", "sam2_video", "sam3_tracker_video"} | {
    "step3p5_vision"
}
# Their tables hold the ladder in another order than the pairs: compared by angle in test_rotation.py.
REORDERED = {"ernie4_5_vl_moe_text", "pixtral"}


@pytest.fixture(scope="module")
def configs() -> list[Any]:
    """Every config that both sides can build."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        left_out = BROKEN_DEFAULTS | NO_MAP | NO_ROPE_BY_DEFAULT | UNSUPPORTED.keys()
        return [c for c in default_configs(has_rope_parameters) if c.model_type not in left_out]


def embeddings(config: Any) -> list[Any]:
    """The config's rotary embedding modules, none where transformers has only the config."""
    try:
        classes = comparisons.rotary_classes(config)
    except ImportError:
        return []
    made = []
    for cls in classes:
        with contextlib.suppress(KeyError, ValueError, AttributeError):  # the class of a sibling config
            made.append(cls(config))
    return made


def test_frequencies_of_every_model(configs: list[Any]) -> None:
    compared, wrong = 0, []
    for config in configs:
        for layer_type, mine in RopeConfig.per_layer(config, strict=False).items():
            params = mine.frequency_params
            ladder = torch.tensor(params.inv_freqs(range(params.num_frequencies)), dtype=torch.float64)
            for module in embeddings(config):
                table = getattr(module, f"{layer_type}_inv_freq", getattr(module, "inv_freq", None))
                scaling = getattr(module, f"{layer_type}_attention_scaling", getattr(module, "attention_scaling", 1.0))
                if table is None or config.model_type in REORDERED:
                    continue
                compared += 1
                close = table.shape == ladder.shape and torch.allclose(
                    table.double(), ladder, rtol=tolerances.FP32_TABLE_REL, atol=0
                )
                if not close or not isinstance(scaling, (int, float)) or abs(scaling - mine.attention_scaling) > 1e-6:
                    wrong.append((config.model_type, layer_type, type(module).__name__))
    assert not wrong
    assert compared > 200


def rotated_by_model(config: Any, module: Any, x: torch.Tensor, positions: torch.Tensor, layer_type: str) -> Any:
    """x (1, 1, tokens, head_dim) through the model's own function; ``None`` where its signature is another."""
    code = importlib.import_module(type(module).__module__)
    names = ("apply_rotary_pos_emb_interleave", "apply_rotary_pos_emb", "apply_rotary_emb")
    function = next((getattr(code, name) for name in names if hasattr(code, name)), None)
    try:
        takes_layer = "layer_type" in inspect.signature(module.forward).parameters
        table = module(x, positions, layer_type) if takes_layer else module(x, positions)
        table = (table,) if isinstance(table, torch.Tensor) else table
        takes_two = "q" in inspect.signature(function).parameters or "xq" in inspect.signature(function).parameters
        return function(x, x, *table)[0] if takes_two else function(x, *table)
    except Exception:
        return None


def test_pairing_of_every_model(configs: list[Any]) -> None:
    compared, wrong = set(), []
    for config in configs:
        if config.model_type in AXIAL_MAP or config.model_type == "llama4_text":  # (batch, seq, heads) there
            continue
        layer_type, mine = next(iter(RopeConfig.per_layer(config, strict=False).items()))
        x, positions = torch.randn(1, 1, 6, mine.head_dim), torch.arange(3, 9)[None]
        want = comparisons.rotate(mine, x[0, 0], positions.expand(mine.num_axes, -1))
        for module in embeddings(config)[:1]:
            got = rotated_by_model(config, module, x, positions, layer_type)
            if got is not None and got.shape == x.shape:
                compared.add(config.model_type)
                if not torch.allclose(got[0, 0].double(), want, atol=1e-4):
                    wrong.append((config.model_type, mine.pairing))
    assert not wrong
    assert len(compared) > 100
    not_callable_alone = {
        "blt",  # only its parts have heads
        "codegen",
        "gptj",  # tested below
        "roformer",  # tested below
        "ernie4_5_moe_vl",  # ernie4_5_vl_moe as published
        "ernie4_5_vl_moe",  # multimodal, the text part is compared
        "glm4v",
        "glm4v_text",
        "glm_ocr",
        "kimi_k2",  # deepseek_v3's code under another name, not in transformers
        "llama4_text",
        "sam3_vit_model",
    }
    assert PAIRING.keys() - compared == not_callable_alone


@pytest.mark.parametrize("model_type", ["gptj", "codegen"])
def test_gptj_counts_rotated_channels_and_interleaves(model_type: str) -> None:
    code = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    mine = RopeConfig.from_hf({"model_type": model_type, "n_embd": 4096, "n_head": 16, "rotary_dim": 64})
    assert (mine.head_dim, mine.rotary_dim, mine.pairing) == (256, 64, "interleaved")
    x = torch.randn(6, 64)
    sin, cos = code.create_sinusoidal_positions(6, 64).chunk(2, dim=-1)
    got = code.apply_rotary_pos_emb(x[None, :, None], sin[None], cos[None])[0, :, 0]
    want = comparisons.rotate(mine.replace(head_dim=64, partial_rotary_factor=1.0), x, torch.arange(6)[None])
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)


def test_llama4_interleaves() -> None:
    config = comparisons.hf_config("llama4_text")
    code = importlib.import_module("transformers.models.llama4.modeling_llama4")
    mine = RopeConfig.from_hf(config)
    x, positions = torch.randn(1, 6, 1, 128), torch.arange(6)[None]
    got = code.apply_rotary_emb(x, x, code.Llama4TextRotaryEmbedding(config)(x, positions))[0]
    torch.testing.assert_close(
        got[0, :, 0].double(), comparisons.rotate(mine, x[0, :, 0], positions), atol=1e-5, rtol=0
    )


def default(model_type: str) -> Any:
    """The config class of a model type, with defaults; ``None`` where it is no model of its own."""
    return CONFIG_MAPPING[model_type]() if model_type in CONFIG_MAPPING_NAMES else None


@pytest.mark.parametrize("model_type", sorted(THETA))
def test_theta_of_a_config_that_names_none(model_type: str) -> None:
    config = default(model_type)
    parameters = getattr(config, "rope_parameters", None)
    assert (parameters["rope_theta"] if parameters else config.rope_theta) == THETA[model_type]


@pytest.mark.parametrize("model_type", sorted(PARTIAL))
def test_share_of_a_config_that_names_none(model_type: str) -> None:
    parameters = default(model_type).rope_parameters
    parameters = parameters.get("main", parameters)
    assert parameters["partial_rotary_factor"] == PARTIAL[model_type]


@pytest.mark.parametrize("model_type", sorted(LAYERS))
def test_layer_types_of_an_old_config(model_type: str) -> None:
    config = default(model_type)
    old = {"model_type": model_type, "head_dim": config.__dict__.get("head_dim", 64), "max_position_embeddings": 4096}
    old["partial_rotary_factor"] = None
    mine, theirs = RopeConfig.per_layer(old), RopeConfig.per_layer(config)
    assert mine.keys() == theirs.keys()
    for layer_type, layer in mine.items():
        assert layer.given() == theirs[layer_type].replace(max_position_embeddings=4096).given() | {
            "head_dim": layer.head_dim
        }
        if layer_type == "full_attention" and model_type in GLOBAL_HEAD_DIM:
            assert layer.head_dim == theirs[layer_type].head_dim == GLOBAL_HEAD_DIM[model_type]


def test_tables_name_only_what_they_can() -> None:
    assert not AXIAL_MAP.keys() & (SECTIONS.keys() | MROPE_MAP.keys())
    for model_type, sections in SECTIONS.items():
        share = PARTIAL.get(model_type, 0.5 if model_type.startswith("glm") else 1.0)
        head_dim = int(2 * sum(sections) / share)
        config = RopeConfig.from_hf({"model_type": model_type, "head_dim": head_dim, "partial_rotary_factor": share})
        assert config.mrope_section == sections
        assert config.axis_map == MROPE_MAP.get(model_type, "contiguous")


@pytest.mark.parametrize("model_type", sorted(UNSUPPORTED))
def test_unsupported_models_say_why(model_type: str) -> None:
    with pytest.raises(RopeConfigError, match=f"^model_type: got '{model_type}'; it"):
        RopeConfig.from_hf({"model_type": model_type, "head_dim": 64})


@pytest.mark.parametrize("model_type", sorted(NO_MAP))
def test_vision_towers_without_a_map_are_refused(model_type: str) -> None:
    config = {"model_type": model_type, "head_dim": 64, "rope_parameters": {"rope_type": "axial"}}
    with pytest.raises(RopeConfigError, match=f"^axis_map: missing; how model_type '{model_type}' shares its axes"):
        RopeConfig.from_hf(config)
