"""Decision trees, alone and many together: fitted by scikit-learn, kept as arrays of splits and leaves."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdrun.contracts import Units
from kdrun.models.fitted import (
    FEW,
    Fitted,
    FittedConfig,
    OfClasses,
    demand_same,
    log_of,
    spread,
    weighted_rows,
)

NUMBERS_OF_A_SPLIT = 4
BAGGED = 0.64
"""A little more than the share of samples that are among as many drawn with replacement: 1 − 1/e."""
DIGITS = 17
"""That a number needs to be read again as it was written."""


class Grown(NamedTuple):
    """A tree as it was fitted: its nodes, each before those below it.

    ``feature`` and ``threshold`` (N,) send a sample to ``left`` (N,) where its feature is not above the threshold and
    to ``right`` (N,) elsewhere; leaves have -1 there. ``value`` (N, V) is what a node says, ``cost`` (N,) its share of
    the training samples times their squared distance from that.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    cost: np.ndarray

    def cut(self, below: np.ndarray) -> Grown:
        """The tree with some nodes (N,) made leaves, and nothing below them."""
        left, right = np.where(below, -1, self.left), np.where(below, -1, self.right)
        kept = np.zeros(len(left), bool)
        kept[0] = True
        for node in range(len(left)):
            if kept[node] and left[node] >= 0:
                kept[[left[node], right[node]]] = True
        places = np.cumsum(kept) - 1
        left, right = (np.where(side >= 0, places[side], -1)[kept] for side in (left, right))
        return Grown(self.feature[kept], self.threshold[kept], left, right, self.value[kept], self.cost[kept])

    def weakest_links(self) -> np.ndarray:
        """For each node (N,) the price of a leaf from which on it is one; infinite for leaves.

        The node is cut first whose leaves save least for their number: Breiman, Friedman, Olshen, Stone,
        "Classification and Regression Trees", 1984.
        """
        inner = self.left >= 0
        parent = np.full(len(inner), -1)
        parent[self.left[inner]] = parent[self.right[inner]] = np.flatnonzero(inner)
        leaves, saved = np.ones(len(inner), int), self.cost.copy()
        for node in reversed(np.flatnonzero(inner)):  # saved: what the leaves below it cost
            leaves[node] = leaves[self.left[node]] + leaves[self.right[node]]
            saved[node] = saved[self.left[node]] + saved[self.right[node]]
        prices, price = np.full(len(inner), np.inf), 0.0
        live = inner.copy()
        while live.any():
            links = np.full(len(inner), np.inf)
            links[live] = (self.cost[live] - saved[live]) / (leaves[live] - 1)
            weakest = int(links.argmin())
            price = max(price, float(links[weakest]))
            below = [weakest]
            for node in below:
                if live[node]:
                    prices[node], live[node] = price, False
                    below += [self.left[node], self.right[node]]
            gone, cheaper = leaves[weakest] - 1, self.cost[weakest] - saved[weakest]
            node = weakest
            while node >= 0:
                leaves[node] -= gone
                saved[node] += cheaper
                node = parent[node]
        return prices


class Trees(Fitted):
    """One or several trees: ``feature`` and ``threshold`` (S,) of all splits, ``branches`` (2·S,) and ``roots`` (T,).

    A branch or a root is a split's place, or the complement ~l of a leaf's; ``value`` (L, V) is what the leaves say.
    A split's branches lead to places after its own. Inputs are float32, and so are thresholds: the largest number
    that is not above the one that was fitted.
    """

    feature: Tensor
    threshold: Tensor
    branches: Tensor
    roots: Tensor
    value: Tensor

    def __init__(self, config: Any, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(config, shape, classes)
        self.take(**self.nothing())

    def nothing(self) -> dict[str, np.ndarray]:
        """The arrays of a tree that says the same of everything."""
        whole = np.zeros(1, np.int32)
        return arrays_of([Grown(whole, whole * 0.0, whole - 1, whole - 1, self.indifferent(), whole * 0.0)])

    @abstractmethod
    def indifferent(self) -> np.ndarray:
        """What a leaf says (1, V) that knows nothing."""

    def settle(self) -> None:
        """Learn how deep the trees are; how they are walked through is made up when it is needed."""
        below, self.depth = self.branches.cpu().numpy().reshape(-1, 2), 0
        splits = self.roots.cpu().numpy()
        while len(splits := splits[splits >= 0]):
            self.depth += 1
            splits = np.unique(below[splits])
        self._steps: tuple[list[int], list[float], list[int], list[int]] | None = None

    def leaves(self, x: Tensor) -> Tensor:
        """The leaf of each tree (B, T) that each of the inputs (B, F) comes to."""
        if len(x) == 1 and x.device.type == "cpu":
            return self._walked(x)
        many = len(self.roots)
        rows = torch.arange(len(x), dtype=torch.int32, device=x.device).repeat_interleave(many)
        flat, first, node = x.flatten(), rows * x.shape[1], self.roots.repeat(len(x))
        for _ in range(self.depth):
            split = node.clamp_min(0)
            place = first + self.feature.index_select(0, split)
            right = flat.index_select(0, place) > self.threshold.index_select(0, split)
            node = torch.where(node < 0, node, self.branches.index_select(0, 2 * split + right.int()))
        return ~node.view(len(x), many)

    def _walked(self, x: Tensor) -> Tensor:
        """The same for one sample, step by step: a fifth of the time that a few numbers take as tensors."""
        if self._steps is None:
            both = self.branches.view(-1, 2)
            sides = both[:, 0].tolist(), both[:, 1].tolist()
            self._steps = self.feature.tolist(), self.threshold.tolist(), *sides
        feature, threshold, left, right = self._steps
        values, found = x[0].tolist(), []
        for node in self.roots.tolist():
            while node >= 0:
                node = right[node] if values[feature[node]] > threshold[node] else left[node]
            found.append(~node)
        return torch.tensor([found])

    def most_numbers(self, samples: int) -> int:
        """Where all trees have as many leaves as there can be."""
        trees, leaves, numbers = self.most(samples)
        return trees * (leaves * (numbers + NUMBERS_OF_A_SPLIT) + 1)

    @abstractmethod
    def most(self, samples: int) -> tuple[int, int, int]:
        """The trees that so many samples make, their leaves at most, and the numbers of a leaf."""

    def fault(self) -> str | None:
        """What keeps the buffers from being trees over the inputs."""
        splits, leaves, trees = len(self.feature), len(self.value), len(self.roots)
        shapes = {"feature": (splits,), "threshold": (splits,), "branches": (2 * splits,), "roots": (trees,)}
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                return f"'{name}' is {list(getattr(self, name).shape)} and should be {list(shape)}"
        if self.value.ndim != 2 or self.value.shape[1] != self.indifferent().shape[1] or not trees:
            return f"'value' is {list(self.value.shape)}, for {trees} trees"
        if not ((self.feature >= 0) & (self.feature < self.inputs)).all():
            return f"'feature' is not below {self.inputs} everywhere"
        owner = torch.arange(splits, device=self.branches.device).repeat_interleave(2)
        below, tops = self.branches, self.roots
        if not (((below < 0) | (below > owner)) & (below < splits) & (~below < leaves)).all():
            return "'branches' are no places of splits after their own, or of leaves"
        if not ((tops < splits) & (~tops < leaves)).all():
            return "'roots' are no places of splits or leaves"
        return None


def arrays_of(trees: list[Grown]) -> dict[str, np.ndarray]:
    """The arrays of ``Trees``."""
    features, thresholds, branches, roots, values = [], [], [], [], []
    splits = leaves = 0
    for tree in trees:
        inner = tree.left >= 0
        place = np.where(inner, splits + np.cumsum(inner) - 1, ~(leaves + np.cumsum(~inner) - 1))
        features.append(tree.feature[inner])
        thresholds.append(rounded_down(tree.threshold[inner]))
        branches.append(np.stack([place[tree.left[inner]], place[tree.right[inner]]], axis=1).ravel())
        roots.append(place[0])
        values.append(tree.value[~inner])
        splits, leaves = splits + int(inner.sum()), leaves + int((~inner).sum())
    return {
        "feature": np.concatenate(features).astype(np.int32),
        "threshold": np.concatenate(thresholds),
        "branches": np.concatenate(branches).astype(np.int32),
        "roots": np.array(roots, np.int32),
        "value": np.concatenate(values).astype(np.float32),
    }


def most_leaves(samples: int, config: Any) -> int:
    """The leaves of a tree at most that so many samples make, by its ``depth`` and ``min_samples_leaf``."""
    leaves = max(1, samples // config.min_samples_leaf)
    return leaves if config.depth is None or config.depth > leaves else int(min(leaves, 2**config.depth))


def rounded_down(numbers: np.ndarray) -> np.ndarray:
    """The largest float32 that is not above each float64: what is at most the one is at most the other."""
    near = numbers.astype(np.float32)
    return np.where(near > numbers, np.nextafter(near, np.float32(-np.inf)), near)


def grown(fitted: Any) -> Grown:
    """The tree of one of scikit-learn's estimators of probabilities."""
    tree = fitted.tree_
    value = tree.value[:, :, 0]
    cost = tree.impurity * tree.weighted_n_node_samples / tree.weighted_n_node_samples[0]
    return Grown(tree.feature, tree.threshold, tree.children_left, tree.children_right, value, cost)


class OfProbabilities(Trees):
    """Trees whose leaves say class probabilities, and together their mean."""

    def indifferent(self) -> np.ndarray:
        """All classes alike, (1, C)."""
        return np.full((1, self.classes), 1 / self.classes, np.float32)

    def said(self, x: Tensor) -> Tensor:
        """Log-probabilities (B, C)."""
        leaves = self.leaves(x)
        return log_of(self.value.index_select(0, leaves.flatten()).view(*leaves.shape, -1).mean(dim=1))

    def fault(self) -> str | None:
        """What keeps the buffers from being trees of probabilities."""
        if fault := super().fault():
            return fault
        return None if ((self.value >= 0) & (self.value <= 1)).all() else "'value' holds no probabilities"


class Tree(OfProbabilities):
    """A decision tree that can be read: `kdrun rules` prints it. Fitted by scikit-learn.

    It splits where the squared distance of the wanted class probabilities from their mean falls most, which for labels
    is the Gini index; a leaf says the mean of what was wanted of its samples. With `prune` the tree is kept, of all
    from the whole one to its root, that agrees most with the teacher on the validation samples (alone: with their
    labels), and of equal ones the smallest.

    Source: Breiman, Friedman, Olshen, Stone, "Classification and Regression Trees", 1984; trees taught by networks that
    are queried: Craven, Shavlik, "Extracting Tree-Structured Representations of Trained Networks", 1996.
    """

    class Config(FittedConfig):
        """Options of `tree`."""

        kind: Literal["tree"]
        depth: int | None = Field(default=8, ge=1)
        """most splits on the way to a leaf; null for no limit"""
        min_samples_leaf: int = Field(default=1, ge=1)
        """fewest samples, queries among them, in a leaf"""
        prune: bool = False
        """cut back what does not help to agree with the teacher on the validation share"""

    whole: Grown

    def most(self, samples: int) -> tuple[int, int, int]:
        """One tree."""
        return 1, most_leaves(samples, self.config), self.classes

    def fit(
        self,
        x: np.ndarray,
        targets: np.ndarray,
        seed: int,
        threads: int,
        weights: np.ndarray | None = None,
    ) -> None:
        """Grow the tree to class probabilities (N, C) of inputs (N, F)."""
        from sklearn.tree import DecisionTreeRegressor

        learner = DecisionTreeRegressor(
            max_depth=self.config.depth, min_samples_leaf=self.config.min_samples_leaf, random_state=seed
        )
        self.whole = grown(learner.fit(x, targets, sample_weight=weights))
        self.take(**arrays_of([self.whole]))
        demand_same(self, x, learner.predict(x[:FEW]))

    def cut(self, below: np.ndarray) -> None:
        """Make some of the whole tree's nodes (N,) leaves."""
        self.take(**arrays_of([self.whole.cut(below)]))

    @property
    def choices(self) -> np.ndarray:
        """The class (L,) that each leaf says."""
        choices: np.ndarray = log_of(self.value).cpu().numpy().argmax(axis=1)
        return choices

    def make_readable(self, x: np.ndarray, units: Units) -> None:
        """Move each threshold to the shortest number in the data's units near the middle of the gap that it lies in.

        ``x`` (N, F) are the samples that it was fitted to, of which none changes sides.
        """
        arrays = self.arrays()
        feature, threshold, branches = (arrays[name] for name in ("feature", "threshold", "branches"))
        moved = threshold.copy()
        rows = {int(arrays["roots"][0]): np.arange(len(x))}
        for split, number in enumerate(feature):
            own = rows.pop(split)
            values = x[own, number]
            right = values > threshold[split]
            rows |= {int(branches[2 * split]): own[~right], int(branches[2 * split + 1]): own[right]}
            moved[split] = _between(values[~right].max(), values[right].min(), int(number), units)
        self.take(threshold=moved)

    def thresholds(self, units: Units, batches: Iterable[Tensor]) -> np.ndarray:
        """All thresholds (S,) in the data's units: of each sample in the batches (B, F) they say what the tree says.

        They are the shortest numbers that are seen as the tree's, unless a sample comes so close to one that only the
        largest number will do that is seen as no more.
        """
        feature, threshold = self.feature.cpu(), self.threshold.cpu()
        close = torch.zeros(len(feature), dtype=torch.bool)
        for x in batches:
            close |= (x.index_select(1, feature) == threshold).any(dim=0)
        return np.array(
            [
                _last(seen, int(of), units) if exact else _shortest(seen, int(of), units)
                for seen, of, exact in zip(threshold.numpy(), feature, close, strict=True)
            ]
        )


def _between(low: np.float32, high: np.float32, of: int, units: Units) -> np.float32:
    """A threshold that parts two neighbouring values: what a number is seen as that is short in the data's units.

    It has as few digits as a number of the middle half of the gap can have.
    """
    ends = units.raw(np.array([low, high]), of)
    gap, middle = float(ends[1] - ends[0]), float(ends.mean())
    if gap > 0:  # or float64 cannot tell them apart in these units
        for digits in _digits(gap):
            short = round(middle, digits)
            seen = np.float32(units.seen(np.array(short), of))
            if abs(short - middle) <= gap / 4 and low <= seen < high:
                return seen
    return low


def _shortest(threshold: np.float32, of: int, units: Units) -> float:
    """The shortest number in the data's units that is seen as the threshold."""
    near = float(units.raw(np.array(threshold), of))
    for short in (0.0, *(round(near, digits) for digits in _digits(abs(near) or 1))):
        if units.seen(np.array(short), of) == threshold:
            return short
    return _last(threshold, of, units)


def _digits(size: float) -> range:
    """To how many digits after the point to round numbers of a size, until nothing is left to be rounded."""
    first = -math.floor(math.log10(size)) - 1
    return range(first, first + DIGITS + 1)


def _last(threshold: np.float32, of: int, units: Units) -> float:
    """The largest number in the data's units that is seen as no more than the threshold."""

    def above(number: float) -> bool:
        return bool(units.seen(np.array(number), of) > threshold)

    low = float(units.raw(np.array(threshold), of))
    step = math.ulp(low)
    while above(low):
        low, step = low - step, 2 * step
    high, step = low + step, 2 * step
    while not above(high):
        low, high, step = high, high + step, 2 * step
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if above(middle) else (middle, high)
    return low + 0.0


class Forest(OfProbabilities):
    """A random forest: trees of resampled samples, each split among some features only; the mean of what they say.

    Fitted by scikit-learn on class probabilities, as `tree` is.

    Source: Breiman, "Random Forests", 2001.
    """

    class Config(FittedConfig):
        """Options of `forest`."""

        kind: Literal["forest"]
        trees: int = Field(default=100, ge=1)
        """how many"""
        depth: int | None = Field(default=None, ge=1)
        """most splits on the way to a leaf; null for no limit"""
        min_samples_leaf: int = Field(default=1, ge=1)
        """fewest samples in a leaf"""
        max_features: Annotated[float, Field(gt=0, le=1)] | Literal["sqrt"] = "sqrt"
        """among how many features each split is chosen: the root of their number, or a share of them"""

    def most(self, samples: int) -> tuple[int, int, int]:
        """Its trees, each of which sees some of the samples."""
        return self.config.trees, most_leaves(math.ceil(BAGGED * samples), self.config), self.classes

    def fit(
        self,
        x: np.ndarray,
        targets: np.ndarray,
        seed: int,
        threads: int,
        weights: np.ndarray | None = None,
    ) -> None:
        """Grow the trees to class probabilities (N, C) of inputs (N, F)."""
        from sklearn.ensemble import RandomForestRegressor

        learner = RandomForestRegressor(
            self.config.trees,
            max_depth=self.config.depth,
            min_samples_leaf=self.config.min_samples_leaf,
            max_features=self.config.max_features,
            random_state=seed,
            n_jobs=threads,
        )
        learner.fit(x, targets, sample_weight=weights)
        self.take(**arrays_of([grown(one) for one in learner.estimators_]))
        demand_same(self, x, learner.predict(x[:FEW]))


class Boosting(Trees, OfClasses):
    """Gradient boosting over histograms: in each round a small tree for each class, for what the others left.

    Fitted by scikit-learn. From probabilities it learns by weights: each sample counts for each class by its
    probability.

    Source: Friedman, "Greedy Function Approximation: A Gradient Boosting Machine", 2001; histograms: Ke et al.,
    "LightGBM: A Highly Efficient Gradient Boosting Decision Tree", 2017.
    """

    class Config(FittedConfig):
        """Options of `boosting`."""

        kind: Literal["boosting"]
        rounds: int = Field(default=100, ge=1)
        """trees for each class (of two classes, for both)"""
        learning_rate: float = Field(default=0.1, gt=0)
        """how much of each tree counts"""
        leaves: int = Field(default=31, ge=2)
        """most leaves of a tree"""
        depth: int | None = Field(default=None, ge=1)
        """most splits on the way to a leaf; null for no limit"""
        min_samples_leaf: int = Field(default=20, ge=1)
        """fewest samples in a leaf"""

    base: Tensor

    def most(self, samples: int) -> tuple[int, int, int]:
        """A tree for each round and class, of two classes for both."""
        trees = self.config.rounds * (self.classes if self.classes > 2 else 1)
        return trees, min(self.config.leaves, most_leaves(samples, self.config)), 1

    def nothing(self) -> dict[str, np.ndarray]:
        """No class is present."""
        return super().nothing() | {"present": np.zeros(0, np.int32), "base": np.zeros(0, np.float32)}

    def indifferent(self) -> np.ndarray:
        """Nothing for or against a class, (1, 1)."""
        return np.zeros((1, 1), np.float32)

    def fit(
        self,
        x: np.ndarray,
        targets: np.ndarray,
        seed: int,
        threads: int,
        weights: np.ndarray | None = None,
    ) -> None:
        """Grow the trees to class probabilities (N, C) of inputs (N, F)."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        rows, classes, shares = weighted_rows(targets, weights)
        present = np.unique(classes)
        if len(present) < 2:
            self.take(**self.nothing() | {"present": present.astype(np.int32)})
            return
        learner = HistGradientBoostingClassifier(
            max_iter=self.config.rounds,
            learning_rate=self.config.learning_rate,
            max_leaf_nodes=self.config.leaves,
            max_depth=self.config.depth,
            min_samples_leaf=self.config.min_samples_leaf,
            early_stopping=False,
            random_state=seed,
        )
        learner.fit(x[rows], classes, sample_weight=shares)
        # Nothing of this is public; ``demand_same`` sees to it that it means what it is taken for.
        trees = [_of_histograms(one.nodes) for of_round in learner._predictors for one in of_round]
        base = learner._baseline_prediction.ravel()
        self.take(present=present.astype(np.int32), base=base.astype(np.float32), **arrays_of(trees))
        demand_same(self, x, spread(learner.predict_proba(x[:FEW]), present, self.classes))

    def among(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        leaves = self.leaves(x)
        each = self.value.index_select(0, leaves.flatten()).view(len(x), -1, len(self.base))
        sums = self.base + each.sum(dim=1)
        return torch.cat([-sums, sums], dim=1) / 2 if len(self.base) == 1 else sums

    def fault(self) -> str | None:
        """What keeps the buffers from being boosted trees."""
        if fault := super().fault() or self.present_fault():
            return fault
        count = len(self.present)
        wanted = 0 if count < 2 else 1 if count == 2 else count
        if self.base.shape != (wanted,) or (wanted and len(self.roots) % wanted):
            return f"'base' is {list(self.base.shape)} and there are {len(self.roots)} trees, for {count} classes"
        return None


def _of_histograms(nodes: np.ndarray) -> Grown:
    """A tree of scikit-learn's boosting over histograms."""
    leaf = nodes["is_leaf"].astype(bool)
    left, right = (np.where(leaf, -1, nodes[side].astype(np.int64)) for side in ("left", "right"))
    feature, threshold = (np.where(leaf, 0, nodes[key]) for key in ("feature_idx", "num_threshold"))
    return Grown(
        feature.astype(np.int64), threshold, left, right, nodes["value"][:, None], np.zeros(len(leaf))
    )
