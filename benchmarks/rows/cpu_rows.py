"""The rows of a CPU, one thread: against peers and floors, over models, dtypes and backends, with the gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import rope_kernels as rk
from rope_kernels.backends import available_backends, native

from . import peers
from .ours import FLOORS, FORMS, Inputs, TimedCall, checked_gradients, floor, heads_first, ours
from .peers import Peer
from .row import BenchmarkRow, facts_of
from .shapes import DECODE_1, DECODE_32, GLM_4, LLAMA_8B, LONG_HEADS, MODELS, SHAPES, Model, Shape, inputs

__all__ = ["cpu_rows"]

PREFILL_512, PREFILL_4096 = SHAPES[2:4]


def _row(group: str, form: str, model: Model, shape: Shape, dtype: str, name: str, peer: Peer) -> BenchmarkRow:
    def build() -> tuple[TimedCall, TimedCall]:
        x = inputs(model, shape, dtype)
        return ours(form, model, x), peer(model, x)

    facts = facts_of(model, shape, dtype, form, name)
    return BenchmarkRow(group, f"{model.name}, {dtype}, {shape}, {form}, against {name}", build, facts=facts)


def _against_floor(group: str, form: str, model: Model, shape: Shape, dtype: str = "bf16") -> BenchmarkRow:
    return _row(group, form, model, shape, dtype, FLOORS[form][0], lambda _, x: floor(form, x))


def _peer_rows() -> Iterator[BenchmarkRow]:
    for shape in SHAPES:
        for form, name, peer in (
            ("in place", "transformers", peers.transformers),
            ("allocating", "transformers", peers.transformers),
            ("in place", "vLLM", peers.vllm),
        ):
            yield _row("peers", form, LLAMA_8B, shape, "bf16", name, peer)
    for shape in (DECODE_32, PREFILL_512, PREFILL_4096):
        for name, peer in (
            ("transformers, torch.compile", peers.transformers_compiled),
            ("hand-fused, torch.compile", peers.fused_compiled),
        ):
            yield _row("peers", "allocating", LLAMA_8B, shape, "bf16", name, peer)
        yield _row("peers", "out=", LLAMA_8B, shape, "fp32", "onnxruntime", peers.onnxruntime)


def _model_rows() -> Iterator[BenchmarkRow]:
    for model, shape in product(MODELS[1:], (DECODE_32, PREFILL_4096)):
        # Repeated in place, a scaling rotation would leave the dtype's range.
        form = "in place" if model.config.attention_scaling == 1 else "out="
        yield _row("models", form, model, shape, "bf16", "transformers", peers.transformers)
        yield _against_floor("models", form, model, shape)
    for dtype, shape in product(("fp16", "fp32"), (DECODE_32, PREFILL_4096)):
        yield _row("dtypes", "in place", LLAMA_8B, shape, dtype, "transformers", peers.transformers)
        yield _against_floor("dtypes", "in place", LLAMA_8B, shape, dtype)


def _other_rows() -> Iterator[BenchmarkRow]:
    """A caller's table, (batch, heads, seq, head_dim) tensors, partly rotated heads, and long heads."""
    for shape in (DECODE_1, DECODE_32, PREFILL_512, PREFILL_4096):
        yield _table_row(shape)
    for shape in (PREFILL_512, PREFILL_4096):
        yield _heads_first_row(shape)
    for model in (GLM_4, LONG_HEADS):
        yield _row("others", "in place", model, PREFILL_4096, "bf16", "transformers", peers.transformers)
        yield _against_floor("others", "in place", model, PREFILL_4096)
    yield _against_floor("others", "in place", LONG_HEADS, PREFILL_4096, "fp32")


def _table_row(shape: Shape) -> BenchmarkRow:
    name = f"{LLAMA_8B.name}, bf16, {shape}, by a table, against transformers by the same"
    facts = facts_of(LLAMA_8B, shape, "bf16", "by a table", "transformers")
    return BenchmarkRow(
        "others", name, lambda: peers.by_transformers_table(LLAMA_8B, inputs(LLAMA_8B, shape)), facts=facts
    )


def _heads_first_row(shape: Shape) -> BenchmarkRow:
    def build() -> tuple[TimedCall, TimedCall]:
        x = inputs(LLAMA_8B, shape)
        return heads_first(LLAMA_8B, x), floor("in place", x)

    name, form = FLOORS["in place"][0], "in place, heads before tokens"
    facts = facts_of(LLAMA_8B, shape, "bf16", form, name)
    return BenchmarkRow("others", f"{LLAMA_8B.name}, bf16, {shape}, {form}, against {name}", build, facts=facts)


def _with_gradient(model: Model, x: Inputs) -> Inputs:
    return x[0].requires_grad_(), x[1].requires_grad_(), x[2]


def _our_gradient(model: Model, x: Inputs) -> TimedCall:
    return checked_gradients(FORMS["allocating"](model.config, *x), model, x)


def _gradient_rows() -> Iterator[BenchmarkRow]:
    def theirs(model: Model, x: Inputs) -> TimedCall:
        return checked_gradients(peers.transformers(model, x), model, x, heads_first=True)

    for shape in (DECODE_1, DECODE_32, PREFILL_512, PREFILL_4096):
        yield _gradient_row("gradient", shape, "transformers", theirs)


def _gradient_row(group: str, shape: Shape, name: str, peer: Peer) -> BenchmarkRow:
    def build() -> tuple[TimedCall, TimedCall]:
        x = _with_gradient(LLAMA_8B, inputs(LLAMA_8B, shape))
        return _our_gradient(LLAMA_8B, x), peer(LLAMA_8B, x)

    form = "forward+backward"
    facts = facts_of(LLAMA_8B, shape, "bf16", form, name)
    return BenchmarkRow(group, f"{LLAMA_8B.name}, bf16, {shape}, {form}, against {name}", build, facts=facts)


def _on(backend: str, call: TimedCall) -> TimedCall:
    """A call on one backend; its backward pass runs on the same one."""

    def run() -> object:
        with rk.use_backend(backend):
            return call()

    return run


def _backend_rows() -> Iterator[BenchmarkRow]:
    """The native backend against plain torch, and the default instruction set against the others."""
    if available_backends()["native"] is not None:
        return
    for form in FORMS:
        yield _row("backends", form, LLAMA_8B, PREFILL_512, "bf16", "plain torch",
                   lambda model, x, form=form: _on("reference", ours(form, model, x)))  # fmt: skip
    yield _gradient_row("backends", PREFILL_512, "plain torch",
                        lambda model, x: _on("reference", _our_gradient(model, x)))  # fmt: skip
    for isa in native.isas()[1:]:
        yield _row("backends", "in place", LLAMA_8B, PREFILL_512, "bf16", isa,
                   lambda model, x, isa=isa: _forced(isa, ours("in place", model, x)))  # fmt: skip


def _forced(isa: str, call: TimedCall) -> TimedCall:
    def run() -> None:
        native.force_isa(isa)
        call()
        native.force_isa("")

    run()
    return run


def cpu_rows(besides: Sequence[BenchmarkRow] = ()) -> list[BenchmarkRow]:
    """Every row whose facts are not among those of ``besides``."""
    floors = [_against_floor("floors", form, LLAMA_8B, shape) for shape, form in product(SHAPES, FORMS)]
    made = [*_peer_rows(), *floors, *_model_rows(), *_other_rows(), *_gradient_rows(), *_backend_rows()]
    return [row for row in made if row.facts not in [other.facts for other in besides]]
