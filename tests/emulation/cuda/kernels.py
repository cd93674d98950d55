"""Cases that make the launcher choose each of its kernels, dtype by dtype: the case list alone is about results."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from support.calls import arguments, inputs
from support.cases import CASES, Case, make

from .calls import numbers_of

__all__ = ["KERNEL_CASES", "NUMBER_CASES"]

_MIXED = "interleaved_to_half"
_PAIRINGS = [("half", False), ("interleaved", False), (_MIXED, False), (_MIXED, True)]
_USUAL = (64, 80, 96, 128, 256)
_BY_8_BYTES = {torch.float32: 20, torch.float16: 72, torch.bfloat16: 72}
"""Head dimensions whose halves are aligned to 8 bytes only."""
_SEVERAL_AXES = dict(head_dim=64, rope_type="mrope", mrope_section=[8, 12, 12])


def _kernel_cases() -> Iterator[Case]:
    for dtype, by_8_bytes in _BY_8_BYTES.items():
        for pairing, inverse in _PAIRINGS:
            configs = [
                ("general", dict(_SEVERAL_AXES, pairing=pairing)),
                ("by 8 bytes", dict(head_dim=by_8_bytes, pairing=pairing)),
                *((f"head_dim {n}", dict(head_dim=n, pairing=pairing)) for n in _USUAL if pairing != _MIXED),
            ]
            for name, config in configs:
                what = f"kernel {str(dtype)[6:]} {pairing}{' inverse' if inverse else ''} {name}"
                yield Case(what, config, dtype=dtype, inverse=inverse, start=500)
    # batch entries that cannot be taken as one, of one token: the reciprocal of their number of tokens does not fit
    yield Case("kernel of decode", dict(head_dim=64), batch=3, tokens=1, positions="none", offset=(5, 70, 9000))


KERNEL_CASES = list(_kernel_cases())
NUMBER_CASES = [case for case in CASES if numbers_of(inputs(arguments(case, make(case))))]
"""Cases whose offset or length is one number for all."""
