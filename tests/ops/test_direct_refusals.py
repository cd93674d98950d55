"""Calls past the dispatcher where they are refused: nothing is written, nobody is passed over."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from hypothesis import given, settings
from hypothesis import strategies as st
from support.direct_calls import CONFIG, NO_LENGTHS, TEXT, qk, table_call
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import rope_kernels as rk
from rope_kernels.core.spec import text_of
from rope_kernels.ops import direct


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
        "rotate_table": lambda: rk.apply_rotary_pos_emb(*table_call()[:5]),
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


@pytest.mark.parametrize("needing", range(4))
def test_gradients_of_a_table_are_left_to_autograd(needing):
    call = table_call()
    call[needing].requires_grad_()
    assert direct.rotate_table(*call) is None
    with torch.no_grad():
        assert direct.rotate_table(*call) is not None


def test_another_backend_is_left_to_the_dispatch_rule():
    q, k, positions = qk()
    with rk.use_backend("reference"):
        assert direct.rotate(q, k, positions, *NO_LENGTHS, TEXT) is None
        assert direct.rotate_table(*table_call()) is None
    with rk.use_backend("native"):
        assert direct.rotate(q, k, positions, *NO_LENGTHS, TEXT) is not None


class Subclass(torch.Tensor):
    pass


THD = text_of(TEXT, "thd")


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
    "a layout that is none": lambda q, k, p: (q, k, p, *NO_LENGTHS, TEXT + "@hsbd"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_anything_unusual_is_refused_and_nothing_is_written(name):
    arguments = UNUSUAL[name](*qk())
    before = [x.clone() if isinstance(x, torch.Tensor) else x for x in arguments]
    assert direct.rotate(*arguments) is None
    assert not direct.rotate_(*arguments)
    for x, y in zip(arguments, before, strict=True):
        assert x is y or x.is_meta or torch.equal(x.to_dense(), y.to_dense())


TABLES = {
    "no q": dict(q=None),
    "no sin": dict(sin=None),
    "a list": dict(cos=[[1.0] * 16] * 3),
    "a subclass": dict(cos=torch.randn(1, 3, 16).as_subclass(Subclass)),
    "meta": dict(sin=torch.empty(1, 3, 16, device="meta")),
    "rank": dict(cos=torch.randn(16), sin=torch.randn(16)),
    "four dimensions": dict(cos=torch.randn(1, 1, 3, 16), sin=torch.randn(1, 1, 3, 16)),
    "another batch": dict(cos=torch.randn(2, 3, 16), sin=torch.randn(2, 3, 16)),
    "other tokens": dict(cos=torch.randn(1, 4, 16), sin=torch.randn(1, 4, 16)),
    "k's tokens": dict(k=torch.randn(1, 4, 2, 16)),
    "k's rank": dict(k=torch.randn(3, 2, 16)),
    "an odd width": dict(cos=torch.randn(1, 3, 15), sin=torch.randn(1, 3, 15)),
    "no width": dict(cos=torch.randn(1, 3, 0), sin=torch.randn(1, 3, 0)),
    "wider than a head": dict(cos=torch.randn(1, 3, 18), sin=torch.randn(1, 3, 18)),
    "two shapes": dict(sin=torch.randn(1, 3, 8)),
    "two dtypes": dict(sin=torch.randn(1, 3, 16).half()),
    "integers": dict(cos=torch.ones(1, 3, 16, dtype=torch.int64), sin=torch.ones(1, 3, 16, dtype=torch.int64)),
    "no dimension of q's heads": dict(unsqueeze_dim=3),
    "the batch's dimension": dict(unsqueeze_dim=0),
    "a dimension before all": dict(unsqueeze_dim=-5),
    "a dimension after all that there can be": dict(
        cos=torch.randn(3, 16), sin=torch.randn(3, 16), unsqueeze_dim=2**63 - 1
    ),
    "half a dimension": dict(unsqueeze_dim=1.5),
    "packed tokens and a batch of tables": dict(q=torch.randn(3, 4, 16), k=torch.randn(3, 2, 16), unsqueeze_dim=1),
    "a pairing that is none": dict(pairing="quarter"),
    "no pairing": dict(pairing=None),
    "gaps between the numbers of cos": dict(cos=torch.randn(1, 3, 32)[..., ::2]),
    "gaps between the numbers of sin": dict(sin=torch.randn(1, 3, 32)[..., ::2]),
    "half of a head, or pairs of all of it": dict(cos=torch.randn(1, 3, 8), sin=torch.randn(1, 3, 8)),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_does_not_fit_is_refused(name):
    assert direct.rotate_table(*table_call(**TABLES[name])) is None


def test_a_table_of_half_a_head_that_is_full_is_taken():
    cos, sin = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    assert direct.rotate_table(*table_call(cos=cos, sin=sin, is_full=True)) is not None


@pytest.mark.parametrize("count", [6, 8])
def test_a_table_with_too_few_or_too_many_arguments_is_refused(count):
    assert direct.rotate_table(*[*table_call(), 1][:count]) is None


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
    text = text_of(config.spec(), "thd")
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
            assert direct.rotate_(q, k, torch.arange(3), *NO_LENGTHS, text_of(TEXT, layout)) is True
            assert torch.equal(q, wanted[0])
            assert torch.equal(k, wanted[1])
