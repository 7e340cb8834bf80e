"""From a config to the runs that it asks for: what each is, what decides it, and in which order they train."""

from __future__ import annotations

import hashlib
import inspect
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from kdrun import errors, models, registry
from kdrun.config import Config, Method, StudentConfig, TeacherConfig
from kdrun.config.origins import origins_first
from kdrun.contracts import Dataset, Draw, LossConfig, ModelConfig, Spec
from kdrun.controls import ALONE, CONTROLS
from kdrun.errors import Mismatch, OutOfMemory
from kdrun.models.weights import demand_memory
from kdrun.optimization import SEEN_BY_FITTED, Stage, Training
from kdrun.schema import as_list, sides
from kdrun.statistics.scores import RECALL, RETURN
from kdrun.store import fingerprint

RESULT_VERSION = 4
"""Raised whenever a change of kdrun changes results, so that old ones are not taken for new ones."""


STUDENTS_ALONE = {"labels_per_class", "leave_out", "transfer_set"}
"""Keys of a data set that decide nothing for a teacher."""
SHOWN = {"states", "validation", "validation_episodes"}
"""Keys of a data set of states that decide nothing for who is shown none of them."""
LATER = {"leave_out", "transfer_set", "unseen"}
"""Keys of a data set that are younger than the results: where they ask for nothing, they are not there."""
LATER_OF_MODELS = {"distillation_token", "physics"}
"""Options of models of which the same is true."""

ROLES = ("teacher", "student")
Way = Literal["read", "combined", "fitted", "trained", "reinforced"]
Kin = tuple[str, str, str | None, int | None]
"""Role, name, method and trial: what runs have in common that differ by their seeds."""


@dataclass(frozen=True, eq=False)
class Run:
    """One model, one method, one seed."""

    role: str
    name: str
    method: str | None
    seed: int
    model: ModelConfig
    training: Training
    losses: tuple[LossConfig, ...]
    loss_paths: tuple[errors.Path, ...]
    path: errors.Path
    view: str | None
    data: dict[str, Any]
    metric: str
    device: str
    stages: tuple[Stage, ...] = ()
    momentum_gap: float | None = None
    resize: tuple[int, int] | None = None
    normalization: models.Normalization | None = None
    labels: Literal["all", "given"] = "given"
    """whose samples and labels it sees: the whole training set's, or those that are given to the students"""
    labelled_only: bool = False
    teachers: dict[str, Run] = field(default_factory=dict)
    origin: Run | None = None
    """the finished run that its model is made of"""
    environment: str | None = None
    """the one of several environments that it is for, of which its data set is then"""
    demonstrator: Run | None = None
    """the teacher whose samples it sees, where a teacher has to show them"""
    weights: Any = None
    expect: float | None = None
    weights_hash: str | None = None
    folds: int = 0
    """into how many parts the training set is cut for cross-fitting"""
    trial: int | None = None
    """its number in a tuning; a trial is scored on the validation share and never sees the test set"""

    @property
    def title(self) -> str:
        """How messages call it."""
        last = f"seed {self.seed}" if self.trial is None else f"trial {self.trial}"
        return "/".join([self.name, *([self.method] if self.method else []), last])

    @property
    def way(self) -> Way:
        """How it comes to its weights: from a file, of its teachers, at once, in steps, or by acting for rewards."""
        if self.weights is not None:
            return "read"
        model = registry.MODELS[self.model.kind]
        if model.reinforced:
            return "reinforced"
        return "combined" if model.combines else "fitted" if model.fitted else "trained"

    @property
    def learns(self) -> bool:
        """Whether there is anything that it learns from."""
        return self.way in ("fitted", "trained", "reinforced")

    @property
    def needs(self) -> list[Run]:
        """The runs that have to be finished before it begins."""
        return [
            *self.teachers.values(),
            *(run for run in (self.origin, self.demonstrator) if run is not None),
        ]

    @property
    def kin(self) -> Kin:
        """What it has in common with the runs of other seeds."""
        return self.role, self.name, self.method, self.trial

    @property
    def folder(self) -> str:
        """Where it lies below the experiment's folder."""
        if self.role == "teacher":
            return f"teachers/{self.name}/seed-{self.seed}"
        if self.trial is not None:
            return f"tuning/{self.name}/{self.method}/trial-{self.trial}"
        return f"students/{self.name}/{self.method}/seed-{self.seed}"

    @cached_property
    def views(self) -> frozenset[str]:
        """The views that it names: the one that it sees, and further ones of its losses."""
        named = [self.view, *(getattr(loss, "view", None) for loss in self.losses)]
        return frozenset(view for view in named if view is not None)

    def without_files(self) -> Run:
        """The run with a model that starts from no file's weights and from none that are downloaded."""
        files = {"initial_weights": None, "pretrained": False}.items()
        without = {key: value for key, value in files if hasattr(self.model, key)}
        return replace(self, model=self.model.model_copy(update=without))

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """All that the config asks and that decides the result, names left out."""
        what = {
            "result_version": RESULT_VERSION,
            "role": self.role,
            "device": self.device,
            "dataset": self._data_seen(),
            "model": self.model.model_dump(mode="json", exclude={"initial_weights"} | self._idle_of_model),
            "view": self.view,
            **self.lens_inputs,
            "plugins": self._plugin_code(),
        }
        if self.metric == RECALL:  # what embeddings find is kept beside what all other scores are made of
            what["scored_by"] = self.metric
        if self.weights_hash is not None:
            return what | {"weights": self.weights_hash}
        if self.way == "combined":
            members = [teacher.fingerprint for teacher in self.teachers.values()]
            return what | {"members": members, "selected_by": self.metric}
        if self.trial is not None:
            what["scored_on"] = "validation"
        return what | {
            "seed": self.seed,
            "initial_weights": _file_hash(self.model.initial_weights),
            "training": self._training_inputs(),
            "selected_by": self.metric if self.training.selection == "best-on-validation" else None,
            "losses": [self._loss_inputs(loss) for loss in self.losses],
            "stages": [stage.model_dump(mode="json") for stage in self.stages],
            "momentum_gap": self.momentum_gap,
            **({"folds": self.folds} if self.folds else {}),
            **({"origin": self.origin.fingerprint} if self.origin is not None else {}),
            **({"demonstrator": self.draw.demonstrator} if self.draw.demonstrator else {}),
        }

    @property
    def _idle_of_model(self) -> set[str]:
        return {key for key in LATER_OF_MODELS if getattr(self.model, key, None) in (None, False)}

    def _training_inputs(self) -> dict[str, Any]:
        """What of its training decides the result."""
        training = self.training.model_dump(mode="json")
        if self.way == "reinforced":  # its model says how
            return {}
        if self.way == "fitted":
            training = {key: value for key, value in training.items() if key in SEEN_BY_FITTED}
        idle = {key for key in ("queries", "labelled_share", "rollouts") if getattr(self.draw, key) is None}
        idle |= {key for key in ("frozen_epochs", "body_lr") if not getattr(self.training, key)}
        return {key: value for key, value in training.items() if key not in idle}

    @property
    def lens_inputs(self) -> dict[str, Any]:
        """What it asks of its inputs beside the view."""
        size = {} if self.resize is None else {"resize": [*self.resize]}
        own = {} if self.normalization is None else {"normalization": self.normalization.model_dump()}
        return size | own

    def lens(self, spec: Spec, device: torch.device) -> models.Lens | None:
        """What it sees its view through; raises ``Mismatch``."""
        spec = spec.of(self.environment)
        view = self.view or spec.default_view
        units = spec.units(view) if self.normalization is not None and spec.units is not None else None
        return models.lens_for(self.resize, self.normalization, spec.shapes[view], units, device)

    @property
    def _lacks_labels(self) -> bool:
        """Whether it learns in steps from samples of which some have no label that it may see."""
        hidden = any(self.data.get(key) is not None for key in ("labels_per_class", "transfer_set"))
        return hidden and self.labels == "given" and self.way == "trained" and not self.labelled_only

    def _data_seen(self) -> dict[str, Any]:
        """What decides the samples that it sees: of further views only what it looks at."""
        views = {name: how for name, how in self.data.get("views", {}).items() if name in self.views}
        left_out = {"views"} if self.views - views.keys() else {"views", "strong_view"}
        left_out |= {key for key in LATER if self.data.get(key) is None}
        seen = {key: value for key, value in self.data.items() if key not in left_out}
        return seen | ({"views": views} if views else {})

    def _plugin_code(self) -> dict[str, str]:
        """The hash of the source of every component that is not kdrun's own: mended code makes another result."""
        named = [("model", self.model.kind), ("dataset", self.data["kind"])]
        named += [("loss", loss.kind) for loss in self.losses]
        classes = [registry.FAMILIES[family][kind] for family, kind in named]
        modules = {c.__module__ for c in classes if not c.__module__.startswith("kdrun.")}
        return {name: _source_hash(name) for name in sorted(modules)}

    def _loss_inputs(self, loss: LossConfig) -> dict[str, Any]:
        teachers = [self.teachers[name].fingerprint for name in loss.teachers]
        return loss.model_dump(mode="json") | {"name": loss.label, "teacher": teachers}

    @cached_property
    def fingerprint(self) -> str:
        """The hash of ``inputs``."""
        return fingerprint(self.inputs)

    @cached_property
    def draw(self) -> Draw:
        """Which batches it sees."""
        rollouts = self.training.rollouts if self.demonstrator is not None else None
        return Draw(
            seed=self.seed,
            batch_size=self.training.batch_size,
            labels=self.labels,
            labelled_only=self.labelled_only,
            labelled_share=self.training.labelled_share if self._lacks_labels else None,
            mixup=self.training.mixup,
            cutmix=self.training.cutmix,
            queries=self.training.queries if self.teachers else None,
            rollouts=rollouts,
            actor=self.title if rollouts is not None and rollouts.source != "teacher" else "",
            demonstrator="" if self.demonstrator is None else self.demonstrator.fingerprint,
            purpose=self.role,
        )

    @cached_property
    def group(self) -> tuple[Draw, int, str, str | None]:
        """Runs of one group train in lock step: those of one seed, and where students are stacked those of all."""
        draw = self.draw
        if self.training.stack and self.role == "student" and self.way == "trained":
            draw = replace(draw, seed=-1, actor="")
        return draw, self.training.epochs, self.training.precision, self.environment


@dataclass(frozen=True)
class Plan:
    """All runs of an experiment, teachers before those that learn from them."""

    config: Config
    runs: list[Run]

    def groups(self, todo: Iterable[Run]) -> Iterator[list[Run]]:
        """The runs that are to be trained, in groups, no group before its teachers and what it is made of.

        Methods that come to the same are one run: the first of them stands for all.
        """
        first_of: dict[str, Run] = {}
        for run in todo:
            first_of.setdefault(run.fingerprint, run)
        waiting = list(first_of.values())
        while waiting:
            unfinished = {run.fingerprint for run in waiting}
            ready = [
                run for run in waiting if not any(needed.fingerprint in unfinished for needed in run.needs)
            ]
            first = ready[0]
            group = [run for run in ready if run.group == first.group and run.way == first.way]
            yield group
            waiting = [run for run in waiting if run not in group]

    def select(self, roles: Iterable[str], methods: Iterable[str] | None = None) -> Plan:
        """The runs of some roles, and of the students only some methods; their teachers are kept, and their origins."""
        wanted = {
            run
            for run in self.runs
            if run.role in roles
            and (run.role == "teacher" or methods is None or run.method in {*CONTROLS, *methods})
        }
        while origins := {run.origin for run in wanted if run.origin is not None} - wanted:
            wanted |= origins
        return Plan(self.config, [run for run in self.runs if run in wanted])


def plan(config: Config, dataset: Dataset) -> Plan:
    """The runs that a config asks for, of its data set."""
    experiment = config.experiment
    everyone = (*experiment.teachers.values(), *experiment.students.values())
    identities = {name: dataset.of(name).identity() for name in {one.environment for one in everyone}}
    teachers: dict[tuple[str, int], Run] = {}
    for name in _in_order(experiment.teachers):
        teacher = experiment.teachers[name]
        for seed in experiment.seeds if teacher.seeds == "each" else [teacher.seed]:
            data = identities[teacher.environment]
            teachers[name, seed] = _teacher_run(config, name, teacher, seed, data, teachers)
    runs = list(teachers.values())
    for seed in experiment.seeds:
        made: dict[str, list[Run]] = {}
        for name in origins_first(experiment.students):
            student = experiment.students[name]
            data = identities[student.environment]
            origin = _origin(student, made)
            own = [
                replace(_student_run(config, name, student, method, seed, data, teachers), origin=origin)
                for method in config.methods.values()
                if not (method.matches_cost and registry.MODELS[student.model.kind].fitted)
            ]
            made[name] = _costs_matched(own, config, dataset)
        runs += [run for name in experiment.students for run in made[name]]
    return Plan(config, runs)


def _origin(student: StudentConfig, made: dict[str, list[Run]]) -> Run | None:
    """The run that a student is made of, of those of its seed."""
    if student.from_ is None:
        return None
    return next(run for run in made[student.from_] if run.method == (student.method or ALONE))


def _costs_matched(runs: list[Run], config: Config, dataset: Dataset) -> list[Run]:
    """A student's runs of one seed, with the epochs of those that are to cost what the dearest other one costs.

    Counted are multiply-accumulates: three passes of the student and of its peers for each sample of a step, one of its
    average where that teaches it, and one of each of its teachers for each view that it is shown; not the losses', nor
    their adapters', nor those of samples that a network holds, nor what a teacher costs that is fitted at once, since
    only its samples decide that.
    """
    matching = [run for run in runs if config.methods[run.method or ALONE].matches_cost]
    try:
        costs = {run: _macs_of_a_step(run, config, dataset) for run in runs} if matching else {}
        dearest = max((cost for run, cost in costs.items() if run.method not in CONTROLS), default=0)
    except (Mismatch, OutOfMemory):  # no model can be trained then, and the rehearsal says why, and where
        return runs

    def matched(run: Run) -> Run:
        epochs = math.ceil(run.training.epochs * max(dearest / costs[run], 1))
        return replace(run, training=run.training.model_copy(update={"epochs": epochs}))

    return [matched(run) if run in matching else run for run in runs]


def _macs_of_a_step(run: Run, config: Config, dataset: Dataset) -> int:
    dataset = dataset.of(run.environment)
    data, spec, samples = config.experiment.dataset, dataset.spec, run.training.batch_size
    if run.labelled_only:
        samples = min(samples, dataset.training_samples(replace(run.draw, labels="all")))
        if data.labels_per_class is not None:
            samples = min(samples, data.labels_per_class * (spec.classes - len(data.leave_out or [])))
    further = {getattr(loss, "view", None) for loss in run.losses if loss.teachers}
    views = len(further | {None})
    taught = sum(views * _macs(teacher, spec) for teacher in run.teachers.values())
    passes = 3 + sum(loss.passes for loss in run.losses)
    others = [replace(run, model=model) for loss in run.losses for model in loss.networks]
    own = passes * _macs(run, spec) + 3 * sum(_macs(other, spec) for other in others)
    return samples * (views * own + taught)


def _macs(run: Run, spec: Spec) -> int:
    if run.way == "combined":  # of training samples all members are asked
        return sum(_macs(member, spec) for member in run.teachers.values())
    spec, cpu = spec.of(run.environment), torch.device("cpu")
    shape, lens = spec.shapes[run.view or spec.default_view], run.lens(spec, cpu)
    heads = models.heads_for(spec, cpu)
    model = models.build(run.without_files().model, shape, spec.classes, 0, lens, heads=heads)
    return models.macs(model, shape)


def _in_order(teachers: dict[str, TeacherConfig]) -> list[str]:
    """Names such that a distilled teacher comes after those it is distilled from."""
    order: list[str] = []
    while len(order) < len(teachers):
        order += [n for n, t in teachers.items() if n not in order and set(t.sources) <= set(order)]
    return order


def _teacher_run(
    config: Config,
    name: str,
    teacher: TeacherConfig,
    seed: int,
    data: dict[str, Any],
    known: dict[tuple[str, int], Run],
) -> Run:
    sources = {source: _serving(source, seed, known) for source in teacher.sources}
    method, as_students = config.teaching(teacher, ("teachers", name, "method")), teacher.labels == "given"
    demonstrator = config.experiment.demonstrator_of(teacher.environment) if teacher.sources else None
    return _run(
        config,
        teacher,
        method,
        role="teacher",
        name=name,
        method=teacher.method,
        seed=seed,
        data=data if as_students else _as_teachers_see(data, demonstrator is not None),
        labels=teacher.labels,
        labelled_only=as_students and _labelled_only(config, method),
        view=next(iter(sources.values())).view
        if registry.MODELS[teacher.model.kind].combines
        else teacher.view,
        teachers=sources,
        weights=teacher.weights,
        expect=teacher.expect,
        weights_hash=_file_hash(teacher.weights),
        folds=teacher.folds,
        demonstrator=None if demonstrator in (None, name) else _serving(demonstrator, seed, known),
    )


def _as_teachers_see(data: dict[str, Any], shown: bool) -> dict[str, Any]:
    """A data set's identity without what concerns its students alone: what they do not see, that copies are fixed.

    Where states have to be shown, and none are ``shown`` to the teacher, these decide nothing either.
    """
    alone = STUDENTS_ALONE if shown or not registry.DATASETS[data["kind"]].plays else STUDENTS_ALONE | SHOWN
    seen = {key: value for key, value in data.items() if key not in alone}
    match seen.get("augmentation"):
        case {"copies": _, "parts": parts}:
            seen["augmentation"] = parts
    return seen


def _run(
    config: Config, model: TeacherConfig | StudentConfig, mix: Method, /, role: str, name: str, **rest: Any
) -> Run:
    """A run with what teachers and students have in common."""
    return Run(
        role=role,
        name=name,
        model=model.model,
        training=config.training_of(model, mix),
        losses=mix.losses,
        loss_paths=mix.paths,
        stages=mix.stages,
        momentum_gap=mix.momentum_gap,
        resize=None if model.resize is None else sides(model.resize),
        normalization=model.normalization,
        path=(f"{role}s", name),
        metric=config.experiment.dataset.metric if model.environment is None else RETURN,
        environment=model.environment,
        device=config.experiment.device,
        **rest,
    )


def _student_run(
    config: Config,
    name: str,
    student: StudentConfig,
    method: Method,
    seed: int,
    data: dict[str, Any],
    teachers: dict[tuple[str, int], Run],
) -> Run:
    demonstrator = config.experiment.demonstrator_of(student.environment)
    if config.experiment.environments:
        method = method.towards(as_list(demonstrator))
    names = dict.fromkeys(name for loss in method.losses for name in loss.teachers)
    return _run(
        config,
        student,
        method,
        role="student",
        name=name,
        method=method.name,
        seed=seed,
        view=student.view,
        data=data,
        labelled_only=_labelled_only(config, method),
        teachers={teacher: _serving(teacher, seed, teachers) for teacher in names},
        demonstrator=None if demonstrator is None else _serving(demonstrator, seed, teachers),
    )


def _labelled_only(config: Config, method: Method) -> bool:
    """Whether who sees what is given to the students learns from its labelled samples only, and there are others."""
    data = config.experiment.dataset
    few = data.labels_per_class is not None or data.transfer_set is not None
    of_all = any(loss.teachers or registry.LOSSES[loss.kind].learns_unlabelled for loss in method.losses)
    return few and not of_all


def _serving(name: str, seed: int, teachers: dict[tuple[str, int], Run]) -> Run:
    """The run of a teacher that serves a student's seed: its own, or the only one."""
    return teachers.get((name, seed)) or next(run for (n, _), run in teachers.items() if n == name)


def _file_hash(path: Path | None) -> str | None:
    """The SHA-256 of a file of weights; many runs may start from one, so it is read once while it stays as it is."""
    if path is None:
        return None
    demand_memory(path)
    return _hashed(path, path.stat().st_mtime_ns, path.stat().st_size)


@cache
def _hashed(path: Path, _changed: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _source_hash(module: str) -> str:
    try:
        source = inspect.getsource(sys.modules[module])
    except OSError:  # typed in, or compiled: nothing to look at
        return ""
    return hashlib.sha256(source.encode()).hexdigest()
