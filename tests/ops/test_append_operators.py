"""Appending to a KV cache in compiled graphs: whole, right, and without a copy of a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import rope_kernels as rk
from rope_kernels.ops.append_operators import rotate_append

CONFIG = rk.RopeConfig(head_dim=16)
WEIGHT = torch.linspace(0.5, 1.5, 16)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tensors(tokens: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(1, tokens, heads, 16, generator=generator).to(dtype) for heads in (4, 2, 2)]


def caches(pages: int = 9) -> list[torch.Tensor]:
    return [torch.zeros(pages, 4, 2, 16) for _ in "kv"]


def norms(weight: torch.Tensor | None) -> dict[str, Any]:
    return {} if weight is None else dict(q_norm=rk.HeadNorm(weight, 1e-6), v_norm=rk.HeadNorm(None, 1e-5))


def step(
    q: Any, k: Any, v: Any, k_cache: Any, v_cache: Any, slots: Any, positions: Any, weight: Any = None
) -> torch.Tensor:
    """Two layers that share a cache of two halves, as a decode step has them."""
    half = k_cache.shape[0] // 2
    for layer in (slice(0, half), slice(half, 2 * half)):
        cache = rk.KVCache(k_cache[layer], v_cache[layer], slots)
        q, _ = rk.apply_rope_append(q * 1.0, k, v, positions, CONFIG, cache, **norms(weight))
    return q


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "normed"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_two_layers_are_one_graph_with_the_same_bits(backend: str, weight: torch.Tensor | None) -> None:
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for tokens in (3, 5, 9):
        given, slots, positions = tensors(tokens), torch.arange(tokens).flip(0), torch.arange(tokens) + 7
        wanted_caches, got_caches = caches(), caches()
        wanted = step(*given, *wanted_caches, slots, positions, weight)
        got = compiled(*given, *got_caches, slots, positions, weight)
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
        for x, y in zip(got_caches, wanted_caches, strict=True):
            assert torch.equal(x, y)
        frames.append(counter.frame_count)
    assert frames[0] == frames[-1], "a new length compiled again"


def test_a_compiled_call_copies_no_cache() -> None:
    """What inductor generates allocates nothing as large as a cache, and copies none."""
    from torch._inductor.utils import run_and_get_code

    k_cache, v_cache = (torch.zeros(10007, 4, 2, 16) for _ in "kv")
    arguments = *tensors(3), k_cache, v_cache, torch.tensor([4, 20_000, -1]), torch.arange(3)
    compiled = torch.compile(step, fullgraph=True)
    _, codes = run_and_get_code(compiled, *arguments)
    code = "\n".join(codes)
    assert "rotate_append" in code
    assert k_cache.any()
    allocated = [line for line in code.splitlines() if "= empty_strided" in line]
    assert allocated
    assert not [line for line in allocated if "10007" in line or "5003" in line], allocated
    called = code[code.index("def call(") :]
    assert "clone" not in called
    assert "copy_" not in called


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "normed"])
def test_opcheck(weight: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(rk.api.append.append_operators, "rotate_append", lambda *a: seen.append(a))  # type: ignore[attr-defined]
    monkeypatch.setattr(rk.api.append.direct, "append", lambda *a: None)  # type: ignore[attr-defined]
    q, k, v = tensors(3)
    cache = rk.KVCache(*caches(), torch.tensor([1, 9, -1]))
    rk.apply_rope_append(q, k, v, None, CONFIG, cache, out=(torch.empty_like(q), torch.empty_like(k)), **norms(weight))
    assert len(seen) == 1
    torch.library.opcheck(rotate_append, seen[0])


def test_meta_tensors_have_a_shape_only() -> None:
    with torch.device("meta"):
        q, k, v = (torch.empty(1, 3, heads, 16) for heads in (4, 2, 2))
        cache = rk.KVCache(torch.empty(9, 4, 2, 16), torch.empty(9, 4, 2, 16), torch.empty(3, dtype=torch.int64))
        got, rotated = rk.apply_rope_append(q, k, v, None, CONFIG, cache, return_k=True)
    assert got is q
    assert rotated is not None
    assert rotated.shape == k.shape
