"""Calls that norm, rotate and store in a KV cache, held to the same backend's rotation and a copy to the slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from support import append_launches as launches
from torch import Tensor
from torch.utils import _pytree as pytree

from rope_kernels import use_backend
from rope_kernels.backends import backend_for
from rope_kernels.backends.inputs import Inputs

from .outcomes import Check, Setup

__all__ = ["OnDevice", "append_checks"]

_OTHERS: dict[str, Callable[..., None]] = {
    "k in place": launches.run_k_in_place,
    "k alone in place": launches.run_k_alone_in_place,
    "many heads": launches.run_many_heads,
    "unaligned caches": launches.run_unaligned_caches,
}
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)


class OnDevice:
    """A backend's functions for tensors on the CPU: they are copied to ``device``, and back with all that lies around.

    Attributes:
        backend: the module that runs there.
    """

    def __init__(self, backend: ModuleType, device: torch.device) -> None:
        self.backend, self.device = backend, device

    def __getattr__(self, name: str) -> Callable[..., None]:
        return partial(self._run, getattr(self.backend, name))

    def _run(self, function: Callable[..., None], *args: Any) -> None:
        whole: dict[int, tuple[Tensor, Tensor]] = {}  # by address: memory here, and there

        def there(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in whole:
                here = torch.empty(0, dtype=torch.uint8).set_(storage)
                whole[storage.data_ptr()] = here, here.to(self.device, copy=True)
            copy = whole[storage.data_ptr()][1].untyped_storage()
            return torch.empty(0, dtype=x.dtype, device=self.device).set_(copy, x.storage_offset(), x.shape, x.stride())

        def placed(value: Any) -> Any:
            if isinstance(value, Inputs):
                return replace(value, **placed(vars(value)))
            return pytree.tree_map_only(Tensor, there, value)

        function(*map(placed, args))
        for here, copy in whole.values():
            here.copy_(copy)


def append_checks(setup: Setup, backend: str) -> Iterator[Check]:
    """All of these, for one backend."""
    with use_backend(backend):
        kernels = OnDevice(backend_for(setup.device), setup.device)
    for call in launches.WITH_TOKENS:
        yield Check(f"append/{backend}/{call}", partial(launches.run, call, kernels=kernels))
    for name, function in _OTHERS.items():
        yield Check(f"append/{backend}/{name}", partial(function, kernels))
    if setup.device.type != "cpu":  # where they are an error
        yield Check(f"append/{backend}/slots past the cache", partial(launches.run_slots_past_the_cache, kernels))
    for dtype in _EIGHT_BITS:
        yield Check(f"append/{backend}/every number/{dtype}", partial(launches.run_every_midpoint, dtype, kernels))
