"""transformers' own rotation, reproduced: its fp32 phase over its own table, and its bfloat16 table."""

import pytest
import torch
from transformers import LlamaConfig, Phi3Config, Qwen2Config
from transformers.models.llama import modeling_llama

import rope_kernels as rk

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1e6}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_theta": 5e5,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.5] * 32, "long_factor": [8.0 + i for i in range(32)],
    "original_max_position_embeddings": 4096,
}  # fmt: skip
SIZES = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 131072}
PEERS = {
    "default": LlamaConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
    "llama3": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "yarn": Qwen2Config(**SIZES, rope_parameters=YARN),
    "longrope": Phi3Config(**SIZES, rope_parameters=LONGROPE, original_max_position_embeddings=4096, pad_token_id=0),
}
POSITIONS = torch.tensor([[0, 1, 5, 4095, 32767, 131071, 1048575]])


@pytest.mark.parametrize("name", PEERS)
def test_float32_phase_over_transformers_table(name):
    embedding = modeling_llama.LlamaRotaryEmbedding(PEERS[name])
    q, k = torch.randn(1, 4, 7, 64), torch.randn(1, 2, 7, 64)
    cos, sin = embedding(q, POSITIONS)
    wanted = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
    config = rk.RopeConfig.from_inv_freq(embedding.inv_freq, embedding.attention_scaling, phase="float32")
    got = rk.apply_rope(q, k, POSITIONS, config, layout="bhsd")
    for x, a, b in zip((q, k), got, wanted, strict=True):
        assert (a - b).abs().max() <= 2e-6 * x.abs().max()
    exact = rk.apply_rope(q, k, POSITIONS, config.replace(phase="exact"), layout="bhsd")
    assert (exact[0] - wanted[0]).abs().max() > 1e-3, "transformers' own phase is that far off at a million"


def test_bfloat16_table():
    embedding = modeling_llama.LlamaRotaryEmbedding(PEERS["llama3"])
    q = torch.randn(1, 4, 7, 64, dtype=torch.bfloat16)
    cos, sin = embedding(q, POSITIONS)
    assert cos.dtype == torch.bfloat16
    config = rk.RopeConfig.from_inv_freq(embedding.inv_freq, phase="float32", table_dtype="bfloat16")
    wanted, _ = modeling_llama.apply_rotary_pos_emb(*(t.double() for t in (q, q, cos, sin)))
    with rk.use_backend("reference"):
        assert torch.equal(rk.apply_rope(q, None, POSITIONS, config, layout="bhsd")[0], wanted.to(torch.bfloat16))
        assert all(map(torch.equal, rk.cos_sin(POSITIONS, config, torch.bfloat16), (cos, sin)))
    ours = rk.cos_sin(POSITIONS, config, torch.bfloat16)
    for a, b in zip(ours, (cos, sin), strict=True):
        # a kernel's phase is good to 2**-32 turns, which shows in the smallest sines
        assert ((a - b).abs() <= b.abs() * 2**-7).logical_or((a.double() - b.double()).abs() <= 2e-9).all()
        assert (a == b).float().mean() > 0.99
