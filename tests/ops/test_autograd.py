"""Gradients, transforms and compilation: exact, saving nothing of q's size, and never silently zero."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from support import cases, tolerances
from support.calls import arguments, is_public
from support.cases import CASES, Case, check, config_of, make, variant
from torch.library import opcheck

import rope_kernels as rk
from rope_kernels.ops import operators

PUBLIC = [c for c in CASES if is_public(c)]
CONFIG = rk.RopeConfig(**cases.CONFIGS["llama3"])
LONGROPE = rk.RopeConfig(**cases.CONFIGS["longrope"])
FEW = [
    Case("few-llama3", cases.CONFIGS["llama3"]),
    Case("few-mrope", cases.CONFIGS["mrope_contiguous"], layout="bhsd"),
    Case("few-longrope", cases.CONFIGS["longrope"], seq_len=(16, 40)),
    Case("few-dynamic", cases.CONFIGS["dynamic"], positions="seq", start=60),
    Case("few-deepseek", cases.CONFIGS["yarn_mscale"], k_heads=0),
    Case("few-packed", cases.CONFIGS["table"], layout="thd", positions="none", lengths=(2, 3), tokens=6),
    Case("few-offset", cases.CONFIGS["default"], positions="none", offset=(7, 9), dtype=torch.bfloat16),
]


def inputs(seed=0, heads=(4, 2), config=CONFIG):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, h, config.head_dim, generator=generator) for h in heads]


@pytest.mark.parametrize("case", PUBLIC, ids=str)
def test_backward_is_the_inverse_rotation(case):
    """The gradient of sum(y * g) is the adjoint of g, so the inverse case of the list is its exact value."""
    made = make(case)
    if case.inverse:
        return
    adjoint = make(variant(case, inverse=True))
    q = made.q.detach().requires_grad_()
    rotated = rk.apply_rope(q, None, made.positions, config_of(case), **made.options)[0]
    rotated.backward(adjoint.q)
    check(case, adjoint.q, q.grad, adjoint.expected[0])


@pytest.mark.parametrize("needing", ["q", "k", "both"])
def test_gradients_reach_what_needs_them(needing):
    q, k = inputs()
    wanted = rk.apply_rope(torch.ones_like(q), torch.ones_like(k), None, CONFIG, inverse=True)
    q.requires_grad_(needing != "k")
    k.requires_grad_(needing != "q")
    rotated = rk.apply_rope(q, k, None, CONFIG)
    (rotated[0].sum() + rotated[1].sum()).backward()
    for x, gradient in zip((q, k), wanted, strict=True):
        assert (x.grad is not None) == x.requires_grad
        if x.requires_grad:
            assert torch.equal(x.grad, gradient)


def test_a_part_of_the_outputs_can_be_used_alone():
    q, k = (x.requires_grad_() for x in inputs())
    rk.apply_rope(q, k, None, CONFIG)[1].sum().backward()
    assert k.grad is not None
    assert q.grad is None or not q.grad.any()


def test_second_derivative():
    q, k = (x.requires_grad_() for x in inputs())
    rotated = rk.apply_rope(q, k, None, CONFIG)
    loss = (rotated[0] ** 3).sum() + (rotated[1] ** 3).sum()
    gradient, _ = torch.autograd.grad(loss, (q, k), create_graph=True)
    second, _ = torch.autograd.grad(gradient.sum(), (q, k), allow_unused=True)
    ones = torch.ones_like(q)
    middle = 6 * rotated[0].detach() * rk.apply_rope(ones, None, None, CONFIG)[0]
    wanted, _ = rk.apply_rope(middle, None, None, CONFIG, inverse=True)
    torch.testing.assert_close(second, wanted, **tolerances.SECOND_GRADIENT)


def test_nothing_of_the_size_of_q_is_saved():
    saved = []
    q, k = (x.requires_grad_() for x in inputs())
    positions = torch.arange(3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        rk.apply_rope(q, k, positions, CONFIG)
    assert sum(t.numel() for t in saved) == positions.numel()


def test_an_overwritten_position_buffer_is_noticed():
    q = inputs()[0].requires_grad_()
    positions = torch.arange(3)
    rotated, _ = rk.apply_rope(q, None, positions, CONFIG)
    positions += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        rotated.sum().backward()


def test_a_gradient_without_unit_stride():
    q = inputs()[0].requires_grad_()
    rotated, _ = rk.apply_rope(q, None, None, CONFIG)
    gradient = torch.randn(rotated.shape[::-1]).permute(3, 2, 1, 0)
    rotated.backward(gradient)
    assert torch.equal(q.grad, rk.apply_rope(gradient.contiguous(), None, None, CONFIG, inverse=True)[0])


def test_leaves_and_out_refuse_a_gradient_and_write_nothing():
    q, k = inputs()
    before = q.clone(), k.clone()
    k.requires_grad_()
    with pytest.raises(RuntimeError, match="k: is a leaf that requires a gradient"):
        rk.apply_rope_(q, k, None, CONFIG)
    with pytest.raises(RuntimeError, match="out="):
        rk.apply_rope(q, k, None, CONFIG, out=(q, k))
    assert torch.equal(q, before[0])
    assert torch.equal(k, before[1])
    with torch.no_grad():
        rk.apply_rope_(q, k, None, CONFIG)
    assert not torch.equal(k, before[1])


def test_func_grad_and_vmap():
    q, k = inputs()

    def loss(q, k):
        rotated = rk.apply_rope(q, k, None, CONFIG)
        return (rotated[0] ** 2).sum() + (rotated[1] ** 3).sum()

    got = torch.func.grad(loss, argnums=(0, 1))(q, k)
    a, b = q.clone().requires_grad_(), k.clone().requires_grad_()
    loss(a, b).backward()
    assert torch.equal(got[0], a.grad)
    assert torch.equal(got[1], b.grad)
    per_sample = torch.vmap(torch.func.grad(loss))(torch.stack((q, 2 * q)), torch.stack((k, k)))
    torch.testing.assert_close(per_sample[0], got[0])
    torch.testing.assert_close(per_sample[1], 2 * got[0])


@pytest.mark.parametrize("layout", ["bshd", "bhsd", "thd"])
@pytest.mark.parametrize("in_dims", [(0, 0), (1, None), (None, 2)])
def test_vmap_over_q_and_k(layout, in_dims):
    shape = (3, 2, 128) if layout == "thd" else (2, 3, 4, 128)
    made = [torch.randn(shape) if d is None else torch.randn((*shape[:d], 5, *shape[d:])) for d in in_dims]
    got = torch.vmap(lambda q, k: rk.apply_rope(q, k, None, CONFIG, layout=layout), in_dims)(*made)
    for i in range(5):
        one = [x if d is None else x.select(d, i) for x, d in zip(made, in_dims, strict=True)]
        wanted = rk.apply_rope(*one, None, CONFIG, layout=layout)
        assert torch.equal(got[0][i], wanted[0])
        assert torch.equal(got[1][i], wanted[1])


def test_vmap_over_positions():
    q, positions = torch.randn(4, 2, 3, 1, 64), torch.randint(0, 100, (4, 2, 3))
    got, _ = torch.vmap(lambda q, p: rk.apply_rope(q, q, p, LONGROPE, seq_len=99))(q, positions)
    for i in range(4):
        assert torch.equal(got[i], rk.apply_rope(q[i], None, positions[i], LONGROPE, seq_len=99)[0])


def test_jacobians_agree():
    config = rk.RopeConfig(head_dim=4)
    q = torch.randn(1, 3, 2, 4)

    def rotate_q(q):
        return rk.apply_rope(q, None, None, config)[0]

    reverse, forward = torch.func.jacrev(rotate_q)(q), torch.func.jacfwd(rotate_q)(q)
    assert reverse.abs().sum() > 0
    torch.testing.assert_close(forward, reverse)
    tangent = torch.randn_like(q)
    assert torch.equal(torch.func.jvp(rotate_q, (q,), (tangent,))[1], rotate_q(tangent))
    with forward_ad.dual_level():
        dual = rotate_q(forward_ad.make_dual(q, tangent))
        assert torch.equal(forward_ad.unpack_dual(dual).tangent, rotate_q(tangent))
        in_place, _ = rk.apply_rope_(forward_ad.make_dual(q.clone(), tangent.clone()), None, None, config)
        assert torch.equal(forward_ad.unpack_dual(in_place).tangent, rotate_q(tangent))


def test_tangent_of_one_input_only():
    q, k = inputs()
    tangent = torch.randn_like(k)
    _, (dq, dk) = torch.func.jvp(lambda k: rk.apply_rope(q, k, None, CONFIG), (k,), (tangent,))
    assert not dq.any()
    assert torch.equal(dk, rk.apply_rope(tangent, None, None, CONFIG)[0])


@pytest.mark.parametrize("case", FEW, ids=str)
def test_opcheck(case):
    made = make(case)
    args = arguments(case, made)
    q, k = (None if x is None else x.detach().requires_grad_() for x in (made.q, made.k))
    opcheck(operators.rotate, (q, k, *args))
    opcheck(operators.rotate_, (made.q, made.k, *args))
    out = (torch.empty_like(made.q), None if made.k is None else torch.empty_like(made.k))
    opcheck(operators.rotate_out, (made.q, made.k, *args, *out))


def test_backward_runs_on_the_backend_of_the_forward_pass(monkeypatch):
    from rope_kernels.backends import current_override, reference

    q = inputs()[0].requires_grad_()
    with rk.use_backend("reference"):
        rotated, _ = rk.apply_rope(q, None, None, CONFIG)
    seen = []
    original = reference.rotate
    monkeypatch.setattr(reference, "rotate", lambda *a: seen.append(current_override()) or original(*a))
    rotated.sum().backward()
    assert seen == ["reference"]
    assert current_override() is None


def test_fake_and_meta_tensors_give_shapes_and_read_nothing():
    from torch._subclasses.fake_tensor import FakeTensorMode

    for case in FEW:
        made = make(case)
        with FakeTensorMode(allow_non_fake_inputs=False) as mode:

            def fake(x):
                return mode.from_tensor(x) if isinstance(x, torch.Tensor) else x

            options = {name: fake(value) for name, value in made.options.items()}
            q, k = rk.apply_rope(fake(made.q), fake(made.k), fake(made.positions), config_of(case), **options)
        assert q.shape == made.q.shape
        assert (k is None) == (made.k is None)
    meta = torch.empty(2, 3, 4, 128, device="meta")
    assert rk.apply_rope(meta, meta, None, CONFIG)[1].device.type == "meta"
    rk.apply_rope_(meta, None, None, CONFIG)
