"""What ncu watches: one launch of each shape of speed.py, by the backend that the argument names."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

import rope_kernels as rk
from gpu.speed import SHAPES, calls_of, tensors


def main() -> None:
    """Make the calls."""
    with rk.use_backend(sys.argv[1]):
        for _, batch, tokens in SHAPES:
            calls_of(tensors(batch, tokens, torch.device("cuda")))["out"]()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
