"""What a rotation without buffers outlives, and what it saves: casts, meta init, FSDP2, memory for backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from models import FAMILIES
from support import tolerances
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from rope_kernels import RopeConfig
from rope_kernels.integrations.transformers import patch_model, unpatch_model

LLAMA = next(family for family in FAMILIES if family.name == "llama")
FAR = torch.arange(4000, 4016)[None]
EXACT = 5e-7  # the contract of the kernels up to position 2^24
CLOSE = tolerances.MODEL


def exact_cosines(config: Any) -> torch.Tensor:
    angle = FAR[..., None].double() * RopeConfig.from_hf(config).inv_freq()
    return torch.cat((angle, angle), -1).cos()


def cosines(model: Any) -> torch.Tensor:
    cos, _ = model.model.rotary_emb(torch.zeros(1, FAR.shape[1], 8), FAR)
    return (cos if isinstance(cos, torch.Tensor) else cos.tensor()).double()


def test_a_cast_to_bf16_reaches_the_buffer_and_not_our_angles() -> None:
    model = LLAMA.build().to(torch.bfloat16)
    assert model.model.rotary_emb.inv_freq.dtype == torch.bfloat16
    want = exact_cosines(model.config)
    assert (cosines(model) - want).abs().max() > 0.5  # at position 4000 the angles of a bf16 buffer are arbitrary
    patch_model(model)
    assert (cosines(model) - want).abs().max() <= EXACT


def test_patched_before_the_cast() -> None:
    model = LLAMA.build()
    patch_model(model)
    model.to(torch.bfloat16)
    assert (cosines(model) - exact_cosines(model.config)).abs().max() <= EXACT


def on_meta(patched: bool) -> tuple[Any, Any]:
    """A model, and its twin made on the meta device."""
    real = LLAMA.build()
    with torch.device("meta"):
        twin = type(real)(real.config)
    assert twin.model.rotary_emb.inv_freq.is_meta
    if patched:
        patch_model(twin)
    return real, twin.eval()


def fill(twin: Any, real: Any) -> None:
    """What loading does after ``to_empty``: the state dict holds the weights, and no buffer of frequencies."""
    twin.to_empty(device="cpu")
    for buffer in twin.buffers():
        buffer.fill_(float("nan"))  # to_empty promises nothing
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            source = real.get_parameter(name)
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            local.copy_(source)


def test_meta_init_loses_the_buffer_and_not_our_angles() -> None:
    batch = LLAMA.batch(20)
    real, theirs = on_meta(patched=False)
    _, ours = on_meta(patched=True)
    for twin in (theirs, ours):
        fill(twin, real)
    assert theirs(**batch).logits.isnan().any()
    torch.testing.assert_close(ours(**batch).logits, real(**batch).logits, **CLOSE)


@pytest.fixture
def mesh() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(model: Any, mesh: Any, **options: Any) -> Any:
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


@pytest.mark.parametrize("patch_first", [True, False])
def test_fully_shard_from_meta(mesh: Any, patch_first: bool) -> None:
    batch = LLAMA.batch(20)
    real, twin = on_meta(patched=patch_first)
    sharded(twin, mesh)
    if not patch_first:
        patch_model(twin)
    fill(twin, real)
    want, got = real(**batch).logits, twin(**batch).logits
    torch.testing.assert_close(got, want, **CLOSE)
    want.square().mean().backward()
    got.square().mean().backward()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), real.get_parameter(name).grad, **CLOSE)


def test_unpatched_and_patched_again_below_fully_shard(mesh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rope_kernels.integrations.transformers import rotating

    model, batch = LLAMA.build(), LLAMA.batch(20)
    want = model(**batch).logits
    patch_model(model)
    sharded(model, mesh)  # puts classes of its own over ours
    unpatch_model(model)
    monkeypatch.setattr(rotating, "apply_rope", None)
    assert torch.equal(model(**batch).logits, want)
    monkeypatch.undo()
    assert len(patch_model(model).patched) == 3
    torch.testing.assert_close(model(**batch).logits, want, **CLOSE)


def test_mixed_precision_of_fully_shard_casts_tables_and_not_positions(
    mesh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rope_kernels.integrations.transformers import rotating

    model, seen = LLAMA.build(), []
    patch_model(model)
    apply_rope = rotating.apply_rope

    def spy(q: Any, k: Any, positions: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((q.dtype, positions.dtype))
        return apply_rope(q, k, positions, *args, **kwargs)

    monkeypatch.setattr(rotating, "apply_rope", spy)
    sharded(model, mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    model(**LLAMA.batch(20)).logits.float().square().mean().backward()
    assert set(seen) == {(torch.bfloat16, torch.int64)}


def saved_per_layer(model: Any, batch: dict[str, Any]) -> int:
    """Bytes that autograd keeps of the first layer: each tensor once, parameters not counted."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: list[dict[Any, Any]] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda *_: kept.append({}))

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if kept and storage.data_ptr() not in parameters:
            kept[-1][storage.data_ptr(), tensor.shape, tensor.stride()] = (
                tensor,
                tensor.numel() * tensor.element_size(),
            )
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(**batch)
    return sum(size for _, size in kept[0].values())


@pytest.mark.parametrize(("name", "width"), [("llama", 16), ("cohere", 16), ("glm4", 8), ("deepseek_v3", 4)])
def test_saves_positions_for_backward_and_no_table(name: str, width: int) -> None:
    family, tokens = next(f for f in FAMILIES if f.name == name), 32
    model, batch = family.build(), family.batch(tokens)
    theirs = saved_per_layer(model, batch)
    patch_model(model)
    ours = saved_per_layer(model, batch)
    tables, positions = 2 * tokens * width * 4, tokens * 8
    print(f"{name}: {theirs:,} bytes per layer, {ours:,} patched; {tables:,} of tables, {positions:,} of positions")
    assert theirs - ours == tables - positions


def losses(patched: bool, steps: int = 25) -> list[float]:
    model = LLAMA.build(3).train()
    if patched:
        patch_model(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = LLAMA.batch(32, seed=3)["input_ids"]
    curve = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def test_a_training_run_has_the_same_losses() -> None:
    ours, theirs = losses(patched=True), losses(patched=False)
    assert theirs[0] - theirs[-1] > 1.0
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-3
