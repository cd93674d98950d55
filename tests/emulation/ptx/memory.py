"""The global memory that a launch may touch: bytes of the host at their own addresses."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from .errors import PTXError

__all__ = ["GRANULE", "Memory", "Region"]

GRANULE = 16
"""Bytes: what is known of memory is kept per so many, or per fewer where accesses are smaller."""

_WHOLE_STORAGE_BYTES = 1 << 26
"""Of a larger storage, only the rows of a view are taken in, one by one."""


class Region:
    """Bytes that lie together, and which of them may be read and written.

    Attributes:
        name: of the tensors there, for messages.
        start: address of ``storage``, rounded down to a granule; ``end`` is not rounded.
        storage: the live bytes from ``address`` on.
    """

    def __init__(self, name: str, address: int, storage: np.ndarray, readable: np.ndarray, writable: np.ndarray):
        self.name, self.address, self.storage = name, address, storage
        self.readable, self.writable = readable, writable
        self.start, self.end = address // GRANULE * GRANULE, address + storage.size
        self.allowed = lru_cache(maxsize=None)(self._allowed)

    def add(self, name: str, readable: np.ndarray, writable: np.ndarray) -> None:
        """Another view of the same bytes."""
        if name not in self.name.split("/"):
            self.name += f"/{name}"
        self.readable, self.writable = self.readable | readable, self.writable | writable
        self.allowed.cache_clear()

    def _allowed(self, write: bool, granule: int) -> np.ndarray:
        """Per granule of so many bytes from ``start`` on, whether all of it may be accessed."""
        size = -(-(self.end - self.start) // GRANULE) * GRANULE
        mask = np.zeros(size, bool)
        mask[self.address - self.start : self.end - self.start] = self.writable if write else self.readable
        return mask.reshape(-1, granule).all(axis=1)


class Memory:
    """Regions by address. Nothing else exists for a kernel."""

    def __init__(self) -> None:
        self.regions: dict[int, Region] = {}

    def add(
        self, name: str, address: int, storage: np.ndarray,
        readable: np.ndarray | None = None, writable: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Let kernels access ``storage``, live bytes (uint8), at ``address``.

        Args:
            name: for messages.
            address: of the first byte.
            storage: the bytes; stores change them.
            readable: bool per byte; ``None`` for all.
            writable: the same for stores.

        Raises:
            PTXError: the bytes overlap others that were added, and are not the same ones.
        """
        if not storage.size:
            return
        everything = np.broadcast_to(np.True_, storage.shape)
        masks = [everything if mask is None else mask for mask in (readable, writable)]
        known = self.regions.get(address)
        if known is not None and known.storage.size == storage.size:
            known.add(name, *masks)
            return
        for other in self.regions.values():
            if other.address < address + storage.size and address < other.end:
                raise PTXError(f"{name} overlaps {other.name}")
        self.regions[address] = Region(name, address, storage, *masks)

    def add_tensor(self, name: str, tensor: torch.Tensor) -> None:
        """Let kernels access the elements of a CPU tensor; not what lies between them."""
        if not tensor.numel():
            return
        storage = tensor.untyped_storage()
        size = tensor.element_size()
        if storage.nbytes() <= _WHOLE_STORAGE_BYTES:
            data = torch.empty(0, dtype=torch.uint8).set_(storage)
            inside = torch.zeros(storage.nbytes() // size, dtype=torch.bool)
            inside.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)
            mask = np.zeros(storage.nbytes(), bool)
            mask[: inside.numel() * size] = inside.numpy().repeat(size)
            self.add(name, storage.data_ptr(), data.numpy(), mask, mask)
        elif tensor.dim() and not tensor.is_contiguous():
            for index, part in enumerate(tensor):
                self.add_tensor(f"{name}[{index}]", part)
        else:
            data = torch.empty(0, dtype=torch.uint8)
            data.set_(storage, tensor.storage_offset() * size, (tensor.numel() * size,), (1,))
            self.add(name, tensor.data_ptr(), data.numpy())
