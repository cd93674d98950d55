"""The CUDA kernels that norm and rotate, through their launcher, as nvcc's PTX on the emulator."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import normed, normed_attempts
from support.attempts import bits
from support.cases import CONFIGS, Case

from emulation.cuda import build
from emulation.cuda.normed import EVERY_CUDA_CALL, KERNEL_CALLS, CudaBackwardAttempt, CudaNormedAttempt

if build.nvcc() is None:
    pytest.skip("there is no nvcc, which makes PTX of the CUDA kernels", allow_module_level=True)

from emulation.cuda.emulated import MULTIPROCESSORS, launcher

TARGETS = build.TARGETS
WAYS = list(product(TARGETS, (False, True)))
"""(target, in place)"""
ALONE = [
    call for call in normed.CALLS
    if call.case.name in ("half-bfloat16-forward", "interleaved-float16-forward", "partial-near", "head_dim80-half",
                          "head_dim512-half", "axial_qwen-near", "interleaved_to_half-bfloat16-forward")
]  # fmt: skip
"""Calls whose rows must not depend on the others."""


@pytest.fixture(scope="module")
def cuda():
    return launcher()


def covering(calls):
    """Every call in one way; not in step with the list of calls."""
    chosen = [(call, WAYS[(i + i // len(WAYS)) % len(WAYS)]) for i, call in enumerate(calls)]
    return [
        pytest.param(call, way, id=f"{call}-sm_{way[0]}-{'in_place' if way[1] else 'apart'}") for call, way in chosen
    ]


def run(cuda, attempt, arch):
    error = cuda.launch(attempt.call, arch)
    assert error is None, f"{error}: {cuda.errors}"
    assert len(cuda.launches) == (1 if any(x.numel() for x in attempt.inputs) else 0)


def attempted(cuda, arch):
    """Makes an attempt, for normed_attempts."""

    def attempt_of(call, in_place, made):
        attempt = CudaNormedAttempt(call, in_place, made)
        run(cuda, attempt, arch)
        return attempt

    return attempt_of


@pytest.mark.parametrize(("call", "way"), covering([*normed.CALLS, *KERNEL_CALLS]))
def test_call(cuda, call, way):
    attempted(cuda, way[0])(call, way[1], None).check()


@pytest.mark.full
@pytest.mark.parametrize(("call", "way"), covering(EVERY_CUDA_CALL))
def test_every_call(cuda, call, way):
    test_call(cuda, call, way)


@pytest.mark.parametrize(("call", "target"), [(c, TARGETS[i % len(TARGETS)]) for i, c in enumerate(ALONE)], ids=str)
def test_bits_do_not_depend_on_other_tokens(cuda, call, target):
    normed_attempts.check_alone(attempted(cuda, target), call)


@given(st.integers(1, 300), st.integers(1, 24), st.integers(0, 9), st.sampled_from(TARGETS))
@settings(deadline=None, max_examples=10)
def test_bits_do_not_depend_on_the_shape_of_the_launch(tokens, q_heads, k_heads, target):
    """Nor on the GPU, whose multiprocessors decide on it."""
    shape = dict(batch=1, tokens=tokens, q_heads=q_heads, k_heads=k_heads)
    case = Case("shapes", dict(head_dim=32), dtype=torch.bfloat16, **shape)
    cuda, call = launcher(), normed.NormedCall(case, normed.NORMS[0])
    results = []
    for multiprocessors in (MULTIPROCESSORS[0], MULTIPROCESSORS[-1]):
        with cuda.on_device(multiprocessors):
            results.append(attempted(cuda, target)(call, False, None))
    results[0].check()
    for one, other in zip(*(attempt.outputs for attempt in results), strict=True):
        assert torch.equal(bits(one), bits(other))


@pytest.mark.parametrize("target", TARGETS)
def test_tokens_past_all_sequences_are_copied(cuda, target):
    normed_attempts.check_tail(attempted(cuda, target))


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    ("dtype", "target"), list(zip((torch.float32, torch.float16, torch.bfloat16), TARGETS, strict=True)), ids=str
)
def test_hard_rows(cuda, dtype, target):
    normed_attempts.check_hard_rows(attempted(cuda, target), dtype)


@pytest.mark.parametrize(
    "name", ["half-bfloat16-forward", "interleaved-float32-forward", "partial-near", "view-odd-bfloat16"]
)
@pytest.mark.parametrize("kind", normed.NORMS, ids=str)
@pytest.mark.parametrize(("step", "shift"), [(1, 1), (1, 4), (3, 0)])
def test_weights_with_gaps_or_at_odd_addresses(cuda, name, kind, step, shift):
    (case,) = (case for case in normed.CAN_BE_NORMED if case.name == name)
    attempt = CudaNormedAttempt(normed.NormedCall(case, kind), in_place=True)
    for side, weight in attempt.weights.items():
        if weight is not None:
            memory = torch.full((shift + step * weight.numel(),), float("nan"), dtype=weight.dtype)
            attempt.weights[side] = memory[shift::step].copy_(weight)
    attempt.put_norms()
    run(cuda, attempt, TARGETS[shift % len(TARGETS)])
    attempt.check()


@pytest.mark.parametrize("target", TARGETS)
def test_tensors_of_2_to_the_31_elements(cuda, target, tmp_path):
    """Two tokens that lie 2**31 elements apart in a sparse file."""
    stride = 2**31
    whole = torch.from_file(str(tmp_path / "sparse"), shared=True, size=stride + 96, dtype=torch.bfloat16)
    case = Case("far apart", CONFIGS["partial"], batch=1, tokens=2, q_heads=1, k_heads=0, dtype=torch.bfloat16)
    attempt = CudaNormedAttempt(normed.NormedCall(case, normed.NORMS[0]), in_place=True)
    q = whole.as_strided(attempt.inputs[0].shape, (stride, stride, 96, 1)).copy_(attempt.inputs[0])
    attempt.call.tensors["q"] = q
    rows = attempt.call.fields.index(attempt.inputs[0].data_ptr())
    attempt.call.fields[rows : rows + 9] = [q.data_ptr(), q.data_ptr(), 1, *q.stride()[:3], *q.stride()[:3]]
    run(cuda, attempt, target)
    attempt.outputs[0].copy_(q)
    attempt.check()


def run_backward(cuda, call, target, parts, without=""):
    """Twice: the weights' gradients have the same bits."""
    attempts = [CudaBackwardAttempt(call, parts, without) for _ in range(2)]
    for attempt in attempts:
        error = cuda.launch(attempt.call, target)
        assert error is None, f"{error}: {cuda.errors}"
        assert len(cuda.launches) == 1
        attempt.check()
    for one, other in zip(*(attempt.partials.values() for attempt in attempts), strict=True):
        assert torch.equal(one, other)


def backward_of(calls):
    """Each for one target, in 1, 2, 3 or as many parts as there are tokens."""
    chosen = []
    for i, call in enumerate(call for call in calls if call.case.tokens and call.case.batch):
        target, parts = TARGETS[(i + i // 12) % len(TARGETS)], (1, 2, 3, None)[i % 4]
        tokens = call.case.batch * call.case.tokens
        chosen.append(pytest.param(call, target, min(tokens, parts or tokens), id=f"{call}-sm_{target}"))
    return chosen


@pytest.mark.parametrize(("call", "target", "parts"), backward_of([*normed.CALLS[::3], *KERNEL_CALLS]))
def test_backward(cuda, call, target, parts):
    run_backward(cuda, call, target, parts)


@pytest.mark.full
@pytest.mark.parametrize(("call", "target", "parts"), backward_of(EVERY_CUDA_CALL))
def test_backward_of_every_call(cuda, call, target, parts):
    run_backward(cuda, call, target, parts)


@pytest.mark.parametrize("without", ["q", "k"])
def test_backward_of_one(cuda, without):
    """Only q's results, or only k's, have a gradient, with a norm or without one."""
    for kind in (normed.NORMS[6], normed.NORMS[4], normed.NORMS[5]):
        (case,) = (case for case in normed.CAN_BE_NORMED if case.name == "interleaved_to_half-bfloat16-forward")
        run_backward(cuda, normed.NormedCall(case, kind), TARGETS[-1], 2, without)
