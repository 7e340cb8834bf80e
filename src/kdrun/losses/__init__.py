"""The losses, by family; importing this package registers them."""

from kdrun.losses.features import AttentionTransfer, Hint
from kdrun.losses.labels import CrossEntropy
from kdrun.losses.logits import HardTargets, LogitMSE, SoftTargets
from kdrun.losses.relations import RelationalKD, SimilarityPreserving

__all__ = [
    "AttentionTransfer",
    "CrossEntropy",
    "HardTargets",
    "Hint",
    "LogitMSE",
    "RelationalKD",
    "SimilarityPreserving",
    "SoftTargets",
]
