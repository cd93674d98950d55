"""Calls of a launcher that store in a KV cache, Triton's or CUDA's, and what must come of them, wherever they run."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import torch
from support import launches, tolerances
from support.appended import CALLS, KINDS, AppendCall, CacheKind, Filled, as_bytes, every_float32_around
from support.attempts import gaps
from support.calls import arguments
from support.cases import Case, strided
from torch import Tensor

from rope_kernels.backends.inputs import Append, Norms
from rope_kernels.backends.triton import launch as triton_launch
from rope_kernels.core.layouts import tokens_first
from rope_kernels.core.norms import Norm
from rope_kernels.core.spec import parse_text
from rope_kernels.ops.operators import inputs_of

__all__ = [
    "MANY_TOKENS", "SOME", "WITH_TOKENS", "run", "run_every_midpoint", "run_far_apart", "run_k_alone_in_place",
    "run_k_in_place", "run_many_heads", "run_slots_past_the_cache", "run_unaligned_caches",
]  # fmt: skip

Pair = tuple[Tensor, "Tensor | None"]

WITH_TOKENS = [call for call in CALLS if call.tokens]
SOME = WITH_TOKENS[::5]
"""Every kind with several cases: five is no divisor of the number of kinds."""
MANY_TOKENS = [
    AppendCall(case, KINDS[i % len(KINDS)]) for i, case in enumerate(c for c in launches.MANY_TOKENS if c.k_heads)
]
"""Calls for the launch shapes of many tokens."""


def _norms(filled: Filled) -> Norms:
    given = [filled.options.get(f"{side}_norm") for side in "qk"]
    return Norms(*map(_numbers, given), *(None if norm is None else norm.weight for norm in given))


def _numbers(norm: object) -> Norm | None:
    return None if norm is None else Norm(norm.eps, norm.weight_offset, norm.after_rope)  # type: ignore[attr-defined]


def _rotated(call: AppendCall, filled: Filled, q: Tensor, k: Tensor | None, kernels: Any = triton_launch) -> Pair:
    """q and k by the kernels that store nothing."""
    args = arguments(call.case, filled.made)
    operation = parse_text(args.text)
    norms = _norms(filled)
    out = torch.full_like(q, torch.nan), None if k is None else torch.full_like(k, torch.nan)
    views = [None if x is None else tokens_first(x, operation.layout) for x in (q, k, *out)]
    if norms.q is norms.k is None:
        kernels.rotate(*views, inputs_of(args, operation), operation.spec)
    else:
        kernels.rotate_norm(*views, inputs_of(args, operation), operation.spec, norms)
    return out


def append(call: AppendCall, filled: Filled, q_out: Tensor, k_out: Tensor | None, kernels: Any = triton_launch) -> None:
    """The call by ``kernels``, which have the functions of a backend."""
    made, cache, v_norm = filled.made, filled.cache, filled.options.get("v_norm")
    args = arguments(call.case, made)
    operation = parse_text(args.text)
    q, k, v, q_out, k_out = (
        None if x is None else tokens_first(x, operation.layout) for x in (made.q, made.k, filled.v, q_out, k_out)
    )
    scales = (None if scale is None else scale.reshape(-1) for scale in (cache.k_scale, cache.v_scale))
    kernels.rotate_append(
        q, k, q_out, k_out, inputs_of(args, operation), operation.spec, _norms(filled),
        Append(cache.slots.reshape(-1), v, _numbers(v_norm), None if v_norm is None else v_norm.weight, cache.k,
               cache.v, *scales),
    )  # fmt: skip


def _bounds_of_k(
    call: AppendCall, filled: Filled, rotated: Tensor | None, kernels: Any
) -> tuple[Tensor, Tensor] | None:
    """Rotated k as it must be before it is stored; the same bits twice, unless it is normed and has fp32's."""
    k = filled.made.k
    if k is None or rotated is None:
        return None
    is_normed = _has_its_own_bits(call, filled, kernels) or filled.options.get("k_norm") is not None
    if call.kind.k != "same":
        rotated = _rotated(call, filled, filled.made.q.float(), k.float(), kernels)[1]
        assert rotated is not None
    # a head in 8 bits is rotated from fp32 to expect it, whose rows other lanes sum up
    sums_alike = not _is_triton(kernels) and call.kind.k == "same"
    off = _off(rotated) if is_normed and rotated.dtype == torch.float32 and not sums_alike else 0.0
    return rotated - off, rotated + off


def _outputs(call: AppendCall, filled: Filled) -> Pair:
    made, form, view = filled.made, call.kind.form, call.case.view
    with_k = form in ("returned", "out with k") and made.k is not None
    k_out = strided(torch.full_like(made.k, torch.nan), view) if with_k else None
    return (strided(torch.full_like(made.q, torch.nan), view) if form.startswith("out") else made.q), k_out


def run(
    call: AppendCall, filled: Filled | None = None, outputs: Pair | None = None, kernels: Any = triton_launch
) -> None:
    """Make and check a call: the results have the bits of a call that stores nothing, and nothing else is written."""
    filled = filled or call.fill()
    made = filled.made
    rotated = _rotated(call, filled, made.q, made.k, kernels)
    wanted = call.expected(filled, _bounds_of_k(call, filled, rotated[1], kernels))
    out = outputs or _outputs(call, filled)
    inputs = [x for x in (made.q, made.k, filled.v) if x is not None and all(x is not y for y in out)]
    before = [x.clone() for x in inputs]
    around = [gaps(y) for y in out if y is not None]
    append(call, filled, *out, kernels)
    for memory, (low, high) in zip(filled.memory, wanted, strict=True):
        _check_between(memory, low, high)
    for side, got, expected in zip("qk", out, rotated, strict=True):
        if got is not None:
            assert expected is not None
            _check_rotated(got, expected, side, _has_its_own_bits(call, filled, kernels))
    for x, old in zip(inputs, before, strict=True):
        assert torch.equal(as_bytes(x.contiguous()), as_bytes(old.contiguous())), "an input was written"
    for y, old in zip((y for y in out if y is not None), around, strict=True):
        assert torch.equal(gaps(y), old), "written outside of an output"


def _check_between(got: Tensor, low: Tensor, high: Tensor) -> None:
    same = (as_bytes(got) == as_bytes(low)) | (as_bytes(got) == as_bytes(high))
    good = same | ((got.double() >= low.double()) & (got.double() <= high.double()))
    assert bool(good.all()), f"{int((~good).sum())} of {good.numel()} numbers of the cache differ"


def _is_triton(kernels: Any) -> bool:
    return triton_launch in (kernels, getattr(kernels, "backend", None))


def _has_its_own_bits(call: AppendCall, filled: Filled, kernels: Any) -> bool:
    """Whether rows of Triton's may differ from those of a call that stores nothing in the last place of fp32.

    Of two products that are added LLVM fuses one, not always the same: where a row is normed, or where all rows are
    whole since another is normed.
    """
    is_whole = any(filled.options.get(f"{s}_norm") is not None for s in "qkv")
    return _is_triton(kernels) and is_whole and call.case.dtype == torch.float32


def _check_rotated(got: Tensor, wanted: Tensor, side: str, has_its_own_bits: bool) -> None:
    if has_its_own_bits:
        torch.testing.assert_close(got, wanted, rtol=0.0, atol=_off(wanted))
    else:
        assert torch.equal(as_bytes(got.contiguous()), as_bytes(wanted.contiguous())), side


def _off(y: Tensor) -> float:
    """How far two results may be apart that are both as near to the exact one as the contract wants."""
    return 2 * tolerances.CONTRACT_EPS * float(y.nan_to_num(0.0).abs().max())


def run_slots_past_the_cache(kernels: Any = triton_launch) -> None:
    """They are not stored, as if they were negative."""
    call = AppendCall(launches.BY_NAME["shape3x33"], KINDS[0])
    filled = call.fill()
    slots = filled.cache.slots.to(torch.int64)
    end = filled.cache.k.shape[0] * filled.cache.k.shape[1]
    past = torch.tensor([end, end + 1, 2**31 + 3, 2**51, 2**62])
    without, given = slots.clone(), slots.clone()
    without[3:8], given[3:8] = -1, past
    filled.cache.slots = without
    rotated = _rotated(call, filled, filled.made.q, filled.made.k, kernels)
    wanted = call.expected(filled, (rotated[1], rotated[1]))
    filled.cache.slots = given
    append(call, filled, filled.made.q, None, kernels)
    for memory, (low, high) in zip(filled.memory, wanted, strict=True):
        _check_between(memory, low, high)


def run_k_in_place(kernels: Any = triton_launch) -> None:
    """k_out is k, which is read for the cache first; in one launch only if q is in place too."""
    for name in ("interleaved_to_half-bfloat16-forward", "half-float32-forward", "partial-near"):
        for kind in (KINDS[0], KINDS[5], KINDS[2]):
            call = AppendCall(launches.BY_NAME[name], kind)
            filled = call.fill()
            run(call, filled, (filled.made.q, filled.made.k), kernels)


def run_k_alone_in_place(kernels: Any = triton_launch) -> None:
    """k_out is k and q is not in place: several launches by Triton."""
    call = AppendCall(launches.BY_NAME["interleaved_to_half-bfloat16-forward"], KINDS[0])
    filled = call.fill()
    run(call, filled, (torch.full_like(filled.made.q, torch.nan), filled.made.k), kernels)


def run_many_heads(kernels: Any = triton_launch) -> None:
    """Heads in 8 bits, each of k and of v by a scale of its own, more than a thread has at a time."""
    case = Case("many heads", dict(head_dim=64), dtype=torch.bfloat16, q_heads=1, k_heads=19)
    for kind in (CacheKind("nhd", k="e4m3", v="int8"), CacheKind("hnd", k="int8", v="e5m2", v_norm=True)):
        call = AppendCall(case, kind)
        filled = call.fill()
        filled.cache.k_scale = filled.cache.v_scale.flip(0)
        run(call, filled, kernels=kernels)


def run_unaligned_caches(kernels: Any = triton_launch) -> None:
    """A cache that begins one number behind where wide stores could; q, k and v are aligned."""
    for kind, side in product((KINDS[0], CacheKind("nhd", k="e4m3", v="int8")), "kv"):
        call = AppendCall(launches.BY_NAME["default-near"], kind)
        filled = call.fill()
        cache = getattr(filled.cache, side)
        memory = torch.cat((cache.flatten()[-1:], cache.flatten()))
        filled.memory["kv".index(side)] = memory
        setattr(filled.cache, side, memory[1:].view(cache.shape))
        run(call, filled, kernels=kernels)


def run_far_apart(folder: Path, kernels: Any = triton_launch) -> None:
    """Pages that lie 2**31 elements apart in a sparse file, and rows of v with gaps."""
    call = AppendCall(launches.BY_NAME["default-near"], KINDS[0])
    filled = call.fill()
    tokens, (heads, width) = call.tokens, filled.cache.k.shape[2:]
    far = 2**31 + 64
    whole = torch.from_file(str(folder / "sparse"), shared=True, size=far + 16 * heads * width, dtype=torch.float32)
    cache = whole.as_strided((2, 8, heads, width), (far, heads * width, width, 1))
    filled.cache.k = cache
    filled.cache.v = torch.full((2, 8, *filled.v.shape[-2:]), torch.nan)
    slots = torch.arange(tokens) % 2 * 8 + torch.arange(tokens) // 2
    filled.cache.slots = torch.where(torch.arange(tokens) < 16, slots, -1)
    k = _rotated(call, filled, filled.made.q, filled.made.k, kernels)[1]
    assert k is not None
    v = filled.v.flatten(0, 1)
    append(call, filled, filled.made.q, None, kernels)
    for token, slot in enumerate(filled.cache.slots.tolist()):
        if slot >= 0:
            assert torch.equal(cache[slot // 8, slot % 8], k.flatten(0, 1)[token])
            assert torch.equal(filled.cache.v[slot // 8, slot % 8], v[token])


def run_every_midpoint(dtype: torch.dtype, kernels: Any = triton_launch) -> None:
    """All numbers of an 8-bit type, the midpoints between them, and what is beyond, are rounded to nearest even."""
    numbers = every_float32_around(dtype)
    values = torch.cat((numbers, torch.zeros(-len(numbers) % 128))).reshape(1, -1, 2, 64)
    case = Case("midpoints", dict(head_dim=64), batch=1, tokens=values.shape[1], q_heads=1, k_heads=2)
    name = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2", torch.int8: "int8"}[dtype]
    call = AppendCall(case, CacheKind("nhd", k="", v=name))
    filled = call.fill()
    filled.v = values
    for scale in (1.0, 0.3):
        filled.cache.v_scale.fill_(scale)
        run(call, filled, kernels=kernels)
