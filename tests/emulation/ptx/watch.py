"""What a launch does to memory: bounds and alignment of every access, and races between threads.

An access covers whole granules, since it is aligned to its own size. Per granule it is known who wrote it and who read
it since the last barrier that orders them: nobody, one thread, several threads of one CTA, threads of several CTAs;
or threads of one CTA before a barrier, after which that CTA's other threads may follow.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from .errors import PTXError
from .memory import GRANULE, Memory, Region

__all__ = ["Watch", "WatchedRegion"]

_NOBODY = -1
_SEVERAL_CTAS = -(1 << 62)


def _ordered_in(cta: np.ndarray) -> np.ndarray:
    """Owner: threads of ``cta``, before a barrier."""
    return -2 * cta - 2


def _log2(n: int) -> int:
    return n.bit_length() - 1


def _several_in(cta: np.ndarray) -> np.ndarray:
    """Owner: several threads of ``cta``."""
    return -2 * cta - 3


class WatchedRegion:
    """A region during one launch of blocks of ``block`` threads. An owner is a thread's number, or one of the above."""

    def __init__(self, region: Region, block: int) -> None:
        self.region, self.block = region, block
        self.granule = GRANULE
        granules = -(-(region.end - region.start) // GRANULE)
        self.writer, self.reader = (np.full(granules, _NOBODY) for _ in range(2))
        self.data: dict[int, tuple[int, np.ndarray]] = {}

    def load(self, addresses: np.ndarray, nbytes: int, threads: np.ndarray) -> np.ndarray:
        """Values, as void of ``nbytes``, per address; one address may stand for all threads."""
        places, owners = self._granules(addresses, nbytes, threads)
        self._check_bounds(places, write=False, threads=owners)
        self._check_race(self.writer[places], owners, "read of what another thread writes")
        self._add_readers(places, owners)
        first, words = self._words(nbytes)
        return words[(addresses.view(np.int64) - first) >> _log2(nbytes)]

    def store(self, addresses: np.ndarray, values: np.ndarray, threads: np.ndarray) -> None:
        """Store void ``values``."""
        nbytes = values.itemsize
        places, owners = self._granules(addresses, nbytes, threads)
        self._check_bounds(places, write=True, threads=owners)
        self._check_race(self.writer[places], owners, "write of what another thread writes")
        self._check_race(self.reader[places], owners, "write of what another thread reads")
        self.writer[places] = owners
        self._check_race(self.writer[places], owners, "write of what another thread writes")
        first, words = self._words(nbytes)
        words[(addresses.view(np.int64) - first) >> _log2(nbytes)] = values

    def barrier(self, released: np.ndarray) -> None:
        """Order what threads of the CTAs in ``released``, bool per CTA of the grid and False at the end, have done."""
        for owners in (self.writer, self.reader):
            cta = np.minimum(self._cta(owners), released.size - 1)
            done = released[cta]
            owners[done] = _ordered_in(cta[done])

    def _granules(self, addresses: np.ndarray, nbytes: int, threads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(granule, thread) of an access, one of each per granule."""
        while self.granule > nbytes:
            self.granule //= 2
            self.writer, self.reader = self.writer.repeat(2), self.reader.repeat(2)
        places = (addresses.view(np.int64) - self.region.start) >> _log2(self.granule)
        if addresses.size != threads.size:
            places = np.broadcast_to(places, threads.shape)
        several = nbytes // self.granule
        if several > 1:
            places = (places[:, None] + np.arange(several)).ravel()
            threads = threads.repeat(several)
        return places, threads

    def _check_bounds(self, places: np.ndarray, write: bool, threads: np.ndarray) -> None:
        allowed = self.region.allowed(write, self.granule)[places]
        if not allowed.all():
            i = int(np.argmin(allowed))
            offset = int(places[i]) * self.granule + self.region.start - self.region.address
            raise PTXError(
                f"{'writes' if write else 'reads'} out of bounds: byte {offset} of the storage of {self.region.name} "
                f"({self.region.storage.size} bytes) is in no view, thread {int(threads[i])}"
            )

    def _check_race(self, owners: np.ndarray, threads: np.ndarray, what: str) -> None:
        bad = (owners != threads) & (owners != _NOBODY)
        if not bad.any():
            return
        bad &= owners != _ordered_in(threads // self.block)
        if bad.any():
            i = int(np.argmax(bad))
            raise PTXError(f"race: {what}, in {self.region.name}, thread {int(threads[i])}")

    def _add_readers(self, places: np.ndarray, threads: np.ndarray) -> None:
        self.reader[places] = owners = self._with(self.reader[places], threads)
        last = self.reader[places]
        if (last != owners).any():  # threads that read the same granule at once
            self.reader[places[::-1]] = owners[::-1]
            self.reader[places] = self._with(self.reader[places], last)

    def _with(self, owners: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Who owns what ``owners`` own and then ``others`` access."""
        alone = (owners == _NOBODY) | (owners == others)
        if alone.all():
            return others
        cta = self._cta(others)
        alone |= owners == _ordered_in(cta)
        shared = np.where(self._cta(owners) == cta, _several_in(cta), _SEVERAL_CTAS)
        return np.where(alone, others, shared)

    def _cta(self, owners: np.ndarray) -> np.ndarray:
        """CTA of owners; -1 of nobody, and one that there is not of several."""
        return np.where(owners >= 0, owners // self.block, (-owners >> 1) - 1)

    def _words(self, nbytes: int) -> tuple[int, np.ndarray]:
        """(address of the first, all) naturally aligned words of the storage."""
        if nbytes not in self.data:
            first = -(-self.region.address // nbytes) * nbytes
            inner = self.region.storage[first - self.region.address :]
            self.data[nbytes] = first, inner[: inner.size // nbytes * nbytes].view(f"V{nbytes}")
        return self.data[nbytes]


class Watch:
    """All regions during one launch."""

    def __init__(self, memory: Memory, block: int) -> None:
        self.regions = [WatchedRegion(memory.regions[at], block) for at in sorted(memory.regions)]
        self.starts = [region.region.address for region in self.regions]

    def load(self, addresses: np.ndarray, nbytes: int, threads: np.ndarray) -> np.ndarray:
        """Values as void of ``nbytes``."""
        values = np.empty(addresses.shape, f"V{nbytes}")
        for region, part in self._split(addresses, nbytes):
            if part is None:
                return region.load(addresses, nbytes, threads)
            values[part] = region.load(addresses[part], nbytes, threads[part])
        return values

    def store(self, addresses: np.ndarray, values: np.ndarray, threads: np.ndarray) -> None:
        """Store void ``values``."""
        for region, part in self._split(addresses, values.itemsize):
            if part is None:
                region.store(addresses, values, threads)
            else:
                region.store(addresses[part], values[part], threads[part])

    def barrier(self, released: np.ndarray) -> None:
        """A barrier of the CTAs in ``released``."""
        for region in self.regions:
            region.barrier(released)

    def _split(self, addresses: np.ndarray, nbytes: int) -> Iterator[tuple[WatchedRegion, np.ndarray | None]]:
        """The regions that addresses are in, and where not all are in one, which of them are."""
        if (addresses & np.uint64(nbytes - 1)).any():
            raise PTXError(f"misaligned: an access of {nbytes} bytes")
        region = self._at(int(addresses.min()))
        if region is not None and int(addresses.max()) + nbytes <= region.region.end:
            yield region, None
            return
        indices = np.searchsorted(np.array(self.starts, np.uint64), addresses, side="right") - 1
        for index in np.unique(indices):
            part = np.flatnonzero(indices == index)
            region = self._at(int(addresses[part].min()))
            outside = int(addresses[part].max()) + nbytes
            if region is None or outside > region.region.end:
                raise PTXError(f"out of bounds: an access of {nbytes} bytes {self._nearest(outside - nbytes)}")
            yield region, part

    def _at(self, address: int) -> WatchedRegion | None:
        """The last region that starts at or before ``address``."""
        index = bisect_right(self.starts, address)
        return self.regions[index - 1] if index else None

    def _nearest(self, address: int) -> str:
        if not self.regions:
            return f"at {address:#x}, and there is no memory"
        region = min((r.region for r in self.regions), key=lambda r: abs(r.address + r.storage.size // 2 - address))
        return f"{address - region.address:+d} bytes from the start of {region.name} ({region.storage.size} bytes)"
