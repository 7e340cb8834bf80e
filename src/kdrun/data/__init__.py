"""Data sets: each is one small class that says what its samples are; ``base`` does the rest.

Importing this package registers every kind.
"""

from kdrun.data import bundled, gym, gyms, own, synthetic, vision
from kdrun.data.augmentation import PictureConfig
from kdrun.data.base import HeldOutConfig, Raw, SampleSet

__all__ = [
    "HeldOutConfig",
    "PictureConfig",
    "Raw",
    "SampleSet",
    "bundled",
    "gym",
    "gyms",
    "own",
    "synthetic",
    "vision",
]
