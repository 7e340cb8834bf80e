"""What all finite data sets share: splits, labelled subset, storage, batches, normalisation, mixup."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader

from kdrun.contracts import HIDDEN, Batch, Dataset, DatasetConfig, Draw, Mix, Spec, Split
from kdrun.data import augmentation, sampling
from kdrun.errors import DataError
from kdrun.randomness import derive, generator

VIEW, STRONG = "input", "strong"
"""The names of the view that these sets offer, and of the further one where it is asked for."""
TEST_SHARE = 0.3
"""Share of a set without a test split that is drawn as one."""
WORKERS = min(8, os.cpu_count() or 1)
"""Processes that decode pictures for a set that is too large for memory."""
CHUNK = 256
"""Samples that a pass over a whole split looks at in one piece."""


class HeldOutConfig(DatasetConfig):
    """Options of sets that come without a test split."""

    test: float = Field(default=TEST_SHARE, gt=0, lt=1)
    """share of the samples drawn as the test split, stratified by class"""


class Pictures(Protocol):
    """Pictures that are decoded one at a time, when they are wanted."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> np.ndarray:
        """A picture, uint8 (C, H, W)."""
        ...


Inputs = np.ndarray | Pictures


class Raw(NamedTuple):
    """What a set's files hold; without ``test`` inputs, a test split is drawn from ``train``.

    Inputs are pictures (N, C, H, W), uint8 or float32 in [0, 1], or tables (N, F) of finite numbers; labels are
    (N,) integers from 0.
    """

    train: Inputs
    train_labels: np.ndarray
    test: Inputs | None = None
    test_labels: np.ndarray | None = None


class Stored:
    """Samples as one tensor on the device."""

    def __init__(self, samples: np.ndarray, device: torch.device) -> None:
        self._samples = torch.from_numpy(np.require(samples, requirements=["C", "W"])).to(device)

    def gather(self, order: Iterable[Tensor]) -> Iterator[Tensor]:
        """The samples at the positions of each batch, as they are stored."""
        for rows in order:
            yield self._samples.index_select(0, rows.to(self._samples.device))


class Streamed:
    """Samples that are decoded by worker processes while they are used."""

    def __init__(self, pictures: Pictures, device: torch.device) -> None:
        self._pictures, self._device = pictures, device

    def gather(self, order: Iterable[Tensor]) -> Iterator[Tensor]:
        """The samples at the positions of each batch, as they are stored.

        Raises ``DataError`` where a file has vanished or changed since it was checked.
        """
        loader: DataLoader[Tensor] = DataLoader(
            self._pictures,  # type: ignore[arg-type]  # anything with these two methods will do
            batch_sampler=[rows.tolist() for rows in order],
            num_workers=WORKERS,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # its own, or it draws from the global one
        )
        try:
            for pictures in loader:
                yield pictures.to(self._device, non_blocking=True)
        except DataError as error:  # its text ends with the worker's own error
            error.__traceback__ = None  # it would keep the workers alive until they are killed, seconds later
            raise DataError(str(error).rsplit("DataError: ", 1)[-1].strip()) from None


def source(inputs: Inputs, device: torch.device) -> Stored | Streamed:
    """Arrays are kept on the device, anything else is streamed."""
    return Stored(inputs, device) if isinstance(inputs, np.ndarray) else Streamed(inputs, device)


class Piece(NamedTuple):
    """A split as it was read: rows (N,) of the inputs, and their labels (N,)."""

    inputs: Inputs
    rows: np.ndarray
    labels: np.ndarray

    def chunks(self) -> Iterator[Tensor]:
        """The samples in their order, some at a time, on the CPU."""
        return source(self.inputs, torch.device("cpu")).gather(torch.from_numpy(self.rows).split(CHUNK))


@dataclass(frozen=True, slots=True)
class Part:
    """A split: rows (N,) of a source, and their labels (N,), all and as the students see them."""

    source: Stored | Streamed
    rows: Tensor
    labels: Tensor
    given: Tensor

    def gather(self, order: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The position in the split and the stored samples of each batch, on the device."""
        order = list(order)
        for index, samples in zip(order, self.source.gather(self.rows[i] for i in order), strict=True):
            yield index.to(self.labels.device), samples


class SampleSet(Dataset):
    """A finite set of labelled samples.

    A subclass has a ``Config``, ``read``, and ``spec`` and ``samples`` of the class, or set when it is made.
    Pictures are normalised by ``mean`` and ``std``, one number a channel on the scale of [0, 1], or where a set
    has none by those of its training split; tables are standardised by the training split's, constant columns
    are 0.
    """

    mean: ClassVar[tuple[float, ...]] = ()
    std: ClassVar[tuple[float, ...]] = ()
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
        self.root = config.root.expanduser()
        self.test_share = getattr(config, "test", None) or 0.0
        self._parts: dict[Split, Part] = {}
        if hasattr(type(self), "spec"):
            self._describe(self.spec)

    def _describe(self, spec: Spec) -> None:
        """Take the spec, with names for classes and columns until better ones are known.

        Raises ``DataError`` where a table is to be augmented.
        """
        self.spec = spec
        self._shape = spec.shapes[VIEW]
        self._augmentations = {VIEW: augmentation.parts(getattr(self.config, "augmentation", "none"))}
        if (strong := getattr(self.config, "strong_view", None)) is not None:
            self._augmentations[STRONG] = augmentation.parts(strong)
            self.spec = replace(spec, shapes={VIEW: self._shape, STRONG: self._shape})
        if not self.pictures and (len(self._augmentations) > 1 or self._augmentations[VIEW]):
            written = bool(self._augmentations[VIEW])
            key, cure = (
                ("augmentation", "write `augmentation: none`") if written else ("strong_view", "remove it")
            )
            raise DataError(
                f"dataset.{key}: the samples of '{self.config.kind}' are rows of {self._shape[0]} numbers, "
                f"and augmentation is for pictures; {cure}"
            )
        self.classes = [str(label) for label in range(spec.classes)]
        self.feature_names = [] if self.pictures else [f"x{i}" for i in range(self._shape[0])]

    @property
    def pictures(self) -> bool:
        """Whether the samples are pictures (C, H, W) and not rows of a table."""
        return len(self._shape) == 3

    @abstractmethod
    def read(self) -> Raw:
        """The samples, from the files; called once. Raises ``DataError`` where they are missing or broken."""

    def identity(self) -> dict[str, Any]:
        """The config without what does not decide the samples: where they lie and how they are scored."""
        return self.config.model_dump(mode="json", exclude={"root", "metric"})

    # ------------------------------------------------------------------------------------------ loading

    def load(self, device: torch.device) -> None:
        """Read the samples, draw the splits and put everything on the device; later calls do nothing.

        Raises ``DataError`` where files are missing or broken, or a class has too few samples.
        """
        if self._parts:
            return
        self.device = device
        pieces = self._pieces(self.read())
        self._test_hash = self._hash(pieces["test"])
        if self.pictures:
            self._normaliser = self._picture_statistics(pieces["train"])
        else:
            pieces = self._standardised(pieces)
        unique = {id(piece.inputs): piece.inputs for piece in pieces.values()}
        sources = {key: source(inputs, device) for key, inputs in unique.items()}
        parts = {name: self._part(sources[id(piece.inputs)], piece) for name, piece in pieces.items()}
        parts["train"], self._labelled = self._with_hidden_labels(parts["train"])
        self._parts = parts

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

    def _part(self, samples: Stored | Streamed, piece: Piece) -> Part:
        """A split on the device, with all its labels given."""
        labels = torch.from_numpy(piece.labels.astype(np.int64)).to(self.device)
        return Part(samples, torch.from_numpy(piece.rows), labels, labels)

    def _with_hidden_labels(self, train: Part) -> tuple[Part, Tensor]:
        """The training split with ``labels_per_class`` labels given, or all, and the positions of those."""
        if self.config.labels_per_class is None:
            return train, torch.arange(len(train.rows))
        labels, per_class = train.labels.cpu().numpy(), self.config.labels_per_class
        seen = sampling.labelled_subset(labels, per_class, self.classes, self.config.seed)
        given = np.full_like(labels, HIDDEN)
        given[seen] = labels[seen]
        return replace(train, given=torch.from_numpy(given).to(self.device)), torch.from_numpy(seen)

    def _picture_statistics(self, train: Piece) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, (C, 1, 1)."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        if not self.mean:
            total = torch.zeros(2, self._shape[0], dtype=torch.float64)
            for samples in train.chunks():
                values = unit(samples).double()
                total += torch.stack([values.mean((2, 3)).sum(0), values.square().mean((2, 3)).sum(0)])
            mean, square = total / len(train.rows)
            std = (square - mean.square()).clamp(min=0).sqrt()
            std[std < 1e-6] = 1  # a channel of one colour
        mean, std = (figures.float().view(-1, 1, 1).to(self.device) for figures in (mean, std))
        return mean, std

    def _standardised(self, pieces: dict[Split, Piece]) -> dict[Split, Piece]:
        """Tables by the training split's mean and std, reckoned in float64 and kept in float32."""
        train = np.asarray(pieces["train"].inputs, np.float64)[pieces["train"].rows]
        varies = train.max(0) > train.min(0)  # rounding gives a constant column a tiny std
        scale = np.divide(1, train.std(0), out=np.zeros(train.shape[1]), where=varies)
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
        """Batches an epoch, at least one; the same for every draw of one batch size, and known before loading."""
        left = self.samples - sampling.held_out(self.samples, self.test_share)
        return sampling.steps(left - sampling.held_out(left, self.config.validation), draw.batch_size)

    def batches(self, draw: Draw, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The training batches of an epoch from step ``first`` on, augmented, on the device.

        Every batch is full. A draw of ``labelled_only`` goes on through its samples where the epoch before it
        stopped. ``index`` is the position in the training split.
        """
        train = self._parts["train"]
        if draw.labelled_only:
            order = sampling.stream_order(self._labelled, draw, epoch, self.steps(draw), first)
        else:
            order = sampling.epoch_order(len(train.rows), draw, epoch, first)
        labels = train.labels if draw.labels == "all" else train.given
        for step, (index, samples) in enumerate(train.gather(order), start=first):
            views, mix = {}, None
            for view in self._augmentations:
                purpose = {VIEW: "augment", STRONG: "augment strongly"}[view]
                x = self._inputs(samples, view, generator(draw.seed, draw.purpose, purpose, epoch, step))
                views[view], mix = _mixed(x, draw, derive(draw.seed, draw.purpose, "mixup", epoch, step))
            yield Batch(views, labels[index], index, mix)

    def split(self, name: Split, batch_size: int = 512) -> Iterator[Batch]:
        """The samples of a split in their order, not augmented, with all labels; none where it is empty."""
        part = self._parts[name]
        if not len(part.rows):
            return
        for index, samples in part.gather(torch.arange(len(part.rows)).split(batch_size)):
            x = self._inputs(samples)
            yield Batch(dict.fromkeys(self._augmentations, x), part.labels[index], index)

    def labels(self, name: Split, given: bool = False) -> np.ndarray:
        """The labels of a split (N,) int64; with ``given``, as the students see them.

        Only training labels are ever hidden: held-out samples are there to be scored.
        """
        part = self._parts[name]
        return (part.given if given else part.labels).cpu().numpy().copy()

    def test_hash(self) -> str:
        """SHA-256 of the test inputs as they were read, and of their labels."""
        return self._test_hash

    def _inputs(self, samples: Tensor, view: str = VIEW, draw: torch.Generator | None = None) -> Tensor:
        """Stored samples as a network sees them, augmented where there is a ``draw``."""
        if not self.pictures:
            return samples
        mean, std = self._normaliser
        x = unit(samples)
        if draw is not None:
            for part in self._augmentations[view]:
                x = part.apply(x, mean, draw)
        return (x - mean).div_(std)


def unit(pictures: Tensor) -> Tensor:
    """Pictures, uint8 or float32, as float32 in [0, 1]."""
    return pictures.float().div_(255) if pictures.dtype == torch.uint8 else pictures


def _mixed(x: Tensor, draw: Draw, seed: int) -> tuple[Tensor, Mix | None]:
    """Each sample mixed with a partner in the batch, by mixup or cutmix; without an α all stays as it is."""
    if not draw.mixup and not draw.cutmix:
        return x, None
    numbers = np.random.default_rng(seed)
    partner = torch.from_numpy(numbers.permutation(len(x))).to(x.device)
    cuts = bool(draw.cutmix) and (not draw.mixup or numbers.random() < 0.5)
    alpha = draw.cutmix if cuts else draw.mixup
    share = torch.from_numpy(numbers.beta(alpha, alpha, len(x)).astype(np.float32)).to(x.device)
    if cuts:
        own = _outside_a_box(x, share, numbers)
        share = own.float().mean(dim=(1, 2, 3))
        return torch.where(own, x, x[partner]), Mix(partner, share)
    part = share.view(-1, *[1] * (x.ndim - 1))
    return part * x + (1 - part) * x[partner], Mix(partner, share)


def _outside_a_box(pictures: Tensor, share: Tensor, numbers: np.random.Generator) -> Tensor:
    """Which places stay a picture's own, (B, 1, H, W), when a box of the rest's area and form is cut out.

    Its centre is anywhere in the picture, and what reaches over the border is lost: Yun et al., "CutMix:
    Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019, with a box for each picture
    where they draw one for the batch.
    """
    inside = []
    for length in pictures.shape[2:]:
        half = (length * (1 - share).sqrt()).int() // 2
        centre = torch.from_numpy(numbers.integers(length, size=len(share))).to(share.device)
        places = torch.arange(length, device=share.device)
        inside.append((places >= (centre - half)[:, None]) & (places < (centre + half)[:, None]))
    return ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])
