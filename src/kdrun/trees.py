"""Trees and other models that are fitted at once: what they are shown, the fit, and what is written of it."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import NamedTuple, get_args

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from kdrun.console import Console
from kdrun.contracts import Batch, Dataset, Draw, Outputs, Split
from kdrun.errors import TrainingError, shown
from kdrun.evaluate import not_finite, paused
from kdrun.machine import raise_lack
from kdrun.models import Fitted, Frozen, Network, Tree
from kdrun.models.folds import arrays_of_folds, dealt
from kdrun.objective import Objective
from kdrun.optimization import Training
from kdrun.randomness import derive, seed_device
from kdrun.report import rules
from kdrun.store.files import sealed
from kdrun.store.runs import FOLDS
from kdrun.student import Failure, Learner, Plugs, lessons_of

CHUNK = 512
"""Samples of a batch where they come in their order."""
EPISODES = 10
"""That every candidate of several plays."""
MOST_CUTS = 200
"""Sizes of a tree that are tried on the validation samples."""


class FittedStudent(Learner):
    """A model that is fitted at once to what its terms want: of each training sample, and of queries.

    ``masters`` are its teachers themselves, who can be asked about any sample; with ``folds`` it is fitted once more
    without each of these parts of the training set.
    """

    def __init__(
        self,
        title: str,
        network: Network,
        objective: Objective,
        training: Training,
        draw: Draw,
        plugs: Plugs,
        masters: Mapping[str, Frozen],
        folds: int,
    ) -> None:
        super().__init__(title, network, objective, training, draw, plugs=plugs)
        assert isinstance(network.model, Fitted)
        self.fitted: Fitted = network.model
        self.masters, self.folds = masters, folds
        self.candidates: list[dict[str, Tensor]] = []
        """What it was after each round of several."""
        self._weights = objective.mean_weights(training.epochs, plugs.stages)
        self._wanted = np.empty((0, self.fitted.classes), np.float32)
        self._heard = 0

    def begin(self, samples: int) -> None:
        """Make room for what is wanted of so many samples at most."""
        self._wanted = np.empty((samples, self.fitted.classes), np.float32)
        self._heard = 0

    def hear(self, batch: Batch, taught: Mapping[str, Outputs]) -> None:
        """Remember what is wanted of the samples of a batch; raises ``TrainingError`` where that is not finite."""
        began = time.perf_counter()
        seed_device(derive(self.draw.seed, "lesson", self._heard), self.network.device)
        wanted = self.objective.target(taught, batch, self._weights).detach()
        if samples := not_finite(wanted, batch):
            raise TrainingError(
                f"{self.title}: what a teacher says is not finite for the training samples {samples}; mend the data or "
                "the teacher's weights"
            )
        self._wanted[self._heard : self._heard + len(batch)] = wanted.cpu().numpy()
        self._heard += len(batch)
        self.seconds += time.perf_counter() - began

    def fit(self, x: np.ndarray, index: np.ndarray, dataset: Dataset, say: Callable[[str], None]) -> None:
        """Fit the model to the samples (N, F) of which something is wanted, of all that it heard of.

        ``index`` (N,) are their places in the training set. Where scikit-learn cannot fit it, that is a failure.
        """
        began = time.perf_counter()
        targets, self._wanted = self._wanted[: self._heard], self._wanted[:0]
        if not (rows := targets.any(axis=1)).all():
            x, targets, index = x[rows], targets[rows], index[rows]
        if not len(x):
            self.failure = Failure("its terms want nothing of any sample", "give them labels, or a teacher")
            return
        wanted = Wanted(x, *parted(targets)) if self.objective.weighs_samples else Wanted(x, targets)
        say(f"{self.title}: fitting it to {len(x):,} samples")
        seed = derive(self.draw.seed, self.draw.purpose, "fit") % 2**32
        held_out = self._held_out(dataset)
        try:
            with _warnings_told(self.title, say):
                self._fit(self.fitted.cpu(), wanted, seed, held_out)
                if self.folds:
                    self._cross_fit(dataset, wanted, index, seed, held_out)
        except ValueError as error:
            raise_lack(error)
            told = f"scikit-learn cannot fit it to these samples: {shown(error, 300)}"
            self.failure = Failure(told, "give it more samples, or other options")
            return
        if isinstance(self.fitted, Tree):
            self.fitted.make_readable(x, dataset.units(self.network.view))
        self.fitted.to(self.network.device)
        self.seconds += time.perf_counter() - began

    def _fit(self, model: Fitted, wanted: Wanted, seed: int, held_out: HeldOut | None) -> None:
        model.fit(wanted.x, wanted.targets, seed, torch.get_num_threads(), wanted.weights)
        if held_out is not None:
            assert isinstance(model, Tree)
            prune(model, *held_out)

    def _cross_fit(
        self, dataset: Dataset, wanted: Wanted, index: np.ndarray, seed: int, held_out: HeldOut | None
    ) -> None:
        labels = dataset.labels("train", self.draw.given)
        fold = dealt(labels, min(self.folds, len(labels)), seed)
        states = []
        for number in range(fold.max() + 1):
            twin = copy.deepcopy(self.fitted)
            self._fit(twin, wanted.rows(fold[index] != number), seed, held_out)
            states.append(twin.state_dict())
        self.extras[FOLDS] = safetensors.numpy.save(arrays_of_folds(states, fold))

    def _held_out(self, dataset: Dataset) -> HeldOut | None:
        """The validation samples for a tree that is to be pruned, and what its terms want of each."""
        if not (isinstance(self.fitted, Tree) and self.fitted.config.prune):
            return None
        seed_device(derive(self.draw.seed, "lesson", "validation"), self.network.device)
        inputs, wanted, weights = [], [], []
        for batch in dataset.split("validation", given=self.draw.given):
            taught = {name: master(batch) for name, master in self.masters.items()}
            targets = self.objective.target(taught, batch, self._weights)
            rows = targets.any(dim=1)
            inputs.append(flat(batch, self.network.view)[rows.cpu()])
            wanted.append(targets[rows].argmax(dim=1).cpu())
            weights.append(targets[rows].sum(dim=1).cpu())
        together = torch.cat(weights) if self.objective.weighs_samples else None
        return torch.cat(inputs), torch.cat(wanted), together

    def flush(self) -> None:
        """Nothing is left on the device."""

    def exported(self) -> Frozen:
        """The model as it is fitted by now."""
        return self.network.copied(self.fitted, self.fitted.state_dict())

    def selected(self) -> Frozen:
        """The fitted model."""
        return self.exported()

    def choose(self, dataset: Dataset, pause: Callable[[], None]) -> None:
        """Become the best of the candidates in validation episodes.

        All play; the better half plays on, in twice as many, until one is left: Jamieson, Talwalkar, "Non-stochastic
        Best Arm Identification and Hyperparameter Optimization", 2016.
        """
        policies = [self.network.copied(self.fitted, state) for state in self.candidates]
        left = [(0.0, number, policy) for number, policy in enumerate(policies)]
        played = 0
        while len(left) > 1:
            more = range(played, played + max(played, EPISODES))
            left = [
                (total + float(dataset.play(policy, "validation", pause, more).returns.sum()), number, policy)
                for total, number, policy in left
            ]
            left = sorted(left, key=lambda one: one[:2], reverse=True)[: -(-len(left) // 2)]
            played = more.stop
        self.fitted.load_state_dict(self.candidates[left[0][1]])


@dataclass(frozen=True)
class Wanted:
    """Samples ``x`` (N, F), the class probabilities ``targets`` (N, C) that are wanted of them, and what they count.

    ``weights`` (N,) are on average about 1; where it is None all count alike.
    """

    x: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None = None

    def rows(self, rows: np.ndarray) -> Wanted:
        """Some of the samples, by a mask (N,)."""
        return Wanted(self.x[rows], self.targets[rows], None if self.weights is None else self.weights[rows])


def parted(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, C) of sums above 0 as class probabilities (N, C), and the sums over their mean (N,)."""
    sums = targets.sum(axis=1, dtype=np.float64)
    return (targets / sums[:, None]).astype(targets.dtype), sums / sums.mean()


HeldOut = tuple[Tensor, Tensor, Tensor | None]
"""Samples (N, F), the class (N,) that is wanted of each, and what each counts (N,), None where all count alike."""


def prune(tree: Tree, samples: Tensor, wanted: Tensor, weights: Tensor | None = None) -> None:
    """Keep of all sizes of the tree, from the whole to its root, the one that agrees most; of equal ones the least.

    ``weights`` are what the samples count.
    """
    counted = torch.ones(len(wanted)) if weights is None else weights
    prices = tree.whole.weakest_links()
    found = np.unique(prices[np.isfinite(prices)])
    places = np.linspace(0, len(found) - 1, min(MOST_CUTS, len(found))).round().astype(int)
    best, most = -1.0, -1.0
    for price in [-1.0, *found[np.unique(places)]]:
        tree.cut(prices <= price)
        with torch.no_grad():
            agreement = float(((tree(samples).argmax(dim=1) == wanted) * counted).double().mean())
        if agreement >= most:
            best, most = price, agreement
    tree.cut(prices <= best)


def rules_of(network: Frozen, dataset: Dataset, given: bool) -> bytes:
    """A tree as rules, as they are stored; they are supported by the training samples of a teacher, or a student."""
    tree, units = network.model, dataset.units(network.view)
    assert isinstance(tree, Tree)
    every = chain(dataset.split("train", given=True), *map(dataset.split, get_args(Split)))
    thresholds = tree.thresholds(units, (flat(batch, network.view) for batch in every))
    with torch.no_grad():
        leaves = [tree.leaves(batch.views[network.view].flatten(1)) for batch in dataset.split("train")]
    own = dataset.places(given)
    own = own[: len(own) - dataset.transfer_samples * given]
    reached, labels = torch.cat(leaves)[:, 0].cpu().numpy()[own], dataset.labels("train")[own]
    found = rules.extracted(
        tree.arrays(), tree.choices, thresholds, units.names, dataset.class_names, reached, labels
    )
    return sealed(found)


def flat(batch: Batch, view: str) -> Tensor:
    """The samples as one view has them, (B, F), on the CPU."""
    return batch.views[view].flatten(1).cpu()


@contextmanager
def _warnings_told(title: str, say: Callable[[str], None]) -> Iterator[None]:
    """Tell what scikit-learn warns of, each in a line."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield
    for line in dict.fromkeys(str(one.message).strip().partition("\n")[0] for one in heard):
        say(f"{title}: scikit-learn says: {shown(line, 200)}")


def fit(
    students: Sequence[FittedStudent],
    dataset: Dataset,
    epochs: int,
    console: Console,
    pause: Callable[[], None],
) -> None:
    """Show students of one draw the samples, ask each teacher once about each batch, and fit one after the other.

    Where samples are gathered, that is done in as many rounds as there are epochs, each with what they have become by
    then. ``pause`` is called before each batch and each fit; it may raise.
    """
    rounds = rounds_of(dataset, students[0].draw, epochs)
    names = ", ".join(sorted({student.title.partition("/")[0] for student in students}))
    batches = sum(one.batches for one in rounds)
    if students[0].draw.rollouts is None:
        dataset.refresh(0, students)
        with console.training(f"{names}: shown the samples", batches, 0, 1):
            seen = _show(students, dataset, rounds, console, pause)
        _fit_each(students, seen, dataset, console.say, pause)
        return
    with console.training(f"{names}: acts and is fitted again", batches * epochs, 0, epochs):
        for number in range(epochs):
            dataset.refresh(number, students)
            seen = _show(students, dataset, rounds, console, pause)
            _fit_each(students, seen, dataset, lambda text: None, pause)
            if any(student.failure is not None for student in students):
                return
            console.epoch(number + 1, epochs, f"; {len(seen.places):,} states")
            for student in students:
                student.candidates.append(copy.deepcopy(student.fitted.state_dict()))
    for student in students:
        if student.training.selection == "best-on-validation":
            student.choose(dataset, pause)


class Seen(NamedTuple):
    """The samples that were shown: of each view (N, F), and their places in the training set (N,)."""

    inputs: Mapping[str, np.ndarray]
    places: np.ndarray


def _show(
    students: Sequence[FittedStudent],
    dataset: Dataset,
    rounds: Sequence[Round],
    console: Console,
    pause: Callable[[], None],
) -> Seen:
    """Show students of one draw the samples of some rounds."""
    draw, device, shapes = students[0].draw, students[0].network.device, dataset.spec.shapes
    samples = sum(one.samples for one in rounds)
    inputs = {
        view: np.empty((samples, int(np.prod(shapes[view]))), np.float32)
        for view in {student.network.view for student in students}
    }
    index, heard = np.empty(samples, np.int64), 0
    for student in students:
        student.begin(samples)
    began = time.perf_counter()
    batches = (batch for one in rounds for batch in one.open())
    for number, batch in enumerate(paused(batches, pause)):
        seed_device(derive(draw.seed, "lesson", number), device)
        lessons = lessons_of(students, {draw: batch})
        share = (time.perf_counter() - began) / len(students)
        for student, lesson in lessons.items():
            student.hear(*lesson)
            student.seconds += share
        rows = slice(heard, heard := heard + len(batch))
        for view, x in inputs.items():
            x[rows] = flat(batch, view).numpy()
        index[rows] = batch.index.cpu().numpy()
        console.step(len(batch))
        began = time.perf_counter()
    return Seen({view: x[:heard] for view, x in inputs.items()}, index[:heard])


def _fit_each(
    students: Sequence[FittedStudent],
    seen: Seen,
    dataset: Dataset,
    say: Callable[[str], None],
    pause: Callable[[], None],
) -> None:
    """Fit one student after the other to what they were shown."""
    for student in students:
        pause()
        student.fit(seen.inputs[student.network.view], seen.places, dataset, say)


@dataclass(frozen=True)
class Round:
    """A pass over the training set: how many samples there are at most, in how many batches."""

    samples: int
    batches: int
    open: Callable[[], Iterator[Batch]]


def rounds_of(dataset: Dataset, draw: Draw, epochs: int) -> list[Round]:
    """What a network of a draw would be shown in so many epochs, each sample once that is the same, and all queries."""
    plain, samples = replace(draw, queries=None), dataset.training_samples(draw)
    pieces = -(-samples // CHUNK)
    if draw.rollouts is not None:
        return [Round(samples, pieces, partial(dataset.gathered, draw, CHUNK))]
    copies = dataset.copies(plain) if dataset.spec.shapes.keys() <= {*dataset.copied_views} else None
    if copies is None:
        steps = dataset.steps(plain)
        most = steps * min(draw.batch_size, samples)
        rounds = [Round(most, steps, partial(dataset.batches, plain, epoch)) for epoch in range(epochs)]
    else:
        rounds = [
            Round(samples, pieces, partial(_labelled_copy, dataset, plain, number))
            for number in range(min(copies, epochs))
        ]
    asked = range(draw.queries.per_sample if draw.queries else 0)
    return rounds + [
        Round(samples, pieces, partial(dataset.queries, draw, number, CHUNK)) for number in asked
    ]


def _labelled_copy(dataset: Dataset, draw: Draw, number: int) -> Iterator[Batch]:
    """A copy of the training samples, with the labels that a draw sees."""
    labels = torch.from_numpy(dataset.labels("train", draw.given))
    for batch in dataset.copy(number, CHUNK, draw.given):
        yield batch.with_labels(labels.to(batch.index.device)[batch.index])
