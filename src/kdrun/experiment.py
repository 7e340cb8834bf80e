"""THE STORY: a config becomes data, teachers, students, and a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from kdrun import assembly, bookkeeping, memory, rehearsal, split
from kdrun.config import Config
from kdrun.console import Console
from kdrun.contracts import Dataset
from kdrun.errors import TrainingError
from kdrun.interrupts import Stop
from kdrun.models import Frozen
from kdrun.plan import Plan, Run, plan
from kdrun.store import Result, Store
from kdrun.train import fit


@dataclass
class Experiment:
    """One experiment on its way: what is asked for, where it goes, and what failed."""

    config: Config
    store: Store
    console: Console
    stop: Stop
    command: Sequence[str] = ()
    failures: list[TrainingError] = field(default_factory=list)

    def run(
        self, roles: Iterable[str] = ("teacher", "student"), methods: Iterable[str] | None = None
    ) -> Plan:
        """Make sure of everything that the config asks for, training what is not finished yet."""
        device = assembly.resolve_device(self.config.experiment.device)
        dataset = assembly.open_dataset(self.config)
        everything = plan(self.config, dataset)
        wanted = everything.select(roles, methods)
        todo = [run for run in wanted.runs if self.finished(run) is None]
        rehearsed = rehearsal.rehearse(wanted, dataset.spec, device) if todo else []
        for sentence in [sentence for one in rehearsed for sentence in one.compared]:
            self.console.say(sentence)
        if todo:
            with assembly.keys_pointed_at(self.config):
                dataset.load(device, self.store.shelf, self.console.say)
        bookkeeping.open_folder(self.store, everything, dataset.spec, device, self.command)
        self.check_teachers(wanted.runs)
        for group in wanted.groups(todo):
            for part in split.fitting(group, rehearsed, device, self.console.say):
                self.train(part, dataset, device)
            self.check_teachers(wanted.runs)
        bookkeeping.measure(self.store, everything, dataset.spec, device)
        if self.failures:
            raise split.together(self.failures)
        return everything

    def finished(self, run: Run) -> Result | None:
        """The finished result of a run, wherever it lies."""
        return self.store.find(run.fingerprint, f"{self.config.experiment.name}/{run.folder}")

    def train(self, group: list[Run], dataset: Dataset, device: torch.device) -> None:
        """Train a group, in halves where the memory runs out; a teacher's failure ends all."""
        failures = split.in_halves(group, lambda g: self.lock_step(g, dataset, device), self.console.warn)
        self.failures += failures
        if failures and group[0].role == "teacher":
            raise split.together(failures)

    def lock_step(self, group: list[Run], dataset: Dataset, device: torch.device) -> list[TrainingError]:
        """Train a group in lock step, from its checkpoints if there are any, and store its results; what failed."""
        with bookkeeping.locked_group(self.store, group), self.stop.until_done(), memory.watched():
            unfinished = [run for run in group if self.finished(run) is None]
            seats = bookkeeping.take_seats(self.store, self.config, unfinished, dataset, device, self.console)
            teachers = {
                run: self.teacher(run, dataset, device) for one in group for run in one.teachers.values()
            }
            pupils = [seat for seat in seats if seat.run.weights is None]
            if pupils:
                bookkeeping.staff(pupils, teachers, self.store)
                students = [seat.student for seat in pupils]
                keeper = bookkeeping.Keeper(pupils, self.stop)
                with self.console.training(bookkeeping.title(unfinished), *keeper.progress):
                    fit(students, dataset, group[0].training.epochs, self.console, keeper.pause)
            return [TrainingError(failure) for failure in bookkeeping.finish(seats, teachers)]

    def teacher(self, run: Run, dataset: Dataset, device: torch.device) -> Frozen:
        """A finished teacher, frozen."""
        result = self.finished(run)
        assert result is not None, f"{run.title} is not finished"
        return bookkeeping.frozen(run, result, dataset.spec, device)

    def check_teachers(self, runs: Iterable[Run]) -> None:
        """Raises ``TrainingError`` where a teacher scores under its ``expect``."""
        for run in runs:
            result = self.finished(run)
            if run.expect is not None and result is not None:
                bookkeeping.expect(run, result, self.config)
