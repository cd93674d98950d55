"""Measures which config describes a rotary embedding module, by comparing its tables with ours."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...config import RopeConfig
from ...core.rotation import AXIAL_MAPS, MROPE_MAPS
from ...errors import RopeConfigError
from .angles import FORMS, AngleInputs, Source
from .rotary_plan import Order, RotaryPlan
from .surroundings import measuring

__all__ = ["is_rotary", "probe_rotary"]

# Near positions of a probe, where the product of an fp32 position and frequency is still accurate.
_NEAR = (0, 1, 2, 3, 5, 17, 100, 611)
_ANGLE_ERROR = 3e-5  # relative: transformers' fp32 frequencies are off by up to 7e-6, its phases by more
_TABLE_ERROR = 2e-6  # absolute: two roundings of cos and sin in fp32
_LOW = (torch.bfloat16, torch.float16)
_SIZES = (("hidden_size", "embed_dim"), ("num_attention_heads", "num_heads"))
_TOKENS = 7
# Modules with one axis take positions of any rank, so they are tried last.
_SHAPES: tuple[tuple[Order, tuple[int, ...]], ...] = (
    *((Order("axes first", n), (n, 1, _TOKENS)) for n in (4, 3, 2)),
    *((Order("axes last", n, batched=False), (_TOKENS, n)) for n in (2, 3)),
    *((Order("axes last", n), (1, _TOKENS, n)) for n in (2, 3)),
    (Order("plain"), (1, _TOKENS)),
)


def is_rotary(module: nn.Module) -> bool:
    """Whether the module looks like a rotary embedding and should be probed."""
    names = [name for name, _ in module.named_buffers(recurse=False)]
    return any(name.endswith("inv_freq") for name in names) or "RotaryEmbedding" in type(module).__name__


def probe_rotary(module: nn.Module) -> RotaryPlan | str:
    """The plan for a rotary embedding, or why its own tables are kept."""
    parameters = list(inspect.signature(type(module).forward).parameters)[1:]
    if parameters[1:2] != ["position_ids"] or not set(parameters[2:]) <= {"layer_type"}:
        return f"its forward takes ({', '.join(parameters)}), not (x, position_ids)"
    learned = [name for name in module.state_dict() if not name.endswith("inv_freq")]
    if learned:
        return f"its frequencies depend on {', '.join(learned)}"
    with measuring(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            original = _on_cpu(module)
            return _measure(original)
        except _UnlikeError as error:
            return str(error)


class _UnlikeError(Exception):
    """No plan describes the module; the message says why its own tables are kept."""


def _on_cpu(module: nn.Module) -> nn.Module:
    """A copy to call. If the buffers are on meta or were cast, it is built again from the config."""
    tensors = list(module.buffers()) + list(module.parameters())
    harmed = any(t.is_meta or t.dtype in _LOW for t in tensors)
    if not harmed:
        made = copy.deepcopy(module).to("cpu")
        made.__dict__.pop("forward", None)  # a forward that hooks have put over the class's own
        return made
    try:
        return type(module)(module.config)
    except Exception as error:
        raise _UnlikeError(f"its buffers are cast or on meta, and it cannot be built again: {error}") from error


def _measure(module: nn.Module) -> RotaryPlan:
    orders = _orders(module)
    for number, (order, leads_with_one) in enumerate(orders):
        sources: dict[str | None, Source] = {}
        try:
            for layer_type in _layer_types(module):
                sources[layer_type], order = _source(module, layer_type, order, leads_with_one)
            return RotaryPlan(sources, order, leads_with_one)
        except _UnlikeError:
            if number == len(orders) - 1:
                raise
    raise AssertionError("there is an order, or _orders raises")


def _layer_types(module: nn.Module) -> list[str | None]:
    names = [name for name, _ in module.named_buffers(recurse=False)]
    named = [n.removesuffix("_inv_freq") for n in names if n.endswith("_inv_freq") and "original_inv_freq" not in n]
    takes = "layer_type" in inspect.signature(type(module).forward).parameters
    return list(named) if takes and named else [None]


def _call(
    module: nn.Module, positions: Tensor, layer_type: str | None, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """The tables for positions; the module's state does not change."""
    return _tables(copy.deepcopy(module), positions, layer_type, dtype)


def _tables(
    module: nn.Module, positions: Tensor, layer_type: str | None, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """The tables for positions. Passes on any exception of the module."""
    extra = {} if layer_type is None else {"layer_type": layer_type}
    result = module(torch.zeros(1, positions.shape[-1], 8, dtype=dtype), position_ids=positions, **extra)
    tables = [result] if isinstance(result, Tensor) else list(result)
    if not all(isinstance(table, Tensor) for table in tables) or len(tables) not in (1, 2):
        raise _UnlikeError("it returns neither (cos, sin) nor complex numbers")
    return tables


def _orders(module: nn.Module) -> list[tuple[Order, bool]]:
    """The orders of positions that the module accepts when called, and whether its table has an extra leading 1."""
    layer_type, problem = _layer_types(module)[0], ""
    found: list[tuple[Order, bool, int]] = []
    for order, shape in _SHAPES:
        positions = _same_on_all_axes(order, shape)
        try:
            table = _call(module, positions.contiguous(), layer_type)[0]
        except Exception as error:  # a module may raise anything for positions that it does not take
            problem = f"{type(error).__name__}: {error}"
            continue
        lead = tuple(table.shape[:-1])
        want = shape[:-1] if order.kind == "axes last" else shape[-2:]
        if lead == want or (order.kind == "axes last" and lead == (1, *want)):
            found.append((order, lead != want, table.shape[-1]))
    if not found:
        raise _UnlikeError(f"it takes positions in no known shape ({problem})")
    # Modules with axes first also take plain positions for all axes. With axes last, some widen the table per axis.
    same = [f for f in found if f[0].kind == found[0][0].kind]
    fitting = [f for f in same if f[0].kind != "axes last" or f[2] <= _head_dim(module)] or same
    return [f[:2] for f in fitting if f[2] == max(g[2] for g in fitting)]


def _head_dim(module: nn.Module) -> float:
    config: Any = getattr(module, "config", None)
    values = {} if config is None else config.to_dict()
    hidden, heads = (next((values[name] for name in names if values.get(name)), 0) for names in _SIZES)
    return values.get("head_dim") or (hidden // heads if heads else math.inf)


def _same_on_all_axes(order: Order, shape: tuple[int, ...]) -> Tensor:
    token = torch.arange(_TOKENS)
    return (token[:, None] if order.kind == "axes last" else token).expand(shape)


def _positions(order: Order, near: Tensor) -> Tensor:
    """Positions that differ from axis to axis."""
    if order.kind == "plain":
        return near[None]
    by_axis = torch.stack([near * (axis + 1) + axis for axis in range(order.axes)])
    if order.kind == "axes first":
        return by_axis[:, None]
    return by_axis.T.contiguous()[None] if order.batched else by_axis.T.contiguous()


def _source(module: nn.Module, layer_type: str | None, order: Order, leads_with_one: bool) -> tuple[Source, Order]:
    """The first config with the module's own tables on both sides of every threshold."""
    module = copy.deepcopy(module)
    _tables(module, _positions(order, torch.zeros(1, dtype=torch.int64)), layer_type)  # resets a grown dynamic module
    measured = []
    for length in _lengths(module, layer_type):
        # The last position is the largest, so it decides the frequencies of all.
        positions = _positions(order, torch.tensor([*(near for near in _NEAR if near < length), length]))
        measured.append((positions, _call(module, positions, layer_type)))
    follows_dtype = _call(module, measured[0][0], layer_type, torch.bfloat16)[0].dtype == torch.bfloat16
    forms = FORMS[:-1] if len(measured[0][1]) == 2 else FORMS[-1:]
    tried = []
    for cfg, name in _candidates(module, layer_type, order):
        if isinstance(cfg, RopeConfigError):
            tried.append(f"{name} ({cfg})")
            continue
        tried.append(name)
        for form, flipped in itertools.product(forms, (False, True) if order.kind == "axes last" else (False,)):
            with contextlib.suppress(RopeConfigError):
                source, of_axes = Source(cfg, form, follows_dtype), replace(order, flipped=flipped)
                plan = RotaryPlan({layer_type: source}, of_axes, leads_with_one)
                if all(_same(plan, layer_type, positions, tables) for positions, tables in measured):
                    return source, of_axes
    raise _UnlikeError(f"its tables are not those of {'; nor of '.join(dict.fromkeys(tried))}")


def _same(plan: RotaryPlan, layer_type: str | None, positions: Tensor, tables: list[Tensor]) -> bool:
    """Whether the plan's tables are the module's, within the error of the module's fp32."""
    inputs, at_one = _inputs(plan, layer_type, positions), _inputs(plan, layer_type, torch.ones_like(positions))
    if inputs is None or at_one is None or inputs.source.cfg.num_axes != plan.order.axes:
        return False
    at_one.seq_len = inputs.seq_len
    # On the CPU: not every device has float64.
    cos, sin = (table.cpu().double() for table in inputs.table())
    want = [table.cpu() for table in ([tables[0].real, tables[0].imag] if len(tables) == 1 else tables)]
    if cos.shape != want[0].shape:
        return False
    # An angle's error grows with the angle. At position 1 the angle is the frequency.
    cos_1, sin_1 = (table.cpu().double() for table in at_one.table())
    angle = torch.atan2(sin_1, cos_1).abs() * inputs.positions.cpu().reshape(-1, *cos.shape[:-1], 1).amax(0)
    bound = (_TABLE_ERROR + _ANGLE_ERROR * angle) * torch.hypot(cos, sin).clamp(min=1.0)
    return bool(((cos - want[0]).abs() <= bound).all() and ((sin - want[1]).abs() <= bound).all())


def _inputs(plan: RotaryPlan, layer_type: str | None, positions: Tensor) -> AngleInputs | None:
    angles = plan.angles(torch.zeros(1), positions, layer_type)
    if isinstance(angles, tuple):
        angles = angles[0]
    return None if angles is None else angles.inputs


def _lengths(module: nn.Module, layer_type: str | None) -> list[int]:
    """Last positions of the calls of a probe: a near one, and some around each length in the config."""
    config = getattr(module, "config", None)
    table = getattr(config, "rope_parameters", None) or {}
    table = table.get(layer_type) or table
    names = ("original_max_position_embeddings", "max_position_embeddings")
    found = [*(table.get(name) for name in names), *(getattr(config, name, None) for name in names)]
    lengths = sorted({length for length in found if isinstance(length, int) and length > 0})
    around = [position for length in lengths for position in (length // 2, length - 1, length, 2 * length + 3)]
    return [_NEAR[-1], *dict.fromkeys(around)]


def _candidates(
    module: nn.Module, layer_type: str | None, order: Order
) -> Iterator[tuple[RopeConfig | RopeConfigError, str]]:
    """Configs that could describe the module: its own, the same read as Llama's, and one from its ``inv_freq``."""
    config = getattr(module, "config", None)
    if config is not None:
        values = config.to_dict()
        for source, name in ((values, "its config"), (values | {"model_type": ""}, "its config read as Llama's")):
            try:
                yield RopeConfig.from_hf(source, layer_type, strict=False), name
            except RopeConfigError as error:
                yield error, name
    prefix = "" if layer_type is None else f"{layer_type}_"
    inv_freq = getattr(module, f"{prefix}inv_freq", None)
    scaling = getattr(module, f"{prefix}attention_scaling", 1.0)
    if isinstance(inv_freq, Tensor) and inv_freq.dim() == 1 and isinstance(scaling, (int, float)):
        for cfg in _of_frequencies(inv_freq, float(scaling), order, getattr(module, "mrope_section", None)):
            yield cfg, "its inv_freq"


def _of_frequencies(inv_freq: Tensor, scaling: float, order: Order, sections: Any) -> Iterator[RopeConfig]:
    width = 2 * inv_freq.shape[0]
    choices: list[tuple[int, dict[str, Any]]] = [(width, {})]
    if order.kind == "axes first" and sections is not None:
        choices = [(width, {"axis_map": name, "mrope_section": tuple(sections)}) for name in MROPE_MAPS]
    elif order.kind == "axes last":
        choices = [(size, {"axis_map": name}) for name in AXIAL_MAPS for size in (width, 2 * width)]
    for head_dim, fields in choices:
        with contextlib.suppress(RopeConfigError):
            yield RopeConfig.from_inv_freq(inv_freq, scaling, head_dim, **fields)
