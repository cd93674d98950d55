"""A case's tensors on a device, laid out there as on the CPU, and brought back with all that lies around them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from support.attempts import bits, gaps
from support.calls import arguments
from support.cases import CONFIGS, Case, Made, check, make, strided
from torch import Tensor

from rope_kernels import RopeConfig, use_backend
from rope_kernels.ops import operators

__all__ = ["Placed", "config_named", "moved", "placed"]


def config_named(name: str, **changes: Any) -> RopeConfig:
    """Of ``tests/cases.py``."""
    configs: dict[str, Any] = CONFIGS
    return RopeConfig(**{**configs[name], **changes})


def moved(x: Tensor, device: torch.device | str) -> Tensor:
    """The same view of a copy of ``x``'s whole storage: ``to`` would drop the gaps of a strided view."""
    whole = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())
    return whole.to(device, copy=True).as_strided(x.shape, x.stride(), x.storage_offset())


def _anywhere(value: Any, device: torch.device) -> Any:
    return moved(value, device) if isinstance(value, Tensor) else value


def placed(made: Made, device: torch.device) -> Made:
    """A case's tensors on ``device``; what is expected stays on the CPU."""
    q, k, positions = (_anywhere(x, device) for x in (made.q, made.k, made.positions))
    options = {name: _anywhere(value, device) for name, value in made.options.items()}
    return replace(made, q=q, k=k, positions=positions, options=options)


class Placed:
    """A case on a device, about to be rotated in place or into NaN.

    Attributes:
        made: the case as it was, on the CPU.
        there: the same on the device.
        outputs: where the results go, on the device.
    """

    def __init__(self, case: Case, device: torch.device, in_place: bool, made: Made | None = None) -> None:
        self.case, self.in_place = case, in_place
        self.made = made or make(case)
        self.there = placed(self.made, device)
        self.inputs = [x for x in (self.made.q, self.made.k) if x is not None]
        there = [x for x in (self.there.q, self.there.k) if x is not None]
        self._blank = self.inputs if in_place else [self._nan_like(x) for x in self.inputs]
        self.outputs = there if in_place else [moved(x, device) for x in self._blank]

    def _nan_like(self, x: Tensor) -> Tensor:
        return strided(torch.full_like(x, float("nan")), self.case.view)

    def rotate(self, backend: str) -> list[Tensor]:
        """Rotate by ``backend``; the results, on the CPU."""
        there = self.there
        with use_backend(backend):
            rest = arguments(self.case, there)
            if self.in_place:
                operators.rotate_(there.q, there.k, *rest)
            else:
                operators.rotate_out(there.q, there.k, *rest, *[*self.outputs, None][:2])
        return [moved(y, "cpu") for y in self.outputs]

    def check(self, results: list[Tensor]) -> None:
        """Assert that ``results`` of :meth:`rotate` are right and that nothing else was written."""
        for x, y, expected in zip(self.inputs, results, self.made.expected, strict=False):
            assert expected is not None
            check(self.case, x, y, expected)
        self.check_the_rest(results)

    def check_the_rest(self, results: list[Tensor]) -> None:
        """Assert that nothing but the results was written."""
        for blank, y in zip(self._blank, results, strict=True):
            assert torch.equal(gaps(y), gaps(blank)), "written between the rows of an output"
        if not self.in_place:
            pairs = zip(self.inputs, (self.there.q, self.there.k), strict=False)
            assert all(y is not None and _same_bits(x, y) for x, y in pairs), "an input was written"
        before = {"positions": self.made.positions, **self.made.options}
        after = {"positions": self.there.positions, **self.there.options}
        for name, value in before.items():
            assert not isinstance(value, Tensor) or torch.equal(value, after[name].cpu()), f"{name} was written"


def _same_bits(x: Tensor, y: Tensor) -> bool:
    back = moved(y, "cpu")
    return torch.equal(bits(x), bits(back)) and torch.equal(gaps(x), gaps(back))
