"""Trying all that a config asks for, a step of each, before anything is downloaded or trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch

from kdrun import models, registry
from kdrun.agents import Agent
from kdrun.assembly import (
    DRY_SAMPLES,
    agent_of,
    bare_network,
    dry_surroundings,
    finished_network,
    fitted_of,
    fresh_network,
    from_file,
    student_of,
)
from kdrun.contracts import Dataset, Spec
from kdrun.errors import Mismatch, OutOfMemory, Path, Problem, WeightsError
from kdrun.evaluate import wait_for
from kdrun.memory import watched
from kdrun.models import Frozen, Network
from kdrun.objective import Surroundings, build_term
from kdrun.plan import Kin, Plan, Run
from kdrun.stack import why_not
from kdrun.taps import LayerTable
from kdrun.trees import rounds_of

MOST_SAMPLES = 4096
"""Samples of the largest batch that a step is tried with."""
FLOAT_BYTES = 4
INPUTS_HELD, TARGETS_HELD = 2, 4
"""How often the samples that a fit is shown are in memory, and what is wanted of each: here, in a part of them, and in
float64."""


@dataclass(frozen=True)
class Rehearsed:
    """What dry steps of a run, of so many ``samples``, showed.

    Sizes (of a checkpoint in bytes, and of what its losses remember of all training samples), seconds of its step and
    its teachers' passes, weighted terms, and which layers are compared with which; whether it takes its steps together
    with others that are ``stackable``, and whether what its losses look at can be ``looked_up`` where the samples allow
    it, in tables of so many numbers a sample. Of what is fitted at once the sizes are the largest that there can be,
    and seconds are 0, for nobody knows them.
    """

    run: Run
    parameters: int
    macs: int
    adapter_parameters: int
    teacher_parameters: dict[str, int]
    samples: int
    activation_bytes: int
    checkpoint_bytes: int
    remembered_bytes: int
    stackable: bool
    looked_up: bool
    table_numbers: dict[str, int]
    step_seconds: float
    teacher_seconds: float
    terms: dict[str, float]
    compared: list[str]


def rehearse(
    plan: Plan, dataset: Dataset, device: torch.device, whole_batches: bool = False
) -> list[Rehearsed]:
    """Build every model and every loss and take one step of each run on random inputs.

    Raises ``ConfigError`` with every layer, shape and file that does not fit, before anything is trained or
    downloaded. ``whole_batches`` takes the steps at the config's batch sizes, for an estimate of time.
    """
    every = dataset
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
        dataset = every.of(run.environment)
        spec = dataset.spec
        try:
            with _memory_told(run, "as it is built; write a smaller model"):
                network = _without_download(run, spec, device)
                agent = agent_of(run, network, spec) if run.way == "reinforced" else None
                if run.role == "teacher":
                    teachers[run.name] = (
                        from_file(run, spec, device)
                        if run.weights
                        else _frozen_as_finished(run, network, spec, device)
                    )
        except Mismatch as error:
            problems.append(_of_model(error, run))
            broken.add((run.role, run.name))
            continue
        except WeightsError as error:
            place = ("weights",) if run.weights else ("model", "initial_weights")
            problems.append(Problem((*run.path, *place), str(error)))
            broken.add((run.role, run.name))
            continue
        size = min(run.training.batch_size, MOST_SAMPLES if whole_batches else DRY_SAMPLES)
        with _memory_told(run, "as its losses are built; write a smaller adapter"):
            found = [*_term_problems(run, dry_surroundings(run, network, teachers, spec, size))]
        found += _mixing_problems(run, spec)
        problems += found
        if found or not run.learns:
            continue
        if agent is not None:
            shown[run.kin] = _unknown_until_it_acts(run, agent, spec)
            continue
        if run.way == "fitted":
            shown[run.kin] = _dry_lesson(run, bare_network(run, spec, device), teachers, shown, dataset)
            continue
        smaller = "model" if size <= DRY_SAMPLES else "`training.batch_size`"
        try:
            with _memory_told(run, f"in a step of {size} samples; write a smaller {smaller}"):
                shown[run.kin] = _dry_step(
                    run, bare_network(run, spec, device), teachers, shown, dataset, size
                )
        except ValueError as error:  # BatchNorm refuses a batch of one
            problems.append(Problem(run.path, f"cannot learn from {size} samples a step: {error}"))
    if problems:
        raise plan.config.error(dict.fromkeys(problems))
    return list(shown.values())


@contextmanager
def _memory_told(run: Run, what: str) -> Iterator[None]:
    """Have an ``OutOfMemory`` say whose it is, and what is to be smaller."""
    try:
        with watched():
            yield
    except OutOfMemory as error:
        raise OutOfMemory(f"{run.title}: {error} {what}") from error.__cause__


def _frozen_as_finished(run: Run, network: Network, spec: Spec, device: torch.device) -> Frozen:
    """A teacher as those that learn from it will see it: with a loss's parts, where it predicts by them."""
    predicts = any(registry.LOSSES[loss.kind].at_inference for loss in run.losses)
    seen = finished_network(run, spec, device) if predicts else network
    return Frozen(seen.model, seen.view, device)


def _without_download(run: Run, spec: Spec, device: torch.device) -> Network:
    """The run's network with its local file of weights, but not with those that would have to be fetched."""
    local = run.model.initial_weights is not None and run.weights is None
    return fresh_network(run, spec, device) if local else bare_network(run, spec, device)


def _problem(error: Mismatch, path: Path) -> Problem:
    return Problem((*path, error.key) if error.key else path, str(error), error.hint)


def _of_model(error: Mismatch, run: Run) -> Problem:
    """What is wrong with a model, or with what it is to see."""
    return _problem(
        error, run.path if error.key in ("view", "resize", "normalization") else (*run.path, "model")
    )


def _term_problems(run: Run, around: Surroundings) -> Iterable[Problem]:
    for config, path in zip(run.losses, run.loss_paths, strict=True):
        try:
            build_term(config, around)
        except Mismatch as error:
            yield _problem(error, path)


def _mixing_problems(run: Run, spec: Spec) -> Iterable[Problem]:
    shape = spec.shapes[spec.default_view]
    if run.training.cutmix and len(shape) != 3:
        words = f"cutmix cuts pictures, and the samples are {'×'.join(map(str, shape))} numbers"
        yield Problem(run.path, words, "use mixup")


def _dry_step(
    run: Run,
    network: Network,
    teachers: Mapping[str, Frozen],
    known: Mapping[Kin, Rehearsed],
    dataset: Dataset,
    size: int,
) -> Rehearsed:
    spec = dataset.spec
    own = {name: teachers[name] for name in run.teachers}
    student = student_of(run, dry_surroundings(run, network, own, spec, size), steps=2)
    batch = spec.random_batch(size).to(network.device)
    taught = {name: teacher(batch) for name, teacher in own.items()}
    teacher_seconds = _seconds(lambda: [teacher(batch) for teacher in own.values()], network.device)
    activation_bytes = _saved_bytes(lambda: student.step(batch, taught), student.parameters)
    terms, seconds = dict(student.rehearsed()), 0.0
    turns = student.turns()
    for epoch, following in pairwise([*turns, run.training.epochs]):
        student.go_to(epoch)
        took = _seconds(lambda: student.step(batch, taught), network.device)
        seconds += took * (following - epoch) / run.training.epochs
        terms |= student.rehearsed()
    return Rehearsed(
        run=run,
        parameters=models.parameters(student.exportable),
        macs=models.macs(student.exported().model, spec.shapes[network.view]),
        adapter_parameters=sum(p.numel() for p in student.objective.parameters()),
        teacher_parameters=_of_teachers(run, own, known),
        samples=size,
        activation_bytes=activation_bytes,
        checkpoint_bytes=student.checkpoint({}).bytes,
        remembered_bytes=dataset.training_samples(run.draw)
        * sum(
            memory[0].nbytes
            for memory in student.objective.buffers()
            if memory.dim() > 1 and len(memory) == max(size, DRY_SAMPLES)
        ),
        stackable=run.training.stack and why_not(student) is None,
        looked_up=run.training.cache and student.objective.tables_suffice(own, dataset.copied_views),
        table_numbers={
            name: said.logits[0].numel()
            + sum(said.features[layer][0].numel() for layer in student.objective.wants(name).teacher)
            for name, said in taught.items()
        },
        step_seconds=seconds,
        teacher_seconds=teacher_seconds,
        terms=dict.fromkeys(student.objective.weights, 0.0) | terms,
        compared=[
            f"{run.title.rpartition('/')[0]}: {sentence}"
            for term in student.objective.named.values()
            for sentence in term.compared
        ],
    )


def _dry_lesson(
    run: Run,
    network: Network,
    teachers: Mapping[str, Frozen],
    known: Mapping[Kin, Rehearsed],
    dataset: Dataset,
) -> Rehearsed:
    """What is known of a model before it is fitted: how large it is at most, and the fit with it."""
    own, spec = {name: teachers[name] for name in run.teachers}, dataset.spec
    student = fitted_of(run, dry_surroundings(run, network, own, spec, DRY_SAMPLES))
    student.begin(DRY_SAMPLES)
    batch = spec.random_batch(DRY_SAMPLES).to(network.device)
    taught = {name: teacher(batch) for name, teacher in own.items()}
    student.hear(batch, taught)
    shown_samples = sum(one.samples for one in rounds_of(dataset, run.draw, run.training.epochs))
    numbers = INPUTS_HELD * student.fitted.inputs + TARGETS_HELD * spec.classes
    return Rehearsed(
        run=run,
        parameters=student.fitted.most_numbers(shown_samples),
        macs=0,
        adapter_parameters=0,
        teacher_parameters=_of_teachers(run, own, known),
        samples=run.training.batch_size,
        activation_bytes=FLOAT_BYTES * numbers * shown_samples,
        checkpoint_bytes=0,
        remembered_bytes=0,
        stackable=False,
        looked_up=run.training.cache and student.objective.tables_suffice(own, dataset.copied_views),
        table_numbers={name: said.logits[0].numel() for name, said in taught.items()},
        step_seconds=0.0,
        teacher_seconds=0.0,
        terms={},
        compared=[],
    )


def _unknown_until_it_acts(run: Run, agent: Agent, spec: Spec) -> Rehearsed:
    """What is known of an agent before it has acted: its network, and how much it remembers."""
    return Rehearsed(
        run=run,
        parameters=models.parameters(agent.model),
        macs=models.macs(agent.model, spec.shapes[agent.network.view]),
        adapter_parameters=0,
        teacher_parameters={},
        samples=run.training.batch_size,
        activation_bytes=agent.held_bytes,
        checkpoint_bytes=0,
        remembered_bytes=0,
        stackable=False,
        looked_up=False,
        table_numbers={},
        step_seconds=0.0,
        teacher_seconds=0.0,
        terms={},
        compared=[],
    )


def _of_teachers(run: Run, own: Mapping[str, Frozen], known: Mapping[Kin, Rehearsed]) -> dict[str, int]:
    """The parameters of each of its teachers."""
    return {name: _held(teacher, own[name].model, known) for name, teacher in run.teachers.items()}


def _held(run: Run, model: torch.nn.Module, known: Mapping[Kin, Rehearsed]) -> int:
    """The parameters of a teacher, of what is fitted at once the most that there can be, with those of its folds."""
    if isinstance(model, models.Combined):
        return sum(_held(*one, known) for one in zip(run.teachers.values(), model.members, strict=True))
    if run.way == "fitted":
        return (1 + run.folds) * known[run.kin].parameters
    return models.parameters(model)


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
                raise plan.config.error([_of_model(error, run)]) from error
            batch = spec.of(run.environment).random_batch(2)
            tables[run.role, run.name] = network.describe(batch, f"the {run.role} '{run.name}'")
    return tables
