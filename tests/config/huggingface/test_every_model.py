"""Every config class of transformers is read, or refused for a reason that stands here."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_model_types import BROKEN_DEFAULTS, NO_MAP, NO_ROPE_BY_DEFAULT
from tiny_models import default_configs

from rope_kernels.config import RopeConfig
from rope_kernels.config.huggingface.model_types import AXIAL_MAP, UNSUPPORTED
from rope_kernels.config.huggingface.no_rope import NO_ROPE
from rope_kernels.config.huggingface.sources import TEXT_CONFIGS
from rope_kernels.errors import RopeConfigError

# Config classes without rope_parameters whose attention rotates all the same.
ROTATES_WITHOUT = {"codegen", "cohere_compass_text", "dinov3_vit", "glm_image_vision", "gptj", "roformer", "sapiens2"}
SINES_BESIDE_BERT = {"grounding-dino", "mm-grounding-dino"}
OPTIONAL = {"esm", "falcon", "seamless_m4t", "seamless_m4t_v2", "wav2vec2-bert", "wav2vec2-conformer"}
REASONS = {
    "model_type": NO_ROPE | UNSUPPORTED.keys(),
    "axis_map": NO_MAP,
    "layer_types": NO_ROPE_BY_DEFAULT,
    "alibi": {"mpt"},
    "head_dim": BROKEN_DEFAULTS,
    "position_embedding_type": OPTIONAL | NO_ROPE_BY_DEFAULT | SINES_BESIDE_BERT,
    "position_embeddings_type": OPTIONAL,
    "use_mem_rope": NO_ROPE_BY_DEFAULT,
    "mrope_section": BROKEN_DEFAULTS,
    "rope_parameters": BROKEN_DEFAULTS,
    "partial_rotary_factor": BROKEN_DEFAULTS,
    # keys of the memory attention of three video models
    "memory_attention_rope_feat_sizes": NO_MAP,
}
"""The fields of errors, and the model types that they are right for."""


def every_class() -> Iterator[Any]:
    return default_configs(lambda config: bool(config.model_type))


def text_part(config: Any) -> Any:
    """What the reader reads of the config."""
    return next((part for name in TEXT_CONFIGS if (part := getattr(config, name, None)) is not None), config)


@pytest.mark.full
def test_every_class_is_read_or_refused_for_a_listed_reason() -> None:
    wrong, read, refused = [], 0, 0
    for config in every_class():
        part = text_part(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                layers = RopeConfig.per_layer(config)
            except RopeConfigError as error:
                refused += 1
                composite = error.field == "head_dim" and part is config
                if not composite and not {part.model_type, config.model_type} & set(REASONS.get(error.field, ())):
                    wrong.append((config.model_type, str(error)))
                continue
        read += 1
        known = getattr(part, "rope_parameters", None) or part.model_type in ROTATES_WITHOUT | AXIAL_MAP.keys()
        if not known:
            wrong.append((config.model_type, f"read as {layers}"))
    assert not wrong
    assert read > 250
    assert refused > 350


@pytest.mark.full
def test_models_without_rope_have_no_rotary_code_of_their_own() -> None:
    """Their files may hold such code for another part, or one that nothing calls."""
    rotary = re.compile(r"class \w*(Rotary|RoPE|Rope)\w*Embedding\w*\(.*?def __init__\(self, config: (\w+)", re.DOTALL)
    wrong = []
    for config in every_class():
        if config.model_type not in NO_ROPE:
            continue
        path = Path(inspect.getfile(type(config)))
        code = path.with_name(path.name.replace("configuration_", "modeling_"))
        takes = {match[1] for match in rotary.findall(code.read_text())} if code.exists() else set()
        if type(config).__name__ in takes:
            wrong.append(config.model_type)
    assert not wrong
