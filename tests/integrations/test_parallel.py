"""Patched models on several processes: heads sharded (tensor parallel) and parameters sharded (FSDP2)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import tolerances
from support.distributed_run import on_processes
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module

pytest.importorskip("transformers")

from transformers import Qwen3Config, Qwen3ForCausalLM

from rope_kernels.integrations.transformers import patch_model, rotating

EXAMPLE = Path(__file__).parents[2] / "examples" / "tensor_parallel.py"
CLOSE = tolerances.SEVERAL_PROCESSES


def example() -> dict[str, Any]:
    """The names of the example."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(EXAMPLE.read_text(), str(EXAMPLE), "exec"), names)
    return names


def whole(x: torch.Tensor) -> torch.Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def compare(alone: Any, spread: Any) -> None:
    """Logits, and the gradients of every parameter."""
    tokens = torch.randint(128, (2, 24), generator=torch.Generator().manual_seed(1))
    outputs = [model(tokens, labels=tokens) for model in (alone, spread)]
    torch.testing.assert_close(whole(outputs[1].logits), outputs[0].logits, **CLOSE)
    for output in outputs:
        output.loss.backward()
    parameters = dict(spread.named_parameters())
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(whole(parameters[name].grad), parameter.grad, **CLOSE)


def patched(names: dict[str, Any]) -> Any:
    model = names["small_llama"]()
    assert len(names["patch_model"](model).patched) > 0
    return model


def tensor_parallel() -> None:
    names = example()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    spread = patched(names)
    for layer in spread.model.layers:
        parallelize_module(layer, mesh, names["PLAN"])
    compare(names["small_llama"](), spread)


def parameters_sharded() -> None:
    names = example()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    spread = patched(names)
    for layer in spread.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(spread, mesh=mesh)
    compare(names["small_llama"](), spread)


def qwen3() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
    config = Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2)
    return Qwen3ForCausalLM(config)


def norms_sharded() -> None:
    """Norms fused before and after their weights are sharded, which are whole while a layer runs."""
    mesh, calls, own = init_device_mesh("cpu", (dist.get_world_size(),)), [], rotating.apply_rope

    def counted(*args: Any, q_norm: Any, **kwargs: Any) -> Any:
        calls.append(q_norm)
        return own(*args, q_norm=q_norm, **kwargs)

    for shard_first in (False, True):
        spread = qwen3()
        for step in ("shard", "patch") if shard_first else ("patch", "shard"):
            if step == "patch":
                assert len(patch_model(spread, fuse_norms=True).norms_fused) == 2
                continue
            for layer in spread.model.layers:
                fully_shard(layer.self_attn, mesh=mesh)
                fully_shard(layer, mesh=mesh)
            fully_shard(spread, mesh=mesh)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(rotating, "apply_rope", counted)
            compare(qwen3(), spread)
    assert len(calls) == 4


def both() -> None:
    tensor_parallel()
    parameters_sharded()
    norms_sharded()


@pytest.mark.parametrize(("count", "function"), [(2, both), (4, tensor_parallel)], ids=["2", "4"])
def test_a_patched_model_trains_on_several_processes(count: int, function: Any) -> None:
    on_processes(count, function)


RUN_AND_LEAVE = f"""
import os, runpy, sys
runpy.run_path({str(EXAMPLE)!r}, run_name="__main__")
sys.stdout.flush()
os._exit(0)
"""
"""Runs the example without Python's shutdown: gloo's threads outlive destroy_process_group(), and one that drops a
tensor of Python's while the interpreter ends aborts the process (pytorch/pytorch#190489), once in about 200 runs."""


def test_the_example_runs_with_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "run_and_leave.py"
    script.write_text(RUN_AND_LEAVE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert printed.returncode == 0, printed.stdout + printed.stderr
    assert "messages sent for rotating DTensors sharded over tokens: 0" in printed.stdout
