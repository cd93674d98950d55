"""The tolerances of the tests, with their reasons. None is widened to make a test pass.

Values are of order 1 where nothing else is said. Names ending in ``_REL`` are relative, ``_EPS`` are factors of the
largest value, the others are arguments of ``torch.testing.assert_close``. A bound that holds for one formula or one
listed number only, of config, CLI and mathematics, stands in its test.
"""

from __future__ import annotations


def _absolute(atol: float) -> dict[str, float]:
    return {"rtol": 0.0, "atol": atol}


def _both(tolerance: float) -> dict[str, float]:
    return {"rtol": tolerance, "atol": tolerance}


# Rotations
CONTRACT_EPS = 5e-7
"""The README's contract in fp32, of max |x|, to position 2**24; a 16-bit result may be one rounding away besides."""
FAR_CONTRACT_EPS = 1e-6
"""The same to position 2**31."""
FLOAT32_PHASE_ULPS = 0.52
"""Cosines and sines with phase="float32", of any fp32 angle, in units in their last place. 0.5 is the one rounding;
torch's own are off by 0.6 on CPUs."""
FLOAT32_PHASE_EPS = 2e-7
"""A rotation by them, of max |x|, at any position: 3.1e-8 each for the cosine and the sine of the two members, and
1.2e-7 for two products and a sum, which may be up to 1.4 max |x|."""
RE_ROTATED_EPS = 3 * CONTRACT_EPS
"""Two rotations that were made, one that is expected."""
ADJOINT_EPS = 1e-6
"""Of the norms: two rotations, each within the contract."""
PRODUCT_ROUNDED = _absolute(5e-7)
"""A product may be rounded before it is added, or not."""
TWO_WAYS = _absolute(1e-6)
"""One rotation by two ways in fp32: one rounding each."""
THERE_AND_BACK = _absolute(2e-6)
"""Two rotations in a row, or one of transformers, which rounds every product."""
FRACTIONAL = _absolute(3e-6)
"""A kernel against the reference at fractional positions, where the oracle knows no answer."""
ROUNDED_TABLE = _absolute(0.02)
"""Cosines and sines rounded to bf16: those that straddle a rounding boundary differ by one step."""
AGAINST_REFERENCE = _absolute(1e-5)
"""Native against the reference, over rope types that scale their results."""
TABLE_PRODUCT = 1e-6
"""A rotation by a caller's table in fp32, besides the rounding of the result."""

# Gradients and compilation
NORMED_GRADIENT_EPS = 1e-6
"""Of a normed and rotated row, of the largest: a rotation within the contract, and as much for a mean of products and a
difference; of a weight, a sum of such products."""
GRADIENT = _absolute(1e-5)
"""Of sums of squares or cubes of rotated values."""
SECOND_GRADIENT = _absolute(1e-4)
"""A second derivative of sums of cubes: six times a product of two rotations, rotated."""
SECOND_TABLE_GRADIENT = {"rtol": 1e-4, "atol": 1e-2}
"""Of sums of squared gradients, summed over heads and batch."""
NORM_GRADIENT_REL = 2e-5
"""Of a norm, of the sum of the absolute terms or of the largest one: fp32 sums over heads, tokens and channels."""
SUM = _both(1e-4)
"""Sums over whole tensors, in another order."""
SQUARED_GRADIENT = {"rtol": 1e-6, "atol": 1e-5}
"""Of sums of squares, by transformers and here."""
COMPILED = _both(1e-5)
"""Compiled and eager matrix products sum in another order."""
COMPILED_GRADIENT = _both(1e-4)
"""The same through two layers."""
COMPILED_CALL = _both(1e-6)
"""Of one rotation."""

# Models
MODEL = _absolute(1e-5)
"""Logits and gradients around 1: transformers rounds every angle and every product, here there is one rounding."""
CHECKPOINTED = _absolute(1e-6)
"""The same operations twice."""
SEVERAL_PROCESSES = {"rtol": 1e-4, "atol": 1e-5}
"""Sums over processes are in another order."""
BF16_RATIO = 1.05
"""Median over seeds of a bf16 model's distance from fp32, by that of transformers."""
SWAPPED = _absolute(1e-3)
"""Hidden states of a whole model with the drop-in, whose frequencies differ from transformers' by FP32_TABLE_REL."""

# Frequencies
FORMULA_REL = 1e-12
"""A formula in float64, against 40 digits or against the same formula elsewhere."""
FP32_TABLE_REL = 2e-5
"""transformers' fp32 frequencies are off by up to 7e-6."""
FP32_ANGLE = _absolute(2e-5)
"""Cosines and sines of positions below 10, by such frequencies."""
FP32_FAR_ANGLE = _absolute(1e-4)
"""The same rotating values, or at positions below 100."""

# Other libraries
FLOAT32_ANGLES = _absolute(4e-5)
"""torchtitan's angles are fp32 products: at position 64 they are off by 4e-6, times values up to 5."""
TITAN_LOGITS = _absolute(1e-5)
"""Six layers with such angles up to position 13, logits up to 5."""
GRADIENT_REL = 1e-5
"""Of the largest gradient: a rotation by fp32 angles up to position 64, and back."""
