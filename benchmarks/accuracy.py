"""Whether accuracy is paid for speed: ``python -m benchmarks.accuracy``.

Students of one architecture learn from one teacher by ``kdrun compare``, with and without what makes kdrun fast, over
the same seeds; their test accuracies are compared seed by seed.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml
from scipy.stats import t as student_t

from benchmarks import material
from benchmarks.command_line import add_data, environment, names, parser_of, tell, threads, write
from benchmarks.studies import METHOD, STUDIES, Study
from benchmarks.windows import child_environment

CLASSES = 10
LEVEL = 0.05
"""Of each of the two one-sided tests; their interval is of 1 - 2·LEVEL."""
RUNS = "runs"
"""kdrun's folder of runs, below the one that is given."""


def main() -> None:
    """Train what the command line asks for, print the tables, and write the JSON file."""
    options = _options()
    measured: dict[str, Any] = {
        "environment": environment(options),
        "settings": {"seeds": options.seeds, "method": METHOD, "level": LEVEL},
        "works": {},
    }
    with ExitStack() as stack:
        folder = options.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.works:
            study = STUDIES[name].changed(options.epochs, options.pictures, options.test_pictures)
            found = measured["works"][name] = _measured(study, folder.resolve(), options)
            text = _shown(study, found)
            (folder / f"{name}.md").write_text(text)
            print(text, flush=True)
            write(options, measured)  # after each work: a later one may fail
    print("; ".join(f"{k} {v}" for k, v in measured["environment"].items() if v is not None))


def _options() -> argparse.Namespace:
    parser = parser_of("accuracy", __doc__)
    add = parser.add_argument
    add("--works", type=names, default=list(STUDIES), metavar=",".join(STUDIES), help="only some (all)")
    add("--seeds", type=_numbers, default=list(range(5)), metavar="N,…", help="the students' (0,1,2,3,4)")
    add("--epochs", type=int, help="of teachers and students (by work)")
    add("--pictures", type=int, help="training pictures (by work: 60000, 5000, 5000)")
    add("--test-pictures", type=int, help="test pictures (10000)")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="keep pictures, runs and tables; what is finished is not run again",
    )
    add_data(parser)
    options = parser.parse_args()
    if unknown := set(options.works) - set(STUDIES):
        parser.error(f"--works: there is no {', '.join(sorted(unknown))}; write some of {','.join(STUDIES)}")
    return options


def _numbers(text: str) -> list[int]:
    return [int(number) for number in names(text)]


# ---------------------------------------------------------------------------------------------- measuring


def _measured(study: Study, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of a study, from one call of ``kdrun compare``."""
    counts = (study.pictures, study.test_pictures)
    data, train, test = material.read(study.source, study.shape, CLASSES, counts, options.data)
    material.write(folder / study.file, train, test)
    tell(f"{study.title}; {data}")
    began = time.monotonic()
    experiments = study.experiments(options.seeds)
    rows, table = _compared(experiments, folder, threads(options))
    taught = {row["model"]: row for row in rows if row["role"] == "student"}
    scores = {name: dict(zip(row["seeds"], row["values"], strict=True)) for name, row in taught.items()}
    base = study.variants[0].name
    return {
        "title": study.title,
        "data": f"{data}, {len(test[1])} test pictures",
        "seconds": time.monotonic() - began,
        "bound": study.bound,
        "base": base,
        "teacher": next(row["mean"] for row in rows if row["role"] == "teacher"),
        "variants": {
            variant.name: {
                "what": variant.what,
                "scores": {str(seed): score for seed, score in scores[variant.name].items()},
                **{key: taught[variant.name][key] for key in ("mean", "std", "train_seconds")},
                "against_base": None
                if variant.name == base
                else _against(scores[variant.name], scores[base], study.bound),
            }
            for variant in study.variants
        },
        "left_out": study.left_out,
        "experiments": experiments,
        "comparison": table,
    }


def _compared(
    experiments: dict[str, dict[str, Any]], folder: Path, added: dict[str, str]
) -> tuple[list[dict[str, Any]], str]:
    """The rows of one comparison of all experiments, and its table in Markdown; kdrun's words go to stderr."""
    for name, experiment in experiments.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    files = [f"{name}.yaml" for name in experiments]
    command = [sys.executable, "-m", "kdrun", "compare", *files, "--out", RUNS, "--json"]
    done = subprocess.run(
        command, cwd=folder, env=child_environment() | added, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"kdrun compare ended with {done.returncode}")
    compared = json.loads(done.stdout)
    written = f"compare-{compared['name']}" if len(files) > 1 else compared["name"]
    return compared["rows"], (folder / RUNS / written / "comparison.md").read_text()


def _against(scores: dict[int, float], base: dict[int, float], bound: float | None) -> dict[str, Any]:
    found = paired(scores, base)
    return vars(found) | {"verdict": verdict(found, bound)}


@dataclass(frozen=True)
class Paired:
    """Differences to the base in points of accuracy, by seed, their mean, and its interval; None of one seed."""

    differences: dict[str, float]
    mean: float
    interval: tuple[float, float] | None


def paired(scores: dict[int, float], base: dict[int, float]) -> Paired:
    """What a variant's scores differ from the base's by, seed by seed.

    The interval is Student's, of 1 - 2·LEVEL: it lies inside two bounds where both one-sided tests at LEVEL say so.
    """
    points = {seed: 100 * (scores[seed] - base[seed]) for seed in sorted(scores.keys() & base.keys())}
    values, n = list(points.values()), len(points)
    middle = fmean(values)
    named = {str(seed): value for seed, value in points.items()}
    if n < 2:
        return Paired(named, middle, None)
    half = float(student_t.ppf(1 - LEVEL, n - 1)) * stdev(values) / math.sqrt(n)
    return Paired(named, middle, (middle - half, middle + half))


def verdict(found: Paired, bound: float | None) -> str | None:
    """Whether the interval lies between the bounds: yes, no where it lies beyond one, and else "not shown"."""
    if bound is None:
        return None
    if found.interval is None:
        return "not shown"
    low, high = found.interval
    if -bound < low and high < bound:
        return "yes"
    return "no" if low > bound or high < -bound else "not shown"


# ---------------------------------------------------------------------------------------------- reporting


def _shown(study: Study, found: dict[str, Any]) -> str:
    """kdrun's table, then the differences, in Markdown."""
    bounded = study.bound is not None
    head = ["variant", "accuracy %", "− base, points", "90 % interval", "least–greatest"]
    head += [f"inside ±{study.bound}"] if bounded else []
    lines = [_line(name, entry, bounded) for name, entry in found["variants"].items()]
    tabled = [f"| {' | '.join(cells)} |" for cells in ([*head, "what"], ["---"] * (len(head) + 1), *lines)]
    return "\n".join(
        [
            f"## {found['title']}",
            "",
            f"{found['data']}; teacher {100 * found['teacher']:.2f} %; {found['seconds']:.0f} s",
            "",
            found["comparison"],
            *tabled,
            "",
            *(f"{name}: left out, {why}\n" for name, why in found["left_out"].items()),
        ]
    )


def _line(name: str, entry: dict[str, Any], bounded: bool) -> list[str]:
    spread = "" if entry["std"] is None else f" ± {100 * entry['std']:.2f}"
    cells = [name, f"{100 * entry['mean']:.2f}{spread}"]
    against = entry["against_base"]
    if against is None:
        return [*cells, *[""] * (3 + bounded), entry["what"]]
    differences = list(against["differences"].values())
    cells += [
        f"{against['mean']:+.2f}",
        _interval(against["interval"]),
        _interval((min(differences), max(differences))),
    ]
    return [*cells, *([against["verdict"]] if bounded else []), entry["what"]]


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:+.2f} to {ends[1]:+.2f}"


if __name__ == "__main__":
    main()
