"""The experiment's schema: from YAML (and ``--set``) to a checked config, with every error at once."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

import kdrun.data
import kdrun.losses
import kdrun.models  # noqa: F401 (importing the families registers their components)
from kdrun import errors, registry
from kdrun.contracts import Combine, DatasetConfig, JointLoss, LossConfig, Mask, ModelConfig, Published
from kdrun.errors import ConfigError, Problem, did_you_mean
from kdrun.optimization import Sgd, Stage, Training, merged, stage_at
from kdrun.schema import Schema, as_list, kind_alone
from kdrun.yamlsource import Source, default_name

SHORTHANDS = {"teacher": "teachers", "student": "students"}
"""``teacher: {…}`` is short for ``teachers: {teacher: {…}}``."""
ALONE = "alone"
"""The control: the student without a teacher."""


class _AnyOf:
    """A config of any component of a family, told apart by ``kind``; read when the schema is (re)built."""

    def __init__(self, family: registry.Family) -> None:
        self.family = family

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {kind: handler.generate_schema(self.family[kind].Config) for kind in self.family}
        union = core_schema.tagged_union_schema(choices, discriminator="kind")
        return core_schema.no_info_before_validator_function(kind_alone, union)


AnyModel = Annotated[ModelConfig, _AnyOf(registry.MODELS)]
AnyLoss = Annotated[LossConfig, _AnyOf(registry.LOSSES)]
AnyDataset = Annotated[DatasetConfig, _AnyOf(registry.DATASETS)]


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(f"'{name}' cannot name a folder; use letters, digits, '.', '_' and '-'")
    return name


Name = Annotated[
    str, BeforeValidator(lambda value: _checked_name(value) if isinstance(value, str) else value)
]


class TeacherConfig(Schema):
    """A teacher: trained by kdrun, distilled from other teachers, or read from a file."""

    model: AnyModel
    """its architecture"""
    training: Training | None = None
    """what differs from the experiment's `training`"""
    weights: Path | None = Field(default=None, strict=False)
    """a finished teacher's local file (safetensors, or .pt); it is then not trained"""
    expect: float | None = Field(default=None, ge=0, le=1)
    """the least score on the test set; below it nothing is distilled"""
    seed: int = 0
    """its own seed; one teacher serves all the students' seeds"""
    seeds: Literal["each"] | None = None
    """`each`: one teacher for each student seed"""
    view: str | None = None
    """the input that it sees"""
    from_: str | list[str] | None = Field(default=None, alias="from")
    """the teacher, or teachers, that it is itself distilled from"""
    method: str | None = None
    """the method by which it is distilled"""

    @property
    def sources(self) -> list[str]:
        """The teachers that it is distilled from."""
        return as_list(self.from_)


class StudentConfig(Schema):
    """A student."""

    model: AnyModel
    """its architecture"""
    training: Training | None = None
    """what differs from the experiment's `training`"""
    view: str | None = None
    """the input that it sees"""


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
    mixup: float | None = Field(default=None, ge=0)
    """mixup of this method's students; the training's where nothing is said. Teachers see the mixed samples, too"""
    cutmix: float | None = Field(default=None, ge=0)
    """cutmix of this method's students; the training's where nothing is said. Teachers see the mixed samples, too"""


class Experiment(Schema):
    """One experiment: teachers, students, the methods that are compared, and the data."""

    name: Name
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
    teachers: dict[Name, TeacherConfig] = {}
    """the teachers by name"""
    students: dict[Name, StudentConfig] = {}
    """the students by name"""
    methods: list[MethodConfig] = []
    """what the students are trained with; the control `alone` is always added"""


@dataclass(frozen=True)
class Method:
    """A method with all its terms, and the places in the config that they come from."""

    name: str
    losses: tuple[LossConfig, ...]
    paths: tuple[errors.Path, ...]
    stages: tuple[Stage, ...] = ()
    momentum_gap: float | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    """what it changes of a student's training"""

    def towards(self, sources: list[str]) -> Method:
        """The method with every term that looks at a teacher looking at these."""
        target = sources[0] if len(sources) == 1 else sources
        losses = tuple(
            loss.model_copy(update={"teacher": target}) if registry.LOSSES[loss.kind].needs_teacher else loss
            for loss in self.losses
        )
        return replace(self, losses=losses)


class Config:
    """A checked experiment with its source, so that later errors can still point at a line."""

    def __init__(self, experiment: Experiment, source: Source) -> None:
        self.experiment = experiment
        self.source = source

    @functools.cached_property
    def methods(self) -> dict[str, Method]:
        """The control and the methods, in their order, with published mixes written out."""
        control = registry.LOSSES["ce"].Config(kind="ce")
        written = {
            method.name: _expanded(method, ("methods", number), list(self.experiment.teachers))
            for number, method in enumerate(self.experiment.methods)
        }
        return {ALONE: Method(ALONE, (control,), ((),))} | written

    def method(self, name: str, path: errors.Path) -> Method:
        """A method of this config, or a published one that it does not list (for chains)."""
        if name in self.methods:
            return self.methods[name]
        return _expanded(MethodConfig(name=name, use=name), path, list(self.experiment.teachers))

    def training_of(self, model: TeacherConfig | StudentConfig) -> Training:
        """A model's own training."""
        return merged(self.experiment.training, model.training)

    def error(self, problems: Iterable[Problem]) -> ConfigError:
        """These problems with their places."""
        return self.source.explain(problems)


def published_methods() -> dict[str, Published]:
    """The published mixes by method name, as losses declare them."""
    return {
        name: published
        for loss in registry.LOSSES.classes()
        for name, published in sorted(loss.published.items())
    }


def read(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read, complete and check a config.

    Raises ``ConfigError`` with all problems that can be seen without building a model.
    """
    source = Source.read(path)
    for short, many in SHORTHANDS.items():
        if short in source.data:
            source.aliases[(many, short)] = (short,)
    for assignment in overrides:
        source.override(assignment)
    return validate(source, default_name(path))


def validate(source: Source, name: str = "experiment") -> Config:
    """Check a config; raises ``ConfigError`` with all problems that can be seen without building a model."""
    data = _written_out(source, name)
    _require_plugins(source)
    _rebuild_schema()
    twice = list(_given_twice(source))
    problems = twice[:]
    try:
        experiment = Experiment.model_validate(data)
    except ValidationError as error:
        problems += _translated(error, data, Experiment)
        experiment = _what_is_right(data)
    _show_set_keys(experiment, source)
    if not twice:
        problems += _cross_checks(experiment)
    if problems:
        raise source.explain(dict.fromkeys(problems))
    return Config(experiment, source)


def _what_is_right(data: dict[str, Any]) -> Experiment:
    """The experiment with stand-ins for all that breaks its schema, so that the rest can be checked as well.

    A stand-in has its name, which others may refer to, and nothing that could be wrong with it.
    """
    model = registry.MODELS["mlp"].Config(kind="mlp")
    dataset = registry.DATASETS["digits"].Config(kind="digits", validation=0.5)
    teacher = TeacherConfig.model_construct(model=model, seeds="each")
    student = StudentConfig.model_construct(model=model)
    methods = data.get("methods") if isinstance(data.get("teachers", {}), dict) else None
    return Experiment.model_construct(
        dataset=_valid(AnyDataset, data.get("dataset"), dataset),
        seeds=_valid(list[int], data.get("seeds"), []),
        training=_valid(Training, data.get("training", {}), Training()),
        teachers={name: _valid(TeacherConfig, value, teacher) for name, value in _entries(data, "teachers")},
        students={name: _valid(StudentConfig, value, student) for name, value in _entries(data, "students")},
        methods=[
            _valid(MethodConfig, value, MethodConfig.model_construct(name=_name_of(value, number), use="ce"))
            for number, value in enumerate(methods if isinstance(methods, list) else [])
        ],
    )


def _entries(data: dict[str, Any], key: str) -> Iterable[tuple[str, Any]]:
    value = data.get(key)
    return value.items() if isinstance(value, dict) else ()


def _valid(schema: Any, value: object, stand_in: Any) -> Any:
    try:
        return TypeAdapter(schema).validate_python(value)
    except ValidationError:
        return stand_in


def _name_of(method: object, number: int) -> str:
    name = method.get("name") if isinstance(method, dict) else None
    return name if isinstance(name, str) else str(number)


FOR_ALL_TERMS = {"teacher": "teacher", "combine": "combine", "last_epoch": "early_stop"}
"""Keys of a term that a method can give for all of its terms, and the method's own keys for them."""


def _show_set_keys(experiment: Experiment, source: Source) -> None:
    """Have what is said of a published mix's key point at what gave it: the method's own key, or its ``set``."""
    for number, method in enumerate(experiment.methods):
        published = published_methods().get(method.use or "")
        for term in published.losses if published else ():
            for key, own in FOR_ALL_TERMS.items():
                if getattr(method, own) is not None:
                    source.aliases["methods", number, term.get("name", term["kind"]), key] = (
                        "methods",
                        number,
                        own,
                    )
        for key in method.set:
            label, _, rest = key.partition(".")
            source.aliases["methods", number, label, rest] = ("methods", number, "set", key)


def _rebuild_schema() -> None:
    """Take in the components that are registered by now."""
    for model in (MethodConfig, TeacherConfig, StudentConfig, Experiment):
        model.model_rebuild(force=True)


def json_schema() -> dict[str, Any]:
    """The config's JSON schema with its shorthands, and with every component that is loaded."""
    _rebuild_schema()
    schema = _with_kinds_alone(Experiment.model_json_schema())
    schema["required"] = [key for key in schema["required"] if key != "name"]
    for short, many in SHORTHANDS.items():
        schema["properties"][short] = schema["properties"][many]["additionalProperties"]
    method, methods = schema["$defs"]["MethodConfig"], schema["properties"]["methods"]
    method["anyOf"] = [{"required": method.pop("required")}, {"required": ["use"]}]
    methods["items"] = {"anyOf": [{"enum": sorted(published_methods())}, methods["items"]]}
    return schema


def _with_kinds_alone(schema: Any) -> Any:
    """The same schema, with the kind alone allowed wherever a mapping is told by its kind."""
    if isinstance(schema, list):
        return [_with_kinds_alone(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _with_kinds_alone(value) for key, value in schema.items()}
    if schema.get("$ref") == "#/$defs/Mask":
        return {"anyOf": [{"enum": list(get_args(Mask.model_fields["kind"].annotation))}, schema]}
    if "discriminator" in schema:
        kinds = list(schema.pop("discriminator")["mapping"])
        schema["anyOf"] = [{"enum": kinds}, *schema.pop("oneOf")]
    return schema


# ---------------------------------------------------------------------------------------- shorthands


def _written_out(source: Source, name: str) -> dict[str, Any]:
    """The data with ``teacher:`` and ``student:`` as entries of the mappings, and method names as mappings."""
    data = copy.deepcopy(source.data)
    for short, many in SHORTHANDS.items():
        if short in data:
            data[many] = {short: data.pop(short), **dict(_entries(data, many))}
    methods = data.get("methods")
    if isinstance(methods, list):
        data["methods"] = [_method_mapping(method) for method in methods]
    data.setdefault("name", name)
    return data


def _given_twice(source: Source) -> Iterable[Problem]:
    for short, many in SHORTHANDS.items():
        if short in source.data and many in source.data:
            yield Problem((short,), f"'{short}' and '{many}' are both given", "keep one", True)


def _method_mapping(method: object) -> object:
    if isinstance(method, str):
        return {"name": method, "use": method}
    if isinstance(method, dict) and "name" not in method and isinstance(method.get("use"), str):
        return {"name": method["use"], **method}
    return method


def _require_plugins(source: Source) -> None:
    """A config may say which plugins it needs; it never loads one."""
    wanted = source.data.get("plugins")
    if isinstance(wanted, list):
        missing = [
            Problem(
                ("plugins", n), f"the plugin '{name}' is not loaded", f"add --plugin {name} to the command"
            )
            for n, name in enumerate(wanted)
            if isinstance(name, str) and name not in registry.loaded_plugins
        ]
        if missing:
            raise source.explain(missing)


def _expanded(method: MethodConfig, path: errors.Path, teachers: list[str]) -> Method:
    """The method's terms: its own, or the published ones with ``set`` applied; teachers filled in."""
    if method.losses is not None:
        paths = tuple((*path, "losses", n) for n in range(len(method.losses)))
        losses = method.losses
    else:
        assert method.use is not None
        terms = copy.deepcopy(published_methods()[method.use].losses)
        problems = [p for key, value in method.set.items() if (p := _apply(terms, key, value, path))]
        if problems:
            raise ConfigError(problems)
        try:
            losses = TypeAdapter(list[AnyLoss]).validate_python(terms)
        except ValidationError as error:
            raise ConfigError(_set_problems(error, terms, path)) from None
        paths = tuple((*path, loss.label) for loss in losses)
    stages = method.stages
    if stages is None and method.use is not None:
        stages = _renamed(published_methods()[method.use], [loss.label for loss in losses])
    changed = {key: getattr(method, key) for key in ("mixup", "cutmix") if getattr(method, key) is not None}
    return Method(
        method.name,
        tuple(_completed(loss, method, teachers) for loss in losses),
        paths,
        tuple(stages or ()),
        method.momentum_gap,
        changed,
    )


def _renamed(published: Published, labels: list[str]) -> list[Stage]:
    """The published stages, with what `set` calls their terms."""
    names = {
        term.get("name", term["kind"]): label for term, label in zip(published.losses, labels, strict=True)
    }
    stages = TypeAdapter(list[Stage]).validate_python(published.stages)
    return [
        stage.model_copy(update={"losses": stage.losses and [names[name] for name in stage.losses]})
        for stage in stages
    ]


def _completed(loss: LossConfig, method: MethodConfig, teachers: list[str]) -> LossConfig:
    """The term with what the method says for all, and its teacher: its own, the method's, or the only one there is.

    Losses that weigh several teachers see them all where none is named.
    """
    loss_class = registry.LOSSES[loss.kind]
    if not loss_class.needs_teacher:
        return loss
    only: Any = teachers[0] if len(teachers) == 1 else None
    joint = issubclass(loss_class, JointLoss)
    if joint and len(teachers) > 1:
        only = teachers
    changes: dict[str, Any] = {"teacher": loss.teacher or method.teacher or only}
    if method.combine is not None and "combine" not in loss.model_fields_set and not joint:
        changes["combine"] = method.combine
    if method.early_stop is not None and loss.last_epoch is None:
        changes["last_epoch"] = method.early_stop
    return loss.model_copy(update=changes)


def _apply(terms: list[dict[str, Any]], key: str, value: Any, path: errors.Path) -> Problem | None:
    """Set one ``term.key`` of a published mix, in place; the problem, if it cannot be."""
    name, _, rest = key.partition(".")
    labels = {term.get("name", term["kind"]): term for term in terms}
    how = "write TERM.KEY, for instance kd.temperature"
    if name not in labels:
        hint = f"{did_you_mean(name, labels)}; {how}"
        return Problem((*path, "set", key), f"'{name}' is no term of this mix", hint, True)
    if not rest:
        return Problem((*path, "set", key), f"'{name}' is a term, and none of its keys is named", how, True)
    target = labels[name]
    *parents, last = rest.split(".")
    for parent in parents:
        inner = target.setdefault(parent, {})
        if not isinstance(inner, dict):
            return Problem(
                (*path, "set", key),
                f"'{parent}' of '{name}' has no keys",
                f"write it whole: {name}.{parent}",
                True,
            )
        target = inner
    target[last] = value
    return None


def _set_problems(error: ValidationError, terms: list[Any], path: errors.Path) -> list[Problem]:
    """Errors in a changed published mix, at the ``set`` keys that caused them."""
    problems = []
    for problem in _translated(error, terms, list[AnyLoss]):
        number, *rest = [part for part in problem.path]
        assert isinstance(number, int)
        label = terms[number].get("name", terms[number]["kind"])
        key = ".".join([label, *(str(part) for part in rest)])
        problems.append(Problem((*path, "set", key), problem.message, problem.hint, problem.on_key))
    return problems


# --------------------------------------------------------------------------------------- translation

_COMPARISONS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "path_type": "a path",
    "union_tag_not_found": "a mapping with a `kind`",
}


def _translated(error: ValidationError, data: Any, schema: Any) -> list[Problem]:
    """Pydantic's errors in our words, one for each place."""
    problems: dict[errors.Path, Problem] = {}
    for item in error.errors(include_url=False):
        location = item["loc"]
        on_key = location[-1:] == ("[key]",)
        path = _without_tags(location[:-1] if on_key else location, data)
        problem = _problem(item, path, schema)
        problems.setdefault(problem.path, replace(problem, on_key=problem.on_key or on_key))
    # Where several forms are allowed, what is wrong inside of the form that was taken says more than the others.
    outer = {path[:depth] for path in problems for depth in range(len(path))}
    return [problem for path, problem in problems.items() if path not in outer or problem.on_key]


def _without_tags(location: tuple[int | str, ...], data: Any) -> errors.Path:
    """Pydantic's location without the names of union members, which are not in the file."""
    path: list[int | str] = []
    node = data
    last = len(location) - 1
    for number, part in enumerate(location):
        listed = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if listed or (isinstance(node, Mapping) and part in node):
            node = node[part]
        elif isinstance(node, Mapping) and number == last and node.get("kind") != part:
            node = None
        else:
            continue
        path.append(part)
    return tuple(path)


def _problem(item: Any, path: errors.Path, schema: Any) -> Problem:
    kind, context, given = item["type"], item.get("ctx", {}), item["input"]
    if kind == "extra_forbidden":
        known = _keys_at(item["loc"][:-1], schema)
        return Problem(path, f"unknown key '{path[-1]}'", did_you_mean(path[-1], known), True)
    if kind == "missing":
        key = item["loc"][-1]  # not in the path where the kind alone stands for the mapping
        return Problem(path[:-1] if path[-1:] == (key,) else path, f"the key '{key}' is missing")
    if kind == "union_tag_invalid":
        tags = re.findall(r"'([^']*)'", context["expected_tags"])
        return Problem(
            (*path, "kind"), f"unknown kind '{context['tag']}'", did_you_mean(context["tag"], tags)
        )
    if kind in ("union_tag_not_found", "model_attributes_type") and isinstance(given, Mapping):
        return Problem(path, "the key 'kind' is missing", did_you_mean("", _kinds_at(item["loc"], schema)))
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        return Problem(path, f"unknown value {given!r}", did_you_mean(given, allowed))
    if kind in _COMPARISONS:
        key, words = _COMPARISONS[kind]
        return Problem(path, f"{given!r} is out of range", f"write a number that is {words} {context[key]}")
    if kind in _TYPES:
        return Problem(path, f"{_shown(given)} is not {_TYPES[kind]}")
    if kind == "value_error":
        return Problem(path, str(context["error"]))
    if kind == "string_pattern_mismatch":
        return Problem(path, f"unknown value {given!r}", "write auto, cpu, cuda, cuda:1 or mps")
    if kind in ("too_short", "too_long"):
        wanted = context.get("min_length", context.get("max_length"))
        return Problem(
            path,
            f"has {context['actual_length']} entries",
            f"write {wanted}" + (" or more" if kind == "too_short" else ""),
        )
    if kind == "finite_number":
        return Problem(path, f"{given!r} is not a finite number")
    return Problem(path, item["msg"])


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else f"{value!r}"


def _keys_at(location: tuple[int | str, ...], annotation: Any) -> list[str]:
    """The keys allowed in the mapping at one of pydantic's locations, for 'did you mean'."""
    annotation = _bare(functools.reduce(_below, location, annotation))
    if not (isinstance(annotation, type) and issubclass(annotation, Schema)):
        return []
    return [field.alias or name for name, field in annotation.model_fields.items()]


def _kinds_at(location: tuple[int | str, ...], annotation: Any) -> list[str]:
    """The kinds that the mapping at one of pydantic's locations can be of."""
    annotation = functools.reduce(_below, location, annotation)
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, _AnyOf):
            return list(mark.family)
    members = get_args(_bare(annotation))
    return [kind for member in members for kind in get_args(member.model_fields["kind"].annotation)]


def _below(annotation: Any, part: str | int) -> Any:
    """The type one step further down: of a field, an item, or the union's member of that kind."""
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, _AnyOf):
            return mark.family[str(part)].Config
    annotation = _bare(annotation)
    if get_origin(annotation) in (dict, list):
        return get_args(annotation)[-1]
    if isinstance(annotation, type) and issubclass(annotation, Schema):
        for name, field in annotation.model_fields.items():
            if part in (name, field.alias):
                return Annotated[field.annotation, *field.metadata, None]
        return None
    for member in get_args(annotation):
        kind = getattr(member, "model_fields", {}).get("kind")
        if (kind and part in get_args(kind.annotation)) or str(part).startswith(
            f"{getattr(get_origin(member), '__name__', '?')}["
        ):
            return member
    return None


def _bare(annotation: Any) -> Any:
    """The type without its annotations and without 'or nothing'."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    members = [member for member in get_args(annotation) if member is not type(None)]
    if get_origin(annotation) in (Union, UnionType) and len(members) == 1:
        return _bare(members[0])
    return annotation


# -------------------------------------------------------------------------------------- cross checks


def _cross_checks(experiment: Experiment) -> Iterable[Problem]:
    """Everything that two parts of the config have to agree on."""
    yield from _method_names(experiment)
    if len(set(experiment.seeds)) < len(experiment.seeds):
        yield Problem(("seeds",), "a seed stands twice", "each seed is one run of each student")
    for family in ("teachers", "students"):
        for name, model in getattr(experiment, family).items():
            training = merged(experiment.training, model.training)
            if training.selection == "best-on-validation" and experiment.dataset.validation == 0:
                yield Problem(
                    (family, name, "training", "selection") if model.training else ("training", "selection"),
                    "best-on-validation needs a validation share",
                    "add `validation: 0.1` to the data set",
                )
    yield from _teacher_problems(experiment)
    for number, method in enumerate(experiment.methods):
        path: errors.Path = ("methods", number)
        yield from _unknown_teachers(method.teacher, path, experiment.teachers)
        misused = list(_method_problems(method, path))
        yield from misused or _mix_problems(method, path, experiment)


def _training_problems(
    expanded: Method, method: MethodConfig, path: errors.Path, training: Training
) -> Iterable[Problem]:
    """What a method asks of a training that may not be able to give it."""
    optimizer, gap = training.optimizer, expanded.momentum_gap
    if gap is not None:
        if not isinstance(optimizer, Sgd):
            words = f"two momenta need an optimizer that has one, and this is {optimizer.kind}"
            yield Problem((*path, "momentum_gap"), words, "use sgd")
        elif not gap < optimizer.momentum < 1 - gap:
            words = f"momenta {optimizer.momentum} ± {gap} are not both between 0 and 1"
            yield Problem((*path, "momentum_gap"), words, "write a smaller gap")
    for loss in expanded.losses:
        if loss.mask is not None and training.compile:
            words = f"'{loss.label}' has a mask, of another size in each step, and the training is compiled"
            yield Problem(path, words, "write compile: false, or no mask")
        if loss.mask is not None and (training.mixup or training.cutmix) and not loss.teachers:
            words = f"'{loss.label}' looks at labels through a mask, and the samples are mixed of two"
            yield Problem(path, words, "write no mask, or no mixing")
    if method.use is None or method.stages or method.early_stop or method.set:
        yield from _unused(expanded, method, path, training.epochs)


def _unused(expanded: Method, method: MethodConfig, path: errors.Path, epochs: int) -> Iterable[Problem]:
    """Terms and stages that never have their turn."""
    stages = [stage_at(expanded.stages, epoch, epochs) for epoch in range(epochs)]
    for number, stage in enumerate(method.stages or ()):
        if not any(stage is other for other in stages):
            yield Problem(
                (*path, "stages", number), f"the stages before it take all {epochs} epochs", "shorten them"
            )
    for loss in expanded.losses:
        counts = [stage.losses is None or loss.label in stage.losses for stage in stages]
        weights = [loss.weight_in(epoch, epochs) for epoch in range(epochs)]
        if loss.weight and not any(
            weight for weight, counted in zip(weights, counts, strict=True) if counted
        ):
            yield Problem(
                path,
                f"'{loss.label}' counts in none of the {epochs} epochs",
                "change its epochs or the stages",
            )


def _export_problems(expanded: Method, path: errors.Path) -> Iterable[Problem]:
    """An exported student predicts by one loss's parts."""
    predicting = [loss for loss in expanded.losses if registry.LOSSES[loss.kind].at_inference]
    if sum(max(len(loss.teachers), 1) for loss in predicting) > 1:
        kinds = ", ".join(dict.fromkeys(loss.kind for loss in predicting))
        yield Problem(
            path, f"a student can predict by the parts of one '{kinds}' and one teacher only", "keep one"
        )


def _mix_problems(method: MethodConfig, path: errors.Path, experiment: Experiment) -> Iterable[Problem]:
    teachers = list(experiment.teachers)
    try:
        expanded = _expanded(method, path, teachers)
    except ConfigError as error:
        yield from error.problems
        return
    yield from _term_problems(expanded, teachers, method.teacher)
    yield from _stage_problems(expanded, method, path)
    yield from _export_problems(expanded, path)
    for student in experiment.students.values():
        training = merged(experiment.training, student.training).model_copy(update=expanded.training)
        yield from _training_problems(expanded, method, path, training)
    if method.teacher and not any(registry.LOSSES[loss.kind].needs_teacher for loss in expanded.losses):
        yield Problem((*path, "teacher"), "no term of this method looks at a teacher", "remove it", True)


def _stage_problems(expanded: Method, method: MethodConfig, path: errors.Path) -> Iterable[Problem]:
    labels = [loss.label for loss in expanded.losses]
    for number, stage in enumerate(method.stages or ()):
        place = (*path, "stages", number)
        for name in stage.losses or ():
            if name not in labels:
                yield Problem(
                    (*place, "losses"), f"'{name}' is no term of this method", did_you_mean(name, labels)
                )
        if stage.length(1) is None and number + 1 < len(method.stages or ()):
            yield Problem(place, "only the last stage may say no length", "add `epochs` or `share`")
    if not any(registry.LOSSES[loss.kind].needs_teacher for loss in expanded.losses):
        for key in ("early_stop", "momentum_gap"):
            if getattr(method, key) is not None:
                yield Problem((*path, key), "no term of this method looks at a teacher", "remove it", True)


def _unknown_teachers(
    named: str | list[str] | None, path: errors.Path, teachers: Iterable[str]
) -> Iterable[Problem]:
    for name in as_list(named):
        if name not in teachers:
            hint = did_you_mean(name, teachers) or "the config has none"
            yield Problem((*path, "teacher"), f"there is no teacher '{name}'", hint)


def _method_names(experiment: Experiment) -> Iterable[Problem]:
    seen: set[str] = set()
    for number, method in enumerate(experiment.methods):
        if method.name in seen:
            yield Problem(
                ("methods", number, "name"), f"a second method is named '{method.name}'", "names are unique"
            )
        if method.name == ALONE:
            yield Problem(
                ("methods", number, "name"),
                f"'{ALONE}' is the control's name",
                "it is always added; take another",
            )
        seen.add(method.name)


def _method_problems(method: MethodConfig, path: errors.Path) -> Iterable[Problem]:
    known = published_methods()
    if (method.use is None) == (method.losses is None):
        words = "both `use` and `losses` are given" if method.use else "neither `use` nor `losses` is given"
        yield Problem(path, words, "name a published mix, or write a list of losses")
    elif method.use is not None and method.use not in known:
        yield Problem(
            (*path, "use"), f"there is no published method '{method.use}'", did_you_mean(method.use, known)
        )
    elif method.set and method.losses is not None:
        yield Problem((*path, "set"), "`set` changes a published mix", "change the losses themselves", True)


def _teacher_problems(experiment: Experiment) -> Iterable[Problem]:
    teachers = experiment.teachers
    known_methods = {method.name for method in experiment.methods} | {*published_methods()}
    for name, teacher in teachers.items():
        path: errors.Path = ("teachers", name)
        for source in teacher.sources:
            if source not in teachers:
                yield Problem(
                    (*path, "from"), f"there is no teacher '{source}'", did_you_mean(source, teachers)
                )
        if _in_circle(name, teachers):
            yield Problem((*path, "from"), "the teachers are distilled from each other in a circle")
        if (teacher.from_ is None) != (teacher.method is None):
            given, missing = ("from", "method") if teacher.from_ else ("method", "from")
            yield Problem(
                (*path, given), f"`{given}` needs `{missing}`", "a distilled teacher names both", True
            )
        elif teacher.method and teacher.method not in known_methods:
            hint = did_you_mean(teacher.method, known_methods)
            yield Problem((*path, "method"), f"there is no method '{teacher.method}'", hint)
        elif teacher.method and set(teacher.sources) <= teachers.keys():
            yield from _distilled_problems(teacher, path, experiment)
        if teacher.seeds is not None and "seed" in teacher.model_fields_set:
            yield Problem((*path, "seed"), "`seeds: each` takes the students' seeds", "remove `seed`", True)
        for source in teacher.sources:
            if source in teachers and teachers[source].seeds is not None and teacher.seeds is None:
                yield Problem(
                    (*path, "from"),
                    f"'{source}' is trained once for each seed, and '{name}' only once",
                    "write `seeds: each` here too",
                )
        if teacher.weights is not None:
            if not teacher.weights.is_file():
                yield Problem(
                    (*path, "weights"),
                    f"there is no file '{teacher.weights}'",
                    "a path from the working folder",
                )
            for key in ("from_", "seeds", "training"):
                if getattr(teacher, key) is not None:
                    yield Problem(
                        (*path, key.strip("_")),
                        f"a teacher with `weights` is finished, so `{key.strip('_')}` says nothing",
                        "remove one",
                        True,
                    )
        for other in list(teachers)[: list(teachers).index(name)]:
            if teachers[other] == teacher and teacher.seeds is None:
                yield Problem(
                    path,
                    f"'{name}' is the same teacher as '{other}'",
                    "give one of them another `seed`",
                    True,
                )
    for family in ("teachers", "students"):
        for name, model in getattr(experiment, family).items():
            file = model.model.initial_weights
            if file is not None and not file.is_file():
                yield Problem(
                    (family, name, "model", "initial_weights"),
                    f"there is no file '{file}'",
                    "a path from the working folder",
                )


def _distilled_problems(
    teacher: TeacherConfig, path: errors.Path, experiment: Experiment
) -> Iterable[Problem]:
    """What does not fit between a distilled teacher's method and its sources, all pointing at the method's name."""
    named = {method.name: method for method in experiment.methods}
    assert teacher.method is not None
    method = named.get(teacher.method, MethodConfig(name=teacher.method, use=teacher.method))
    if list(_method_problems(method, path)):
        return
    try:
        expanded = _expanded(method, path, list(experiment.teachers)).towards(teacher.sources)
    except ConfigError:
        return  # said of the method itself
    training = merged(experiment.training, teacher.training)
    found = [*_training_problems(expanded, method, path, training), *_export_problems(expanded, path)]
    for loss in expanded.losses:
        found += _combination_problems(loss, path)
    for problem in found:
        yield Problem((*path, "method"), problem.message, problem.hint)


def _in_circle(name: str, teachers: Mapping[str, TeacherConfig]) -> bool:
    seen: set[str] = set()
    queue = teachers[name].sources
    while queue:
        source = queue.pop()
        if source == name:
            return True
        if source in teachers and source not in seen:
            seen.add(source)
            queue += teachers[source].sources
    return False


def _term_problems(
    method: Method, teachers: list[str], of_method: str | list[str] | None
) -> Iterable[Problem]:
    labels: set[str] = set()
    for loss, path in zip(method.losses, method.paths, strict=True):
        if loss.label in labels:
            yield Problem(path, f"a second term is named '{loss.label}'", "give one of them a `name`")
        labels.add(loss.label)
        if not registry.LOSSES[loss.kind].needs_teacher:
            if loss.teacher is not None:
                yield Problem((*path, "teacher"), f"'{loss.kind}' looks at no teacher", "remove it", True)
        elif not teachers:
            yield Problem(path, f"'{loss.kind}' needs a teacher and the config has none", "add `teacher:`")
        elif loss.teacher is None:
            yield Problem(
                path,
                f"'{loss.label}' names none of the {len(teachers)} teachers",
                "add `teacher: NAME`, or a list of names; " + did_you_mean("", teachers),
            )
        if loss.teacher != of_method:
            yield from _unknown_teachers(loss.teacher, path, teachers)
        if len(set(as_list(loss.teacher))) < len(as_list(loss.teacher)):
            yield Problem((*path, "teacher"), "a teacher stands twice", "name each once")
        yield from _combination_problems(loss, path)


def _combination_problems(loss: LossConfig, path: errors.Path) -> Iterable[Problem]:
    """What a term says of several teachers, and of the samples it looks at."""
    loss_class, count = registry.LOSSES[loss.kind], len(loss.teachers)
    if issubclass(loss_class, JointLoss) and count == 1:
        yield Problem(
            path, f"'{loss.kind}' weighs several teachers and has one", "name two or more, or use kd"
        )
    if issubclass(loss_class, JointLoss) and loss.combine != "mean":
        yield Problem((*path, "combine"), f"'{loss.kind}' weighs its teachers by itself", "remove it", True)
    elif (loss.combine == "fixed") != (loss.teacher_weights is not None):
        words = (
            "`combine: fixed` needs `teacher_weights`"
            if loss.combine == "fixed"
            else ("`teacher_weights` count with `combine: fixed` only")
        )
        yield Problem((*path, "teacher_weights" if loss.teacher_weights else "combine"), words, "write both")
    elif loss.teacher_weights is not None and len(loss.teacher_weights) != count:
        words = f"{len(loss.teacher_weights)} weights for {count} teachers"
        yield Problem((*path, "teacher_weights"), words, "write one for each of the term's teachers")
    elif loss.teacher_weights is not None and not sum(loss.teacher_weights):
        yield Problem((*path, "teacher_weights"), "all weights are 0", "write one above 0")
    if count > 1 and not loss_class.on_logits and loss.combine in ("mean-logits", "entropy"):
        yield Problem(
            (*path, "combine"),
            f"'{loss.kind}' looks at layers, which cannot be combined by {loss.combine}",
            "use mean-loss or fixed, which weigh a loss for each teacher",
        )
    if loss.mask is not None and loss.mask.kind.startswith("teacher") and not count:
        yield Problem((*path, "mask"), f"'{loss.kind}' looks at no teacher", "use labelled or unlabelled")
    if loss.mask is not None and loss_class.whole_batch:
        yield Problem((*path, "mask"), f"'{loss.kind}' needs every batch whole", "remove it", True)
    if loss.last_epoch is not None and loss.last_epoch < loss.first_epoch:
        yield Problem(
            (*path, "last_epoch"),
            f"{loss.last_epoch} is before the first epoch, {loss.first_epoch}",
            "remove one",
        )
