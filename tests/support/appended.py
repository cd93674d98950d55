"""Calls that store in a KV cache: which caches the case list is run with, and what each of them must hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from support import tolerances
from support.cases import Case, Made, config_of, from_tokens_first, make, seed_of, strided, tokens_first
from support.normed import CAN_BE_NORMED, NORMS, NormedCall, NormKind, normed_exactly

import rope_kernels as rk

__all__ = ["CALLS", "EVERY_CALL", "KINDS", "AppendCall", "CacheKind", "every_float32_around", "quantised"]

PAGE_SIZE = 4
FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@dataclass(frozen=True)
class CacheKind:
    """The cache of a call.

    Attributes:
        memory: "nhd", "hnd", "planes" (k and v of a page side by side), "static" (a page per sequence), or "joined"
            (k and v of a token side by side).
        k, v: "same" dtype as q, "e4m3", "e5m2", "int8", or "" (not stored).
        slots: "permuted", "some" (a few are -1), "short" (the last tokens have none), or "grid" ((batch, seq)).
        width: of v's heads; 0: head_dim.
        v_heads: of v; 0: as k.
        norm: which heads are normed.
        v_norm: norm the heads of v too.
        form: "in place", "out", "out with k", or "returned".
    """

    memory: str
    k: str = "same"
    v: str = "same"
    slots: str = "permuted"
    width: int = 0
    v_heads: int = 0
    norm: NormKind | None = None
    v_norm: bool = False
    form: str = "in place"

    def __str__(self) -> str:
        parts = [self.memory, self.k or "no-k", self.v or "no-v", self.slots, self.form.replace(" ", "_")]
        parts += [f"width{self.width}"] if self.width else []
        parts += [str(self.norm)] if self.norm else []
        return "-".join([*parts, *(["v_norm"] if self.v_norm else [])])


KINDS = [
    CacheKind("nhd"),
    CacheKind("hnd", slots="some", form="out"),
    CacheKind("planes", slots="short", norm=NORMS[0]),
    CacheKind("static", slots="grid", form="returned"),
    CacheKind("joined", width=40, v_heads=1, norm=NORMS[5], form="out with k"),
    CacheKind("nhd", k="e4m3", v="e4m3", slots="some"),
    CacheKind("hnd", k="e5m2", v="int8", width=24, norm=NORMS[1], form="returned"),
    CacheKind("planes", k="int8", v="e5m2", v_norm=True, form="out"),
    CacheKind("nhd", v="", slots="short", form="out with k"),
    CacheKind("nhd", k="", norm=NORMS[4], v_norm=True),
    CacheKind("hnd", k="e4m3", v="same", v_norm=True, width=72, norm=NORMS[6], form="out with k"),
]


@dataclass
class Filled:
    """The tensors of a call. ``memory``: what the caches are views of, all NaN, or all 1 in int8."""

    made: Made
    v: torch.Tensor | None
    memory: list[torch.Tensor]
    cache: rk.KVCache
    options: dict[str, Any]


@dataclass(frozen=True)
class AppendCall:
    """A case and the kind of its cache."""

    case: Case
    kind: CacheKind

    def __str__(self) -> str:
        return f"{self.case}-{self.kind}"

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return self.case.tokens * (1 if self.case.layout == "thd" else self.case.batch)

    def fill(self) -> Filled:
        """New tensors, the same each time."""
        case, kind = self.case, self.kind
        made = make(case)
        if not kind.k:
            made.k = None
        generator = torch.Generator().manual_seed(seed_of(case) + 2)
        v = None
        if kind.v:
            heads, width = kind.v_heads or case.k_heads, kind.width or case.config["head_dim"]
            shape = (*tokens_first(made.q, case.layout).shape[:2], heads, width)
            values = torch.randn(shape, generator=generator).to(case.dtype)
            values = from_tokens_first(values, case.layout)
            v = strided(values, case.view)
        memory, k_cache, v_cache = self._caches(v)
        slots = self._slots(generator, memory, k_cache if k_cache is not None else v_cache)
        scales = [
            None if name in ("same", "") else torch.rand(heads, generator=generator) * 0.1 + 0.01
            for name, heads in ((kind.k, 1), (kind.v, 0 if v is None else v_cache.shape[2]))
        ]
        cache = rk.KVCache(k_cache, v_cache, slots, *scales)
        return Filled(made, v, memory, cache, made.options | self._norms(v))

    def _caches(self, v: torch.Tensor | None) -> tuple[list[torch.Tensor], Any, Any]:
        """(memory, cache of k, cache of v): pages in front and behind that no slot has."""
        case, kind = self.case, self.kind
        heads = {"k": case.k_heads, "v": kind.v_heads or case.k_heads}
        widths = {"k": case.config["head_dim"], "v": kind.width or case.config["head_dim"]}
        dtypes = {
            s: FLOAT8.get(getattr(kind, s), torch.int8 if getattr(kind, s) == "int8" else case.dtype) for s in "kv"
        }
        sides = [s for s in "kv" if getattr(kind, s)]
        page_size = max(case.tokens, 1) if kind.memory == "static" else PAGE_SIZE
        pages = self.tokens // page_size + 3
        made: dict[str, torch.Tensor] = {}
        memory = []

        def new(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            memory.append(
                torch.ones(shape).to(dtype) if dtype == torch.int8 else torch.full(shape, torch.nan).to(dtype)
            )
            return memory[-1]

        one = len(sides) == 2 and dtypes["k"] == dtypes["v"]
        if kind.memory == "joined" and one and heads["k"] == heads["v"]:
            both = new((pages, page_size, heads["k"], widths["k"] + widths["v"]), dtypes["k"])
            made = {"k": both[..., : widths["k"]], "v": both[..., widths["k"] :]}
        elif kind.memory == "planes" and one and heads["k"] == heads["v"] and widths["k"] == widths["v"]:
            both = new((pages, 2, page_size, heads["k"], widths["k"]), dtypes["k"])
            made = {"k": both[:, 0], "v": both[:, 1]}
        else:
            for s in sides:
                if kind.memory in ("hnd", "static"):
                    made[s] = new((pages, heads[s], page_size, widths[s]), dtypes[s]).transpose(1, 2)
                else:
                    made[s] = new((pages, page_size, heads[s], widths[s]), dtypes[s])
        return memory, made.get("k"), made.get("v")

    def _slots(self, generator: torch.Generator, memory: list[torch.Tensor], cache: torch.Tensor) -> torch.Tensor:
        kind, tokens = self.kind, self.tokens
        page_size = cache.shape[1]
        # None in the first page, nor in the last.
        slots = page_size + torch.randperm((cache.shape[0] - 2) * page_size, generator=generator)[:tokens]
        if kind.slots == "some":
            slots[1::3] = torch.tensor([-1, -(2**31)])[torch.arange(len(slots[1::3])) % 2]
        if kind.slots == "short":
            slots = slots[: tokens - tokens // 3]
        if kind.slots == "grid" and self.case.layout != "thd":
            return slots.reshape(self.case.batch, self.case.tokens)
        return slots.to(torch.int32) if seed_of(self.case) % 2 else slots

    def _norms(self, v: torch.Tensor | None) -> dict[str, Any]:
        norms: dict[str, Any] = {}
        if self.kind.norm is not None:
            call = NormedCall(self.case, self.kind.norm)
            norms = call.options(call.weights())
            if not self.kind.k:
                norms["k_norm"] = None
        if self.kind.v_norm and v is not None:
            weight = torch.randn(v.shape[-1], generator=torch.Generator().manual_seed(3))
            norms["v_norm"] = rk.HeadNorm(weight, 1e-5, weight_offset=0.5)
        return norms

    def append(self, filled: Filled) -> tuple[tuple[torch.Tensor, torch.Tensor | None], Any]:
        """(what the call returns, ``out`` that it was given)."""
        made, form = filled.made, self.kind.form
        out = None
        if form.startswith("out"):
            wanted_k = form == "out with k" and made.k is not None
            out = torch.full_like(made.q, torch.nan), torch.full_like(made.k, torch.nan) if wanted_k else None
        returned = form == "returned" and made.k is not None
        options = filled.options | dict(out=out, return_k=returned)
        got = rk.apply_rope_append(
            made.q, made.k, filled.v, made.positions, config_of(self.case), filled.cache, **options
        )
        return got, out

    def rotated(self, filled: Filled, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(q, k) by ``apply_rope`` with the same norms, of q and k in ``dtype``."""
        made = filled.made
        q, k = (None if x is None else x.to(dtype or x.dtype) for x in (made.q, made.k))
        options = {name: value for name, value in filled.options.items() if name != "v_norm"}
        return rk.apply_rope(q, k, made.positions, config_of(self.case), **options)

    def expected(
        self, filled: Filled, k: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What ``filled.memory`` must be afterwards, by an indexed copy token by token: (lowest, highest) numbers.

        They have the same bits, but for normed v, whose contract is 5e-7 of its largest value before it is rounded.

        ``k``: bounds of the rotated k, if it is not to be that of ``apply_rope``.
        """
        kind = self.kind
        rows: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        if kind.k and k is None:
            rotated = self.rotated(filled, None if kind.k == "same" else torch.float32)[1]
            assert rotated is not None
            k = rotated, rotated
        if kind.k:
            assert k is not None
            rows["k"] = k
        if kind.v:
            assert filled.v is not None
            rows["v"] = self._bounds_of_v(filled.v, filled.options.get("v_norm"))
        return list(zip(*(self._stored(filled, {s: pair[i] for s, pair in rows.items()}) for i in (0, 1)), strict=True))

    def _bounds_of_v(self, v: torch.Tensor, norm: rk.HeadNorm | None) -> tuple[torch.Tensor, torch.Tensor]:
        if norm is None:
            return v, v
        y = normed_exactly(v, norm)
        off = tolerances.CONTRACT_EPS * (float(y.abs().max()) if y.numel() else 0.0)
        return y - off, y + off

    def _stored(self, filled: Filled, rows: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """``filled.memory`` with k's and v's rows copied to their slots."""
        case, kind, cache = self.case, self.kind, filled.cache
        before = [m.clone() for m in filled.memory]
        end = sum(case.lengths) if case.lengths else self.tokens
        for side, y in rows.items():
            name, paged = getattr(kind, side), getattr(cache, side)
            stored = quantised(y, getattr(cache, f"{side}_scale"), case, name)
            for token, slot in enumerate(cache.slots.flatten().tolist()):
                if slot >= 0 and token < end:
                    as_bytes(paged)[slot // paged.shape[1], slot % paged.shape[1]] = as_bytes(stored)[token]
        after = [m.clone() for m in filled.memory]
        for m, old in zip(filled.memory, before, strict=True):
            m.copy_(old)
        return after


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.element_size()])


def quantised(y: torch.Tensor, scale: torch.Tensor | None, case: Case, name: str) -> torch.Tensor:
    """(tokens, heads, width) as the cache stores them; by torch's conversions of numbers within its range."""
    y = tokens_first(y, case.layout).flatten(0, 1)
    if name == "same":
        return y.to(case.dtype)
    assert scale is not None
    z = y / scale.reshape(-1, 1)
    if name == "int8":
        return torch.where(z.isnan(), 0.0, z).round().clamp(-128, 127).to(torch.int8)
    most = torch.finfo(FLOAT8[name]).max
    return z.clamp(-most, most).float().to(FLOAT8[name])


def every_float32_around(dtype: torch.dtype) -> torch.Tensor:
    """All numbers of an 8-bit type, the midpoints between neighbours, the floats next to those, and what is beyond."""
    numbers = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    numbers = numbers[numbers.isfinite()].unique()
    middle = (numbers[1:] + numbers[:-1]) / 2
    near = torch.cat([torch.nextafter(middle, torch.tensor(s * torch.inf)) for s in (1.0, -1.0)])
    top = numbers[-1] * torch.tensor([1.0, 1.01, 1.03125, 1.0624, 1.0625, 1.07, 2.0, 1e9])
    odd = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, -1e-45, 1e-38])
    return torch.cat((numbers, middle, near, top, -top, odd))


CAN_APPEND = [case for case in CAN_BE_NORMED if case.k_heads]


def _calls() -> list[AppendCall]:
    """Every case with one kind of cache, and every kind with several cases."""
    several = [
        c for c in CAN_APPEND if c.name in ("partial-bf16", "layout-bhsd-bf16", "packed-scaled-tail", "shape3x33")
    ]
    listed = [AppendCall(case, KINDS[i % len(KINDS)]) for i, case in enumerate(CAN_APPEND)]
    return list(dict.fromkeys([*listed, *(AppendCall(case, kind) for case in several for kind in KINDS)]))


CALLS = _calls()
EVERY_CALL = [AppendCall(replace(case), kind) for case in CAN_APPEND for kind in KINDS]
