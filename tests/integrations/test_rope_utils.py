"""The functions of the drop-in against those of the installed transformers, called with the same inputs."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
import warnings
from typing import Any

import pytest
import torch
import transformers.modeling_rope_utils as theirs
from rope_utils_sides import (
    LENGTHS,
    ORIGINAL,
    RTOL,
    SHAPE,
    TYPES,
    assert_both_alike,
    assert_same_table,
    both,
    config_of,
    outcome,
)
from support import comparisons
from transformers import LlamaConfig, PhimoeConfig

import rope_kernels.integrations.rope_utils as ours
from rope_kernels.config import RopeConfig
from rope_kernels.errors import RopeConfigError


def test_the_names_and_signatures_are_transformers() -> None:
    public = {name for name, value in vars(theirs).items() if getattr(value, "__module__", "") == theirs.__name__}
    assert public <= set(ours.__all__)
    for name in public:
        mine, wanted = getattr(ours, name), getattr(theirs, name)
        if inspect.isfunction(wanted):
            mine, wanted = (inspect.signature(f).parameters for f in (mine, wanted))
            assert [(p.name, p.kind, p.default) for p in mine.values()] == [
                (p.name, p.kind, p.default) for p in wanted.values()
            ]
    assert ours.RopeParameters.__annotations__ == theirs.RopeParameters.__annotations__
    assert typing.get_type_hints(ours.RopeParameters) == typing.get_type_hints(theirs.RopeParameters)
    mixins = ours.RotaryEmbeddingConfigMixin, theirs.RotaryEmbeddingConfigMixin
    methods = [name for name in vars(mixins[1]) if not name.startswith("__")]
    assert len(methods) == 16
    for name in methods:
        mine, wanted = (inspect.getattr_static(mixin, name) for mixin in mixins)
        if callable(wanted):
            assert type(mine) is type(wanted)
            assert list(inspect.signature(getattr(mixins[0], name)).parameters) == list(
                inspect.signature(getattr(mixins[1], name)).parameters
            )
        else:
            assert mine == wanted


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu"), "meta"])
@pytest.mark.parametrize("rope_type", TYPES)
def test_every_type_at_every_length(rope_type: str, device: Any) -> None:
    for seq_len in LENGTHS:
        (mine, _), (wanted, _) = both(rope_type, TYPES[rope_type], SHAPE, device, seq_len)
        assert mine[0].device == wanted[0].device
        assert mine[0].dtype == wanted[0].dtype == torch.float32
        if device == "meta":
            assert mine[0].shape == wanted[0].shape
        else:
            assert_same_table(mine, wanted)


@pytest.mark.parametrize("rope_type", TYPES)
def test_the_default_device_and_dtype(rope_type: str) -> None:
    config = config_of(ours, {"rope_type": rope_type, **TYPES[rope_type]}, **SHAPE)
    with torch.device("meta"):
        assert ours.ROPE_INIT_FUNCTIONS[rope_type](config)[0].is_meta
    torch.set_default_dtype(torch.float64)
    try:
        assert ours.ROPE_INIT_FUNCTIONS[rope_type](config)[0].dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("rope_type", "share", "error"), [("dynamic", 0.25, "ZeroDivisionError"), ("yarn", 0.625, "RuntimeError")]
)
def test_dimensions_at_which_transformers_fails(rope_type: str, share: float, error: str) -> None:
    parameters = TYPES[rope_type] | {"partial_rotary_factor": share}
    assert [result for result, _ in both(rope_type, parameters, SHAPE | {"head_dim": 8})] == [error, error]


@pytest.mark.parametrize(("low", "high"), [(4.0, 1.0), (4, 4), (2.0, 2.0)])
def test_llama3_without_a_rising_ramp_is_a_step(low: float, high: float) -> None:
    parameters = TYPES["llama3"] | {"rope_type": "llama3", "low_freq_factor": low, "high_freq_factor": high}
    assert_both_alike("llama3", parameters, SHAPE)
    inv_freq, _ = ours.ROPE_INIT_FUNCTIONS["llama3"](config_of(ours, parameters, **SHAPE))
    plain, _ = ours.ROPE_INIT_FUNCTIONS["default"](config_of(ours, {"rope_theta": 1e4}, **SHAPE))
    ratios = (plain / inv_freq).round().unique()
    assert ratios.tolist() == [1.0, 8.0]
    if low > high:
        with pytest.raises(RopeConfigError, match=r"^high_freq_factor: got"):
            RopeConfig(head_dim=64, **parameters)
    else:
        same = RopeConfig(head_dim=64, **parameters).frequency_params
        assert (plain / torch.tensor(same.inv_freqs(range(len(plain))))).round().unique().tolist() == [1.0, 8.0]


def test_layer_types_and_labels() -> None:
    nested = {name: {"rope_type": name, "rope_theta": 1e4 + i, **TYPES[name]} for i, name in enumerate(TYPES)}
    for rope_type in nested:
        mine, wanted = both(rope_type, nested, SHAPE | {"layer_types": list(nested)}, layer_type=rope_type)
        assert_same_table(mine[0], wanted[0])
        mine, wanted = both(rope_type, nested, SHAPE | {"_rope_type_labels": tuple(nested)}, layer_type=rope_type)
        assert_same_table(mine[0], wanted[0])
        mine, wanted = both(rope_type, nested, SHAPE | {"layer_types": list(nested)}, layer_type="other")
        assert mine[0] == wanted[0] == "KeyError"


def test_a_head_dim_of_another_name() -> None:
    mine, wanted = both(
        "proportional", TYPES["proportional"], SHAPE | {"global_head_dim": 96}, head_dim_key="global_head_dim"
    )
    assert mine[0][0].shape == (48,)
    assert_same_table(mine[0], wanted[0])


def test_layers_of_a_heterogeneous_config() -> None:
    config = comparisons.hf_config("gemma4_text")
    assert config.is_heterogeneous
    config.rope_parameters["full_attention"] = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
    tables = [side.ROPE_INIT_FUNCTIONS["linear"](config, layer_type="full_attention") for side in (ours, theirs)]
    assert tables[0][0].shape == (256,)
    assert_same_table(*tables)


@pytest.mark.parametrize("truncate", [False, True])
def test_truncate_of_a_layer_type(truncate: bool) -> None:
    """A defect of transformers: it looks for ``truncate`` beside the layer types, where it is not."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, **TYPES["yarn"], "truncate": truncate}
    attributes = SHAPE | {"layer_types": ["full_attention"]}
    (mine, _), (wanted, _) = both("yarn", {"full_attention": yarn}, attributes, layer_type="full_attention")
    (flat, _), (their_flat, _) = both("yarn", yarn, SHAPE)
    assert_same_table(mine, flat)
    assert_same_table(mine, their_flat)
    assert torch.allclose(mine[0], wanted[0], rtol=RTOL, atol=0) == truncate
    # Beside the layer types it holds for all of them, on both sides.
    outer = {"full_attention": {k: v for k, v in yarn.items() if k != "truncate"}, "truncate": truncate}
    (mine, _), (wanted, _) = both("yarn", outer, attributes, layer_type="full_attention")
    assert_same_table(mine, wanted)


def test_phimoe_switches_the_list_with_its_scaling() -> None:
    """A defect of transformers: its PhiMoE scales long calls by ``long_mscale`` and rotates by the short list."""
    from transformers.models.phimoe.modeling_phimoe import PhimoeRotaryEmbedding

    lists = {"short_factor": [1.0] * 64, "long_factor": [float(i + 1) for i in range(64)]}
    parameters = {"rope_type": "longrope", ORIGINAL: 16, "short_mscale": 1.25, "long_mscale": 1.5, **lists}
    config = PhimoeConfig(rope_parameters=parameters, max_position_embeddings=64)
    cfg = RopeConfig.from_hf(config)
    assert cfg.frequency_params.scaling(20) == 1.5
    for seq_len in (None, 16, 17):
        tables = [side.ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=seq_len) for side in (ours, theirs)]
        assert_same_table(*tables)
        comparisons.assert_like_transformers(cfg, tables[0][0], seq_len)
    cos, _ = PhimoeRotaryEmbedding(config)(torch.zeros(1), torch.tensor([[1, 19]]))
    short, long = (1.5 * cfg.inv_freq(n).float().cos() for n in (None, 20))
    torch.testing.assert_close(cos[0, 0, :64], short, rtol=0, atol=1e-4)
    assert not torch.allclose(cos[0, 0, :64], long, atol=0.1)


def test_types_that_transformers_leaves_to_its_models_are_found_and_not_listed() -> None:
    functions = ours.ROPE_INIT_FUNCTIONS
    assert set(functions) == set(theirs.ROPE_INIT_FUNCTIONS) == {**functions}.keys()
    assert len(functions) == len(theirs.ROPE_INIT_FUNCTIONS)
    for name in ("default", "axial", "yarn"):
        assert name in functions
        assert functions.get(name) is functions[name]
    assert "unknown" not in functions
    assert functions.get("unknown") is None
    assert functions.get("unknown", 3) == 3
    with pytest.raises(KeyError, match=r"^'unknown'$"):
        functions["unknown"]


def test_a_type_of_ones_own() -> None:
    def mine(config: Any, device: Any = None, seq_len: Any = None, layer_type: Any = None) -> Any:
        return torch.ones(4), 2.0

    ours.ROPE_INIT_FUNCTIONS["mine"] = mine
    try:
        assert ours.ROPE_INIT_FUNCTIONS["mine"] is mine
        assert "mine" in ours.ROPE_INIT_FUNCTIONS
    finally:
        del ours.ROPE_INIT_FUNCTIONS["mine"]


@pytest.mark.parametrize("model_type", ["llama", "glm4", "stablelm", "gpt_neox", "gemma3_text", "nemotron", "phi"])
def test_default_like_the_models(model_type: str) -> None:
    config = comparisons.hf_config(model_type)
    cls = comparisons.rotary_classes(config)[0]
    for layer_type in config.nested_rope_parameter_keys(config.rope_parameters) or [None]:
        layer = {} if layer_type is None else {"layer_type": layer_type}
        wanted = cls.compute_default_rope_parameters(config, **layer)
        assert_same_table(ours.ROPE_INIT_FUNCTIONS["default"](config, **layer), wanted)


@pytest.mark.parametrize(
    "model_type", ["qwen2_vl_vision", "pixtral", "kimi_k25_vision", "gemma4_vision", "glm4v_vision"]
)
def test_axial_like_the_models(model_type: str) -> None:
    if model_type == "kimi_k25_vision":
        from transformers.models.kimi_k25.configuration_kimi_k25 import Kimi_K25VisionConfig as Config
    elif model_type == "qwen2_vl_vision":
        from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig as Config
    else:
        Config = type(comparisons.hf_config(model_type))
    config = Config()
    cls = next(c for c in comparisons.rotary_classes(config) if hasattr(c, "compute_axial_rope_parameters"))
    mine = ours.ROPE_INIT_FUNCTIONS["axial"](config, torch.device("cpu"))
    assert_same_table(mine, cls.compute_axial_rope_parameters(config))


def test_axial_of_an_unknown_model_is_refused() -> None:
    config = {"model_type": "step3p5_vision", "head_dim": 64, "rope_parameters": {"rope_type": "axial"}}
    with pytest.raises(RopeConfigError, match=r"^axis_map: missing; how model_type 'step3p5_vision' shares"):
        ours.ROPE_INIT_FUNCTIONS["axial"](config)


def test_rope_config_validation_warns_and_validates() -> None:
    parameters = {"type": "linear", "factor": 0.5}
    states = []
    for side in (ours, theirs):
        config = config_of(side, parameters, **SHAPE)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result, log = outcome(side.rope_config_validation, config, ignore_keys={"unknown"})
        states.append((result, log, config.rope_parameters, [(w.category, str(w.message)) for w in caught]))
    assert states[0] == states[1]
    assert states[0][3][0][0] is FutureWarning
    assert len(states[0][1]) == 1


WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers":
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import rope_kernels.integrations.rope_utils as ours
class Config(ours.RotaryEmbeddingConfigMixin):
    is_heterogeneous = False
    head_dim, max_position_embeddings, rope_theta = 64, 4096, 1e4
    rope_parameters = {"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}
config = Config()
config.standardize_rope_params()
config.validate_rope()
inv_freq, scaling = ours.ROPE_INIT_FUNCTIONS["llama3"](config)
assert inv_freq.shape == (32,) and scaling == 1.0
config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 1}
config.validate_rope()
config.validate_rope()
assert not any(name.split(".")[0] == "transformers" for name in sys.modules)
"""


def test_it_works_without_transformers() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("high_freq_factor field must be greater than low_freq_factor") == 1
    assert done.stderr.count("original_max_position_embeddings field must be less than") == 1
    assert done.stderr.count("implicit factor") == 1, "logged once in a process"


def test_real_configs_compute_as_with_transformers() -> None:
    for rope_type, parameters in TYPES.items():
        pairs = {"head_dim": 64, "max_position_embeddings": 4096}
        config = LlamaConfig(rope_parameters={"rope_type": rope_type, **parameters}, **pairs)
        assert_same_table(*(side.ROPE_INIT_FUNCTIONS[rope_type](config) for side in (ours, theirs)))
