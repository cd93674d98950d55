"""A custom rope type: pairs that would not complete one turn within the context are not rotated.

One function defines the type; kernels, gradients and config files then support it.
"""

import math

import torch

import rope_kernels as rk


def whole_turns(config: rk.RopeConfig) -> rk.FrequencyParams:
    """The default ladder, without the pairs that need more than ``turn_within`` tokens for one turn."""
    turn_within = dict(config.extra)["turn_within"]
    dim = config.head_dim
    rotated = sum(2 * math.pi * config.rope_theta ** (2 * j / dim) <= turn_within for j in range(dim // 2))
    return rk.FrequencyParams(config.rope_theta, dim, dim // 2, rotated=rotated)


def main() -> None:
    """Register the type, read it from a config, rotate with it, and omit a required key."""
    rk.register_rope_type("whole_turns", whole_turns, required=["turn_within"])
    source = {"head_dim": 64, "rope_parameters": {"rope_type": "whole_turns", "rope_theta": 1e4, "turn_within": 4096}}
    cfg = rk.RopeConfig.from_hf(source)
    print(cfg.explain())

    q, k = torch.randn(1, 8, 4, 64, requires_grad=True), torch.randn(1, 8, 2, 64)
    q2, k2 = rk.apply_rope(q, k, torch.arange(1_000_000, 1_000_008), cfg)
    q2.sum().backward()
    still = cfg.inv_freq() == 0
    channels = torch.cat((still, still))
    print(f"{int(still.sum())} of {still.numel()} pairs stand still:", torch.equal(k2[..., channels], k[..., channels]))

    try:
        rk.RopeConfig.from_hf({"head_dim": 64, "rope_parameters": {"rope_type": "whole_turns"}})
    except rk.RopeConfigError as error:
        print(error)


if __name__ == "__main__":
    main()
