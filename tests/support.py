"""What several test files share: configs from text, experiments in this process, and what a run left behind."""

import math
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import kdrun
from kdrun import assembly, bookkeeping, cli, compare, config
from kdrun.console import Console
from kdrun.errors import ConfigError
from kdrun.experiment import Experiment
from kdrun.interrupts import Stop
from kdrun.plan import plan
from kdrun.store import Store
from kdrun.yamlsource import MOST_TOLD, Source

CLOCK = {"train_seconds", "train_seconds_all", "latency_ms", "throughput"}
"""The keys of a comparison that no two runs share."""


def checked(text, *overrides):
    """The config that a text says, with ``--set`` options."""
    source = Source.parse(textwrap.dedent(text))
    for assignment in overrides:
        source.override(assignment)
    return config.validate(source)


def problems(text, *overrides):
    """What is said of a config that is wrong."""
    with pytest.raises(ConfigError) as caught:
        checked(text, *overrides)
    return str(caught.value)


def said(error):
    """The lines of an error without the excerpts below them and without their number above."""
    lines = [line for line in error.lines if not re.match(r" *\d* *\|", line)]
    several, rest = len(error.problems) > 1, len(error.problems) > MOST_TOLD
    assert len(lines) == min(len(error.problems), MOST_TOLD) + several + rest
    return lines[several : len(lines) - rest]


def experiment(text, root, *overrides, stop=None, console=None):
    """An experiment below a folder of runs, not yet begun."""
    console = console or Console(quiet=True)
    return Experiment(checked(text, *overrides), Store(Path(root), console.warn), console, stop or Stop())


def run(text, root, *overrides, **select):
    """Run an experiment in this process, to its end; its plan."""
    return experiment(text, root, *overrides).run(**select)


def results(root):
    """The finished runs below a folder of runs, by their place in their experiment: ``students/a/kd/seed-0``."""
    store = Store(Path(root))
    found = {"/".join(f.relative_to(root).parts[1:]): store.result(f) for f in store.folders()}
    return {place: result for place, result in found.items() if result is not None}


def weights_hash(root, place):
    """The SHA-256 of a run's exported weights."""
    return results(root)[place].manifest["files"]["weights.safetensors"]["sha256"]


def outcome(root):
    """All that decides whether two folders of runs came to the same: hashes of files, and scores."""
    return {
        place: {"files": result.manifest["files"], "scores": result.manifest["scores"]}
        for place, result in results(root).items()
    }


def comparison(root, name):
    """An experiment's comparison, without what a clock measured."""
    compared = compare.comparison(compare.materials(Store(Path(root)), [name]))
    rows = [{key: value for key, value in row.items() if key not in CLOCK} for row in compared["rows"]]
    return compared | {"rows": rows}


def students(text, *overrides, teachers=None):
    """The first seed's students at their first step, by method, their data set, and the plan.

    Teachers are as they are drawn, or those given.
    """
    checked_config = checked(text, *overrides)
    device = assembly.resolve_device("cpu")
    dataset = assembly.open_dataset(checked_config)
    dataset.load(device)
    planned = plan(checked_config, dataset)
    if teachers is None:
        teachers = {}
        for run_ in planned.runs:
            if run_.role == "teacher":
                network = assembly.fresh_network(run_, dataset.spec, device)
                teachers[run_.name] = assembly.Frozen(network.model, network.view, device)
    first = checked_config.experiment.seeds[0]
    made = {
        run_.method: assembly.make_student(
            run_, {name: teachers[name] for name in run_.teachers}, dataset, device
        )
        for run_ in planned.runs
        if run_.role == "student" and run_.seed == first
    }
    for student in made.values():
        names = {name for term in student.objective.named.values() for name in term.teachers}
        student.teachers = {name: teachers[name] for name in sorted(names)}
    return made, teachers, dataset, planned


class Ears(Console):
    """A console that shows nothing and keeps what it is told to say or to warn of."""

    def __init__(self):
        super().__init__(quiet=True)
        self.heard = []

    def say(self, text, style=""):
        self.heard.append(text)

    def warn(self, text):
        self.heard.append(text)


def break_teachers(monkeypatch):
    """Give every finished teacher one weight that is no number."""

    def broken(*arguments):
        teacher = original(*arguments)
        teacher.model.classifier.bias.data[0] = math.nan
        return teacher

    original = assembly.frozen
    monkeypatch.setattr(assembly, "frozen", broken)


def count_training(monkeypatch):
    """The titles of the runs that are trained from now on, as they begin."""
    from kdrun import experiment as story

    titles = []

    def counted(pupils, *rest):
        titles.extend(student.title for student in pupils)
        return fit(pupils, *rest)

    fit = story.fit
    monkeypatch.setattr(story, "fit", counted)
    return titles


def checkpoint_always(monkeypatch):
    """Have a checkpoint written before every step."""
    monkeypatch.setattr(bookkeeping.Keeper.__init__, "__defaults__", (0.0,))


def command(*arguments, monkeypatch):
    """The exit code of ``kdrun`` with these arguments, in this process."""
    monkeypatch.setattr(sys, "argv", ["kdrun", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def kdrun_process(*arguments, cwd, **environment):
    """``kdrun`` as a process of its own, its stdout and stderr in one pipe."""
    source = Path(kdrun.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-m", "kdrun", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
