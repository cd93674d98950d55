"""Reads the metadata of a GGUF file as a dict, with llama.cpp's keys."""

from __future__ import annotations

from typing import Any

from ...errors import RopeConfigError
from .values import Values

__all__ = ["read_gguf"]

# From llama.cpp's llama_model_rope_type(), without the architectures whose layers differ. "none" does not rotate.
_PAIRINGS = {
    "interleaved": (
        "llama llada deci baichuan starcoder internlm2 minicpm xverse command-r olmo arctic deepseek plm chatglm glm4 "
        "granite granitemoe chameleon bailingmoe neo-bert arcee ernie4_5 ernie4_5-moe"
    ),
    "half": (
        "falcon grok dbrx jina-bert-v3 nomic-bert nomic-bert-moe stablelm bitnet qwen qwen2 dream qwen2moe qwen3 "
        "qwen3moe llada-moe olmo2 olmoe phi2 plamo gemma gemma2 starcoder2 openelm gptneox codeshell orion nemotron "
        "exaone bailingmoe2 dots1 gpt-oss lfm2 lfm2moe glm4moe seed_oss grovemoe"
    ),
    "none": "clip gpt2 mpt refact bloom mamba mamba2 jamba jina-bert-v2 t5 t5encoder jais rwkv6 rwkv7 arwkv7",
}
_PAIRING = {name: pairing for pairing, names in _PAIRINGS.items() for name in names.split()}
# Of the phi3 architecture, whose factors are tensors: metadata alone does not describe it.
_LONGROPE = {"rope_factors_short.weight": "short_factor", "rope_factors_long.weight": "long_factor"}
_DIVISORS = "rope_freqs.weight"
_SIZES = {
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "rope.dimension_count": "rotary_dim",
}
_FIELDS = {
    "rope.freq_base": "rope_theta",
    "rope.scaling.factor": "factor",
    "rope.scale_linear": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}


def read_gguf(values: Values, source: dict[str, Any]) -> None:
    """Move the keys of ``source`` that begin with its architecture into ``values``, or to HuggingFace's names.

    Raises:
        RopeConfigError: an architecture without a rotary embedding, or one whose pairing is not known.
    """
    key = "general.architecture"
    arch = str(source[key])
    has_factors = arch == "phi3" and _LONGROPE.keys() <= source.keys()
    pairing = "half" if has_factors else _PAIRING.get(arch)
    if pairing == "none":
        raise RopeConfigError(key, f"got {arch!r}, a model without a rotary embedding: nothing to rotate")
    if pairing is None:
        raise RopeConfigError(
            key, f"got {arch!r}, whose rotation the metadata does not describe; read the model's config.json instead"
        )
    values.put("pairing", pairing, f"{key} {arch}")
    for name, field in _SIZES.items():
        value = source.pop(f"{arch}.{name}", None)
        if value is not None:
            source[field] = value
    kind = source.pop(f"{arch}.rope.scaling.type", None)
    if has_factors:
        kind = "longrope"
        for tensor, field in _LONGROPE.items():
            values.put(field, source.pop(tensor), tensor)
    if kind not in (None, "none"):
        values.put("rope_type", kind, f"{arch}.rope.scaling.type")
    linear = source.get(f"{arch}.rope.scale_linear")
    if kind is None and linear not in (None, 1):
        values.put("rope_type", "linear", f"{arch}.rope.scale_linear")
    for name, field in _FIELDS.items():
        value = source.pop(f"{arch}.{name}", None)
        if field != "factor" or values.rope_type != "default":
            values.put(field, value, f"{arch}.{name}")
    attn_factor = f"{arch}.rope.scaling.attn_factor"
    if kind == "longrope":  # llama.cpp multiplies by this alone
        values.put("attention_factor", source.pop(attn_factor, None), attn_factor)
    values.multiply(source.pop(attn_factor, None), attn_factor)
    finetuned = f"{arch}.rope.scaling.finetuned"
    values.note(finetuned, source.pop(finetuned, None), "it says how the model was trained")
    if _DIVISORS in source:
        _divide(values, source, source.pop(_DIVISORS))
    elif arch == "llama":
        values.remark(_DIVISORS, "a tensor of the file, if there is one, divides these frequencies further")


def _divide(values: Values, source: dict[str, Any], divisors: list[float]) -> None:
    """Divide the frequencies by a tensor of the file: llama3's, as llama.cpp's converter wrote them.

    Raises:
        RopeConfigError: a rope type besides, which llama.cpp would apply to the divided frequencies.
    """
    if values.rope_type != "default":
        raise RopeConfigError(_DIVISORS, f"given beside rope_type {values.rope_type!r}; read the model's config.json")
    theta, pairs = float(values.fields.pop("rope_theta", 10000.0)), len(divisors)
    values.origins.pop("rope_theta", None)
    table = [theta ** (-j / pairs) / divisor for j, divisor in enumerate(divisors)]
    origin = f"{_DIVISORS}, which divides the frequencies of theta {theta:g}"
    values.put("rope_type", "inv_freq", origin)
    values.put("inv_freq_table", table, origin)
