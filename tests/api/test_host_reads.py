"""No call reads a tensor's value on the host: fake tensors have none, and a mode refuses to read real ones."""

import dataclasses

import pytest
import torch
from support.calls import is_public, rotate
from support.cases import CASES, config_of, make
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import rope_kernels as rk
from rope_kernels.api.overlap import has_memory

READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "_unique2", "masked_select"}


def way(case):
    """What a case needs besides sizes, dtypes and strides, which no host read could depend on."""
    forms = type(case.seq_len), type(case.offset), bool(case.lengths), case.from_seq_len is None, bool(case.k_heads)
    return repr(case.config), case.layout, case.positions, *forms, case.inverse, case.unscaled


WAYS = list({way(case): case for case in CASES}.values())


class NoReads(TorchDispatchMode):
    """Raises where torch would wait for a device's value."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in READS, f"{function} reads a value"
        return function(*args, **(kwargs or {}))


def everything(case, made):
    """Out of place with a gradient, into given buffers, in place, and as keys that are re-rotated."""
    inputs = [x for x in (made.q, made.k) if x is not None]
    with_grad = [x.detach().requires_grad_() for x in inputs]
    outputs = rotate(case, dataclasses.replace(made, q=with_grad[0], k=with_grad[1] if len(inputs) > 1 else None))
    torch.autograd.grad([y for y in outputs if y is not None], with_grad, [torch.ones_like(x) for x in inputs])
    if not is_public(case):
        return
    config, options = config_of(case), dict(made.options, inverse=case.inverse)
    rk.apply_rope_(made.q, made.k, made.positions, config, **options)
    out = torch.empty_like(made.q), None if made.k is None else torch.empty_like(made.k)
    if all(x is None or x.stride(-1) == 1 for x in out):
        rk.apply_rope(made.q, made.k, made.positions, config, out=out, **options)
    layout, length = made.options["layout"], made.options["seq_len"]
    if "cu_seqlens" not in made.options:
        rk.shift_(made.q, 3, config, layout=layout, seq_len=0 if length is None else length)
        rk.rerotate_(made.q, made.positions, config, layout=layout, from_seq_len=8, to_seq_len=40)


@pytest.mark.parametrize("case", WAYS, ids=str)
@pytest.mark.parametrize("backend", [name for name, why in rk.available_backends().items() if why is None])
def test_reading_is_not_needed(case, backend):
    with rk.use_backend(backend), NoReads():
        everything(case, make(case))


@pytest.mark.parametrize("case", WAYS, ids=str)
def test_values_are_not_needed(case):
    with FakeTensorMode() as mode:
        made = make_fake(mode, case)
        everything(case, made)


def make_fake(mode, case):
    """A case's tensors without their values; made outside the mode, since the exact result needs them."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        made = make(case)
    fake = {name: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for name, x in vars(made).items()}
    fake["options"] = {n: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for n, x in made.options.items()}
    return dataclasses.replace(made, **fake)


def test_a_read_is_noticed():
    with NoReads(), pytest.raises(AssertionError, match="reads a value"):
        torch.ones(1).item()


def test_tensors_without_memory_overlap_nothing():
    config = rk.RopeConfig(head_dim=64)
    q, k = torch.empty(1, 5, 4, 64, device="meta"), torch.empty(1, 5, 2, 64, device="meta")
    assert not has_memory(q)
    rk.apply_rope_(q, k, torch.empty(5, dtype=torch.int64, device="meta"), config)
