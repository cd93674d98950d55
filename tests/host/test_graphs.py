"""CUDA graphs: what a call first meets while one is captured."""

from __future__ import annotations

import pytest
import torch
from support.cases import CONFIGS, Case, config_of

import rope_kernels as rk


def call(cfg: rk.RopeConfig, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    axes = () if cfg.num_axes == 1 else (cfg.num_axes,)
    q, k = (torch.zeros(2, 1, heads, cfg.head_dim, device="cuda", dtype=dtype) for heads in (4, 2))
    return q, k, torch.zeros(*axes, 2, 1, device="cuda", dtype=torch.int64)


@pytest.mark.parametrize("name", CONFIGS)
def test_reduce_overhead_with_a_config_first_met_inside(name: str) -> None:
    """cudagraph trees warn, or fail, if a tensor of the graph's pool is kept that is no output."""
    torch._dynamo.reset()
    cfg = config_of(Case("", CONFIGS[name]))
    q, k, positions = call(cfg)

    def layer(q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return rk.apply_rope(q * 2, k * 2, positions, cfg)

    compiled = torch.compile(layer, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for _ in range(4):
            torch.compiler.cudagraph_mark_step_begin()
            compiled(q, k, positions)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_capture_after_warm_up(name: str) -> None:
    cfg = config_of(Case("", CONFIGS[name]))
    q, k, positions = call(cfg, torch.float16)
    rk.warm_up(cfg, "cuda", q_shape=q.shape, k_shape=k.shape, dtype=torch.float16)
    with torch.no_grad(), torch.cuda.graph(torch.cuda.CUDAGraph()):
        rk.apply_rope_(q, k, positions, cfg)
        rk.apply_rope(q, k, positions, cfg)


def test_what_is_first_met_in_a_capture_is_an_error_that_names_warm_up() -> None:
    for cfg in (rk.RopeConfig(head_dim=48), rk.RopeConfig.from_inv_freq([1.0, 0.5, 0.1, 0.2])):
        q, k, positions = call(cfg, torch.float32)
        with (
            pytest.raises(RuntimeError, match=r"rope_kernels\.warm_up"),
            torch.no_grad(),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            rk.apply_rope_(q, k, positions, cfg)
