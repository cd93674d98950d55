"""Models without a rotary embedding say so; the list is that of transformers' code."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import default_configs, has_rope_parameters
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from rope_kernels.config import RopeConfig
from rope_kernels.config.huggingface.no_rope import NO_ROPE
from rope_kernels.errors import RopeConfigError

SIZES = {"hidden_size": 64, "num_attention_heads": 4}


@given(st.sampled_from(sorted(NO_ROPE)), st.booleans(), st.dictionaries(st.just("rope_theta"), st.floats(10, 1e6)))
def test_a_model_without_rope_is_an_error(model_type: str, strict: bool, more: dict[str, Any]) -> None:
    for read in (RopeConfig.from_hf, RopeConfig.per_layer):
        with pytest.raises(
            RopeConfigError, match=f"^model_type: got '{model_type}', a model without a rotary"
        ) as caught:
            read({"model_type": model_type, **SIZES, **more}, strict=strict)
        assert caught.value.field == "model_type"


def test_no_model_with_rope_parameters_is_in_the_list() -> None:
    assert not {config.model_type for config in default_configs(has_rope_parameters)} & NO_ROPE
    assert {"bert", "gpt2", "bloom", "opt", "t5", "mamba2", "jamba", "whisper", "vit"} <= NO_ROPE
    assert len(NO_ROPE & set(CONFIG_MAPPING_NAMES)) > 200


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"model_type": "falcon", "alibi": True}, "alibi"),
        ({"use_alibi": True}, "use_alibi"),
        ({"use_rope": False}, "use_rope"),
        ({"use_rotary_embedding": False}, "use_rotary_embedding"),
        ({"position_embedding_type": "learned_absolute"}, "position_embedding_type"),
        ({"position_embedding_type": "nope", "rope_theta": 1e4}, "position_embedding_type"),
        ({"position_embeddings_type": "relative_key"}, "position_embeddings_type"),
        ({"model_type": "esm"}, "position_embedding_type"),
        ({"model_type": "granitemoehybrid"}, "position_embedding_type"),
        ({"model_type": "wav2vec2-conformer"}, "position_embeddings_type"),
        ({"model_type": "zamba2"}, "use_mem_rope"),
        ({"model_type": "mpt", "attn_config": {"rope": False}}, "attn_config.rope"),
    ],
)
def test_a_config_that_switches_rope_off_is_an_error(values: dict[str, Any], field: str) -> None:
    with pytest.raises(RopeConfigError, match="nothing to rotate") as caught:
        RopeConfig.from_hf({**SIZES, **values})
    assert caught.value.field == field


@pytest.mark.parametrize("kind", ["rope", "rotary", "rope_gptj", "ROPE", "mrope"])
def test_a_config_that_switches_rope_on_is_read(kind: str) -> None:
    assert RopeConfig.from_hf({**SIZES, "position_embedding_type": kind}) == RopeConfig.from_hf(SIZES)
    assert RopeConfig.from_hf({**SIZES, "alibi": False, "use_rope": True}) == RopeConfig.from_hf(SIZES)
