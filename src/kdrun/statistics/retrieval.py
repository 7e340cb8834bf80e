"""What embeddings find: for each sample of a split the nearest other one of the same split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdrun.statistics.scores import Labels

BLOCK = 2**24
"""Similarities that are held at a time: 64 MB."""


def retrieved(embeddings: NDArray[np.floating], labels: Labels) -> Labels:
    """The label (N,) of each sample's nearest other one, by the cosine of embeddings (N, D), of two or more samples.

    The first of equally near ones. A vector of zeros has the cosine 0 with all others.
    """
    wide = embeddings.astype(np.float64)
    largest = np.abs(wide).max(axis=1, keepdims=True, initial=0)  # whose square need not be a number
    wide /= np.where(largest > 0, largest, 1)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = (wide / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    nearest, step = np.empty(len(unit), np.int64), max(1, BLOCK // len(unit))
    for first in range(0, len(unit), step):
        similar = unit[first : first + step] @ unit.T
        rows = np.arange(len(similar))
        similar[rows, first + rows] = -np.inf
        nearest[first : first + step] = similar.argmax(axis=1)
    return np.asarray(labels[nearest])
