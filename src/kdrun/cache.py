"""What teachers say of a batch: asked live, or looked up where every pass shows them the same views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdrun.console import Console
from kdrun.contracts import Arithmetic, Batch, Dataset, Outputs, Taps
from kdrun.data.files import memory_limit
from kdrun.errors import StoreError, TrainingError
from kdrun.models import Frozen, Prepared, foldable
from kdrun.plan import RESULT_VERSION, Run
from kdrun.store import Form, Kept, Shelf, fingerprint, shelf
from kdrun.student import Student

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
        fits = sum(kept.bytes for kept in tables.values()) <= memory_limit(device)
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

    student: Student
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

    def staff(self, students: Mapping[Student, Run]) -> None:
        """Set the ``teachers`` of all students, whose runs are given."""
        small = {student for student, own in students.items() if self._can_look_up(student, own)}
        for run in self.teachers:
            pupils = [
                Pupil(student, name, student.objective.wants(name))
                for student, own in students.items()
                for name, teacher in own.teachers.items()
                if teacher is run
            ]
            self._look_up(run, [pupil for pupil in pupils if pupil.student in small])
            self._ask(run, [pupil for pupil in pupils if pupil.student not in small])

    def _can_look_up(self, student: Student, own: Run) -> bool:
        """Whether tables can answer in the place of all its teachers."""
        if not student.training.cache or self.dataset.copies(student.draw) is None:
            return False
        return self.tables_suffice(student, own)

    def tables_suffice(self, student: Student, own: Run) -> bool:
        """Whether its losses look at nothing that a table does not hold, whatever the views are."""
        wants = [(run, student.objective.wants(name)) for name, run in own.teachers.items()]
        return all(
            not taps.views
            and self._small(run).issuperset(taps.teacher)
            and self.teachers[run].view == self.dataset.spec.default_view
            for run, taps in wants
        )

    def _small(self, run: Run) -> set[str]:
        """The layers of which there can be a table: the embedding, unless a folded teacher would not show it."""
        return {self.teachers[run].model.pooled} - self._foldable(run)

    def _foldable(self, run: Run) -> set[str]:
        teacher = self.teachers[run]
        with torch.no_grad():
            return set(foldable(teacher.model, self._sample.views[teacher.view][:2]))

    @cached_property
    def _sample(self) -> Batch:
        return next(iter(self.dataset.split("train", batch_size=SAMPLE)))

    def _ask(self, run: Run, pupils: Sequence[Pupil]) -> None:
        """One live copy for the students that leave the same layers unfolded, which for nearly all are none."""
        companies: dict[frozenset[str], list[Pupil]] = {}
        for pupil in pupils:
            whole = self._foldable(run).intersection(pupil.taps.teacher) if pupil.taps.teacher else ()
            companies.setdefault(frozenset(whole), []).append(pupil)
        for company in companies.values():
            layers = [layer for pupil in company for layer in pupil.taps.teacher]
            views = [view for pupil in company for view in pupil.taps.views]
            live = Prepared(self.teachers[run], layers, views, company[0].student.bf16, self._sample)
            self.console.say_once(
                f"the teacher '{run.name}' is asked about every batch, in {live.arithmetic}"
            )
            for pupil in company:
                pupil.student.teachers[pupil.name] = live

    # ------------------------------------------------------------------------------------------ tables

    def _look_up(self, run: Run, pupils: Sequence[Pupil]) -> None:
        """Tables for all students together, made where they are not on the shelf."""
        if not pupils:
            return
        wanted: list[Table] = ["logits", "pooled"] if any(p.taps.teacher for p in pupils) else ["logits"]
        student, teacher = pupils[0].student, self.teachers[run]
        found = self.tables(run, wanted, student)
        tables = LookedUp(found, teacher.model.pooled, len(self.dataset.labels("train")), teacher.device)
        self.console.say_once(
            f"the teacher '{run.name}' was asked once, in {tables.arithmetic}, and is looked up: "
            f"{' and '.join(found)}, {sum(one.bytes for one in found.values()) / 1e6:,.1f} MB"
        )
        for pupil in pupils:
            pupil.student.teachers[pupil.name] = tables

    def tables(self, run: Run, wanted: Sequence[Table], student: Student) -> dict[Table, Kept]:
        """A teacher's tables, computed where they are not on the shelf; raises ``StoreError``."""
        keys = {table: self._key(run, table, student.bf16) for table in wanted}
        kept = {table: self.shelf.find(key) for table, key in keys.items()}
        if missing := {table: keys[table] for table, one in kept.items() if one is None}:
            try:
                self._compute(run, missing, student)
            except StoreError as error:
                raise StoreError(f"{error}; make room, or ask live: `training.cache: false`") from error
            kept |= {table: self.shelf.find(key) for table, key in missing.items()}
        return {table: one for table, one in kept.items() if one is not None}

    def _key(self, run: Run, table: Table, bf16: bool) -> str:
        """What decides the numbers of a table; labels do not."""
        data = self.dataset.identity()
        what: dict[str, Any] = {
            "result_version": RESULT_VERSION,
            "torch": torch.__version__,
            "teacher": run.fingerprint,
            "data": {key: data[key] for key in data.keys() - {"labels_per_class", "strong_view"}},
            "device": self.teachers[run].device.type,
            "precision": "bf16" if bf16 else "fp32",
            "table": table,
        }
        return fingerprint(what)[:32]

    def _compute(self, run: Run, missing: Mapping[Table, str], student: Student) -> None:
        """Ask a teacher about every copy of every training sample; raises ``StoreError``, ``TrainingError``."""
        copies, samples = self.dataset.copies(student.draw) or 1, len(self.dataset.labels("train"))
        pooled = self.teachers[run].model.pooled
        live = Prepared(self.teachers[run], [pooled], [], student.bf16, self._sample)

        def parts(batch: Batch) -> dict[Table, Tensor]:
            said = live(batch)
            return {"logits": said.logits, "pooled": said.features[pooled]}

        shapes = {table: (copies * samples, *part.shape[1:]) for table, part in parts(self._sample).items()}
        forms: dict[str, Form] = {table: (shapes[table], "float32") for table in missing}
        title = (
            f"asking the teacher '{run.name}' once about {copies * samples:,} samples, "
            f"{shelf.size(forms) / 1e6:,.1f} MB to keep"
        )
        with ExitStack() as made, self.console.training(title, copies * -(-samples // CHUNK), 0, copies):
            arrays = {}
            for table, key in missing.items():
                about = {"what": f"{table} of the teacher '{run.name}'", "arithmetic": live.arithmetic}
                arrays[table] = made.enter_context(self.shelf.make(key, {table: forms[table]}, about))[table]
            for number in range(copies):
                for batch in self.dataset.copy(number, CHUNK):
                    said = parts(batch)
                    rows = (number * samples + batch.index).cpu().numpy()
                    for table, array in arrays.items():
                        _demand_finite(said[table], batch, run.name)
                        array[rows] = said[table].cpu().numpy()
                    self.console.step(len(batch))


def _demand_finite(said: Tensor, batch: Batch, name: str) -> None:
    bad = ~said.isfinite().flatten(1).all(dim=1)
    if bad.any():
        samples = ", ".join(str(i) for i in batch.index[bad].tolist()[:10])
        raise TrainingError(
            f"the output of the teacher '{name}' is not finite for the training samples {samples}; "
            "mend the data or the teacher's weights"
        )
