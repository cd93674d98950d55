"""Every rotary class of vLLM's: ours against exact angles, and vLLM's own where it is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor import custom_op
from vllm.model_executor.layers import rotary_embedding

import rope_kernels as rk
from rope_kernels.integrations import vllm as plug_in

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32768)
MROPE = dict(mrope_section=[16, 24, 24])
CASES: dict[str, tuple[int, int, bool, dict[str, Any]]] = {
    "default": (128, 131072, True, dict(rope_theta=5e5, rope_type="default")),
    "gptj": (128, 8192, False, dict(rope_theta=1e4, rope_type="default")),
    "partial": (128, 8192, True, dict(rope_theta=1e4, rope_type="default", partial_rotary_factor=0.5)),
    "linear": (128, 4096, True, dict(rope_theta=1e5, rope_type="linear", factor=4.0)),
    "llama3": (128, 131072, True, dict(rope_theta=5e5, original_max_position_embeddings=8192, **LLAMA3)),
    "dynamic": (128, 8192, True, dict(rope_theta=1e4, rope_type="dynamic", factor=2.0)),
    "alpha": (128, 32768, True, dict(rope_theta=1e4, rope_type="dynamic", alpha=1000.0)),
    "ntk": (128, 8192, True, dict(rope_theta=1e4, rope_type="ntk", factor=4.0)),
    "ntk mixed": (128, 8192, True, dict(rope_theta=1e4, rope_type="ntk", factor=4.0, mixed_b=0.625)),
    "yarn": (128, 131072, True, dict(rope_theta=1e6, **YARN)),
    "gpt-oss": (
        64, 131072, True,
        dict(rope_theta=1.5e5, rope_type="yarn", factor=32.0, original_max_position_embeddings=4096, beta_fast=32.0,
             beta_slow=1.0, truncate=False),
    ),
    "deepseek": (
        64, 163840, False,
        dict(rope_theta=1e4, rope_type="deepseek_yarn", factor=40.0, original_max_position_embeddings=4096, mscale=1.0,
             mscale_all_dim=1.0, beta_fast=32, beta_slow=1),
    ),
    "proportional": (
        256, 131072, True, dict(rope_theta=1e6, rope_type="proportional", partial_rotary_factor=0.25)
    ),
    "mrope": (128, 32768, True, dict(rope_theta=1e6, rope_type="default", **MROPE)),
    "mrope interleaved": (
        128, 32768, True,
        dict(rope_theta=5e6, rope_type="default", mrope_section=[24, 20, 20], mrope_interleaved=True),
    ),
    "mrope yarn": (128, 131072, True, dict(rope_theta=1e6, **YARN, **MROPE)),
}  # fmt: skip
LEFT_ALONE: dict[str, tuple[int, int, bool, dict[str, Any]]] = {
    "bailing": (128, 8192, True, dict(rope_theta=1e4, rope_type="bailing_mrope", **MROPE)),
    "openpangu": (
        128, 8192, True, dict(rope_theta=1e4, rope_type="openpangu", mrope_interleaved=True, **MROPE)
    ),
}  # fmt: skip
CONTRACT = 5e-7


def made(case: tuple[int, int, bool, dict[str, Any]], dtype: torch.dtype) -> Any:
    head_size, length, is_neox, parameters = case
    rotary_embedding._ROPE_DICT.clear()
    return rotary_embedding.get_rope(
        head_size, max_position=length, is_neox_style=is_neox, rope_parameters=dict(parameters), dtype=dtype
    )


@pytest.fixture(params=["all", "none"])
def vllm(request: pytest.FixtureRequest) -> Iterator[None]:
    """With its custom operators, and without them, as under Inductor. Ours are registered, and taken back after."""
    plug_in.register()
    config = VllmConfig(compilation_config=CompilationConfig(custom_ops=[request.param]))
    with set_current_vllm_config(config):
        yield


def inputs(case: tuple[int, int, bool, dict[str, Any]], layer: Any, dtype: torch.dtype) -> list[torch.Tensor]:
    head_size, _, _, parameters = case
    torch.manual_seed(0)
    last = layer.cos_sin_cache.shape[0] - 1
    shape = (3, 40) if "mrope_section" in parameters else (40,)
    positions = torch.randint(max(0, last - 4096), last + 1, shape)
    return [positions, *(torch.randn(40, heads * head_size).to(dtype) for heads in (8, 2))]


def turned(layer: Any, positions: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> list[torch.Tensor]:
    q, k = q.clone(), k.clone()
    if "Deepseek" in type(layer).__name__:
        q, k = (x.view(len(x), -1, layer.head_size) for x in (q, k))
    return [x.reshape(len(x), -1) for x in layer(positions, q, k)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_the_error_is_within_the_contract(vllm: None, name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    layer = made(case, dtype)
    assert type(layer).__name__.startswith("RopeKernels"), type(layer)
    cfg = layer.rope_kernels_configs[case[2]]
    assert cfg is not None, plug_in.report()
    positions, q, k = inputs(case, layer, dtype)
    with rk.use_backend("reference"):
        exact = rk.apply_rope(q.float(), k.float(), positions, cfg, layout="thd")
    for y, x, wanted in zip(turned(layer, positions, q, k), (q, k), exact, strict=True):
        limit = (
            (CONTRACT + (torch.finfo(dtype).eps if dtype != torch.float32 else 0))
            * x.abs().max()
            * (cfg.attention_scaling)
        )
        assert (y.float() - wanted).abs().max() <= limit
    assert any(r.config == cfg for r in plug_in.report())


@pytest.mark.parametrize("name", CASES)
def test_near_the_start_vllm_agrees(vllm: None, name: str) -> None:
    """Where its own table is accurate: so each config means what vLLM's layer does."""
    case = CASES[name]
    layer = made(case, torch.float32)
    positions, q, k = inputs(case, layer, torch.float32)
    positions = positions % 8
    for y, wanted in zip(turned(layer, positions, q, k), turned_natively(layer, positions, q, k), strict=True):
        torch.testing.assert_close(y, wanted, atol=2e-5, rtol=0)


def turned_natively(layer: Any, *given: torch.Tensor) -> list[torch.Tensor]:
    own = layer.forward_native
    positions, q, k = given
    q, k = q.clone(), k.clone()
    if "Deepseek" in type(layer).__name__:
        q, k = (x.view(len(x), -1, layer.head_size) for x in (q, k))
    return [x.reshape(len(x), -1) for x in own(positions, q, k)]


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_cannot_be_read_is_vllms_own(vllm: None, name: str) -> None:
    layer = made(LEFT_ALONE[name], torch.float32)
    assert not type(layer).__name__.startswith("RopeKernels")


def test_a_layer_with_another_table_is_left_alone(vllm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    own = rotary_embedding.RotaryEmbedding._compute_inv_freq
    monkeypatch.setattr(
        rotary_embedding.RotaryEmbedding, "_compute_inv_freq", lambda self, base: own(self, base) * 1.01
    )
    layer = made(CASES["default"], torch.float32)
    positions, q, k = inputs(CASES["default"], layer, torch.float32)
    wanted = turned_natively(layer, positions, q, k)
    for y, exact in zip(turned(layer, positions, q, k), wanted, strict=True):
        torch.testing.assert_close(y, exact, atol=1e-6, rtol=0)
    (found,) = [r for r in plug_in.report() if r.kind == "RotaryEmbedding" and r.config is None]
    assert "radians" in found.reason
    assert str(found).startswith("RotaryEmbedding: vLLM's own (")


@pytest.mark.parametrize("head_size", [88, 104, 208])
@pytest.mark.parametrize("rotary_dim", [30, 60])
def test_any_share_of_the_head(vllm: None, head_size: int, rotary_dim: int) -> None:
    """The product of the head and the share is rounded down: shares that come out below are corrected."""
    layer = rotary_embedding.RotaryEmbedding(head_size, rotary_dim, 64, 1e4, True, torch.float32)
    assert layer.rope_kernels_configs[True].rotary_dim == rotary_dim


def test_registering_twice_changes_nothing() -> None:
    plug_in.register()
    before = dict(custom_op.op_registry_oot), rotary_embedding.Phi3LongRoPEScaledRotaryEmbedding
    plug_in.register()
    assert (custom_op.op_registry_oot, rotary_embedding.Phi3LongRoPEScaledRotaryEmbedding) == before


@pytest.mark.parametrize(("value", "called"), [("1", True), ("0", False), ("", None), ("yes", None), (None, False)])
def test_the_entry_point_is_opt_in_and_never_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str | None, called: bool | None
) -> None:
    from rope_kernels.integrations.vllm import registration

    calls: list[int] = []

    def raises() -> None:
        calls.append(1)
        raise RuntimeError("no such vLLM")

    monkeypatch.setattr(registration, "register", raises)
    monkeypatch.delenv(plug_in.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(plug_in.VARIABLE, value)
    plug_in.register_if_enabled()
    assert bool(calls) == bool(called)
    assert bool(caplog.records) == (called is not False)
