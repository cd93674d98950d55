"""Derivatives of floating positions are those of the rotation, in every mode; what cannot have one is refused."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from support import tolerances

import rope_kernels as rk

CONFIGS = {
    "default": rk.RopeConfig(head_dim=16),
    "interleaved": rk.RopeConfig(head_dim=16, pairing="interleaved"),
    "interleaved_to_half": rk.RopeConfig(head_dim=16, pairing="interleaved_to_half"),
    "partial": rk.RopeConfig(head_dim=16, partial_rotary_factor=0.5),
    "yarn": rk.RopeConfig(head_dim=16, rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
    "float32": rk.RopeConfig(head_dim=16, phase="float32"),
    "axial": rk.RopeConfig(head_dim=16, rope_type="axial"),
    "gemma4_vision": rk.RopeConfig(head_dim=16, rope_type="axial", axis_map="gemma4_vision"),
    "longrope": rk.RopeConfig(
        head_dim=16, rope_type="longrope", short_factor=[1.0] * 8, long_factor=[2.0] * 8,
        original_max_position_embeddings=4, max_position_embeddings=64,
    ),
}  # fmt: skip
BACKENDS = ("native", "reference")


def tensors(config: rk.RopeConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(2, 5, heads, 16, generator=generator) for heads in (3, 1))
    shape = (5,) if config.num_axes == 1 else (config.num_axes, 2, 5)
    return q, k, 9 * torch.rand(shape, generator=generator)


def loss(q, k, positions, config, inverse=False, layout="bshd"):
    q_out, k_out = rk.apply_rope(q, k, positions, config, inverse=inverse, layout=layout)
    weights = torch.linspace(-1, 1, q_out.numel()).reshape(q_out.shape)
    return (q_out * weights).sum() + k_out.square().sum() * 0.5 + k_out.sum()


def numerical(q, k, positions, config, inverse=False):
    """Central differences of the rotation in double precision, by the oracle of torch itself."""
    step, found = 1e-3, torch.zeros_like(positions, dtype=torch.float64)
    for i in range(positions.numel()):
        sides = []
        for sign in (1, -1):
            moved = positions.double().clone()
            moved.view(-1)[i] += sign * step
            sides.append(loss(q, k, moved, config, inverse).double())
        found.view(-1)[i] = (sides[0] - sides[1]) / (2 * step)
    return found


@pytest.mark.parametrize("backend", ["native", pytest.param("reference", marks=pytest.mark.full)])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_mode_gives_the_derivative(name: str, inverse: bool, backend: str) -> None:
    config = CONFIGS[name]
    q, k, positions = tensors(config)
    with rk.use_backend(backend):
        wanted = numerical(q, k, positions, config, inverse).float()

        def f(p):
            return loss(q, k, p, config, inverse)

        leaf = positions.clone().requires_grad_()
        f(leaf).backward()
        by_mode = {
            "reverse": leaf.grad,
            "func.grad": torch.func.grad(f)(positions),
            "jacfwd": torch.func.jacfwd(f)(positions),
        }
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(positions, torch.ones_like(positions))
            by_mode["dual"] = forward_ad.unpack_dual(f(dual)).tangent
    for mode, got in by_mode.items():
        expected = wanted.sum() if mode == "dual" else wanted
        torch.testing.assert_close(
            got.float(), expected, rtol=2e-2, atol=2e-2, msg=lambda text, mode=mode: f"{mode}: {text}"
        )


@pytest.mark.parametrize(
    "name", ["axial", "longrope", *(pytest.param(n, marks=pytest.mark.full) for n in ("default", "yarn"))]
)
def test_compiled_calls_give_the_derivative(name: str) -> None:
    config = CONFIGS[name]
    q, k, positions = tensors(config)
    torch._dynamo.reset()
    compiled = torch.compile(lambda p: loss(q, k, p, config), fullgraph=True, backend="aot_eager")
    grads = []
    for f in (compiled, lambda p: loss(q, k, p, config)):
        leaf = positions.clone().requires_grad_()
        f(leaf).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)
    jvp = torch.compile(
        lambda p, t: torch.func.jvp(lambda x: loss(q, k, x, config), (p,), (t,)), fullgraph=True, backend="aot_eager"
    )
    tangent = jvp(positions, torch.ones_like(positions))[1]
    torch.testing.assert_close(tangent.float(), grads[1].sum(), **tolerances.SUM)


@pytest.mark.parametrize("backend", BACKENDS)
def test_q_and_positions_together(backend: str) -> None:
    q, k, positions = (x.requires_grad_() for x in tensors(CONFIGS["default"]))
    with rk.use_backend(backend):
        both = torch.autograd.grad(loss(q, k, positions, CONFIGS["default"]), (q, k, positions))
        alone = torch.autograd.grad(loss(q, k, positions.detach(), CONFIGS["default"]), (q, k))
    torch.testing.assert_close(both[:2], alone, **tolerances.COMPILED)


@pytest.mark.parametrize("layout", ["bshd", "bhsd", "thd"])
def test_layouts(layout: str) -> None:
    q, _, positions = tensors(CONFIGS["default"])
    laid_out = {"bshd": lambda x: x[:1], "bhsd": lambda x: x[:1].transpose(1, 2), "thd": lambda x: x[0]}[layout]
    leaf = positions.clone().requires_grad_()
    q_out, _ = rk.apply_rope(laid_out(q), None, leaf, CONFIGS["default"], layout=layout)
    usual, _ = rk.apply_rope(q[:1], None, leaf, CONFIGS["default"])
    assert torch.equal(torch.autograd.grad(q_out.square().sum() + q_out.sum(), leaf)[0],
                       torch.autograd.grad(usual.square().sum() + usual.sum(), leaf)[0])  # fmt: skip


def test_a_call_in_place_has_the_derivative_of_positions() -> None:
    q, k, positions = tensors(CONFIGS["default"])
    positions.requires_grad_()
    found = []
    for call in (rk.apply_rope, rk.apply_rope_):
        q_out, k_out = call(q.clone(), k.clone(), positions, CONFIGS["default"])
        found.append(torch.autograd.grad(q_out.square().sum() + k_out.sum(), positions)[0])
    assert torch.equal(*found)
    assert found[0].abs().max() > 0


def test_what_writes_refuses_a_derivative_of_positions() -> None:
    q, k, positions = tensors(CONFIGS["default"])
    before = q.clone()
    positions.requires_grad_()
    with pytest.raises(RuntimeError, match="out= was given and a derivative is needed"):
        rk.apply_rope(q, k, positions, CONFIGS["default"], out=(torch.empty_like(q), torch.empty_like(k)))
    with pytest.raises(RuntimeError, match="in place: a derivative is needed"):
        rk.shift_(q, positions, CONFIGS["default"])
    assert torch.equal(q, before)
    with torch.no_grad():
        rk.apply_rope_(q, k, positions, CONFIGS["default"])
    assert not torch.equal(q, before)
