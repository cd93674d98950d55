"""Calls that go past Python launch what Python launches: the kernel, the grid, the stream, every parameter."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

import pytest
import torch
from settings import SIZE, TABLE_SIZE, Settings, table_values_of, values_of
from support.calls import arguments
from support.cases import CASES, CONFIGS, Case, Made, config_of, make

import rope_kernels as rk
from emulation.null_gpu import Driver, Launch, Runtime
from rope_kernels import _native, backends
from rope_kernels.backends import choice
from rope_kernels.backends.triton import launch as triton_launch
from rope_kernels.core.spec import parse_text
from rope_kernels.ops import direct

DRIVER, RUNTIME = Driver(), Runtime()
SIZES = {"i1": 4, "i32": 4, "i64": 8, "fp32": 4, "fp64": 8}
PLAIN = [case for case in CASES if case.batch and case.tokens]
CALLS = ("in place", "out", "allocating")

cases = pytest.mark.parametrize("case", PLAIN, ids=str)


def on_device(made: Made, device: str) -> Made:
    """The case's tensors on a device, with the strides that they have."""

    def moved(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        y = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
        return y.copy_(x)

    options = {name: moved(value) for name, value in made.options.items()}
    return dataclasses.replace(made, q=moved(made.q), k=moved(made.k), positions=moved(made.positions), options=options)


class Sizes:
    """Learns the sizes of a kernel's parameters from Triton's compiled kernel, and tells them to the driver."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compiled_launch = triton_launch.compiled_launch

        def learning(kernel: Any, *others: Any) -> Any:
            kinds = [kind for kind in kernel.src.signature.values() if kind != "constexpr"]
            DRIVER.expect([8 if kind.startswith("*") else SIZES[kind] for kind in kinds] + [8, 8])
            return compiled_launch(kernel, *others)

        monkeypatch.setattr(triton_launch, "compiled_launch", learning)


def rotations(kind: str, made: Made, args: Any) -> tuple[Any, Any, Any]:
    """(a call in Python, the operator, the direct call), all on the same tensors."""
    ops, q, k = torch.ops.rope_kernels, made.q, made.k
    usual = (args.positions, args.offset, args.seq_len, args.cu_seqlens, args.text)
    if kind == "allocating":
        return ops.python_rotate, ops.rotate, lambda: direct.rotate(q, k, *usual)
    if kind == "in place":
        return ops.python_rotate_, ops.rotate_, lambda: direct.rotate_(q, k, *usual)
    outputs = (torch.empty_like(q), None if k is None else torch.empty_like(k))

    def with_outputs(operator: Any) -> Any:
        return lambda *given: operator(*given, *outputs)

    return (
        with_outputs(ops.python_rotate_out),
        with_outputs(ops.rotate_out),
        lambda: direct.rotate_out(q, k, *usual, *outputs),
    )


def is_floating(positions: torch.Tensor | None) -> bool:
    """Floating positions go by the operator."""
    return positions is not None and positions.is_floating_point()


def without_new_memory(launch: Launch, is_allocating: bool) -> Launch:
    """The launch without the addresses of its outputs, if each call has new ones."""
    if not is_allocating:
        return launch
    return dataclasses.replace(launch, parameters=(*launch.parameters[:1], *launch.parameters[4:]))


def seen_by_kernel(launch: Launch, cfg: rk.RopeConfig) -> tuple[Any, ...]:
    """What the kernel reads: no padding, no frequencies past its pairs."""
    (parameters,) = launch.parameters
    return launch.shape, launch.stream, values_of(parameters, parse_text(cfg.spec()).spec.rotation.num_pairs)


def known_lengths(launch: Launch, cfg: rk.RopeConfig) -> tuple[Any, ...]:
    """What the kernel reads, with the numbers that it is given or finds in its memory."""
    (parameters,) = launch.parameters
    settings = Settings.from_buffer_copy(parameters)
    for name in ("offset", "seq_len"):
        value = getattr(settings, name)
        if value.data:  # the null GPU's memory is the host's
            value.number, value.data, value.stride = ctypes.c_int64.from_address(value.data).value, 0, 0
    values = values_of(
        bytes(settings) + parameters[ctypes.sizeof(Settings) :], parse_text(cfg.spec()).spec.rotation.num_pairs
    )
    return (settings.offset.number, settings.seq_len.number, *values)


@cases
@pytest.mark.parametrize("kind", CALLS)
def test_a_repeated_launch_is_tritons_own(case: Case, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Sizes(monkeypatch)
    for device, stream in (("cuda:0", None), ("cuda:0", torch.cuda.Stream(0)), ("cuda:1", torch.cuda.Stream(1))):
        made = on_device(make(case), device)
        args = arguments(case, made)
        in_python, operator, directly = rotations(kind, made, args)
        with torch.cuda.stream(stream), torch.no_grad():
            in_python(made.q, made.k, *args)  # learns the sizes, and is remembered
            in_python(made.q, made.k, *args)
            want, count = DRIVER.last(), DRIVER.launches
            if stream is not None:
                assert want.stream == stream.cuda_stream
            operator(made.q, made.k, *args)
            assert DRIVER.launches == count + 1
            assert without_new_memory(DRIVER.last(), kind == "allocating") == without_new_memory(
                want, kind == "allocating"
            )
            if case.from_seq_len is None and not is_floating(args.positions):
                assert directly()
                assert DRIVER.launches == count + 2
                assert without_new_memory(DRIVER.last(), kind == "allocating") == without_new_memory(
                    want, kind == "allocating"
                )


@pytest.mark.parametrize(
    "case", [case for case in PLAIN if case.from_seq_len is None and case.positions != "float"], ids=str
)
def test_the_direct_call_of_the_native_kernels_is_the_operators(case: Case) -> None:
    made = on_device(make(case), "cuda:0")
    with rk.use_backend("native"), torch.no_grad():
        args = arguments(case, made)
        RUNTIME.record(SIZE)
        torch.ops.rope_kernels.rotate_(made.q, made.k, *args)
        want = RUNTIME.last()
        assert direct.rotate_(made.q, made.k, args.positions, args.offset, args.seq_len, args.cu_seqlens, args.text)
        got = RUNTIME.last()
        RUNTIME.record(0)
    assert seen_by_kernel(got, config_of(case)) == seen_by_kernel(want, config_of(case))


@pytest.mark.parametrize("name", ["default", "llama3", "longrope", "dynamic"])
@pytest.mark.parametrize(
    "lengths", [{"offset": 5}, {"offset": -3, "seq_len": 40}, {"seq_len": 3}, {"seq_len": 70}, {}], ids=str
)
def test_ints_travel_with_the_launch_of_the_native_kernels(name: str, lengths: dict[str, int]) -> None:
    """One launch, with what the kernel reads from tensors of the same numbers; no tensor is made and none is copied."""
    cfg = config_of(Case("", CONFIGS[name]))
    q = torch.zeros(2, 7, 4, cfg.head_dim, device="cuda", dtype=torch.bfloat16)
    longest = {"seq_len": 7 + lengths.get("offset", 0)} if cfg.depends_on_length else {}
    tensors = {key: torch.tensor([value], device="cuda") for key, value in {**longest, **lengths}.items()}
    with rk.use_backend("native"), torch.no_grad():
        before, memory = RUNTIME.launches, torch.cuda.memory_stats()["allocation.all.allocated"]
        RUNTIME.record(SIZE)
        rk.apply_rope_(q, None, None, cfg, **lengths)
        got = RUNTIME.last()
        assert RUNTIME.launches == before + 1
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == memory
        rk.apply_rope_(q, None, None, cfg, **tensors)
        want = RUNTIME.last()
        RUNTIME.record(0)
    assert got.shape == want.shape
    assert known_lengths(got, cfg) == known_lengths(want, cfg)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_a_repeated_launch_by_a_table(pairing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Sizes(monkeypatch)
    q, k = (torch.empty(2, heads, 5, 64, device="cuda", dtype=torch.bfloat16) for heads in (4, 2))
    cos, sin = torch.empty(2, 2, 5, 64, device="cuda", dtype=torch.bfloat16)
    given = (q, k, cos, sin, 64, pairing, "bhsd", False)
    with torch.no_grad():
        torch.ops.rope_kernels.python_rotate_table(*given)
        torch.ops.rope_kernels.python_rotate_table(*given)
        want, count = DRIVER.last(), DRIVER.launches
        torch.ops.rope_kernels.rotate_table(*given)
        assert without_new_memory(DRIVER.last(), True) == without_new_memory(want, True)
        rk.apply_rotary_pos_emb(q, k, cos, sin, interleaved=pairing == "interleaved", table_width="full")
        assert without_new_memory(DRIVER.last(), True) == without_new_memory(want, True)
    assert DRIVER.launches == count + 2


def table_call(dtype: torch.dtype, table_dtype: torch.dtype, pairing: str, inverse: bool = False) -> tuple[Any, ...]:
    """The arguments of ``rotate_table``."""
    q, k = (torch.empty(2, 5, heads, 64, device="cuda", dtype=dtype) for heads in (4, 2))
    cos, sin = torch.empty(2, 2, 5, 64, device="cuda", dtype=table_dtype)
    return q, k, cos, sin, 64, pairing, "bshd", inverse


@pytest.mark.parametrize("table_dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_native_launches_by_a_table_are_alike(pairing: str, dtype: torch.dtype, table_dtype: torch.dtype) -> None:
    """From the operator, from Python's native backend, and from the call past the dispatcher but for its outputs."""
    given = table_call(dtype, table_dtype, pairing)
    q, k, cos, sin = given[:4]
    with rk.use_backend("native"), torch.no_grad():
        before = DRIVER.launches
        seen = []
        for call in (
            lambda: torch.ops.rope_kernels.rotate_table(*given),
            lambda: torch.ops.rope_kernels.python_rotate_table(*given),
            lambda: direct.rotate_table(q, k, cos, sin, 2, pairing, True),
        ):
            RUNTIME.record(TABLE_SIZE)
            q_out, k_out = call()
            launch = RUNTIME.last()
            RUNTIME.record(0)
            values = table_values_of(launch.parameters[0][:TABLE_SIZE])
            outputs = {x.data_ptr() for x in (q_out, k_out)}
            assert outputs < set(values)
            assert {x.data_ptr() for x in given[:4]} < set(values)
            seen.append((launch.shape, launch.stream, [value for value in values if value not in outputs]))
    assert DRIVER.launches == before
    assert seen[0] == seen[1] == seen[2]


def test_heads_that_are_too_long_for_the_native_table_kernels_are_rotated_in_plain_torch() -> None:
    q = torch.empty(1, 2, 1, 4096, device="cuda")
    cos, sin = torch.empty(2, 1, 2, 4096, device="cuda")
    with rk.use_backend("native"), torch.no_grad():
        before = RUNTIME.launches
        rk.apply_rotary_pos_emb(q, None, cos, sin, 2)
        assert RUNTIME.launches - before > 5


def test_a_table_is_rotated_by_the_native_kernels_where_triton_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """One launch of nvcc's kernel per call, and nothing in plain torch; without both backends plain torch."""
    given = table_call(torch.bfloat16, torch.float32, "half")
    q, k, cos, sin = given[:4]

    def counts() -> tuple[int, int]:
        before = RUNTIME.launches, DRIVER.launches
        rk.apply_rotary_pos_emb(q, k, cos, sin, 2)
        return RUNTIME.launches - before[0], DRIVER.launches - before[1]

    with torch.no_grad():
        counts()
        assert counts() == (0, 1)
        monkeypatch.setattr(triton_launch, "unavailable", lambda device=None: "there is none here")
        monkeypatch.setattr(backends, "_chosen", {})
        torch.ops.rope_kernels.python_rotate_table(*given)  # asks the dispatch rule, and the library is told
        assert counts() == (1, 0)
        with rk.use_backend("reference"):
            assert counts()[0] > 5
        monkeypatch.undo()
        choice.tell_preferred(0, "triton")
        assert counts() == (0, 1)


def test_no_more_than_a_thousand_calls_are_remembered() -> None:
    cfg = rk.RopeConfig(head_dim=16)
    q = torch.empty(1, 2000, 1, 16, device="cuda")
    for tokens in range(1, 1200):
        rk.apply_rope_(q[:, :tokens], None, None, cfg)
    assert _native.num_remembered() <= 1024


def test_one_order_of_backends_in_eager_compiled_and_backward() -> None:
    """Forward and backward pass, eager or compiled, decode or prefill: Triton launches, and nvcc's kernels never."""
    cfg = rk.RopeConfig(head_dim=64)

    def loss(q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        a, b = rk.apply_rope(q, k, positions, cfg)
        return a.sum() + b.sum()

    for tokens in (1, 5000):
        q, k = (torch.empty(1, tokens, heads, 64, device="cuda", requires_grad=True) for heads in (4, 2))
        positions = torch.zeros(1, tokens, device="cuda", dtype=torch.int64)
        for call in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
            for _ in range(2):
                before = DRIVER.launches
                call(q, k, positions).backward()
                assert DRIVER.launches - before >= 2


def test_the_multiprocessors_of_the_device_decide_the_shape_of_a_launch() -> None:
    """From 40 KB for each of 132 on, programs take 16 tokens. One compiled graph launches them as eager calls do."""
    cfg = rk.RopeConfig(head_dim=128)

    def rotate(q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return rk.apply_rope(q, k, positions, cfg)

    compiled = torch.compile(rotate, backend="aot_eager", fullgraph=True, dynamic=True)
    for tokens, programs in ((10_559, 10_559), (10_560, 660)):
        q, k = (torch.empty(1, tokens, heads, 128, device="cuda", dtype=torch.bfloat16) for heads in (32, 8))
        positions = torch.zeros(1, tokens, device="cuda", dtype=torch.int64)
        with torch.no_grad():
            for call in (rotate, compiled, rotate, compiled):
                before = DRIVER.launches
                call(q, k, positions)
                assert DRIVER.launches == before + 1
                assert DRIVER.last().shape[0] == programs
