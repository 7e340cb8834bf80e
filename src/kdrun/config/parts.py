"""The config's schema: what each part may say."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Tag,
    TypeAdapter,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from kdrun import errors, registry
from kdrun.contracts import Combine, DatasetConfig, LossConfig, ModelConfig
from kdrun.controls import ALONE, CONTROLS, MATCHED, SHUFFLED, SMOOTHED, Control
from kdrun.models import AnyNormalization
from kdrun.optimization import Recipe, Stage, Training, merged
from kdrun.schema import Schema, Sides, as_list, kind_alone
from kdrun.yamlsource import NAME, NO_NAME, NOT_FREE, RESERVED


class AnyOf:
    """A config of any component of a family, told apart by ``kind``; read when the schema is (re)built."""

    def __init__(self, family: registry.Family) -> None:
        self.family = family

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {kind: handler.generate_schema(self.family[kind].Config) for kind in self.family}
        union = core_schema.tagged_union_schema(choices, discriminator="kind")
        return core_schema.no_info_before_validator_function(kind_alone, union)


AnyModel = Annotated[ModelConfig, AnyOf(registry.MODELS)]
AnyLoss = Annotated[LossConfig, AnyOf(registry.LOSSES)]
AnyDataset = Annotated[DatasetConfig, AnyOf(registry.DATASETS)]


def adapter(schema: Any) -> TypeAdapter[Any]:
    """What checks data against a part of the schema, with the components that are registered by now."""
    return _adapter(schema, registry.components())


@functools.lru_cache
def _adapter(schema: Any, _components: tuple[type[Any], ...]) -> TypeAdapter[Any]:
    return TypeAdapter(schema)  # takes a millisecond


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(NO_NAME.format(name))
    return name


Name = Annotated[
    str, BeforeValidator(lambda value: _checked_name(value) if isinstance(value, str) else value)
]


FOLDS = 5
"""Of cross-fitting, where nothing is said."""
BESIDE_A_RUN = {"run", "expect", "environment"}
"""What a teacher says that is a finished run; all else comes from there."""


class ModelUse(Schema):
    """A model's part in an experiment: what teachers and students say alike."""

    model: AnyModel
    """its architecture"""
    training: Training | None = None
    """what differs from the experiment's `training`"""
    environment: str | None = None
    """of a data set of several environments the one that it is for; all of them where nothing is said"""
    view: str | None = None
    """the input that it sees"""
    resize: Sides | None = None
    """what the pictures that it sees are resized to, up or down: so many pixels; one number for squares, or [height,
    width]"""
    normalization: AnyNormalization | None = None
    """by what it wants its inputs normalised, as its weights know them, on the scale of [0, 1]: imagenet, or `{mean:
    [...], std: [...]}` of each channel (tables: as measured, of each column); as the data set is where nothing is said
    """


class TeacherConfig(ModelUse):
    """A teacher: trained by kdrun, distilled or made of other teachers, or read from a file or from a finished run."""

    model: AnyModel
    """its architecture; that of its `run`, where there is one"""
    weights: Path | None = Field(default=None, strict=False)
    """a finished teacher's local file (safetensors, or .pt); it is then not trained"""
    run: Path | None = Field(default=None, strict=False)
    """a finished run's folder, a teacher's or a student's of any experiment: its model, its view, with size and
    normalisation, and its weights are the teacher's, of which nothing but `expect` is said then"""
    expect: float | None = Field(default=None, allow_inf_nan=False)
    """the least score on the test set, between 0 and 1, or the least mean return; below it nothing is distilled"""
    seed: int = 0
    """its own seed; one teacher serves all the students' seeds"""
    seeds: Literal["each"] | None = None
    """`each`: one teacher for each student seed"""
    labels: Literal["all", "given"] = "all"
    """the samples and labels that it is trained on: all of the training set's, or those that are given to the students
    (`labels_per_class`, `leave_out` and `transfer_set` hold for it, too)"""
    cross_fit: int | None = Field(default=None, ge=0)
    """of a model that is fitted at once (forest, svc, …), in how many parts the training set is cut: students hear of a
    sample what a model says that was fitted without its part; 5 where nothing is said, 0 for what it says of what it
    has seen"""
    from_: str | list[str] | None = Field(default=None, alias="from")
    """the teacher, or teachers, that it is itself distilled from; of an ensemble or a cascade its members"""
    method: str | None = None
    """the method by which it is distilled"""

    @model_validator(mode="after")
    def _said_by_its_run(self) -> Self:
        """What came from a run is not the config's own, and is not written into one that is made of it."""
        if self.run is not None:
            self.model_fields_set.intersection_update(BESIDE_A_RUN)
        return self

    @property
    def sources(self) -> list[str]:
        """The teachers that it is distilled from, or made of."""
        return as_list(self.from_)

    @property
    def folds(self) -> int:
        """Into how many parts the training set is cut for cross-fitting; 0 where it is not."""
        if self.weights is not None or not registry.MODELS[self.model.kind].fitted:
            return 0
        return FOLDS if self.cross_fit is None else self.cross_fit


class StudentConfig(ModelUse):
    """A student."""

    model: AnyModel
    """its architecture, or what is made of the student that `from` names: pruned, int8"""
    from_: str | None = Field(default=None, alias="from")
    """of a model that is made of a finished student, which one of this config that is; each seed has its own"""
    method: str | None = None
    """the method or control by which that one was trained; `alone` where nothing is said"""


class Range(Schema):
    """The values between two ends, both included."""

    low: float
    """the least value"""
    high: float
    """the largest value"""
    log: bool = False
    """whether it is drawn on a logarithmic scale"""
    whole: bool = False
    """whether only whole numbers are meant"""

    @model_validator(mode="after")
    def _ends_fit(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low: {self.low:g} is not less than high: {self.high:g}")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("a range of whole numbers ends in whole numbers")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic scale starts above 0, and low is {self.low:g}")
        return self


Space = Annotated[
    Annotated[Range, Tag("range")] | Annotated[list[Any], Field(min_length=2), Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list) else "range"),
]
"""What `kdrun tune` may choose from: a range, or a list of values."""
Spaces = Annotated[dict[str, Space], Field(min_length=1)]


class ControlConfig(Schema):
    """A control, perhaps with values of its own; its name alone will do."""

    name: Control
    """alone, label-smoothing, shuffled-teacher or matched-cost"""
    losses: list[AnyLoss] | None = Field(default=None, min_length=1)
    """alone and matched-cost: what a student learns by itself from, where that is no labels: `[{kind: ppo}]`"""
    set: dict[str, Any] = {}
    """changes of its mix, by term and key: `{ce.label_smoothing: 0.05}`"""
    training: Recipe | None = None
    """what differs from the students' `training`: how they learn, not for how long"""
    tune: Spaces | None = None
    """what `kdrun tune` chooses, and from which values; as in a method"""
    tuning_trials: int | None = Field(default=None, ge=1)
    """how many trials chose its values, for the table; `kdrun tune` writes it"""


AnyControl = Annotated[
    ControlConfig, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)
]


Controls = Literal["default", "none", "all"] | list[AnyControl]


class MethodConfig(Schema):
    """What the students are trained with: a published mix by name, perhaps changed, or a mix of losses."""

    name: Name
    """what the method is called in the table"""
    use: str | None = None
    """a published mix: `kdrun list methods`"""
    set: dict[str, Any] = {}
    """changes of the published mix, by term and key: `{kd.temperature: 2}`"""
    losses: list[AnyLoss] | None = Field(default=None, min_length=1)
    """a mix of one's own: terms that are summed"""
    teacher: str | list[str] | None = None
    """the teacher, or teachers, of all terms that name none"""
    combine: Combine | None = None
    """how several teachers are combined, in all terms that do not say"""
    stages: list[Stage] | None = None
    """stretches of the training with some of the terms or weights only; `[]` for none of a published mix's"""
    early_stop: int | None = Field(default=None, ge=1)
    """the last epoch of all terms that look at a teacher and do not say"""
    momentum_gap: float | None = Field(default=None, gt=0, lt=1)
    """how much larger the momentum of the teachers' terms is than SGD's, and smaller that of the others (DOT: 0.075)"""
    training: Recipe | None = None
    """what differs from the students' `training`: how they learn, not for how long"""
    tune: Spaces | None = None
    """what `kdrun tune` chooses, and from which values: `{kd.temperature: {low: 1, high: 20}, kd.weight: [0.5, 1]}`"""
    tuning_trials: int | None = Field(default=None, ge=1)
    """how many trials chose its values, for the table; `kdrun tune` writes it"""


MOST = 500
"""Models of one experiment."""
SHORTHANDS = {"teacher": "teachers", "student": "students"}
"""``teacher: {…}`` is short for ``teachers: {teacher: {…}}``."""


def _own_folder(name: str) -> str:
    if name in RESERVED:
        raise ValueError(NOT_FREE.format(name))
    return name


class Experiment(Schema):
    """One experiment: teachers, students, the methods that are compared, and the data."""

    name: Annotated[Name, AfterValidator(_own_folder)]
    """the folder of its runs; the config's file name where nothing is said"""
    plugins: list[str] = []
    """modules that have to be loaded by `--plugin`"""
    dataset: AnyDataset
    """what is learnt, and how it is scored"""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """auto, cpu, cuda, cuda:1 or mps"""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0, 1, 2], min_length=1)
    """each student is trained once for each seed"""
    training: Training = Training()
    """how the models are trained"""
    teachers: dict[Name, TeacherConfig] = Field(default={}, max_length=MOST)
    """the teachers by name"""
    students: dict[Name, StudentConfig] = Field(default={}, max_length=MOST)
    """the students by name"""
    methods: list[MethodConfig] = []
    """what the students are trained with; the controls are added by themselves"""
    controls: Controls = "default"
    """what stands beside the methods: default is alone and label-smoothing, none is alone, or a list"""

    def training_of(self, model: ModelUse) -> Training:
        """A model's own training, whatever method changes of it."""
        own: Training = merged(self.training, model.training)
        return own

    @property
    def environments(self) -> list[str]:
        """Those of the data set by name, where it has several."""
        return [*getattr(self.dataset, "environments", ())]

    def demonstrator_of(self, environment: str | None = None) -> str | None:
        """The teacher that shows the students of an environment, or of all, their samples, where one has to."""
        if not registry.DATASETS[self.dataset.kind].plays:
            return None
        if self.environments:
            own = (name for name, teacher in self.teachers.items() if teacher.environment == environment)
            return next(own, None)
        named: str | None = getattr(self.dataset, "demonstrator", None)
        return named or next((name for name, teacher in self.teachers.items() if not teacher.sources), None)

    @property
    def named_teachers(self) -> list[str]:
        """The teachers that terms can name; of several environments one stands for that of each student's own."""
        apart = any(teacher.environment is not None for teacher in self.teachers.values())
        return [*self.teachers][-1:] if apart else [*self.teachers]

    def control_path(self, name: str) -> errors.Path:
        """Where a control stands in the config."""
        listed: list[str] = [c.name for c in self.controls] if isinstance(self.controls, list) else []
        return ("controls", listed.index(name)) if name in listed else ("controls",)

    @property
    def controlled_by(self) -> dict[str, ControlConfig]:
        """The controls by name, ``alone`` first; those that need a teacher where there is one, or they are named."""
        if isinstance(self.controls, list):
            named: dict[str, ControlConfig] = {control.name: control for control in self.controls}
            return {ALONE: ControlConfig(name=ALONE)} | named
        names = {"none": [ALONE], "default": [ALONE, SMOOTHED], "all": list(CONTROLS)}[self.controls]
        return {
            name: ControlConfig.model_validate({"name": name})
            for name in names
            if self.teachers or name not in (SHUFFLED, MATCHED)
        }
