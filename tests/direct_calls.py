"""What a call past the dispatcher is given, in the tests of those that are done and those that are refused."""

import torch

import rope_kernels as rk

CONFIG = rk.RopeConfig(head_dim=16)
TEXT = CONFIG.spec()
NO_LENGTHS = None, None, None  # offset, seq_len, cu_seqlens


def qk(**options):
    return torch.randn(1, 3, 4, 16, **options), torch.randn(1, 3, 2, 16, **options), torch.arange(3)
