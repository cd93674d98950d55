"""`rope-kernels vllm`: what is replaced, the error of vLLM's table, and frequencies that are not the config's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rope_kernels.cli import app
from rope_kernels.errors import RopeConfigError
from rope_kernels.integrations.vllm.audit import audit
from rope_kernels.measuring import catalog

QWEN2_VL = dict(
    model_type="qwen2_vl",
    text_config=dict(
        model_type="qwen2_vl_text", hidden_size=256, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=32768, rope_theta=1e6,
        rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32768, mrope_section=[16, 24, 24]),
    ),
)  # fmt: skip
DYNAMIC = dict(
    model_type="llama", hidden_size=256, num_attention_heads=4, max_position_embeddings=8192, rope_theta=1e4,
    rope_scaling=dict(type="dynamic", factor=4.0),
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(catalog.names()) - {"internlm2-chat-7b"}))
def test_shipped_configs_are_replaced_and_mean_the_same(name: str) -> None:
    for row in audit(catalog.shipped(name)):
        assert row.replaced, row
        assert 1e-5 < (row.table_error or 0.0) < 0.1, row
        assert row.difference < 1e-5, row


def test_where_vllm_means_something_else_is_said() -> None:
    (row,) = audit(QWEN2_VL)
    assert row.replaced
    assert row.difference > 1.0
    assert "from the config's own" in row.note
    (row,) = audit(DYNAMIC)
    assert row.replaced
    assert row.note == "fixed for the longest sequence; the config's grow with each"


def test_a_config_without_a_model_type_is_an_error() -> None:
    with pytest.raises(RopeConfigError, match="model_type: missing"):
        audit({"hidden_size": 64, "num_attention_heads": 4, "rope_theta": 1e4})


def test_a_model_with_code_of_its_own_is_an_error() -> None:
    with pytest.raises(RopeConfigError, match="model_type: got 'internlm2', which the installed transformers"):
        audit(catalog.shipped("internlm2-chat-7b"))


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN2_VL), "utf-8")
    shown = CliRunner().invoke(app, ["vllm", str(tmp_path)], env={"COLUMNS": "150"})
    assert shown.exit_code == 0, shown.output
    assert "MRotaryEmbedding" in shown.output
    output = CliRunner().invoke(app, ["vllm", str(tmp_path), "--json"]).output
    (row,) = json.loads(output[output.index("[\n") :])
    assert row["replaced"]
