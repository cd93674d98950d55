"""What a type checker says of a user's file: names that are none are found, results have their types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from support.documents import ROOT

from rope_kernels import ROPE_TYPES
from rope_kernels.backends import PREFERENCE
from rope_kernels.core import names, rotation
from rope_kernels.core.layouts import LAYOUTS

RIGHT = """
import torch
from typing_extensions import assert_type
import rope_kernels as rk

cfg = rk.RopeConfig(head_dim=64, rope_type="yarn", factor=4.0, original_max_position_embeddings=32768, pairing="half")
q, k, positions = torch.randn(1, 4, 8, 64), torch.randn(1, 4, 2, 64), torch.arange(4)
assert_type(rk.apply_rope(q, k, positions, cfg, layout="bshd"), tuple[torch.Tensor, torch.Tensor | None])
assert_type(rk.RotaryEmbedding(cfg, layout="bhsd")(q, k, positions), tuple[torch.Tensor, torch.Tensor | None])
assert_type(cfg.inv_freq(), torch.Tensor)
assert_type(rk.RopeConfig.from_hf({"model_type": "llama", "head_dim": 64}), rk.RopeConfig)
with rk.use_backend("reference"):
    rk.apply_rope_(q, k, positions, cfg, offset=None)
"""
WRONG = {
    'rk.apply_rope(q, k, positions, cfg, layout="bhdd")': "layout",
    'rk.apply_rope_(q, k, positions, cfg, layout="BSHD")': "layout",
    'rk.RotaryEmbedding(cfg, layout="shbd")': "layout",
    'rk.RotaryEmbedding(cfg)(q, k, positions, layout="bshd")': "layout",
    'rk.RopeConfig(head_dim=64, pairing="halves")': "pairing",
    'rk.RopeConfig(head_dim=64, phase="fp32")': "phase",
    'rk.RopeConfig(head_dim=64, table_dtype="bf16")': "table_dtype",
    'rk.use_backend("cuda")': "use_backend",
    "rk.apply_rope(q, k, positions)": "cfg",
    "rk.apply_rope(q, k, positions, cfg, ofset=3)": "ofset",
}


def mypy(folder: Path, text: str) -> str:
    """What mypy says of a file, strict, as in a user's own project."""
    (folder / "own.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--config-file=", "own.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=None)
    return done.stdout + done.stderr


def test_a_right_file_passes(tmp_path):
    assert "no issues found" in mypy(tmp_path, RIGHT)


def test_every_mistake_is_found_in_its_line(tmp_path):
    head = len(RIGHT.splitlines())
    said = mypy(tmp_path, RIGHT + "\n".join(WRONG) + "\n").splitlines()
    for number, (line, word) in enumerate(WRONG.items(), head + 1):
        found = [text for text in said if text.startswith(f"own.py:{number}: error:")]
        assert found, (line, said)
        assert word in " ".join(found), (line, found)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        (names.LayoutName, LAYOUTS), (names.PairingName, rotation.PAIRINGS), (names.PhaseName, rotation.PHASES),
        (names.TableDtypeName, rotation.TABLE_DTYPES), (names.MropeMapName, rotation.MROPE_MAPS),
        (names.AxisMapName, rotation.AXIS_MAPS), (names.BackendName, PREFERENCE),
        (names.RopeTypeName, [name for name, kind in ROPE_TYPES.items() if kind.builtin]),
    ],
)  # fmt: skip
def test_names_for_checkers_are_those_that_calls_accept(name, known):
    assert sorted(get_args(name)) == sorted(known)


def test_every_field_says_what_it_means():
    """Below the field, where editors look for it."""
    lines = (ROOT / "rope_kernels" / "config" / "fields.py").read_text(encoding="utf-8").splitlines()
    fields = [
        i
        for i, line in enumerate(lines)
        if line.startswith("    ") and ": " in line.split("=")[0] and line[4].islower()
    ]
    fields = [i for i in fields if i < lines.index("    @property")]
    assert len(fields) > 25
    for i in fields:
        assert lines[i + 1].startswith('    """'), lines[i]


def test_an_installation_says_that_it_has_types():
    assert (ROOT / "rope_kernels" / "py.typed").exists()
