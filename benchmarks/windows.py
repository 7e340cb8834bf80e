"""The measuring side: contestants' processes, windows in turn, and who else used the processor. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.works import Work

CHECKOUT = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
LOST = {"event": "failed", "message": "its process ended"}


@dataclass(frozen=True)
class Window:
    """Some steps of one contestant, timed by itself, and the share of a core that all others used meanwhile.

    ``idle`` is the part of ``others`` that the waiting contestants used. Shares are None where they cannot be read.
    """

    round: int
    turn: int
    steps: int
    seconds: float
    samples: int
    others: float | None
    idle: float | None
    attempts: int = 1
    disturbed: bool = False
    gpu_bytes: int | None = None

    @property
    def ms_per_step(self) -> float:
        """Milliseconds a step."""
        return 1000 * self.seconds / self.steps

    @property
    def rate(self) -> float:
        """Student's pictures a second, over all students."""
        return self.samples / self.seconds


class Contestant:
    """A process that takes steps when it is told to; ``ready`` and ``trouble`` are what it said of itself."""

    def __init__(
        self,
        name: str,
        folder: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        path: Path | None = None,
    ) -> None:
        self.name, self.windows, self.trouble = name, [], None
        began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", *arguments],
            cwd=folder,
            env={**child_environment(path), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = self._heard()
        self.start_seconds = time.monotonic() - began

    windows: list[Window]
    trouble: str | None

    def peak_memory(self) -> int | None:
        """The most bytes of memory that its process ever held, without its children."""
        return _peak(self.process.pid)

    def window(self, lead: int, steps: int) -> dict[str, Any] | None:
        """Let it take some steps; None where it could not."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(lead, steps, file=self.process.stdin, flush=True)
        reply = self._heard()
        return None if self.trouble else reply

    def end(self) -> None:
        """Tell it that no more windows are wanted, and wait."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else LOST
        if reply["event"] in ("unavailable", "failed"):
            word = "not available" if reply["event"] == "unavailable" else "failed"
            self.trouble = f"{word}: {reply['message']}"
        return reply


@dataclass(frozen=True)
class Protocol:
    """How windows are taken.

    Each round every contestant has its turn; the order moves on by one each round. A window is at least ``steps``
    steps and about ``seconds`` long, after a tenth of that untimed. One in which others used more than ``others`` of
    a core is taken again, at most ``retries`` times; then the quietest one stands, marked as disturbed.
    """

    rounds: int = 5
    seconds: float = 2.0
    others: float = 0.10
    retries: int = 4
    tell: Callable[[str], None] = field(default=lambda _: None)

    def run(self, contestants: Sequence[Contestant], steps: int) -> None:
        """Take all windows; each contestant keeps its own."""
        for number in range(self.rounds):
            start = number % max(len(contestants), 1)
            for turn, one in enumerate([*contestants[start:], *contestants[:start]]):
                if one.trouble is None:
                    self._take(one, contestants, number, turn, steps)

    def _take(self, one: Contestant, every: Sequence[Contestant], number: int, turn: int, steps: int) -> None:
        count = max(steps, round(self.seconds / max(one.ready["seconds_per_step"], 1e-6)))
        taken: list[Window] = []
        while len(taken) <= self.retries:
            before = Usage.now(one, every)
            reply = one.window(max(count // 10, 1), count)
            if reply is None:
                self.tell(f"{one.name}: {one.trouble}")
                return
            others, idle = Usage.now(one, every).since(before)
            own = (reply["seconds"], reply["samples"])
            window = Window(number, turn, count, *own, others, idle, gpu_bytes=reply.get("gpu_bytes"))
            taken.append(window)
            if others is None or others <= self.others:
                break
        best = min(taken, key=lambda window: window.others or 0.0)
        noisy = best.others is not None and best.others > self.others
        one.windows.append(dataclasses.replace(best, attempts=len(taken), disturbed=noisy))
        shown = "" if best.others is None else f", others {best.others:.2f} of a core"
        tries = f", {len(taken)} tries" if len(taken) > 1 else ""
        self.tell(f"round {number + 1}: {one.name} {best.ms_per_step:.4g} ms/step{shown}{tries}")


def prepare(work: Work, folder: Path, pictures: int, data: Path | None) -> str:
    """Lay ready what all contestants of a work begin with, by a process of its own; says what the pictures are."""
    wanted = {
        "work": dataclasses.asdict(work),
        "pictures": pictures,
        "data": str(data.resolve()) if data else None,
    }
    command = [sys.executable, "-m", "benchmarks.material"]
    done = subprocess.run(
        command,
        cwd=folder,
        env=child_environment(),
        input=json.dumps(wanted),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def child_environment(*paths: Path | None) -> dict[str, str]:
    """This process's, in which modules are found in the checkout and then at further paths."""
    found = [
        str(CHECKOUT),
        os.environ.get("PYTHONPATH", ""),
        *(str(path.resolve()) for path in paths if path),
    ]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, found))}


# ------------------------------------------------------------------------------- who uses the processor


@dataclass(frozen=True)
class Usage:
    """Seconds of processor time so far: of the whole machine, the active contestant, and the waiting ones."""

    clock: float
    machine: float | None
    active: float
    waiting: float

    @classmethod
    def now(cls, active: Contestant, every: Sequence[Contestant]) -> Usage:
        """As it stands."""
        families = _families()
        waiting = sum(_used(families, one.process.pid) for one in every if one is not active)
        return cls(time.monotonic(), _busy(), _used(families, active.process.pid), waiting)

    def since(self, before: Usage) -> tuple[float | None, float | None]:
        """The shares of a core that all but the active one used, and that the waiting ones used."""
        if self.machine is None or before.machine is None:
            return None, None
        seconds = self.clock - before.clock
        others = (self.machine - before.machine) - (self.active - before.active)
        return max(others, 0.0) / seconds, max(self.waiting - before.waiting, 0.0) / seconds


def _busy() -> float | None:
    """Seconds in which a core was busy or taken away, over all cores, since the machine began."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, soft, steal = (int(word) for word in words[:8])
    return (user + nice + system + irq + soft + steal) / TICKS


Families = dict[int, tuple[int, float]]
"""Of each process its parent, and the seconds that it and its ended children used."""


def _families() -> Families:
    found: Families = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        found[int(entry.parent.name)] = int(words[1]), sum(int(word) for word in words[11:15]) / TICKS
    return found


def _peak(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


def _used(families: Families, root: int) -> float:
    """Of a process and all that descend from it."""
    children = [pid for pid, (parent, _) in families.items() if parent == root]
    own = families[root][1] if root in families else 0.0
    return own + sum(_used(families, child) for child in children)
