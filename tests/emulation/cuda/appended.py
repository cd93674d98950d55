"""Calls that store in a KV cache as the CUDA launcher takes them, by the functions of a backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rope_kernels.backends.inputs import Append, Inputs, Norms
from rope_kernels.core.spec import Spec

from . import host
from .calls import CudaCall, cuda_call

__all__ = ["CudaKernels", "on_host"]


class CudaKernels:
    """``rotate``, ``rotate_norm`` and ``rotate_append`` of a backend, each of which ``launch`` runs as one call."""

    def __init__(self, launch: Callable[[CudaCall], None]) -> None:
        self.launch = launch

    def rotate(
        self, q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, inputs: Inputs, spec: Spec
    ) -> None:
        """See :func:`rope_kernels.backends.reference.rotate`."""
        self.launch(_call(q, k, q_out, k_out, inputs, spec))

    def rotate_norm(
        self, q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, inputs: Inputs, spec: Spec, norms: Norms
    ) -> None:
        """See :func:`rope_kernels.backends.reference.rotate_norm`."""
        call = _call(q, k, q_out, k_out, inputs, spec)
        call.put_norms(norms)
        self.launch(call)

    def rotate_append(
        self, q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, inputs: Inputs, spec: Spec,
        norms: Norms, append: Append,
    ) -> None:  # fmt: skip
        """See :func:`rope_kernels.backends.reference.rotate_append`."""
        call = _call(q, k, q_out, k if k_out is None else k_out, inputs, spec)
        call.put_norms(norms)
        call.put_cache(append, k_out is not None)
        call.tensors |= _memory(append)
        self.launch(call)


def _call(q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, inputs: Inputs, spec: Spec) -> CudaCall:
    """q and k may be in place or not, each on its own."""
    call = cuda_call([(q, q_out), (k, k_out)], inputs, spec.encode(), "bshd")
    for name, x, y in (("q", q, q_out), ("k", k, k_out)):
        call.tensors.pop(f"{name}_out", None)
        if x is not None and y is not None and x.numel():
            call.tensors |= {name: x} if x.data_ptr() == y.data_ptr() else {name: x, f"{name}_out": y}
            call.fields[6] |= int(x.data_ptr() == y.data_ptr())
    return call


def _memory(append: Append) -> dict[str, Tensor]:
    """The caches; what they are parts of, where that is one tensor."""
    k, v = append.k_cache, append.v_cache
    if k is not None and v is not None and k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr():
        return {"cache": torch.empty(0, dtype=torch.uint8).set_(k.untyped_storage())}
    return {name: cache for name, cache in (("k_cache", k), ("v_cache", v)) if cache is not None}


class _HostCall:
    """A call as :func:`host.run` takes it; what comes of it is checked elsewhere."""

    def __init__(self, call: CudaCall) -> None:
        self.call = call

    def check(self) -> None:
        """Nothing."""


def on_host(folder: Path, backwards: bool) -> CudaKernels:
    """Each call compiled as plain C++, under sanitizers."""

    def launch(call: CudaCall) -> None:
        wrong = host.run([_HostCall(call)], folder, backwards)  # type: ignore[list-item]
        assert not wrong, "\n".join(wrong)

    return CudaKernels(launch)
