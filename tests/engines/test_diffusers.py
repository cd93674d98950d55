"""Models of diffusers rotate by the kernel: outputs, gradients, compiled, pickled, under hooks; and how many do."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from engines.diffusers_models import FAMILIES, Family
from support import tolerances
from typer.testing import CliRunner

from rope_kernels.cli.commands import app
from rope_kernels.integrations.diffusers import patch_diffusers, unpatch_diffusers
from rope_kernels.integrations.tables import rotating, steps
from rope_kernels.integrations.transformers import patch_model

CLOSE = tolerances.MODEL
BY_NAME = {family.name: family for family in FAMILIES}
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def built(family: Family) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    model, inputs = family.build()
    return model.eval(), inputs


def output(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    return model(**inputs, return_dict=False)[0]


def gradients(model: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    output(model, inputs).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of the kernel by patched models."""
    made: list[Any] = []
    call = rotating.apply_rotary_pos_emb
    monkeypatch.setattr(rotating, "apply_rotary_pos_emb", lambda *a, **k: made.append(a[0].shape) or call(*a, **k))
    return made


@families
def test_outputs_and_gradients_stay(family: Family, calls: list[Any]) -> None:
    model, inputs = built(family)
    before, slopes = output(model, inputs), gradients(model, inputs)
    report = patch_diffusers(model)
    assert report.patched
    assert not report.left_alone
    calls.clear()
    torch.testing.assert_close(output(model, inputs), before, **CLOSE)
    assert len(calls) == family.rotations
    mine = gradients(model, inputs)
    assert mine.keys() == slopes.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(mine[name], slope, **CLOSE, msg=name)
    calls.clear()
    assert torch.equal(output(unpatch_diffusers(model), inputs), before)
    assert not calls


@families
def test_a_patched_model_in_bf16_is_as_close_to_fp32(family: Family) -> None:
    model, inputs = built(family)
    with torch.no_grad():
        want = output(model, inputs)
        low = model.to(torch.bfloat16)
        rounded = {k: v.to(torch.bfloat16) if _is_float(k, v) else v for k, v in inputs.items()}
        theirs = output(low, rounded)
        patch_diffusers(low)
        mine = output(low, rounded)
    assert mine.dtype == theirs.dtype
    scale = want.abs().max()
    assert (mine - want).abs().max() / scale < 1.5 * (theirs - want).abs().max() / scale + 2**-8


def _is_float(name: str, value: Any) -> bool:
    kept = ("image_rotary_emb", "img_ids", "txt_ids")
    return name not in kept and isinstance(value, torch.Tensor) and value.is_floating_point()


@families
def test_copies_and_files_keep_the_patch(family: Family, calls: list[Any]) -> None:
    model, inputs = built(family)
    with torch.no_grad():
        before = output(model, inputs)
        patch_diffusers(model)
        after, file = output(model, inputs), io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for same in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            calls.clear()
            assert torch.equal(output(same, inputs), after)
            assert len(calls) == family.rotations
            assert torch.equal(output(unpatch_diffusers(same), inputs), before)


@families
def test_a_patched_model_compiles(family: Family, calls: list[Any]) -> None:
    model, inputs = built(family)
    patch_diffusers(model)
    with torch.no_grad():
        before = output(model, inputs)
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=family.whole, backend="aot_eager")
        calls.clear()
        torch.testing.assert_close(output(compiled, inputs), before, **CLOSE)
        assert calls


def test_a_table_is_converted_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    prepare = steps._prepare
    monkeypatch.setattr(steps, "_prepare", lambda *a: made.append(a) or prepare(*a))
    model, inputs = built(BY_NAME["HunyuanVideo"])
    patch_diffusers(model)
    made.clear()
    with torch.no_grad():
        for _ in range(3):
            output(model, inputs)
    assert len(made) == 3  # and there are four calls in a step


def test_other_models_in_the_process_stay(calls: list[Any]) -> None:
    model, inputs = built(BY_NAME["CogVideoX"])
    other, _ = built(BY_NAME["CogVideoX"])
    patch_diffusers(model)
    calls.clear()
    output(other, inputs)
    assert not calls
    other.set_attn_processor(CogVideoXAttnProcessor2_0())
    output(other, inputs)
    assert not calls


def test_a_processor_that_is_set_later_is_patched_again(calls: list[Any]) -> None:
    model, inputs = built(BY_NAME["Flux"])
    before = output(model, inputs)
    patch_diffusers(model)
    model.fuse_qkv_projections()
    calls.clear()
    torch.testing.assert_close(output(model, inputs), before, **CLOSE)
    fused = len(calls)
    assert len(patch_diffusers(model).patched) == 2
    calls.clear()
    torch.testing.assert_close(output(model, inputs), before, **CLOSE)
    assert len(calls) == 4 >= fused


@pytest.mark.parametrize("first", ["hooks", "patch"])
def test_diffusers_own_hooks_work(first: str, calls: list[Any]) -> None:
    model, inputs = built(BY_NAME["Flux"])
    for step in ("hooks", "patch") if first == "hooks" else ("patch", "hooks"):
        if step == "patch":
            assert len(patch_diffusers(model).patched) == 2
        else:
            model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    with torch.no_grad():
        calls.clear()
        after = output(model, inputs)
        assert len(calls) == 4
        torch.testing.assert_close(output(unpatch_diffusers(model), inputs), after, **CLOSE)
        assert len(calls) == 4


def test_gradient_checkpointing_computes_the_same() -> None:
    model, inputs = built(BY_NAME["Flux"])
    patch_diffusers(model.train())
    plain = gradients(model, inputs)
    model.enable_gradient_checkpointing()
    for name, slope in gradients(model, inputs).items():
        torch.testing.assert_close(slope, plain[name], **tolerances.CHECKPOINTED)


def test_inference_mode_and_autocast(calls: list[Any]) -> None:
    model, inputs = built(BY_NAME["Qwen-Image"])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        before = output(model, inputs)
    patch_diffusers(model)
    for _ in range(2):
        calls.clear()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            after = output(model, inputs)
        assert len(calls) == 8
        torch.testing.assert_close(after, before, rtol=0.02, atol=0.02)
    gradients(model, inputs)  # what inference mode left behind does not harm training


def test_patch_model_points_here() -> None:
    model, _ = built(BY_NAME["Flux"])
    with pytest.warns(UserWarning, match=r"rope_kernels\.integrations\.diffusers\.patch_diffusers"):
        patch_model(model)


def test_at_least_55_of_61_files_are_covered() -> None:
    result = CliRunner().invoke(app, ["coverage", "--library", "diffusers", "--json"])
    assert result.exit_code == 0, result.output
    counted = json.loads(result.stdout)
    assert (counted["diffusers"], counted["files"], counted["covered"]) == ("0.42.1", 61, 57)
    assert all(counted["not_covered"].values())
    text = CliRunner().invoke(app, ["coverage", "--library", "diffusers"]).stdout
    assert text.startswith("diffusers 0.42.1: 57 of 61 files with RoPE covered")
