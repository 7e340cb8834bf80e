"""What all finite data sets share: splits, labelled subset, storage, batches, normalisation, mixup."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdrun.contracts import HIDDEN, Batch, Dataset, DatasetConfig, Draw, Mix, Shelf, Spec, Split, Units
from kdrun.data import augmentation, sampling
from kdrun.data.augmentation import boxes
from kdrun.data.queries import asked_in, spreads_of, with_queries
from kdrun.data.shades import Shades
from kdrun.data.sources import Inputs, Source, Stored, Streamed, source
from kdrun.data.views import Reduction, View, ViewsConfig, of_channel
from kdrun.errors import DataError
from kdrun.memory import room_for_data
from kdrun.randomness import derive, generator

VIEW, STRONG = "input", "strong"
"""The names of the default view of these sets, and of the one that is augmented by itself, where it is asked for."""
PURPOSES = {VIEW: "augment", STRONG: "augment strongly"}
"""What the random numbers of these are drawn for."""
TEST_SHARE = 0.3
"""Share of a set without a test split that is drawn as one."""
CHUNK = 256
"""Samples that a pass over a whole split looks at in one piece."""


class HeldOutConfig(ViewsConfig):
    """Options of sets that come without a test split."""

    test: float = Field(default=TEST_SHARE, gt=0, lt=1)
    """share of the samples drawn as the test split, stratified by class"""


class Raw(NamedTuple):
    """What a set's files hold; without ``test`` inputs, a test split is drawn from ``train``.

    Inputs are pictures (N, C, H, W), uint8 or float32 in [0, 1], or tables (N, F) of finite numbers; labels are
    (N,) integers from 0. Pictures in a memory map are read from there while they are used.
    """

    train: Inputs
    train_labels: np.ndarray
    test: Inputs | None = None
    test_labels: np.ndarray | None = None


class Piece(NamedTuple):
    """A split as it was read: rows (N,) of the inputs, and their labels (N,)."""

    inputs: Inputs
    rows: np.ndarray
    labels: np.ndarray

    def chunks(self) -> Iterator[Tensor]:
        """The samples in their order, some at a time, on the CPU and as they were read."""
        for samples in source(self.inputs, torch.device("cpu")).gather(torch.from_numpy(self.rows), CHUNK):
            yield samples.permute(0, 3, 1, 2).contiguous() if samples.ndim == 4 else samples


class Some(NamedTuple):
    """What a batch is made of: positions in the split, on the CPU and on the device, labels, and stored samples."""

    places: Tensor
    positions: Tensor
    labels: Tensor
    samples: Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """A split: rows (N,) of a source, where they stand in it before any is left out, and their labels (N,).

    Those that are seen in batches are ``given``.
    """

    source: Source
    rows: Tensor
    places: Tensor
    labels: Tensor
    given: Tensor

    def only(self, kept: np.ndarray) -> Part:
        """The samples at some positions, with all labels given."""
        at = torch.from_numpy(kept)
        labels = self.labels[at.to(self.labels.device)]
        return Part(self.source, self.rows[at], self.places[at], labels, labels)

    def gather(self, order: Tensor, size: int, labels: Tensor) -> Iterator[Some]:
        """What is at some positions (N,) of the split, ``size`` at a time, with these of its labels."""
        if not len(order):
            return
        index = order.to(labels.device)
        samples = self.source.gather(self.rows[order], size)
        pieces = zip(order.split(size), index.split(size), labels[index].split(size), samples, strict=True)
        yield from map(Some._make, pieces)


class SampleSet(Dataset):
    """A finite set of labelled samples.

    A subclass has a ``Config``, ``read``, and ``spec`` and ``samples`` of the class, or set when it is made.
    Pictures are normalised by ``mean`` and ``std``, one number a channel on the scale of [0, 1], or where a set
    has none by those of its training split; tables are standardised by the training split's, constant columns
    are 0.
    """

    mean: ClassVar[tuple[float, ...]] = ()
    std: ClassVar[tuple[float, ...]] = ()
    white: ClassVar[int] = 255
    """What is white where the pictures come from, whole numbers from 0 on, before they were spread to 255."""
    samples: int
    """How many samples its training files hold, before anything is held out."""
    test_share: float = 0.0
    """The share of them that is drawn as the test split; 0 where the files hold one."""
    classes: Sequence[str]
    """The names of the classes; final once the set is loaded."""
    feature_names: Sequence[str]
    """The names of a table's columns, none for pictures; final once the set is loaded."""

    def __init__(self, config: DatasetConfig) -> None:
        self.config = config
        self.root = Path(os.path.expanduser(config.root))  # pathlib's raises where nobody is called so
        self.test_share = getattr(config, "test", None) or 0.0
        self._parts: dict[bool, dict[Split, Part]] = {}
        """The splits as the teachers see them, and as they are given to the students."""
        if hasattr(type(self), "spec"):
            self._describe(self.spec)

    def _describe(self, spec: Spec, columns: Sequence[str] = ()) -> None:
        """Take the spec, and the names of a table's columns if they are known; others are numbers until they are.

        Raises ``DataError`` where a table is to be augmented, or a view is of what the samples do not have.
        """
        self.spec = spec
        self._shape = spec.shapes[VIEW]
        written: augmentation.Augmentation = getattr(self.config, "augmentation", "none")
        self._augmentations = {VIEW: augmentation.parts(written)}
        self._copies = written.copies if isinstance(written, augmentation.Copies) else None
        if (strong := getattr(self.config, "strong_view", None)) is not None:
            self._augmentations[STRONG] = augmentation.parts(strong)
            self.spec = replace(spec, shapes={VIEW: self._shape, STRONG: self._shape})
        if not self.pictures and (len(self._augmentations) > 1 or self._augmentations[VIEW]):
            key, cure = (
                ("augmentation", "write `augmentation: none`")
                if self._augmentations[VIEW]
                else ("strong_view", "remove it")
            )
            raise DataError(
                f"dataset.{key}: the samples of '{self.config.kind}' are rows of {self._shape[0]} numbers, "
                f"and augmentation is for pictures; {cure}"
            )
        self.classes = [str(label) for label in range(spec.classes)]
        self.feature_names = [] if self.pictures else columns or [f"x{i}" for i in range(self._shape[0])]
        shapes = dict(self.spec.shapes)
        for key, name, view in self._written_views():
            if name in shapes:
                raise DataError(f"{key}: there is another view of that name; choose a new one")
            shapes[name] = view.shape(key, self._shape)
            if columns:
                view.places(key, _told_apart(self.feature_names))
        self.spec = replace(self.spec, shapes=shapes)
        self._shown: Collection[str] = shapes.keys()

    def _written_views(self) -> Iterator[tuple[str, str, View]]:
        """Key, name and options of each view that the config makes of the default one."""
        for name, view in getattr(self.config, "views", {}).items():
            yield f"dataset.views.{name}", name, view

    @property
    def pictures(self) -> bool:
        """Whether the samples are pictures (C, H, W) and not rows of a table."""
        return len(self._shape) == 3

    @abstractmethod
    def read(self) -> Raw:
        """The samples, from the files; called once. Raises ``DataError`` where they are missing or broken."""

    def identity(self) -> dict[str, Any]:
        """The config without what does not decide the samples: where they lie and how they are scored."""
        written = self.config.model_dump(mode="json", exclude={"root", "metric", "views"})
        views = self.config.model_dump(mode="json", include={"views"}, exclude_defaults=True)
        return views | {
            key: augmentation.shortest(value) if key in ("augmentation", "strong_view") else value
            for key, value in written.items()
        }

    def show(self, views: Collection[str]) -> None:
        """Have batches give these views and the default one from now on; others are not made."""
        self._shown = {VIEW, *views}

    # ------------------------------------------------------------------------------------------ loading

    def load(
        self, device: torch.device, shelf: Shelf | None = None, say: Callable[[str], None] = lambda text: None
    ) -> None:
        """Read the samples, draw the splits and put everything on the device; later calls do nothing.

        Raises ``DataError`` where files are missing or broken, or a class has too few samples.
        """
        if self._parts:
            return
        self.device, self._shelf, self._say = device, shelf, say
        pieces = self._pieces(self.read())
        self._test_hash = self._hash(pieces["test"])
        if self.pictures:
            self._floats = getattr(pieces["train"].inputs, "dtype", None) == np.float32
            self._normaliser = self._picture_statistics(pieces["train"])
            self._colours = [
                figures.flatten().repeat(self._shape[1] * self._shape[2]) for figures in self._normaliser
            ]
        else:
            pieces = self._standardised(pieces)
        self._reductions = self._made_views()
        unique = {id(piece.inputs): piece.inputs for piece in pieces.values()}
        sources = {key: source(inputs, device) for key, inputs in unique.items()}
        self._as_seen = not self.pictures or self._normalise(list(sources.values()))
        parts = {name: self._part(sources[id(piece.inputs)], piece) for name, piece in pieces.items()}
        self._parts = {False: parts, True: self._as_given(parts)}

    def _made_views(self) -> dict[str, Reduction]:
        """What makes each view of the config; raises ``DataError`` for a column that is not there."""
        names = _told_apart(self.feature_names)
        stds = self._normaliser[1] if self.pictures else torch.empty(0, device=self.device)
        return {
            name: view.reduction(key, self._shape, names, stds) for key, name, view in self._written_views()
        }

    def _pieces(self, raw: Raw) -> dict[Split, Piece]:
        """The splits; those that are drawn share their inputs."""
        seed, labels = self.config.seed, raw.train_labels
        assert len(labels) == self.samples and (raw.test is None) == (self.test_share > 0)
        rows, test = sampling.stratified(labels, self.test_share, seed, "test")
        kept, held = sampling.stratified(labels[rows], self.config.validation, seed, "validation")
        pieces: dict[Split, Piece] = {
            "train": Piece(raw.train, rows[kept], labels[rows[kept]]),
            "validation": Piece(raw.train, rows[held], labels[rows[held]]),
            "test": Piece(raw.train, test, labels[test]),
        }
        if raw.test is not None and raw.test_labels is not None:
            pieces["test"] = Piece(raw.test, np.arange(len(raw.test_labels)), raw.test_labels)
        return pieces

    def _part(self, samples: Source, piece: Piece) -> Part:
        """A split on the device, with all its labels given."""
        labels = torch.from_numpy(piece.labels.astype(np.int64)).to(self.device)
        return Part(samples, torch.from_numpy(piece.rows), torch.arange(len(piece.rows)), labels, labels)

    def _as_given(self, parts: dict[Split, Part]) -> dict[Split, Part]:
        """The splits as the students see them: without classes left out, with ``labels_per_class`` labels given.

        Test samples are all there.
        """
        left_out = sampling.classes_called(self.config.leave_out or [], self.classes)
        given = dict(parts)
        for name in ("train", "validation") if left_out else ():
            kept = np.flatnonzero(~np.isin(parts[name].labels.cpu().numpy(), left_out))
            if len(parts[name].rows) and not len(kept):
                raise DataError(
                    f"dataset.leave_out: no {name} sample is of another class; leave fewer classes out, or hold out "
                    "more samples"
                )
            given[name] = parts[name].only(kept)
        if self.config.labels_per_class is not None:
            labels, per_class = given["train"].labels.cpu().numpy(), self.config.labels_per_class
            seen = sampling.labelled_subset(labels, per_class, self.classes, left_out, self.config.seed)
            few = np.full_like(labels, HIDDEN)
            few[seen] = labels[seen]
            given["train"] = replace(given["train"], given=torch.from_numpy(few).to(self.device))
        return given

    def _picture_statistics(self, train: Piece) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, (C, 1, 1)."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        if not self.mean:
            total = torch.zeros(2, self._shape[0], dtype=torch.float64)
            for samples in train.chunks():
                values = augmentation.unit(samples).double()
                total += torch.stack([values.mean((2, 3)).sum(0), values.square().mean((2, 3)).sum(0)])
            mean, square = total / len(train.rows)
            std = (square - mean.square()).clamp(min=0).sqrt()
            std[std < 1e-6] = 1  # a channel of one colour
        mean, std = (figures.float().view(-1, 1, 1).to(self.device) for figures in (mean, std))
        return mean, std

    def _normalise(self, sources: Sequence[Source]) -> bool:
        """Normalise stored pictures once, where nothing augments them and there is room; whether that was done."""
        stored = [one for one in sources if isinstance(one, Stored)]
        size = sum(one.numbers for one in stored) * torch.float32.itemsize
        augmented = any(self._augmentations.values())
        if augmented or len(stored) < len(sources) or size > room_for_data(self.device):
            return False
        for one in stored:
            one.change(self._normalised, CHUNK)
        return True

    def _standardised(self, pieces: dict[Split, Piece]) -> dict[Split, Piece]:
        """Tables by the training split's mean and std, reckoned in float64 and kept in float32."""
        train = np.asarray(pieces["train"].inputs, np.float64)[pieces["train"].rows]
        varies = train.max(0) > train.min(0)  # rounding gives a constant column a tiny std
        scale = np.divide(1, train.std(0), out=np.zeros(train.shape[1]), where=varies)
        self._standard = train.mean(0), scale
        tables = {
            id(inputs): ((np.asarray(inputs, np.float64) - train.mean(0)) * scale).astype(np.float32)
            for inputs, _, _ in pieces.values()
        }
        return {name: piece._replace(inputs=tables[id(piece.inputs)]) for name, piece in pieces.items()}

    def _hash(self, test: Piece) -> str:
        """SHA-256 of samples as they were read, before anything that depends on the training split."""
        digest = hashlib.sha256(str((len(test.rows), self._shape)).encode())
        digest.update(test.labels.astype("<i8").tobytes())
        for samples in test.chunks():
            digest.update(samples.numpy().tobytes())
        return digest.hexdigest()

    # ------------------------------------------------------------------------------------------ batches

    def steps(self, draw: Draw) -> int:
        """Batches an epoch, at least one; the same for all students' draws of one batch size, known before loading.

        They are as many where classes are left out: whoever sees fewer samples sees them more often.
        """
        left = self.samples - sampling.held_out(self.samples, self.test_share)
        return sampling.steps(left - sampling.held_out(left, self.config.validation), draw.batch_size)

    def batches(self, draw: Draw, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The training batches of an epoch from step ``first`` on, augmented, on the device.

        Every batch is full. A draw of some of the samples goes on through them where the epoch before it stopped.
        ``index`` is the position in the training split as the draw sees it.
        """
        train = self._parts[draw.given]["train"]
        order = self._order(train, draw, epoch, first)
        number = epoch % self._copies if self._copies and draw.given else None
        fixed = None if number is None else self._copy_drawn(number, len(train.rows))
        all_seen = train.given is train.labels or draw.labelled_only
        for step, some in enumerate(train.gather(order.flatten(), order.shape[1], train.given), start=first):
            views, mix = self._views(some, fixed, draw, "", epoch, step), None
            if draw.mixup or draw.cutmix:
                seed = derive(draw.seed, draw.purpose, "mixup", epoch, step)
                for view, x in views.items():
                    views[view], mix = _mixed(x, draw, seed)
            batch = Batch(views, some.labels, some.positions, mix, number or 0, all_seen)
            if draw.queries is not None:
                asked = asked_in(epoch * self.steps(draw) + step, len(batch), draw.queries)
                seed = derive(draw.seed, draw.purpose, "queries", epoch, step)
                batch = with_queries(batch, asked, draw.queries, self._spreads, seed)
            yield self._with_parts(batch)

    def _order(self, train: Part, draw: Draw, epoch: int, first: int) -> Tensor:
        """The positions (steps - first, batch) of an epoch's batches."""
        if draw.labelled_only:
            some = (train.given.cpu() != HIDDEN).nonzero().squeeze(1)
        elif self.config.leave_out and draw.given:
            some = torch.arange(len(train.rows))
        else:
            return sampling.epoch_order(len(train.rows), draw, epoch, first)
        return sampling.stream_order(some, draw, epoch, self.steps(draw), first)

    def queries(self, draw: Draw, number: int, batch_size: int) -> Iterator[Batch]:
        """A query for each training sample of a draw, augmented, in an order of their own."""
        train, queries = self._parts[draw.given]["train"], draw.queries
        assert queries is not None
        order = torch.randperm(len(train.rows), generator=generator(draw.seed, draw.purpose, "asked", number))
        for step, some in enumerate(train.gather(order, batch_size, train.labels)):
            views = self._views(some, None, draw, " of the asked", number, step)
            seed = derive(draw.seed, draw.purpose, "queries of a round", number, step)
            batch = Batch(views, some.labels, some.positions)
            yield self._with_parts(with_queries(batch, len(batch), queries, self._spreads, seed))

    def _views(
        self,
        some: Some,
        fixed: list[augmentation.Drawn] | None,
        draw: Draw,
        purpose: str,
        *when: int,
    ) -> dict[str, Tensor]:
        """The samples, augmented: the default view as it is ``fixed``, or as is drawn then, and the strong one."""
        views = {}
        for view, parts in self._augmentations.items():
            if view not in self._shown:
                continue
            if view == VIEW and fixed is not None:
                drawn = _rows(fixed, some.places)
            else:
                what = PURPOSES[view] + purpose
                drawn = self._drawn(parts, len(some.places), draw.seed, draw.purpose, what, *when)
            views[view] = self._inputs(some.samples, parts, drawn)
        return views

    def _with_parts(self, batch: Batch) -> Batch:
        """The batch with the views that are made of its default one."""
        parts = {
            name: make(batch.views[VIEW]) for name, make in self._reductions.items() if name in self._shown
        }
        return replace(batch, views=batch.views | parts) if parts else batch

    def split(self, name: Split, batch_size: int = 512, given: bool = False) -> Iterator[Batch]:
        """The samples of a split in their order, not augmented, with all labels; none where it is empty."""
        part = self._parts[given][name]
        for some in part.gather(torch.arange(len(part.rows)), batch_size, part.labels):
            x = self._inputs(some.samples)
            views = dict.fromkeys(self._augmentations, x)
            yield self._with_parts(Batch(views, some.labels, some.positions, all_seen=True))

    @property
    def copied_views(self) -> Collection[str]:
        """All but the one that is augmented by itself."""
        return (
            self.spec.shapes.keys() - {STRONG} if STRONG in self._augmentations else self.spec.shapes.keys()
        )

    def copies(self, draw: Draw) -> int | None:
        """How many different passes over the training set the default view of a draw makes.

        1 where nothing random happens to it, the number of fixed copies where there are some, and None where every
        epoch differs.
        """
        if draw.mixup or draw.cutmix or draw.queries:
            return None
        if not self._augmentations[VIEW]:
            return 1
        return self._copies if draw.given else None

    def copy(self, number: int, batch_size: int, given: bool = False) -> Iterator[Batch]:
        """The training samples in their order as they look in a copy, counted from 0, with all labels."""
        parts = self._augmentations[VIEW]
        assert 0 <= number < (self._copies or 1) and bool(parts) == bool(self._copies), "no such copy"
        train = self._parts[given]["train"]
        fixed = self._copy_drawn(number, len(train.rows))
        for some in train.gather(torch.arange(len(train.rows)), batch_size, train.labels):
            x = self._inputs(some.samples, parts, _rows(fixed, some.places))
            yield self._with_parts(Batch({VIEW: x}, some.labels, some.positions, copy=number, all_seen=True))

    def _copy_drawn(self, number: int, samples: int) -> list[augmentation.Drawn]:
        """What the parts drew for every training sample's copy; by the set's seed, so that all runs share it."""
        return self._drawn(self._augmentations[VIEW], samples, self.config.seed, "copy", number)

    def _drawn(
        self, parts: Sequence[augmentation.Part], samples: int, seed: int, *purpose: str | int
    ) -> list[augmentation.Drawn]:
        """What some parts draw for so many samples; to make a generator that draws nothing takes its time, too."""
        if not parts:
            return []
        _, height, width = self._shape
        return augmentation.draw(parts, samples, (height, width), generator(seed, *purpose))

    @cached_property
    def _spreads(self) -> dict[str, Tensor]:
        return spreads_of(self.split("train"))

    def units(self, view: str) -> Units:
        """What the numbers of a view are called and how they are measured: a table's columns, or pixels."""
        if view in self._reductions:
            return self._reductions[view].units(self.units(VIEW))
        if not self.pictures:
            return Units(_told_apart(self.feature_names), *self._standard)
        channels, height, width = self._shape
        mean, std = (
            np.repeat(figures.flatten().double().cpu().numpy(), height * width)
            for figures in self._normaliser
        )
        names = tuple(
            f"pixel {row},{column}" + of_channel(channel, channels)
            for channel in range(channels)
            for row in range(height)
            for column in range(width)
        )
        return Shades(names, mean, 1 / std, None if self._floats else self.white)

    def labels(self, name: Split, given: bool = False) -> np.ndarray:
        """The labels of a split (N,) int64; with ``given``, as the students see them.

        Only training labels are ever hidden: held-out samples are there to be scored.
        """
        return self._parts[given][name].given.cpu().numpy().copy()

    def places(self, given: bool = False) -> np.ndarray:
        """Where in the training set the samples stand that its teachers see, or its students (N,) int64."""
        return self._parts[given]["train"].places.numpy()

    def test_hash(self) -> str:
        """SHA-256 of the test inputs as they were read, and of their labels."""
        return self._test_hash

    def train_hash(self, given: bool = False) -> str:
        """SHA-256 of the training inputs as they are kept, or of what tells files apart that are read while used."""
        part, digest = self._parts[given]["train"], hashlib.sha256()
        if isinstance(part.source, Streamed):
            digest.update(part.source.stamp(part.rows).encode())
        else:
            for samples in part.source.gather(part.rows, CHUNK):
                digest.update(samples.cpu().numpy().tobytes())
        return digest.hexdigest()

    def _inputs(
        self,
        samples: Tensor,
        parts: Sequence[augmentation.Part] = (),
        drawn: Sequence[augmentation.Drawn] = (),
    ) -> Tensor:
        """Stored samples as a network sees them, augmented by some parts; pictures come channels last."""
        if parts:
            pictures = augmentation.apply(parts, samples.permute(0, 3, 1, 2), self._normaliser[0], drawn)
            samples = pictures.permute(0, 2, 3, 1)
        seen = samples if self._as_seen else self._normalised(samples)
        return seen.permute(0, 3, 1, 2) if self.pictures else seen

    def _normalised(self, samples: Tensor) -> Tensor:
        """Pictures (B, H, W, C) in [0, 1] or of bytes, by the mean and the std of each channel."""
        values = augmentation.unit(samples).reshape(len(samples), -1)
        mean, std = self._colours
        return (values - mean).div_(std).view(samples.shape)


def _told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """Names of which no two are the same and none is empty: the second ``width`` is ``width (2)``."""
    found: dict[str, None] = {}
    for place, name in enumerate(names):
        number, unique = 1, (name := name or f"x{place}")
        while unique in found:
            number += 1
            unique = f"{name} ({number})"
        found[unique] = None
    return tuple(found)


def _rows(drawn: Sequence[augmentation.Drawn], rows: Tensor) -> list[augmentation.Drawn]:
    """What was drawn for some of the samples."""
    return [tuple(numbers[rows] for numbers in one) for one in drawn]


def _mixed(x: Tensor, draw: Draw, seed: int) -> tuple[Tensor, Mix]:
    """Each sample mixed with a partner in the batch, by mixup or cutmix."""
    numbers = np.random.default_rng(seed)
    partner = torch.from_numpy(numbers.permutation(len(x))).to(x.device)
    cuts = bool(draw.cutmix) and (not draw.mixup or numbers.random() < 0.5)
    alpha = draw.cutmix if cuts else draw.mixup
    share = torch.from_numpy(numbers.beta(alpha, alpha, len(x)).astype(np.float32)).to(x.device)
    own = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
    others = own.index_select(0, partner)
    if cuts:
        rows, columns = (_box_side(length, share, numbers) for length in x.shape[2:])
        share = (1 - boxes(rows, columns)).mean(dim=(1, 2, 3))
        mixed = own.lerp(others, boxes(rows, columns, x.shape[1]))
    else:
        part = share.view(-1, *[1] * (own.ndim - 1))
        mixed = part * own + (1 - part) * others
    return mixed.permute(0, 3, 1, 2) if x.ndim == 4 else mixed, Mix(partner, share)


def _box_side(length: int, share: Tensor, numbers: np.random.Generator) -> Tensor:
    """Which rows or columns (B, length) of a picture the box covers that is cut out, of the rest's area and form.

    Its centre is anywhere in the picture, and what reaches over the border is lost: Yun et al., "CutMix:
    Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019, with a box for each picture
    where they draw one for the batch.
    """
    half = (length * (1 - share).sqrt()).int() // 2
    centre = torch.from_numpy(numbers.integers(length, size=len(share))).to(share.device)
    places = torch.arange(length, device=share.device)
    return (places >= (centre - half)[:, None]) & (places < (centre + half)[:, None])
