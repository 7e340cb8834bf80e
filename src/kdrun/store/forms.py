"""What the JSON files in a folder of runs hold, as far as anybody relies on it.

A seal shows that a file is as it was written, and not that kdrun wrote it: a folder of runs may come from elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, model_validator

from kdrun.controls import ALONE
from kdrun.errors import DamagedError, shown
from kdrun.statistics.scores import NORMALISED, RECALL, RETURN, Metric

WORD = "[A-Za-z0-9][A-Za-z0-9._-]*"
Word = Annotated[str, Field(pattern=f"^{WORD}$")]
"""A name or a fingerprint: what may be the name of a file, and leads nowhere else."""
Place = Annotated[str, Field(pattern=f"^{WORD}(/{WORD})*$")]
"""A folder below that of the runs."""
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Share = Annotated[float, Field(ge=0, le=1)]


Bin = Annotated[tuple[Annotated[float, Field(ge=1, le=1e15)], Share, Share], Field(strict=False)]
"""Samples, and their confidence and accuracy."""


class Form(BaseModel):
    """Nothing is converted, and what nobody relies on may be there, too."""

    model_config = ConfigDict(strict=True, protected_namespaces=())


class File(Form):
    """Size and SHA-256."""

    bytes: Count
    sha256: str


class Scores(Form):
    """Every metric of classes, or that of embeddings or of agents, or of these two kinds, and others."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number]

    accuracy: Share | None = None
    balanced_accuracy: Share | None = Field(default=None, alias="balanced-accuracy")
    macro_f1: Share | None = Field(default=None, alias="macro-f1")
    recall: Share | None = Field(default=None, alias=RECALL)
    return_: Number | None = Field(default=None, alias=RETURN)
    normalised: Number | None = Field(default=None, alias=NORMALISED)

    @model_validator(mode="after")
    def _some(self) -> Self:
        of_classes = self.accuracy, self.balanced_accuracy, self.macro_f1
        of_others = self.recall, self.return_, self.normalised
        if None in of_classes and not any(score is not None for score in of_others):
            raise ValueError("a metric is missing")
        return self


class Likeness(Form):
    """How alike a student and its teachers are; of several environments also in each."""

    agreement: Number | None
    copied_errors: Number | None
    kl_to_teacher: Number | None
    within: dict[Word, Likeness] = {}


class Likenesses(Form):
    """The same on both splits, and on the states that an agent itself visits."""

    train: Likeness
    test: Likeness
    own: Likeness | None = None


class Details(Form):
    """What the report shows of the test samples."""

    by_class: list[Share | None]
    reliability: list[Bin]
    classes: list[str]
    unseen: Count = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.by_class) != len(self.classes):
            raise ValueError(f"{len(self.by_class)} scores for {len(self.classes)} classes")
        return self


class Cost(Form):
    """What a model costs."""

    parameters: Count
    macs: Count
    zeros: Count = 0


class Protocol(Form):
    """How it was scored."""

    dataset: str
    test_samples: Annotated[int, Field(ge=1)]
    test_sha256: str


class Component(Form):
    """A component's options, as far as they say which it is."""

    kind: str


class Inputs(Form):
    """What decided a run, as far as an experiment relies on it of which the run is a teacher."""

    dataset: Component
    model: Component
    view: str | None
    plugins: dict[str, str]
    losses: list[Component] = []


class Trial(Form):
    """``result.json`` of a trial of a tuning."""

    fingerprint: Word
    inputs: dict[str, Any]
    files: dict[Word, File]
    scores: Scores
    train_seconds: Seconds


class Finished(Trial):
    """``result.json`` of a teacher or a student."""

    likeness: Likenesses | None
    details: Details
    cost: Cost
    protocol: Protocol

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if missing := {"metrics.jsonl", "weights.safetensors", "predictions.npz"} - self.files.keys():
            raise ValueError(f"no {', '.join(sorted(missing))}")
        return self


class Begun(Form):
    """``begun.json``."""

    fingerprint: Word
    inputs: dict[str, Any]
    total_steps: Count = 1


class Failure(Form):
    """``failure.json``."""

    what: str


class Run(Form):
    """A run that ``resolved.json`` asks for."""

    role: Literal["teacher", "student"]
    name: Word
    method: Word | None
    seed: Count
    fingerprint: Word
    folder: Place
    model: str
    teachers: dict[Word, Word]
    origin: Word | None = None
    environment: Word | None = None
    fitted: bool = False
    combined: Literal["ensemble", "cascade", "specialists"] | None = None
    tuning_trials: int | None = None


class Resolved(Form):
    """``resolved.json``."""

    name: Word
    metric: Metric
    left_out: list[str] = []
    overrides: list[str] = []
    config: dict[str, Any]
    ensembles: list[list[Word]]
    runs: Annotated[list[Run], Field(min_length=1)]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        known = {run.fingerprint for run in self.runs}
        teachers = {run.name for run in self.runs if run.role == "teacher"}
        students = {run.name for run in self.runs if run.role == "student"}
        if not known.issuperset(teacher for run in self.runs for teacher in run.teachers.values()):
            raise ValueError("a run's teacher is no run")
        if not known.issuperset(run.origin for run in self.runs if run.origin is not None):
            raise ValueError("what a run is made of is no run")
        if not teachers.issuperset(name for names in self.ensembles for name in names):
            raise ValueError("an ensemble's teacher is no run")
        if students != {run.name for run in self.runs if run.method == ALONE}:
            raise ValueError("a student without its control")
        return self


class Latency(Form):
    """Of one sample, in milliseconds."""

    p50: Number
    p95: Number


class Measured(Form):
    """What was measured of one architecture."""

    latency_ms: Latency
    throughput: Number
    peak_memory_bytes: Count


class Costs(Form):
    """``costs.json``."""

    conditions: dict[str, Any]
    models: dict[str, Measured]


class Provenance(RootModel[dict[str, str | int | list[str] | None]]):
    """``provenance.json``."""


class Indexed(Form):
    """An entry of the index."""

    folder: Place


class Chosen(Form):
    """What was chosen for a method."""

    model: str
    method: str
    spaces: dict[str, Any]


class Tuning(Form):
    """``tuning.json``."""

    fingerprints: list[Word]
    chosen: list[Chosen]


class Bound(Form):
    """What a rule says of a feature."""

    feature: str
    above: Number | None
    at_most: Number | None

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.above is None and self.at_most is None:
            raise ValueError("a bound without a number")
        return self


class Rule(Form):
    """A rule of a tree."""

    if_: list[Bound] = Field(alias="if")
    then: str
    samples: Count
    support: Share
    confidence: Share | None


class Rules(Form):
    """``rules.json``."""

    features: list[str]
    classes: list[str]
    samples: Count
    rules: Annotated[list[Rule], Field(min_length=1)]

    @model_validator(mode="after")
    def _known(self) -> Self:
        features, classes = set(self.features), set(self.classes)
        if len(self.rules) > 1 and not all(rule.if_ for rule in self.rules):
            raise ValueError("a rule that is always true stands beside others")
        for rule in self.rules:
            if rule.then not in classes or not features.issuperset(bound.feature for bound in rule.if_):
                raise ValueError("a rule names what is not there")
        return self


class Manifest(Form):
    """``manifest.json`` of a checkpoint, or of arrays that are kept to be read again."""

    files: dict[Word, File]


class Term(Form):
    """A term of a loss in one epoch."""

    value: Number | None
    weight: Number
    gradient_share: Number | None


class Line(Form):
    """A line of ``metrics.jsonl``."""

    epoch: Count
    environment_steps: Count | None = None
    terms: dict[str, Term]
    validation: Scores | None


class State(Form):
    """``state.json`` of a checkpoint."""

    epochs_closed: Count
    best_score: Number | None
    seconds: Number
    metrics: list[Line]
    sums: dict[str, Number]
    shares: dict[str, Number | None] | None
    both_gradients: list[bool]
    resolved: dict[str, Any]
    threads: Annotated[int, Field(ge=1)]


FORMS: dict[str, type[BaseModel]] = {
    "result.json": Finished,
    "begun.json": Begun,
    "failure.json": Failure,
    "resolved.json": Resolved,
    "costs.json": Costs,
    "provenance.json": Provenance,
    "tuning.json": Tuning,
    "manifest.json": Manifest,
    "rules.json": Rules,
}
"""By the file's name; those of the index are named by fingerprints."""


def demand_form(path: Path, value: Any) -> None:
    """Raise ``DamagedError`` where a file of kdrun's holds what kdrun does not write there."""
    form = Indexed if path.parent.name == "index" else FORMS.get(path.name)
    if form is Finished and path.parent.name.startswith("trial-"):
        form = Trial
    if form is not None:
        fit(path, form, value)


def fit(path: Path, form: type[BaseModel], value: Any) -> None:
    """Raise ``DamagedError`` where what a file holds is not of a form."""
    try:
        form.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise foreign(
            path, ": ".join(filter(None, [where, first["msg"].removeprefix("Value error, ")]))
        ) from error


def foreign(path: Path, reason: object) -> DamagedError:
    """What is raised for a file whose hash is right, and which kdrun cannot have written."""
    return DamagedError(
        f"{path}: is not what kdrun writes: {shown(reason, 200)}; delete it, and the command that made it makes it anew"
    )
