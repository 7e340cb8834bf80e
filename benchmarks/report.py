"""What is made of the windows: figures, ratios of the same round, tables, and where they were taken."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.windows import CHECKOUT, Contestant, Window

HEAD = [
    "contestant",
    "students",
    "ms/step",
    "pictures/s",
    "× loop",
    "(min–max)",
    "× tricks",
    "(min–max)",
    "note",
]


def environment() -> dict[str, Any]:
    """The machine and the software, without any name or path of theirs."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "torchvision": importlib.metadata.version("torchvision"),
        "revision": _revision(),
    }


def cpu_model() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _revision() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


# ------------------------------------------------------------------------------------------------ figures


def figures(one: Contestant, batch: int) -> dict[str, Any]:
    """All that was measured of a contestant, with the medians over its windows."""
    windows = [vars(window) | {"ms_per_step": window.ms_per_step} for window in one.windows]
    entry: dict[str, Any] = {"trouble": one.trouble, "windows": windows}
    entry |= {
        key: value for key, value in one.ready.items() if key not in ("event", "samples", "seconds_per_step")
    }
    if one.windows:
        students = [round(window.samples / window.steps / batch) for window in one.windows]
        entry["students"] = students[0]
        entry["students_lost"] = students[0] - min(students)
        entry["ms_per_step"] = median(window.ms_per_step for window in one.windows)
        entry["pictures_per_second"] = median(window.rate for window in one.windows)
        entry["disturbed_windows"] = sum(window.disturbed for window in one.windows)
    return entry


def fastest(contestants: Iterable[Contestant], loops: Sequence[str]) -> Contestant | None:
    """The other loop with the most pictures a second over the whole run."""
    measured = [one for one in contestants if one.name in loops and one.windows]
    return max(measured, key=lambda one: median(window.rate for window in one.windows), default=None)


def ratio(one: Contestant, other: Contestant | None) -> dict[str, Any] | None:
    """How many times the other's student's pictures a second it learns from, round by round.

    For a group of n students it is how much faster than the other loop run n times.
    """
    if other is None:
        return None
    theirs: dict[int, Window] = {window.round: window for window in other.windows}
    rounds = [window.rate / theirs[window.round].rate for window in one.windows if window.round in theirs]
    if not rounds:
        return None
    return {
        "against": other.name,
        "median": median(rounds),
        "min": min(rounds),
        "max": max(rounds),
        "per_round": rounds,
    }


# ------------------------------------------------------------------------------------------------- tables


def row(name: str, entry: dict[str, Any]) -> list[str]:
    """A contestant's line."""
    if "ms_per_step" not in entry:
        return [name, *[""] * 7, entry["trouble"] or "no window"]
    notes = [entry["note"]] if entry.get("note") else []
    if entry["students_lost"]:
        notes.append(f"{entry['students_lost']} students dropped out: not to be used")
    if entry["disturbed_windows"]:
        notes.append(f"{entry['disturbed_windows']} of {len(entry['windows'])} windows disturbed")
    if entry["trouble"]:
        notes.append(entry["trouble"])
    return [
        name,
        str(entry["students"]),
        number(entry["ms_per_step"]),
        number(entry["pictures_per_second"]),
        *_spread(entry["against_loop"]),
        *_spread(entry["against_tricks"]),
        "; ".join(notes),
    ]


def _spread(found: dict[str, Any] | None) -> list[str]:
    return [f"{found['median']:.2f}", f"({found['min']:.2f}–{found['max']:.2f})"] if found else ["", ""]


def number(value: float) -> str:
    """Three figures, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str] = ("contestant", "note")
) -> str:
    """Plain text, columns two blanks apart."""
    lines = [list(head), *(list(line) for line in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]

    def cell(text: str, column: int) -> str:
        return text.ljust(widths[column]) if head[column] in left else text.rjust(widths[column])

    return "\n".join(
        "  ".join(cell(text, column) for column, text in enumerate(line)).rstrip() for line in lines
    )
