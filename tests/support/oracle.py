"""An evaluation of whole rotations that shares nothing with the package: extended precision, formulas from the papers.

Frequencies come from :mod:`exact_formulas`; they and the angles are numpy longdoubles (64-bit significand), so that at
position 2**31 the angle is good to 1e-10. ``c`` is always the keywords of a config.
"""

from __future__ import annotations

import functools

import mpmath
import numpy as np
from support import exact_formulas as exact

LD = np.longdouble


def longdoubles(values):
    return np.array([LD(mpmath.nstr(value, 25)) for value in values], dtype=LD)


def ladder(theta, dim, count):
    return longdoubles(exact.ladder(theta, dim)[:count])


def default(c, dim, seq_len):
    return exact.ladder(c["rope_theta"], dim), 1.0


def linear(c, dim, seq_len):
    return exact.linear(c["rope_theta"], dim, c["factor"]), 1.0


def dynamic(c, dim, seq_len):
    return exact.dynamic(c["rope_theta"], dim, c["factor"], c["max_position_embeddings"], seq_len), 1.0


def ntk_alpha(c, dim, seq_len):
    return exact.ntk_alpha(c["rope_theta"], dim, c["alpha"]), 1.0


def yarn(c, dim, seq_len):
    original = c["original_max_position_embeddings"]
    factor = c.get("factor") or c["max_position_embeddings"] / original
    betas = c.get("beta_fast") or 32, c.get("beta_slow") or 1
    freqs = exact.yarn(c["rope_theta"], dim, factor, original, *betas, c.get("truncate", True))
    scaling = c.get("attention_factor")
    return freqs, exact.yarn_scaling(factor, c.get("mscale"), c.get("mscale_all_dim")) if scaling is None else scaling


def llama3(c, dim, seq_len):
    original = c["original_max_position_embeddings"]
    turns = c["low_freq_factor"], c["high_freq_factor"]
    return exact.llama3(c["rope_theta"], dim, c["factor"], *turns, original), 1.0


def longrope(c, dim, seq_len):
    original = c["original_max_position_embeddings"]
    is_long = seq_len is not None and seq_len > original
    freqs = exact.longrope(c["rope_theta"], dim, c["long_factor"] if is_long else c["short_factor"])
    scaling = c.get("long_mscale" if is_long else "short_mscale")
    if scaling is None:
        scaling = c.get("attention_factor")
    if scaling is None:
        scaling = exact.longrope_scaling(c.get("factor") or c["max_position_embeddings"] / original, original)
    return freqs, scaling


def proportional(c, dim, seq_len):
    share, factor = c.get("partial_rotary_factor", 1.0), c.get("factor") or 1.0
    return exact.proportional(c["rope_theta"], c["head_dim"], share, factor), 1.0


def table(c, dim, seq_len):
    return [mpmath.mpf(f) for f in c["inv_freq"]], c.get("attention_scaling", 1.0)


def axial(c, dim, seq_len):
    """Per pair, so that the four vision towers can be told apart."""
    name = c.get("axis_map", "qwen_vision")
    if name == "pixtral":
        whole = exact.ladder(c["rope_theta"], dim)
        return whole[0::2] + whole[1::2], 1.0
    quarter = exact.ladder(c["rope_theta"], dim // 2)
    return ([f for f in quarter for _ in range(2)] if name == "kimi" else 2 * quarter), 1.0


TYPES = dict(
    default=default, mrope=default, linear=linear, dynamic=dynamic, ntk_alpha=ntk_alpha, yarn=yarn, llama3=llama3,
    longrope=longrope, proportional=proportional, axial=axial, inv_freq=table,
)  # fmt: skip


def rope_type(c):
    return "inv_freq" if "inv_freq" in c else c.get("rope_type", "default")


def rotary_dim(c):
    if rope_type(c) == "inv_freq":
        return 2 * len(c["inv_freq"])
    return int(c["head_dim"] * (1.0 if rope_type(c) == "proportional" else c.get("partial_rotary_factor", 1.0)))


def inv_freq(c, seq_len=None):
    """(per-pair frequencies in longdouble, attention scaling)."""
    return _inv_freq(tuple((key, tuple(v) if isinstance(v, list) else v) for key, v in c.items()), seq_len)


@functools.cache
def _inv_freq(items, seq_len):
    c = {"rope_theta": 10000.0, **dict(items)}
    freqs, scaling = TYPES[rope_type(c)](c, rotary_dim(c), seq_len)
    freqs = longdoubles(freqs)
    freqs.flags.writeable = False
    return freqs, float(scaling)


def axes(c, pairs):
    """Position row of every pair, from the models' own recompositions."""
    sections, name = c.get("mrope_section"), c.get("axis_map")
    if rope_type(c) == "axial":
        return np.array([1, 0] * (pairs // 2)) if name == "kimi" else np.repeat([0, 1], pairs // 2)
    if not sections:
        return np.zeros(pairs, dtype=int)
    if name == "interleaved":
        rows = np.zeros(pairs, dtype=int)
        for row in range(1, len(sections)):
            rows[row : len(sections) * sections[row] : len(sections)] = row
        return rows
    if name == "ernie":
        return np.concatenate([[1, 2] * sections[0], [0] * sections[2]]).astype(int)
    return np.repeat(np.arange(len(sections)), sections)


def channels(c):
    """(first, second) channel of every pair as read, and as written."""
    first_channel, dim, pairing = c.get("rotary_offset", 0), rotary_dim(c), c.get("pairing", "half")
    pairs = (dim + 1) // 2
    i = np.arange(pairs)
    if c.get("axis_map") == "gemma4_vision":
        quarter = dim // 4
        first = i + quarter * (i // quarter)
        half = (first, first + quarter)
    else:
        half = (i, i + pairs)
    even = (2 * i, 2 * i + 1)
    read, write = {"half": (half, half), "interleaved": (even, even), "interleaved_to_half": (even, half)}[pairing]
    return [a + first_channel for a in read], [a + first_channel for a in write]


def angles(c, where, freqs):
    """In radians; rounded where a model rounds them."""
    if c.get("phase") == "float32":
        return (where.astype(np.float32) * freqs.astype(np.float32)).astype(LD)
    return where * freqs


def rotate(c, x, positions, seq_len, *, inverse=False, unscaled=False, from_seq_len=None):
    """One token. ``x`` (heads, head_dim) float64, ``positions`` one number per axis."""
    freqs, scaling = inv_freq(c, seq_len)
    rows = axes(c, len(freqs))
    where = np.array([LD(positions[min(r, len(positions) - 1)]) for r in rows], dtype=LD)
    angle = angles(c, where, freqs)
    if from_seq_len is not None:
        angle = angle - angles(c, where, inv_freq(c, from_seq_len)[0])
    cos, sin = np.cos(angle).astype(np.float64), np.sin(angle).astype(np.float64)
    if not unscaled:
        cos, sin = cos * scaling, sin * scaling
    (r1, r2), (w1, w2) = channels(c)
    y = x.copy()
    if inverse:
        y[:, r1], y[:, r2] = x[:, w1] * cos + x[:, w2] * sin, x[:, w2] * cos - x[:, w1] * sin
    else:
        y[:, w1], y[:, w2] = x[:, r1] * cos - x[:, r2] * sin, x[:, r2] * cos + x[:, r1] * sin
    return y
