"""The side of a contestant: it takes steps when it is told to, and says how long they took. Loads nothing heavy."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO


class Over(SystemExit):
    """No more windows are wanted."""


class Gate:
    """Every step of a loop comes through here, and is held between two windows.

    The loop runs ``warm_up`` steps, says that it is ready, and waits. Each order ``LEAD STEPS`` lets it take some
    steps that are not timed and then those of a window; when no orders come any more, ``Over`` is raised out of the
    loop. ``wait`` waits for the device, and ``extra`` is what else is to be told of a window.
    """

    def __init__(self, replies: TextIO, warm_up: int) -> None:
        self.told: dict[str, Any] = {}
        self.wait: Callable[[], None] = lambda: None
        self.extra: Callable[[], dict[str, int]] = dict
        self._replies, self._samples = replies, 0
        self._script = self._windows(warm_up)
        next(self._script)

    def step(self, samples: int) -> None:
        """One step of so many student's samples is done."""
        self._samples += samples
        next(self._script)

    def say(self, event: str, **what: Any) -> None:
        """Tell the measuring process something; raises ``Over`` where it is gone."""
        try:
            print(json.dumps({"event": event, **what}), file=self._replies, flush=True)
        except BrokenPipeError:
            raise Over from None

    def _windows(self, warm_up: int) -> Iterator[None]:
        """Each ``yield`` is one step."""
        last = max(warm_up // 10, 1)
        yield from _steps(warm_up - last)
        began = self._begun()
        yield from _steps(last)
        seconds, samples = self._since(began)
        self.say("ready", seconds_per_step=seconds / last, samples=samples, **self.told)
        while True:
            lead, steps = self._order()
            yield from _steps(lead)
            began = self._begun()
            yield from _steps(steps)
            seconds, samples = self._since(began)
            self.say("window", steps=steps, seconds=seconds, samples=samples, **self.extra())

    def _order(self) -> tuple[int, int]:
        words = sys.stdin.readline().split()
        if not words:
            raise Over
        return int(words[0]), int(words[1])

    def _begun(self) -> float:
        self.wait()
        self._samples = 0
        return time.perf_counter()

    def _since(self, began: float) -> tuple[float, int]:
        self.wait()
        return time.perf_counter() - began, self._samples


def _steps(count: int) -> Iterator[None]:
    for _ in range(count):
        yield
