"""apply_rotary_pos_emb: transformers' function, its backward, and tables whose halves differ."""

import pytest
import torch
from support import tolerances
from torch.library import opcheck
from transformers.models.cohere import modeling_cohere
from transformers.models.llama import modeling_llama

import rope_kernels as rk
from rope_kernels.ops import operators

B, H, K, S, D = 2, 4, 2, 5, 16


def tables(width=D, batch=B, seed=0, dtype=torch.float32):
    """Full-width tables whose two halves differ: no rotation, but what the function is defined for."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, S, width, generator=generator).to(dtype) for _ in range(2)]


def qk(seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, h, S, D, generator=generator).to(dtype) for h in (H, K)]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("unsqueeze_dim", [1, 2, -3, -2])
def test_is_transformers_function(interleaved, unsqueeze_dim):
    peer = modeling_cohere if interleaved else modeling_llama
    q, k = qk()
    cos, sin = tables()
    if unsqueeze_dim in (2, -2):
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    got = rk.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim, interleaved=interleaved)
    wanted = peer.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, **tolerances.THERE_AND_BACK)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_results_are_rounded_once(dtype):
    q, k = qk(dtype=dtype)
    cos, sin = tables(dtype=dtype)
    got = rk.apply_rotary_pos_emb(q, k, cos, sin)
    exact = modeling_llama.apply_rotary_pos_emb(*(t.double() for t in (q, k, cos, sin)))
    for a, b in zip(got, exact, strict=True):
        assert a.dtype == dtype
        half_ulp = torch.ldexp(torch.ones_like(b), torch.frexp(b)[1] - (9 if dtype == torch.bfloat16 else 12))
        assert ((a.double() - b).abs() <= half_ulp + 1e-6).all()


@pytest.mark.parametrize("interleaved", [False, True])
def test_all_gradients(interleaved):
    peer = modeling_cohere if interleaved else modeling_llama
    leaves = [t.requires_grad_() for t in (*qk(), *tables())]
    weights = qk(seed=5)

    def gradients(turned):
        return torch.autograd.grad(sum((y * w).sum() for y, w in zip(turned, weights, strict=True)), leaves)

    got = gradients(rk.apply_rotary_pos_emb(*leaves, interleaved=interleaved))
    wanted = gradients(peer.apply_rotary_pos_emb(*leaves))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, **tolerances.GRADIENT)


def test_gradient_of_a_table_shared_by_the_batch_and_second_order():
    q, k = (x.requires_grad_() for x in qk())
    cos, sin = (t.requires_grad_() for t in tables(batch=1))

    def second(function):
        turned = function(q, k, cos, sin)
        first = torch.autograd.grad((turned[0] ** 2).sum() + (turned[1] ** 3).sum(), (q, cos, sin), create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), (q, k, cos, sin))

    for a, b in zip(second(rk.apply_rotary_pos_emb), second(modeling_llama.apply_rotary_pos_emb), strict=True):
        torch.testing.assert_close(a, b, **tolerances.SECOND_TABLE_GRADIENT)


def test_q_and_k_are_kept_only_for_a_table_that_needs_a_gradient():
    def kept(needs):
        saved = []
        q, k = (x.requires_grad_() for x in qk())
        cos, sin = (t.requires_grad_(needs) for t in tables())
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            rk.apply_rotary_pos_emb(q, k, cos, sin)
        return sum(t.numel() for t in saved)

    assert kept(False) == 2 * B * S * D
    assert kept(True) == 2 * B * S * D + B * (H + K) * S * D


def test_partial_width_leaves_the_other_channels():
    q, k = qk()
    cos, sin = tables(width=6)
    turned, _ = rk.apply_rotary_pos_emb(q, k, cos, sin)
    wanted, _ = modeling_llama.apply_rotary_pos_emb(q[..., :6], k[..., :6], cos, sin)
    torch.testing.assert_close(turned[..., :6], wanted, **tolerances.THERE_AND_BACK)
    assert torch.equal(turned[..., 6:], q[..., 6:])


def test_packed_tokens_and_a_table_without_batch():
    q, k = (x[0].transpose(0, 1) for x in qk())
    cos, sin = (t[0] for t in tables())
    got = rk.apply_rotary_pos_emb(q, k, cos, sin)
    wanted = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1)
    torch.testing.assert_close(got[1], wanted[1], **tolerances.THERE_AND_BACK)
    batched = rk.apply_rotary_pos_emb(q.transpose(0, 1)[None], None, cos, sin, unsqueeze_dim=0)
    assert torch.equal(batched[0][0].transpose(0, 1), got[0])
    assert batched[1] is None


def test_transforms():
    q, k = qk()
    cos, sin = tables()
    tangent = torch.randn_like(q)
    _, pushed = torch.func.jvp(lambda q: rk.apply_rotary_pos_emb(q, k, cos, sin)[0], (q,), (tangent,))
    torch.testing.assert_close(pushed, rk.apply_rotary_pos_emb(tangent, None, cos, sin)[0])
    mapped = torch.vmap(lambda q: rk.apply_rotary_pos_emb(q, k, cos, sin)[0])(torch.stack((q, tangent)))
    torch.testing.assert_close(mapped[1], rk.apply_rotary_pos_emb(tangent, None, cos, sin)[0], **tolerances.TWO_WAYS)


@pytest.mark.parametrize("pairing", ["half", "interleaved", "interleaved_to_half"])
def test_opcheck_and_adjoint_of_the_operator(pairing):
    q, k = (x.requires_grad_() for x in qk())
    cos, sin = (t.requires_grad_() for t in tables())
    opcheck(operators.rotate_table, (q, k, cos, sin, D, pairing, "bhsd", False))
    opcheck(operators.rotate_table, (q, None, cos, sin, D, pairing, "bhsd", True))
    y = torch.randn_like(q)
    there = operators.rotate_table(q, None, cos, sin, D, pairing, "bhsd", False)[0]
    back = operators.rotate_table(y, None, cos, sin, D, pairing, "bhsd", True)[0]
    torch.testing.assert_close((there * y).sum(), (q * back).sum(), **tolerances.SUM)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, c, s: (q, k, c[:, :3], s), r"cos: shape \(2, 3, 16\), must be \(2 or 1, 5, rotary_dim\)"),
        (lambda q, k, c, s: (q, k, c[..., :5], s[..., :5]), "cos: .*even rotary_dim of 2 to 16"),
        (lambda q, k, c, s: (q, k, torch.cat((c, c), -1), s), "cos: .*of 2 to 16"),
        (lambda q, k, c, s: (q, k, c, s[0, 0, 0]), r"sin: shape \(\), must be cos's \(2, 5, 16\)"),
        (lambda q, k, c, s: (q, k, c, s[0, 0]), r"sin: shape \(16,\), must be cos's \(2, 5, 16\)"),
        (lambda q, k, c, s: (q, k, c, s[:1]), r"sin: shape \(1, 5, 16\) .*, must be cos's \(2, 5, 16\)"),
        (
            lambda q, k, c, s: (q, k, c.long(), s),
            "cos: dtype torch.int64, allowed are float32",
        ),
        (lambda q, k, c, s: (q, k, c, s.half()), "sin: .*float16, must be cos's .*float32"),
        (lambda q, k, c, s: (q, k[..., :8], c, s), "k: last dimension is 8"),
        (lambda q, k, c, s: (q, k, c, s, 0), "unsqueeze_dim: got 0"),
        (lambda q, k, c, s: (q, k, c, s, "1"), "unsqueeze_dim: got '1', an int is needed"),
        (lambda q, k, c, s: ([q], k, c, s), "q: got list, a tensor is needed"),
        (lambda q, k, c, s: (q, k, c.tolist(), s), "cos: got list, a tensor is needed"),
        (lambda q, k, c, s: (q, k, c, None), "sin: got NoneType, a tensor is needed"),
        (lambda q, k, c, s: (q[0], k[0], c, s), "unsqueeze_dim: got 1 with cos"),
    ],
)
def test_bad_tables(change, message):
    with pytest.raises(rk.RopeShapeError, match=message):
        rk.apply_rotary_pos_emb(*change(*qk(), *tables()))


@pytest.mark.parametrize("tokens", [5, 8])
def test_a_table_of_the_layout_sbhd_is_told_how(tokens):
    """Megatron's and TransformerEngine's layout: the error says what to pass, and that works."""
    batch, heads = 2, 3
    q, (cos, sin) = torch.randn(tokens, batch, heads, 16), torch.randn(2, tokens, 1, 16)
    with pytest.raises(rk.RopeShapeError, match=r"^cos: .*transpose\(0, 1\); q of \(seq, .* unsqueeze_dim=2$"):
        rk.apply_rotary_pos_emb(q, q, cos, sin, unsqueeze_dim=2)
    with pytest.raises(rk.RopeShapeError, match=r"^cos: shape .*pass cos.transpose\(0, 1\)"):
        rk.apply_rotary_pos_emb(q.transpose(0, 1), None, cos, sin, unsqueeze_dim=2)
    got, _ = rk.apply_rotary_pos_emb(
        q.transpose(0, 1), q.transpose(0, 1), cos.transpose(0, 1), sin.transpose(0, 1), unsqueeze_dim=2
    )
    wide_cos, wide_sin = cos[:, :, None], sin[:, :, None]
    turned = torch.cat((-q[..., 8:], q[..., :8]), -1)
    torch.testing.assert_close(got.transpose(0, 1), q * wide_cos + turned * wide_sin, **tolerances.THERE_AND_BACK)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_sine_without_tokens_is_refused_at_half_the_width(rank):
    q, (cos, sin) = torch.randn(2, 4, 5, 16), torch.randn(2, 2, 5, 8)
    with pytest.raises(rk.RopeShapeError, match=r"^sin: shape \((16,)?\), must be cos's \(2, 5, 16\)"):
        rk.apply_rotary_pos_emb(q, None, cos, sin[0, 0, 0] if rank == 0 else sin[0, 0], table_width="half")


def test_pairs_are_neighbours_or_not():
    with pytest.raises(rk.RopeShapeError, match="interleaved: got 'no', allowed are True and False"):
        rk.apply_rotary_pos_emb(*qk(), *tables(), interleaved="no")


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(16, 16), (16, 8), (24, 24), (24, 10), (128, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_of_half_the_width(backend, interleaved, head_dim, rotary_dim, dtype):
    q, k = torch.randn(2, 3, 5, head_dim).to(dtype), torch.randn(2, 1, 5, head_dim).to(dtype)
    cos, sin = torch.randn(2, 2, 5, rotary_dim // 2)
    wide = [t.repeat_interleave(2, -1) if interleaved else torch.cat((t, t), -1) for t in (cos, sin)]
    with rk.use_backend(backend):
        got = rk.apply_rotary_pos_emb(q, k, cos, sin, interleaved=interleaved, table_width="half")
        wanted = rk.apply_rotary_pos_emb(q, k, *wide, interleaved=interleaved, table_width="full")
        leaf = cos.clone().requires_grad_()
        rk.apply_rotary_pos_emb(q, k, leaf, sin, interleaved=interleaved, table_width="half")[0].sum().backward()
    assert all(torch.equal(x, y) for x, y in zip(got, wanted, strict=True))
    assert leaf.grad.shape == cos.shape


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("needs_gradient", [False, True])
def test_a_table_of_half_a_head_is_warned_of(backend, width, needs_gradient, recwarn):
    q, (cos, sin) = torch.randn(1, 2, 5, 16, requires_grad=needs_gradient), torch.randn(2, 1, 5, width)
    with rk.use_backend(backend):
        unsaid, _ = rk.apply_rotary_pos_emb(q, None, cos, sin)
        warned = [str(w.message) for w in recwarn if w.category is rk.RopeTableWarning]
        assert len(warned) == (width == 8)
        assert all("table_width='half'" in text and "table_width='full'" in text for text in warned)
        full, _ = rk.apply_rotary_pos_emb(q, None, cos, sin, table_width="full")
        assert torch.equal(unsaid, full)
        if width == 8:
            half, _ = rk.apply_rotary_pos_emb(q, None, cos, sin, table_width="half")
            assert not torch.equal(half, full)
    assert len([w for w in recwarn if w.category is rk.RopeTableWarning]) == (width == 8)


@pytest.mark.parametrize("table_width", ["Half", 0.5, True])
def test_an_unknown_width_is_refused(table_width):
    q, (cos, sin) = torch.randn(1, 2, 5, 16), torch.randn(2, 1, 5, 16)
    with pytest.raises(rk.RopeShapeError, match=r"^table_width: got .*, allowed are 'full', 'half' and None"):
        rk.apply_rotary_pos_emb(q, None, cos, sin, table_width=table_width)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("unsqueeze_dim", [1, 2])
def test_lazy_signs_of_conjugates(backend, unsqueeze_dim):
    """The imaginary part of a conjugate has a bit that says that its sign is still to be flipped."""
    angles = torch.polar(torch.ones(1, 5, 16), torch.randn(1, 5, 8).repeat(1, 1, 2)).conj()
    assert angles.imag.is_neg()
    q = torch.randn(1, 5, 5, 16)
    with rk.use_backend(backend):
        got = rk.apply_rotary_pos_emb(q, q, angles.real, angles.imag, unsqueeze_dim)
        wanted = rk.apply_rotary_pos_emb(
            q, q, angles.real.contiguous(), angles.imag.resolve_neg().contiguous(), unsqueeze_dim
        )
    assert all(torch.equal(x, y) for x, y in zip(got, wanted, strict=True))


@pytest.mark.parametrize("table_width", ["full", "half"])
def test_neighbours_are_read_and_halves_written(table_width):
    """DeepSeek's: its view, transpose and reshape before, then rotate_half."""
    q, k = qk()
    cos, sin = tables(D // 2)
    full = [torch.cat((t, t), -1) for t in (cos, sin)]

    def by_hand(x):
        x = x.unflatten(-1, (D // 2, 2)).transpose(-1, -2).flatten(-2)
        turned = torch.cat((-x[..., D // 2 :], x[..., : D // 2]), -1)
        return x * full[0][:, None] + turned * full[1][:, None]

    given = full if table_width == "full" else (cos, sin)
    leaves = [x.requires_grad_() for x in (q, k)]
    got = rk.apply_rotary_pos_emb(*leaves, *given, pairing="interleaved_to_half", table_width=table_width)
    grads = torch.autograd.grad(sum((y**3).sum() for y in got), leaves)
    wanted_grads = torch.autograd.grad(sum((by_hand(x) ** 3).sum() for x in leaves), leaves)
    with torch.no_grad():
        direct = rk.apply_rotary_pos_emb(q, k, *given, pairing="interleaved_to_half", table_width=table_width)
    for x, y, z, grad, wanted in zip(leaves, got, direct, grads, wanted_grads, strict=True):
        torch.testing.assert_close(y, by_hand(x), **tolerances.THERE_AND_BACK)
        assert torch.equal(y, z)
        torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("options", [dict(pairing="halves"), dict(pairing="half", interleaved=True), dict(pairing=1)])
def test_a_pairing_that_is_none_is_named(options):
    with pytest.raises(rk.RopeShapeError, match="pairing"):
        rk.apply_rotary_pos_emb(*qk(), *tables(), **options)
