"""Phases in fp32: the cosines and sines of any backend beside those of the same fp32 products in extended precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from support import oracle, tolerances
from support.cases import CONFIGS, Case, Made, config_of
from torch import Tensor

from rope_kernels.core.pairs import pairs, unit_pairs

__all__ = ["ANGLES", "CONFIG_NAMES", "MANY", "SOME_NAMES", "Phases", "any_angles", "flips", "near_and_far", "ulps_off"]

CONFIG_NAMES = [name for name in CONFIGS if name != "float32_phase"]
"""Of every rope type, which :func:`near_and_far` takes."""
SOME_NAMES = ["default", "yarn", "dynamic", "longrope", "table", "mrope_interleaved", "axial_gemma4"]
"""Of each kind of frequencies and axes."""
LENGTH = 100
"""Of sequences whose frequencies depend on it."""
WHOLE = [*range(8), 4095, 65521, 131071, 1048575, 2**24 - 1, 2**24 + 1, 2**28 + 12345, 2**31 - 1, -1, -131071, -(2**31)]
FRACTIONAL = [0.5, -0.25, 1e-3, 77.7, 4095.15625, -131071.5, 1e6 / 3, 1e-30]
HARDEST = [16367173 * 2.0**72, 2.0**100, 3.4e38, -1.1e10, 2.0**-14, -(2.0**-15), 1.5e-45]
"""The first is of all fp32 numbers the one nearest to a multiple of a quarter turn, by its size."""

ANGLES = st.lists(st.floats(-4e6, 4e6, width=32) | st.floats(width=32), min_size=1, max_size=40)
"""Of fp32, NaN and infinities included."""

Rotate = Callable[[Case, Made], Tensor]
"""Rotates the q of a case into a new tensor."""


def flips(got: np.ndarray, exact: np.ndarray, dtype: torch.dtype) -> int:
    """How many numbers of a table of ``dtype`` are not those of the exact ones, rounded to fp32 before."""
    ours, theirs = (torch.from_numpy(np.asarray(x, dtype=np.float32)).to(dtype) for x in (got, exact))
    return int((ours != theirs).sum())


def ulps_off(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Errors in units in the last place of the exact numbers, as longdouble."""
    return np.abs(got - exact) / np.spacing(np.abs(exact).astype(np.float32))


def angles_of(config: dict[str, Any], positions: Tensor) -> np.ndarray:
    """fp32 (tokens, pairs) products of (axes or 1, tokens) positions and fp32 frequencies."""
    pairs_rotated = config_of(Case("", config)).rotation().num_pairs
    freqs = oracle.inv_freq(config, LENGTH)[0][:pairs_rotated].astype(np.float32)
    rows = np.minimum(oracle.axes(config, len(freqs)), len(positions) - 1)
    with np.errstate(over="ignore", invalid="ignore"):
        return positions.numpy().astype(np.float32)[rows].T * freqs


@dataclass(frozen=True)
class Phases:
    """A config's fields, and (axes or 1, tokens) positions."""

    config: dict[str, Any]
    positions: Tensor

    def check(self, rotate: Rotate) -> None:
        """Assert that a backend is as near as torch's own cosine and sine would be, or nearer; NaN without an angle."""
        angle = angles_of(self.config, self.positions)
        wide = angle.astype(np.longdouble)
        with np.errstate(invalid="ignore"):
            exact = np.stack((np.cos(wide), np.sin(wide)))
        got = np.stack(self._cos_sin(rotate))
        none = ~np.isfinite(angle)
        assert np.isnan(got[:, none]).all()
        got, exact = got[:, ~none], exact[:, ~none]
        ulps = ulps_off(got, exact)
        worst = np.unravel_index(ulps.argmax(), ulps.shape)
        assert ulps.max() <= tolerances.FLOAT32_PHASE_ULPS, (ulps.max(), float(angle[~none][worst[1]]))
        torchs = torch.from_numpy(angle[~none])
        torchs = np.stack((torchs.cos().numpy(), torchs.sin().numpy()))
        for dtype in (torch.bfloat16, torch.float16):
            assert flips(got, exact, dtype) <= flips(torchs, exact, dtype)

    def _cos_sin(self, rotate: Rotate) -> tuple[np.ndarray, np.ndarray]:
        axes, tokens = self.positions.shape
        case = Case(
            "float32 phases", self.config, layout="thd", batch=1, tokens=tokens, q_heads=1, k_heads=0, unscaled=True,
            seq_len=LENGTH,
        )  # fmt: skip
        rotation = config_of(case).rotation()
        unit = unit_pairs(1, tokens, rotation, torch.device("cpu"))[0]
        positions = self.positions if axes > 1 else self.positions[0]
        made = Made(unit, None, positions, dict(layout="thd", seq_len=LENGTH), (unit.double(), None))
        first, second = pairs(rotate(case, made), rotation, written=True)
        return tuple(part.reshape(tokens, rotation.num_pairs).numpy() for part in (first, second))


def near_and_far(name: str, floating: bool = False) -> Phases:
    """A config of the case list at positions near and far, of either sign; ``floating``: fractional ones, too."""
    config = dict(CONFIGS[name], phase="float32")
    axes = int(oracle.axes(config, len(oracle.inv_freq(config, LENGTH)[0])).max()) + 1
    values = torch.tensor([*WHOLE, *FRACTIONAL] if floating else WHOLE, dtype=torch.float64)
    positions = torch.stack([values.roll(3 * axis) for axis in range(axes)])
    return Phases(config, positions if floating else positions.long())


MANY = Phases(dict(CONFIGS["llama3"], phase="float32"), torch.arange(0, 2**20, 61)[None])
"""More than two million cosines and sines."""


def any_angles(angles: list[float]) -> Phases:
    """Such angles, and the hardest ones, by fp32 positions times 1, -1, and frequencies that overflow or give 0."""
    positions = torch.tensor([[*angles, *HARDEST]], dtype=torch.float32)
    return Phases(dict(inv_freq=[1.0, -1.0, 1e10, 1e-12], head_dim=8, phase="float32"), positions)
