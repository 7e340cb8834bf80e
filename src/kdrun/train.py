"""The only gradient loop: one pass of data and teachers feeds every student of a group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from kdrun.console import Console
from kdrun.contracts import Batch, Dataset, Draw, Outputs, Predictor
from kdrun.errors import TrainingError
from kdrun.evaluate import score
from kdrun.student import REPORT_EVERY, Student


def fit(
    students: Sequence[Student],
    teachers: Mapping[str, Predictor],
    dataset: Dataset,
    draw: Draw,
    epochs: int,
    console: Console,
    pause: Callable[[], None],
) -> None:
    """Train students in lock step: every batch is drawn once and each teacher sees it once.

    Students may stand at different steps (they were stopped, or joined later): each takes part from its own
    step on. ``pause`` is called between two steps, when all state is consistent; it saves and may raise.
    A student with a ``failure`` drops out; raises ``TrainingError`` where a batch or a teacher is not finite.
    """
    steps = dataset.steps(draw)
    start = min(student.position for student in students)
    running = [student for student in students if student.failure is None]
    flags: list[Tensor] = []
    for epoch in range(start // steps, epochs):
        dataset.refresh(epoch, running)
        first = max(start - epoch * steps, 0)
        batches = dataset.batches(draw, epoch, first)
        for step in range(first, steps):
            pause()
            began = time.perf_counter()
            batch = next(batches)
            taught = {name: teacher(batch) for name, teacher in teachers.items()}
            flags.append(_finite(batch, taught))
            learning = [s for s in running if s.position == epoch * steps + step]
            share = (time.perf_counter() - began) / max(len(learning), 1)
            for student in learning:
                student.step(batch, taught)
                student.seconds += share
            console.step(len(batch) * len(learning))
            if len(flags) == REPORT_EVERY or step == steps - 1:
                began = time.perf_counter()
                _demand_finite(flags, teachers, dataset, draw, epoch, step)
                for student in learning:  # a GPU is only waited for here
                    student.seconds += (time.perf_counter() - began) / len(learning)
                running = [student for student in running if _healthy(student, console)]
                if not running:
                    return
        for student in running:
            if student.position == (epoch + 1) * steps and student.epochs_closed == epoch:
                student.close_epoch(_validation(student, dataset), dataset.config.metric)
        console.epoch(epoch + 1, epochs, _told(running))
    pause()


def _healthy(student: Student, console: Console) -> bool:
    student.flush()
    if student.failure is not None:
        console.warn(f"{student.title}: stopped: {student.failure}")
    return student.failure is None


def _validation(student: Student, dataset: Dataset) -> dict[str, float] | None:
    if dataset.config.validation == 0:
        return None
    return score(student.exported(), dataset.split("validation"))


def _told(students: Sequence[Student]) -> str:
    """The epoch's mean loss of each student, for the line that the user reads."""
    words = []
    for student in students[:4]:
        terms = student.metrics[-1]["terms"].values() if student.metrics else []
        loss = sum(term["value"] * term["weight"] for term in terms if term["value"] is not None)
        words.append(f"{student.title.split('/')[-2]} {loss:.4f}" if "/" in student.title else f"{loss:.4f}")
    return "; loss: " + ", ".join(words) + (", …" if len(students) > 4 else "") if words else ""


# ----------------------------------------------------------------------------------- what is not finite


def _parts(batch: Batch, taught: Mapping[str, Outputs]) -> Iterator[tuple[str, Tensor]]:
    for name, view in batch.views.items():
        yield f"the input '{name}'", view
    seen = [(name, outputs) for name, outputs in taught.items()]
    seen += [(name, outputs.views[view]) for name, outputs in taught.items() for view in outputs.views]
    for name, outputs in seen:
        yield f"the output of the teacher '{name}'", outputs.logits
        for layer, feature in outputs.features.items():
            yield f"the layer '{layer}' of the teacher '{name}'", feature


def _finite(batch: Batch, taught: Mapping[str, Outputs]) -> Tensor:
    """Whether inputs and teachers are finite, left on the device (a sum shows every value that is not)."""
    return torch.stack([part.sum() for _, part in _parts(batch, taught)]).isfinite().all()


def _demand_finite(
    flags: list[Tensor],
    teachers: Mapping[str, Predictor],
    dataset: Dataset,
    draw: Draw,
    epoch: int,
    last: int,
) -> None:
    """Read the flags of the last steps; raises ``TrainingError`` with the samples of the first bad batch."""
    fine = torch.stack(flags).tolist()
    flags.clear()
    if all(fine):
        return
    step = last - len(fine) + 1 + fine.index(False)
    batch = next(dataset.batches(draw, epoch, step))
    taught = {name: teacher(batch) for name, teacher in teachers.items()}
    for what, part in _parts(batch, taught):
        bad = ~part.flatten(1).isfinite().all(dim=1)
        if bad.any():
            samples = ", ".join(str(i) for i in batch.index[bad].tolist()[:10])
            raise TrainingError(
                f"{what} is not finite in epoch {epoch + 1}, step {step + 1} of it, for the training samples "
                f"{samples}; mend the data or the teacher's weights"
            )
