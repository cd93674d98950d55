"""Tensors at the edge of what autograd and transforms take: empty ones, those of inference mode, mapped positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tolerances
from torch import Tensor

import rope_kernels as rk

CONFIGS = {
    "default": rk.RopeConfig(head_dim=16),
    "longrope": rk.RopeConfig(
        head_dim=16, rope_type="longrope", short_factor=[1.0] * 8, long_factor=[2.0] * 8,
        original_max_position_embeddings=4, max_position_embeddings=64,
    ),
    "interleaved_to_half": rk.RopeConfig(head_dim=16, pairing="interleaved_to_half"),
    "dynamic": rk.RopeConfig(head_dim=16, rope_type="dynamic", factor=2.0, max_position_embeddings=4),
}  # fmt: skip
BACKENDS = ("native", "reference")
SIZES = st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 2)).filter(lambda sizes: 0 in sizes)


def shape_of(layout: str, batch: int, tokens: int, heads: int) -> tuple[int, ...]:
    return {"bshd": (batch, tokens, heads, 16), "bhsd": (batch, heads, tokens, 16), "thd": (tokens, heads, 16)}[layout]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["bshd", "bhsd", "thd"])
@settings(max_examples=25)
@given(sizes=SIZES, name=st.sampled_from(list(CONFIGS)), strided=st.booleans(), counted=st.booleans())
def test_empty_tensors_rotate_and_have_gradients(backend, layout, sizes, name, strided, counted):
    shape = shape_of(layout, *sizes)
    if 0 not in shape:
        return
    config, positions = CONFIGS[name], None if counted else torch.arange(sizes[1])
    q, k = torch.randn(shape), torch.randn(shape)
    if strided:
        q = torch.randn((*shape[:-1], 32))[..., ::2]
    with rk.use_backend(backend):
        out = torch.empty(shape), torch.empty(shape)
        assert rk.apply_rope(q, k, positions, config, layout=layout, out=out) is out
        assert rk.apply_rope_(q, k, positions, config, layout=layout)[0] is q
        for grad_of in ("sum", "expanded"):
            x, y = q.detach().requires_grad_(), k.detach().requires_grad_()
            q_out, k_out = rk.apply_rope(x, y, positions, config, layout=layout)
            assert (q_out.shape, k_out.shape) == (shape, shape)
            grad = torch.ones(()).expand(shape) if grad_of == "expanded" else torch.ones(shape)
            torch.autograd.backward((q_out, k_out), (grad, grad))
            assert (x.grad.shape, y.grad.shape) == (shape, shape)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_empty_tensors_by_a_table(backend, sizes):
    batch, tokens, heads = sizes
    q = torch.randn(batch, heads, tokens, 16, requires_grad=True)
    cos, sin = (torch.randn(batch, tokens, 16, requires_grad=True) for _ in range(2))
    with rk.use_backend(backend):
        out, _ = rk.apply_rotary_pos_emb(q, None, cos, sin)
        out.backward(torch.ones(()).expand(out.shape))
    assert q.grad.shape == q.shape
    assert not cos.grad.any()


def test_empty_tensors_in_a_graph():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda q, positions: rk.apply_rope(q, None, positions, CONFIGS["default"])[0],
        fullgraph=True,
        backend="aot_eager",
    )
    for sizes in ((0, 5, 2), (1, 0, 2), (1, 5, 0)):
        q = torch.randn(*sizes, 16, requires_grad=True)
        out = compiled(q, torch.arange(sizes[1]))
        out.sum().backward()
        assert q.grad.shape == q.shape


INDEX_TENSORS: dict[str, Callable[[], dict[str, Any]]] = {
    "positions": lambda: {"positions": torch.arange(5)},
    "floating positions": lambda: {"positions": torch.rand(5)},
    "offset": lambda: {"positions": None, "offset": torch.tensor([3, 4])},
    "seq_len": lambda: {"positions": torch.arange(5), "seq_len": torch.tensor(9)},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("config", [CONFIGS["default"], CONFIGS["longrope"]], ids=["default", "longrope"])
@pytest.mark.parametrize("index", INDEX_TENSORS)
def test_index_tensors_of_inference_mode_can_be_trained_with(index, config, backend):
    usual = INDEX_TENSORS[index]()
    with torch.inference_mode():
        inferred = {name: x + 0 if isinstance(x, Tensor) else x for name, x in usual.items()}
    assert any(isinstance(x, Tensor) and x.is_inference() for x in inferred.values())
    grads = []
    for options in (usual, inferred):
        q = torch.arange(2.0 * 5 * 3 * 16).reshape(2, 5, 3, 16).requires_grad_()
        with rk.use_backend(backend):
            out = rk.apply_rope(
                q, None, options["positions"], config, **{k: v for k, v in options.items() if k != "positions"}
            )[0]
            out.square().sum().backward()
        grads.append(q.grad)
    assert torch.equal(*grads)
    with rk.use_backend(backend):
        out, tangent = (
            torch.func.jvp(
                lambda x: rk.apply_rope(x, None, inferred["positions"], config)[0], (q.detach(),), (q.detach(),)
            )
            if inferred["positions"] is not None
            else (grads[0], grads[0])
        )
    assert torch.isfinite(tangent).all()


def test_a_table_of_inference_mode_can_be_trained_with():
    with torch.inference_mode():
        cos, sin = torch.randn(1, 5, 16), torch.randn(1, 5, 16)
    q = torch.randn(1, 2, 5, 16, requires_grad=True)
    rk.apply_rotary_pos_emb(q, None, cos, sin)[0].sum().backward()
    wanted = torch.autograd.grad(rk.apply_rotary_pos_emb(q, None, cos.clone(), sin.clone())[0].sum(), q)[0]
    assert torch.equal(q.grad, wanted)


@pytest.mark.parametrize("has_k", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", ["positions", "offset", "seq_len"])
def test_mapped_index_tensors(index, backend, has_k):
    config = CONFIGS["longrope"]
    q, k = torch.randn(2, 5, 3, 16), torch.randn(2, 5, 1, 16) if has_k else None
    values = {
        "positions": torch.arange(15).reshape(3, 5),
        "offset": torch.arange(3),
        "seq_len": torch.tensor([2, 4, 9]),
    }

    def call(value):
        positions = value if index == "positions" else None
        options = {} if index == "positions" else {index: value}
        return tuple(x for x in rk.apply_rope(q, k, positions, config, **options) if x is not None)

    with rk.use_backend(backend):
        mapped = torch.vmap(call)(values[index])
        one_by_one = [call(value) for value in values[index]]
    for side, wanted in zip(mapped, zip(*one_by_one, strict=True), strict=True):
        assert torch.equal(side, torch.stack(wanted))


@pytest.mark.parametrize("pairing", ["half", "interleaved", "interleaved_to_half"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_mapped_tables(pairing, share):
    if share < 1 and pairing == "interleaved_to_half":
        config = rk.RopeConfig(head_dim=16, pairing=pairing, partial_rotary_factor=share)
    else:
        config = rk.RopeConfig(head_dim=16, pairing=pairing, rope_type="proportional", partial_rotary_factor=share)
    positions = torch.arange(10).reshape(2, 5)
    mapped = torch.vmap(lambda p: rk.cos_sin(p, config))(positions)
    for side, wanted in zip(mapped, zip(*(rk.cos_sin(p, config) for p in positions), strict=True), strict=True):
        assert torch.equal(side, torch.stack(wanted))


@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_traced_call_is_the_call(name, needs_gradient):
    q, positions = torch.randn(1, 5, 2, 16, requires_grad=needs_gradient), torch.arange(5)

    def call(x):
        return rk.apply_rope(x, None, positions, CONFIGS[name])[0]

    traced = torch.jit.trace(call, (q,))
    assert torch.equal(traced(2 * q), call(2 * q))
    if needs_gradient:
        assert torch.equal(*(torch.autograd.grad(f(q).square().sum(), q)[0] for f in (traced, call)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_default_dtype_changes_nothing(name, dtype):
    config, positions, q = CONFIGS[name], torch.arange(900, 905), torch.randn(1, 5, 2, 16)

    def results():
        wide = q.clone().requires_grad_()
        rotated = rk.apply_rope(wide, None, positions, config)[0]
        return (*rk.cos_sin(positions, config), rotated, torch.autograd.grad(rotated.sum(), wide)[0],
                torch.func.jvp(lambda x: rk.apply_rope(x, None, positions, config)[0], (q,), (q,))[1],
                rk.shift_(q.clone(), 3, config, seq_len=9), config.inv_freq())  # fmt: skip

    wanted = results()
    torch.set_default_dtype(dtype)
    try:
        for backend in BACKENDS:
            with rk.use_backend(backend):
                got = results()
            if backend == "native":
                assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(got, wanted, strict=True))
            else:
                torch.testing.assert_close(got, wanted, **tolerances.THERE_AND_BACK)
    finally:
        torch.set_default_dtype(torch.float32)
