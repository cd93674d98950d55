"""A custom attention layer: prefill, then decode with a KV cache and a length per sequence."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import rope_kernels as rk

CFG = rk.RopeConfig(head_dim=64, rope_theta=500000.0, max_position_embeddings=8192)


class Attention(nn.Module):
    """Grouped-query attention with a KV cache of fixed size."""

    def __init__(self, width: int, heads: int, kv_heads: int, cache: tuple[int, int]) -> None:
        super().__init__()
        self.parts = [heads, kv_heads, kv_heads]
        self.qkv = nn.Linear(width, sum(self.parts) * CFG.head_dim, bias=False)
        self.out = nn.Linear(heads * CFG.head_dim, width, bias=False)
        self.keys, self.values = torch.zeros(2, *cache, kv_heads, CFG.head_dim).unbind()

    def forward(self, x: Tensor, start: Tensor) -> Tensor:
        """``x`` (batch, tokens, width), whose first positions are ``start`` (batch,)."""
        q, k, v = self.qkv(x).unflatten(-1, (-1, CFG.head_dim)).split(self.parts, dim=-2)
        q, k = rk.apply_rope(q, k, None, CFG, offset=start)
        places = start[:, None] + torch.arange(x.shape[1])
        rows = torch.arange(x.shape[0])[:, None]
        self.keys[rows, places], self.values[rows, places] = k, v
        seen = torch.arange(self.keys.shape[1]) <= places[:, None, :, None]
        q, k, v = (t.transpose(1, 2) for t in (q, self.keys, self.values))
        y = scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


@torch.no_grad()
def main() -> None:
    """Compare one long prefill with a short one and decode steps."""
    torch.manual_seed(0)
    x = torch.randn(2, 12, 128)
    at_once = Attention(128, 4, 2, cache=(2, 16))
    step_by_step = Attention(128, 4, 2, cache=(2, 16))
    step_by_step.load_state_dict(at_once.state_dict())

    start = torch.zeros(2, dtype=torch.long)
    whole = at_once(x, start)
    parts = [step_by_step(x[:, :8], start)]
    parts += [step_by_step(x[:, i : i + 1], start + i) for i in range(8, 12)]
    difference = (torch.cat(parts, 1) - whole).abs().max().item()
    print(f"prefill of 12 tokens against prefill of 8 and 4 decode steps: {difference:.1e} apart")


if __name__ == "__main__":
    main()
