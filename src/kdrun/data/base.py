"""What all finite data sets share: splits, labelled subset, storage, batches, normalisation, mixup."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdrun.contracts import HIDDEN, Batch, Dataset, DatasetConfig, Draw, Mix, Shelf, Spec, Split, Units
from kdrun.data import augmentation, sampling, transfer
from kdrun.data.augmentation import boxes
from kdrun.data.inputs import CHUNK, Input, Pictures, Table, chunks, told_apart
from kdrun.data.queries import asked_in, spreads_of, with_queries
from kdrun.data.shades import BYTE
from kdrun.data.sources import Inputs, Joined, Source, contents
from kdrun.data.views import View, ViewsConfig
from kdrun.errors import DataError
from kdrun.randomness import derive, generator
from kdrun.statistics.scores import RECALL

VIEW, STRONG = "input", "strong"
"""The names of the view of a set that has one input, and of a further one of that, where it is asked for."""
TEST_SHARE = 0.3
"""Share of a set without a test split that is drawn as one."""


class HeldOutConfig(ViewsConfig):
    """Options of sets that come without a test split."""

    test: float = Field(default=TEST_SHARE, gt=0, lt=1)
    """share of the samples drawn as the test split, stratified by class"""


class Raw(NamedTuple):
    """What a set's files hold; without ``test`` inputs, a test split is drawn from ``train``.

    Inputs are pictures (N, C, H, W), uint8 or float32 in [0, 1], or tables (N, F) of finite numbers, by name where the
    set has several; labels are (N,) integers from 0. Pictures in a memory map are read from there while they are used.
    """

    train: Inputs | Mapping[str, Inputs]
    train_labels: np.ndarray
    test: Inputs | Mapping[str, Inputs] | None = None
    test_labels: np.ndarray | None = None


class Piece(NamedTuple):
    """A split as it was read: rows (N,) of each input, and their labels (N,)."""

    inputs: Mapping[str, Inputs]
    rows: np.ndarray
    labels: np.ndarray


class Some(NamedTuple):
    """What a batch is made of: positions in the split, on the CPU and on the device, labels, and stored samples."""

    order: Tensor
    positions: Tensor
    labels: Tensor
    samples: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """A split: rows (N,) of the source of each input, where they stand before any is left out, and their labels (N,).

    Those that are seen in batches are ``given``; not all are ``known`` where samples of a transfer set follow.
    """

    sources: Mapping[str, Source]
    rows: Tensor
    places: Tensor
    labels: Tensor
    given: Tensor
    known: bool = True

    def followed_by(self, unlabelled: Part) -> Part:
        """These samples and then others, which have no labels."""
        return Part(
            {name: Joined(own, unlabelled.sources[name]) for name, own in self.sources.items()},
            torch.cat([self.rows, len(next(iter(self.sources.values()))) + unlabelled.rows]),
            torch.cat([self.places, unlabelled.places]),
            torch.cat([self.labels, unlabelled.labels]),
            torch.cat([self.given, unlabelled.labels]),
            known=False,
        )

    def only(self, kept: np.ndarray) -> Part:
        """The samples at some positions, with all labels given."""
        at = torch.from_numpy(kept)
        labels = self.labels[at.to(self.labels.device)]
        return Part(self.sources, self.rows[at], self.places[at], labels, labels)

    def gather(self, order: Tensor, size: int, labels: Tensor) -> Iterator[Some]:
        """What is at some positions (N,) of the split, ``size`` at a time, with these of its labels."""
        if not len(order):
            return
        index = order.to(labels.device)
        gathered = [source.gather(self.rows[order], size) for source in self.sources.values()]
        samples = (dict(zip(self.sources, some, strict=True)) for some in zip(*gathered, strict=True))
        pieces = zip(order.split(size), index.split(size), labels[index].split(size), samples, strict=True)
        yield from map(Some._make, pieces)


class Augmented(NamedTuple):
    """How an input is augmented for a view: the parts, and what their random numbers are drawn for."""

    name: str
    parts: list[augmentation.Part]
    purpose: str


class SampleSet(Dataset):
    """A finite set of labelled samples.

    A subclass has a ``Config``, ``read``, and ``spec`` and ``samples`` of the class, or set when it is made. The spec
    says which inputs there are; what further views the config asks for is added to it.
    """

    mean: ClassVar[tuple[float, ...]] = ()
    """By what pictures are normalised, a number a channel on the scale of [0, 1], if not by the training split's."""
    std: ClassVar[tuple[float, ...]] = ()
    white: ClassVar[int] = BYTE
    """What is white where the pictures come from, whole numbers from 0 on, before they were spread to 255."""
    samples: int
    """How many samples its training files hold, before anything is held out."""
    test_share: float = 0.0
    """The share of them that is drawn as the test split; 0 where the files hold one."""
    classes: Sequence[str]
    """The names of the classes; final once the set is loaded."""

    def __init__(self, config: DatasetConfig) -> None:
        self.config = config
        self.root = Path(os.path.expanduser(config.root))  # pathlib's raises where nobody is called so
        self.test_share = getattr(config, "test", None) or 0.0
        self._known_twice: dict[str, int] = {}
        self._twins = np.empty(0, np.int64)
        self._order_of_classes: list[int] | None = None
        self._parts: dict[bool, dict[str, Part]] = {}
        """The splits as the teachers see them, and as they are given to the students."""
        if hasattr(type(self), "spec"):
            self._describe(self.spec)

    def _describe(self, spec: Spec, columns: Sequence[str] = ()) -> None:
        """Take the spec, and the names of a table's columns if they are known; others are numbers until they are.

        Raises ``DataError`` where nothing can be augmented, a view is of what the samples do not have, or the transfer
        set does not fit.
        """
        self.classes = [str(label) for label in range(spec.classes)]
        self._default, self._shape = spec.default_view, spec.shapes[spec.default_view]
        self._inputs: dict[str, Input] = {
            name: Pictures(shape, self.mean, self.std, self.white) if len(shape) == 3 else Table(shape)
            for name, shape in spec.shapes.items()
        }
        self._augmented = self._ways_to_augment()
        shapes = {view: self._inputs[way.name].shape for view, way in self._augmented.items()}
        if known := bool(columns) and not self.pictures:
            self.feature_names = columns
        for key, name, view in self._written_views():
            if name in shapes:
                raise DataError(f"{key}: there is another view of that name; choose a new one")
            shapes[name] = view.shape(key, self._shape)
            if known:
                view.places(key, told_apart(columns))
        self.spec = replace(spec, shapes=shapes, classes=self._told_apart(spec.classes))
        self._transfer = transfer.opened(self.config, [own.shape for own in self._inputs.values()])
        self._shown: Collection[str] = shapes.keys()

    def _told_apart(self, classes: int) -> int:
        """How many of so many classes are not unseen, which models tell apart."""
        known = classes - len(self.config.unseen or [])
        if self.config.unseen and known < 2:
            left = f"{max(known, 0)} of {classes} classes would be left to learn from"
            raise DataError(f"dataset.unseen: {left}; write fewer of them")
        return known

    def _ways_to_augment(self) -> dict[str, Augmented]:
        """How the inputs are augmented, all pictures alike, and the default one once more where a strong view is."""
        written: augmentation.Augmentation = getattr(self.config, "augmentation", "none")
        strong = getattr(self.config, "strong_view", None)
        self._copies = written.copies if isinstance(written, augmentation.Copies) else None
        parts = augmentation.parts(written)
        pictures = {name: len(own.shape) == 3 for name, own in self._inputs.items()}
        if parts and not any(pictures.values()):
            raise self._no_pictures("augmentation", "write `augmentation: none`")
        ways = {name: Augmented(name, parts if pictures[name] else [], "augment") for name in self._inputs}
        if strong is None:
            return ways
        if not self.pictures:
            raise self._no_pictures("strong_view", "remove it")
        return ways | {STRONG: Augmented(self._default, augmentation.parts(strong), "augment strongly")}

    def _no_pictures(self, key: str, cure: str) -> DataError:
        return DataError(
            f"dataset.{key}: the samples of '{self.config.kind}' are rows of {self._shape[0]} numbers, "
            f"and augmentation is for pictures; {cure}"
        )

    def _written_views(self) -> Iterator[tuple[str, str, View]]:
        """Key, name and options of each view that the config makes of the default one."""
        for name, view in getattr(self.config, "views", {}).items():
            yield f"dataset.views.{name}", name, view

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, those that are unseen last; in that order once the set is loaded."""
        names = [str(name) for name in self.classes]
        return names if self._order_of_classes is None else [names[label] for label in self._order_of_classes]

    @property
    def pictures(self) -> bool:
        """Whether the default input is of pictures (C, H, W) and not of a table."""
        return len(self._shape) == 3

    @property
    def feature_names(self) -> Sequence[str]:
        """The names of its columns where it is a table, none for pictures; final once the set is loaded."""
        return self._inputs[self._default].columns

    @feature_names.setter
    def feature_names(self, names: Sequence[str]) -> None:
        self._inputs[self._default].columns = names

    @abstractmethod
    def read(self) -> Raw:
        """The samples, from the files; called once. Raises ``DataError`` where they are missing or broken."""

    def identity(self) -> dict[str, Any]:
        """The config without what does not decide the samples: where they lie and how they are scored."""
        told = {"root", "metric", "views", *([] if self.config.unseen else ["unseen"])}
        written = self.config.model_dump(mode="json", exclude=told)
        if self._transfer is not None:
            written["transfer_set"] = self._transfer.identity
        views = self.config.model_dump(mode="json", include={"views"}, exclude_defaults=True)
        return views | {
            key: augmentation.shortest(value) if key in ("augmentation", "strong_view") else value
            for key, value in written.items()
        }

    def show(self, views: Collection[str]) -> None:
        """Have batches give these views and the inputs from now on; others are not made."""
        self._shown = {*self._inputs, *views}

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
        if self._transfer is not None:
            pieces["transfer"] = self._unlabelled(self._transfer, pieces)
        sources = self._sources(pieces)
        self._reductions = {
            name: self._inputs[self._default].reduction(key, view)
            for key, name, view in self._written_views()
        }
        parts = {name: self._part(sources[name], piece) for name, piece in pieces.items()}
        self._parts = {False: parts, True: self._as_given(parts)}
        self.spec = replace(self.spec, units=self.units)

    def _unlabelled(self, transfer_set: transfer.Transfer, pieces: Mapping[str, Piece]) -> Piece:
        """The transfer set; which of its samples stand in the set's own files, too, is noted."""
        columns = self._inputs[self._default].columns
        samples, count = transfer_set.read(columns, self.device, self._shelf, self._say), len(transfer_set)
        own = pieces["train"].inputs[self._default]
        kinds = {getattr(inputs, "dtype", np.uint8) == np.float32 for inputs in (samples, own)}
        if self.pictures and len(kinds) > 1:
            raise DataError(
                f"dataset.{transfer.KEY}: of it and the training set one holds pictures of bytes and the other one of "
                "floats; save both alike"
            )
        rows, self._twins = np.arange(count), np.full(count, -1)
        for split in ("train", "validation", "test"):
            others = pieces[split].inputs[self._default]
            if split == "test" or isinstance(
                others, np.ndarray
            ):  # to decode a whole training set takes its time
                found = transfer.places_among(chunks(samples, rows), chunks(others, pieces[split].rows))
                self._known_twice[split] = int((found >= 0).sum())
                self._twins = found if split == "train" else self._twins
        return Piece({self._default: samples}, rows, np.full(count, HIDDEN))

    @property
    def transfer_samples(self) -> int:
        """How many the transfer set holds."""
        return 0 if self._transfer is None else len(self._transfer)

    @property
    def shared_by_transfer_set(self) -> Mapping[str, int]:
        """How many samples of the transfer set stand in each split, too."""
        return self._known_twice

    def _sources(self, pieces: Mapping[str, Piece]) -> dict[str, dict[str, Source]]:
        """Where the samples of each split come from, by input."""
        found: dict[str, dict[str, Source]] = {split: {} for split in pieces}
        train = pieces["train"]
        for name, own in self._inputs.items():
            unique = {id(piece.inputs[name]): piece.inputs[name] for piece in pieces.values()}
            changed = any(way.parts for way in self._augmented.values() if way.name == name)
            sources = own.load(train.inputs[name], train.rows, [*unique.values()], self.device, changed)
            at = dict(zip(unique, sources, strict=True))
            for split, piece in pieces.items():
                found[split][name] = at[id(piece.inputs[name])]
        return found

    def _named(self, inputs: Inputs | Mapping[str, Inputs]) -> Mapping[str, Inputs]:
        """What was read, by input."""
        return inputs if isinstance(inputs, Mapping) else {self._default: inputs}

    def _pieces(self, raw: Raw) -> dict[str, Piece]:
        """The splits; those that are drawn share their inputs."""
        seed, labels = self.config.seed, raw.train_labels
        assert len(labels) == self.samples and (raw.test is None) == (self.test_share > 0)
        rows, test = sampling.stratified(labels, self.test_share, seed, "test")
        kept, held = sampling.stratified(labels[rows], self.config.validation, seed, "validation")
        inputs = self._named(raw.train)
        pieces = {
            "train": Piece(inputs, rows[kept], labels[rows[kept]]),
            "validation": Piece(inputs, rows[held], labels[rows[held]]),
            "test": Piece(inputs, test, labels[test]),
        }
        if raw.test is not None and raw.test_labels is not None:
            pieces["test"] = Piece(self._named(raw.test), np.arange(len(raw.test_labels)), raw.test_labels)
        if self.config.unseen:
            pieces = self._without_unseen(pieces, self.config.unseen)
        if self.config.metric == RECALL:
            _demand_neighbours(pieces, self.config)
        return pieces

    def _without_unseen(self, pieces: Mapping[str, Piece], names: Sequence[str]) -> dict[str, Piece]:
        """The splits, of which the test split has the unseen classes alone and the others all but these.

        Classes are numbered anew, the unseen ones last: a model has an output for each of the others.
        """
        unseen = sampling.classes_called(names, self.classes, "unseen")
        others = np.setdiff1d(np.arange(len(self.classes)), unseen)
        self._order_of_classes = [*others.tolist(), *unseen]
        number = np.argsort(self._order_of_classes)
        kept = {name: np.isin(piece.labels, unseen) == (name == "test") for name, piece in pieces.items()}
        return {
            name: Piece(piece.inputs, piece.rows[kept[name]], number[piece.labels[kept[name]]])
            for name, piece in pieces.items()
        }

    def _part(self, sources: Mapping[str, Source], piece: Piece) -> Part:
        """A split on the device, with all its labels given."""
        labels = torch.from_numpy(piece.labels.astype(np.int64)).to(self.device)
        return Part(sources, torch.from_numpy(piece.rows), torch.arange(len(piece.rows)), labels, labels)

    def _as_given(self, parts: dict[str, Part]) -> dict[str, Part]:
        """The splits as the students see them: without classes left out, with ``labels_per_class`` labels given.

        The transfer set follows the training set. Test samples are all there.
        """
        left_out = sampling.classes_called(self.config.leave_out or [], self.classes, "leave_out")
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
            known = self.class_names[: self.spec.classes]
            seen = sampling.labelled_subset(labels, per_class, known, left_out, self.config.seed)
            few = np.full_like(labels, HIDDEN)
            few[seen] = labels[seen]
            given["train"] = replace(given["train"], given=torch.from_numpy(few).to(self.device))
        if "transfer" in parts:
            twins = parts["train"].labels.cpu().numpy()[self._twins[self._twins >= 0]]
            self._known_twice["left out"] = int(np.isin(twins, left_out).sum())
            others = replace(parts["transfer"], places=torch.from_numpy(self._twins))
            given["train"] = given["train"].followed_by(others)
        return given

    def _hash(self, test: Piece) -> str:
        """SHA-256 of samples as they were read, before anything that depends on the training split."""
        form = (len(test.rows), *(own.shape for own in self._inputs.values()))
        digest = hashlib.sha256(str(form).encode())
        digest.update(test.labels.astype("<i8").tobytes())
        for name in self._inputs:
            for samples in chunks(test.inputs[name], test.rows):
                digest.update(samples.numpy().tobytes())
        return digest.hexdigest()

    # ------------------------------------------------------------------------------------------ batches

    def steps(self, draw: Draw) -> int:
        """Batches an epoch, at least one; the same for all draws of one batch size, of students or of teachers.

        They are as many where classes are left out, or unseen: whoever sees fewer samples sees them more often.
        """
        left = self.samples - sampling.held_out(self.samples, self.test_share)
        left -= sampling.held_out(left, self.config.validation)
        further = len(self._transfer) if self._transfer is not None and draw.given else 0
        return sampling.steps(left + further, draw.batch_size)

    def batches(self, draw: Draw, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The training batches of an epoch from step ``first`` on, augmented, on the device.

        Every batch is full. A draw of some of the samples goes on through them where the epoch before it stopped.
        ``index`` is the position in the training split as the draw sees it.
        """
        train = self._parts[draw.given]["train"]
        order = self._order(train, draw, epoch, first)
        number = epoch % self._copies if self._copies and draw.given else None
        fixed = {} if number is None else self._copy_drawn(number, len(train.rows))
        all_seen = (train.known and train.given is train.labels) or draw.labelled_only
        for step, some in enumerate(train.gather(order.flatten(), order.shape[1], train.given), start=first):
            views, mix = self._views(some, fixed, draw, "", epoch, step), None
            if draw.mixup or draw.cutmix:
                seed = derive(draw.seed, draw.purpose, "mixup", epoch, step)
                views, mix = _mixed(views, draw, seed)
            batch = Batch(views, some.labels, some.positions, mix, number or 0, all_seen)
            if draw.queries is not None:
                asked = asked_in(epoch * self.steps(draw) + step, len(batch), draw.queries)
                seed = derive(draw.seed, draw.purpose, "queries", epoch, step)
                batch = with_queries(batch, asked, draw.queries, self._spreads, seed)
            yield self._with_parts(batch)

    def _order(self, train: Part, draw: Draw, epoch: int, first: int) -> Tensor:
        """The positions (steps - first, batch) of an epoch's batches."""
        if draw.labelled_only or draw.labelled_share is not None:
            known = train.given.cpu() != HIDDEN
            some, others = known.nonzero().squeeze(1), (~known).nonzero().squeeze(1)
            if draw.labelled_only:
                return sampling.stream_order(some, draw, epoch, self.steps(draw), first)
            if len(others):
                return sampling.shared_order(some, others, draw, epoch, self.steps(draw), first)
        if self.config.unseen or (self.config.leave_out and draw.given):
            every = torch.arange(len(train.rows))
            return sampling.stream_order(every, draw, epoch, self.steps(draw), first)
        return sampling.epoch_order(len(train.rows), draw, epoch, first)

    def queries(self, draw: Draw, number: int, batch_size: int) -> Iterator[Batch]:
        """A query for each training sample of a draw, augmented, in an order of their own."""
        train, queries = self._parts[draw.given]["train"], draw.queries
        assert queries is not None
        order = torch.randperm(len(train.rows), generator=generator(draw.seed, draw.purpose, "asked", number))
        for step, some in enumerate(train.gather(order, batch_size, train.labels)):
            views = self._views(some, {}, draw, " of the asked", number, step)
            seed = derive(draw.seed, draw.purpose, "queries of a round", number, step)
            batch = Batch(views, some.labels, some.positions)
            yield self._with_parts(with_queries(batch, len(batch), queries, self._spreads, seed))

    def _views(
        self,
        some: Some,
        fixed: Mapping[str, list[augmentation.Drawn]],
        draw: Draw,
        purpose: str,
        *when: int,
    ) -> dict[str, Tensor]:
        """The inputs of some samples, and the strong view, augmented: as it is ``fixed``, or as is drawn then."""
        views = {}
        for view, way in self._augmented.items():
            if view not in self._shown:
                continue
            if view in fixed:
                drawn = _rows(fixed[view], some.order)
            else:
                what = way.purpose + purpose
                drawn = self._drawn(way, len(some.order), draw.seed, draw.purpose, what, *when)
            views[view] = self._inputs[way.name].seen(some.samples[way.name], way.parts, drawn)
        return views

    def _with_parts(self, batch: Batch) -> Batch:
        """The batch with the views that are made of its default one."""
        parts = {
            name: make(batch.views[self._default])
            for name, make in self._reductions.items()
            if name in self._shown
        }
        return replace(batch, views=batch.views | parts) if parts else batch

    def split(self, name: Split, batch_size: int = 512, given: bool = False) -> Iterator[Batch]:
        """The samples of a split in their order, not augmented, with all labels; none where it is empty."""
        part = self._parts[given][name]
        for some in part.gather(torch.arange(len(part.rows)), batch_size, part.labels):
            seen = {name: own.seen(some.samples[name]) for name, own in self._inputs.items()}
            views = {view: seen[way.name] for view, way in self._augmented.items()}
            yield self._with_parts(Batch(views, some.labels, some.positions, all_seen=part.known))

    @property
    def copied_views(self) -> Collection[str]:
        """All but the strong one, which is augmented by itself."""
        return [view for view in self.spec.shapes if view not in self._augmented or view in self._inputs]

    def copies(self, draw: Draw) -> int | None:
        """How many different passes over the training set a draw makes, the strong view left out.

        1 where nothing random happens, the number of fixed copies where there are some, and None where every
        epoch differs.
        """
        if draw.mixup or draw.cutmix or draw.queries:
            return None
        if not self._changed:
            return 1
        return self._copies if draw.given else None

    def copy(self, number: int, batch_size: int, given: bool = False) -> Iterator[Batch]:
        """The training samples in their order as they look in a copy, counted from 0, with all labels."""
        assert 0 <= number < (self._copies or 1) and self._changed == bool(self._copies), "no such copy"
        train = self._parts[given]["train"]
        fixed = self._copy_drawn(number, len(train.rows))
        for some in train.gather(torch.arange(len(train.rows)), batch_size, train.labels):
            views = {
                name: own.seen(
                    some.samples[name], self._augmented[name].parts, _rows(fixed[name], some.order)
                )
                for name, own in self._inputs.items()
            }
            yield self._with_parts(
                Batch(views, some.labels, some.positions, copy=number, all_seen=train.known)
            )

    @property
    def _changed(self) -> bool:
        """Whether inputs are augmented."""
        return any(self._augmented[name].parts for name in self._inputs)

    def _copy_drawn(self, number: int, samples: int) -> dict[str, list[augmentation.Drawn]]:
        """What the parts drew for every training sample's copy; by the set's seed, so that all runs share it."""
        return {
            name: self._drawn(self._augmented[name], samples, self.config.seed, "copy", number)
            for name in self._inputs
        }

    def _drawn(
        self, way: Augmented, samples: int, seed: int, *purpose: str | int
    ) -> list[augmentation.Drawn]:
        """What the parts draw for so many samples; to make a generator that draws nothing takes its time, too."""
        if not way.parts:
            return []
        _, height, width = self._inputs[way.name].shape
        return augmentation.draw(way.parts, samples, (height, width), generator(seed, *purpose))

    @cached_property
    def _spreads(self) -> dict[str, Tensor]:
        return spreads_of(self.split("train"))

    def units(self, view: str) -> Units:
        """What the numbers of a view are called and how they are measured: a table's columns, or pixels."""
        if view in self._reductions:
            return self._reductions[view].units(self.units(self._default))
        return self._inputs[self._augmented[view].name].units()

    def labels(self, name: Split, given: bool = False) -> np.ndarray:
        """The labels of a split (N,) int64; with ``given``, as the students see them.

        Only training labels are ever hidden: held-out samples are there to be scored.
        """
        return self._parts[given][name].given.cpu().numpy().copy()

    def places(self, given: bool = False) -> np.ndarray:
        """Where in the training set the samples stand that its teachers see, or its students (N,) int64.

        -1 for those of a transfer set that do not stand there.
        """
        return self._parts[given]["train"].places.numpy()

    def test_hash(self) -> str:
        """SHA-256 of the test inputs as they were read, and of their labels."""
        return self._test_hash

    def train_hash(self, given: bool = False) -> str:
        """SHA-256 of the training inputs as they are kept, or of what tells files apart that are read while used."""
        part, digest = self._parts[given]["train"], hashlib.sha256()
        for source in part.sources.values():
            for told in contents(source, part.rows, CHUNK):
                digest.update(told)
        return digest.hexdigest()


def _demand_neighbours(pieces: Mapping[str, Piece], config: DatasetConfig) -> None:
    """Raise ``DataError`` where a split that is to be scored has no two samples, of which one could be found."""
    for name in ("validation", "test") if config.validation else ("test",):
        if (count := len(pieces[name].rows)) < 2:
            raise DataError(
                f"dataset.metric: {RECALL} looks for each sample's nearest other one, and the {name} split has "
                f"{count}; hold out more samples"
            )


def _rows(drawn: Sequence[augmentation.Drawn], rows: Tensor) -> list[augmentation.Drawn]:
    """What was drawn for some of the samples."""
    return [tuple(numbers[rows] for numbers in one) for one in drawn]


def _mixed(views: Mapping[str, Tensor], draw: Draw, seed: int) -> tuple[dict[str, Tensor], Mix]:
    """Each sample mixed with a partner in the batch, by mixup or cutmix.

    The box that is cut out of the first view, a picture, is in its place in others, whatever their size; rows of tables
    are mixed by its share.
    """
    numbers, first = np.random.default_rng(seed), next(iter(views.values()))
    partner = torch.from_numpy(numbers.permutation(len(first))).to(first.device)
    cuts = bool(draw.cutmix) and (not draw.mixup or numbers.random() < 0.5)
    alpha = draw.cutmix if cuts else draw.mixup
    share = torch.from_numpy(numbers.beta(alpha, alpha, len(first)).astype(np.float32)).to(first.device)
    box: list[Tensor] = []
    if cuts:
        box = [_box_side(length, share, numbers) for length in first.shape[2:]]
        rows, columns = box
        share = (1 - boxes(rows, columns)).mean(dim=(1, 2, 3))

    def mixed(x: Tensor) -> Tensor:
        own = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
        others = own.index_select(0, partner)
        if cuts and x.ndim == 4:
            rows, columns = (_stretched(side, length) for side, length in zip(box, x.shape[2:], strict=True))
            both = own.lerp(others, boxes(rows, columns, x.shape[1]))
        else:
            part = share.view(-1, *[1] * (own.ndim - 1))
            both = part * own + (1 - part) * others
        return both.permute(0, 3, 1, 2) if x.ndim == 4 else both

    return {view: mixed(x) for view, x in views.items()}, Mix(partner, share)


def _stretched(side: Tensor, length: int) -> Tensor:
    """Which rows or columns (B, length) lie where those are that are marked (B, …)."""
    return side[:, torch.arange(length, device=side.device) * side.shape[1] // length]


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
