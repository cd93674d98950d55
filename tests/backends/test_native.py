"""The native CPU kernels: every instruction set over the shared cases, threads, alignment, and 16-bit odds and ends."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tolerances
from support.attempts import Attempt
from support.calls import arguments, rotate
from support.cases import CASES, CONFIGS, Case, check, config_of, make, tokens_first
from support.float32_phases import ANGLES, CONFIG_NAMES, MANY, any_angles, near_and_far
from support.no_angles import NO_ANGLES

import rope_kernels as rk
from rope_kernels.backends import native, reference
from rope_kernels.backends.inputs import Inputs
from rope_kernels.core.spec import parse_spec
from rope_kernels.ops import operators

ISAS = native.isas()
CONFIG = rk.RopeConfig(**CONFIGS["llama3"])


@pytest.fixture(autouse=True)
def _native():
    assert native.unavailable() is None, f"the native extension is not there: {native.unavailable()}"
    yield
    native.force_isa("")


def test_the_portable_kernel_is_always_built():
    assert ISAS[-1] == "portable"
    assert native.isa() == ISAS[0]
    with pytest.raises(ValueError, match=r"isa: got 'mmx', allowed are .*portable"):
        native.force_isa("mmx")


def test_the_instruction_set_that_this_machine_is_fastest_on_comes_first():
    cpuinfo = Path("/proc/cpuinfo").read_text()
    features = set(re.search(r"^(?:flags|Features)\s*:(.*)", cpuinfo, re.M)[1].split())
    needed = {"avx512": {"avx512bw", "avx512dq", "avx512vl"}, "avx2": {"avx2", "fma", "f16c"}, "portable": set()}
    expected = [isa for isa in needed if needed[isa] <= features]
    if "avx512" in expected and "avx512_bf16" in features:
        expected.insert(0 if "AuthenticAMD" in cpuinfo else 1, "avx512_bf16")
    assert expected == ISAS


def rotate_and_check(case, isa):
    native.force_isa(isa)
    made = make(case)
    q, k = rotate(case, made)
    check(case, made.q, q, made.expected[0])
    if k is not None:
        check(case, made.k, k, made.expected[1])
    return made, q, k


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in_place"])
@pytest.mark.parametrize("call", NO_ANGLES, ids=str)
def test_a_position_without_an_angle_gives_nan_to_the_pairs_it_rotates(call, in_place, isa):
    native.force_isa(isa)
    attempt = call.attempt(in_place, Attempt)
    q, k = [*attempt.inputs, None][:2]
    operators.rotate_out(q, k, *arguments(attempt.case, attempt.made), *[*attempt.outputs, None][:2])
    attempt.check()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case, isa):
    made, q, k = rotate_and_check(case, isa)
    args = arguments(case, made)
    out = [None if x is None else torch.full_like(x, float("nan")) for x in (made.q, made.k)]
    operators.rotate_out(made.q, made.k, *args, *out)
    operators.rotate_(made.q, made.k, *args)
    assert torch.equal(out[0], q)
    assert torch.equal(made.q, q)
    if k is not None:
        assert torch.equal(out[1], k)
        assert torch.equal(made.k, k)


def rotated(case, made):
    return rotate(case, made)[0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_float32_phases_are_as_good_as_torchs(name, isa):
    native.force_isa(isa)
    for floating in (False, True):
        near_and_far(name, floating).check(rotated)


@given(ANGLES, st.sampled_from(ISAS))
def test_float32_phases_of_any_angle_are_as_good_as_torchs(angles, isa):
    native.force_isa(isa)
    any_angles(angles).check(rotated)


@pytest.mark.parametrize("isa", ISAS)
def test_a_million_float32_phases_are_as_good_as_torchs(isa):
    native.force_isa(isa)
    MANY.check(rotated)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pairing", ["half", "interleaved", "interleaved_to_half"])
def test_any_number_of_pairs(isa, dtype, pairing):
    """The usual numbers, and every remainder that a vector can leave, on rows aligned to words and on others."""
    for head_dim in (2, 4, 6, 10, 24, 32, 34, 48, 64, 66, 96, 98, 128, 160, 256, 320):
        for view in ("dense", "odd"):
            config = dict(head_dim=head_dim, pairing=pairing)
            case = Case(f"pairs{head_dim}", config, dtype=dtype, view=view, start=50, k_heads=0)
            made, q, _ = rotate_and_check(case, isa)
            rk.apply_rope_(made.q, None, made.positions, config_of(case))
            assert torch.equal(made.q, q)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rotary_dim", [32, 64, 96])
def test_halves_that_are_further_apart_than_they_are_long(isa, dtype, rotary_dim):
    """Of the usual lengths, with channels that are not rotated between them."""
    config = dict(head_dim=256, rope_type="proportional", partial_rotary_factor=rotary_dim / 256)
    rotate_and_check(Case(f"proportional{rotary_dim}", config, dtype=dtype, start=50), isa)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pairing", ["half", "interleaved", "interleaved_to_half"])
@pytest.mark.parametrize(("head_dim", "heads"), [(64, 64), (128, 32), (256, 16)])
def test_threads_and_streaming_stores_do_not_change_a_bit(dtype, pairing, head_dim, heads):
    config = rk.RopeConfig(head_dim=head_dim, pairing=pairing)
    q, k = (torch.randn(1, 1200, h, head_dim).to(dtype) for h in (heads, 8))
    alone = rk.apply_rope(q, k, None, config)
    torch.set_num_threads(2)
    try:
        together = rk.apply_rope(q, k, None, config)
        given = rk.apply_rope(q, k, None, config, out=(torch.empty_like(q), torch.empty_like(k)))
        rk.apply_rope_(q, k, None, config)
    finally:
        torch.set_num_threads(1)
    for a, b, c, d in zip(alone, together, given, (q, k), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert torch.equal(a, d)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pairing", ["half", "interleaved", "interleaved_to_half"])
@pytest.mark.parametrize("head_dim", [64, 80, 512])
def test_heads_before_tokens_do_not_change_a_bit(isa, dtype, pairing, head_dim):
    """Several blocks of tokens, the last of them short, and of heads, on one thread and on two."""
    native.force_isa(isa)
    config = rk.RopeConfig(head_dim=head_dim, pairing=pairing)
    q, k = (torch.randn(2, 300, heads, head_dim).to(dtype) for heads in (11, 1))
    positions = torch.randint(2**20, (2, 300))
    wanted = rk.apply_rope(q, k, positions, config)
    q, k = (x.transpose(1, 2).contiguous() for x in (q, k))
    try:
        for threads in 1, 2:
            torch.set_num_threads(threads)
            for a, b in zip(rk.apply_rope(q, k, positions, config, layout="bhsd"), wanted, strict=True):
                assert torch.equal(a.transpose(1, 2), b)
    finally:
        torch.set_num_threads(1)
    rk.apply_rope_(q, k, positions, config, layout="bhsd")
    assert torch.equal(q.transpose(1, 2), wanted[0])
    assert torch.equal(k.transpose(1, 2), wanted[1])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("head_dim", [64, 96], ids=lambda d: f"d{d}")
@pytest.mark.parametrize("scaled", [False, True], ids=["identity", "ties"])
def test_every_number_is_rounded_as_torch_does(isa, dtype, pairing, head_dim, scaled):
    """At position 0 a rotation is a product with the scaling: of 1, or of what ends every odd mantissa in a tie."""
    native.force_isa(isa)
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    q = torch.zeros(bits.numel() // 32, head_dim, dtype=torch.int16)
    q[:, :64:2] = bits.view(-1, 32)
    q = q.view(dtype)[:, None]
    scaling = 1.0 + torch.finfo(dtype).eps / 2 * scaled
    config = rk.RopeConfig.from_inv_freq([1.0] * (head_dim // 2), pairing=pairing, attention_scaling=scaling)
    positions = torch.zeros(len(q), dtype=torch.int64)
    out, _ = rk.apply_rope(q, None, positions, config, layout="thd")
    with rk.use_backend("reference"):
        number = ~rk.apply_rope(q, None, positions, config, layout="thd")[0].isnan()  # 0 times infinity is none
    wanted = (q.float() * scaling).to(dtype)
    assert torch.equal(out.isnan(), ~number)
    assert torch.equal(out[number], wanted[number])
    assert (wanted[number].abs() < torch.finfo(dtype).tiny).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pairing", ["half", "interleaved", "interleaved_to_half"])
@pytest.mark.parametrize("inverse", [False, True])
def test_table(isa, pairing, inverse):
    """Any table in any dtype and strides, halves that differ, NaN included, as the reference rotates by it."""
    native.force_isa(isa)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for width, table_dtype in ((64, torch.float32), (38, torch.float64), (22, torch.bfloat16), (64, torch.float16)):
            q, k = torch.randn(2, 3, 4, 64).to(dtype), torch.randn(2, 3, 1, 66)[..., 1:65].to(dtype)
            cos, sin = torch.randn(2, 3, width, 2).to(table_dtype).unbind(-1)
            cos[0, 0, 3] = float("nan")
            args = (q, k, cos, sin[:1] if inverse else sin, width, pairing, "bshd", inverse)
            got = operators.rotate_table(*args)
            with rk.use_backend("reference"):
                wanted = operators.rotate_table(*args)
            with rk.use_backend("native"):
                from_python = torch.ops.rope_kernels.python_rotate_table(*args)
            for a, b, c in zip(got, wanted, from_python, strict=True):
                torch.testing.assert_close(a, b, equal_nan=True)
                torch.testing.assert_close(a, c, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("inverse", [False, True])
def test_a_table_that_rotates_both_members_alike_but_for_some_tokens(isa, pairing, inverse):
    """In both orders of memory, bit for bit, and as the reference rotates by it."""
    native.force_isa(isa)
    angles = torch.randn(2, 70, 32)
    cos, sin = (
        t.repeat_interleave(2, -1) if pairing == "interleaved" else t.tile(2) for t in (angles.cos(), angles.sin())
    )
    cos[0, 9, 3] = sin[0, 33:35, -1] = 2.0
    cos[1, 69, 0] = cos[1, 40] = float("nan")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for table_dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            table = cos.to(table_dtype), sin.to(table_dtype)
            q, k = torch.randn(2, 70, 9, 64).to(dtype), torch.randn(2, 70, 1, 64).to(dtype)
            made = operators.rotate_table(q, k, *table, 64, pairing, "bshd", inverse)
            first = [x.transpose(1, 2).contiguous() for x in (q, k)]
            again = operators.rotate_table(*first, *table, 64, pairing, "bhsd", inverse)
            with rk.use_backend("reference"):
                wanted = operators.rotate_table(q, k, *table, 64, pairing, "bshd", inverse)
            for a, b, c in zip(made, again, wanted, strict=True):
                torch.testing.assert_close(a, c, equal_nan=True)
                torch.testing.assert_close(a, b.transpose(1, 2), rtol=0, atol=0, equal_nan=True)


shapes = st.builds(
    Case,
    name=st.just("shape"),
    config=st.builds(
        dict,
        head_dim=st.integers(1, 80).map(lambda n: 4 * n),
        partial_rotary_factor=st.sampled_from([1.0, 0.5, 0.25]),
        pairing=st.sampled_from(["half", "interleaved", "interleaved_to_half"]),
        rope_theta=st.sampled_from([100.0, 1e4, 5e5]),
    ),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    layout=st.sampled_from(["bshd", "bhsd", "thd"]),
    batch=st.integers(1, 3),
    tokens=st.integers(0, 5),
    q_heads=st.integers(1, 5),
    k_heads=st.integers(0, 3),
    positions=st.sampled_from(["batch", "seq", "one", "none", "float", "int32"]),
    start=st.integers(0, 2**20),
    inverse=st.booleans(),
    view=st.sampled_from(["dense", "fused", "odd", "transposed"]),
)


@given(shapes, st.sampled_from(ISAS))
@settings(max_examples=150)
def test_any_shape(case, isa):
    rotate_and_check(case, isa)


def test_the_backend_signature_is_shared_with_the_reference():
    case = Case("signature", CONFIGS["longrope"], seq_len=(16, 17))
    made = make(case)
    spec = parse_spec(config_of(case).spec())
    inputs = Inputs(made.positions[None], seq_len=made.options["seq_len"])
    outputs = []
    for backend in (native, reference):
        out = torch.full_like(made.q, float("nan")), torch.full_like(made.k, float("nan"))
        backend.rotate(tokens_first(made.q, "bshd"), made.k, *out, inputs, spec)
        outputs.append(out)
    torch.testing.assert_close(outputs[0], outputs[1], **tolerances.TWO_WAYS)


def test_another_backend_is_forwarded_to_python(monkeypatch):
    calls = []
    monkeypatch.setattr(reference, "rotate", lambda *a: calls.append(a))
    q = torch.randn(1, 2, 1, 128)
    rk.apply_rope(q, None, None, CONFIG)
    assert not calls
    with rk.use_backend("reference"):
        rk.apply_rope(q, None, None, CONFIG)
        rk.apply_rope_(q, None, None, CONFIG)
        rk.apply_rope(q, None, None, CONFIG, out=(torch.empty_like(q), None))
    assert len(calls) == 3


def test_a_broken_spec_names_its_field():
    q = torch.randn(1, 2, 1, 128)
    for spec, field in (("theta=abc;head_dim=128;num_pairs=64", "theta"), ("nonsense", "text")):
        with pytest.raises(ValueError, match=f"spec: {field} is"):
            operators.rotate(q, None, None, None, None, None, None, spec)


def _asked_for_huge_pages(tensor):
    """Whether the mapping around the middle of a tensor was, by /proc/self/smaps."""
    address, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if bounds:
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError("no mapping holds the tensor")


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a system without huge pages")
@pytest.mark.parametrize("fused", [False, True], ids=["dense", "slice of fused qkv"])
def test_large_outputs_ask_for_huge_pages(fused):
    """4096 tokens of 96 heads: 100 MB, which malloc always maps anew."""
    q = torch.zeros(1, 4096, 192 if fused else 96, 128, dtype=torch.bfloat16)[:, :, :96]
    out, _ = rk.apply_rope(q, None, torch.arange(4096), CONFIG)
    assert _asked_for_huge_pages(out)
    assert not _asked_for_huge_pages(q.clone())
