"""torch.compile and torch.export: whole graphs, right results, no recompilation when only lengths change."""

import subprocess
import sys

import pytest
import torch
from support import tolerances
from support.compiled_model import CONFIGS, HEAD_DIM, Model, positions_for
from torch._dynamo.testing import CompileCounterWithBackend

import rope_kernels as rk


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", CONFIGS)
def test_two_layers_forward_and_backward_without_recompilation(name):
    model = Model(rk.RopeConfig(**CONFIGS[name]))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for tokens, start in ((5, 0), (9, 30), (33, 700)):
        x, positions = torch.randn(2, tokens, 2 * HEAD_DIM), positions_for(name, tokens, start)
        expected = model(x, positions)
        wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
        got = compiled(x, positions)
        gradients = torch.autograd.grad(got.square().sum(), list(model.parameters()))
        torch.testing.assert_close(got, expected, **tolerances.COMPILED)
        for a, b in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(a, b, **tolerances.COMPILED_GRADIENT)
        frames.append(counter.frame_count)
    assert frames[0] == frames[-1], "a new length compiled again"


def test_inductor_forward_and_backward():
    model = Model(rk.RopeConfig(**CONFIGS["longrope"]))
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    x, positions = torch.randn(2, 7, 2 * HEAD_DIM), positions_for("longrope", 7, 12)
    expected = model(x, positions)
    got = compiled(x, positions)
    torch.testing.assert_close(got, expected, **tolerances.COMPILED)
    wanted, gradient = (torch.autograd.grad(y.square().sum(), list(model.parameters())) for y in (expected, got))
    torch.testing.assert_close(gradient, wanted, **tolerances.COMPILED_GRADIENT)


def test_packed_offsets_and_lengths_do_not_recompile():
    config = rk.RopeConfig(**CONFIGS["longrope"])
    counter = CompileCounterWithBackend("aot_eager")

    def packed(q, cu_seqlens, offset, seq_len):
        return rk.apply_rope(q, q, None, config, layout="thd", cu_seqlens=cu_seqlens, offset=offset, seq_len=seq_len)

    compiled = torch.compile(packed, fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for lengths in ((2, 3, 8), (4, 1, 9, 1), (1, 1, 1, 30, 7)):
        bounds = torch.tensor((0, *lengths)).cumsum(0)
        q = torch.randn(sum(lengths) + 2, 2, HEAD_DIM)
        offset, seq_len = torch.arange(len(lengths)), torch.tensor(lengths) * 5
        assert torch.equal(compiled(q, bounds, offset, seq_len)[0], packed(q, bounds, offset, seq_len)[0])
        frames.append(counter.frame_count)
    assert frames[0] == frames[-1], "a new length compiled again"


def test_integer_offset_and_seq_len_do_not_recompile():
    config = rk.RopeConfig(**CONFIGS["dynamic"])
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda q, offset, seq_len: rk.apply_rope(q, None, None, config, offset=offset, seq_len=seq_len)[0],
        fullgraph=True, dynamic=True, backend=counter,
    )  # fmt: skip
    q = torch.randn(2, 3, 2, HEAD_DIM)
    frames = []
    for offset, seq_len in ((5, 40), (700, 800), (90, 93)):
        wanted, _ = rk.apply_rope(q, None, None, config, offset=offset, seq_len=seq_len)
        assert torch.equal(compiled(q, offset, seq_len), wanted)
        frames.append(counter.frame_count)
    assert frames[0] == frames[-1], "a new length compiled again"


def test_in_place_and_out_compile():
    config = rk.RopeConfig(head_dim=HEAD_DIM)
    q, k = torch.randn(1, 3, 2, HEAD_DIM), torch.randn(1, 3, 1, HEAD_DIM)
    expected = rk.apply_rope(q, k, None, config)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def in_place(q, k):
        rk.apply_rope_(q, k, None, config)
        return q + 0

    @torch.compile(fullgraph=True, backend="aot_eager")
    def into(q, k, q_out, k_out):
        rk.apply_rope(q, k, None, config, out=(q_out, k_out))

    q_out, k_out = torch.full_like(q, float("nan")), torch.full_like(k, float("nan"))
    into(q, k, q_out, k_out)
    assert torch.equal(q_out, expected[0])
    assert torch.equal(k_out, expected[1])
    assert torch.equal(in_place(q, k), expected[0])
    assert torch.equal(k, expected[1])


def test_transforms_inside_a_graph_keep_their_tangents():
    config = rk.RopeConfig(head_dim=HEAD_DIM, pairing="interleaved")
    q, tangent = torch.randn(1, 3, 2, HEAD_DIM), torch.randn(1, 3, 2, HEAD_DIM)

    def rotated(q):
        return rk.apply_rope(q, None, None, config)[0]

    def pushed(q, tangent):
        return torch.func.jvp(rotated, (q,), (tangent,))[1]

    compiled = torch.compile(pushed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, tangent), rotated(tangent), **tolerances.TWO_WAYS)
    pulled = torch.compile(torch.func.grad(lambda q: (rotated(q) ** 3).sum()), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(pulled(q), torch.func.grad(lambda q: (rotated(q) ** 3).sum())(q), **tolerances.GRADIENT)


def test_table_op_compiles_with_gradients():
    positions = torch.arange(5)
    cos, sin = rk.cos_sin(positions[None], rk.RopeConfig(head_dim=HEAD_DIM))
    q = torch.randn(2, 3, 5, HEAD_DIM, requires_grad=True)

    def loss(q, cos, sin):
        return (rk.apply_rotary_pos_emb(q, q, cos, sin)[0] ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    wanted, got = (torch.autograd.grad(f(q, cos, sin), q)[0] for f in (loss, compiled))
    torch.testing.assert_close(got, wanted, **tolerances.GRADIENT)


def test_export_with_a_dynamic_length():
    model = Model(rk.RopeConfig(**CONFIGS["llama3"])).eval()
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    example = torch.randn(2, 7, 2 * HEAD_DIM), positions_for("llama3", 7)
    program = torch.export.export(model, example, dynamic_shapes=({1: tokens}, {1: tokens}))
    x, positions = torch.randn(2, 19, 2 * HEAD_DIM), positions_for("llama3", 19, 5)
    torch.testing.assert_close(program.module()(x, positions), model(x, positions))
    assert "rope_kernels.rotate" in str(program.graph)


@pytest.mark.parametrize("name", CONFIGS)
def test_tracing_warns_of_nothing_of_ours(name, recwarn):
    """Dynamo says "silent incorrectness" of every lru_cache that it traces, once per process unless it forgets."""
    config = rk.RopeConfig(**CONFIGS[name])

    def calls(q, k, positions):
        rotated = rk.apply_rope(q, k, positions, config, inverse=True)
        rk.apply_rope_(q, k, positions, config)
        rk.shift_(k, 1, config, seq_len=40)
        rk.rerotate_(k, positions, config, from_seq_len=3, to_seq_len=40)
        cos, sin = rk.cos_sin(positions, config)
        return rotated, rk.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)

    torch._dynamo.utils.warn_once_cache.clear()
    q, k = torch.randn(2, 5, 4, HEAD_DIM), torch.randn(2, 5, 2, HEAD_DIM)
    torch.compile(calls, fullgraph=True, backend="aot_eager")(q, k, positions_for(name, 5))
    assert not [str(w.message) for w in recwarn if "Dynamo" in str(w.message)]


WITHOUT_WARNINGS = """
import torch

import rope_kernels as rk

q, positions, cfg = torch.randn(1, 8, 2, 64), torch.arange(8), rk.RopeConfig(head_dim=64)
long = rk.RopeConfig(head_dim=64, rope_type="dynamic", factor=2.0, max_position_embeddings=4)
for backend in ("eager", "aot_eager"):
    call = torch.compile(lambda q, cfg: rk.apply_rope(q, q, positions, cfg), fullgraph=True, backend=backend)
    for config in (cfg, long):
        for x in (q, q.clone().requires_grad_()):
            assert torch.equal(call(x, config)[0], rk.apply_rope(q, q, positions, config)[0])
"""


def test_compiling_warns_of_nothing():
    warnings = ("-W", "error", "-W", "ignore:Guards may run slower on Python 3.13.0")  # torch's, of that Python alone
    done = subprocess.run([sys.executable, *warnings, "-c", WITHOUT_WARNINGS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
