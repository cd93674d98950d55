"""Docstrings name code with Sphinx's roles, such as :func:`name`; the pages show the names as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|attr|data|mod):`[~.]*([\w.]+)`")


class Roles(griffe.Extension):
    """Turns roles into code, less the module."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of every object that is loaded."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(_code, obj.docstring.value)


def _code(role: re.Match[str]) -> str:
    return f"`{role[1].rpartition('.')[2]}`"
