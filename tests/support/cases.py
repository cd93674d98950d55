"""The one list of cases that every backend, every gradient test and every emulation runs."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from support import oracle, tolerances

HALF, PAIRS = "half", "interleaved"
SHORT = [1.0 + 0.01 * i for i in range(32)]
LONG = [1.0 + 2.0 * i for i in range(32)]

CONFIGS = {
    "default": dict(head_dim=64),
    "linear": dict(head_dim=64, rope_type="linear", factor=4.0),
    "dynamic": dict(head_dim=64, rope_type="dynamic", factor=2.0, max_position_embeddings=32),
    "ntk_alpha": dict(head_dim=64, rope_type="ntk_alpha", alpha=1000.0),
    "yarn": dict(
        head_dim=64, rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=32768,
        max_position_embeddings=131072,
    ),
    "yarn_untruncated": dict(
        head_dim=64, rope_type="yarn", rope_theta=1.5e5, factor=32.0, original_max_position_embeddings=4096,
        max_position_embeddings=131072, truncate=False,
    ),
    "yarn_mscale": dict(
        head_dim=64, rope_type="yarn", factor=40.0, original_max_position_embeddings=4096,
        max_position_embeddings=163840, mscale=1.0, mscale_all_dim=0.7, pairing="interleaved_to_half",
    ),
    "llama3": dict(
        head_dim=128, rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192, max_position_embeddings=131072,
    ),
    "longrope": dict(
        head_dim=64, rope_type="longrope", original_max_position_embeddings=16, max_position_embeddings=512,
        short_factor=SHORT, long_factor=LONG,
    ),
    "longrope_mscale": dict(
        head_dim=64, rope_type="longrope", original_max_position_embeddings=16, max_position_embeddings=512,
        short_factor=SHORT, long_factor=LONG, short_mscale=1.25, long_mscale=0.75,
    ),
    "proportional": dict(head_dim=128, rope_type="proportional", rope_theta=1e6, partial_rotary_factor=0.25),
    "table": dict(inv_freq=[3.0 / (1 + i * i) - 1.5 * (i % 3) for i in range(32)], head_dim=64, attention_scaling=1.1),
    "mrope_contiguous": dict(head_dim=64, rope_type="mrope", mrope_section=[8, 12, 12], rope_theta=1e6),
    "mrope_interleaved": dict(
        head_dim=64, rope_type="mrope", mrope_section=[12, 10, 10], axis_map="interleaved", rope_theta=5e6
    ),
    "mrope_ernie": dict(
        head_dim=64, rope_type="mrope", mrope_section=[11, 11, 10], axis_map="ernie", pairing="interleaved"
    ),
    "four_ladders": dict(
        head_dim=64, inv_freq=[2000.0 ** (-i / 8) for _ in range(4) for i in range(8)], mrope_section=[8, 8, 8, 8],
        pairing="interleaved",
    ),
    "two_ladders": dict(
        head_dim=64, inv_freq=[(100.0 + j) ** (-i / 16) for i in range(16) for j in range(2)], mrope_section=[16, 16],
        axis_map="interleaved", pairing="interleaved",
    ),
    "axial_qwen": dict(head_dim=80, rope_type="axial", axis_map="qwen_vision"),
    "axial_pixtral": dict(head_dim=64, rope_type="axial", axis_map="pixtral"),
    "axial_kimi": dict(head_dim=72, rope_type="axial", axis_map="kimi"),
    "axial_gemma4": dict(head_dim=72, rope_type="axial", axis_map="gemma4_vision", rope_theta=100.0),
    "partial": dict(head_dim=96, partial_rotary_factor=0.25),
    "partial_odd": dict(head_dim=80, partial_rotary_factor=0.225, pairing="interleaved"),
    "nope_first": dict(head_dim=192, partial_rotary_factor=64 / 192, rotary_offset=128),
    "nope_first_pairs": dict(
        head_dim=96, partial_rotary_factor=1 / 3, rotary_offset=64, pairing="interleaved_to_half"
    ),
    "float32_phase": dict(head_dim=64, phase="float32"),
}  # fmt: skip
EVERYWHERE = (0, 1, 4095, 131071, 1048575, 2**24, -1, -131071)
LAST = (2**31 - 1, 2**31 - 2, -(2**31))


@dataclass(frozen=True)
class Case:
    """One call of the op. ``positions`` is a form (see :func:`make`), ``lengths`` are packed sequences ("thd")."""

    name: str
    config: dict = field(hash=False)
    dtype: torch.dtype = torch.float32
    layout: str = "bshd"
    batch: int = 2
    tokens: int = 3
    q_heads: int = 4
    k_heads: int = 2
    positions: str = "batch"
    start: int = 0
    at: tuple[int, ...] = ()
    seq_len: int | tuple[int, ...] | None = None
    from_seq_len: int | None = None
    offset: int | tuple[int, ...] | None = None
    lengths: tuple[int, ...] = ()
    inverse: bool = False
    unscaled: bool = False
    view: str = "dense"

    def __str__(self) -> str:
        return self.name


def _cases() -> list[Case]:
    out = []
    for name, config in CONFIGS.items():
        out.append(Case(f"{name}-near", config))
        out.append(Case(f"{name}-bf16", config, start=4095, dtype=torch.bfloat16))
        out.append(Case(f"{name}-everywhere", config, at=EVERYWHERE, tokens=len(EVERYWHERE)))
        out.append(Case(f"{name}-last", config, at=LAST, tokens=len(LAST)))
    default, llama3, longrope, dynamic = (CONFIGS[n] for n in ("default", "llama3", "longrope", "dynamic"))
    for pairing in ("half", "interleaved", "interleaved_to_half"):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            config = dict(llama3, pairing=pairing)
            for inverse in (False, True):
                name = f"{pairing}-{str(dtype)[6:]}-{'inverse' if inverse else 'forward'}"
                out.append(Case(name, config, dtype=dtype, inverse=inverse, start=1000))
    for head_dim in (32, 64, 80, 96, 112, 128, 192, 256, 512):
        for pairing in (HALF, PAIRS):
            out.append(Case(f"head_dim{head_dim}-{pairing}", dict(head_dim=head_dim, pairing=pairing), start=77))
    for layout in ("bhsd", "sbhd", "thd"):
        out.append(Case(f"layout-{layout}", llama3, layout=layout))
        out.append(Case(f"layout-{layout}-bf16", llama3, layout=layout, dtype=torch.bfloat16))
        out.append(Case(f"layout-{layout}-mrope", CONFIGS["mrope_contiguous"], layout=layout))
    for view in ("fused", "odd", "transposed"):
        for dtype in (torch.float32, torch.bfloat16):
            out.append(Case(f"view-{view}-{str(dtype)[6:]}", llama3, view=view, dtype=dtype))
        out.append(Case(f"view-{view}-partial", CONFIGS["partial"], view=view, dtype=torch.float16))
    for q_heads, k_heads in ((1, 1), (32, 8), (28, 4), (7, 7), (5, 0), (12, 1)):
        out.append(Case(f"heads{q_heads}-{k_heads}", default, q_heads=q_heads, k_heads=k_heads))
    for positions in ("seq", "one", "none", "float", "int32", "shared"):
        out.append(Case(f"positions-{positions}", default, positions=positions, start=9))
    out.append(Case("positions-float-axes", CONFIGS["axial_qwen"], positions="float"))
    out.append(Case("positions-shared-mrope", CONFIGS["mrope_contiguous"], positions="shared"))
    out.append(Case("positions-float-longrope", longrope, positions="float", seq_len=(16, 17)))
    for n, config in (("longrope", longrope), ("dynamic", dynamic), ("mscale", CONFIGS["longrope_mscale"])):
        out.append(Case(f"seq_len-batch-{n}", config, seq_len=(16, 117)))
        out.append(Case(f"seq_len-one-{n}", config, seq_len=40))
        out.append(Case(f"seq_len-grown-{n}", config, positions="seq", start=60))
        out.append(Case(f"rerotate-{n}", config, seq_len=40, from_seq_len=8, unscaled=True, start=11))
        out.append(Case(f"packed-seq_len-{n}", config, layout="thd", positions="none", lengths=(3, 0, 2, 4),
                        seq_len=(3, 1, 99, 16), tokens=11))  # fmt: skip
        out.append(Case(f"packed-grown-{n}", config, layout="thd", positions="none", lengths=(18, 2), tokens=21))
    dynamic_float32, axes_float32 = (dict(c, phase="float32") for c in (dynamic, CONFIGS["mrope_contiguous"]))
    out.append(Case("seq_len-batch-float32", dynamic_float32, seq_len=(16, 117)))
    out.append(Case("rerotate-float32", dynamic_float32, seq_len=40, from_seq_len=8, unscaled=True, start=11))
    out.append(Case("axes-float32", axes_float32, at=EVERYWHERE, tokens=len(EVERYWHERE)))
    out.append(Case("positions-float-float32", CONFIGS["float32_phase"], positions="float", start=1000))
    out.append(Case("offset-one", default, positions="none", offset=1000))
    out.append(Case("offset-batch", llama3, positions="none", offset=(7, 100000)))
    out.append(Case("packed", llama3, layout="thd", positions="none", lengths=(1, 4, 2), tokens=7))
    out.append(Case("packed-offset", default, layout="thd", positions="none", lengths=(2, 3), offset=(50, 9), tokens=6))
    out.append(Case("packed-scaled-tail", CONFIGS["table"], layout="thd", positions="none", lengths=(2,), tokens=4))
    out.append(Case("packed-partial-tail", CONFIGS["partial"], layout="thd", positions="none", lengths=(2,), tokens=4))
    out.append(Case("inverse-counted", default, positions="none", offset=1000, inverse=True))
    out.append(Case("inverse-packed", llama3, layout="thd", positions="none", lengths=(2, 3), tokens=6, inverse=True))
    out.append(Case("offset-decode", default, batch=3, tokens=1, positions="none", offset=(5, 70, 9000)))
    out.append(Case("view-padded-bfloat16", llama3, view="padded", dtype=torch.bfloat16))
    out.append(Case("interleaved_to_half-head_dim96", dict(head_dim=96, pairing="interleaved_to_half")))
    out.append(Case("unscaled", CONFIGS["table"], unscaled=True))
    for shape in ((1, 1), (1, 5), (8, 1), (1, 70), (3, 33)):
        out.append(Case(f"shape{shape[0]}x{shape[1]}", default, batch=shape[0], tokens=shape[1]))
    out.append(Case("empty-tokens", default, tokens=0))
    out.append(Case("empty-batch", longrope, batch=0))
    return out


CASES = _cases()


@dataclass
class Made:
    """Tensors of a case and the exact answer."""

    q: torch.Tensor
    k: torch.Tensor | None
    positions: torch.Tensor | None
    options: dict
    expected: tuple[torch.Tensor, torch.Tensor | None]
    """float64"""


def config_of(case: Case):
    """The RopeConfig of a case."""
    from rope_kernels.config import RopeConfig

    keywords = dict(case.config)
    table = keywords.pop("inv_freq", None)
    return RopeConfig(**keywords) if table is None else RopeConfig.from_inv_freq(table, **keywords)


def seed_of(case: Case) -> int:
    return zlib.crc32(case.name.encode())


def shape_of(case: Case, heads: int) -> tuple[int, ...]:
    shapes = {
        "bshd": (case.batch, case.tokens, heads, case.config["head_dim"]),
        "sbhd": (case.tokens, case.batch, heads, case.config["head_dim"]),
        "bhsd": (case.batch, heads, case.tokens, case.config["head_dim"]),
        "thd": (case.tokens, heads, case.config["head_dim"]),
    }
    return shapes[case.layout]


def strided(values: torch.Tensor, view: str) -> torch.Tensor:
    """``values`` laid out as a user's tensor may be; the gaps hold NaN."""
    if view == "dense":
        return values.clone()
    if view == "transposed":
        return values.transpose(0, 1).contiguous().transpose(0, 1)
    pad = {"fused": (16, 0), "odd": (1, 2), "padded": (0, 4)}[view]
    wide = torch.full((*values.shape[:-1], values.shape[-1] + sum(pad)), float("nan"), dtype=values.dtype)
    inner = wide[..., pad[0] : pad[0] + values.shape[-1]]
    inner.copy_(values)
    return inner


def tokens_first(x: torch.Tensor, layout: str) -> torch.Tensor:
    """(batch, tokens, heads, head_dim) view."""
    swapped = {"bhsd": (1, 2), "sbhd": (0, 1)}.get(layout)
    return x[None] if layout == "thd" else x if swapped is None else x.transpose(*swapped)


def from_tokens_first(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The inverse of :func:`tokens_first`."""
    return x[0] if layout == "thd" else tokens_first(x, layout)


def where_and_how_long(case: Case):
    """Position rows (axes, batch, token); per (batch, token) its sequence, -1 where copied, and the length it sees."""
    batch, tokens = (1 if case.layout == "thd" else case.batch), case.tokens
    rng = np.random.default_rng(seed_of(case))
    axes = int(oracle.axes(case.config, len(oracle.inv_freq(case.config)[0])).max()) + 1
    offset = case.offset if isinstance(case.offset, tuple) else (case.offset or 0,) * max(batch, len(case.lengths), 1)
    if case.positions == "none":
        rows = np.full((1, batch, tokens), -1, dtype=np.int64)
        group = np.zeros((batch, tokens), dtype=np.int64) + np.arange(batch)[:, None]
        counted = np.arange(tokens)[None] + np.array(offset[:batch])[:, None] if not case.lengths else None
        if case.lengths:
            starts = np.cumsum((0, *case.lengths))
            group = np.searchsorted(starts, np.arange(tokens), side="right")[None] - 1
            inside = group < len(case.lengths)
            g = np.where(inside, group, 0)
            counted = np.where(inside, np.arange(tokens)[None] - starts[g] + np.array(offset)[g], 0)
            group = np.where(inside, group, -1)
        rows = counted[None]
    else:
        steps = rng.integers(0, 3, (axes if case.positions != "shared" else 1, batch, tokens)).cumsum(-1)
        rows = case.start + steps
        if case.at:
            rows = np.array([[np.roll(case.at, axis + b) for b in range(batch)] for axis in range(len(steps))])
        if case.positions in ("seq", "one"):
            rows = np.repeat(rows[:, :1], batch, axis=1)
        if case.positions == "float":
            rows = (rows + np.round(rng.random(rows.shape) * 64) / 64).astype(np.float32).astype(np.float64)
        group = np.zeros((batch, tokens), dtype=np.int64) + np.arange(batch)[:, None]
    longest = int(np.ceil(rows[:, group >= 0].max())) + 1 if (group >= 0).any() and rows.size else 1
    if isinstance(case.seq_len, tuple):
        length = np.array(case.seq_len)[np.maximum(group, 0)]
    else:
        length = np.full((batch, tokens), longest if case.seq_len is None else case.seq_len)
    return rows, group, length


def positions_of(case: Case, rows: np.ndarray) -> torch.Tensor | None:
    if case.positions == "none":
        return None
    made = torch.from_numpy(rows)
    made = made.to(
        torch.float32 if case.positions == "float" else torch.int32 if case.positions == "int32" else torch.int64
    )
    if len(made) == 1:
        made = made[0]
        if case.positions == "seq" or case.layout == "thd":
            return made[0]
        if case.positions == "one":
            return torch.cat((made[:1], made[:1] + 1))[:1]  # in memory other numbers follow, which no batch entry has
        return made
    return made[:, 0] if case.layout == "thd" else made


def options_of(case: Case) -> dict:
    def tensor(value):
        return torch.tensor(value, dtype=torch.int64) if isinstance(value, tuple) else value

    options: dict = dict(layout=case.layout, seq_len=tensor(case.seq_len), offset=tensor(case.offset))
    if case.lengths:
        options["cu_seqlens"] = torch.tensor(np.cumsum((0, *case.lengths)), dtype=torch.int32)
    return options


def rotated_exactly(case: Case, x: torch.Tensor) -> torch.Tensor:
    """float64: ``x`` rotated by the oracle, in the layout of the case; tokens past all sequences as they are."""
    rows, group, length = where_and_how_long(case)
    out = x.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    flat = tokens_first(out, case.layout)
    for b in range(flat.shape[0]):
        for t in range(flat.shape[1]):
            if group[b, t] >= 0:
                y = oracle.rotate(
                    case.config, flat[b, t].numpy(), rows[:, b, t], int(length[b, t]), inverse=case.inverse,
                    unscaled=case.unscaled, from_seq_len=case.from_seq_len,
                )  # fmt: skip
                flat[b, t] = torch.from_numpy(y)
    return out


def make(case: Case) -> Made:
    """Inputs of a case and its exact result. ``options`` are keywords of ``apply_rope`` (less ``inverse``)."""
    generator = torch.Generator().manual_seed(seed_of(case))
    rows, _, _ = where_and_how_long(case)

    def tensor(heads: int) -> torch.Tensor:
        values = torch.randn(shape_of(case, heads), generator=generator).to(case.dtype)
        return strided(values, case.view)

    q, k = tensor(case.q_heads), tensor(case.k_heads) if case.k_heads else None
    expected = rotated_exactly(case, q), None if k is None else rotated_exactly(case, k)
    return Made(q, k, positions_of(case, rows), options_of(case), expected)


def farthest(case: Case) -> float:
    rows = where_and_how_long(case)[0]
    return float(np.abs(rows).max()) if rows.size else 0.0


def bound(case: Case, x: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How far a result may be from ``expected``, elementwise: the contract in README's accuracy section.

    fp32: 5e-7 of max|x| to position 2**24, 1e-6 beyond, 2e-7 with phase="float32", times attention scaling. A 16-bit
    result may also be one rounding away from the exact one: half a unit in the last place of its binade.
    """
    scale = max(abs(oracle.inv_freq(case.config, n)[1]) for n in (None, 2**40))
    largest = float(x.double().abs().max()) if x.numel() else 0.0
    relative = tolerances.CONTRACT_EPS if farthest(case) <= 2**24 else tolerances.FAR_CONTRACT_EPS
    if case.config.get("phase") == "float32":
        relative = tolerances.FLOAT32_PHASE_EPS
    absolute = relative * largest * max(scale, 1.0)
    if case.dtype == torch.float32:
        return torch.full_like(expected, absolute)
    digits, smallest = {torch.float16: (11, -14), torch.bfloat16: (8, -126)}[case.dtype]
    exponent = torch.frexp(expected)[1].clamp_min(smallest + 1)
    return absolute + torch.ldexp(torch.ones_like(expected), exponent - digits - 1)


def check(case: Case, x: torch.Tensor, got: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert that ``got`` is within :func:`bound`; NaN never passes."""
    assert got.dtype == case.dtype
    assert got.shape == expected.shape
    error = (got.double() - expected).abs()
    good = error <= bound(case, x, expected)
    assert bool(good.all()), f"{case}: {int((~good).sum())} of {good.numel()} off, worst {error.max().item():.3e}"


def variant(case: Case, **changes) -> Case:
    return replace(case, **changes)
