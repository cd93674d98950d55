"""What patching does to a model and its surroundings, beyond its numbers."""

from __future__ import annotations

import copy
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import FAMILIES, TEXT
from support import tolerances
from torch import nn
from transformers.models.hunyuan_vl.configuration_hunyuan_vl import HunYuanVLTextConfig
from transformers.models.hunyuan_vl.modeling_hunyuan_vl import HunYuanVLTextModel
from transformers.models.llama import modeling_llama

from rope_kernels.integrations.transformers import angles, patch_model, patching, probing, rotating, unpatch_model

LLAMA = next(family for family in FAMILIES if family.name == "llama")
BATCH = LLAMA.batch(12)
CLOSE = tolerances.MODEL


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**BATCH).logits


def test_report_names_what_replaces_what() -> None:
    report = patch_model(LLAMA.build())
    assert [(e.module, e.kind, e.action, e.what, e.convention) for e in report.entries] == [
        ("model.rotary_emb", "LlamaRotaryEmbedding", "angles", "forward", "llama3"),
        ("model.layers.0.self_attn", "LlamaAttention", "rotation", "apply_rotary_pos_emb", "half"),
        ("model.layers.1.self_attn", "LlamaAttention", "rotation", "apply_rotary_pos_emb", "half"),
    ]
    assert report.patched == report.entries
    assert str(report).splitlines() == [
        "model.rotary_emb  LlamaRotaryEmbedding: angles forward [llama3]",
        "model.layers.*.self_attn (2)  LlamaAttention: rotation apply_rotary_pos_emb [half]",
        "patched: 1 rotary embedding, 2 attention layers (fused); 0 via cos/sin tables; 0 skipped",
    ]


def test_another_model_of_the_class_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    function, other = modeling_llama.apply_rotary_pos_emb, LLAMA.build(1)
    want = logits(other)
    patch_model(LLAMA.build())
    assert modeling_llama.apply_rotary_pos_emb is function
    # A kernel that fails shows whose kernel it is.
    monkeypatch.setattr(rotating, "apply_rope", None)
    monkeypatch.setattr(rotating, "apply_rotary_pos_emb", None)
    assert torch.equal(logits(other), want)


def test_the_kernel_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = LLAMA.build(), []
    patch_model(model)
    monkeypatch.setattr(rotating, "apply_rope", lambda *args, **kw: calls.append(args) or (args[0], args[1]))
    logits(model)
    assert len(calls) == 2
    assert calls[0][2].dtype == torch.int64  # positions travelled


def test_patching_twice_is_patching_once() -> None:
    model = LLAMA.build()
    want = logits(model)
    first = patch_model(model)
    assert patch_model(model) == first
    unpatch_model(model)
    assert torch.equal(logits(model), want)
    assert torch.equal(logits(unpatch_model(model)), want)
    assert not any("rope_kernels" in name for module in model.modules() for name in vars(module))


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_a_default_dtype_of_16_bits_changes_no_measurement(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many programs set one before they load a model."""
    monkeypatch.setattr(probing, "_known", weakref.WeakKeyDictionary())
    model = next(family for family in FAMILIES if family.name == name).build()
    want = patch_model(model)
    monkeypatch.setattr(probing, "_known", weakref.WeakKeyDictionary())
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert patch_model(model) == want
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_copy_of_a_patched_model_stands_on_its_own() -> None:
    model = LLAMA.build()
    before = logits(model)
    patch_model(model)
    want, twin = logits(model), copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(logits(twin), want)
    assert torch.equal(logits(unpatch_model(twin)), before)


def test_moving_and_casting_after_patching() -> None:
    model = LLAMA.build()
    patch_model(model)
    want = logits(model)
    model.to(torch.float64)
    torch.testing.assert_close(logits(model), want.double(), **CLOSE)  # float64 is left to the model's own function


def test_a_forward_that_accelerate_has_wrapped_stays_wrapped() -> None:
    model, calls = LLAMA.build(), []
    want = logits(model)
    attention = model.model.layers[0].self_attn
    attention._old_forward = attention.forward  # what accelerate.hooks.add_hook_to_module does

    def hooked(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(module)
        return module._old_forward(*args, **kwargs)

    attention.forward = types.MethodType(hooked, attention)
    wrapper = attention.forward
    patch_model(model)
    torch.testing.assert_close(logits(model), want, **CLOSE)
    assert calls == [attention]
    unpatch_model(model)
    assert attention.forward is wrapper
    assert torch.equal(logits(model), want)


def test_compiled_before_and_after() -> None:
    torch._dynamo.reset()
    model = LLAMA.build()
    want, compiled = logits(model), torch.compile(model, backend="eager")
    assert torch.equal(logits(compiled), want)
    patch_model(model)
    ours = logits(model)
    assert torch.equal(logits(compiled), ours)
    unpatch_model(model)
    assert torch.equal(logits(compiled), want)
    torch._dynamo.reset()


def xdrope() -> Any:
    """Text layers whose pairs have members on different axes: nothing that an angle could describe."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1.0, "alpha": 8.0, "mrope_section": [2, 2, 2, 2]}
    torch.manual_seed(0)
    return HunYuanVLTextModel(HunYuanVLTextConfig(**{**TEXT, "head_dim": 16, "rope_parameters": rope})).eval()


def test_tables_that_are_no_rotation_go_to_the_table_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    model = xdrope()
    rows = torch.stack([torch.arange(12) * n // 2 for n in (2, 1, 3, 4)])[:, None].expand(-1, 2, -1)
    batch = {"input_ids": BATCH["input_ids"], "position_ids": rows}
    want = model(**batch).last_hidden_state
    want.square().mean().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    report = patch_model(model)
    assert [entry.action for entry in report.entries] == ["tables", "rotation", "rotation"]
    assert report.tables[0].reason.startswith("its tables are not those of its config")
    got = model(**batch).last_hidden_state
    torch.testing.assert_close(got, want, **CLOSE)
    got.square().mean().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], gradients, **CLOSE)
    monkeypatch.setattr(rotating, "apply_rotary_pos_emb", lambda q, k, *args, **kwargs: (q, k))
    assert (model(**batch).last_hidden_state - want).abs().max() > 1e-3


@pytest.fixture
def edited(tmp_path: Path) -> Iterator[Callable[[Callable[[str], str]], Any]]:
    """Makes a Llama of a modeling file of its own, which is transformers' after an edit."""

    def make(edit: Callable[[str], str]) -> Any:
        original = Path(modeling_llama.__file__)
        path = tmp_path / "models" / "llama" / original.name  # transformers reads a model's name off its path
        path.parent.mkdir(parents=True)
        path.write_text(edit(original.read_text("utf-8")), "utf-8")
        module = types.ModuleType("edited_llama")
        module.__package__, module.__file__ = modeling_llama.__package__, str(path)
        sys.modules["edited_llama"] = module
        exec(compile(path.read_text("utf-8"), str(path), "exec"), vars(module))
        torch.manual_seed(0)
        return module.LlamaForCausalLM(LLAMA.build().config).eval()

    yield make
    sys.modules.pop("edited_llama", None)
    sys.modules.pop("rope_kernels_namespace.edited_llama", None)


def replacing(old: str, new: str) -> Callable[[str], str]:
    def edit(source: str) -> str:
        assert old in source
        return source.replace(old, new)

    return edit


HANDED_ON = "cos, sin = position_embeddings\n"


@pytest.mark.parametrize(
    "touch",
    [
        "cos, sin = (t[:, :, :] for t in position_embeddings)\n",
        "cos, sin = (t.clone() for t in position_embeddings)\n",
        "cos, sin = (t.to(hidden_states.dtype) for t in position_embeddings)\n",
        "cos, sin = position_embeddings\n        cos = torch.cat((cos, cos[:, :0]), 1)\n",
        "cos, sin = (1 * t + 0 for t in position_embeddings)\n",
        "cos, sin = position_embeddings[0] * 1.0, -(-position_embeddings[1])\n",
        "cos, sin = (t.to(hidden_states.device, non_blocking=True) for t in position_embeddings)\n",
        "cos, sin = torch.stack(position_embeddings).unbind()\n",
        "cos, sin = (torch.nn.functional.dropout(t, 0.0) for t in position_embeddings)\n",
    ],
)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.full)], ids=["eager", "compiled"])
def test_a_model_that_touches_its_tables_gets_exact_ones(edited: Any, touch: str, compiled: bool) -> None:
    model = edited(replacing(HANDED_ON, touch))
    want = logits(model)
    report = patch_model(model)
    # Dynamo does not ask the members of a list what they are.
    joins = any(name in touch for name in ("torch.cat", "torch.stack"))
    assert [entry.action for entry in report.entries] == ["tables" if joins else "angles", "rotation", "rotation"]
    torch._dynamo.reset()
    got = logits(torch.compile(model, backend="eager", fullgraph=True) if compiled else model)
    torch.testing.assert_close(got, want, **CLOSE)
    torch._dynamo.reset()


def test_an_unknown_function_is_left_alone_and_still_served(edited: Any) -> None:
    model = edited(replacing("(rotate_half(q) * sin)", "(rotate_half(q) * sin) * 1.5"))
    want = logits(model)
    with pytest.warns(UserWarning, match="nothing was patched in LlamaForCausalLM"):
        report = patch_model(model)
    assert [entry.action for entry in report.entries] == ["left alone"] * 3
    assert report.left_alone[0].reason == "no module calls an apply function of a known convention"
    assert report.left_alone[1].reason == "apply_rotary_pos_emb: its results match no known convention"
    assert not report.patched
    assert torch.equal(logits(model), want)


def test_functions_on_the_way_to_an_apply_function_are_followed(edited: Any) -> None:
    call = replacing(
        "= apply_rotary_pos_emb(query_states, key_states, cos, sin)", "= turn(query_states, key_states, cos, sin)"
    )
    relay = "\n\ndef turn(q, k, *tables):\n    return apply_rotary_pos_emb(q, k, *tables)\n"
    model = edited(lambda source: call(source) + relay)
    want = logits(model)
    report = patch_model(model)
    assert report.entries[1].what == "apply_rotary_pos_emb"
    torch.testing.assert_close(logits(model), want, **CLOSE)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^model: got str, must be a torch\.nn\.Module"):
        patch_model("llama")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^dynamic_state: got bool, must be a DynamicState or None"):
        patch_model(nn.Linear(2, 2), dynamic_state=True)  # type: ignore[arg-type]


def test_a_newer_transformers_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching, "version_of", lambda package: "6.1.0")
    with pytest.warns(UserWarning, match=r"^transformers 6\.1\.0 is newer than 5\.23"):
        assert patch_model(LLAMA.build()).patched


def test_positions_of_an_unknown_shape_get_the_modules_own_tables() -> None:
    model = LLAMA.build()
    patch_model(model)
    rotary, x = model.model.rotary_emb, torch.zeros(1, 3, 8)
    cos, sin = rotary(x, torch.arange(12).reshape(2, 2, 3))
    assert isinstance(cos, torch.Tensor)
    assert cos.shape == sin.shape == (2, 2, 3, 16)
    assert isinstance(rotary(x, torch.arange(3)[None])[0], angles.Angles)


def test_angles_say_what_they_are() -> None:
    model = LLAMA.build()
    patch_model(model)
    cos, sin = model.model.rotary_emb(torch.zeros(1, 3, 8), torch.arange(3)[None])
    assert repr(cos) == "Angles(cos, (1, 3, 16))"
    assert (len(sin), cos.shape, sin.dtype) == (1, (1, 3, 16), torch.float32)
    assert (-sin).negated
    assert torch.equal((-sin).tensor(), -sin.tensor())
