"""Models of timm rotate by the kernel: each kind of its tables, outputs and gradients, compiled, and how many files."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import pytest
import torch
from engines.torchvision_stand_in import torchvision_stand_in
from support import tolerances
from typer.testing import CliRunner

with torchvision_stand_in():
    import timm
    from timm.layers.pos_embed_sincos import (
        RotaryEmbeddingCat,
        RotaryEmbeddingDinoV3,
        RotaryEmbeddingMixed,
        RotaryEmbeddingMRope,
        apply_rot_embed_cat,
    )
    from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

from rope_kernels import RopeConfig, apply_rope
from rope_kernels.cli.commands import app
from rope_kernels.integrations.tables import rotating
from rope_kernels.integrations.timm import patch_timm, unpatch_timm
from rope_kernels.integrations.transformers import patch_model

CLOSE = tolerances.MODEL
MODELS = {
    "eva02_tiny_patch14_224": RotaryEmbeddingCat,
    "vit_small_patch16_rope_224": RotaryEmbeddingCat,
    "vit_small_patch16_rope_mixed_224": RotaryEmbeddingMixed,
    "vit_small_patch16_dinov3": RotaryEmbeddingDinoV3,
    "naflexvit, mrope": RotaryEmbeddingMRope,
}
IMAGE = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
IMAGE_OF_14 = IMAGE[..., :42, :42]
models = pytest.mark.parametrize("name", MODELS)


def built(name: str) -> tuple[Any, torch.Tensor]:
    """A model of two layers, with weights that make its outputs depend on every layer, and an image."""
    torch.manual_seed(0)
    image = IMAGE_OF_14 if "patch14" in name else IMAGE
    if name.startswith("naflexvit"):
        sizes = dict(embed_dim=96, num_heads=3, depth=2, patch_size=16, pos_embed="none")
        cfg = NaFlexVitCfg(**sizes, rope_type="mrope", rope_mrope_section=(4, 6, 6))
        model: Any = NaFlexVit(cfg, num_classes=5)
    else:
        model = timm.create_model(name, num_classes=5, depth=2, img_size=image.shape[-1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), image


def gradients(model: Any, image: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(image).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of the kernel by patched models."""
    made: list[Any] = []
    call = rotating.apply_rotary_pos_emb
    monkeypatch.setattr(rotating, "apply_rotary_pos_emb", lambda *a, **k: made.append(a[0].shape) or call(*a, **k))
    return made


@models
def test_outputs_and_gradients_stay(name: str, calls: list[Any]) -> None:
    model, image = built(name)
    assert isinstance(model.rope, MODELS[name])
    before, slopes = model(image), gradients(model, image)
    assert before.abs().max() > 0.1
    report = patch_timm(model)
    assert not report.left_alone
    calls.clear()
    torch.testing.assert_close(model(image), before, rtol=1e-5, atol=1e-5)
    assert len(calls) == 4
    mine = gradients(model, image)
    assert mine.keys() == slopes.keys()
    for parameter, slope in slopes.items():
        bound = 1e-5 * max(1.0, float(slope.abs().max()))
        torch.testing.assert_close(mine[parameter], slope, rtol=0, atol=bound)
    if "mixed" in name:
        assert slopes["rope.freqs"].abs().max() > 0
    calls.clear()
    assert torch.equal(unpatch_timm(model)(image), before)
    assert not calls


@models
def test_copies_files_and_compiled_models(name: str, calls: list[Any]) -> None:
    model, image = built(name)
    with torch.no_grad():
        before = model(image)
        patch_timm(model)
        after, file = model(image), io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for same in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            calls.clear()
            assert torch.equal(same(image), after)
            assert len(calls) == 4
            assert torch.equal(unpatch_timm(same)(image), before)
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=not name.startswith("naflexvit"), backend="aot_eager")
        calls.clear()
        torch.testing.assert_close(compiled(image), after, **CLOSE)
        assert calls


def test_the_mixed_kind_has_a_table_per_head(calls: list[Any]) -> None:
    model, image = built("vit_small_patch16_rope_mixed_224")
    patch_timm(model)
    calls.clear()
    model(image)
    heads, tokens = 6, 9
    assert calls == [(2, heads * tokens, 1, 64)] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gemma_4_rotates_each_part_of_a_head(dtype: torch.dtype, calls: list[Any]) -> None:
    torch.manual_seed(0)
    model = timm.create_model("gemma4_vit_167m", num_classes=5, depth=1).eval().to(dtype)
    image = torch.randn(1, 3, 96, 96).to(dtype)
    with torch.no_grad():
        before = model(image)
        assert len(patch_timm(model).patched) == 1
        calls.clear()
        after = model(image)
    assert len(calls) == 4
    close = CLOSE if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(after, before, **close)


def test_hooks_and_a_replaced_forward(calls: list[Any]) -> None:
    model, image = built("eva02_tiny_patch14_224")
    seen: list[Any] = []
    model.blocks[0].attn.register_forward_hook(lambda *a: seen.append(1))
    own = model.blocks[1].attn.forward
    model.blocks[1].attn.forward = lambda *a, **k: own(*a, **k)
    before = model(image)
    report = patch_timm(model)
    assert [entry.module for entry in report.left_alone] == ["blocks.1.attn"]
    assert "has replaced forward on this module" in report.left_alone[0].reason
    calls.clear()
    torch.testing.assert_close(model(image), before, **CLOSE)
    assert len(calls) == 2
    assert len(seen) == 2


def test_the_function_itself_stays(calls: list[Any]) -> None:
    model, image = built("eva02_tiny_patch14_224")
    patch_timm(model)
    calls.clear()
    apply_rot_embed_cat(torch.randn(1, 2, 9, 8), torch.randn(9, 16))
    other, _ = built("eva02_tiny_patch14_224")
    other(image)
    assert not calls


def test_the_cat_kind_is_a_config_of_two_ladders() -> None:
    head_dim, height, width = 64, 5, 7
    module = RotaryEmbeddingCat(head_dim, in_pixels=False, feat_shape=(height, width), ref_feat_shape=(height, width))
    quarter = head_dim // 4
    ladder = [10000.0 ** (-j / quarter) for j in range(quarter)]
    cfg = RopeConfig.from_inv_freq(2 * ladder, mrope_section=[quarter, quarter], pairing="interleaved")
    grid = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    positions = torch.stack([axis.flatten() for axis in grid])[:, None]
    x = torch.randn(2, 3, height * width, head_dim)
    mine = apply_rope(x, None, positions, cfg, layout="bhsd")[0]
    torch.testing.assert_close(mine, apply_rot_embed_cat(x, module.get_embed()), **tolerances.THERE_AND_BACK)


def test_patch_model_points_here() -> None:
    model, _ = built("eva02_tiny_patch14_224")
    with pytest.warns(UserWarning, match=r"rope_kernels\.integrations\.timm\.patch_timm"):
        patch_model(model)


def test_all_six_files_are_covered() -> None:
    with torchvision_stand_in():
        result = CliRunner().invoke(app, ["coverage", "--library", "timm", "--json"])
    assert result.exit_code == 0, result.output
    counted = json.loads(result.stdout)
    assert (counted["timm"], counted["files"], counted["covered"]) == ("1.0.31", 6, 6)
