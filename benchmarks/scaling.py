"""How kdrun grows with students, classes and data, by its public path: ``python -m benchmarks.scaling``."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import configs, report
from benchmarks.command_line import add_windows, environment, parser_of, protocol, tell, threads, write
from benchmarks.windows import Contestant, prepare
from benchmarks.works import STUDENT, TEACHER, Work

LINEAR = 1.05
"""The largest exponent that is called no worse than linear; beyond 1 is the noise of a fit."""
MIB = 1 << 20

SMALL = Work(
    name="small",
    teacher={"kind": "cnn", "width": 32, "depth": 2, "hidden": 128},
    student={"kind": "mlp", "hidden": [50]},
    source="synthetic",
    shape=(1, 28, 28),
    batch=128,
    augmented=False,
    pictures=4000,
    steps=50,
    warm_up=10,
)


@dataclass(frozen=True)
class Point:
    """One size of one dimension: how many students, classes and pictures."""

    dimension: str
    size: int
    work: Work
    students: int = 1
    pictures: int = SMALL.pictures
    live: bool = True

    @property
    def epoch(self) -> int:
        """Steps of a pass over the pictures."""
        return self.pictures // self.work.batch

    def config(self) -> str:
        """The experiment in YAML."""
        dataset = {
            "kind": "synthetic",
            "shape": list(self.work.shape),
            "classes": self.work.classes,
            "samples": self.pictures,
            "test_samples": self.work.classes,
        }
        models = configs.Models(
            {"model": self.work.teacher, "weights": TEACHER},
            {**self.work.student, "initial_weights": STUDENT},
        )
        methods = [
            {"use": "kd", "set": {"kd.temperature": 1 + number / 4}} for number in range(self.students)
        ]
        return yaml.safe_dump(
            configs.experiment(
                "point", dataset, models, methods, self.work.batch, configs.LIVE if self.live else {}
            )
        )


def points(dimension: str, most: int) -> list[Point]:
    """The sizes of a dimension, the first ``most`` of them."""
    if dimension == "students":
        every = [Point(dimension, size, SMALL, students=size) for size in (1, 2, 4, 8, 16)]
    elif dimension == "classes":
        every = [Point(dimension, size, _with_classes(size)) for size in (10, 100, 1000)]
    else:
        sizes = [SMALL.pictures * times for times in (1, 2, 4, 8, 16)]
        every = [Point(dimension, size, SMALL, pictures=size, live=False) for size in sizes]
    return every[:most]


def _with_classes(classes: int) -> Work:
    return replace(SMALL, student={"kind": "resnet8"}, classes=classes)


DIMENSIONS = {
    "students": ("students in a group (cnn → mlp, live teacher)", "a step", "ms/step"),
    "classes": ("classes (cnn → resnet8, live teacher)", "a step", "ms/step"),
    "data": ("pictures (cnn → mlp, outputs kept where kdrun keeps them)", "an epoch", "ms/epoch"),
}
"""What grows, and the piece of work whose time is looked at."""


def main() -> None:
    """Measure every point, print the tables and what follows from them, and write the JSON file."""
    options = _options()
    measured: dict[str, Any] = {
        "environment": environment(options),
        "dimensions": {},
    }
    base = _idle(options)
    for dimension in options.dimension:
        taken = [_measured(point, base, options) for point in points(dimension, options.most)]
        found = {"points": taken, **_growth([one for one in taken if "ms" in one])}
        found["crossing"] = _crossing(dimension, [one for one in taken if "ms" in one], base, options)
        measured["dimensions"][dimension] = found
        print(_shown(dimension, found), flush=True)
    where = [f"{key} {value}" for key, value in measured["environment"].items() if value is not None]
    print("\n" + "; ".join(where))
    write(options, measured)


def _options() -> argparse.Namespace:
    parser = parser_of("scaling", __doc__)
    add = parser.add_argument
    add("--dimension", action="append", choices=list(DIMENSIONS), help="only this one; repeatable (all)")
    add("--most", type=int, default=5, metavar="N", help="only the first sizes of each dimension (all)")
    add_windows(parser, rounds=3, seconds=1, steps="50; for data an epoch")
    add(
        "--memory",
        type=float,
        metavar="GIB",
        help="the limit for the crossing of the data (this machine's memory)",
    )
    options = parser.parse_args()
    options.dimension = options.dimension or list(DIMENSIONS)
    return options


# ---------------------------------------------------------------------------------------------- measuring


def _idle(options: argparse.Namespace) -> int:
    """The peak memory of a process that imported kdrun, torch with it, and trains nothing."""
    one = Contestant("torch", Path(), ["torch", "--device", options.device], threads(options))
    peak = one.peak_memory() or 0
    one.end()
    return peak


def _measured(point: Point, base: int, options: argparse.Namespace) -> dict[str, Any]:
    """Time and peak memory of a point, in a process of its own."""
    whole = point.dimension == "data"
    steps = options.steps or (point.epoch if whole else point.work.steps)
    warm_up = point.epoch + point.epoch // 5 + 1 if whole else point.work.warm_up
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(point.work, folder, 2 * point.work.batch, None)
        (folder / "point.yaml").write_text(point.config())
        arguments = ["kdrun", "--config", "point.yaml", "--device", options.device, "--warm-up", str(warm_up)]
        one = Contestant(f"{point.dimension} {point.size}", folder, arguments, threads(options))
        if one.trouble is None:
            protocol(options).run([one], steps)
        peak = one.peak_memory()
        one.end()
    entry: dict[str, Any] = {"size": point.size, **report.figures(one, point.work.batch)}
    if one.windows:
        entry["ms"] = entry["ms_per_step"] * (point.epoch if whole else 1)
        entry["bytes"] = None if peak is None else peak - base
        entry["start_seconds"] = one.start_seconds
    else:
        tell(f"{one.name}: {one.trouble}")
    return entry


# --------------------------------------------------------------------------------------- what follows from it


def _growth(taken: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The exponents of time and memory: of a line through all points in logarithms, and between neighbours."""
    found = {}
    for what in ("ms", "bytes"):
        pairs = [(one["size"], one[what]) for one in taken if one[what]]
        if len(pairs) < 2:
            continue
        logs = [(math.log(size), math.log(value)) for size, value in pairs]
        between = [(right[1] - left[1]) / (right[0] - left[0]) for left, right in pairwise(logs)]
        exponent, _ = _line(logs)
        steeper = [
            [pairs[number][0], pairs[number + 1][0]] for number, slope in enumerate(between) if slope > LINEAR
        ]
        found[what] = {"exponent": exponent, "between_neighbours": between, "worse_than_linear": steeper}
    return {"growth": found}


def _line(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope and intercept of the least squares."""
    slope, intercept = np.polyfit([x for x, _ in pairs], [y for _, y in pairs], 1)
    return float(slope), float(intercept)


def _crossing(
    dimension: str, taken: Sequence[dict[str, Any]], base: int, options: argparse.Namespace
) -> dict[str, Any] | None:
    """Where one cost overtakes another, by a straight line through the points."""
    if len(taken) < 2:
        return None
    if dimension == "students":
        each, fixed = _line([(one["size"], one["ms"]) for one in taken])
        return {"ms_a_student": each, "ms_shared": fixed, "students": fixed / each if each > 0 else None}
    limit = options.memory * 1024 * MIB if options.memory else _memory()
    if dimension == "data" and limit and all(one["bytes"] for one in taken):
        each, fixed = _line([(one["size"], one["bytes"]) for one in taken])
        room = limit - base - fixed
        return {"bytes_a_picture": each, "limit": limit, "pictures": room / each if each > 0 else None}
    return None


def _memory() -> int | None:
    """This machine's memory in bytes."""
    try:
        return 1024 * int(Path("/proc/meminfo").read_text().split()[1])
    except OSError:
        return None


def _shown(dimension: str, found: dict[str, Any]) -> str:
    """A dimension's table, and what it says in words."""
    title, piece, unit = DIMENSIONS[dimension]
    head = [dimension, unit, "MiB over idle", "start s", "windows disturbed"]
    rows = [
        [
            f"{one['size']:,}",
            report.number(one["ms"]),
            "" if one["bytes"] is None else report.number(one["bytes"] / MIB),
            report.number(one["start_seconds"]),
            f"{one['disturbed_windows']} of {len(one['windows'])}",
        ]
        if "ms" in one
        else [f"{one['size']:,}", one["trouble"], "", "", ""]
        for one in found["points"]
    ]
    names = {"ms": f"time of {piece}", "bytes": "memory"}
    words = [_in_words(names[what], growth) for what, growth in found["growth"].items()]
    if found["crossing"]:
        words.append(_crossing_in_words(dimension, found["crossing"]))
    return "\n".join([f"\n{title}", report.table(head, rows, left=()), *words])


def _in_words(what: str, growth: dict[str, Any]) -> str:
    verdict = "no worse than linear" if growth["exponent"] <= LINEAR else "worse than linear"
    where = ", ".join(f"{left:,} and {right:,}" for left, right in growth["worse_than_linear"])
    return f"{what}: exponent {growth['exponent']:.2f}, {verdict}" + (
        f"; steeper between {where}" if where else ""
    )


def _crossing_in_words(dimension: str, found: dict[str, Any]) -> str:
    if dimension == "students":
        costs = f"a student costs {found['ms_a_student']:.3g} ms a step, teacher and data {found['ms_shared']:.3g} ms"
        if found["students"] is None or found["students"] < 0:
            return costs
        return f"{costs}: from {found['students']:.1f} students on they cost more than the teacher"
    each = f"a picture takes {found['bytes_a_picture']:,.0f} bytes"
    if found["pictures"] is None:
        return "memory does not grow measurably with the pictures"
    return (
        f"{each}: by this line {found['limit'] / 1024 / MIB:.1f} GiB hold {found['pictures']:,.0f} pictures "
        "(reckoned, not run)"
    )


if __name__ == "__main__":
    main()
