"""Calls past the dispatcher where they are done: the operator's bits, strides and versions; nothing is kept."""

import gc
import re
import subprocess
import sys
import sysconfig
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tolerances
from support.attempts import Attempt
from support.calls import arguments, is_public
from support.cases import CASES, CONFIGS, config_of, make
from support.direct_calls import CONFIG, NO_LENGTHS, TEXT, qk, table_call

import rope_kernels as rk
from rope_kernels.core.spec import text_of
from rope_kernels.ops import direct, operators


def text_of_case(case):
    return text_of(config_of(case).spec(), case.layout, case.inverse)


def is_usual(case):
    return is_public(case) and case.positions != "float" and case.tokens * case.batch > 0


def direct_arguments(case, made):
    index = (made.options.get(name) for name in ("offset", "seq_len", "cu_seqlens"))
    return made.q, made.k, made.positions, *index, text_of_case(case)


USUAL = [case for case in CASES if is_usual(case)]


def test_the_library_is_bound():
    assert direct.unavailable() is None


def lacks_headers(patch):
    patch.setitem(sys.modules, "rope_kernels._native", None)
    patch.delattr(rk, "_native")


def lacks_the_exchange(patch):
    patch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")


def is_older(patch):
    patch.delattr(rk._native, "rotate_table")


@pytest.mark.parametrize(
    ("take", "reason"),
    [
        (is_older, "the extension is older than the package; install the package again .*rotate_table"),
        (lacks_headers, "the extension was built without Python's headers"),
        (lacks_the_exchange, "this torch lacks a function that they need .*__dlpack_c_exchange_api__"),
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
    wanted = operators.rotate(made.q, made.k, *arguments(case, made))
    got = direct.rotate(*direct_arguments(case, made))
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
            assert direct.rotate_(*direct_arguments(case, attempt.made)) is True
        else:
            out = [*attempt.outputs, None][:2]
            assert direct.rotate_out(*direct_arguments(case, attempt.made), *out) is True
        attempt.check()
        assert all(torch.equal(y, z) for y, z in zip(attempt.outputs, wanted, strict=False))


@pytest.mark.parametrize("case", [c for c in CASES if c.positions == "float" or not c.tokens * c.batch], ids=str)
def test_a_case_without_a_position_of_int_for_each_token_is_refused(case):
    assert direct.rotate(*direct_arguments(case, make(case))) is None


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize(("layout", "rows"), [("bshd", 2), ("bshd", 3), ("bhsd", 2), ("bhsd", 3), ("thd", 2)])
@pytest.mark.parametrize("is_negative", [False, True])
@pytest.mark.parametrize("has_k", [False, True])
def test_a_table_gives_the_bits_of_the_operator(pairing, layout, rows, is_negative, has_k):
    call = table_call(layout, rows, pairing=pairing)
    q, k, cos, sin, unsqueeze_dim, *_ = call
    if is_negative:
        call[4] = unsqueeze_dim - rows - 1
    if not has_k:
        call[1] = k = None
    wide = (t if rows == 3 else t[None] for t in (cos, sin))
    wanted = operators.rotate_table(q, k, *wide, 16, pairing, layout, False)
    got = direct.rotate_table(*call)
    assert torch.equal(got[0], wanted[0])
    assert got[0].stride() == torch.empty_like(q).stride()
    assert torch.equal(got[1], wanted[1]) if has_k else got[1] is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_table_of_any_floating_dtype(dtype):
    q, k, cos, sin, *others = table_call()
    cos, sin = cos.to(dtype), sin.to(dtype)
    wanted = operators.rotate_table(q, k, cos, sin, 16, "half", "bshd", False)
    got = direct.rotate_table(q, k, cos, sin, *others)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


def test_the_public_calls_come_here(monkeypatch):
    """In each of its forms; a mistake in the order of arguments would go unseen, as the operator would do the work."""
    done = []
    for name in ("rotate", "rotate_", "rotate_out", "rotate_table"):
        original = getattr(direct, name)
        monkeypatch.setattr(direct, name, lambda *a, f=original, n=name: done.append((n, bool(r := f(*a)))) or r)
    q, k, positions = qk()
    rk.apply_rope(q, k, positions, CONFIG)
    rk.apply_rope_(q, k, positions, CONFIG)
    rk.apply_rope(q, k, positions, CONFIG, out=(torch.empty_like(q), torch.empty_like(k)))
    rk.apply_rope(q.requires_grad_(), k, positions, CONFIG)[0].sum().backward()
    wanted = [("rotate", True), ("rotate_", True), ("rotate_out", True)]
    assert done == [*wanted, ("rotate", False), ("rotate", True), ("rotate", True)]
    *tensors, unsqueeze_dim, _, _ = table_call()
    rk.apply_rotary_pos_emb(*tensors, unsqueeze_dim, interleaved=True)
    assert done[-1] == ("rotate_table", True)


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
                torch.testing.assert_close(got, wanted, **tolerances.AGAINST_REFERENCE)


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
    text = text_of(config.spec(), options["layout"])
    got = direct.rotate(q, k, None, offset, seq_len, options.get("cu_seqlens"), text)
    with rk.use_backend("reference"):
        wanted = rk.apply_rope(q, k, None, config, **options)
    torch.testing.assert_close(got, wanted, **tolerances.AGAINST_REFERENCE)


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
    assert operators.rotate(q, None, positions, None, None, None, None, config.spec())[0].stride() == wanted


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
        wanted = operators.rotate(q, k, positions, None, None, None, None, TEXT)
        got = direct.rotate(q, k, positions, *NO_LENGTHS, TEXT)
        assert all(x.is_inference() for x in got)
        assert direct.rotate_(q, k, positions, *NO_LENGTHS, TEXT)
        assert all(torch.equal(x, y) and torch.equal(x, z) for x, y, z in zip(wanted, got, (q, k), strict=True))


def test_nothing_is_kept():
    """Every reference taken is given back, in calls that are done and in calls that are refused at any point."""
    q, k, positions = qk()
    out = torch.empty_like(q), torch.empty_like(k)
    table = table_call()
    objects = (q, k, positions, *NO_LENGTHS, TEXT, *out, None, True, False, *table)

    def counts():
        gc.collect()
        return [sys.getrefcount(x) for x in objects]

    def thousand_calls():
        before = counts()
        for _ in range(1000):
            calls()
        return [abs(after - one) >= 1000 for one, after in zip(before, counts(), strict=True)]

    def calls():
        direct.rotate(q, k, positions, *NO_LENGTHS, TEXT)
        direct.rotate(q, None, positions, *NO_LENGTHS, TEXT)
        direct.rotate_(q, k, positions, *NO_LENGTHS, TEXT)
        direct.rotate_out(q, k, positions, *NO_LENGTHS, TEXT, *out)
        direct.rotate(q, k, positions.float(), *NO_LENGTHS, TEXT)
        direct.rotate_(q, q, positions, *NO_LENGTHS, TEXT)
        direct.rotate_out(q, k, positions, *NO_LENGTHS, TEXT, k, q)
        direct.rotate(q, positions, positions, *NO_LENGTHS, TEXT)
        direct.rotate_table(*table)
        direct.rotate_table(table[0], None, *table[2:])
        direct.rotate_table(*table[:3], positions, *table[4:])

    # Other tests' garbage changes the counts of None and True, too, but not each time.
    assert not any(map(all, zip(*(thousand_calls() for _ in range(3)), strict=True)))
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
