"""Apply functions and rotary embeddings are known by what they compute, not by what they are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding, Gemma3TextConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rope_kernels.integrations.transformers import probing
from rope_kernels.integrations.transformers.conventions import Convention
from rope_kernels.integrations.transformers.probing import probe_function
from rope_kernels.integrations.transformers.rotary import probe_rotary
from rope_kernels.integrations.transformers.rotary_plan import RotaryPlan

D = 16


def half(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def near(x, cos, sin):
    a, b = x[..., ::2], x[..., 1::2]
    return x * cos + torch.stack((-b, a), -1).flatten(-2) * sin


def to_half(x, cos, sin):
    (a, b), (cos, sin) = (x[..., ::2], x[..., 1::2]), (t[..., : t.shape[-1] // 2] for t in (cos, sin))
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def twice(rotate, make):
    """An apply function of transformers' usual signature."""

    def apply(q, k, cos, sin, unsqueeze_dim=1):
        cos, sin = make(cos.unsqueeze(unsqueeze_dim)), make(sin.unsqueeze(unsqueeze_dim))
        return rotate(q, cos, sin), rotate(k, cos, sin)

    return apply


def partial(rotate, trailing=False):
    def part(x, cos, sin):
        width = cos.shape[-1]
        if trailing:
            return torch.cat((x[..., :-width], rotate(x[..., -width:], cos, sin)), -1)
        return torch.cat((rotate(x[..., :width], cos, sin), x[..., width:]), -1)

    return part


def same(t):
    return t


def repeated(t):
    return t[..., : t.shape[-1] // 2].repeat_interleave(2, -1)


def complex_(xq, xk, freqs_cis):
    def rotate(x):
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * freqs_cis[:, :, None]).flatten(3).type_as(x)

    return rotate(xq), rotate(xk)


def vision(q, k, cos, sin):
    cos, sin = cos.unsqueeze(-2).float(), sin.unsqueeze(-2).float()
    return half(q.float(), cos, sin).type_as(q), half(k.float(), cos, sin).type_as(k)


def swapped(tensor, sin, cos):
    sin, cos = (t[:, :, None].repeat_interleave(2, -1) for t in (sin, cos))
    return near(tensor, cos, sin)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (twice(half, same), "half"),
        (twice(partial(half), same), "half"),
        (twice(half, lambda t: torch.cat((t, t), -1)), "half, half-width"),
        (twice(lambda x, c, s: half(x, c, -s), same), "half, conjugate"),
        (twice(near, same), "interleaved"),
        (twice(partial(near), repeated), "interleaved, repeat-2"),
        (twice(near, lambda t: t.repeat_interleave(2, -1)), "interleaved, half-width"),
        (
            twice(partial(near, trailing=True), lambda t: t.repeat_interleave(2, -1)),
            "interleaved, half-width, trailing",
        ),
        (twice(to_half, same), "interleaved_to_half"),
        (twice(lambda x, c, s: to_half(x, c, -s), same), "interleaved_to_half, conjugate"),
        (complex_, "interleaved, complex"),
        (vision, "half"),
        (swapped, "interleaved, half-width"),
    ],
)
def test_every_convention_is_recognised(function: Any, name: str) -> None:
    convention = probe_function(function)
    assert isinstance(convention, Convention), convention
    assert convention.name == name


def k_left_alone(q, k, cos, sin, unsqueeze_dim=1):
    return twice(half, same)(q, k, cos, sin, unsqueeze_dim)[0], k


def k_the_other_way(q, k, cos, sin, unsqueeze_dim=1):
    return twice(half, same)(q, k, cos, sin, unsqueeze_dim)[0], twice(half, same)(q, k, cos, -sin, unsqueeze_dim)[1]


@pytest.mark.parametrize(
    "function",
    [
        twice(lambda x, c, s: 1.001 * half(x, c, s), same),
        twice(lambda x, c, s: half(x, c, s) + 1e-3, same),
        twice(lambda x, c, s: half(x, c, s.abs()), same),
        twice(lambda x, c, s: near(half(x, c, s), c, s), same),
        k_left_alone,
        k_the_other_way,
    ],
)
def test_what_only_looks_like_a_rotation_is_refused(function: Any) -> None:
    assert probe_function(function) == "its results match no known convention"


def test_a_function_that_widens_its_result_is_refused() -> None:
    wide = twice(lambda x, c, s: half(x.float(), c, s), same)
    assert probe_function(wide) == "its results have another dtype than q"


def test_functions_that_cannot_be_called_are_refused() -> None:
    def with_values(q, k, v, cos, sin):
        return q, k, v

    def broken(q, k, cos, sin):
        raise RuntimeError("no")

    def no_table(q, k, unsqueeze_dim=1):
        return q, k

    assert probe_function(with_values) == "it takes (q, k, v, cos, sin), not one or two tensors and a table"
    assert probe_function(broken) == (
        "it takes no table of a known convention on cpu tensors (test_patch_probing raised RuntimeError: no); if it "
        "needs a GPU, patch the model there"
    )
    assert probe_function(no_table) is None


def test_a_function_that_takes_no_cpu_tensors_is_measured_on_the_models_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of other libraries; here a flag is the device."""
    on_cpu, measure = True, probing._measure

    def theirs(q, k, cos, sin, unsqueeze_dim=1):
        if on_cpu:
            raise ValueError("cpu tensor?")
        return twice(half, same)(q, k, cos, sin, unsqueeze_dim)

    def on_device(function: Any, signature: Any, device: torch.device) -> Any:
        nonlocal on_cpu
        on_cpu = device.type == "cpu"
        return measure(function, signature, torch.device("cpu"))

    monkeypatch.setattr(probing, "_measure", on_device)
    assert "on cpu tensors (test_patch_probing raised ValueError: cpu tensor?)" in str(probe_function(theirs))
    found = probe_function(theirs, torch.device("cuda"))
    assert isinstance(found, Convention)
    assert found.name == "half"


def llama(**rope: Any) -> LlamaRotaryEmbedding:
    values = {"hidden_size": 4 * D, "num_attention_heads": 4, "max_position_embeddings": 64}
    return LlamaRotaryEmbedding(LlamaConfig(**values, rope_parameters={"rope_theta": 1e4, **rope}))


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def test_a_rotary_embedding_is_read_from_its_config() -> None:
    plan = probe_rotary(llama(**YARN))
    assert isinstance(plan, RotaryPlan)
    (source,) = plan.sources.values()
    assert (source.cfg.rope_type, source.form, source.follows_dtype) == ("yarn", "halves", True)


@pytest.mark.parametrize("how", ["cast", "meta"])
def test_buffers_that_hold_nothing_do_not_matter(how: str) -> None:
    module = llama(**YARN).to(torch.bfloat16) if how == "cast" else llama(**YARN).to("meta")
    plan = probe_rotary(module)
    assert isinstance(plan, RotaryPlan)
    assert plan.sources[None].cfg == probe_rotary(llama(**YARN)).sources[None].cfg


def test_a_table_that_was_changed_is_followed() -> None:
    module = llama(rope_type="default")
    module.inv_freq.mul_(0.75)
    plan = probe_rotary(module)
    assert plan.sources[None].cfg.rope_type == "inv_freq"
    torch.testing.assert_close(plan.sources[None].cfg.inv_freq().float(), module.inv_freq)


def test_a_probe_leaves_the_module_as_it_is() -> None:
    module = llama(rope_type="dynamic", factor=4.0)
    module(torch.zeros(1), torch.arange(200)[None])
    before = module.inv_freq.clone()
    assert isinstance(probe_rotary(module), RotaryPlan)
    assert torch.equal(module.inv_freq, before)
    assert module.max_seq_len_cached == 200


@pytest.mark.parametrize("odd", [lambda n: n == 64, lambda n: n == 65, lambda n: n < 64, lambda n: n > 128])
def test_a_config_must_hold_on_both_sides_of_every_threshold(odd: Any) -> None:
    class Odd(LlamaRotaryEmbedding):
        def forward(self, x, position_ids):
            cos, sin = super().forward(x, position_ids)
            return (cos * 1.0001, sin) if odd(position_ids.max() + 1) else (cos, sin)

    config = llama(rope_type="default").config
    assert config.max_position_embeddings == 64
    reason = probe_rotary(Odd(config))
    assert isinstance(reason, str)
    assert reason.startswith("its tables are not those of its config")


def test_learned_frequencies_and_other_signatures_are_left_to_the_module() -> None:
    class Learned(LlamaRotaryEmbedding):
        def __init__(self, config):
            super().__init__(config)
            self.alpha = nn.Parameter(torch.zeros(()))

    class Other(LlamaRotaryEmbedding):
        def forward(self, x, seq_len):
            return x

    config = llama(rope_type="default").config
    assert probe_rotary(Learned(config)) == "its frequencies depend on alpha"
    assert probe_rotary(Other(config)) == "its forward takes (x, seq_len), not (x, position_ids)"


def test_every_layer_type_has_its_own_frequencies() -> None:
    config = Gemma3TextConfig(
        head_dim=D,
        layer_types=["sliding_attention", "full_attention"],
        num_hidden_layers=2,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        },
    )
    plan = probe_rotary(Gemma3RotaryEmbedding(config))
    assert {name: source.cfg.rope_type for name, source in plan.sources.items()} == {
        "sliding_attention": "default",
        "full_attention": "linear",
    }
