"""The public calls over the shared case list, and what they promise besides numbers."""

import numpy as np
import pytest
import torch
from support import cases, oracle, tolerances
from support.calls import arguments, is_public, rotate
from support.cases import CASES, Case, check, config_of, make, variant

import rope_kernels as rk
from rope_kernels.core.layouts import tokens_first
from rope_kernels.ops import operators


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_out_of_place(case, backend):
    rk.use_backend(backend)
    made = make(case)
    before = made.q.clone()
    q, k = rotate(case, made)
    check(case, made.q, q, made.expected[0])
    assert torch.equal(made.q, before)
    if made.k is None:
        assert k is None
    else:
        check(case, made.k, k, made.expected[1])


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_in_place_and_into_buffers_are_the_same_bits(case, backend):
    rk.use_backend(backend)
    made = make(case)
    q, k = rotate(case, made)
    args = arguments(case, made)
    nans = [None if x is None else torch.full_like(x, float("nan")) for x in (made.q, made.k)]
    operators.rotate_out(made.q, made.k, *args, *nans)
    assert torch.equal(nans[0], q)
    if is_public(case):
        same = rk.apply_rope_(made.q, made.k, made.positions, config_of(case), inverse=case.inverse, **made.options)
        assert same[0] is made.q
        assert same[1] is made.k
    else:
        operators.rotate_(made.q, made.k, *args)
    assert torch.equal(made.q, q)
    if k is not None:
        assert torch.equal(nans[1], k)
        assert torch.equal(made.k, k)


@pytest.mark.parametrize("view", ["fused", "odd"])
def test_gaps_between_rows_stay_as_they_are(view):
    case = Case("gaps", cases.CONFIGS["partial"], view=view)
    made = make(case)
    rk.apply_rope_(made.q, made.k, made.positions, config_of(case))
    storage = torch.empty(0).set_(made.q.untyped_storage())
    inside = torch.zeros_like(storage, dtype=torch.bool)
    inside.as_strided(made.q.shape, made.q.stride(), made.q.storage_offset()).fill_(True)
    assert storage[~inside].isnan().all()
    assert storage[inside].isfinite().all()


def test_channels_that_are_not_rotated_are_copied_bit_for_bit():
    case = Case("untouched", cases.CONFIGS["nope_first"])
    made = make(case)
    made.q[..., 0] = float("nan")
    made.q[..., 1] = float("inf")
    q, _ = rk.apply_rope(made.q, made.k, made.positions, config_of(case))
    assert torch.equal(q[..., :128].view(torch.int32), made.q[..., :128].view(torch.int32))


def test_tokens_past_the_last_sequence_are_copied_whatever_they_hold():
    case = Case("tail", cases.CONFIGS["table"], layout="thd", positions="none", lengths=(2,), tokens=4)
    made = make(case)
    made.q[2:] = float("inf")
    q, _ = rk.apply_rope(made.q, made.k, None, config_of(case), layout="thd", cu_seqlens=torch.tensor([0, 2]))
    assert torch.equal(q[2:], made.q[2:])


@pytest.mark.parametrize("name", sorted(cases.CONFIGS))
def test_inverse_is_the_adjoint(name):
    config = cases.CONFIGS[name]
    only_half = config.get("axis_map") == "gemma4_vision" or config.get("rope_type") == "proportional"
    for pairing in ("half",) if only_half else ("half", "interleaved", "interleaved_to_half"):
        case = Case(f"adjoint-{name}-{pairing}", {**config, "pairing": pairing})
        made = make(case)
        there, _ = rk.apply_rope(made.q, None, made.positions, config_of(case))
        y = torch.randn(there.shape, generator=torch.Generator().manual_seed(1))
        back, _ = rk.apply_rope(y, None, made.positions, config_of(case), inverse=True)
        left, right = (there.double() * y).sum(), (made.q.double() * back).sum()
        scale = there.double().norm() * y.double().norm()
        assert abs(left - right) <= tolerances.ADJOINT_EPS * scale


@pytest.mark.parametrize("pairing", ["half", "interleaved", "interleaved_to_half"])
def test_forward_then_inverse_is_the_identity(pairing):
    case = Case("round-trip", dict(cases.CONFIGS["llama3"], pairing=pairing), start=123456)
    made = make(case)
    there, _ = rk.apply_rope(made.q, None, made.positions, config_of(case))
    back, _ = rk.apply_rope(there, None, made.positions, config_of(case), inverse=True)
    torch.testing.assert_close(back, made.q, **tolerances.THERE_AND_BACK)


@pytest.mark.parametrize("value", ["yes", 1, [True], torch.tensor(True)], ids=str)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_interleaved_is_a_bool_or_none(value, backend):
    q, positions = torch.randn(1, 3, 2, 16), torch.arange(3)
    before, config = q.clone(), rk.RopeConfig(head_dim=16)
    with rk.use_backend(backend):
        for call in (rk.apply_rope, rk.apply_rope_):
            with pytest.raises(rk.RopeConfigError, match=r"interleaved: got .*, allowed are None, True and False"):
                call(q, None, positions, config, interleaved=value)
    assert torch.equal(q, before)


NO_TENSORS = {
    "q": lambda q, k, p: ((q.tolist(), k, p), {}, "q: got list, a tensor is needed"),
    "no q": lambda q, k, p: ((None, k, p), {}, "q: got NoneType, a tensor is needed"),
    "k": lambda q, k, p: ((q, 1.0, p), {}, "k: got float, a tensor is needed"),
    "positions": lambda q, k, p: ((q, k, [0, 1, 2]), {}, "positions: got list, a tensor is needed"),
    "a position": lambda q, k, p: ((q, k, 3), {}, "positions: got int, a tensor is needed"),
    "cu_seqlens": lambda q, k, p: ((q[0], k[0], None), dict(layout="thd", cu_seqlens=[0, 3]),
                                   "cu_seqlens: got list, a tensor is needed"),
    "offset": lambda q, k, p: ((q, k, None), dict(offset=1 << 63), "offset: got 9223372036854775808, beyond int64"),
    "layout": lambda q, k, p: ((q, k, p), dict(layout=["bshd"]), r"layout: got \['bshd'\], allowed are bshd"),
    "out": lambda q, k, p: ((q, k, p), dict(out=5), r"out: must be \(q_out, k_out\)"),
    "q_out": lambda q, k, p: ((q, k, p), dict(out=([], k)), "out: q_out: got list, a tensor is needed"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_TENSORS)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_what_is_no_tensor_is_named(name, backend):
    q, k, positions = torch.randn(1, 3, 2, 16), torch.randn(1, 3, 1, 16), torch.arange(3)
    before = q.clone(), k.clone()
    args, options, says = NO_TENSORS[name](q, k, positions)
    with rk.use_backend(backend):
        for call in (rk.apply_rope,) if "out" in options else (rk.apply_rope, rk.apply_rope_):
            with pytest.raises(rk.RopeShapeError, match=says):
                call(*args, rk.RopeConfig(head_dim=16), **options)
    assert torch.equal(q, before[0])
    assert torch.equal(k, before[1])


def test_interleaved_overrides_the_pairing():
    case = Case("override", cases.CONFIGS["yarn_mscale"])
    for flag, pairing in ((True, "interleaved"), (False, "half")):
        forced = variant(case, config={**case.config, "pairing": pairing})
        made = make(forced)
        q, _ = rk.apply_rope(made.q, made.k, made.positions, config_of(case), interleaved=flag)
        check(forced, made.q, q, made.expected[0])


def test_the_long_factors_start_one_past_the_original_length():
    """transformers: max(position) + 1 > original; two peers test position > original and switch one step late."""
    config = rk.RopeConfig(**cases.CONFIGS["longrope"])
    q = torch.ones(1, 1, 1, 64)
    for position, factors in ((15, "short_factor"), (16, "long_factor")):
        got, _ = rk.apply_rope(q, None, torch.tensor([position]), config)
        angle = position * oracle.ladder(10000.0, 64, 32) / np.array(cases.CONFIGS["longrope"][factors])
        expected = (np.cos(angle) - np.sin(angle)) * config.attention_scaling
        wanted = torch.tensor(expected.astype(float))
        torch.testing.assert_close(got[0, 0, 0, :32].double(), wanted, **tolerances.TWO_WAYS)


def test_each_sequence_of_a_batch_is_independent_of_its_neighbours():
    for name in ("longrope", "dynamic"):
        config = rk.RopeConfig(**cases.CONFIGS[name])
        q = torch.randn(3, 5, 2, 64)
        lengths = torch.tensor([5, 300, 17])
        together, _ = rk.apply_rope(q, None, None, config, seq_len=lengths)
        for b in range(3):
            alone, _ = rk.apply_rope(q[b : b + 1], None, None, config, seq_len=lengths[b : b + 1])
            assert torch.equal(together[b], alone[0])


@pytest.mark.parametrize("table_dtype", ["bfloat16", "float16"])
def test_table_dtype_rounds_cos_and_sin(table_dtype):
    dtype = getattr(torch, table_dtype)
    config = rk.RopeConfig(head_dim=64, table_dtype=table_dtype)
    positions = torch.arange(7)
    q = torch.randn(1, 7, 2, 64)
    cos, sin = rk.cos_sin(positions, rk.RopeConfig(head_dim=64))
    cos, sin = (t.to(dtype).float()[None, :, None, :32] for t in (cos, sin))
    expected = torch.cat((q[..., :32] * cos - q[..., 32:] * sin, q[..., 32:] * cos + q[..., :32] * sin), -1)
    # a product may be rounded before it is added, or not
    torch.testing.assert_close(rk.apply_rope(q, None, positions, config)[0], expected, **tolerances.PRODUCT_ROUNDED)


PLAIN = [c for c in CASES if c.layout != "thd" and c.positions == "batch" and c.tokens and is_public(c)]


@pytest.mark.parametrize("case", PLAIN[:60], ids=str)
def test_cos_sin_is_the_table_of_the_rotation(case):
    config = config_of(case)
    made = make(case)
    cos, sin = rk.cos_sin(made.positions, config, seq_len=case.seq_len)
    assert cos.shape == (case.batch, case.tokens, config.rotary_dim)
    if config.pairing == "interleaved_to_half" or config.rotary_offset or config.axis_map == "gemma4_vision":
        return
    if case.dtype == torch.float32 and not case.inverse:
        q, _ = rk.apply_rotary_pos_emb(
            tokens_first(made.q, case.layout), None, cos, sin, 2, interleaved=config.pairing == "interleaved"
        )
        check(case, made.q, tokens_first(q, case.layout), made.expected[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0, 1], rk.RopeConfig(head_dim=16)), rk.RopeShapeError, "positions: got list, a tensor is needed"),
        ((torch.tensor(5), rk.RopeConfig(head_dim=16)), rk.RopeShapeError, "positions: a scalar, must be"),
        ((torch.arange(2), dict(head_dim=16)), TypeError, "cfg: got dict, a RopeConfig is needed"),
        ((torch.arange(2), rk.RopeConfig(head_dim=16), torch.int32), rk.RopeShapeError, "dtype: got torch.int32"),
        ((torch.arange(2), rk.RopeConfig(head_dim=16), "bf16"), rk.RopeShapeError, "dtype: got 'bf16', allowed"),
    ],
)
def test_cos_sin_of_something_else(arguments, error, message):
    with pytest.raises(error, match=message):
        rk.cos_sin(*arguments)


def test_cos_sin_dtype_and_one_dimensional_positions():
    config = rk.RopeConfig(head_dim=64, pairing="interleaved")
    cos, sin = rk.cos_sin(torch.tensor([3]), config, torch.bfloat16)
    assert cos.shape == sin.shape == (1, 64)
    assert cos.dtype == sin.dtype == torch.bfloat16
    angle = 3 * config.inv_freq().repeat_interleave(2)
    assert torch.equal(cos[0], angle.cos().to(torch.bfloat16))
    assert torch.equal(sin[0], angle.sin().to(torch.bfloat16))


def test_in_place_bumps_the_version_counter():
    q, k, out = torch.randn(1, 2, 1, 64), torch.randn(1, 2, 1, 64), torch.empty(1, 2, 1, 64)
    config = rk.RopeConfig(head_dim=64)
    before = q._version, k._version, out._version
    rk.apply_rope_(q, k, None, config)
    rk.apply_rope(q, None, None, config, out=(out, None))
    assert all(now > then for now, then in zip((q._version, k._version, out._version), before, strict=True))


def test_inference_mode():
    config = rk.RopeConfig(head_dim=64)
    x = torch.randn(1, 2, 1, 64)
    expected, _ = rk.apply_rope(x, None, None, config)
    with torch.inference_mode():
        q = x.clone()
        assert torch.equal(rk.apply_rope(q, None, None, config)[0], expected)
        rk.apply_rope_(q, None, None, config)
        assert torch.equal(q, expected)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("pairing", ["half", "interleaved_to_half"])
def test_out_may_be_the_input_and_is_returned(backend, pairing):
    rk.use_backend(backend)
    config = rk.RopeConfig(head_dim=64, partial_rotary_factor=0.5, pairing=pairing)
    q, k = torch.randn(1, 2, 1, 64), torch.randn(1, 2, 3, 64)
    expected = rk.apply_rope(q, k, None, config)
    out = (q, torch.full_like(k, float("nan")))
    assert rk.apply_rope(q, k, None, config, out=out) is out
    assert torch.equal(out[0], expected[0])
    assert torch.equal(out[1], expected[1])


def test_autocast_keeps_the_input_dtype():
    config = rk.RopeConfig(head_dim=64)
    q = torch.randn(1, 2, 1, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, _ = rk.apply_rope(q, None, None, config)
    assert got.dtype == torch.float32
    assert torch.equal(got, rk.apply_rope(q, None, None, config)[0])


def test_output_keeps_the_strides_of_a_transposed_input():
    config = rk.RopeConfig(head_dim=64)
    q = torch.randn(2, 3, 4, 64).transpose(1, 2)
    assert rk.apply_rope(q, None, None, config, layout="bhsd")[0].stride() == q.stride()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_position_that_is_no_number_gives_nan_and_spares_its_neighbours(backend):
    rk.use_backend(backend)
    config = rk.RopeConfig(head_dim=64)
    q = torch.randn(1, 3, 2, 64)
    positions = torch.tensor([0.5, float("nan"), float("inf")])
    got, _ = rk.apply_rope(q, None, positions, config)
    assert got[0, 0].isfinite().all()
    assert got[0, 1:].isnan().all()
