"""Patches the modules and attention processors of a model that rotate by a table, and reports what was done."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..subclasses import leave, own_class, replaced_by_others
from ..transformers.report import Entry, PatchReport
from .binding import Binding, binding_of
from .patched_class import patch_object

__all__ = ["NOTHING", "TableReport", "patch_or_warn", "patch_rotating", "unpatch_rotating"]


NOTHING = "none of its modules and attention processors calls a function that rotates"


class TableReport(PatchReport):
    """What was replaced in each module or attention processor, and why others were skipped; ``print`` it.

    Attributes:
        entries: one per module and per processor that rotates.
    """

    def __str__(self) -> str:
        """A line per module, and the counts; layers that differ only by number share a line."""
        lines = super().__str__().splitlines()[:-1]
        count = Counter(entry.action for entry in self.entries)
        patched = count["rotation"]
        words = "module rotates" if patched == 1 else "modules rotate"
        skipped = len(self.entries) - patched
        return "\n".join([*lines, f"patched: {patched} {words} by the kernel; {skipped} skipped"])


def patch_or_warn(model: nn.Module, call: str, nothing: str, hint: str = "") -> TableReport:
    """:func:`patch_rotating`, for the public function ``call``: with a warning if nothing was patched.

    Args:
        model: to patch.
        call: who asks, for the warning.
        nothing: the reason where nothing of the model rotates.
        hint: the end of the error for what is no module.

    Raises:
        TypeError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, must be a torch.nn.Module{hint}")
    report = patch_rotating(model)
    if not report.patched:
        why = [f"{entry.module}: {entry.reason}" for entry in report.entries] or [nothing]
        warnings.warn(f"{call}: nothing was patched in {type(model).__name__}: {why[0]}", stacklevel=3)
    return report


def patch_rotating(model: nn.Module) -> TableReport:
    """Make the modules of a model and their processors call the table kernel; a patched model is patched again."""
    unpatch_rotating(model)
    bindings: dict[type, Binding] = {}
    entries = []
    for name, thing in _things(model):
        own = own_class(type(thing))
        if own not in bindings:
            bindings[own] = binding_of(own)
        binding = bindings[own]
        if binding.rotates:
            entries.append(_patched(name, thing, binding))
    return TableReport(tuple(entries))


def unpatch_rotating(model: nn.Module) -> None:
    """Undo :func:`patch_rotating`."""
    for _, thing in _things(model):
        leave(thing)


def _things(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every module, and every attention processor that is no module, once, by name."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        yield name, module
        processor = module.__dict__.get("processor")
        if id(processor) not in seen and hasattr(processor, "__dict__") and not isinstance(processor, type):
            seen.add(id(processor))
            yield f"{name}.processor".lstrip("."), processor


def _patched(name: str, thing: Any, binding: Binding) -> Entry:
    kind = type(thing).__name__
    reasons = "; ".join(f"{key}: {why}" for key, why in binding.reasons.items())
    foreign = replaced_by_others(thing, binding.methods)
    if foreign is not None or not binding.methods:
        return Entry(name, kind, "left alone", reason=foreign or reasons)
    patch_object(thing, binding.methods)
    return Entry(name, kind, "rotation", ", ".join(binding.measured), "; ".join(binding.conventions), reasons)
