"""Heads of up to 8192 channels, as video models have them, are rotated right; longer ones are refused by name."""

from __future__ import annotations

import pytest
import torch
from support.cases import Case, check, config_of, make

import rope_kernels as rk
from rope_kernels.backends import native

PAIRINGS = ("half", "interleaved", "interleaved_to_half")
HEAD_DIMS = (1024, 1026, 2048, 2050, 4096, 8192)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_long_heads(head_dim: int, pairing: str) -> None:
    fields = dict(head_dim=head_dim, pairing=pairing, rope_theta=1e6)
    for dtype in (torch.float32, torch.bfloat16):
        case = Case(f"long{head_dim}", fields, dtype=dtype, q_heads=2, k_heads=1, tokens=2, start=77)
        for backend in (*native.isas(), "reference"):
            if backend != "reference":
                native.force_isa(backend)
            made = make(case)
            with rk.use_backend("reference" if backend == "reference" else "native"):
                q, k = rk.apply_rope(made.q, made.k, made.positions, config_of(case))
                rk.apply_rope_(made.q, made.k, made.positions, config_of(case))
            native.force_isa("")
            before = make(case)
            for x, y, in_place, wanted in zip(
                (before.q, before.k), (q, k), (made.q, made.k), made.expected, strict=True
            ):
                check(case, x, y, wanted)
                assert torch.equal(y, in_place)


@pytest.mark.parametrize("head_dim", [8196, 16384, 2**30])
@pytest.mark.parametrize("rope_type", ["default", "axial", "proportional"])
def test_longer_heads_are_refused_by_name(head_dim: int, rope_type: str) -> None:
    with pytest.raises(rk.RopeConfigError, match=r"^head_dim: got .* at most 8192 can be"):
        rk.RopeConfig(head_dim=head_dim, rope_type=rope_type)
    assert rk.RopeConfig(head_dim=head_dim, partial_rotary_factor=64 / head_dim).rotary_dim == 64


def test_a_table_of_frequencies_that_is_too_long_is_refused() -> None:
    with pytest.raises(rk.RopeConfigError, match=r"^head_dim: got 8194"):
        rk.RopeConfig.from_inv_freq([1.0] * 4097)


def test_frequencies_with_a_gradient_are_refused() -> None:
    table = torch.tensor([1.0, 0.1], requires_grad=True)
    with pytest.raises(rk.RopeConfigError, match=r"^inv_freq: needs a gradient"):
        rk.RopeConfig.from_inv_freq(table)
    assert rk.RopeConfig.from_inv_freq(table.detach()).rotary_dim == 4
    with torch.no_grad():
        assert rk.RopeConfig.from_inv_freq(table).rotary_dim == 4
