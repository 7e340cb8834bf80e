"""Models that are made of finished ones: ensembles, which ask all of them, cascades, in turn, and specialists."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import count, pairwise
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdrun.contracts import LEFT_OUT, JointSpec, Model, ModelConfig, Spec

TOLERANCE = 0.001
"""What a cascade may score less than its last member on validation samples, where nothing is said."""
HALF_A_VOTE = 0.5
"""What the mean probability counts beside the votes: it decides between equal ones, and never against the most."""


class CombinedConfig(ModelConfig):
    """Options of every model that is made of finished ones."""

    @model_validator(mode="after")
    def _starts_from_its_members(self) -> Self:
        if self.initial_weights is not None:
            raise ValueError(
                "is made of finished models and starts from no weights; remove `initial_weights`"
            )
        return self

    @property
    def left_open(self) -> str | None:
        """The key of what the validation samples are to decide, where there is any."""
        return None


class Combined(Model):
    """A model made of finished ``members`` that see one view; whoever makes it settles what they are to decide."""

    combines = True
    stages, pooled, head = (), "", ""

    def __init__(self, config: Any, members: Sequence[Model]) -> None:
        super().__init__()
        self.config, self.members = config, nn.ModuleList(members)

    def settle(self, environments: Sequence[str | None], spec: Spec, view: str) -> None:
        """Take up what the form of the data set decides; of each member its environment is given, where it has one."""

    def member_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """What each member reads of inputs of a shape without the batch."""
        return [shape] * len(self.members)

    def said(self, x: Tensor) -> Tensor:
        """The log-probabilities (M, B, C) of each member for inputs (B, …)."""
        return torch.stack([F.log_softmax(member(x).float(), dim=1) for member in self.members])

    @property
    @abstractmethod
    def asked(self) -> list[float]:
        """Of each member the share of the samples that it is asked about."""


class Ensemble(Combined):
    """Several teachers, the members that `from` names, asked together: their mean probability, or a vote.

    Dietterich, "Ensemble Methods in Machine Learning", 2000.
    """

    class Config(CombinedConfig):
        """Options of `ensemble`."""

        kind: Literal["ensemble"]
        combine: Literal["mean", "mean-logits", "fixed", "fitted", "vote"] = "mean"
        """the mean of the members' probabilities: of each alike (mean), by `member_weights` (fixed), or by what
        explains the validation labels best (fitted); the mean of their logits (mean-logits); or the class that most of
        them choose, of several the one with the largest mean probability (vote)"""
        member_weights: list[Annotated[float, Field(ge=0)]] | None = Field(default=None, min_length=2)
        """combine: fixed: a weight for each member, in their order; only their ratios count"""

        @model_validator(mode="after")
        def _weights_fit(self) -> Self:
            if (self.combine == "fixed") != (self.member_weights is not None):
                raise ValueError("`combine: fixed` and `member_weights` need each other; write both, or none")
            if self.member_weights is not None and not sum(self.member_weights):
                raise ValueError("all `member_weights` are 0; write one above 0")
            return self

        @property
        def left_open(self) -> str | None:
            """Weights that are to be fitted."""
            return "combine" if self.combine == "fitted" else None

    config: Config
    shares: Tensor

    def __init__(self, config: Config, members: Sequence[Model]) -> None:
        super().__init__(config, members)
        self.weigh(config.member_weights or [1.0] * len(members))

    def weigh(self, weights: Sequence[float]) -> None:
        """Have each member count by its weight, of which only the ratios matter."""
        shares = torch.tensor(weights, dtype=torch.float64)
        self.register_buffer("shares", (shares / shares.sum()).float())

    @property
    def asked(self) -> list[float]:
        """All of them are asked about all samples."""
        return [1.0] * len(self.members)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (B, C), or logits that have them as their log-softmax, of inputs (B, …)."""
        if self.config.combine == "mean-logits":
            return torch.stack([member(x).float() for member in self.members]).mean(dim=0)
        log_p = self.said(x)
        mean = (log_p + self.shares.float().log()[:, None, None]).logsumexp(dim=0)
        if self.config.combine != "vote":
            return mean
        votes = F.one_hot(log_p.argmax(dim=2), log_p.shape[2]).sum(dim=0)
        both = torch.logaddexp(
            votes.log(), mean + math.log(HALF_A_VOTE)
        )  # a class may have neither: in logarithms
        return both - math.log(len(log_p) + HALF_A_VOTE)


class Cascade(Combined):
    """Several teachers, the members that `from` names, asked in turn: each answers what it is sure of.

    What it is not sure of, it passes on to the next one; the last answers all that is left. Viola and Jones, "Rapid
    Object Detection using a Boosted Cascade of Simple Features", 2001; Park et al., "Big/Little Deep Neural Network
    for Ultra Low Power Inference", 2015.
    """

    class Config(CombinedConfig):
        """Options of `cascade`."""

        kind: Literal["cascade"]
        confidence: (
            Annotated[float, Field(ge=0, lt=1)]
            | Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1)]
            | None
        ) = None
        """the probability of its most probable class that a member has to exceed to answer: one number for all but the
        last, or one for each of them; where nothing is said, chosen on the validation share: the fewest
        multiply-accumulates (of which a tree has none) for a score there within the tolerance"""
        tolerance: float = Field(default=TOLERANCE, ge=0, le=1)
        """how much less than the last member's the score may be on the validation share, where that chooses"""

        @model_validator(mode="after")
        def _tolerates_where_it_chooses(self) -> Self:
            if self.confidence is not None and self.tolerance != TOLERANCE:
                raise ValueError("`tolerance` counts where `confidence` is not given; remove one")
            return self

        @property
        def left_open(self) -> str | None:
            """Confidences that are not given."""
            return "confidence" if self.confidence is None else None

    config: Config
    confidence: Tensor
    reached: Tensor

    def __init__(self, config: Config, members: Sequence[Model]) -> None:
        super().__init__(config, members)
        given, passing = config.confidence, len(members) - 1
        self.demand(given if isinstance(given, list) else [given or 0.0] * passing)
        self.register_buffer("reached", torch.ones(len(members)))

    def demand(self, confidence: Sequence[float]) -> None:
        """Have each member but the last answer where it is surer than this."""
        self.register_buffer("confidence", torch.tensor(confidence, dtype=torch.float32))

    @property
    def asked(self) -> list[float]:
        """Of each member the share of the test samples that come to it."""
        return [float(share) for share in self.reached]

    def answering(self, said: Tensor) -> Tensor:
        """Which member (B,) answers, by what each would say (M, B, C)."""
        sure = said[:-1].amax(dim=2).exp() > self.confidence.float()[:, None]
        last = torch.ones_like(sure[:1])
        return torch.cat([sure, last]).byte().argmax(dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (B, C) of inputs (B, …): for each sample those of the member that answers.

        All are asked, so that the shapes are the same for all samples; ``served`` is what saves time.
        """
        said = self.said(x)
        return said[self.answering(said), torch.arange(len(x), device=x.device)]

    def served(self) -> Callable[[Tensor], None]:
        """What a pass costs where nobody is asked in vain, whatever the samples: as often as test samples went on.

        Of the first sample all members are asked, so that the most memory is seen by then.
        """
        passed_on = [now / before if before else 0.0 for before, now in pairwise([1.0, *self.asked])]
        arrivals = [count() for _ in self.members]

        def run(x: Tensor) -> None:
            for member, share, arrived in zip(self.members, passed_on, arrivals, strict=True):
                x = x[: sum(_goes_on(next(arrived), share) for _ in range(len(x)))]
                if not len(x):
                    return
                F.softmax(member(x), dim=1).amax(dim=1).tolist()

        return run


class Specialists(Combined):
    """Teachers of one environment each, the members that `from` names, as one for all: for each state its own is asked.

    What they say is kept as it is, be it Q-values or logits of a policy.
    """

    class Config(CombinedConfig):
        """Options of `specialists`."""

        kind: Literal["specialists"]

    config: Config

    def __init__(self, config: Config, members: Sequence[Model]) -> None:
        super().__init__(config, members)
        self.classes = 0
        self._columns: list[slice] = []
        self._flags: list[int] = []

    def settle(self, environments: Sequence[str | None], spec: Spec, view: str) -> None:
        """Take up where in a view each member's numbers are."""
        assert isinstance(spec, JointSpec), "the config sees to it"
        self.classes, columns = spec.classes, spec.columns(view)
        own = [name for name in environments if name is not None]
        self._columns, self._flags = [columns[name] for name in own], [spec.flags[name] for name in own]

    def member_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The numbers of each member's own environment."""
        return [(columns.stop - columns.start,) for columns in self._columns]

    @property
    def asked(self) -> list[float]:
        """All of them are asked about all samples, so that the shapes are the same whatever these are."""
        return [1.0] * len(self.members)

    def forward(self, x: Tensor) -> Tensor:
        """What the members say (B, C) of inputs (B, F), of several environments; actions that one lacks are left out.

        Of a sample of no environment nothing is said.
        """
        said = x.new_full((len(x), self.classes), LEFT_OUT, dtype=torch.float32)
        for member, columns, flag in zip(self.members, self._columns, self._flags, strict=True):
            own = member(x[:, columns]).float()
            its = x[:, flag, None] > 0
            said[:, : own.shape[1]] = torch.where(its, own, said[:, : own.shape[1]])
        return said


def _goes_on(number: int, share: float) -> bool:
    """Whether a sample, counted from 0, is one of a share that is spread evenly over them, the first included."""
    return math.ceil((number + 1) * share) > math.ceil(number * share)
