"""The README's Python runs, and what it says of files and commands is so."""

from __future__ import annotations

import re

import pytest
import torch
from support.documents import ROOT, blocks_of

import rope_kernels
from rope_kernels.cli import demo, demo_report
from rope_kernels.integrations.transformers import unpatch_model
from rope_kernels.measuring import models

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = blocks_of("README.md")


@pytest.mark.parametrize("block", BLOCKS, ids=repr)
def test_block_runs(block):
    block.run()


def test_there_are_blocks():
    assert BLOCKS


def test_the_first_block_runs_with_a_model():
    """With what its title names, which a reader has."""
    transformers = pytest.importorskip("transformers")
    [block] = blocks_of("README.md", "model:")
    sizes = dict(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, max_position_embeddings=64))
    q, k = torch.randn(2, 16, 4, 16), torch.randn(2, 16, 2, 16)
    block.run(model=model, q=q, k=k, positions=torch.arange(16))
    assert unpatch_model(model)


def test_it_fits_in_130_lines_and_answers_first():
    """How exact, how fast, what to type: in the first 25 lines."""
    lines = README.splitlines()
    assert len(lines) <= 130
    first = "\n".join(lines[:25])
    for answer in (
        r"at most 5e-7",
        r"times as fast as transformers",
        r"pip install",
        r"apply_rope\(q, k, positions, cfg\)",
    ):
        assert re.search(answer, first), answer


def test_every_rope_type_is_listed():
    listed = set(re.findall(r"\w+", README))
    assert {name for name, kind in rope_kernels.ROPE_TYPES.items() if kind.builtin} - {"inv_freq"} <= listed


def test_the_table_is_that_of_the_short_demo():
    shown = [line.split()[:3] for line in README.splitlines() if re.search(r"\de-0\d +\d\.\de-0\d", line)]
    layers = models.shipped_layers(demo.SHORT)
    assert shown == [[case.label, case.config.rope_type, f"{case.context:,}"] for case in layers]
    header = README[: README.index("────")].rsplit("```", 1)[1].split()
    assert sorted(header) == sorted(word for column in demo_report._COLUMNS for word in column.header.split())


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
