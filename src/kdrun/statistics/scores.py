"""Scores of stored predictions: ``logits`` (N, C) float, ``labels`` (N,) int."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.floating]
Labels = NDArray[np.integer]


def log_probabilities(logits: Logits) -> NDArray[np.float64]:
    """Log-softmax over the classes, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def accuracy(logits: Logits, labels: Labels) -> float:
    """Share of samples whose largest logit is the label's (the first one, where several are equal)."""
    return float((logits.argmax(axis=1) == labels).mean())


def balanced_accuracy(logits: Logits, labels: Labels) -> float:
    """Mean over the classes that occur of the share of their samples that are found."""
    found = logits.argmax(axis=1) == labels
    return float(np.mean([found[labels == label].mean() for label in np.unique(labels)]))


def macro_f1(logits: Logits, labels: Labels) -> float:
    """Mean of F1 over the classes that occur among labels or predictions; 0 for one never found."""
    predicted = logits.argmax(axis=1)
    scores = []
    for label in np.union1d(labels, predicted):
        hits = np.sum((predicted == label) & (labels == label))
        scores.append(2 * hits / (np.sum(predicted == label) + np.sum(labels == label)))
    return float(np.mean(scores))


def top5(logits: Logits, labels: Labels) -> float:
    """Share of samples whose label is among the five largest logits."""
    best = np.argpartition(logits, -5, axis=1)[:, -5:]
    return float((best == labels[:, None]).any(axis=1).mean())


def nll(logits: Logits, labels: Labels) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    return float(-log_probabilities(logits)[np.arange(len(labels)), labels].mean())


def agreement(logits: Logits, other: Logits) -> float:
    """Share of samples on which both predict the same class."""
    return float((logits.argmax(axis=1) == other.argmax(axis=1)).mean())


METRICS = {"accuracy": accuracy, "balanced-accuracy": balanced_accuracy, "macro-f1": macro_f1}
TOP5_FROM_CLASSES = 100


def all_scores(logits: Logits, labels: Labels) -> dict[str, float]:
    """Every score of one model on one split."""
    scores = {name: score(logits, labels) for name, score in METRICS.items()} | {"nll": nll(logits, labels)}
    if logits.shape[1] >= TOP5_FROM_CLASSES:
        scores["top5"] = top5(logits, labels)
    return scores


def ensemble(members: list[Logits]) -> NDArray[np.float64]:
    """The logits of several models together: the log of their mean probabilities."""
    return np.asarray(np.logaddexp.reduce([log_probabilities(m) for m in members]) - np.log(len(members)))
