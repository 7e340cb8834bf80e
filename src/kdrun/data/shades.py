"""The units of pictures: from shades as they were measured to what a model sees, to the bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdrun.contracts import Units

BYTE = 255
"""White, in bytes."""


def spread(shades: np.ndarray, white: int) -> np.ndarray:
    """Whole numbers from 0 to ``white`` as bytes, in float64."""
    return np.rint(shades * (BYTE / white))


@dataclass(frozen=True)
class Shades(Units):
    """Those of pictures, whose ``offset`` and ``scale`` are of values in [0, 1].

    ``white`` is what is 1 there, for pictures of whole numbers that were spread to bytes; None for such that are
    floats.
    """

    white: int | None

    def seen(self, raw: np.ndarray, of: int) -> np.ndarray:
        """Shades of one of the numbers as a model sees them, float32."""
        values = np.asarray(raw, np.float64)
        if self.white is not None:
            values = self._between_levels(values, *self._levels)
        values = values.astype(np.float32)
        if self.white is not None:
            values = values / np.float32(BYTE)
        seen: np.ndarray = (values - np.float32(self.offset[of])) / np.float32(1 / self.scale[of])
        return seen

    def raw(self, seen: np.ndarray, of: int) -> np.ndarray:
        """Values of one of the numbers as shades, of such as a model sees; up to rounding."""
        values = super().raw(seen, of)
        if self.white is None:
            return values
        raw, stored = self._levels
        return self._between_levels(values * BYTE, stored, raw)

    @property
    def _levels(self) -> tuple[np.ndarray, np.ndarray]:
        """All shades, as they were measured and as bytes."""
        assert self.white is not None
        raw = np.arange(self.white + 1, dtype=np.float64)
        return raw, spread(raw, self.white)

    @staticmethod
    def _between_levels(values: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Values on one scale, on the other: a straight line between two levels, and beyond them all."""
        outside = (values < own[0]) | (values > own[-1])
        return np.where(outside, values * (other[-1] / own[-1]), np.interp(values, own, other))
