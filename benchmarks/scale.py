"""What rotation costs at scale, computed: ``python -m benchmarks.scale``. Bounds from counts; nothing is timed.

Bytes and instructions per element are those of the compiled Triton kernel (see static_gpu.py), the machines' rates are
NVIDIA's data sheets, and everything else is multiplication. docs/scale.md shows the output and the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from .rows.static_figures import Shape, triton_figures
from .units import elapsed, size

WIDTH = 118
LAUNCH = 2e-6  # seconds of a kernel launch that overlaps with nothing, assumed


@dataclass(frozen=True)
class Model:
    """Layers and heads of a published config.json; ``qk_dim`` and ``v_dim`` are the head sizes of the attention."""

    name: str
    layers: int
    q_heads: int
    k_heads: int
    head_dim: int
    qk_dim: int
    v_dim: int

    def elements(self, tensor_parallel: int = 1) -> float:
        """Elements that one rank rotates per token and layer; if ranks outnumber key heads, several share one."""
        return (self.q_heads / tensor_parallel + max(1, self.k_heads / tensor_parallel)) * self.head_dim

    def attention_flops(self, tokens: int) -> float:
        """FLOPs of a causal layer: two products with tokens / 2 keys on average."""
        return tokens * self.q_heads * 2 * (self.qk_dim + self.v_dim) * tokens / 2


MODELS = (
    Model("Llama-3.1-8B", 32, 32, 8, 128, 128, 128),
    Model("Llama-3.1-70B", 80, 64, 8, 128, 128, 128),
    Model("Llama-3.1-405B", 126, 128, 8, 128, 128, 128),
    Model("DeepSeek-V3 671B", 61, 128, 1, 64, 192, 128),
)


@dataclass(frozen=True)
class Machine:
    """Rates of a data sheet; a multiprocessor issues 4 warps, that is 128 thread instructions, per cycle."""

    name: str
    target: str
    bytes_per_second: float
    multiprocessors: int
    hertz: float
    flops: float

    @property
    def instructions_per_second(self) -> float:
        """Thread instructions per second."""
        return self.multiprocessors * 128 * self.hertz


MACHINES = (
    Machine("A100 80GB", "sm_80", 2.039e12, 108, 1.41e9, 312e12),
    Machine("H100 SXM", "sm_90", 3.35e12, 132, 1.83e9, 989e12),
    Machine("B200", "sm_100", 8.0e12, 148, 1.85e9, 2250e12),
)
H100 = MACHINES[1]
LENGTHS = (4_096, 131_072, 1_048_576, 10_485_760)


@dataclass(frozen=True)
class Bound:
    """Lower bounds of the seconds per element, by memory and by instructions."""

    memory: float
    instructions: float

    @property
    def seconds(self) -> float:
        """The larger of the two."""
        return max(self.memory, self.instructions)


def bounds(machine: Machine) -> tuple[Bound, float, float]:
    """The bounds of a bf16 prefill in place, and its bytes and instructions per element."""
    figures = triton_figures(Shape(phase="prefill"), machine.target)
    moved, count = figures.dram_bytes_per_element, figures.instructions_per_element
    return Bound(moved / machine.bytes_per_second, count / machine.instructions_per_second), moved, count


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """A table with its first column to the left and the others to the right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left")
    for row in rows:
        made.add_row(*row)
    return made


def machines() -> Table:
    """The bounds of one element per machine."""
    rows = []
    for machine in MACHINES:
        bound, moved, count = bounds(machine)
        rows.append([machine.name, f"{moved:.2f}", f"{count:.2f}", f"{bound.memory * 1e12:.3f}",
                     f"{bound.instructions * 1e12:.3f}", f"{bound.memory / bound.instructions:.1f}"])  # fmt: skip
    columns = ("one element", "bytes", "instructions", "ps by memory", "ps by issue", "memory/issue")
    return table("Per rotated element, bf16, in place", columns, rows)


def per_token(moved: float, bound: Bound) -> Table:
    """The cost of a token."""
    rows = []
    for model in MODELS:
        layer = model.elements() * moved
        total = layer * model.layers
        seconds = model.elements() * model.layers * bound.seconds
        rows.append(
            [model.name, f"{model.elements():,.0f}", size(layer), str(model.layers), size(total), elapsed(seconds)]
        )
    columns = (
        "model",
        "elements per layer",
        "bytes per layer",
        "launches per step",
        "bytes, all layers",
        "bound, H100",
    )
    return table("One token", columns, rows)


def prefill(bound: Bound) -> Table:
    """The rotation beside attention's products."""
    rows = []
    for model in MODELS:
        cells = []
        for tokens in LENGTHS:
            seconds = tokens * model.elements() * bound.seconds * model.layers
            share = seconds / (model.attention_flops(tokens) * model.layers / H100.flops)
            cells.append(f"{elapsed(seconds)} ({share:.1%})" if share >= 1e-3 else f"{elapsed(seconds)} ({share:.0e})")
        rows.append([model.name, *cells])
    return table("Prefill on one H100: bound of the rotation (share of the attention's two products at peak)",
                 ("model", *(f"{n:,} tokens" for n in LENGTHS)), rows)  # fmt: skip


def parallel(bound: Bound, tokens: int = 1_048_576) -> Table:
    """Tensor and context parallel ranks on H100s."""
    rows = []
    for model in MODELS:
        cells = []
        for tp, cp in ((1, 1), (8, 1), (1, 8), (8, 8), (8, 64)):
            cells.append(elapsed(tokens / cp * model.elements(tp) * bound.seconds * model.layers))
        rows.append([model.name, *cells])
    columns = ("model", "one", "TP 8", "CP 8", "TP 8, CP 8", "TP 8, CP 64")
    return table(f"Prefill of {tokens:,} tokens, bound per rank; no bytes travel", columns, rows)


def decode(moved: float, bound: Bound) -> Table:
    """A decode step: the work of a launch beside the launch itself."""
    rows = []
    for model in MODELS:
        cells = [elapsed(batch * model.elements() * bound.seconds) for batch in (1, 32, 256, 2048)]
        even = LAUNCH / (model.elements() * bound.seconds)
        rows.append([model.name, *cells, elapsed(LAUNCH * model.layers), f"{even:,.0f}"])
    columns = ("model", "batch 1", "32", "256", "2048", "launches of a step", "batch where both are equal")
    return table(f"Decode on one H100, work of one launch; a launch taken as {elapsed(LAUNCH)}", columns, rows)


def rerotated(moved: float, bound: Bound) -> Table:
    """Re-rotating all cached keys."""
    rows = []
    for model in MODELS:
        keys = model.k_heads * model.head_dim * model.layers
        rows.append([model.name, *(f"{size(n * keys * moved)}, {elapsed(n * keys * bound.seconds)}" for n in LENGTHS)])
    return table("rerotate_ or shift_ of all cached keys on one H100",
                 ("model", *(f"{n:,} tokens" for n in LENGTHS)), rows)  # fmt: skip


def main() -> None:
    """Print everything."""
    bound, moved, _ = bounds(H100)
    console = Console(width=WIDTH)
    made = (machines(), per_token(moved, bound), prefill(bound), parallel(bound), decode(moved, bound),
            rerotated(moved, bound))  # fmt: skip
    for each in made:
        console.print(each, "", sep="\n")


if __name__ == "__main__":
    main()
