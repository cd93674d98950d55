"""The examples run, and print what they are there to show."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from rope_kernels import ROPE_TYPES

TESTED_ELSEWHERE = {"tensor_parallel"}  # it starts processes
FOLDER = Path(__file__).parents[2] / "examples"
SHOWS = {
    "patch_and_generate": ["LlamaAttention: rotation apply_rotary_pos_emb [half]", "same tokens: True"],
    "train_patched": ["torch.float32: loss 4.8", "torch.bfloat16: loss 4.8"],
    "attention_layer": ["prefill of 12 tokens against prefill of 8 and 4 decode steps:"],
    "paged_decode": ["12 decode steps with a paged cache against one prefill:"],
    "custom_rope_type": ["pairs stand still: True", "turn_within: missing; rope_type 'whole_turns' needs it"],
}


def test_every_example_is_run() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == SHOWS.keys() | {"tensor_parallel"}  # in test_parallel.py


@pytest.mark.parametrize("name", SHOWS)
def test_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    known, state = set(ROPE_TYPES), torch.random.get_rng_state()
    try:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    finally:
        torch.random.set_rng_state(state)
        for added in set(ROPE_TYPES) - known:
            del ROPE_TYPES[added]
    printed = capsys.readouterr().out
    assert all(line in printed for line in SHOWS[name]), printed
    if name == "train_patched":
        ours, theirs = (float(printed.split()[i]) for i in (4, 8))
        assert abs(ours - theirs) < 1e-3, printed
    if name == "attention_layer":
        assert float(printed.split(":")[1].split()[0]) < 1e-5
