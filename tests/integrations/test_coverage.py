"""The census of transformers' modeling files, and the command that prints it."""

from __future__ import annotations

import json
import sys
import types
from importlib.metadata import version

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from rope_kernels.cli.commands import app
from rope_kernels.integrations.transformers import coverage as census

AT_LEAST = 197  # of 212 files in transformers 5.23


@pytest.fixture(scope="module")
def found() -> list[census.FileCoverage]:
    return census.coverage()


def test_most_files_are_covered_and_the_rest_has_reasons(found: list[census.FileCoverage]) -> None:
    counted = census.summary(found)
    if version("transformers").startswith("5.23."):
        assert (counted["files"], counted["covered"]) >= (212, AT_LEAST)
    assert counted["covered"] / counted["files"] > 0.9
    assert counted["covered"] + len(counted["not_covered"]) == counted["files"]
    assert all(reasons for reasons in counted["not_covered"].values())
    assert counted["not_covered"]["clvp"][0].startswith("apply_rotary_pos_emb: it takes (q, k, v, cos, sin")


@pytest.mark.parametrize(
    ("model", "conventions"),
    [
        ("llama", {"half"}),
        ("deepseek_v3", {"half", "interleaved_to_half"}),
        ("nanochat", {"half, conjugate"}),
        ("gpt_oss", {"half, half-width"}),
        ("glm4", {"interleaved, repeat-2"}),
        ("cohere", {"interleaved"}),
        ("llama4", {"interleaved, complex"}),
        ("dinov3_vit", {"half, prefix"}),
        ("deepseek_v4", {"interleaved, half-width, trailing"}),
    ],
)
def test_conventions_of_known_models(found: list[census.FileCoverage], model: str, conventions: set[str]) -> None:
    (file,) = [file for file in found if file.name == model]
    assert set(file.conventions) == conventions
    assert file.is_covered


def test_a_file_counts_only_if_its_modules_call_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    half = lambda x: torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1)
    return q * cos + half(q) * sin, k * cos + half(k) * sin

def apply_rotary_wrongly(q, k, cos, sin):
    return q * cos, k * sin

class Attention(nn.Module):
    def forward(self, q, k, cos, sin):
        return {call}(q, k, cos, sin)
"""
    want = {
        "apply_rotary_pos_emb": (("half",), True),
        "apply_rotary_wrongly": ((), False),
        "print": ((), False),
    }
    for call, (conventions, is_covered) in want.items():
        module = types.ModuleType("modeling_odd")
        monkeypatch.setitem(sys.modules, "modeling_odd", module)
        vars(module).update(torch=torch, nn=nn)
        exec(source.replace("{call}", call), vars(module))
        monkeypatch.setattr(census, "modeling_files", lambda: {"odd": "modeling_odd"})
        (file,) = census.coverage()
        assert (file.conventions, file.is_covered) == (conventions, is_covered)
        assert bool(file.reasons) != is_covered


def test_command(found: list[census.FileCoverage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "coverage", lambda advance: [advance() for _ in found] and found)
    text = CliRunner().invoke(app, ["coverage"])
    assert text.exit_code == 0, text.output
    counted = census.summary(found)
    first = (
        f"transformers {version('transformers')}: {counted['covered']} of {counted['files']} files with RoPE covered"
    )
    assert text.stdout.splitlines()[0] == first
    assert all(name in text.stdout for name in counted["not_covered"])
    assert json.loads(CliRunner().invoke(app, ["coverage", "--json"]).stdout) == counted


def test_command_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["coverage"])
    assert result.exit_code == 1
    assert result.stderr == "error: transformers is not installed; pip install transformers\n"
