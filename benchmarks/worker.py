"""A contestant's process: ``python -m benchmarks.worker CONTESTANT …``, in the folder of its work."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import traceback
from collections.abc import Iterator
from typing import Any, Protocol, cast

from benchmarks.gate import Gate, Over
from kdrun.machine import keep_freed_memory

MODULES = {
    "bare": "plain",
    "tricks": "plain",
    "tricks-cached": "plain",
    "usual": "tutorial",
    "torchdistill": "peers",
    "kdrun": "public",
    "torch": "public",
}
"""Where each contestant's loop is; imported in its own process only."""


class Loop(Protocol):
    """What the module of a contestant offers."""

    def steps(self, contestant: str, options: argparse.Namespace, gate: Gate) -> Iterator[int]:
        """Take one step after the other; yields each one's number of student's samples."""
        ...


def main() -> None:
    """Run a contestant until no more windows are wanted; whatever it raises is one line for the report."""
    options = _options()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    gate = Gate(replies, options.warm_up)
    if options.contestant == "kdrun" or options.contestant.startswith("tricks"):
        keep_freed_memory()
    with contextlib.suppress(Over):
        try:
            _run(options, gate)
        except Exception as error:
            known = type(error).__module__ == "kdrun.errors" or isinstance(error, ImportError)
            if not known:
                traceback.print_exc()
            gate.say("unavailable" if known else "failed", message=_first_line(error))


def _run(options: argparse.Namespace, gate: Gate) -> None:
    loop = cast(Loop, importlib.import_module(f"benchmarks.{MODULES[options.contestant]}"))
    gate.told = _surroundings(options.device)
    gate.wait, gate.extra = _on_device(options.device)
    for samples in loop.steps(options.contestant, options, gate):
        gate.step(samples)
    gate.say("failed", message="its training came to an end")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__)
    parser.add_argument("contestant", choices=list(MODULES))
    parser.add_argument("--work")
    parser.add_argument("--config", help="kdrun: the experiment, in this folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--warm-up", type=int, default=1)
    return parser.parse_args()


def _first_line(error: Exception) -> str:
    """The first line of what it says, and of several problems the first one, too."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return f"{lines[0]}: {lines[1]}" if " problems in " in lines[0] and len(lines) > 1 else lines[0]


def _surroundings(device: str) -> dict[str, Any]:
    torch = importlib.import_module("torch")
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {"threads": torch.get_num_threads(), "torch": torch.__version__, "gpu": name}


def _on_device(device: str) -> tuple[Any, Any]:
    """What waits for the device, and what tells how much of its memory was taken."""
    cuda = importlib.import_module("torch").cuda
    if not device.startswith("cuda"):
        return lambda: None, dict
    return cuda.synchronize, lambda: {"gpu_bytes": cuda.max_memory_allocated()}


if __name__ == "__main__":
    main()
