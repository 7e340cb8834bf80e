"""kdrun by its public path: a config read from a file, ``Experiment.run``, and a console that sees every step."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gate import Gate
from benchmarks.works import PLUGIN
from kdrun import config, registry
from kdrun.console import Console
from kdrun.controls import CONTROLS
from kdrun.experiment import Experiment
from kdrun.interrupts import stop_on_signals
from kdrun.plan import Run
from kdrun.records import command_line
from kdrun.store import Store

HEARD = 10
"""Lines of kdrun's that are kept for the report."""


class HeldConsole(Console):
    """A quiet console that hands every step to a gate, which may hold it."""

    def __init__(self, gate: Gate) -> None:
        super().__init__(quiet=True)
        self._gate, self._heard = gate, []
        gate.told["said"] = self._heard

    _heard: list[str]

    def say(self, text: str, style: str = "") -> None:
        """Keep a line for the report."""
        if len(self._heard) < HEARD:
            self._heard.append(text)

    def step(self, samples: int) -> None:
        """One step of all students of the group, with so many samples together."""
        super().step(samples)
        self._gate.step(samples)


class WithoutControl(Experiment):
    """An experiment that leaves out the students without a teacher, which no other loop trains either."""

    def train(self, group: list[Run]) -> None:
        """Train the rest of a group as ever."""
        super().train([run for run in group if run.method not in CONTROLS])


def steps(contestant: str, options: argparse.Namespace, gate: Gate) -> Iterator[int]:
    """Train what the config asks for, as the command line does; its steps reach the gate by the console."""
    if contestant == "torch":
        return itertools.repeat(0)
    registry.load_plugins([PLUGIN])
    read = config.read(Path(options.config), [f"device={options.device}"])
    with stop_on_signals() as stop:
        folder = Path(options.config).with_suffix(".runs")
        WithoutControl(read, Store(folder), HeldConsole(gate), stop, command_line()).run()
    return iter(())
