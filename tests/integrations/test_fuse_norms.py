"""Norms fused with the rotation: whole models against unpatched ones, and what happens to norms after patching."""

from __future__ import annotations

import contextlib
import copy
import io
import multiprocessing
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from models import FAMILIES, NORMED, Family
from support import tolerances
from torch import nn
from torch.nn.parallel import replicate

from rope_kernels import DynamicState
from rope_kernels.config import RopeConfig
from rope_kernels.integrations.transformers import patch_model, rotating, unpatch_model

CLOSE = tolerances.MODEL
BY_NAME = {family.name: family for family in (*FAMILIES, *NORMED)}
QWEN3 = BY_NAME["qwen3"]
BATCH = QWEN3.batch(12)
# What the report says of the norms, and the names of their modules.
FUSED = {
    "qwen3": ("before, weight", "q_norm", "k_norm"),
    "gemma3": ("before, 1 + weight", "q_norm", "k_norm"),
    "glm4_moe": ("before, weight", "q_norm", "k_norm"),
    "hunyuan": ("after, weight", "query_layernorm", "key_layernorm"),
    "llama4": ("no weight", "qk_norm"),
    "qwen3_vl": ("before, weight", "q_norm", "k_norm"),
}

families = pytest.mark.parametrize("family", NORMED, ids=lambda family: family.name)


def built(family: Family, seed: int = 0) -> Any:
    """A model whose norms' weights are all different."""
    model = family.build(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model


def norms_in(model: Any) -> list[nn.Module]:
    names = {name for _, *norms in FUSED.values() for name in norms}
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] in names]


def logits(model: Any, batch: dict[str, Any] = BATCH) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


def gradients(model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch).logits.float().square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class Spy:
    """Counts the rotations of patched layers with norms and without."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.normed = self.plain = 0
        own = rotating.apply_rope

        def counted(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("q_norm") is None:
                self.plain += 1
            else:
                self.normed += 1
            return own(*args, **kwargs)

        monkeypatch.setattr(rotating, "apply_rope", counted)

    def of(self, model: Any, batch: dict[str, Any] = BATCH) -> tuple[int, int]:
        self.normed = self.plain = 0
        logits(model, batch)
        return self.normed, self.plain


@families
def test_logits_gradients_and_tokens(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = built(family), family.batch(20, padding=3)
    want, want_gradients, saved = logits(model, batch), gradients(model, batch), copy.deepcopy(model.state_dict())
    tokens = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    want_tokens = model.generate(**batch, **tokens)
    report = patch_model(model, fuse_norms=True)
    summary, *names = FUSED[family.name]
    assert [(entry.what, entry.convention) for entry in report.norms_fused] == [(", ".join(names), summary)] * 2
    assert report.norms_left == ()
    assert str(report).endswith("; norms fused in 2, left in 0")
    spy, called, norms = Spy(monkeypatch), [], norms_in(model)
    with monkeypatch.context() as context:
        own = type(norms[0]).forward
        context.setattr(type(norms[0]), "forward", lambda self, x: called.append(self) or own(self, x))
        torch.testing.assert_close(logits(model, batch), want, **CLOSE)
    assert not set(map(id, called)) & set(map(id, norms))
    assert spy.normed == 2
    torch.testing.assert_close(gradients(model, batch), want_gradients, **CLOSE)
    assert torch.equal(model.generate(**batch, **tokens), want_tokens)
    torch.testing.assert_close(model.state_dict(), saved, rtol=0, atol=0)
    unpatch_model(model)
    assert torch.equal(logits(model, batch), want)
    assert not any("rope_kernels" in name for module in model.modules() for name in vars(module))


@families
def test_the_fused_norms_make_a_difference(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = built(family), family.batch(12)
    want, own = logits(model, batch), rotating.apply_rope
    patch_model(model, fuse_norms=True)
    monkeypatch.setattr(rotating, "apply_rope", lambda *args, q_norm=None, k_norm=None, **kw: own(*args, **kw))
    assert (logits(model, batch) - want).abs().max() > 100 * CLOSE["atol"]


@families
def test_without_the_option_norms_stay(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    model, spy = built(family), Spy(monkeypatch)
    report = patch_model(model)
    assert not report.norms_fused
    assert not report.norms_left
    assert "norms" not in str(report)
    assert spy.of(model)[0] == 0


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "family",
    [f if f.name == "qwen3" else pytest.param(f, marks=pytest.mark.full) for f in NORMED if f.sees is None],
    ids=lambda family: family.name,
)
def test_compiles_into_one_graph(family: Family, backend: str) -> None:
    torch._dynamo.reset()
    model, batches = built(family), [family.batch(tokens) for tokens in (20, 23)]
    want = [logits(model, batch) for batch in batches]
    assert len(patch_model(model, fuse_norms=True).norms_fused) == 2
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for batch, expected in zip(batches, want, strict=True):
        torch.testing.assert_close(compiled(**batch).logits, expected, **CLOSE)
    got = {name.removeprefix("_orig_mod."): grad for name, grad in gradients(compiled, batches[0]).items()}
    torch.testing.assert_close(got, gradients(model, batches[0]), **CLOSE)
    torch._dynamo.reset()


def test_the_compiled_graph_has_the_fused_operator() -> None:
    torch._dynamo.reset()
    model, graphs = built(QWEN3), []
    patch_model(model, fuse_norms=True)
    with torch.no_grad():
        torch.compile(model, backend=lambda graph, inputs: graphs.append(graph.code) or graph, fullgraph=True)(**BATCH)
    assert len(graphs) == 1
    assert graphs[0].count("rope_kernels.rotate_norm") == 2
    assert graphs[0].count("torch.rsqrt(") == 5  # of the norms of hidden states: two per layer, one at the end
    torch._dynamo.reset()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model = built(QWEN3)
    patch_model(model, fuse_norms=True)
    want = gradients(model, BATCH)
    model.train()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    torch.testing.assert_close(gradients(model, BATCH), want, **tolerances.CHECKPOINTED)


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "hunyuan", "llama4"])
def test_bf16_is_no_further_from_fp32(name: str) -> None:
    family, ratios = BY_NAME[name], []
    for seed in range(20 if name == "llama4" else 6):
        model, batch = built(family, seed), family.batch(20, seed)
        truth = logits(model, batch)
        frequencies = {n: b.clone() for n, b in model.named_buffers()}
        model.to(torch.bfloat16)
        for path, value in frequencies.items():  # as loading it in bf16 leaves them
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, value)
        theirs = logits(model, batch)
        assert len(patch_model(model, fuse_norms=True).norms_fused) == 2
        ours = logits(model, batch)
        assert ours.dtype == theirs.dtype == torch.bfloat16
        ratios.append(float((ours - truth).norm() / (theirs - truth).norm()))
    assert statistics.median(ratios) <= tolerances.BF16_RATIO


def test_llama4_layers_without_rope_have_nothing_to_fuse() -> None:
    family = BY_NAME["llama4"]
    model = family.build(no_rope_layers=[1, 0], attn_temperature_tuning=True, floor_scale=4)
    want = logits(model)
    report = patch_model(model, fuse_norms=True)
    assert [entry.module for entry in report.norms_fused] == ["model.layers.0.self_attn"]
    assert report.norms_left == ()
    torch.testing.assert_close(logits(model), want, **CLOSE)


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "hunyuan"])
def test_weights_and_eps_are_read_at_each_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, spy = built(BY_NAME[name]), Spy(monkeypatch)
    twin = copy.deepcopy(model)
    patch_model(model, fuse_norms=True)
    logits(model)
    for changed in (model, twin):
        for norm in norms_in(changed):
            norm.weight.data.mul_(1.5)
            norm.weight = nn.Parameter(norm.weight.detach() + 0.25)
            setattr(norm, "eps" if hasattr(norm, "eps") else "variance_epsilon", 0.5)
    torch.testing.assert_close(logits(model), logits(twin), **CLOSE)
    assert spy.of(model) == (2, 0)


def test_the_history_of_dynamic_frequencies_is_not_touched_by_the_probe() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}
    original = QWEN3.build(max_position_embeddings=24, rope_parameters=rope)
    for reached in (None, 60):
        model, state = copy.deepcopy(original), DynamicState(RopeConfig.from_hf(original.config))
        patch_model(model, dynamic_state=state)
        if reached:
            logits(model, QWEN3.batch(reached))
        before = copy.deepcopy(vars(state))
        assert len(patch_model(model, dynamic_state=state, fuse_norms=True).norms_fused) == 2
        torch.testing.assert_close(vars(state), before, rtol=0, atol=0)
    for tokens in (20, 60, 30):
        torch.testing.assert_close(logits(model, QWEN3.batch(tokens)), logits(original, QWEN3.batch(tokens)), **CLOSE)


def test_a_norm_replaced_after_patching_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    model, spy = built(QWEN3), Spy(monkeypatch)
    twin = copy.deepcopy(model)
    patch_model(model, fuse_norms=True)
    for changed in (model, twin):
        torch.manual_seed(1)
        changed.model.layers[0].self_attn.k_norm = nn.LayerNorm(16)
    torch.testing.assert_close(logits(model), logits(twin), **CLOSE)
    assert spy.of(model) == (1, 1)
    reasons = [entry.reason for entry in patch_model(model, fuse_norms=True).norms_left]
    assert reasons == [
        "q_norm (Qwen3RMSNorm) has weight, variance_epsilon; k_norm (LayerNorm) has weight, bias, eps; "
        "needed are at most one weight and an eps, the same for both"
    ]


HOOKS = ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook", "forward")


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_on_norms_are_called(kind: str, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, spy, calls = built(QWEN3), Spy(monkeypatch), []
    want = gradients(model, BATCH)
    if when == "after":
        patch_model(model, fuse_norms=True)
    norm = model.model.layers[1].self_attn.q_norm
    if kind == "forward":
        own = norm.forward
        norm.forward = lambda x: calls.append(x) or own(x)
    else:
        getattr(norm, kind)(lambda *args: calls.append(args))
    if when == "before":
        report = patch_model(model, fuse_norms=True)
        assert [entry.module for entry in report.norms_left] == ["model.layers.1.self_attn"]
        assert report.norms_left[0].reason.startswith("q_norm has hooks, or a forward of somebody else")
    torch.testing.assert_close(gradients(model, BATCH), want, **CLOSE)
    assert len(calls) == 1
    assert spy.of(model) == (1, 1)


def test_calls_that_the_kernel_cannot_do_norm_by_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in (QWEN3, BY_NAME["hunyuan"]):
        model, spy = built(family), Spy(monkeypatch)
        want, doubles = logits(model), logits(copy.deepcopy(model).double())
        patch_model(model, fuse_norms=True)
        assert spy.of(copy.deepcopy(model).double()) == (0, 0)
        torch.testing.assert_close(logits(copy.deepcopy(model).double()), doubles, **CLOSE)
        hidden = torch.randn(2, 12, 64)
        attention, rotary = model.model.layers[0].self_attn, model.model.rotary_emb
        tables = rotary(hidden, torch.arange(12).expand(2, 12))
        by_angles = attention(hidden, position_embeddings=tables, attention_mask=None)[0]
        assert spy.normed == 1
        by_tables = attention(
            hidden, position_embeddings=tuple(t.tensor() for t in tables), attention_mask=None
        )[0]  # fmt: skip
        torch.testing.assert_close(by_tables, by_angles, **CLOSE)
        torch.testing.assert_close(logits(model), want, **CLOSE)


def test_a_weight_of_another_dtype_is_fused_where_the_norm_keeps_qs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama's norm returns float32 for a float32 weight; Gemma's the dtype of its input."""
    for name, fused in (("qwen3", False), ("gemma3", True)):
        model, spy = built(BY_NAME[name]), Spy(monkeypatch)
        patch_model(model, fuse_norms=True)
        with torch.autocast("cpu", torch.bfloat16):
            assert spy.of(model) == ((2, 0) if fused else (0, 2))


@families
@pytest.mark.parametrize("how", ["torch.save", "deepcopy"])
def test_copies_keep_their_norms_fused(family: Family, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, spy, file = built(family), family.batch(12), Spy(monkeypatch), io.BytesIO()
    unpatched = logits(model, batch)
    patch_model(model, fuse_norms=True)
    want = logits(model, batch)
    if how == "torch.save":
        torch.save(model, file)
        file.seek(0)
        made = torch.load(file, weights_only=False)
    else:
        made = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(logits(made, batch), want)
    assert spy.of(made, batch)[0] == 2
    assert torch.equal(logits(unpatch_model(made), batch), unpatched)


def _normed_rotations(path: str) -> tuple[torch.Tensor, tuple[int, int]]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        spy, model = Spy(monkeypatch), torch.load(path, weights_only=False)
        return logits(model), spy.of(model)


def test_another_process_fuses_them_too(tmp_path: Path) -> None:
    model = built(QWEN3)
    patch_model(model, fuse_norms=True)
    torch.save(model, tmp_path / "model.pt")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got, calls = pool.apply(_normed_rotations, (str(tmp_path / "model.pt"),))
    assert torch.equal(got, logits(model))
    assert calls == (2, 0)


def test_a_replica_norms_with_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_each(tensors: Any, devices: Any, detach: bool = False) -> Any:
        return [[(t * 1.5**i).detach() if t.requires_grad else t.clone() for t in tensors] for i in range(2)]

    monkeypatch.setitem(replicate.__globals__, "_broadcast_coalesced_reshape", on_each)
    model, spy = built(QWEN3), Spy(monkeypatch)
    want = [logits(replica) for replica in replicate(model, [0, 1])]
    patch_model(model, fuse_norms=True)
    made = replicate(model, [0, 1])
    torch.testing.assert_close([logits(replica) for replica in made], want, **CLOSE)
    assert not torch.allclose(want[0], want[1])
    assert spy.of(made[1]) == (2, 0)


def test_patching_again_decides_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, spy = built(QWEN3), Spy(monkeypatch)
    for fuse, calls in ((True, (2, 0)), (False, (0, 2)), (True, (2, 0))):
        patch_model(model, fuse_norms=fuse)
        assert spy.of(model) == calls


@pytest.mark.parametrize("around", ["inference_mode", "no_grad", "autocast", "bf16", "meta"])
def test_the_measurement_depends_on_nothing_around_it(around: str) -> None:
    model = built(QWEN3)
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    contexts = {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "bf16": contextlib.nullcontext,
        "meta": lambda: torch.device("meta"),
    }
    torch.set_default_dtype(torch.bfloat16 if around == "bf16" else dtype)
    try:
        with contexts.get(around, getattr(torch, around, None))():
            report = patch_model(model, fuse_norms=True)
            assert torch.get_default_dtype() == (torch.bfloat16 if around == "bf16" else dtype)
    finally:
        torch.set_default_dtype(dtype)
    assert len(report.norms_fused) == 2, report
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_no_bool_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^fuse_norms: got str, must be a bool"):
        patch_model(nn.Linear(2, 2), fuse_norms="yes")  # type: ignore[arg-type]
