"""The parameters of the CUDA kernels (csrc/cuda/params.cuh and table.cuh), to read them without their padding."""

from __future__ import annotations

from ctypes import Array, Structure, c_bool, c_double, c_float, c_int32, c_int64, c_uint8, c_uint32, c_uint64, sizeof
from typing import Any

__all__ = ["SIZE", "TABLE_SIZE", "Settings", "table_values_of", "values_of"]

POINTER = c_uint64


def _structure(name: str, **fields: Any) -> Any:
    return type(name, (Structure,), {"_fields_": list(fields.items())})


Divisor = _structure("Divisor", by=c_uint32, reciprocal=c_uint32)
Chunks = _structure("Chunks", apart=c_int64, first=c_int32, per_pair=c_int32, block=c_int32)
Side = _structure("Side", data=POINTER, batch=c_int64, token=c_int64, head=c_int64, step=c_int64)
Tensor = _structure("Tensor", from_=Side, to=Side, heads=c_int32)
Span = _structure("Span", first=c_int32, last=c_int32)
Packed = _structure("Packed", bounds=POINTER, wide=c_bool, sequences=c_int64, stride=c_int64)
Positions = _structure("Positions", data=POINTER, kind=c_uint8, axis=c_int64, batch=c_int64, token=c_int64)
Lengths = _structure("Lengths", data=POINTER, stride=c_int64, number=c_int64)
Growth = _structure("Growth", start=c_int64, slope=c_double, power=c_double)
Settings = _structure(
    "Settings",
    q=Tensor, k=Tensor, read=Chunks, write=Chunks, copied=Span * 3, num_copied=c_int32, head_bytes=c_int32,
    in_place=c_bool, exchanges=c_bool, lanes=Divisor, head_slots=c_int32, head_slots_log2=c_int32,
    token_slots=c_int32, count=c_uint32, tokens_per_batch=c_uint32, batches_per_token=c_uint64, batched=c_bool,
    packed=Packed, positions=Positions, offset=Lengths, seq_len=Lengths, from_seq_len=Lengths, growth=Growth,
    switch_length=c_int64, scaling=c_float, long_scaling=c_float, jump=c_int32, long_start=c_int32,
    block_pairs=Divisor, entries=c_uint8, phase=c_uint8, table_dtype=c_uint8, inverse=c_bool,
)  # fmt: skip
TableSide = _structure("TableSide", data=POINTER, batch=c_int64, token=c_int64, channel=c_int64)
TableSettings = _structure(
    "TableSettings", cosine=TableSide, sine=TableSide, second=c_int64, step=c_int32, kind=c_uint8, wide=c_bool
)
TableParams = _structure("TableParams", at=Settings, table=TableSettings)
SIZE, TABLE_SIZE = 3000, sizeof(TableParams)
"""Bytes of parameters that are read, of kernels that compute angles and of those that read a table."""


def values_of(parameters: bytes, num_pairs: int) -> tuple[Any, ...]:
    """Every field of the settings, and the frequencies of the pairs after them."""
    size = sizeof(Settings)
    frequencies = parameters[size : size + 8 * num_pairs]
    return (*_flat(Settings.from_buffer_copy(parameters)), frequencies)


def table_values_of(parameters: bytes) -> tuple[Any, ...]:
    """Every field of what a kernel that reads a table was given."""
    return tuple(_flat(TableParams.from_buffer_copy(parameters)))


def _flat(value: Any) -> list[Any]:
    if isinstance(value, Array):
        return [number for item in value for number in _flat(item)]
    if isinstance(value, Structure):
        return [number for name, *_ in value._fields_ for number in _flat(getattr(value, name))]
    return [value]
