"""Equal budgets: as many trials for every method as for its controls, scored on the validation share alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna

from kdrun import config as configs
from kdrun import rehearsal
from kdrun.config import Config, ControlConfig, MethodConfig
from kdrun.config.spaces import Range, Space, rounded, spaces_of, with_values
from kdrun.errors import Problem, UsageError
from kdrun.experiment import Experiment
from kdrun.plan import Plan, Run, plan
from kdrun.randomness import derive
from kdrun.split import together
from kdrun.store import write_json
from kdrun.store.files import write_text
from kdrun.yamlsource import Source, as_yaml

AT_ONCE = 10
"""Trials of a method that are drawn before the first of them is scored, and so can train in lock step."""

Values = dict[str, Any]


@dataclass
class Trial:
    """A set of values, the run that tries them, and how that does on the validation samples; None if it stopped.

    The first trial of a method is the method as the config has it.
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
    entry: MethodConfig | ControlConfig
    spaces: dict[str, Space]
    trials: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        seed = derive(0, "tune", self.student, self.entry.name) % 2**32
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=AT_ONCE - 1, constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._open: dict[int, optuna.Trial] = {}

    @property
    def best(self) -> Trial:
        """The trial with the highest score, of equal ones the first."""
        return max(self.trials, key=lambda trial: -1.0 if trial.score is None else trial.score)

    def ask(self, number: int) -> Trial:
        """A further trial."""
        trial = Trial(number, {})
        if number:
            self._open[number] = asked = self._study.ask()
            trial.values = {key: _drawn(asked, key, space) for key, space in self.spaces.items()}
        self.trials.append(trial)
        return trial

    def learn(self) -> None:
        """Take in the scores that have come: the worst there is for a trial that stopped."""
        for number, asked in self._open.items():
            self._study.tell(asked, self.trials[number].score or 0.0)
        self._open.clear()


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

    def _searches(self) -> Iterator[Search]:
        asked = self.config.experiment
        for student in asked.students:
            for entry in _entries(asked):
                method = self.config.methods[entry.name]
                training = self.config.training_of(asked.students[student], method)
                yield Search(student, entry, spaces_of(entry, method, training))

    def rehearse(self) -> None:
        """Try every value of every list once, before anything is trained; raises ``ConfigError``."""
        runs = list(self.teachers.values())
        for search in self.searches:
            for key, space in search.spaces.items():
                for value in space if isinstance(space, list) else []:
                    of_student = self.runs(search.student, {search.entry.name: {key: value}}, len(runs))
                    runs += [run for run in of_student if run.method == search.entry.name]
        rehearsal.rehearse(Plan(self.config, runs), self.experiment.dataset.spec, self.experiment.device)

    def round(self, numbers: Sequence[int]) -> None:
        """Draw, train and score some trials of every method.

        Those that stopped once at a loss that is not finite are not tried again.
        """
        for number in numbers:
            asked = {(search.student, search.entry.name): search.ask(number) for search in self.searches}
            for student in self.config.experiment.students:
                values = {name: trial.values for (of, name), trial in asked.items() if of == student}
                for run in self.runs(student, values, number):
                    assert run.method is not None
                    asked[student, run.method].run = run
        runs = [trial.run for search in self.searches for trial in search.trials if trial.run is not None]
        stopped = self.stopped(runs)
        todo = [run for run in runs if run.fingerprint not in stopped]
        self.experiment.carry_out(Plan(self.config, [*self.teachers.values(), *todo]))
        stopped |= self.stopped(todo)
        if any(self.experiment.finished(run) is None and run.fingerprint not in stopped for run in todo):
            raise together(self.experiment.failures)
        self.experiment.failures.clear()
        for search in self.searches:
            for number in numbers:
                self.score(search.trials[number])
            search.learn()

    def score(self, trial: Trial) -> None:
        """Note how a trial came out."""
        assert trial.run is not None
        if (result := self.experiment.finished(trial.run)) is not None:
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
        """The runs of a student with some values; the teachers stay as they are, whatever trains them."""
        for run in self._planned(self.with_values(student, values)):
            if run.role == "student":
                teachers = {name: self.teachers[name] for name in run.teachers}
                yield replace(run, trial=number, teachers=teachers)

    def _planned(self, asked: configs.Experiment) -> list[Run]:
        """The runs that an experiment asks for by the seed of the trials."""
        own = asked.model_copy(update={"seeds": [self.seed]})
        return plan(Config(own, self.config.source), self.experiment.dataset).runs

    def with_values(self, student: str, values: Mapping[str, Values]) -> configs.Experiment:
        """The experiment with one of its students, and values in its methods and controls."""
        asked = self.config.experiment
        model = asked.students[student]

        def changed(entry: Any) -> Any:
            training = self.config.training_of(model, self.config.methods[entry.name])
            return with_values(entry, values.get(entry.name, {}), training)

        controls = [changed(control) for control in asked.controlled_by.values()]
        methods = [changed(method) for method in asked.methods]
        return asked.model_copy(
            update={"students": {student: model}, "controls": controls, "methods": methods}
        )

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

    def write(self, student: str) -> Path:
        """Write a student's config with the chosen values: tuned controls, and each method as it was and tuned."""
        asked, searches = self.config.experiment, [s for s in self.searches if s.student == student]
        budget = {"tuning_trials": len(searches[0].trials)}
        chosen = self.with_values(student, {search.entry.name: search.best.values for search in searches})
        tuned = {method.name: method.model_copy(update=budget) for method in chosen.methods}
        update = {
            "name": tuned_name(self.name) + (f"-{student}" if len(asked.students) > 1 else ""),
            "controls": [entry.model_copy(update=budget) for entry in chosen.controlled_by.values()],
            "methods": [
                version
                for method in asked.methods
                for version in (
                    method.model_copy(update={"tune": None}),
                    tuned[method.name].model_copy(update={"name": tuned_name(method.name)}),
                )
            ],
        }
        data = chosen.model_copy(update=update).model_dump(
            mode="json", exclude_unset=True, exclude_none=True, by_alias=True
        )
        text = HEAD.format(trials=budget["tuning_trials"], seed=self.seed) + as_yaml(data)
        configs.validate(Source.parse(text, str(update["name"])))
        path = self.experiment.store.root / self.name / f"{update['name']}.yaml"
        write_text(path, text)
        return path


HEAD = """\
# Written by `kdrun tune`: {trials} trials of each control and each method, trained by seed {seed} and scored on the
# validation share. Controls, and the methods named '…-tuned', have the values of the best trial.
"""


def _entries(asked: configs.Experiment) -> list[MethodConfig | ControlConfig]:
    """All that is tuned: the controls and the methods."""
    return [*asked.controlled_by.values(), *asked.methods]


def _chosen(search: Search) -> dict[str, Any]:
    spaces = {
        key: space.model_dump() if isinstance(space, Range) else space for key, space in search.spaces.items()
    }
    return {
        "model": search.student,
        "method": search.entry.name,
        "spaces": spaces,
        "as_configured": search.trials[0].score,
        "trial": search.best.number,
        "score": search.best.score,
        "values": search.best.values,
    }


def tuned_name(name: str) -> str:
    """What is called what it was made of, after tuning."""
    return f"{name}-tuned"


def tune(experiment: Experiment, trials: int) -> dict[str, Any]:
    """Try every method so often and write what came out: ``tuning.json``, and a config for each student.

    What is finished is not trained again, so a tuning goes on where it stopped, and one with more trials where that
    with fewer ended. Raises ``UsageError``, ``ConfigError`` and what training raises, but for trials that stop at a
    loss that is not finite.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = experiment.config
    if config.experiment.dataset.validation == 0:
        hint = "add `validation: 0.2` to the data set; the test set is not for choosing"
        raise config.error([Problem(("dataset",), "tuning needs a validation share", hint)])
    names = [method.name for method in config.experiment.methods]
    for name in names:
        if tuned_name(name) in names:
            raise UsageError(f"'{name}' when tuned would be '{tuned_name(name)}', another method; rename one")
    tuning = Tuning(experiment)
    tuning.rehearse()
    for first in range(0, trials, AT_ONCE):
        tuning.round(range(first, min(first + AT_ONCE, trials)))
        write_json(experiment.store.root / config.experiment.name / "tuning.json", tuning.told())
    written = [str(tuning.write(student)) for student in config.experiment.students]
    return tuning.told() | {"configs": written}
