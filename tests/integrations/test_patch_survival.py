"""A patched model under what happens to models: pickle, processes, replicas, hooks and other people's forwards."""

from __future__ import annotations

import functools
import io
import multiprocessing
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, TEXT, Family
from support import tolerances
from torch import nn
from torch.nn.parallel import replicate

from rope_kernels import DynamicState
from rope_kernels.config import RopeConfig
from rope_kernels.integrations.transformers import angles, patch_model, rotating, unpatch_model

CLOSE = tolerances.MODEL
BY_NAME = {family.name: family for family in FAMILIES}
LLAMA = BY_NAME["llama"]
BATCH = LLAMA.batch(12)

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def logits(model: Any, batch: dict[str, Any] = BATCH) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


class Spy:
    """Counts the calls of the kernels that patched layers make."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        monkeypatch.setattr(rotating, "apply_rope", self._counting(rotating.apply_rope))
        monkeypatch.setattr(rotating, "apply_rotary_pos_emb", self._counting(rotating.apply_rotary_pos_emb))

    def _counting(self, function: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return function(*args, **kwargs)

        return counted

    def of(self, model: Any, batch: dict[str, Any] = BATCH) -> int:
        before = self.calls
        logits(model, batch)
        return self.calls - before


@families
def test_what_torch_saves_it_can_load(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, file, spy = family.build(), family.batch(12), io.BytesIO(), Spy(monkeypatch)
    unpatched = logits(model, batch)
    patch_model(model)
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert spy.of(loaded, batch) == spy.of(model, batch) > 0
    assert type(loaded).__name__ == type(model).__name__
    assert torch.equal(logits(unpatch_model(loaded), batch), unpatched)
    assert spy.of(loaded, batch) == 0


def test_the_history_of_dynamic_frequencies_is_saved_too() -> None:
    family = BY_NAME["dynamic"]
    model, long, short = family.build(), family.batch(200), family.batch(150)
    patch_model(model, dynamic_state=DynamicState(RopeConfig.from_hf(model.config)))
    logits(model, long)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded, fresh = torch.load(file, weights_only=False), family.build()
    patch_model(fresh, dynamic_state=DynamicState(RopeConfig.from_hf(model.config)))
    assert torch.equal(logits(loaded, short), logits(model, short))
    assert not torch.equal(logits(loaded, short), logits(fresh, short))


def _rotations_in_a_new_process(path: str) -> tuple[torch.Tensor, int]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        spy, model = Spy(monkeypatch), torch.load(path, weights_only=False)
        return logits(model), spy.of(model)


def test_another_process_rotates_with_the_kernels_too(tmp_path: Path) -> None:
    model = LLAMA.build()
    patch_model(model)
    torch.save(model, tmp_path / "model.pt")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got, calls = pool.apply(_rotations_in_a_new_process, (str(tmp_path / "model.pt"),))
    assert torch.equal(got, logits(model))
    assert calls == 2


def replicas(model: nn.Module, monkeypatch: pytest.MonkeyPatch, scale: float) -> list[Any]:
    """Two replicas as DataParallel makes them, the second with other weights."""

    def on_each(tensors: Any, devices: Any, detach: bool = False) -> Any:
        return [[(t * scale**i).detach() if t.requires_grad else t.clone() for t in tensors] for i in range(2)]

    monkeypatch.setitem(replicate.__globals__, "_broadcast_coalesced_reshape", on_each)
    return replicate(model, [0, 1])


@pytest.mark.parametrize("name", ["llama", "dynamic", "gpt_neox"])
def test_a_replica_computes_with_its_own_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, spy = BY_NAME[name].build(), Spy(monkeypatch)
    want = [logits(replica) for replica in replicas(model, monkeypatch, 1.5)]
    patch_model(model)
    made = replicas(model, monkeypatch, 1.5)
    torch.testing.assert_close([logits(replica) for replica in made], want, **CLOSE)
    assert not torch.allclose(want[0], want[1])
    assert spy.of(made[1]) == 2


def test_replicas_keep_histories_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    family = BY_NAME["dynamic"]
    model = family.build()
    state = DynamicState(RopeConfig.from_hf(model.config))
    patch_model(model, dynamic_state=state)
    first, second = replicas(model, monkeypatch, 1.0)
    short, before = family.batch(150), logits(second, family.batch(150))
    logits(first, family.batch(200))
    assert torch.equal(logits(second, short), before)
    assert not torch.equal(logits(first, short), before)


class Hook:
    """A hook as accelerate adds it (``add_hook_to_module``), which keeps the wrapped forward on the module."""

    def __init__(self) -> None:
        self.calls = 0

    def add(self, module: Any) -> None:
        module._old_forward = module.forward

        def hooked(module: Any, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return module._old_forward(*args, **kwargs)

        module.forward = functools.update_wrapper(functools.partial(hooked, module), module._old_forward)

    def remove(self, module: Any) -> None:
        module.forward = module._old_forward
        del module._old_forward


class Wrapper:
    """A forward in a closure, which keeps the wrapped one where nobody finds it."""

    def __init__(self) -> None:
        self.calls = 0

    def add(self, module: Any) -> None:
        wrapped = self._wrapped = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return wrapped(*args, **kwargs)

        module.forward = forward

    def remove(self, module: Any) -> None:
        module.forward = self._wrapped


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.sampled_from(["patch", "unpatch", "hook", "wrap"]), min_size=2, max_size=7),
    where=st.sampled_from(["model.layers.0.self_attn", "model.rotary_emb", "model.layers.1"]),
)
def test_hooks_and_patches_in_any_order(steps: list[str], where: str) -> None:
    """Every hook is called, and the kernels run exactly where the report says; hooks go off last in, first out."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        model, spy = LLAMA.build(), Spy(monkeypatch)
        module, want, hooks, rotations = model.get_submodule(where), logits(model), [], 0
        for step in steps:
            if step == "patch":
                rotations = sum(entry.action == "rotation" for entry in patch_model(model).patched)
            elif step == "unpatch":
                rotations, model = 0, unpatch_model(model)
            else:
                hooks.append(Hook() if step == "hook" and not hasattr(module, "_old_forward") else Wrapper())
                hooks[-1].add(module)
            calls = [hook.calls for hook in hooks]
            assert spy.of(model) == rotations
            assert [hook.calls for hook in hooks] == [count + 1 for count in calls]
            torch.testing.assert_close(logits(model), want, **CLOSE)
        for hook in reversed(hooks):
            hook.remove(module)
        assert spy.of(model) == rotations
        assert torch.equal(logits(unpatch_model(model)), want)
        assert spy.of(model) == 0
        assert patch_model(model).left_alone == ()
        assert spy.of(model) == 2


def test_a_forward_of_somebody_else_is_kept_and_said() -> None:
    model = LLAMA.build()
    first = model.model.layers[0].self_attn
    theirs = types.MethodType(lambda self, hidden_states, **kwargs: (hidden_states * 2, None), first)
    first.forward = theirs
    want = logits(model)
    report = patch_model(model)
    assert first.forward is theirs
    assert [entry.action for entry in report.entries] == ["angles", "left alone", "rotation"]
    assert report.left_alone[0].reason == (
        "test_patch_survival.test_a_forward_of_somebody_else_is_kept_and_said.<locals>.<lambda> has replaced forward "
        "on this module; patch the model before, or remove that"
    )
    torch.testing.assert_close(logits(model), want, **CLOSE)
    assert torch.equal(logits(unpatch_model(model)), want)


def test_tables_of_somebody_else_are_kept_and_said() -> None:
    model = LLAMA.build()
    rotary, calls = model.model.rotary_emb, []
    own = rotary.forward
    rotary.forward = lambda *args, **kwargs: calls.append(args) or own(*args, **kwargs)
    want = logits(model)
    report = patch_model(model)
    assert [entry.action for entry in report.entries] == ["tables", "rotation", "rotation"]
    assert "has replaced forward on this module" in report.tables[0].reason
    torch.testing.assert_close(logits(model), want, **CLOSE)
    assert len(calls) == 2


DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float16", "bfloat16", "float32")


# For dynamic, the model's own module computes the length in the dtype of the positions: it fails on uint16 and uint32,
# and has other frequencies for halves.
DYNAMIC = [("dynamic", dtype) for dtype in DTYPES if dtype not in ("uint16", "uint32", "float16", "bfloat16")]


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, dtype) for name in ("llama", "gemma3", "cohere") for dtype in DTYPES), *DYNAMIC]
)
def test_positions_of_any_dtype(name: str, dtype: str) -> None:
    model, count = BY_NAME[name].build(), 12
    positions = (torch.arange(count)[None] * 5).to(getattr(torch, dtype))
    batch = {"input_ids": BATCH["input_ids"][:1], "position_ids": positions}
    want = logits(model, batch)
    patch_model(model)
    torch.testing.assert_close(logits(model, batch), want, **CLOSE)
    assert isinstance(_rotary(model)(torch.zeros(1, count, 8), positions, *_layer_type(model))[0], angles.Angles)


def _rotary(model: Any) -> Any:
    return next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))


def _layer_type(model: Any) -> tuple[str, ...]:
    types_ = getattr(model.config, "layer_types", None)
    return (types_[0],) if types_ and isinstance(next(iter(model.config.rope_parameters.values())), dict) else ()


def _model(name: str, **values: Any) -> Any:
    config = getattr(transformers, f"{name}Config")(**values)
    return getattr(transformers, f"{name}Model")(config)


SMALL = {key: TEXT[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: nn.Linear(2, 2), "Linear: no module calls an apply function, and none looks like a rotary embedding"),
        (lambda: _model("Bert", **SMALL, intermediate_size=48), "model_type: got 'bert', a model without a rotary"),
        (lambda: _model("GPT2", n_embd=32, n_layer=1, n_head=2), "model_type: got 'gpt2', a model without a rotary"),
        (lambda: _model("Bloom", hidden_size=32, n_layer=1, n_head=2), "model_type: got 'bloom', a model without"),
        (lambda: _model("RoFormer", **SMALL), "apply_rotary_position_embeddings: it rotates inside this method"),
    ],
)
def test_nothing_to_patch_is_a_warning_with_the_reason(build: Any, why: str) -> None:
    with pytest.warns(UserWarning, match=r"^patch_model: nothing was patched in ") as caught:
        report = patch_model(build())
    assert report.left_alone == report.entries
    assert str(report).splitlines()[-1].startswith("patched: 0 rotary embeddings, 0 attention layers (fused); 0 via")
    assert why in str(caught[0].message)
    assert caught[0].filename == __file__


def test_an_apply_function_of_another_library_is_measured_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger puts its Triton function in the modeling file; on a CPU it cannot be called."""
    from transformers.models.llama import modeling_llama

    def of_theirs(q: Any, k: Any, cos: Any, sin: Any, position_ids: Any = None, unsqueeze_dim: int = 1) -> Any:
        raise ValueError("Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)\nmore")

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", of_theirs)
    with pytest.warns(UserWarning, match="nothing was patched"):
        report = patch_model(LLAMA.build())
    assert report.left_alone[1].reason == (
        "apply_rotary_pos_emb: it takes no table of a known convention on cpu tensors (test_patch_survival raised "
        "ValueError: Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)); if it needs a GPU, patch "
        "the model there"
    )
    own = modeling_llama.rotate_half

    def on_both(q: Any, k: Any, cos: Any, sin: Any, position_ids: Any = None, unsqueeze_dim: int = 1) -> Any:
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return q * cos + own(q) * sin, k * cos + own(k) * sin

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", on_both)
    model = LLAMA.build()
    want = logits(model)
    assert [entry.action for entry in patch_model(model).entries] == ["angles", "rotation", "rotation"]
    torch.testing.assert_close(logits(model), want, **CLOSE)
