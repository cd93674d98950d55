"""The one formula behind every rope type, in double precision on the host.

``f_j = theta ** (-2 j / freq_dim)``, ``w_j = clamp(a j + b f_j + c, 0, 1)`` and
``inv_freq_j = f_j * ((1 - w_j) / factor + w_j) * multiplier_j`` in radians per position.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["FrequencyParams", "fixed_point_turns"]

_TWO_PI_192 = 39440193395453077124792266728456537782926901730380179465120
"""2 pi times 2 ** 192."""


@dataclass(frozen=True)
class FrequencyParams:
    """What a kernel needs to compute inverse frequencies. A rope type makes it; the kernels do not know which one.

    Attributes:
        theta: base of the frequency ladder.
        freq_dim: ``d`` in ``theta ** (-2 j / d)``.
        num_frequencies: how many frequencies ``j`` the ladder has.
        rotated: how many of them are not zero (``None``: all).
        factor: divisor of the frequencies whose ramp is 0.
        ramp: ``(a, b, c)`` of the clamp above.
        attention_scaling: multiplies cos and sin.
        long_attention_scaling: the same for lengths above ``switch_length`` (``None``: equal).
        multipliers: ``()``, one row, or a (short, long) pair of rows, one factor per frequency ``j``.
        switch_length: sequences longer than this use the long row; 0 if there is none.
        dynamic_factor: the factor of dynamic NTK; 0 if theta does not grow.
        dynamic_length: the length, in tokens, above which theta grows.
    """

    theta: float
    freq_dim: int
    num_frequencies: int
    rotated: int | None = None
    factor: float = 1.0
    ramp: tuple[float, float, float] = (0.0, 0.0, 1.0)
    attention_scaling: float = 1.0
    long_attention_scaling: float | None = None
    multipliers: tuple[tuple[float, ...], ...] = ()
    switch_length: int = 0
    dynamic_factor: float = 0.0
    dynamic_length: int = 0

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies change with the sequence length."""
        return self.switch_length > 0 or self.dynamic_factor > 0

    @property
    def num_rotated(self) -> int:
        """How many frequencies of the ladder are not zero."""
        return self.num_frequencies if self.rotated is None else self.rotated

    def is_long(self, seq_len: int | None) -> bool:
        """Whether ``seq_len`` uses the long row; ``None`` is the initial state, which is short."""
        return seq_len is not None and 0 < self.switch_length < seq_len

    def scaling(self, seq_len: int | None = None) -> float:
        """The factor on cos and sin at ``seq_len``."""
        if self.is_long(seq_len) and self.long_attention_scaling is not None:
            return self.long_attention_scaling
        return self.attention_scaling

    def alpha(self, seq_len: int | None = None) -> float:
        """The growth of dynamic NTK at ``seq_len``: theta is multiplied by ``alpha ** (d / (d - 2))``."""
        if not self.dynamic_factor or seq_len is None or seq_len <= self.dynamic_length:
            return 1.0
        return self.dynamic_factor * seq_len / self.dynamic_length - (self.dynamic_factor - 1.0)

    def inv_freq(self, j: int, seq_len: int | None = None) -> float:
        """Frequency ``j`` in radians per position."""
        if j >= self.num_rotated:
            return 0.0
        f: float = self.theta ** (-2.0 * j / self.freq_dim)
        alpha = self.alpha(seq_len)
        if alpha != 1.0:
            f *= alpha ** (-2.0 * j / (self.freq_dim - 2))
        a, b, c = self.ramp
        w = min(max(a * j + b * f + c, 0.0), 1.0)
        f *= (1.0 - w) / self.factor + w
        if self.multipliers:
            f *= self.multipliers[min(int(self.is_long(seq_len)), len(self.multipliers) - 1)][j]
        return f

    def inv_freqs(self, index: Iterable[int], seq_len: int | None = None) -> list[float]:
        """Frequencies of several ``j``, in radians per position."""
        return [self.inv_freq(j, seq_len) for j in index]

    def all_finite(self) -> bool:
        """Whether all numbers are finite."""
        numbers = [self.theta, self.factor, *self.ramp, self.attention_scaling, self.dynamic_factor]
        numbers += [x for row in self.multipliers for x in row] + [self.long_attention_scaling or 0.0]
        return all(map(math.isfinite, numbers))


def fixed_point_turns(inv_freq: float) -> int:
    """Turns per position times 2 ** 64, modulo one turn, as the bits of an int64; exact for the given double."""
    numerator, denominator = inv_freq.as_integer_ratio()
    bits = ((numerator << 256) // (denominator * _TWO_PI_192)) % 2**64
    return bits - 2**64 if bits >= 2**63 else bits
