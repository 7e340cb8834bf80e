"""Models that scikit-learn fits at once, in no steps: what it learnt is kept as arrays, and predicts without it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from kdrun.contracts import Model, ModelConfig

FLOOR = 1e-6
"""The least probability that is said of a class: a logarithm has to be a number."""
FEW = 256
"""Samples on which what was taken over from scikit-learn is compared with it."""
LEAST_SHARE = 1e-3
"""The least probability of a class for which a sample counts as one of it, where classes are learnt by weights."""


class FittedConfig(ModelConfig):
    """Options of every model that is fitted at once."""

    @model_validator(mode="after")
    def _starts_from_nothing(self) -> Self:
        if self.initial_weights is not None:
            raise ValueError("is fitted at once and starts from no weights; remove `initial_weights`")
        return self


class Fitted(Model):
    """A model without layers or gradients, of any input, flattened; its buffers are all that it learnt.

    Their sizes come with the data, so a state of any sizes can be loaded that makes a model (``fault``). Until it is
    fitted it holds all classes for equally likely.
    """

    fitted = True
    stages, pooled, head = (), "", ""

    def __init__(self, config: Any, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.config, self.inputs, self.classes = config, math.prod(shape), classes

    @abstractmethod
    def fit(
        self,
        x: np.ndarray,
        targets: np.ndarray,
        seed: int,
        threads: int,
        weights: np.ndarray | None = None,
    ) -> None:
        """Learn class probabilities ``targets`` (N, C) of inputs ``x`` (N, F), float32, with so many threads.

        ``weights`` (N,), above 0 and on average 1, are what the samples count; all count alike where it is None.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (B, C), or what has them as its log-softmax, of inputs (B, …)."""
        return self.said(x.flatten(1).float())

    @abstractmethod
    def said(self, x: Tensor) -> Tensor:
        """What ``forward`` says of inputs (B, F), float32."""

    @abstractmethod
    def most_numbers(self, samples: int) -> int:
        """How many numbers of four bytes it holds at most after a fit to so many samples."""

    @abstractmethod
    def fault(self) -> str | None:
        """What keeps its buffers from making a model; a file of weights may hold anything."""

    def take(self, **arrays: np.ndarray) -> None:
        """Hold these arrays from now on, as buffers."""
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)))
        self.settle()
        fault = self.fault()
        assert fault is None, fault

    def arrays(self) -> dict[str, np.ndarray]:
        """What it holds, by name."""
        return {name: tensor.cpu().numpy() for name, tensor in self.state_dict().items()}

    def settle(self) -> None:
        """Told whenever the buffers have changed, or gone to another device."""

    def _apply(self, *arguments: Any, **options: Any) -> Self:
        super()._apply(*arguments, **options)
        self.settle()
        return self

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name, own in list(self._buffers.items()):
            given = state.get(prefix + name)
            if own is not None and given is not None and given.ndim == own.ndim:
                self.register_buffer(name, torch.empty(given.shape, dtype=own.dtype, device=own.device))
        super()._load_from_state_dict(state, prefix, *rest)
        *_, errors = rest
        wrong = [
            f"'{name}' is of {state[prefix + name].dtype}"
            for name, own in self._buffers.items()
            if own is not None and prefix + name in state and state[prefix + name].dtype != own.dtype
        ]
        if not wrong and (fault := self.fault()) is not None:
            wrong = [fault]
        errors += wrong
        if not wrong:
            self.settle()


def log_of(probabilities: Tensor) -> Tensor:
    """The logarithm of probabilities (B, C), none of them taken for less than ``FLOOR``."""
    return probabilities.clamp_min(FLOOR).log()


def weighted_rows(
    targets: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, classes and weights (M,) by which a learner of classes learns probabilities (N, C) of samples that count.

    Each sample counts once for each of its classes, by that class's probability: the weighted cross-entropy of the rows
    is the cross-entropy to the probabilities.
    """
    rows, classes = np.nonzero(targets >= LEAST_SHARE)
    shares = targets[rows, classes]
    return rows, classes, shares if weights is None else shares * weights[rows]


def demand_same(model: Fitted, x: np.ndarray, expected: np.ndarray) -> None:
    """Assert that a model says of some inputs (N, F) what scikit-learn's says, probabilities (N, C)."""
    with torch.no_grad():
        found = F.softmax(model(torch.from_numpy(x[:FEW])), dim=1).numpy()
    distance = np.abs(found - expected[:FEW]).max(initial=0)
    assert distance < 1e-3, f"what was taken over from scikit-learn differs by {distance:.2g} from it"


def spread(probabilities: np.ndarray, present: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities (N, K) of the classes that are ``present`` (K,), among all (N, C)."""
    every: np.ndarray = np.zeros((len(probabilities), classes))
    every[:, present] = probabilities
    return every


class OfClasses(Fitted):
    """A fitted model that learns to tell those classes apart of which there are samples; ``present`` (K,) are these."""

    present: Tensor

    def said(self, x: Tensor) -> Tensor:
        """Log-probabilities (B, C)."""
        if len(self.present) < 2:
            return self._alone(x)
        among = F.log_softmax(self.among(x), dim=1)
        if len(self.present) == self.classes:
            return among
        every = among.new_full((len(x), self.classes), math.log(FLOOR))
        every[:, self.present.long()] = among
        return every

    def _alone(self, x: Tensor) -> Tensor:
        """Of one class there is nothing to learn, and before anything was learnt all are alike."""
        every = x.new_zeros(len(x), self.classes)
        every[:, self.present.long()] = -math.log(FLOOR)
        return F.log_softmax(every, dim=1)

    @abstractmethod
    def among(self, x: Tensor) -> Tensor:
        """Logits (B, K) of the classes that are present, two or more, for inputs (B, F)."""

    def present_fault(self) -> str | None:
        """What is wrong with ``present``."""
        rows = self.present.tolist()
        if self.present.ndim != 1 or rows != sorted(set(rows)) or not set(rows) <= set(range(self.classes)):
            return f"'present' names no {self.classes} classes in their order"
        return None


class LogisticRegression(OfClasses):
    """A linear classifier with a ridge, of standardised inputs; fitted by scikit-learn.

    From probabilities it learns by weights: each sample counts for each class by its probability.

    Source: Cox, "The Regression Analysis of Binary Sequences", 1958.
    """

    class Config(FittedConfig):
        """Options of `logistic-regression`."""

        kind: Literal["logistic-regression"]
        c: float = Field(default=1.0, gt=0)
        """scikit-learn's C: the smaller, the stronger the pull towards 0"""
        iterations: int = Field(default=1000, ge=1)
        """most iterations of the solver"""

    weight: Tensor
    bias: Tensor

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(config, shape, classes)
        nothing = np.zeros((0, self.inputs), np.float32)
        self.take(present=np.zeros(0, np.int32), weight=nothing, bias=np.zeros(0, np.float32))

    def fit(
        self,
        x: np.ndarray,
        targets: np.ndarray,
        seed: int,
        threads: int,
        weights: np.ndarray | None = None,
    ) -> None:
        """Fit the weights to class probabilities (N, C) of inputs (N, F)."""
        from sklearn.linear_model import LogisticRegression as Learner

        rows, classes, shares = weighted_rows(targets, weights)
        present = np.unique(classes)
        if len(present) < 2:
            self.take(present=present.astype(np.int32))
            return
        wide = x.astype(np.float64)
        learner = Learner(C=self.config.c, max_iter=self.config.iterations, random_state=seed)
        learner.fit(wide[rows], classes, sample_weight=shares)
        weight, bias = learner.coef_, learner.intercept_
        if len(present) == 2:  # it keeps the second one's alone
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        self.take(
            present=present.astype(np.int32), weight=weight.astype(np.float32), bias=bias.astype(np.float32)
        )
        demand_same(self, x, spread(learner.predict_proba(wide[:FEW]), present, self.classes))

    def most_numbers(self, samples: int) -> int:
        """The weights and the bias of each class."""
        return self.classes * (self.inputs + 2)

    def among(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        return F.linear(x, self.weight, self.bias)

    def fault(self) -> str | None:
        """What keeps the buffers from being a linear classifier of the inputs."""
        rows = len(self.present) if len(self.present) > 1 else len(self.bias)
        if self.weight.shape != (rows, self.inputs) or self.bias.shape != (rows,):
            return (
                f"'weight' {list(self.weight.shape)} and 'bias' {list(self.bias.shape)} do not fit the data"
            )
        return self.present_fault()


class SVC(OfClasses):
    """A support vector machine with a Gaussian kernel, its probabilities by Platt's scaling; fitted by scikit-learn.

    It learns classes, not probabilities: of each sample the most probable one. The kernel is exp(−γ‖x − s‖²),
    γ = 1/(F·var(x)) where nothing is said; pairs of classes vote, and the sums that they come to are scaled by
    cross-validated sigmoids, one for each class, and divided by their sum.

    Source: Cortes, Vapnik, "Support-Vector Networks", 1995; scaling: Platt, "Probabilistic Outputs for Support Vector
    Machines and Comparisons to Regularized Likelihood Methods", 1999.
    """

    class Config(FittedConfig):
        """Options of `svc`."""

        kind: Literal["svc"]
        c: float = Field(default=1.0, gt=0)
        """what an error costs; the smaller, the smoother"""
        gamma: float | None = Field(default=None, gt=0)
        """γ: how near samples have to be to count as alike"""

    vectors: Tensor
    dual: Tensor
    of: Tensor
    intercept: Tensor
    width: Tensor
    slopes: Tensor
    offsets: Tensor

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(config, shape, classes)
        self.take(present=np.zeros(0, np.int32), **self._nothing())

    def _nothing(self) -> dict[str, np.ndarray]:
        return {
            "vectors": np.zeros((0, self.inputs)),
            "dual": np.zeros((0, 0)),
            "of": np.zeros(0, np.int32),
            "intercept": np.zeros(0),
            "width": np.zeros(1),
            "slopes": np.zeros(0),
            "offsets": np.zeros(0),
        }

    def fit(
        self,
        x: np.ndarray,
        targets: np.ndarray,
        seed: int,
        threads: int,
        weights: np.ndarray | None = None,
    ) -> None:
        """Fit the machine to the most probable classes of inputs (N, F), by their probabilities (N, C)."""
        from sklearn import svm
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.model_selection import StratifiedKFold

        classes = targets.argmax(axis=1)
        present, counts = np.unique(classes, return_counts=True)
        if len(present) < 2:
            self.take(present=present.astype(np.int32), **self._nothing())
            return
        if counts.min() < 2:
            few = ", ".join(map(str, present[counts < 2]))
            raise ValueError(f"an svc needs two samples of each class, and there is one of class {few}")
        folds = StratifiedKFold(min(5, int(counts.min())), shuffle=True, random_state=seed)
        learner = svm.SVC(C=self.config.c, gamma=self.config.gamma or "scale")
        whole = CalibratedClassifierCV(learner, method="sigmoid", cv=folds, ensemble=False)
        whole.fit(x, classes, sample_weight=weights)
        [scaled] = whole.calibrated_classifiers_
        machine = scaled.estimator
        gamma = self.config.gamma or 1 / (x.shape[1] * x.astype(np.float64).var() or 1)
        self.take(
            present=present.astype(np.int32),
            vectors=machine.support_vectors_.astype(np.float64),
            dual=machine.dual_coef_,
            of=np.repeat(np.arange(len(present)), machine.n_support_).astype(np.int32),
            intercept=machine.intercept_,
            width=np.array([gamma]),
            slopes=np.array([one.a_ for one in scaled.calibrators]),
            offsets=np.array([one.b_ for one in scaled.calibrators]),
        )
        demand_same(self, x, spread(whole.predict_proba(x[:FEW]), present, self.classes))

    def most_numbers(self, samples: int) -> int:
        """Where all samples are support vectors, in float64."""
        return 2 * (samples * (self.inputs + self.classes) + self.classes**2)

    def _apply(self, move: Callable[[Tensor], Tensor], *options: Any) -> Self:
        """Stay on the CPU where an Apple GPU would be the place: it has no float64."""
        return self if move(torch.zeros(1)).device.type == "mps" else super()._apply(move, *options)

    def settle(self) -> None:
        """Lay out what each support vector counts in each pair of classes, (S, pairs)."""
        count = len(self.present)
        if count <= 2:
            self._counts = self.dual.T
            return
        first, second = torch.triu_indices(count, count, 1, device=self.dual.device)
        of = self.of.long()[:, None]
        rows = torch.arange(len(of), device=of.device)[:, None]
        as_first, as_second = self.dual[(second - 1)[None], rows], self.dual[first[None], rows]
        self._counts = as_first * (of == first) + as_second * (of == second)
        self._pairs = first, second

    def among(self, x: Tensor) -> Tensor:
        """Log-probabilities (B, K), reckoned in float64: sums of large numbers come to small ones."""
        wide = x.to(self.vectors)
        squares = wide.square().sum(dim=1, keepdim=True) + self.vectors.square().sum(dim=1)
        distances = (squares - 2 * wide @ self.vectors.T).clamp_min(0)
        decided = torch.exp(-self.width * distances) @ self._counts + self.intercept
        return self._scaled(decided).to(x)

    def _scaled(self, decided: Tensor) -> Tensor:
        """Log-probabilities (B, K) from what each pair of classes has decided (B, pairs)."""
        if len(self.present) == 2:
            second = -(self.slopes * decided + self.offsets)
            return torch.cat([F.logsigmoid(-second), F.logsigmoid(second)], dim=1)
        first, second = self._pairs
        sums = decided.new_zeros(len(decided), len(self.present)).index_add_(1, first, decided)
        sums.index_add_(1, second, -decided)
        votes = torch.zeros_like(sums).index_add_(1, first, (decided >= 0).to(sums))
        votes.index_add_(1, second, (decided < 0).to(sums))
        scores = votes + sums / (3 * (sums.abs() + 1))
        return F.logsigmoid(-(self.slopes * scores + self.offsets))

    def fault(self) -> str | None:
        """What keeps the buffers from being a machine that tells the classes apart."""
        count, vectors = len(self.present), len(self.vectors)
        if count < 2:
            return self.present_fault()
        scaled = 1 if count == 2 else count
        shapes = {
            "vectors": (vectors, self.inputs),
            "dual": (count - 1, vectors),
            "of": (vectors,),
            "intercept": (count * (count - 1) // 2,),
            "width": (1,),
            "slopes": (scaled,),
            "offsets": (scaled,),
        }
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                return f"'{name}' is {list(getattr(self, name).shape)} and should be {list(shape)}"
        if not ((self.of >= 0) & (self.of < count)).all():
            return "'of' names classes that are not there"
        return self.present_fault()
