"""The classic sets of pictures, by torchvision's loaders: read from ``root``, or downloaded into it."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

import numpy as np

from kdrun.contracts import Spec
from kdrun.data.augmentation import Augmentation, PictureConfig
from kdrun.data.base import VIEW, Raw, SampleSet
from kdrun.errors import DataError, shown
from kdrun.machine import raise_lack, told_size

TIMEOUT = 30.0
"""Seconds that a download waits for a server that says nothing."""
LARGEST = 200_000_000
"""Bytes that none of these sets' files has."""


class Torchvision(SampleSet):
    """A set of torchvision's; ``loader`` is its class there and ``files`` where it looks, below ``root``."""

    loader: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    older: ClassVar[tuple[str, ...]] = ()
    """What torchvision reads instead, where all of it is there."""
    named: ClassVar[bool] = True
    """Whether torchvision knows better names for the classes than numbers."""

    @property
    def at_hand(self) -> bool:
        """Whether all files are there."""
        return all((self.root / file).is_file() for file in self.files)

    def read(self) -> Raw:
        """The pictures as (N, C, H, W) uint8; downloads them first where files are missing.

        Raises ``DataError`` where the download fails or the files are damaged.
        """
        if not self.at_hand:
            self._download()
        try:
            self._demand_modest()
            parts = [self._open(train) for train in (True, False)]
            arrays = [self._arrays(part) for part in parts]
            self._demand_fitting(arrays)
        except Exception as error:  # what a damaged file raises depends on where it is damaged
            raise_lack(error)
            raise DataError(
                f"dataset '{self.config.kind}': the files under {self.root} are damaged ({_short(error)}); "
                f"delete them to download them again: {self._places(self._found)}"
            ) from error
        if self.named:
            self.classes = list(parts[0].classes)
        return Raw(*arrays[0], *arrays[1])

    @property
    def _found(self) -> list[str]:
        """All files that are there, in the older form, too."""
        return [file for file in (*self.files, *self.older) if (self.root / file).is_file()]

    def _demand_modest(self) -> None:
        """Raise ``ValueError`` for a file that nobody should begin to read, perhaps with nothing but a hole in it."""
        for file in self._found:
            size = (self.root / file).stat().st_size
            if size > LARGEST:
                raise ValueError(f"{file} is {told_size(size)} long")

    def _demand_fitting(self, parts: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Raise ``ValueError`` where files are well formed, and hold something else."""
        for pictures, labels in parts:
            known = set(range(len(self.classes))).issuperset(np.unique(labels).tolist())
            if (
                pictures.shape != (len(labels), *self.spec.shapes[VIEW])
                or pictures.dtype != np.uint8
                or not known
            ):
                raise ValueError(
                    f"they hold {pictures.dtype} {list(pictures.shape)} with {len(labels)} labels up to {labels.max()}"
                )
        if len(parts[0][1]) != self.samples:
            raise ValueError(
                f"they hold {len(parts[0][1]):,} training samples, and should hold {self.samples:,}"
            )

    def _open(self, train: bool, download: bool = False) -> Any:
        from torchvision import datasets

        return getattr(datasets, self.loader)(self.root, train=train, download=download)

    def _download(self) -> None:
        try:
            with contextlib.redirect_stdout(sys.stderr), _timeout(TIMEOUT):
                for train in (True, False):
                    self._open(train, download=True)
        except Exception as error:
            raise_lack(error)
            raise DataError(
                f"dataset '{self.config.kind}': not all of its files are under {self.root}, and the download "
                f"failed ({_short(error)}); with a network, run it again; without one, put the files there: "
                f"{self._places(self.files)}"
            ) from error

    def _places(self, files: Iterable[str]) -> str:
        return ", ".join(str(self.root / file) for file in files)

    def _arrays(self, part: Any) -> tuple[np.ndarray, np.ndarray]:
        """Pictures (N, C, H, W) and labels (N,) of a loader that keeps (N, H, W, C)."""
        return part.data.transpose(0, 3, 1, 2), np.asarray(part.targets)


class Mnist(Torchvision):
    """70,000 handwritten digits of 28×28 pixels.

    LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998.
    """

    class Config(PictureConfig):
        """Options of `mnist`."""

        kind: Literal["mnist"]

    spec = Spec({VIEW: (1, 28, 28)}, 10)
    mean, std = (0.1307,), (0.3081,)
    samples = 60_000
    loader = "MNIST"
    files = tuple(
        f"MNIST/raw/{part}-{what}-ubyte"
        for part in ("train", "t10k")
        for what in ("images-idx3", "labels-idx1")
    )
    older = tuple(f"MNIST/processed/{part}.pt" for part in ("training", "test"))
    named = False

    def _arrays(self, part: Any) -> tuple[np.ndarray, np.ndarray]:
        return part.data.numpy()[:, None], part.targets.numpy()


class FashionMnist(Mnist):
    """70,000 pieces of clothing of 28×28 pixels.

    Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
    2017.
    """

    class Config(PictureConfig):
        """Options of `fashion-mnist`."""

        kind: Literal["fashion-mnist"]

    spec = Spec({VIEW: (1, 28, 28)}, 10)
    mean, std = (0.2860,), (0.3530,)
    samples = 60_000
    loader = "FashionMNIST"
    files = tuple(file.replace("MNIST/", "FashionMNIST/") for file in Mnist.files)
    older = tuple(file.replace("MNIST/", "FashionMNIST/") for file in Mnist.older)
    named = True


class CifarConfig(PictureConfig):
    """Options of the CIFAR sets."""

    augmentation: Augmentation = "standard"
    """as for every set of pictures; `standard` is what nearly all published figures on CIFAR stand on"""


class Cifar10(Torchvision):
    """60,000 pictures of 32×32 pixels in ten classes.

    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """

    class Config(CifarConfig):
        """Options of `cifar10`."""

        kind: Literal["cifar10"]

    spec = Spec({VIEW: (3, 32, 32)}, 10)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    samples = 50_000
    loader = "CIFAR10"
    files = tuple(
        f"cifar-10-batches-py/{name}"
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    )


class Cifar100(Torchvision):
    """60,000 pictures of 32×32 pixels in a hundred classes.

    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; normalised as in Tian, Krishnan and
    Isola, "Contrastive Representation Distillation", 2020, and the work that compares itself with it.
    """

    class Config(CifarConfig):
        """Options of `cifar100`."""

        kind: Literal["cifar100"]

    spec = Spec({VIEW: (3, 32, 32)}, 100)
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    samples = 50_000
    loader = "CIFAR100"
    files = tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta"))


class Svhn(Torchvision):
    """99,289 house numbers' digits of 32×32 pixels, without the 531,131 extra ones.

    Netzer, Wang, Coates, Bissacco, Wu and Ng, "Reading Digits in Natural Images with Unsupervised Feature
    Learning", 2011.
    """

    class Config(PictureConfig):
        """Options of `svhn`."""

        kind: Literal["svhn"]

    spec = Spec({VIEW: (3, 32, 32)}, 10)
    mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    samples = 73_257
    loader = "SVHN"
    files = ("train_32x32.mat", "test_32x32.mat")
    named = False

    def _open(self, train: bool, download: bool = False) -> Any:
        from torchvision import datasets

        return datasets.SVHN(self.root, split="train" if train else "test", download=download)

    def _arrays(self, part: Any) -> tuple[np.ndarray, np.ndarray]:
        return part.data, part.labels


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """New connections give up after some seconds of silence; torchvision's own never do."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _short(error: Exception) -> str:
    """The last line of an error's message, where the cause stands, or its name."""
    return shown((str(error).strip().splitlines() or [type(error).__name__])[-1], 300)
