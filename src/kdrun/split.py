"""Groups that fit: what training takes of the memory, and the parts of a group that would take too much."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch

from kdrun import memory
from kdrun.errors import OutOfMemory, TrainingError
from kdrun.machine import told_size
from kdrun.optimization import Training
from kdrun.plan import Kin, Run
from kdrun.rehearsal import FLOAT_BYTES, Rehearsed

COPIES = 4
"""Of each weight while it trains: itself, its gradient and up to two of the optimizer's."""
TEACHER_COPIES = 2
"""Of a teacher's weights: as they were trained, and made ready to run often."""

Figures = Mapping[Kin, Rehearsed]


def figures(rehearsed: Iterable[Rehearsed]) -> Figures:
    """What dry steps showed, by what runs have in common."""
    return {one.run.kin: one for one in rehearsed}


def needed(group: Sequence[Run], figures: Figures) -> int:
    """Bytes that runs take that train in lock step, as estimated: without the data, and without torch itself.

    Each step frees what it kept for its gradients, so only the largest one counts; stacked students take one step.
    """
    own = [figures[run.kin] for run in group]
    weights = sum(_copies(one.run.training) * (one.parameters + one.adapter_parameters) for one in own)
    teachers = {
        teacher.fingerprint: TEACHER_COPIES * figures[run.kin].teacher_parameters[name]
        for run in group
        for name, teacher in run.teachers.items()
    }
    steps = [one.activation_bytes * one.run.training.batch_size // one.samples for one in own]
    stacked = sum(step for one, step in zip(own, steps, strict=True) if one.stackable)
    remembered = sum(one.remembered_bytes for one in own)
    return FLOAT_BYTES * (weights + sum(teachers.values())) + remembered + max(*steps, stacked)


def _copies(training: Training) -> int:
    """The average of the weights and the best ones are further ones."""
    return COPIES + (training.ema is not None) + (training.selection == "best-on-validation")


def fitting(
    group: list[Run], rehearsed: Iterable[Rehearsed], device: torch.device, say: Callable[[str], None]
) -> Iterator[list[Run]]:
    """A group whole where it fits into the free memory, and else in the fewest parts that do; says so.

    Parts keep the order and are alike in size; each is to be trained before the next is asked for. A student that
    needs more even alone is a part by itself, after the others.
    """
    known = figures(rehearsed)
    if fits(group, known, memory.free_memory(device)):
        yield group
        return
    memory.release()
    for part in parts(group, known, memory.free_memory(device), say):
        yield part
        memory.release()


def fits(group: Sequence[Run], known: Figures, free: int) -> bool:
    """Whether runs fit together; those that take their weights from a file are not rehearsed, and do."""
    return any(run.kin not in known for run in group) or needed(group, known) <= free


def parts(group: list[Run], known: Figures, free: int, say: Callable[[str], None]) -> list[list[Run]]:
    """A group in the fewest parts of which each fits, as ``fitting`` gives them; says so."""
    if fits(group, known, free):
        return [group]
    large = [run for run in group if needed([run], known) > free]
    found = _fewest([run for run in group if run not in large], known, free) + [[run] for run in large]
    if len(found) > 1:
        size = told_size(needed(group, known))
        say(
            f"{len(group)} {group[0].role}s in {len(found)} groups: together they need about {size}, "
            f"and {told_size(free)} are free"
        )
    for run in large:
        say(
            f"{run.title}: needs about {told_size(needed([run], known))} even alone, and {told_size(free)} are free; "
            "it is tried anyway, since this is an estimate"
        )
    return found


def _fewest(group: list[Run], known: Figures, free: int) -> list[list[Run]]:
    """Parts alike in size, of which each fits; each of the runs does."""
    for count in range(1, len(group)):
        edges = [len(group) * number // count for number in range(count + 1)]
        several = [group[first:last] for first, last in pairwise(edges)]
        if all(needed(part, known) <= free for part in several):
            return several
    return [[run] for run in group]


def in_halves(
    group: list[Run], train: Callable[[list[Run]], list[TrainingError]], say: Callable[[str], None]
) -> list[TrainingError]:
    """Train a group, and where the memory runs out each half of it by itself; what failed.

    Students whose training was cut off may be in the middle of a step: none of an attempt is used again.
    """
    try:
        return train(group)
    except OutOfMemory as error:
        memory.let_go(error)
        if len(group) == 1:
            return [_told(group[0], error)]
        say(
            f"{error}; the {len(group)} {group[0].role}s that were trained together are trained in two halves, "
            "from their newest checkpoints"
        )
    failures, middle = [], (len(group) + 1) // 2
    for half in (group[:middle], group[middle:]):
        memory.release()
        failures += in_halves(half, train, say)
    return failures


def _told(run: Run, error: OutOfMemory) -> TrainingError:
    """What a student's user can do, with torch's error as the cause."""
    size, precision = run.training.batch_size, run.training.precision
    smaller = [f"`training.batch_size: {size // 2}` instead of {size}"] * (size > 1)
    coarser = ["`training.precision: bf16`"] * (precision == "fp32")
    instead = " or ".join([*smaller, *coarser])
    advice = f"write {instead}, or leave more memory free" if instead else "leave more memory free"
    told = OutOfMemory(f"{run.title}: {error}, and it was trained alone; {advice}")
    told.__cause__ = error.__cause__
    return told


def together(failures: Sequence[TrainingError]) -> TrainingError:
    """One error that says all; the only one keeps its cause."""
    return failures[0] if len(failures) == 1 else TrainingError("\n".join(map(str, failures)))
