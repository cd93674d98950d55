"""The Triton kernel that stores in a KV cache, through its launcher, as compiled PTX in the emulator."""

import pytest
import torch

pytest.importorskip("triton")

from support import append_launches as launches
from support.append_launches import AppendCall

from emulation.ptx.code import INSTRUCTIONS
from emulation.targets import TRITON as TARGETS
from emulation.triton_driver import emulated

on_every_target = pytest.mark.parametrize("target", TARGETS, ids="sm_{}".format)
EIGHT_BITS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8]


def on_targets(calls):
    """Each on one; not in step with the kinds of caches."""
    targets = [TARGETS[(i + i // 4) % 4] for i in range(len(calls))]
    return [pytest.param(c, t, id=f"{c}-sm_{t}") for c, t in zip(calls, targets, strict=True)]


def run(call: AppendCall, target: int) -> None:
    """The driver refuses shared memory. q, k and v take one launch, beside those that make what is expected."""
    with emulated(target) as done:
        launches.run(call)
    assert [launch.name for launch in done].count("rotate_append_kernel") == 1
    for launch in done:
        assert set(launch.counts.instructions) <= INSTRUCTIONS


@pytest.mark.parametrize(("call", "target"), on_targets(launches.SOME))
def test_call(call, target):
    run(call, target)


@pytest.mark.parametrize(("call", "target"), on_targets(launches.MANY_TOKENS))
def test_many_tokens(call, target, many_tokens):
    run(call, target)


@pytest.mark.full
@pytest.mark.parametrize(("call", "target"), on_targets(launches.WITH_TOKENS))
def test_every_call(call, target):
    run(call, target)


@pytest.mark.full
@pytest.mark.parametrize(("call", "target"), on_targets(launches.WITH_TOKENS))
def test_every_call_of_many_tokens(call, target, many_tokens):
    run(call, target)


@on_every_target
def test_slots_past_the_cache_are_not_stored(target):
    with emulated(target):
        launches.run_slots_past_the_cache()


@pytest.mark.parametrize("target", [80, 100])
def test_k_in_place(target):
    with emulated(target):
        launches.run_k_in_place()


def test_k_alone_in_place():
    with emulated(90) as done:
        launches.run_k_alone_in_place()
    assert "rotate_append_kernel" not in {launch.name for launch in done}


@pytest.mark.parametrize(("run", "target"), [(launches.run_many_heads, 80), (launches.run_unaligned_caches, 120)])
def test_many_heads_and_unaligned_caches(run, target):
    with emulated(target):
        run()


def test_pages_of_more_than_32_bits(tmp_path):
    with emulated(90):
        launches.run_far_apart(tmp_path)


@on_every_target
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_every_midpoint_is_rounded_to_even(dtype, target):
    with emulated(target):
        launches.run_every_midpoint(dtype)


def test_another_cache_of_the_same_kind_is_not_compiled_again():
    """Neither for other pages, nor for other slots: they are arguments."""
    call = next(call for call in launches.SOME if call.kind.memory == "nhd" and call.kind.k == "same")
    with emulated(90) as done:
        for pages in (0, 5):
            filled = call.fill()
            cache = filled.cache
            cache.k, cache.v = (
                None if x is None else torch.cat((x, torch.full_like(x[:1].expand(pages, *x.shape[1:]), torch.nan)))
                for x in (cache.k, cache.v)
            )
            launches.append(call, filled, filled.made.q, None)
    assert len({launch.ptx for launch in done}) == 1
