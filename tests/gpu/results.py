"""``benchmarks/results/<gpu>.json``: what was checked and measured, on which device, with which versions."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from rope_kernels.environment import describe

from .outcomes import FAILED, NOT_RUN, PASSED, RESULTS, Outcome
from .run_file import Section

__all__ = ["FOLDER", "facts_of", "gpus_listed", "report", "slug", "write"]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "results"
FIRST = 20
"""Failures that are written in full."""
SPEED_NOTE = (
    "Measured on this GPU, by replaying CUDA graphs of many launches: medians of the time of one, bf16, 32 and 8 heads "
    "of 128. "
    "Each launch has tensors of its own, together more than the L2 cache holds. "
    "GB/s: q, k and positions read once, q and k written once. copy: of the same q and k into others; pass: "
    "bitwise_not_ of the same q and k in place. Each of the four is one launch."
)


def _said(*command: str) -> str | None:
    """What a program prints, or ``None`` where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip() if done.returncode == 0 else None


def gpus_listed() -> str | None:
    """The GPUs that nvidia-smi names, or ``None``."""
    names = _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return ", ".join(names.splitlines()) if names else None


def facts_of(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """The device, the driver, the commit and the versions; ``commit`` is for a checkout without git."""
    changed = _said("git", "status", "--porcelain", "--untracked-files=no")
    facts: dict[str, Any] = {
        "gpu": f"{describe()['processor']}, which is no GPU",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or _said("git", "rev-parse", "HEAD"),
        "uncommitted_changes": None if changed is None else bool(changed),
        "versions": {name: describe()[name] for name in ("rope_kernels", "python", "torch", "triton", "platform")},
        "native_kernels": describe()["native_kernels"],
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        driver = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        facts |= {
            "gpu": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "driver": driver.splitlines()[0] if driver else None,
        }
        facts["versions"]["cuda"] = torch.version.cuda
    return facts


def _by_kind(outcomes: Iterable[Outcome]) -> dict[str, dict[str, int]]:
    """Notes of the comparisons with the emulator that passed, counted: "bitwise" or "within tolerance"."""
    notes: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        kind, backend, *_ = outcome.name.split("/")
        if kind == "emulator" and outcome.result == PASSED:
            notes.setdefault(backend, Counter())[outcome.note] += 1
    return {backend: dict(counts) for backend, counts in notes.items()}


def report(facts: dict[str, Any], sections: Sequence[Section]) -> dict[str, Any]:
    """All of it, for JSON."""
    outcomes = [outcome for section in sections for outcome in section.outcomes]
    total = {result: sum(section.counts()[result] for section in sections) for result in RESULTS}
    failures = [{"name": o.name, "why": o.note} for o in outcomes if o.result == FAILED]
    not_run = Counter(o.note for o in outcomes if o.result == NOT_RUN)

    def measured(kind: str) -> list[dict[str, Any]]:
        return [{"name": o.name, **o.figures} for o in outcomes if o.figures and o.name.startswith(f"{kind}/")]

    return {
        **facts,
        "checks": {
            "total": total,
            "sections": {s.name: {**s.counts(), "seconds": round(s.seconds, 1)} for s in sections},
            "first_failures": failures[:FIRST],
            "not_run_because": dict(not_run),
            "agreement_with_emulator": _by_kind(outcomes),
        },
        "speed": {"note": SPEED_NOTE, "rows": measured("speed")},
        "profile": measured("profile"),
    }


def slug(gpu: str) -> str:
    """A file name for a device's name."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def write(found: dict[str, Any], folder: Path) -> Path:
    """Write a :func:`report` to its place in ``folder``; the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug(found['gpu'])}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path
