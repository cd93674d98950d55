"""warm_up makes the calls that it promises, on tensors of its own; tests/host has CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cases import CONFIGS, Case, config_of

import rope_kernels as rk
from rope_kernels.api import warm_up as module

LAYOUTS = {"bshd": (2, 3), "bhsd": (2, 4, 3), "thd": (3,)}


def shape(layout: str, heads: int, head_dim: int) -> tuple[int, ...]:
    return {"bshd": (2, 3, heads), "bhsd": (2, heads, 3), "thd": (3, heads)}[layout] + (head_dim,)


@given(st.sampled_from(sorted(CONFIGS)), st.sampled_from(sorted(LAYOUTS)), st.booleans(), st.booleans())
def test_it_makes_every_call_it_promises(name: str, layout: str, has_k: bool, in_inference: bool) -> None:
    cfg, seen = config_of(Case("", CONFIGS[name])), set()

    def spy(q: Any, k: Any, positions: Any, cfg: Any, *, layout: str, offset: Any, **norms: Any) -> Any:
        of_positions = None if positions is None else (str(positions.dtype), positions.dim())
        seen.add((of_positions, None if offset is None else offset.numel(), k is None))
        return rk.apply_rope(q, k, positions, cfg, layout=layout, offset=offset)

    with pytest.MonkeyPatch.context() as monkeypatch, torch.inference_mode(in_inference):
        monkeypatch.setattr(module, "apply_rope", spy)
        k_shape = shape(layout, 2, cfg.head_dim) if has_k else None
        rk.warm_up(cfg, "cpu", q_shape=shape(layout, 4, cfg.head_dim), k_shape=k_shape, layout=layout)
    lead, batch = int(cfg.num_axes > 1), layout != "thd"
    ranks = {1 + lead} if not batch else {2 + lead} if lead else {1, 2}
    forms = {(f"torch.{dtype}", rank) for dtype in ("int64", "int32") for rank in ranks}
    assert {form for form, offset, _ in seen if form} == forms
    assert {offset for form, offset, _ in seen if form is None} == {None, 1} | ({2} if batch else set())
    assert {without for _, _, without in seen} == {not has_k}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "bhdd"}, r"layout: got 'bhdd', allowed are bshd, bhsd, sbhd, thd"),
        ({"layout": 3}, r"layout: got 3, allowed are"),
        ({"q_shape": (2, 3, 16)}, r"q_shape: got \(2, 3, 16\), must have 4 dimensions for layout 'bshd'"),
        ({"k_shape": (3, 16)}, r"k_shape: got \(3, 16\), must have 4 dimensions for layout 'bshd'"),
        ({"layout": "thd"}, r"q_shape: got \(1, 2, 3, 16\), must have 3 dimensions for layout 'thd'"),
        ({"q_shape": (1, 2, 3, 8)}, r"q: got head_dim 8|head_dim"),
    ],
)
def test_a_shape_that_does_not_fit_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(rk.RopeShapeError, match=message):
        rk.warm_up(rk.RopeConfig(head_dim=16), "cpu", **{"q_shape": (1, 2, 3, 16), **changes})


def test_norms_and_a_cache_are_part_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, seen = rk.RopeConfig(head_dim=16), []
    weight = torch.nn.Parameter(torch.ones(16))
    norms = {f"{side}_norm": rk.HeadNorm(weight, 1e-6) for side in "qk"}
    shapes = dict(q_shape=(2, 3, 4, 16), k_shape=(2, 3, 2, 16), dtype=torch.float32)

    def spy(name: str) -> Any:
        real = getattr(rk, name)
        return lambda *a, **k: (seen.append((name, k)), real(*a, **k))[1]

    for name in ("apply_rope", "apply_rope_", "apply_rope_append"):
        monkeypatch.setattr(module, name, spy(name))
    rk.warm_up(cfg, "cpu", **shapes, **norms)
    assert {name for name, _ in seen} == {"apply_rope", "apply_rope_"}
    assert all(k["q_norm"] is norms["q_norm"] and k["k_norm"] is norms["k_norm"] for _, k in seen)
    assert weight.grad is None
    seen.clear()
    k_cache, v_cache = torch.full((3, 4, 2, 16), torch.nan), torch.full((3, 4, 1, 24), torch.nan)
    for slots in (torch.zeros(6, dtype=torch.int32), torch.zeros(2, 3, dtype=torch.int64)):
        cache = rk.KVCache(k_cache, v_cache, slots)
        rk.warm_up(cfg, "cpu", **shapes, **norms, v_norm=rk.HeadNorm(None, 1e-5), cache=cache)
    assert {name for name, _ in seen} == {"apply_rope_append"}
    assert k_cache.isnan().all()
    assert v_cache.isnan().all()
    with pytest.raises(rk.RopeShapeError, match="v_norm: given without cache"):
        rk.warm_up(cfg, "cpu", **shapes, v_norm=norms["q_norm"])
