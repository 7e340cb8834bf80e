"""Scores of anything that predicts, and what it costs to run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from kdrun.contracts import Batch, Predictor
from kdrun.statistics.scores import all_scores

WARM_UP, ROUNDS = 5, 60


def predict(predictor: Predictor, batches: Iterable[Batch]) -> dict[str, np.ndarray]:
    """``logits`` (N, C) float32, ``labels`` (N,) int64 and ``index`` (N,) int64 of a whole split."""
    logits, labels, index = [], [], []
    with torch.no_grad():
        for batch in batches:
            logits.append(predictor(batch).logits.float().cpu())
            labels.append(batch.labels.cpu())
            index.append(batch.index.cpu())
    parts = {"logits": logits, "labels": labels, "index": index}
    return {name: torch.cat(part).numpy() for name, part in parts.items()}


def score(predictor: Predictor, batches: Iterable[Batch]) -> dict[str, float]:
    """Every score of a split."""
    predictions = predict(predictor, batches)
    return all_scores(predictions["logits"], predictions["labels"])


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
    taken: list[list[float]] = [[] for _ in runners]
    with torch.no_grad():
        for turn in range(WARM_UP + ROUNDS):
            for times, runner in zip(taken, runners, strict=True):
                began = time.perf_counter()
                runner()
                wait_for(device)
                if turn >= WARM_UP:
                    times.append(1e3 * (time.perf_counter() - began))
    return [{"p50": float(np.percentile(t, 50)), "p95": float(np.percentile(t, 95))} for t in taken]
