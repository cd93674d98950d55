"""patch_model replaces the rotary embedding and the apply function of a loaded model; unpatch_model restores them."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...api.dynamic_state import DynamicState
from ...config.huggingface.no_rope import refuse_without_rope
from ...environment import version_of
from ...errors import RopeConfigError
from ..subclasses import own_class, replaced_by_others
from .binding import Binder, Binding
from .conventions import Convention
from .joining import joins_tables
from .norm_probing import NormProbe
from .patched_class import leave_norms, patch_module, rotary_plan, unpatch_module
from .report import Entry, PatchReport
from .rotary import is_rotary, probe_rotary

__all__ = ["patch_model", "unpatch_model"]

NEWEST_KNOWN = (5, 23)
_OTHERS = {
    "diffusers": "it is a model of diffusers: call rope_kernels.integrations.diffusers.patch_diffusers",
    "timm": "it is a model of timm: call rope_kernels.integrations.timm.patch_timm",
}
_HEAD_DIMS = ("head_dim", "attention_head_size", "head_size", "qk_rope_head_dim", "rotary_ndims")


def patch_model(
    model: nn.Module, *, dynamic_state: DynamicState | None = None, fuse_norms: bool = False
) -> PatchReport:
    """Make a loaded model rotate with our kernels, without a change to its code or its weights.

    Its rotary embedding then returns positions and a config, and its attention passes them to a function that computes
    the angles in the kernel. If a layer computes with cos and sin, it gets exact tables; if it passes a table to the
    apply function, the table kernel rotates. Before anything is replaced, every apply function is measured on random
    tensors, and every rotary embedding at positions on both sides of its thresholds. Other models of the same class in
    the process stay unchanged. If another library later replaces functions in the modeling file, patch the model again.

    Args:
        model: a transformers model, or any module with such parts; a patched model is patched again.
        dynamic_state: lets ``rope_type="dynamic"`` keep the grown frequencies between calls, as transformers does;
            without it, the length of each call alone decides the frequencies.
        fuse_norms: also norm the heads of q and k in the call that rotates them, where the attention module has RMS
            norms for that. Each kind of attention module is run with random fp32 weights, with its own norms and
            fused; where an output, a key or a gradient differs, the norms stay, and the report says why. Weights, eps
            and hooks are read at each call; norms that have been replaced or hooked since are called as before. In 16
            bits the fused call rounds once instead of several times. A call that needs more than the kernel has (an
            fp32 weight on 16-bit heads, where the norm would return fp32) uses the model's norms.

    Returns:
        What was replaced, and what was skipped and why.

    Raises:
        TypeError: ``model`` is not a module, ``dynamic_state`` not a :class:`DynamicState`, or ``fuse_norms`` not a
            bool.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, must be a torch.nn.Module")
    if not isinstance(dynamic_state, (DynamicState, type(None))):
        raise TypeError(f"dynamic_state: got {type(dynamic_state).__name__}, must be a DynamicState or None")
    if not isinstance(fuse_norms, bool):
        raise TypeError(f"fuse_norms: got {type(fuse_norms).__name__}, must be a bool")
    _warn_of_newer()
    unpatch_model(model)
    binder = Binder(next((tensor.device for tensor in model.parameters()), torch.device("cpu")))
    layers = [_Layer.of(name, module, binder) for name, module in model.named_modules()]
    calling = [layer for layer in layers if layer.binding.called]
    fused = [layer for layer in calling if layer.methods]
    for layer in fused:
        patch_module(layer.module, layer.methods, None)
    conventions = {convention for layer in fused for convention in layer.binding.conventions.values()}
    head_dims = {value for layer in fused for value in _head_dims(layer.module)}
    rotary = [layer for layer in layers if is_rotary(layer.module)]
    entries = [_replace_rotary(layer, conventions, head_dims, dynamic_state) for layer in rotary]
    entries += [layer.entry() for layer in calling]
    if fuse_norms:
        probe = NormProbe([plan for layer in rotary if (plan := rotary_plan(layer.module)) is not None])
        entries += [entry for layer in fused if (entry := _fuse_norms(layer, probe)) is not None]
    report = PatchReport(tuple(entries))
    if not report.patched:
        _warn_of_nothing(model, report)
    return report


def unpatch_model(model: nn.Module) -> nn.Module:
    """Undo :func:`patch_model`; the model's outputs are again bit for bit as before.

    Returns:
        The model.
    """
    for module in model.modules():
        unpatch_module(module)
    return model


def _warn_of_newer() -> None:
    installed = version_of("transformers") or "0"
    if tuple(int(part) for part in installed.split(".")[:2] if part.isdigit()) > NEWEST_KNOWN:
        known = ".".join(map(str, NEWEST_KNOWN))
        warnings.warn(
            f"transformers {installed} is newer than {known}, the newest this was tested with; every function is "
            "measured before it is replaced, and the report says what was",
            stacklevel=3,
        )


def _warn_of_nothing(model: nn.Module, report: PatchReport) -> None:
    reasons = [f"{entry.module}: {entry.reason}" for entry in report.entries[-1:]]
    values: dict[str, Any] = getattr(getattr(model, "config", None), "to_dict", dict)()
    try:
        refuse_without_rope(values, strict=True)
    except RopeConfigError as error:
        reasons = [str(error)]
    library = type(model).__module__.partition(".")[0]
    if library in _OTHERS:
        reasons = [_OTHERS[library]]
    why = reasons or ["no module calls an apply function, and none looks like a rotary embedding"]
    warnings.warn(f"patch_model: nothing was patched in {type(model).__name__}: {why[0]}", stacklevel=3)


@dataclass(frozen=True)
class _Layer:
    """A module, and the methods that it can get."""

    name: str
    module: nn.Module
    binding: Binding
    foreign: str | None

    @classmethod
    def of(cls, name: str, module: nn.Module, binder: Binder) -> _Layer:
        binding = binder.binding_of(own_class(type(module)))
        return cls(name, module, binding, replaced_by_others(module, binding.methods))

    @property
    def methods(self) -> dict[str, Any]:
        return {} if self.foreign else self.binding.methods

    def entry(self) -> Entry:
        reasons = [f"{key}: {why}" for key, why in self.binding.reasons.items()]
        kind = type(self.module).__name__
        if not self.methods:
            reason = "; ".join([self.foreign] if self.foreign else reasons)
            return Entry(self.name, kind, "left alone", reason=reason)
        conventions = dict.fromkeys(convention.name for convention in self.binding.conventions.values())
        called = ", ".join(self.binding.conventions)
        return Entry(self.name, kind, "rotation", called, ", ".join(conventions), "; ".join(reasons))


def _head_dims(module: nn.Module) -> set[int]:
    return {value for value in (getattr(module, name, None) for name in _HEAD_DIMS) if isinstance(value, int)}


def _fuse_norms(layer: _Layer, probe: NormProbe) -> Entry | None:
    """Fuse a layer's norms, if the probe finds the same results; ``None`` if it has none."""
    name, module, kind = layer.name, layer.module, type(layer.module).__name__
    plan = probe.plan_of(module, layer.binding)
    if plan is None:
        return None
    if isinstance(plan, str):
        return Entry(name, kind, "norms left", reason=plan)
    leave_norms(module, layer.methods, plan)
    return Entry(name, kind, "norms fused", ", ".join(dict.fromkeys(plan.names)), plan.summary)


def _replace_rotary(
    layer: _Layer, conventions: set[Convention], head_dims: set[int], dynamic_state: DynamicState | None
) -> Entry:
    """Make a rotary embedding return positions instead of tables, if its probe succeeds."""
    name, module, kind = layer.name, layer.module, type(layer.module).__name__
    if not conventions:
        return Entry(name, kind, "left alone", reason="no module calls an apply function of a known convention")
    foreign = replaced_by_others(module, ["forward"])
    if foreign:
        return Entry(name, kind, "tables", reason=foreign)
    plan = probe_rotary(module)
    if isinstance(plan, str):
        return Entry(name, kind, "tables", reason=plan)
    joining = joins_tables(sys.modules[type(module).__module__])
    if joining is not None:
        return Entry(name, kind, "tables", reason=f"its model joins tables, which Dynamo must see: {joining}")
    words = []
    for layer_type, source in plan.sources.items():
        for head_dim in head_dims | {source.cfg.head_dim, source.cfg.rotary_dim}:
            for convention in conventions:
                source.prepare(head_dim, convention.pairing, convention.trailing)
        words.append(f"{layer_type}: {source.cfg.rope_type}" if layer_type else source.cfg.rope_type)
        if source.cfg.depends_on_length:
            plan.state = dynamic_state
    patch_module(module, layer.methods, plan)
    return Entry(name, kind, "angles", "forward", ", ".join(words))
