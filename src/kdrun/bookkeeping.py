"""What surrounds training: locks, seats in the store, checkpoints in time, and the results of each run."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from kdrun import ensembles, models
from kdrun.agents import Agent
from kdrun.assembly import from_file, make_student, resolve_bf16, state_of
from kdrun.cache import Faculty, LookedUp
from kdrun.config import Config
from kdrun.console import Console
from kdrun.contracts import Dataset, Played, Split
from kdrun.errors import Problem, StoreError, TrainingError, UsageError, shown
from kdrun.evaluate import answers, likenesses, paused, scores_of, temperature
from kdrun.interrupts import Stop
from kdrun.models import Frozen, compressed, int8
from kdrun.plan import Run
from kdrun.report.scales import scale_of
from kdrun.stack import companies, why_not
from kdrun.statistics.scores import details
from kdrun.store import Result, Store, Workplace
from kdrun.store.checkpoints import Checkpoint
from kdrun.store.lock import locked
from kdrun.store.runs import EPISODE, RULES
from kdrun.student import Learner, Student
from kdrun.trees import rules_of

CHECKPOINT_SECONDS = "KDRUN_CHECKPOINT_SECONDS"
"""In the environment: the time between two checkpoints; 0 writes one after every step."""
SECONDS = 30.0
"""That time where nothing is said."""
LIKENESS_SPLITS: tuple[Split, ...] = ("train", "test")
"""The samples on which a student is compared with its teachers."""


@contextmanager
def locked_group(store: Store, group: Sequence[Run]) -> Iterator[None]:
    """Hold the lock of every run of a group; raises ``StoreError`` where another process trains one."""
    with ExitStack() as locks:
        for run in group:
            locks.enter_context(locked(store.lock_file(run.fingerprint), run.title))
        yield


def title(group: Sequence[Run]) -> str:
    """How a group is called while it trains."""
    first = group[0]
    if len(group) == 1:
        return first.title
    names = sorted({run.name for run in group})
    seeds = sorted({run.seed for run in group})
    told = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return f"{', '.join(names)}: {len(group)} {first.role}s in lock step, {told}"


@dataclass
class Seat:
    """A run at work: its folder in the store, and its student once it is enrolled.

    ``origin`` is what its model is made of, where it is made of a finished run; ``saved`` the step at which the student
    was last saved; ``stacked`` whether it takes its steps together with others; ``closed`` whether all is done.
    """

    run: Run
    workplace: Workplace
    dataset: Dataset
    device: torch.device
    console: Console
    origin: Result | None = None
    student: Learner = field(init=False)
    saved: int | None = field(init=False, default=None)
    stacked: bool = field(init=False, default=False)
    closed: bool = field(init=False, default=False)
    _played: Played | None = field(init=False, default=None)

    @property
    def resolved(self) -> dict[str, Any]:
        """What ``auto`` came out as, and how the teachers answer; a run only goes on where it comes out the same."""
        rounds = self.run.way == "trained" and resolve_bf16(self.run.training, self._shape, self.device)
        teachers = self.student.teachers if self.run.learns else {}
        return {
            "device": self.device.type,
            "precision": "bf16" if rounds else "fp32",
            "cache": "looked up" if any(isinstance(t, LookedUp) for t in teachers.values()) else "live",
            "teachers": {
                run.fingerprint[:12]: teachers[name].arithmetic
                for name, run in self.run.teachers.items()
                if name in teachers
            },
        }

    @property
    def _shape(self) -> tuple[int, ...]:
        """Of the inputs that it sees, without the batch."""
        spec = self.dataset.spec
        return tuple(spec.shapes[self.run.view or spec.default_view])

    def enrol(self, teachers: Mapping[Run, Frozen]) -> None:
        """Make the student at its first step."""
        own = {name: teachers[run] for name, run in self.run.teachers.items()}
        origin = None if self.origin is None else state_of(self.origin)
        self.student = make_student(self.run, own, self.dataset, self.device, origin)

    def newest(self, most: float = math.inf) -> Checkpoint | None:
        """The newest whole checkpoint, of no later step than ``most``; tells of those that are damaged."""
        checkpoint, damaged = self.workplace.newest(most)
        for sentence in damaged:
            self.console.warn(sentence)
        return checkpoint

    def go_on(self, checkpoint: Checkpoint | None) -> None:
        """Put the student at a checkpoint, if there is one; tells of an agent that lost what it had learnt."""
        if isinstance(self.student, Agent) and self.workplace.cut_short:
            self.console.say(
                f"{self.run.title}: its training was cut short, and an agent has no checkpoints: it starts anew"
            )
        self.workplace.begin(self.student.total_steps, self.resolved, checkpoint)
        if checkpoint is not None:
            assert isinstance(self.student, Student)
            try:
                self.student.resume(checkpoint)
            except (LookupError, ValueError, RuntimeError) as error:
                raise StoreError(
                    f"{self.workplace.folder}/checkpoint-{checkpoint.step}: does not fit this run: {shown(error)}; "
                    "go on with the kdrun that made it, or delete it and begin anew"
                ) from error
            self.saved = checkpoint.step
            before, now = checkpoint.state["threads"], torch.get_num_threads()
            if before != now and self.device.type == "cpu":
                self.console.say_once(
                    f"was begun with {before} threads and goes on with {now}: the last digits will be others than in "
                    f"one go; OMP_NUM_THREADS={before} keeps them"
                )

    def save(self) -> None:
        """Write a checkpoint where there is anything new; where the student failed, say so: the last good one stays.

        What is fitted at once has nothing to save, and is fitted anew.
        """
        self.student.flush()
        failure = self.student.failure
        if failure is not None:
            self.workplace.fail({"epoch": failure.epoch, "step": failure.step, "what": str(failure)})
        elif isinstance(self.student, Student) and not self.closed and self.saved != self.student.position:
            self.workplace.save(self.student.checkpoint(self.resolved))  # of one step, the first is as good
            self.saved = self.student.position

    def outcome(self, teachers: Mapping[Run, Frozen], pause: Callable[[], None]) -> Frozen | None:
        """The network that is scored: read, made of its teachers, or what ``selection`` chose; None if it failed."""
        if self.run.way == "read":
            return from_file(self.run, self.dataset.spec, self.device)
        if self.run.way == "combined":
            return ensembles.combined(self.run, teachers, self.dataset, pause)
        return None if self.student.failure is not None else self.student.selected()

    @property
    def scored_on(self) -> Split:
        """The split that it is scored on, once."""
        return "test" if self.run.trial is None else "validation"

    def shown_by_itself(self, network: Frozen) -> None:
        """Have a teacher that nobody showed anything see the samples that it shows, where it has to show them."""
        if self.run.demonstrator is None:
            self.dataset = self.dataset.shown_by(self.run.fingerprint, lambda: network)

    def played(self, network: Frozen, pause: Callable[[], None]) -> Played | None:
        """What it does in the episodes that it is scored in, where it is to act."""
        if self._played is None and self.dataset.plays:
            self._played = self.dataset.play(network, self.scored_on, pause)
        return self._played

    def finish(
        self, network: Frozen | None, likeness: Mapping[str, Any] | None, pause: Callable[[], None]
    ) -> str | None:
        """Score on the test set, once, and store the result; the failure in words, if there is one.

        ``pause`` is called while it is scored.
        """
        if network is None:
            self.save()
            failure = self.student.failure
            assert failure is not None
            return f"{self.run.title}: stopped: {failure}; {failure.cure}"
        given = self.run.draw.given
        batches = paused(self.dataset.split(self.scored_on, given=given), pause)
        predictions = answers(network, batches, self.run.metric, self.played(network, pause))
        if predictions is None:
            what = f"the outputs on the {self.scored_on} set are not finite"
            self.workplace.fail({"epoch": None, "step": None, "what": what})
            cure = "try a smaller learning rate" if self.run.learns else "look at its weights"
            return f"{self.run.title}: {what}; {cure}"
        if self.run.trial is not None:
            self.workplace.finish(self._trial(predictions), None, None, self.student.metrics)
            self.closed = True
            return None
        weights = {name: _array(tensor) for name, tensor in network.model.state_dict().items()}
        unseen, names = self.dataset.config.unseen or [], self.dataset.class_names
        validation = () if unseen else paused(self.dataset.split("validation", given=given), pause)
        fitted = temperature(network, validation)
        learnt, model = self.run.learns, network.model
        members = ensembles.settled(model, [*self.run.teachers])
        for sentence in ensembles.told(members):
            self.console.say(f"{self.run.title}: {sentence}")
        for sentence in int8.told(model, self.device):
            self.console.say_once(f"{self.run.name}: {sentence}")
        manifest = self._who | {
            "scores": scores_of(predictions, fitted),
            "likeness": likeness,
            "details": details(
                predictions["logits"], predictions["labels"], len(names), predictions.get("retrieved")
            )
            | {"classes": names, "unseen": len(unseen)},
            "cost": {
                "parameters": models.parameters(model),
                "macs": models.macs(model, self.dataset.spec.shapes[network.view]),
                "zeros": models.zeros(model),
            },
            "resolved": self.resolved,
            "protocol": self._protocol(len(predictions.get("returns", predictions["labels"]))),
            "train_seconds": self.student.seconds if learnt else 0.0,
            "teacher_weights": self.student.objective.fitted_shares if learnt else {},
            "members": members,
        }
        extras = dict(self.student.extras) if learnt else {}
        if isinstance(model, models.Tree):
            extras[RULES] = rules_of(network, self.dataset, self.run.draw.given)
        if (seen := self.dataset.film(network, self.console.say_once)) is not None:
            extras[EPISODE] = seen
        self.workplace.finish(manifest, weights, predictions, self.student.metrics if learnt else [], extras)
        self.closed = True
        return None

    @property
    def _who(self) -> dict[str, Any]:
        run = self.run
        return {"kind": run.role, "name": run.name, "method": run.method, "seed": run.seed}

    def _trial(self, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The manifest of a trial: how it does on the validation samples, and what that took."""
        return self._who | {
            "scores": scores_of(predictions),
            "resolved": self.resolved,
            "train_seconds": self.student.seconds,
        }

    def _protocol(self, test_samples: int) -> dict[str, Any]:
        training, data, given = self.run.training, self.dataset.config, self.run.draw.given
        transferred = self.dataset.transfer_samples if given else 0
        return {
            "dataset": self.dataset.config.kind,
            "setting": self.dataset.setting,
            "split": "test",
            "train_samples": len(self.dataset.places(given)) - transferred,
            "transfer_samples": transferred or None,
            "tested_in_transfer": self.dataset.shared_by_transfer_set.get("test") if transferred else None,
            "test_samples": test_samples,
            "test_sha256": self.dataset.test_hash(),
            "input": list(self._shape),
            "labels_per_class": data.labels_per_class if given else None,
            "left_out": ", ".join(data.leave_out) if given and data.leave_out else None,
            "unseen": ", ".join(data.unseen) if data.unseen else None,
            "epochs": training.epochs if self.run.learns else None,
            "selection": training.selection,
            "precision": self.resolved["precision"],
            "device": self.resolved["device"],
            **self.dataset.scored_by(),
        }


def _array(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().contiguous().numpy()
    return array


def take_seats(
    store: Store,
    config: Config,
    group: Sequence[Run],
    dataset: Dataset,
    device: torch.device,
    console: Console,
) -> tuple[list[Seat], list[str]]:
    """A seat for each run, and why others have none: what they are made of stopped, or was deleted since.

    Says where a run goes beside another one, and which key differs.
    """
    seats, left_out = [], []
    for run in group:
        origin = _finished_origin(run, store, config)
        if run.origin is not None and origin is None:
            left_out.append(
                f"{run.title}: is made of {run.origin.title}, which is not finished; mend that first"
            )
            continue
        folder = f"{config.experiment.name}/{run.folder}"
        workplace, difference = store.workplace(folder, run.fingerprint, run.inputs)
        if difference:
            console.say(
                f"{run.title}: differs from the run that is there ({difference}); goes to {workplace.folder}"
            )
        seats.append(Seat(run, workplace, dataset, device, console, origin))
    return seats, left_out


def _finished_origin(run: Run, store: Store, config: Config) -> Result | None:
    """The finished run that another is made of, if there is one."""
    if run.origin is None:
        return None
    return store.find(run.origin.fingerprint, f"{config.experiment.name}/{run.origin.folder}")


def staff(seats: Sequence[Seat], teachers: Mapping[Run, Frozen], store: Store) -> None:
    """Make the students of a group, give each what answers in its teachers' places, and let them go on."""
    seats = [seat for seat in seats if seat.run.learns]
    if not seats:
        return
    first = seats[0]
    for seat in seats:
        seat.enrol(teachers)
    for sentence in dict.fromkeys(map(_emptied, seats)):
        if sentence:
            first.console.warn(sentence)
    faculty = Faculty(teachers, first.dataset, store.shelf, first.console)
    faculty.staff({seat.student: seat.run for seat in seats})
    for seat in seats:
        for term, shares in seat.student.objective.fitted_shares.items():
            told = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
            first.console.say_once(f"{seat.run.name}/{seat.run.method}: {term} weighs its teachers: {told}")
    students = {seat.student: seat for seat in seats if isinstance(seat.student, Student)}
    if students and first.run.training.precision == "auto":
        first.console.say_once(f"`precision: auto` is {first.resolved['precision']} here, on {first.device}")
    for student, seat in students.items():
        if seat.run.training.stack and (reason := why_not(student)):
            kind = "/".join(filter(None, (seat.run.name, seat.run.method)))
            first.console.say_once(f"{kind} is not stacked: {reason}")
    for company in companies([*students]):
        let_go_on([students[student] for student in company])
    for seat in seats:
        if seat.student not in students:
            seat.go_on(None)


def _emptied(seat: Seat) -> str:
    """What is said of a student of which whole layers were pruned."""
    names = [] if seat.origin is None else compressed.empty_layers(seat.student.model)
    who, where = f"{seat.run.name}/seed {seat.run.seed}", ", ".join(names)
    return f"{who}: all weights of {where} are 0: no input passes there; prune a smaller share" * bool(names)


def let_go_on(company: Sequence[Seat]) -> None:
    """Put students that take their steps together where all of them were saved; one that failed holds nobody up."""
    for seat in company:
        seat.stacked = len(company) > 1
    failed = [[seat] for seat in company if seat.workplace.failed]
    for part in ([seat for seat in company if not seat.workplace.failed], *failed):
        for seat, checkpoint in zip(part, abreast(part), strict=True):
            seat.go_on(checkpoint)


def abreast(seats: Sequence[Seat]) -> list[Checkpoint | None]:
    """The newest checkpoints of students that take their steps together, all of one step; None for its first.

    A process that is killed may have saved some of them later than others, and a step of fewer rounds otherwise.
    """
    found = [seat.newest() for seat in seats]
    while len(steps := {_step(checkpoint) for checkpoint in found}) > 1:
        most = min(steps)
        found = [
            checkpoint if _step(checkpoint) == most else seat.newest(most)
            for seat, checkpoint in zip(seats, found, strict=True)
        ]
    return found


def _step(checkpoint: Checkpoint | None) -> int:
    return 0 if checkpoint is None else checkpoint.step


def finish(seats: Sequence[Seat], teachers: Mapping[Run, Frozen], pause: Callable[[], None]) -> list[str]:
    """Score the runs of a group and store their results; the failures in words. ``pause`` is called now and then."""
    for seat in seats:
        if seat.stacked:  # or its last steps might lack one that was finished before it was saved
            seat.save()
    networks = [seat.outcome(teachers, pause) for seat in seats]
    for seat, network in zip(seats, networks, strict=True):
        if network is not None:
            seat.shown_by_itself(network)
    taught = [
        (seat, network, [teachers[run] for run in seat.run.teachers.values()])
        for seat, network in zip(seats, networks, strict=True)
        if network is not None and seat.run.learns and seat.run.teachers and seat.run.trial is None
    ]
    alike: dict[str, dict[str, Any]] = {seat.run.fingerprint: {} for seat, _, _ in taught}
    for split in LIKENESS_SPLITS if taught else ():
        dataset, given = seats[0].dataset, seats[0].run.draw.given
        # Of classes that no model tells apart nobody says anything that could be alike.
        apart = split == "train" or not dataset.config.unseen
        batches = paused(dataset.split(split, given=given) if apart else (), pause)
        figures = likenesses([(network, of) for _, network, of in taught], batches)
        for (seat, _, _), one in zip(taught, figures, strict=True):
            alike[seat.run.fingerprint][split] = one
    for seat, network, of in taught:
        if (played := seat.played(network, pause)) is not None:
            [alike[seat.run.fingerprint]["own"]] = likenesses([(network, of)], played.states)
    told = [
        seat.finish(network, alike.get(seat.run.fingerprint), pause)
        for seat, network in zip(seats, networks, strict=True)
    ]
    return [failure for failure in told if failure is not None]


def checkpoint_seconds() -> float:
    """The time between two checkpoints; raises ``UsageError`` where the environment says none."""
    said = os.environ.get(CHECKPOINT_SECONDS, str(SECONDS))
    with suppress(ValueError):
        if float(said) >= 0:
            return float(said)
    raise UsageError(
        f"{CHECKPOINT_SECONDS}={said}: is no number of seconds; write {SECONDS:g}, or 0 for every step"
    )


class Keeper:
    """Called between two steps: saves checkpoints in time, and stops when a signal asked for it.

    Only what is trained in steps is waited for, for it alone has something to save.
    """

    def __init__(self, seats: Sequence[Seat], stop: Stop, every: float | None = None) -> None:
        self.seats = [seat for seat in seats if seat.run.way == "trained"]
        self.every, self.stop = checkpoint_seconds() if every is None else every, stop
        stop.waits = bool(self.seats)
        self.saved_at = time.monotonic()

    @property
    def progress(self) -> tuple[int, int, int]:
        """Steps from first to last, those that every student has behind it, and epochs."""
        students = [seat.student for seat in self.seats if isinstance(seat.student, Student)]
        done = min(student.position for student in students)
        return students[0].total_steps, done, students[0].training.epochs

    def telling(self, console: Console, title: str) -> AbstractContextManager[None]:
        """A block in which the progress of what is trained is shown."""
        return console.training(title, *self.progress) if self.seats else nullcontext()

    def pause(self) -> None:
        """Save if it is time; raises ``Interrupted`` after saving where a signal came."""
        if self.stop.signal is None and time.monotonic() - self.saved_at < self.every:
            return
        for seat in self.seats:
            seat.save()
        self.saved_at = time.monotonic()
        self.stop.heed("stopped and saved; the same command goes on from here")


def expect(run: Run, result: Result, config: Config) -> None:
    """Raises ``TrainingError`` where a teacher scores under its ``expect``."""
    metric = run.metric
    score, scale = result.manifest["scores"][metric], scale_of(metric)
    if run.expect is not None and score < run.expect:
        words = f"'{run.name}' has {scale.metric} {score:.4f} {scale.where}, under its expect: {run.expect}"
        error = config.error([Problem((*run.path, "expect"), words, "train it longer, or expect less")])
        raise TrainingError(str(error))
