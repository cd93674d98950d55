"""A decode loop with a paged KV cache: norm, rotation and storing in one call, and slots made once a step.

On a CUDA device a step is captured in a graph; its slots and positions are computed in the graph, from tensors that
stay where they are.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import rope_kernels as rk

CFG = rk.RopeConfig(head_dim=64, rope_theta=1e6)
HEADS, KV_HEADS, WIDTH, EPS = 8, 2, 128, 1e-6
PAGE_SIZE, PAGES_OF_SEQUENCE = 16, 4
Step = tuple[Tensor, Tensor, Tensor]
"""Positions (batch, tokens), their slots, and the pages of each sequence (batch, pages)."""


class Layer(nn.Module):
    """Attention with norms of q and k, as in Qwen3, and its own pages of k and v."""

    def __init__(self, pages: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * KV_HEADS) * CFG.head_dim, bias=False)
        self.out = nn.Linear(HEADS * CFG.head_dim, WIDTH, bias=False)
        self.q_weight, self.k_weight = nn.Parameter(torch.ones(CFG.head_dim)), nn.Parameter(torch.ones(CFG.head_dim))
        self.register_buffer("pages", torch.zeros(2, pages, PAGE_SIZE, KV_HEADS, CFG.head_dim), persistent=False)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """``x`` (batch, tokens, width)."""
        positions, slots, block_table = step
        q, k, v = self.qkv(x).unflatten(-1, (-1, CFG.head_dim)).split([HEADS, KV_HEADS, KV_HEADS], dim=-2)
        rk.apply_rope_append(
            q, k, v, positions, CFG, rk.KVCache(*self.pages, slots),
            q_norm=rk.HeadNorm(self.q_weight, EPS), k_norm=rk.HeadNorm(self.k_weight, EPS),
        )  # fmt: skip
        keys, values = (pages[block_table].flatten(1, 2).transpose(1, 2) for pages in self.pages)
        seen = torch.arange(keys.shape[2], device=x.device) <= positions[:, None, :, None]
        y = scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=seen, enable_gqa=True)
        return x + self.out(y.transpose(1, 2).flatten(2))


class Model(nn.Module):
    """Layers that share slots; each sequence has pages of its own, in any order."""

    def __init__(self, batch: int, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(batch * PAGES_OF_SEQUENCE) for _ in range(layers))
        pages = torch.randperm(batch * PAGES_OF_SEQUENCE).reshape(batch, PAGES_OF_SEQUENCE)
        self.register_buffer("block_table", pages, persistent=False)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """``lengths`` (batch,): tokens that are stored already. Grows by those of ``x``, in place."""
        positions = lengths[:, None] + torch.arange(x.shape[1], device=x.device)
        slots = rk.slots_of(self.block_table, positions, PAGE_SIZE)
        for layer in self.layers:
            x = layer(x, (positions, slots, self.block_table))
        lengths += x.shape[1]
        return x


class CapturedStep:
    """A decode step as a CUDA graph: the same kernels each time, on tensors that stay where they are."""

    def __init__(self, model: Model, x: Tensor, lengths: Tensor) -> None:
        self.x, self.graph = x.clone(), torch.cuda.CUDAGraph()
        before = lengths.clone()
        model(self.x, lengths)  # makes what a graph cannot: tables and kernels
        lengths.copy_(before)
        with torch.cuda.graph(self.graph):
            self.y = model(self.x, lengths)
        lengths.copy_(before)

    def __call__(self, x: Tensor) -> Tensor:
        """Replay the graph."""
        self.x.copy_(x)
        self.graph.replay()
        return self.y


@torch.no_grad()
def main() -> None:
    """Compare one long prefill with a short one and decode steps of sequences that have different lengths."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Model(batch=2).to(device)
    x = torch.randn(2, 24, WIDTH, device=device)
    whole = model(x, torch.zeros(2, dtype=torch.long, device=device))

    lengths = torch.zeros(2, dtype=torch.long, device=device)
    model(x[:, :9], lengths)
    lengths[1] = 5  # the second sequence gives back its last four tokens: what comes next overwrites them
    step = CapturedStep(model, x[:, 9:10], lengths) if device.type == "cuda" else lambda now: model(now, lengths)
    worst = 0.0
    for _ in range(12):
        now = torch.stack([x[i, int(length)] for i, length in enumerate(lengths)])[:, None]
        wanted = torch.stack([whole[i, int(length)] for i, length in enumerate(lengths)])[:, None]
        worst = max(worst, (step(now) - wanted).abs().max().item())
    print(f"12 decode steps with a paged cache against one prefill: {worst:.1e} apart")


if __name__ == "__main__":
    main()
