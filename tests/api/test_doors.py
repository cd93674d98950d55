"""Two doors, one contract: the fast door does what the checked door does, and only the checked door words errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.calls import is_public, rotate
from support.cases import CASES, Case, make

import rope_kernels as rk
from rope_kernels.api import apply, table
from rope_kernels.ops import autograd, direct

CONFIG = rk.RopeConfig(head_dim=16)
LONG = rk.RopeConfig(
    head_dim=16, rope_type="longrope", short_factor=[1.0] * 8, long_factor=[2.0] * 8,
    original_max_position_embeddings=16, max_position_embeddings=64,
)  # fmt: skip


def without_fast_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "usual_text", lambda *args: None)
    monkeypatch.setattr(direct, "rotate", lambda *args: None)
    monkeypatch.setattr(direct, "rotate_", lambda *args: False)
    monkeypatch.setattr(direct, "rotate_table", lambda *args: None)


@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize("case", [case for case in CASES if is_public(case)], ids=str)
def test_both_doors_give_the_same_bits(case: Case, needs_gradient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(case)
    made.q.requires_grad_(needs_gradient)
    fast = rotate(case, made)
    without_fast_door(monkeypatch)
    checked = rotate(case, made)
    for x, y in zip(fast, checked, strict=True):
        assert (x is None) == (y is None)
        assert x is None or (torch.equal(x, y) and x.stride() == y.stride() and x.requires_grad == y.requires_grad)


def plain(x: torch.Tensor) -> dict[str, Any]:
    return {"q": x, "k": torch.randn(2, 5, 2, 16), "positions": torch.arange(5), "cfg": CONFIG}


MISTAKES: dict[str, tuple[str, dict[str, Any]]] = {
    "q's head_dim": ("q: ", {"q": torch.randn(2, 5, 4, 8)}),
    "q's rank": ("q: ", {"q": torch.randn(5, 4, 16)}),
    "q's dtype": ("q: ", {"q": torch.randn(2, 5, 4, 16).double()}),
    "q's stride": ("q: ", {"q": torch.randn(2, 5, 16, 4).transpose(2, 3)}),
    "q is a list": ("q: ", {"q": [1.0]}),
    "k's tokens": ("k: ", {"k": torch.randn(2, 4, 2, 16)}),
    "k's dtype": ("k: ", {"k": torch.randn(2, 5, 2, 16).half()}),
    "k is a list": ("k: ", {"k": [1.0]}),
    "positions' shape": ("positions: ", {"positions": torch.arange(4)}),
    "positions' dtype": ("positions: ", {"positions": torch.ones(5, dtype=torch.bool)}),
    "positions are a list": ("positions: ", {"positions": [0, 1, 2, 3, 4]}),
    "the config": ("cfg: ", {"cfg": {"head_dim": 16}}),
    "layout": ("layout: ", {"layout": "bhdd"}),
    "interleaved": ("interleaved: ", {"interleaved": 1}),
    "inverse": ("inverse: ", {"inverse": "no"}),
    "offset beside positions": ("offset: ", {"offset": 3}),
    "seq_len": ("seq_len: ", {"seq_len": 3.5, "cfg": LONG}),
    "cu_seqlens' layout": ("cu_seqlens: ", {"cu_seqlens": torch.tensor([0, 5])}),
}


CALLS: dict[str, Callable[..., Any]] = {
    "allocating": rk.apply_rope,
    "in place": rk.apply_rope_,
    "out=": lambda **values: rk.apply_rope(**values, out=(torch.empty(2, 5, 4, 16), torch.empty(2, 5, 2, 16))),
}


@pytest.mark.parametrize(("call", "needs_gradient"), [*((call, False) for call in CALLS), ("allocating", True)])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_error_is_worded_once(mistake: str, call: str, needs_gradient: bool) -> None:
    begins, wrong = MISTAKES[mistake]
    values = plain(torch.randn(2, 5, 4, 16)) | wrong
    if needs_gradient and isinstance(values["q"], torch.Tensor):
        values["q"] = values["q"].detach().requires_grad_()
    before = {name: x.clone() for name, x in values.items() if isinstance(x, torch.Tensor)}
    with pytest.raises((rk.RopeShapeError, rk.RopeConfigError, TypeError), match=f"^{begins}") as caught:
        CALLS[call](**values)
    assert caught.value.__context__ is None, "an internal error is shown above the worded one"
    assert all(torch.equal(values[name], x) for name, x in before.items())


TABLE_MISTAKES: dict[str, tuple[str, dict[str, Any]]] = {
    "cos' shape": ("cos: ", {"cos": torch.randn(1, 4, 16)}),
    "sin's shape": ("sin: ", {"sin": torch.randn(1, 5, 8)}),
    "cos' dtype": ("cos: ", {"cos": torch.ones(1, 5, 16, dtype=torch.int64)}),
    "q's dtype": ("q: ", {"q": torch.randn(2, 4, 5, 16).double()}),
    "k's heads": ("k: ", {"k": torch.randn(2, 4, 5, 8)}),
    "unsqueeze_dim": ("unsqueeze_dim: ", {"unsqueeze_dim": 7}),
    "interleaved": ("interleaved: ", {"interleaved": "no"}),
    "q is a list": ("q: ", {"q": [1.0]}),
}


@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize("mistake", TABLE_MISTAKES)
def test_an_error_of_the_table_call_is_worded_once(mistake: str, needs_gradient: bool) -> None:
    begins, wrong = TABLE_MISTAKES[mistake]
    values = {"q": torch.randn(2, 4, 5, 16), "k": torch.randn(2, 4, 5, 16), "cos": torch.randn(1, 5, 16)}
    values |= {"sin": torch.randn(1, 5, 16)} | wrong
    if needs_gradient and isinstance(values["q"], torch.Tensor):
        values["q"] = values["q"].detach().requires_grad_()
    with pytest.raises(rk.RopeShapeError, match=f"^{begins}") as caught:
        rk.apply_rotary_pos_emb(**values)
    assert caught.value.__context__ is None


def test_the_table_call_is_the_same_through_both_doors(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, cos, sin = torch.randn(2, 4, 5, 16), torch.randn(2, 4, 5, 16), torch.randn(1, 5, 16), torch.randn(1, 5, 16)
    fast = rk.apply_rotary_pos_emb(q, k, cos, sin)
    without_fast_door(monkeypatch)
    assert table.direct.rotate_table() is None
    checked = rk.apply_rotary_pos_emb(q, k, cos, sin)
    assert all(torch.equal(x, y) for x, y in zip(fast, checked, strict=True))


def test_what_the_unchecked_rotation_refuses_is_none() -> None:
    q, positions = torch.randn(1, 5, 4, 16, requires_grad=True), torch.arange(5)
    assert autograd.rotate_unchecked(q, None, positions[:4], CONFIG.spec()) is None
    assert autograd.rotate_unchecked(q, None, None, CONFIG.spec()) is None
    assert autograd.rotate_unchecked(q, None, positions, f"{CONFIG.spec()};pairng=half") is None
    with rk.use_backend("reference"):
        assert autograd.rotate_unchecked(q, None, positions, CONFIG.spec()) is None
    assert autograd.rotate_unchecked(q, None, positions, CONFIG.spec()) is not None


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_floating_positions_choose_the_frequencies_too(needs_gradient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, positions = torch.randn(1, 20, 2, 16, requires_grad=needs_gradient), torch.arange(20.0)
    fast, _ = rk.apply_rope(q, None, positions, LONG)
    assert not torch.equal(fast, rk.apply_rope(q, None, positions, LONG, seq_len=16)[0])
    without_fast_door(monkeypatch)
    assert torch.equal(fast, rk.apply_rope(q, None, positions, LONG)[0])
