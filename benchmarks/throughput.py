"""kdrun's public path against other loops, in one interleaved run: ``python -m benchmarks.throughput``."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import configs, report
from benchmarks.command_line import (
    add_data,
    add_windows,
    environment,
    names,
    parser_of,
    protocol,
    tell,
    threads,
    write,
)
from benchmarks.windows import Contestant, prepare
from benchmarks.works import WORKS, Work

LOOPS = {
    "bare": "hand-written fp32 loop, data in memory",
    "usual": "PyTorch tutorial: torchvision transforms, DataLoader",
    "torchdistill": "torchdistill's DistillationBox and KDLoss; teacher in training mode: other mathematics",
}
"""The other loops; kdrun is compared with the fastest of them."""
OWN_TRICKS = {
    "tricks": "the bare loop with channels_last, folded BatchNorm, fused teacher and SGD, memory kept",
    "tricks-cached": "as tricks, the teacher's logits computed before",
}


def main() -> None:
    """Measure what the command line asks for, print the tables, and write the JSON file."""
    options = _options()
    measured = {
        "environment": environment(options),
        "settings": {
            key: getattr(options, key) for key in ("rounds", "steps", "seconds", "others", "retries")
        },
        "works": {},
    }
    for name in options.work:
        work = WORKS[name]
        found = _measured(work, options)
        measured["works"][name] = found
        print(_shown(work, found), flush=True)
    print(_conditions(measured))
    write(options, measured)


def _options() -> argparse.Namespace:
    parser = parser_of("throughput", __doc__)
    add = parser.add_argument
    add("--work", type=names, default=list(WORKS), metavar="A,B,C", help="the works (all)")
    add("--variants", type=names, metavar="NAME,…", help="only these loops and variants of kdrun (all)")
    add("--warm-up", type=int, help="steps before the first window (by work: 3, 10, 50)")
    add_windows(parser, rounds=5, seconds=2, steps="by work: 15, 40, 300")
    add("--pictures", type=int, help="training pictures (by work: 3840, 3840, 60000)")
    add("--lessons", type=int, help="steps that the teacher is trained first (by work: 160, 640, 400)")
    add_data(parser)
    add("--torchdistill", type=Path, metavar="DIR", help="where torchdistill is, if it is not installed")
    options = parser.parse_args()
    unknown = set(options.work) - set(WORKS)
    if unknown:
        parser.error(
            f"--work: there is no work {', '.join(sorted(unknown))}; write some of {','.join(WORKS)}"
        )
    known = {name for work in options.work for name in _contestants(WORKS[work])}
    if unknown := set(options.variants or []) - known:
        parser.error(
            f"--variants: there is no {', '.join(sorted(unknown))}; write some of {','.join(sorted(known))}"
        )
    return options


def _contestants(work: Work) -> dict[str, str]:
    """What each contestant of a work is."""
    own = {name: what for name, what in OWN_TRICKS.items() if name == "tricks" or not work.augmented}
    return LOOPS | own | {variant.name: f"kdrun: {variant.what}" for variant in configs.variants(work)}


# ---------------------------------------------------------------------------------------------- measuring


def _measured(work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of a work."""
    with tempfile.TemporaryDirectory() as folder:
        taught = work if options.lessons is None else replace(work, lessons=options.lessons)
        data = prepare(taught, Path(folder), options.pictures or work.pictures, options.data)
        tell(f"{work.title}; {data}")
        with _started(work, Path(folder), options) as contestants:
            protocol(options).run(
                [one for one in contestants if one.trouble is None], options.steps or work.steps
            )
    loop = report.fastest(contestants, list(LOOPS))
    by_name = {one.name: one for one in contestants}
    what = _contestants(work)
    entries = {}
    for one in contestants:
        entry = {"what": what[one.name], "note": _note(one)} | report.figures(one, work.batch)
        entry["against_loop"] = report.ratio(one, loop)
        entry["against_tricks"] = report.ratio(one, by_name.get("tricks"))
        entries[one.name] = entry
    return {
        "title": work.title,
        "data": data,
        "fastest_loop": loop.name if loop else None,
        "contestants": entries,
    }


@contextmanager
def _started(work: Work, folder: Path, options: argparse.Namespace) -> Iterator[list[Contestant]]:
    """The contestants, started one after the other, each at rest before the next one begins."""
    contestants: list[Contestant] = []
    try:
        for name in _contestants(work):
            if options.variants is None or name in options.variants:
                contestants.append(_start(name, work, folder, options))
                tell(f"{name}: {contestants[-1].trouble or 'ready'}")
        yield contestants
    finally:
        for one in contestants:
            one.end()


def _start(name: str, work: Work, folder: Path, options: argparse.Namespace) -> Contestant:
    warm_up = work.warm_up if options.warm_up is None else options.warm_up
    variant = next((one for one in configs.variants(work) if one.name == name), None)
    if variant is not None:
        warm_up = variant.warm_up(warm_up, (options.pictures or work.pictures) // work.batch)
    arguments = ["--work", work.name, "--device", options.device, "--warm-up", str(warm_up)]
    if variant is None:
        path = options.torchdistill if name == "torchdistill" else None
        return Contestant(name, folder, [name, *arguments], threads(options), path)
    arguments += ["--config", configs.write(folder, work.name, variant)]
    return Contestant(name, folder, ["kdrun", *arguments], threads(options))


def _note(one: Contestant) -> str:
    """What has to be said beside a contestant's figures."""
    if one.ready.get("teacher_in_training_mode"):
        return "teacher in training mode: other mathematics"
    return ""


# ---------------------------------------------------------------------------------------------- reporting


def _shown(work: Work, found: dict[str, Any]) -> str:
    """A work's table."""
    rows = [report.row(name, entry) for name, entry in found["contestants"].items()]
    loop = found["fastest_loop"] or "none was measured"
    lines = [f"{name}: {entry['what']}" for name, entry in found["contestants"].items()]
    return "\n".join(
        [
            f"\n{found['title']}; {found['data']}; the fastest other loop: {loop}",
            report.table(report.HEAD, rows),
            *lines,
        ]
    )


def _conditions(measured: dict[str, Any]) -> str:
    """Where and how the figures were taken."""
    where = "; ".join(f"{key} {value}" for key, value in measured["environment"].items() if value is not None)
    how = "; ".join(f"{key} {value}" for key, value in measured["settings"].items() if value is not None)
    return f"\n{where}\n{how}"


if __name__ == "__main__":
    main()
