"""The comparison of ``--direct=compared`` notices a direct path that is wrong, and passes one that is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.direct_calls import CONFIG, qk, table_call
from support.direct_compared import FUNCTIONS, WRITTEN, Comparison, refuse_all

import rope_kernels as rk
from rope_kernels.ops import direct


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    """Undone before the ``monkeypatch`` of ``--direct`` looks for differences."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def call(name: str, k: bool = True) -> None:
    """The public call that goes through one of the functions."""
    q, keys, positions = qk()
    keys = keys if k else None
    if name == "rotate":
        rk.apply_rope(q, keys, positions, CONFIG)
    elif name == "rotate_":
        rk.apply_rope_(q, keys, positions, CONFIG)
    elif name == "rotate_out":
        rk.apply_rope(q, keys, positions, CONFIG, out=(torch.empty_like(q), torch.empty_like(keys) if k else None))
    elif name == "rotate_cached":
        rk.apply_rope_cached_(q[0], keys if keys is None else keys[0], positions, torch.randn(8, 16))
    elif name == "append":
        values = torch.randn(1, 3, 2, 8)
        cache = rk.KVCache(None if keys is None else torch.zeros(2, 4, 2, 16), torch.zeros(2, 4, 2, 8), positions)
        rk.apply_rope_append(q, keys, values, positions, CONFIG, cache, return_k=k)
    else:
        q, keys, *rest = table_call()
        rk.apply_rotary_pos_emb(q, keys if k else None, *rest[:3])


def results(name: str, arguments: tuple[Any, ...], made: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    return arguments[WRITTEN[name]] or made


def flips_a_bit(which: int) -> Callable[..., Any]:
    def wrong(name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        made = function(*arguments)
        x = results(name, arguments, made)[which]
        assert x is not None
        x.data.view(torch.int32)[..., -1] ^= 1
        return made

    return wrong


def counts_no_version(name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(*(x.data if isinstance(x, torch.Tensor) else x for x in arguments))


def strides_otherwise(name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    q, k = function(*arguments)
    return q.transpose(1, 2).contiguous().transpose(1, 2), k


def plant(patch: pytest.MonkeyPatch, name: str, wrong: Callable[..., Any]) -> Comparison:
    """The comparison of a direct path whose function ``name`` is wrong."""
    function = getattr(direct, name)
    patch.setattr(direct, name, lambda *arguments: wrong(name, function, arguments))
    comparison = Comparison()
    comparison.install(patch)
    return comparison


@pytest.mark.parametrize("k", [True, False], ids=["qk", "q"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_right_passes(name: str, k: bool, patch: pytest.MonkeyPatch) -> None:
    comparison = Comparison()
    comparison.install(patch)
    call(name, k)
    assert (comparison.calls, comparison.differences) == (1, [])


@pytest.mark.parametrize("which", [0, 1], ids=["q", "k"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_bit_is_noticed(name: str, which: int, patch: pytest.MonkeyPatch) -> None:
    comparison = plant(patch, name, flips_a_bit(which))
    call(name)
    assert [line.split(" ")[:2] for line in comparison.differences] == [[f"{name}:", "qk"[which]]]


@pytest.mark.parametrize("which", [2, 3], ids=["k", "v"])
def test_a_wrong_bit_in_a_cache_is_noticed(which: int, patch: pytest.MonkeyPatch) -> None:
    comparison = plant(patch, "append", flips_a_bit(which))
    call("append")
    assert [line.split(" ")[:2] for line in comparison.differences] == [["append:", f"cache.{'kv'[which - 2]}"]]


@pytest.mark.parametrize("name", ["rotate_", "rotate_out", "rotate_cached", "append"])
def test_a_version_that_stays_is_noticed(name: str, patch: pytest.MonkeyPatch) -> None:
    comparison = plant(patch, name, counts_no_version)
    call(name)
    assert comparison.differences == [f"{name}: the version of what was written did not rise"]


@pytest.mark.parametrize("name", ["rotate", "rotate_table"])
def test_other_strides_are_noticed(name: str, patch: pytest.MonkeyPatch) -> None:
    comparison = plant(patch, name, strides_otherwise)
    call(name)
    assert len(comparison.differences) == 1


def test_lazy_bits_that_are_passed_over_are_noticed(patch: pytest.MonkeyPatch) -> None:
    """As if the numbers in memory were the tensor's: a conjugate's imaginary part is their negative."""

    def as_in_memory(name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        plain = [torch._neg_view(x) if isinstance(x, torch.Tensor) and x.is_neg() else x for x in arguments]
        return function(*plain)

    comparison = plant(patch, "rotate", as_in_memory)
    q, _, positions = qk()
    rk.apply_rope(torch._neg_view(q), None, positions, CONFIG)
    assert len(comparison.differences) == 1


def test_a_call_that_should_have_been_refused_is_noticed(patch: pytest.MonkeyPatch) -> None:
    comparison = plant(patch, "rotate", lambda name, function, arguments: (arguments[0].clone(), None))
    q, _, positions = qk()
    rk.apply_rope(q, None, positions[:2], CONFIG)
    rk.apply_rope(q, None, positions.float(), CONFIG, seq_len=torch.ones(3, dtype=torch.int64))
    assert [line.partition(" but")[0] for line in comparison.differences] == ["rotate: taken,"] * 2


@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_are_refused(name: str, patch: pytest.MonkeyPatch) -> None:
    refuse_all(patch)
    comparison = Comparison()
    comparison.install(patch)
    call(name)
    assert comparison.calls == 0
