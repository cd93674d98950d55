"""Run compiled-mode Triton kernels in Triton's own interpreter: on CPU tensors, without TRITON_INTERPRET.

Triton reads that variable where a kernel is decorated. Here the kernels stay compilable: inside :func:`interpreted`,
every ``@triton.jit`` function is replaced by its interpreted form, and put back at the end. Besides, what the
interpreter gets wrong is mended: fp32 -> bf16 rounds to nearest even, as the hardware does, instead of truncating,
and scalar arguments have the types of their annotations (a float without one is fp32, as in a compiled kernel).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import torch
import triton.experimental.gluon  # noqa: F401  imported by Triton while a kernel runs; must load before it is patched
import triton.language as tl
import triton.runtime.interpreter as interpreter
from triton.runtime.jit import JITFunction

__all__ = ["interpreted"]

_SCALARS = {"fp32": np.float32, "fp64": np.float64, "i32": np.int32, "i64": np.int64}
_convert_float = interpreter._convert_float


def _convert_float_rounding(values: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
    if source == tl.float32 and target == tl.bfloat16:
        rounded = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).bfloat16()
        return rounded.view(torch.int16).numpy().view(np.uint16).reshape(values.shape)
    return _convert_float(values, source, target, mode)


class _Interpreted:
    """Stands in for a kernel: ``kernel[grid](*args, **kwargs)``."""

    def __init__(self, kernel: JITFunction) -> None:
        self.kernel = kernel
        self.signature = inspect.signature(kernel.fn)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **kwargs: self._launch(grid, args, kwargs)

    def _launch(self, grid: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        known = {name: value for name, value in kwargs.items() if name in self.signature.parameters}
        bound = self.signature.bind(*args, **known).arguments
        types = {param.name: (param.is_constexpr, param.annotation_type) for param in self.kernel.params}
        values = {name: _argument(value, *types[name]) for name, value in bound.items()}
        function = interpreter.InterpretedFunction(self.kernel.fn).rewrite()
        grid = (*grid, 1, 1)[:3]
        interpreter.interpreter_builder.set_grid_dim(*grid)
        for index in product(*map(range, grid)):
            interpreter.interpreter_builder.set_grid_idx(*index)
            function(**values)


def _argument(value: Any, is_constexpr: bool, annotation: str) -> Any:
    if is_constexpr or value is None:
        return value
    if isinstance(value, float) and not annotation:
        annotation = "fp32"
    if annotation in _SCALARS:
        kind = tl.str_to_ty(annotation, None)
        return tl.tensor(interpreter.TensorHandle(np.array([value], dtype=_SCALARS[annotation]), kind), kind)
    return interpreter._implicit_cvt(value)


def _reachable(namespace: dict[str, Any], seen: set[int]) -> Iterator[tuple[dict[str, Any], str, JITFunction]]:
    """(namespace, name, function) of every jit function that code in ``namespace`` can name."""
    if id(namespace) in seen:
        return
    seen.add(id(namespace))
    for name, value in list(namespace.items()):
        if isinstance(value, JITFunction):
            yield namespace, name, value
            yield from _reachable(value.fn.__globals__, seen)


@contextlib.contextmanager
def interpreted(*kernels: JITFunction) -> Iterator[None]:
    """Interpret ``kernels``, and all they call, wherever their modules' globals name them."""
    seen: set[int] = set()
    found = [each for kernel in kernels for each in _reachable(kernel.fn.__globals__, seen)]
    for module in (tl, tl.standard, tl.math):
        found += [(vars(module), name, f) for name, f in vars(module).items() if isinstance(f, JITFunction)]
    interpreter._convert_float = _convert_float_rounding
    scopes = [interpreter._patch_lang(kernels[0].fn), interpreter._patch_lang(tl.standard.zeros.fn)]
    try:
        for namespace, name, function in found:
            is_kernel = function in kernels
            plain = interpreter.InterpretedFunction(function.fn).rewrite
            namespace[name] = _Interpreted(function) if is_kernel else plain()
        yield
    finally:
        for scope in reversed(scopes):
            scope.restore()
        for namespace, name, function in found:
            namespace[name] = function
        interpreter._convert_float = _convert_float
