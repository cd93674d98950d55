"""Patch a loaded model so that it rotates with these kernels, and generate.

The model is a tiny random one, so that this runs in seconds without a download; with a real one, only the line that
makes it changes: ``AutoModelForCausalLM.from_pretrained(...)``.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rope_kernels.integrations.transformers import patch_model, unpatch_model


def main() -> None:
    """Generate before the patch, with it, and after undoing it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=None,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    model = LlamaForCausalLM(config).eval()
    prompt = {"input_ids": torch.randint(256, (1, 12)), "attention_mask": torch.ones(1, 12, dtype=torch.long)}
    before = model.generate(**prompt, max_new_tokens=16, do_sample=False)

    print(patch_model(model))
    after = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    print("same tokens:", torch.equal(before, after))

    unpatch_model(model)
    print("same tokens, unpatched:", torch.equal(before, model.generate(**prompt, max_new_tokens=16, do_sample=False)))


if __name__ == "__main__":
    main()
