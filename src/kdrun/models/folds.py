"""Cross-fitting: about a training sample a teacher is asked that has not seen it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from kdrun.contracts import Arithmetic, Batch, Model, Outputs, Predictor
from kdrun.models.network import Frozen

FOLD = "fold"
"""The array that says to which fold each training sample belongs."""


class OutOfFold:
    """What a cross-fitted teacher says of training samples, of each by a model that did not see it; a ``Teacher``.

    ``fold`` (N,) is the fold of each training sample that its pupils see, and the model of its place in ``models``
    learnt from all others. A query belongs to the fold of the sample it was made of, and to that of the last model what
    none of them learnt from.
    """

    arithmetic: Arithmetic = "fp32"

    def __init__(self, models: Sequence[Frozen], fold: Tensor) -> None:
        self.models, self.fold = models, fold

    def __call__(self, batch: Batch) -> Outputs:
        """Logits (B, C)."""
        fold = self.fold[batch.index]
        parts = []
        for number, model in enumerate(self.models):
            rows = (fold == number).nonzero().squeeze(1)
            if len(rows):
                parts.append((rows, model(batch.rows(rows))))
        return _joined(parts, len(batch))

    def tap(self, views: Iterable[str]) -> None:
        """Answer for further views, too."""
        for model in self.models:
            model.tap((), views)


def _joined(parts: Sequence[tuple[Tensor, Outputs]], size: int) -> Outputs:
    """What is said of all samples of a batch, in parts with their positions."""
    _, first = parts[0]
    logits = first.logits.new_empty(size, first.logits.shape[1])
    for rows, said in parts:
        logits[rows] = said.logits
    return Outputs(
        logits,
        views={
            view: _joined([(rows, said.views[view]) for rows, said in parts], size) for view in first.views
        },
    )


class CrossFitted(Frozen):
    """A teacher that was fitted to all training samples; its students hear it ``out_of_fold``."""

    def __init__(self, model: Model, view: str, device: torch.device, out_of_fold: OutOfFold) -> None:
        super().__init__(model, view, device)
        self.out_of_fold = out_of_fold

    @property
    def of_training(self) -> Predictor:
        """What it says of training samples: of each, what a model says that did not see it."""
        return self.out_of_fold


def dealt(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold (N,) of each sample: those of a class are dealt out in turn, going on where the class before ended."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int32)
    fold[order] = np.arange(len(labels)) % folds
    return fold


def arrays_of_folds(states: Sequence[Mapping[str, Tensor]], fold: np.ndarray) -> dict[str, np.ndarray]:
    """The folds' models and the samples' folds as named arrays."""
    arrays = {
        f"{number}.{name}": tensor.cpu().numpy()
        for number, state in enumerate(states)
        for name, tensor in state.items()
    }
    return {FOLD: fold, **arrays}


def states_of_folds(arrays: Mapping[str, np.ndarray], places: np.ndarray) -> list[dict[str, Tensor]]:
    """The folds' models, of what ``arrays_of_folds`` gave for samples of which some stand at these places.

    Raises ``ValueError`` and ``KeyError`` for anything else.
    """
    states: dict[int, dict[str, Tensor]] = {}
    for name, array in arrays.items():
        if name != FOLD:
            number, rest = name.split(".", 1)
            if number != str(int(number)):
                raise ValueError(f"{name} is no fold's")
            states.setdefault(int(number), {})[rest] = torch.from_numpy(array)
    fold = arrays[FOLD]
    if (
        fold.ndim != 1
        or len(fold) <= places.max()
        or fold.dtype != np.int32
        or sorted(states) != list(range(len(states)))
    ):
        raise ValueError(f"it holds no folds of {len(places)} samples")
    if not set(fold.tolist()) <= states.keys():
        raise ValueError("a sample's fold has no model")
    return [states[number] for number in range(len(states))]
