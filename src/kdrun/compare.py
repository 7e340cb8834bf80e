"""Finished runs become rows: every student beside its control, with a verdict; no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.controls import ALONE, CONTROLS
from kdrun.errors import StoreError
from kdrun.report import learning, table
from kdrun.report.scales import Scale, scale_of
from kdrun.report.words import remarks
from kdrun.statistics import cascades, inference, returns, scores, summary
from kdrun.statistics.inference import Difference
from kdrun.statistics.resampling import ResampledEpisodes, Resamples, Resampling
from kdrun.store import Result, Store, read_json
from kdrun.store.files import write_text
from kdrun.store.forms import foreign

KEYS = [
    "teacher",
    "seeds",
    "environment",
    "metric",
    "values",
    "mean",
    "std",
    "interval",
    "returns",
    "gain",
    "gain_interval",
    "gain_covers",
    "gain_seeds",
    "gap_closed",
    "gap_interval",
    "verdict",
    "p_value",
    "seeds_needed",
    "detectable",
    "against",
    "agreement",
    "agreement_train",
    "agreement_own",
    "copied_errors",
    "left_out_recall",
    "kl_to_teacher",
    "nll",
    "brier",
    "ece",
    "ece_scaled",
    "parameters",
    "macs",
    "bytes",
    "zeros",
    "origin",
    "latency_ms",
    "throughput",
    "peak_memory_bytes",
    "curve",
    "steps_to_target",
    "train_seconds",
    "train_seconds_all",
    "protocol",
    "tuning_trials",
    "status",
]
"""What a row holds besides role, model and method; null where it does not apply or is not known yet."""
COSTS = ["latency_ms", "throughput", "peak_memory_bytes"]
SCORES = ["nll", "brier", "ece", "ece_scaled"]
LIKENESS = {
    "agreement": ("test", "agreement"),
    "agreement_train": ("train", "agreement"),
    "agreement_own": ("own", "agreement"),
    "copied_errors": ("test", "copied_errors"),
    "kl_to_teacher": ("test", "kl_to_teacher"),
}
"""How alike a student and its teachers are: on which samples, and which figure of these. Its own are an agent's."""
OUTCOMES = {scores.RECALL: "retrieved", scores.RETURN: "returns", scores.NORMALISED: "normalised"}
"""What of a run's predictions its score is made of, where that is not the classes of its largest logits."""

Row = dict[str, Any]
Family = dict[str, list[dict[str, Any]]]
"""A student's runs by method."""


@dataclass(frozen=True)
class Extras:
    """What is reckoned on request only: intervals from resamples, and every pair of methods."""

    bootstrap: bool = False
    pairs: bool = False


@dataclass
class Material:
    """One experiment's runs and results, as ``resolved.json`` and the store hold them.

    Of one that has several environments, those of one ``environment``, or those that are for all of them.
    """

    resolved: dict[str, Any]
    store: Store
    environment: str | None = None
    results: dict[str, Result] = field(default_factory=dict)
    missing: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for run in self.runs:
            result = self.store.find(run["fingerprint"], run["folder"])
            if result is None:
                self.missing.append(run)
            else:
                self.results[run["fingerprint"]] = result
        for result in self.results.values():
            if result.manifest["scores"].get(self.metric) is None:
                raise foreign(result.folder / "result.json", f"no {self.metric}")
            if _asked(result) != _asked(self._first):
                raise foreign(
                    result.folder / "result.json", f"other test samples than in {self._first.folder}"
                )
        path = self.store.root / self.resolved["name"] / "costs.json"
        self.costs = (self.store.read(path) or {"models": {}})["models"]
        self._taken_for: dict[tuple[str, ...], np.ndarray] = {}
        self._outcomes: dict[str, np.ndarray] = {}

    @cached_property
    def runs(self) -> list[dict[str, Any]]:
        """Those of its environment."""
        return [run for run in self.resolved["runs"] if run.get("environment") == self.environment]

    @property
    def metric(self) -> str:
        """What the runs are scored by."""
        return str(self.resolved["metric"]) if self.environment is None else scores.RETURN

    @property
    def target(self) -> float | None:
        """The return that students are to reach, where one is set."""
        found = (self.resolved["config"].get("dataset") or {}).get("target")
        return float(found) if isinstance(found, int | float) else None

    @property
    def unseen(self) -> bool:
        """Whether the test samples are of classes that no model tells apart."""
        return bool(self._first.manifest["details"].get("unseen"))

    @property
    def of_samples(self) -> bool:
        """Whether a score is the mean of what each sample is worth by itself: right or wrong."""
        return scores.METRICS.get(self.metric) is scores.accuracy

    @property
    def of_episodes(self) -> bool:
        """Whether a score is the mean return of episodes; the test samples are then other ones in each run."""
        return self.metric in (scores.RETURN, scores.NORMALISED)

    @property
    def scored_together(self) -> bool:
        """Whether several runs have a score together, from what is stored of each."""
        return self.metric in scores.OF_CLASSES

    @property
    def scale(self) -> Scale:
        """How its scores are told."""
        return scale_of(self.metric)

    @cached_property
    def labels(self) -> np.ndarray:
        """The test labels (N,); those of the first run where each has its own samples."""
        return self._first.predictions()["labels"]

    @property
    def _first(self) -> Result:
        return next(iter(self.results.values()))

    def logits(self, *members: str) -> np.ndarray:
        """The test logits (N, C) of a run, or of several together."""
        said = [self._answers(member, "logits") for member in members]
        return said[0] if len(said) == 1 else scores.ensemble(said)

    def _answers(self, member: str, what: str) -> np.ndarray:
        """What a run says of the test samples; raises ``DamagedError`` where its labels are not those of the others."""
        result = self.results[member]
        found, file = result.predictions(), result.folder / "predictions.npz"
        if not self.of_episodes and not np.array_equal(found["labels"], self.labels):
            raise foreign(file, f"other labels than in {self._first.folder}")
        if what not in found:
            raise foreign(file, f"nothing {what}")
        return found[what]

    def outcomes(self, *members: str) -> np.ndarray:
        """What the score of a run, or of several together, is made of.

        The classes (N,) that they take the test samples for, or that embeddings find; of an agent its returns (E,).
        """
        what = OUTCOMES.get(self.metric)
        if what is None:
            return self.taken_for(*members)
        [member] = members
        if member not in self._outcomes:
            self._outcomes[member] = self._answers(member, what)
        return self._outcomes[member]

    def taken_for(self, *members: str) -> np.ndarray:
        """The classes (N,) of the largest logits of a run, or of several together."""
        if members not in self._taken_for:
            self._taken_for[members] = self.logits(*members).argmax(axis=1)
        return self._taken_for[members]

    def score(self, *members: str) -> float:
        """The score of a run, or of several together."""
        if len(members) == 1:
            return float(self.results[members[0]].manifest["scores"][self.metric])
        return scores.score(self.metric, self.outcomes(*members), self.labels)

    @cached_property
    def left_out(self) -> np.ndarray:
        """The test samples, by their positions, of the classes of which the students saw no sample."""
        names, classes = self.resolved.get("left_out", []), self._first.manifest["details"]["classes"]
        return np.flatnonzero([classes[label] in names for label in self.labels])

    def left_out_recall(self, *members: str) -> float | None:
        """The share of those samples that a run, or several together, recognise; None where there are none."""
        if not len(self.left_out):
            return None
        return float((self.outcomes(*members) == self.labels)[self.left_out].mean())

    def seconds(self, fingerprint: str) -> float:
        """What a run took to train, with its teachers and theirs, and with what it is made of."""
        wanted, total = [fingerprint], 0.0
        runs = {run["fingerprint"]: run for run in self.resolved["runs"]}
        for one in wanted:
            result = self.results.get(one) or self.store.find(one, runs[one]["folder"])
            total += result.manifest["train_seconds"] if result is not None else 0.0
            needed = [*runs[one]["teachers"].values(), runs[one].get("origin")]
            wanted += [other for other in needed if other is not None and other not in wanted]
        return total

    @cached_property
    def step(self) -> float:
        """The most that one test sample can change a score by; of episodes what one reward more or less does."""
        cases = int(self._first.manifest["protocol"]["test_samples"])
        if self.of_samples:
            return 1 / cases
        if self.of_episodes:
            return min(map(returns.reward_step, self._outcomes_apart())) / cases
        counts = np.bincount(self.labels)
        return float(1 / ((counts > 0).sum() * counts[counts > 0].min()))

    def _outcomes_apart(self) -> Iterator[list[np.ndarray]]:
        """The outcomes of all runs in each environment, whose returns are on scales of their own."""
        if self.metric != scores.NORMALISED:
            yield [*map(self.outcomes, self.results)]
            return
        first = self._answers(next(iter(self.results)), "environment")
        for name in dict.fromkeys(first):
            yield [self.outcomes(run)[self._answers(run, "environment") == name] for run in self.results]

    @cached_property
    def resamples(self) -> Resampling:
        """Resamples of the test set, or of the evaluation episodes, the same ones for all runs."""
        if self.of_episodes:
            return ResampledEpisodes(len(self.outcomes(next(iter(self.results)))))
        return Resamples(self.labels, self.metric)


def _asked(result: Result) -> tuple[object, ...]:
    """What a result says of the samples that it was scored on."""
    protocol = result.manifest["protocol"]
    return protocol["test_samples"], protocol["test_sha256"], result.manifest["details"]["classes"]


def materials(store: Store, names: Iterable[str]) -> list[Material]:
    """What is stored of some experiments; raises ``StoreError`` where one was never begun."""
    found = []
    for name in names:
        path = store.root / name / "resolved.json"
        if not path.is_file():
            raise StoreError(
                f"{path}: is not there, so '{name}' was never begun here; run it without --no-train"
            )
        resolved = read_json(path)
        if resolved["name"] != name:  # it would be written where that one lies
            raise foreign(path, f"it is of '{resolved['name']}'")
        environments = dict.fromkeys(run.get("environment") for run in resolved["runs"])
        found += [Material(resolved, store, environment) for environment in environments]
    return found


def comparison(
    parts: Sequence[Material],
    extras: Extras = Extras(),  # frozen
    wanted: Callable[[Row], bool] = lambda row: True,
) -> dict[str, Any]:
    """The comparison of one or several experiments, as ``comparison.json`` holds it; the rows that are wanted."""
    rows = [row for part in parts for row in _rows(part, extras) if wanted(row)]
    pairs = [pair for part in parts for pair in _pairs(part)]
    students = [row["protocol"] for row in rows if row["protocol"] and row["role"] in ("control", "student")]
    shared = {
        key: value
        for key, value in (students or [{}])[0].items()
        if all(one.get(key) == value for one in students)
    }
    name = "+".join(dict.fromkeys(part.resolved["name"] for part in parts))
    compared = {"name": name, "protocol": shared, "rows": rows, "remarks": remarks(rows, pairs)}
    return compared | ({"pairs": pairs} if extras.pairs else {})


def write(store: Store, compared: dict[str, Any], several: bool, mixed: bool = False) -> Path:
    """Write ``comparison.json``, ``.md`` and ``.csv``; the folder they are in."""
    folder = store.root / (f"compare-{compared['name']}" if several else compared["name"])
    write_text(folder / "comparison.json", json.dumps(compared, indent=1, allow_nan=False) + "\n")
    write_text(folder / "comparison.md", table.markdown(compared, mixed))
    write_text(folder / "comparison.csv", table.csv_text(compared))
    return folder


def _rows(part: Material, extras: Extras) -> list[Row]:
    """Teachers, ensembles, then every student with its controls first."""
    teachers: dict[str, list[dict[str, Any]]] = {}
    for run in part.runs:
        if run["role"] == "teacher":
            teachers.setdefault(run["name"], []).append(run)
    by_role = sorted(teachers.values(), key=lambda runs: runs[0].get("combined") is not None)
    rows = [_teacher_row(part, runs) for runs in by_role]
    rows += [_ensemble_row(part, names) for names in part.resolved["ensembles"]]
    for family in _families(part).values():
        own = {method: _student_row(part, runs) for method, runs in family.items()}
        _set_beside_control(part, family, own, extras)
        _set_against_controls(part, family, own)
        _set_steps_to_target(part, family, own)
        rows += sorted(own.values(), key=lambda row: row["role"] != "control")
    return rows


def _families(part: Material) -> dict[str, Family]:
    """Of each student the runs of each method."""
    families: dict[str, Family] = {}
    for run in part.runs:
        if run["role"] == "student":
            families.setdefault(run["name"], {}).setdefault(run["method"], []).append(run)
    return families


def _blank(part: Material, role: str, model: str, method: str | None) -> Row:
    """A row with every key of the format, null where nothing is known."""
    who = {"experiment": part.resolved["name"], "role": role, "model": model, "method": method}
    return who | dict.fromkeys(KEYS) | {"metric": part.metric, "environment": part.environment}


def _filled(part: Material, row: Row, runs: Sequence[dict[str, Any]]) -> Row:
    """What is known of every kind of trained row: scores over seeds, size and cost."""
    done = [run for run in runs if run["fingerprint"] in part.results]
    failed = any(part.store.failure(run["fingerprint"], run["folder"]) for run in runs if run not in done)
    row["status"] = "finished" if len(done) == len(runs) else "failed" if failed else "unfinished"
    row["seeds"] = [run["seed"] for run in done]
    manifests = [part.results[run["fingerprint"]].manifest for run in done]
    _summarise(row, [manifest["scores"] for manifest in manifests])
    if part.of_episodes and done:
        resampled = [part.resamples.scores(part.outcomes(run["fingerprint"])) for run in done]
        row["interval"] = list(part.resamples.of_mean(resampled))
        row["returns"] = _returns(part, [manifest["scores"] for manifest in manifests])
    row["left_out_recall"] = _left_out_recall(part, [(run["fingerprint"],) for run in done])
    row |= {key: part.costs.get(runs[0]["model"], {}).get(key) for key in COSTS}
    if (origin := runs[0].get("origin")) is not None:
        row["origin"] = next(
            f"{run['name']}/{run['method']}"
            for run in part.runs
            if run["fingerprint"] == origin and run["role"] == "student"
        )
    if manifests:
        first = manifests[0]
        row["train_seconds"] = summary.mean([manifest["train_seconds"] for manifest in manifests])
        row["train_seconds_all"] = summary.mean([part.seconds(run["fingerprint"]) for run in done])
        row["parameters"] = first["cost"]["parameters"]
        row["macs"] = round(summary.mean([manifest["cost"]["macs"] for manifest in manifests]) or 0)
        row["bytes"] = first["files"]["weights.safetensors"]["bytes"]
        if row["origin"] is not None:
            row["zeros"] = first["cost"]["zeros"] / first["cost"]["parameters"]
        row["protocol"] = first["protocol"]
    return row


def _summarise(row: Row, found: Sequence[Mapping[str, float]]) -> None:
    """Each seed's metric with its mean and spread, and the means of the other scores that all seeds have."""
    row["values"] = [one[row["metric"]] for one in found]
    row["mean"], row["std"] = summary.mean(row["values"]), summary.std(row["values"])
    for key in SCORES:
        values = [one[key] for one in found if key in one]
        row[key] = summary.mean(values) if len(values) == len(found) else None


def _returns(part: Material, found: Sequence[Mapping[str, float]]) -> dict[str, float | None] | None:
    """The mean return in each of several environments, over seeds; of an experiment that has one environment None."""
    if part.environment is not None:
        return {part.environment: summary.mean([one[scores.RETURN] for one in found])}
    names = [key for key in found[0] if key.startswith(returns.IN)]
    return {key.removeprefix(returns.IN): summary.mean([one[key] for one in found]) for key in names} or None


def _left_out_recall(part: Material, seeds: Iterable[Sequence[str]]) -> float | None:
    """The mean over seeds of how much is recognised of classes that the students never saw."""
    found = [part.left_out_recall(*members) for members in seeds]
    return summary.mean([recall for recall in found if recall is not None])


def _teacher_row(part: Material, runs: Sequence[dict[str, Any]]) -> Row:
    kind = runs[0].get("combined")
    kind = None if kind == "specialists" else kind  # they are the teachers, each in its environment
    row = _filled(
        part, _blank(part, "ensemble" if kind else "teacher", runs[0]["name"], runs[0]["method"]), runs
    )
    row["teacher"] = "+".join(runs[0]["teachers"]) or None
    if kind:
        done = [run for run in runs if part.results.keys() >= {run["fingerprint"], *run["teachers"].values()}]
        row["against"] = _against_members(part, [((run["fingerprint"],), run["teachers"]) for run in done])
        row["curve"] = _curve(part, done) if kind == "cascade" and done else None
    return row


def _against_members(
    part: Material, together: Sequence[tuple[tuple[str, ...], Mapping[str, str]]]
) -> dict[str, Any] | None:
    """How teachers together compare with each of them, over seeds; given what they are together, and each by name."""
    names = together[0][1] if together else ()
    pairs = {name: [(own, (members[name],)) for own, members in together] for name in names}
    found = {name: _paired(part, of) for name, of in pairs.items()}
    return _judged({name: one for name, one in found.items() if one is not None}) or None


def _curve(part: Material, runs: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """What a cascade scores and costs where another confidence is demanded, the mean over its seeds."""
    found = []
    for run in runs:
        members = [part.results[member] for member in run["teachers"].values()]
        logits = np.stack([part.logits(member) for member in run["teachers"].values()])
        costs = [member.manifest["cost"]["macs"] for member in members]
        found.append(cascades.curve(logits, part.labels, costs, part.metric))
    return {key: np.mean([one[key] for one in found], axis=0).tolist() for key in found[0]}


def _ensemble_row(part: Material, names: Sequence[str]) -> Row:
    """The teachers together: the mean of their probabilities."""
    row = _blank(part, "ensemble", "+".join(names), None)
    by_seed = _teachers_by_seed(part, names)
    row["status"] = "finished" if by_seed else "unfinished"
    row["seeds"] = list(by_seed)
    _summarise(row, [scores.all_scores(part.logits(*members), part.labels) for members in by_seed.values()])
    row["left_out_recall"] = _left_out_recall(part, by_seed.values())
    for members in list(by_seed.values())[:1]:
        manifests = [part.results[f].manifest for f in members]
        row["parameters"] = sum(m["cost"]["parameters"] for m in manifests)
        row["macs"] = sum(m["cost"]["macs"] for m in manifests)
        row["bytes"] = sum(m["files"]["weights.safetensors"]["bytes"] for m in manifests)
        row["protocol"] = manifests[0]["protocol"]
    together = [(tuple(members), dict(zip(names, members, strict=True))) for members in by_seed.values()]
    row["against"] = _against_members(part, together)
    return row


def _teachers_by_seed(part: Material, names: Sequence[str]) -> dict[int, list[str]]:
    """The fingerprints of several teachers, for each seed that all of them have; a single one serves all."""
    runs = {name: [r for r in part.runs if r["role"] == "teacher" and r["name"] == name] for name in names}
    if any(run["fingerprint"] not in part.results for of in runs.values() for run in of):
        return {}
    many = [of for of in runs.values() if len(of) > 1]
    seeds = [run["seed"] for run in (many[0] if many else runs[names[0]])]
    return {
        seed: [next((r for r in of if r["seed"] == seed), of[0])["fingerprint"] for of in runs.values()]
        for seed in seeds
    }


def _student_row(part: Material, runs: Sequence[dict[str, Any]]) -> Row:
    """A student by one method: its scores, and how alike it is to its teachers."""
    method = runs[0]["method"]
    role = "control" if method in CONTROLS else "student"
    row = _filled(part, _blank(part, role, runs[0]["name"], method), runs)
    row["teacher"] = "+".join(sorted(runs[0]["teachers"])) or None
    row["tuning_trials"] = runs[0].get("tuning_trials")
    done = [run for run in runs if run["fingerprint"] in part.results]
    measured = [
        likeness for run in done if (likeness := part.results[run["fingerprint"]].manifest["likeness"])
    ]
    if measured:
        for key, (split, figure) in LIKENESS.items():
            figures = [one[split][figure] for one in measured if one.get(split)]
            row[key] = summary.mean([value for value in figures if value is not None])
    elif teachers := _measured_against(part, runs[0]):
        alike = [_agreement(part, run, teachers) for run in done]
        row["agreement"] = summary.mean([agreement for agreement in alike if agreement is not None])
    return row


def _measured_against(part: Material, run: dict[str, Any]) -> list[str]:
    """The teachers that a student is compared with: its own; for one that has none, the only one that there is."""
    if run["teachers"]:
        return sorted(run["teachers"])
    names = {run["name"] for run in part.runs if run["role"] == "teacher"}
    return list(names) if len(names) == 1 else []


def _agreement(part: Material, run: dict[str, Any], teachers: Sequence[str]) -> float | None:
    by_seed = _teachers_by_seed(part, teachers)
    members = by_seed.get(run["seed"]) or next(iter(by_seed.values()), None)
    if members is None or part.unseen or part.of_episodes:
        return None
    return float((part.taken_for(run["fingerprint"]) == part.taken_for(*members)).mean())


# ------------------------------------------------------------------------------------------- verdicts


def _set_beside_control(part: Material, family: Family, rows: Mapping[str, Row], extras: Extras) -> None:
    """Fill in what the rows of one student gain over its control; the verdicts allow for all of its methods."""
    control = family[ALONE]
    differences = {
        method: difference
        for method, runs in family.items()
        if method != ALONE and (difference := _difference(part, runs, control)) is not None
    }
    for method, difference in differences.items():
        row = rows[method]
        row["gain"], row["gain_interval"] = difference.mean, list(difference.interval)
        row["gain_covers"] = part.scale.cases if difference.spread is None else "seeds"
        if _fitted(family[method]) and difference.spread is not None:
            row["gain_covers"] = part.scale.both_noises
        row["gain_seeds"] = difference.seeds
        row["gap_closed"], row["gap_interval"] = _share_of_gap(part, family[method], control)
        if extras.bootstrap:
            row["bootstrap_interval"] = list(_resampled(part, family[method], control))
    methods = {method: one for method, one in differences.items() if rows[method]["role"] == "student"}
    most = max((one.seeds for one in methods.values()), default=0)
    tested = {
        method: one for method, one in methods.items() if one.seeds > 1 or most == 1
    }  # or seeds are missing
    adjusted = inference.holm([difference.p_value for difference in tested.values()])
    for (method, difference), p_value in zip(tested.items(), adjusted, strict=True):
        row = rows[method]
        row["p_value"], row["verdict"] = p_value, inference.verdict(difference.mean, p_value)
        if row["gain_covers"] == "seeds":  # of the others' noise, more seeds would take a part only
            assert difference.spread is not None
            if row["verdict"] == "not distinguishable":
                row["seeds_needed"] = inference.seeds_needed(difference.mean, difference.spread, len(tested))
            row["detectable"] = inference.detectable(_pooled(tested.values()), difference.seeds, len(tested))


def _set_steps_to_target(part: Material, family: Family, rows: Mapping[str, Row]) -> None:
    """Fill in after how many steps of the environment students reach the target that was set, if one was."""
    if part.target is None:
        return
    found = {method: tracks(part, runs) for method, runs in family.items()}
    for method, row in rows.items():
        beside = None if method == ALONE else found[ALONE]
        row["steps_to_target"] = learning.steps_to_target(part.target, found[method], beside)


def tracks(part: Material, runs: Sequence[dict[str, Any]]) -> dict[int, learning.Track]:
    """What the finished ones of some runs reached in their training, by seed, where they acted by themselves."""
    done = {
        run["seed"]: part.results[run["fingerprint"]] for run in runs if run["fingerprint"] in part.results
    }
    return learning.tracks({seed: result.metrics() for seed, result in done.items()}, part.metric)


def _fitted(runs: Sequence[dict[str, Any]]) -> bool:
    """Whether runs are of a model that is fitted at once."""
    return bool(runs[0].get("fitted"))


def _set_against_controls(part: Material, family: Family, rows: Mapping[str, Row]) -> None:
    """Fill in how the methods of one student compare with its other controls, each by itself."""
    methods = [method for method in family if method not in CONTROLS]
    for control in family:
        if control not in CONTROLS or control == ALONE:
            continue
        found = {
            method: difference
            for method in methods
            if (difference := _difference(part, family[method], family[control])) is not None
        }
        for method, judged in _judged(found).items():
            rows[method]["against"] = (rows[method]["against"] or {}) | {control: judged}


def _judged(found: Mapping[str, Difference]) -> dict[str, dict[str, Any]]:
    """Differences by name, with verdicts that allow for all of them."""
    adjusted = inference.holm([difference.p_value for difference in found.values()])
    return {
        name: {
            "difference": difference.mean,
            "interval": list(difference.interval),
            "p_value": p_value,
            "verdict": inference.verdict(difference.mean, p_value),
        }
        for (name, difference), p_value in zip(found.items(), adjusted, strict=True)
    }


def _pooled(differences: Iterable[Difference]) -> float:
    """The spread of the differences of several methods, together."""
    spreads = [difference.spread for difference in differences if difference.spread is not None]
    return float(np.sqrt(np.mean(np.square(spreads))))


def _shared(part: Material, *both: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The finished runs of two methods, by fingerprint, in pairs of one seed."""
    first, second = (
        {run["seed"]: run["fingerprint"] for run in runs if run["fingerprint"] in part.results}
        for runs in both
    )
    return [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]


def _difference(
    part: Material, runs: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]
) -> Difference | None:
    """How much better the runs are than the others, paired by seed; None where no seed has both.

    Seeds of what is fitted at once may differ by hardly anything, so that more has to be exceeded than their noise.
    """
    pairs = _shared(part, runs, others)
    found = _paired(part, [((own,), (other,)) for own, other in pairs])
    if found is None or found.spread is None or not _fitted(runs):
        return found
    ours, theirs = ([part.outcomes(run) for run in of] for of in zip(*pairs, strict=True))
    return inference.over_both(found, part.resamples.difference(ours, theirs))


def _paired(part: Material, pairs: Sequence[tuple[tuple[str, ...], tuple[str, ...]]]) -> Difference | None:
    """How much better the first ones are than the others, each a run or several together; None of no pair."""
    if len(pairs) > 1:
        return inference.over_seeds(
            [part.score(*own) - part.score(*other) for own, other in pairs], part.step
        )
    return _single_difference(part, *pairs[0]) if pairs else None


def _single_difference(part: Material, own: Sequence[str], other: Sequence[str]) -> Difference:
    """What two single predictors differ by on the test samples or episodes; each is a run or several together."""
    ours, theirs = part.outcomes(*own), part.outcomes(*other)
    if part.of_samples:
        return inference.over_samples(ours == part.labels, theirs == part.labels)
    return part.resamples.difference([ours], [theirs])


def _share_of_gap(
    part: Material, runs: Sequence[dict[str, Any]], control: Sequence[dict[str, Any]]
) -> tuple[float | None, list[float] | None]:
    """How much of the way from the control to its teachers a student comes, with the interval.

    Nothing where it has no teacher, or where the teachers are not clearly better than the control.
    """
    names = sorted(runs[0]["teachers"])
    scored = part.scored_together or len(names) == 1
    by_seed = _teachers_by_seed(part, names) if names and scored else {}
    if not by_seed:
        return None, None
    seeds = {run["fingerprint"]: run["seed"] for run in runs}
    only = next(iter(by_seed.values()))
    pairs = [(own, other, by_seed.get(seeds[own], only)) for own, other in _shared(part, runs, control)]
    gains = [part.score(own) - part.score(other) for own, other, _ in pairs]
    gaps = [part.score(*teacher) - part.score(other) for _, other, teacher in pairs]
    if len(pairs) > 1:
        interval = inference.share_of_gap(gains, gaps, part.step)
        if interval is None or (_fitted(runs) and not _better(part, [(t, o) for _, o, t in pairs])):
            return None, None
        return sum(gains) / sum(gaps), None if _fitted(runs) else list(interval)  # it covers seeds only
    [(_, other, teacher)] = pairs
    gap = _single_difference(part, teacher, (other,))
    return (gains[0] / gaps[0] if gap.interval[0] > 0 else None), None


def _better(part: Material, pairs: Sequence[tuple[Sequence[str], str]]) -> bool:
    """Whether teachers are better than controls beyond the noise of the test samples, or episodes."""
    taught = [part.outcomes(*teacher) for teacher, _ in pairs]
    others = [part.outcomes(other) for _, other in pairs]
    return part.resamples.difference(taught, others).interval[0] > 0


def _resampled(
    part: Material, runs: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]
) -> inference.Interval:
    """The interval of a difference from resamples of seeds and test samples, or episodes, together."""
    pairs = _shared(part, runs, others)
    first, second = (
        [part.resamples.scores(part.outcomes(run)) for run in of] for of in zip(*pairs, strict=True)
    )
    return part.resamples.interval(first, second)


def _pairs(part: Material) -> list[dict[str, Any]]:
    """Every two methods of each student."""
    found = []
    for student, family in _families(part).items():
        methods = [method for method in family if method not in CONTROLS]
        both = [
            (first, second, difference)
            for first, second in combinations(methods, 2)
            if (difference := _difference(part, family[second], family[first])) is not None
        ]
        adjusted = inference.holm([difference.p_value for *_, difference in both])
        found += [
            {
                "experiment": part.resolved["name"],
                "model": student,
                "metric": part.metric,
                "first": first,
                "second": second,
                "difference": difference.mean,
                "interval": list(difference.interval),
                "p_value": p_value,
                "verdict": inference.verdict(difference.mean, p_value),
            }
            for (first, second, difference), p_value in zip(both, adjusted, strict=True)
        ]
    return found
