"""Models with our operators, exported to ONNX and run in onnxruntime, agree with eager calls."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import transformers
from torch import Tensor
from torch.export import Dim

import rope_kernels as rk
from rope_kernels.integrations.onnx import translations
from rope_kernels.integrations.transformers import patch_model

AGREED = 1e-5
SHORT, LONG = tuple(1.0 + i / 40 for i in range(32)), tuple(2.0 + i for i in range(32))
CONFIGS: dict[str, dict[str, Any]] = {
    "default": dict(head_dim=64),
    "interleaved": dict(head_dim=64, pairing="interleaved", rope_theta=5e5),
    "partial": dict(head_dim=64, partial_rotary_factor=0.25),
    "partial interleaved": dict(head_dim=96, partial_rotary_factor=0.25, pairing="interleaved"),
    "linear": dict(head_dim=64, rope_type="linear", factor=4.0),
    "llama3": dict(
        head_dim=64, rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    "yarn": dict(head_dim=64, rope_type="yarn", factor=4.0, original_max_position_embeddings=32768, rope_theta=1e6),
    "proportional": dict(head_dim=128, rope_type="proportional", rope_theta=1e6, partial_rotary_factor=0.25),
    "longrope": dict(
        head_dim=64, rope_type="longrope", original_max_position_embeddings=4096, max_position_embeddings=131072,
        short_factor=SHORT, long_factor=LONG,
    ),
    "dynamic": dict(head_dim=64, rope_type="dynamic", factor=2.0, max_position_embeddings=4096),
    "mrope": dict(head_dim=64, rope_type="mrope", mrope_section=[8, 12, 12], rope_theta=1e6),
    "float32 phases, bf16 table": dict(head_dim=64, phase="float32", table_dtype="bfloat16"),
}  # fmt: skip


class Rotating(torch.nn.Module):
    def __init__(self, cfg: rk.RopeConfig, layout: str = "bshd", **options: Any) -> None:
        super().__init__()
        self.cfg, self.layout, self.options = cfg, layout, options

    def forward(self, q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return rk.apply_rope(q, k, positions, self.cfg, layout=self.layout, **self.options)


def exported(model: torch.nn.Module, given: tuple[Any, ...], folder: Path, **options: Any) -> Any:
    program = torch.onnx.export(
        model, given, dynamo=True, verbose=False, opset_version=23, custom_translation_table=translations(), **options
    )
    assert program is not None
    program.save(folder / "model.onnx")
    return program


def run(folder: Path, *given: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    return [torch.from_numpy(y) for y in session.run(None, dict(zip(names, (x.numpy() for x in given), strict=True)))]


def tensors(cfg: rk.RopeConfig, tokens: int = 6, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    q, k = (torch.randn(batch, tokens, heads, cfg.head_dim, generator=generator) for heads in (4, 2))
    return q, k


@pytest.mark.parametrize("start", [0, 131000])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_config(tmp_path: Path, name: str, start: int) -> None:
    cfg = rk.RopeConfig(**CONFIGS[name])
    q, k = tensors(cfg)
    positions = torch.arange(start, start + 6)
    if cfg.num_axes > 1:
        positions = torch.stack((positions, positions + 3, positions * 2))[:, None]
    model = Rotating(cfg)
    program = exported(model, (q, k, positions), tmp_path)
    assert Counter(node.op_type for node in program.model.graph)["RotaryEmbedding"] == 2
    for y, wanted in zip(run(tmp_path, q, k, positions), model(q, k, positions), strict=True):
        torch.testing.assert_close(y, wanted, atol=4 * AGREED if cfg.table_dtype else AGREED, rtol=0)


@pytest.mark.parametrize("layout", ["bshd", "bhsd", "sbhd"])
def test_dynamic_batch_and_length(tmp_path: Path, layout: str) -> None:
    cfg = rk.RopeConfig(**CONFIGS["llama3"])
    swapped = {"bshd": (0, 0), "bhsd": (1, 2), "sbhd": (0, 1)}[layout]
    batch, tokens = Dim("batch", min=1, max=64), Dim("tokens", min=2, max=4096)
    axes = {"bshd": {0: batch, 1: tokens}, "bhsd": {0: batch, 2: tokens}, "sbhd": {1: batch, 0: tokens}}[layout]
    model = Rotating(cfg, layout)
    given = [x.transpose(*swapped).contiguous() for x in tensors(cfg)]
    positions = torch.arange(6).expand(2, 6) + torch.tensor([[0], [9000]])
    exported(
        model, (*given, positions), tmp_path, dynamic_shapes={"q": axes, "k": axes, "positions": {0: batch, 1: tokens}}
    )
    for size, length in ((1, 2), (3, 11)):
        given = [x.transpose(*swapped).contiguous() for x in tensors(cfg, length, size)]
        positions = torch.randint(0, 100000, (size, length))
        for y, wanted in zip(run(tmp_path, *given, positions), model(*given, positions), strict=True):
            torch.testing.assert_close(y, wanted, atol=AGREED, rtol=0)


@pytest.mark.parametrize("offset", [None, 7])
def test_counted_positions(tmp_path: Path, offset: int | None) -> None:
    cfg = rk.RopeConfig(**CONFIGS["dynamic"])
    q, k = tensors(cfg)
    model = Rotating(cfg, offset=offset)
    exported(model, (q, k), tmp_path)
    for y, wanted in zip(run(tmp_path, q, k), model(q, k), strict=True):
        torch.testing.assert_close(y, wanted, atol=AGREED, rtol=0)


@pytest.mark.parametrize("form", ["in place", "out", "out of q alone"])
@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_calls_that_write(tmp_path: Path, form: str, layout: str) -> None:
    """To intermediate tensors of a graph, and to views of one, as attention layers do."""
    cfg = rk.RopeConfig(**CONFIGS["llama3"])

    class Writing(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
            q, k = torch.cat((q, q), -1)[..., : cfg.head_dim], k * 1.0
            if form == "in place":
                rk.apply_rope_(q, k, positions, cfg, layout=layout)
            elif form == "out":
                out = torch.empty_like(q), torch.empty_like(k)
                q, k = rk.apply_rope(q, k, positions, cfg, layout=layout, out=out)
            else:
                rk.apply_rope(q, None, positions, cfg, layout=layout, out=(q, None))
            return q + 1.0, k

    q, k = (x.transpose(1, 2).contiguous() if layout == "bhsd" else x for x in tensors(cfg))
    positions = torch.arange(70000, 70006)
    wanted = Writing()(q, k, positions)
    exported(Writing(), (q, k, positions), tmp_path)
    for y, want in zip(run(tmp_path, q, k, positions), wanted, strict=True):
        torch.testing.assert_close(y, want, atol=AGREED, rtol=0)


def test_packed_tokens_without_bounds_and_without_k(tmp_path: Path) -> None:
    class OnlyQ(torch.nn.Module):
        def forward(self, q: Tensor, positions: Tensor) -> Tensor:
            return rk.apply_rope(q, None, positions, rk_config, layout="thd", inverse=True)[0]

    rk_config = rk.RopeConfig(**CONFIGS["yarn"])
    q, positions = torch.randn(6, 4, 64), torch.arange(40, 46)
    exported(OnlyQ(), (q, positions), tmp_path)
    torch.testing.assert_close(run(tmp_path, q, positions)[0], OnlyQ()(q, positions), atol=AGREED, rtol=0)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [32, 64])
def test_a_callers_table(tmp_path: Path, interleaved: bool, width: int) -> None:
    class ByTable(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor | None]:
            return rk.apply_rotary_pos_emb(q, k, cos, sin, interleaved=interleaved, table_width="full")

    q, k = torch.randn(2, 4, 6, 64), torch.randn(2, 2, 6, 64)
    cos, sin = torch.randn(1, 6, width), torch.randn(1, 6, width)  # the members of a pair differ
    exported(ByTable(), (q, k, cos, sin), tmp_path)
    for y, wanted in zip(run(tmp_path, q, k, cos, sin), ByTable()(q, k, cos, sin), strict=True):
        torch.testing.assert_close(y, wanted, atol=AGREED, rtol=0)


def test_a_patched_llama(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 128, (2, 9))

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor) -> Tensor:
            return self.model(ids, use_cache=False).logits

    with torch.no_grad():
        wanted = Logits()(ids)
        assert patch_model(model).patched
        program = exported(Logits(), (ids,), tmp_path)
    assert Counter(node.op_type for node in program.model.graph)["RotaryEmbedding"] == 4
    torch.testing.assert_close(run(tmp_path, ids)[0], wanted, atol=AGREED, rtol=0)


@pytest.mark.parametrize(
    ("config", "options", "field"),
    [
        (dict(head_dim=64), dict(layout="thd", cu_seqlens=torch.tensor([0, 2, 6])), "cu_seqlens"),
        (dict(head_dim=64, pairing="interleaved_to_half"), {}, "pairing"),
        (dict(head_dim=192, partial_rotary_factor=64 / 192, rotary_offset=128), {}, "rotary_offset"),
        (dict(head_dim=72, rope_type="axial", axis_map="gemma4_vision", rope_theta=100.0), {}, "axis_map"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_form_is_an_error_that_names_it(
    tmp_path: Path, config: dict[str, Any], options: dict[str, Any], field: str
) -> None:
    cfg = rk.RopeConfig(**config)
    q, k = tensors(cfg, batch=1)
    if options:
        q, k = q[0], k[0]
    positions = torch.zeros(2, 1, 6, dtype=torch.int64) if cfg.num_axes > 1 else None
    layout = options.pop("layout", "bshd")
    with pytest.raises(Exception, match=field) as raised:
        exported(Rotating(cfg, layout, **options), (q, k, *(() if positions is None else (positions,))), tmp_path)
    assert "cannot be exported" in str(raised.value) or "cannot be exported" in repr(raised.value.__cause__)


def test_a_fused_norm_is_an_error_that_names_it(tmp_path: Path) -> None:
    class Normed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(64))

        def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor | None]:
            norm = rk.HeadNorm(self.weight, 1e-6)
            return rk.apply_rope(q, k, None, rk_config, q_norm=norm, k_norm=norm)

    rk_config = rk.RopeConfig(head_dim=64)
    with pytest.raises(Exception, match="Error when") as raised:
        exported(Normed(), tensors(rk_config), tmp_path)
    causes, error = [], raised.value
    while error is not None:
        causes.append(error)
        error = error.__cause__
    assert isinstance(causes[-1], rk.RopeConfigError)
    assert str(causes[-1]).startswith("q_norm: norms cannot be exported")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_without_the_packages_the_error_says_how_to_install_them(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=f"{missing}.*pip install onnx onnxscript"):
        translations()
