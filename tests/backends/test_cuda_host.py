"""The CUDA kernels compiled as plain C++ under AddressSanitizer and UBSan: every case, in both orders of threads."""

import pytest
from support.cases import CASES
from support.no_angles import NO_ANGLES
from support.normed import CALLS

from emulation.cuda import build, host
from emulation.cuda.calls import CudaAttempt
from emulation.cuda.kernels import KERNEL_CASES, NUMBER_CASES
from emulation.cuda.normed import KERNEL_CALLS, CudaBackwardAttempt, CudaNormedAttempt
from emulation.cuda.tables import SOME_TABLES, TABLES, TableAttempt

if build.nvcc() is None:
    pytest.skip("there is no nvcc, whose headers the CUDA kernels include", allow_module_level=True)


@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in_place"])
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_cases(backwards, in_place, tmp_path):
    attempts = [CudaAttempt(case, in_place) for case in (*CASES, *KERNEL_CASES)]
    wrong = host.run([*attempts, *(call.attempt(in_place, CudaAttempt) for call in NO_ANGLES)], tmp_path, backwards)
    assert not wrong, "\n".join(wrong)


def test_offsets_and_lengths_that_are_ints(tmp_path):
    assert not host.run([CudaAttempt(case, False, with_numbers=True) for case in NUMBER_CASES], tmp_path, False)


@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in_place"])
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_tables(backwards, in_place, tmp_path):
    wrong = host.run([TableAttempt(case, in_place) for case in (*TABLES, *SOME_TABLES)], tmp_path, backwards)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in_place"])
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_norms(backwards, in_place, tmp_path):
    wrong = host.run([CudaNormedAttempt(call, in_place) for call in (*CALLS, *KERNEL_CALLS)], tmp_path, backwards)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_gradients_of_norms(backwards, tmp_path):
    calls = [call for call in (*CALLS, *KERNEL_CALLS) if call.case.tokens and call.case.batch]
    attempts = [CudaBackwardAttempt(call, min(call.case.tokens, 1 + i % 3)) for i, call in enumerate(calls)]
    wrong = host.run(attempts, tmp_path, backwards)
    assert not wrong, "\n".join(wrong)


def test_sanitizers_see_a_call_that_is_wrong(tmp_path):
    attempt = CudaAttempt(CASES[0], in_place=False)
    attempt.call.tensors["q_out"] = attempt.call.tensors["q_out"][..., :-1, :]
    (wrong,) = host.run([attempt], tmp_path, backwards=False)
    assert wrong.startswith(str(attempt))
    assert "heap-buffer-overflow" in wrong
