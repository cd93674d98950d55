"""Train a patched model with heads sharded over processes: torchrun --nproc-per-node 2 examples/tensor_parallel.py.

Every process rotates its own heads, with no communication. The second half calls ``apply_rope`` on DTensors, with heads
or tokens sharded.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import LlamaConfig, LlamaForCausalLM

import rope_kernels as rk
from rope_kernels.integrations.transformers import patch_model

PLAN = {
    "self_attn.q_proj": ColwiseParallel(),
    "self_attn.k_proj": ColwiseParallel(),
    "self_attn.v_proj": ColwiseParallel(),
    "self_attn.o_proj": RowwiseParallel(),
    "mlp.gate_proj": ColwiseParallel(),
    "mlp.up_proj": ColwiseParallel(),
    "mlp.down_proj": RowwiseParallel(),
}


def small_llama() -> LlamaForCausalLM:
    """A model with the same weights on every process."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def main() -> None:
    """Compare a training step on all processes with one on each alone; then rotate DTensors."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    tokens = torch.randint(128, (2, 24), generator=torch.Generator().manual_seed(1))
    alone, spread = small_llama(), small_llama()
    report = patch_model(spread)
    for layer in spread.model.layers:
        parallelize_module(layer, mesh, PLAN)
    losses = [model(tokens, labels=tokens).loss for model in (alone, spread)]
    for loss in losses:
        loss.backward()
    gradients = [model.model.embed_tokens.weight.grad for model in (alone, spread)]

    q, k = torch.randn(1, 32, 8, 64), torch.randn(1, 32, 4, 64)
    positions = torch.arange(32)
    by_tokens = [distribute_tensor(x, mesh, [Shard(1)]) for x in (q, k)]
    with CommDebugMode() as sent:
        rk.apply_rope(*by_tokens, positions, rk.RopeConfig(head_dim=64))

    if dist.get_rank() == 0:
        print(report)
        print(f"loss alone {losses[0].item():.6f}, on {mesh.size()} processes {losses[1].item():.6f}")
        print(f"largest difference of a gradient: {(gradients[0] - gradients[1]).abs().max().item():.1e}")
        print(f"messages sent for rotating DTensors sharded over tokens: {sent.get_total_counts()}")
    dist.barrier()  # no process exits while another still communicates
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
