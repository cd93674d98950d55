"""Registers and memory of some CTAs of a launch. Threads are lanes of numpy arrays; a value that is the same for all
threads is an array of one."""

from __future__ import annotations

import numpy as np

from .counts import Counts
from .errors import PTXError
from .memory import Memory
from .operands import Lanes
from .syntax import Kernel
from .types import unsigned
from .watch import Watch

__all__ = ["PARAM_BASE", "Grid", "Machine"]

PARAM_BASE = 1 << 58
_SHARED_BASE = 1 << 57
_WARP = 32
_SECTOR_BYTES = 32
_NAN_BITS = {2: 0x7FFF, 4: 0x7FC0DEAD, 8: 0x7FF8DEAD7FC0DEAD}
Size = tuple[int, int, int]


class Grid:
    """CTAs and threads of a launch, numbered with x fastest."""

    def __init__(self, grid: Size, block: Size) -> None:
        self.grid, self.block = grid, block
        self.ctas, self.threads = (int(np.prod(size)) for size in (grid, block))


class Machine:
    """The CTAs ``first`` to ``first + ctas`` of a launch.

    Attributes:
        registers: values by register number; ``None`` before the first write.
        partly_written: of registers that only some threads have written, which.
        size: number of threads.
        cta, warp, thread: of each thread, counted from 0 in the machine, in the machine, and in the grid.
    """

    def __init__(
        self, kernel: Kernel, grid: Grid, first: int, ctas: int, parameters: np.ndarray, watch: Watch,
        shared_bytes: int, counts: Counts,
    ) -> None:  # fmt: skip
        self.kernel, self.grid, self.parameters, self.watch, self.counts = kernel, grid, parameters, watch, counts
        self.registers: list[np.ndarray | None] = [None] * kernel.num_registers
        self.partly_written: dict[int, np.ndarray] = {}
        self.size = ctas * grid.threads
        self.first = first
        self.cta, self._place = np.divmod(np.arange(self.size), grid.threads)
        self.warp = self.cta * -(-grid.threads // _WARP) + self._place // _WARP
        self.thread = np.arange(self.size) + first * grid.threads
        self._special: dict[str, np.ndarray] = {}
        self._shared_bytes = shared_bytes
        self._shared_step = -(-shared_bytes // 16) * 16
        shared = Memory()
        shared.add("shared memory", _SHARED_BASE, np.zeros(ctas * self._shared_step, np.uint8))
        self.shared = Watch(shared, grid.threads)

    def count(self, lanes: Lanes) -> int:
        """Number of acting threads."""
        return self.size if lanes is None else lanes.size

    def warps(self, lanes: Lanes) -> int:
        """Number of warps that they are in."""
        if lanes is None:
            return int(self.warp[-1]) + 1
        return int(np.count_nonzero(np.diff(self.warp[lanes]))) + 1

    def write(self, slot: int, lanes: Lanes, values: np.ndarray) -> None:
        """Set a register. Arrays are shared between registers, so that they are never changed."""
        if lanes is None:
            self.registers[slot] = values
            self.partly_written.pop(slot, None)
            return
        before = self.registers[slot]
        whole = np.empty(self.size, values.dtype)
        if before is None:
            whole[...] = 0
            self.partly_written[slot] = defined = np.zeros(self.size, bool)
        else:
            whole[...] = before.view(values.dtype)
            defined = self.partly_written.get(slot)
        whole[lanes] = values
        self.registers[slot] = whole
        if defined is not None:
            defined[lanes] = True
            if defined.all():
                del self.partly_written[slot]

    def defined_values(self, slot: int, name: str, size: int, lanes: Lanes, maybe_undefined: bool) -> np.ndarray:
        """A register that not all threads have written, if those that act have; or with NaN for those that have not."""
        values = self.registers[slot]
        defined = np.zeros(1, bool) if values is None else self.partly_written[slot]
        if (defined if lanes is None or defined.size == 1 else defined[lanes]).all():
            return values
        if not maybe_undefined:
            raise PTXError(f"register {name} is read before it is written")
        nan = np.array([_NAN_BITS[size]], unsigned(size))
        return nan if values is None else np.where(defined, values.view(nan.dtype), nan)

    def special(self, name: str) -> np.ndarray:
        """A special register, uint32."""
        if name not in self._special:
            self._special[name] = self._special_values(name[1:]).astype(np.uint32)
        return self._special[name]

    def _special_values(self, name: str) -> np.ndarray:
        if name == "laneid":
            return self._place % _WARP
        if name == "warpid":
            return self._place // _WARP
        what, axis = name[:-2], "xyz".index(name[-1])
        sizes, place = (
            (self.grid.block, self._place) if what.endswith("ntid") or what == "tid"
            else (self.grid.grid, self.cta + self.first)
        )  # fmt: skip
        if what.startswith("n") or sizes[axis] == 1:
            return np.array([sizes[axis] if what.startswith("n") else 0])
        return place // int(np.prod(sizes[:axis])) % sizes[axis]

    def address_of(self, symbol: str) -> int:
        """Where a parameter or a shared variable is."""
        for parameter in self.kernel.parameters:
            if parameter.name == symbol:
                return PARAM_BASE + parameter.offset
        if symbol in self.kernel.shared:
            return self.kernel.shared[symbol]
        raise PTXError(f"unknown symbol {symbol}")

    def load(self, space: str, addresses: np.ndarray, nbytes: int, lanes: Lanes) -> np.ndarray:
        """Void of ``nbytes`` per address; one address may stand for all threads."""
        if space == "param":
            return self._load_parameter(addresses, nbytes)
        threads = self.thread if lanes is None else self.thread[lanes]
        if space == "shared":
            return self.shared.load(self._in_shared(addresses, nbytes, lanes), nbytes, threads)
        self.counts.loads[nbytes] += threads.size
        self.counts.sectors["load"] += self._sectors(addresses, lanes)
        return self.watch.load(addresses, nbytes, threads)

    def store(self, space: str, addresses: np.ndarray, values: np.ndarray, lanes: Lanes) -> None:
        """Store void ``values``, one per acting thread."""
        threads = self.thread if lanes is None else self.thread[lanes]
        addresses = np.broadcast_to(addresses, threads.shape)
        if space == "shared":
            self.shared.store(self._in_shared(addresses, values.itemsize, lanes), values, threads)
            return
        self.counts.stores[values.itemsize] += threads.size
        self.counts.sectors["store"] += self._sectors(addresses, lanes)
        self.watch.store(addresses, values, threads)

    def _load_parameter(self, addresses: np.ndarray, nbytes: int) -> np.ndarray:
        offsets = (addresses - np.uint64(PARAM_BASE)).view(np.int64)
        if offsets.min() < 0 or offsets.max() + nbytes > self.parameters.size:
            raise PTXError(f"out of bounds of the parameters, {self.parameters.size} bytes")
        if (offsets % nbytes).any():
            raise PTXError(f"misaligned: an access of {nbytes} bytes to parameters")
        whole = self.parameters.size // nbytes * nbytes
        return self.parameters[:whole].view(f"V{nbytes}")[offsets // nbytes]

    def _in_shared(self, offsets: np.ndarray, nbytes: int, lanes: Lanes) -> np.ndarray:
        """Addresses of each thread's CTA's shared memory."""
        if int(offsets.max()) + nbytes > self._shared_bytes:
            raise PTXError(f"out of bounds: shared memory has {self._shared_bytes} bytes")
        cta = self.cta if lanes is None else self.cta[lanes]
        return offsets + (_SHARED_BASE + cta * self._shared_step).astype(np.uint64)

    def _sectors(self, addresses: np.ndarray, lanes: Lanes) -> int:
        """Sectors that each warp touches, summed; an access is never in two."""
        if addresses.size == 1:
            return self.warps(lanes)
        sectors = (addresses // _SECTOR_BYTES).view(np.int64)
        sectors = sectors - sectors.min()
        warps = self.warp if lanes is None else self.warp[lanes]
        both = np.sort(warps * (int(sectors.max()) + 1) + sectors)
        return int(np.count_nonzero(np.diff(both))) + 1

    def barrier(self, ctas: np.ndarray) -> None:
        """Order what threads of ``ctas``, counted in the machine, have done, for each other."""
        released = np.zeros(self.grid.ctas + 1, bool)
        released[ctas + self.first] = True
        self.watch.barrier(released)
        self.shared.barrier(released)
