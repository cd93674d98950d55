"""What pictures show: wavelengths, and errors of ours and of transformers, for any config."""

from __future__ import annotations

import math

import pytest

from rope_kernels import RopeConfig
from rope_kernels.measuring import catalog, curves, peers
from rope_kernels.measuring.accuracy import CONTRACT


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(curves, "_LAST_POSITION_LOG2", 6)


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("name", catalog.names())
def test_errors_of_every_shipped_config(name):
    pytest.importorskip("transformers")
    source, steps = catalog.shipped(name), []
    layers = RopeConfig.per_layer(source)
    found = curves.curves(layers, source, lambda: steps.append(1))
    assert len(steps) == len(layers) * curves.num_steps()
    for part, config in zip(found, layers.values(), strict=True):
        assert part.errors.positions[0] == 1
        assert part.errors.positions[-1] == 64
        assert part.errors.note is None
        assert len(part.errors.ours) == len(part.errors.transformers) == len(part.errors.positions)
        assert max(part.errors.ours) <= CONTRACT
        # Far more would be another rotation, not fp32 phases.
        assert max(part.errors.transformers) < 1e-4
        for waves in part.wavelengths.values():
            assert len(waves) + part.still == config.rotary_dim // 2
            assert waves[0] == pytest.approx(2 * math.pi / config.inv_freq()[0].item(), rel=0.1)


@pytest.mark.usefixtures("brief")
def test_without_transformers_there_is_a_note(monkeypatch):
    monkeypatch.setattr(peers, "version_of", lambda package: None)
    source = catalog.shipped("llama-2-7b")
    [part] = curves.curves(RopeConfig.per_layer(source), source)
    assert part.errors.transformers == []
    assert part.errors.note == "transformers is not installed"


@pytest.mark.usefixtures("brief")
def test_a_peer_that_cannot_be_called_is_a_note(monkeypatch):
    def refuses(q, k, positions):
        raise TypeError("unexpected argument")

    monkeypatch.setattr(curves, "transformers_rotation", lambda source, layer_type: refuses)
    source = catalog.shipped("llama-2-7b")
    [part] = curves.curves(RopeConfig.per_layer(source), source)
    assert part.errors.transformers == []
    assert part.errors.note == "its call failed: TypeError: unexpected argument"


def test_wavelengths_of_the_plain_ladder_and_of_both_states():
    source = catalog.shipped("phi-3.5-mini")
    config = RopeConfig.from_hf(source)
    plain = curves._unscaled(config)
    assert plain == pytest.approx([2 * math.pi * 1e4 ** (2 * j / 96) for j in range(48)])
    short, long = (curves.wavelengths(config.inv_freq(n).tolist()) for n in (4096, 4097))
    assert short == pytest.approx([w * s for w, s in zip(plain, config.short_factor, strict=True)])
    assert long == pytest.approx([w * s for w, s in zip(plain, config.long_factor, strict=True)])
    assert curves._unscaled(RopeConfig.from_inv_freq([1.0, 0.5])) == []
