"""The rows of a whole model: a small Llama with random weights, patched against unpatched."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .memory import peak_bytes
from .ours import TimedCall
from .peers import MissingPeerError
from .row import BenchmarkRow

__all__ = ["TOKENS", "small_models", "steps", "whole_model_rows"]

TOKENS = 1024
VOCABULARY = 512
SIZES = dict(
    hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
    vocab_size=VOCABULARY, max_position_embeddings=131072,
)  # fmt: skip
NAME = "Llama, 4 layers, hidden 512, heads 8/2x64, bf16"


def small_models(device: str = "cpu") -> tuple[nn.Module, nn.Module]:
    """The patched and the unpatched model, with the same weights.

    Raises:
        MissingPeerError: transformers is not installed.
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise MissingPeerError("transformers: pip install transformers") from error
    from rope_kernels.integrations.transformers import patch_model

    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(**SIZES)).to(device, torch.bfloat16)
    mine = copy.deepcopy(theirs)
    patch_model(mine)
    return mine, theirs


def steps(model: nn.Module, kind: str, tokens: int = TOKENS, device: str = "cpu") -> TimedCall:
    """A forward pass without gradients, or a training step with SGD, on one sequence."""
    ids = torch.randint(VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(1)).to(device)

    def forward() -> Any:
        with torch.no_grad():
            return model(ids, use_cache=False).logits

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def train() -> Any:
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return forward if kind == "forward" else train


def _build(kind: str, memory: dict[str, Any], device: str, tokens: int) -> tuple[TimedCall, TimedCall]:
    """Both steps, after their logits or losses were compared; their peak memory goes to ``memory``."""
    mine, theirs = (steps(model, kind, tokens, device) for model in small_models(device))
    got, want = (torch.as_tensor(step()).float() for step in (mine, theirs))
    error = ((got - want).abs().mean() / want.abs().mean()).item()
    assert error < 0.02, f"{kind}: the patched model's result differs by {error} on average, bf16 allows 0.02"
    memory |= {"ours_peak_bytes": peak_bytes(mine, device), "peer_peak_bytes": peak_bytes(theirs, device)}
    return mine, theirs


def whole_model_rows(device: str = "cpu", tokens: int = TOKENS) -> Iterator[BenchmarkRow]:
    """A forward pass and a training step."""
    for kind in ("forward", "training step"):
        facts: dict[str, Any] = dict(model=NAME, tokens=tokens, form=kind, peer="transformers")
        where = "" if device == "cpu" else f", {device}"
        yield BenchmarkRow("whole model", f"{kind}, {tokens} tokens, patched, against transformers{where}",
                  lambda kind=kind, facts=facts: _build(kind, facts, device, tokens), facts=facts)  # fmt: skip
