"""The fast path in plain torch does what the operator does, and leaves to it the calls that torch must see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.calls import is_public
from support.cases import CASES, Case, config_of, make
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import rope_kernels as rk
from rope_kernels.backends import reference
from rope_kernels.ops import plain

CONFIG = rk.RopeConfig(head_dim=16)


@pytest.fixture(autouse=True)
def _plain_torch() -> Iterator[None]:
    with rk.use_backend("reference"):
        yield


def qk() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 5, 4, 16), torch.randn(2, 5, 2, 16), torch.arange(5)


def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the fast path did each call, in order."""
    found: list[bool] = []

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            made = original(*args)
            found.append(made is not None)
            return made

        return call

    for function in (plain.rotate, plain.rotate_table):
        monkeypatch.setattr(plain, function.__name__, watched(function))
    return found


def forms(case: Case) -> list[Any]:
    """The case allocating, in place and into given buffers, each with its version counters."""
    made, results = make(case), []
    options = dict(made.options, inverse=case.inverse)
    results.append(rk.apply_rope(made.q, made.k, made.positions, config_of(case), **options))
    out = torch.zeros_like(made.q), None if made.k is None else torch.zeros_like(made.k)
    results.append(rk.apply_rope(made.q, made.k, made.positions, config_of(case), out=out, **options))
    results.append(rk.apply_rope_(made.q, made.k, made.positions, config_of(case), **options))
    return [(y, y.stride(), y._version) for pair in results for y in pair if y is not None]


@pytest.mark.parametrize("case", [case for case in CASES if is_public(case)], ids=str)
def test_it_does_what_the_operator_does(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = forms(case)
    monkeypatch.setattr(plain, "rotate", lambda *args: None)
    for (x, *about), (y, *wanted) in zip(fast, forms(case), strict=True):
        assert torch.equal(x, y)
        assert about == wanted


def test_usual_calls_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found, (q, k, positions) = taken(monkeypatch), qk()
    rk.apply_rope(q, k, positions, CONFIG)
    rk.apply_rope(q, k, None, CONFIG, offset=3, interleaved=True)
    rk.apply_rope(q.transpose(1, 2), None, positions[None].int(), CONFIG, layout="bhsd")
    rk.apply_rope(q[0], k[0], positions, CONFIG, layout="thd", inverse=True)
    rk.apply_rope_(q, k, positions, CONFIG)
    rk.apply_rope(q, k, positions, CONFIG, out=(torch.empty_like(q), torch.empty_like(k)))
    rk.apply_rotary_pos_emb(q, k, torch.randn(1, 5, 16), torch.randn(1, 5, 16), unsqueeze_dim=2)
    assert found == [True] * 7


class Seen(TorchDispatchMode):
    """Counts the package's operators."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.namespace == "rope_kernels"
        return function(*args, **(kwargs or {}))


class Mine(Tensor):
    """A subclass."""


@pytest.mark.parametrize("needed_by", ["mode", "profiler", "gradient", "vmap", "jvp", "subclass"])
def test_calls_that_torch_must_see_are_left_to_it(needed_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, positions = qk()
    cos, sin = torch.randn(1, 5, 16), torch.randn(1, 5, 16)
    found = taken(monkeypatch)

    def both(q: Tensor) -> Any:
        by_table = rk.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
        return rk.apply_rope(q, k, positions, CONFIG)[0], by_table[0]

    if needed_by == "mode":
        with Seen() as mode:
            both(q)
        assert mode.count == 2
    elif needed_by == "profiler":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            both(q)
        assert {"rope_kernels::rotate", "rope_kernels::rotate_table"} <= {e.key for e in profile.key_averages()}
    elif needed_by == "gradient":
        sum(y.sum() for y in both(q.requires_grad_())).backward()
        assert q.grad is not None
    elif needed_by == "vmap":
        torch.func.vmap(lambda q: both(q.unsqueeze(0).expand(2, -1, -1, -1)))(q)
    elif needed_by == "jvp":
        torch.func.jvp(both, (q,), (q,))
    else:
        both(q.as_subclass(Mine))
    assert found
    assert not any(found)


def overlapping() -> dict[str, Callable[[], object]]:
    x, positions = torch.randn(1, 5, 6, 16), torch.arange(5)
    q, k = x[:, :, :4].clone(), x[:, :, :2].clone()
    whole = torch.zeros(q.numel() + 8)
    near, moved = whole[: q.numel()].view_as(q), whole[8:].view_as(q)
    return {
        "q and k": lambda: rk.apply_rope_(x[:, :, :4], x[:, :, 3:], positions, CONFIG),
        "q and k, dense": lambda: rk.apply_rope_(near, moved, positions, CONFIG),
        "q and itself": lambda: rk.apply_rope_(q[:, :, :1].expand(1, 5, 4, 16), None, positions, CONFIG),
        "q_out and q": lambda: rk.apply_rope(near, None, positions, CONFIG, out=(moved, None)),
        "q_out and k": lambda: rk.apply_rope(q, near, positions, CONFIG, out=(torch.empty_like(q), moved)),
        "q_out and k_out": lambda: rk.apply_rope(q, q.clone(), positions, CONFIG, out=(near, moved)),
        "swapped": lambda: rk.apply_rope(q, k, positions, CONFIG, out=(k, q)),
    }


@pytest.mark.parametrize("what", overlapping())
def test_memory_is_not_written_twice(what: str) -> None:
    with pytest.raises(rk.RopeShapeError, match=r"overlaps|out: q_out is"):
        overlapping()[what]()


def test_a_tensor_of_another_form_is_checked_again() -> None:
    q, k, positions = qk()
    for _ in range(2):
        rk.apply_rope_(q, k, positions, CONFIG)
        for wrong in (k[:1], k.half(), k[:, :4], k[..., :8], k.transpose(2, 3)):
            with pytest.raises(rk.RopeShapeError, match=r"^k: "):
                rk.apply_rope_(q, wrong, positions, CONFIG)
        for bad in (positions[:4], positions.bool(), positions.view(5, 1)):
            with pytest.raises(rk.RopeShapeError, match=r"^positions: "):
                rk.apply_rope_(q, k, bad, CONFIG)


def test_the_choice_of_a_backend_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(reference, "rotate", lambda *args: ran.append("reference"))
    with rk.use_backend("native"):
        rk.apply_rope(*qk(), CONFIG)
        assert not ran
    rk.apply_rope(*qk(), CONFIG)
    assert ran == ["reference"]
