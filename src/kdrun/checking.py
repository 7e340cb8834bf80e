"""Everything short of training: what a config would do, how large it is, and how long it would take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kdrun.assembly import Rehearsed, keys_pointed_at, open_dataset, rehearse, resolve_device
from kdrun.config import Config
from kdrun.contracts import Dataset
from kdrun.plan import Kin, Plan, plan
from kdrun.store import Store

FLOAT_BYTES = 4
COPIES = 4
"""Of each weight while it trains: itself, its gradient and up to two of the optimizer's."""


@dataclass(frozen=True)
class Checked:
    """What ``kdrun check`` found; times in seconds on this machine, memory in bytes."""

    plan: Plan
    rehearsed: list[Rehearsed]
    steps: dict[Kin, int]
    todo: dict[Kin, int]
    device: torch.device
    dataset: Dataset

    def seconds(self, one: Rehearsed) -> float:
        """Estimated time of what is not finished of one model and method, its share of the teachers included."""
        of_group = sum(
            run.run.draw == one.run.draw and run.run.role == one.run.role for run in self.rehearsed
        )
        step = one.step_seconds + one.teacher_seconds / max(of_group, 1)
        return step * self.steps[one.run.kin] * self.todo[one.run.kin]

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
        """All models of the largest group with gradients and optimizers, and what one step keeps; data left out."""
        sizes: dict[Any, int] = {}
        for one in self.rehearsed:
            weights = COPIES * FLOAT_BYTES * (one.parameters + one.adapter_parameters)
            sizes[one.run.group] = sizes.get(one.run.group, 0) + weights
        return max(sizes.values(), default=0) + max((o.activation_bytes for o in self.rehearsed), default=0)

    def remarks(self) -> list[str]:
        """What a table cannot say."""
        total = sum(self.seconds(one) for one in self.rehearsed)
        compared = [sentence for one in self.rehearsed for sentence in one.compared]
        return [
            *compared,
            f"{sum(self.todo.values())} runs to train, about {clock(total)} on {self.device} if nothing else "
            "runs there (from one step of each)",
            f"about {self.memory_bytes / 1e6:,.0f} MB of memory at once, the data and torch itself not counted",
        ]

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
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
            "rows": rows,
        }


def check(config: Config, store: Store, say: Callable[[str], None], on_device: bool = False) -> Checked:
    """Build, tap and step everything once; raises ``ConfigError`` with all that does not fit.

    ``on_device`` loads a data set that is at hand where it would be trained on, to be used.
    """
    device = resolve_device(config.experiment.device)
    dataset = open_dataset(config)
    planned = plan(config, dataset.identity())
    rehearsed = rehearse(planned, dataset.spec, device, whole_batches=True)
    if dataset.at_hand:
        with keys_pointed_at(config):
            dataset.load(device if on_device else torch.device("cpu"), store.shelf, say)
    todo = dict.fromkeys((run.kin for run in planned.runs), 0)
    for run in planned.runs:
        todo[run.kin] += store.find(run.fingerprint, f"{config.experiment.name}/{run.folder}") is None
    steps = {one.run.kin: dataset.steps(one.run.draw) * one.run.training.epochs for one in rehearsed}
    return Checked(planned, rehearsed, steps, todo, device, dataset)


def clock(seconds: float) -> str:
    """``42 s``, ``3 min``, ``5.2 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
