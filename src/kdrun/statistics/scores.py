"""Scores of stored predictions: ``logits`` (N, C) float, ``labels`` (N,) int, and perhaps what is retrieved (N,)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.floating]
Labels = NDArray[np.integer]
Shares = NDArray[np.float64]
Metric = Literal["accuracy", "balanced-accuracy", "macro-f1", "recall@1", "return", "normalised-return"]
RECALL: Final = "recall@1"
"""The metric of embeddings: the share of samples whose nearest other one is of their class. The others are of logits.

Source: Jégou, Douze, Schmid, "Product Quantization for Nearest Neighbor Search", 2011; of classes that nobody saw in
training: Oh Song, Xiang, Jegelka, Savarese, "Deep Metric Learning via Lifted Structured Feature Embedding", 2016.
"""
RETURN: Final = "return"
"""The metric of agents: the mean, over evaluation episodes, of the sum of an episode's rewards. Any number."""
NORMALISED: Final = "normalised-return"
"""The metric of agents in several environments: the mean of their returns there, as 0 is what random actions get and 1
what the teacher gets. Any number."""


def log_probabilities(logits: Logits) -> NDArray[np.float64]:
    """Log-softmax over the classes, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


class Counts(NamedTuple):
    """Of each class (…, C): how many samples it has, how many of them are found, and how many are taken for it."""

    labelled: NDArray[np.float64]
    found: NDArray[np.float64]
    taken: NDArray[np.float64]


def counted(predicted: Labels, labels: Labels) -> Counts:
    """The counts of predicted classes (N,)."""
    classes = int(max(predicted.max(), labels.max())) + 1
    parts = (labels, labels[predicted == labels], predicted)
    return Counts(*(np.bincount(part, minlength=classes).astype(np.float64) for part in parts))


def accuracy(counts: Counts) -> Shares:
    """Share of samples whose largest logit is the label's (the first one, where several are equal)."""
    return np.asarray(counts.found.sum(axis=-1) / counts.labelled.sum(axis=-1))


def balanced_accuracy(counts: Counts) -> Shares:
    """Mean over the classes that occur of the share of their samples that are found."""
    return _mean_share(counts.found, counts.labelled)


def macro_f1(counts: Counts) -> Shares:
    """Mean of F1 over the classes that occur among labels or predictions; 0 for one never found."""
    return _mean_share(2 * counts.found, counts.labelled + counts.taken)


def _mean_share(parts: NDArray[np.float64], wholes: NDArray[np.float64]) -> Shares:
    """The mean of parts / wholes, both (…, C), over the classes of which there is a whole."""
    there = wholes > 0
    shares = np.divide(parts, wholes, out=np.zeros_like(parts), where=there)
    return np.asarray(shares.sum(axis=-1) / there.sum(axis=-1))


OF_CLASSES: dict[str, Callable[[Counts], Shares]] = {
    "accuracy": accuracy,
    "balanced-accuracy": balanced_accuracy,
    "macro-f1": macro_f1,
}
"""What predicted classes may be scored by, each from the counts of labels and predictions; one score a row of them."""
METRICS = OF_CLASSES | {RECALL: accuracy}
"""What samples may be scored by; what is retrieved for a sample stands in the place of what it is taken for."""


def score(metric: str, predicted: Labels, labels: Labels) -> float:
    """A metric of predicted classes (N,)."""
    return float(METRICS[metric](counted(predicted, labels)))


def top5(logits: Logits, labels: Labels) -> float:
    """Share of samples whose label is among the five largest logits."""
    best = np.argpartition(logits, -5, axis=1)[:, -5:]
    return float((best == labels[:, None]).any(axis=1).mean())


def nll(logits: Logits, labels: Labels) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    return float(-log_probabilities(logits)[np.arange(len(labels)), labels].mean())


def brier(logits: Logits, labels: Labels) -> float:
    """Mean squared distance, summed over the classes, of the probabilities from the one-hot labels; between 0 and 2.

    Source: Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950.
    """
    p = np.exp(log_probabilities(logits))
    p[np.arange(len(labels)), labels] -= 1
    return float(np.square(p).sum(axis=1).mean())


def calibration_error(logits: Logits, labels: Labels, of_equal: Literal["mass", "width"] = "mass") -> float:
    """Expected calibration error over 15 bins of the confidence: of equal mass, or of equal width.

    The mean over samples of the distance between a bin's mean confidence and its accuracy. Bins of equal width are
    closed below, and confidence 1 has one of its own.

    Source: Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015; equal
    mass: Nixon et al., "Measuring Calibration in Deep Learning", 2019.
    """
    confidence = np.exp(log_probabilities(logits).max(axis=1))
    excess = confidence - (logits.argmax(axis=1) == labels)
    if of_equal == "width":
        bins = np.digitize(confidence, np.linspace(0, 1, BINS + 1)) - 1
        return float(np.abs(np.bincount(bins, excess)).sum() / len(labels))
    _, ties, counts = np.unique(confidence.round(12), return_inverse=True, return_counts=True)
    shared = (np.bincount(ties, excess) / counts)[ties]  # ties are alike, whatever their order
    parts = np.array_split(shared[np.argsort(confidence, kind="stable")], BINS)
    return float(sum(abs(part.sum()) for part in parts) / len(labels))


def fitted_temperature(logits: Logits, labels: Labels) -> float:
    """The temperature that the logits are to be divided by for the least NLL, between 1/100 and 100.

    Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017.
    """
    from scipy.optimize import minimize_scalar  # slow to import, and only a finished training needs it

    wide = logits.astype(np.float64)
    ends = -math.log(100), math.log(100)
    found = minimize_scalar(
        lambda log_t: nll(wide / math.exp(log_t), labels),
        bounds=ends,
        method="bounded",
        options={"xatol": 1e-8},
    )
    return math.exp(found.x)


def mixture(log_likelihoods: NDArray[np.floating]) -> Shares:
    """The weights (M,), ≥ 0 with the sum 1, of M models whose mean probability explains N labels best.

    ``log_likelihoods`` (M, N) are the logarithms of what each gives each label. Found by expectation and maximisation:
    Dempster, Laird, Rubin, "Maximum Likelihood from Incomplete Data via the EM Algorithm", 1977.
    """
    likelihoods = np.exp(log_likelihoods.astype(np.float64) - log_likelihoods.max(axis=0))
    weights = np.full(len(likelihoods), 1 / len(likelihoods))
    for _ in range(MIXTURE_STEPS):
        shares = weights[:, None] * likelihoods
        before, weights = weights, (shares / shares.sum(axis=0)).mean(axis=1)
        if np.abs(weights - before).max() < MIXTURE_CLOSE:
            break
    return weights


def divergence(logits: Logits, other: Logits) -> float:
    """Mean KL divergence from ``other``'s probabilities (the teacher's) to these, in nats."""
    log_p, log_q = log_probabilities(other), log_probabilities(logits)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


MIXTURE_STEPS, MIXTURE_CLOSE = 10_000, 1e-9
BINS = 15
TOP5_FROM_CLASSES = 100


def all_scores(
    logits: Logits, labels: Labels, temperature: float | None = None, retrieved: Labels | None = None
) -> dict[str, float]:
    """Every score of one model on one split; those after scaling where a fitted ``temperature`` is given.

    Recall where it is known what is ``retrieved`` (N,), and nothing else of classes that the logits do not tell apart.
    Raises ``ValueError`` where a logit is not finite: no score is true of it.
    """
    if not np.isfinite(logits).all():
        raise ValueError("some logits are not finite")
    scores = {} if retrieved is None else {RECALL: score(RECALL, retrieved, labels)}
    if not tells_apart(logits, labels):
        return scores
    counts = counted(logits.argmax(axis=1), labels)
    scores |= {name: float(metric(counts)) for name, metric in OF_CLASSES.items()}
    scores |= {
        "nll": nll(logits, labels),
        "brier": brier(logits, labels),
        "ece": calibration_error(logits, labels),
        "ece_equal_width": calibration_error(logits, labels, "width"),
    }
    if temperature is not None:
        scaled = logits / temperature
        scores |= {
            "temperature": temperature,
            "nll_scaled": nll(scaled, labels),
            "brier_scaled": brier(scaled, labels),
            "ece_scaled": calibration_error(scaled, labels),
        }
    if logits.shape[1] >= TOP5_FROM_CLASSES:
        scores["top5"] = top5(logits, labels)
    return scores


def tells_apart(logits: Logits, labels: Labels) -> bool:
    """Whether there is a logit for each label."""
    return bool(labels.max() < logits.shape[1])


def details(
    logits: Logits, labels: Labels, classes: int | None = None, retrieved: Labels | None = None
) -> dict[str, Any]:
    """What a report shows of one model's predictions beside its scores; of so many ``classes``, if not of C.

    ``by_class``: of each class the share of its samples that is found, or whose nearest one is of it where it is known
    what is ``retrieved``, None where it has none. ``reliability``: of each of 15 bins of the confidence, of
    equal width, the samples, their mean confidence and their accuracy; bins without samples are left out, and all where
    the logits do not tell the classes apart.
    """
    predicted = logits.argmax(axis=1) if retrieved is None else retrieved
    classes = classes or logits.shape[1]
    counts, found = (np.bincount(of, minlength=classes) for of in (labels, labels[predicted == labels]))
    return {
        "by_class": [int(f) / int(n) if n else None for f, n in zip(found, counts, strict=True)],
        "reliability": reliability(logits, labels) if tells_apart(logits, labels) else [],
    }


def reliability(logits: Logits, labels: Labels) -> list[list[float]]:
    """The bins of ``details``."""
    right = logits.argmax(axis=1) == labels
    confidence = np.exp(log_probabilities(logits).max(axis=1))
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        [int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean())]
        for number in range(BINS)
        if (inside := bins == number).any()
    ]


def ensemble(members: list[Logits]) -> NDArray[np.float64]:
    """The logits of several models together: the log of their mean probabilities."""
    return np.asarray(np.logaddexp.reduce([log_probabilities(m) for m in members]) - np.log(len(members)))
