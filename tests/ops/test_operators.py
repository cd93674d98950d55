"""The operators refuse a text that is not of their grammar: eager, compiled and exported, with nothing written."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import rope_kernels as rk
from rope_kernels.backends import reference
from rope_kernels.core.spec import text_of
from rope_kernels.ops import operators

SPEC = rk.RopeConfig(head_dim=16).spec()
NO_INDEX = (None, None, None, None)
MISTAKES = {
    "a misspelt key": (f"{SPEC};pairng=interleaved", "unknown key 'pairng'"),
    "a key of another case": (f"{SPEC};Pairing=interleaved", "unknown key 'Pairing'"),
    "a key twice": (f"{SPEC};pairing=half;pairing=interleaved", "key 'pairing' comes twice"),
    "a missing key": (SPEC.replace("theta=10000.0;", ""), "key 'theta' is missing"),
    "a misspelt flag": (f"{SPEC}@bshd,invers", "unknown flag 'invers'"),
    "a flag twice": (f"{SPEC}@bshd,inverse,inverse", "flag 'inverse' comes twice"),
    "an unknown layout": (f"{SPEC}@bhdd", "unknown layout 'bhdd'"),
    "an unknown word": (f"{SPEC};pairing=interleave", "pairing is 'interleave'"),
    "a list of another length": (f"{SPEC};axis=0,1", "axis is "),
}
BACKENDS = ("native", "reference")


def tensors(needs_gradient: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k = torch.randn(2, 5, 4, 16), torch.randn(2, 5, 1, 16)
    return q.requires_grad_(needs_gradient), k.requires_grad_(needs_gradient), torch.arange(5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operator", ["rotate", "rotate_", "rotate_out"])
@pytest.mark.parametrize(("text", "problem"), MISTAKES.values(), ids=MISTAKES)
def test_eager_calls_refuse_a_wrong_text(text: str, problem: str, operator: str, backend: str) -> None:
    q, k, positions = tensors()
    before, out = q.clone(), (torch.full_like(q, torch.nan), torch.full_like(k, torch.nan))
    with rk.use_backend(backend), pytest.raises((RuntimeError, ValueError), match=f"spec: {problem}"):
        getattr(operators, operator)(q, k, positions, *NO_INDEX, text, *(out if operator == "rotate_out" else ()))
    assert torch.equal(q, before)
    assert all(x.isnan().all() for x in out)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("text", "problem"), MISTAKES.values(), ids=MISTAKES)
def test_calls_with_a_gradient_refuse_a_wrong_text(text: str, problem: str, backend: str) -> None:
    q, k, positions = tensors(needs_gradient=True)
    with rk.use_backend(backend), pytest.raises((RuntimeError, ValueError), match=f"spec: {problem}"):
        operators.rotate(q, k, positions, *NO_INDEX, text)


@pytest.mark.parametrize(("text", "problem"), MISTAKES.values(), ids=MISTAKES)
def test_compiled_calls_refuse_a_wrong_text(text: str, problem: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda q, k, positions: operators.rotate(q, k, positions, *NO_INDEX, text), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(Exception, match=f"spec: {problem}"):
        compiled(*tensors())


class Exported(torch.nn.Module):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def forward(self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return operators.rotate(q, k, positions, *NO_INDEX, self.text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(
            *MISTAKES[name], id=name, marks=[] if name in ("a misspelt key", "a flag twice") else pytest.mark.full
        )
        for name in MISTAKES
    ],
)
def test_exported_calls_refuse_a_wrong_text(text: str, problem: str) -> None:
    torch._dynamo.reset()
    with pytest.raises(Exception, match=f"spec: {problem}"):
        torch.export.export(Exported(text), tensors())
    program = torch.export.export(Exported(SPEC), tensors())
    [node] = [n for n in program.graph.nodes if n.target is operators.rotate]
    node.args = (*node.args[:-1], text)
    for backend in BACKENDS:
        with rk.use_backend(backend), pytest.raises((RuntimeError, ValueError), match=f"spec: {problem}"):
            torch.fx.Interpreter(program.graph_module).run(*tensors())


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
@example("ValueError: spec: no\n\nAt:\n  a.py(1): f\n")
def test_an_error_of_a_backend_comes_through_the_library_word_for_word(message: str) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError(message)

    with pytest.MonkeyPatch.context() as patch, rk.use_backend("reference"):
        patch.setattr(reference, "rotate", fails)
        with pytest.raises(RuntimeError) as error:
            operators.rotate(*tensors(), *NO_INDEX, SPEC)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("backend", BACKENDS)
def test_flags_come_in_any_order(backend: str) -> None:
    q, k, positions = tensors()
    config = rk.RopeConfig(head_dim=16, rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    with rk.use_backend(backend):
        results = [
            operators.rotate(q, k, positions, *NO_INDEX, f"{config.spec()}@bshd,{flags}")[0]
            for flags in ("inverse,unscaled", "unscaled,inverse")
        ]
        once = operators.rotate(q, k, positions, *NO_INDEX, text_of(config.spec(), "bshd", True, True))[0]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], once)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("pairing", "layout", "problem"),
    [("halves", "bshd", "pairing"), ("half", "bhdd", "layout"), ("half", "", "layout")],
)
def test_the_table_operator_refuses_unknown_words(pairing: str, layout: str, problem: str, backend: str) -> None:
    q, k, _ = tensors()
    cos, sin = torch.randn(2, 1, 5, 16)
    call = q, k, cos, sin, 16, pairing, layout, False
    with rk.use_backend(backend), pytest.raises((RuntimeError, ValueError), match=problem):
        operators.rotate_table(*call)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: operators.rotate_table(*x, *call[4:]), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=problem):
        compiled(*call[:4])
