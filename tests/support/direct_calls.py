"""What a call past the dispatcher is given, in the tests of those that are done and those that are refused."""

import torch

import rope_kernels as rk

CONFIG = rk.RopeConfig(head_dim=16)
TEXT = CONFIG.spec()
NO_LENGTHS = None, None, None  # offset, seq_len, cu_seqlens


def qk(**options):
    return torch.randn(1, 3, 4, 16, **options), torch.randn(1, 3, 2, 16, **options), torch.arange(3)


def table_call(layout="bshd", rows=3, **changes):
    """What :func:`rope_kernels.ops.direct.rotate_table` is given, as a list; ``rows`` is cos's rank."""
    q, k, _ = qk()
    q, k = {"bshd": (q, k), "bhsd": (q.transpose(1, 2), k.transpose(1, 2)), "thd": (q[0], k[0])}[layout]
    cos, sin = torch.randn(2, 1, 3, 16) if rows == 3 else torch.randn(2, 3, 16)
    dim = {"bshd": 2, "bhsd": 1, "thd": 1}[layout] - (q.dim() - 3 if rows == 2 else 0)
    usual = dict(q=q, k=k, cos=cos, sin=sin, unsqueeze_dim=dim, pairing="half", is_full=False)
    return list((usual | changes).values())
