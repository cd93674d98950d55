"""DTensors: what ranks rotate alone is what one process rotates, and nothing travels between them."""

import itertools

import pytest
import torch
import torch.distributed as dist
from support.distributed_run import on_processes
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import rope_kernels as rk

LLAMA = rk.RopeConfig(head_dim=16)
LONG = rk.RopeConfig(
    head_dim=16, rope_type="longrope", original_max_position_embeddings=16, max_position_embeddings=64,
    short_factor=[1.0] * 8, long_factor=[3.0] * 8,
)  # fmt: skip
BATCH, TOKENS, HEADS, K_HEADS = 4, 16, 8, 4


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(BATCH, TOKENS, heads, 16, generator=generator, dtype=dtype) for heads in (HEADS, K_HEADS)]


def zig_zag(ranks):
    """Positions in the order in which ranks hold them: the first and the last block on the first rank, and so on."""
    blocks = torch.arange(TOKENS).chunk(2 * ranks)
    return torch.cat([torch.cat([blocks[i], blocks[-1 - i]]) for i in range(ranks)])


def spread(x, mesh, *placements):
    return distribute_tensor(x, mesh, placements, src_data_rank=None)


def quietly(call):
    """The result of a call during which ranks say nothing to each other."""
    with CommDebugMode() as said:
        result = call()
    assert said.get_total_counts() == 0, said.get_comm_counts()
    return result


def check(mesh, q_placements, k_placements, positions, given, config=LLAMA, **options):
    """Forward and backward on DTensors against one process; ``given``: positions as the ranks get them."""
    q, k = (x.requires_grad_() for x in tensors())
    expected = rk.apply_rope(q, k, positions, config, **options)
    torch.manual_seed(1)
    grads = [torch.randn_like(x) for x in expected]
    wanted = torch.autograd.grad(expected, (q, k), grads)
    dq = spread(q.detach(), mesh, *q_placements).requires_grad_()
    dk = spread(k.detach(), mesh, *k_placements).requires_grad_()
    got = quietly(lambda: rk.apply_rope(dq, dk, given, config, **options))
    spread_grads = [spread(g, mesh, *x.placements) for g, x in zip(grads, (dq, dk), strict=True)]
    back = quietly(lambda: torch.autograd.grad(got, (dq, dk), spread_grads))
    for a, b, like in zip((*got, *back), (*expected, *wanted), (dq, dk, dq, dk), strict=True):
        assert a.placements == like.placements
        assert torch.equal(a.full_tensor(), b)


def shardings_of_one_dimension():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows = torch.stack([torch.arange(TOKENS) + 100 * b for b in range(BATCH)])
    order = zig_zag(mesh.size())
    one, other = [Shard(2)], [Replicate()]
    for q_heads, k_heads in ((one, one), (one, other), (other, one), (other, other)):
        check(mesh, q_heads, k_heads, rows, rows)
        check(mesh, q_heads, k_heads, rows, spread(rows, mesh, Replicate()))
    for positions in (order, rows):
        given = (positions, spread(positions, mesh, Replicate()), spread(positions, mesh, Shard(positions.dim() - 1)))
        for each in given:
            check(mesh, [Shard(1)], [Shard(1)], positions, each)
    for each in (rows, spread(rows, mesh, Shard(0)), rows[:1]):
        full = rows[:1] if each is not rows and each.shape[0] == 1 else rows
        check(mesh, [Shard(0)], [Shard(0)], full, each)
    check(mesh, [Shard(0)], [Shard(0)], None, None, offset=torch.tensor([3, 50, 7, 0]))
    check(mesh, [Shard(1)], [Shard(1)], order, order, config=LONG)
    check(mesh, [Shard(0)], [Shard(0)], rows, rows, config=LONG, seq_len=torch.tensor([8, 40, 8, 40]))


def given_outputs_and_keys():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    q, k = tensors(torch.bfloat16)
    positions = zig_zag(mesh.size())
    dq, dk = (spread(x, mesh, Shard(1)) for x in (q, k))
    expected = rk.apply_rope(q, k, positions, LONG)
    out = tuple(spread(torch.full_like(x, float("nan")), mesh, Shard(1)) for x in (q, k))
    assert quietly(lambda: rk.apply_rope(dq, dk, positions, LONG, out=out)) is out
    version = dq._version
    assert quietly(lambda: rk.apply_rope_(dq, dk, positions, LONG))[0] is dq
    assert dq._version > version
    for made, wanted in zip((*out, dq, dk), expected * 2, strict=True):
        assert torch.equal(made.full_tensor(), wanted)
    rk.rerotate_(expected[1], positions, LONG, from_seq_len=16, to_seq_len=40)
    rk.shift_(expected[1], -5, LONG, seq_len=40)
    quietly(lambda: rk.rerotate_(dk, positions, LONG, from_seq_len=16, to_seq_len=40))
    quietly(lambda: rk.shift_(dk, -5, LONG, seq_len=40))
    assert torch.equal(dk.full_tensor(), expected[1])


def what_cannot_be_done_alone():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    q, k = tensors()
    positions = torch.arange(TOKENS)
    heads, tokens, none = Shard(2), Shard(1), Replicate()

    def call(q_placement, k_placement, given, config=LLAMA, **options):
        return lambda: rk.apply_rope(
            spread(q, mesh, q_placement), spread(k, mesh, k_placement), given, config, **options
        )

    partial = DTensor.from_local(q, mesh, [Partial()])
    mistakes = {
        r"q: S.*3\)*; redistribute it to Shard\(0\), Shard\(1\), Shard\(2\) or Replicate": call(
            Shard(3), none, positions
        ),
        r"q: P.*; redistribute it to": lambda: rk.apply_rope(partial, None, positions, LLAMA),
        r"k: R on dimension 0 of the mesh, where q is S\(1\); redistribute": call(tokens, none, positions),
        r"k: S\(1\) on dimension 0 .* q is S\(2\); redistribute": call(heads, tokens, positions),
        r"k: is a plain tensor, must be a DTensor": lambda: rk.apply_rope(spread(q, mesh, none), k, positions, LLAMA),
        r"k: is a DTensor, q is a plain tensor": lambda: rk.apply_rope(q, spread(k, mesh, none), positions, LLAMA),
        r"positions: is a DTensor, q is": lambda: rk.apply_rope(q, k, spread(positions, mesh, none), LLAMA),
        r"q: is a DTensor; rotate its local part": lambda: rk.apply_rotary_pos_emb(spread(q, mesh, none), None, q, q),
        r"positions: missing; q is sharded over tokens": call(tokens, tokens, None),
        r"positions: S\(0\) on dimension 0 of the mesh, where q is S\(2\); redistribute": call(
            heads, heads, spread(positions, mesh, Shard(0))
        ),
        r"seq_len: missing; positions are sharded": call(tokens, tokens, spread(positions, mesh, Shard(0)), LONG),
    }
    for message, mistake in mistakes.items():
        with pytest.raises(rk.RopeShapeError, match=f"^{message}"):
            mistake()


def norms_of_sharded_heads():
    """The gradient of a weight is what one process has, once summed over the ranks; only that sum travels."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows = torch.arange(TOKENS)
    for placement, k_placement in ((Shard(2), Shard(2)), (Shard(2), Replicate()), (Shard(1), Shard(1))):
        weights = [torch.linspace(-1, 2, 16), torch.linspace(2, -1, 16)]

        def loss(q, k, w, v, positions):
            norms = dict(q_norm=rk.HeadNorm(w, 1e-6), k_norm=rk.HeadNorm(v, 1e-6, weight_offset=1.0, after_rope=True))
            y, z = rk.apply_rope(q, k, positions, LLAMA, **norms)
            return y, z, (y * q.detach().sin()).sum() + (z * k.detach().cos()).sum()

        single = [x.requires_grad_() for x in (*tensors(), *(w.clone() for w in weights))]
        y, z, total = loss(*single, rows)
        wanted = torch.autograd.grad(total, single)
        placements = (placement, k_placement, Replicate(), Replicate())
        shared = [spread(x.detach(), mesh, p).requires_grad_() for x, p in zip(single, placements, strict=True)]
        y_parts, z_parts, parts = loss(*shared, rows)
        assert torch.equal(y_parts.full_tensor(), y)
        assert torch.equal(z_parts.full_tensor(), z)
        found = torch.autograd.grad(parts, shared)
        assert isinstance(found[2].placements[0], Partial)
        for got, one in zip(found, wanted, strict=True):
            torch.testing.assert_close(got.full_tensor(), one, rtol=1e-5, atol=1e-5)
        in_place = [x.detach().clone() for x in shared[:2]]
        norm = rk.HeadNorm(shared[2].detach(), 1e-6)
        quietly(lambda: rk.apply_rope_(*in_place, rows, LLAMA, q_norm=norm))  # noqa: B023
        assert torch.equal(in_place[0].full_tensor(), y)
    q = spread(tensors()[0], mesh, Shard(2))
    for weight, problem in (
        (weights[0], "q_norm: its weight is a plain tensor, must be a DTensor"),
        (spread(weights[0], mesh, Shard(0)), r"q_norm: its weight is S\(0\) on dimension 0 of the mesh"),
    ):
        with pytest.raises(rk.RopeShapeError, match=problem):
            rk.apply_rope(q, None, rows, LLAMA, q_norm=rk.HeadNorm(weight, 1e-6))
    norm = rk.HeadNorm(spread(weights[0], mesh, Replicate()), 1e-6)
    with pytest.raises(rk.RopeShapeError, match="q_norm: its weight is a DTensor, q is a plain tensor"):
        rk.apply_rope(tensors()[0], None, rows, LLAMA, q_norm=norm)


def a_compiled_call():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    q, k = tensors()
    rows = torch.arange(TOKENS).expand(BATCH, TOKENS)
    dq, dk = (spread(x, mesh, Shard(2)).requires_grad_() for x in (q, k))

    def loss(q, k, rows):
        q, k = rk.apply_rope(q, k, rows, LLAMA)
        return (q * q.detach().sin()).sum() + (k * k.detach().cos()).sum()

    expected = torch.autograd.grad(loss(dq, dk, rows), (dq, dk))
    got = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(dq, dk, rows), (dq, dk))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.full_tensor(), b.full_tensor())


def two_processes():
    shardings_of_one_dimension()
    given_outputs_and_keys()
    what_cannot_be_done_alone()
    a_compiled_call()
    norms_of_sharded_heads()


def four_processes():
    shardings_of_one_dimension()
    mesh = init_device_mesh("cpu", (2, 2))
    rows = torch.stack([torch.arange(TOKENS) + 100 * b for b in range(BATCH)])
    for first, second in itertools.product((Shard(0), Shard(1), Replicate()), (Shard(2), Shard(1), Replicate())):
        check(mesh, [first, second], [first, second], rows, rows)


@pytest.mark.parametrize(("count", "function"), [(2, two_processes), (4, four_processes)], ids=["2", "4"])
def test_ranks_rotate_alone(count, function):
    on_processes(count, function)
