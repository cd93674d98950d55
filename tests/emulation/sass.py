"""What machine code says without running: registers, memory, widths of accesses, and how often its instructions run.

NVIDIA's code is disassembled by the tools in Triton's wheel; AMD's is Triton's own assembly.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import triton

from .blocks import Piece

__all__ = ["Code", "Facts", "access_runs", "amd_facts", "assembled", "executed", "nvidia_kernels", "same_code"]

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", re.M)
FUNCTION = re.compile(r"^\s*Function : (\S+)$", re.M)
USAGE = re.compile(r"Function (\S+?):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
GUARD = re.compile(r"@!?U?P\w+\s+")
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
DOUBLES = ("DADD", "DMUL", "DFMA", "DSETP")
STATEMENT = re.compile(r"((?:\s|[\w$]+:|[{}])*)([^\s;{}][^;{}]*(?:\{[^{}]*\}[^;{}]*)*;)")
AMD_WIDTHS = {"byte": 1, "ubyte": 1, "sbyte": 1, "short": 2, "ushort": 2, "sshort": 2, "dword": 4, "dwordx2": 8,
              "dwordx3": 12, "dwordx4": 16, "b8": 1, "u8": 1, "i8": 1, "b16": 2, "u16": 2, "i16": 2, "b32": 4,
              "b64": 8, "b96": 12, "b128": 16}  # fmt: skip
AMD_ACCESS = re.compile(r"^\s+(?:global|buffer|flat)_(load|store)_(?:d16_)?(?:hi_)?(\w+?)(?:_d16(?:_hi)?)?\s", re.M)


@dataclass(frozen=True)
class Facts:
    """What is in a kernel's code.

    Attributes:
        registers: of a thread.
        stack_bytes, shared_bytes: memory of a thread and of a block.
        local_instructions: accesses to the stack: spills, and arrays that are indexed.
        slow_instructions: names of those that the special function unit runs, MUFU.RCP64H excepted.
        load_widths, store_widths: instructions on global memory, by bytes per thread.
        instructions: all, as often as they are written.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    local_instructions: int
    slow_instructions: tuple[str, ...]
    load_widths: dict[int, int]
    store_widths: dict[int, int]
    instructions: int


@dataclass
class Code:
    """A kernel's instructions, and where it is known, the PTX statement that each comes from."""

    instructions: list[str] = field(default_factory=list)
    statements: list[int] = field(default_factory=list)

    def opcodes(self) -> list[str]:
        """Names with modifiers."""
        return [GUARD.sub("", text).split()[0] for text in self.instructions]


def _said(tool: str | Path, *arguments: str | Path) -> str:
    done = subprocess.run([str(tool), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tool}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def _without_padding(instructions: list[str]) -> list[str]:
    """Less the endless loop and the NOPs that fill a kernel's last lines."""
    end = len(instructions)
    while end and instructions[end - 1].startswith("NOP"):
        end -= 1
    return instructions[: end - 1] if end and instructions[end - 1].startswith("BRA") else instructions[:end]


def _widths(opcodes: list[str], *names: str) -> dict[int, int]:
    found: Counter[int] = Counter()
    for opcode in opcodes:
        name, *modifiers = opcode.split(".")
        if name in names:
            found[next((WIDTHS[m] for m in modifiers if m in WIDTHS), 4)] += 1
    return dict(sorted(found.items()))


def nvidia_kernels(binary: Path, arch: int) -> dict[str, tuple[Facts, Code]]:
    """Facts and code of every kernel for ``arch`` in a cubin, an object or a library."""
    usage = _said(TOOLS / "cuobjdump", "-arch", f"sm_{arch}", "-res-usage", binary)
    known = {name: tuple(map(int, numbers)) for name, *numbers in USAGE.findall(usage)}
    _, *parts = FUNCTION.split(_said(TOOLS / "cuobjdump", "-arch", f"sm_{arch}", "-sass", binary))
    kernels = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        code = Code(_without_padding(INSTRUCTION.findall(body)))
        kernels[name] = _facts(code.opcodes(), *known[name]), code
    return kernels


def _facts(opcodes: list[str], registers: int, stack: int, shared: int, local: int) -> Facts:
    return Facts(
        registers=registers,
        stack_bytes=stack + local,
        shared_bytes=shared,
        local_instructions=sum(opcode.startswith(("LDL", "STL")) for opcode in opcodes),
        slow_instructions=tuple(o for o in opcodes if o.startswith("MUFU") and o != "MUFU.RCP64H"),
        load_widths=_widths(opcodes, "LDG", "LD"),
        store_widths=_widths(opcodes, "STG", "ST"),
        instructions=len(opcodes),
    )


def access_runs(code: Code, width: int) -> list[tuple[int, int]]:
    """How accesses to global memory, ``width`` bytes each, take turns in the code: (loads, stores that follow them)."""
    runs: list[list[int]] = []
    for opcode in code.opcodes():
        if width in _widths([opcode], "LDG", "LD"):
            if not runs or runs[-1][1]:
                runs.append([0, 0])
            runs[-1][0] += 1
        elif width in _widths([opcode], "STG", "ST"):
            if not runs:
                runs.append([0, 0])
            runs[-1][1] += 1
    return [(loads, stores) for loads, stores in runs]


def same_code(one: Code, other: Code) -> bool:
    """Whether two kernels have the same instructions; labels and addresses of branches may differ in spelling."""
    branch = re.compile(r"(BRA|BSSY|CALL|JMP|RET|WARPSYNC)\b.*")
    strip = [[branch.sub(r"\1", text) for text in code.instructions] for code in (one, other)]
    return strip[0] == strip[1]


def amd_facts(assembly: str) -> Facts:
    """Facts of the one kernel in Triton's AMD assembly. Its registers are the vector ones."""

    def metadata(name: str) -> int:
        found = re.search(rf"^\s+\.{name}:\s+(\d+)$", assembly, re.M)
        if found is None:
            raise ValueError(f"{name} is not in the assembly's metadata")
        return int(found[1])

    widths: dict[str, Counter[int]] = {"load": Counter(), "store": Counter()}
    for kind, width in AMD_ACCESS.findall(assembly):
        widths[kind][AMD_WIDTHS[width]] += 1
    code = re.findall(r"^\s+((?:[sv]|global|buffer|flat|scratch|ds)_\w+)", assembly.split(".section", 1)[0], re.M)
    return Facts(
        registers=metadata("vgpr_count"),
        stack_bytes=metadata("private_segment_fixed_size"),
        shared_bytes=metadata("group_segment_fixed_size"),
        local_instructions=sum(name.startswith("scratch_") for name in code) + metadata("vgpr_spill_count"),
        slow_instructions=tuple(n for n in code if n.startswith(("v_sin_", "v_cos_", "v_exp_", "v_log_"))),
        load_widths=dict(sorted(widths["load"].items())),
        store_widths=dict(sorted(widths["store"].items())),
        instructions=len(code),
    )


def _only(ptx: str, kernel: str) -> tuple[str, str]:
    """(what is before the body of ``kernel``, its body), without other kernels, comments and debug information."""
    ptx = re.sub(r"//[^\n]*|/\*.*?\*/", "", ptx, flags=re.S)
    ptx = re.sub(r"^\s*\.(?:loc|file)\b[^\n]*$", "", ptx, flags=re.M)
    entry = re.search(rf"(?:\.visible\s+)?\.entry\s+{re.escape(kernel)}\s*\([^)]*\)[^{{]*\{{", ptx)
    if entry is None:
        raise ValueError(f"there is no kernel {kernel} in the PTX")
    depth, end = 1, entry.end()
    while depth:
        depth += {"{": 1, "}": -1}.get(ptx[end], 0)
        end += 1
    first = re.search(r"(?:\.visible\s+)?\.entry\b", ptx)
    assert first is not None
    return ptx[: first.start()] + entry[0], ptx[entry.end() : end]


def _numbered(ptx: str, kernel: str) -> str:
    """The kernel alone, with statement i of its body on line i + 1, as far as ``.loc`` goes."""
    head, body = _only(ptx, kernel)
    count = 0

    def locate(match: re.Match[str]) -> str:
        nonlocal count
        if match[2].startswith("."):
            return match[0]
        count += 1
        return f"{match[1]}\n.loc 1 {count} 0\n{match[2]}"

    head = head.replace(".address_size 64", '.address_size 64\n.file 1 "statements"', 1)
    return head + STATEMENT.sub(locate, body)


def assembled(ptx: str, kernel: str, target: str, ptxas: str | Path, options: Sequence[str] = ()) -> Code:
    """A kernel's code by ptxas, each instruction with the statement of the PTX that it comes from, counted from 0."""
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(_numbered(ptx, kernel))
        _said(ptxas, "-lineinfo", *options, f"--gpu-name={target}", source, "-o", binary)
        text = _said(TOOLS / "nvdisasm", "-c", "-g", binary)
    code, statement = Code(), -1
    for line in text.splitlines():
        if found := re.match(r'\s*//## File "statements", line (\d+)', line):
            statement = int(found[1]) - 1
        elif found := INSTRUCTION.match(line):
            code.instructions.append(found[1])
            code.statements.append(statement)
    kept = len(_without_padding(code.instructions))
    return Code(code.instructions[:kept], code.statements[:kept])


def executed(code: Code, pieces: Iterable[Piece]) -> dict[str, float]:
    """Thread instructions that an emulated launch executes on the real machine, by opcode without modifiers.

    Every instruction counts as often as threads came by the PTX statement that it comes from, whether or not its guard
    lets it. Where ptxas unrolled a loop, which shows in the number of its stores, each copy has its share. What it
    moved out of a loop counts as if it were inside.

    Raises:
        ValueError: stores of one piece of the PTX are there a different number of times.
    """
    opcodes = [opcode.split(".")[0] for opcode in code.opcodes()]
    found: dict[int, Counter[str]] = defaultdict(Counter)
    for opcode, statement in zip(opcodes, code.statements, strict=True):
        found[statement][opcode] += 1
    total: Counter[str] = Counter()
    for piece in pieces:
        here = [found[statement] for statement in piece.statements if statement in found]
        copies = {stores for names in here if (stores := names["STG"] + names["ST"])}
        if len(copies) > 1:
            raise ValueError(f"stores of one piece of code are there {sorted(copies)} times")
        share = piece.threads / max(copies, default=1)
        for names in here:
            total.update({opcode: count * share for opcode, count in names.items()})
    return dict(total)
