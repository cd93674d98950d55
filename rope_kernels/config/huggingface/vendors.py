"""Reads the config keys of other code than transformers into the fields they mean.

Each function reads one vendor's keys, and removes them so that the rest of the reader does not see them. Sources:

- ``dim`` with ``n_heads``, ``use_scaled_rope``: params.json of Meta's llama-models, whose ``apply_scaling`` has the
  constants 8, 1, 4 and 8192, and whose pairs are interleaved. ``yarn``: params.json of Mistral.
- ``dim`` with ``qk_rope_head_dim``: inference/model.py of DeepSeek-V3, whose ModelArgs has the defaults.
- ``initial_context_length``, ``rope_ntk_alpha``: gpt-oss's own torch code.
- ``rope_base``, ``scale_factor``: torchtune's Llama builders.
- ``rotary_base``, ``rotary_percent``, ``use_rope_scaling``: Megatron-LM's arguments and its RotaryEmbedding.
- ``rope_ratio``: modeling_chatglm.py, which multiplies theta by it; ChatGLM2-6B-32k divided positions instead.
- ``rope_embedding_base``, ``rope_position_scale``: Phi-3-small's positional_embedding.py, which multiplies positions.
- ``attn_config``: MPT (llm-foundry's attn_config_defaults) and DBRX. ``rotary``: InternLM 1.
- ``rope_condense_ratio``: LongChat's patch of LLaMA, which divides positions.
- ``use_dynamic_ntk``: Qwen 1's modeling_qwen.py. ``base_seqlen``, ``training_seqlen``: TeleChat's.
- ``rope_freq_constant``: OpenELM. ``rope_traditional``: MLX.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...errors import RopeConfigError
from ..validation import raise_or_warn
from .gguf import read_gguf
from .values import Values, plain

__all__ = ["read_vendor"]

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# Keys with one meaning wherever they stand.
_FIELDS = {
    "rope_embedding_base": "rope_theta",
    "rotary_base": "rope_theta",
    "rotary_embedding_base": "rope_theta",
    "rope_base": "rope_theta",
    "rope_freq_base": "rope_theta",
    "rope_freq_constant": "rope_theta",
    "rotary_percent": "partial_rotary_factor",
    "rope_percent": "partial_rotary_factor",
    "rope_pct": "partial_rotary_factor",
    "rotary_emb_fraction": "partial_rotary_factor",
}
_DEEPSEEK: dict[str, float] = {
    "max_seq_len": 16384, "original_seq_len": 4096, "rope_theta": 10000.0, "rope_factor": 40.0, "beta_fast": 32,
    "beta_slow": 1,
}  # fmt: skip
_DEEPSEEK_YARN = {
    "original_seq_len": "original_max_position_embeddings",
    "rope_factor": "factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
}
_INTERLEAVED = ("rotary_interleaved", "rotary_emb_interleaved", "rope_traditional")
_DIVISORS = ("rope_condense_ratio", "rotary_seq_len_interpolation_factor")
_NO_LIMIT = 2**40  # tokenizers write 1e30 for no limit
_LENGTHS = ("max_seq_len", "max_sequence_length", "seq_length", "rope_max_length", "model_max_length")


def read_vendor(values: Values, source: dict[str, Any]) -> None:
    """Move the vendor keys of ``source`` into ``values``; sizes are renamed to HuggingFace's keys.

    Raises:
        RopeConfigError: a key whose meaning cannot be reproduced.
    """
    if "general.architecture" in source:
        read_gguf(values, source)
    for read in (_deepseek, _meta, _gpt_oss, _torchtune, _megatron, _mosaic, _chatglm, _qwen, _internlm, _telechat):
        read(values, source)
    for key, field in _FIELDS.items():
        values.put(field, source.pop(key, None), key)
    for key in _INTERLEAVED:
        interleaved = source.pop(key, None)
        if interleaved is not None:
            values.put("pairing", "interleaved" if interleaved else "half", key)
    for key in _DIVISORS:
        _divide(values, _take(source, key), key)
    if source.get("rotary_scaling_factor") == 1:  # StableLM's and nomic's for no scaling
        del source["rotary_scaling_factor"]
    table = source.get("rope_scaling")
    if source.get("rope_3d") and isinstance(table, Mapping) and table.get("mrope_section"):
        del source["rope_3d"]  # ERNIE 4.5 VL says with it what the sections say
    scale = _take(source, "rope_position_scale")
    if scale not in (None, 1):
        _divide(values, 1 / scale, f"1 / rope_position_scale {scale!r}")
    lengths = [(key, source.get(key)) for key in _LENGTHS]
    source.pop("rope_max_length", None)
    if source.get("max_position_embeddings") is None:
        for key, length in lengths:
            if isinstance(length, (int, float)) and 0 < length < _NO_LIMIT:
                values.put("max_position_embeddings", length, key)
                break


def _take(source: dict[str, Any], key: str, default: float | None = None) -> Any:
    """Remove a number over 0 from ``source``.

    Raises:
        RopeConfigError: the value is no number over 0.
    """
    value = source.pop(key, None)
    value = default if value is None else plain("factor", value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
        raise RopeConfigError(key, f"got {value!r} ({type(value).__name__}), must be a number over 0")
    return value


def _divide(values: Values, factor: Any, origin: str) -> None:
    if factor not in (None, 1):
        values.put("rope_type", "linear", origin)
        values.put("factor", factor, origin)


def _llama3(values: Values, factor: Any, high: Any, origin: str) -> None:
    values.put("rope_type", "llama3", origin)
    values.put("factor", factor, origin)
    for field, value in _LLAMA3.items():
        values.put(field, high if field == "high_freq_factor" and high is not None else value, origin)


def _deepseek(values: Values, source: dict[str, Any]) -> None:
    if source.get("model_type") or not {"dim", "n_heads", "qk_rope_head_dim"} <= source.keys():
        return
    values.put("pairing", "interleaved", "DeepSeek's own code")
    source["head_dim"] = source.pop("qk_rope_head_dim")
    source["hidden_size"], source["num_attention_heads"] = source.pop("dim"), source.pop("n_heads")
    given = {key: _take(source, key, default) for key, default in _DEEPSEEK.items()}
    values.put("max_position_embeddings", given["max_seq_len"], "max_seq_len")
    values.put("rope_theta", given["rope_theta"], "rope_theta, or DeepSeek's own default")
    values.note("mscale", source.pop("mscale", None), "it scales the softmax, not cos and sin")
    if given["max_seq_len"] > given["original_seq_len"]:
        values.put("rope_type", "yarn", "max_seq_len over original_seq_len")
        for key, field in _DEEPSEEK_YARN.items():
            values.put(field, given[key], f"{key}, or DeepSeek's own default")
        values.put("attention_factor", 1.0, "DeepSeek's own code")


def _meta(values: Values, source: dict[str, Any]) -> None:
    if source.get("model_type") or "dim" not in source or "n_heads" not in source:
        return
    source["hidden_size"] = source.pop("dim")
    values.put("pairing", "interleaved", "params.json")
    factor, high = _take(source, "rope_scaling_factor"), _take(source, "rope_high_freq_factor")
    if source.pop("use_scaled_rope", False):
        origin = "use_scaled_rope" if factor is None else "rope_scaling_factor"
        _llama3(values, 8.0 if factor is None else factor, high, origin)
        if factor is None:
            values.remark(
                "use_scaled_rope", "Llama 3.1's factor 8; Llama 3.2's small models have 32, as rope_scaling_factor"
            )
    yarn = source.pop("yarn", None)
    if yarn is not None and not isinstance(yarn, Mapping):
        raise RopeConfigError("yarn", f"got {yarn!r}, must be a dict")
    if yarn:
        _mistral_yarn(values, dict(yarn))


def _mistral_yarn(values: Values, yarn: dict[str, Any]) -> None:
    values.put("rope_type", "yarn", "yarn")
    if yarn.pop("apply_scale", True) is False:
        values.put("attention_factor", 1.0, "yarn.apply_scale")
    names = {"beta": "beta_fast", "alpha": "beta_slow"}
    for key, value in yarn.items():
        field = names.get(key, key)
        if field not in ("beta_fast", "beta_slow", "factor", "original_max_position_embeddings"):
            raise_or_warn(f"yarn.{key}", f"got {value!r}, no known key of Mistral's yarn", values.strict)
            continue
        values.put(field, value, f"yarn.{key}")


def _gpt_oss(values: Values, source: dict[str, Any]) -> None:
    original = source.get("initial_context_length")
    if original is None or source.get("rope_scaling") or source.get("rope_parameters"):
        return
    slow, fast = _take(source, "rope_ntk_alpha", 1.0), _take(source, "rope_ntk_beta", 32.0)
    factor = _take(source, "rope_scaling_factor", 1.0)
    if factor <= 1:
        return
    values.put("rope_type", "yarn", "rope_scaling_factor")
    values.put("factor", factor, "rope_scaling_factor")
    values.put("original_max_position_embeddings", original, "initial_context_length")
    values.put("beta_slow", slow, "rope_ntk_alpha")
    values.put("beta_fast", fast, "rope_ntk_beta")
    values.put("truncate", False, "gpt-oss's own code")


def _torchtune(values: Values, source: dict[str, Any]) -> None:
    if source.get("model_type") or not {"embed_dim", "num_heads"} <= source.keys():
        return
    if "rope_base" not in source and "scale_factor" not in source:
        return
    values.put("pairing", "interleaved", "torchtune's Llama builders")
    factor = _take(source, "scale_factor")
    if factor is not None:
        _llama3(values, factor, None, "scale_factor")


def _megatron(values: Values, source: dict[str, Any]) -> None:
    if not {"use_rope_scaling", "rotary_base", "rotary_percent"} & source.keys():
        return
    scaled, factor = source.pop("use_rope_scaling", False), _take(source, "rope_scaling_factor", 8.0)
    if scaled:
        _llama3(values, factor, None, "rope_scaling_factor")
    else:
        values.note("rope_scaling_factor", factor, "use_rope_scaling is not set")
    if source.get("position_embedding_type") == "mrope":
        values.put("mrope_section", source.pop("mrope_section", None), "mrope_section")


def _mosaic(values: Values, source: dict[str, Any]) -> None:
    model, attention = source.get("model_type"), source.get("attn_config")
    if model not in ("mpt", "dbrx") or not isinstance(attention, Mapping):
        return
    attention = dict(attention)
    source["attn_config"] = attention
    for key in ("alibi", "alibi_bias_max"):
        value = attention.pop(key, None)
        if key == "alibi" and value:
            source["alibi"] = value
    theta = attention.pop("rope_theta", None)
    dail, hf, kind = (attention.pop(f"rope_{name}", None) or {} for name in ("dail_config", "hf_config", "impl"))
    for name, table in (("dail", dail), ("hf", hf)):
        if not isinstance(table, Mapping):
            raise RopeConfigError(f"attn_config.rope_{name}_config", f"got {table!r}, must be a dict")
    if model == "mpt" and not attention.pop("rope", False):
        return
    values.put("rope_theta", theta if theta is not None else 10000.0, "attn_config.rope_theta")
    source.setdefault("rope_theta", values.fields["rope_theta"])
    if kind == "hf":
        name = hf.get("type", "no_scaling")
        values.put("rope_type", "default" if name == "no_scaling" else name, "attn_config.rope_hf_config.type")
        if name != "no_scaling":
            values.put("factor", hf.get("factor"), "attn_config.rope_hf_config.factor")
    elif dail.get("type", "original") != "original":
        raise RopeConfigError(
            "attn_config.rope_dail_config.type", f"got {dail['type']!r}, which also scales q and k: no rotation"
        )


def _chatglm(values: Values, source: dict[str, Any]) -> None:
    if source.get("model_type") != "chatglm":
        return
    if source.get("position_encoding_2d"):
        raise RopeConfigError("position_encoding_2d", "got True; ChatGLM-6B's two axes have no axis map here")
    values.put("partial_rotary_factor", 0.5, "model_type table: chatglm")
    values.put("pairing", "interleaved", "model_type table: chatglm")
    values.note(
        "original_rope", source.pop("original_rope", None), "it chooses between two codes for the same rotation"
    )
    ratio = _take(source, "rope_ratio")
    if ratio is not None and "chatglm2" in str(source.get("_name_or_path", "")).lower():
        _divide(values, ratio, "rope_ratio")
    elif ratio is not None:
        values.put("rope_theta", 10000.0 * ratio, f"10000 * rope_ratio {ratio!r}")


def _qwen(values: Values, source: dict[str, Any]) -> None:
    length = source.get("seq_length")
    if isinstance(length, int) and source.pop("use_dynamic_ntk", None):
        steps = (
            f"beyond {length} tokens Qwen 1's code multiplies theta in steps, rope_type ntk_alpha with alpha 3 up to"
        )
        problem = f"got True; {steps} {2 * length} and 7 up to {4 * length}; read here up to {length} tokens"
        raise_or_warn("use_dynamic_ntk", problem, values.strict)
        values.remark("use_dynamic_ntk", f"the frequencies are right up to {length} tokens only")


def _internlm(values: Values, source: dict[str, Any]) -> None:
    rotary = source.get("rotary")
    if not isinstance(rotary, Mapping) or not rotary.keys() <= {"base", "type", "scaling_factor"}:
        return
    del source["rotary"]
    values.put("rope_theta", rotary.get("base"), "rotary.base")
    if rotary.get("type") == "dynamic":
        values.put("rope_type", "dynamic", "rotary.type")
        values.put("factor", rotary.get("scaling_factor", 1.0), "rotary.scaling_factor")
    elif rotary.get("type") not in (None, "origin"):
        raise RopeConfigError("rotary.type", f"got {rotary['type']!r}, InternLM's are 'origin' and 'dynamic'")


def _telechat(values: Values, source: dict[str, Any]) -> None:
    if source.get("model_type") != "telechat" or not {"base_seqlen", "training_seqlen"} <= source.keys():
        return
    base, trained = _take(source, "base_seqlen", 4096), _take(source, "training_seqlen", 4096)
    alpha = max(2 ** math.ceil(math.log2(trained / base) + 1) - 1, 1)
    if alpha > 1:
        values.put("rope_type", "ntk_alpha", "training_seqlen / base_seqlen")
        values.put("alpha", alpha, "training_seqlen / base_seqlen")
    values.put("max_position_embeddings", trained, "training_seqlen")
    values.remark(
        "training_seqlen", f"beyond {trained} tokens TeleChat's code raises theta further, not reproduced here"
    )
