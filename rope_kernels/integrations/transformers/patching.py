"""patch_model replaces the rotary embedding and the apply function of a loaded model; unpatch_model restores them."""

from __future__ import annotations

import sys
import types
import warnings
from typing import Any

from torch import Tensor, nn

from ...api.dynamic_state import DynamicState
from ...environment import version_of
from .binding import Binder, Binding
from .conventions import Convention
from .joining import joins_tables
from .report import Entry, PatchReport
from .rotary import is_rotary, probe_rotary
from .rotary_plan import RotaryPlan

__all__ = ["patch_model", "unpatch_model"]

NEWEST_KNOWN = (5, 23)
_UNDO = "_rope_kernels_undo"
_PLAN = "_rope_kernels_plan"
_ABSENT = object
_HEAD_DIMS = ("head_dim", "attention_head_size", "head_size", "qk_rope_head_dim", "rotary_ndims")


def patch_model(model: nn.Module, *, dynamic_state: DynamicState | None = None) -> PatchReport:
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

    Returns:
        What was replaced, and what was skipped and why.

    Raises:
        TypeError: ``model`` is not a module, or ``dynamic_state`` not a :class:`DynamicState`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, must be a torch.nn.Module")
    if not isinstance(dynamic_state, (DynamicState, type(None))):
        raise TypeError(f"dynamic_state: got {type(dynamic_state).__name__}, must be a DynamicState or None")
    _warn_of_newer()
    unpatch_model(model)
    entries: list[Entry] = []
    conventions: set[Convention] = set()
    head_dims: set[int] = set()
    binder = Binder()
    for name, module in model.named_modules():
        binding = binder.binding_of(type(module))
        if binding.called:
            entries.append(_entry(name, module, binding))
            for method, function in binding.methods.items():
                _replace_method(module, method, function)
            conventions |= set(binding.conventions.values())
            head_dims |= {v for v in (getattr(module, n, None) for n in _HEAD_DIMS) if isinstance(v, int)}
    rotary = [(name, module) for name, module in model.named_modules() if is_rotary(module)]
    entries = [_replace_rotary(*r, conventions, head_dims, dynamic_state) for r in rotary] + entries
    return PatchReport(tuple(entries))


def unpatch_model(model: nn.Module) -> nn.Module:
    """Undo :func:`patch_model`; the model's outputs are again bit for bit as before.

    Returns:
        The model.
    """
    for module in model.modules():
        for name, previous in module.__dict__.pop(_UNDO, {}).items():
            if previous is _ABSENT:
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = previous
        module.__dict__.pop(_PLAN, None)
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


def _replace_method(module: nn.Module, name: str, function: Any) -> None:
    """Bind a function to one module. accelerate's hooks keep the wrapped forward in ``_old_forward``."""
    if name == "forward" and "_old_forward" in module.__dict__:
        name = "_old_forward"
    module.__dict__.setdefault(_UNDO, {}).setdefault(name, module.__dict__.get(name, _ABSENT))
    module.__dict__[name] = types.MethodType(function, module)


def _entry(name: str, module: nn.Module, binding: Binding) -> Entry:
    kind, reason = type(module).__name__, "; ".join(f"{key}: {why}" for key, why in binding.reasons.items())
    if not binding.methods:
        return Entry(name, kind, "left alone", reason=reason)
    conventions = dict.fromkeys(convention.name for convention in binding.conventions.values())
    return Entry(name, kind, "rotation", ", ".join(binding.conventions), ", ".join(conventions), reason)


def _replace_rotary(
    name: str, module: nn.Module, conventions: set[Convention], head_dims: set[int], dynamic_state: DynamicState | None
) -> Entry:
    """Make a rotary embedding return positions instead of tables, if its probe succeeds."""
    kind = type(module).__name__
    if not conventions:
        return Entry(name, kind, "left alone", reason="no module calls an apply function of a known convention")
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
    module.__dict__[_PLAN] = plan
    _replace_method(module, "forward", _return_angles)
    return Entry(name, kind, "angles", "forward", ", ".join(words))


def _return_angles(
    self: nn.Module, x: Tensor, position_ids: Tensor | None = None, layer_type: str | None = None
) -> Any:
    """Replaces a rotary embedding's forward. Positions of an unknown shape still get the module's own tables."""
    plan: RotaryPlan = self.__dict__[_PLAN]
    angles = None if position_ids is None else plan.angles(x, position_ids, layer_type)
    if angles is not None:
        return angles
    extra = {} if layer_type is None else {"layer_type": layer_type}
    return type(self).forward(self, x, position_ids=position_ids, **extra)
