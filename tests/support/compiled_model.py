"""A small model with two layers that rotate, for the tests of torch.compile on CPUs and on a GPU."""

from __future__ import annotations

import torch
from support import cases

import rope_kernels as rk

__all__ = ["CONFIGS", "HEAD_DIM", "Model", "positions_for"]

HEAD_DIM = 64
CONFIGS = {
    "llama3": {**cases.CONFIGS["llama3"], "head_dim": HEAD_DIM},
    "longrope": cases.CONFIGS["longrope"],
    "dynamic": cases.CONFIGS["dynamic"],
    "mrope": cases.CONFIGS["mrope_contiguous"],
}


class Layer(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.projection = torch.nn.Linear(HEAD_DIM * 2, HEAD_DIM * 4, bias=False)
        self.rope = rk.RotaryEmbedding(config)

    def forward(self, x, positions):
        q, k = self.projection(x).unflatten(-1, (4, HEAD_DIM)).split((2, 2), 2)
        q, k = self.rope(q, k, positions)
        scores = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, k)))
        return x + scores.transpose(1, 2).flatten(2)


class Model(torch.nn.Module):
    """Two layers: two applications with config values in one graph have crashed Dynamo before."""

    def __init__(self, config):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(Layer(config) for _ in range(2))

    def forward(self, x, positions):
        for layer in self.layers:
            x = layer(x, positions)
        return x


def positions_for(name, tokens, start=0):
    counted = torch.arange(start, start + tokens)[None].expand(2, -1)
    return torch.stack((counted, counted // 2, counted // 3)) if name == "mrope" else counted
