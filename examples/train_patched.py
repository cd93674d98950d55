"""Train a patched and an unpatched model for a few steps, in fp32 and in bf16, and compare the losses.

``model.to(torch.bfloat16)`` also casts the frequencies that transformers keeps in a buffer. A patched model does not
read that buffer.
"""

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rope_kernels.integrations.transformers import patch_model

STEPS = 10


def train(patched: bool, dtype: torch.dtype) -> list[float]:
    """The losses of a few steps on one batch."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = Qwen2ForCausalLM(config).to(dtype)
    if patched:
        patch_model(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = torch.randint(128, (4, 64))
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Train both models in fp32 and bf16, and print their first and last losses."""
    for dtype in (torch.float32, torch.bfloat16):
        theirs, ours = train(False, dtype), train(True, dtype)
        print(f"{dtype}: loss {ours[0]:.4f} -> {ours[-1]:.4f} patched, {theirs[0]:.4f} -> {theirs[-1]:.4f} unpatched")


if __name__ == "__main__":
    main()
