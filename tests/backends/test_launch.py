# ruff: noqa: SIM300  (capitals are fields of a tile here, not constants)
"""The Triton launch rule and the constants of a call, in plain Python: no kernel runs here."""

import math
from decimal import Decimal, localcontext
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rope_kernels import RopeConfig
from rope_kernels.core.frequency import FrequencyParams
from rope_kernels.core.rotation import Rotation
from rope_kernels.core.spec import Spec, parse_spec, parse_text
from rope_kernels.ops.operators import Arguments, inputs_of

pytest.importorskip("triton")

from emulation.interpreter import interpreted
from rope_kernels.backends.triton import arguments as triton_arguments
from rope_kernels.backends.triton import constants as triton_constants
from rope_kernels.backends.triton import kernels as triton_kernels
from rope_kernels.backends.triton import launch as triton_launch
from rope_kernels.backends.triton.plan import BYTES_IN_FLIGHT, Memory, alignment, bytes_in_flight, launch_tile

PI = Decimal("3.14159265358979323846264338327950288")
STATIC = RopeConfig(
    head_dim=128, rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=8192, max_position_embeddings=131072,
)  # fmt: skip


@st.composite
def rotations(draw):
    pairing = draw(st.sampled_from(["half", "interleaved", "interleaved_to_half"]))
    blocks = draw(st.sampled_from([1, 1, 2])) if pairing == "half" else 1
    pairs = draw(st.integers(1, 256 // blocks)) * blocks
    gap = draw(st.sampled_from([0, 0, 8, 13])) if pairing == "half" and blocks == 1 else 0
    offset = draw(st.sampled_from([0, 0, 5, 64]))
    rest = draw(st.sampled_from([0, 0, 3, 32]))
    distance = pairs // blocks + gap
    width = offset + (2 * pairs if blocks > 1 else distance + pairs) + rest
    return Rotation(width, pairs, distance, offset, pairing, blocks)


@st.composite
def tiles(draw, **more):
    rotation = draw(rotations())
    size = draw(st.sampled_from([2, 4]))
    aligned = alignment(size, [size * rotation.head_dim, draw(st.sampled_from([0, 2 * size, size]))], rotation)
    memory = Memory(size, aligned, draw(st.booleans()), draw(st.booleans()), draw(st.booleans()))
    heads = draw(
        st.sampled_from([(1, 1), (32, 8), (28, 4), (7, 7), (5, 0), (0, 3), (12, 1), (128, 1), (40, 8), (71, 71)])
    )
    tokens = draw(st.one_of(st.integers(1, 40), st.integers(1, 50_000), st.just(2**20)))
    flags = {name: draw(st.booleans()) for name in ("inverse", "loads_per_pair", "one_head")}
    count = draw(st.sampled_from([1, 84, 108, 132, 304]))
    return (
        tokens,
        launch_tile(tokens, *heads, rotation, memory, multiprocessors=count, **flags, **more),
        rotation,
        memory,
        flags,
    )


def is_power_of_2(n):
    return n > 0 and n & (n - 1) == 0


@given(tiles())
def test_sizes_are_powers_of_2_within_the_limits(drawn):
    _, tile, *_ = drawn
    for n in (tile.TOKENS, tile.Q_BLOCK, tile.K_BLOCK, tile.WARPS, tile.CHUNK, tile.VECTOR, tile.UNITS):
        assert is_power_of_2(n)
    assert 32 * tile.WARPS <= 1024
    assert tile.CHUNKS <= 65535
    assert tile.TOKENS * max(tile.Q_BLOCK, tile.K_BLOCK) * tile.UNITS <= 2**20


@given(tiles())
def test_every_thread_has_its_vector_in_every_tile(drawn):
    _, tile, _, memory, _ = drawn
    threads = 32 * tile.WARPS
    for heads, block in ((tile.Q_HEADS, tile.Q_BLOCK), (tile.K_HEADS, tile.K_BLOCK)):
        assert block * tile.TOKENS * tile.UNITS >= tile.VECTOR * threads or tile.UNITS == 1 or not heads
    if tile.WORDS:
        assert memory.ALIGNED % (2 * memory.ITEM_BYTES * tile.VECTOR) == 0
    else:
        assert tile.VECTOR == 1


@given(tiles())
def test_work_of_a_thread_is_bounded(drawn):
    """What it holds at once fits into 64 registers: at most eight vectors of a row's half, or of pairs."""
    _, tile, *_ = drawn
    for block in (tile.Q_BLOCK, tile.K_BLOCK):
        vectors = block * tile.TOKENS * tile.UNITS / (32 * tile.WARPS * tile.VECTOR)
        assert vectors <= (4 if tile.PAIRS_PER_UNIT == 2 else 8)


@given(tiles())
def test_tokens_pairs_and_rows_are_covered(drawn):
    tokens, tile, rotation, memory, _ = drawn
    assert tile.CHUNK * tile.CHUNKS >= rotation.num_pairs
    assert tile.CHUNKS == 1 or tile.CHUNK * tile.CHUNKS == rotation.num_pairs  # parts of a row are never masked
    assert tile.TAIL == (tokens % tile.TOKENS != 0)
    if memory.IN_PLACE and tile.READ_PAIRS != tile.WRITE_PAIRS:
        assert tile.CHUNKS == 1


@given(tiles())
def test_loads_that_need_no_conversion(drawn):
    """Triton leaves a load in its users' layout where the threads outnumber the elements, or there is one."""
    _, tile, _, _, flags = drawn
    threads = 32 * tile.WARPS
    assert tile.TOKENS == 1 or tile.TOKENS < threads
    assert not flags["loads_per_pair"] or tile.UNITS < threads


@given(tiles(normed=True))
def test_loads_of_a_norms_weight_need_no_conversion(drawn):
    """They are fewer than the threads, or for each head of one token, in the shape of its tile."""
    _, tile, *_ = drawn
    assert tile.UNITS < 32 * tile.WARPS or tile.TOKENS == 1


@given(tiles())
def test_every_channel_is_written_once(drawn):
    _, tile, rotation, _, _ = drawn
    n, first = rotation.num_pairs, rotation.rotary_offset
    if tile.WRITE_PAIRS:
        written = list(range(first, first + 2 * n))
    else:
        block = n // rotation.blocks
        starts = [first + i + rotation.distance * (i // block if rotation.blocks > 1 else 0) for i in range(n)]
        written = starts + [c + rotation.distance for c in starts]
    written += [c for begin, end in tile.COPIES for c in range(begin, end)]
    assert sorted(written) == list(range(rotation.head_dim))


@given(st.sampled_from([84, 108, 132, 304]), st.sampled_from([64, 96, 128, 256]), st.data())
def test_a_program_takes_one_token_until_those_of_many_keep_memory_busy(multiprocessors, width, data):
    """Of 32/8 heads in bf16, two are loaded at a time: 40 KB of tokens per multiprocessor."""
    rotation, memory = Rotation(width, width // 2, width // 2), Memory(2)
    enough = -(-multiprocessors * BYTES_IN_FLIGHT // (2 * 2 * width))
    tokens = data.draw(st.integers(1, 2 * enough))

    def tile_of(tokens):
        return launch_tile(tokens, 32, 8, rotation, memory, multiprocessors=multiprocessors)

    few = tile_of(1)
    are_full = tokens / multiprocessors > 32 // few.WARPS  # programs of one token: no more of them fit
    if tokens < enough and not are_full:
        assert tile_of(tokens) == few
        assert few.TOKENS == 1
    elif tokens >= enough:
        assert tile_of(tokens).TOKENS > 1
        assert bytes_in_flight(tile_of(tokens), tokens / multiprocessors) >= BYTES_IN_FLIGHT


@given(tiles())
def test_no_multiprocessor_has_more_in_flight_than_its_registers_hold(drawn):
    """1024 threads with eight vectors each."""
    _, tile, *_ = drawn
    assert 0 < bytes_in_flight(tile, math.inf) <= 1024 * 8 * 16


@pytest.mark.parametrize(
    ("rotation", "offsets", "expected"),
    [
        (Rotation(128, 64, 64), [0, 256], 16),
        (Rotation(72, 36, 36), [0, 144], 8),
        (Rotation(72, 36, 18, blocks=2), [0, 144], 4),
        (Rotation(128, 64, 64), [2, 256], 2),
        (Rotation(192, 32, 32, rotary_offset=128), [0, 384], 16),
        (Rotation(80, 9, 9, pairing="interleaved"), [0, 160], 4),
    ],
)
def test_alignment(rotation, offsets, expected):
    assert alignment(2, offsets, rotation) == expected


class Recorder:
    """A kernel that keeps its last launch."""

    def __getitem__(self, grid):
        self.grid = grid
        return self.record

    def record(self, *args, **kwargs):
        self.args, self.options = args, kwargs


@pytest.fixture
def launched(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(triton_kernels, "rotate_kernel", recorder)

    def launch(q, k, positions=None, config=STATIC, in_place=False, **index_tensors):
        named = (positions, *(index_tensors.get(name) for name in ("offset", "seq_len", "from_seq_len", "cu_seqlens")))
        operation = parse_text(config.spec())
        inputs = inputs_of(Arguments(*named, config.spec()), operation)
        out = (q, k) if in_place else (torch.empty_like(q), torch.empty_like(k))
        triton_launch.rotate(q, k, *out, inputs, operation.spec)
        return recorder.options["ANGLE"], recorder.options["TILE"], recorder.grid

    return launch


def qk(batch, tokens, heads=(4, 2), dim=128, dtype=torch.bfloat16):
    return [torch.zeros(batch, tokens, h, dim, dtype=dtype) for h in heads]


@pytest.mark.parametrize(
    ("batch", "tokens", "positions", "batched"),
    [
        (1, 6, (6,), False),
        (3, 6, (3, 6), False),  # one axis: everything is contiguous
        (3, 6, (1, 6), True),
        (3, 1, (1, 1), False),
        (3, 1, (3, 1), False),
        (3, 6, None, True),
        (1, 6, None, False),
    ],
)
def test_batch_and_tokens_become_one_axis(launched, batch, tokens, positions, batched):
    where = None if positions is None else torch.zeros(positions, dtype=torch.int64)
    angle, tile, grid = launched(*qk(batch, tokens), where)
    assert tile.MEMORY.BATCHED == batched
    assert grid == (-(-batch * tokens // tile.TOKENS), 1)
    assert angle.COUNTED == (positions is None)


def test_the_static_case_has_nothing_general_in_it(launched):
    angle, tile, _ = launched(*qk(1, 6), torch.arange(6)[None])
    absent = (
        "TABLE_ROWS",
        "GROWS",
        "WRAPPED",
        "MAPPED",
        "OFFSETS",
        "LENGTHS",
        "FROM_LENGTHS",
        "SEARCH_STEPS",
        "SCALINGS",
    )
    assert not any(getattr(angle, name) for name in absent)
    assert (angle.PHASE, angle.LADDER, angle.RAMP, angle.AXES) == ("fixed", 64, "frequency", 1)
    assert tile.MEMORY == Memory(2)
    assert (tile.WORDS, tile.VECTOR, tile.COPIES) == (True, 4, ())


@pytest.mark.parametrize(("heads_first", "dense"), [(False, True), (True, False)])
def test_contiguous_heads_have_a_constant_stride(launched, heads_first, dense):
    q, k = qk(1, 6)
    if heads_first:
        q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    assert launched(q, k, torch.arange(6))[1].MEMORY.DENSE_HEADS == dense


def test_odd_views_go_element_by_element(launched):
    q, k = (torch.zeros(1, 6, h, 131, dtype=torch.bfloat16)[..., 1:129] for h in (4, 2))
    tile = launched(q, k, torch.arange(6))[1]
    assert (tile.WORDS, tile.VECTOR, tile.MEMORY.ALIGNED) == (False, 1, 2)


def test_strides_of_single_axes_do_not_count(launched):
    q, k = (torch.zeros(1, 1, h, 131, dtype=torch.bfloat16)[..., :128] for h in (1, 1))
    assert launched(q, k, torch.arange(1))[1].MEMORY.ALIGNED == 16


def test_integers_never_specialise():
    for kernel in (triton_kernels.rotate_kernel, triton_kernels.rotate_table_kernel):
        for param in kernel.params:
            if param.is_constexpr:
                continue
            if param.name.endswith("_ptr"):
                assert param.do_not_specialize_on_alignment, param.name
            else:
                assert param.annotation_type, param.name
                assert param.do_not_specialize or param.annotation_type.startswith("fp"), param.name


def test_the_interpreter_leaves_the_kernels_as_they_were():
    before = triton_kernels.rotate_kernel
    with interpreted(before):
        assert triton_kernels.rotate_kernel is not before
    assert triton_kernels.rotate_kernel is before


@given(
    theta=st.sampled_from([100.0, 1e4, 5e5, 1e6, 1.5e5, 1e7]),
    dim=st.sampled_from([32, 64, 80, 96, 128, 256, 512]),
    factor=st.sampled_from([1.0, 4.0, 32.0]),
)
def test_ladder_is_good_to_position_2_to_the_31(theta, dim, factor):
    """The kernel's float64 products, in Python, against 50 digits: in radians at position 2**31."""
    base, *powers = triton_constants.scalars(
        FrequencyParams(theta, dim, dim // 2, factor=factor, ramp=(0, 0, 0)), "fixed"
    )
    with localcontext() as context:
        context.prec = 50
        for j in range(dim // 2):
            lane, register = base, 1.0
            for bit in range(9):
                if j >> bit & 1:
                    lane, register = (lane, register * powers[bit]) if bit < 3 else (lane * powers[bit], register)
            exact = Decimal(2) ** 64 / (2 * PI) / Decimal(factor) * Decimal(theta) ** (Decimal(-2 * j) / Decimal(dim))
            assert abs(int(lane * register) - exact) * 2 * PI / Decimal(2) ** 33 < Decimal("5e-7")


RAMPS = [(0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (-0.1, 0.0, 2.0), (0.0, 434.6, -1 / 3), (-0.05, 100.0, 0.5)]


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize("factor", [1.0, 8.0, 0.5])
@pytest.mark.parametrize("phase", ["fixed", "float", "float32"])
def test_scalars_give_the_formula(phase, factor, ramp):
    params = FrequencyParams(5e5, 64, 32, factor=factor, ramp=ramp)
    base, *rest = triton_constants.scalars(params, phase)
    powers, (start, per_index, per_frequency, lowest, highest) = rest[:9], rest[9:14]
    unit = {"fixed": 2.0**64 / (2 * math.pi), "float": 1 / (2 * math.pi), "float32": 1.0}[phase]
    by = triton_constants.ramp_of(params)
    for j in range(32):
        f = base * math.prod(p for bit, p in enumerate(powers) if j >> bit & 1)
        if by:
            share = start + (per_index * j if by != "frequency" else 0) + (per_frequency * f if by != "index" else 0)
            f *= min(max(share, lowest), highest)
        assert f / unit == pytest.approx(params.inv_freq(j), rel=1e-13)


def test_tables_are_exact_and_wrapped():
    params = FrequencyParams(1.0, 6, 3, multipliers=((8.0, -0.25, 0.5),))
    _, table = triton_constants.device_tensors(Spec(params, Rotation(6, 3, 3)), "fixed", False, torch.device("cpu"))
    with localcontext() as context:
        context.prec = 50
        for bits, f in zip(table[0].tolist(), params.multipliers[0], strict=False):
            turns = Decimal(f) / (2 * PI)
            assert (
                abs(Decimal(bits % 2**64) / 2**64 - (turns - turns.to_integral_value("ROUND_FLOOR")))
                < Decimal(2) ** -64
            )
    assert table.dtype == torch.int64
    assert table.shape == (1, 4)


def test_tables_are_made_once(monkeypatch):
    config = RopeConfig(
        head_dim=64, rope_type="longrope", original_max_position_embeddings=16, max_position_embeddings=512,
        short_factor=[1.0] * 32, long_factor=[2.0] * 32,
    )  # fmt: skip
    spec = parse_spec(config.spec())
    triton_launch.prepare(spec, torch.device("cpu"))
    monkeypatch.setattr(triton_constants, "_made", None)
    triton_launch.prepare(spec, torch.device("cpu"))


def test_tables_cannot_be_made_during_capture(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    spec = Spec(FrequencyParams(1.0, 64, 32, multipliers=((0.5,) * 32,)), Rotation(64, 32, 32))
    with pytest.raises(RuntimeError, match=r"call rope_kernels\.warm_up"):
        triton_launch.prepare(spec, torch.device("cuda", 0))


def table_of(number, device):
    spec = Spec(FrequencyParams(1.0, 8, 4, multipliers=((1.0 + number,) * 4,)), Rotation(8, 4, 4))
    return triton_constants.device_tensors(spec, "fixed", False, device)[1]


def test_tables_of_specs_that_are_gone_are_dropped_but_not_those_of_cuda_graphs(monkeypatch):
    """A graph reads them by address. The tensors lie on the CPU here, under the name of a GPU."""
    device, made, capturing, waited = torch.device("cuda", 0), triton_constants._made, [], []
    monkeypatch.setattr(triton_constants, "_KEPT", 4)
    monkeypatch.setattr(triton_constants, "_on_device", {})
    monkeypatch.setattr(triton_constants, "_captured", {})
    monkeypatch.setattr(triton_constants, "_made", lambda *args: made(*args[:3], torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(capturing))
    monkeypatch.setattr(triton_constants, "_outside_pools", lambda make, device: make())
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    kept = [table_of(number, device) for number in range(2)]
    capturing.append(True)
    assert table_of(1, device) is kept[1]
    capturing.clear()
    for number in range(2, 30):
        assert table_of(number, device) is table_of(number, device)
        assert len(triton_constants._on_device) <= 4
    assert len(waited) == 7, "kernels that run may still read what is dropped"
    assert set(waited) == {device}
    assert table_of(1, device) is kept[1]
    assert table_of(0, device) is not kept[0]
    capturing.append(True)
    assert table_of(1, device) is kept[1]


def test_a_gpu_is_asked_once_for_its_multiprocessors(monkeypatch):
    """A GPU's number decides the shape of its launches; tensors of the CPU count as those of a small GPU."""
    asked = []
    counts = {0: 132, 1: 84}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties",
        lambda device: asked.append(device) or SimpleNamespace(multi_processor_count=counts[device.index]),
    )  # fmt: skip
    triton_arguments.multiprocessors_of.cache_clear()
    for _ in range(3):
        assert [triton_arguments.multiprocessors_of(torch.device("cuda", i)) for i in range(2)] == [132, 84]
    assert triton_arguments.multiprocessors_of(torch.device("cpu")) == 48
    assert len(asked) == 2
    triton_arguments.multiprocessors_of.cache_clear()


@pytest.mark.parametrize(("count", "many"), [(100, True), (132, False)])
def test_the_number_of_multiprocessors_decides_the_shape(launched, monkeypatch, count, many):
    monkeypatch.setattr(triton_arguments, "multiprocessors_of", lambda device: count)
    _, tile, grid = launched(*qk(1, 8192, heads=(32, 8)), torch.arange(8192))
    assert (tile.TOKENS > 1) == many
    assert grid == (8192 // tile.TOKENS, 1)


def test_why_it_is_unavailable():
    assert "not on cpu" in triton_launch.unavailable(torch.device("cpu"))
    reason = triton_launch.unavailable()
    assert (reason is None) == torch.cuda.is_available()
