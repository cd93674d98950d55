"""Calls past the dispatcher: the operator's bits where they are done; nothing written, nobody passed over elsewhere."""

import gc
import re
import subprocess
import sys
import sysconfig
import weakref
from pathlib import Path

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from attempts import Attempt
from calls import is_public, operands
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import rope_kernels as rk
from cases import CASES, CONFIGS, config_of, make
from rope_kernels import ops
from rope_kernels.backends import direct
from rope_kernels.spec import with_call

CONFIG = rk.RopeConfig(head_dim=16)
TEXT = CONFIG.spec()
NO_LENGTHS = None, None, None  # offset, seq_len, cu_seqlens


def text_of(case):
    return with_call(config_of(case).spec(), case.layout, case.inverse)


def is_usual(case):
    return is_public(case) and case.positions != "float" and case.tokens * case.batch > 0


def arguments(case, made):
    index = (made.options.get(name) for name in ("offset", "seq_len", "cu_seqlens"))
    return made.q, made.k, made.positions, *index, text_of(case)


USUAL = [case for case in CASES if is_usual(case)]


def qk(**options):
    return torch.randn(1, 3, 4, 16, **options), torch.randn(1, 3, 2, 16, **options), torch.arange(3)


def test_the_library_is_bound():
    assert direct.unavailable() is None


def lacks_headers(patch):
    patch.setitem(sys.modules, "rope_kernels._native", None)
    patch.delattr(rk, "_native")


def lacks_the_exchange(patch):
    patch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")


@pytest.mark.parametrize(
    ("take", "reason"),
    [
        (lacks_headers, "the extension was built without them, where there were no headers of Python"),
        (lacks_the_exchange, "this torch lacks what they need .*__dlpack_c_exchange_api__"),
    ],
)
def test_what_is_missing_is_said(take, reason, monkeypatch):
    monkeypatch.setattr(direct, "_missing", None)
    take(monkeypatch)
    direct.load()
    assert re.match(reason, direct.unavailable())


@pytest.mark.parametrize("case", USUAL, ids=str)
def test_a_usual_case_gives_the_bits_of_the_operator(case):
    made = make(case)
    wanted = ops.rotate(made.q, made.k, *operands(case, made))
    got = direct.rotate(*arguments(case, made))
    assert got is not None
    for x, y, z in zip((made.q, made.k), got, wanted, strict=True):
        if x is None:
            assert y is None
        else:
            assert torch.equal(y, z)
            assert y.stride() == torch.empty_like(x).stride()
            assert y.device == x.device
    for attempt in (Attempt(case, False), Attempt(case, True)):
        if attempt.in_place:
            assert direct.rotate_(*arguments(case, attempt.made)) is True
        else:
            out = [*attempt.outputs, None][:2]
            assert direct.rotate_out(*arguments(case, attempt.made), *out) is True
        attempt.check()
        assert all(torch.equal(y, z) for y, z in zip(attempt.outputs, wanted, strict=False))


@pytest.mark.parametrize("case", [c for c in CASES if c.positions == "float" or not c.tokens * c.batch], ids=str)
def test_a_case_without_a_position_of_int_for_each_token_is_refused(case):
    assert direct.rotate(*arguments(case, make(case))) is None


def test_the_public_calls_come_here(monkeypatch):
    """In each of its forms; a mistake in the order of arguments would go unseen, as the operator would do the work."""
    done = []
    for name in ("rotate", "rotate_", "rotate_out"):
        original = getattr(direct, name)
        monkeypatch.setattr(direct, name, lambda *a, f=original, n=name: done.append((n, bool(r := f(*a)))) or r)
    q, k, positions = qk()
    rk.apply_rope(q, k, positions, CONFIG)
    rk.apply_rope_(q, k, positions, CONFIG)
    rk.apply_rope(q, k, positions, CONFIG, out=(torch.empty_like(q), torch.empty_like(k)))
    rk.apply_rope(q.requires_grad_(), k, positions, CONFIG)[0].sum().backward()
    wanted = [("rotate", True), ("rotate_", True), ("rotate_out", True)]
    assert done == [*wanted, ("rotate", False), ("rotate", True), ("rotate", True)]


@pytest.mark.parametrize("name", ["longrope", "longrope_mscale", "dynamic"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_lengths_are_those_of_the_longest_sequence(name, dtype):
    """Positions around the switch, in every form; two configs and several lengths take turns, as a cache would mind."""
    configs = [rk.RopeConfig(**CONFIGS[name]), rk.RopeConfig(**CONFIGS["dynamic"] | dict(rope_theta=5e4))]
    for last in (1, 14, 15, 16, 17, 31, 32, 33, 500, 33):
        for shape in ((3,), (1, 3), (2, 3)):
            q, k = torch.randn(2, 3, 4, 64), torch.randn(2, 3, 1, 64)
            positions = torch.zeros(shape, dtype=dtype)
            positions.flatten()[-2] = last
            for config in configs:
                got = direct.rotate(q, k, positions, *NO_LENGTHS, config.spec())
                with rk.use_backend("reference"):
                    wanted = rk.apply_rope(q, k, positions, config)
                torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["default", "longrope", "dynamic"])
@pytest.mark.parametrize(
    "offset",
    [None, 0, 13, -9, torch.tensor(14), torch.tensor([29]), torch.tensor([13, -2]), torch.tensor([-2, 29])],
    ids=str,
)
@pytest.mark.parametrize("seq_len", [None, 9, 40, torch.tensor(33), torch.tensor([40]), torch.tensor([9, 40])], ids=str)
@pytest.mark.parametrize("lengths", [(), (3, 0), (1, 2), (0, 0)])
def test_counted_positions_and_given_lengths(name, offset, seq_len, lengths):
    config = rk.RopeConfig(**CONFIGS[name])
    options = dict(offset=offset, seq_len=seq_len, layout="thd" if lengths else "bshd")
    q, k = torch.randn(2, 3, 4, config.head_dim), torch.randn(2, 3, 1, config.head_dim)
    if lengths:
        q, k = q[0], k[0]
        options["cu_seqlens"] = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0)
    text = with_call(config.spec(), options["layout"])
    got = direct.rotate(q, k, None, offset, seq_len, options.get("cu_seqlens"), text)
    with rk.use_backend("reference"):
        wanted = rk.apply_rope(q, k, None, config, **options)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def calls():
    """(name, public call) of each form; every call has tensors of its own."""
    q, k, positions = qk()
    out = torch.empty_like(q), torch.empty_like(k)
    return {
        "rotate": lambda: rk.apply_rope(q, k, positions, CONFIG),
        "rotate_": lambda: rk.apply_rope_(q, k, positions, CONFIG),
        "rotate_out": lambda: rk.apply_rope(q, k, positions, CONFIG, out=out),
    }


@pytest.mark.parametrize("name", calls())
@pytest.mark.parametrize("mode", [Seen, Called])
def test_a_mode_sees_the_operator(mode, name):
    mode = mode()
    mode.names = []
    with mode:
        calls()[name]()
    assert any(f"rope_kernels.{name}" in seen or f"rope_kernels::{name}" in seen for seen in mode.names), mode.names


@pytest.mark.parametrize("name", calls())
def test_a_profiler_sees_the_operator(name):
    call = calls()[name]
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        call()
    assert f"rope_kernels::{name}" in {event.key for event in watched.key_averages()}


@pytest.mark.filterwarnings("ignore")
def test_a_tracer_records_the_operator():
    def call(q):
        return rk.apply_rope(q, None, torch.arange(3), CONFIG)[0]

    traced = torch.jit.trace(call, qk()[0])
    q = torch.randn(1, 3, 4, 16)
    assert torch.equal(traced(q), call(q))


def test_transforms_and_tangents_are_left_to_torch():
    q, k, positions = qk()
    assert not torch.func.vmap(lambda x: torch.tensor(bool(direct.rotate(q, k, positions, *NO_LENGTHS, TEXT))))(
        torch.zeros(2)
    ).any()
    with forward_ad.dual_level():
        assert direct.rotate(q, k, positions, *NO_LENGTHS, TEXT) is None
    assert direct.rotate(q, k, positions, *NO_LENGTHS, TEXT) is not None


@pytest.mark.parametrize("needing", range(4))
def test_gradients_are_left_to_autograd(needing):
    q, k, positions = qk()
    out = torch.empty_like(q), torch.empty_like(k)
    (q, k, *out)[needing].requires_grad_()
    assert not direct.rotate_out(q, k, positions, *NO_LENGTHS, TEXT, *out)
    if needing < 2:
        assert direct.rotate(q, k, positions, *NO_LENGTHS, TEXT) is None
        assert not direct.rotate_(q, k, positions, *NO_LENGTHS, TEXT)
    with torch.no_grad():
        assert direct.rotate_out(q, k, positions, *NO_LENGTHS, TEXT, *out)


def test_another_backend_is_left_to_the_dispatch_rule():
    q, k, positions = qk()
    with rk.use_backend("reference"):
        assert direct.rotate(q, k, positions, *NO_LENGTHS, TEXT) is None
    with rk.use_backend("native"):
        assert direct.rotate(q, k, positions, *NO_LENGTHS, TEXT) is not None


class Subclass(torch.Tensor):
    pass


THD = with_call(TEXT, "thd")


def packed(q, k):
    return q[0], k[0]


UNUSUAL = {
    "no q": lambda q, k, p: (None, k, p, *NO_LENGTHS, TEXT),
    "no text": lambda q, k, p: (q, k, p, *NO_LENGTHS, None),
    "too few": lambda q, k, p: (q, k, p),
    "too many": lambda q, k, p: (q, k, p, TEXT, *NO_LENGTHS, TEXT),
    "a number": lambda q, k, p: (1.0, k, p, *NO_LENGTHS, TEXT),
    "a list": lambda q, k, p: (q, [0.0], p, *NO_LENGTHS, TEXT),
    "a parameter": lambda q, k, p: (torch.nn.Parameter(q, requires_grad=False), k, p, *NO_LENGTHS, TEXT),
    "a subclass": lambda q, k, p: (q, k.as_subclass(Subclass), p, *NO_LENGTHS, TEXT),
    "meta": lambda q, k, p: (q.to("meta"), k, p, *NO_LENGTHS, TEXT),
    "k on meta": lambda q, k, p: (q, k.to("meta"), p, *NO_LENGTHS, TEXT),
    "sparse": lambda q, k, p: (q, k, p.to_sparse(), *NO_LENGTHS, TEXT),
    "an efficient zero": lambda q, k, p: (q, torch._efficientzerotensor(k.shape), p, *NO_LENGTHS, TEXT),
    "float positions": lambda q, k, p: (q, k, p.float(), *NO_LENGTHS, TEXT),
    "boolean positions": lambda q, k, p: (q, k, p > 0, *NO_LENGTHS, TEXT),
    "a scalar": lambda q, k, p: (q, k, p[0], *NO_LENGTHS, TEXT),
    "double": lambda q, k, p: (q.double(), k.double(), p, *NO_LENGTHS, TEXT),
    "integers": lambda q, k, p: (q.int(), k.int(), p, *NO_LENGTHS, TEXT),
    "two dtypes": lambda q, k, p: (q, k.half(), p, *NO_LENGTHS, TEXT),
    "head_dim": lambda q, k, p: (q[..., :8], k[..., :8], p, *NO_LENGTHS, TEXT),
    "rank": lambda q, k, p: (q[0], k[0], p, *NO_LENGTHS, TEXT),
    "k's rank": lambda q, k, p: (q, k[0], p, *NO_LENGTHS, TEXT),
    "five dimensions": lambda q, k, p: (q[None], k[None], p, *NO_LENGTHS, TEXT),
    "other tokens": lambda q, k, p: (q, k[:, :2], p, *NO_LENGTHS, TEXT),
    "fewer positions": lambda q, k, p: (q, k, p[:2], *NO_LENGTHS, TEXT),
    "last stride": lambda q, k, p: (q.transpose(1, 3).contiguous().transpose(1, 3), k, p, *NO_LENGTHS, TEXT),
    "no tokens": lambda q, k, p: (q[:, :0], k[:, :0], p[:0], *NO_LENGTHS, TEXT),
    "positions and an offset": lambda q, k, p: (q, k, p, 5, None, None, TEXT),
    "an offset of bool": lambda q, k, p: (q, k, None, True, None, None, TEXT),
    "an offset beyond int64": lambda q, k, p: (q, k, None, 1 << 63, None, None, TEXT),
    "an offset of int32": lambda q, k, p: (q, k, None, torch.tensor([5], dtype=torch.int32), None, None, TEXT),
    "a scalar offset of int32": lambda q, k, p: (q, k, None, torch.tensor(5, dtype=torch.int32), None, None, TEXT),
    "offsets of other sequences": lambda q, k, p: (q, k, None, torch.arange(2), None, None, TEXT),
    "an offset on meta": lambda q, k, p: (q, k, None, torch.arange(1, device="meta"), None, None, TEXT),
    "a fraction of a length": lambda q, k, p: (q, k, p, None, 2.5, None, TEXT),
    "cu_seqlens of a batch": lambda q, k, p: (q, k, None, None, None, torch.tensor([0, 3]), TEXT),
    "cu_seqlens of one bound": lambda q, k, p: (*packed(q, k), None, None, None, torch.tensor([0]), THD),
    "cu_seqlens and positions": lambda q, k, p: (*packed(q, k), p, None, None, torch.tensor([0, 3]), THD),
    "cu_seqlens, positions and one length": lambda q, k, p: (*packed(q, k), p, None, 9, torch.tensor([0, 3]), THD),
    "cu_seqlens of fractions": lambda q, k, p: (*packed(q, k), None, None, None, torch.tensor([0.0, 3.0]), THD),
    "a broken text": lambda q, k, p: (q, k, p, *NO_LENGTHS, "theta=abc;head_dim=16;num_pairs=8"),
    "a layout that is none": lambda q, k, p: (q, k, p, *NO_LENGTHS, TEXT + "@sbhd"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_anything_unusual_is_refused_and_nothing_is_written(name):
    arguments = UNUSUAL[name](*qk())
    before = [x.clone() if isinstance(x, torch.Tensor) else x for x in arguments]
    assert direct.rotate(*arguments) is None
    assert not direct.rotate_(*arguments)
    for x, y in zip(arguments, before, strict=True):
        assert x is y or x.is_meta or torch.equal(x.to_dense(), y.to_dense())


OUT = {
    "no q_out": lambda q, k: (None, torch.empty_like(k)),
    "no k_out": lambda q, k: (torch.empty_like(q), None),
    "too few": lambda q, k: (torch.empty_like(q),),
    "shape": lambda q, k: (torch.empty_like(q), torch.empty_like(q)),
    "dtype": lambda q, k: (torch.empty_like(q), torch.empty_like(k, dtype=torch.float16)),
    "last stride": lambda q, k: (torch.empty(*q.shape, 2)[..., 0], torch.empty_like(k)),
    "one memory": lambda q, k: (x := torch.empty_like(q), x[:, :, :2]),
    "an input's memory": lambda q, k: (torch.empty_like(q), q[:, :, :2]),
    "expanded": lambda q, k: (q.new_empty(1, 1, 1, 16).expand_as(q), torch.empty_like(k)),
}


@pytest.mark.parametrize("name", OUT)
def test_outputs_that_do_not_fit_are_refused_and_not_written(name):
    q, k, positions = qk()
    out = [x if x is None or x.data_ptr() == q.data_ptr() else x.fill_(7.0) for x in OUT[name](q, k)]
    before = [None if x is None else x.clone() for x in out]
    assert not direct.rotate_out(q, k, positions, *NO_LENGTHS, TEXT, *out)
    assert all(x is None or torch.equal(x, y) for x, y in zip(out, before, strict=True))


STORAGE = 2000
dimensions = st.tuples(st.integers(0, 500), st.integers(0, 300), st.integers(0, 40))


@given(dimensions, dimensions, dimensions, st.booleans())
@settings(max_examples=400)
def test_views_of_one_storage_are_written_only_if_no_order_of_writing_matters(q_at, k_at, to, in_place):
    """Beside the same call on copies: whatever is done must come out as if nothing were shared."""
    storage = torch.randn(STORAGE)
    config = rk.RopeConfig(head_dim=4)

    def view(of, at, heads):
        return of.as_strided((2, heads, 4), (at[1], at[2], 1), at[0])

    q, k, positions = view(storage, q_at, 3), view(storage, k_at, 2), torch.tensor([5, 9])
    copies = (x.clone(memory_format=torch.contiguous_format) for x in (q, k))
    wanted = rk.apply_rope(*copies, positions, config, layout="thd")
    text = with_call(config.spec(), "thd")
    k_out = view(storage, to, 2)
    if in_place:
        done, (got_q, got_k) = direct.rotate_(q, k, positions, *NO_LENGTHS, text), (q, k)
    else:
        q_out = torch.empty(2, 3, 4)
        done, (got_q, got_k) = direct.rotate_out(q, k, positions, *NO_LENGTHS, text, q_out, k_out), (q_out, k_out)
    if done:
        assert torch.equal(got_q, wanted[0])
        assert torch.equal(got_k, wanted[1])


def test_q_and_k_of_one_projection_are_done():
    """As most models make them: slices of what one matrix product gave, a token or a head at a time."""
    for layout, shape in (("bshd", (2, 3, 12, 16)), ("thd", (3, 12, 16)), ("bhsd", (2, 12, 3, 16))):
        heads = 1 if layout == "bhsd" else len(shape) - 2
        for stretch in (slice(None), slice(0, shape[heads], 2)):
            fused = torch.randn(shape)
            parts = fused.tensor_split((6, 9), heads)
            q, k = (part.narrow(heads, 0, part.shape[heads])[..., :16] for part in parts[:2])
            q, k = (x.transpose(0, heads)[stretch].transpose(0, heads) for x in (q, k))
            wanted = rk.apply_rope(q.clone(), k.clone(), torch.arange(3), CONFIG, layout=layout)
            assert direct.rotate_(q, k, torch.arange(3), *NO_LENGTHS, with_call(TEXT, layout)) is True
            assert torch.equal(q, wanted[0])
            assert torch.equal(k, wanted[1])


@given(
    st.permutations(range(4)),
    st.tuples(*[st.integers(1, 3)] * 3),
    st.tuples(*[st.integers(0, 2)] * 3),
    st.tuples(*[st.booleans()] * 3),
)
@settings(max_examples=300)
def test_results_have_the_strides_of_empty_like(order, sizes, more, expanded):
    """For views in any order of dimensions, with gaps, and with dimensions that repeat."""
    sizes, more = (*sizes, 4), (*more, 0)
    place = sorted(order, key=lambda d: d == 3)  # the last dimension stays innermost
    wide = torch.randn([sizes[d] + more[d] for d in place])
    q = wide.permute([place.index(d) for d in range(4)])[: sizes[0], : sizes[1], : sizes[2]]
    for d in range(3):
        if expanded[d]:
            q = q.narrow(d, 0, 1).expand([sizes[e] if e == d else -1 for e in range(4)])
    positions, config = torch.arange(q.shape[1]), rk.RopeConfig(head_dim=4)
    wanted = torch.empty_like(q).stride()
    assert direct.rotate(q, None, positions, *NO_LENGTHS, config.spec())[0].stride() == wanted
    assert ops.rotate(q, None, positions, None, None, None, None, config.spec())[0].stride() == wanted


def test_versions_are_counted():
    q, k, positions = qk()
    out = torch.empty_like(q), torch.empty_like(k)
    assert direct.rotate_out(q, k, positions, *NO_LENGTHS, TEXT, *out)
    assert (q._version, k._version, *(x._version for x in out)) == (0, 0, 1, 1)
    assert direct.rotate_(q, k, positions, *NO_LENGTHS, TEXT)
    assert direct.rotate_(q, None, positions, *NO_LENGTHS, TEXT)
    assert (q._version, k._version) == (2, 1)


def test_inference_tensors_are_rotated():
    with torch.inference_mode():
        q, k, positions = qk()
        wanted = ops.rotate(q, k, positions, None, None, None, None, TEXT)
        got = direct.rotate(q, k, positions, *NO_LENGTHS, TEXT)
        assert all(x.is_inference() for x in got)
        assert direct.rotate_(q, k, positions, *NO_LENGTHS, TEXT)
        assert all(torch.equal(x, y) and torch.equal(x, z) for x, y, z in zip(wanted, got, (q, k), strict=True))


def test_nothing_is_kept():
    """Every reference taken is given back, in calls that are done and in calls that are refused at any point."""
    q, k, positions = qk()
    out = torch.empty_like(q), torch.empty_like(k)
    objects = (q, k, positions, *NO_LENGTHS, TEXT, *out, None, True, False)

    def counts():
        gc.collect()
        return [sys.getrefcount(x) for x in objects]

    before = counts()
    for _ in range(1000):
        direct.rotate(q, k, positions, *NO_LENGTHS, TEXT)
        direct.rotate(q, None, positions, *NO_LENGTHS, TEXT)
        direct.rotate_(q, k, positions, *NO_LENGTHS, TEXT)
        direct.rotate_out(q, k, positions, *NO_LENGTHS, TEXT, *out)
        direct.rotate(q, k, positions.float(), *NO_LENGTHS, TEXT)
        direct.rotate_(q, q, positions, *NO_LENGTHS, TEXT)
        direct.rotate_out(q, k, positions, *NO_LENGTHS, TEXT, k, q)
        direct.rotate(q, positions, positions, *NO_LENGTHS, TEXT)
    assert all(abs(after - one) < 100 for one, after in zip(before, counts(), strict=True))
    made = direct.rotate(q, k, positions, *NO_LENGTHS, TEXT)
    references = [weakref.ref(x) for x in made]
    storages = [weakref.ref(x.untyped_storage()) for x in made]
    usual = torch.empty_like(q), torch.empty_like(k)
    assert [sys.getrefcount(x) for x in made] == [sys.getrefcount(x) for x in usual]
    del made
    assert [r() for r in (*references, *storages)] == [None] * 4


def test_the_library_loads_where_there_is_no_python(tmp_path):
    """As a program in C++ that runs an exported model would load it: with all its symbols looked up at once."""
    program, source = tmp_path / "load", tmp_path / "load.cpp"
    source.write_text(
        "#include <dlfcn.h>\n#include <cstdio>\nint main(int, char** a) {\n"
        "  if (dlopen(a[1], RTLD_NOW)) return 0;\n  std::puts(dlerror());\n  return 1;\n}\n"
    )
    libraries = Path(torch.__file__).parent / "lib"
    subprocess.run(["c++", source, "-o", program, "-ldl"], check=True)
    library = Path(rk.__file__).parent / "_native.so"
    environment = {"LD_LIBRARY_PATH": f"{libraries}:{sysconfig.get_config_var('LIBDIR')}"}
    done = subprocess.run([program, library], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_references_are_counted_by_functions():
    """The macros of an old stable ABI count immortal objects, too, and end in _Py_Dealloc."""
    symbols = (Path(rk.__file__).parent / "_native.so").read_bytes()
    assert b"Py_DecRef" in symbols
    assert b"_Py_Dealloc" not in symbols
