"""Appending to a KV cache: what it stores, in every form and memory layout, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from support.appended import CALLS, EVERY_CALL, AppendCall, as_bytes, every_float32_around

import rope_kernels as rk


def assert_between(got: torch.Tensor, low: torch.Tensor, high: torch.Tensor, what: str) -> None:
    """Bit for bit one of the bounds, or a number between them; elsewhere NaN is what was there before."""
    same = (as_bytes(got) == as_bytes(low)) | (as_bytes(got) == as_bytes(high))
    good = same | ((got.double() >= low.double()) & (got.double() <= high.double()))
    assert good.all(), f"{what}: {int((~good).sum())} of {good.numel()} differ"


def assert_same_bits(got: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    same = as_bytes(got) == as_bytes(wanted)
    assert same.all(), f"{what}: {int((~same).sum())} of {same.numel()} differ"


FULL = [pytest.param(call, marks=pytest.mark.full) for call in EVERY_CALL if call not in set(CALLS)]


@pytest.mark.parametrize("call", [*CALLS, *FULL], ids=str)
def test_a_cache_holds_rotated_k_and_v(call: AppendCall, backend: str) -> None:
    filled = call.fill()
    q, k = call.rotated(filled)
    wanted = call.expected(filled)
    before = [None if x is None else x.clone() for x in (filled.made.q, filled.made.k, filled.v)]
    got, out = call.append(filled)
    for i, (memory, bounds) in enumerate(zip(filled.memory, wanted, strict=True)):
        assert_between(memory, *bounds, f"memory {i}")
    assert_same_bits(got[0].contiguous(), q.contiguous(), "q")
    assert got[0] is (filled.made.q if out is None else out[0])
    if call.kind.form in ("returned", "out with k") and k is not None:
        assert got[1] is not None
        assert_same_bits(got[1].contiguous(), k.contiguous(), "k")
    else:
        assert got[1] is None
    for x, old, is_written in zip(
        (filled.made.q, filled.made.k, filled.v), before, (out is None, False, False), strict=True
    ):
        assert is_written or x is None or torch.equal(x, old)


def cache_of(k, v, page_size=4, dtype=None, **more):
    """A cache for tensors (batch, seq, heads, width) that gives each token the slot of its number plus one page."""
    tokens = (k if k is not None else v).shape[0] * (k if k is not None else v).shape[1]
    pages = tokens // page_size + 3
    caches = [
        None if x is None else torch.full((pages, page_size, *x.shape[2:]), torch.nan).to(dtype or x.dtype)
        for x in (k, v)
    ]
    return rk.KVCache(*caches, page_size + torch.arange(tokens), **more)


def qkv(tokens=5, dtype=torch.bfloat16, batch=2, width=64):
    generator = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(batch, tokens, heads, w, generator=generator).to(dtype)
        for heads, w in ((4, 64), (2, 64), (2, width))
    ]


CONFIG = rk.RopeConfig(head_dim=64)
EIGHT_BITS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8]


@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_every_midpoint_is_rounded_to_even(dtype, backend):
    values = every_float32_around(dtype)
    values = torch.cat((values, torch.zeros(-len(values) % 64))).reshape(1, -1, 1, 64)
    q = torch.zeros(1, values.shape[1], 1, 64)
    cache = cache_of(None, values, dtype=dtype, v_scale=torch.ones(1))
    rk.apply_rope_append(q, None, values, None, CONFIG, cache)
    got = cache.v.flatten(0, 1)[4 : 4 + values.shape[1]].reshape(values.shape)
    if dtype == torch.int8:
        wanted = torch.where(values.isnan(), 0.0, values).round().clamp(-128, 127).to(dtype)
    else:
        most = torch.finfo(dtype).max
        wanted = values.clamp(-most, most).to(dtype)
    is_nan = wanted.float().isnan()
    assert torch.equal(got.float().isnan(), is_nan)
    assert torch.equal(as_bytes(got)[~is_nan], as_bytes(wanted)[~is_nan])


@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_each_head_has_its_scale(dtype, backend):
    q, k, v = qkv(dtype=torch.float32)
    scales = torch.tensor([0.03, 0.7])
    cache = cache_of(k, v, dtype=dtype, k_scale=scales, v_scale=scales.flip(0))
    rotated = rk.apply_rope(q, k, None, CONFIG)[1]
    rk.apply_rope_append(q, k, v, None, CONFIG, cache)
    for paged, x, scale in ((cache.k, rotated, scales), (cache.v, v, scales.flip(0))):
        stored = paged.flatten(0, 1)[4:14].float() * scale[:, None]
        largest = 127 if dtype == torch.int8 else torch.finfo(dtype).max
        step = scale[:, None] if dtype == torch.int8 else x.flatten(0, 1).abs() / (8 if "e4m3" in str(dtype) else 4)
        clamped = x.flatten(0, 1).clamp(-largest * scale[:, None], largest * scale[:, None])
        assert ((stored - clamped).abs() <= step + scale[:, None] * 0.51).all()


def test_latent_attention_stores_in_one_buffer(backend):
    q, kv = torch.randn(7, 16, 192), torch.randn(7, 576)
    latent, rotated = kv[:, :512].unsqueeze(1), kv[:, 512:].unsqueeze(1)
    buffer = torch.full((4, 4, 576), torch.nan)
    slots = torch.tensor([5, 4, 11, 15, 0, -1, 9])
    cache = rk.KVCache(buffer[..., 512:].unsqueeze(2), buffer[..., :512].unsqueeze(2), slots)
    turning = q[..., 128:]
    config = rk.RopeConfig(head_dim=64, pairing="interleaved")
    wanted = rk.apply_rope(turning, rotated, torch.arange(7), config, layout="thd")
    before = q.clone()
    rk.apply_rope_append(turning, rotated, latent, torch.arange(7), config, cache, layout="thd")
    assert torch.equal(q[..., 128:], wanted[0])
    assert torch.equal(q[..., :128], before[..., :128])
    expected = torch.full_like(buffer, torch.nan)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[slot // 4, slot % 4] = torch.cat((latent[token, 0], wanted[1][token, 0]))
    assert torch.equal(buffer.nan_to_num(9.0), expected.nan_to_num(9.0))


def test_strides_of_more_than_32_bits(backend):
    pages = 2**31 // (16 * 2 * 64) + 2  # more than 2^31 elements, of which a few pages are touched
    k_cache, v_cache = (torch.empty(pages, 16, 2, 64, dtype=torch.bfloat16) for _ in "kv")
    q, k, v = qkv(tokens=3, batch=1)
    slots = torch.tensor([pages * 16 - 1, 2**31 // 128 + 5, 3])
    wanted = rk.apply_rope(q, k, None, CONFIG)[1]
    rk.apply_rope_append(q, k, v, None, CONFIG, rk.KVCache(k_cache, v_cache, slots))
    for token, slot in enumerate(slots.tolist()):
        assert torch.equal(k_cache[slot // 16, slot % 16], wanted[0, token])
        assert torch.equal(v_cache[slot // 16, slot % 16], v[0, token])


def test_many_tokens_on_several_threads(backend):
    q, k, v = qkv(tokens=700)
    cache = cache_of(k, v)
    cache.slots = cache.slots[torch.randperm(1400, generator=torch.Generator().manual_seed(0))]
    wanted = rk.apply_rope(q, k, None, CONFIG)
    rk.apply_rope_append(q, k, v, None, CONFIG, cache)
    assert torch.equal(q, wanted[0])
    assert torch.equal(cache.k.flatten(0, 1)[cache.slots], wanted[1].flatten(0, 1))
    assert torch.equal(cache.v.flatten(0, 1)[cache.slots], v.flatten(0, 1))


def changed(cache, **attributes):
    made = rk.KVCache(cache.k, cache.v, cache.slots, cache.k_scale, cache.v_scale)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def bad_calls():
    """(what the error begins with, the call's changes)."""
    q, k, v = qkv()
    cache = cache_of(k, v)
    scale = torch.ones(2)
    return {
        "cache: got": dict(cache=(cache.k, cache.v)),
        "k: is None": dict(k=None),
        "cache.v: is None": dict(cache=changed(cache, v=None)),
        "v: dtype": dict(v=v.float()),
        "v: shape": dict(v=v[:, :3]),
        "v: last stride": dict(v=v.transpose(-1, -2).contiguous().transpose(-1, -2)),
        "cache.k: shape": dict(cache=changed(cache, k=cache.k.transpose(1, 2))),
        "cache.v: shape (5": dict(cache=changed(cache, k=cache.k[:4])),
        "cache.k: shape (5, 2, 2, 2, 64)": dict(cache=changed(cache, k=torch.zeros(5, 2, 2, 2, 64).bfloat16())),
        "cache.k: dtype": dict(cache=changed(cache, k=cache.k.float())),
        "cache.v: last stride": dict(cache=changed(cache, v=torch.zeros(6, 4, 64, 2).bfloat16().transpose(2, 3))),
        "cache.k: overlaps itself": dict(cache=changed(cache, k=cache.k[:1].expand(5, 4, 2, 64))),
        "cache.v: overlaps the memory of cache.k": dict(cache=changed(cache, v=cache.k)),
        "cache.k: overlaps the memory of k": dict(
            q=q[:, :4], k=cache.k[1:3], v=v[:, :4], cache=changed(cache, slots=cache.slots[:8])
        ),
        "k_scale: given": dict(cache=changed(cache, k_scale=scale)),
        "k_scale: missing": dict(cache=changed(cache, k=cache.k.to(torch.int8))),
        "v_scale: (3,)": dict(cache=changed(cache, v=cache.v.to(torch.int8), v_scale=torch.ones(3))),
        "slots: dtype": dict(cache=changed(cache, slots=cache.slots.float())),
        "slots: shape": dict(cache=changed(cache, slots=torch.arange(11))),
        "slots: shape (5, 2)": dict(cache=changed(cache, slots=torch.arange(10).reshape(5, 2))),
        "slots: got": dict(cache=changed(cache, slots=cache.slots + 11)),
        "out: must be": dict(out=q),
        "out: q_out": dict(out=(q[:, :3], None)),
        "return_k: got True without k": dict(k=None, cache=changed(cache, k=None), return_k=True),
        "return_k: got 1": dict(return_k=1),
        "inverse: got True": dict(inverse=True),
        "v_norm: its weight": dict(v_norm=rk.HeadNorm(torch.ones(3), 1e-6)),
        "v_norm: got": dict(v_norm=torch.ones(64)),
        "k_norm: given without k": dict(k=None, cache=changed(cache, k=None), k_norm=rk.HeadNorm(None, 1e-6)),
    }  # fmt: skip


@pytest.mark.parametrize("begins", bad_calls())
def test_what_does_not_fit_is_refused_before_anything_is_written(begins, backend):
    q, k, v = qkv()
    given = dict(q=q, k=k, v=v, cache=cache_of(k, v)) | bad_calls()[begins]
    watched = [x for x in (given["q"], given["k"], given["v"]) if x is not None]
    watched += [x for x in (getattr(given["cache"], s, None) for s in "kv") if isinstance(x, torch.Tensor)]
    before = [x.clone() for x in watched]
    q, k, v, cache = (given.pop(name) for name in ("q", "k", "v", "cache"))
    with pytest.raises(rk.RopeShapeError) as error:
        rk.apply_rope_append(q, k, v, None, CONFIG, cache, **given)
    assert str(error.value).startswith(begins)
    for x, old in zip(watched, before, strict=True):
        assert torch.equal(as_bytes(x), as_bytes(old))


@pytest.mark.parametrize("which", ["q", "k", "v", "weight", "cache"])
def test_a_gradient_that_a_cache_would_lose_is_refused(which, backend):
    q, k, v = qkv(dtype=torch.float32)
    cache = cache_of(k, v)
    weight = torch.ones(64)
    tensors = dict(q=q, k=k, v=v, weight=weight, cache=cache.k)
    tensors[which].requires_grad_()
    with pytest.raises(RuntimeError, match=r"derivative|gradient"):
        rk.apply_rope_append(q, k, v, None, CONFIG, cache, v_norm=rk.HeadNorm(weight, 1e-6))
    with torch.no_grad():
        rk.apply_rope_append(q, k, v, None, CONFIG, cache, v_norm=rk.HeadNorm(weight, 1e-6))


def test_what_is_written_is_a_new_version(backend):
    q, k, v = qkv()
    cache = cache_of(k, v)
    tensors = q, k, v, cache.k, cache.v
    before = [x._version for x in tensors]
    rk.apply_rope_append(q, k, v, None, CONFIG, cache)
    assert [x._version > old for x, old in zip(tensors, before, strict=True)] == [True, False, False, True, True]
    stored = cache.v._version
    rk.apply_rope_append(q, None, v, None, CONFIG, changed(cache, k=None))
    assert cache.v._version > stored


@pytest.mark.parametrize("is_q_in_place", [False, True])
@pytest.mark.parametrize("dtype", [None, *EIGHT_BITS], ids=str)
def test_k_may_be_rotated_in_place_too(dtype, is_q_in_place, backend):
    scales = dict(k_scale=torch.tensor(0.05), v_scale=torch.tensor(0.05)) if dtype else {}
    q, k, v = qkv()
    apart, in_place = (cache_of(k, v, dtype=dtype, **scales) for _ in range(2))
    wanted = rk.apply_rope_append(q, k, v, None, CONFIG, apart, out=(torch.empty_like(q), torch.empty_like(k)))
    out = q if is_q_in_place else torch.empty_like(q), k
    got = rk.apply_rope_append(q, k, v, None, CONFIG, in_place, out=out)
    assert got[1] is k
    for x, y in (*zip(got, wanted, strict=True), (in_place.k, apart.k), (in_place.v, apart.v)):
        assert_same_bits(x, y, "in place")
