"""The Triton kernels, through their launcher, in Triton's interpreter: every case, and what only they have."""

import dataclasses

import pytest
import torch
from calls import arguments

from cases import CASES, CONFIGS, Case, check, make, strided
from rope_kernels import ops
from rope_kernels.backends import reference
from rope_kernels.rotation import Rotation
from rope_kernels.spec import parse_spec

pytest.importorskip("triton")

from emulation.interpreter import interpreted
from rope_kernels.backends import triton_kernels, triton_launch, triton_plan

BY_NAME = {case.name: case for case in CASES}
INTEGERS = {2: torch.int16, 4: torch.int32}


@pytest.fixture(scope="module", autouse=True)
def _interpreter():
    with interpreted(triton_kernels.rotate_kernel, triton_kernels.rotate_table_kernel):
        yield


@pytest.fixture
def many_tokens(monkeypatch):
    """Launch shapes for many tokens, whatever their number."""
    monkeypatch.setattr(triton_plan, "PREFILL_TOKENS", 1)
    triton_plan.launch_tile.cache_clear()
    yield
    triton_plan.launch_tile.cache_clear()


def bits(x):
    return x.view(INTEGERS[x.element_size()])


def gaps(x):
    """The elements of a view's storage that are not in the view, as integers."""
    whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    inside = torch.zeros(whole.shape, dtype=torch.bool)
    inside.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
    return bits(whole)[~inside].clone()


def launch(case, made, outputs, **changes):
    *run_time, spec, layout, inverse, unscaled = arguments(case, made)
    inputs = dataclasses.replace(ops.inputs_of(run_time, layout, inverse, unscaled), **changes)
    views = [None if x is None else ops.tokens_first(x, layout) for x in (made.q, made.k, *outputs)]
    triton_launch.rotate(*views, inputs, parse_spec(spec))


def run(case, in_place):
    """Rotate a case into NaN or in place; nothing but the results may change."""
    made = make(case)
    inputs = [x for x in (made.q, made.k) if x is not None]
    before = [x.clone() for x in inputs]
    outputs = inputs if in_place else [strided(torch.full_like(x, float("nan")), case.view) for x in inputs]
    around = [gaps(y) for y in outputs]
    launch(case, made, [*outputs, None][:2])
    for x, y, old, rest, expected in zip(inputs, outputs, before, around, made.expected, strict=False):
        check(case, old, y, expected)
        assert torch.equal(gaps(y), rest)
        assert in_place or torch.equal(bits(x), bits(old))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case):
    run(case, in_place=False)


@pytest.mark.parametrize("case", CASES[::2], ids=str)
def test_case_in_place(case):
    run(case, in_place=True)


MANY = [c for c in CASES if c.name.startswith(("interleaved", "half-", "head_dim96", "head_dim80", "packed-seq_len-l"))]


@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in_place"])
@pytest.mark.parametrize("case", MANY, ids=str)
def test_many_tokens(case, in_place, many_tokens):
    run(case, in_place)


@pytest.mark.parametrize("tokens", [31, 64])
def test_full_and_partial_tiles_of_many_tokens(tokens, many_tokens):
    run(Case("tiles", CONFIGS["default"], batch=1, tokens=tokens, start=5, dtype=torch.bfloat16), in_place=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_dtypes_of_positions(dtype):
    case = BY_NAME["positions-float" if dtype.is_floating_point else "positions-seq"]
    made = make(case)
    made.positions = made.positions.to(dtype)
    out, same = (torch.empty_like(made.q), torch.empty_like(made.k)), (torch.empty_like(made.q), None)
    launch(case, made, out)
    reference_positions = made.positions.double() if dtype.is_floating_point else made.positions.long()
    inputs = ops.inputs_of((reference_positions, None, None, None, None), case.layout, False, False)
    reference.rotate(made.q, None, *same, inputs, parse_spec(arguments(case, made)[5]))
    torch.testing.assert_close(out[0], same[0], rtol=0, atol=3e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_table_dtype_rounds_cosines_and_sines(dtype):
    case = Case("rounded", dict(head_dim=64, table_dtype=dtype, phase="float32"), start=40)
    made = make(case)
    got, wanted = (tuple(map(torch.empty_like, (made.q, made.k))) for _ in range(2))
    launch(case, made, got)
    *run_time, spec, layout, inverse, unscaled = arguments(case, made)
    inputs = ops.inputs_of(run_time, layout, inverse, unscaled)
    reference.rotate(made.q, made.k, *wanted, inputs, parse_spec(spec))
    error = (got[0] - wanted[0]).abs()
    assert error.median() < 1e-7  # where the two sines straddle a rounding boundary they may differ by one step
    assert error.max() < 0.02


def test_one_of_two_in_place():
    case = BY_NAME["interleaved_to_half-bfloat16-forward"]
    made = make(case)
    q, k_out = made.q.clone(), torch.full_like(made.k, float("nan"))
    launch(case, made, (made.q, k_out))
    check(case, q, made.q, made.expected[0])
    check(case, made.k, k_out, made.expected[1])


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("name", ["partial-near", "nope_first-near", "proportional-near", "packed-scaled-tail"])
def test_what_does_not_turn_is_copied_bit_by_bit(name):
    case = BY_NAME[name]
    made = make(case)
    rotation = parse_spec(arguments(case, made)[5]).rotation
    keep = torch.ones(rotation.head_dim, dtype=torch.bool)
    for member in reference.pairs(keep, rotation, written=True):
        member.fill_(False)
    tokens = slice(None) if not case.lengths else slice(sum(case.lengths), None)
    keep = keep if not case.lengths else slice(None)
    made.q[..., tokens, :, keep] = float("inf")
    made.k[..., tokens, :, keep] = float("nan")
    for in_place in (False, True):
        out = (made.q, made.k) if in_place else (torch.empty_like(made.q), torch.empty_like(made.k))
        launch(case, made, out)
        for x, y in zip((made.q, made.k), out, strict=True):
            assert torch.equal(bits(x[..., tokens, :, keep]), bits(y[..., tokens, :, keep]))


def test_no_pairs_at_all_is_a_copy():
    case = BY_NAME["default-near"]
    made = make(case)
    spec = dataclasses.replace(parse_spec(arguments(case, made)[5]), rotation=Rotation(64, 0, 32))
    inputs = ops.inputs_of((made.positions, None, None, None, None), "bshd", False, False)
    out = torch.empty_like(made.q), torch.empty_like(made.k)
    triton_launch.rotate(made.q, made.k, *out, inputs, spec)
    assert torch.equal(out[0], made.q)
    assert torch.equal(out[1], made.k)


def test_tensors_of_2_to_the_31_elements(tmp_path):
    """Two tokens that lie 2**31 elements apart in a sparse file."""
    stride = 2**31
    whole = torch.from_file(str(tmp_path / "sparse"), shared=True, size=stride + 64, dtype=torch.bfloat16)
    case = Case("far apart", CONFIGS["default"], batch=1, tokens=2, q_heads=1, k_heads=0, dtype=torch.bfloat16)
    made = make(case)
    before = made.q
    made.q = whole.as_strided(made.q.shape, (stride, stride, 64, 1))
    made.q.copy_(before)
    launch(case, made, (made.q, None))
    check(case, before, made.q, made.expected[0])


TABLE_SHAPES = [(64, 64), (96, 24), (80, 18)]


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("pairing", ["half", "interleaved", "interleaved_to_half"])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), TABLE_SHAPES)
@pytest.mark.parametrize(("dtype", "table_dtype"), [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_table(dtype, table_dtype, head_dim, rotary_dim, pairing, inverse):
    generator = torch.Generator().manual_seed(head_dim)
    q = torch.randn(2, 4, 3, head_dim, generator=generator).to(dtype).transpose(1, 2)
    k = torch.randn(2, 3, 2, head_dim, generator=generator).to(dtype)
    cos, sin = (torch.randn(1 + inverse, 3, rotary_dim, generator=generator).to(table_dtype) for _ in range(2))
    rotation = Rotation(head_dim, rotary_dim // 2, rotary_dim // 2, pairing=pairing)
    exact = [torch.empty(x.shape, dtype=torch.float64) for x in (q, k)]
    reference.rotate_table(q.double(), k.double(), *exact, cos.double(), sin.double(), rotation, inverse)
    digits = {torch.float32: 24, torch.bfloat16: 8}[dtype]
    for in_place in (False, True):
        out = [x.clone() if in_place else torch.full_like(x, float("nan")) for x in (q, k)]
        triton_launch.rotate_table(*(out if in_place else (q, k)), *out, cos, sin, rotation, inverse)
        for y, wanted in zip(out, exact, strict=True):
            assert ((y.double() - wanted).abs() <= 2.0**-digits * wanted.abs() + 1e-6).all()
