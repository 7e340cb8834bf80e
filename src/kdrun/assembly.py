"""Putting a run together: device, network, teachers, objective, student; and trying all of it before it counts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from kdrun import models, registry
from kdrun.config import Config
from kdrun.contracts import Batch, Dataset, Outputs, Spec
from kdrun.errors import (
    DataError,
    DeviceError,
    Mismatch,
    OutOfMemory,
    Path,
    Problem,
    WeightsError,
    did_you_mean,
)
from kdrun.evaluate import wait_for
from kdrun.memory import watched
from kdrun.models import Deployed, Frozen, Network
from kdrun.objective import Objective, Surroundings, build_term
from kdrun.optimization import Training
from kdrun.plan import Kin, Plan, Run
from kdrun.randomness import derive
from kdrun.stack import why_not
from kdrun.student import Plugs, Student
from kdrun.taps import LayerTable

MOST_SAMPLES = 4096
"""Samples of the largest batch that a step is tried with."""
DRY_SAMPLES = 8
"""Samples of the batch that shapes are learnt from; BatchNorm needs more than one."""


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
        dataset: Dataset = registry.DATASETS[config.experiment.dataset.kind](config.experiment.dataset)
    return dataset


@contextmanager
def keys_pointed_at(config: Config) -> Iterator[None]:
    """Turn what a data set says of one of its keys (``dataset.root: …``) into a problem of the config there."""
    try:
        yield
    except DataError as error:
        named = re.match(r"dataset\.(\w+): (.*)", str(error), re.DOTALL)
        if named is None:
            raise
        raise config.error([Problem(("dataset", named[1]), named[2])]) from error


def bare_network(run: Run, spec: Spec, device: torch.device) -> Network:
    """The run's network for weights that come from elsewhere: no file is read, nothing downloaded."""
    return fresh_network(without_files(run), spec, device)


def without_files(run: Run) -> Run:
    """The run with a model that starts from no file's weights and from none that are downloaded."""
    files = {"initial_weights": None, "pretrained": False}.items()
    without = {key: value for key, value in files if hasattr(run.model, key)}
    return replace(run, model=run.model.model_copy(update=without))


def fresh_network(run: Run, spec: Spec, device: torch.device) -> Network:
    """The run's network with the weights it starts from; raises ``Mismatch``, ``WeightsError``."""
    view = run.view or spec.default_view
    if view not in spec.shapes:
        raise Mismatch(f"the data set has no view '{view}'", did_you_mean(view, spec.shapes), key="view")
    model = models.build(run.model, spec.shapes[view], spec.classes, derive(run.seed, run.role, "weights"))
    # Convolutions are faster on it, and a memory format changes no values but by the order of sums.
    return Network(model.to(memory_format=torch.channels_last), view, device)


def finished_network(run: Run, spec: Spec, device: torch.device) -> Network:
    """The run's network as it is stored when it is finished, its weights still to come from there.

    Where a loss's parts are at inference, they are the network's.
    """
    network = bare_network(run, spec, device)
    predicting = [loss for loss in run.losses if registry.LOSSES[loss.kind].at_inference]
    if not predicting or run.weights is not None:
        return network
    bare = {name: finished_network(teacher, spec, device) for name, teacher in run.teachers.items()}
    teachers = {name: Frozen(n.model, n.view, device) for name, n in bare.items()}
    around = dry_surroundings(run, network, teachers, spec, DRY_SAMPLES)
    predictor = Objective(predicting, around).predictor
    assert predictor is not None
    deployed = Deployed(network.model, *predictor)
    return network.copied(deployed, deployed.state_dict())


def make_student(run: Run, teachers: Mapping[str, Frozen], dataset: Dataset, device: torch.device) -> Student:
    """The run's student at its first step."""
    network = fresh_network(run, dataset.spec, device)
    labels = torch.from_numpy(dataset.labels("train", given=run.role == "student"))

    def as_seen(batch: Batch) -> Batch:
        return batch.with_labels(labels.to(device)[batch.index])

    def survey(teacher: Frozen) -> Iterable[tuple[Batch, Outputs]]:
        return ((as_seen(batch), teacher(batch)) for batch in dataset.split("train"))

    dry = as_seen(next(iter(dataset.split("train", batch_size=DRY_SAMPLES))).to(device))
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
        label_smoothing=run.training.label_smoothing,
    )
    return _student(run, around, dataset.steps(run.draw))


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
        label_smoothing=run.training.label_smoothing,
    )


def _student(run: Run, around: Surroundings, steps: int) -> Student:
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


# ------------------------------------------------------------------------------------------ rehearsal


@dataclass(frozen=True)
class Rehearsed:
    """What dry steps of a run, of so many ``samples``, showed.

    Sizes, seconds of its step and its teachers' passes, weighted terms, and which layers are compared with which;
    and whether it takes its steps together with others that are ``stackable``.
    """

    run: Run
    parameters: int
    macs: int
    adapter_parameters: int
    teacher_parameters: dict[str, int]
    samples: int
    activation_bytes: int
    stackable: bool
    step_seconds: float
    teacher_seconds: float
    terms: dict[str, float]
    compared: list[str]


def rehearse(plan: Plan, spec: Spec, device: torch.device, whole_batches: bool = False) -> list[Rehearsed]:
    """Build every model and every loss and take one step of each run on random inputs.

    Raises ``ConfigError`` with every layer, shape and file that does not fit, before anything is trained or
    downloaded. ``whole_batches`` takes the steps at the config's batch sizes, for an estimate of time.
    """
    problems: list[Problem] = []
    teachers: dict[str, Frozen] = {}
    shown: dict[Kin, Rehearsed] = {}
    broken: set[tuple[str, str]] = set()
    for run in plan.runs:
        if (
            run.kin in shown
            or (run.role, run.name) in broken
            or any(name not in teachers for name in run.teachers)
        ):
            continue
        try:
            network = _without_download(run, spec, device)
            if run.role == "teacher":
                teachers[run.name] = (
                    from_file(run, spec, device)
                    if run.weights
                    else _frozen_as_finished(run, network, spec, device)
                )
        except Mismatch as error:
            problems.append(_problem(error, run.path if error.key == "view" else (*run.path, "model")))
            broken.add((run.role, run.name))
            continue
        except WeightsError as error:
            place = ("weights",) if run.weights else ("model", "initial_weights")
            problems.append(Problem((*run.path, *place), str(error)))
            broken.add((run.role, run.name))
            continue
        size = min(run.training.batch_size, MOST_SAMPLES if whole_batches else DRY_SAMPLES)
        found = [*_term_problems(run, dry_surroundings(run, network, teachers, spec, size))]
        found += _mixing_problems(run, network, spec)
        problems += found
        if found or run.weights is not None:
            continue
        try:
            with watched():
                shown[run.kin] = _dry_step(run, bare_network(run, spec, device), teachers, spec, size)
        except OutOfMemory as error:
            raise OutOfMemory(
                f"{run.title}: {error} in a step of {size} samples; write a smaller `training.batch_size`"
            ) from error.__cause__
        except ValueError as error:  # BatchNorm refuses a batch of one
            problems.append(Problem(run.path, f"cannot learn from {size} samples a step: {error}"))
    if problems:
        raise plan.config.error(dict.fromkeys(problems))
    return list(shown.values())


def _frozen_as_finished(run: Run, network: Network, spec: Spec, device: torch.device) -> Frozen:
    """A teacher as those that learn from it will see it: with a loss's parts, where it predicts by them."""
    predicts = any(registry.LOSSES[loss.kind].at_inference for loss in run.losses)
    seen = finished_network(run, spec, device) if predicts else network
    return Frozen(seen.model, seen.view, device)


def _without_download(run: Run, spec: Spec, device: torch.device) -> Network:
    """The run's network with its local file of weights, but not with those that would have to be fetched."""
    local = run.model.initial_weights is not None and run.weights is None
    return fresh_network(run, spec, device) if local else bare_network(run, spec, device)


def from_file(run: Run, spec: Spec, device: torch.device) -> Frozen:
    """A run that a config takes from its ``weights``, frozen; raises ``WeightsError`` where they do not fit."""
    network = bare_network(run, spec, device)
    models.load_weights(network.model, run.weights)
    return Frozen(network.model, network.view, device)


def _problem(error: Mismatch, path: Path) -> Problem:
    return Problem((*path, error.key) if error.key else path, str(error), error.hint)


def _term_problems(run: Run, around: Surroundings) -> Iterable[Problem]:
    for config, path in zip(run.losses, run.loss_paths, strict=True):
        try:
            build_term(config, around)
        except Mismatch as error:
            yield _problem(error, path)


def _mixing_problems(run: Run, network: Network, spec: Spec) -> Iterable[Problem]:
    shape = spec.shapes[network.view]
    if run.training.cutmix and len(shape) != 3:
        words = f"cutmix cuts pictures, and the samples are {'×'.join(map(str, shape))} numbers"
        yield Problem(run.path, words, "use mixup")


def _dry_step(run: Run, network: Network, teachers: Mapping[str, Frozen], spec: Spec, size: int) -> Rehearsed:
    own = {name: teachers[name] for name in run.teachers}
    student = _student(run, dry_surroundings(run, network, own, spec, size), steps=1)
    batch = spec.random_batch(size).to(network.device)
    taught = {name: teacher(batch) for name, teacher in own.items()}
    teacher_seconds = _seconds(lambda: [teacher(batch) for teacher in own.values()], network.device)
    activation_bytes = _saved_bytes(lambda: student.step(batch, taught), student.parameters)
    terms, seconds = dict(student.rehearsed()), 0.0
    turns = student.turns()
    for epoch, following in pairwise([*turns, run.training.epochs]):
        student.position = epoch
        took = _seconds(lambda: student.step(batch, taught), network.device)
        seconds += took * (following - epoch) / run.training.epochs
        terms |= student.rehearsed()
    return Rehearsed(
        run=run,
        parameters=models.parameters(student.exportable),
        macs=models.macs(student.exported().model, spec.shapes[network.view]),
        adapter_parameters=sum(p.numel() for p in student.objective.parameters()),
        teacher_parameters={name: models.parameters(teacher.model) for name, teacher in own.items()},
        samples=size,
        activation_bytes=activation_bytes,
        stackable=run.training.stack and why_not(student) is None,
        step_seconds=seconds,
        teacher_seconds=teacher_seconds,
        terms=dict.fromkeys(student.objective.weights, 0.0) | terms,
        compared=[
            f"{run.title.rpartition('/')[0]}: {sentence}"
            for term in student.objective.named.values()
            for sentence in term.compared
        ],
    )


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    wait_for(device)
    began = time.perf_counter()
    action()
    wait_for(device)
    return time.perf_counter() - began


def _saved_bytes(action: Callable[[], object], parameters: Iterable[torch.Tensor]) -> int:
    """What a step keeps for its gradients beside the parameters, in bytes."""
    sizes = {p.untyped_storage().data_ptr(): 0 for p in parameters}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        action()
    return sum(sizes.values())


def layer_tables(plan: Plan, spec: Spec) -> dict[tuple[str, str], LayerTable]:
    """The tappable layers of every teacher and student, by role and name."""
    cpu = torch.device("cpu")
    tables: dict[tuple[str, str], LayerTable] = {}
    for run in plan.runs:
        if (run.role, run.name) not in tables:
            try:
                network = (
                    bare_network(run, spec, cpu)
                    if run.role == "student"
                    else finished_network(run, spec, cpu)
                )
            except Mismatch as error:
                raise plan.config.error([_problem(error, (*run.path, "model"))]) from error
            batch = spec.random_batch(2)
            tables[run.role, run.name] = network.describe(batch, f"the {run.role} '{run.name}'")
    return tables
