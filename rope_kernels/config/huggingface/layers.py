"""Which layers of a model rotate, and by what: lists by layer, and layer types that never rotate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import RopeConfigError
from ..validation import nearest, raise_or_warn
from .values import plain

__all__ = ["Group", "find_group", "groups_of", "unrotated_types"]

# Layers of these types have no attention to rotate.
_NO_ATTENTION = {"linear_attention", "mamba", "mamba2", "conv", "recurrent", "moe", "mlp"}
# Models whose full attention does not rotate; the second kind only where they have a sliding window.
_NOPE_FULL = {"afmoe", "cohere2", "cohere2_moe", "flint"}
_NOPE_FULL_WITH_WINDOW = {"exaone4", "exaone4_5", "exaone4_5_text", "exaone_moe", "kolibri1"}
# Models with a list by layer that their config class fills in, and what the class calls the layers that rotate.
_INTERVALS = {"llama4_text": ("chunked_attention", "full_attention"), "smollm3": (), "mistral_large4_text": ()}


@dataclass(frozen=True)
class Group:
    """Layers that share a rotation.

    Attributes:
        label: the name of :meth:`RopeConfig.per_layer`, a layer type or one with its theta.
        layer_type: transformers' name of the layers.
        layers: their indices, empty where the config does not list its layers.
        theta: their own rope_theta, from ``layer_rope_theta``.
        scaled: whether the scaling of the rope parameters applies to them.
    """

    label: str
    layer_type: str
    layers: tuple[int, ...] = ()
    theta: float | None = None
    scaled: bool = True


def unrotated_types(source: Mapping[str, Any]) -> dict[str, str]:
    """Layer types of the config that do not rotate, each with the reason."""
    model = str(source.get("model_type") or "")
    found = {name: "no attention that rotates" for name in _NO_ATTENTION if name in _types(source, model)}
    window = source.get("sliding_window", 4096)
    if (model in _NOPE_FULL and not any(_rotates(source, model) or ())) or (
        model in _NOPE_FULL_WITH_WINDOW and window is not None
    ):
        found["full_attention"] = f"{model} does not rotate in full attention"
    return found


def _types(source: Mapping[str, Any], model: str) -> list[str]:
    """The layer type of every layer as listed, or the types that the config class makes."""
    key = "layer_types" if source.get("layer_types") else "layers_block_type"
    listed = source.get(key)
    if listed:
        if not isinstance(listed, (list, tuple)) or not all(isinstance(x, str) for x in listed):
            raise RopeConfigError(key, f"got {listed!r}, must be a list with a name per layer")
        # Older hybrids list "attention" beside "mamba".
        return ["full_attention" if name == "attention" else name for name in listed]
    attention, count = source.get("attn_layer_indices"), _integer(source, "num_hidden_layers")
    if isinstance(attention, (list, tuple)) and count:  # Bamba
        return ["full_attention" if i in attention else "linear_attention" for i in range(count)]
    if model in _NOPE_FULL | _NOPE_FULL_WITH_WINDOW:
        return ["sliding_attention", "full_attention"]
    return list(_INTERVALS.get(model, ())) or ["full_attention"]


def groups_of(source: Mapping[str, Any]) -> tuple[list[Group], dict[str, str]]:
    """The groups of layers that rotate, and what does not, each with the reason.

    Raises:
        RopeConfigError: a list by layer that is no list of the right kind, or whose length is wrong.
    """
    model = str(source.get("model_type") or "")
    types, unrotated = _types(source, model), unrotated_types(source)
    rotates = _rotates(source, model)
    thetas = _list(source, "layer_rope_theta", (int, float, str))
    scaled = _list(source, "rope_scaling_layers", (int,))
    count = _count(source, types, rotates, thetas)
    if count is None:
        if "chunked_attention" in types and model in _INTERVALS:
            unrotated["full_attention"] = f"{model} does not rotate in full attention"
        return [Group(name, name) for name in dict.fromkeys(types) if name not in unrotated], unrotated
    types = types if len(types) == count else types[:1] * count
    found: dict[tuple[str, float | None, bool], list[int]] = {}
    still: dict[str, list[int]] = {}
    for i, name in enumerate(types):
        theta = None if thetas is None else plain("rope_theta", thetas[i])
        if name in unrotated or theta == 0 or (rotates is not None and not rotates[i]):
            still.setdefault(name, []).append(i)
        else:
            found.setdefault((name, theta, scaled is None or i in scaled), []).append(i)
    names = [name for name, _, _ in found]
    groups = [
        Group(_label(key, names.count(key[0]) > 1, scaled is not None), key[0], tuple(at), *key[1:])
        for key, at in found.items()
    ]
    for name, at in still.items():
        if name not in names:
            unrotated.setdefault(name, "its layers do not rotate")
        else:
            unrotated[f"{name}, layers {', '.join(map(str, at))}"] = "these layers do not rotate"
    return groups, unrotated


def _label(key: tuple[str, float | None, bool], shared: bool, by_scaling: bool) -> str:
    name, theta, scaled = key
    if not shared:
        return name
    parts = [name] + ([f"rope_theta {theta:g}"] if theta is not None else [])
    return ", ".join(parts + (["scaled" if scaled else "unscaled"] if by_scaling else []))


def _rotates(source: Mapping[str, Any], model: str) -> list[Any] | None:
    """``no_rope_layers``: 1 for a layer that rotates, 0 for one that does not."""
    listed = _list(source, "no_rope_layers", (int,))
    if listed:
        if not set(listed) <= {0, 1}:
            raise RopeConfigError("no_rope_layers", f"got {listed}, must be 1 for layers that rotate and 0 for others")
        return listed
    if model == "cohere2_moe" and source.get("prefix_dense_sliding_window_pattern", 1) == 1:
        # Full attention rotates in the dense layers at the start only.
        types, mlp, first = (
            _types(source, model),
            source.get("mlp_layer_types"),
            _integer(source, "first_k_dense_replace") or 0,
        )
        mlp = mlp or ["dense"] * first + ["sparse"] * (len(types) - first)
        rotates = [kind != "full_attention" or dense == "dense" for kind, dense in zip(types, mlp, strict=False)]
        full = any(flag and kind == "full_attention" for flag, kind in zip(rotates, types, strict=False))
        return rotates if full else None
    interval = _integer(source, "no_rope_layer_interval")
    layers = _integer(source, "num_hidden_layers") or len(source.get("layer_types") or ())
    if layers and (model in _INTERVALS or interval):
        return [(i + 1) % (interval or 4) for i in range(layers)]
    return None


def _count(
    source: Mapping[str, Any], types: list[str], rotates: list[Any] | None, thetas: list[Any] | None
) -> int | None:
    lengths = {key: len(x) for key, x in (("no_rope_layers", rotates), ("layer_rope_theta", thetas)) if x is not None}
    listed = source.get("layer_types")
    if lengths and listed:
        lengths["layer_types"] = len(types)
    if source.get("rope_scaling_layers") is not None:
        lengths["num_hidden_layers"] = _integer(source, "num_hidden_layers") or max(source["rope_scaling_layers"]) + 1
    if len(set(lengths.values())) > 1:
        (first, a), (second, b) = list(lengths.items())[:2]
        raise RopeConfigError(first, f"got {a} layers, {second} has {b}")
    return next(iter(lengths.values()), None)


def _integer(source: Mapping[str, Any], key: str) -> int | None:
    value = plain("head_dim", source.get(key))
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise RopeConfigError(key, f"got {value!r} ({type(value).__name__}), must be an integer, 0 or more")
    return value


def _list(source: Mapping[str, Any], key: str, kinds: tuple[type, ...]) -> list[Any] | None:
    listed = source.get(key)
    if listed is None:
        return None
    if not isinstance(listed, (list, tuple)) or not all(isinstance(x, kinds) or x is None for x in listed):
        raise RopeConfigError(key, f"got {listed!r}, must be a list with a number per layer")
    return [0 if x is None else x for x in listed] or None


def find_group(source: Mapping[str, Any], layer_type: str | None, strict: bool) -> tuple[Group | None, dict[str, str]]:
    """The group of a label or layer type, ``None`` where all layers rotate alike; and what does not rotate.

    Raises:
        RopeConfigError: the layers of that type do not rotate, no layer rotates, or with ``strict`` the groups
            differ and none was named.
    """
    groups, unrotated = groups_of(source)
    labels = ", ".join(group.label for group in groups)
    if layer_type in unrotated:
        rest = f"; the layers that rotate are {labels}" if groups else ""
        raise RopeConfigError("layer_type", f"got {layer_type!r}: {unrotated[layer_type]}{rest}")
    if not groups:
        raise RopeConfigError("layer_types", f"got {', '.join(unrotated)}; no layer rotates")
    for group in groups:
        if group.label == layer_type:
            return group, unrotated
    if len({(group.theta, group.scaled) for group in groups}) == 1:
        return groups[0], unrotated
    came = "missing; the rotation differs by layer" if layer_type is None else f"got {layer_type!r}"
    close = "" if layer_type is None else nearest(layer_type, [group.label for group in groups])
    raise_or_warn("layer_type", f"{came}, allowed are {labels}{close}", strict)
    return None, unrotated
