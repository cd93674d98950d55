"""The census of other libraries' model files: what a file's modules reach, and what the command says."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rope_kernels.cli.commands import app
from rope_kernels.integrations.tables import coverage as census

SHARED = """
import torch

def apply_rotary_emb(x, freqs):
    cos, sin = (t[:, None] for t in freqs)
    return (x * cos + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) * sin).to(x.dtype)

class Processor:
    def __call__(self, q, freqs):
        return apply_rotary_emb(q, freqs)

class Block:
    def __init__(self, processor=Processor()):
        self.processor = processor

def make_block():
    return Block()
"""
FILES = {
    "by_default": "from .shared import Block\n\nclass Rope:\n    def __init__(self):\n        self.block = Block()\n",
    "by_function": "from .shared import make_block\n\nclass Rope:\n    def __init__(self):\n        make_block()\n",
    "by_attribute": "from .shared import Processor\n\nclass Rope:\n    _processors = [Processor]\n",
    "unreached": "from .shared import Processor\n\nclass Rope:\n    pass\n",
    "broken": "import a_missing_package  # rope\n",
    "wrong": "def apply_rope(x, freqs):\n    return 2 * x\n\nclass Layer:\n    def forward(self, x, freqs):\n"
    "        return apply_rope(x, freqs)\n",
    "proper": "class Layer:\n    pass  # has no rotation, however proper\n",
}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A library of these files."""
    folder = tmp_path / "imaginary" / "models"
    folder.mkdir(parents=True)
    for path in (folder.parent, folder):
        (path / "__init__.py").touch()
    (folder / "shared.py").write_text(SHARED)
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(census.LIBRARIES, "imaginary", "models")
    for name in [name for name in sys.modules if name.split(".")[0] == "imaginary"]:
        monkeypatch.delitem(sys.modules, name)
    return "imaginary"


def test_a_file_counts_by_what_its_classes_reach(library: str) -> None:
    found = {file.name: file for file in census.coverage(library)}
    assert found.keys() == {"shared", *FILES} - {"proper"}
    covered = {name for name, file in found.items() if file.is_covered}
    assert covered == {"shared", "by_default", "by_function", "by_attribute"}
    assert "interleaved" in found["by_default"].conventions
    assert found["unreached"].reasons == ("none of its modules and attention processors calls a function that rotates",)
    assert found["broken"].reasons == ("it cannot be imported: No module named 'a_missing_package'",)
    assert found["wrong"].reasons == ("apply_rope: its results match no known convention",)


@pytest.mark.parametrize("library_name", ["diffusers", "timm"])
def test_command_without_the_library(library_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["coverage", "--library", library_name])
    assert result.exit_code == 1
    assert result.stderr == f"error: {library_name} is not installed; pip install {library_name}\n"


def test_command_with_another_library() -> None:
    result = CliRunner().invoke(app, ["coverage", "--library", "keras"])
    assert result.exit_code == 2
    assert "got 'keras', allowed are transformers, diffusers, timm" in " ".join(result.stderr.replace("│", " ").split())


def test_command(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.import_module("rope_kernels.integrations.transformers.coverage")
    monkeypatch.setattr(version, "version", lambda name: "1.2")
    counted = json.loads(CliRunner().invoke(app, ["coverage", "--library", library, "--json"]).stdout)
    assert (counted["library"], counted["imaginary"], counted["files"], counted["covered"]) == (library, "1.2", 7, 4)
    text = CliRunner().invoke(app, ["coverage", "--library", library]).stdout
    assert text.startswith("imaginary 1.2: 4 of 7 files with RoPE covered")
