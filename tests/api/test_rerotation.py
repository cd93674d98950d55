"""Re-rotating cached keys gives what rotating the unrotated keys would."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tolerances
from support.cases import CONFIGS, Case, config_of, strided
from torch._subclasses.fake_tensor import FakeTensorMode

import rope_kernels as rk

LENGTHS = {name: (8, 40) for name in CONFIGS if config_of(Case(name, CONFIGS[name])).depends_on_length}
EXACT = [name for name in CONFIGS if "phase" not in CONFIGS[name]]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = {"bshd": (2, 5, 3), "bhsd": (2, 3, 5), "thd": (5, 3)}
FEW = dict(max_examples=30, deadline=None)


def config_named(name, **changes):
    return config_of(Case(name, CONFIGS[name] | changes))


def keys(config, layout="bshd", dtype=torch.float32):
    return torch.randn(*LAYOUTS[layout], config.head_dim).to(dtype)


def rotated(k, positions, config, **options):
    return rk.apply_rope(k, None, positions, config, **options)[0]


def assert_near(got, expected):
    """Three roundings of 5e-7 of the largest: two rotations that were made here, one that is expected."""
    assert (got.double() - expected.double()).abs().max() <= tolerances.RE_ROTATED_EPS * max(
        1.0, expected.abs().max().item()
    )


@pytest.mark.parametrize("pairing", ["half", "interleaved", "interleaved_to_half"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LENGTHS)
def test_rerotated_keys_are_those_of_the_other_length(name, layout, pairing):
    config, (before, after) = config_named(name, pairing=pairing), LENGTHS[name]
    k, positions = keys(config, layout), torch.tensor([3, 9, 11, 17, 1000])
    cached = rotated(k, positions, config, layout=layout, seq_len=before)
    moved = rk.rerotate_(cached, positions, config, from_seq_len=before, to_seq_len=after, layout=layout)
    assert moved is cached
    params = config.frequency_params
    ratio = 1.0
    if params.long_attention_scaling is not None:
        ratio = params.attention_scaling / params.long_attention_scaling
    assert_near(moved, ratio * rotated(k, positions, config, layout=layout, seq_len=after))
    back = rk.rerotate_(moved, positions, config, from_seq_len=after, to_seq_len=before, layout=layout)
    assert_near(back, rotated(k, positions, config, layout=layout, seq_len=before))


@pytest.mark.parametrize("name", LENGTHS)
def test_each_sequence_is_rerotated_by_its_own_lengths(name):
    config, (before, after) = config_named(name), LENGTHS[name]
    positions = torch.arange(5) + 20
    k = rotated(keys(config), positions, config, seq_len=torch.tensor([before, after]))
    alone = [
        rk.rerotate_(k[i : i + 1].clone(), positions, config, from_seq_len=a, to_seq_len=b)
        for i, (a, b) in enumerate(((before, after), (after, before)))
    ]
    was, becomes = torch.tensor([before, after]), torch.tensor([after, before])
    together = rk.rerotate_(k.clone(), positions, config, from_seq_len=was, to_seq_len=becomes)
    assert torch.equal(together, torch.cat(alone))
    bounds, packed = torch.tensor([0, 5, 10]), k.flatten(0, 1)
    options = dict(layout="thd", offset=20, cu_seqlens=bounds)
    assert torch.equal(
        rk.rerotate_(packed, None, config, from_seq_len=was, to_seq_len=becomes, **options), together.flatten(0, 1)
    )


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("delta", [-1_000_000, 0, 7])
def test_shifted_keys_are_those_of_the_other_positions(name, delta):
    config = config_named(name)
    seq_len = 40 if config.depends_on_length else None
    k, positions = keys(config), torch.tensor([3, 9, 11, 17, 1000])
    cached = rotated(k, positions, config, seq_len=seq_len)
    assert_near(
        rk.shift_(cached, delta, config, seq_len=seq_len), rotated(k, positions + delta, config, seq_len=seq_len)
    )


@settings(**FEW)
@given(st.lists(st.integers(-(2**20), 2**20), min_size=2, max_size=2), st.sampled_from(sorted(LAYOUTS)))
def test_a_shift_is_one_for_all_or_one_for_each(deltas, layout):
    config = config_named("llama3")
    k, positions = keys(config, layout), torch.arange(5)
    cached = rotated(k, positions, config, layout=layout)
    each = torch.arange(5)
    forms = [(deltas[0], deltas[0]), (torch.tensor(deltas[0], dtype=torch.int32), deltas[0]), (each, each)]
    if layout != "thd":
        forms.append((torch.tensor(deltas)[:, None],) * 2)
    for form, plain in forms:
        moved = rk.shift_(cached.clone(), form, config, layout=layout)
        assert_near(moved, rotated(k, positions + plain, config, layout=layout))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", ["dense", "fused", "odd", "transposed"])
def test_keys_are_rounded_once(dtype, view):
    config = config_named("longrope")
    k, positions = strided(keys(config, dtype=dtype), view), torch.arange(5) + 30
    exact = rk.rerotate_(k.float(), positions, config, from_seq_len=8, to_seq_len=40)
    rk.rerotate_(k, positions, config, from_seq_len=8, to_seq_len=40)
    assert torch.equal(k, exact.to(dtype))


@pytest.mark.parametrize(("dtype", "lost"), [(torch.bfloat16, 0.2), (torch.float16, 0.02)], ids=str)
def test_keys_in_16_bits_are_shifted_once_or_rotated_anew(dtype, lost):
    """docs/long-context.md has these figures: 0.25 and 0.035 after 500 shifts, half an ulp by rotating anew."""
    config, positions = rk.RopeConfig(head_dim=64), torch.arange(64) + 1000
    plain = torch.randn(1, 64, 4, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    first = rotated(plain, positions, config)
    wanted = rotated(plain.float(), positions - 500, config)
    ulp = torch.finfo(dtype).eps

    def error(k):
        return ((k.float() - wanted).square().mean() / wanted.square().mean()).sqrt()

    drifted = first.clone()
    for _ in range(500):
        rk.shift_(drifted, -1, config)
    assert error(drifted) > lost
    anew = rotated(plain, positions - 500, config)
    one_rounding = ulp / 2 * wanted.abs() + tolerances.CONTRACT_EPS * wanted.abs().max()
    assert ((anew.float() - wanted).abs() <= one_rounding).all()
    assert error(rk.shift_(first.clone(), -500, config)) < ulp / 2
    kept = rotated(plain.float(), positions, config)
    for _ in range(500):
        rk.shift_(kept, -1, config)
    assert error(kept.to(dtype)) < ulp / 2, "keys kept in fp32"


def test_a_small_step_is_lost_in_bf16():
    """Pair 28 of 32 turns by 3e-4 rad per position: 500 steps together by -0.158 rad, of which bf16 keeps little."""
    config, k = rk.RopeConfig(head_dim=64), torch.randn(1, 1, 256, 64, generator=torch.Generator().manual_seed(0))
    k = k.bfloat16()
    before, step = torch.atan2(*k[..., [60, 28]].float().unbind(-1)), config.inv_freq()[28].item()
    once = rk.shift_(k.clone(), -500, config)
    for _ in range(500):
        rk.shift_(k, -1, config)
    turned, turned_once = (
        torch.remainder(torch.atan2(*x[..., [60, 28]].float().unbind(-1)) - before + torch.pi, 2 * torch.pi) - torch.pi
        for x in (k, once)
    )
    assert turned.mean().abs() < 0.1 * 500 * step
    assert abs(turned_once.mean() + 500 * step) < 0.01 * 500 * step


def test_where_no_frequency_has_a_length_keys_stay_bit_for_bit():
    config = config_named("llama3")
    k = keys(config)
    version, before = k._version, k.clone()
    assert rk.rerotate_(k, torch.arange(5), config, from_seq_len=8, to_seq_len=40) is k
    assert torch.equal(k, before)
    assert k._version == version


def test_what_was_written_has_a_new_version():
    config = config_named("longrope")
    k = keys(config)
    rk.shift_(k, 3, config, seq_len=40)
    assert k._version == 1


MISTAKES = {
    "k: last dimension is 32": lambda c, k: rk.rerotate_(k[..., :32], None, c, from_seq_len=8, to_seq_len=40),
    "from_seq_len: shape": lambda c, k: rk.rerotate_(k, None, c, from_seq_len=torch.arange(3), to_seq_len=40),
    "from_seq_len: got": lambda c, k: rk.rerotate_(k, None, c, from_seq_len=8.5, to_seq_len=40),
    "to_seq_len: got": lambda c, k: rk.rerotate_(k, None, c, from_seq_len=8, to_seq_len="40"),
    "seq_len: missing": lambda c, k: rk.shift_(k, 3, c),
    "delta: got": lambda c, k: rk.shift_(k, 3.5, c, seq_len=40),
    "positions: shape": lambda c, k: rk.shift_(k, torch.arange(4), c, seq_len=40),
    "layout: got": lambda c, k: rk.shift_(k, 3, c, seq_len=40, layout="hsbd"),
}


@pytest.mark.parametrize("start", MISTAKES)
def test_mistakes_are_named_before_anything_is_written(start):
    config = config_named("longrope")
    k = keys(config)
    before = k.clone()
    with pytest.raises(rk.RopeShapeError, match=f"^{start}"):
        MISTAKES[start](config, k)
    assert torch.equal(k, before)


def test_keys_that_need_a_gradient_are_refused():
    config = config_named("longrope")
    k = keys(config).requires_grad_()
    for call in (lambda: rk.shift_(k, 1, config, seq_len=40),
                 lambda: rk.rerotate_(k, None, config, from_seq_len=8, to_seq_len=40)):  # fmt: skip
        with pytest.raises(RuntimeError, match="in place: a derivative is needed"):
            call()


def move(k, positions, config, was, becomes):
    rk.rerotate_(k, positions, config, from_seq_len=was, to_seq_len=becomes)
    return rk.shift_(k, positions.new_tensor(2), config, seq_len=becomes)


def test_one_compiled_graph_moves_keys():
    config = config_named("longrope")
    k, positions = keys(config), torch.arange(5) + 30
    lengths = torch.tensor(8), torch.tensor(40)
    expected = move(k.clone(), positions, config, *lengths)
    compiled = torch.compile(move, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(k.clone(), positions, config, *lengths), expected)


def test_no_value_is_read_on_the_host():
    config = config_named("longrope")
    with FakeTensorMode():
        k = torch.empty(2, 5, 3, 64)
        assert move(k, torch.empty(5, dtype=torch.int64), config, *torch.empty(2, dtype=torch.int64)).shape == k.shape
