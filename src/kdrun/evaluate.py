"""Scores of anything that predicts, and what it costs to run."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdrun.contracts import HIDDEN, Batch, Played, Predictor
from kdrun.models import Network
from kdrun.statistics.retrieval import retrieved
from kdrun.statistics.returns import scores_of_returns
from kdrun.statistics.scores import RECALL, all_scores, divergence, ensemble, fitted_temperature

WARM_UP, ROUNDS, FEW_ROUNDS = 5, 60, 7
THREADS = 1
"""Of a processor, with which models are timed: the same wherever, and whatever the training is given."""


def predict(
    predictor: Predictor, batches: Iterable[Batch], layer: str | None = None
) -> dict[str, np.ndarray]:
    """``logits`` (N, C) float32, ``labels`` (N,) int64 and ``index`` (N,) int64 of a whole split.

    And the ``embeddings`` (N, D) float32 that a tapped ``layer`` gives, where one is named.
    """
    parts: dict[str, list[torch.Tensor]] = {"logits": [], "labels": [], "index": []}
    with torch.no_grad():
        for batch in batches:
            said = predictor(batch)
            found = {"logits": said.logits.float(), "labels": batch.labels, "index": batch.index}
            if layer is not None:
                found["embeddings"] = said.features[layer].flatten(1).float()
            for name, part in found.items():
                parts.setdefault(name, []).append(part.cpu())
    return {name: torch.cat(part).numpy() for name, part in parts.items()}


def answers(
    network: Network, batches: Iterable[Batch], metric: str, played: Played | None = None
) -> dict[str, np.ndarray] | None:
    """What is to be scored of a network on a split: its predictions; None where one of its outputs is not finite.

    Where the metric is of embeddings, beside them the class (N,) int64 that is ``retrieved`` for each sample; where it
    was ``played``, what came of each episode.
    """
    layer = network.model.pooled if metric == RECALL else None
    network.tap([] if layer is None else [layer])
    found = predict(network, batches, layer)
    if not all(np.isfinite(found[name]).all() for name in {"logits", "embeddings"} & found.keys()):
        return None
    if layer is not None:
        found["retrieved"] = retrieved(found.pop("embeddings"), found["labels"])
    if played is not None:
        found |= played.arrays
    return found


def scores_of(found: Mapping[str, np.ndarray], temperature: float | None = None) -> dict[str, float]:
    """Every score of what was answered."""
    scores = all_scores(found["logits"], found["labels"], temperature, found.get("retrieved"))
    if "returns" in found:
        several = found.get("environment"), found.get("normalised")
        scores |= scores_of_returns(found["returns"], found["lengths"], found["truncated"], *several)
    return scores


def paused(batches: Iterable[Batch], pause: Callable[[], None]) -> Iterator[Batch]:
    """The batches, with a ``pause`` before each: a pass over a large split is not deaf to a signal."""
    for batch in batches:
        pause()
        yield batch


def score(
    network: Network, batches: Iterable[Batch], metric: str, played: Played | None = None
) -> dict[str, float]:
    """Every score of a split, the metric's among them; none where an output is not finite."""
    found = answers(network, batches, metric, played)
    return {} if found is None else scores_of(found)


def temperature(predictor: Predictor, validation: Iterable[Batch]) -> float | None:
    """The temperature that is fitted on a validation split; None where there is none, or an output is not finite."""
    batches = iter(validation)
    first = next(batches, None)
    if first is None:
        return None
    predictions = predict(predictor, chain([first], batches))
    logits = predictions["logits"]
    return fitted_temperature(logits, predictions["labels"]) if np.isfinite(logits).all() else None


class Likeness:
    """How alike a student and its teachers, together, are on a split, added up batch by batch."""

    def __init__(self) -> None:
        self._samples = self._alike = self._wrong = self._copied = 0
        self._divergence = 0.0
        self.within: dict[str, Likeness] = {}
        """The same in each of several environments."""

    def add(self, student: np.ndarray, teacher: np.ndarray, labels: np.ndarray) -> None:
        """Logits (B, C) of both, and labels (B,), ``HIDDEN`` where nobody knows whether the teacher is wrong."""
        samples, alike = len(labels), student.argmax(axis=1) == teacher.argmax(axis=1)
        wrong = (teacher.argmax(axis=1) != labels) & (labels != HIDDEN)
        self._samples += samples
        self._alike += int(alike.sum())
        self._wrong += int(wrong.sum())
        self._copied += int((alike & wrong).sum())
        self._divergence += divergence(student, teacher) * samples

    def figures(self) -> dict[str, Any]:
        """The share of equal predictions, of all samples and of those that the teacher has wrong, and the mean KL.

        None of nothing; of several environments the figures of each beside them.
        """
        each = {name: one.figures() for name, one in self.within.items()}
        return {
            "agreement": self._alike / self._samples if self._samples else None,
            "copied_errors": self._copied / self._wrong if self._wrong else None,
            "kl_to_teacher": self._divergence / self._samples if self._samples else None,
        } | ({"within": each} if each else {})


def likenesses(
    pairs: Sequence[tuple[Predictor, Sequence[Predictor]]], batches: Iterable[Batch]
) -> list[dict[str, Any]]:
    """How alike each student and its teachers are on a split: one pass for all of them."""
    found = [Likeness() for _ in pairs]
    with torch.no_grad():
        for batch in batches:
            everybody = dict.fromkeys(predictor for student, of in pairs for predictor in (student, *of))
            said = {predictor: predictor(batch).logits.float().cpu().numpy() for predictor in everybody}
            for likeness, (student, of) in zip(found, pairs, strict=True):
                teacher = said[of[0]] if len(of) == 1 else ensemble([said[one] for one in of])
                labels = batch.labels.cpu().numpy()
                likeness.add(said[student], teacher, labels)
                for part in batch.parts:  # one: a split has each environment's samples for themselves
                    one = likeness.within.setdefault(part.environment, Likeness())
                    one.add(said[student], teacher, labels)
    return [likeness.figures() for likeness in found]


def not_finite(part: torch.Tensor, batch: Batch) -> str | None:
    """The positions of up to ten samples of a batch for which something (B, …) of theirs is not finite, or None."""
    bad = ~part.flatten(1).isfinite().all(dim=1)
    return ", ".join(str(place) for place in batch.index[bad].tolist()[:10]) if bad.any() else None


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given; a GPU works behind the program's back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def latencies(runners: Sequence[Callable[[], Any]], device: torch.device) -> list[dict[str, float]]:
    """Milliseconds of a call of each, p50 and p95; taken in turn, so that a drifting machine hits all alike."""
    return [
        {"p50": float(np.percentile(times, 50)), "p95": float(np.percentile(times, 95))}
        for times in _in_turn(runners, device, WARM_UP, ROUNDS)
    ]


def throughputs(runners: Sequence[Callable[[], int]], device: torch.device) -> list[float]:
    """Samples a second of each by the median call, which returns its number of samples; taken in turn."""
    samples = [runner() for runner in runners]
    taken = _in_turn(runners, device, 1, FEW_ROUNDS)
    return [1e3 * n / float(np.median(times)) for n, times in zip(samples, taken, strict=True)]


@contextmanager
def fixed_threads() -> Iterator[None]:
    """A block that runs on ``THREADS``."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_turn(
    runners: Sequence[Callable[[], Any]], device: torch.device, warm_up: int, rounds: int
) -> list[list[float]]:
    """Milliseconds of the calls of each, A B C A B C …"""
    taken: list[list[float]] = [[] for _ in runners]
    with torch.no_grad(), fixed_threads():
        for turn in range(warm_up + rounds):
            for times, runner in zip(taken, runners, strict=True):
                began = time.perf_counter()
                runner()
                wait_for(device)
                if turn >= warm_up:
                    times.append(1e3 * (time.perf_counter() - began))
    return taken


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive at once in the block; ``most`` is their peak.

    Left out are those that are ``known`` and what an operation needs inside itself. The same every time.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.most = self._now = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._users: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it returns."""
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        return returned

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self._known:
            return
        if place not in self._users:
            self._now += size
            self.most = max(self.most, self._now)
        self._users[place] = self._users.get(place, 0) + 1
        weakref.finalize(tensor, self._release, place, size)

    def _release(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            del self._users[place]
            self._now -= size


def peak_bytes(runner: Callable[[], Any], model: torch.nn.Module) -> int:
    """The memory that a call needs: the model's weights and buffers, and what is alive at once beside them."""
    own = model.state_dict().values()
    with torch.no_grad(), Peak(own) as peak:
        runner()
    return sum(tensor.nbytes for tensor in own) + peak.most
