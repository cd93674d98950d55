"""What a process keeps of configs that are gone is bounded, also while several threads make and use them."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

import rope_kernels as rk

# A parsed text takes 2.5 KiB: 3.6 MiB for the second part, if they were kept, and twice that with gradients.
MANY_CONFIGS = """
import gc
import itertools
import json
import os
from pathlib import Path

import torch

import rope_kernels as rk

torch.set_num_threads(1)
q, positions, numbers = torch.randn(1, 1, 1, 128), torch.arange(1), itertools.count()
trained = q.clone().requires_grad_()


def direct(cfg):
    rk.apply_rope(q, None, positions, cfg)


def gradients(cfg):
    rk.apply_rope(trained, None, positions, cfg)[0].sum().backward()


def shifted(cfg):
    rk.shift_(q, 1, cfg)


def reference(cfg):
    with rk.use_backend("reference"):
        rk.apply_rope(q, None, positions, cfg)


def grown_by(call, configs):
    before = resident()
    for i in itertools.islice(numbers, configs):
        call(rk.RopeConfig(head_dim=128, rope_theta=10000.0 + i))
    return resident() - before


def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


for call in (direct, gradients, shifted, reference):
    grown_by(call, 1100)
    print(json.dumps([call.__name__, grown_by(call, 1500)]))
"""


def test_thousands_of_configs_leave_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", MANY_CONFIGS], capture_output=True, text=True, check=True)
    grown = dict(map(json.loads, done.stdout.splitlines()))
    assert grown.keys() == {"direct", "gradients", "shifted", "reference"}
    assert max(grown.values()) < 2 << 20, grown


def test_threads_use_configs_while_others_replace_them() -> None:
    q, positions = torch.randn(1, 2, 4, 16), torch.arange(2) + 1000
    usual = rk.RopeConfig(head_dim=16)
    wanted = rk.apply_rope(q, None, positions, usual)[0]

    def use_others(thread: int) -> bool:
        right = True
        for i in range(700):  # 2800 in all: the table of parsed texts is emptied twice at least
            cfg = rk.RopeConfig(head_dim=16, rope_theta=20000.0 + thread + 4 * i)
            first, again = (rk.apply_rope(q, None, positions, cfg)[0] for _ in range(2))
            right = right and torch.equal(first, again) and not torch.equal(first, wanted)
            right = right and torch.equal(rk.apply_rope(q, None, positions, usual)[0], wanted)
        return right

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use_others, range(4)))
