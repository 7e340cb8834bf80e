"""THE STORY: a config becomes data, teachers, students, and a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from kdrun import agents, assembly, bookkeeping, memory, records, rehearsal, room, split, trees
from kdrun.config import Config
from kdrun.console import Console
from kdrun.contracts import Dataset
from kdrun.errors import TrainingError
from kdrun.interrupts import Stop
from kdrun.plan import ROLES, Plan, Run, Way, plan
from kdrun.store import Result, Store
from kdrun.train import fit

Ways = dict[Way, Callable[..., None]]


@dataclass
class Experiment:
    """One experiment on its way: what is asked for, where it goes, and what failed."""

    config: Config
    store: Store
    console: Console
    stop: Stop
    command: Sequence[str] = ()
    device: torch.device = field(init=False)
    dataset: Dataset = field(init=False)
    plan: Plan = field(init=False)
    failures: list[TrainingError] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.device = assembly.resolve_device(self.config.experiment.device)
        self.dataset = assembly.open_dataset(self.config)
        self.plan = plan(self.config, self.dataset)

    def run(self, roles: Iterable[str] = ROLES, methods: Iterable[str] | None = None) -> Plan:
        """Make sure of everything that the config asks for, training what is not finished yet."""
        self.carry_out(self.plan.select(roles, methods))
        records.measure(self.store, self.plan, self.dataset.spec, self.device)
        if self.failures:
            raise split.together(self.failures)
        return self.plan

    def carry_out(self, wanted: Plan) -> None:
        """Train what of a plan is not finished, group by group, each in parts that fit into the memory."""
        spec, todo = self.dataset.spec, [run for run in wanted.runs if self.finished(run) is None]
        rehearsed = rehearsal.rehearse(wanted, self.dataset, self.device) if todo else []
        self.console.say_once(*(sentence for one in rehearsed for sentence in one.compared))
        if todo:
            assembly.load(wanted, self.dataset, self.device, self.store.shelf, self.console)
            room.demand_room(self.store, wanted, todo, rehearsed, self.dataset)
        records.open_folder(self.store, self.plan, spec, self.device, self.command, bool(todo))
        self.check_teachers(wanted.runs)
        for group in wanted.groups(todo):
            for part in split.fitting(group, rehearsed, self.device, self.console.say):
                self.train(part)
            self.check_teachers(wanted.runs)

    def finished(self, run: Run) -> Result | None:
        """The finished result of a run, wherever it lies."""
        folder = f"{self.config.experiment.name}/{run.folder}"
        return self.store.find(run.fingerprint, folder, prove=True)

    def train(self, group: list[Run]) -> None:
        """Train a group, in halves where the memory runs out; a teacher's failure ends all."""
        failures = split.in_halves(group, self.lock_step, self.console.warn)
        self.failures += failures
        if failures and group[0].role == "teacher":
            raise split.together(failures)

    def lock_step(self, group: list[Run]) -> list[TrainingError]:
        """Train a group in lock step, from its checkpoints if there are any, and store its results; what failed."""
        with bookkeeping.locked_group(self.store, group), self.stop.until_done(), memory.watched():
            unfinished = [run for run in group if self.finished(run) is None]
            dataset = assembly.shown(group[0], self.finished, self.dataset, self.device)
            where = dataset, self.device
            seats, failed = bookkeeping.take_seats(self.store, self.config, unfinished, *where, self.console)
            teachers = assembly.teachers(group, self.finished, *where)
            bookkeeping.staff(seats, teachers, self.store)
            keeper = bookkeeping.Keeper(seats, self.stop)
            if seats and group[0].learns:
                ways: Ways = {"trained": fit, "fitted": trees.fit, "reinforced": agents.fit}
                learn = ways[group[0].way]
                students, epochs = [seat.student for seat in seats], group[0].training.epochs
                with keeper.telling(self.console, bookkeeping.title([seat.run for seat in seats])):
                    learn(students, dataset, epochs, self.console, keeper.pause)
            return [*map(TrainingError, failed + bookkeeping.finish(seats, teachers, keeper.pause))]

    def check_teachers(self, runs: Iterable[Run]) -> None:
        """Raises ``TrainingError`` where a teacher scores under its ``expect``."""
        for run in runs:
            if run.expect is not None and (result := self.finished(run)) is not None:
                bookkeeping.expect(run, result, self.config)
