"""Measures whether an attention module's per-head norms can be fused with its rotation, and how."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..subclasses import own_class
from .angles import Angles
from .binding import Binding
from .norms import PASSED, NormPlan, is_hooked, passed, passing_methods
from .rotary_plan import Order, RotaryPlan
from .surroundings import measuring

__all__ = ["NormProbe"]

_TOLERANCE = 2e-5  # of the largest value, in fp32: sums over a hidden size, and their gradients, in another order
_BATCH, _TOKENS = 2, 5
_TAKES = ("hidden_states", "position_embeddings", "freqs_cis", "attention_mask", "past_key_values")
_PLAIN = (bool, int, float, str, tuple, list, type(None))
_STATE_OF_HOOKS = ("forward", "_old_forward", "_hf_hook")

Result = list[Tensor]


class NormProbe:
    """Measures attention modules; those with the same class and settings once.

    Args:
        rotary: the plans of the model's rotary embeddings.
    """

    def __init__(self, rotary: Sequence[RotaryPlan]) -> None:
        self._rotary = rotary
        self._known: dict[Any, NormPlan | str] = {}

    def plan_of(self, module: nn.Module, binding: Binding) -> NormPlan | str | None:
        """How to fuse the module's norms, or why not; ``None`` if its methods call no norms."""
        names = norm_names(module, binding.methods)
        if not names:
            return None
        norms = [getattr(module, name) for name in names]
        hooked = [name for name, norm in zip(names, norms, strict=True) if is_hooked(norm)]
        if hooked:
            return f"{hooked[0]} has hooks, or a forward of somebody else, that would no longer be called"
        key = id(getattr(module, "config", None)), *(_settings(part) for part in module.modules())
        if key not in self._known:
            with measuring(gradients=True):
                self._known[key] = self._measure(module, binding, names)
        return self._known[key]

    def _measure(self, module: nn.Module, binding: Binding, names: list[str]) -> NormPlan | str:
        if not self._rotary:
            return "its rotary embedding passes tables"
        if any(convention.inverse for convention in binding.conventions.values()):
            return "it rotates backwards, and the kernel norms only on the way forwards"
        try:
            replica = _replica(module)
        except Exception as error:  # a module may hold anything
            return f"it cannot be copied ({_described_error(error)})"
        done: list[tuple[_Trial, Result]] = []
        problem = "its config has no hidden_size"
        for trial in _trials(replica, self._rotary):
            try:
                done.append((trial, trial.unfused()))
            except Exception as error:  # a module may raise anything for arguments that it does not take
                problem = _described_error(error)
        if not done:
            return f"it cannot be called on its own ({problem})"
        return _first_that_agrees(module, binding, names, done)


def norm_names(module: nn.Module, methods: Mapping[str, Any]) -> list[str]:
    """The module's children that look like norms and that ``methods`` call, q's before k's."""
    passing = {name for name, _ in module.named_children() if "norm" in name and passing_methods(methods, [name])}
    return sorted(passing, key=lambda name: (not name.startswith("q"), name))


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """What decides a module's computation beside its weights."""
    plain = [(k, repr(v)) for k, v in vars(module).items() if isinstance(v, _PLAIN) and k != "layer_idx"]
    shapes = [(name, tuple(p.shape)) for name, p in module.named_parameters(recurse=False)]
    return own_class(type(module)), tuple(sorted(plain)), tuple(shapes)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _described_error(error: Exception) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_that_agrees(
    module: nn.Module, binding: Binding, names: list[str], trials: list[tuple[_Trial, Result]]
) -> NormPlan | str:
    reasons: list[str] = []
    for plan in _candidates(module, names):
        if isinstance(plan, str):
            reasons.append(plan)
            continue
        forward = passing_methods(binding.methods, plan.names).get("forward")
        if forward is None:
            return "its forward does not both norm and rotate"
        try:
            agree = all(_agree(trial.fused(plan, forward), want) for trial, want in trials)
        except Exception as error:  # of the module, or of the kernel that refuses its norm
            reasons.append(_first_line(error))
            continue
        if agree:
            if any(trial.is_fused for trial, _ in trials):
                return plan
            reasons.append("the kernel that rotates its q and k takes no norms")
        else:
            reasons.append("fused with the rotation, its norms have another result")
    return reasons[0]


def _candidates(module: nn.Module, names: list[str]) -> Iterator[NormPlan | str]:
    """Plans for the norms: whose is whose, their weight and eps, and where they are."""
    pairs = list(itertools.permutations(names, 2)) or [(names[0], names[0])]
    for (q, k), after_rope in itertools.product(pairs, (False, True)):
        norms = getattr(module, q), getattr(module, k)
        weights, eps = _weight_names(norms[0]), _eps_names(norms[0])
        if not eps or len(weights) > 1 or (weights, eps) != (_weight_names(norms[1]), _eps_names(norms[1])):
            found = "; ".join(dict.fromkeys(map(_described, (q, k), norms)))
            yield f"{found}; needed are at most one weight and an eps, the same for both"
            continue
        weight, kinds, keeps = (
            next(iter(weights), None),
            (type(norms[0]), type(norms[1])),
            all(map(_keeps_dtype, norms)),
        )
        for eps_name, offset in itertools.product(eps, (0.0, 1.0) if weight else (0.0,)):
            yield NormPlan(q, k, kinds, weight, eps_name, offset, after_rope, keeps)


def _described(name: str, norm: nn.Module) -> str:
    weights, eps = _weight_names(norm), _eps_names(norm)
    return f"{name} ({type(norm).__name__}) has {', '.join([*weights, *eps]) or 'no weight and no eps'}"


def _weight_names(norm: nn.Module) -> list[str]:
    return [name for name, _ in norm.named_parameters()]


def _eps_names(norm: nn.Module) -> list[str]:
    return [name for name, value in vars(norm).items() if "eps" in name.lower() and isinstance(value, float)]


def _keeps_dtype(norm: nn.Module) -> bool:
    """Whether fp32 weights leave bf16 values in bf16."""
    made = _replica(norm)
    width = next((p.shape[-1] for p in made.parameters()), 8)
    with torch.no_grad():
        try:
            return bool(made(torch.ones(1, width, dtype=torch.bfloat16)).dtype == torch.bfloat16)
        except Exception:  # a module may raise anything
            return False


def _replica(module: nn.Module) -> nn.Module:
    """The module in fp32 on the CPU with random weights and without hooks; it shares nothing that a call changes.

    Projections become plain ones: quantised and adapted ones norm no heads, and may run on a GPU only.
    """
    width, height = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(width, int) and isinstance(height, int):
        return nn.Linear(width, height, bias=getattr(module, "bias", None) is not None)
    made: nn.Module = nn.Module.__new__(own_class(type(module)))  # FSDP2's classes have a __new__ of their own
    made.__dict__.update(nn.Module().__dict__)
    made.__dict__.update({k: v for k, v in vars(module).items() if k not in made.__dict__ and k not in _STATE_OF_HOOKS})
    for name, parameter in module._parameters.items():
        made.register_parameter(name, None if parameter is None else nn.Parameter(_random(tuple(parameter.shape))))
    for name, buffer in module._buffers.items():
        made.register_buffer(name, None if buffer is None else _on_cpu(buffer))
    for name, child in module._modules.items():
        made.add_module(name, None if child is None else _replica(child))
    if "config" in made.__dict__:
        config = made.__dict__["config"] = copy.deepcopy(made.__dict__["config"])
        config._attn_implementation = "eager"
    return made.eval()


def _on_cpu(buffer: Tensor) -> Tensor:
    value = torch.zeros(buffer.shape, dtype=buffer.dtype) if buffer.is_meta else buffer.detach().cpu().clone()
    return value.float() if value.is_floating_point() else value


def _random(shape: tuple[int, ...]) -> Tensor:
    """A weight of a matrix that keeps the size of its values, or one of a norm, around 1."""
    return torch.rand(shape) + 0.5 if len(shape) < 2 else torch.randn(shape) * shape[-1] ** -0.5


class _Keys:
    """A KV cache for one call, which keeps the keys."""

    def __init__(self) -> None:
        self.keys: Result = []

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys.append(keys)
        return keys, values

    def get_seq_length(self, *args: Any) -> int:
        return 0


class _Trial:
    """The results and gradients of a replica with one rotary embedding, on inputs of one size."""

    def __init__(self, replica: nn.Module, angles: tuple[Angles, Angles] | Angles, x: Tensor) -> None:
        self.replica = replica
        self.angles = angles
        self.x = x
        self.is_fused = False

    def unfused(self) -> Result:
        """By the module's own code and exact tables."""
        angles = self.angles
        tables = angles.tensor() if isinstance(angles, Angles) else tuple(part.tensor() for part in angles)
        return self._run(type(self.replica).forward, tables)

    def fused(self, plan: NormPlan, forward: Any) -> Result:
        """By ``forward`` without norms, and a rotation with them."""
        norms = plan.norms_of(self.replica)
        if norms is None:
            raise RuntimeError("its norms were replaced")

        def call(module: nn.Module, **kwargs: Any) -> Any:
            return norms.run(forward, forward, (module,), kwargs)

        made = self._run(call, self.angles)
        self.is_fused = norms.is_fused
        return made

    def _run(self, forward: Any, angles: Any) -> Result:
        cache = _Keys()
        result = forward(self.replica, **_arguments(type(self.replica), self.x, angles, cache))
        made = [result if isinstance(result, Tensor) else result[0], *cache.keys]
        cotangents = [torch.linspace(-1.0, 1.0, y.numel()).reshape(y.shape).sin() for y in made]
        leaves = [self.x, *(p for p in self.replica.parameters() if p.dim() < 2)]
        return [*made, *torch.autograd.grad(made, leaves, cotangents, allow_unused=True, materialize_grads=True)]


def _arguments(cls: type, x: Tensor, angles: Any, cache: _Keys) -> dict[str, Any]:
    parameters = list(inspect.signature(cls.forward).parameters.values())[1:]  # type: ignore[attr-defined]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    other = [p.name for p in named if p.name not in _TAKES and p.default is p.empty]
    if other:
        raise TypeError(f"its forward takes {', '.join(other)}")
    values = dict(zip(_TAKES, (x, angles, angles, None, cache), strict=True))
    return {p.name: values[p.name] for p in named if p.name in _TAKES}


def _trials(replica: nn.Module, rotary: Sequence[RotaryPlan]) -> Iterator[_Trial]:
    """Trials with all frequencies of the model, on inputs around 1 and on some so small that eps matters."""
    width = getattr(getattr(replica, "config", None), "hidden_size", None)
    if width is None:
        return
    replica.__dict__[PASSED] = lambda x: passed(replica, x)
    kinds = ((plan, layer_type) for plan in rotary for layer_type in plan.sources)
    for (plan, layer_type), scale in itertools.product(kinds, (1.0, 1e-3)):
        without_history = RotaryPlan({layer_type: plan.sources[layer_type]}, plan.order, plan.leads_with_one)
        x = (scale * torch.randn(_BATCH, _TOKENS, width)).requires_grad_()
        angles = without_history.angles(x, _positions(plan.order), layer_type)
        if angles is not None:
            yield _Trial(replica, angles, x)


def _positions(order: Order) -> Tensor:
    by_axis = torch.stack([(axis + 1) * torch.arange(_TOKENS) + axis for axis in range(order.axes)])
    if order.kind == "axes last":
        return by_axis.T.contiguous().expand(_BATCH, -1, -1) if order.batched else by_axis.T.contiguous()
    by_axis = by_axis[:, None].expand(-1, _BATCH, -1)
    return by_axis if order.kind == "axes first" else by_axis[0]


def _agree(got: Result, want: Result) -> bool:
    return len(got) == len(want) and all(
        g.shape == w.shape and bool(((g - w).abs() <= _TOLERANCE * w.abs().max()).all())
        for g, w in zip(got, want, strict=True)
    )
