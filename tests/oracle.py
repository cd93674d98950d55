"""An evaluation of every rope type that shares nothing with the package: extended precision, formulas from the papers.

Frequencies and angles are numpy longdoubles (64-bit significand), so that at position 2**31 the angle is good to 1e-10.
"""

from __future__ import annotations

import math

import numpy as np

LD = np.longdouble
PI = LD("3.14159265358979323846264338327950288")


def ladder(theta, dim, count):
    return LD(theta) ** (-(LD(2) * np.arange(count, dtype=LD)) / LD(dim))


def linear(c, dim, seq_len):
    return ladder(c["rope_theta"], dim, dim // 2) / LD(c["factor"]), 1.0


def dynamic(c, dim, seq_len):
    longest = c["max_position_embeddings"]
    length = max(seq_len or longest, longest)
    factor = LD(c["factor"])
    alpha = factor * LD(length) / LD(longest) - (factor - 1)
    return ladder(LD(c["rope_theta"]) * alpha ** (LD(dim) / LD(dim - 2)), dim, dim // 2), 1.0


def ntk_alpha(c, dim, seq_len):
    return ladder(LD(c["rope_theta"]) * LD(c["alpha"]) ** (LD(dim) / LD(dim - 2)), dim, dim // 2), 1.0


def yarn(c, dim, seq_len):
    original, factor = c["original_max_position_embeddings"], c.get("factor")
    factor = factor or c["max_position_embeddings"] / original
    base = ladder(c["rope_theta"], dim, dim // 2)

    def turning(rotations):
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(c["rope_theta"]))

    low, high = turning(c.get("beta_fast") or 32), turning(c.get("beta_slow") or 1)
    if c.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if low == high else 0
    ramp = np.clip((np.arange(dim // 2, dtype=LD) - LD(low)) / (LD(high) - LD(low)), 0, 1)

    def mscale(m):
        return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0

    scaling = c.get("attention_factor")
    if scaling is None:
        m, m_all = c.get("mscale"), c.get("mscale_all_dim")
        scaling = mscale(m) / mscale(m_all) if m and m_all else mscale(1)
    return base / LD(factor) * ramp + base * (1 - ramp), scaling


def llama3(c, dim, seq_len):
    inv_freq = ladder(c["rope_theta"], dim, dim // 2)
    original, low, high = LD(c["original_max_position_embeddings"]), c["low_freq_factor"], c["high_freq_factor"]
    factor = LD(c["factor"])
    out = []
    for f in inv_freq:
        wavelength = 2 * PI / f
        if wavelength < original / LD(high):
            out.append(f)
        elif wavelength > original / LD(low):
            out.append(f / factor)
        else:
            smooth = (original / wavelength - LD(low)) / (LD(high) - LD(low))
            out.append((1 - smooth) * f / factor + smooth * f)
    return np.array(out, dtype=LD), 1.0


def longrope(c, dim, seq_len):
    original = c["original_max_position_embeddings"]
    is_long = seq_len is not None and seq_len > original
    divisors = np.array(c["long_factor"] if is_long else c["short_factor"], dtype=LD)
    factor = c.get("factor") or c["max_position_embeddings"] / original
    scaling = c.get("attention_factor")
    if scaling is None:
        scaling = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    override = c.get("long_mscale" if is_long else "short_mscale")
    return ladder(c["rope_theta"], dim, dim // 2) / divisors, scaling if override is None else override


def proportional(c, dim, seq_len):
    head_dim = c["head_dim"]
    rotated = int(c.get("partial_rotary_factor", 1.0) * head_dim // 2)
    inv_freq = np.zeros(head_dim // 2, dtype=LD)
    inv_freq[:rotated] = ladder(c["rope_theta"], head_dim, rotated) / LD(c.get("factor") or 1.0)
    return inv_freq, 1.0


def default(c, dim, seq_len):
    return ladder(c["rope_theta"], dim, (dim + 1) // 2), 1.0


def table(c, dim, seq_len):
    return np.array(c["inv_freq"], dtype=LD), c.get("attention_scaling", 1.0)


def axial(c, dim, seq_len):
    """Per pair, so that the four vision towers can be told apart."""
    name = c.get("axis_map", "qwen_vision")
    if name == "pixtral":
        whole = ladder(c["rope_theta"], dim, dim // 2)
        return np.concatenate([whole[0::2], whole[1::2]]), 1.0
    quarter = ladder(c["rope_theta"], dim // 2, dim // 4)
    return (np.repeat(quarter, 2) if name == "kimi" else np.concatenate([quarter, quarter])), 1.0


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
    """(per-pair frequencies in longdouble, attention scaling) of config keywords ``c``."""
    c = {"rope_theta": 10000.0, **c}
    return TYPES[rope_type(c)](c, rotary_dim(c), seq_len)


def axes(c, pairs):
    """Position row of every pair, from the models' own recompositions."""
    sections, name = c.get("mrope_section"), c.get("axis_map")
    if rope_type(c) == "axial":
        return np.array([1, 0] * (pairs // 2)) if name == "kimi" else np.repeat([0, 1], pairs // 2)
    if not sections:
        return np.zeros(pairs, dtype=int)
    if name == "interleaved":
        rows = np.zeros(pairs, dtype=int)
        for row in (1, 2):
            rows[row : 3 * sections[row] : 3] = row
        return rows
    if name == "ernie":
        return np.concatenate([[1, 2] * sections[0], [0] * sections[2]]).astype(int)
    return np.repeat(np.arange(len(sections)) % 3, sections)


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


def rotate(c, x, positions, seq_len, *, inverse=False, unscaled=False, from_seq_len=None):
    """One token. ``x`` (heads, head_dim) float64, ``positions`` one number per axis."""
    freqs, scaling = inv_freq(c, seq_len)
    rows = axes(c, len(freqs))
    where = np.array([LD(positions[min(r, len(positions) - 1)]) for r in rows], dtype=LD)
    if from_seq_len is not None:
        freqs = freqs - inv_freq(c, from_seq_len)[0]
    if c.get("phase") == "float32":
        angle = (where.astype(np.float32) * freqs.astype(np.float32)).astype(LD)
    else:
        angle = where * freqs
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
