"""Tiny random models of every family that the whole-model tests cover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

transformers.logging.set_verbosity_error()

VOCABULARY = 64
IMAGE, VIDEO, VISION_START, VISION_END = 60, 61, 62, 63
# Text models: four heads of 16 channels. Weights are wide enough for attention to look somewhere.
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Family:
    """One model.

    Attributes:
        name: of the test.
        config: the name of its config class.
        model: the name of its model class.
        values: of the config.
        thresholds: lengths in tokens at which its frequencies change.
        sees: puts an image among the tokens, and returns what else a forward takes then.
    """

    name: str
    config: str
    model: str
    values: dict[str, Any] = field(default_factory=dict)
    thresholds: tuple[int, ...] = ()
    sees: Callable[[torch.Tensor], dict[str, Any]] | None = None

    def build(self, seed: int = 0, **changes: Any) -> PreTrainedModel:
        """A model with random weights, in evaluation mode."""
        torch.manual_seed(seed)
        config = getattr(transformers, self.config)(**{**TEXT, **self.values, **changes})
        model = getattr(transformers, self.model)(config).eval()
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.eos_token_id = None
        return model

    def batch(self, tokens: int, seed: int = 0, padding: int = 0, blind: bool = False) -> dict[str, Any]:
        """Inputs of a forward of two rows, the first padded on its left, an image in each unless ``blind``."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, IMAGE, (2, tokens), generator=generator)
        seen = {} if self.sees is None or blind else self.sees(ids)
        ids[0] = torch.cat((ids.new_zeros(padding), ids[0, : tokens - padding]))
        if seen:
            seen["mm_token_type_ids"] = (ids == IMAGE).long()
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), **seen}


def _rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **values}}


def _image(patches: int, channels: int) -> Callable[[torch.Tensor], dict[str, Any]]:
    """An image of 4 by 6 patches, merged two by two, after the first token of each row."""

    def put(ids: torch.Tensor) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(7)
        ids[:, 1], ids[:, 8] = VISION_START, VISION_END
        ids[:, 2:8] = IMAGE
        return {
            "pixel_values": torch.randn(ids.shape[0] * patches, channels, generator=generator),
            "image_grid_thw": torch.tensor([[1, 4, 6]] * ids.shape[0]),
        }

    return put


_SPECIAL = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
_VISION = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 2,
    "temporal_patch_size": 1,
    "spatial_merge_size": 2,
    "in_channels": 3,
}
_LONG = [2.0 + 0.5 * i for i in range(8)]
_SHORT = [1.0 + 0.05 * i for i in range(8)]

FAMILIES = [
    Family(
        "llama",
        "LlamaConfig",
        "LlamaForCausalLM",
        _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    ),
    Family(
        "phi3",
        "Phi3Config",
        "Phi3ForCausalLM",
        {
            "original_max_position_embeddings": 24,
            **_rope("longrope", short_factor=_SHORT, long_factor=_LONG, original_max_position_embeddings=24),
        },
        thresholds=(24,),
    ),
    Family(
        "qwen2",
        "Qwen2Config",
        "Qwen2ForCausalLM",
        _rope("yarn", factor=4.0, original_max_position_embeddings=32),
    ),
    Family(
        "dynamic",
        "LlamaConfig",
        "LlamaForCausalLM",
        {"max_position_embeddings": 24, **_rope("dynamic", factor=3.0)},
        thresholds=(24,),
    ),
    Family(
        "gemma3",
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            },
        },
    ),
    Family(
        "gemma4",
        "Gemma4TextConfig",
        "Gemma4ForCausalLM",
        {
            "head_dim": 16,
            "per_layer_config": {"1": {"head_dim": 32}},
            "sliding_window": 8,
            "hidden_size_per_layer_input": 0,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
            },
        },
    ),
    Family("gpt_neox", "GPTNeoXConfig", "GPTNeoXForCausalLM"),
    Family("glm4", "Glm4Config", "Glm4ForCausalLM", {"head_dim": 16}),
    Family("cohere", "CohereConfig", "CohereForCausalLM", {"num_key_value_heads": 4}),
    Family(
        "deepseek_v3",
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            **_rope("yarn", factor=4.0, original_max_position_embeddings=32, mscale=1.0, mscale_all_dim=0.5),
        },
    ),
    Family(
        "gpt_oss",
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            "head_dim": 16,
            "sliding_window": 8,
            **EXPERTS,
            **_rope("yarn", factor=4.0, original_max_position_embeddings=32, truncate=False),
        },
    ),
    Family("nanochat", "NanoChatConfig", "NanoChatForCausalLM"),
    Family(
        "llama4",
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        {
            "head_dim": 16,
            "intermediate_size_mlp": 48,
            "moe_layers": [1],
            "no_rope_layers": [1, 1],
            "attention_chunk_size": 64,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
        },
    ),
    Family(
        "qwen2_vl",
        "Qwen2VLConfig",
        "Qwen2VLForConditionalGeneration",
        {
            **_SPECIAL,
            "text_config": {**TEXT, **_rope("default", mrope_section=[2, 3, 3])},
            "vision_config": {**_VISION, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        },
        sees=_image(24, 12),
    ),
    Family(
        "qwen3_vl",
        "Qwen3VLConfig",
        "Qwen3VLForConditionalGeneration",
        {
            **_SPECIAL,
            "text_config": {
                **TEXT,
                "head_dim": 16,
                **_rope("default", mrope_section=[4, 2, 2], mrope_interleaved=True),
            },
            "vision_config": {
                **_VISION,
                "hidden_size": 32,
                "out_hidden_size": 64,
                "intermediate_size": 32,
                "num_position_embeddings": 36,
                "deepstack_visual_indexes": [0],
            },
        },
        sees=_image(24, 12),
    ),
]

NORMED = [
    Family("qwen3", "Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16}),
    next(family for family in FAMILIES if family.name == "gemma3"),
    Family(
        "glm4_moe",
        "Glm4MoeConfig",
        "Glm4MoeForCausalLM",
        {
            "head_dim": 16,
            "use_qk_norm": True,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    Family("hunyuan", "HunYuanDenseV1Config", "HunYuanDenseV1ForCausalLM", {"head_dim": 16}),
    next(family for family in FAMILIES if family.name == "llama4"),
    next(family for family in FAMILIES if family.name == "qwen3_vl"),
]
"""Models that norm each head of q and k beside the rotation."""
