"""``rope-kernels check``: what it covers, that its bound is the tests' own, and that it finds what is wrong."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from support import cases

from rope_kernels import ROPE_TYPES, RopeConfig
from rope_kernels.api.apply import apply_rope
from rope_kernels.cli import check
from rope_kernels.measuring import catalog
from rope_kernels.measuring.accuracy import CONTRACT

REFERENCE = [("reference", torch.device("cpu"))]
CALLS = check.calls()


def calls_of(name, **wanted):
    return [c for c in CALLS if c.name == name and all(getattr(c, key) == value for key, value in wanted.items())]


def test_every_rope_type_meets_every_way_to_call():
    met = {(c.config.rope_type, c.config.pairing, c.layout, c.dtype, c.place) for c in CALLS}
    for name, kind in ROPE_TYPES.items():
        if kind.builtin:
            # Channels that stay cannot be read as neighbours and written as halves.
            pairings = check.PAIRINGS[:2] if name == "proportional" else check.PAIRINGS
            assert met >= set(product([name], pairings, check.LAYOUTS, check.DTYPES, check.PLACES)), name


def test_every_shipped_model_meets_every_dtype():
    for name in catalog.names():
        assert {c.dtype for c in CALLS if c.name.split()[0] == name} == set(check.DTYPES)


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_both_states_of_types_that_depend_on_the_length(name):
    lengths = {int(c.positions.max()) + 1 for c in calls_of(name)}
    frequencies = {c.config.frequency_params.inv_freq(31, n) for c in calls_of(name) for n in lengths}
    assert len(lengths) == len(frequencies) == 2


def test_this_machine_is_within_the_contract():
    where = check.targets()
    assert ("reference", torch.device("cpu")) in where
    some, steps = CALLS[::17], []
    results = check.run(some, where, lambda: steps.append(1))
    assert len(steps) == len(some) * len(where) == sum(r.calls for r in results)
    assert check.passed(results), results
    for r in results:
        assert 0 < r.worst_error <= CONTRACT
        assert r.worst_call


@pytest.mark.parametrize("dtype", check.DTYPES)
@pytest.mark.parametrize("scaling", [0.5, 1.0, 1.25])
def test_the_bound_is_that_of_the_tests(dtype, scaling):
    config = dict(inv_freq=[1.0] * 32, head_dim=64, attention_scaling=scaling)
    case = cases.Case("bound", config, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, generator=generator).to(dtype)
    want = torch.randn(4096, generator=generator, dtype=torch.float64) * torch.logspace(
        -9, 1, 4096, dtype=torch.float64
    )
    bound = cases.bound(case, x, want)
    for i in range(0, 4096, 97):
        for share in (0.9, 1.1):
            # Half steps between 16-bit numbers are not 16-bit numbers; in double precision they can be told.
            error = share * bound[i]
            got = check.excess(_Said(want[i : i + 1] + error, dtype), want[i : i + 1], x, max(1.0, scaling))
            assert (got <= CONTRACT) == (share < 1), (i, share)


class _Said:
    """A result in double precision that says it is of another dtype."""

    def __init__(self, values, dtype):
        self._values, self.dtype = values, dtype

    def double(self):
        return self._values


def test_what_is_no_number_is_a_violation():
    x, want = torch.ones(2), torch.ones(2, dtype=torch.float64)
    assert check.excess(torch.tensor([1.0, math.nan]), want, x) == math.inf


def _two_steps_off(x):
    return (x.view(torch.int16) + 2).view(torch.bfloat16)


def _writes_q_only(q, k, positions, cfg, out, **how):
    apply_rope(q, None, positions, cfg, out=(out[0], None), **how)


BROKEN = {
    "rotates back": (lambda q, k, p, cfg, **how: apply_rope(q, k, p, cfg, inverse=True, **how), "returned"),
    "another pairing": (
        lambda q, k, p, cfg, **how: apply_rope(q, k, p, cfg, interleaved=cfg.pairing == "half", **how), "returned",
    ),
    "out is not written": (lambda q, k, p, cfg, **how: how["out"], "out="),
    "k of out= is not written": (_writes_q_only, "out="),
    "not in place": (lambda q, k, p, cfg, **how: apply_rope(q, k, p, cfg, **how), "in place"),
    "the positions before": (lambda q, k, p, cfg, **how: apply_rope(q, k, p - 1, cfg, **how), "returned"),
    "two steps of bf16": (
        lambda q, k, p, cfg, **how: tuple(map(_two_steps_off, apply_rope(q, k, p, cfg, **how))), "returned",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_it_finds(what, monkeypatch):
    broken, place = BROKEN[what]
    monkeypatch.setattr(check, "apply_rope_" if place == "in place" else "apply_rope", broken)
    todo = [c for c in calls_of("llama3", place=place, dtype=torch.bfloat16) if c.config.pairing == "half"]
    results = check.run(todo, REFERENCE)
    wrong = [line for r in results for line in r.violations]
    assert len(wrong) == len(todo) == 4
    assert not check.passed(results)
    assert all(row["worst_error"] is None or row["worst_error"] < math.inf for row in check.to_json(results))


def test_a_call_that_raises_is_a_violation(monkeypatch):
    def dies(*args, **how):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(check, "apply_rope_", dies)
    [line] = [line for r in check.run(calls_of("llama3", place="in place")[:1], REFERENCE) for line in r.violations]
    assert line == "llama3, half, float32, bshd, in place: RuntimeError: no kernel image is available"


def test_untouched_channels_are_compared(monkeypatch):
    def rotates_all(q, k, p, cfg, **how):
        whole = RopeConfig(head_dim=cfg.head_dim, rope_theta=cfg.rope_theta)
        return apply_rope(q, k, p, whole, **how)

    monkeypatch.setattr(check, "apply_rope", rotates_all)
    assert not check.passed(check.run(calls_of("proportional", place="returned")[:1], REFERENCE))
