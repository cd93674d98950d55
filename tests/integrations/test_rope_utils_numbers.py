"""The functions against the numbers that transformers' own tests list, to the digits that they list."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import mpmath
import pytest
import torch
import transformers.modeling_rope_utils as theirs
from rope_utils_sides import ORIGINAL, SHAPE, TYPES, both
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import rope_kernels.integrations.rope_utils as ours

# Heads of 128, theta 10000.
DEFAULT = [1.0000e00, 8.6596e-01, 7.4989e-01, 6.4938e-01, 5.6234e-01, 4.8697e-01, 4.2170e-01, 3.6517e-01, 3.1623e-01]
YARN_AT_16 = [1.0000e-01, 8.3479e-02, 6.9590e-02, 5.7925e-02, 4.8136e-02, 3.9931e-02, 3.3061e-02, 2.7315e-02]
YARN_AT_30 = [6.6143e-03, 5.3120e-03, 4.2400e-03, 3.3599e-03, 2.6396e-03, 2.0520e-03, 1.5746e-03, 1.1882e-03]
LLAMA3_AT_0 = DEFAULT[:5]


def numbers(side: ModuleType, config: Any, seq_len: Any = None, **parameters: Any) -> tuple[torch.Tensor, float]:
    config.rope_parameters = {"rope_theta": 10000.0, **parameters}
    return side.ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config=config, device="cpu", seq_len=seq_len)


def assert_numbers(table: torch.Tensor, start: int, wanted: list[float]) -> None:
    torch.testing.assert_close(table[start : start + len(wanted)], torch.tensor(wanted), rtol=1e-4, atol=0)


@pytest.fixture(params=[theirs, ours], ids=["transformers", "drop-in"])
def side(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("theta", [10000.0, 5e5, 1e6, 1e7])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_the_default_table_is_rounded_once(head_dim: int, theta: float) -> None:
    """docs/transformers.md has these figures. In heads of 96 transformers' exponents 2 j / 96 are rounded, too."""
    config = LlamaConfig(head_dim=head_dim, rope_parameters={"rope_type": "default", "rope_theta": theta})
    mine = ours.ROPE_INIT_FUNCTIONS["default"](config)[0].double()
    powers = [mpmath.mpf(theta) ** (mpmath.mpf(-2 * j) / head_dim) for j in range(head_dim // 2)]
    exact = torch.tensor([float(power) for power in powers], dtype=torch.float64)
    assert ((mine - exact).abs() <= 6e-8 * exact).all()
    apart = 1e-6 if head_dim == 96 else 3e-7
    assert ((LlamaRotaryEmbedding(config).inv_freq.double() - mine).abs() <= apart * mine).all()


@pytest.mark.parametrize("rope_type", TYPES)
def test_every_type_is_transformers_to_3e7(rope_type: str) -> None:
    for theta in (10000.0, 5e5, 1e6):
        for length in (None, 1025, 4097, 100_000):
            parameters = {"rope_type": rope_type, **TYPES[rope_type], "rope_theta": theta}
            (mine, _), (wanted, _) = both(rope_type, parameters, SHAPE, "cpu", length)
            torch.testing.assert_close(mine[0], wanted[0], rtol=3e-7, atol=0)


def test_linear_numerically(side: ModuleType) -> None:
    for factor in (2.0, 10.0, 20.0):
        for seq_len in (None, 1, 5000):
            table, scaling = numbers(side, LlamaConfig(), seq_len, rope_type="linear", factor=factor)
            assert scaling == 1.0
            assert_numbers(table * factor, 0, DEFAULT)


def test_dynamic_numerically(side: ModuleType) -> None:
    config = LlamaConfig()
    for seq_len in (None, 1, config.max_position_embeddings):
        assert_numbers(numbers(side, config, seq_len, rope_type="dynamic", factor=10.0)[0], 0, DEFAULT)
    lower = None
    for seq_len in (config.max_position_embeddings * 2, config.max_position_embeddings * 4):
        table, scaling = numbers(side, config, torch.tensor(seq_len), rope_type="dynamic", factor=10.0)
        assert scaling == 1.0
        assert table[0] == 1.0
        assert lower is None or (table[1:] < lower[1:]).all()
        lower = table


def test_yarn_numerically(side: ModuleType) -> None:
    config, yarn = LlamaConfig(), {"rope_type": "yarn", "factor": 10.0, ORIGINAL: 2048}
    table, scaling = numbers(side, config, **yarn)
    assert scaling == pytest.approx(0.1 * torch.tensor(10.0).log().item() + 1.0)
    assert_numbers(table, 0, DEFAULT)
    assert_numbers(table, 16, YARN_AT_16)
    assert_numbers(table, 30, YARN_AT_30)
    assert numbers(side, config, **yarn, attention_factor=0.5)[1] == 0.5
    assert numbers(side, config, **yarn, mscale=1.0, mscale_all_dim=0.707)[1] == pytest.approx(1.0580, abs=1e-4)


def test_longrope_numerically(side: ModuleType) -> None:
    config, original = LlamaConfig(max_position_embeddings=8192), 2048
    rows = {"short_factor": [1.0] * 64, "long_factor": [4.0] * 64}
    longrope = {"rope_type": "longrope", ORIGINAL: original, **rows}
    for factor in ({}, {"factor": 4.0}):
        for seq_len in (None, 0, original):
            table, scaling = numbers(side, config, seq_len, **longrope, **factor)
            assert scaling == pytest.approx(1.0871, abs=1e-4)
            assert_numbers(table, 0, DEFAULT)
        assert_numbers(numbers(side, config, original + 1, **longrope, **factor)[0] * 4, 0, DEFAULT)
    assert numbers(side, config, **longrope, factor=1.0)[1] == 1.0
    assert numbers(side, config, **longrope, attention_factor=0.5)[1] == 0.5


def test_llama3_numerically(side: ModuleType) -> None:
    llama3 = {"rope_type": "llama3", ORIGINAL: 2048, "low_freq_factor": 1, "high_freq_factor": 4}
    for factor in (2.0, 10.0, 20.0):
        table, scaling = numbers(side, LlamaConfig(), **llama3, factor=factor)
        assert scaling == 1.0
        assert_numbers(table, 0, LLAMA3_AT_0)
        assert table[-1] * factor == pytest.approx(1.1548e-04, rel=1e-4)


def test_proportional_numerically(side: ModuleType) -> None:
    table, scaling = numbers(side, LlamaConfig(), rope_type="proportional", partial_rotary_factor=0.125)
    assert scaling == 1.0
    assert_numbers(table, 0, DEFAULT[:8])
    assert table.shape == (64,)
    assert table[8:].eq(0).all()
