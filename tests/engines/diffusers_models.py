"""Tiny models of diffusers, with inputs of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True)
class Family:
    """A model and its inputs.

    Attributes:
        name: for reports.
        rotations: calls of the kernel in a forward pass.
        build: makes the model and its inputs.
        whole: whether the model compiles without a graph break.
    """

    name: str
    rotations: int
    build: Callable[[], tuple[Any, dict[str, Any]]]
    whole: bool = True


def grid(height: int, width: int, axes: int = 3) -> torch.Tensor:
    """Positions of an image's tokens: rows and columns after a first axis of zeros."""
    ids = torch.zeros(height * width, axes)
    ids[:, 1] = torch.arange(height).repeat_interleave(width)
    ids[:, 2] = torch.arange(width).repeat(height)
    return ids


def flux() -> tuple[Any, dict[str, Any]]:
    model = diffusers.FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 14, 14),
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 24, 4),
        "encoder_hidden_states": torch.randn(1, 8, 32),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([1.0]),
        "img_ids": grid(4, 6),
        "txt_ids": torch.zeros(8, 3),
    }


def flux2() -> tuple[Any, dict[str, Any]]:
    model = diffusers.Flux2Transformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    text = torch.zeros(8, 4)
    text[:, 3] = torch.arange(8)
    return model, {
        "hidden_states": torch.randn(1, 24, 4),
        "encoder_hidden_states": torch.randn(1, 8, 32),
        "timestep": torch.tensor([1.0]),
        "guidance": torch.tensor([1.0]),
        "img_ids": grid(4, 6, 4),
        "txt_ids": text,
    }


def qwen_image() -> tuple[Any, dict[str, Any]]:
    model = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 24, 16),
        "encoder_hidden_states": torch.randn(1, 7, 16),
        "encoder_hidden_states_mask": torch.ones(1, 7).bool(),
        "timestep": torch.tensor([1.0]),
        "img_shapes": [(1, 4, 6)],
    }


def wan() -> tuple[Any, dict[str, Any]]:
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
        ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 4, 3, 8, 8),
        "timestep": torch.tensor([1]),
        "encoder_hidden_states": torch.randn(1, 5, 16),
    }


def ltx() -> tuple[Any, dict[str, Any]]:
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=2, caption_channels=32,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 32, 8),
        "encoder_hidden_states": torch.randn(1, 6, 32),
        "timestep": torch.tensor([1]),
        "encoder_attention_mask": torch.ones(1, 6).bool(),
        "num_frames": 2,
        "height": 4,
        "width": 4,
    }


def cosmos() -> tuple[Any, dict[str, Any]]:
    model = diffusers.CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=24, num_layers=2, mlp_ratio=2,
        text_embed_dim=16, adaln_lora_dim=4, max_size=(4, 32, 32), concat_padding_mask=False,
        extra_pos_embed_type=None, crossattn_proj_in_channels=16, encoder_hidden_states_channels=16,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 4, 2, 8, 8),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(1, 6, 16),
        "fps": 30,
    }


def hunyuan_video() -> tuple[Any, dict[str, Any]]:
    model = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=1, text_embed_dim=16, pooled_projection_dim=8,
        rope_axes_dim=(2, 6, 8),
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 4, 2, 4, 4),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(1, 6, 16),
        "encoder_attention_mask": torch.ones(1, 6),
        "pooled_projections": torch.randn(1, 8),
        "guidance": torch.tensor([1000.0]),
    }


def cogvideox() -> tuple[Any, dict[str, Any]]:
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=16, num_layers=2, sample_width=8, sample_height=8, sample_frames=8, max_text_seq_length=6,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(1, 6, 16),
        "timestep": torch.tensor([3]),
        "image_rotary_emb": get_3d_rotary_pos_embed(16, ((0, 0), (4, 4)), (4, 4), 2),
    }


def hidream() -> tuple[Any, dict[str, Any]]:
    model = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_channels=[32, 16], text_emb_dim=64, num_routed_experts=4,
        num_activated_experts=2, axes_dims_rope=(4, 2, 2), max_resolution=(16, 16), llama_layers=(0, 1),
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(2, 4, 16, 16),
        "encoder_hidden_states_t5": torch.randn(2, 8, 32),
        "encoder_hidden_states_llama3": torch.randn(2, 2, 8, 16),
        "pooled_embeds": torch.randn(2, 64),
        "timesteps": torch.tensor([3, 3]),
    }


def mochi() -> tuple[Any, dict[str, Any]]:
    model = diffusers.MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16, in_channels=4,
        text_embed_dim=16, time_embed_dim=4, max_sequence_length=16,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 4, 2, 8, 8),
        "encoder_hidden_states": torch.randn(1, 6, 16),
        "timestep": torch.tensor([3]),
        "encoder_attention_mask": torch.ones(1, 6).bool(),
    }


def lumina2() -> tuple[Any, dict[str, Any]]:
    model = diffusers.Lumina2Transformer2DModel(
        sample_size=16, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=3,
        num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(128, 128, 128), cap_feat_dim=32,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "encoder_hidden_states": torch.randn(1, 6, 32),
        "timestep": torch.rand(1),
        "encoder_attention_mask": torch.ones(1, 6).bool(),
    }


FAMILIES = (
    Family("Flux", 4, flux),
    Family("Flux2", 4, flux2),
    Family("Qwen-Image", 8, qwen_image),
    Family("Wan", 4, wan),
    Family("LTX-Video", 4, ltx),
    Family("Cosmos", 4, cosmos),
    Family("HunyuanVideo", 4, hunyuan_video),
    Family("CogVideoX", 4, cogvideox),
    Family("HiDream", 2, hidream, whole=False),
    Family("Mochi", 4, mochi),
    Family("Lumina2", 6, lumina2, whole=False),
)
