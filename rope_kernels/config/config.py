"""RopeConfig: describes a rotary embedding; its values are checked once, when it is made."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch

from ..core.frequency import FrequencyParams
from ..core.rotation import AXIAL_MAPS, MAX_PAIRS, AxisMap, Rotation, axis_map
from ..core.spec import Spec
from ..errors import RopeConfigError
from .explain import explain
from .fields import OTHER_NAMES, RopeFields
from .files import read_file
from .huggingface.reader import OWN_FIELDS, fields_from_hf, layer_types_of
from .rope_types import ROPE_TYPES
from .validation import as_tuple, check_choice, check_params, nearest, normalise, resolve_axis_map, validate

__all__ = ["RopeConfig"]

_Config = TypeVar("_Config", bound=RopeFields)
_LONGEST_SHOWN = 8  # entries of a list that repr() still spells out

# Pickles of earlier versions hold these names of attributes and of modules.
_RENAMED = {"_params": "frequency_params", "_rotation": "geometry"}
sys.modules.setdefault("rope_kernels.frequency", sys.modules[FrequencyParams.__module__])
sys.modules.setdefault("rope_kernels.rotation", sys.modules[Rotation.__module__])


def _named_fields(cls: type[_Config]) -> type[_Config]:
    """Make the constructor raise RopeConfigError, not TypeError, for a field that is unknown or missing."""
    init, known = cls.__init__, sorted(f.name for f in fields(cls) if f.init)

    @functools.wraps(init)
    def checked(self: _Config, *args: Any, **values: Any) -> None:
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break(msg="RopeConfig: make it outside of the compiled function, once, and pass it")
        for name, value in values.items():
            if name not in known:
                here = OTHER_NAMES.get(name)
                allowed = f"; here it is {here}" if here else nearest(name, known) or f"; fields are {', '.join(known)}"
                raise RopeConfigError(name, f"got {_shown(value)}, no field of {cls.__name__}{allowed}")
        if not args and "head_dim" not in values:
            raise RopeConfigError("head_dim", "missing; every config needs it")
        init(self, *args, **values)

    cls.__init__ = checked  # type: ignore[assignment]  # mypy takes methods for constants
    return cls


@_named_fields
@dataclass(frozen=True)
class RopeConfig(RopeFields):
    """A checked, hashable, picklable rotary embedding, with HuggingFace's key names.

    The fields that a caller gives are those of :class:`~rope_kernels.config.fields.RopeFields`. The attributes below
    are derived from them, once, when the config is made.

    Attributes:
        frequency_params: what the kernels compute the frequencies from.
        geometry: the geometry of a head, with the config's own pairing.
        specs: one encoded spec per value of ``apply_rope``'s ``interleaved``, precomputed because encoding it would
            dominate a decode step.

    Raises:
        RopeConfigError: a field is unknown, missing, of the wrong type, out of range, or not used by the type.
    """

    frequency_params: FrequencyParams = field(init=False, repr=False, compare=False)
    geometry: Rotation = field(init=False, repr=False, compare=False)
    specs: Mapping[bool | None, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, value in normalise(self).items():
            object.__setattr__(self, name, value)
        axis_map_name = resolve_axis_map(self)
        if axis_map_name != self.axis_map:
            object.__setattr__(self, "provenance", {**self.provenance, "axis_map": "default"})
            object.__setattr__(self, "axis_map", axis_map_name)
        validate(self)
        if self.rope_type != "inv_freq":  # before a ladder of any length is computed
            _check_pairs(self, self.ladder_dim // 2)
        params = _compute(self)
        rotation = _rotation(self, params)
        specs: dict[bool | None, str] = {None: Spec(params, rotation).encode()}
        for interleaved, pairing in ((False, "half"), (True, "interleaved")):
            if rotation.blocks == 1 or not interleaved:
                specs[interleaved] = Spec(params, _paired(rotation, pairing)).encode()
        object.__setattr__(self, "frequency_params", params)
        object.__setattr__(self, "geometry", rotation)
        object.__setattr__(self, "specs", specs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle, also from one of an earlier version, which has other names."""
        for name, value in state.items():
            object.__setattr__(self, _RENAMED.get(name, name), value)

    def __repr__(self) -> str:
        """The given fields; a long list is shown by its length."""
        given = ", ".join(f"{name}={_shown(value)}" for name, value in self.given().items())
        return f"{type(self).__name__}({given})"

    @property
    def attention_scaling(self) -> float:
        """The factor on cos and sin in the initial (short) state; scores are multiplied by its square."""
        return self.frequency_params.attention_scaling

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies change with the sequence length (dynamic, longrope)."""
        return self.frequency_params.depends_on_length

    @property
    def rotary_dim(self) -> int:
        """Number of channels that the rotation spans, twice the length of :meth:`inv_freq`."""
        rotation = self.rotation()
        return 2 * rotation.distance * rotation.blocks

    @property
    def num_axes(self) -> int:
        """Rows of positions that the rotation reads."""
        return self.rotation().num_axes

    def rotation(self, pairing: str | None = None) -> Rotation:
        """The geometry of a head, with the config's pairing or another.

        Raises:
            RopeConfigError: an unknown pairing, or one that this axis map or these pairs do not allow.
        """
        return self.geometry if pairing is None else _paired(self.geometry, pairing)

    def spec(self, interleaved: bool | None = None) -> str:
        """The op's encoded :class:`Spec`: ``None`` has the config's pairing, ``True`` interleaved, ``False`` half.

        Raises:
            RopeConfigError: another value; or ``True`` with an axis map whose pairs are always halves.
        """
        if interleaved is not None and not isinstance(interleaved, bool):
            raise RopeConfigError("interleaved", f"got {interleaved!r}, allowed are None, True and False")
        if interleaved not in self.specs:
            self.rotation("interleaved")  # raises
        return self.specs[interleaved]

    def inv_freq(self, seq_len: int | None = None) -> torch.Tensor:
        """The frequency of every pair at a sequence length, in radians per position.

        Args:
            seq_len: length in tokens; ``None`` is transformers' initial state.

        Returns:
            Float64 CPU tensor ``(rotary_dim / 2,)``, zero for pairs that are not rotated.
        """
        values = self.frequency_params.inv_freqs(self.rotation().index, seq_len)
        values += [0.0] * (self.rotary_dim // 2 - len(values))
        # The device is named: a default device of meta must not empty the table.
        return torch.tensor(values, dtype=torch.float64, device="cpu")

    @classmethod
    def from_inv_freq(
        cls,
        inv_freq: torch.Tensor | Sequence[float],
        attention_scaling: float = 1.0,
        head_dim: int | None = None,
        **fields: Any,
    ) -> RopeConfig:
        """A config that rotates by the caller's own table of frequencies.

        Args:
            inv_freq: radians per position, one per frequency; any finite numbers.
            attention_scaling: multiplies cos and sin.
            head_dim: channels of a head (``None``: twice the length of the table).
            **fields: other fields, such as ``pairing``, ``phase``, ``table_dtype``, ``mrope_section``.

        Raises:
            RopeConfigError: the table is empty, not one-dimensional or not finite, or does not fit the head.
        """
        if isinstance(inv_freq, torch.Tensor):
            if inv_freq.requires_grad and torch.is_grad_enabled():
                raise RopeConfigError(
                    "inv_freq",
                    "needs a gradient, which a config cannot give; pass inv_freq.detach(), or rotate by a table",
                )
            if inv_freq.ndim != 1:
                raise RopeConfigError("inv_freq", f"got shape {tuple(inv_freq.shape)}, must have one dimension")
            inv_freq = inv_freq.detach().double().tolist()
        table = as_tuple("inv_freq", inv_freq)
        if not table:
            raise RopeConfigError("inv_freq", "got an empty table, must have an entry per frequency")
        fields = {"rope_type": "inv_freq", "attention_factor": attention_scaling, **fields}
        return cls(head_dim=2 * len(table) if head_dim is None else head_dim, inv_freq_table=table, **fields)

    @classmethod
    def from_hf(cls, config: object, layer_type: str | None = None, strict: bool = True) -> RopeConfig:
        """The config of a transformers config object or of the dict of a config.json, old or new spelling.

        Also reads params.json of Meta and Mistral, GGUF metadata, and the arguments of Megatron-LM, torchtune and some
        models outside transformers; huggingface/vendors.py lists them with their sources.

        Args:
            config: the object or dict; also what :meth:`to_dict` and :meth:`to_hf` return. Of a multimodal config
                its text part is read.
            layer_type: which layers' parameters, where they differ by layer: a key of :meth:`per_layer`.
            strict: ``False`` turns errors about unread keys, contradictions and what transformers only logs into
                warnings.

        Raises:
            RopeConfigError: a model or layers that do not rotate, a key that looks like RoPE and is not read, spellings
                that disagree, a layer type that is missing or unknown, a model whose rotation no config describes, or
                a value that the constructor refuses.
        """
        return cls(**fields_from_hf(config, layer_type, strict))

    @classmethod
    def from_params(
        cls, source: str | os.PathLike[str] | Mapping[str, Any], layer_type: str | None = None, strict: bool = True
    ) -> RopeConfig:
        """The config of what people hold: a file, a model directory, a dict, or the name of a model in the local cache.

        A file is a config.json, params.json of Meta or Mistral, the config of gpt-oss's or DeepSeek's own code, or GGUF
        (with the package gguf), with the tensors that scale its frequencies. A dict is what such a file holds, the
        arguments of Megatron-LM or torchtune, or vLLM's overrides beside a config. Nothing is downloaded.

        Args:
            source: what to read.
            layer_type: as in :meth:`from_hf`.
            strict: as in :meth:`from_hf`.

        Raises:
            RopeConfigError: there is no such file, it cannot be read, or as :meth:`from_hf`.
        """
        if isinstance(source, Mapping):
            return cls.from_hf(source, layer_type, strict)
        values, path = read_file(source)
        made = cls.from_hf(values, layer_type, strict)
        return replace(made, provenance={**made.provenance, "source": str(path)})

    @classmethod
    def per_layer(cls, config: object, strict: bool = True) -> dict[str, RopeConfig]:
        """A config per layer type that rotates, for models whose layers may differ.

        Layer types without rotation are left out: linear attention and the like, full attention of models that do
        not rotate in it, and layers that ``rope_parameters``, ``no_rope_layers`` or ``layer_rope_theta`` exclude.
        ``explain()`` of each config names them. Where layers of one type differ, their keys say how, as in
        ``"full_attention, rope_theta 10000"``. Without layer types the single key is ``"full_attention"``.

        Raises:
            RopeConfigError: as :meth:`from_hf`; or no layer rotates.
        """
        return {name: cls.from_hf(config, name, strict) for name in layer_types_of(config, strict)}

    def replace(self, **changes: Any) -> RopeConfig:
        """A copy with other values, checked again."""
        kept = {name: origin for name, origin in self.provenance.items() if name not in changes}
        return replace(self, **{"provenance": kept, **changes})

    def explain(self) -> str:
        """Plain text: the rope type, every value with its origin, and what the values mean in tokens."""
        return explain(self, self.frequency_params, self.rotation())

    def to_dict(self) -> dict[str, Any]:
        """The given values by our own names, for ``RopeConfig(**values)`` and :meth:`from_hf`; fit for JSON."""
        values = {"head_dim": self.head_dim, "rope_type": self.rope_type, **self.given()}
        values["extra"] = dict(self.extra)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def to_hf(self) -> dict[str, Any]:
        """The config in transformers' new spelling, for :meth:`from_hf` and a config.json.

        Values that HuggingFace has no key for are kept under ``"rope_kernels"``.
        """
        given = {key: list(v) if isinstance(v, tuple) else v for key, v in self.given().items() if key != "extra"}
        values: dict[str, Any] = {"head_dim": given.pop("head_dim")}
        if "max_position_embeddings" in given:
            values["max_position_embeddings"] = given.pop("max_position_embeddings")
        if self.axis_map == "interleaved":
            given["mrope_interleaved"] = given.pop("axis_map") == "interleaved"
        own = {key: given.pop(key) for key in OWN_FIELDS if key in given}
        theta = {"rope_theta": self.rope_theta} if ROPE_TYPES[self.rope_type].takes("rope_theta") else {}
        values["rope_parameters"] = {"rope_type": self.rope_type, **theta, **given, **dict(self.extra)}
        return values | ({"rope_kernels": own} if own else {})


def _compute(config: RopeConfig) -> FrequencyParams:
    try:
        return check_params(config, ROPE_TYPES[config.rope_type](config))
    except RopeConfigError:
        raise
    except (ArithmeticError, ValueError) as error:
        raise RopeConfigError(
            "rope_type", f"{config.rope_type!r} cannot be computed from {config.given()}: {error}"
        ) from None


def _check_pairs(config: RopeConfig, pairs: int) -> None:
    if pairs > MAX_PAIRS:
        raise RopeConfigError(
            "head_dim",
            f"got {config.head_dim}, of which {2 * pairs} channels would be rotated; at most {2 * MAX_PAIRS} can be",
        )


def _rotation(config: RopeConfig, params: FrequencyParams) -> Rotation:
    # On these maps both axes use the same ladder. On all other maps every frequency belongs to one pair.
    shares = config.axis_map in AXIAL_MAPS and config.axis_map != "pixtral"
    span = params.num_frequencies * (2 if shares else 1)
    axes = axis_map(config.axis_map, span, config.mrope_section or ()) if config.axis_map else AxisMap(())
    pairs = span if axes.freq_index else params.num_rotated
    if config.rotary_offset + 2 * span > config.head_dim:
        raise RopeConfigError(
            "head_dim",
            f"got {config.head_dim}, rotary_offset {config.rotary_offset} and {2 * span} rotated channels do not fit",
        )
    _check_pairs(config, pairs)
    if not pairs:
        raise RopeConfigError("partial_rotary_factor", f"got {config.partial_rotary_factor!r}, no pair would rotate")
    halves = Rotation(
        head_dim=config.head_dim,
        num_pairs=pairs,
        distance=span // axes.blocks,
        rotary_offset=config.rotary_offset,
        blocks=axes.blocks,
        axis=axes.axis[:pairs],
        freq_index=axes.freq_index,
        phase=config.phase,
        table_dtype=config.table_dtype or "",
    )
    return _paired(halves, config.pairing)


def _paired(rotation: Rotation, pairing: str) -> Rotation:
    check_choice("pairing", pairing)
    if rotation.blocks > 1 and pairing != "half":
        raise RopeConfigError("pairing", f"got {pairing!r}, the parts of axis_map 'gemma4_vision' pair by 'half' only")
    rotated, span = rotation.num_pairs, rotation.distance * rotation.blocks
    if rotated < span and pairing == "interleaved_to_half":
        raise RopeConfigError("pairing", f"got {pairing!r}, which needs all pairs to rotate; {rotated} of {span} do")
    return replace(rotation, pairing=pairing)


def _shown(value: Any) -> str:
    if not isinstance(value, (list, tuple)):
        return repr(value)
    if len(value) > _LONGEST_SHOWN:
        return f"<{len(value)} values>"
    inner = ", ".join(map(_shown, value))
    if isinstance(value, list):
        return f"[{inner}]"
    return f"({inner},)" if len(value) == 1 else f"({inner})"
