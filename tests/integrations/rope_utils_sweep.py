"""What transformers' configs and rotary modules make of themselves, for one process with its module and one with ours.

``python rope_utils_sweep.py FILE NAME...`` puts the drop-in in place of ``transformers.modeling_rope_utils`` before
transformers is imported, so that every class is built on it, and saves what :func:`collect` returns.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch

LENGTH = 64  # max_position_embeddings of the configs that are given a type
TYPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 0.7},
    "longrope": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0, "original_max_position_embeddings": 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}  # fmt: skip


class Log(logging.Handler):
    """The messages of the rope module's logger, sets in order."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = re.sub(r"\{([^}]*)\}", lambda m: f"{{{', '.join(sorted(m[1].split(', ')))}}}", record.getMessage())
        self.messages.append(f"{record.levelname}: {message}")


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """What is logged within, also what is logged but once in a process."""
    logger, handler = logging.getLogger("transformers.modeling_rope_utils"), Log()
    level, logger.propagate = logger.level, False
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    with contextlib.suppress(AttributeError):
        type(logger).warning_once.cache_clear()  # type: ignore[attr-defined]
    try:
        yield handler.messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = True


def attempt(function: Any, *args: Any, **kwargs: Any) -> Any:
    """The result, or the kind of error."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}"


def inside(config: Any, depth: int = 0) -> Iterator[Any]:
    """A config and those within it."""
    yield config
    for value in vars(config).values():
        if depth < 3 and hasattr(value, "to_diff_dict"):
            yield from inside(value, depth + 1)


def plain(config: Any) -> str:
    """A config as JSON."""
    return json.dumps(config.to_dict(), sort_keys=True, default=str)


def given_a_type(config: Any, rope_type: str) -> Any:
    """A config of the same class with another rope type, flat as its own; built by the class."""
    theta = config.rope_parameters["rope_theta"]
    parameters = {"rope_type": rope_type, "rope_theta": theta, **TYPES[rope_type]}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pairs = int(head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0)) // 2
    if rope_type == "longrope":
        parameters |= {"short_factor": [1.0] * pairs, "long_factor": [1.0 + i for i in range(pairs)]}
    return type(config)(rope_parameters=parameters, max_position_embeddings=LENGTH)


def modules_of(config: Any) -> list[type]:
    """The rotary embedding classes of a config's modeling file that take it; none where only the config exists."""
    from support import comparisons

    try:
        return [cls for cls in comparisons.rotary_classes(config) if "RotaryEmbedding" in cls.__name__]
    except ImportError:
        return []


def run(cls: type, config: Any) -> dict[str, Any]:
    """The tables of a module when made, and after a short call, a long one and a short one."""
    module = cls(config)
    record: dict[str, Any] = {"made": tables(module)}
    takes_layer = "layer_type" in inspect.signature(module.forward).parameters
    layers = list(module.rope_type) if takes_layer and isinstance(module.rope_type, dict) else [None]
    for layer in layers:
        for last in (4, LENGTH + 40, LENGTH // 2 + 20, 5):
            positions = torch.tensor([[0, 1, 2, 3, last - 1]])
            args = (torch.zeros(1), positions) + ((layer,) if layer is not None else ())
            output = attempt(module, *args)
            # Far positions would show what transformers' float32 is off by.
            cut = [t[:, :4].clone() for t in output] if isinstance(output, tuple) else output
            record[f"{layer} {last}"] = (cut, tables(module))
    return record


def tables(module: Any) -> dict[str, torch.Tensor | float]:
    """Buffers and scalings."""
    found = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return found | {k: v for k, v in vars(module).items() if "scaling" in k and isinstance(v, (int, float))}


def record_of(config: Any) -> dict[str, Any]:
    """All that a config does with its rope parameters."""
    record: dict[str, Any] = {"dict": plain(config)}
    again = attempt(type(config).from_dict, config.to_dict())
    record["again"] = again if isinstance(again, str) else plain(again)
    record["standardized"] = attempt(config.standardize_rope_params), plain(config)
    record["validated"] = attempt(config.validate_rope), plain(config)
    for cls in modules_of(config):
        record[cls.__name__] = attempt(run, cls, config)
    return record


def collect(names: list[str], with_types: bool) -> dict[str, Any]:
    """The record of every config class with rope parameters among ``names`` (model types) and within their configs."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    records: dict[str, Any] = {}
    for name in names:
        with logged() as messages:
            try:
                top = CONFIG_MAPPING[name]()
            except Exception as error:
                records[name] = type(error).__name__
                continue
        records[f"log of {name}"] = sorted(messages)
        for config in inside(top):
            label = type(config).__name__
            if label not in records and getattr(config, "rope_parameters", None):
                with logged() as messages:
                    records[label] = record_of(config)
                records[f"log of {label}"] = sorted(messages)
                if with_types and "rope_theta" in config.rope_parameters:
                    records |= typed(config, label)
    return records


def typed(config: Any, label: str) -> dict[str, Any]:
    """The records of a config's class with every rope type."""
    records: dict[str, Any] = {}
    for rope_type in TYPES:
        with logged() as messages:
            other = attempt(given_a_type, config, rope_type)
            records[f"{label} {rope_type}"] = other if isinstance(other, str) else record_of(other)
        records[f"log of {label} {rope_type}"] = sorted(messages)
    return records


def main(path: str, with_types: str, *names: str) -> None:
    import rope_kernels.integrations.rope_utils as drop_in

    sys.modules["transformers.modeling_rope_utils"] = drop_in
    import transformers

    transformers.logging.set_verbosity_error()
    assert transformers.PreTrainedConfig.__mro__[2] is drop_in.RotaryEmbeddingConfigMixin
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(collect(list(names), with_types == "types"), path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
