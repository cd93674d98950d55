"""Per ``model_type``: what transformers' model code fixes and no config key says (transformers 5.23).

tests/config/huggingface/test_model_types.py compares every entry with transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "AXIAL_MAP",
    "DEFAULT_LAYERS",
    "DEFAULT_PARAMETERS",
    "GLOBAL_HEAD_DIM",
    "LAYERS",
    "LAYER_KEYS",
    "MROPE_MAP",
    "PAIRING",
    "PARTIAL",
    "SECTIONS",
    "THETA",
    "TRAILING",
    "UNSUPPORTED",
    "Layer",
]


def _by_name(groups: dict[str, str]) -> dict[str, str]:
    return {name: value for value, names in groups.items() for name in names.split()}


# Models whose pairs are not half a head apart.
PAIRING = _by_name(
    {
        "interleaved": (
            "blt blt_global_transformer blt_local_decoder blt_local_encoder blt_patcher codegen cohere cohere2 "
            "cohere2_moe deepseek_v2 deepseek_v4 ernie4_5 ernie4_5_moe ernie4_5_vl_moe ernie4_5_vl_moe_text glm glm4 "
            "glm4v glm4v_text glm_ocr glm_ocr_text gptj helium llama4_text moonshine moonshine_streaming "
            "openai_privacy_filter pe_audio_encoder pe_audio_video_encoder pe_video_encoder roformer sam3_vit_model "
            "ernie4_5_moe_vl"
        ),
        "interleaved_to_half": (
            "axk1 axk2 bailing_hybrid deepseek_v3 deepseek_v32 dots3_note_text glm4_moe_lite glm_moe_dsa kimi_k2 "
            "longcat_flash mistral4 mistral_large4_text youtu"
        ),
    }
)

# Multimodal text models whose position rows do not share the pairs in contiguous sections.
MROPE_MAP = _by_name(
    {
        "interleaved": (
            "cohere_compass_text cosmos3_edge_text qwen3_5_text qwen3_5_moe_text qwen3_omni_moe_text "
            "qwen3_omni_moe_talker_text qwen3_vl qwen3_vl_text qwen3_vl_moe qwen3_vl_moe_text qwen4_exp_text"
        ),
        "ernie": "ernie4_5_moe_vl ernie4_5_vl_moe ernie4_5_vl_moe_text",
    }
)

# mrope_section of models whose configs may omit it.
SECTIONS: dict[str, tuple[int, ...]] = {
    "cohere_compass_text": (24, 20, 20),
    "cosmos3_edge_text": (24, 20, 20),
    "ernie4_5_vl_moe_text": (22, 22, 20),
    "glm4v_text": (8, 12, 12),
    "glm4v_moe_text": (8, 12, 12),
    "glm_image_text": (8, 12, 12),
    "glm_ocr_text": (8, 12, 12),
    "paddleocr_vl_text": (16, 24, 24),
    "qwen2_5_omni_text": (16, 24, 24),
    "qwen2_5_omni_talker": (16, 24, 24),
    "qwen2_5_vl_text": (16, 24, 24),
    "qwen2_vl_text": (16, 24, 24),
    "qwen3_5_text": (11, 11, 10),
    "qwen3_5_moe_text": (11, 11, 10),
    "qwen3_omni_moe_text": (24, 20, 20),
    "qwen3_omni_moe_talker_text": (24, 20, 20),
    "qwen3_vl_text": (24, 20, 20),
    "qwen3_vl_moe_text": (24, 20, 20),
    "qwen4_exp_text": (11, 11, 10),
}

# Vision towers, whose rope type is axial whatever the config says.
AXIAL_MAP = _by_name(
    {
        "qwen_vision": (
            "cohere_compass_vision dinov3_vit dots3_note_vision_encoder eomt_dinov3 ernie4_5_vl_moe_vision "
            "exaone4_5_vision glm4v_moe_vision glm4v_vision glm5_next_vision glm_image_vision glm_ocr_vision "
            "lfm3_vl_vision mlcd_vision_model muse_glimmer_vision muse_spark_vision paddleocr_vl_vision "
            "qwen2_5_omni_vision_encoder qwen2_5_vl_vision qwen2_vl_vision qwen3_5_moe_vision qwen3_5_vision "
            "qwen3_omni_moe_vision_encoder qwen3_vl_moe_vision qwen3_vl_vision qwen4_exp_vision sam3_vit_model "
            "sapiens2 video_llama_3_vision"
        ),
        "pixtral": "pixtral",
        "kimi": "kimi_k25_vision",
        "gemma4_vision": "gemma4_vision",
    }
)

# Defaults of config classes for a config without rope_theta or partial_rotary_factor.
THETA = {
    name: theta
    for theta, names in {
        100.0: "dinov3_vit eomt_dinov3 gemma4_vision sapiens2",
        1000.0: "nomic_bert",
        20000.0: "jina_embeddings_v3 pe_audio_encoder pe_audio_video_encoder pe_video_encoder",
        100000.0: "helium",
        150000.0: "gpt_oss openai_privacy_filter",
        160000.0: "gte",
        500000.0: (
            "bitnet blt blt_local_encoder blt_local_decoder blt_global_transformer cohere csm "
            "csm_depth_decoder_model evolla muse_glimmer_assistant muse_spark_text ernie4_5 ernie4_5_moe "
            "ernie4_5_vl_moe_text flex_olmo llama4_text mllama_text_model paddleocr_vl_text qwen3_vl_text "
            "qwen3_vl_moe_text"
        ),
        1000000.0: (
            "cwm emu3_text_model lfm2 lfm2_moe lfm3_vl_vision "
            "qwen2_5_omni_talker minimax mixtral phimoe qwen2_5_omni_text "
            "qwen2_5_vl_text qwen2_vl_text qwen3_omni_moe_text solar_open"
        ),
        2000000.0: "smollm3",
        5000000.0: "minimax_m2",
        10000000.0: "longcat_flash",
        11158840.0: "hy_v3",
        12000000.0: "apertus",
        100000000.0: "cosmos3_edge_text",
    }.items()
    for name in names.split()
}
PARTIAL = {
    name: share
    for share, names in {
        0.125: "deepseek_v4",
        0.25: "gpt_neox qwen3_5_text qwen3_5_moe_text qwen3_next stablelm",
        0.5: (
            "dots3_note_audio_encoder glmasr_encoder nemotron3_5_transcribe_asr_audio "
            "nemotron3_5_transcribe_word_timestamp bamba glm glm4 glm4_moe "
            "glm4v_moe_text nemotron persimmon phi recurrent_gemma"
        ),
        0.8: "moonshine_streaming",
        0.9: "moonshine",
    }.items()
    for name in names.split()
}


@dataclass(frozen=True)
class Layer:
    """How one layer type reads a config whose rope parameters are not nested by layer type.

    Attributes:
        theta_key: the key outside the rope parameters that holds its theta.
        scaled: whether ``rope_scaling`` applies to it.
        defaults: the config class's default values.
    """

    theta_key: str
    scaled: bool
    defaults: Mapping[str, Any]


def _two(theta: float, local_theta: float, key: str = "rope_theta", local_key: str = "") -> dict[str, Layer]:
    full, local = {"rope_theta": theta}, {"rope_theta": local_theta}
    return {"full_attention": Layer(key, True, full), "sliding_attention": Layer(local_key, False, local)}


_GEMMA3 = _two(1e6, 1e4, local_key="rope_local_base_freq")
_GEMMA4 = {
    "full_attention": Layer(
        "rope_theta", True, {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}
    ),
    "sliding_attention": Layer("", False, {"rope_theta": 1e4}),
}
_MODERNBERT = {
    "full_attention": Layer("global_rope_theta", True, {"rope_theta": 160000.0}),
    "sliding_attention": Layer("local_rope_theta", True, {"rope_theta": 1e4}),
}
LAYERS: dict[str, dict[str, Layer]] = {
    "gemma3_text": _GEMMA3,
    "gemma3n_text": _GEMMA3,
    "t5gemma2_text": _GEMMA3,
    "t5gemma2_decoder": _GEMMA3,
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "diffusion_gemma_text": _GEMMA4,
    "embedding_gemma2_text": _two(1e6, 1e4),
    "mimo_v2_flash": {
        "full_attention": Layer("rope_theta", True, {"rope_theta": 5e6, "partial_rotary_factor": 0.334}),
        "sliding_attention": Layer("swa_rope_theta", False, {"rope_theta": 1e4, "partial_rotary_factor": 0.334}),
    },
    "modernbert": _MODERNBERT,
    "modernbert-decoder": _MODERNBERT,
    "olmo3": _two(5e5, 5e5),
    "deepseek_v4": {
        "main": Layer("rope_theta", False, {"rope_theta": 1e4}),
        # The model's reference does not multiply by YaRN's own factor.
        "compress": Layer("compress_rope_theta", True, {"rope_theta": 160000.0, "attention_factor": 1.0}),
    },
}
# Other models with one of these keys are read like this model.
LAYER_KEYS = {"rope_local_base_freq": "gemma3_text", "local_rope_theta": "modernbert"}

# head_dim of full attention in models whose full attention has wider heads than the config's head_dim.
GLOBAL_HEAD_DIM = {name: 512 for name, layers in LAYERS.items() if layers is _GEMMA4 or name == "embedding_gemma2_text"}

_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_GPT_OSS = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_MISTRAL = {"rope_type": "yarn", "mscale": 1.0, "mscale_all_dim": 1.0}

# Rope parameters of config classes that scale by default, for a config without any.
DEFAULT_PARAMETERS: dict[str, dict[str, Any]] = {
    "apertus": {**_LLAMA3, "rope_theta": 12e6, "factor": 8.0, "original_max_position_embeddings": 8192},
    "cwm": {**_LLAMA3, "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 8192},
    "gpt_oss": _GPT_OSS,
    "openai_privacy_filter": _GPT_OSS,
    "higgs_audio_v2": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 0.125,
        "high_freq_factor": 0.5,
        "original_max_position_embeddings": 1024,
    },
    "ministral3": {**_MISTRAL, "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384},
    "mistral4": {**_MISTRAL, "rope_theta": 1e4, "factor": 128.0, "original_max_position_embeddings": 8192},
    "mistral_large4_text": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 2048.0,
        "original_max_position_embeddings": 512,
        "attention_factor": 1.0,
    },
}

# The same, of config classes whose parameters are nested by layer type.
DEFAULT_LAYERS: dict[str, dict[str, dict[str, Any]]] = {
    "laguna": {
        "full_attention": {"rope_theta": 500000.0, "partial_rotary_factor": 0.5},
        "sliding_attention": {"rope_theta": 10000.0},
    },
    "lfm3": {
        "sliding_attention": {"rope_theta": 10000.0},
        "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
    },
    "mellum": {"full_attention": {"rope_theta": 500000.0}, "sliding_attention": {"rope_theta": 10000.0}},
    "ultrabert": {"sliding_attention": {"rope_theta": 10000.0}, "full_attention": {"rope_theta": 2560000.0}},
    "zaya": {
        "hybrid": {"rope_theta": 5e6, "partial_rotary_factor": 0.5},
        "hybrid_sliding": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
}

# Models that rotate the last channels of a head, not the first.
TRAILING = {"deepseek_v4"}

# Models whose rotation no config describes, with the reason.
UNSUPPORTED = {
    "clvp_encoder": "its rotary width comes from projection_dim",
    "efficientloftr": "its rotary embedding spans several heads' channels",
    "lightglue": "it rotates by learned projections of the positions",
    "llama4_vision_model": "its vision tower's complex table has no axis map here",
    "nanochat": "it rotates in the other direction; pass the negated table to RopeConfig.from_inv_freq",
    "neomme": "its text layers share one ladder between image rows and columns",
    "vjepa2": "its heads rotate by frame, row and column in three parts",
}
