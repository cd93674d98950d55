"""Configs as publishers ship them, trimmed: read right, or refused by an error that names the key and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import comparisons

from rope_kernels.config import RopeConfig
from rope_kernels.errors import RopeConfigError

PUBLISHED: list[dict[str, Any]] = json.loads(Path(__file__).with_name("published.json").read_text())


def named(entry: dict[str, Any]) -> str:
    return str(entry["name"])


@pytest.mark.parametrize("entry", [e for e in PUBLISHED if isinstance(e["right"], dict)], ids=named)
def test_read_as_their_own_code_does(entry: dict[str, Any]) -> None:
    right, config = entry["right"], RopeConfig.from_hf(entry["config"], entry["layer_type"])
    got = config.inv_freq().tolist()
    first, last = right["inv_freq_first"], right["inv_freq_last"]
    assert len(got) == right["num_frequencies"]
    assert got[: len(first)] == pytest.approx(first, rel=1e-6)
    assert got[-len(last) :] == pytest.approx(last, rel=1e-6)
    assert config.attention_scaling == pytest.approx(right["attention_scaling"], rel=1e-6)
    assert config.pairing == right["pairing"]
    assert entry["layer_type"] or config in RopeConfig.per_layer(entry["config"]).values()


@pytest.mark.parametrize("entry", [e for e in PUBLISHED if e["right"] == "transformers"], ids=named)
def test_read_as_transformers_does(entry: dict[str, Any]) -> None:
    values = {key: value for key, value in entry["config"].items() if key != "model_type"}
    theirs = comparisons.hf_config(entry["config"]["model_type"], **values)
    config = RopeConfig.from_hf(entry["config"], entry["layer_type"])
    module = next(cls for cls in comparisons.rotary_classes(theirs) if "Vision" not in cls.__name__)(theirs)
    name = f"{entry['layer_type']}_inv_freq"
    comparisons.assert_like_transformers(config, getattr(module, name, None) or module.inv_freq)
    assert config.attention_scaling == pytest.approx(getattr(module, "attention_scaling", 1.0), rel=1e-12)


@pytest.mark.parametrize("entry", [e for e in PUBLISHED if isinstance(e["right"], list)], ids=named)
def test_refused_by_key_and_remedy(entry: dict[str, Any]) -> None:
    with pytest.raises(RopeConfigError) as caught:
        RopeConfig.per_layer(entry["config"])
    assert caught.value.field == entry["right"][0]
    assert all(part in str(caught.value) for part in entry["right"]), str(caught.value)
