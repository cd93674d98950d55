"""apply_rope_ where a gradient is needed behaves as torch's own operators in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.cases import CONFIGS
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import rope_kernels as rk

CONFIG = rk.RopeConfig(head_dim=16)


def leaves(which: str = "qk") -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    made = [torch.randn(2, 3, heads, 16, generator=generator) for heads in (4, 2)]
    return [x.requires_grad_(name in which) for name, x in zip("qk", made, strict=True)]


def gradients(call: Any, which: str, view: bool, cfg: rk.RopeConfig = CONFIG, **options: Any) -> tuple[Tensor, ...]:
    """Of a loss that is not linear, after an operation before the rotation and one after it."""
    given = leaves(which)
    q, k = (x * 2 for x in given)
    if view:
        q = torch.cat((q, q), 2)[:, :, 1:5]
    q, k = call(q, k, None, cfg, **options)
    return torch.autograd.grad((q**3).sum() + (k * k.detach()).sum(), [x for x in given if x.requires_grad])


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("which", ["q", "k", "qk"])
@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_are_those_of_the_call_out_of_place(which: str, view: bool, inverse: bool) -> None:
    cfg = rk.RopeConfig(head_dim=16, rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    in_place, apart = (gradients(call, which, view, cfg, inverse=inverse) for call in (rk.apply_rope_, rk.apply_rope))
    assert all(map(torch.equal, in_place, apart))


@pytest.mark.parametrize("name", ["longrope", "dynamic", "mrope_interleaved", "axial_gemma4"])
def test_every_kind_of_config(name: str) -> None:
    cfg = rk.RopeConfig(**(CONFIGS[name] | {"head_dim": CONFIGS[name].get("head_dim", 64)}))
    x = torch.randn(1, 3, 2, cfg.head_dim, requires_grad=True)
    found = []
    for call in (rk.apply_rope_, rk.apply_rope):
        y, _ = call(x * 1, None, None, cfg)
        found.append(torch.autograd.grad((y**3).sum(), x)[0])
    assert torch.equal(*found)


def test_packed_sequences() -> None:
    bounds = torch.tensor([0, 2, 5])
    x = torch.randn(6, 2, 16, requires_grad=True)
    found = []
    for call in (rk.apply_rope_, rk.apply_rope):
        y, _ = call(x * 1, None, None, CONFIG, layout="thd", cu_seqlens=bounds, offset=torch.tensor([7, 0]))
        found.append(torch.autograd.grad((y**3).sum(), x)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("view", [False, True])
def test_version_counters_and_flags(view: bool) -> None:
    q, k = leaves("q")
    q, k = q * 1, k * 1
    written = q[:, :1] if view else q
    versions = q._version, k._version
    rk.apply_rope_(written, k[:, :1] if view else k, None, CONFIG)
    assert (q._version, k._version) == (versions[0] + 1, versions[1] + 1)
    assert q.requires_grad
    assert not k.requires_grad


def test_a_tensor_that_backward_needs_is_missed() -> None:
    q = leaves("q")[0] * 1
    square = q * q
    rk.apply_rope_(q, None, None, CONFIG)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()


@pytest.mark.parametrize("name", ["q", "k"])
@pytest.mark.parametrize("view", [False, True])
def test_a_leaf_is_refused_and_nothing_is_written(name: str, view: bool) -> None:
    q, k = leaves(name)
    before = [x.detach().clone() for x in (q, k)]
    given = (q[:1], k[:1]) if view else (q, k)
    with pytest.raises(
        RuntimeError, match=f"^{name}: is a {'view of a ' if view else ''}leaf that requires a gradient"
    ):
        rk.apply_rope_(*given, None, CONFIG)
    assert all(torch.equal(x, y) for x, y in zip((q, k), before, strict=True))
    with torch.no_grad():
        rk.apply_rope_(q, k, None, CONFIG)


def test_views_of_one_split_are_refused_by_torch_and_nothing_is_written() -> None:
    joined = torch.cat(leaves(), 2) * 1
    before = joined.detach().clone()
    with pytest.raises(RuntimeError, match="function that returns multiple views"):
        rk.apply_rope_(*joined.split((4, 2), 2), None, CONFIG)
    assert torch.equal(joined, before)


def test_norms_still_refuse() -> None:
    q, k = (x * 1 for x in leaves())
    with pytest.raises(RuntimeError, match="in place: a derivative is needed"):
        rk.apply_rope_(q, k, None, CONFIG, q_norm=rk.HeadNorm(None, 1e-6))


def test_a_compiled_call_has_the_gradients() -> None:
    torch._dynamo.reset()

    def loss(q: Tensor, k: Tensor) -> Tensor:
        q, k = q * 2, k * 3
        rk.apply_rope_(q, k, None, CONFIG)
        return (q**3).sum() + (k * k).sum()

    given = leaves()
    wanted = torch.autograd.grad(loss(*given), given)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*given), given)
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y)
    torch._dynamo.reset()


def test_forward_mode_and_checkpoints() -> None:
    q = leaves("")[0]

    def turned(x: Tensor) -> Tensor:
        y = x * 2
        rk.apply_rope_(y, None, None, CONFIG)
        return y

    _, tangent = torch.func.jvp(turned, (q,), (torch.ones_like(q),))
    torch.testing.assert_close(tangent, turned(torch.ones_like(q)))
    q.requires_grad_()
    plain = torch.autograd.grad(turned(q).square().sum(), q)[0]
    again = torch.autograd.grad(checkpoint(turned, q, use_reentrant=False).square().sum(), q)[0]
    assert torch.equal(plain, again)
