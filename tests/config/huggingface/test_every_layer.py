"""Layer by layer: which layers of a model rotate, and by which frequencies, as a run of transformers' model shows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_models import rotations_by_layer, tiny_config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from rope_kernels.config import RopeConfig
from rope_kernels.config.huggingface.layers import groups_of
from rope_kernels.config.huggingface.model_types import UNSUPPORTED
from rope_kernels.config.huggingface.objects import as_dict

THETAS = [10000.0, 5e5, 0, 5e5, 10000.0, 0, 5e5, 5e5]
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
MIXED = ["linear_attention", "full_attention"] * 4
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in (
        "afmoe", "beam", "cohere2", "cohere2_moe", "exaone4", "exaone_moe", "flint", "gemma3_text", "kolibri1", "lfm3",
        "llama", "llama4_text", "minimax", "muse_glimmer_text", "muse_spark_text", "olmo_hybrid", "qwen3_next",
        "recurrent_gemma", "smollm3", "zaya",
    )},
    "cohere2_moe with dense layers": ("cohere2_moe", {"mlp_layer_types": ["dense"] * 4 + ["sparse"] * 4}),
    "exaone4 without a window": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 8}),
    "granitemoehybrid": ("granitemoehybrid", {"position_embedding_type": "rope", "layer_types": MIXED}),
    "bamba": ("bamba", {"attn_layer_indices": [1, 5]}),
    "granite_swa": ("granite_swa", {"layer_rope_theta": THETAS}),
    "granitemoe_swa": ("granitemoe_swa", {"layer_rope_theta": THETAS[::-1]}),
    "muse_spark_text, theta": ("muse_spark_text", {"layer_rope_theta": [5e5, 5e5, 0, 0, 5e5, 5e5, 0, 5e5]}),
    "molmo2_text": ("molmo2_text", {"rope_parameters": YARN, "rope_scaling_layers": [1, 2, 5]}),
    "smollm3 by list": ("smollm3", {"no_rope_layers": [0, 1, 1, 0, 1, 0, 0, 1]}),
    "smollm3 by interval": ("smollm3", {"no_rope_layer_interval": 3}),
    "llama4 by list": ("llama4_text", {"no_rope_layers": [0, 1, 1, 0, 1, 0, 0, 1]}),
}  # fmt: skip


def wrong_layers(config: Any, count: int, seen: dict[int, list[torch.Tensor]]) -> list[str]:
    """What differs between a run of the model, as :func:`rotations_by_layer` saw it, and what is read of its config."""
    groups, _ = groups_of(as_dict(config))
    types = getattr(config, "layer_types", None) or ["full_attention"] * count
    layers = RopeConfig.per_layer(config, strict=False)
    label = {i: group.label for group in groups for i in group.layers}
    wrong = []
    for i in range(count):
        mine = layers.get(label.get(i, types[i] if not label else ""))
        if (mine is None) != (i not in seen):
            wrong.append(f"layer {i}: rotates {i in seen}, read as {mine}")
        for angles in seen.get(i, ()) if mine is not None else ():
            want = mine.inv_freq().float()[: mine.rotation().num_pairs]
            angles = angles[: len(want)]
            if angles.shape != want.shape or not torch.allclose(angles, want, rtol=1e-4, atol=1e-6):
                wrong.append(f"layer {i}: {angles.tolist()[:3]}, read as {want.tolist()[:3]}")
    return wrong


@pytest.mark.parametrize("name", CASES)
def test_layers_of_the_models_that_differ_by_layer(name: str) -> None:
    model_type, values = CASES[name]
    torch.manual_seed(0)
    config = tiny_config(model_type, **values)
    assert wrong_layers(config, *rotations_by_layer(config)) == []


# Models that do not run on tokens alone, or that our sizes do not make small: test_model_types.py has their modules.
_NOT_RUN = (
    "EvollaModel bailing_hybrid blt blt_global_transformer blt_local_decoder blt_local_encoder blt_patcher chameleon "
    "cosmos3_edge_text csm csm_depth_decoder_model dbrx deepseek_ocr2_encoder deepseek_ocr2_text deepseek_v2 "
    "deepseek_v4 dia_decoder dia_encoder diffusion_gemma_text dots1 dots3_note_audio_encoder efficientloftr "
    "emu3_text_model eomt_dinov3 ernie4_5_vl_moe_text esmc evolla falcon_h1 gemma3n_text glm4v_moe_text glm4v_text "
    "glm_image_text glm_ocr_text glmasr_encoder gradium_phonon_tts granite4_vision_text hunyuan_vl_text idefics "
    "kyutai_speech_to_text lasr_encoder lfm2_moe llama4_vision_model longcat_flash mimi mimi_decoder mimi_encoder "
    "mistral4 mllama_text_model moonshine moonshine_streaming muse_glimmer_assistant nemotron "
    "nemotron3_5_transcribe_asr_audio nemotron3_5_transcribe_word_timestamp nemotron3_diarization_audio neucodec "
    "paddleocr_vl_text pe_audio_encoder pe_audio_video_encoder pe_video_encoder phi4_multimodal pocket_tts "
    "pocket_tts_audio_tokenizer pocket_tts_audio_tokenizer_decoder pocket_tts_audio_tokenizer_encoder "
    "qwen2_5_omni_dit qwen2_5_omni_talker qwen2_5_omni_text qwen2_5_vl_text qwen2_vl_text "
    "qwen3_omni_moe_talker_code_predictor qwen3_omni_moe_talker_text qwen3_omni_moe_text qwen4_exp_text step3p5 "
    "t5_gemma_module t5gemma2_decoder t5gemma2_text timesfm2_5 unlimited_ocr_text voxtral_realtime_encoder "
    "voxtral_realtime_text xcodec2 zamba2 "
)
NOT_RUN = set(_NOT_RUN.split())
# Read with another meaning, or not at all, for a reason that another test holds.
NOT_READ = {
    "bamba": "no attention layers by default, CASES has some",
    "dots3_note_text": "small sizes contradict its share of the head",
    "granitemoehybrid": "does not rotate by default, CASES has it with RoPE",
    "minimax_m3_vl_text": "its class ignores the rotary_dim that it has by default",
    **dict.fromkeys(UNSUPPORTED, "model_types.py says why"),
    **dict.fromkeys(
        ["qwen3_5_moe_text", "qwen3_5_text", "qwen3_vl_moe_text", "qwen3_vl_text"], "sections of a real head"
    ),
}


@pytest.mark.full
def test_every_layer_of_every_model_that_runs() -> None:
    wrong, not_run, compared = {}, set(), 0
    for model_type in text_models():
        torch.manual_seed(0)
        try:
            config = tiny_config(model_type)
            run = rotations_by_layer(config)
        except Exception:  # the model's own code
            not_run.add(model_type)
            continue
        compared += 1
        if model_type not in NOT_READ and (problems := wrong_layers(config, *run)):
            wrong[model_type] = problems
    assert not wrong
    assert not not_run - NOT_RUN
    assert compared > 75


def text_models() -> Iterator[str]:
    """Model types whose config class has rope parameters of one axis and no parts."""
    for model_type in CONFIG_MAPPING_NAMES:
        with contextlib.suppress(Exception):  # a class without defaults
            config = CONFIG_MAPPING[model_type]()
            parameters = getattr(config, "rope_parameters", None) or {"rope_type": "axial"}
            if parameters.get("rope_type") != "axial" and not hasattr(config, "text_config"):
                yield model_type
