"""What is built and which tests run for the mutants of an area, in stages: the first that fails ends it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

__all__ = ["SUITES", "Stage"]

Command = tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """Tests, and commands that must succeed before."""

    tests: tuple[str, ...]
    builds: tuple[Command, ...] = ()


def _cuda_build(what: str) -> Command:
    return sys.executable, "-c", f"from emulation.cuda import build; build.{what}()"


_BACKENDS = "tests/backends"
_CMAKE = (
    "cmake", "-S", ".", "-B", "build/cmake", "-G", "Ninja", "--log-level=WARNING", "-DROPE_KERNELS_TESTS=OFF",
    "-DROPE_KERNELS_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}",
)  # fmt: skip
_LIBRARY = sys.executable, "setup.py", "-q", "build_ext", "--inplace"
_MATHEMATICS = Stage(("tests/cpp/test_math_module.py",), (_CMAKE, ("ninja", "-C", "build/cmake", "rope_kernels_math")))

SUITES: dict[str, list[Stage]] = {
    "triton": [
        Stage(
            tuple(f"{_BACKENDS}/test_{name}.py" for name in ("launch", "compiled", "fp_fusion", "triton_interpreter"))
        ),
        Stage((f"{_BACKENDS}/test_triton_emulated.py",)),
    ],
    "triton-norm": [
        Stage((f"{_BACKENDS}/test_triton_norm_interpreter.py",)),
        Stage((f"{_BACKENDS}/test_triton_norm_emulated.py",)),
    ],
    "triton-append": [
        Stage((f"{_BACKENDS}/test_triton_append_interpreter.py",)),
        Stage((f"{_BACKENDS}/test_triton_append_emulated.py",)),
    ],
    "cuda": [
        Stage((f"{_BACKENDS}/test_cuda_host.py",), (_cuda_build("host"),)),
        Stage((f"{_BACKENDS}/test_cuda_emulated.py",), (_cuda_build("emulated"),)),
    ],
    "cuda-norm": [
        Stage((f"{_BACKENDS}/test_cuda_host.py",), (_cuda_build("host"),)),
        Stage((f"{_BACKENDS}/test_cuda_norm_emulated.py",), (_cuda_build("emulated"),)),
    ],
    "cuda-append": [
        Stage(
            tuple(
                f"{_BACKENDS}/test_cuda_append_emulated.py::test_{calls}_under_sanitizers"
                for calls in ("other_calls", "call")
            ),
            (_cuda_build("host"),),
        ),
        Stage((f"{_BACKENDS}/test_cuda_append_emulated.py",), (_cuda_build("emulated"),)),
    ],
    "cpu": [
        Stage(
            (
                f"{_BACKENDS}/test_native.py",
                "tests/api/test_append.py",
                f"{_BACKENDS}/test_streaming_append.py",
                "tests/api/test_cached.py",
                "tests/api/test_apply.py",
                "tests/api/test_norms.py",
                "tests/ops/test_norm_autograd.py",
            ),
            (_LIBRARY,),
        ),
        _MATHEMATICS,
    ],
    "spec": [Stage(("tests/core/test_spec.py",))],
    "spec-cpp": [Stage(("tests/ops/test_operators.py",), (_LIBRARY,)), _MATHEMATICS],
    "doors": [
        Stage(
            (
                "tests/api/test_doors.py",
                "tests/api/test_saved_tensor_hooks.py",
                "tests/api/test_apply.py",
                "tests/ops/test_compile.py",
            )
        )
    ],
    "layout": [Stage(("tests/test_layout.py",))],
    "direct": [
        Stage(
            (
                *(f"tests/ops/test_direct{rest}.py" for rest in ("", "_refusals", "_threads")),
                "tests/ops/test_norm_autograd.py",
                "tests/api/test_cached.py",
            ),
            (_LIBRARY,),
        )
    ],
}
"""By area of mutants."""
