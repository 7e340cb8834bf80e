"""What a student is trained to do: student, teachers and batch → weighted terms by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun import registry
from kdrun.contracts import (
    HIDDEN,
    ONE_OF_THEM,
    Batch,
    Context,
    Critic,
    JointLoss,
    Loss,
    LossConfig,
    Mask,
    Outputs,
    Side,
    Taps,
    Twin,
)
from kdrun.errors import Mismatch, did_you_mean
from kdrun.losses.base import OnLogits
from kdrun.losses.labels import LabelLoss
from kdrun.losses.numerics import bounded, certainty
from kdrun.losses.rewards import RewardLoss
from kdrun.losses.selves import PastSelf
from kdrun.models import Frozen, Network
from kdrun.optimization import Stage, stage_at
from kdrun.randomness import derive
from kdrun.statistics.scores import mixture
from kdrun.taps import LayerTable

Survey = Callable[[Frozen], Iterable[tuple[Batch, Outputs]]]
Weigh = Callable[[Tensor], Tensor]
"""What each teacher counts for all samples alike (M, 1), or for each (M, B), by the logits (M, B, C) of all."""
LEAST_ROWS = 2
"""Samples that a mask must leave; fewer give 0, for BatchNorm and relations need two."""


@dataclass(frozen=True)
class Surroundings:
    """What the losses of one student are built from.

    ``batch`` is one dry batch, with ``labels`` as the student sees them, like the training set's; ``survey`` goes
    over the training set with a teacher, ``validation`` over the validation samples. ``twin`` gives a term what makes
    networks like the student's.
    """

    student: Network
    teachers: Mapping[str, Frozen]
    batch: Batch
    samples: int
    classes: int
    batch_size: int
    labels: Tensor
    seed: int
    survey: Survey
    validation: Survey
    twin: Callable[[str], Twin]
    label_smoothing: float = 0.0
    tables: dict[str, LayerTable] = field(default_factory=dict)

    def table(self, network: Network, owner: str) -> LayerTable:
        """A network's layers, looked up once."""
        if owner not in self.tables:
            self.tables[owner] = network.describe(self.batch, owner)
        return self.tables[owner]


class Term(nn.Module):
    """One weighted term: one loss on all its teachers, or on what they say together, or a loss for each.

    ``head`` is the layer whose logits it looks at, where the student has several; else it looks at the student's own.
    """

    factor: Tensor

    def __init__(
        self,
        config: LossConfig,
        losses: Sequence[Loss],
        taps: Mapping[str, Taps],
        shares: Sequence[float] | None = None,
        head: str | None = None,
    ) -> None:
        super().__init__()
        self.config, self.taps, self.head = config, taps, head
        self.label, self.teachers = config.label, config.teachers
        self.losses = nn.ModuleList(losses)
        self.register_buffer("factor", torch.ones(()), persistent=False)
        weights = shares or config.teacher_weights or [1.0] * len(config.teachers)
        self.shares = [weight / sum(weights) for weight in weights]
        self.begin(0, 1)

    def begin(self, epoch: int, epochs: int, stage: Stage | None = None) -> None:
        """Take the weight of an epoch, counted from 0, of so many; before its first step, and after a resume."""
        self.weight = self.weight_in(epoch, epochs, stage)
        # What the step reads is a tensor and two flags: a number would have a compiled step compiled anew each epoch.
        self.counts, self.pretrains = bool(self.weight), stage is not None and stage.pretrains
        self.factor.fill_(self.weight if self.weight <= torch.finfo(self.factor.dtype).max else math.inf)
        for loss in self.losses:
            loss.begin(epoch, epochs)  # type: ignore[operator]  # a ModuleList forgets what it holds

    def end_step(self, step: int) -> None:
        """Tell its losses how many steps were taken."""
        for loss in self.losses:
            loss.end_step(step)  # type: ignore[operator]  # a ModuleList

    def weight_in(self, epoch: int, epochs: int, stage: Stage | None) -> float:
        """The weight in an epoch, counted from 0, of so many, and in a stage; 0 where that leaves the term out."""
        counts = stage is None or stage.losses is None or self.label in stage.losses
        return self.config.weight_in(epoch, epochs) if counts else 0.0

    @property
    def compared(self) -> list[str]:
        """Which layers it compares with which, a sentence for each teacher."""
        return [f"{self.label}: {taps} of {teacher}" for teacher, taps in self.taps.items() if taps.teacher]

    def forward(self, student: Outputs, taught: Mapping[str, Outputs], batch: Batch) -> Tensor:
        """The weighted term, a scalar; 0 where it weighs nothing."""
        if not self.counts:
            return student.logits.new_zeros(())
        if self.head is not None:
            student = student.at(self.head)
        weigh = self._weigh({name: taught[name] for name in self.teachers}, batch)
        taught = self._heard(taught, batch)
        if self.config.mask is None:
            return self.factor * self._value(student, taught, batch, weigh)
        rows = kept(self.config.mask, list(taught.values()), batch).nonzero().squeeze(1)
        if len(rows) < LEAST_ROWS:
            return student.logits.new_zeros(())
        some = {name: said.rows(rows) for name, said in taught.items()}
        share = len(rows) / len(batch)
        return self.factor * share * self._value(student.rows(rows), some, batch.rows(rows), weigh)

    def target(self, taught: Mapping[str, Outputs], batch: Batch) -> Tensor:
        """The class probabilities (B, C) that minimise it; a row's sum is how much of its sample it looks at.

        Only terms of a loss that ``has_target`` are asked.
        """
        weigh = self._weigh({name: taught[name] for name in self.teachers}, batch)
        taught = self._heard(taught, batch)
        targets = [
            loss.target(outputs, batch)  # type: ignore[operator]  # a ModuleList
            for loss, outputs in zip(self.losses, self._said(taught, weigh), strict=True)
        ]
        wanted = self._mean(targets, taught, weigh)
        if self.config.mask is None:
            return wanted
        return wanted * kept(self.config.mask, list(taught.values()), batch)[:, None]

    def _heard(self, taught: Mapping[str, Outputs], batch: Batch) -> dict[str, Outputs]:
        """What its own teachers say, shuffled over the batch where that is asked for."""
        own = {name: taught[name] for name in self.teachers}
        if self.config.shuffle_teacher:
            order = torch.randperm(len(batch), device=batch.index.device)
            own = {name: said.rows(order) for name, said in own.items()}
        return own

    def _weigh(self, taught: Mapping[str, Outputs], batch: Batch) -> Weigh:
        """How its teachers count in this step, the same for further views."""
        combine, said = self.config.combine, list(taught.values())
        if combine == "entropy":
            return lambda logits: certainty(logits) / (len(logits) - 1)
        if combine in ONE_OF_THEM and len(said) > 1:
            device = batch.index.device
            chosen = best(said, batch) if combine == "best" else torch.randint(len(said), (), device=device)
            one = F.one_hot(chosen, len(said))[:, None]
            return lambda logits: one.to(logits.dtype)
        return lambda logits: torch.tensor(self.shares, dtype=logits.dtype, device=logits.device)[:, None]

    def _said(self, taught: dict[str, Outputs], weigh: Weigh) -> list[Any]:
        """What each of its losses is given: one teacher's outputs, those of all together or by name, or None."""
        said: list[Any] = list(taught.values()) or [None]
        if isinstance(self.losses[0], JointLoss):
            return [taught]
        if len(self.losses) < len(said):
            return [combined(said, self.config, self.losses[0].temperature, weigh)]  # type: ignore[arg-type]  # a ModuleList
        return said

    def _value(self, student: Outputs, taught: dict[str, Outputs], batch: Batch, weigh: Weigh) -> Tensor:
        values = [
            (loss.pretrain if self.pretrains else loss)(student, outputs, batch)  # type: ignore[operator]  # a ModuleList
            for loss, outputs in zip(self.losses, self._said(taught, weigh), strict=True)
        ]
        return self._mean(values, taught, weigh)

    def _mean(self, values: list[Tensor], taught: Mapping[str, Outputs], weigh: Weigh) -> Tensor:
        """What its losses come to, each counted by its teacher's share."""
        if len(values) == 1:
            return values[0]
        shares = weigh(torch.stack([said.logits for said in taught.values()]))
        return (torch.stack(values) * shares.view(-1, *[1] * values[0].ndim)).sum(dim=0)


def best(said: Sequence[Outputs], batch: Batch) -> Tensor:
    """Which of several teachers has the least cross-entropy on a batch's labels; where it has none, the surest one."""
    logits, labels = torch.stack([bounded(one.logits) for one in said]), batch.main_labels
    errors = torch.stack([F.cross_entropy(z, labels, ignore_index=HIDDEN, reduction="sum") for z in logits])
    unsure = torch.special.entr(F.softmax(logits, dim=-1)).sum(dim=(1, 2))
    return torch.where((labels != HIDDEN).any(), errors, unsure).argmin()


def kept(mask: Mask, said: Sequence[Outputs], batch: Batch) -> Tensor:
    """Which samples a term looks at, (B,); of several teachers the mean probability counts."""
    labels = batch.main_labels
    if mask.kind in ("labelled", "unlabelled"):
        return (labels == HIDDEN) == (mask.kind == "unlabelled")
    p = torch.stack([F.softmax(outputs.logits, dim=-1) for outputs in said]).mean(dim=0)
    surest, choice = p.max(dim=-1)
    return choice == labels if mask.kind == "teacher-correct" else surest >= mask.confidence


def combined(said: Sequence[Outputs], config: LossConfig, temperature: float, weigh: Weigh) -> Outputs:
    """Several teachers as one: logits (B, C) whose softmax at ``temperature`` is their mean probability.

    ``weigh`` says what each counts; ``mean-logits`` averages the logits themselves. Further views are combined alike.
    """
    views = {
        view: combined([one.views[view] for one in said], config, temperature, weigh)
        for view in said[0].views
    }
    return Outputs(_combined_logits(said, config, temperature, weigh), views=views)


def _combined_logits(said: Sequence[Outputs], config: LossConfig, temperature: float, weigh: Weigh) -> Tensor:
    logits = torch.stack([outputs.logits for outputs in said])
    if config.combine == "mean-logits":
        return logits.mean(dim=0)
    if config.combine in ONE_OF_THEM:
        return torch.where(weigh(logits)[:, :, None] > 0, logits, 0).sum(dim=0)
    log_p = F.log_softmax(logits / temperature, dim=-1)
    if config.combine == "mean":
        return temperature * (log_p.logsumexp(dim=0) - math.log(len(said)))
    return temperature * (log_p + weigh(logits)[:, :, None].log()).logsumexp(dim=0)


def sides(configs: Sequence[LossConfig]) -> list[Side | None]:
    """What each term of a mix learns from, where the mix has terms on labels and terms on teachers' logits.

    In any other mix it is None for all: each looks at what the student says in the end, so that nothing of it stays
    untaught.
    """
    found = [_side(config) for config in configs]
    weighing = [
        side for side, config in zip(found, configs, strict=True) if config.weight and _sees_logits(config)
    ]
    return found if {"labels", "teachers"} <= {*weighing} else [None] * len(found)


def _sees_logits(config: LossConfig) -> bool:
    """Whether a term looks at the student's logits."""
    loss_class = registry.LOSSES[config.kind]
    return loss_class.on_logits or issubclass(loss_class, OnLogits)


def _side(config: LossConfig) -> Side | None:
    if config.teachers:
        return "teachers"
    return "labels" if issubclass(registry.LOSSES[config.kind], LabelLoss | PastSelf) else None


def build_term(config: LossConfig, around: Surroundings, side: Side | None = None) -> Term:
    """A term with its layers tapped and its adapters made; raises ``Mismatch``.

    It looks at the logits of the student's part for one ``side``, where there is such a part.
    """
    loss_class = registry.LOSSES[config.kind]
    names = config.teachers
    together = loss_class.on_logits and config.combine != "mean-loss"
    together |= issubclass(loss_class, JointLoss)
    groups = [names] if together or not names else [[name] for name in names]
    taps: dict[str, Taps] = {}
    losses = []
    for place, group in enumerate(groups):
        loss = loss_class(config)
        taps |= _build(loss, group, place, around)
        losses.append(loss.to(around.batch.labels.device))
    head = around.student.model.logits_for.get(side) if side else None
    around.student.tap([head] if head else [])
    return Term(config, losses, taps, _fitted(config, around), head).to(around.batch.labels.device)


def _fitted(config: LossConfig, around: Surroundings) -> list[float] | None:
    """What each teacher counts by the validation samples; None where that is not asked for."""
    if config.combine != "fitted" or len(config.teachers) < 2:
        return None
    likelihoods = []
    for name in config.teachers:
        surveyed = around.validation(around.teachers[name])
        log_p = [F.log_softmax(bounded(said.logits), dim=-1)[range(len(b)), b.labels] for b, said in surveyed]
        likelihoods.append(torch.cat(log_p).cpu().numpy())
    shares: list[float] = mixture(np.stack(likelihoods)).tolist()
    return shares


def _build(loss: Loss, names: list[str], place: int, around: Surroundings) -> Mapping[str, Taps]:
    """Tap a loss's layers and make its adapters; its taps by teacher, with '' where it looks at none.

    ``place`` is its place among the term's losses: adapters of one term start apart, whatever teachers are called.
    """
    student = around.table(around.student, "the student")
    teachers = {name: around.teachers[name] for name in names}
    tables = {name: around.table(teacher, f"the teacher '{name}'") for name, teacher in teachers.items()}
    joint = isinstance(loss, JointLoss)
    taps: Mapping[str, Taps]
    if isinstance(loss, JointLoss):
        taps = loss.taps(student, tables)
    else:
        taps = {name: loss.taps(student, tables.get(name)) for name in names or [""]}
    looking = [(around.student, student), *((teachers[name], tables[name]) for name in names)]
    for name, wanted in taps.items():
        for view in wanted.views:
            _demand_view(view, looking, around.batch)
        around.student.tap(wanted.student, wanted.views)
        if name:
            teachers[name].tap(wanted.teacher, wanted.views)
    contexts = {name: _context(around, teachers.get(name), loss.config.label) for name in taps}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(around.seed, "adapters", loss.config.label, place))
        loss.build(contexts if joint else next(iter(contexts.values())))  # type: ignore[arg-type]  # of a JointLoss
    return taps


def _demand_view(view: str, looking: Iterable[tuple[Network, LayerTable]], batch: Batch) -> None:
    """Raise ``Mismatch`` where there is no such view, or one of a loss's networks cannot look at it."""
    if view not in batch.views:
        hint = f"{did_you_mean(view, batch.views)}; a data set of pictures offers one as `strong_view`"
        raise Mismatch(f"the data set has no view '{view}'", hint)
    for network, table in looking:
        given, seen = (tuple(batch.views[one].shape[1:]) for one in (view, network.view))
        if given != seen:
            raise Mismatch(
                f"the view '{view}' is of shape {given}, and {table.owner} sees {seen}",
                "name one of that shape",
            )


def _context(around: Surroundings, teacher: Frozen | None, label: str) -> Context:
    with torch.no_grad():
        seen = around.student.dry(around.batch)
        said = teacher(around.batch) if teacher else None
    return Context(
        batch=around.batch,
        student=seen,
        teacher=said,
        samples=around.samples,
        classes=around.classes,
        batch_size=around.batch_size,
        labels=around.labels,
        teacher_state=teacher.model.state_dict() if teacher else {},
        teacher_head=teacher.model.head if teacher else None,
        survey=lambda: around.survey(teacher) if teacher else (),
        view=around.student.view,
        twin=around.twin(label),
        student_state=around.student.model.state_dict,
    )


class Objective(nn.Module):
    """The sum that a student is trained on, term by term."""

    def __init__(self, configs: Sequence[LossConfig], surroundings: Surroundings) -> None:
        super().__init__()
        terms = [
            build_term(_with_smoothing(config, surroundings.label_smoothing), surroundings, side)
            for config, side in zip(configs, sides(configs), strict=True)
        ]
        self.terms = nn.ModuleList(terms)
        self.named = {term.label: term for term in terms}

    @property
    def weights(self) -> dict[str, float]:
        """Each term's weight now."""
        return {label: term.weight for label, term in self.named.items()}

    @property
    def fitted_shares(self) -> dict[str, dict[str, float]]:
        """What each teacher counts in the terms for which that was fitted, by term and teacher."""
        return {
            label: dict(zip(term.teachers, term.shares, strict=True))
            for label, term in self.named.items()
            if term.config.combine == "fitted" and len(term.teachers) > 1
        }

    @property
    def of_teachers(self) -> list[str]:
        """The terms that look at a teacher."""
        return [label for label, term in self.named.items() if term.teachers]

    @property
    def weighs_samples(self) -> bool:
        """Whether some samples count more than others for one of the terms."""
        return any(registry.LOSSES[term.config.kind].weighs_samples for term in self.named.values())

    def wants(self, teacher: str) -> Taps:
        """The layers and the further views of a teacher that the terms look at."""
        taps = [term.taps[teacher] for term in self.named.values() if teacher in term.taps]
        layers = dict.fromkeys(layer for tap in taps for layer in tap.teacher)
        return Taps(teacher=tuple(layers), views=tuple({view: None for tap in taps for view in tap.views}))

    def tables_suffice(self, teachers: Mapping[str, Frozen], views: Collection[str]) -> bool:
        """Whether the terms look at nothing of the teachers but logits and embeddings, and these at some views only."""
        wants = [(teacher, self.wants(name)) for name, teacher in teachers.items()]
        return all(
            teacher.view in views and not taps.views and {teacher.model.pooled}.issuperset(taps.teacher)
            for teacher, taps in wants
        )

    @property
    def predictor(self) -> tuple[Loss, tuple[str, ...]] | None:
        """The loss from whose parts an exported student's logits come, if there is one, and the layers it taps."""
        for term in self.named.values():
            for loss, taps in zip(term.losses, term.taps.values(), strict=False):
                if isinstance(loss, Loss) and loss.at_inference:
                    return loss, taps.student
        return None

    @property
    def critic(self) -> Critic | None:
        """The loss that tells how much reward is to be expected, where one learns from rewards."""
        for term in self.named.values():
            [first, *_] = term.losses
            if isinstance(first, RewardLoss):
                return first
        return None

    def begin(self, epoch: int, epochs: int, stage: Stage) -> None:
        """Take the weights of an epoch, counted from 0, of so many."""
        for term in self.named.values():
            term.begin(epoch, epochs, stage)

    def end_step(self, step: int) -> None:
        """Tell the losses how many steps were taken."""
        for term in self.named.values():
            term.end_step(step)

    def mean_weights(self, epochs: int, stages: Sequence[Stage]) -> dict[str, float]:
        """Each term's weight in the mean of so many epochs: what counts where all of them are learnt at once."""
        own = [stage_at(stages, epoch, epochs) for epoch in range(epochs)]
        return {
            label: sum(term.weight_in(epoch, epochs, stage) for epoch, stage in enumerate(own)) / epochs
            for label, term in self.named.items()
        }

    def target(self, taught: Mapping[str, Outputs], batch: Batch, weights: Mapping[str, float]) -> Tensor:
        """The class probabilities (B, C) that the terms want together; rows of zeros for samples that none looks at.

        For each sample they are the mean of what the terms want that look at it, by their weights and by how much of
        it they look at. Where a term ``weighs_samples`` it is their sum: a row's sum is what its sample counts.
        """
        wanted = torch.stack([term.target(taught, batch) for term in self.named.values()])
        factors = torch.tensor(list(weights.values()), dtype=wanted.dtype, device=wanted.device)
        together = torch.einsum("t,tbc->bc", factors, wanted)
        if self.weighs_samples:
            return together
        total = together.sum(dim=1, keepdim=True)
        return together / torch.where(total > 0, total, 1)

    def forward(self, student: Outputs, taught: Mapping[str, Outputs], batch: Batch) -> dict[str, Tensor]:
        """The weighted terms by name, unsummed; of several environments their mean over the samples of each."""
        if not batch.parts:
            return {label: term(student, taught, batch) for label, term in self.named.items()}
        lessons = [*_of_each_environment(student, taught, batch)]
        return {
            label: torch.stack([len(own) / len(batch) * term(*lesson, own) for *lesson, own in lessons]).sum()
            for label, term in self.named.items()
        }


def _of_each_environment(
    student: Outputs, taught: Mapping[str, Outputs], batch: Batch
) -> Iterator[tuple[Outputs, dict[str, Outputs], Batch]]:
    """What is said of the samples of each environment, of its own actions alone."""
    first = 0
    for _, samples, classes in batch.parts:
        rows = slice(first, first + samples)
        own = {name: said.rows(rows, classes) for name, said in taught.items()}
        yield student.rows(rows, classes), own, batch.rows(rows)
        first += samples


def _with_smoothing(config: LossConfig, training: float) -> LossConfig:
    """The training's label smoothing, where a label term says nothing of its own."""
    own: Any = getattr(config, "label_smoothing", 0.0)
    return config if own is not None else config.model_copy(update={"label_smoothing": training})
