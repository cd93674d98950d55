"""Whole models, patched against unpatched: logits, gradients, generation, compilation, bf16."""

from __future__ import annotations

import contextlib
import statistics
from typing import Any

import pytest
import torch
from models import FAMILIES, Family
from support import tolerances

from rope_kernels import DynamicState, RopeConfig
from rope_kernels.integrations.transformers import angles, patch_model, rotating, unpatch_model

FP32 = tolerances.MODEL
# In bf16 the two may be further apart than that, but not from the truth.
BF16_SEEDS = 20
# Rounding may send a token to other experts, which moves a seed's ratio far.
ROUTED = ("gpt_oss", "deepseek_v3", "llama4")
NEW_TOKENS = 8

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
in_default_run = pytest.mark.parametrize(
    "family",
    [f if f.name in ("llama", "dynamic") else pytest.param(f, marks=pytest.mark.full) for f in FAMILIES],
    ids=lambda family: family.name,
)


def lengths(family: Family) -> list[int]:
    """Tokens of a prompt: on both sides of every threshold, which is where the last token crosses it."""
    return [length for limit in family.thresholds for length in (limit, limit + 1, 2 * limit)] or [20]


def patched(family: Family, **changes: Any) -> Any:
    model = family.build(**changes)
    patch_model(model, dynamic_state=history(model))
    return model


def history(model: Any) -> DynamicState | None:
    config = model.config.get_text_config()
    is_dynamic = config.rope_parameters.get("rope_type") == "dynamic"
    return DynamicState(RopeConfig.from_hf(config)) if is_dynamic else None


def gradients(model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch).logits.float().square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@families
def test_logits_and_gradients(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    model = family.build()
    for tokens in lengths(family):
        batch = family.batch(tokens)
        want, want_gradients = model(**batch).logits, gradients(model, batch)
        report = patch_model(model)
        assert {entry.action for entry in report.entries} == {"angles", "rotation"}, report
        with monkeypatch.context() as context:
            context.setattr(angles.AngleInputs, "table", None)  # no layer may fall back to a table
            got = model(**batch).logits
        torch.testing.assert_close(got, want, **FP32)
        torch.testing.assert_close(gradients(model, batch), want_gradients, **FP32)
        with monkeypatch.context() as context:
            context.setattr(rotating, "apply_rope", lambda q, k, *args, **kwargs: (q, k))
            assert (model(**batch).logits - want).abs().max() > 100 * FP32["atol"], "the rotation makes no difference"
        unpatch_model(model)
        assert torch.equal(model(**batch).logits, want)


def generated(model: Any, batch: dict[str, Any], cache: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and the logits of every step."""
    with torch.no_grad():
        result = model.generate(
            **batch,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            cache_implementation=cache,
            disable_compile=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return result.sequences, torch.stack(result.logits, 1)


@families
@pytest.mark.parametrize("cache", ["dynamic", "static", "left-padded"])
def test_generate(family: Family, cache: str) -> None:
    original, ours = family.build(), patched(family)
    for limit in family.thresholds or (20,):
        # One prompt that crosses the threshold while it generates, and one beyond it.
        for tokens in (limit - NEW_TOKENS // 2, limit + 2) if family.thresholds else (limit,):
            batch = family.batch(tokens, padding=3 if cache == "left-padded" else 0)
            want = generated(original, batch, "static" if cache == "static" else None)
            got = generated(ours, batch, "static" if cache == "static" else None)
            assert torch.equal(got[0], want[0])
            torch.testing.assert_close(got[1], want[1], **FP32)


@families
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(family: Family, reentrant: bool) -> None:
    model, batch = patched(family), family.batch(lengths(family)[-1])
    want = gradients(model, batch)
    model.train()
    # The method's older name is deprecated where there is a newer one.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    # Random weights without dropout: training mode changes nothing else.
    torch.testing.assert_close(gradients(model, batch), want, **tolerances.CHECKPOINTED)


@in_default_run
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_compiles_into_one_graph(family: Family, backend: str) -> None:
    torch._dynamo.reset()
    model, tokens = family.build(), lengths(family)[:2]
    batches = [family.batch(length) for length in tokens]
    if family.sees is not None and not compiles(model, batches[0]):
        # The vision tower splits by lengths that it reads from a tensor: the text part compiles.
        batches = [family.batch(length, blind=True) for length in tokens]
    want = [model(**batch).logits for batch in batches]
    if family.name not in ("phi3", "dynamic"):
        assert compiles(model, batches[0]), "transformers' own model does not; here longrope and dynamic must, even so"
    patch_model(model)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for batch, logits in zip(batches, want, strict=True):
        torch.testing.assert_close(compiled(**batch).logits, logits, **FP32)
    got = {name.removeprefix("_orig_mod."): grad for name, grad in gradients(compiled, batches[0]).items()}
    torch.testing.assert_close(got, gradients(model, batches[0]), **FP32)
    torch._dynamo.reset()


def compiles(model: Any, batch: dict[str, Any]) -> bool:
    try:
        torch.compile(model, backend="aot_eager", fullgraph=True)(**batch)
    except Exception:  # Dynamo's own, and those of symbolic shapes
        return False
    finally:
        torch._dynamo.reset()
    return True


@contextlib.contextmanager
def own_tables(model: Any) -> Any:
    """Cast a model and leave its frequencies in fp32, as loading it in bf16 does."""
    kept = {n: b.clone() for n, b in model.named_buffers() if "inv_freq" in n or n.endswith("freqs_ci")}
    model.to(torch.bfloat16)
    for name, value in kept.items():
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, value)
    yield model
    model.to(torch.float32)


@pytest.mark.parametrize(
    ("family", "seeds"),
    [
        *(pytest.param(f, BF16_SEEDS if f.name in ROUTED else 6, id=f.name) for f in FAMILIES),
        *(pytest.param(f, BF16_SEEDS, id=f"{f.name}-all", marks=pytest.mark.full) for f in FAMILIES),
    ],
)
def test_bf16_is_no_further_from_fp32(family: Family, seeds: int) -> None:
    ratios, tokens = [], lengths(family)[-1]
    for seed in range(seeds):
        model, batch = family.build(seed), family.batch(tokens, seed)
        with torch.no_grad():
            truth = model(**batch).logits
            with own_tables(model):
                low = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in batch.items()}
                theirs = model(**low).logits
                patch_model(model)
                ours = model(**low).logits
        assert ours.dtype == theirs.dtype == torch.bfloat16
        ratios.append(float((ours - truth).norm() / (theirs - truth).norm()))
    assert statistics.median(ratios) <= tolerances.BF16_RATIO


@families
def test_saves_what_it_would_save_unpatched(family: Family, tmp_path: Any) -> None:
    model = family.build()
    model.save_pretrained(tmp_path / "before")
    patch_model(model)
    model.save_pretrained(tmp_path / "after")
    before, after = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("before", "after"))
    assert before == after


def test_dynamic_keeps_its_history_with_a_state_and_only_then() -> None:
    family = next(f for f in FAMILIES if f.name == "dynamic")
    original, stateless = family.build(), patched(family)
    with_state = patched(family)
    patch_model(stateless)
    limit = family.thresholds[0]
    # Grows, stays grown, goes back to the start.
    for tokens in (limit - 4, 3 * limit, limit + 3, limit - 4, limit + 1):
        batch = family.batch(tokens)
        want = original(**batch).logits
        torch.testing.assert_close(with_state(**batch).logits, want, **FP32)
        torch.testing.assert_close(stateless(**batch).logits, family.build()(**batch).logits, **FP32)
        if tokens == limit + 3:
            assert (stateless(**batch).logits - want).abs().max() > 100 * FP32["atol"]
