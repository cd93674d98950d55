"""The compile-time constants of a launch, chosen in plain Python: what to compute, and the tiles of a program.

A *row* is the channels of one head of one token. A *unit* is one load of a thread: a word of two neighbouring elements,
or one element if rows are not aligned to words. With pairing "half" a word belongs to two pairs, else a unit to one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from ...core.rotation import Rotation

__all__ = ["BYTES_IN_FLIGHT", "Angle", "Memory", "RowNorm", "Tile", "alignment", "bytes_in_flight", "launch_tile",
           "num_tiles", "power_of_2", "value_tile"]  # fmt: skip

BYTES_IN_FLIGHT = 40 * 1024
"""What a multiprocessor should have asked memory for at any time.

By Little's law: an H200 moves 4.3 TB/s, 26 KB per multiprocessor in the 0.8 us that memory takes to answer; more hides
what a program does before its first load and after its last.
"""

_RESIDENT_WARPS = 32
"""Of a multiprocessor that has 65,536 registers, 64 of each thread."""
_MAX_WARPS = 4
_WARP = 32
_MAX_VECTOR_BYTES = 16


@dataclass(frozen=True)
class Angle:
    """Which parts of the angle computation a kernel contains.

    Attributes:
        PHASE: "fixed" (integer positions), "float" (fractional ones) or "float32" (an fp32 product).
        LADDER: entries of the frequency ladder that the kernel computes; 0 if a table holds finished frequencies.
        TABLE_ROWS, TABLE_SIZE: rows of the table on the device (2: short and long) and entries of one.
        RAMP: what the clamped ramp depends on: "index", "frequency", "both", or "" without one.
        GROWS, WRAPPED, ROTATED: dynamic NTK; frequencies of a turn or more; how many are not zero (None: all).
        AXES, MAPPED, MAPPED_INDEX: axes of positions; whether pairs need a map; whether it holds frequencies too.
        COUNTED: positions are counted rather than loaded.
        OFFSETS, LENGTHS, FROM_LENGTHS: 0 none, 1 one for all tokens, 2 one per batch entry or packed sequence.
        SEARCH_STEPS: steps of the bisection that finds a token's sequence, or more; 0 without packed sequences.
        SWITCHED: the length chooses between two table rows or two scalings.
        SCALINGS: 0 none, 1 one, 2 chosen by the length.
        ROUNDED: dtype that cos and sin are rounded to, or "".
        INVERSE: rotate backwards.
    """

    PHASE: str = "fixed"
    LADDER: int = 0
    TABLE_ROWS: int = 0
    TABLE_SIZE: int = 0
    RAMP: str = ""
    GROWS: bool = False
    WRAPPED: bool = False
    ROTATED: int | None = None
    AXES: int = 1
    MAPPED: bool = False
    MAPPED_INDEX: bool = False
    COUNTED: bool = False
    OFFSETS: int = 0
    LENGTHS: int = 0
    FROM_LENGTHS: int = 0
    SEARCH_STEPS: int = 0
    SWITCHED: bool = False
    SCALINGS: int = 0
    ROUNDED: str = ""
    INVERSE: bool = False


@dataclass(frozen=True)
class Memory:
    """Where the tensors of a call are in memory, as far as a kernel is compiled for it.

    Attributes:
        ITEM_BYTES: bytes of an element.
        ALIGNED: bytes that all parts of all rows are aligned to, from :func:`alignment`.
        DENSE_HEADS: there are no gaps between heads, so that their stride is a constant.
        IN_PLACE: the outputs are the inputs.
        BATCHED: a token has two indices, its batch entry and its place there.
    """

    ITEM_BYTES: int
    ALIGNED: int = 16
    DENSE_HEADS: bool = True
    IN_PLACE: bool = False
    BATCHED: bool = False


@dataclass(frozen=True)
class RowNorm:
    """Which norm the rows of q or of k get.

    Attributes:
        WEIGHTED: there is a weight.
        AFTER: the rotated row is normed.
        OFFSET: something is added to the weight.
        WEIGHT_WORDS: words of the weight that a thread may load at once; 0 if it is not aligned to words.
    """

    WEIGHTED: bool
    AFTER: bool
    OFFSET: bool = False
    WEIGHT_WORDS: int = 0


@dataclass(frozen=True)
class Tile:
    """How heads, tokens and channels are split over programs and threads, and which channels of a row are rotated.

    Attributes:
        TOKENS, Q_BLOCK, K_BLOCK: tokens of a program, heads of q and k in one pass; powers of two.
        WARPS: warps of a program.
        CHUNK: pairs of a program, a power of two; a row takes CHUNKS programs.
        VECTOR: units of a row that one thread holds.
        WORDS: units are words.
        Q_HEADS, K_HEADS, HEAD_DIM: sizes; 0 heads if there is no tensor.
        PAIRS, OFFSET, DISTANCE, BLOCK_PAIRS: see Rotation; BLOCK_PAIRS is the number of pairs of one block.
        READ_PAIRS, WRITE_PAIRS: whether the members of a pair are neighbours as read and as written.
        TAIL: the last program has tokens past the end.
        MEMORY: where the rows are.
    """

    TOKENS: int
    Q_BLOCK: int
    K_BLOCK: int
    WARPS: int
    CHUNK: int
    CHUNKS: int
    VECTOR: int
    WORDS: bool
    Q_HEADS: int
    K_HEADS: int
    HEAD_DIM: int
    PAIRS: int
    OFFSET: int
    DISTANCE: int
    BLOCK_PAIRS: int
    READ_PAIRS: bool
    WRITE_PAIRS: bool
    TAIL: bool
    MEMORY: Memory

    @property
    def PAIRS_PER_UNIT(self) -> int:  # noqa: N802
        """Two if a word holds first or second members only."""
        return 2 if self.WORDS and not (self.READ_PAIRS or self.WRITE_PAIRS) else 1

    @property
    def READ_WORDS(self) -> bool:  # noqa: N802
        """Whether units are read as words: not if a pair is read from two places and written to one word."""
        return self.WORDS and (self.READ_PAIRS or not self.WRITE_PAIRS)

    @property
    def WRITE_ITEMS(self) -> int:  # noqa: N802
        """Two if results are joined to words before they are stored."""
        return 2 if self.WORDS and (self.WRITE_PAIRS or not self.READ_PAIRS) else 1

    @property
    def UNITS(self) -> int:  # noqa: N802
        """Units in a program's part of a row."""
        return self.CHUNK // self.PAIRS_PER_UNIT

    @property
    def COPIES(self) -> tuple[tuple[int, int], ...]:  # noqa: N802
        """Ranges of channels that are copied, not rotated."""
        first, last = self.OFFSET, self.OFFSET + 2 * self.PAIRS
        ranges = [(0, first)]
        if not (self.READ_PAIRS or self.WRITE_PAIRS) and self.BLOCK_PAIRS == self.PAIRS:
            ranges.append((first + self.PAIRS, first + self.DISTANCE))
            last = first + self.DISTANCE + self.PAIRS
        ranges.append((last, self.HEAD_DIM))
        return tuple(r for r in ranges if r[0] < r[1])

    @property
    def RESTS(self) -> tuple[tuple[int, int], ...]:  # noqa: N802
        """The ranges of COPIES in parts of UNITS units, of which a thread holds as many as of the rotated part."""
        step = self.UNITS * (2 if self.WORDS else 1)
        return tuple((i, min(i + step, last)) for first, last in self.COPIES for i in range(first, last, step))

    @property
    def PLANES(self) -> int:  # noqa: N802
        """Numbers of a row that belong to one unit, counting a unit of each of RESTS."""
        return 2 * self.PAIRS_PER_UNIT + (2 if self.WORDS else 1) * len(self.RESTS)


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n``, and at least 1."""
    return 1 << max(n - 1, 0).bit_length()


def alignment(item_bytes: int, byte_offsets: list[int], rotation: Rotation) -> int:
    """Bytes, at most 16, that all parts of all rows are aligned to.

    ``byte_offsets``: addresses and strides, in bytes, of the tensors.
    """
    interleaved = rotation.pairing != "half"
    block = rotation.num_pairs // rotation.blocks
    places = [rotation.rotary_offset]
    if rotation.pairing != "interleaved":
        places += [rotation.distance, rotation.num_pairs]
    if rotation.blocks > 1:
        places.append(block)
    if interleaved:
        places.append(2 * rotation.num_pairs)
    return math.gcd(_MAX_VECTOR_BYTES, *byte_offsets, *(p * item_bytes for p in places))


@lru_cache(maxsize=4096)
def launch_tile(
    tokens: int, q_heads: int, k_heads: int, rotation: Rotation, memory: Memory, *,
    multiprocessors: int, inverse: bool = False, loads_per_pair: bool = False, one_head: bool = False,
    normed: bool = False,
) -> Tile:  # fmt: skip
    """The shape of a launch over ``tokens`` tokens.

    With few tokens each program takes one, so that there are many programs, and spreads the heads over its threads.
    With many, a program takes as many as fill four warps and holds a few heads in registers, so that all heads of a
    token share its angles. Tokens are many if programs of the second kind keep BYTES_IN_FLIGHT moving on every
    multiprocessor, or as much as they ever can; or get on faster than those of the first kind, once no more of these
    fit.

    Args:
        tokens: tokens of the call.
        q_heads: heads of q; 0 without q.
        k_heads: heads of k; 0 without k.
        rotation: the geometry.
        memory: where the rows are.
        multiprocessors: of the GPU.
        inverse: pairs are written to where a forward call reads them.
        loads_per_pair: maps or tables are loaded; they must have fewer entries than a program has threads, or Triton
            would load them in a layout of their own and convert it through shared memory.
        one_head: angles are not shared between heads.
        normed: a row is in one warp, the same threads hold the same channels in every tile; weights may be loaded for
            each pair, which for many tokens needs as many threads as ``loads_per_pair``.
    """
    given = (q_heads, k_heads, rotation, memory, inverse, loads_per_pair, one_head, normed)
    few, many = _tile(*given, many=False), _tile(*given, many=True)
    share = tokens / multiprocessors
    moving = bytes_in_flight(many, share)
    is_enough = moving >= min(BYTES_IN_FLIGHT, bytes_in_flight(many, math.inf))
    is_faster = share > _resident_tokens(few) and _pace(many, share) > _pace(few, share)
    if not (is_enough or is_faster):
        return few
    return _tile(*given, many=True, tail=True) if tokens % many.TOKENS else many


def bytes_in_flight(tile: Tile, tokens: float) -> float:
    """Bytes that a multiprocessor with its share of a call's ``tokens`` has asked memory for at a time."""
    blocks = (tile.Q_BLOCK, tile.Q_HEADS) if tile.Q_HEADS else (tile.K_BLOCK, tile.K_HEADS)
    row = 2 * tile.PAIRS * tile.MEMORY.ITEM_BYTES
    return min(tokens, _resident_tokens(tile)) * min(blocks) * row


def num_tiles(tile: Tile) -> int:
    """Tiles that a program goes through, one after the other."""
    return sum(-(-h // block) for h, block in ((tile.Q_HEADS, tile.Q_BLOCK), (tile.K_HEADS, tile.K_BLOCK)))


def _pace(tile: Tile, tokens: float) -> float:
    """Tokens that a multiprocessor is done with per wait for memory, as far as programs do nothing but wait.

    A program waits once per tile, and about two times as long for its positions and angles.
    """
    return min(tokens, _resident_tokens(tile)) / (num_tiles(tile) + 2)


def _resident_tokens(tile: Tile) -> float:
    """Tokens whose programs fit on a multiprocessor at a time."""
    return max(1, _RESIDENT_WARPS // tile.WARPS) * tile.TOKENS / tile.CHUNKS


@lru_cache(maxsize=4096)
def _tile(
    q_heads: int, k_heads: int, rotation: Rotation, memory: Memory,
    inverse: bool, loads_per_pair: bool, one_head: bool, normed: bool, *, many: bool, tail: bool = False,
) -> Tile:  # fmt: skip
    """The tile of a program of one token or of many; ``tail``: the last program has fewer.

    Every thread of every tile has VECTOR units, 16 bytes if rows are aligned to that: with fewer, Triton would narrow
    the accesses.
    """
    read_pairs = rotation.pairing != "half"
    write_pairs = rotation.pairing == "interleaved"
    if inverse:
        read_pairs, write_pairs = write_pairs, read_pairs
    halves = not (read_pairs or write_pairs)
    pairs, block = rotation.num_pairs, rotation.num_pairs // rotation.blocks
    words = memory.ALIGNED >= 2 * memory.ITEM_BYTES and not (halves and block % 2)
    words = words and not (normed and rotation.head_dim % 2)
    per_unit = 2 if words and halves else 1
    # one program reads all that it overwrites, and all that it norms
    whole_rows = not many or normed or (memory.IN_PLACE and read_pairs != write_pairs)
    chunk = power_of_2(pairs) if whole_rows else _chunk(pairs)
    units = chunk // per_unit
    vector = max(1, min(memory.ALIGNED // (2 * memory.ITEM_BYTES) if words else 1, units // 2))
    lanes = units // vector
    warps = 1
    while (loads_per_pair or (normed and many)) and 32 * warps <= units:
        warps *= 2
    if normed and lanes > _WARP:
        shape = (1, 1, 1, 1)
    elif many:
        most = 1 if one_head else 2 if halves else 4
        shape = _many_tokens(q_heads, k_heads, lanes, max(warps, _MAX_WARPS), most)
    else:
        is_plain = chunk == pairs and memory.DENSE_HEADS and not normed
        shape = _few_tokens(q_heads, k_heads, lanes, warps, halves, is_plain)
    return Tile(
        *shape, CHUNK=chunk, CHUNKS=max(1, pairs // chunk), VECTOR=vector, WORDS=words,
        Q_HEADS=q_heads, K_HEADS=k_heads, HEAD_DIM=rotation.head_dim, PAIRS=pairs, OFFSET=rotation.rotary_offset,
        DISTANCE=rotation.distance, BLOCK_PAIRS=block, READ_PAIRS=read_pairs, WRITE_PAIRS=write_pairs,
        TAIL=tail, MEMORY=memory,
    )  # fmt: skip


def value_tile(tile: Tile, heads: int, width: int, dense_heads: bool) -> Tile:
    """Of ``heads`` (``Q_HEADS``) of ``width`` channels that are not rotated, beside those of ``tile``.

    It has no pairs, and as many units as ``tile``, held by the same threads: Triton gives what has one shape one
    layout, and would convert what needs another.
    """
    least = max(1, _WARP * tile.WARPS * tile.VECTOR // (tile.UNITS * tile.TOKENS))
    return replace(
        tile, Q_BLOCK=_block(heads, least, 2 * least), K_BLOCK=1, CHUNK=tile.UNITS, CHUNKS=1, Q_HEADS=heads, K_HEADS=0,
        HEAD_DIM=width, PAIRS=0, OFFSET=0, DISTANCE=0, BLOCK_PAIRS=0, READ_PAIRS=True, WRITE_PAIRS=True,
        MEMORY=replace(tile.MEMORY, IN_PLACE=False, DENSE_HEADS=dense_heads),
    )  # fmt: skip


def _chunk(pairs: int) -> int:
    """Pairs of one program. 48 pairs become three programs of 16, but no part is below 16 pairs: those are masked."""
    part = pairs & -pairs
    return part if part >= 16 else power_of_2(pairs)


def _many_tokens(q_heads: int, k_heads: int, lanes: int, warps: int, most: int) -> tuple[int, int, int, int]:
    """(tokens, heads of q, heads of k, warps): ``lanes`` threads share a row, and tokens are spread over the others."""
    tokens = max(1, min(32 * warps // lanes, 16 * warps))
    least = max(1, 32 * warps // (lanes * tokens))
    return tokens, _block(q_heads, least, most), _block(k_heads, least, most), warps


def _few_tokens(
    q_heads: int, k_heads: int, lanes: int, warps: int, halves: bool, plain: bool
) -> tuple[int, int, int, int]:
    """The same for one token: heads are spread over the other threads, each with a few that share their angles.

    A thread holds four rows if those are all it gets, else two: masks and addresses take registers too, at most 64.
    """
    fewest = min((h for h in (q_heads, k_heads) if h), default=1)
    shared = 1 if halves else 2  # a row of pairs is half as much work per thread
    while warps < _MAX_WARPS:
        row = 64 * warps // lanes
        if row * shared > min(power_of_2(fewest), (q_heads + k_heads) // 4):
            break
        warps *= 2
    row = max(1, 32 * warps // lanes)
    most = row * (4 if plain and warps > 1 and max(q_heads, k_heads) <= 4 * row else 2)
    return 1, _block(q_heads, row, most), _block(k_heads, row, most), warps


def _block(heads: int, least: int, most: int) -> int:
    """Heads of one pass: the most that leave no remainder, else the fewest that cover all heads, up to ``most``."""
    block = max(least, most)
    while block > least and heads % block:
        block //= 2
    return block if heads % block == 0 else max(least, min(most, power_of_2(heads)))
