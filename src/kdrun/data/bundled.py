"""The small sets that come with scikit-learn: no files, no network, seconds to train on."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from kdrun.contracts import Spec
from kdrun.data.augmentation import PictureConfig
from kdrun.data.base import VIEW, HeldOutConfig, Raw, SampleSet
from kdrun.data.shades import spread

FILE = Path("datasets", "data", "digits.csv.gz")
"""The file of the digits in scikit-learn's folder."""


class Bundled(SampleSet):
    """A table of scikit-learn's; ``loader`` is its function in ``sklearn.datasets``."""

    loader: ClassVar[str]

    def read(self) -> Raw:
        """The table, without a test split."""
        bunch = self._bunch()
        self.feature_names = [str(name) for name in bunch.feature_names]
        return Raw(bunch.data, bunch.target)

    def _bunch(self) -> Any:
        """What the loader gives, after its class names were taken over."""
        from sklearn import datasets

        bunch = getattr(datasets, self.loader)()
        self.classes = [str(name) for name in bunch.target_names]
        return bunch


class Digits(Bundled):
    """1,797 handwritten digits of 8×8 pixels in 17 shades.

    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", 1998.
    """

    class Config(HeldOutConfig, PictureConfig):
        """Options of `digits`."""

        kind: Literal["digits"]

    spec = Spec({VIEW: (1, 8, 8)}, 10)
    samples = 1797
    white = 16
    loader = "load_digits"

    def read(self) -> Raw:
        """The pictures, their shades spread over 0 to 255."""
        rows = self._rows()
        shades, labels = rows[:, :-1].reshape(-1, *self.spec.shapes[VIEW]), rows[:, -1].astype(np.int64)
        return Raw(spread(shades, self.white).astype(np.uint8), labels)

    def _rows(self) -> np.ndarray:
        """Shades and label of each digit, (N, 65): from the file itself, for scikit-learn takes its time to load."""
        package = find_spec("sklearn")
        file = Path(package.origin or "").parent / FILE if package else None
        if file is not None and file.is_file():
            with gzip.open(file, "rt") as text:
                return np.loadtxt(text, delimiter=",")
        bunch = self._bunch()
        return np.concatenate([bunch.data, bunch.target[:, None]], axis=1)


class Iris(Bundled):
    """150 irises of three species by four lengths in cm. Fisher, 1936."""

    class Config(HeldOutConfig):
        """Options of `iris`."""

        kind: Literal["iris"]

    spec = Spec({VIEW: (4,)}, 3)
    samples = 150
    loader = "load_iris"


class Wine(Bundled):
    """178 wines of three growers by 13 chemical figures. Aeberhard and Forina, 1992."""

    class Config(HeldOutConfig):
        """Options of `wine`."""

        kind: Literal["wine"]

    spec = Spec({VIEW: (13,)}, 3)
    samples = 178
    loader = "load_wine"


class BreastCancer(Bundled):
    """569 tumours, malignant or benign, by 30 figures of their cells. Wolberg, Street and Mangasarian, 1993."""

    class Config(HeldOutConfig):
        """Options of `breast_cancer`."""

        kind: Literal["breast_cancer"]

    spec = Spec({VIEW: (30,)}, 2)
    samples = 569
    loader = "load_breast_cancer"
