"""Where the time of a training step goes, part by part: taking the steps, under a clock."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice, pairwise
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdrun.advice import DATA, STACK, Kind, Part, Profile
from kdrun.assembly import finished_network, from_file, frozen, has_bf16, make_student
from kdrun.bookkeeping import title
from kdrun.cache import Faculty, LookedUp, Table
from kdrun.console import Console
from kdrun.contracts import Batch, Dataset, Draw, Outputs, Shelf, Split, Teacher
from kdrun.data.augmentation import Copies, parts
from kdrun.evaluate import wait_for
from kdrun.machine import Neighbours, crowded
from kdrun.memory import room_for_data
from kdrun.models import Frozen, Prepared
from kdrun.plan import Kin, Plan, Run
from kdrun.stack import Stack, Team, likeness, teams, why_not
from kdrun.store import Kept, Store
from kdrun.student import Learner, Lesson, Student, lessons_of

WARM_UP, LEAST, SECONDS = 3, 5, 2.0
"""Steps before the first that counts, those that count at least, and the time that all steps of a group may take."""
SAMPLES = 256
"""Random samples that stand for a data set that is not at hand, at least."""
ROWS = 1024
"""Different rows of a made-up table."""
APART = 1.3
"""How many times the sum of the parts may be a whole step, or the reverse, before it is told why."""
COPIES = 4
"""Fixed copies of each picture in the example that an advice gives."""


def profile(plan: Plan, dataset: Dataset, store: Store, device: torch.device) -> list[Profile]:
    """Take some steps of every group that a config comes to, of all seeds that train alike only the first.

    ``dataset`` is loaded on the device where it is at hand. Nothing is written.
    """
    stand = StandIn(dataset, {run.draw for run in plan.runs}, device)
    return [Group(group, plan, stand, store, device).profile() for group in _groups(plan)]


def _groups(plan: Plan) -> Iterator[list[Run]]:
    shown: set[Kin] = set()
    for group in plan.groups(plan.runs):
        kins = {run.kin for run in group}
        if group[0].way == "trained" and not kins <= shown:
            shown |= kins
            yield group


class StandIn(Dataset):
    """A data set as a profile needs it: its batches where it is at hand and else random ones in its form.

    Passes over a whole split end after their first batch: what is learnt from them costs a training little and a
    profile much.
    """

    def __init__(self, whole: Dataset, draws: Iterable[Draw], device: torch.device) -> None:
        self.whole, self.config, self.spec = whole, whole.config, whole.spec
        self._samples = max(whole.steps(draw) * draw.batch_size for draw in draws)
        size = max(SAMPLES, *(draw.batch_size for draw in draws))
        self._random = replace(whole.spec.random_batch(size).to(device), all_seen=True)

    def identity(self) -> dict[str, Any]:
        """That of the data set."""
        return self.whole.identity()

    @property
    def at_hand(self) -> bool:
        """Whether its batches are real."""
        return self.whole.at_hand

    def load(
        self, device: torch.device, shelf: Shelf | None = None, say: Callable[[str], None] = lambda text: None
    ) -> None:
        """Nothing: what is at hand is loaded."""

    def steps(self, draw: Draw) -> int:
        """Batches an epoch."""
        return self.whole.steps(draw)

    def batches(self, draw: Draw, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The training batches of an epoch, or the same random samples again and again."""
        if self.at_hand:
            yield from self.whole.batches(draw, epoch, first)
        else:
            yield from [self._rows(draw.batch_size)] * (self.steps(draw) - first)

    def queries(self, draw: Draw, number: int, batch_size: int) -> Iterator[Batch]:
        """Nothing: only what is fitted at once asks for them so, and that has no steps."""
        raise AssertionError("what is fitted at once has no steps to profile")

    def split(self, name: Split, batch_size: int = 512, given: bool = False) -> Iterable[Batch]:
        """The first batch."""
        if self.at_hand:
            return islice(self.whole.split(name, batch_size, given), 1)
        return [self._rows(batch_size)]

    def _rows(self, size: int) -> Batch:
        return self._random.rows(
            torch.arange(min(size, len(self._random)), device=self._random.labels.device)
        )

    @property
    def copied_views(self) -> Collection[str]:
        """Those of the data set."""
        return self.whole.copied_views

    def copies(self, draw: Draw) -> int | None:
        """How many different passes there are."""
        return self.whole.copies(draw)

    def labels(self, name: Split, given: bool = False) -> np.ndarray:
        """The labels, or classes in turn."""
        if self.at_hand:
            return self.whole.labels(name, given)
        return np.arange(self._samples) % self.spec.classes

    def test_hash(self) -> str:
        """That of the data set."""
        return self.whole.test_hash()


class MadeUp(Faculty):
    """Teachers that answer as they would in training, but from tables that nobody computed."""

    def tables(self, run: Run, wanted: Sequence[Table], student: Learner) -> dict[Table, Kept]:
        """Tables of the right shapes, of random numbers."""
        teacher = self.teachers[run]
        layers = [teacher.model.pooled]
        live = Prepared(teacher, self.recipe(run, layers, student.bf16), layers)
        said = live(self.sample)
        rows = (self.dataset.copies(student.draw) or 1) * len(
            self.dataset.labels("train", student.draw.given)
        )
        forms = {"logits": said.logits.shape[1:], "pooled": said.features[teacher.model.pooled].shape[1:]}
        about = {"arithmetic": live.arithmetic}
        return {table: Kept({table: _table((rows, *forms[table]), live.device)}, about) for table in wanted}


def _table(shape: tuple[int, ...], device: torch.device) -> np.ndarray:
    """Random rows; zeros, which take no memory, where a training would map a file into memory."""
    if np.prod(shape, dtype=np.int64) * np.dtype(np.float32).itemsize > room_for_data(device):
        return np.zeros(shape, np.float32)
    return np.resize(np.random.default_rng(0).standard_normal((ROWS, *shape[1:]), np.float32), shape)


class Clock:
    """Seconds of the parts of steps; it waits for the device between them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps: list[Counter[tuple[str, Kind, str]]] = []

    def begin(self) -> None:
        """A step begins."""
        wait_for(self._device)
        self._steps.append(Counter())
        self._at = time.perf_counter()

    def lap(self, of: str, kind: Kind, what: str) -> None:
        """All since the step began, or since the last lap, was this part; parts of one name add up."""
        wait_for(self._device)
        now = time.perf_counter()
        self._steps[-1][of, kind, what] += now - self._at  # type: ignore[assignment]  # a Counter of seconds
        self._at = time.perf_counter()

    def forget(self) -> None:
        """What was measured until now was to warm up."""
        self._steps = []

    @property
    def steps(self) -> int:
        """How many count."""
        return len(self._steps)

    def parts(self) -> list[Part]:
        """The medians, in the order in which the parts ran."""
        return [Part(*name, median(step[name] for step in self._steps)) for name in self._steps[0]]


class Group:
    """Runs at work as they would train together, under a clock."""

    def __init__(
        self, runs: Sequence[Run], plan: Plan, dataset: StandIn, store: Store, device: torch.device
    ) -> None:
        self.name, self.dataset, self.device = title(runs), dataset, device
        teachers = {t: _teacher(t, plan, store, dataset, device) for r in runs for t in r.teachers.values()}
        self.runs: dict[Student, Run] = {}
        for run in runs:
            own = {name: teachers[teacher] for name, teacher in run.teachers.items()}
            student = make_student(run.without_files(), own, dataset, device)
            assert isinstance(student, Student)
            self.runs[student] = run
        self.faculty = MadeUp(teachers, dataset, store.shelf, Console(quiet=True))
        self.faculty.staff({student: run for student, run in self.runs.items()})
        self.students = list(self.runs)
        self.called: dict[Teacher, tuple[str, Kind, str]] = {
            student.teachers[name]: (f"teacher {teacher.name}", "teacher", _how(student.teachers[name]))
            for student, run in self.runs.items()
            for name, teacher in run.teachers.items()
        }
        self.epochs = {student: _longest(student) for student in self.students}
        self.teams = teams(self.students)
        self.streams = {draw: _endless(dataset, draw) for draw in {s.draw: None for s in self.students}}
        self.clock = Clock(device)

    def profile(self) -> Profile:
        """Steps in parts and whole ones in turn, so that a drifting machine hits both alike."""
        self.dataset.refresh(0, self.students)
        neighbours, whole = Neighbours(), list[float]()
        began = time.perf_counter()
        for number in range(WARM_UP):
            if number and time.perf_counter() - began > SECONDS:
                break
            self._step_in_parts()
            self._whole_step()
        self.clock.forget()
        began = time.perf_counter()
        while self.clock.steps < LEAST or time.perf_counter() - began < SECONDS:
            self._step_in_parts()
            if not whole or time.perf_counter() - began < SECONDS:
                whole.append(self._whole_step())
        crowd = crowded(neighbours.busy_cores, torch.get_num_threads())
        return self._told(self.clock.parts(), median(whole), crowd)

    def _told(self, found: list[Part], step_seconds: float, crowd: str | None) -> Profile:
        if not self.dataset.at_hand:
            found = [part for part in found if part.kind != "data"]
        profile = Profile(
            title=self.name,
            steps=self.clock.steps,
            step_seconds=step_seconds,
            parts=found,
            notes=list(self._notes(sum(part.seconds for part in found), step_seconds)),
            lookup=self._lookup(),
            bf16=has_bf16(self.device) and any(not s.bf16 and self._sees_pictures(s) for s in self.students),
            alike=self._alike(),
            augmentation=", ".join(
                part.kind for part in parts(getattr(self.dataset.config, "augmentation", []))
            ),
            crowd=crowd,
        )
        return replace(profile, reading=self._reading()) if profile.share("data") > DATA else profile

    def _notes(self, seconds: float, step_seconds: float) -> Iterator[str]:
        """What the figures do not say of themselves."""
        if not self.dataset.at_hand:
            yield "the data set is not at hand: the samples are random, and the time of the data is not known"
        told = f"the parts add up to {1e3 * seconds:.2f} ms"
        if step_seconds > APART * seconds:
            yield f"{told}, less than a whole step: other processes interrupt the steps"
        if seconds > APART * step_seconds:
            yield f"{told}, more than a whole step, in which the device need not be waited for after each"
        yield from dict.fromkeys(
            f"{self._label(student)}: measured as in epoch {epoch + 1} of {student.training.epochs}; in others "
            "other terms count, or other parts learn"
            for student, epoch in self.epochs.items()
            if len(student.turns()) > 1
        )

    # ------------------------------------------------------------------------------------------ steps

    def _step_in_parts(self) -> None:
        """What ``train.fit`` does in a step, with a lap after each part."""
        self._go_back()
        self.clock.begin()
        batches = {draw: next(stream) for draw, stream in self.streams.items()}
        self.clock.lap("data", "data", "batches")
        lessons = lessons_of(self.students, batches, self._timed)
        for team in self.teams:
            if team.stack is None:
                self._alone(team.members[0], lessons[team.members[0]])
            else:
                self._stacked(team, team.stack, [lessons[member] for member in team.members])

    def _timed(self, teacher: Teacher, batch: Batch) -> Outputs:
        said = teacher(batch)
        self.clock.lap(*self.called[teacher])
        return said

    def _whole_step(self) -> float:
        """The seconds of a step without a lap."""
        self._go_back()
        wait_for(self.device)
        began = time.perf_counter()
        batches = {draw: next(stream) for draw, stream in self.streams.items()}
        lessons = lessons_of(self.students, batches)
        for team in self.teams:
            team.step([lessons[member] for member in team.members])
        wait_for(self.device)
        return time.perf_counter() - began

    def _go_back(self) -> None:
        """Put the students where the terms are those of most of their training."""
        for student, epoch in self.epochs.items():
            student.go_to(epoch)

    def _alone(self, student: Student, lesson: Lesson) -> None:
        label = self._label(student)
        student.begin_step()
        with student.arithmetic():
            if student.training.compile:
                terms = student.answer(*lesson)
                self.clock.lap(label, "forward", "forward and losses, compiled")
            else:
                said = student.network(lesson[0])
                self.clock.lap(label, "forward", "forward")
                terms = self._losses(student, said, lesson)
        gradients = student.gradients(terms)
        self.clock.lap(label, "backward", "backward")
        student.learn(terms, gradients)
        self.clock.lap(label, "optimizer", "optimizer")

    def _stacked(self, team: Team, stack: Stack, lessons: Sequence[Lesson]) -> None:
        label = f"{STACK}{len(team.members)} students"
        values = []
        with team.members[0].arithmetic():
            said = stack.look([batch for batch, _ in lessons])
            self.clock.lap(label, "forward", "forward")
            for member, outputs, lesson in zip(team.members, said, lessons, strict=True):
                member.begin_step()
                values.append(self._losses(member, outputs, lesson))
        found = stack.gradients(values)
        self.clock.lap(label, "backward", "backward")
        stack.learn(values, found)
        self.clock.lap(label, "optimizer", "optimizer")

    def _losses(self, student: Student, said: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        batch, taught = lesson
        terms = {}
        for name, term in student.objective.named.items():
            terms[name] = term(said, taught, batch).float()
            self.clock.lap(self._label(student), "loss", f"loss {name}")
        return terms

    def _label(self, student: Student) -> str:
        run = self.runs[student]
        return f"{run.name} {run.method}" if run.method else run.name

    # ------------------------------------------------------------------------------ what advice needs

    def _lookup(self) -> dict[str, str]:
        """Live teachers that one change lets be looked up by all that learn from them, and that change."""
        changes: dict[str, set[str | None]] = {}
        for student, run in self.runs.items():
            for name, answering in student.teachers.items():
                if not isinstance(answering, LookedUp):
                    changes.setdefault(f"teacher {run.teachers[name].name}", set()).add(
                        self._change(student, run)
                    )
        return {
            teacher: change
            for teacher, several in changes.items()
            if len(several) == 1 and (change := next(iter(several))) is not None
        }

    def _change(self, student: Student, run: Run) -> str | None:
        """What lets a student's teachers be looked up that are asked live, if one key does."""
        if not self.faculty.tables_suffice(student, run):
            return None
        if self.dataset.copies(student.draw) is not None:
            return "`training.cache: true` lets it be looked up, which saves nearly all of that"
        augmentation = getattr(self.dataset.config, "augmentation", None)
        if student.draw.queries is not None:
            return None  # they differ in every step, and are what was asked for
        mixed = student.draw.mixup or student.draw.cutmix
        if not student.training.cache or mixed or not student.draw.given or not augmentation:
            return None
        assert not isinstance(augmentation, Copies), "they would be looked up"
        written = augmentation if isinstance(augmentation, str) else "…"
        return (
            f"`dataset.augmentation: {{copies: {COPIES}, parts: {written}}}` lets it be looked up, which saves nearly "
            f"all of that; the students then see {COPIES} fixed copies of each picture, another augmentation than now"
        )

    def _sees_pictures(self, student: Student) -> bool:
        return len(self.dataset.spec.shapes[student.network.view]) == 3

    def _alike(self) -> list[str]:
        """The largest set of students that could be stacked and are not."""
        sets: dict[str, list[str]] = {}
        for student in self.students:
            if not student.training.stack and why_not(student) is None:
                sets.setdefault(repr(likeness(student)), []).append(self._label(student))
        return max(sets.values(), key=len, default=[])

    def _reading(self) -> float:
        """Seconds of a step's batches when they are read in their order and not augmented; the first is left out."""
        total = 0.0
        for draw in self.streams:
            batches = iter(self.dataset.whole.split("train", draw.batch_size))
            taken = []
            for _ in range(1 + LEAST):
                wait_for(self.device)
                began = time.perf_counter()
                if next(batches, None) is None:
                    break
                wait_for(self.device)
                taken.append(time.perf_counter() - began)
            total += median(taken[1:] or taken)
        return total


def _teacher(run: Run, plan: Plan, store: Store, dataset: Dataset, device: torch.device) -> Frozen:
    """A teacher, frozen; one that is not trained yet with the weights it starts from."""
    if run.weights is not None:
        return from_file(run, dataset.spec, device)
    result = store.find(run.fingerprint, f"{plan.config.experiment.name}/{run.folder}")
    if result is not None:
        return frozen(run, result, dataset.spec, device)
    network = finished_network(run, dataset.spec, device)
    return Frozen(network.model, network.view, device)


def _how(teacher: Teacher) -> str:
    return "looked up" if isinstance(teacher, LookedUp) else f"live, {teacher.arithmetic}"


def _longest(student: Student) -> int:
    """The first of the epochs, counted from 0, in which the same terms count, of the longest stretch of them."""
    spans = pairwise([*student.turns(), student.training.epochs])
    return max(spans, key=lambda span: span[1] - span[0])[0]


def _endless(dataset: Dataset, draw: Draw) -> Iterator[Batch]:
    for epoch in count():
        yield from dataset.batches(draw, epoch)
