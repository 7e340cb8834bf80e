"""Finished runs become rows, and rows become a table; no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.errors import StoreError
from kdrun.statistics import scores, summary
from kdrun.store import Result, Store, read_json, write_json
from kdrun.store.files import write_text

CONTROL = "alone"

KEYS = [
    "teacher",
    "seeds",
    "metric",
    "values",
    "mean",
    "std",
    "gain",
    "gain_interval",
    "gap_closed",
    "gap_interval",
    "verdict",
    "p_value",
    "seeds_needed",
    "agreement",
    "agreement_train",
    "kl_to_teacher",
    "nll",
    "brier",
    "ece",
    "ece_scaled",
    "parameters",
    "macs",
    "bytes",
    "latency_ms",
    "throughput",
    "peak_memory_bytes",
    "train_seconds",
    "protocol",
    "tuning_trials",
    "status",
]
"""What a row holds besides role, model and method; null where it does not apply or is not known yet."""

Row = dict[str, Any]


@dataclass
class Material:
    """One experiment's runs and results, as ``resolved.json`` and the store hold them."""

    resolved: dict[str, Any]
    store: Store
    results: dict[str, Result] = field(default_factory=dict)
    missing: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for run in self.resolved["runs"]:
            result = self.store.find(run["fingerprint"], run["folder"])
            if result is None:
                self.missing.append(run)
            else:
                self.results[run["fingerprint"]] = result
        path = self.store.root / self.resolved["name"] / "latency.json"
        self.latency = read_json(path)["models"] if path.is_file() else {}
        self._logits: dict[str, np.ndarray] = {}

    def logits(self, fingerprint: str) -> np.ndarray:
        """A run's test logits (N, C)."""
        if fingerprint not in self._logits:
            self._logits[fingerprint] = self.results[fingerprint].predictions()["logits"]
        return self._logits[fingerprint]

    def labels(self, fingerprint: str) -> np.ndarray:
        """The test labels that a run was scored on (N,)."""
        return self.results[fingerprint].predictions()["labels"]


def materials(store: Store, names: Iterable[str]) -> list[Material]:
    """What is stored of some experiments; raises ``StoreError`` where one was never begun."""
    found = []
    for name in names:
        path = store.root / name / "resolved.json"
        if not path.is_file():
            raise StoreError(
                f"{path}: is not there, so '{name}' was never begun here; run it without --no-train"
            )
        found.append(Material(read_json(path), store))
    return found


def comparison(parts: Sequence[Material]) -> dict[str, Any]:
    """The comparison of one or several experiments, as ``comparison.json`` holds it."""
    named = [(part.resolved["name"], row) for part in parts for row in _rows(part)]
    rows = [row for _, row in named]
    protocols = [row["protocol"] for row in rows if row["protocol"] and row["role"] in ("control", "student")]
    shared = {
        key: value
        for key, value in (protocols or [{}])[0].items()
        if all(p.get(key) == value for p in protocols)
    }
    if len(parts) > 1:
        for name, row in named:
            row["protocol"] = {"experiment": name} | (row["protocol"] or {})
    return {"name": "+".join(part.resolved["name"] for part in parts), "protocol": shared, "rows": rows}


def _rows(part: Material) -> list[Row]:
    """Teachers, ensembles, then every student with its control first."""
    grouped: dict[tuple[str, str, str | None], list[dict[str, Any]]] = {}
    for run in part.resolved["runs"]:
        grouped.setdefault((run["role"], run["name"], run["method"]), []).append(run)
    teacher_rows = [_teacher_row(part, runs) for (role, _, _), runs in grouped.items() if role == "teacher"]
    ensemble_rows = [_ensemble_row(part, names) for names in part.resolved["ensembles"]]
    references = {row["model"]: row for row in teacher_rows + ensemble_rows}
    student_rows = []
    for (role, name, method), runs in grouped.items():
        if role == "student":
            control = _scores_by_seed(part, grouped["student", name, CONTROL])
            student_rows.append(_student_row(part, method, runs, control, references))
    return teacher_rows + ensemble_rows + student_rows


def _blank(part: Material, role: str, model: str, method: str | None) -> Row:
    """A row with every key of the format, null where nothing is known."""
    who = {"role": role, "model": model, "method": method}
    return who | dict.fromkeys(KEYS) | {"metric": part.resolved["metric"]}


def _filled(part: Material, row: Row, runs: Sequence[dict[str, Any]]) -> Row:
    """What is known of every kind of trained row: scores over seeds, size and cost."""
    done = [run for run in runs if run["fingerprint"] in part.results]
    failed = any(_failed(part.store, run) for run in runs if run not in done)
    row["status"] = "finished" if len(done) == len(runs) else "failed" if failed else "unfinished"
    row["seeds"] = [run["seed"] for run in done]
    manifests = [part.results[run["fingerprint"]].manifest for run in done]
    row["values"] = [manifest["scores"][part.resolved["metric"]] for manifest in manifests]
    row["mean"], row["std"] = summary.mean(row["values"]), summary.std(row["values"])
    row["latency_ms"] = part.latency.get(runs[0]["model"])
    if manifests:
        first = manifests[0]
        row["nll"] = summary.mean([manifest["scores"]["nll"] for manifest in manifests])
        row["train_seconds"] = summary.mean([manifest["train_seconds"] for manifest in manifests])
        row["parameters"], row["macs"] = first["cost"]["parameters"], first["cost"]["macs"]
        row["bytes"] = first["files"]["weights.safetensors"]["bytes"]
        row["protocol"] = first["protocol"]
    return row


def _failed(store: Store, run: dict[str, Any]) -> bool:
    """Whether the last attempt at a run stopped, in its folder or beside another run's."""
    for place in (run["folder"], f"{run['folder']}-{run['fingerprint'][:8]}"):
        folder = store.root / place
        if (folder / "failure.json").is_file() and (folder / "begun.json").is_file():
            return read_json(folder / "begun.json")["fingerprint"] == run["fingerprint"]
    return False


def _teacher_row(part: Material, runs: Sequence[dict[str, Any]]) -> Row:
    row = _filled(part, _blank(part, "teacher", runs[0]["name"], runs[0]["method"]), runs)
    row["teacher"] = "+".join(runs[0]["teachers"]) or None
    return row


def _ensemble_row(part: Material, names: Sequence[str]) -> Row:
    """The teachers together: the mean of their probabilities."""
    row = _blank(part, "ensemble", "+".join(names), None)
    by_seed = _teachers_by_seed(part, names)
    row["status"] = "finished" if by_seed else "unfinished"
    row["seeds"] = list(by_seed)
    metric = scores.METRICS[row["metric"]]
    row["values"], nll = [], []
    for members in by_seed.values():
        logits, labels = scores.ensemble([part.logits(f) for f in members]), part.labels(members[0])
        row["values"].append(metric(logits, labels))
        nll.append(scores.nll(logits, labels))
    row["mean"], row["std"], row["nll"] = (
        summary.mean(row["values"]),
        summary.std(row["values"]),
        summary.mean(nll),
    )
    for members in list(by_seed.values())[:1]:
        manifests = [part.results[f].manifest for f in members]
        row["parameters"] = sum(m["cost"]["parameters"] for m in manifests)
        row["macs"] = sum(m["cost"]["macs"] for m in manifests)
        row["bytes"] = sum(m["files"]["weights.safetensors"]["bytes"] for m in manifests)
        row["protocol"] = manifests[0]["protocol"]
    return row


def _teachers_by_seed(part: Material, names: Sequence[str]) -> dict[int, list[str]]:
    """The fingerprints of several teachers, for each seed that all of them have; a single one serves all."""
    runs = {
        name: [r for r in part.resolved["runs"] if r["role"] == "teacher" and r["name"] == name]
        for name in names
    }
    if any(run["fingerprint"] not in part.results for of in runs.values() for run in of):
        return {}
    many = [of for of in runs.values() if len(of) > 1]
    seeds = [run["seed"] for run in (many[0] if many else runs[names[0]])]
    return {
        seed: [next((r for r in of if r["seed"] == seed), of[0])["fingerprint"] for of in runs.values()]
        for seed in seeds
    }


def _student_row(
    part: Material,
    method: str | None,
    runs: Sequence[dict[str, Any]],
    control: dict[int, float],
    references: dict[str, Row],
) -> Row:
    row = _filled(
        part, _blank(part, "control" if method == CONTROL else "student", runs[0]["name"], method), runs
    )
    row["teacher"] = "+".join(sorted(runs[0]["teachers"])) or None
    teachers = _measured_against(part, runs[0])
    done = [run for run in runs if run["fingerprint"] in part.results]
    if teachers:
        row["agreement"] = summary.mean(
            [a for run in done if (a := _agreement(part, run, teachers)) is not None]
        )
    if method != CONTROL:
        own = _scores_by_seed(part, runs)
        row["gain"] = summary.gain(own, control)
        if teachers:
            target = references.get("+".join(teachers)) or _ensemble_row(part, teachers)
            beside = summary.mean([control[seed] for seed in sorted(own.keys() & control.keys())])
            row["gap_closed"] = summary.gap_closed(row["gain"], beside, target["mean"])
    return row


def _measured_against(part: Material, run: dict[str, Any]) -> list[str]:
    """The teachers that a student is compared with: its own; for a control, the only one that there is."""
    if run["teachers"]:
        return sorted(run["teachers"])
    names = {run["name"] for run in part.resolved["runs"] if run["role"] == "teacher"}
    return list(names) if len(names) == 1 else []


def _agreement(part: Material, run: dict[str, Any], members: Sequence[str]) -> float | None:
    by_seed = _teachers_by_seed(part, members)
    fingerprints = by_seed.get(run["seed"]) or next(iter(by_seed.values()), None)
    if fingerprints is None:
        return None
    said = [part.logits(f) for f in fingerprints]
    together = said[0] if len(said) == 1 else scores.ensemble(said)
    return scores.agreement(part.logits(run["fingerprint"]), together)


def _scores_by_seed(part: Material, runs: Iterable[dict[str, Any]]) -> dict[int, float]:
    metric = part.resolved["metric"]
    done = {run["seed"]: part.results.get(run["fingerprint"]) for run in runs}
    return {seed: result.manifest["scores"][metric] for seed, result in done.items() if result is not None}


# ---------------------------------------------------------------------------------------------- tables


def _percent(value: float | None, digits: int = 2, sign: str = "") -> str:
    return "" if value is None else f"{100 * value:{sign}.{digits}f}"


def _score(row: Row) -> str:
    spread = f" ± {_percent(row['std'])}" if row["std"] is not None else ""
    return _percent(row["mean"]) + spread if row["mean"] is not None else row["status"]


def _count(value: float | None) -> str:
    if value is None:
        return ""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _latency(row: Row) -> str:
    times = row["latency_ms"]
    return f"{times['p50']:.3g} / {times['p95']:.3g}" if times else ""


def _who(row: Row) -> str:
    return row["model"] if row["method"] is None else f"{row['model']} {row['method']}"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "role": lambda row: row["role"],
    "model": _who,
    "experiment": lambda row: (row["protocol"] or {}).get("experiment", ""),
    "teacher": lambda row: row["teacher"] or "",
    "n": lambda row: str(len(row["values"] or [])),
    "score %": _score,
    "gain": lambda row: _percent(row["gain"], sign="+"),
    "gap closed %": lambda row: _percent(row["gap_closed"], 0),
    "agrees %": lambda row: _percent(row["agreement"], 1),
    "NLL": lambda row: "" if row["nll"] is None else f"{row['nll']:.3f}",
    "params": lambda row: _count(row["parameters"]),
    "MACs": lambda row: _count(row["macs"]),
    "bytes": lambda row: _count(row["bytes"]),
    "ms p50 / p95": _latency,
    "train s": lambda row: "" if row["train_seconds"] is None else f"{row['train_seconds']:.1f}",
}


def heading(compared: dict[str, Any]) -> str:
    """What was compared under which protocol, in a line."""
    protocol = compared["protocol"]
    words = [
        f"{protocol[k]} {noun}"
        for k, noun in (("test_samples", "test samples"), ("epochs", "epochs"))
        if protocol.get(k)
    ]
    if protocol.get("labels_per_class"):
        words.append(f"{protocol['labels_per_class']} labels a class for the students")
    words += [str(protocol[key]) for key in ("dataset", "precision", "device") if protocol.get(key)]
    metric = " or ".join(dict.fromkeys(row["metric"] for row in compared["rows"]))
    return (
        f"{compared['name']}: {metric} on {', '.join(words)}; mean ± std over n seeds"
        if words
        else compared["name"]
    )


def cells(rows: Iterable[Row]) -> tuple[list[str], list[list[str]]]:
    """The table's head and lines as text; columns that are empty everywhere are left out."""
    lines = [[show(row) for show in COLUMNS.values()] for row in rows]
    kept = [n for n in range(len(COLUMNS)) if any(line[n] for line in lines)]
    return [list(COLUMNS)[n] for n in kept], [[line[n] for n in kept] for line in lines]


def markdown(compared: dict[str, Any]) -> str:
    """The table in Markdown, under its heading."""
    head, lines = cells(compared["rows"])
    text = [heading(compared), "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join(text + [f"| {' | '.join(line)} |" for line in lines]) + "\n"


def csv_text(compared: dict[str, Any]) -> str:
    """The rows with full precision, a column a key."""
    buffer = io.StringIO()
    rows = [{key: _flat(value) for key, value in row.items()} for row in compared["rows"]]
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]) if rows else ["role"])
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _flat(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return "; ".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, dict) else value


def write(store: Store, compared: dict[str, Any], several: bool) -> Path:
    """Write ``comparison.json``, ``.md`` and ``.csv``; the folder they are in."""
    folder = store.root / (f"compare-{compared['name']}" if several else compared["name"])
    write_json(folder / "comparison.json", compared)
    write_text(folder / "comparison.md", markdown(compared))
    write_text(folder / "comparison.csv", csv_text(compared))
    return folder
