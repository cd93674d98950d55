"""``rope-kernels check``: tests every backend on this machine against :mod:`rope_kernels.measuring.exact`.

The test suite checks more calls, against an oracle of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, product
from typing import Any

import torch
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..api.apply import apply_rope, apply_rope_
from ..backends import PREFERENCE, backend_for, use_backend
from ..config import RopeConfig
from ..core.names import BackendName, LayoutName
from ..core.rotation import PAIRINGS
from ..errors import RopeConfigError
from ..measuring import exact
from ..measuring.accuracy import CONTRACT, excess
from ..measuring.models import shipped_layers

__all__ = ["CheckCall", "Result", "calls", "check_report", "passed", "run", "targets", "to_json"]

PLACES = ("returned", "out=", "in place")
LAYOUTS: tuple[LayoutName, ...] = ("bshd", "bhsd", "sbhd", "thd")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_TOKENS = 8
_SHOWN = 5  # violations that the report lists per row
_FAR = (0, 1, -1, 4095, 131071, -131071, 1048575, 2**24)
_NEAR = tuple(range(_TOKENS))

# Every rope type and axis map with a small head; dynamic and longrope switch between the near and the far positions.
_CONFIGS: dict[str, dict[str, Any]] = {
    "default": dict(),
    "linear": dict(rope_type="linear", factor=4.0),
    "dynamic": dict(rope_type="dynamic", factor=2.0, max_position_embeddings=32),
    "ntk_alpha": dict(rope_type="ntk_alpha", alpha=1000.0),
    "yarn": dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=32768),
    "llama3": dict(
        rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    "longrope": dict(
        rope_type="longrope", original_max_position_embeddings=16, max_position_embeddings=512,
        short_factor=[1.0] * 32, long_factor=[1.0 + 0.5 * i for i in range(32)],
    ),
    "proportional": dict(rope_type="proportional", rope_theta=1e6, partial_rotary_factor=0.25),
    "mrope": dict(rope_type="mrope", mrope_section=[8, 12, 12]),
    "mrope interleaved": dict(rope_type="mrope", mrope_section=[12, 10, 10], axis_map="interleaved"),
    "mrope ernie": dict(rope_type="mrope", mrope_section=[11, 11, 10], axis_map="ernie"),
    "axial": dict(rope_type="axial"),
    "axial pixtral": dict(rope_type="axial", axis_map="pixtral"),
    "axial kimi": dict(rope_type="axial", axis_map="kimi"),
    "axial gemma4_vision": dict(rope_type="axial", axis_map="gemma4_vision"),
    "inv_freq": dict(
        rope_type="inv_freq", inv_freq_table=[3.0 / (1 + i) for i in range(32)], attention_factor=1.25
    ),
}  # fmt: skip


@dataclass(frozen=True)
class CheckCall:
    """One call to check, and where its result is written: "returned", "out=" or "in place".

    Attributes:
        name: of the model or the rope type.
        config: the RoPE config.
        heads: of q and of k.
        positions: int64 (1, tokens) or (axes, 1, tokens), on the CPU.
        dtype: of q and k.
        layout: "bshd", "bhsd", "sbhd" or "thd".
        place: one of :data:`PLACES`.
    """

    name: str
    config: RopeConfig
    heads: tuple[int, int]
    positions: Tensor
    dtype: torch.dtype
    layout: LayoutName
    place: str

    def __str__(self) -> str:
        return f"{self.name}, {self.config.pairing}, {_name(self.dtype)}, {self.layout}, {self.place}"

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Random q and k (1, tokens, heads, head_dim), the same in every run."""
        generator = torch.Generator().manual_seed(0)
        shapes = [(1, self.positions.shape[-1], heads, self.config.head_dim) for heads in self.heads]
        q, k = (torch.randn(shape, generator=generator).to(self.dtype) for shape in shapes)
        return q, k


@dataclass
class Result:
    """The outcome of all calls of one dtype on one backend and device.

    Attributes:
        worst_error: the largest :func:`excess`; ``inf`` if a result has a NaN.
        worst_call: the call with that error.
        violations: a line per call that was outside the contract or raised.
    """

    backend: str
    device: str
    dtype: str
    calls: int = 0
    worst_error: float = 0.0
    worst_call: str = ""
    violations: tuple[str, ...] = ()


def calls() -> list[CheckCall]:
    """Every shipped model at the end of its context, then the product of rope types and ways to call."""
    return [*_calls_of_models(), *_calls_of_rope_types()]


def _calls_of_models() -> list[CheckCall]:
    """Each dtype for each model; layouts and places alternate."""
    found = []
    for number, layers in enumerate(shipped_layers()):
        positions, heads = layers.positions(_TOKENS, 1, torch.device("cpu")), (layers.q_heads, layers.kv_heads)
        for shift, dtype in enumerate(DTYPES):
            layout, place = LAYOUTS[(number + shift) % len(LAYOUTS)], PLACES[(number // 3 + shift) % 3]
            found.append(CheckCall(layers.label, layers.config, heads, positions, dtype, layout, place))
    return found


def _calls_of_rope_types() -> list[CheckCall]:
    """Each rope type with each pairing it can have, dtype, layout and place."""
    found = []
    for name, fields in _CONFIGS.items():
        usual = RopeConfig(head_dim=64, **fields)
        pairings = [pairing for pairing in PAIRINGS if _can_pair(usual, pairing)]
        for pairing, at in product(pairings, (_NEAR, _FAR) if usual.depends_on_length else (_FAR,)):
            config = usual.replace(pairing=pairing)
            positions = torch.tensor([at[axis:] + at[:axis] for axis in range(config.num_axes)])
            positions = positions if config.num_axes == 1 else positions[:, None]
            for dtype, layout, place in product(DTYPES, LAYOUTS, PLACES):
                found.append(CheckCall(name, config, (4, 2), positions, dtype, layout, place))
    return found


def _can_pair(config: RopeConfig, pairing: str) -> bool:
    try:
        config.rotation(pairing)
    except RopeConfigError:
        return False
    return True


def targets() -> list[tuple[BackendName, torch.device]]:
    """Every backend with every device of this machine that it can run on."""
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    return [(name, device) for name, device in product(PREFERENCE, devices) if _can_run(name, device)]


def _can_run(name: BackendName, device: torch.device) -> bool:
    with use_backend(name):
        try:
            backend_for(device)
        except RuntimeError:
            return False
    return True


def run(
    todo: Sequence[CheckCall],
    where: Sequence[tuple[BackendName, torch.device]],
    done: Callable[[], None] = lambda: None,
) -> list[Result]:
    """Make every call on every backend.

    Args:
        todo: the calls.
        where: backends and devices.
        done: called after each of the ``len(todo) * len(where)`` calls, for a progress bar.
    """
    keys = [(name, device.type, _name(dtype)) for (name, device), dtype in product(where, DTYPES)]
    results = {key: Result(*key) for key in keys}
    # Calls that differ only in layout and place have the same exact result.
    for _, alike in groupby(todo, key=lambda call: (id(call.config), call.dtype)):
        group = list(alike)
        want = [exact.rotate(x, group[0].positions, group[0].config) for x in group[0].inputs()]
        for call, (name, device) in product(group, where):
            _note(results[name, device.type, _name(call.dtype)], call, _outcome(call, want, name, device))
            done()
    return list(results.values())


def _outcome(call: CheckCall, want: list[Tensor], backend: BackendName, device: torch.device) -> float | str:
    """The largest excess of q and k, or how the call failed."""
    inputs = call.inputs()
    try:
        with use_backend(backend):
            got = _rotated(call, device)
    except Exception as error:  # the command reports whatever a kernel raises
        return f"{type(error).__name__}: {error}"
    scaling = max(1.0, abs(call.config.frequency_params.scaling(int(call.positions.max()) + 1)))
    return max(excess(y, w, x, scaling) for y, w, x in zip(got, want, inputs, strict=True))


def _rotated(call: CheckCall, device: torch.device) -> list[Tensor]:
    """q and k rotated, as (1, tokens, heads, head_dim) on the CPU."""
    q, k = (_laid_out(x.to(device), call.layout) for x in call.inputs())
    positions = call.positions.to(device)
    if call.layout == "thd":
        positions = positions[..., 0, :]
    if call.place == "in place":
        apply_rope_(q, k, positions, call.config, layout=call.layout)
        got = (q, k)
    elif call.place == "out=":
        got = (torch.full_like(q, float("nan")), torch.full_like(k, float("nan")))
        apply_rope(q, k, positions, call.config, layout=call.layout, out=got)
    else:
        got = apply_rope(q, k, positions, call.config, layout=call.layout)  # type: ignore[assignment]  # k is given
    return [_laid_out(y, call.layout, back=True).cpu() for y in got]


def _laid_out(x: Tensor, layout: str, back: bool = False) -> Tensor:
    if layout == "thd":
        return x[None] if back else x[0]
    swapped = {"bhsd": (1, 2), "sbhd": (0, 1)}.get(layout)
    return x if swapped is None else x.transpose(*swapped).contiguous()


def _note(result: Result, call: CheckCall, outcome: float | str) -> None:
    result.calls += 1
    if isinstance(outcome, str):
        result.violations += (f"{call}: {outcome}",)
        return
    if outcome > result.worst_error or not result.worst_call:
        result.worst_error, result.worst_call = outcome, str(call)
    if outcome > CONTRACT:
        result.violations += (f"{call}: error {outcome:.1e}",)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def passed(results: Sequence[Result]) -> bool:
    """Whether every call was within the contract."""
    return not any(result.violations for result in results)


def to_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The results as dicts for JSON, which has no infinity: it becomes ``None``."""
    rows = [asdict(result) for result in results]
    return [row | {"worst_error": None if row["worst_error"] == float("inf") else row["worst_error"]} for row in rows]


def check_report(results: Sequence[Result], unusable: dict[str, str]) -> Group:
    """A table of the results, the reasons why backends did not run, and the first violations of each row."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in ("backend", "device", "dtype"):
        table.add_column(header)
    for header in ("calls", "violations", "worst error"):
        table.add_column(header, justify="right")
    for r in results:
        style = "bold red" if r.violations else "green"
        table.add_row(r.backend, r.device, r.dtype, str(r.calls), Text(str(len(r.violations)), style=style),
                      Text(f"{r.worst_error:.1e}", style=style))  # fmt: skip
    lines = [
        f"worst error: |y - exact| beyond the one rounding to a 16-bit dtype, over max |x|; contract {CONTRACT:.0e}.",
        *(f"not run: {name}: {why}." for name, why in unusable.items()),
    ]
    wrong = [f"{r.backend}, {r.device}: {line}" for r in results for line in r.violations[:_SHOWN]]
    return Group(table, "", *(Text(line, style="dim") for line in lines), *(Text(line, style="red") for line in wrong))
