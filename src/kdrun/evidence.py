"""The report of a comparison: what it shows beside the rows, read from the finished runs; no torch."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.compare import OUTCOMES, Material, tracks
from kdrun.controls import ALONE, MATCHED
from kdrun.report import figures, learning, table
from kdrun.report.figures import Plot, Returned
from kdrun.report.page import Film, page
from kdrun.report.scales import scale_of
from kdrun.statistics.scores import BINS
from kdrun.store import Result
from kdrun.store.files import write_bytes, write_text
from kdrun.yamlsource import as_yaml

MOST_COMPARED = 30
"""Models of one student that an agreement matrix shows; more could not be read."""
MOST_FILMS, MOST_FILMED = 12, 12 * 2**20
"""Recorded episodes of a report, and their bytes together: a page has to be opened on a phone."""


@dataclass(frozen=True)
class Curve:
    """The training of one method of a student: of each seed (S), a value for each epoch (E).

    ``loss`` is the weighted sum of the terms; ``validation`` the metric on the validation share, None without one;
    ``shares`` of each term in the gradient's norm, the mean over seeds, by the epochs in which it was measured.
    """

    label: str
    loss: np.ndarray
    validation: np.ndarray | None
    shares: dict[str, dict[int, float]]


@dataclass(frozen=True)
class Shown:
    """Of one student of one experiment: its methods' curves, and what its finished runs came to.

    ``returns`` are those of its teachers and its methods where episodes were scored, ``tracks`` of each method and seed
    what it reached in its training where it acted by itself, with the ``target`` that was set. What follows is of test
    samples, and nothing where each run has its own. ``classes`` are those that have test samples; ``gains_by_class`` is
    (M, C), points over alone; ``reliability`` of each label the bins of ``scores.details``, over all seeds;
    ``agreement`` (M, M) the share of equal predictions of the first seed that all have, teachers among them.
    """

    title: str
    metric: str
    curves: list[Curve]
    returns: list[Returned]
    tracks: dict[str, dict[int, learning.Track]] = field(default_factory=dict)
    target: float | None = None
    classes: list[str] = field(default_factory=list)
    gain_labels: list[str] = field(default_factory=list)
    gains_by_class: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    reliability: dict[str, list[list[float]]] = field(default_factory=dict)
    agreement_labels: list[str] = field(default_factory=list)
    agreement: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))


@dataclass(frozen=True)
class Evidence:
    """All of it, with where the experiments come from."""

    students: list[Shown]
    films: list[Film]
    provenance: dict[str, Any]
    configs: dict[str, Any]


def plots(compared: dict[str, Any], students: Sequence[Shown]) -> Iterator[Plot]:
    """The figures of a comparison."""
    look = figures.looks(compared["rows"])
    several = len({row["experiment"] for row in compared["rows"]}) > 1
    tables = table.tables(compared)
    for number, one in enumerate(tables, start=1):
        rows = [
            dict(row, model=f"{row['experiment']}/{row['model']}" if several else row["model"])
            for row in one.rows
        ]
        for plot in (*figures.gains(rows), *figures.tradeoffs(rows)):
            yield plot if len(tables) == 1 else plot._replace(name=f"{plot.name}-{number}")
    for shown in students:
        title, end = (f"{shown.title}: ", f"-{shown.title.replace('/', '-')}") if shown.title else ("", "")
        trained = [curve for curve in shown.curves if curve.label != MATCHED]
        missing = "; without matched-cost, which takes other epochs" * (len(trained) < len(shown.curves))
        losses = [(curve.label, curve.loss) for curve in trained]
        scale = scale_of(shown.metric)
        validated = [
            (curve.label, scale.factor * curve.validation)
            for curve in trained
            if curve.validation is not None
        ]
        yield from figures.returns(title, shown.returns, f"returns{end}", look)
        yield from learning.curves(title, shown.tracks, shown.target, f"learning{end}", look)
        yield from figures.curves(title, losses, "training loss", f"loss{end}", look, missing)
        what = f"validation {scale.score}{scale.unit}"
        yield from figures.curves(title, validated, what, f"validation{end}", look, missing)
        shares = {curve.label: curve.shares for curve in trained if curve.shares}
        yield from figures.shares(title, shares, f"shares{end}")
        yield from figures.by_class(
            title, shown.gain_labels, shown.classes, shown.gains_by_class, f"classes{end}"
        )
        yield from figures.reliability(title, shown.reliability, f"reliability{end}", look)
        yield from figures.agreement(title, shown.agreement_labels, shown.agreement, f"agreement{end}")


def write_report(
    folder: Path, compared: dict[str, Any], parts: Sequence[Material], mixed: bool, to: Path | None = None
) -> None:
    """Write ``report.html`` into a folder, and each figure as PNG and PDF into another one where that is wanted."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where it keeps its fonts concerns nobody
    with figures.own_style():
        _write_report(folder, compared, parts, mixed, to)


def _write_report(
    folder: Path, compared: dict[str, Any], parts: Sequence[Material], mixed: bool, to: Path | None
) -> None:
    found = evidence(parts)
    drawn = list(plots(compared, found.students))
    configs = {name: as_yaml(config) for name, config in found.configs.items()}
    write_text(folder / "report.html", page(compared, drawn, found.provenance, configs, mixed, found.films))
    if to is not None:
        for plot in drawn:
            for format_ in ("png", "pdf"):
                buffer = io.BytesIO()
                with figures.any_script():
                    plot.figure.savefig(buffer, format=format_, dpi=200, facecolor="white")
                write_bytes(to / f"{plot.name}.{format_}", buffer.getvalue())


def evidence(parts: Sequence[Material]) -> Evidence:
    """What the finished runs of some experiments show."""
    students = []
    named = {part.resolved["name"]: part for part in parts}
    for part in parts:
        names = dict.fromkeys(run["name"] for run in part.runs if run["role"] == "student")
        every = {run["name"] for run in part.resolved["runs"] if run["role"] == "student"}
        students += [_shown(part, name, len(named) > 1, len(every) > 1) for name in names]
    return Evidence(
        students,
        _films(parts),
        {
            name: part.store.read(part.store.root / name / "provenance.json") or {}
            for name, part in named.items()
        },
        {name: part.resolved["config"] for name, part in named.items()},
    )


def _shown(part: Material, student: str, several_experiments: bool, several_students: bool) -> Shown:
    finished: dict[str, dict[int, Result]] = {}
    for run in part.runs:
        if run["name"] == student and run["role"] == "student" and run["fingerprint"] in part.results:
            finished.setdefault(run["method"], {})[run["seed"]] = part.results[run["fingerprint"]]
    title = "/".join([part.resolved["name"]] * several_experiments + [student] * several_students)
    curves = [curve for method, runs in finished.items() if (curve := _curve(part, method, runs)) is not None]
    if part.of_episodes:
        runs = [run for run in part.runs if (run["role"], run["name"]) == ("student", student)]
        by_method = {method: [run for run in runs if run["method"] == method] for method in finished}
        found = {method: tracks(part, own) for method, own in by_method.items()}
        return Shown(title, part.metric, curves, _returned(part, finished), found, part.target)
    gains, classes = _gains_by_class(finished), _classes(finished)
    tested = [*map(bool, np.bincount(part.labels, minlength=len(classes)))] if finished else []
    agreement = _agreement(part, student, finished)
    return Shown(
        title,
        part.metric,
        curves,
        [],
        {},
        None,
        [name for name, there in zip(classes, tested, strict=True) if there],
        list(gains),
        np.array([gain[tested] for gain in gains.values()]),
        {method: bins for method, runs in finished.items() if (bins := _pooled(list(runs.values())))},
        *agreement,
    )


def _returned(part: Material, finished: dict[str, dict[int, Result]]) -> list[Returned]:
    """The returns of the teachers and of a student's methods, each over all of its seeds."""
    runs: dict[str, list[Result]] = {}
    for run in part.runs:
        if run["role"] == "teacher" and run["fingerprint"] in part.results:
            runs.setdefault(run["name"], []).append(part.results[run["fingerprint"]])
    own = {method: list(seeds.values()) for method, seeds in finished.items()}
    found = []
    for label, results in [*runs.items(), *own.items()]:
        episodes = [result.predictions() for result in results]
        found.append(
            Returned(
                label,
                np.concatenate([one[OUTCOMES[part.metric]] for one in episodes]),
                float(np.mean([one["truncated"] for one in episodes])),
            )
        )
    return found


def _films(parts: Sequence[Material]) -> list[Film]:
    """A recorded episode of each teacher, and of each method's first seed, as far as there is room for them."""
    films: list[Film] = []
    several = len({part.resolved["name"] for part in parts}) > 1
    for part in parts:
        seen = set()
        for run in part.runs:
            who = run["role"], run["name"], run["method"]
            result = part.results.get(run["fingerprint"])
            if who in seen or result is None or (gif := result.episode()) is None:
                continue
            seen.add(who)
            if len(films) < MOST_FILMS and sum(len(film.gif) for film in films) + len(gif) <= MOST_FILMED:
                films.append(Film(_caption(part, run, result, several), gif))
    return films


def _caption(part: Material, run: dict[str, Any], result: Result, several: bool) -> str:
    """Whose episode it is, and how its agent does in all of them."""
    name = " ".join(filter(None, [run["name"], run["method"]]))
    whose = f"{part.resolved['name']}/" * several + name
    score = part.scale.shown(result.manifest["scores"][part.metric])
    return f"{whose}, seed {run['seed']}, whose {part.scale.metric} is {score}"


def _classes(finished: dict[str, dict[int, Result]]) -> list[str]:
    """The names of the classes."""
    return next(
        (run.manifest["details"]["classes"] for runs in finished.values() for run in runs.values()), []
    )


def _curve(part: Material, method: str, runs: dict[int, Result]) -> Curve | None:
    logs = [log for run in runs.values() if (log := run.metrics())]
    if not logs:
        return None
    loss = np.array([[_loss(line) for line in log] for log in logs])
    scored = [(line["validation"] or {}).get(part.metric) is not None for log in logs for line in log]
    return Curve(
        method,
        loss,
        np.array([[line["validation"][part.metric] for line in log] for log in logs])
        if all(scored)
        else None,
        _shares(logs),
    )


def _shares(logs: Sequence[Sequence[dict[str, Any]]]) -> dict[str, dict[int, float]]:
    """Of each term the epochs, counted from 1, in which all seeds measured its share, and their mean."""
    found: dict[str, dict[int, float]] = {}
    for lines in zip(*logs, strict=True):
        for term in lines[0]["terms"]:
            seeds = [line["terms"][term]["gradient_share"] for line in lines]
            if None not in seeds:
                found.setdefault(term, {})[lines[0]["epoch"] + 1] = float(np.mean(seeds))
    return found


def _loss(line: dict[str, Any]) -> float:
    """The weighted sum of an epoch's terms, of those that count."""
    return float(
        sum(term["value"] * term["weight"] for term in line["terms"].values() if term["value"] is not None)
    )


def _gains_by_class(finished: dict[str, dict[int, Result]]) -> dict[str, np.ndarray]:
    """Of each method the mean gain over alone in each class (C,), in points, over the seeds that both have."""
    alone = finished.get(ALONE, {})
    found = {}
    for method, runs in finished.items():
        seeds = runs.keys() & alone.keys()
        if method != ALONE and seeds:
            own, control = (
                np.array([of[seed].manifest["details"]["by_class"] for seed in sorted(seeds)], float)
                for of in (runs, alone)
            )
            found[method] = 100 * (own - control).mean(axis=0)
    return found


def _pooled(seeds: Sequence[Result]) -> list[list[float]]:
    """The bins of several runs as those of all their samples together."""
    bins = np.zeros((BINS, 3))
    for result in seeds:
        for count, confidence, accuracy in result.manifest["details"]["reliability"]:
            place = min(int(confidence * BINS), BINS - 1)
            bins[place] += np.array([count, count * confidence, count * accuracy])
    return [[n, c / n, a / n] for n, c, a in bins.tolist() if n]


def _agreement(
    part: Material, student: str, finished: dict[str, dict[int, Result]]
) -> tuple[list[str], np.ndarray]:
    """The labels (M) of teachers and methods, and the share of test samples on which each two say the same (M, M)."""
    models = {
        run["name"]: run["fingerprint"]
        for run in reversed(part.runs)
        if run["role"] == "teacher" and run["fingerprint"] in part.results
    }
    models = dict(reversed(models.items()))
    shared = set.intersection(*(set(runs) for runs in finished.values())) if finished else set()
    if shared:
        models |= {method: runs[min(shared)].manifest["fingerprint"] for method, runs in finished.items()}
    names = list(models)[:MOST_COMPARED]
    said = np.array([part.outcomes(models[name]) for name in names])
    return names, (said[:, None] == said[None]).mean(axis=2) if names else np.zeros((0, 0))
