"""Losses on distances between embeddings, for networks whose embeddings are compared: metric learning."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrun.contracts import HIDDEN, Batch, Context, Loss, LossConfig, Outputs, Published, Taps
from kdrun.losses.base import LayerConfig, LayerLoss
from kdrun.losses.labels import or_one
from kdrun.losses.matching import chosen_layer
from kdrun.losses.numerics import distances, exact, full, unit
from kdrun.taps import LayerTable

TEACHERS = "Yu, Yazici, Liu, van de Weijer, Cheng, Ramisa, Learning Metrics from Teachers: Compact Networks for Image "
TEACHERS += (
    "Embedding, 2019; weight for CUB-200-2011 from the authors' code, there beside a triplet loss and not ce"
)


class DistanceConfig(LayerConfig):
    """Options of every loss on distances between embeddings."""

    normalized: bool = True
    """divide each vector by its length first, as where embeddings are compared by their cosine"""


class AbsoluteTeacher(LayerLoss):
    """Absolute teacher: mean over the batch of ‖s − t‖₂.

    Taps one layer of each, flattened to (B, ·), the embedding by default. Where the widths differ the student's goes
    through a linear layer to the teacher's. Vectors have length 1 if `normalized`. Between 0 and 2 then, else ≥ 0.

    Source: Yu, Yazici, Liu, van de Weijer, Cheng, Ramisa, "Learning Metrics from Teachers: Compact Networks for Image
    Embedding", 2019.
    Trap: a distance and not its square: its gradient is as large close to the teacher as far from it. The authors'
    student and teacher have embeddings of one width, of length 1. The linear layer is not exported: with it distances
    between the student's own embeddings need not be those between the teacher's.
    """

    class Config(DistanceConfig):
        """Options of ``absolute``."""

        kind: Literal["absolute"]

    config: Config
    published = {
        "absolute": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "absolute", "weight": 1}], source=TEACHERS
        )
    }

    def build(self, context: Context) -> None:
        """Make the linear layer, where it is needed."""
        (ours,), (theirs,) = self.shapes(context)
        if ours != theirs:
            self.adapter = nn.Linear(ours, theirs)

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The mean distance; its gradient is 0 where a student's vector is its teacher's."""
        if self.config.normalized:
            student, teacher = unit(student), unit(teacher)
        return torch.linalg.vector_norm(student - teacher, dim=1).mean()


class RelativeTeacher(LayerLoss):
    """Relative teacher: mean over all pairs of samples of |d_s − d_t|, d the Euclidean distances in each network.

    mode code: the root of the sum over B² of (d_s − d_t)². Taps one layer of each, flattened to (B, ·), the embedding
    by default, of any widths. Vectors have length 1 if `normalized`. A batch of one has no pairs and gives 0.

    Source: Yu, Yazici, Liu, van de Weijer, Cheng, Ramisa, "Learning Metrics from Teachers: Compact Networks for Image
    Embedding", 2019.
    Trap: mode code grows with the batch, as B does; the published weight is for it and batches of 32. Distances are not
    divided by their mean, which `rkd` does: the student has to have the teacher's scale, or both length 1.
    """

    class Config(DistanceConfig):
        """Options of ``relative``."""

        kind: Literal["relative"]
        mode: Literal["paper", "code"] = "paper"
        """paper: a mean over pairs; code: the norm of all differences, which the published weight is made for"""

    config: Config
    published = {
        "relative": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "relative", "weight": 0.3, "mode": "code"}],
            source=TEACHERS,
        )
    }

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The mean, or the norm; its gradient is 0 where all distances are the teacher's."""
        if self.config.normalized:
            student, teacher = unit(student), unit(teacher)
        apart = distances(student) - distances(teacher)
        if self.config.mode == "code":
            return torch.linalg.vector_norm(apart)
        return apart.abs().sum() / max(1, len(apart) * (len(apart) - 1))


class Triplet(Loss):
    """Triplet loss on the hardest samples of a batch: mean over anchors of max(0, margin + d⁺ − d⁻).

    d⁺ is the largest Euclidean distance between an anchor and another sample of its class, d⁻ the least between it and
    a sample of another class. Taps one layer of the student, flattened to (B, ·), the embedding by default. Vectors
    have length 1 if `normalized`. Anchors are the labelled samples of which the batch has a labelled one of their class
    and one of another; without any it gives 0. Under mixup a sample is of the class of its larger share.

    Source: Schroff, Kalenichenko, Philbin, "FaceNet: A Unified Embedding for Face Recognition and Clustering", 2015;
    the hardest of a batch: Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017.
    Trap: FaceNet's distances are squared, and its margin of 0.2 is for these. A batch of many classes has few pairs of
    one: take larger batches there. Alone it can bring all embeddings together, at the margin; `ce` beside it cannot.
    """

    needs_teacher = False
    on_logits = False

    class Config(LossConfig):
        """Options of ``triplet``."""

        kind: Literal["triplet"]
        margin: float = Field(default=0.2, ge=0)
        """how much farther a sample of another class is to be"""
        normalized: bool = True
        """divide each vector by its length first, as where embeddings are compared by their cosine"""
        student_layer: str | None = None
        """the student's layer; the embedding where nothing is said"""

    config: Config
    published = {
        "triplet": Published(
            losses=[
                {"kind": "ce", "weight": 1},
                {"kind": "triplet", "weight": 1, "margin": 0.3, "normalized": False},
            ],
            source="Hermans, Beyer, Leibe, In Defense of the Triplet Loss for Person Re-Identification, 2017; beside "
            "ce with this margin: Luo, Gu, Liao, Lai, Jiang, Bag of Tricks and a Strong Baseline for Deep Person "
            "Re-Identification, 2019",
        )
    }

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """The student's layer."""
        self.layer = chosen_layer(student, self.config.student_layer, student.pooled, "student_layer")
        return Taps((self.layer,))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The mean, ≥ 0; 0, with a graph, where there is no triplet."""
        embedded, labels = full(student.features[self.layer]).flatten(1), batch.main_labels
        known = labels != HIDDEN
        with exact(embedded):
            apart = distances(unit(embedded) if self.config.normalized else embedded)
            both = known[:, None] & known
            alike = both & (labels[:, None] == labels)
            alike = alike & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
            others = both & (labels[:, None] != labels)
            anchors = alike.any(dim=1) & others.any(dim=1)
            farthest = apart.masked_fill(~alike, -torch.inf).amax(dim=1)
            nearest = apart.masked_fill(~others, torch.inf).amin(dim=1)
            wanted = torch.where(anchors, self.config.margin + farthest - nearest, 0)
            return F.relu(wanted).sum() / or_one(anchors.sum())
