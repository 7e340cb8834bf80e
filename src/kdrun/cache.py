"""What teachers say of a batch: asked live, or looked up where every pass shows them the same views."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from kdrun import registry
from kdrun.console import Console
from kdrun.contracts import Arithmetic, Batch, Dataset, Draw, Outputs, Taps, Teacher
from kdrun.errors import StoreError, TrainingError
from kdrun.evaluate import not_finite
from kdrun.machine import told_size
from kdrun.memory import room_for_data
from kdrun.models import Frozen, Prepared, Recipe, recipe
from kdrun.models.folds import FOLD, CrossFitted
from kdrun.plan import RESULT_VERSION, STUDENTS_ALONE, Run
from kdrun.store import Form, Kept, Shelf, fingerprint, shelf
from kdrun.store.forms import foreign
from kdrun.student import Learner

SAMPLE = 256
"""Training samples on which a teacher in other arithmetic is compared with itself."""
CHUNK = 128
"""Samples of a batch while outputs are computed to be looked up; larger ones are slower on a CPU."""

Table = Literal["logits", "pooled"]


class LookedUp:
    """A teacher's outputs for the training set, computed once; a ``Teacher``.

    ``tables`` are its logits (K·N, C) and perhaps its embeddings (K·N, D), of K copies of N samples. They lie on the
    device where they fit, and else in a file that is mapped into memory.
    """

    def __init__(self, tables: Mapping[Table, Kept], pooled: str, samples: int, device: torch.device) -> None:
        self.arithmetic: Arithmetic = tables["logits"].about["arithmetic"]
        self._pooled, self._samples, self._device = pooled, samples, device
        fits = sum(kept.bytes for kept in tables.values()) <= room_for_data(device)
        arrays = {table: kept.arrays[table] for table, kept in tables.items()}
        self._tables: dict[Table, Tensor | np.ndarray] = {
            table: torch.from_numpy(np.array(array)).to(device) if fits else array
            for table, array in arrays.items()
        }

    def __call__(self, batch: Batch) -> Outputs:
        """Logits (B, C), and the embeddings (B, D) where they were computed."""
        rows = batch.index + batch.copy * self._samples if batch.copy else batch.index
        found = {table: self._rows(values, rows) for table, values in self._tables.items()}
        return Outputs(found["logits"], {self._pooled: found["pooled"]} if "pooled" in found else {})

    def _rows(self, values: Tensor | np.ndarray, rows: Tensor) -> Tensor:
        if isinstance(values, Tensor):
            return values.index_select(0, rows)
        return torch.from_numpy(values[rows.cpu().numpy()]).to(self._device, non_blocking=True)


class Pupil(NamedTuple):
    """A student, what it calls one of its teachers, and what its losses look at there."""

    student: Learner
    name: str
    taps: Taps


@dataclass(frozen=True, eq=False)
class Faculty:
    """The teachers of one group, which give every student what answers in their places.

    What answers depends on the student alone, never on its company, so that a group changes no bits: tables where
    the views are the same in every pass and the student looks at logits and embeddings only, and else a copy of the
    teacher that is asked about every batch.
    """

    teachers: Mapping[Run, Frozen]
    dataset: Dataset
    shelf: Shelf
    console: Console
    _recipes: dict[tuple[Run, frozenset[str], bool], Recipe] = field(default_factory=dict, init=False)
    _hashes: dict[Run, str] = field(default_factory=dict, init=False)
    _hashes_of_samples: dict[bool, str] = field(default_factory=dict, init=False)

    def staff(self, students: Mapping[Learner, Run]) -> None:
        """Set the ``teachers`` of all students, whose runs are given."""
        small = {student for student, own in students.items() if self._can_look_up(student, own)}
        for run in self.teachers:
            if _remembers(run):
                cure = f"; `teacher: [{', '.join(run.teachers)}]` hears its members cross-fitted" * bool(
                    run.teachers
                )
                self.console.say_once(
                    f"the teacher '{run.name}' is not cross-fitted: of samples that it was fitted to it may say hardly "
                    f"more than their labels{cure}"
                )
            pupils = [
                Pupil(student, name, student.objective.wants(name))
                for student, own in students.items()
                for name, teacher in own.teachers.items()
                if teacher is run
            ]
            self._look_up(run, [pupil for pupil in pupils if pupil.student in small])
            self._ask(run, [pupil for pupil in pupils if pupil.student not in small])

    def _can_look_up(self, student: Learner, own: Run) -> bool:
        """Whether tables can answer in the place of all its teachers."""
        if not student.training.cache or self.dataset.copies(student.draw) is None:
            return False
        return self.tables_suffice(student, own)

    def tables_suffice(self, student: Learner, own: Run) -> bool:
        """Whether its losses look at nothing that a table does not hold, whatever the views are."""
        teachers = {name: self.teachers[run] for name, run in own.teachers.items()}
        return student.objective.tables_suffice(teachers, self.dataset.copied_views)

    @cached_property
    def sample(self) -> Batch:
        """Training samples of all classes, the same ones for every student."""
        draw = Draw(seed=self.dataset.config.seed, batch_size=SAMPLE, labels="all", purpose="sample")
        return next(self.dataset.batches(draw, 0))

    def recipe(self, run: Run, layers: Iterable[str], bf16: bool) -> Recipe:
        """How to prepare a teacher for one student, whatever others ask for."""
        key = run, frozenset(layers), bf16
        if key not in self._recipes:
            self._recipes[key] = recipe(self.teachers[run], key[1], bf16, self.sample)
        return self._recipes[key]

    def _ask(self, run: Run, pupils: Sequence[Pupil]) -> None:
        """One live copy for the students that would have the same one alone, which are nearly always all."""
        companies: dict[Recipe, list[Pupil]] = {}
        for pupil in pupils:
            how = self.recipe(run, pupil.taps.teacher, pupil.student.bf16)
            companies.setdefault(how, []).append(pupil)
        for how, company in companies.items():
            layers = [layer for pupil in company for layer in pupil.taps.teacher]
            views = [view for pupil in company for view in pupil.taps.views]
            live = self._live(run, how, layers, views)
            self.console.say_once(
                f"the teacher '{run.name}' is asked about every batch, in {live.arithmetic}"
            )
            for pupil in company:
                pupil.student.teachers[pupil.name] = live

    def _live(self, run: Run, how: Recipe, layers: Iterable[str], views: Iterable[str] = ()) -> Teacher:
        """What a teacher says of any batch of the training set: made ready to run often, or cross-fitted."""
        teacher = self.teachers[run]
        if isinstance(teacher, CrossFitted):
            teacher.out_of_fold.tap(views)
            return teacher.out_of_fold
        return Prepared(teacher, how, layers, views)

    # ------------------------------------------------------------------------------------------ tables

    def _look_up(self, run: Run, pupils: Sequence[Pupil]) -> None:
        """Tables for all students of one precision together, made where they are not on the shelf."""
        for bf16 in dict.fromkeys(pupil.student.bf16 for pupil in pupils):
            alike = [pupil for pupil in pupils if pupil.student.bf16 == bf16]
            wanted: list[Table] = ["logits", "pooled"] if any(p.taps.teacher for p in alike) else ["logits"]
            teacher = self.teachers[run]
            found = self.tables(run, wanted, alike[0].student)
            tables = LookedUp(found, teacher.model.pooled, self._heard_of(alike[0].student), teacher.device)
            self.console.say_once(
                f"the teacher '{run.name}' was asked once, in {tables.arithmetic}, and is looked up: "
                f"{' and '.join(found)}, {told_size(sum(one.bytes for one in found.values()))}"
            )
            for pupil in alike:
                pupil.student.teachers[pupil.name] = tables

    def tables(self, run: Run, wanted: Sequence[Table], student: Learner) -> dict[Table, Kept]:
        """A teacher's tables, computed where they are not on the shelf; raises ``StoreError``."""
        keys = {table: self._key(run, table, student) for table in wanted}
        kept = {table: self.shelf.find(key) for table, key in keys.items()}
        if missing := {table: keys[table] for table, one in kept.items() if one is None}:
            try:
                self._compute(run, missing, student)
                kept |= {table: self.shelf.find(key) for table, key in missing.items()}
                if None in kept.values():
                    raise StoreError(f"{self.shelf.folder}: somebody deletes there what was just made")
            except StoreError as error:
                raise StoreError(f"{error}; make room, or ask live: `training.cache: false`") from error
        found = {table: one for table, one in kept.items() if one is not None}
        for table, one in found.items():
            self._demand_fitting(table, one, keys[table], student)
        return found

    def _demand_fitting(self, table: Table, kept: Kept, key: str, student: Learner) -> None:
        """Raises ``DamagedError`` for a table whose hash is right, and which kdrun cannot have made."""
        rows = (self.dataset.copies(student.draw) or 1) * self._heard_of(student)
        array = kept.arrays.get(table, np.empty(0))
        fits = array.dtype == np.float32 and array.ndim == 2 and len(array) == rows
        if table == "logits":
            fits &= array.shape[1:] == (self.dataset.spec.classes,)
        if not fits or kept.about.get("arithmetic") not in get_args(Arithmetic):
            raise foreign(self.shelf.folder / key / "manifest.json", f"no {table} of {rows} samples")

    def _heard_of(self, student: Learner) -> int:
        """The training samples of which a student may hear."""
        return len(self.dataset.labels("train", student.draw.given))

    def _key(self, run: Run, table: Table, student: Learner) -> str:
        """What decides the numbers of a table; labels do not, and which samples there are, their hash says.

        The same inputs to training do not always give the same weights (other threads, a GPU), and of many files only
        some are looked into for the data's identity: so both count by their contents.
        """
        data = self.dataset.identity()
        what: dict[str, Any] = {
            "result_version": RESULT_VERSION,
            "torch": torch.__version__,
            "teacher": run.fingerprint,
            "weights": self._weights(run),
            "data": {key: data[key] for key in data.keys() - STUDENTS_ALONE - {"strong_view", "views"}},
            "samples": self._samples(student.draw.given),
            "device": self.teachers[run].device.type,
            "precision": "bf16" if student.bf16 else "fp32",
            "table": table,
        }
        return fingerprint(what)[:32]

    def _samples(self, given: bool) -> str:
        """SHA-256 of the training samples that teachers or students see."""
        if given not in self._hashes_of_samples:
            self._hashes_of_samples[given] = self.dataset.train_hash(given)
        return self._hashes_of_samples[given]

    def _weights(self, run: Run) -> str:
        """SHA-256 of a teacher's weights."""
        if run not in self._hashes:
            teacher, digest = self.teachers[run], hashlib.sha256()
            states = [teacher.model.state_dict()]
            if isinstance(teacher, CrossFitted):
                states += [one.model.state_dict() for one in teacher.out_of_fold.models]
                states += [{FOLD: teacher.out_of_fold.fold}]
            for state in states:
                for name, tensor in sorted(state.items()):
                    digest.update(name.encode())
                    digest.update(tensor.cpu().contiguous().numpy())
            self._hashes[run] = digest.hexdigest()
        return self._hashes[run]

    def _compute(self, run: Run, missing: Mapping[Table, str], student: Learner) -> None:
        """Ask a teacher about every copy of every training sample; raises ``StoreError``, ``TrainingError``."""
        copies, samples = self.dataset.copies(student.draw) or 1, self._heard_of(student)
        pooled = self.teachers[run].model.pooled
        live = self._live(run, self.recipe(run, [pooled], student.bf16), [pooled])

        def parts(batch: Batch) -> dict[Table, Tensor]:
            said = live(batch)
            both: dict[Table, Tensor] = {"logits": said.logits}
            return both | {"pooled": said.features[pooled]} if "pooled" in missing else both

        first = next(self.dataset.copy(0, CHUNK, student.draw.given))
        shapes = {table: (copies * samples, *part.shape[1:]) for table, part in parts(first).items()}
        forms: dict[str, Form] = {table: (shapes[table], "float32") for table in missing}
        asked = copies * samples
        self.console.say(
            f"the teacher '{run.name}' is asked once about {asked:,} samples: {told_size(shelf.size(forms))} to keep "
            f"in {self.shelf.folder}"
        )
        bar = f"asking the teacher '{run.name}'"
        with ExitStack() as made, self.console.training(bar, copies * -(-samples // CHUNK), 0, copies):
            arrays = {}
            for table, key in missing.items():
                about = {
                    "what": f"{table} of the teacher '{run.name}'",
                    "arithmetic": live.arithmetic,
                    "teacher": run.fingerprint,
                }
                arrays[table] = made.enter_context(self.shelf.make(key, {table: forms[table]}, about))[table]
            for number in range(copies):
                for batch in self.dataset.copy(number, CHUNK, student.draw.given):
                    said = parts(batch)
                    rows = (number * samples + batch.index).cpu().numpy()
                    for table, array in arrays.items():
                        _demand_finite(said[table], batch, run.name)
                        array[rows] = said[table].cpu().numpy()
                    self.console.step(len(batch))


def _remembers(run: Run) -> bool:
    """Whether it, or a member of it, was fitted at once to samples of which it is asked as if it had not seen them."""
    if run.way == "combined":
        return any(member.way == "fitted" or _remembers(member) for member in run.teachers.values())
    return run.way == "read" and bool(registry.MODELS[run.model.kind].fitted)


def _demand_finite(said: Tensor, batch: Batch, name: str) -> None:
    if samples := not_finite(said, batch):
        raise TrainingError(
            f"the output of the teacher '{name}' is not finite for the training samples {samples}; "
            "mend the data or the teacher's weights"
        )
