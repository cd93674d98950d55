"""RopeConfig.from_params of GGUF files that the package gguf writes: metadata, and tensors that scale frequencies."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from rope_kernels import RopeConfig, RopeConfigError


def written(path: Path, arch: str, tensors: dict[str, np.ndarray] | None = None, **keys: object) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(int(keys.pop("context_length", 8192)))  # type: ignore[call-overload]
    writer.add_embedding_length(512)
    writer.add_head_count(8)
    writer.add_token_list(["a", "b"])
    for name, value in keys.items():
        key = f"{arch}.{name.replace('__', '.')}"
        add = writer.add_string if isinstance(value, str) else writer.add_float32 if isinstance(value, float) else None
        add(key, value) if add else writer.add_uint32(key, value)  # type: ignore[arg-type]
    for name, data in (tensors or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata(tmp_path):
    path = written(tmp_path / "model.gguf", "llama", rope__freq_base=500000.0, rope__dimension_count=64)
    made = RopeConfig.from_params(path)
    assert (made.head_dim, made.rope_theta, made.pairing, made.rope_type) == (64, 500000.0, "interleaved", "default")
    assert made == RopeConfig.from_params(tmp_path)
    assert made.provenance["source"] == str(path)


def test_yarn_of_a_qwen(tmp_path):
    path = written(
        tmp_path / "m.gguf", "qwen2", rope__freq_base=1e6, rope__scaling__type="yarn", rope__scaling__factor=4.0,
        rope__scaling__original_context_length=32768, context_length=131072,
    )  # fmt: skip
    made = RopeConfig.from_params(path)
    assert (made.rope_type, made.factor, made.pairing) == ("yarn", 4.0, "half")
    assert made.original_max_position_embeddings == 32768


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_rope_freqs_divide_the_frequencies_of_llama3(tmp_path, theta):
    """As convert_hf_to_gguf.py writes them, for Llama 3.1's config.json."""
    source = {
        "model_type": "llama", "head_dim": 64, "rope_theta": theta, "max_position_embeddings": 131072,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192},
    }  # fmt: skip
    factors = []
    for freq in (theta ** (-2 * i / 64) for i in range(32)):
        wave = 2 * math.pi / freq
        smooth = (8192 / wave - 1.0) / (4.0 - 1.0)
        factors.append(1.0 if wave < 8192 / 4 else 8.0 if wave > 8192 else 1 / ((1 - smooth) / 8.0 + smooth))
    tensors = {"rope_freqs.weight": np.array(factors, dtype=np.float32)}
    path = written(tmp_path / "m.gguf", "llama", tensors, rope__freq_base=theta, rope__dimension_count=64)
    made, want = RopeConfig.from_params(path), RopeConfig.from_hf(source)
    torch.testing.assert_close(made.inv_freq(), want.inv_freq(), rtol=2e-7, atol=0)  # the tensor is fp32
    assert "rope_freqs.weight" in made.explain()


def test_longrope_factors_of_a_phi3(tmp_path):
    short, long = np.linspace(1, 2, 32, dtype=np.float32), np.linspace(1, 64, 32, dtype=np.float32)
    tensors = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    path = written(
        tmp_path / "m.gguf", "phi3", tensors, context_length=131072, rope__freq_base=10000.0,
        rope__dimension_count=64, rope__scaling__original_context_length=4096, rope__scaling__attn_factor=1.19,
    )  # fmt: skip
    made = RopeConfig.from_params(path)
    assert (made.rope_type, made.pairing) == ("longrope", "half")
    assert made.attention_scaling == pytest.approx(1.19)
    ladder = 10000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    torch.testing.assert_close(made.inv_freq(4096).double(), ladder / torch.tensor(short).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(made.inv_freq(4097).double(), ladder / torch.tensor(long).double(), rtol=1e-6, atol=0)


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(RopeConfigError, match="whose rotation the metadata does not describe"):
        RopeConfig.from_params(written(tmp_path / "m.gguf", "phi3", rope__freq_base=10000.0))
    with pytest.raises(RopeConfigError, match="a model without a rotary embedding"):
        RopeConfig.from_params(written(tmp_path / "n.gguf", "mamba"))
    (tmp_path / "o.gguf").write_bytes(b"no GGUF at all, but long enough to be read as a header")
    with pytest.raises(RopeConfigError, match="cannot be read"):
        RopeConfig.from_params(tmp_path / "o.gguf")
