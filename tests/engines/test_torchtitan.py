"""torchtitan's RoPE modules on these kernels, by its overrides: angles, gradients, models, DTensors, SPMD types."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any

import pytest
import spmd_types as spmd
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from spmd_types.checker import typecheck
from support import oracle
from support.tolerances import CONTRACT_EPS, FLOAT32_ANGLES, GRADIENT_REL, TITAN_LOGITS
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchtitan.config import Configurable, OverrideConfig
from torchtitan.config.override import apply_overrides
from torchtitan.distributed.spmd_types import set_current_spmd_mesh
from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.models.common.rope import ComplexRoPE, CosSinRoPE, RoPE
from torchtitan.models.llama3 import llama3_configs
from torchtitan.models.qwen3_5.rope import MRoPE

import rope_kernels as rk
from rope_kernels.integrations.torchtitan import rope

NAME = "rope_kernels.integrations.torchtitan.rope"
NEAR = 64
KINDS: dict[str, Any] = {"complex": ComplexRoPE, "cos_sin": CosSinRoPE, "mrope": MRoPE}
PAIRINGS = {"complex": "interleaved", "cos_sin": "half", "mrope": "half"}
SCALINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "llama": dict(scaling="llama", scaling_factor=8.0, original_max_position_embeddings=8192),
    "yarn": dict(scaling="yarn", rope_factor=40.0, original_seq_len=4096),
    "yarn, not rounded": dict(scaling="yarn", rope_factor=32.0, original_seq_len=4096, truncate=False, beta_fast=16.0),
    "yarn of factor 0.5": dict(scaling="yarn", rope_factor=0.5),
}
IN_ROPE_CONFIG: dict[str, dict[str, Any]] = {
    "none": {},
    "llama": dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    ),
    "yarn": dict(rope_type="yarn", factor=40.0, original_max_position_embeddings=4096, attention_factor=1.0),
    "yarn, not rounded": dict(
        rope_type="yarn", factor=32.0, original_max_position_embeddings=4096, attention_factor=1.0, truncate=False,
        beta_fast=16.0,
    ),
    "yarn of factor 0.5": {},
}  # fmt: skip
"""The same scalings in the keywords that the oracle knows."""
CASES = [(kind, scaling) for kind in KINDS for scaling in SCALINGS if kind == "complex" or scaling != "llama"]


def config(kind: str, scaling: str = "none", dim: int = 64, theta: float = 5e5, length: int = 256) -> Any:
    more: dict[str, Any] = {}
    if kind == "mrope":
        third = dim // 6
        more = dict(mrope_section=[dim // 2 - 2 * third, third, third])
    return KINDS[kind].Config(dim=dim, max_seq_len=length, theta=theta, **SCALINGS[scaling], **more)


def tensors(dim: int, *, batch: int = 2, tokens: int = 9, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(dim + tokens)
    q, k = (torch.randn(batch, tokens, heads, dim, generator=generator).to(dtype) for heads in (4, 1))
    return q, k


def rows(kind: str, start: int, stop: int, *, batch: int = 2, tokens: int = 9) -> Tensor:
    shape = (batch, tokens, 3) if kind == "mrope" else (batch, tokens)
    return torch.randint(start, stop, shape, generator=torch.Generator().manual_seed(start))


@pytest.mark.parametrize(("kind", "scaling"), CASES)
@settings(max_examples=10, deadline=None)
@given(dim=st.integers(4, 32).map(lambda n: 8 * n), theta=st.floats(1e3, 1e7))
def test_near_the_start_torchtitan_agrees(kind: str, scaling: str, dim: int, theta: float) -> None:
    own = config(kind, scaling, dim, theta)
    q, k = tensors(dim)
    for positions in (None, torch.arange(9)[None], rows("text", 0, NEAR), rows(kind, 0, NEAR)):
        made = (rope(own).build()(q, k, positions), own.build()(q, k, positions))
        for y, wanted in zip(*made, strict=True):
            torch.testing.assert_close(y, wanted, **FLOAT32_ANGLES)


@pytest.mark.parametrize(("kind", "scaling"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_far_from_the_start_the_angles_are_exact(kind: str, scaling: str, dtype: torch.dtype) -> None:
    module = rope(config(kind, scaling)).build()
    q, k = tensors(64, dtype=dtype)
    positions = rows(kind, 131_000, 10_000_000)
    keywords = dict(head_dim=64, rope_theta=5e5, pairing=PAIRINGS[kind], **IN_ROPE_CONFIG[scaling])
    if kind == "mrope":
        keywords |= dict(mrope_section=config(kind).mrope_section, axis_map="interleaved")
    for y, x in zip(module(q, k, positions), (q, k), strict=True):
        assert y.dtype == dtype
        limit = (CONTRACT_EPS + (torch.finfo(dtype).eps if dtype != torch.float32 else 0.0)) * x.abs().max().item()
        for b, token in product(range(2), range(9)):
            where = positions[b, token].reshape(-1).tolist()
            wanted = oracle.rotate(keywords, x[b, token].double().numpy(), where, None)
            assert abs(y[b, token].double().numpy() - wanted).max() <= limit


@pytest.mark.parametrize(("kind", "scaling"), CASES)
def test_gradients(kind: str, scaling: str) -> None:
    own = config(kind, scaling)
    positions = rows(kind, 0, NEAR)
    found = []
    for module in (rope(own).build(), own.build()):
        q, k = (x.requires_grad_() for x in tensors(64))
        y, z = module(q, k, positions)
        found.append(torch.autograd.grad(y.pow(3).sum() + z.pow(3).sum(), (q, k)))
    for grad, wanted in zip(*found, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=0, atol=GRADIENT_REL * wanted.abs().max().item())


@pytest.mark.parametrize("length", [1, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_there_is_no_table_and_no_longest_position(kind: str, length: int) -> None:
    module = rope(config(kind, length=length)).build()
    module.init_states(buffer_device=torch.device("cpu"))
    assert sum(x.numel() for x in module.buffers()) == 0
    assert not module.state_dict()
    q, k = tensors(64)
    module(q, k, rows(kind, length, 2 * length + 1))


class Holder(Configurable):
    """A tree with one RoPE of every kind, and one that is nobody's."""

    class Stranger(ComplexRoPE):
        @dataclass(kw_only=True, slots=True)
        class Config(ComplexRoPE.Config):
            pass

    @dataclass(kw_only=True, slots=True)
    class Config(Configurable.Config):
        complex: RoPE.Config = field(default_factory=lambda: config("complex"))
        cos_sin: RoPE.Config = field(default_factory=lambda: config("cos_sin"))
        mrope: RoPE.Config = field(default_factory=lambda: config("mrope"))
        stranger: RoPE.Config = field(default_factory=lambda: Holder.Stranger.Config(dim=64, max_seq_len=8))


def test_one_import_replaces_every_kind_that_we_know() -> None:
    tree = Holder.Config()
    before = copy.deepcopy(tree)
    lines = apply_overrides(OverrideConfig(imports=[NAME]), tree)
    for name, pairing in PAIRINGS.items():
        kept, made = getattr(before, name), getattr(tree, name)
        assert isinstance(made, type(kept)), "torchtitan and its checkpoints ask for the class"
        assert type(made.build()).__name__.startswith("RopeKernels")
        assert made.build().rope_kernels_config.pairing == pairing
        for each in fields(kept):
            assert each.name.startswith("_") or getattr(made, each.name) == getattr(kept, each.name)
    assert type(tree.stranger) is Holder.Stranger.Config
    assert len(lines) == 4


def test_a_field_that_is_wrong_is_named_when_the_override_is_applied() -> None:
    own = config("complex")
    own.theta = -1.0
    with pytest.raises(rk.RopeConfigError, match="rope_theta: got -1"):
        rope(own)
    own = config("complex")
    own.scaling = "ntk"
    with pytest.raises(rk.RopeConfigError, match="scaling: got 'ntk'"):
        rope(own)


def test_a_whole_llama() -> None:
    """Logits and gradients, the state dict, and one graph of all layers."""
    own = llama3_configs["debugmodel"](attn_backend="flex")
    for layer in own.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()  # flex has to be compiled
    ours = copy.deepcopy(own)
    assert len(apply_overrides(OverrideConfig(imports=[NAME]), ours)) == len(own.layers)
    wanted, model = own.build(), ours.build()
    wanted.init_states()
    model.init_states()
    model.load_state_dict(wanted.state_dict(), strict=True)
    tokens, positions = torch.randint(0, 2048, (2, 24)), torch.arange(24).expand(2, -1) % 13
    for each in (wanted, model):
        each(tokens, positions=positions).square().mean().backward()
    torch.testing.assert_close(model(tokens, positions=positions), wanted(tokens, positions=positions), **TITAN_LOGITS)
    for (name, parameter), other in zip(model.named_parameters(), wanted.parameters(), strict=True):
        assert parameter.grad is not None, name
        torch.testing.assert_close(
            parameter.grad, other.grad, rtol=0, atol=GRADIENT_REL * other.grad.abs().max().item(), msg=name
        )
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(tokens, positions=positions), model(tokens, positions=positions), **TITAN_LOGITS
    )


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """The first of four ranks, whose collectives do nothing: there must be none."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("dp", "cp", "tp"))
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", KINDS)
def test_dtensors_with_plain_positions_of_the_rank(mesh: DeviceMesh, kind: str) -> None:
    own = config(kind)
    by = [Shard(0), Shard(1), Shard(2)]
    local = [x[:, :, : max(1, x.shape[2] // 2)] for x in tensors(64)]
    q = DTensor.from_local(local[0], mesh, by, run_check=False)
    k = DTensor.from_local(local[1], mesh, [Shard(0), Shard(1), Replicate()], run_check=False)
    positions = rows(kind, 0, NEAR)
    wanted = own.build()(*local, positions)
    for y, x, exact in zip(rope(own).build()(q, k, positions), (q, k), wanted, strict=True):
        assert isinstance(y, DTensor)
        assert (y.placements, y.shape) == (x.placements, x.shape)
        torch.testing.assert_close(y.to_local(), exact, **FLOAT32_ANGLES)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sharded_buffer_is_kept(mesh: DeviceMesh, kind: str) -> None:
    """torchtitan distributes ``cache`` by name, and its init distributes what was recomputed."""
    module = rope(config(kind)).build()
    module.register_buffer("cache", distribute_tensor(module.cache, mesh, [Replicate()] * 3), persistent=False)
    module.init_states()
    assert isinstance(module.cache, DTensor)


@pytest.mark.parametrize("kind", ["complex", "cos_sin"])
def test_spmd_types_are_those_of_torchtitans_own(mesh: DeviceMesh, kind: str) -> None:
    own = config(kind)
    found = []
    for module in (rope(own).build(), own.build()):
        (q, k), positions = tensors(64), rows(kind, 0, NEAR)
        with set_current_spmd_mesh(mesh), typecheck(local=False):
            spmd.assert_type(module.cache, dict(dp=spmd.R, cp=spmd.R, tp=spmd.R))
            spmd.assert_type(q, dict(dp=spmd.S(0), cp=spmd.S(1), tp=spmd.S(2)))
            for x in (k, positions):
                spmd.assert_type(x, dict(dp=spmd.S(0), cp=spmd.S(1), tp=spmd.R))
            found.append([(spmd.get_local_type(x), spmd.get_partition_spec(x)) for x in module(q, k, positions)])
    assert found[0] == found[1]
