"""transformers' models: their default configs, and small ones, with what each of their layers is rotated by."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 8,
    "d_model": 64,
    "n_embd": 64,
    "n_head": 4,
    "n_heads": 4,
    "n_layer": 8,
    "n_layers": 8,
    "rotary_dim": 8,
    "intermediate_size": 32,
    "n_inner": 32,
    "ffn_dim": 32,
    "max_window_layers": 4,
    "lru_width": 64,
    "num_experts": 2,
    "num_local_experts": 2,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "moe_intermediate_size": 16,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "global_head_dim": 16,
    "num_global_key_value_heads": 2,
    "num_nextn_predict_layers": 0,
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 16,
    "word_embed_proj_dim": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 4,
}
_LISTS = ("layers", ".h", "blocks")
TOKENS = 9
MOST_PARAMETERS = 1 << 28  # 1 GiB in fp32


def default_configs(is_wanted: Callable[[Any], bool]) -> Iterator[Any]:
    """One default object of every config class that ``is_wanted`` accepts, also of those inside composite configs."""
    seen = set()

    def inside(config: Any, depth: int = 0) -> Iterator[Any]:
        yield config
        for value in vars(config).values():
            if depth < 3 and isinstance(value, PreTrainedConfig):
                yield from inside(value, depth + 1)

    for name in CONFIG_MAPPING_NAMES:
        try:
            top = CONFIG_MAPPING[name]()
        except Exception:  # a class without defaults
            continue
        for config in inside(top):
            if type(config) not in seen and is_wanted(config):
                seen.add(type(config))
                yield config


def has_rope_parameters(config: Any) -> bool:
    """Whether a config is one of a model that rotates, as far as its class says."""
    return bool(getattr(config, "rope_parameters", None))


def tiny_config(model_type: str, **values: Any) -> Any:
    """transformers' config object with small sizes, everything else as its class has it."""
    default = CONFIG_MAPPING[model_type]().to_dict()
    sizes = {k: v for k, v in _SIZES.items() if k in default and (default[k] is not None or k == "head_dim")}
    if "kv_lora_rank" in default:  # latent attention has a key per head
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    return CONFIG_MAPPING[model_type](**{**sizes, **values})


def rotations_by_layer(config: Any) -> tuple[int, dict[int, list[torch.Tensor]]]:
    """The number of layers, and by layer the angles at position 1 that its queries and keys were rotated by.

    The model runs once on a few tokens, with the functions of its file named ``apply_rotary...`` replaced by ones
    that note their arguments. One that the sizes above do not make small is a ``ValueError``.
    """
    with torch.device("meta"):
        count = sum(x.numel() for x in AutoModel.from_config(config).parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"{config.model_type}: {count:,} parameters, at most {MOST_PARAMETERS:,} fit a test")
    model = AutoModel.from_config(config).eval()
    layers = next(
        m for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and name.endswith((*_LISTS, "h"))
    )
    code = importlib.import_module(type(model).__module__)
    functions = {name: f for name, f in vars(code).items() if name.startswith("apply_rotary") and inspect.isfunction(f)}
    seen: dict[int, list[torch.Tensor]] = {}
    current = -1

    def enter(index: int) -> Any:
        def hook(*_: Any) -> None:
            nonlocal current
            current = index

        return hook

    def noting(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(function).bind(*args, **kwargs).arguments
            seen.setdefault(current, []).append(_angles(given))
            return function(*args, **kwargs)

        return call

    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(enter(index))
    try:
        for name, function in functions.items():
            setattr(code, name, noting(function))
        with torch.no_grad():
            model(input_ids=torch.arange(3, 3 + TOKENS)[None], use_cache=False)
    finally:
        for name, function in functions.items():
            setattr(code, name, function)
    return len(layers), seen


def _angles(given: dict[str, Any]) -> torch.Tensor:
    """At position 1, one per pair. Tables hold every angle twice, in halves or side by side, or once."""
    if "freqs_cis" in given:
        return given["freqs_cis"].reshape(-1, TOKENS, given["freqs_cis"].shape[-1])[0, 1].angle()
    cos, sin = (given[key].float().reshape(-1, TOKENS, given[key].shape[-1])[0, 1] for key in ("cos", "sin"))
    angles = torch.atan2(sin, cos)
    half = angles.shape[0] // 2
    if torch.equal(angles[:half], angles[half:]):
        return angles[:half]
    return angles[::2] if torch.equal(angles[::2], angles[1::2]) else angles
