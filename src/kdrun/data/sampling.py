"""Which samples: the splits, the labelled subset, and the order in which batches are drawn.

Everything here works on positions and labels alone and is a function of its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kdrun.contracts import Draw
from kdrun.errors import DataError, did_you_mean, shown
from kdrun.randomness import generator

LISTED = 100
"""Classes that a message names."""


def choose(labels: np.ndarray, counts: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """The sorted positions of ``counts[c]`` random samples of each class c.

    A larger count of one class adds samples to those of a smaller count, and changes none of another class.
    """
    chosen = []
    for label, count in enumerate(counts):
        rows = np.flatnonzero(labels == label)
        order = torch.randperm(len(rows), generator=generator(seed, purpose, label)).numpy()
        chosen.append(rows[order[:count]])
    return np.sort(np.concatenate(chosen))


def held_out(samples: int, share: float) -> int:
    """How many of some samples a share is: ⌈share·N⌉."""
    return math.ceil(round(share * samples, 6))  # 0.07 · 100 is 7.000000000000001


def stratified(labels: np.ndarray, share: float, seed: int, purpose: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions (rest, held out), sorted; the share is divided among the classes by largest remainder.

    Of every class at least one sample stays in the rest; raises ``DataError`` where that cannot be.
    """
    if share == 0:
        return np.arange(len(labels)), np.arange(0)
    counts, total = np.bincount(labels), held_out(len(labels), share)
    most = np.maximum(counts - 1, 0)
    if total > most.sum():
        raise DataError(
            f"dataset.{purpose}: {total} of {len(labels)} samples cannot be held out, for of each of the "
            f"{(counts > 0).sum()} classes one must stay for training; write a smaller share"
        )
    ideal = counts * (total / len(labels))
    held = np.minimum(ideal.astype(np.int64), most)
    while held.sum() < total:
        held[np.where(held < most, ideal - held, -np.inf).argmax()] += 1
    out = choose(labels, held, seed, purpose)
    return np.setdiff1d(np.arange(len(labels)), out), out


def classes_called(names: Sequence[str], classes: Sequence[str], key: str) -> list[int]:
    """The classes of the names that a key of the data set says; raises ``DataError`` where one is unknown."""
    for name in names:
        if name not in classes:
            known = did_you_mean(name, map(shown, classes), list_all=len(classes) <= LISTED)
            raise DataError(f"dataset.{key}: the data set has no class '{name}'; {known}")
    return [classes.index(name) for name in names]


def labelled_subset(
    labels: np.ndarray, per_class: int, classes: Sequence[str], left_out: Sequence[int], seed: int
) -> np.ndarray:
    """The sorted positions of the ``per_class`` samples of each class whose labels the students see.

    There are none of the classes ``left_out``. Raises ``DataError`` where another class has fewer.
    """
    counts = np.bincount(labels, minlength=len(classes))
    wanted = np.where(np.isin(np.arange(len(classes)), left_out), 0, per_class)
    fewest = min(wanted.nonzero()[0].tolist(), key=lambda label: int(counts[label]))
    if counts[fewest] < per_class:
        raise DataError(
            f"dataset.labels_per_class: {per_class} labels a class were asked for, but class "
            f"'{classes[fewest]}' has {counts[fewest]} training samples; write at most {counts[fewest]}"
        )
    return choose(labels, wanted, seed, "labelled")


def steps(samples: int, batch_size: int) -> int:
    """Batches an epoch; every one is full, so what is left of a permutation is dropped."""
    return max(1, samples // batch_size)


def epoch_order(samples: int, draw: Draw, epoch: int, first: int = 0) -> Tensor:
    """Positions (steps - first, batch) of an epoch's batches: a permutation, cut."""
    size = min(draw.batch_size, samples)
    order = torch.randperm(samples, generator=generator(draw.seed, draw.purpose, "order", epoch))
    return order[: steps(samples, draw.batch_size) * size].view(-1, size)[first:]


def gathered_order(samples: int, draw: Draw, epoch: int, per_epoch: int, size: int, first: int = 0) -> Tensor:
    """Positions (per_epoch - first, size) among samples that are others in each epoch: permutations in a row."""
    passes = range(-(-per_epoch * size // samples))
    draws = (generator(draw.seed, draw.purpose, "gathered", epoch, number) for number in passes)
    order = torch.cat([torch.randperm(samples, generator=g) for g in draws])
    return order[: per_epoch * size].view(-1, size)[first:]


def shared_order(
    labelled: Tensor, others: Tensor, draw: Draw, epoch: int, per_epoch: int, first: int = 0
) -> Tensor:
    """Positions (per_epoch - first, batch), a share of each batch labelled ones: from two endless streams."""
    assert draw.labelled_share is not None
    size = min(draw.batch_size, len(labelled) + len(others))
    wanted = max(1, round(draw.labelled_share * size), size - len(others))
    known = min(wanted, len(labelled), size - 1)
    streams = [
        stream_order(rows, replace(draw, batch_size=count, purpose=purpose), epoch, per_epoch, first)
        for rows, count, purpose in (
            (labelled, known, draw.purpose),
            (others, size - known, f"{draw.purpose} unlabelled"),
        )
    ]
    return torch.cat(streams, dim=1)


def stream_order(of: Tensor, draw: Draw, epoch: int, per_epoch: int, first: int = 0) -> Tensor:
    """Positions (per_epoch - first, batch) from an endless stream of permutations of those it is made ``of``.

    The stream does not begin anew with an epoch, so every sample is seen equally often however few there are;
    only the passes that these batches span are drawn.
    """
    samples = len(of)
    size = min(draw.batch_size, samples)
    start, stop = (epoch * per_epoch + min(first, per_epoch)) * size, (epoch + 1) * per_epoch * size
    passes = range(start // samples, stop // samples + 1)
    draws = (generator(draw.seed, draw.purpose, "pass", number) for number in passes)
    stream = torch.cat([of[torch.randperm(samples, generator=g)] for g in draws])
    skipped = passes.start * samples
    return stream[start - skipped : stop - skipped].view(-1, size)
