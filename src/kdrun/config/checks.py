"""Everything that two parts of a config have to agree on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress

from kdrun import errors, registry
from kdrun.config.environments import environment_problems
from kdrun.config.mixes import Method, as_method, control_method, expanded_method, published_methods
from kdrun.config.origins import origin_problems
from kdrun.config.parts import ControlConfig, Experiment, MethodConfig, StudentConfig, TeacherConfig
from kdrun.config.policies import policy_problems
from kdrun.config.rewards import own_control_problems, reward_problems
from kdrun.config.spaces import Entry, ends, with_values
from kdrun.contracts import ONE_OF_THEM, JointLoss, LossConfig, ModelConfig
from kdrun.controls import CONTROLS, MATCHED, MIXES, SHUFFLED
from kdrun.errors import ConfigError, Problem, did_you_mean
from kdrun.models import CombinedConfig
from kdrun.optimization import SEEN_BY_FITTED, Sgd, Training, merged, stage_at, stage_of
from kdrun.report.scales import scale_of
from kdrun.schema import as_list
from kdrun.statistics.scores import RECALL


def cross_checks(experiment: Experiment, data_known: bool = True) -> Iterable[Problem]:
    """Everything that two parts of the config have to agree on; without what only a data set that is right can say."""
    yield from _method_names(experiment)
    if len(set(experiment.seeds)) < len(experiment.seeds):
        yield Problem(("seeds",), "a seed stands twice", "each seed is one run of each student")
    for family in ("teachers", "students"):
        for name, model in getattr(experiment, family).items():
            training = experiment.training_of(model)
            if training.selection == "best-on-validation" and experiment.dataset.validation == 0:
                yield Problem(
                    (family, name, "training", "selection") if model.training else ("training", "selection"),
                    "best-on-validation needs a validation share",
                    "add `validation: 0.1` to the data set",
                )
    yield from _retrieval_problems(experiment)
    if data_known:
        yield from policy_problems(experiment)
        yield from environment_problems(experiment)
        yield from reward_problems(experiment)
    yield from _share_problems(experiment)
    yield from _thawing_problems(experiment)
    yield from _teacher_problems(experiment)
    listed = [*experiment.controlled_by, *(method.name for method in experiment.methods)]
    yield from origin_problems(experiment, listed)
    for family in ("teachers", "students"):
        for name, model in getattr(experiment, family).items():
            yield from _fitted_problems(model, (family, name), experiment)
    yield from _control_names(experiment)
    for name, control in experiment.controlled_by.items():
        yield from _with_tuned(control, experiment.control_path(name), experiment)
    for number, method in enumerate(experiment.methods):
        yield from _with_tuned(method, ("methods", number), experiment)


def _retrieval_problems(experiment: Experiment) -> Iterable[Problem]:
    """Classes that only embeddings can be scored on, and models that have none."""
    data, retrieves = experiment.dataset, experiment.dataset.metric == RECALL
    if data.unseen and not retrieves:
        words = f"{data.metric} is of classes that models tell apart, and of these they have seen nothing"
        yield Problem(("dataset", "unseen"), words, f"write `metric: {RECALL}`", True)
    for key in ("leave_out", "transfer_set") if data.unseen else ():
        if getattr(data, key) is not None:
            words = "what nobody sees of some classes and what students do not are two questions"
            if key == "transfer_set":
                words = "nobody knows the classes of a transfer set, and of some no sample is to be seen"
            yield Problem(("dataset", key), words, f"write `unseen` or `{key}`", True)
    for family in ("teachers", "students") if retrieves else ():
        for name, model in getattr(experiment, family).items():
            kind = registry.MODELS[model.model.kind]
            if kind.fitted or kind.combines:
                words = f"'{model.model.kind}' has no embedding, and {RECALL} is of embeddings"
                yield Problem((family, name, "model"), words, "name a network, or another `metric`")


def _share_problems(experiment: Experiment) -> Iterable[Problem]:
    """A share of labelled samples in each batch where there are no others."""
    own: list[tuple[errors.Path, Training | None]] = [(("training",), experiment.training)]
    own += [(("students", name, "training"), one.training) for name, one in experiment.students.items()]
    for path, training in own:
        if training is not None and training.labelled_share is not None and not _hides_labels(experiment):
            yield Problem((*path, "labelled_share"), *ALL_LABELLED)
    for name, teacher in experiment.teachers.items():
        if teacher.training is None or teacher.training.labelled_share is None:
            continue
        place = ("teachers", name, "training", "labelled_share")
        if teacher.labels == "all":
            words = "a teacher sees all labels, so `labelled_share` says nothing"
            yield Problem(place, words, "remove it, or write `labels: given` for the teacher", True)
        elif not _hides_labels(experiment):
            yield Problem(place, *ALL_LABELLED)
        elif not teacher.sources:
            words = "this teacher learns from labelled samples only, so `labelled_share` says nothing"
            yield Problem(place, words, "remove it", True)


def _thawing_problems(experiment: Experiment) -> Iterable[Problem]:
    """Models whose body is frozen, whatever method they learn by."""
    for family in ("teachers", "students"):
        for name, model in getattr(experiment, family).items():
            said = model.training is not None and "frozen_epochs" in model.training.model_fields_set
            place: errors.Path = (family, name) if said else ()
            training = experiment.training_of(model)
            if getattr(model, "weights", None) is None:
                yield from _frozen_problems(name, model.model, training, (*place, "training"))


def _frozen_problems(
    name: object, model: ModelConfig, training: Training, path: errors.Path
) -> Iterable[Problem]:
    """What is wrong with the frozen epochs that a training has, by the path of that."""
    place, kind = (*path, "frozen_epochs"), registry.MODELS[model.kind]
    if not training.frozen_epochs or kind.fitted or kind.combines:
        return
    if not _starts_from_weights(model):
        words = f"'{name}' starts from random weights, and its body would be frozen as it was drawn"
        cure = "write it in the training of a model that has `initial_weights: FILE` or `pretrained: true`"
        yield Problem(place, words, cure)
    if training.frozen_epochs > training.epochs:
        words = f"the training of '{name}' has {training.epochs} epochs"
        yield Problem(place, words, f"write at most {training.epochs}, with which only the classifier learns")


def _starts_from_weights(model: ModelConfig) -> bool:
    begun = model.initial_weights is not None or getattr(model, "pretrained", False)
    return begun or registry.MODELS[model.kind].compresses


ALL_LABELLED = (
    "all samples have a label, so `labelled_share` says nothing",
    "remove it, or add `labels_per_class` or a `transfer_set` to the data set",
    True,
)
"""What is said of a share of those that have one."""


def _hides_labels(experiment: Experiment) -> bool:
    """Whether there are samples of which the students see no label."""
    data = experiment.dataset
    return data.labels_per_class is not None or data.transfer_set is not None


def entry_problems(entry: Entry, path: errors.Path, experiment: Experiment) -> Iterable[Problem]:
    """What is wrong with one method or control."""
    if isinstance(entry, ControlConfig):
        yield from _control_problems(entry, path, experiment)
        return
    yield from _unknown_teachers(entry.teacher, (*path, "teacher"), experiment.teachers)
    misused = list(_method_problems(entry, path))
    yield from misused or _mix_problems(entry, path, experiment)


def _with_tuned(entry: Entry, path: errors.Path, experiment: Experiment) -> Iterable[Problem]:
    """What is wrong with a method or control as it is, and, if nothing is, with each value that is to be tried."""
    found = list(entry_problems(entry, path, experiment))
    yield from found
    if found or not entry.tune:
        return
    for student in experiment.students.values():
        training = experiment.training_of(student)
        for key, space in entry.tune.items():
            for value in ends(space):
                yield from _tuned_problems(entry, key, value, path, experiment, training)


def _tuned_problems(
    entry: Entry, key: str, value: object, path: errors.Path, experiment: Experiment, training: Training
) -> Iterable[Problem]:
    """The first thing that is wrong with a method of which one value is another."""
    try:
        changed = with_values(entry, {key: value}, training)
        wrong = list(entry_problems(changed, path, experiment))
    except ConfigError as error:
        wrong = error.problems
    for problem in wrong[:1]:
        yield Problem((*path, "tune", key), problem.message, problem.hint, problem.on_key)


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
    if not all(stage_of(training, expanded.stages, epoch).train for epoch in range(training.epochs)):
        words = "a stage has nothing but the body learn in epochs in which that is frozen"
        yield Problem(
            path, words, "write `frozen_epochs: 0`, or have the stage's `train` name the classifier"
        )
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


def _fitted_problems(
    model: TeacherConfig | StudentConfig, path: errors.Path, experiment: Experiment
) -> Iterable[Problem]:
    """What does not go with a model that is fitted at once, or with one that is not."""
    kind, cuts = model.model.kind, getattr(model, "cross_fit", None)
    if registry.MODELS[kind].combines:
        if isinstance(model, StudentConfig):
            words = f"'{kind}' is made of finished teachers, and a student is to be trained"
            yield Problem((*path, "model"), words, "name it among the `teachers`")
        return
    fitted: bool = registry.MODELS[kind].fitted
    if fitted and model.training is not None:
        for key in sorted(model.training.model_fields_set.difference(SEEN_BY_FITTED)):
            words = f"'{kind}' is fitted at once, so `{key}` says nothing"
            yield Problem((*path, "training", key), words, "remove it", True)
    if not fitted and cuts is not None:
        words = f"'{kind}' is trained in steps, and only what is fitted at once is cross-fitted"
        yield Problem((*path, "cross_fit"), words, "remove it", True)
    for key in ("resize", "normalization") if fitted else ():
        if getattr(model, key) is not None:
            words = f"'{kind}' is fitted at once to the numbers of the data set, so `{key}` says nothing"
            yield Problem((*path, key), words, "remove it", True)
    if fitted and cuts == 1:
        yield Problem((*path, "cross_fit"), "one part leaves nothing to fit to", "write 0, or 2 or more")
    training = experiment.training_of(model)
    if fitted and isinstance(model, TeacherConfig) and model.folds and (training.mixup or training.cutmix):
        words = f"'{kind}' is cross-fitted, and a mixed sample is of two parts of the training set"
        yield Problem(path, words, "write `training: {mixup: 0, cutmix: 0}` or `cross_fit: 0` for it")
    if isinstance(model, TeacherConfig) and not model.sources and model.training and model.training.queries:
        words = "only teachers can say what queries are, and this one has none"
        yield Problem(
            (*path, "training", "queries"), words, "write it in a student's or a method's training", True
        )
    learns = getattr(model, "weights", None) is None
    if learns and getattr(model.model, "prune", False) and experiment.dataset.validation == 0:
        words = "pruning looks at the validation share, and there is none"
        yield Problem((*path, "model", "prune"), words, "add `validation: 0.2` to the data set")


def _target_problems(
    method: Method, named: object, kind: str, paths: Iterable[errors.Path], stages: errors.Path
) -> Iterable[Problem]:
    """Terms that a model cannot learn from that is fitted at once, and called so; nothing for others."""
    if not registry.MODELS[kind].fitted:
        return
    able = ", ".join(name for name in registry.LOSSES if registry.LOSSES[name].has_target())
    if any("body" not in stage.train for stage in method.stages):
        words = f"a stage leaves the body as it is, and '{named}' ({kind}) is fitted at once"
        yield Problem(stages, words, "remove the stage's `train`")
    for loss, path in zip(method.losses, paths, strict=True):
        if not registry.LOSSES[loss.kind].has_target():
            words = (
                f"'{loss.kind}' gives no class probabilities, and '{named}' ({kind}) learns from nothing else"
            )
            yield Problem(path, words, f"use {able}")
        elif loss.combine in ONE_OF_THEM and len(loss.teachers) > 1:
            words = f"'{loss.combine}' takes a teacher in each step, and '{named}' ({kind}) is fitted at once"
            yield Problem((*path, "combine"), words, "use mean, fitted or entropy")


def _peer_problems(
    method: Method, named: object, model: ModelConfig, paths: Iterable[errors.Path]
) -> Iterable[Problem]:
    """Peers of a student that is ahead of them from the first step on."""
    if not _starts_from_weights(model):
        return
    for loss, path in zip(method.losses, paths, strict=True):
        if getattr(loss, "peers", 0):
            words = (
                f"'{named}' starts from weights that were trained, and the peers of '{loss.label}' would not"
            )
            yield Problem(path, words, "leave them out, or use another loss")


def _mix_problems(method: MethodConfig, path: errors.Path, experiment: Experiment) -> Iterable[Problem]:
    teachers = experiment.named_teachers
    try:
        expanded = expanded_method(method, path, teachers)
    except ConfigError as error:
        yield from error.problems
        return
    yield from _term_problems(expanded, method.teacher, experiment)
    yield from _stage_problems(expanded, method, path)
    yield from _export_problems(expanded, path)
    for name, student in experiment.students.items():
        training = merged(experiment.training_of(student), method.training)
        yield from _training_problems(expanded, method, path, training)
        if method.training is not None and "frozen_epochs" in method.training.model_fields_set:
            yield from _frozen_problems(name, student.model, training, (*path, "training"))
        yield from _target_problems(
            expanded, name, student.model.kind, expanded.paths, (*path, "stages") if method.stages else path
        )
        yield from _peer_problems(expanded, name, student.model, expanded.paths)
    taught = [loss for loss in expanded.losses if registry.LOSSES[loss.kind].needs_teacher]
    if method.teacher and not taught:
        yield Problem((*path, "teacher"), "no term of this method looks at a teacher", "remove it", True)
    if method.training is not None and method.training.labelled_share is not None:
        place = (*path, "training", "labelled_share")
        if not _hides_labels(experiment):
            yield Problem(place, *ALL_LABELLED)
        elif not any(registry.LOSSES[loss.kind].learns_unlabelled for loss in expanded.losses) and not taught:
            words = "this method learns from labelled samples only, so `labelled_share` says nothing"
            yield Problem(place, words, "remove it", True)
    asks = method.training is not None and method.training.queries is not None
    if asks and not any(loss.weight for loss in taught):
        words = "no term of this method looks at a teacher, who alone can say what queries are"
        yield Problem((*path, "training", "queries"), words, "remove it", True)


def _control_names(experiment: Experiment) -> Iterable[Problem]:
    listed = experiment.controls if isinstance(experiment.controls, list) else []
    for number, control in enumerate(listed):
        if control.name in [other.name for other in listed[:number]]:
            yield Problem(("controls", number), f"a second control '{control.name}'", "keep one")


def _control_problems(control: ControlConfig, path: errors.Path, experiment: Experiment) -> Iterable[Problem]:
    """What is wrong with a control: all that can be with a method, and terms that it would not be a control with."""
    teachers = experiment.named_teachers
    if not teachers and (
        control.name == SHUFFLED or (control.name == MATCHED and not _runs_further(experiment))
    ):
        yield Problem(path, f"'{control.name}' needs a teacher and the config has none", "add `teacher:`")
        return
    students = experiment.students.values()
    fitted = all(registry.MODELS[student.model.kind].fitted for student in students)
    if control.name == MATCHED and fitted and experiment.controls != "all":
        words = f"'{MATCHED}' trains for longer, and every student here is fitted at once"
        yield Problem(path, words, "remove it")
        return
    found = list(own_control_problems(control, path, experiment))
    found = found or list(_mix_problems(as_method(control, teachers), path, experiment))
    yield from found
    if found:
        return
    if control.losses is not None:
        return
    losses = control_method(control, path, teachers).losses
    kinds = [term["kind"] for term in published_methods()[MIXES[control.name]].losses]
    if [loss.kind for loss in losses] != kinds or not all(loss.weight for loss in losses):
        words = f"'{control.name}' is {CONTROLS[control.name]}: its terms stay, with weights above 0"
        yield Problem((*path, "set"), words, "add a method of another name")


def _runs_further(experiment: Experiment) -> bool:
    """Whether a method runs networks beside the student's own, such as peers."""
    for number, method in enumerate(experiment.methods):
        path = ("methods", number)
        if list(_method_problems(method, path)):
            continue
        with suppress(ConfigError):  # said of the method itself
            if any(loss.passes or loss.networks for loss in expanded_method(method, path, []).losses):
                return True
    return False


def _stage_problems(expanded: Method, method: MethodConfig, path: errors.Path) -> Iterable[Problem]:
    labels = [loss.label for loss in expanded.losses]
    for number, stage in enumerate(method.stages or ()):
        place = (*path, "stages", number)
        for position, name in enumerate(stage.losses or ()):
            if name not in labels:
                words = f"'{name}' is no term of this method"
                yield Problem((*place, "losses", position), words, did_you_mean(name, labels))
        if stage.length(1) is None and number + 1 < len(method.stages or ()):
            yield Problem(place, "only the last stage may say no length", "add `epochs` or `share`")
    if not any(registry.LOSSES[loss.kind].needs_teacher for loss in expanded.losses):
        for key in ("early_stop", "momentum_gap"):
            if getattr(method, key) is not None:
                yield Problem((*path, key), "no term of this method looks at a teacher", "remove it", True)


def _unknown_teachers(
    named: str | list[str] | None, path: errors.Path, teachers: Iterable[str]
) -> Iterable[Problem]:
    for number, name in enumerate(as_list(named)):
        if name not in teachers:
            place = (*path, number) if isinstance(named, list) else path
            hint = did_you_mean(name, teachers) or "the config has none"
            yield Problem(place, f"there is no teacher '{name}'", hint)


def _method_names(experiment: Experiment) -> Iterable[Problem]:
    seen: set[str] = set()
    for number, method in enumerate(experiment.methods):
        if method.name in seen:
            yield Problem(
                ("methods", number, "name"), f"a second method is named '{method.name}'", "names are unique"
            )
        if method.name in CONTROLS:
            yield Problem(
                ("methods", number, "name"),
                f"'{method.name}' is a control's name",
                "`controls:` adds it; take another",
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
        yield from _unknown_teachers(teacher.from_, (*path, "from"), teachers)
        if _in_circle(name, teachers):
            yield Problem((*path, "from"), "the teachers are distilled from each other in a circle")
        if registry.MODELS[teacher.model.kind].combines:
            yield from _combined_problems(teacher, path, experiment)
        elif (teacher.from_ is None) != (teacher.method is None):
            given, missing = ("from", "method") if teacher.from_ else ("method", "from")
            yield Problem(
                (*path, given), f"`{given}` needs `{missing}`", "a distilled teacher names both", True
            )
        elif teacher.method and teacher.method not in known_methods:
            hint = did_you_mean(teacher.method, known_methods)
            yield Problem((*path, "method"), f"there is no method '{teacher.method}'", hint)
        elif teacher.method and set(teacher.sources) <= teachers.keys():
            yield from _distilled_problems(teacher, path, experiment)
        yield from _sight_problems(teacher, path, experiment)
        least, most = scale_of(experiment.dataset.metric).bounds
        if teacher.expect is not None and not least <= teacher.expect <= most:
            hint = f"write a number that is at {'least' if teacher.expect < least else 'most'} "
            hint += str(least if teacher.expect < least else most)
            yield Problem((*path, "expect"), f"{teacher.expect:g} is out of range", hint)
        if teacher.seeds is not None and "seed" in teacher.model_fields_set:
            yield Problem((*path, "seed"), "`seeds: each` takes the students' seeds", "remove `seed`", True)
        for source in teacher.sources:
            if source in teachers and teachers[source].seeds is not None and teacher.seeds is None:
                yield Problem(
                    (*path, "from"),
                    f"'{source}' is trained once for each seed, and '{name}' only once",
                    "write `seeds: each` here too",
                )
        if teacher.weights is not None and not registry.MODELS[teacher.model.kind].combines:
            if not os.path.isfile(teacher.weights):
                yield Problem(
                    (*path, "weights"),
                    f"there is no file '{teacher.weights}'",
                    "a path from the working folder",
                )
            for key in ("from_", "seeds", "training", "cross_fit"):
                if getattr(teacher, key) is not None:
                    yield Problem(
                        (*path, key.strip("_")),
                        f"a teacher with `weights` is finished, so `{key.strip('_')}` says nothing",
                        "remove one",
                        True,
                    )
        same = next(other for other in teachers if teachers[other] == teacher)
        if same != name and teacher.seeds is None:
            words = f"'{name}' is the same teacher as '{same}'"
            hint = "give one of them another `seed`" if teacher.weights is None else "keep one"
            yield Problem(path, words, hint, True)
    for family in ("teachers", "students"):
        for name, model in getattr(experiment, family).items():
            file = model.model.initial_weights
            if file is not None and not os.path.isfile(file):
                yield Problem(
                    (family, name, "model", "initial_weights"),
                    f"there is no file '{file}'",
                    "a path from the working folder",
                )


def _sight_problems(teacher: TeacherConfig, path: errors.Path, experiment: Experiment) -> Iterable[Problem]:
    """A teacher that is to see what the students see, where that says nothing."""
    place, kind = (*path, "labels"), teacher.model.kind
    if teacher.labels == "all":
        return
    if teacher.weights is not None:
        words = "a teacher with `weights` is finished, so `labels` says nothing"
        yield Problem(place, words, "remove it", True)
    elif registry.MODELS[kind].combines:
        words = f"'{kind}' is made of finished teachers, so `labels` says nothing"
        yield Problem(place, words, "remove it", True)
    elif not (_hides_labels(experiment) or experiment.dataset.leave_out):
        words = "the students are given all samples and labels, so `labels: given` says nothing"
        hint = "remove it, or add `labels_per_class`, `leave_out` or a `transfer_set` to the data set"
        yield Problem(place, words, hint)


def _combined_problems(
    teacher: TeacherConfig, path: errors.Path, experiment: Experiment
) -> Iterable[Problem]:
    """What does not go with a model that is made of finished teachers."""
    kind, names = teacher.model.kind, teacher.sources
    assert isinstance(teacher.model, CombinedConfig)
    for key in ("method", "training", "weights", "view", "resize", "normalization", "cross_fit"):
        if getattr(teacher, key) is not None:
            words = f"'{kind}' is made of finished teachers, so `{key}` says nothing"
            yield Problem((*path, key), words, "remove it", True)
    if len(names) < 2:
        where = (*path, "from") if names else path
        yield Problem(where, f"'{kind}' is made of two teachers or more", "write `from: [one, another]`")
        return
    if len(set(names)) < len(names):
        yield Problem((*path, "from"), "a teacher stands twice", "name each once")
    each = any(experiment.teachers[name].seeds for name in names if name in experiment.teachers)
    if teacher.seeds is not None and not each:
        words = "its members are trained once, and so it is one for all seeds"
        yield Problem((*path, "seeds"), words, "remove it, or write `seeds: each` for a member", True)
    for key, wanted in (("member_weights", len(names)), ("confidence", len(names) - 1)):
        given = getattr(teacher.model, key, None)
        if isinstance(given, list) and len(given) != wanted:
            words = f"{len(given)} numbers, and {len(names)} members need {wanted}"
            yield Problem((*path, "model", key), words, "write as many")
    if (left_open := teacher.model.left_open) is not None and experiment.dataset.validation == 0:
        words = f"`{left_open}` is chosen on the validation share, and there is none"
        yield Problem((*path, "model"), words, "add `validation: 0.1` to the data set")


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
        expanded = expanded_method(method, path, list(experiment.teachers)).towards(teacher.sources)
    except ConfigError:
        return  # said of the method itself
    training = merged(experiment.training_of(teacher), method.training)
    found = [*_training_problems(expanded, method, path, training), *_export_problems(expanded, path)]
    if method.training is not None and method.training.frozen_epochs:
        found += _frozen_problems(path[-1], teacher.model, training, path)
    found += _target_problems(expanded, path[-1], teacher.model.kind, [path] * len(expanded.losses), path)
    found += _peer_problems(expanded, path[-1], teacher.model, [path] * len(expanded.losses))
    for loss in expanded.losses:
        found += _combination_problems(loss, path, experiment)
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
    method: Method, of_method: str | list[str] | None, experiment: Experiment
) -> Iterable[Problem]:
    teachers, labels = experiment.teachers, set[str]()
    for loss, path in zip(method.losses, method.paths, strict=True):
        if loss.label in labels:
            yield Problem(path, f"a second term is named '{loss.label}'", "give one of them a `name`")
        labels.add(loss.label)
        if not registry.LOSSES[loss.kind].needs_teacher:
            for key in ("teacher", "shuffle_teacher"):
                if getattr(loss, key):
                    yield Problem((*path, key), f"'{loss.kind}' looks at no teacher", "remove it", True)
        elif not teachers:
            yield Problem(path, f"'{loss.kind}' needs a teacher and the config has none", "add `teacher:`")
        elif loss.teacher is None:
            yield Problem(
                path,
                f"'{loss.label}' names none of the {len(teachers)} teachers",
                "add `teacher: NAME`, or a list of names; " + did_you_mean("", teachers),
            )
        if loss.teacher != of_method:
            yield from _unknown_teachers(loss.teacher, (*path, "teacher"), teachers)
        if len(set(as_list(loss.teacher))) < len(as_list(loss.teacher)):
            yield Problem((*path, "teacher"), "a teacher stands twice", "name each once")
        yield from _second_input_problems(loss, path, experiment)
        yield from _combination_problems(loss, path, experiment)


def _second_input_problems(loss: LossConfig, path: errors.Path, experiment: Experiment) -> Iterable[Problem]:
    """A further view with figures of its own, for models that know how one is normalised."""
    everyone = (*experiment.teachers.values(), *experiment.students.values())
    named = getattr(loss, "view", None) in (getattr(experiment.dataset, "inputs", None) or [])
    if named and any(model.normalization is not None for model in everyone):
        words = "each input is normalised by figures of its own, and `normalization` translates those of one"
        yield Problem((*path, "view"), words, "look at another view, or leave `normalization` out")


def _combination_problems(loss: LossConfig, path: errors.Path, experiment: Experiment) -> Iterable[Problem]:
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
            f"'{loss.kind}' looks at more than logits, which cannot be combined by {loss.combine}",
            "use mean-loss or fixed, which weigh a loss for each teacher",
        )
    if count > 1 and loss.combine == "fitted" and experiment.dataset.validation == 0:
        words = "the weights are fitted to the validation share, and there is none"
        yield Problem((*path, "combine"), words, "add `validation: 0.1` to the data set")
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
