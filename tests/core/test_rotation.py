"""The axis maps against the modules of transformers that they are named after."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import comparisons, tolerances
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rope_kernels.config import RopeConfig
from rope_kernels.config.huggingface.model_types import AXIAL_MAP
from rope_kernels.core.rotation import AXIAL_MAPS, MROPE_MAPS, Rotation, axis_map
from rope_kernels.errors import RopeConfigError

FEW = settings(max_examples=15, deadline=None, derandomize=True)


def full_width(config: RopeConfig, angle: torch.Tensor) -> torch.Tensor:
    """Angles per pair laid out over the channels as transformers' cos and sin are."""
    if config.pairing == "interleaved":
        return angle.repeat_interleave(2, dim=-1)
    return torch.cat([torch.cat([part, part], dim=-1) for part in angle.chunk(config.rotation().blocks, dim=-1)], -1)


def assert_same_table(config: RopeConfig, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor) -> None:
    angle = full_width(config, comparisons.angles(config, positions))
    torch.testing.assert_close(cos.reshape(angle.shape).double(), angle.cos(), **tolerances.FP32_ANGLE)
    torch.testing.assert_close(sin.reshape(angle.shape).double(), angle.sin(), **tolerances.FP32_ANGLE)


def positions_of(rows: int, seed: int, limit: int = 40, tokens: int = 7) -> torch.Tensor:
    return torch.randint(0, limit, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("model_type", ["qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "ernie4_5_vl_moe_text"])
@FEW
@given(st.tuples(*[st.integers(1, 20)] * 3), st.floats(1e3, 1e6), st.integers(0, 99))
def test_mrope_like_transformers(model_type: str, sections: tuple[int, ...], theta: float, seed: int) -> None:
    if model_type.startswith("ernie"):
        sections = (sections[0], sections[0], sections[2])
    parameters = {"rope_type": "default", "rope_theta": theta, "mrope_section": list(sections)}
    heads = {"hidden_size": 2 * sum(sections), "num_attention_heads": 1, "head_dim": 2 * sum(sections)}
    theirs = comparisons.hf_config(model_type, **heads, num_key_value_heads=1, rope_parameters=parameters)
    mine, positions = RopeConfig.from_hf(theirs), positions_of(3, seed)
    module = next(c for c in comparisons.rotary_classes(theirs) if hasattr(c, "compute_default_rope_parameters"))
    cos, sin = module(theirs)(torch.zeros(1), positions[:, None])
    assert mine.num_axes == 3
    assert_same_table(mine, cos, sin, positions)


@pytest.mark.parametrize(
    "model_type", sorted(set(AXIAL_MAP) - {"dinov3_vit", "eomt_dinov3", "glm_image_vision", "sapiens2"})
)
def test_axial_like_transformers(model_type: str) -> None:
    theirs = CONFIG_MAPPING[model_type]() if model_type in CONFIG_MAPPING else sub_config(model_type)
    cls = next(c for c in comparisons.rotary_classes(theirs) if hasattr(c, "compute_axial_rope_parameters"))
    mine, positions = RopeConfig.from_hf(theirs), positions_of(2, 0)
    rows = positions.T[None] if model_type == "gemma4_vision" else positions.T
    cos, sin = cls(theirs)(torch.zeros(1), rows)
    assert mine.axis_map == AXIAL_MAP[model_type]
    assert mine.num_axes == 2
    assert_same_table(mine, cos, sin, positions)


def sub_config(model_type: str) -> Any:
    """The vision config of a model whose vision tower has no entry of its own."""
    parent = next(name for name in (model_type.removesuffix("_vision"), model_type) if name in CONFIG_MAPPING)
    return CONFIG_MAPPING[parent]().vision_config


@FEW
@given(st.integers(1, 12), st.floats(10, 1e5), st.integers(0, 99), st.sampled_from(sorted(AXIAL_MAPS)))
def test_axial_of_any_size(quarter: int, theta: float, seed: int, name: str) -> None:
    model_type = {"qwen_vision": "qwen2_vl_vision", "kimi": "kimi_k25_vision"}.get(name, name)
    head_dim = 4 * quarter
    assume(head_dim > 4)  # smaller heads are refused by some of the config classes
    parameters = {"rope_type": "axial", "rope_theta": theta}
    sizes = {"hidden_size": 2 * head_dim, "num_attention_heads": 2}
    if name == "qwen_vision":
        sizes = {"embed_dim": 2 * head_dim, "num_heads": 2}
    elif name != "kimi":
        sizes["head_dim"] = head_dim
    theirs = comparisons.hf_config(model_type, **sizes, rope_parameters=parameters)
    module, positions = comparisons.rotary_classes(theirs)[0], positions_of(2, seed)
    mine = RopeConfig.from_hf(theirs)
    assert mine.head_dim == head_dim
    rows = positions.T[None] if name == "gemma4_vision" else positions.T
    cos, sin = module(theirs)(torch.zeros(1), rows)
    assert_same_table(mine, cos, sin, positions)


def test_gemma4_vision_rotates_each_half_of_the_head() -> None:
    from transformers.models.gemma4 import modeling_gemma4 as code

    theirs = comparisons.hf_config("gemma4_vision", head_dim=16)
    mine, positions = RopeConfig.from_hf(theirs), positions_of(2, 3)
    cos, sin = code.Gemma4VisionRotaryEmbedding(theirs)(torch.zeros(1), positions.T[None])
    x = torch.randn(1, 7, 1, 16)
    got = code.apply_multidimensional_rope(x, cos, sin, positions.T[None])
    torch.testing.assert_close(
        got[0, :, 0].double(), comparisons.rotate(mine, x[0, :, 0], positions), **tolerances.FP32_FAR_ANGLE
    )


def test_dinov3_coordinates_are_fractions_of_a_turn() -> None:
    from transformers.models.dinov3_vit import modeling_dinov3_vit as code

    theirs = comparisons.hf_config("dinov3_vit", hidden_size=64, num_attention_heads=2, image_size=64, patch_size=16)
    mine = RopeConfig.from_hf(theirs)
    coordinates = code.get_patches_center_coordinates(4, 4, dtype=torch.float64, device="cpu")
    cos, sin = code.DINOv3ViTRopePositionEmbedding(theirs).eval()(torch.zeros(1, 3, 64, 64))
    assert_same_table(mine, cos, sin, 2 * torch.pi * coordinates.T)


def test_the_sources_named_in_the_docstring_are_all_compared() -> None:
    for source in ("Qwen2-VL", "Qwen3-VL", "Ernie 4.5 VL", "pixtral", "Kimi K2.5", "gemma4_vision"):
        assert source in (inspect.getdoc(axis_map) or "")


@given(st.sampled_from(MROPE_MAPS), st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_mrope_maps_use_every_row_as_often_as_its_section(name: str, sections: list[int]) -> None:
    if name == "ernie":
        sections[1] = sections[0]
    axis = axis_map(name, sum(sections), sections).axis
    assert len(axis) == sum(sections)
    if name == "contiguous":
        assert [axis.count(row) for row in range(3)] == sections
    if name == "ernie":
        assert [axis.count(row) for row in (1, 2, 0)] == sections


@given(st.sampled_from(AXIAL_MAPS), st.integers(1, 40).map(lambda n: 2 * n))
def test_axial_maps_share_the_pairs_evenly(name: str, pairs: int) -> None:
    axes = axis_map(name, pairs)
    assert [axes.axis.count(row) for row in (0, 1)] == [pairs // 2, pairs // 2]
    want = sorted(range(pairs)) if name == "pixtral" else sorted(2 * list(range(pairs // 2)))
    assert sorted(axes.freq_index) == want


@pytest.mark.parametrize(
    ("name", "pairs", "sections", "message"),
    [
        ("spiral", 8, (), r"^axis_map: got 'spiral', allowed are contiguous, interleaved, ernie, qwen_vision"),
        ("contiguous", 8, (2, 3), r"^mrope_section: got \[2, 3\], sum 5; must sum to rotary_dim / 2 = 8"),
        ("ernie", 8, (4, 4), r"^mrope_section: got \[4, 4\]; three sections"),
        ("ernie", 8, (2, 3, 3), r"^mrope_section: got \[2, 3, 3\]; ernie needs height and width sections of one size"),
        ("kimi", 7, (), r"^head_dim: 7 pairs cannot be shared by two axes; head_dim must be a multiple of 4"),
    ],
)
def test_maps_that_do_not_fit(name: str, pairs: int, sections: tuple[int, ...], message: str) -> None:
    with pytest.raises(RopeConfigError, match=message):
        axis_map(name, pairs, sections)


def test_defaults_of_a_rotation() -> None:
    rotation = Rotation(head_dim=8, num_pairs=4, distance=4)
    assert rotation.index == (0, 1, 2, 3)
    assert rotation.num_axes == 1
    assert Rotation(head_dim=8, num_pairs=4, distance=4, axis=(0, 2, 1, 0)).num_axes == 3
