"""The demo's cases, its independent evaluation, and its comparison with transformers."""

from __future__ import annotations

import mpmath
import pytest
import torch
from rich.console import Console

from rope_kernels import RopeConfig
from rope_kernels.cli import demo
from rope_kernels.cli import demo_report as report
from rope_kernels.cli.serving import serving_rows
from rope_kernels.measuring import catalog, exact, models, peers
from rope_kernels.measuring.accuracy import CONTRACT

CPU = torch.device("cpu")


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(demo, "PREFILL_TOKENS", 6)
    monkeypatch.setattr(demo, "DECODE_BATCH", 2)
    monkeypatch.setattr(demo, "ROUNDS", 1)


def test_every_shipped_config_is_a_case():
    cases = {case.label: case for case in models.shipped_layers()}
    assert {case.model for case in cases.values()} == set(catalog.names())
    latent = cases["deepseek-v3"]
    assert (latent.q_heads, latent.kv_heads, latent.config.head_dim) == (128, 1, 64)
    wide = cases["gemma-4-text full"]
    assert (wide.q_heads, wide.kv_heads, wide.config.head_dim) == (8, 4, 512)
    assert cases["internlm2-chat-7b"].context == 65536
    assert cases["qwen2-vl-7b-text"].positions(5, 1, CPU).shape == (3, 1, 5)


def test_positions_end_at_the_context():
    case = models.shipped_layers(["llama-2-7b"])[0]
    assert case.positions(3, 1, CPU).tolist() == [[4093, 4094, 4095]]
    assert case.positions(1, 2, CPU).tolist() == [[4095], [4094]]


@pytest.mark.usefixtures("brief")
def test_errors_at_the_end_of_every_context():
    pytest.importorskip("transformers")
    steps = []
    rows = demo.measure(models.shipped_layers(), CPU, "reference", lambda: steps.append(1))
    assert len(steps) == len(rows) * (1 + demo.ROUNDS)
    for row in rows:
        assert row.max_error <= CONTRACT, row
        # Far more would be another rotation, not fp32 phases.
        assert row.transformers_max_error is not None, row
        assert row.max_error < row.transformers_max_error < 0.05, row
        for times in (row.prefill, row.decode):
            assert times.ours_us > 0
            assert times.transformers_us is not None, row
            assert times.faster is not None, row
            assert times.faster == pytest.approx(times.transformers_us / times.ours_us)  # of one round


@pytest.mark.usefixtures("brief")
def test_without_transformers_the_row_says_so(monkeypatch):
    monkeypatch.setattr(peers, "version_of", lambda package: None)
    [row] = demo.measure(models.shipped_layers(["gpt-neox-20b"]), CPU, "reference")
    assert row.transformers_max_error is None
    assert row.transformers_note == "transformers is not installed"
    assert row.decode.ours_us > 0
    assert row.decode.transformers_us is row.decode.faster is None
    legend = report._legend([row], {"cuda_device": None, "processor": "x", "threads": 1, "torch": "2"})
    assert "transformers, all: transformers is not installed." in legend


def test_a_model_that_transformers_does_not_know():
    pytest.importorskip("transformers")
    with pytest.raises(peers.PeerError, match="cannot build it"):
        peers.transformers_rotation({"model_type": "abacus"}, "full_attention")


@pytest.mark.parametrize("position", [0, 1, -7, 131071, 2**24, 2**31 - 1])
def test_exact_angles_are_exact(position):
    inv_freq = RopeConfig(head_dim=32, rope_theta=5e5).inv_freq().tolist()
    with mpmath.workdps(60):
        want = [float(mpmath.fmod(position * mpmath.mpf(f), 2 * mpmath.pi)) for f in inv_freq]
    got = exact.angles(inv_freq, [position])[0]
    assert torch.allclose(got.cos(), torch.tensor(want, dtype=torch.float64).cos(), rtol=0, atol=4e-16)
    assert torch.allclose(got.sin(), torch.tensor(want, dtype=torch.float64).sin(), rtol=0, atol=4e-16)


def test_exact_rotation_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    cfg = RopeConfig.from_inv_freq([1.0, 0.0])
    c, s = torch.tensor(2.0, dtype=torch.float64).cos().item(), torch.tensor(2.0, dtype=torch.float64).sin().item()
    for pairing, want in {
        "half": [c - 3 * s, 2, 3 * c + s, 4],
        "interleaved": [c - 2 * s, 2 * c + s, 3, 4],
        "interleaved_to_half": [c - 2 * s, 3, 2 * c + s, 4],
    }.items():
        got = exact.rotate(x, torch.tensor([[2]]), cfg.replace(pairing=pairing)).flatten().tolist()
        assert got == pytest.approx(want, abs=1e-15)


@pytest.mark.parametrize("width", [60, 80, report.WIDTH])
@pytest.mark.parametrize("peer", [True, False])
def test_numbers_are_whole_at_every_width(width, peer):
    times = demo.Times(12345.6, 123456.7 if peer else None, 1234.5 if peer else None)
    row = demo.DemoRow(
        "m", "full_attention", "gemma-3-27b-text sliding", "proportional", "half", "reference",
        32, 32, 128, 128, 163840, 1e-7, 3e-3 if peer else None, None if peer else "no", times, times,
    )  # fmt: skip
    machine = {"cuda_device": None, "processor": "x", "threads": 1, "torch": "2"}
    console = Console(width=width)
    with console.capture() as capture:
        console.print(report.demo_report([row], machine, width))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in capture.get()
    [shown] = [line for line in lines if "gemma-3-27b-text sliding" in line]
    assert ("1.0e-07" in shown, "1234.5x" in shown, "12,346" in shown) == (True, peer, width == report.WIDTH)


def test_the_short_demo_has_a_rope_type_per_row():
    layers = models.shipped_layers(demo.SHORT)
    assert len(layers) == len(demo.SHORT)
    assert {"llama3", "longrope", "yarn", "mrope"} <= {case.config.rope_type for case in layers}


def test_lengths_in_a_batch_and_keys_that_move():
    rows = serving_rows(models.shipped_layers(["internlm2-chat-7b", "phi-3.5-mini", "llama-3.1-8b", "llama-2-7b"]), CPU)
    calls = [(row.label, row.call.split()[0]) for row in rows]
    assert calls == [
        ("internlm2-chat-7b", "lengths"),
        ("internlm2-chat-7b", "rerotate_"),
        ("phi-3.5-mini", "lengths"),
        ("phi-3.5-mini", "rerotate_"),
        ("llama-3.1-8b", "shift_"),
    ]
    for row in rows:
        assert row.max_error <= row.contract < 1e-5 < row.otherwise_error, row
    console = Console(width=120, record=True)
    console.print(report.serving_report(rows))
    assert "keys unchanged" in console.export_text()
