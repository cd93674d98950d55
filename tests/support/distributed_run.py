"""A function on several processes with gloo between them; what one of them raises is raised here."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

__all__ = ["on_processes"]


def on_processes(count: int, function: Callable[[], None]) -> None:
    """Run ``function``, which must be importable, on ``count`` ranks of one group.

    The ranks are forked from a server that has imported the function's module once for all of them.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload([__name__, function.__module__])
    mp.start_processes(_rank, args=(count, port, function), nprocs=count, start_method="forkserver")


def _rank(rank: int, count: int, port: int, function: Callable[[], None]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=count)
    try:
        function()
        dist.barrier()  # nobody leaves while another still listens
    finally:
        dist.destroy_process_group()
