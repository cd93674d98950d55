"""docs/migration.md: each line that replaces another library's call gives what that library's formula gives."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.documents import ROOT
from torch import Tensor

import rope_kernels as rk

PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
D, HEADS, KV_HEADS, SEQ, BASE = 64, 4, 2, 6, 10000.0
LADDER = BASE ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
COUNTED = torch.arange(SEQ)
STARTS = torch.tensor([3, 100])
BOUNDS = torch.tensor([0, 7, 12], dtype=torch.int32)
PACKED = torch.cat((torch.arange(7), torch.arange(5)))
SECTION = [12, 10, 10]


def rows() -> list[tuple[str, str, str]]:
    """(section, theirs, a line of ours) of all tables."""
    found = []
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        section = part.partition("\n")[0]
        for line in part.splitlines():
            if line.startswith("| ") and not line.startswith("| theirs"):
                theirs, ours = line.strip("| ").split(" | ")
                found += [(section, theirs, code) for code in re.findall(r"`(rk\.[^`]+)`", ours)]
    return found


def turned(x: Tensor, positions: Tensor, pairing: str = "half", ladder: Tensor = LADDER, scale: Any = 1.0) -> Tensor:
    """The rotation as the papers have it. x: (..., tokens, heads, D); positions: (tokens,) or (batch, tokens)."""
    angle = positions.double()[..., None, None] * ladder
    cos, sin = angle.cos() * scale, angle.sin() * scale
    x = x.double()
    n = ladder.numel()
    rest = x[..., 2 * n :]
    x = x[..., : 2 * n]
    a, b = (x[..., :n], x[..., n:]) if pairing == "half" else (x[..., 0::2], x[..., 1::2])
    first, second = a * cos - b * sin, b * cos + a * sin
    both = torch.stack((first, second), -1).flatten(-2) if pairing == "interleaved" else torch.cat((first, second), -1)
    return torch.cat((both, rest), -1)


def usual() -> dict[str, Any]:
    """What the lines take. q, k and x in (batch, seq, heads, D); sections change the order."""
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    angle = COUNTED[:, None] * LADDER
    return dict(
        rk=rk, torch=torch, cfg=rk.RopeConfig(head_dim=D), q=made(2, SEQ, HEADS, D), k=made(2, SEQ, KV_HEADS, D),
        x=made(2, SEQ, HEADS, D), y=made(2, SEQ, KV_HEADS, D), positions=COUNTED, position_ids=COUNTED[None],
        cos=angle.cos().float(), sin=angle.sin().float(), n=STARTS, c=BOUNDS, b=BASE, h=D, d=D, i=False, dim=32, s=4.0,
        t=BASE, r=32, mscale=1.25, mrope_section=SECTION, qkv=made(2, SEQ, 3, HEADS, D), kv=made(2, SEQ, 2, HEADS, D),
        starts=STARTS, is_neox=True, is_neox_style=True, head_size=D, max_position=4096, base=BASE,
    )  # fmt: skip


def names_of(section: str, theirs: str) -> dict[str, Any]:
    names = usual()
    full = {name: torch.cat((names[name], names[name]), -1) for name in ("cos", "sin")}
    if section in ("transformers", "Liger"):
        names |= {name: table[None] for name, table in full.items()}
        names |= {name: names[name].transpose(1, 2) for name in "qk"}
        names["config"] = {"model_type": "llama", "head_dim": D, "rope_theta": BASE}
    elif section == "vLLM and SGLang":
        names |= dict(
            query=names["q"].flatten(0, 1).flatten(1), key=names["k"].flatten(0, 1).flatten(1),
            positions=COUNTED.repeat(2), cos_sin_cache=torch.cat((names["cos"], names["sin"]), -1),
        )  # fmt: skip
    elif section == "FlashInfer":
        names |= dict(
            q=names["q"].flatten(0, 1), k=names["k"].flatten(0, 1), indptr=BOUNDS, offsets=STARTS.int(), n=8192,
            pos_ids=COUNTED.repeat(2), cos_sin_cache=torch.cat((names["cos"], names["sin"]), -1),
        )  # fmt: skip
    elif section.startswith("Megatron"):
        names |= full | {name: names[name].transpose(0, 1).contiguous() for name in "qk"} | {"n": 4096}
    elif section == "xPos":
        index = torch.arange(0, D, 2)
        names["scale"] = ((index + 0.4 * D) / (1.4 * D)) ** ((COUNTED[:, None] - SEQ // 2) / 512)
    if "offset=n" in theirs and "rotate_queries" in theirs:
        names["n"] = 5
    return names


def heads_first(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.transpose(1, 2) for x in tensors)


def both(
    positions: Tensor, pairing: str = "half", first: str = "q", second: str = "k", **more: Any
) -> Callable[..., Any]:
    """Two tensors of (batch, seq, heads, D) rotated."""
    return lambda n: (turned(n[first], positions, pairing, **more), turned(n[second], positions, pairing, **more))


def first_heads(positions: Tensor, pairing: str = "half") -> Callable[..., Any]:
    """The same of (batch, heads, seq, D)."""

    def expected(n: dict[str, Any]) -> Any:
        return heads_first(*(turned(x.transpose(1, 2), positions, pairing) for x in (n["q"], n["k"])))

    return expected


def first_tokens(positions: Tensor, pairing: str = "half") -> Callable[..., Any]:
    """The same of (seq, batch, heads, D)."""

    def expected(n: dict[str, Any]) -> Any:
        return tuple(turned(x.transpose(0, 1), positions, pairing).transpose(0, 1) for x in (n["q"], n["k"]))

    return expected


def flat(positions: Tensor, *names: str, pairing: str = "half") -> Callable[..., Any]:
    """Heads of (tokens, heads * D) or (tokens, heads, D)."""

    def expected(n: dict[str, Any]) -> Any:
        tensors = [n[name] for name in names]
        return tuple(
            turned(x.view(x.shape[0], -1, D), positions, pairing).view(x.shape) for x in tensors
        )  # fmt: skip

    return expected


def one(positions: Tensor, name: str = "x", pairing: str = "half", **more: Any) -> Callable[..., Any]:
    return lambda n: (turned(n[name], positions, pairing, **more),)


def packed(name: str = "x") -> Callable[..., Any]:
    return lambda n: (turned(n[name].flatten(0, 1), PACKED),)


def first_of(ladder: Tensor, scaling: float = 1.0) -> Callable[..., Any]:
    """The inverse frequencies and the attention scaling of a config."""
    return lambda n: (ladder, torch.tensor(scaling, dtype=torch.float64))


def llama3(factor: float, old: int) -> Tensor:
    """FlashInfer's pos_enc.cuh, apply_llama31_rope."""
    wavelength = 2 * torch.pi / LADDER
    smooth = ((old / wavelength - 1.0) / (4.0 - 1.0)).clamp(0, 1)
    return (1 - smooth) * LADDER / factor + smooth * LADDER


def yarn_ladder(factor: float, old: int) -> Tensor:
    """Megatron-LM's yarn_rotary_pos_embedding.py, beta_fast 32 and beta_slow 1."""

    def dim_of(turns: float) -> float:
        return float(D * torch.log(torch.tensor(old / (turns * 2 * torch.pi))) / (2 * torch.log(torch.tensor(BASE))))

    low, high = max(int(dim_of(32.0) // 1), 0), min(-int(-dim_of(1.0) // 1), D - 1)
    ramp = ((torch.arange(D // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return LADDER / factor * ramp + LADDER * (1 - ramp)


OFFSET = STARTS[:, None] + COUNTED
AFTER = torch.cat([start + torch.arange(n) for start, n in zip(STARTS.tolist(), (7, 5), strict=True)])
TWICE = COUNTED.repeat(2)
RANK = torch.arange(3, 9)  # the two middle chunks of four, of rank 1 of 2
CACHED = flat(TWICE, "query", "key")
EXPECTED: dict[str, dict[str, Callable[..., Any]]] = {
    "transformers": {
        "`cos, sin = rotary_emb": first_heads(COUNTED),
        "`apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)`": lambda n: tuple(
            turned(x.transpose(1, 2), COUNTED) for x in (n["q"], n["k"])
        ),
        "`apply_rotary_pos_emb(q, k, cos, sin)` with": first_heads(COUNTED),
        "`LlamaRotaryEmbedding": lambda n: tuple(
            torch.cat((t, t), -1)[None] for t in ((COUNTED[:, None] * LADDER).cos(), (COUNTED[:, None] * LADDER).sin())
        ),
        "`config.rope_parameters`": first_of(LADDER),
        "`apply_rotary_pos_emb_interleave": first_heads(COUNTED, "interleaved_to_half"),
        "`apply_multimodal": first_heads(COUNTED),
    },
    "flash-attn": {
        "`RotaryEmbedding(": first_of(BASE ** (-torch.arange(0, 32, 2, dtype=torch.float64) / 32)),
        "`apply_rotary_emb(x, cos, sin)`": one(COUNTED),
        "`apply_rotary_emb(x, cos, sin, interleaved": one(COUNTED, pairing="interleaved"),
        "`apply_rotary_emb(x, cos, sin, inplace": one(COUNTED),
        "`apply_rotary_emb(x, cos, sin, seqlen": one(OFFSET),
        "`apply_rotary_emb(x, cos, sin, cu_seqlens": packed(),
        "`apply_rotary_emb_qkv_": lambda n: (turned(n["qkv"][:, :, 0], COUNTED), turned(n["qkv"][:, :, 1], COUNTED)),
        "`apply_rotary_emb_kv_": lambda n: (turned(n["kv"][:, :, 0], COUNTED),),
        "a table of your own": one(COUNTED),
        "a table of your own, by positions": one(COUNTED),
    },
    "vLLM and SGLang": {
        "`get_rope": first_of(LADDER),
        "`rotary_emb(": CACHED,
        "`torch.ops._C": lambda n: tuple(x.unflatten(-1, (-1, D)) for x in CACHED(n)),
        "SGLang": lambda n: tuple(x.unflatten(-1, (-1, D)) for x in CACHED(n)),
        "`MRotary": CACHED,
    },
    "FlashInfer": {
        "`apply_rope(q, k, indptr, offsets)`": flat(AFTER, "q", "k"),
        "`apply_rope(q, k, indptr, offsets, interleave": flat(AFTER, "q", "k", pairing="interleaved"),
        "`apply_rope_inplace": flat(AFTER, "q", "k"),
        "`apply_rope_pos_ids": flat(TWICE, "q", "k"),
        "`rope_scale": first_of(BASE ** (-torch.arange(0, 32, 2, dtype=torch.float64) / 32) / 4.0),
        "`apply_llama31_rope": first_of(llama3(4.0, 8192)),
        "`apply_rope_with_cos_sin_cache": flat(TWICE, "q", "k"),
    },
    "Liger": {"`liger_rotary_pos_emb(": first_heads(COUNTED), "`liger_multimodal": first_heads(COUNTED)},
    "Megatron-LM, TransformerEngine, apex": {
        "Megatron: ": first_tokens(COUNTED),
        "with `config.rotary_interleaved`": first_tokens(COUNTED, "interleaved"),
        "with `config.multi_latent": first_tokens(COUNTED, "interleaved_to_half"),
        "with `cu_seqlens": lambda n: (turned(n["q"].flatten(0, 1), PACKED),),
        "`get_pos_emb_on_this_cp_rank": first_tokens(RANK),
        "`mscale`": first_of(yarn_ladder(4.0, 4096), 1.25),
        "TransformerEngine": lambda n: (turned(n["q"].transpose(0, 1), OFFSET).transpose(0, 1),),
        "apex": lambda n: (turned(n["q"].transpose(0, 1), COUNTED),),
    },
    "torchtitan, torchtune, litgpt, nanochat": {
        "torchtitan: `apply_rotary_emb_complex": both(COUNTED, "interleaved", "x", "y"),
        "torchtitan: `apply_rotary_emb_cos_sin": both(COUNTED, "half", "x", "y"),
        "torchtune": one(COUNTED, pairing="interleaved"),
        "litgpt": lambda n: heads_first(turned(n["x"], COUNTED)),
        "nanochat": both(-COUNTED, "half", "x", "y"),
    },
    "FLA, ESM-C, rotary-embedding-torch": {
        "FLA: `rotary_embedding(x, cos, sin, seqlen_offsets": one(OFFSET),
        "FLA: `rotary_embedding(x, cos, sin, cu_seqlens": lambda n: (turned(n["x"].flatten(0, 1), PACKED)[None],),
        "ESM-C": both(COUNTED, "half", "x", "y"),
        "`RotaryEmbedding(dim=d).rotate_queries_or_keys(x)`": lambda n: heads_first(
            turned(n["x"], COUNTED, "interleaved")
        ),
        "`RotaryEmbedding(dim=d).rotate_queries_or_keys(x, offset": lambda n: heads_first(
            turned(n["x"], 5 + COUNTED, "interleaved")
        ),
        "`RotaryEmbedding(dim=d, interpolate": first_of(LADDER / 4.0),
        "`RotaryEmbedding(dim=d, theta_rescale": first_of(
            (BASE * 4.0 ** (D / (D - 2))) ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
        ),
    },
    "xPos": {
        "`apply_rotary_emb(q": lambda n: (turned(n["q"], COUNTED, scale=n["scale"][:, None].double()),),
        "`apply_rotary_emb(k": lambda n: (turned(n["k"], COUNTED, scale=1 / n["scale"][:, None].double()),),
    },
}
"""The formula of each row, by its section and how the column "theirs" begins; the longest beginning counts."""


def formula_of(section: str, theirs: str) -> Callable[..., Any]:
    begins = [begin for begin in EXPECTED[section] if theirs.startswith(begin)]
    assert begins, f"no formula for {theirs!r} of {section}"
    return EXPECTED[section][max(begins, key=len)]


def results_of(made: Any) -> list[Tensor]:
    """The tensors of a result; of a config its frequencies and its scaling."""
    made = next(iter(made.values())) if isinstance(made, dict) else made
    if isinstance(made, rk.RopeConfig):
        return [made.inv_freq().double(), torch.tensor(made.attention_scaling, dtype=torch.float64)]
    return [x for x in (made if isinstance(made, tuple) else (made,)) if x is not None]


@pytest.mark.parametrize(("section", "theirs", "ours"), rows(), ids=lambda text: text[:40])
def test_a_line_gives_what_the_formula_gives(section, theirs, ours):
    names = names_of(section, theirs)
    expected = formula_of(section, theirs)(names)
    made = results_of(eval(ours, names))
    assert len(made) == len(expected)
    for got, want in zip(made, expected, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=2e-6)


def test_every_formula_belongs_to_a_row():
    sections: dict[str, list[str]] = {}
    for section, theirs, _ in rows():
        sections.setdefault(section, []).append(theirs)
    assert sections.keys() == EXPECTED.keys()
    for section, formulas in EXPECTED.items():
        for begin in formulas:
            assert any(theirs.startswith(begin) for theirs in sections[section]), (section, begin)
