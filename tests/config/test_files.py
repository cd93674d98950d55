"""RopeConfig.from_params: files, directories and names in the local cache, each read right or refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rope_kernels import RopeConfig, RopeConfigError
from rope_kernels.config import files

LLAMA = {"model_type": "llama", "head_dim": 64, "max_position_embeddings": 8192, "rope_theta": 500000.0}
# llama-models' params.json of Llama 3.1 8B
META = {"dim": 4096, "ffn_dim_multiplier": 1.3, "multiple_of": 1024, "n_heads": 32, "n_kv_heads": 8, "n_layers": 32,
        "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True, "vocab_size": 128256}  # fmt: skip
# inference/configs/config_671B.json of DeepSeek-V3
DEEPSEEK = {
    "vocab_size": 129280, "dim": 7168, "inter_dim": 18432, "moe_inter_dim": 2048, "n_layers": 61, "n_dense_layers": 3,
    "n_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1, "n_activated_experts": 8, "n_expert_groups": 8,
    "n_limited_groups": 4, "route_scale": 2.5, "score_func": "sigmoid", "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "dtype": "fp8",
}  # fmt: skip


def write(path: Path, values: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of huggingface_hub."""
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub"


@pytest.mark.parametrize("name", ["config.json", "params.json", "original/params.json", "anything.json"])
def test_a_file_is_read_as_its_dict(tmp_path, name):
    path = write(tmp_path / name, META if "params" in name else LLAMA)
    made = RopeConfig.from_params(path)
    assert made == RopeConfig.from_hf(META if "params" in name else LLAMA)
    assert made == RopeConfig.from_params(str(path))
    assert f"source = {path}" in made.explain()
    if name != "anything.json":
        assert RopeConfig.from_params(tmp_path) == made


def test_a_dict_is_read_as_from_hf():
    assert RopeConfig.from_params(META) == RopeConfig.from_hf(META)
    assert RopeConfig.from_params({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}}).factor == 2.0


def test_config_json_comes_before_params_json(tmp_path):
    write(tmp_path / "params.json", META)
    write(tmp_path / "config.json", LLAMA)
    assert RopeConfig.from_params(tmp_path).head_dim == 64


@pytest.mark.parametrize("with_main", [True, False])
def test_a_name_in_the_local_cache(cache, with_main):
    """The snapshot that main names, or the newest."""
    model = cache / "models--meta-llama--Llama-3.1-8B"
    write(model / "snapshots" / "aaa" / "config.json", LLAMA)
    write(model / "snapshots" / "bbb" / "config.json", {**LLAMA, "head_dim": 32})
    if with_main:
        write(model / "refs" / "main", "").write_text("aaa", encoding="utf-8")
    made = RopeConfig.from_params("meta-llama/Llama-3.1-8B")
    assert made.head_dim == (64 if with_main else 32)
    assert "snapshots" in made.provenance["source"]


@pytest.mark.parametrize("name", ["meta-llama/Llama-9", "nowhere", "./a/b", "/a/b", "a/b/c"])
def test_what_is_not_there_is_named(cache, name):
    with pytest.raises(RopeConfigError, match="no such file or directory, nor a model in the local cache") as caught:
        RopeConfig.from_params(name)
    assert str(caught.value).startswith(name)


def test_files_that_cannot_be_read(tmp_path):
    for text, why in (("{", "not valid JSON"), ("[1]", "got list, must hold one JSON object")):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(RopeConfigError, match=why):
            RopeConfig.from_params(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RopeConfigError, match="cannot be read"):
        RopeConfig.from_params(tmp_path / "config.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RopeConfigError, match=r"the directory holds none of config\.json"):
        RopeConfig.from_params(tmp_path / "empty")


def test_gguf_without_its_package_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(RopeConfigError, match="pip install gguf"):
        RopeConfig.from_params(tmp_path)


def test_an_unread_key_is_an_error_here_too(tmp_path):
    path = write(tmp_path / "config.json", {**LLAMA, "rope_scaling_mystery": 3})
    with pytest.raises(RopeConfigError, match="rope_scaling_mystery"):
        RopeConfig.from_params(path)
    with pytest.warns(match="rope_scaling_mystery"):
        RopeConfig.from_params(path, strict=False)


def deepseek_frequencies(dim: int, theta: float, factor: float, original: int, fast: float, slow: float) -> list[float]:
    """DeepSeek-V3's inference/model.py, precompute_freqs_cis, in double precision."""

    def correction(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(correction(fast)), 0), min(math.ceil(correction(slow)), dim - 1)
    high = high + 0.001 if low == high else high
    freqs = [theta ** (-2 * i / dim) for i in range(dim // 2)]
    smooth = [1 - min(max((i - low) / (high - low), 0.0), 1.0) for i in range(dim // 2)]
    return [f / factor * (1 - s) + f * s for f, s in zip(freqs, smooth, strict=True)]


@given(
    length=st.sampled_from([None, 4096, 16384, 163840]), factor=st.sampled_from([None, 4.0, 40]),
    theta=st.sampled_from([None, 10000.0, 50000.0]),
)  # fmt: skip
def test_deepseeks_own_config(length, factor, theta):
    """Keys that it leaves out have the defaults of its ModelArgs; up to the original length nothing is scaled."""
    given_keys = {"max_seq_len": length, "rope_factor": factor, "rope_theta": theta}
    made = RopeConfig.from_params(DEEPSEEK | {key: value for key, value in given_keys.items() if value is not None})
    theta = theta or 10000.0
    assert (made.head_dim, made.pairing, made.attention_scaling) == (64, "interleaved", 1.0)
    if length == 4096:
        want = [theta ** (-2 * i / 64) for i in range(32)]
    else:
        want = deepseek_frequencies(64, theta, factor or 40.0, 4096, 32, 1)
    torch.testing.assert_close(made.inv_freq().double(), torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=0)


def test_every_place_in_a_directory_is_looked_at(tmp_path):
    for name in reversed(files._IN_DIRECTORIES):
        write(tmp_path / name, LLAMA)
        assert files.find_file(tmp_path) == tmp_path / name
