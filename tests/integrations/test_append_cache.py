"""Llama and DeepSeek-V3 with a Cache that rotates and appends in one call: the model's own rotation does nothing."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from models import FAMILIES
from support import tolerances

import rope_kernels as rk

pytest.importorskip("transformers")

from transformers.cache_utils import Cache, DynamicLayer

PAGE_SIZE, NEW_TOKENS, MOST_TOKENS = 4, 8, 40
ROTATIONS = ("apply_rotary_pos_emb", "apply_rotary_pos_emb_interleave")


class Rotation:
    """Stands for a modeling file's rotation: returns q and k as they are, and keeps q for the cache."""

    def __init__(self) -> None:
        self.q: torch.Tensor | None = None

    def __call__(self, q: torch.Tensor, k: torch.Tensor, *rest: Any, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.q = q
        return q, k


class PagedLayer(DynamicLayer):
    """k and v of one layer in pages that are shared by all sequences, in an order of their own."""

    def __init__(self, cfg: rk.RopeConfig, rotation: Rotation, is_latent: bool) -> None:
        super().__init__()
        self.cfg, self.rotation, self.is_latent = cfg, rotation, is_latent
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        batch, heads = key_states.shape[:2]
        pages = MOST_TOKENS // PAGE_SIZE
        self.table = torch.randperm(batch * pages, generator=torch.Generator().manual_seed(1)).reshape(batch, pages)
        widths = key_states.shape[-1], value_states.shape[-1]
        both = torch.full((batch * pages, PAGE_SIZE, heads, sum(widths)), torch.nan, dtype=key_states.dtype)
        self.pages = both.split(widths, -1)
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # DeepSeek stores the latent part first.
        k, v = (value_states, key_states) if self.is_latent else (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(k, v)
        batch, _, tokens, _ = k.shape
        positions = torch.arange(self.length, self.length + tokens).expand(batch, tokens)
        cache = rk.KVCache(*self.pages, rk.slots_of(self.table, positions, PAGE_SIZE))
        q = self.rotation.q
        assert q is not None
        rk.apply_rope_append(q, k, v, positions, self.cfg, cache, layout="bhsd")
        self.length += tokens
        stored = [self._read(pages) for pages in self.pages]
        return stored[::-1] if self.is_latent else stored

    def _read(self, pages: torch.Tensor) -> torch.Tensor:
        of_sequence = pages[self.table].flatten(1, 2)[:, : self.length]
        return of_sequence.transpose(1, 2)

    def get_seq_length(self) -> int:
        return self.length


def greedy(model: Any, ids: torch.Tensor, cache: Cache | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, logits of every step)."""
    made = []
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            start = 0 if cache is None else cache.get_seq_length()
            logits = model(input_ids=ids[:, start:], past_key_values=cache, use_cache=cache is not None).logits[:, -1]
            made.append(logits)
            ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), 1)
    return ids, torch.stack(made, 1)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_a_cache_that_appends_gives_the_same_tokens(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = next(f for f in FAMILIES if f.name == name)
    model = family.build()
    ids = family.batch(13)["input_ids"]
    wanted = greedy(model, ids, None)
    rotation = Rotation()
    modeling = importlib.import_module(type(model).__module__)
    for function in ROTATIONS:
        if hasattr(modeling, function):
            monkeypatch.setattr(modeling, function, rotation)
    count = model.config.get_text_config().num_hidden_layers
    cfg = rk.RopeConfig.from_hf(model.config)
    layers = [PagedLayer(cfg, rotation, name == "deepseek_v3") for _ in range(count)]
    with rk.use_backend(backend):
        got = greedy(model, ids, Cache(layers=layers))
    assert torch.equal(got[0], wanted[0])
    torch.testing.assert_close(got[1], wanted[1], **tolerances.MODEL)
    assert layers[0].length == 13 + NEW_TOKENS - 1
