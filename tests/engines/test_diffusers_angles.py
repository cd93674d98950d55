"""The ladders of diffusers' models as configs: their angles computed in the kernel, exact where a table is not."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from support import tolerances

from benchmarks import diffusers_angles, diffusers_rotation
from benchmarks.diffusers_angles import Row
from rope_kernels import apply_rope

ROWS = {row.name: row for row in diffusers_angles.rows()}
AXES = {"Flux2": 4, "Lumina-Next": 2}
rows = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


@rows
def test_angles_are_exact_and_mean_what_the_model_means(row: Row) -> None:
    theirs, ours = row.errors()
    assert ours <= tolerances.CONTRACT_EPS
    # Their own angles are in fp32 at most 15708 radians, whose spacing is 1e-3; the others have fewer than 512.
    assert theirs < (5e-3 if row.name == "LTX-Video" else 1e-5)
    assert row.config.num_axes == AXES.get(row.name, 3)
    assert row.config.rotation().num_pairs == row.theirs[0].shape[1]


@pytest.mark.parametrize("name", ["Flux", "Flux2", "Wan"])
def test_a_rotation_by_the_config_is_the_models(name: str) -> None:
    row = ROWS[name]
    tokens = slice(1000, 1100)
    x = torch.randn(1, 100, 2, row.config.head_dim)
    table = tuple(t[tokens].repeat_interleave(2, -1) for t in row.theirs)
    mine = apply_rope(x, None, row.positions[:, None, tokens].contiguous(), row.config)[0]
    torch.testing.assert_close(mine, apply_rotary_emb(x, table, sequence_dim=1), **tolerances.THERE_AND_BACK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_benchmark_compares_what_it_times(dtype: torch.dtype) -> None:
    found = list(diffusers_rotation.measured(dtype, 40, 0.0))
    assert [name for name, *_ in found] == [
        "Flux", "Qwen-Image", "Wan", "LTX-Video", "Cosmos", "HunyuanVideo", "CogVideoX", "HiDream"
    ]  # fmt: skip
