"""Trees and other models that are fitted at once: what they are shown, the fit, and what is written of it."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from kdrun.console import Console
from kdrun.contracts import Batch, Dataset, Draw, Outputs
from kdrun.errors import TrainingError, shown
from kdrun.evaluate import not_finite, paused, predict
from kdrun.machine import raise_lack
from kdrun.models import Fitted, Frozen, Network, Tree
from kdrun.models.folds import arrays_of_folds, dealt
from kdrun.objective import Objective
from kdrun.optimization import Training
from kdrun.randomness import derive, seed_device
from kdrun.report import rules
from kdrun.statistics.scores import ensemble
from kdrun.store.files import sealed
from kdrun.store.runs import FOLDS, RULES
from kdrun.student import Failure, Learner, Plugs, lessons_of

CHUNK = 512
"""Samples of a batch where they come in their order."""
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
        self._weights = objective.mean_weights(training.epochs, plugs.stages)
        self._wanted: list[np.ndarray] = []

    def hear(self, batch: Batch, taught: Mapping[str, Outputs]) -> None:
        """Remember what is wanted of the samples of a batch; raises ``TrainingError`` where that is not finite."""
        began = time.perf_counter()
        wanted = self.objective.target(taught, batch, self._weights).detach()
        if samples := not_finite(wanted, batch):
            raise TrainingError(
                f"{self.title}: what a teacher says is not finite for the training samples {samples}; mend the data or "
                "the teacher's weights"
            )
        self._wanted.append(wanted.cpu().numpy())
        self.seconds += time.perf_counter() - began

    def fit(self, x: np.ndarray, index: np.ndarray, dataset: Dataset, say: Callable[[str], None]) -> None:
        """Fit the model to the samples (N, F) of which something is wanted, of all that it heard of.

        ``index`` (N,) are their places in the training set. Where scikit-learn cannot fit it, that is a failure.
        """
        began = time.perf_counter()
        targets = np.concatenate(self._wanted)
        self._wanted.clear()
        if not (rows := targets.any(axis=1)).all():
            x, targets, index = x[rows], targets[rows], index[rows]
        if not len(x):
            self.failure = Failure("its terms want nothing of any sample", "give them labels, or a teacher")
            return
        say(f"{self.title}: fitted to {len(x):,} samples")
        seed = derive(self.draw.seed, self.draw.purpose, "fit") % 2**32
        try:
            with _warnings_told(self.title, say):
                self.fitted.cpu().fit(x, targets, seed, torch.get_num_threads())
                if self.folds:
                    self._cross_fit(dataset, x, targets, index, seed)
        except ValueError as error:
            raise_lack(error)
            told = f"scikit-learn cannot fit it to these samples: {shown(error, 300)}"
            self.failure = Failure(told, "give it more samples, or other options")
            return
        if isinstance(self.fitted, Tree):
            if self.fitted.config.prune:
                self._prune(self.fitted, dataset)
            self._write_rules(self.fitted, dataset, x)
        self.fitted.to(self.network.device)
        self.seconds += time.perf_counter() - began

    def _cross_fit(
        self, dataset: Dataset, x: np.ndarray, targets: np.ndarray, index: np.ndarray, seed: int
    ) -> None:
        fold = dealt(dataset.labels("train"), self.folds, seed)
        states = []
        for number in range(self.folds):
            kept = fold[index] != number
            twin = copy.deepcopy(self.fitted)
            twin.fit(x[kept], targets[kept], seed, torch.get_num_threads())
            states.append(twin.state_dict())
        self.extras[FOLDS] = safetensors.numpy.save(arrays_of_folds(states, fold))

    def _prune(self, tree: Tree, dataset: Dataset) -> None:
        """Keep of all sizes of the tree, from the whole to its root, the one that agrees most; of equal ones the least.

        With the teachers' choices on the validation samples, or with their labels where there is no teacher.
        """
        samples = self._as_seen(dataset.split("validation"))
        answers = {name: predict(one, dataset.split("validation")) for name, one in self.masters.items()}
        wanted = dataset.labels("validation")
        if answers:
            wanted = ensemble([said["logits"] for said in answers.values()]).argmax(axis=1)
        prices = tree.whole.weakest_links()
        found = np.unique(prices[np.isfinite(prices)])
        some = found[
            np.unique(np.linspace(0, len(found) - 1, min(MOST_CUTS, len(found))).round().astype(int))
        ]
        best, most = -1.0, -1.0
        for price in [-1.0, *some]:
            tree.cut(prices <= price)
            with torch.no_grad():
                agreement = float((tree(samples).argmax(dim=1).numpy() == wanted).mean())
            if agreement >= most:
                best, most = price, agreement
        tree.cut(prices <= best)

    def _write_rules(self, tree: Tree, dataset: Dataset, x: np.ndarray) -> None:
        """Give the tree thresholds that can be read, and write it down as rules."""
        units = dataset.units(self.network.view)
        thresholds = tree.make_readable(x, units)
        with torch.no_grad():
            leaves = tree.leaves(self._as_seen(dataset.split("train")))[:, 0].numpy()
        labels, classes = dataset.labels("train"), dataset.class_names
        written = rules.extracted(tree.arrays(), thresholds, units.names, classes, leaves, labels)
        self.extras[RULES] = sealed(written)

    def _as_seen(self, batches: Iterable[Batch]) -> Tensor:
        """The samples of some batches, (N, F), on the CPU."""
        return torch.cat([flat(batch, self.network.view) for batch in batches])

    def selected(self) -> Frozen:
        """The fitted model."""
        return self.network.copied(self.fitted, self.fitted.state_dict())


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

    ``pause`` is called before each batch and each fit; it may raise.
    """
    draw, device = students[0].draw, students[0].network.device
    seen: dict[str, list[np.ndarray]] = {student.network.view: [] for student in students}
    places: list[np.ndarray] = []
    dataset.refresh(0, [*students])
    title = (
        f"{', '.join(sorted({student.title.partition('/')[0] for student in students}))}: shown the samples"
    )
    with console.training(title, count_of_batches(dataset, draw, epochs), 0, 1):
        began = time.perf_counter()
        for number, batch in enumerate(paused(shown_batches(dataset, draw, epochs), pause)):
            seed_device(derive(draw.seed, "lesson", number), device)
            lessons = lessons_of(students, {draw: batch})
            share = (time.perf_counter() - began) / len(students)
            for student, lesson in lessons.items():
                student.hear(*lesson)
                student.seconds += share
            for view, parts in seen.items():
                parts.append(flat(batch, view).numpy())
            places.append(batch.index.cpu().numpy())
            console.step(len(batch))
            began = time.perf_counter()
    inputs, index = {view: np.concatenate(parts) for view, parts in seen.items()}, np.concatenate(places)
    seen.clear()
    for student in students:
        pause()
        student.fit(inputs[student.network.view], index, dataset, console.say)


def count_of_batches(dataset: Dataset, draw: Draw, epochs: int) -> int:
    """How many ``shown_batches`` there are."""
    copies, queries = dataset.copies(replace(draw, queries=None)), draw.queries
    asked = queries.per_sample * dataset.steps(draw) if queries else 0
    if copies is None:
        return asked + epochs * dataset.steps(draw)
    return asked + min(copies, epochs) * -(-len(dataset.labels("train")) // CHUNK)


def shown_batches(dataset: Dataset, draw: Draw, epochs: int) -> Iterator[Batch]:
    """What a network of a draw would be shown in so many epochs, each sample once that is the same, and all queries."""
    plain = replace(draw, queries=None)
    copies = dataset.copies(plain)
    if copies is None:
        for epoch in range(epochs):
            yield from dataset.batches(plain, epoch)
    else:
        labels = torch.from_numpy(dataset.labels("train", given=draw.labels == "given"))
        for number in range(min(copies, epochs)):
            for batch in dataset.copy(number, CHUNK):
                yield batch.with_labels(labels.to(batch.index.device)[batch.index])
    for number in range(draw.queries.per_sample if draw.queries else 0):
        yield from dataset.batches(replace(draw, only_queries=True), number)
