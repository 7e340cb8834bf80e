"""What the commands have in common on their command lines."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.windows import CHECKOUT, Protocol


def parser_of(module: str, about: str | None) -> argparse.ArgumentParser:
    """With what every command takes; ``about`` is its docstring, of which the first line is shown."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}", description=(about or "").partition("\n")[0]
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    made.add_argument("--threads", type=int, help="OMP_NUM_THREADS of every process (torch's default)")
    return made


def add_data(to: argparse.ArgumentParser) -> None:
    """Where the real pictures are."""
    default = CHECKOUT.parent / "shared" / "data"
    to.add_argument("--data", type=Path, default=default, help="the folder of the real pictures")


def add_windows(to: argparse.ArgumentParser, rounds: int, seconds: float, steps: str) -> None:
    """How windows are taken, and on what."""
    add = to.add_argument
    add("--rounds", type=int, default=rounds, help=f"windows of each ({rounds})")
    add("--steps", type=int, help=f"least steps of a window ({steps})")
    add("--seconds", type=float, default=seconds, help=f"least length of a window ({seconds:g})")
    add("--others", type=float, default=0.1, help="the most of a core that others may use in a window (0.1)")
    add("--retries", type=int, default=4, help="how often a disturbed window is taken again (4)")
    add("--device", default="cpu", help="cpu or cuda (cpu)")


def protocol(options: argparse.Namespace) -> Protocol:
    """How windows are taken."""
    return Protocol(options.rounds, options.seconds, options.others, options.retries, tell)


def names(text: str) -> list[str]:
    """The parts of an option like ``A,B``."""
    return [name for name in text.split(",") if name]


def threads(options: argparse.Namespace) -> dict[str, str]:
    """The environment that the number of threads asks for."""
    return {} if options.threads is None else {"OMP_NUM_THREADS": str(options.threads)}


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """Where figures are taken, by what of it the command line says, too."""
    device = getattr(options, "device", "cpu")
    return report.environment() | {"device": device, "OMP_NUM_THREADS": options.threads}


def write(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Write what was found to the file that was asked for."""
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def tell(text: str) -> None:
    """Say something beside the tables."""
    print(text, file=sys.stderr, flush=True)
