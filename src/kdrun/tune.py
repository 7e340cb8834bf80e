"""Equal budgets: as many trials for every method as for its controls, scored on the validation share alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna

from kdrun import config as configs
from kdrun import registry, rehearsal
from kdrun.config import Config
from kdrun.config.checks import entry_problems
from kdrun.config.origins import line_of
from kdrun.config.spaces import Entry, Range, Space, rounded, spaces_of, with_values
from kdrun.errors import ConfigError, Problem
from kdrun.errors import Path as Path_
from kdrun.experiment import Experiment
from kdrun.optimization import Training
from kdrun.plan import Plan, Run, plan
from kdrun.randomness import derive
from kdrun.split import together
from kdrun.store import write_json
from kdrun.store.files import write_text
from kdrun.yamlsource import Source, as_yaml

AT_ONCE = 10
"""Trials of a method that are drawn before the first of them is scored, and so can train in lock step."""

MOST_LETTERS = 100
"""Of a name, which is a folder's."""

Values = dict[str, Any]


@dataclass
class Trial:
    """A set of values, the run that tries them, and how that does on the validation samples.

    The first trial of a method is the method as the config has it. There is no run where values that can each be had
    by itself cannot be had together, and no score where a run stopped at a loss that is not finite.
    """

    number: int
    values: Values
    run: Run | None = None
    score: float | None = None
    seconds: float = 0.0


@dataclass
class Search:
    """What is tried of one method of one student: the same every time, as far as scores are the same."""

    student: str
    entry: Entry
    spaces: dict[str, Space]
    trials: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        seed = derive(0, "tune", self.student, self.entry.name) % 2**32
        with warnings.catch_warnings():  # optuna calls `constant_liar` experimental before 5.0
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=AT_ONCE - 1, constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._open: dict[int, optuna.Trial] = {}

    @property
    def best(self) -> Trial | None:
        """The trial with the highest score, of equal ones the first; None where all of them stopped."""
        scored = [trial for trial in self.trials if trial.score is not None]
        return max(scored, key=_score, default=None)

    def ask(self, number: int) -> Trial:
        """A further trial."""
        trial = Trial(number, {})
        if number:
            self._open[number] = asked = self._study.ask()
            trial.values = {key: _drawn(asked, key, space) for key, space in self.spaces.items()}
        self.trials.append(trial)
        return trial

    def learn(self) -> None:
        """Take in the scores that have come: the worst there is for a trial that has none."""
        for number, asked in self._open.items():
            self._study.tell(asked, _score(self.trials[number]))
        self._open.clear()


def _score(trial: Trial) -> float:
    """A trial's score; worse than any that there is for one that has none."""
    return -math.inf if trial.score is None else trial.score


def _drawn(asked: optuna.Trial, key: str, space: Space) -> Any:
    """A value of a space, with no more digits than a config is read with."""
    if not isinstance(space, Range):
        return space[asked.suggest_categorical(key, range(len(space)))]
    if space.whole:
        return asked.suggest_int(key, int(space.low), int(space.high), log=space.log)
    value = rounded(asked.suggest_float(key, space.low, space.high, log=space.log))
    return min(max(value, space.low), space.high)


class Tuning:
    """The trials of all methods of an experiment, in rounds.

    They are trained by a seed that the config's students do not have.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.config = experiment, experiment.config
        self.name = self.config.experiment.name
        self.seed = max(self.config.experiment.seeds) + 1
        self.searches = list(self._searches())
        planned = self._planned(self.config.experiment)
        self.teachers = {run.name: run for run in planned if run.role == "teacher"}
        used = {run.origin for run in planned if run.origin is not None}
        self.origins = {(run.name, run.method): run for run in planned if run in used}

    @property
    def finished_first(self) -> list[Run]:
        """What trials learn from and are made of: the same for all of them."""
        return [*self.teachers.values(), *self.origins.values()]

    def _searches(self) -> Iterator[Search]:
        asked = self.config.experiment
        for student in asked.students:
            for entry in _entries(asked):
                fitted: bool = registry.MODELS[asked.students[student].model.kind].fitted
                method, training = self.config.methods[entry.name], self.training(student, entry)
                if fitted and method.matches_cost:
                    continue
                spaces = spaces_of(entry, method, training, fitted)
                yield Search(student, entry, spaces)

    def training(self, student: str, entry: Entry) -> Training:
        """A student's training by a method as it is."""
        model = self.config.experiment.students[student]
        return self.config.training_of(model, self.config.methods[entry.name])

    def rehearse(self) -> None:
        """Try every value of every list once, before anything is trained; raises ``ConfigError``."""
        runs: list[Run] = []
        for search in self.searches:
            for key, space in search.spaces.items():
                for value in space if isinstance(space, list) else []:
                    of_student = self.runs(search.student, {search.entry.name: {key: value}}, len(runs))
                    runs += [run for run in of_student if run.method == search.entry.name]
        if runs:
            everyone = Plan(self.config, [*self.finished_first, *runs])
            rehearsal.rehearse(everyone, self.experiment.dataset, self.experiment.device)

    def round(self, numbers: Sequence[int]) -> None:
        """Draw, train and score some trials of every method.

        Those that stopped once at a loss that is not finite are not tried again.
        """
        for number in numbers:
            self.draw(number)
        self.write_trials()
        drawn = [search.trials[number] for search in self.searches for number in numbers]
        runs = [trial.run for trial in drawn if trial.run is not None]
        stopped = self.stopped(runs)
        todo = [
            run for run in runs if run.fingerprint not in stopped and self.experiment.finished(run) is None
        ]
        if todo:
            self.experiment.carry_out(Plan(self.config, [*self.finished_first, *todo]))
        stopped |= self.stopped(todo)
        if any(self.experiment.finished(run) is None and run.fingerprint not in stopped for run in todo):
            raise together(self.experiment.failures)
        self.experiment.failures.clear()
        for trial in drawn:
            self.score(trial)
        for search in self.searches:
            search.learn()
        self.write_trials()

    def draw(self, number: int) -> None:
        """Draw a trial of every method, and make the runs of those whose values go together."""
        for student in self.config.experiment.students:
            own = {search.entry.name: search for search in self.searches if search.student == student}
            drawn = {name: search.ask(number) for name, search in own.items()}
            possible = {
                name: trial.values for name, trial in drawn.items() if self.possible(own[name], trial)
            }
            for run in self.runs(student, possible, number):
                if run.method in possible:
                    drawn[run.method].run = run

    def possible(self, search: Search, trial: Trial) -> bool:
        """Whether a method can have the values of a trial together."""
        try:
            changed = with_values(search.entry, trial.values, self.training(search.student, search.entry))
            return not list(entry_problems(changed, (), self.config.experiment))
        except ConfigError:
            return False

    def score(self, trial: Trial) -> None:
        """Note how a trial came out."""
        if trial.run is not None and (result := self.experiment.finished(trial.run)) is not None:
            trial.score = result.manifest["scores"][self.config.experiment.dataset.metric]
            trial.seconds = result.manifest["train_seconds"]

    def stopped(self, runs: Iterable[Run]) -> set[str]:
        """The fingerprints of those that stopped at a loss that is not finite."""
        store = self.experiment.store
        return {
            run.fingerprint
            for run in runs
            if self.experiment.finished(run) is None
            and store.failure(run.fingerprint, f"{self.name}/{run.folder}")
        }

    def runs(self, student: str, values: Mapping[str, Values], number: int) -> Iterator[Run]:
        """The runs of a student with some values; what they learn from and are made of stays as it is."""
        for run in self._planned(self.with_values(student, values)):
            if run.role == "student" and run.name == student:
                teachers = {name: self.teachers[name] for name in run.teachers}
                origin = run.origin and self.origins[run.origin.name, run.origin.method]
                yield replace(run, trial=number, teachers=teachers, origin=origin)

    def _planned(self, asked: configs.Experiment) -> list[Run]:
        """The runs that an experiment asks for by the seed of the trials."""
        own = asked.model_copy(update={"seeds": [self.seed]})
        return plan(Config(own, self.config.source), self.experiment.dataset).runs

    def with_values(self, student: str, values: Mapping[str, Values]) -> configs.Experiment:
        """The experiment with one of its students, and of what it is made, and values in its methods and controls."""
        asked = self.config.experiment
        line = line_of(student, asked.students)
        students = {name: one for name, one in asked.students.items() if name in line}

        def changed(entry: Entry) -> Entry:
            return with_values(entry, values.get(entry.name, {}), self.training(student, entry))

        controls = [changed(control) for control in asked.controlled_by.values()]
        methods = [changed(method) for method in asked.methods]
        return asked.model_copy(update={"students": students, "controls": controls, "methods": methods})

    # ------------------------------------------------------------------------------------------- outcome

    def told(self) -> dict[str, Any]:
        """All trials so far, and what they chose."""
        return {
            "name": self.name,
            "metric": self.config.experiment.dataset.metric,
            "trials": len(self.searches[0].trials),
            "seed": self.seed,
            "chosen": [_chosen(search) for search in self.searches],
            "runs": [
                {
                    "model": search.student,
                    "method": search.entry.name,
                    "trial": trial.number,
                    "values": trial.values,
                    "score": trial.score,
                    "train_seconds": trial.seconds,
                    "fingerprint": trial.run and trial.run.fingerprint,
                }
                for search in self.searches
                for trial in search.trials
            ],
        }

    def write_trials(self) -> None:
        """Write ``tuning.json``, which keeps what it names from being cleaned away.

        The trials of a longer tuning of the same spaces stay named: it may go on.
        """
        path, told = self.experiment.store.root / self.name / "tuning.json", self.told()
        before = self.experiment.store.read(path) or {}
        same = [*map(_spaces, before.get("chosen", []))] == [*map(_spaces, told["chosen"])]
        runs = [*self.finished_first, *(t.run for s in self.searches for t in s.trials if t.run)]
        earlier = before.get("fingerprints", []) if same else []
        known = dict.fromkeys([*(run.fingerprint for run in runs), *earlier])
        write_json(path, told | {"fingerprints": list(known)})

    def write(self, student: str) -> Path:
        """Write a student's config with the chosen values: tuned controls, and each method as it was and tuned.

        A method of which nothing better was found stands there once, with its budget; one that always stopped without.
        """
        asked = self.config.experiment
        best = {search.entry.name: search.best for search in self.searches if search.student == student}
        budget = {"tuning_trials": len(self.searches[0].trials)}
        chosen = self.with_values(student, {name: trial.values for name, trial in best.items() if trial})
        changed = {entry.name: entry for entry in _entries(chosen)}
        methods: list[Entry] = []
        for method in asked.methods:
            trial, tuned = best[method.name], changed[method.name]
            methods += [method.model_copy(update=budget if trial and not trial.number else {})]
            if trial and trial.number:
                methods += [tuned.model_copy(update=budget | {"name": tuned_name(method.name)})]
        controls = [
            changed[name].model_copy(update=budget if best.get(name) else {}) for name in asked.controlled_by
        ]
        name = tuned_name(self.name) + (f"-{student}" if len(asked.students) > 1 else "")
        tuned_experiment = chosen.model_copy(update={"name": name, "methods": methods, "controls": controls})
        untold = {part: {"__all__": {"tune"}} for part in ("methods", "controls")}
        data = tuned_experiment.model_dump(mode="json", exclude_unset=True, by_alias=True, exclude=untold)
        text = HEAD.format(trials=budget["tuning_trials"], seed=self.seed) + as_yaml(data)
        both = Config(tuned_experiment, self.config.source), configs.validate(Source.parse(text, name))
        meant, written = (
            [run.fingerprint for run in plan(one, self.experiment.dataset).runs] for one in both
        )
        assert written == meant, "what is written is not what was tried"
        path = self.experiment.store.root / self.name / f"{name}.yaml"
        write_text(path, text)
        return path


HEAD = """\
# Written by `kdrun tune`: {trials} trials of each control and each method, trained by seed {seed} and scored on the
# validation share. Controls and methods named '…-tuned' have the values of the best trial; a method that was tuned and
# has no such twin was best as it is.
"""


def _entries(asked: configs.Experiment) -> list[Entry]:
    """All that is tuned: the controls and the methods."""
    return [*asked.controlled_by.values(), *asked.methods]


def _chosen(search: Search) -> dict[str, Any]:
    spaces = {
        key: space.model_dump() if isinstance(space, Range) else space for key, space in search.spaces.items()
    }
    best = search.best
    return {
        "model": search.student,
        "method": search.entry.name,
        "spaces": spaces,
        "as_configured": search.trials[0].score,
        "trial": best and best.number,
        "score": best and best.score,
        "values": best.values if best else {},
    }


def _spaces(chosen: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a method's trials are drawn from."""
    return chosen["model"], chosen["method"], chosen["spaces"]


def tuned_name(name: str) -> str:
    """What is called what it was made of, after tuning."""
    return f"{name}-tuned"


def tune(experiment: Experiment, trials: int) -> dict[str, Any]:
    """Try every method so often and write what came out: ``tuning.json``, and a config for each student.

    What is finished is not trained again, so a tuning goes on where it stopped, and one with more trials where that
    with fewer ended. Raises ``ConfigError`` and what training raises, but for trials that stop at a loss that is not
    finite.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if problems := list(_problems(experiment.config)):
        raise experiment.config.error(problems)
    tuning = Tuning(experiment)
    tuning.rehearse()
    for first in range(0, trials, AT_ONCE):
        tuning.round(range(first, min(first + AT_ONCE, trials)))
    written = [str(tuning.write(student)) for student in experiment.config.experiment.students]
    return tuning.told() | {"configs": written}


def _problems(config: Config) -> Iterator[Problem]:
    """Why a config cannot be tuned that can be compared."""
    asked = config.experiment
    if asked.dataset.validation == 0:
        hint = "add `validation: 0.2` to the data set; the test set is not for choosing"
        yield Problem(("dataset",), "tuning needs a validation share", hint)
    names = [method.name for method in asked.methods]
    paths: dict[Path_, str] = {("methods", number, "name"): name for number, name in enumerate(names)}
    for path, name in {("name",): asked.name, **paths}.items():
        tuned = tuned_name(name)
        if path == ("name",) and len(asked.students) > 1:
            tuned += f"-{max(asked.students, key=len)}"
        if tuned in names and path != ("name",):
            yield Problem(
                path, f"'{name}' when tuned would be '{tuned}', another method", "take one of them out"
            )
        if len(tuned) > MOST_LETTERS:
            words = f"'{tuned}', as it would be called when tuned, is longer than {MOST_LETTERS} letters"
            yield Problem(path, words, "write a shorter name")
