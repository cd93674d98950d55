"""The static budgets of the GPU kernels, checked on the figures of their machine code: nothing is timed."""

from __future__ import annotations

from typing import Any

__all__ = ["REGISTERS", "budget_of", "static_budgets"]

REGISTERS = 64
_PREFILL, _DECODE, _DECODE_OTHERS = 5, 10, 13
_SIXTEEN_BITS = 2  # bytes


def budget_of(entry: dict[str, Any]) -> float:
    """The instructions per element allowed to a case."""
    case = entry["case"]
    if case["phase"] == "prefill":
        return _PREFILL
    return _DECODE if (case["head_dim"], case["pairing"]) == (128, "half") else _DECODE_OTHERS


def static_budgets(found: list[dict[str, Any]]) -> list[tuple[str, str, bool]]:
    """(budget, figure of the worst case, whether all cases meet it) for each budget; empty without figures."""
    made = []
    for kernel in sorted({entry["kernel"] for entry in found}):
        mine = [entry for entry in found if entry["kernel"] == kernel]
        for phase in ("prefill", "decode"):
            for limit in sorted({budget_of(entry) for entry in mine if entry["case"]["phase"] == phase}):
                cases = [entry for entry in mine if entry["case"]["phase"] == phase and budget_of(entry) == limit]
                worst = max(entry["instructions_per_element"] for entry in cases)
                where = _where(cases)
                made.append((f"{kernel}, {phase}, {where}: at most {limit} instructions per element",
                             f"{worst:.2f}", worst <= limit))  # fmt: skip
        made += [(f"{kernel}: {asked}", str(value), met) for asked, value, met in _code(mine)]
    return made


def _where(found: list[dict[str, Any]]) -> str:
    widths = sorted({entry["case"]["head_dim"] for entry in found})
    pairings = sorted({entry["case"]["pairing"] for entry in found})
    targets = sorted({entry["target"] for entry in found}, key=lambda name: int(name.split("_")[1]))
    return f"d={'/'.join(map(str, widths))}, {' and '.join(pairings)}, {'/'.join(targets)}"


def _code(found: list[dict[str, Any]]) -> list[tuple[str, object, bool]]:
    """Budgets of one kernel's launches, bytes, access widths and registers, and of the things it must not use."""
    launches = max(entry["launches"] for entry in found)
    moved = max(entry["dram_bytes_per_element"] for entry in found)
    narrow = min(int(width) for entry in found for width in entry["store_widths"])
    loads = min(max(int(width) for width in entry["load_widths"]) for entry in found)
    registers = max(entry["registers"] for entry in found)
    memory = max(entry[key] for entry in found for key in ("stack_bytes", "shared_bytes", "local_instructions"))
    slow = max(entry["slow_instructions"] for entry in found)
    return [
        ("one launch for q and k", launches, launches == 1),
        ("each element read and written once, bytes per element", f"{moved:.3f}", moved < 2 * _SIXTEEN_BITS + 0.01),
        ("128-bit accesses, bytes", f"loads {loads}, stores {narrow}", loads == narrow == 16),
        (f"at most {REGISTERS} registers", registers, registers <= REGISTERS),
        ("no stack, local or shared memory", memory, memory == 0),
        ("no slow instructions (MUFU)", slow, slow == 0),
    ]
