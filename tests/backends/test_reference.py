"""The rotation in plain torch, where the case list does not reach: it holds what the kernels hold."""

import pytest
from hypothesis import given
from support.calls import rotate
from support.float32_phases import ANGLES, CONFIG_NAMES, MANY, any_angles, near_and_far

import rope_kernels as rk


def rotated(case, made):
    with rk.use_backend("reference"):
        return rotate(case, made)[0]


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_float32_phases_are_as_good_as_torchs(name):
    for floating in (False, True):
        near_and_far(name, floating).check(rotated)


@given(ANGLES)
def test_float32_phases_of_any_angle_are_as_good_as_torchs(angles):
    any_angles(angles).check(rotated)


def test_a_million_float32_phases_are_as_good_as_torchs():
    MANY.check(rotated)
