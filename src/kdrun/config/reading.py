"""From YAML (and ``--set``) to a checked config, with every error at once."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from kdrun import errors, registry
from kdrun.config.checks import cross_checks
from kdrun.config.finished import fill_in
from kdrun.config.mixes import (
    NOTHING,
    Method,
    by_label,
    control_method,
    expanded_method,
    published_methods,
    supervised,
)
from kdrun.config.origins import SEEN, fill_in_origins
from kdrun.config.parts import (
    SHORTHANDS,
    AnyDataset,
    Controls,
    Experiment,
    MethodConfig,
    StudentConfig,
    TeacherConfig,
    adapter,
)
from kdrun.config.translation import translated
from kdrun.contracts import Mask
from kdrun.controls import CONTROLS
from kdrun.errors import ConfigError, Problem
from kdrun.optimization import Training, merged
from kdrun.yamlsource import Source, default_name


class Config:
    """A checked experiment with its source, so that later errors can still point at a line."""

    def __init__(self, experiment: Experiment, source: Source) -> None:
        self.experiment = experiment
        self.source = source

    @functools.cached_property
    def methods(self) -> dict[str, Method]:
        """The controls and the methods, in their order, with published mixes written out."""
        teachers = self.experiment.named_teachers
        controls = {
            name: control_method(control, self.experiment.control_path(name), teachers)
            for name, control in self.experiment.controlled_by.items()
        }
        written = {
            method.name: expanded_method(method, ("methods", number), teachers)
            for number, method in enumerate(self.experiment.methods)
        }
        return controls | written

    def method(self, name: str, path: errors.Path) -> Method:
        """A method of this config, or a published one that it does not list (for chains)."""
        if name in self.methods:
            return self.methods[name]
        return expanded_method(MethodConfig(name=name, use=name), path, self.experiment.named_teachers)

    def teaching(self, teacher: TeacherConfig, path: errors.Path) -> Method:
        """What a teacher is trained with: the labels, or the method by which others teach it."""
        if registry.MODELS[teacher.model.kind].reinforced:
            return NOTHING
        if teacher.method is None:
            return supervised()
        return self.method(teacher.method, path).towards(teacher.sources)

    def training_of(self, model: TeacherConfig | StudentConfig, method: Method) -> Training:
        """A model's own training by a method."""
        return merged(self.experiment.training_of(model), method.training)

    def error(self, problems: Iterable[Problem]) -> ConfigError:
        """These problems with their places."""
        return self.source.explain(problems)


def read(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read, complete and check a config.

    Raises ``ConfigError`` with all problems that can be seen without building a model.
    """
    source = Source.read(path)
    for short, many in SHORTHANDS.items():
        if short in source.data:
            source.alias((many, short), (short,))
    for assignment in overrides:
        source.override(assignment)
    return validate(source, default_name(path))


def validate(source: Source, name: str = "experiment") -> Config:
    """Check a config; raises ``ConfigError`` with all problems that can be seen without building a model."""
    data = _written_out(source, name)
    _require_plugins(source)
    _rebuild_schema()
    twice = list(_given_twice(source))
    problems = [*twice, *fill_in(data, source), *fill_in_origins(data, source)]
    try:
        experiment = Experiment.model_validate(data)
    except ValidationError as error:
        problems += translated(error, data, Experiment)
        experiment = _what_is_right(data)
    _show_set_keys(experiment, source)
    if not twice:
        data_known = all(problem.path[:1] != ("dataset",) for problem in problems)
        problems += cross_checks(experiment, data_known)
    if problems:
        raise source.explain(dict.fromkeys(problems))
    return Config(experiment, source)


def _what_is_right(data: dict[str, Any]) -> Experiment:
    """The experiment with stand-ins for all that breaks its schema, so that the rest can be checked as well.

    A stand-in has its name, which others may refer to, and nothing that could be wrong with it.
    """
    model = registry.MODELS["mlp"].Config(kind="mlp")
    dataset = registry.DATASETS["digits"].Config(kind="digits", validation=0.5, labels_per_class=1)
    teacher = TeacherConfig.model_construct(model=model, run=Path(), seeds="each")  # finished: it has learnt
    student = StudentConfig.model_construct(model=model)
    methods = data.get("methods") if isinstance(data.get("teachers", {}), dict) else None
    return Experiment.model_construct(
        dataset=_valid(AnyDataset, data.get("dataset"), dataset),
        seeds=_valid(list[int], data.get("seeds"), []),
        training=_valid(Training, data.get("training", {}), Training()),
        teachers={
            name: _valid(TeacherConfig, value, teacher.model_copy(update=_what_is_seen(value)))
            for name, value in _entries(data, "teachers")
        },
        students={
            name: _valid(StudentConfig, value, student.model_copy(update=_what_is_seen(value)))
            for name, value in _entries(data, "students")
        },
        controls=_valid(Controls, data.get("controls", "default"), "default"),
        methods=[
            _valid(MethodConfig, value, MethodConfig.model_construct(name=_name_of(value, number), use="ce"))
            for number, value in enumerate(methods if isinstance(methods, list) else [])
        ],
    )


def _what_is_seen(model: object) -> dict[str, Any]:
    """What a model that breaks its schema sees, as far as that is right: others have to see the same."""
    given: dict[str, Any] = model if isinstance(model, dict) else {}
    each = {
        key: _valid(StudentConfig, {"model": {"kind": "mlp"}, key: given[key]}, None)
        for key in SEEN
        if key in given
    }
    return {key: getattr(valid, key) for key, valid in each.items() if valid is not None}


def _entries(data: dict[str, Any], key: str) -> Iterable[tuple[str, Any]]:
    value = data.get(key)
    return value.items() if isinstance(value, dict) else ()


def _valid(schema: Any, value: object, stand_in: Any) -> Any:
    try:
        return adapter(schema).validate_python(value)
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
        for label in by_label(published.losses) if published else ():
            for key, own in FOR_ALL_TERMS.items():
                if getattr(method, own) is not None:
                    source.alias(("methods", number, label, key), ("methods", number, own))
        for key in method.set:
            label, _, rest = key.partition(".")
            source.alias(("methods", number, label, rest), ("methods", number, "set", key))


def _rebuild_schema() -> None:
    """Take in the components that are registered by now."""
    _rebuilt_schema(registry.components())


@functools.lru_cache(maxsize=1)
def _rebuilt_schema(_components: tuple[type[Any], ...]) -> None:
    for model in (MethodConfig, TeacherConfig, StudentConfig, Experiment):
        model.model_rebuild(force=True)


def json_schema() -> dict[str, Any]:
    """The config's JSON schema with its shorthands, and with every component that is loaded."""
    _rebuild_schema()
    schema = _with_kinds_alone(Experiment.model_json_schema())
    schema["required"] = [key for key in schema["required"] if key != "name"]
    for short, many in SHORTHANDS.items():
        schema["properties"][short] = schema["properties"][many]["additionalProperties"]
    methods = schema["properties"]["methods"]
    for part, instead in (("MethodConfig", "use"), ("TeacherConfig", "run")):
        form = schema["$defs"][part]
        form["anyOf"] = [{"required": form.pop("required")}, {"required": [instead]}]
    methods["items"] = {"anyOf": [{"enum": sorted(published_methods())}, methods["items"]]}
    for form in schema["properties"]["controls"]["anyOf"]:
        if "items" in form:
            form["items"] = {"anyOf": [{"enum": list(CONTROLS)}, form["items"]]}
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
