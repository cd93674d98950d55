"""The objects that a patched model passes instead of cos and sin: positions, and the config to rotate by."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...api.cos_sin import cos_sin
from ...config import RopeConfig
from ...errors import RopeConfigError

__all__ = ["FORMS", "AngleInputs", "Angles", "Source"]

FORMS = ("halves", "neighbours", "half_width", "complex")
"""Where a table has a pair's angle: in both halves, at both neighbours, once, or once as a complex number."""


class Source:
    """What one rotary embedding computes for one layer type, as measured by its probe.

    Args:
        cfg: the frequencies, and the axes of positions.
        form: one of :data:`FORMS`.
        follows_dtype: whether the table has the dtype of the hidden states instead of float32.
    """

    def __init__(self, cfg: RopeConfig, form: str, follows_dtype: bool) -> None:
        self.cfg = cfg
        self.form = form
        self.follows_dtype = follows_dtype
        self.table_cfg = _fitted(cfg, cfg.rotary_dim, "interleaved" if form == "neighbours" else "half", False)
        self._fitted: dict[tuple[int, str, bool], RopeConfig | None] = {}

    def fitted(self, head_dim: int, pairing: str, trailing: bool) -> RopeConfig | None:
        """The config with the same frequencies for an apply function's heads and pairs, or ``None``.

        A traced graph only gets configs that exist already; without one, the table kernel serves the call.
        """
        key = (head_dim, pairing, trailing)
        if key not in self._fitted and not torch.compiler.is_compiling():
            self.prepare(*key)
        return self._fitted.get(key)

    def prepare(self, head_dim: int, pairing: str, trailing: bool) -> None:
        """Make the config of :meth:`fitted` ahead of time."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the config warned when it was read
            try:
                self._fitted[head_dim, pairing, trailing] = _fitted(self.cfg, head_dim, pairing, trailing)
            except RopeConfigError:
                self._fitted[head_dim, pairing, trailing] = None


def _fitted(cfg: RopeConfig, head_dim: int, pairing: str, trailing: bool) -> RopeConfig:
    """``cfg`` for heads of another size; RopeConfigError if its frequencies would differ."""
    changes: dict[str, Any] = {"pairing": pairing, "rotary_offset": head_dim - cfg.rotary_dim if trailing else 0}
    if head_dim != cfg.head_dim:
        changes["head_dim"] = head_dim
        if cfg.inv_freq_table is None:
            # half a channel more, so that rounding cannot drop one
            share = min(1.0, (cfg.ladder_dim + 0.5) / head_dim)
            changes["partial_rotary_factor"] = 1.0 if cfg.ladder_dim == head_dim else share
    made = cfg.replace(**changes)
    if not torch.equal(made.inv_freq(), cfg.inv_freq()):
        raise RopeConfigError("head_dim", f"got {head_dim}, on which the frequencies differ from {cfg.head_dim}'s")
    return made


class AngleInputs:
    """The inputs from which the angles of one call are computed; its cos and its sin share them.

    Args:
        positions: (batch or 1, tokens), or with several axes (axes, batch or 1, tokens).
        lead: the table's dimensions before its last.
        seq_len: 0-d int64, for the types whose frequencies depend on it.
        source: the config and the form of the table.
        dtype: of the table that the model's own code would build.
    """

    def __init__(
        self, positions: Tensor, lead: tuple[int, ...], seq_len: Tensor | None, source: Source, dtype: torch.dtype
    ) -> None:
        self.positions = positions
        self.lead = lead
        self.seq_len = seq_len
        self.source = source
        self.dtype = dtype

    def table(self) -> tuple[Tensor, Tensor]:
        """cos and sin in the form of the model's own rotary embedding."""
        source, dtype = self.source, torch.float32 if self.source.form == "complex" else self.dtype
        seq_len = self.seq_len if source.cfg.depends_on_length else None
        cos, sin = cos_sin(self.positions, source.table_cfg, dtype, seq_len=seq_len)
        if source.form in ("half_width", "complex"):
            cos, sin = cos[..., : cos.shape[-1] // 2], sin[..., : sin.shape[-1] // 2]
        return cos.reshape(*self.lead, cos.shape[-1]), sin.reshape(*self.lead, sin.shape[-1])


class Angles:
    """A lazy table of cosines, of sines, or of both as complex numbers.

    Layers can pass it on as it is, and a replaced apply function computes the angles in its kernel. Any other use
    builds the exact table and continues with that tensor.

    It is a plain object and no tensor: FSDP2 and autocast cast tensors, checkpointing keeps tensors, accelerate moves
    objects that have a ``to``, and Dynamo traces its attributes.

    Args:
        inputs: the positions and the config to rotate by.
        part: ``"cos"``, ``"sin"`` or ``"complex"``.
        negated: whether the sign is flipped.
        norms: of q and k, left to the function that rotates (:class:`.norms.CallNorms`).
    """

    def __init__(self, inputs: AngleInputs, part: str, negated: bool = False, norms: Any = None) -> None:
        self.inputs = inputs
        self.part = part
        self.negated = negated
        self.norms = norms

    def to(self, *args: Any, **kwargs: Any) -> Angles | Tensor:
        """A copy on another device, as ``Tensor.to``; for another dtype, the table in that dtype."""
        inputs, device = self.inputs, kwargs.get("device")
        for arg in args:
            if isinstance(arg, (torch.device, str, int)) and not isinstance(arg, bool):
                device = arg
            elif isinstance(arg, (torch.dtype, Tensor)):
                return self.tensor().to(*args, **kwargs)
        if kwargs.get("dtype") is not None:
            return self.tensor().to(*args, **kwargs)
        if device is None or torch.device(device) == inputs.positions.device:
            return self
        seq_len = None if inputs.seq_len is None else inputs.seq_len.to(device)
        moved = AngleInputs(inputs.positions.to(device), inputs.lead, seq_len, inputs.source, inputs.dtype)
        return Angles(moved, self.part, self.negated, self.norms)

    def with_norms(self, norms: Any) -> Angles:
        """The same angles with these norms, or with ``None``."""
        return Angles(self.inputs, self.part, self.negated, norms)

    def tensor(self) -> Tensor:
        """The table as a tensor.

        Raises:
            RuntimeError: norms are left to the function that rotates, which a tensor could not tell it.
        """
        if self.norms is not None:
            raise RuntimeError(
                f"a module with fused norms computes with {self.part}; keep its norms (fuse_norms=False)"
            )
        cos, sin = self.inputs.table()
        table = {"cos": cos, "sin": sin}.get(self.part)
        table = torch.complex(cos, sin) if table is None else table
        return -table if self.negated else table

    def __neg__(self) -> Angles:
        return Angles(self.inputs, self.part, not self.negated, self.norms)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.tensor(), name)

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor()[index]

    def __len__(self) -> int:
        return self.inputs.lead[0]

    def __repr__(self) -> str:
        """The part and the shape of the table, without its values."""
        return f"Angles({self.part}, {(*self.inputs.lead, self.inputs.source.table_cfg.rotary_dim)})"

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a torch function with the table."""
        return func(*_as_tensors(args), **_as_tensors(kwargs or {}))


def _as_tensors(value: Any) -> Any:
    if isinstance(value, Angles):
        return value.tensor()
    if isinstance(value, dict):
        return {key: _as_tensors(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)([_as_tensors(item) for item in value])
    return value


def _operator(name: str) -> Callable[..., Any]:
    def apply(self: Angles, *args: Any) -> Any:
        return getattr(self.tensor(), name)(*_as_tensors(args))

    return apply


# Python looks operators up on the class, without __getattr__.
for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "matmul", "pow"):
    setattr(Angles, f"__{_name}__", _operator(f"__{_name}__"))
