"""Recalled angles are those that would be made: changed positions are seen, threads do not mix, memory is bounded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import rope_kernels as rk
from rope_kernels.backends import angles, passes, recall
from rope_kernels.ops import plain

CONFIGS = {
    "half": rk.RopeConfig(head_dim=16),
    "interleaved": rk.RopeConfig(head_dim=16, pairing="interleaved"),
    "partly": rk.RopeConfig(head_dim=16, partial_rotary_factor=0.5),
    "longrope": rk.RopeConfig(
        head_dim=16, rope_type="longrope", short_factor=[1.0] * 8, long_factor=[2.0] * 8,
        original_max_position_embeddings=16, max_position_embeddings=64,
    ),
    "dynamic": rk.RopeConfig(head_dim=16, rope_type="dynamic", factor=2.0, max_position_embeddings=16),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _plain_torch() -> Iterator[None]:
    forget()
    with rk.use_backend("reference"):
        yield


def forget() -> None:
    recall._kept.clear()


def made(call: Callable[[], Any]) -> Any:
    """A call's results, with nothing to recall."""
    forget()
    results = call()
    forget()
    return results


def assert_same(got: Any, wanted: Any) -> None:
    assert all(x is y is None or torch.equal(x, y) for x, y in zip(got, wanted, strict=True))


def qk(tokens: int = 20) -> tuple[Tensor, Tensor]:
    return torch.randn(2, tokens, 4, 16), torch.randn(2, tokens, 2, 16)


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda p: p.add_(3),
    "one element": lambda p: p[..., -1:].fill_(50),
    "past the version counter": lambda p: p.data.mul_(2),
    "by numpy": lambda p: p.numpy().__iadd__(5),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", CONFIGS)
def test_changed_positions_are_seen(name: str, change: str, mode: Callable[[], Any]) -> None:
    config, (q, k) = CONFIGS[name], qk()
    with mode():
        positions = torch.arange(20)
        first = rk.apply_rope(q, k, positions, config)
        assert_same(rk.apply_rope(q, k, positions, config), first)
        assert_same(rk.apply_rope(q, k, positions.clone(), config), first)
        CHANGES[change](positions)
        again = rk.apply_rope(q, k, positions, config)
        assert_same(again, made(lambda: rk.apply_rope(q, k, positions, config)))
        assert not torch.equal(again[0], first[0])


def calls(q: Tensor, k: Tensor) -> list[Callable[[], Any]]:
    """Calls that have one spec and differ in one argument."""
    config, two = CONFIGS["longrope"], torch.tensor([3, 30])
    positions, axes = torch.arange(20), torch.arange(40).view(2, 20)
    packed = q.flatten(0, 1), k.flatten(0, 1)
    bounds = torch.tensor([0, 15, 38])
    ways = [
        dict(positions=positions), dict(positions=positions.int()), dict(positions=positions + 1),
        dict(positions=positions.double()), dict(positions=axes), dict(positions=axes.flip(0)),
        dict(positions=None), dict(positions=None, offset=1), dict(positions=None, offset=two),
        dict(positions=None, offset=two.flip(0)), dict(positions=positions, seq_len=40),
        dict(positions=positions, seq_len=two), dict(positions=positions, inverse=True),
        dict(positions=positions[None], seq_len=two.flip(0), inverse=True),
    ]  # fmt: skip
    given: list[Callable[[], Any]] = [lambda w=w: rk.apply_rope(q, k, cfg=config, **w) for w in ways]
    for cu_seqlens in (bounds, bounds.flip(0)[0] - bounds.flip(0), bounds.int(), torch.tensor([0, 40])):
        given.append(lambda c=cu_seqlens: rk.apply_rope(*packed, None, config, layout="thd", cu_seqlens=c))
    given.append(lambda: rk.apply_rope(q[:1], k[:1], positions, config))
    given.append(lambda: rk.apply_rope(q[:, :7], k[:, :7], positions[:7], config))
    given.append(lambda: (rk.rerotate_(k.clone(), positions, config, from_seq_len=8, to_seq_len=40),))
    given.append(lambda: (rk.rerotate_(k.clone(), positions, config, from_seq_len=40, to_seq_len=8),))
    return given


def test_calls_that_differ_in_one_argument_do_not_mix() -> None:
    given = calls(*qk())
    wanted = [made(call) for call in given]
    for i, call in enumerate(given):
        for j, other in enumerate(given):
            call()
            assert_same(other(), wanted[j])
            assert_same(call(), wanted[i])


def test_gradients_and_mapped_calls_recall_the_same() -> None:
    config, positions = CONFIGS["half"], torch.arange(20)
    q, k = qk()

    def backward() -> Any:
        leaves = q.clone().requires_grad_(), k.clone().requires_grad_()
        return torch.autograd.grad(rk.apply_rope(*leaves, positions, config), leaves, (q, k))

    def mapped() -> Any:
        return torch.func.vmap(lambda q, k: rk.apply_rope(q[None], k[None], positions, config))(q, k)

    def mapped_positions() -> Any:
        rows = torch.arange(40).view(2, 20)
        return torch.func.vmap(lambda q, p: rk.apply_rope(q[None], None, p, config)[0])(q, rows), None

    def tangents() -> Any:
        return torch.func.jvp(lambda q: rk.apply_rope(q, None, positions, config)[0], (q,), (q,))

    ways = [backward, mapped, mapped_positions, tangents, lambda: rk.apply_rope(q, k, positions, config)]
    wanted = [made(way) for way in ways]
    for _ in range(2):
        for way, one in zip(ways, wanted, strict=True):
            assert_same(way(), one)


def test_what_inference_mode_made_serves_training() -> None:
    config, positions = CONFIGS["half"], torch.arange(20)
    q, k = qk()
    with torch.inference_mode():
        wanted = rk.apply_rope(q, k, positions, config)
    got = rk.apply_rope(q.requires_grad_(), k, positions, config)
    assert_same([x.detach() for x in got if x is not None], wanted)
    (got[0].sum() + got[1].sum()).backward()
    rk.apply_rope_(q.detach(), k, positions, config)
    kept = [t for call in recall._kept.values() for t in (*call.tensors, *call.table) if t is not None]
    kept += [t for _, constants in angles._kept.values() for t in constants if t is not None]
    assert kept
    assert not any(t.is_inference() for t in kept)


def test_fake_calls_leave_nothing_behind() -> None:
    config = rk.RopeConfig(head_dim=16, rope_theta=777.0)
    with FakeTensorMode():
        rk.apply_rope(torch.randn(1, 3, 2, 16), None, torch.arange(3), config)
    q, positions = torch.randn(1, 3, 2, 16), torch.arange(3)
    got, _ = rk.apply_rope(q, None, positions, config)
    with rk.use_backend("native"):
        wanted, _ = rk.apply_rope(q, None, positions, config)
    torch.testing.assert_close(got, wanted)


def test_threads_do_not_mix() -> None:
    config, barrier, wrong = CONFIGS["half"], threading.Barrier(4), []
    q, k = qk()
    rows = [torch.arange(20) + 7 * i for i in range(4)]
    wanted = [made(lambda p=p: rk.apply_rope(q, k, p, config)) for p in rows]

    def turn(i: int) -> None:
        with rk.use_backend("reference"):
            barrier.wait()
            for step in range(150):
                j = (i + step // 3) % 4
                got = rk.apply_rope(q, k, rows[j], config)
                wrong.extend((i, step) for x, y in zip(got, wanted[j], strict=True) if not torch.equal(x, y))

    threads = [threading.Thread(target=turn, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_grows_without_bound() -> None:
    for i in range(300):
        config = rk.RopeConfig(head_dim=4, rope_theta=1000.0 + i)
        q = torch.randn(1, 1 + i, 1, 4)
        rk.apply_rope(q, None, torch.arange(1 + i), config)
        rk.apply_rotary_pos_emb(q.transpose(1, 2), None, torch.ones(1, 1 + i, 4), torch.ones(1, 1 + i, 4))
    assert len(recall._kept) <= recall.LIMIT
    assert len(angles._kept) <= angles._KEPT
    assert len(passes._spare.scratches) <= passes._SPARES
    assert len(plain._operations) <= plain._MOST_FORMS
    assert len(plain._tables) <= plain._MOST_FORMS


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("changed_part", ["cos", "sin"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_callers_table_is_seen(change: str, changed_part: str, interleaved: bool) -> None:
    (q, k), cos, sin = qk(), torch.randn(1, 20, 16), torch.randn(1, 20, 16)
    before = cos.clone(), sin.clone()
    args = q, k, cos, sin

    def call() -> Any:
        return rk.apply_rotary_pos_emb(*args, unsqueeze_dim=2, interleaved=interleaved)

    first = call()
    assert_same(call(), first)
    rk.apply_rotary_pos_emb(*args, unsqueeze_dim=2, interleaved=not interleaved)
    assert_same(call(), first)
    CHANGES[change](cos if changed_part == "cos" else sin)
    assert_same(rk.apply_rotary_pos_emb(q, k, *before, unsqueeze_dim=2, interleaved=interleaved), first)
    changed = call()
    passes._spare.given = None
    assert_same(changed, call())
    assert not torch.equal(changed[0], first[0])


def test_long_tables_and_large_blocks_are_not_kept() -> None:
    tokens = passes.MAX_BYTES // (8 * 4) + 1
    q = torch.zeros(1, tokens, 2, 16)
    rk.apply_rope_(q, None, torch.arange(tokens), CONFIGS["half"])
    assert not recall._kept
    kept = passes._spare.scratches.values()
    assert kept
    assert all(scratch.x.numel() <= passes.BLOCK for scratch in kept)
