"""A function on several processes with gloo between them; what one of them raises is raised here."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

__all__ = ["on_processes"]


def on_processes(count: int, function: Callable[[], None]) -> None:
    """Run ``function``, which must be importable, on ``count`` ranks of one group.

    A new process imports the function's module once and forks the ranks: imports are most of what they take.
    """
    command = [sys.executable, __file__, str(count), function.__module__, function.__name__]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def _rank(rank: int, count: int, port: int, function: Callable[[], None]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=count)
    try:
        function()
        dist.barrier()  # nobody leaves while another still listens
    finally:
        dist.destroy_process_group()


def _main(count: int, module: str, name: str) -> None:
    function = getattr(importlib.import_module(module), name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_rank, args=(count, port, function), nprocs=count, start_method="fork")


if __name__ == "__main__":
    _main(int(sys.argv[1]), *sys.argv[2:])
