"""Gradients of calls with a norm: of q, k and both weights, in every mode, against differences of exact results."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from support import normed, tolerances
from support.cases import CONFIGS, Case, config_of, make, rotated_exactly
from support.normed import NormedCall, NormKind
from torch.library import opcheck

import rope_kernels as rk
from rope_kernels.ops import norm_operators

KINDS = [
    NormKind("weight", "offset", False),
    NormKind("offset", "weight", True),
    NormKind("plain", "weight", True),
    NormKind("weight", "", False),
    NormKind("", "weight", False),
]
FORMS = [
    Case("norm-llama3", CONFIGS["llama3"]),
    Case("norm-mrope", CONFIGS["mrope_contiguous"], layout="bhsd"),
    Case("norm-partial", CONFIGS["partial_odd"]),
    Case("norm-offset", CONFIGS["nope_first_pairs"]),
    Case("norm-blocks", CONFIGS["axial_gemma4"]),
    Case("norm-scaled", CONFIGS["yarn_mscale"]),
    Case("norm-rounded", CONFIGS["longrope"], seq_len=(16, 40)),
    Case("norm-packed", CONFIGS["table"], layout="thd", positions="none", lengths=(2, 3), tokens=7),
    Case("norm-long", dict(head_dim=32), batch=1, tokens=700, q_heads=1, k_heads=1),
]
CALLS = [NormedCall(case, kind) for case in FORMS for kind in KINDS]
BACKENDS = ("reference", "native")


def made_for(call: NormedCall, dtype: torch.dtype = torch.float32):
    made, weights = make(call.case), call.weights()
    leaves = {"q": made.q.to(dtype), "k": made.k.to(dtype), "q_weight": weights["q"], "k_weight": weights["k"]}
    for name, x in leaves.items():
        leaves[name] = None if x is None else x.detach().requires_grad_()
    return made, leaves


def rotate(call: NormedCall, made, leaves):
    options = call.options({"q": leaves["q_weight"], "k": leaves["k_weight"]})
    return rk.apply_rope(leaves["q"], leaves["k"], made.positions, config_of(call.case), **made.options, **options)


def exact_sum(call: NormedCall, leaves, gradients) -> float:
    """What the gradients are of, in float64."""
    total = 0.0
    for side in "qk":
        x, weight = leaves[side].detach().double(), leaves[f"{side}_weight"]
        norm = call.norm(side, None if weight is None else weight.detach())
        total += float((normed.exactly(call.case, x, norm) * gradients[side].double()).sum())
    return total


def backward(call: NormedCall, backend: str, dtype: torch.dtype = torch.float32):
    made, leaves = made_for(call, dtype)
    generator = torch.Generator().manual_seed(7)
    gradients = {s: torch.randn(leaves[s].shape, generator=generator).to(dtype) for s in "qk"}
    with rk.use_backend(backend):
        y, z = rotate(call, made, leaves)
    wanted = [x for x in leaves.values() if x is not None]
    found = iter(torch.autograd.grad((y, z), wanted, (gradients["q"], gradients["k"])))
    return leaves, gradients, {name: None if x is None else next(found) for name, x in leaves.items()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_gradients_are_differences_of_exact_results(call, backend):
    """Of each tensor in a random direction: the difference of exact results that are a little apart."""
    leaves, gradients, found = backward(call, backend)
    generator = torch.Generator().manual_seed(11)
    for name, x in leaves.items():
        if x is None:
            continue
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        step = 1e-5 * direction
        sides = [exact_sum(call, leaves | {name: x.detach().double() + sign * step}, gradients) for sign in (1, -1)]
        difference = (sides[0] - sides[1]) / 2e-5
        got = float((found[name].double() * direction).sum())
        size = float((found[name].double().abs() * direction.abs()).sum())
        assert abs(got - difference) <= tolerances.NORM_GRADIENT_REL * size, name


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_native_and_reference_agree_elementwise(kind):
    for case in FORMS:
        ours, theirs = (backward(NormedCall(case, kind), backend)[2] for backend in ("native", "reference"))
        for name, x in ours.items():
            assert (x is None) == (theirs[name] is None)
            if x is not None:
                largest = float(theirs[name].abs().max())
                assert float((x - theirs[name]).abs().max()) <= tolerances.NORM_GRADIENT_REL * largest, (case, name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_gradients_are_those_of_fp32_rounded_once(dtype):
    call = NormedCall(FORMS[0], KINDS[0])
    leaves, gradients, found = backward(call, "native", dtype)
    wide = {name: None if x is None else x.detach().float().requires_grad_() for name, x in leaves.items()}
    with rk.use_backend("native"):
        y, z = rotate(call, make(call.case), wide)
    wanted = torch.autograd.grad((y, z), [wide["q"], wide["k"]], (gradients["q"].float(), gradients["k"].float()))
    for got, exact in zip((found["q"], found["k"]), wanted, strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, exact.to(dtype))


def test_gradients_of_weights_do_not_depend_on_threads_or_the_run():
    call = NormedCall(Case("norm-threads", CONFIGS["llama3"], batch=3, tokens=500), KINDS[0])
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(backward(call, "native")[2])
    finally:
        torch.set_num_threads(threads)
    for name in ("q_weight", "k_weight", "q", "k"):
        assert torch.equal(results[0][name], results[1][name])
        assert torch.equal(results[1][name], results[2][name])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frozen", ["q", "k", "q_weight", "k_weight", "q and k", "all but q_weight", "k's result"])
def test_what_needs_no_gradient_gets_none(frozen, backend):
    call = NormedCall(FORMS[0], KINDS[0])
    made, leaves = made_for(call)
    names = [n for n in leaves if n != "q_weight"] if frozen.startswith("all") else frozen.split(" and ")
    _, _, everything = backward(call, backend)
    for name in names:
        if name in leaves:
            leaves[name] = leaves[name].detach()
    with rk.use_backend(backend):
        y, z = rotate(call, made, leaves)
    generator = torch.Generator().manual_seed(7)
    gradients = [torch.randn(leaves[s].shape, generator=generator) for s in "qk"]
    of_k = frozen != "k's result"
    torch.autograd.backward(
        (y, z) if of_k and z.requires_grad else (y,), gradients if of_k and z.requires_grad else gradients[:1]
    )
    for name, x in leaves.items():
        needed = x.requires_grad and (of_k or name[0] == "q")
        assert (x.grad is not None) == needed
        if needed:
            assert torch.equal(x.grad, everything[name])


def test_the_heads_of_the_caller_are_saved_and_nothing_else_of_their_size():
    q = torch.randn(2, 50, 4, 64, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        rk.apply_rope(q, None, None, rk.RopeConfig(head_dim=64), q_norm=rk.HeadNorm(torch.ones(64), 1e-6))
    large = [x for x in saved if x.numel() >= q.numel()]
    assert [x.data_ptr() for x in large] == [q.data_ptr()]


CONFIG = rk.RopeConfig(head_dim=32)


def norms(w, v, after_rope):
    return dict(
        q_norm=rk.HeadNorm(w, 1e-6, after_rope=after_rope),
        k_norm=rk.HeadNorm(v, 1e-5, weight_offset=1.0, after_rope=after_rope),
    )


def tensors(requires_grad=False):
    generator = torch.Generator().manual_seed(3)
    shapes = (2, 5, 4, 32), (2, 5, 2, 32), (32,), (32,)
    return [torch.randn(shape, generator=generator).requires_grad_(requires_grad) for shape in shapes]


@pytest.mark.parametrize("after_rope", [False, True])
def test_transforms_of_torch_func(after_rope):
    q, k, w, v = tensors()

    def call(q, k, w, v):
        return rk.apply_rope(q, k, None, CONFIG, **norms(w, v, after_rope))

    outputs = call(q, k, w, v)
    tangents = [torch.randn_like(x) for x in (q, k, w, v)]
    _, moved = torch.func.jvp(call, (q, k, w, v), tuple(tangents))
    cotangents = [torch.randn_like(y) for y in outputs]
    _, pull = torch.func.vjp(call, q, k, w, v)
    forward = sum((a * b).sum() for a, b in zip(moved, cotangents, strict=True))
    back = sum((a * b).sum() for a, b in zip(pull(tuple(cotangents)), tangents, strict=True))
    torch.testing.assert_close(forward, back, **tolerances.SUM)
    many = torch.stack([q, 2 * q])
    mapped = torch.vmap(lambda x: call(x, k, w, v)[0])(many)
    for got, x in zip(mapped, many, strict=True):
        torch.testing.assert_close(got, call(x, k, w, v)[0], **tolerances.TWO_WAYS)
    with forward_ad.dual_level():
        y, _ = call(forward_ad.make_dual(q, tangents[0]), k, w, v)
        assert forward_ad.unpack_dual(y).tangent is not None


@pytest.mark.parametrize("after_rope", [False, True])
def test_second_derivatives(after_rope):
    q, k, w, v = tensors(requires_grad=True)

    def first(x):
        y, z = rk.apply_rope(x, k, None, CONFIG, **norms(w, v, after_rope))
        return torch.autograd.grad((y**3).sum() + (z**2).sum(), (x, w, v), create_graph=True)

    gradients = first(q)
    total = sum((g * g).sum() for g in gradients)
    found = torch.autograd.grad(total, (q, w))
    direction = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    sides = [sum((g * g).sum() for g in first((q.detach() + s * 1e-3 * direction).requires_grad_())) for s in (1, -1)]
    difference = float((sides[0] - sides[1]).detach()) / 2e-3
    assert float((found[0] * direction).sum()) == pytest.approx(difference, rel=2e-2)
    assert found[1].abs().max() > 0


@pytest.mark.parametrize("after_rope", [False, True])
def test_gradients_of_fractional_positions(after_rope):
    q, k, w, v = tensors(requires_grad=True)
    positions = (torch.arange(5).float() + 0.5).requires_grad_()
    y, z = rk.apply_rope(q, k, positions, CONFIG, **norms(w, v, after_rope))
    y.square().mul(torch.arange(32)).sum().backward()
    assert positions.grad.abs().max() > 0
    assert z.requires_grad


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_opcheck(kind):
    call = NormedCall(FORMS[0], kind)
    made, leaves = made_for(call)
    text = config_of(call.case).spec() + "@bshd"
    for side in "qk":
        norm = call.norm(side, leaves[f"{side}_weight"])
        if norm is not None:
            order = "after" if norm.after_rope else "before"
            text += f",{side}_norm={norm.eps!r}|{norm.weight_offset!r}|{order}"
    index = (made.positions, None, None, None, None)
    arguments = (leaves["q"], leaves["k"], *index, text, leaves["q_weight"], leaves["k_weight"])
    opcheck(norm_operators.rotate_norm, arguments)
    plain = [x if not isinstance(x, torch.Tensor) else x.detach() for x in arguments]
    outputs = [torch.empty_like(leaves[s].detach()) for s in "qk"]
    opcheck(norm_operators.rotate_into, (*plain, *outputs))
    gradients = [torch.randn_like(leaves[s].detach()) for s in "qk"]
    opcheck(norm_operators.rotate_norm_backward, (*gradients, *plain))


class TwoLayers(torch.nn.Module):
    def __init__(self, after_rope):
        super().__init__()
        self.mix = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(2))
        self.w = torch.nn.ParameterList(torch.nn.Parameter(torch.randn(32)) for _ in range(2))
        self.after_rope = after_rope

    def forward(self, x, positions):
        for mix, w in zip(self.mix, self.w, strict=True):
            x = mix(x)
            x, _ = rk.apply_rope(x, x[:, :, :1], positions, CONFIG, **norms(w, w, self.after_rope))
        return x


@pytest.mark.parametrize("after_rope", [False, True])
def test_two_layers_compile_to_one_graph(after_rope):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = TwoLayers(after_rope)
    x, positions = torch.randn(2, 5, 4, 32), torch.arange(5)
    wanted = model(x, positions)
    wanted.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = compiled(x, positions)
    got.square().sum().backward()
    torch.testing.assert_close(got, wanted, **tolerances.COMPILED)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, **tolerances.COMPILED_GRADIENT)


def test_in_place_compiles_without_a_copy_and_has_the_bits():
    torch._dynamo.reset()
    q, k, w, v = tensors()

    def call(q, k):
        rk.apply_rope_(q, k, None, CONFIG, **norms(w, v, False))
        return q, k

    wanted = rk.apply_rope(q, k, None, CONFIG, **norms(w, v, False))
    got = torch.compile(call, fullgraph=True, backend="aot_eager")(q.clone(), k.clone())
    assert all(map(torch.equal, got, wanted))


def test_the_exact_rotation_is_that_of_the_cases():
    made = make(FORMS[0])
    assert torch.equal(rotated_exactly(FORMS[0], made.q), made.expected[0])
