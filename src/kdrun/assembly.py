"""Putting a run together: device, data set, network, teachers, objective, student."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kdrun import models, registry
from kdrun.agents import Agent, demand_trainer
from kdrun.config import Config
from kdrun.config.finished import number_problems, sample_problems
from kdrun.console import Console
from kdrun.contracts import Batch, Dataset, Model, ModelConfig, Outputs, Shelf, Spec, Twin
from kdrun.ensembles import of_members
from kdrun.errors import (
    DataError,
    DeviceError,
    Mismatch,
    OutOfMemory,
    Problem,
    StoreError,
    did_you_mean,
)
from kdrun.memory import watched
from kdrun.models import Deployed, Frozen, Network, heads_for
from kdrun.models.folds import FOLD, CrossFitted, OutOfFold, states_of_folds
from kdrun.models.int8 import finish_rounding, look_at_ranges, rounds
from kdrun.objective import Objective, Surroundings
from kdrun.optimization import Training
from kdrun.plan import Plan, Run
from kdrun.randomness import derive, generator
from kdrun.store import Result
from kdrun.store.forms import foreign
from kdrun.store.runs import FOLDS
from kdrun.student import Learner, Plugs, Student
from kdrun.trees import FittedStudent

DRY_SAMPLES = 8
"""Samples of the batch that shapes are learnt from; BatchNorm needs more than one."""
RANGE_SAMPLES = 256
"""Training samples from which the first ranges of a network are learnt that is to be in int8."""


SHARED = {
    "test": "test samples, too: what learns from them has seen what it is tested on; leave them out",
    "left out": "training samples of a class that is left out: the students see them after all; take them out",
    "validation": "validation samples, too: what these choose has learnt from them; leave them out",
}
"""What is said of samples that a transfer set has in common with a split that it should have none of."""


def resolve_device(text: str) -> torch.device:
    """The device that a config's ``device`` means here; raises ``DeviceError`` where it is not there."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    apple = torch.backends.mps.is_available()
    if text == "auto":
        return torch.device("cuda" if gpus else "mps" if apple else "cpu")
    device = torch.device(text)
    if device.type == "cuda" and (device.index or 0) >= gpus:
        there = f"{gpus} GPU(s)" if gpus else "no GPU that torch can use"
        raise DeviceError(f"device '{text}': this machine has {there}; write --device cpu, or --device auto")
    if device.type == "mps" and not apple:
        raise DeviceError("device 'mps': this machine has no Apple GPU; write --device cpu, or --device auto")
    return device


def resolve_bf16(training: Training, shape: Sequence[int], device: torch.device) -> bool:
    """Whether a training on inputs of a ``shape`` runs in bf16 on this device; ``auto`` leaves tables in fp32."""
    if training.precision != "auto":
        return training.precision == "bf16"
    return len(shape) == 3 and has_bf16(device)


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 by itself, and not by a detour through fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        able: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
        return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))
    return False


def open_dataset(config: Config) -> Dataset:
    """The config's data set, with no more read than its form; raises ``ConfigError``, ``DataError``."""
    with keys_pointed_at(config):
        data = config.experiment.dataset
        dataset: Dataset = registry.DATASETS[data.kind](data)
        if len(data.leave_out or []) >= dataset.spec.classes:
            raise DataError("dataset.leave_out: no class is left to learn from; write fewer of them")
    if problems := list(number_problems(config.experiment, dataset)):
        raise config.error(problems)
    return dataset


def load(plan: Plan, dataset: Dataset, device: torch.device, shelf: Shelf, console: Console) -> None:
    """Put the data set at hand on a device, with the views that a plan's runs look at.

    Raises ``ConfigError``, ``DataError``, ``OutOfMemory``. Warns of teachers that may have learnt from its test
    samples, and raises where that is all but certain.
    """
    config = plan.config
    dataset.show({view for run in plan.runs for view in run.views})
    try:
        with keys_pointed_at(config), watched():
            dataset.load(device, shelf, console.say)
    except OutOfMemory as error:
        raise OutOfMemory(f"dataset: {error}; take fewer or smaller samples") from error.__cause__
    shared = dataset.shared_by_transfer_set
    for split, what in SHARED.items():
        if count := shared.get(split):
            console.warn(f"{count:,} of {dataset.transfer_samples:,} samples of the transfer set are {what}")
    if problems := list(sample_problems(config.experiment, dataset, console.warn)):
        raise config.error(problems)
    for sentence in dict.fromkeys(map(partial(_normalised_otherwise, dataset=dataset), plan.runs)):
        if sentence:
            console.warn(sentence)


def _normalised_otherwise(run: Run, dataset: Dataset) -> str:
    """What is said of published weights that know their inputs normalised by other figures than a loaded set's."""
    published = getattr(run.model, "published", None)
    if published is None or run.weights is not None or run.normalization is not None:
        return ""
    dataset = dataset.of(run.environment)
    view = run.view or dataset.spec.default_view
    if not published.differs(dataset.spec.shapes[view], dataset.units(view)):
        return ""
    return (
        f"the {run.role} '{run.name}' starts from published weights, which know inputs normalised by mean "
        f"{published.mean} and std {published.std}, and sees them normalised as the data set is; write "
        f"`normalization: {published}` for it"
    )


@contextmanager
def keys_pointed_at(config: Config) -> Iterator[None]:
    """Turn what a data set says of a key (``dataset.root: …``, or one inside of that) into a problem of the config."""
    try:
        yield
    except DataError as error:
        named = re.match(r"(dataset\.[\w.-]+): (.*)", str(error), re.DOTALL)
        if named is None:
            raise
        raise config.error([Problem(tuple(named[1].split(".")), named[2])]) from error


def shown(
    run: Run, finished: Callable[[Run], Result | None], dataset: Dataset, device: torch.device
) -> Dataset:
    """The data set as a run sees it: of its environment, and as the teacher shows the samples that has to."""
    dataset = dataset.of(run.environment)
    if (demonstrator := run.demonstrator) is None:
        return dataset
    return dataset.shown_by(
        demonstrator.fingerprint, lambda: frozen(demonstrator, finished(demonstrator), dataset.spec, device)
    )


def bare_network(run: Run, spec: Spec, device: torch.device) -> Network:
    """The run's network for weights that come from elsewhere: no file is read, nothing downloaded."""
    return fresh_network(run.without_files(), spec, device)


def fresh_network(
    run: Run, spec: Spec, device: torch.device, origin: Mapping[str, torch.Tensor] | None = None
) -> Network:
    """The run's network with the weights it starts from; raises ``Mismatch``, ``WeightsError``.

    What is made of a finished run is given the state of that; or else it is made of weights as they are drawn.
    """
    spec = spec.of(run.environment)
    view = run.view or spec.default_view
    if view not in spec.shapes:
        raise Mismatch(f"the data set has no view '{view}'", did_you_mean(view, spec.shapes), key="view")
    if run.way == "combined":
        members = [finished_network(member, spec, device) for member in run.teachers.values()]
        if len(seen := {member.view for member in members}) > 1:
            words = f"its members see several views: {', '.join(sorted(seen))}"
            raise Mismatch(words, "name teachers that see the same one", key="view")
        return Network(of_members(run, members, spec), members[0].view, device)
    seed, lens, heads = derive(run.seed, run.role, "weights"), run.lens(spec, device), heads_for(spec, device)
    model = models.build(run.model, spec.shapes[view], spec.classes, seed, lens, origin, heads)
    # Convolutions are faster on it, and a memory format changes no values but by the order of sums.
    return Network(model.to(memory_format=torch.channels_last), view, device)


def finished_network(run: Run, spec: Spec, device: torch.device) -> Network:
    """The run's network as it is stored when it is finished, its weights still to come from there.

    Where a loss's parts are at inference, they are the network's.
    """
    spec, network = spec.of(run.environment), bare_network(run, spec, device)
    predicting = [loss for loss in run.losses if registry.LOSSES[loss.kind].at_inference]
    if not predicting or run.weights is not None:
        finish_rounding(network.model)
        return network
    bare = {name: finished_network(teacher, spec, device) for name, teacher in run.teachers.items()}
    teachers = {name: Frozen(n.model, n.view, device) for name, n in bare.items()}
    around = dry_surroundings(run, network, teachers, spec, DRY_SAMPLES)
    predictor = Objective(predicting, around).predictor
    assert predictor is not None
    deployed = Deployed(network.model, *predictor)
    return network.copied(deployed, deployed.state_dict())


def frozen(
    run: Run, result: Result | None, spec: Spec, device: torch.device, places: np.ndarray | None = None
) -> Frozen:
    """A finished run's network, frozen; raises ``StoreError`` where it was deleted, or its weights are another's.

    With the ``places`` of its pupils' samples in its training set it can teach of them, cross-fitted where it is to be.
    """
    if result is None:
        raise StoreError(f"{run.title}: was deleted while it was needed; the same command trains it again")
    network = finished_network(run, spec, device)
    _give(network.model, state_of(result), result.folder / "weights.safetensors")
    if places is None or not run.folds:
        return Frozen(network.model, network.view, device)
    file, parts = result.folder / FOLDS, result.arrays(FOLDS)
    try:
        states = states_of_folds(parts, places)
    except (KeyError, ValueError) as error:
        raise foreign(file, error) from error
    twins = [finished_network(run, spec, device).model for _ in states]
    for twin, state in zip(twins, states, strict=True):
        _give(twin, state, file)
    models_ = [Frozen(model, network.view, device) for model in (*twins, network.model)]
    fold = np.append(parts[FOLD], np.int32(len(twins)))  # which is that of place -1, of which none has learnt
    heard = OutOfFold(models_, torch.from_numpy(fold[places]).to(device))
    return CrossFitted(network.model, network.view, device, heard)


def teacher(run: Run, result: Result | None, dataset: Dataset, device: torch.device, given: bool) -> Frozen:
    """A finished run's network, frozen, as it teaches those that are ``given`` what students see, or all samples."""
    return frozen(run, result, dataset.spec, device, _heard_of(dataset, given, run.draw.given))


def teachers(
    group: Iterable[Run], finished: Callable[[Run], Result | None], dataset: Dataset, device: torch.device
) -> dict[Run, Frozen]:
    """The finished teachers of a group, as they teach it."""
    return {
        run: teacher(run, finished(run), dataset, device, one.draw.given)
        for one in group
        for run in one.teachers.values()
    }


def _heard_of(dataset: Dataset, given: bool, learnt_from_given: bool) -> np.ndarray:
    """Where samples (N,), of the students' or all, stand among those that a teacher learnt from; -1 for others."""
    if given == learnt_from_given:
        return np.arange(len(dataset.labels("train", given)))
    places = dataset.places(True)
    if given:
        return places
    own = np.full(len(dataset.labels("train")), -1)
    own[places[places >= 0][::-1]] = np.flatnonzero(places >= 0)[::-1]  # of twins the one of the training set
    return own


def state_of(result: Result) -> dict[str, torch.Tensor]:
    """The weights of a finished run by name; raises ``DamagedError``."""
    return {name: torch.from_numpy(array) for name, array in result.weights().items()}


def _give(model: Model, state: Mapping[str, torch.Tensor], file: Path) -> None:
    """Give a model what a file of a finished run holds; raises ``DamagedError`` where that is another's."""
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise foreign(file, error) from error


def from_file(run: Run, spec: Spec, device: torch.device) -> Frozen:
    """A run that a config takes from its ``weights``, frozen; raises ``WeightsError`` where they do not fit."""
    network = finished_network(run, spec, device)
    models.load_weights(network.model, run.weights)
    return Frozen(network.model, network.view, device)


def make_student(
    run: Run,
    teachers: Mapping[str, Frozen],
    dataset: Dataset,
    device: torch.device,
    origin: Mapping[str, torch.Tensor] | None = None,
) -> Learner:
    """The run's student before it has learnt anything; what is made of a finished run is given the state of that."""
    network = fresh_network(run, dataset.spec, device, origin)
    if run.way == "reinforced":
        return agent_of(run, network, dataset.spec)
    given = run.draw.given
    if rounds(network.model):
        seen = next(iter(dataset.split("train", RANGE_SAMPLES, given))).to(device)
        look_at_ranges(network.model, seen.views[network.view])
    labels = torch.from_numpy(dataset.labels("train", given))
    remind = _reminding(dataset, given)
    remind(run, network)

    def as_seen(batch: Batch) -> Batch:
        return batch.with_labels(labels.to(device)[batch.index])

    def survey(teacher: Frozen) -> Iterable[tuple[Batch, Outputs]]:
        return ((as_seen(batch), teacher.of_training(batch)) for batch in dataset.split("train", given=given))

    def validation(teacher: Frozen) -> Iterable[tuple[Batch, Outputs]]:
        return ((batch, teacher(batch)) for batch in dataset.split("validation", given=given))

    dry = as_seen(next(iter(dataset.split("train", DRY_SAMPLES, given))).to(device))
    around = Surroundings(
        student=network,
        teachers=teachers,
        batch=dry,
        samples=len(labels),
        classes=int(network.dry(dry).logits.shape[1]),
        batch_size=min(run.training.batch_size, len(labels)),
        labels=labels,
        seed=run.seed,
        survey=survey,
        validation=validation,
        twin=_twins(run, dataset.spec, device, remind),
        label_smoothing=run.training.label_smoothing,
    )
    return fitted_of(run, around) if run.way == "fitted" else student_of(run, around, dataset.steps(run.draw))


def dry_surroundings(
    run: Run, network: Network, teachers: Mapping[str, Frozen], spec: Spec, size: int
) -> Surroundings:
    """Surroundings with a training set of as many random samples as a step takes."""
    dry, whole = (
        spec.random_batch(count).to(network.device) for count in (DRY_SAMPLES, max(size, DRY_SAMPLES))
    )
    return Surroundings(
        student=network,
        teachers=teachers,
        batch=dry,
        samples=len(whole),
        classes=int(network.dry(dry).logits.shape[1]),
        batch_size=size,
        labels=whole.labels,
        seed=run.seed,
        survey=lambda teacher: [(dry, teacher(dry))],
        validation=lambda teacher: [(dry, teacher(dry))],
        twin=_twins(run, spec, network.device),
        label_smoothing=run.training.label_smoothing,
    )


Remind = Callable[[Run, Network], None]
"""Gives a run's network the training samples that it is to hold."""


def _reminding(dataset: Dataset, given: bool) -> Remind:
    """What gives networks those that they hold, as they see them, drawn by their seeds of what their role sees."""

    def remind(run: Run, network: Network) -> None:
        if not network.model.memory:
            return
        seen = len(dataset.labels("train", given))
        order = torch.randperm(seen, generator=generator(run.seed, "memory"))
        chosen = torch.zeros(seen, dtype=torch.bool)
        chosen[order[: network.model.memory]] = True
        batches = dataset.split("train", given=given)
        held = [batch.views[network.view][chosen.to(batch.index.device)[batch.index]] for batch in batches]
        samples, lens = torch.cat(held).to(network.device), network.model.lens
        network.model.remember(samples if lens is None else lens(samples))

    return remind


def _twins(
    run: Run, spec: Spec, device: torch.device, remind: Remind = lambda run, network: None
) -> Callable[[str], Twin]:
    """What makes networks for a term, which start from weights of their own: of a run's architecture, or of another."""

    def of_term(label: str) -> Twin:
        def twin(number: int, model: ModelConfig | None = None) -> Model:
            other = replace(run, model=model or run.model, seed=derive(run.seed, "twin", label, number))
            network = fresh_network(other.without_files(), spec, device)
            remind(other, network)
            return network.model

        return twin

    return of_term


def student_of(run: Run, around: Surroundings, steps: int) -> Student:
    """The run's student at its first step, of so many an epoch, built from given surroundings."""
    assert run.way == "trained"
    shape = around.batch.views[around.student.view].shape[1:]
    return Student(
        run.title,
        around.student,
        Objective(run.losses, around),
        run.training,
        run.draw,
        steps,
        resolve_bf16(run.training, shape, around.student.device),
        Plugs(run.stages, run.momentum_gap),
    )


def agent_of(run: Run, network: Network, spec: Spec) -> Agent:
    """The run's agent before it has acted; raises ``Mismatch`` where what trains it is not installed."""
    demand_trainer()
    nothing = Objective(run.losses, dry_surroundings(run, network, {}, spec, DRY_SAMPLES))
    return Agent(run.title, network, nothing, run.training, run.draw, Plugs())


def fitted_of(run: Run, around: Surroundings) -> FittedStudent:
    """The run's student before it is fitted, built from given surroundings."""
    return FittedStudent(
        run.title,
        around.student,
        Objective(run.losses, around),
        run.training,
        run.draw,
        Plugs(run.stages),
        around.teachers,
        run.folds,
    )
