"""Finds models whose code joins cos or sin with other tensors, where :class:`Angles` cannot replace the tables."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from types import ModuleType

__all__ = ["joins_tables"]

_JOINING = {"cat", "concat", "concatenate", "stack"}
_TABLES = {"cos", "sin", "position_embeddings", "freqs_cis", "freqs_ci"}


def joins_tables(code: ModuleType) -> str | None:
    """The first call in a modeling file that puts a table into a list for ``torch.cat`` or ``torch.stack``, if any.

    In eager mode torch finds an :class:`Angles` in such a list; Dynamo does not. The search goes by names in the
    source: if it errs, the model's own tables stay, for the table kernel.
    """
    try:
        tree = ast.parse(inspect.getsource(code))
    except (OSError, TypeError):
        return None
    for call in _calls(tree):
        is_joining = isinstance(call.func, ast.Attribute) and call.func.attr in _JOINING and call.args
        if is_joining and {n.id for n in ast.walk(call.args[0]) if isinstance(n, ast.Name)} & _TABLES:
            return ast.unparse(call)
    return None


def _calls(tree: ast.Module) -> Iterator[ast.Call]:
    """The calls of a file, except in functions with a table as an argument: they are replaced, or called from those."""
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef) and _TABLES & {argument.arg for argument in statement.args.args}:
            continue
        yield from (node for node in ast.walk(statement) if isinstance(node, ast.Call))
