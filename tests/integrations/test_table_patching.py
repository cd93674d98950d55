"""Models that rotate by tables are patched and restored: whatever their attention processors get the function from."""

from __future__ import annotations

import copy
import functools
import io
import multiprocessing
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tolerances
from torch import nn
from torch.nn.parallel import replicate

from rope_kernels.integrations.diffusers import patch_diffusers, unpatch_diffusers
from rope_kernels.integrations.tables import rotating
from rope_kernels.integrations.timm import patch_timm, unpatch_timm
from rope_kernels.integrations.transformers import patch_model

CLOSE = tolerances.MODEL
EMBEDDINGS = """
import torch


def apply_rotary_emb(x, freqs, use_real=True):
    cos, sin = (t[None, :, None] for t in freqs)
    other = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return (x.float() * cos + other.float() * sin).to(x.dtype)


def apply_rotary_emb_oddly(x, freqs):
    return 2 * apply_rotary_emb(x, freqs)
"""
MODEL = """
import torch
from torch import nn

from .embeddings import apply_rotary_emb, apply_rotary_emb_oddly


def apply_rotary_emb_in_parts(x, freqs, parts):
    return torch.cat([apply_rotary_emb(part, [t[:, :4] for t in freqs]) for part in x.chunk(parts, -1)], -1)


def rotated(q, k, freqs):
    return apply_rotary_emb(q, freqs), apply_rotary_emb(k, freqs)


def _rotate_half(x):
    return torch.cat((-x[..., x.shape[-1] // 2:], x[..., :x.shape[-1] // 2]), -1)


def attend(attn, x, rotate):
    q, k, v = (t.unflatten(-1, (2, -1)) for t in attn.qkv(x).chunk(3, -1))
    q, k = rotate(q), rotate(k)
    y = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
    return y.transpose(1, 2).flatten(2)


class Global:
    calls = 0

    def __call__(self, attn, x, freqs):
        self.calls += 1
        return attend(attn, x, lambda t: apply_rotary_emb(t, freqs))


class Relayed:
    def __call__(self, attn, x, freqs):
        return attend(attn, x, lambda t: rotated(t, t, freqs)[1])


class InParts:
    def __call__(self, attn, x, freqs):
        return attend(attn, x, lambda t: apply_rotary_emb_in_parts(t, freqs, 2))


class Nested:
    def __call__(self, attn, x, freqs):
        def apply_rotary_emb(x, freqs_cos, freqs_sin):
            other = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
            out = x * freqs_cos[None, :, None] + other * freqs_sin[None, :, None]
            return out.type_as(x)

        return attend(attn, x, lambda t: apply_rotary_emb(t, *freqs))


class Imported:
    def __call__(self, attn, x, freqs):
        from .embeddings import apply_rotary_emb

        return attend(attn, x, lambda t: apply_rotary_emb(t, freqs))


class Inherited(Nested):
    pass


class Enclosed:
    def __call__(self, attn, x, freqs):
        scale = 1

        def apply_rotary_emb(x, freqs):
            return x * scale

        return attend(attn, x, lambda t: apply_rotary_emb(t, freqs))


class WithDefaults:
    def __call__(self, attn, x, freqs):
        def apply_rotary_emb(x, freqs=freqs):
            return x

        return attend(attn, x, apply_rotary_emb)


class Odd:
    def __call__(self, attn, x, freqs):
        return attend(attn, x, lambda t: apply_rotary_emb_oddly(t, freqs))


class Inline:
    def __call__(self, attn, x, freqs):
        return attend(attn, x, lambda t: t * freqs[0][:, None] + _rotate_half(t) * freqs[1][:, None])


class Attention(nn.Module):
    def __init__(self, processor):
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.processor = processor

    def forward(self, x, freqs):
        return self.processor(self, x, freqs)


class OwnAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x, freqs):
        return attend(self, x, lambda t: apply_rotary_emb(t, freqs))


class Model(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        angles = torch.arange(x.shape[1])[:, None] * 0.1 ** torch.arange(4)
        freqs = tuple(t.repeat_interleave(2, -1) for t in (angles.cos(), angles.sin()))
        for layer in self.layers:
            x = x + layer(x, freqs)
        return x
"""
PACKAGE = "diffusers_like"


def install() -> Any:
    """A package like diffusers, of two files."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = []
    sys.modules[PACKAGE] = package
    for name, source in (("embeddings", EMBEDDINGS), ("model", MODEL)):
        module = types.ModuleType(f"{PACKAGE}.{name}")
        module.__package__ = PACKAGE
        sys.modules[module.__name__] = module
        exec(compile(source, f"{name}.py", "exec"), vars(module))
    return sys.modules[f"{PACKAGE}.model"]


@pytest.fixture(scope="module")
def code() -> Iterator[Any]:
    yield install()
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of the kernel by patched models."""
    made: list[Any] = []
    call = rotating.apply_rotary_pos_emb
    monkeypatch.setattr(rotating, "apply_rotary_pos_emb", lambda *a, **k: made.append(a[0].shape) or call(*a, **k))
    return made


X = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))


def of(code: Any, *names: str) -> Any:
    torch.manual_seed(1)
    layers = [code.OwnAttention() if n == "OwnAttention" else code.Attention(getattr(code, n)()) for n in names]
    return code.Model(*layers).eval()


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(model(X).square().sum(), list(model.parameters())))


PATCHABLE = ["Global", "Relayed", "InParts", "Nested", "Imported", "Inherited", "OwnAttention"]


@pytest.mark.parametrize("name", PATCHABLE)
def test_a_patched_model_computes_the_same_and_is_restored(code: Any, name: str, calls: list[Any]) -> None:
    model, other = of(code, name, name), of(code, name)
    before, slopes, others = model(X), gradients(model), other(X)
    report = patch_diffusers(model)
    assert len(report.patched) == 2
    assert not report.left_alone
    calls.clear()
    torch.testing.assert_close(model(X), before, **CLOSE)
    assert len(calls) in (4, 8)  # the relay rotates two, and its caller drops one
    for mine, theirs in zip(gradients(model), slopes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    calls.clear()
    assert torch.equal(other(X), others)
    assert not calls
    patch_diffusers(model)  # again
    assert unpatch_diffusers(model) is model
    assert torch.equal(model(X), before)
    assert not calls
    assert unpatch_diffusers(model) is model


@pytest.mark.parametrize("name", PATCHABLE)
def test_copies_keep_the_patch(code: Any, name: str, calls: list[Any]) -> None:
    model = of(code, name)
    before = model(X)
    patch_timm(model)
    after, file = model(X), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        calls.clear()
        assert torch.equal(same(X), after)
        assert calls
        assert torch.equal(unpatch_timm(same)(X), before)
    assert torch.equal(model(X), after)


def in_a_new_process(path: str) -> tuple[torch.Tensor, str]:
    install()
    model = torch.load(path, weights_only=False)
    return model(X).detach(), str(type(getattr(model.layers[0], "processor", model.layers[0])).__mro__)


@pytest.mark.parametrize("name", ["Nested", "OwnAttention"])
def test_another_process_rotates_with_the_kernel_too(code: Any, name: str, tmp_path: Path) -> None:
    model = of(code, name)
    patch_diffusers(model)
    torch.save(model, tmp_path / "model.pt")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got, classes = pool.apply(in_a_new_process, (str(tmp_path / "model.pt"),))
    assert torch.equal(got, model(X))
    assert "_Patched" in classes


@pytest.mark.parametrize("name", ["Global", "OwnAttention"])
def test_a_replica_keeps_the_patch(code: Any, name: str, calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = of(code, name)
    patch_diffusers(model)

    def on_each(tensors: Any, devices: Any, detach: bool = False) -> Any:
        return [[t * scale for t in tensors] for scale in (1.0, 1.5)]

    monkeypatch.setitem(replicate.__globals__, "_broadcast_coalesced_reshape", on_each)
    first, second = replicate(model, [0, 1])
    calls.clear()
    assert torch.equal(first(X), model(X))
    assert not torch.equal(second(X), model(X))
    assert len(calls) == 8


@pytest.mark.parametrize("name", PATCHABLE)
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_patched_model_compiles_whole(code: Any, name: str, dynamic: bool, calls: list[Any]) -> None:
    model = of(code, name)
    before = model(X)
    patch_diffusers(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    torch.testing.assert_close(compiled(X), before, **CLOSE)
    torch.testing.assert_close(compiled(X[:, :5]), model(X[:, :5]), **CLOSE)
    assert calls


def test_shared_processors_and_their_state_stay_shared(code: Any) -> None:
    processor = code.Global()
    model = code.Model(code.Attention(processor), code.Attention(processor))
    report = patch_diffusers(model)
    model(X)
    assert [entry.module for entry in report.patched] == ["layers.0.processor"]
    assert model.layers[0].processor is model.layers[1].processor is processor
    assert processor.calls == 2
    assert isinstance(processor, code.Global)
    assert type(processor).__name__ == "Global"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Odd", "apply_rotary_emb_oddly: its results match no known convention"),
        ("Enclosed", "apply_rotary_emb: it has defaults or variables of the method that defines it"),
        ("WithDefaults", "apply_rotary_emb: it has defaults or variables of the method that defines it"),
        ("Inline", "__call__: it rotates inside this method"),
    ],
)
def test_what_is_skipped_has_a_reason(code: Any, name: str, reason: str) -> None:
    model = of(code, name)
    before = model(X)
    with pytest.warns(UserWarning, match="patch_diffusers: nothing was patched in Model: layers.0.processor"):
        report = patch_diffusers(model)
    assert not report.patched
    assert report.left_alone[0].reason.startswith(reason)
    assert torch.equal(model(X), before)
    assert "patched: 0 modules rotate by the kernel; 1 skipped" in str(report)


def test_a_model_without_rotation_says_so() -> None:
    with pytest.warns(UserWarning, match="none of its modules and attention processors"):
        assert not patch_diffusers(nn.Linear(2, 2)).entries
    with pytest.warns(UserWarning, match="patch_timm: nothing was patched in Linear: none of its modules"):
        assert not patch_timm(nn.Linear(2, 2)).entries


@pytest.mark.parametrize("patch", [patch_diffusers, patch_timm])
def test_only_modules_are_taken(patch: Any) -> None:
    with pytest.raises(TypeError, match=r"model: got int, must be a torch\.nn\.Module"):
        patch(1)


def test_a_pipeline_is_told_what_to_pass() -> None:
    with pytest.raises(TypeError, match=r"pass its transformer, pipe\.transformer"):
        patch_diffusers(types.SimpleNamespace(transformer=nn.Linear(2, 2)))


def test_the_report_groups_layers(code: Any) -> None:
    text = str(patch_diffusers(of(code, "Global", "Global", "OwnAttention", "Odd")))
    assert "layers.*.processor (2)  Global: rotation apply_rotary_emb [interleaved" in text
    assert "layers.2  OwnAttention: rotation apply_rotary_emb" in text
    assert text.endswith("patched: 3 modules rotate by the kernel; 1 skipped")


def test_patch_model_names_the_function_for_such_a_model(code: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code.Model, "__module__", "diffusers.models.transformers")
    with pytest.warns(UserWarning, match=r"rope_kernels\.integrations\.diffusers\.patch_diffusers"):
        patch_model(of(code, "Global"))


def hooked(module: Any) -> None:
    """As accelerate's hooks do it: the wrapped method is kept on the module."""
    own = module._old_forward = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        module.seen = getattr(module, "seen", 0) + 1
        return module._old_forward(*args, **kwargs)

    module.forward = functools.update_wrapper(forward, own)


@pytest.mark.parametrize("first", ["hook", "patch"])
def test_hooks_stay_before_and_after(code: Any, first: str, calls: list[Any]) -> None:
    model = of(code, "OwnAttention")
    before = model(X)
    for step in ("hook", "patch") if first == "hook" else ("patch", "hook"):
        hooked(model.layers[0]) if step == "hook" else patch_diffusers(model)
    calls.clear()
    torch.testing.assert_close(model(X), before, **CLOSE)
    assert calls
    assert model.layers[0].seen == 1
    unpatch_diffusers(model)
    calls.clear()
    assert torch.equal(model(X), before)
    assert not calls
    assert model.layers[0].seen == 2
    model.layers[0].forward = model.layers[0]._old_forward
    assert torch.equal(model(X), before)


def test_a_replaced_forward_stays_and_is_named(code: Any) -> None:
    model = of(code, "OwnAttention", "OwnAttention")
    model.layers[1].forward = functools.partial(code.OwnAttention.forward, model.layers[1])
    before = model(X)
    report = patch_diffusers(model)
    assert [entry.module for entry in report.patched] == ["layers.0"]
    assert "has replaced forward on this module" in report.left_alone[0].reason
    torch.testing.assert_close(model(X), before, **CLOSE)


def test_forward_hooks_and_adapters_see_the_same_tensors(code: Any) -> None:
    model, seen = of(code, "Global"), []
    model.layers[0].qkv.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    patch_diffusers(model)
    model(X)
    assert seen == [(2, 9, 48)]
