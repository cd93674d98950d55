"""DynamicState against the module of transformers whose history it keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import cases, comparisons, tolerances
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import rope_kernels as rk
from rope_kernels.api.dynamic_state import DynamicState

LONGEST = 64
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}
CFG = rk.RopeConfig(head_dim=32, max_position_embeddings=LONGEST, **DYNAMIC)
LONGROPE = rk.RopeConfig(**cases.CONFIGS["longrope"])
CALLS = st.lists(st.one_of(st.sampled_from([1, 63, 64, 65]), st.integers(1, 400)), min_size=1, max_size=10)
WALK = [10, 65, 200, 100, 64, 63, 64, 300, 24, 66]


def theirs() -> Any:
    config = LlamaConfig(
        head_dim=32, hidden_size=64, num_attention_heads=2, max_position_embeddings=LONGEST, rope_parameters=DYNAMIC
    )
    return LlamaRotaryEmbedding(config)


def assert_follows(update: Any, lengths: list[int]) -> None:
    """At each step the frequencies, and the table at the first positions, are those of transformers' module."""
    module, near = theirs(), torch.arange(8)
    for length in lengths:
        positions = torch.randperm(length)[None]
        seq_len = update(positions)
        module(torch.zeros(1), positions)
        comparisons.assert_like_transformers(CFG, module.inv_freq, int(seq_len))
        cos, sin = rk.cos_sin(near, CFG, seq_len=seq_len)
        angles = near[:, None] * module.inv_freq.repeat(2)
        torch.testing.assert_close(cos, angles.cos(), rtol=0, atol=2e-4)
        torch.testing.assert_close(sin, angles.sin(), rtol=0, atol=2e-4)


@settings(max_examples=40)
@given(CALLS)
def test_any_calls_like_transformers(lengths: list[int]) -> None:
    assert_follows(DynamicState(CFG).update, lengths)


def test_growing_shrinking_and_below_the_original() -> None:
    state = DynamicState(CFG)
    seen = [int(state.update(torch.arange(length))) for length in WALK]
    assert seen == [64, 65, 200, 200, 200, 64, 64, 300, 64, 66]
    assert_follows(DynamicState(CFG).update, WALK)


def test_reset_forgets() -> None:
    state = DynamicState({"full": CFG, "far": CFG.replace(max_position_embeddings=128)})
    for layer in ("full", "far"):
        assert int(state.update(torch.arange(200), layer)) == 200
    state.reset()
    assert int(state.update(torch.arange(64), "full")) == 64
    assert int(state.update(torch.arange(64), "far")) == 128


def test_layer_types_have_states_of_their_own() -> None:
    state = DynamicState({"full": CFG, "long": LONGROPE, "plain": rk.RopeConfig(head_dim=32)})
    assert int(state.update(torch.arange(100), "full")) == 100
    for layer in ("long", "plain"):
        assert [int(state.update(torch.arange(n), layer)) for n in (100, 5, 17)] == [100, 5, 17]
    assert int(state.update(torch.arange(80), "full")) == 100


def test_longrope_has_no_history() -> None:
    """transformers chooses its list by the length of the call alone, and so does a state of it."""
    state = DynamicState(LONGROPE)
    for length in (16, 17, 16):
        assert torch.equal(state.update(torch.arange(length)), torch.tensor(length))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_positions_of_any_shape_and_dtype(dtype: torch.dtype) -> None:
    for shape in ((90,), (2, 45), (3, 1, 30)):
        state = DynamicState(CFG)
        assert torch.equal(state.update(torch.arange(90).reshape(shape).to(dtype)), torch.tensor(90))
    assert int(DynamicState(CFG).update(torch.tensor([70.25]))) == 72


def test_no_positions_change_nothing() -> None:
    state = DynamicState(CFG)
    state.update(torch.arange(100))
    for _ in range(2):
        assert int(state.update(torch.arange(0))) == 100


def test_what_was_returned_stays() -> None:
    state, q = DynamicState(CFG), torch.randn(1, 100, 2, 32, requires_grad=True)
    first = state.update(torch.arange(100))
    rotated, _ = rk.apply_rope(q, None, torch.arange(100), CFG, seq_len=first)
    state.update(torch.arange(300))
    state.reset()
    assert int(first) == 100
    (gradient,) = torch.autograd.grad(rotated.sum(), q)
    again, _ = rk.apply_rope(q, None, torch.arange(100), CFG, seq_len=100)
    torch.testing.assert_close(gradient, torch.autograd.grad(again.sum(), q)[0], rtol=0, atol=0)


def test_one_graph_for_all_lengths() -> None:
    torch._dynamo.reset()
    state, eager = DynamicState(CFG), DynamicState(CFG)
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def step(q: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seq_len = state.update(positions)
        return seq_len, rk.apply_rope(q, None, positions, CFG, seq_len=seq_len)[0]

    frames = []
    for length in WALK:
        q, positions = torch.randn(1, length, 2, 32), torch.arange(length)
        seq_len, rotated = step(q, positions)
        wanted = eager.update(positions)
        assert torch.equal(seq_len, wanted)
        expected, _ = rk.apply_rope(q, None, positions, CFG, seq_len=wanted)
        torch.testing.assert_close(rotated, expected, **tolerances.COMPILED_CALL)
        frames.append(counter.frame_count)
    assert frames[0] == frames[-1], "a new length compiled again"
    torch._dynamo.reset()


def test_compiled_like_transformers() -> None:
    torch._dynamo.reset()
    state = DynamicState(CFG)
    assert_follows(torch.compile(state.update, fullgraph=True, dynamic=True, backend="aot_eager"), WALK)
    torch._dynamo.reset()


def test_the_state_is_written_in_place() -> None:
    """A CUDA graph replays from its address."""
    state = DynamicState(CFG)
    (tensor,) = state._lengths.values()
    for length in WALK:
        state.update(torch.arange(length))
        assert next(iter(state._lengths.values())) is tensor
    state.reset()
    assert next(iter(state._lengths.values())) is tensor
    assert int(tensor) == LONGEST


def test_without_reading_the_device() -> None:
    """Tensors without values: a read would fail."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        state, positions = DynamicState(CFG), torch.arange(100)
        seq_len = state.update(positions)
        assert (seq_len.shape, seq_len.dtype) == ((), torch.int64)
        rk.apply_rope(torch.randn(1, 100, 2, 32), None, positions, CFG, seq_len=seq_len)
        state.reset()
    state = DynamicState(CFG, device="meta")
    assert state.update(torch.arange(100, device="meta")).is_meta


def test_a_default_device_of_meta_does_not_lose_the_lengths() -> None:
    with torch.device("meta"):
        state = DynamicState(CFG)
    assert int(state.update(torch.arange(10))) == LONGEST


def test_inference_mode() -> None:
    with torch.inference_mode():
        state = DynamicState(CFG)
        assert int(state.update(torch.arange(100))) == 100
    assert int(state.update(torch.arange(110))) == 110


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (3, r"^cfg: got 3, must be a RopeConfig or a mapping of layer type to RopeConfig$"),
        ({}, r"^cfg: got \{\}, must be a RopeConfig or a mapping"),
        ({"full": 3}, r"^cfg: got 'full': int, must be layer type to RopeConfig$"),
        ({3: CFG}, r"^cfg: got 3: RopeConfig, must be layer type to RopeConfig$"),
    ],
)
def test_bad_configs(cfg: Any, message: str) -> None:
    with pytest.raises(rk.RopeConfigError, match=message):
        DynamicState(cfg)


def test_bad_calls() -> None:
    state = DynamicState({"full": CFG, "local": CFG})
    with pytest.raises(rk.RopeConfigError, match=r"^layer_type: missing; the state has full, local$"):
        state.update(torch.arange(3))
    with pytest.raises(rk.RopeConfigError, match=r"^layer_type: got 'ful'; the state has full, local$"):
        state.update(torch.arange(3), "ful")
    for positions, got in (([1], "list"), (torch.ones(2, dtype=torch.bool), "torch.bool"), (None, "NoneType")):
        with pytest.raises(rk.RopeShapeError, match=rf"^positions: got {got}, must be an integer or floating tensor$"):
            state.update(positions, "full")  # type: ignore[arg-type]
    assert repr(state) == "DynamicState(full=64, local=64)"
    assert repr(DynamicState(CFG)) == "DynamicState(original=64)"
