"""The only gradient loop: one pass of data and teachers feeds every student of a group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from kdrun.console import Console
from kdrun.contracts import Batch, Dataset, Outputs
from kdrun.errors import TrainingError
from kdrun.evaluate import not_finite, paused, score
from kdrun.stack import teams
from kdrun.student import REPORT_EVERY, Failure, Student, lessons_of


def fit(
    students: Sequence[Student],
    dataset: Dataset,
    epochs: int,
    console: Console,
    pause: Callable[[], None],
) -> None:
    """Train students in lock step: every batch is drawn once, and each teacher sees it once.

    Students may stand at different steps (they were stopped, or joined later): each takes part from its own
    step on. ``pause`` is called between two steps, and between two batches of the validation split, when all state is
    consistent; it saves and may raise.
    A student with a ``failure`` drops out; raises ``TrainingError`` where its batch or a teacher was not finite.
    """
    steps = students[0].steps_per_epoch
    start = min(student.position for student in students)
    running = [student for student in students if student.failure is None]
    learning: list[Student] = []
    for epoch in range(min(student.epochs_closed for student in students), epochs):
        dataset.refresh(epoch, running)
        first = max(start - epoch * steps, 0)
        streams = {draw: dataset.batches(draw, epoch, first) for draw in {s.draw: None for s in running}}
        for step in range(first, steps):
            pause()
            began = time.perf_counter()
            batches = {draw: next(stream) for draw, stream in streams.items()}
            before, learning = learning, [s for s in running if s.position == epoch * steps + step]
            lessons = lessons_of(learning, batches)
            share = (time.perf_counter() - began) / max(len(learning), 1)
            if learning != before:
                formed = teams(learning)
            for team in formed:
                team.step([lessons[student] for student in team.members])
            for student in learning:
                student.seconds += share
            console.step(sum(len(batches[student.draw]) for student in learning))
            if step % REPORT_EVERY == REPORT_EVERY - 1 or step == steps - 1:
                running = [student for student in running if _healthy(student, dataset, console)]
                if not running:
                    return
        for student in running:
            if student.position == (epoch + 1) * steps and student.epochs_closed == epoch:
                student.close_epoch(_validation(student, dataset, pause), dataset.config.metric)
        console.epoch(epoch + 1, epochs, _told(running))
    pause()


def _healthy(student: Student, dataset: Dataset, console: Console) -> bool:
    """Whether a student still learns; what it left on the device is read here, so a GPU is only waited for here."""
    began = time.perf_counter()
    student.flush()
    student.seconds += time.perf_counter() - began
    if student.failure is None:
        return True
    _demand_finite(student, student.failure, dataset)
    console.warn(f"{student.title}: stopped: {student.failure}")
    return False


def _validation(student: Student, dataset: Dataset, pause: Callable[[], None]) -> dict[str, float] | None:
    if dataset.config.validation == 0:
        return None
    held_out, network = dataset.split("validation", given=student.draw.given), student.exported()
    played = dataset.play(network, "validation", pause) if dataset.plays else None
    return score(network, paused(held_out, pause), dataset.config.metric, played)


def _told(students: Sequence[Student]) -> str:
    """The epoch's mean loss of each student, for the line that the user reads."""
    words = []
    for student in students[:4]:
        terms = student.metrics[-1]["terms"].values() if student.metrics else []
        loss = sum(term["value"] * term["weight"] for term in terms if term["value"] is not None)
        *_, method, which = ["", *student.title.split("/")]
        name = f"{method}, {which}" if which.startswith("trial") else method  # trials are of one seed
        words.append(f"{name} {loss:.4f}".strip())
    return "; loss: " + ", ".join(words) + (", …" if len(students) > 4 else "") if words else ""


# ----------------------------------------------------------------------------------- what is not finite


def _demand_finite(student: Student, failure: Failure, dataset: Dataset) -> None:
    """Raises ``TrainingError`` where the batch that stopped a student, or a teacher's answer to it, is to blame."""
    batch = next(dataset.batches(student.draw, failure.epoch, failure.step))
    for what, part in _parts(batch, {name: teacher(batch) for name, teacher in student.teachers.items()}):
        if samples := not_finite(part, batch):
            raise TrainingError(
                f"{what} is not finite in epoch {failure.epoch + 1}, step {failure.step + 1} of it, for the training "
                f"samples {samples}; mend the data or the teacher's weights"
            )


def _parts(batch: Batch, taught: Mapping[str, Outputs]) -> Iterator[tuple[str, Tensor]]:
    for name, view in batch.views.items():
        yield f"the input '{name}'", view
    seen = [(name, outputs) for name, outputs in taught.items()]
    seen += [(name, outputs.views[view]) for name, outputs in taught.items() for view in outputs.views]
    for name, outputs in seen:
        yield f"the output of the teacher '{name}'", outputs.logits
        for layer, feature in outputs.features.items():
            yield f"the layer '{layer}' of the teacher '{name}'", feature
