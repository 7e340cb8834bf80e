"""A comparison in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdrun.statistics.inference import LEVEL, MOST_SEEDS, POWER

FEW_SEEDS = 5
"""Under so many the words say what could have been found at all."""

Row = Mapping[str, Any]


def remarks(rows: Sequence[Row], pairs: Sequence[Row]) -> list[str]:
    """What the rows say, student by student: who is better, who is not distinguishable, and how far to believe it."""
    students = dict.fromkeys((row["experiment"], row["model"]) for row in rows if row["verdict"])
    several, experiments = len(students) > 1, {experiment for experiment, _ in students}
    said = []
    for experiment, student in students:
        own = [
            row
            for row in rows
            if (row["experiment"], row["model"]) == (experiment, student) and row["role"] == "student"
        ]
        name = f"{f'{experiment}/' * (len(experiments) > 1)}{student}: " if several else ""
        of_student = [p for p in pairs if (p["experiment"], p["model"]) == (experiment, student)]
        said += [name + sentence for sentence in _of_student(own, of_student)]
    return [*said, *_of_teachers(rows)]


def _of_student(rows: Sequence[Row], pairs: Sequence[Row]) -> Iterable[str]:
    judged = sorted((row for row in rows if row["verdict"]), key=lambda row: -row["gain"])
    for row in judged:
        yield _verdict(row)
    better = [row["method"] for row in judged if row["verdict"] == "better"]
    if len(better) > 1:
        yield from _among_the_best(better, pairs)
    if len(judged) > 1:
        yield f"verdicts and p-values allow for all {len(judged)} methods (Holm); an interval is its row's own"
    seeds = max(len(row["seeds"]) for row in judged)
    if seeds == 1:
        yield "one seed: intervals and p-values cover the noise of the test samples only, not that of training"
    elif seeds < FEW_SEEDS:
        least = max(row["detectable"] for row in judged if row["detectable"] is not None)
        yield (
            f"with {seeds} seeds and {_counted(len(judged), 'method')} only gains of {points(least)} points and more "
            f"are found in {POWER:.0%} of such comparisons"
        )


def _verdict(row: Row) -> str:
    seeds = len(row["seeds"])
    how = (
        "is not distinguishable from"
        if row["verdict"] == "not distinguishable"
        else f"is {row['verdict']} than"
    )
    found = (
        f"{points(row['gain'], '+')} points {interval(row['gain_interval'], '+')}, {_counted(seeds, 'seed')}"
    )
    sentence = f"{row['method']} {how} alone: {found}"
    if row["verdict"] != "not distinguishable" or seeds == 1 or not row["gain"]:
        return sentence
    needed = row["seeds_needed"]
    return f"{sentence}; {f'{needed}' if needed else f'more than {MOST_SEEDS}'} would tell a difference of this size"


def _among_the_best(better: Sequence[str], pairs: Sequence[Row]) -> Iterable[str]:
    """How the highest of the better methods compares with the others of them."""
    best, *rest = better
    verdicts = {frozenset((pair["first"], pair["second"])): pair["verdict"] for pair in pairs}
    alike = [one for one in rest if verdicts.get(frozenset((best, one))) == "not distinguishable"]
    if alike:
        yield (
            f"{best} and {alike[0]} are not distinguishable"
            if len(alike) == 1
            else f"{listed(alike)} are not distinguishable from {best}"
        )
    if beaten := [one for one in rest if one not in alike]:
        yield f"{best} is better than {listed(beaten)}"


def _of_teachers(rows: Sequence[Row]) -> Iterable[str]:
    """A word on students that all learnt from one training of a teacher."""
    once = {row["model"] for row in rows if row["role"] == "teacher" and len(row["seeds"] or []) == 1}
    used = {
        name
        for row in rows
        if row["verdict"] and row["teacher"] and len(row["seeds"]) > 1
        for name in row["teacher"].split("+")
    }
    if once & used:
        yield (
            f"all students learnt from one training of {listed(sorted(once & used))}: what is said holds for that "
            "teacher (`seeds: each` trains one for each seed)"
        )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: 'a, b and c'."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def points(value: float, sign: str = "") -> str:
    """A difference of shares in percentage points."""
    return f"{100 * value:{sign}.2f}"


def interval(both: Sequence[float], sign: str = "") -> str:
    """An interval in percentage points."""
    return f"[{', '.join(points(end, sign) for end in both)}]"


CONFIDENCE = f"{1 - LEVEL:.0%}"
