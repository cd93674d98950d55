"""Plain torch rotates on devices that have no float64 (Apple's MPS): their angles are made on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import calls, cases
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rope_kernels.backends import angles, reference
from rope_kernels.core.layouts import tokens_first

DEVICE = "meta"
"""Taken for one without float64. A torch without MPS makes no tensor on that, not even a fake one."""


class NoFloat64(TorchDispatchMode):
    """Raises where a tensor of float64 would be on the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, result)):
            if isinstance(x, torch.Tensor) and x.device.type == DEVICE:
                assert x.dtype != torch.float64, f"{function}: float64 on {DEVICE}"
        return result


def rotate_on_device(case: cases.Case) -> None:
    made = cases.make(case)
    args = calls.arguments(case, made)
    operation = calls.operation(case, made)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, NoFloat64():

        def on_device(x: Any) -> Any:
            return mode.from_tensor(x).to(DEVICE) if isinstance(x, torch.Tensor) else x

        inputs = calls.inputs(args._replace(**{name: on_device(x) for name, x in args._asdict().items()}))
        q, k = (x if x is None else tokens_first(on_device(x), operation.layout) for x in (made.q, made.k))
        out = [None if x is None else torch.empty_like(x) for x in (q, k)]
        reference.rotate(q, k, out[0], out[1], inputs, operation.spec)
        assert out[0].device.type == DEVICE


@pytest.mark.parametrize("case", cases.CASES, ids=str)
def test_the_device_gets_no_float64(case, monkeypatch):
    monkeypatch.setattr(angles, "_WITHOUT_FLOAT64", frozenset({DEVICE}))
    rotate_on_device(case)


def test_a_device_that_has_float64_gets_it():
    with pytest.raises(AssertionError, match="float64 on meta"):
        rotate_on_device(cases.CASES[0])


def test_mps_has_none():
    assert "mps" in angles._WITHOUT_FLOAT64


@pytest.mark.parametrize("case", cases.CASES, ids=str)
def test_the_factors_have_the_same_bits(case, monkeypatch):
    made = cases.make(case)
    inputs, operation = calls.inputs(calls.arguments(case, made)), calls.operation(case, made)
    q = tokens_first(made.q, operation.layout)
    here = q.shape[0], q.shape[1], q.device, inputs, operation.spec
    wanted = angles.cos_sin(*here)
    monkeypatch.setattr(angles, "_WITHOUT_FLOAT64", frozenset({"cpu"}))
    assert all(map(torch.equal, angles.cos_sin(*here), wanted))
