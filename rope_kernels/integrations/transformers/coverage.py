"""Lists the modeling files of the installed transformers that patch_model can accelerate, and why others cannot be."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from .binding import Binder

__all__ = ["FileCoverage", "as_text", "coverage", "modeling_files", "summary"]

# A file has RoPE if it defines a function or class with such a name. Names decide nothing else.
_NAMED_FOR_IT = re.compile(
    r"^\s*(def|class) \w*(rotary|rope|rotate_half|rotate_pairwise|rotate_every_two)\w*", re.I | re.M
)

_NO_FUNCTION = "it rotates nothing: no function in it takes q and k with cos and sin, or with complex numbers"


@dataclass(frozen=True)
class FileCoverage:
    """The probe's result for one modeling file.

    Attributes:
        name: of the model, that of its file in transformers.
        conventions: the measured conventions of the apply functions that can be replaced.
        reasons: why other functions, or all of the file, cannot be replaced.
    """

    name: str
    conventions: tuple[str, ...]
    reasons: tuple[str, ...] = ()

    @property
    def is_covered(self) -> bool:
        """Whether the file's modules call apply functions, and all of these can be replaced."""
        return bool(self.conventions) and not self.reasons


def modeling_files() -> dict[str, str]:
    """The modules of transformers' modeling files that have RoPE, by the model's name.

    Raises:
        ImportError: transformers is not installed.
    """
    spec = find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("transformers is not installed")
    root = Path(spec.submodule_search_locations[0]) / "models"
    files = sorted(path for path in root.glob("*/modeling_*.py") if _NAMED_FOR_IT.search(path.read_text("utf-8")))
    return {
        path.stem.removeprefix("modeling_"): f"transformers.models.{path.parent.name}.{path.stem}" for path in files
    }


def coverage(advance: Callable[[], object] = lambda: None) -> list[FileCoverage]:
    """Probe every modeling file that has RoPE.

    Args:
        advance: called after each file.

    Raises:
        ImportError: transformers is not installed.
    """
    found, binder = [], Binder()
    for name, module in modeling_files().items():
        found.append(_probe(name, module, binder))
        advance()
    return found


def _probe(name: str, module: str, binder: Binder) -> FileCoverage:
    try:
        code = importlib.import_module(module)
    except Exception as error:  # an optional package of that one model
        return FileCoverage(name, (), (f"it cannot be imported: {error}",))
    conventions: dict[str, None] = {}
    reasons: dict[str, None] = {}
    for cls in _modules_of(code):
        binding = binder.binding_of(cls)
        conventions.update(dict.fromkeys(convention.name for convention in binding.conventions.values()))
        reasons.update(dict.fromkeys(f"{function}: {why}" for function, why in binding.reasons.items()))
    if not conventions and not reasons:
        uncalled = ", ".join(binder.file(code).conventions)
        reasons[f"none of its modules calls {uncalled}" if uncalled else _NO_FUNCTION] = None
    return FileCoverage(name, tuple(conventions), tuple(reasons))


def _modules_of(code: Any) -> Iterator[type]:
    for value in vars(code).values():
        if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == code.__name__:
            yield value


def summary(found: list[FileCoverage], library: str = "transformers") -> dict[str, Any]:
    """Counts, the files of every convention, and the other files with the reasons; for JSON."""
    covered = [file for file in found if file.is_covered]
    by_convention: dict[str, list[str]] = {}
    for file in covered:
        for convention in file.conventions:
            by_convention.setdefault(convention, []).append(file.name)
    return {
        "library": library,
        library: version(library),
        "files": len(found),
        "covered": len(covered),
        "conventions": dict(sorted(by_convention.items(), key=lambda item: -len(item[1]))),
        "not_covered": {file.name: list(file.reasons) for file in found if not file.is_covered},
        "partly_covered": sorted(file.name for file in found if file.conventions and file.reasons),
    }


def as_text(counted: dict[str, Any], width: int = 110) -> str:
    """The :func:`summary` as text: each convention with its files, then the other files and why."""
    library = counted["library"]
    lines = [f"{library} {counted[library]}: {counted['covered']} of {counted['files']} files with RoPE covered"]
    for convention, files in counted["conventions"].items():
        lines += ["", f"{convention}: {len(files)}", *_wrapped(", ".join(files), width)]
    if counted["not_covered"]:
        lines += ["", f"not covered: {len(counted['not_covered'])}"]
    for name, reasons in counted["not_covered"].items():
        share = " (in part)" if name in counted["partly_covered"] else ""
        lines += _wrapped(f"{name}{share}: {'; '.join(reasons)}", width)
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
