"""Everything short of training: what a config would do, how large it is, and how long it would take."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from kdrun import memory, split
from kdrun.assembly import load, open_dataset, resolve_device
from kdrun.config import Config
from kdrun.console import Console
from kdrun.contracts import Dataset
from kdrun.machine import told_size
from kdrun.plan import Kin, Plan, Run, plan
from kdrun.rehearsal import Rehearsed, rehearse
from kdrun.store import Store

WITHOUT_TIME = {"fitted": "is fitted at once", "reinforced": "learns by acting"}
"""Ways to learn whose time nobody knows before."""


@dataclass(frozen=True)
class Checked:
    """What ``kdrun check`` found; times in seconds on this machine, memory in bytes, ``free`` of the device."""

    plan: Plan
    rehearsed: list[Rehearsed]
    steps: dict[Kin, int]
    unfinished: list[Run]
    device: torch.device
    dataset: Dataset
    free: int

    @cached_property
    def todo(self) -> Counter[Kin]:
        """How many runs of each model and method are not finished."""
        return Counter(run.kin for run in self.unfinished)

    def seconds(self, one: Rehearsed) -> float:
        """Estimated time of what is not finished of one model and method, its share of the teachers included."""
        of_group = sum(
            run.run.draw == one.run.draw and run.run.role == one.run.role for run in self.rehearsed
        )
        own = one.step_seconds * self.steps[one.run.kin] * self.todo[one.run.kin]
        return own + one.teacher_seconds * self._asked(one) / max(of_group, 1)

    def _asked(self, one: Rehearsed) -> float:
        """About how many batches its teachers are asked: each, or where tables are looked up once each that differs."""
        steps, copies = self.steps[one.run.kin], self.dataset.of(one.run.environment).copies(one.run.draw)
        if not one.looked_up or copies is None:
            return steps * self.todo[one.run.kin]
        return copies * steps / one.run.training.epochs if self.todo[one.run.kin] else 0

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and lines."""
        head = [
            "model",
            "method",
            "parameters",
            "adapters",
            "MACs",
            "ms a step",
            "steps",
            "to train",
            "time",
            "terms of a random batch",
        ]
        lines = []
        for one in self.rehearsed:
            terms = ", ".join(f"{name} {value:.3g}" for name, value in one.terms.items())
            if one.run.way == "reinforced":
                name, steps = one.run.name, f"{self.steps[one.run.kin]:,}"
                sizes = f"{one.parameters:,}", "", f"{one.macs:,}", "", steps, str(self.todo[one.run.kin])
                lines.append([name, "teacher", *sizes, "", "learns by acting"])
                continue
            if one.run.way == "fitted":  # the samples decide its size and its time
                name, method, most = one.run.name, one.run.method or "teacher", f"≤ {one.parameters:,}"
                lines.append(
                    [name, method, most, *[""] * 4, str(self.todo[one.run.kin]), "", "fitted at once"]
                )
                continue
            lines.append(
                [
                    one.run.name,
                    one.run.method or "teacher",
                    f"{one.parameters:,}",
                    f"{one.adapter_parameters:,}",
                    f"{one.macs:,}",
                    f"{1e3 * one.step_seconds:.1f}",
                    f"{self.steps[one.run.kin]:,}",
                    str(self.todo[one.run.kin]),
                    clock(self.seconds(one)),
                    terms,
                ]
            )
        return head, lines

    @property
    def memory_bytes(self) -> int:
        """What the largest group takes in one piece, whatever of it is finished; data left out."""
        known = split.figures(self.rehearsed)
        trained = [run for run in self.plan.runs if run.kin in known]
        return max((split.needed(group, known) for group in self.plan.groups(trained)), default=0)

    def groups(self) -> tuple[int, int, list[str]]:
        """The groups to train as they are planned, and as they would be split here; what is said of that."""
        told: list[str] = []
        planned = list(self.plan.groups(self.unfinished))
        known = split.figures(self.rehearsed)
        parts = [split.parts(group, known, self.free, told.append) for group in planned]
        return len(planned), sum(map(len, parts)), told

    def remarks(self) -> list[str]:
        """What a table cannot say."""
        total = sum(self.seconds(one) for one in self.rehearsed)
        compared = [sentence for one in self.rehearsed for sentence in one.compared]
        planned, here, told = self.groups()
        ways = {one.run.way for one in self.rehearsed}
        unknown = " and ".join(f"what {said}" for way, said in WITHOUT_TIME.items() if way in ways)
        return [
            *compared,
            f"{sum(self.todo.values())} runs to train, about {clock(total)} on {self.device} if nothing else "
            f"runs there (from one step of each{f', without {unknown}' if unknown else ''})",
            f"about {told_size(self.memory_bytes)} of memory for the largest group, the data and torch itself not "
            f"counted; {told_size(self.free)} are free",
            *told,
            f"groups to train one after the other: {planned}"
            + f", split into {here} here" * (here > planned),
        ]

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        planned, here, _ = self.groups()
        rows = [
            {
                "model": one.run.name,
                "method": one.run.method,
                "parameters": one.parameters,
                "adapter_parameters": one.adapter_parameters,
                "macs": one.macs,
                "step_seconds": one.step_seconds,
                "steps": self.steps[one.run.kin],
                "to_train": self.todo[one.run.kin],
                "seconds": self.seconds(one),
                "terms": one.terms,
                "compared": one.compared,
            }
            for one in self.rehearsed
        ]
        return {
            "device": str(self.device),
            "seconds": sum(self.seconds(one) for one in self.rehearsed),
            "memory_bytes": self.memory_bytes,
            "free_bytes": self.free,
            "groups": {"planned": planned, "here": here},
            "rows": rows,
        }


def check(config: Config, store: Store, console: Console, on_device: bool = False) -> Checked:
    """Build, tap and step everything once; raises ``ConfigError`` with all that does not fit.

    ``on_device`` loads a data set that is at hand where it would be trained on, to be used.
    """
    device = resolve_device(config.experiment.device)
    dataset = open_dataset(config)
    planned = plan(config, dataset)
    rehearsed = rehearse(planned, dataset, device, whole_batches=True)
    if dataset.at_hand:
        load(planned, dataset, device if on_device else torch.device("cpu"), store.shelf, console)
    unfinished = [
        run
        for run in planned.runs
        if store.find(run.fingerprint, f"{config.experiment.name}/{run.folder}") is None
    ]
    steps = {one.run.kin: _steps(one.run, dataset.of(one.run.environment)) for one in rehearsed}
    return Checked(planned, rehearsed, steps, unfinished, device, dataset, memory.free_memory(device))


def _steps(run: Run, dataset: Dataset) -> int:
    """The steps of a training; of an agent those in its environment."""
    acting: int | None = getattr(run.model, "all_steps", None) if run.way == "reinforced" else None
    return dataset.steps(run.draw) * run.training.epochs if acting is None else acting


def clock(seconds: float) -> str:
    """``42 s``, ``3 min``, ``5.2 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
