"""Ensembles and cascades: made of finished teachers, and what the samples decide of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kdrun import registry
from kdrun.contracts import Dataset, Model, Spec
from kdrun.evaluate import paused, predict
from kdrun.models import Cascade, Combined, Ensemble, Frozen, Network, macs
from kdrun.plan import Run
from kdrun.statistics import cascades
from kdrun.statistics.scores import log_probabilities, mixture


def combined(run: Run, teachers: Mapping[Run, Frozen], dataset: Dataset, pause: Callable[[], None]) -> Frozen:
    """The model that a run's teachers are together; ``pause`` is called while they are asked."""
    members = [teachers[one] for one in run.teachers.values()]
    view, device = members[0].view, members[0].device
    model = of_members(run, members, dataset.spec)
    network = Frozen(model, view, device)
    if model.config.left_open is not None:
        found = [predict(one, paused(dataset.split("validation"), pause)) for one in members]
        logits, labels = np.stack([one["logits"] for one in found]), found[0]["labels"]
        if isinstance(model, Cascade):
            costs = [macs(one.model, dataset.spec.shapes[view]) for one in members]
            model.demand(cascades.chosen(logits, labels, costs, run.metric, model.config.tolerance))
        elif isinstance(model, Ensemble):
            explained = [log_probabilities(said)[range(len(labels)), labels] for said in logits]
            model.weigh(mixture(np.stack(explained)).tolist())
        model.to(device)
    if isinstance(model, Cascade):
        _count(model, network, dataset, pause)
    return network


def of_members(run: Run, members: Sequence[Network], spec: Spec) -> Combined:
    """A run's model, of its members as far as they are finished; what samples are to decide is left open."""
    model: Combined = registry.MODELS[run.model.kind](run.model, [one.model for one in members])
    model.settle([teacher.environment for teacher in run.teachers.values()], spec, members[0].view)
    return model


def _count(model: Cascade, network: Frozen, dataset: Dataset, pause: Callable[[], None]) -> None:
    """Note how often each member of a cascade is asked: a cost, as its score is, of the test samples."""
    with torch.no_grad():
        answered = [
            model.answering(model.said(batch.views[network.view]))
            for batch in paused(dataset.split("test"), pause)
        ]
    shares = cascades.reached(torch.cat(answered).cpu().numpy(), len(model.members))
    model.reached.copy_(torch.from_numpy(shares))


def settled(model: Model, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """What each member is to a combined model, by name, for its manifest; nothing of others."""
    if isinstance(model, Cascade):
        demanded = zip(names, model.confidence.tolist(), strict=False)
        return {"confidence": dict(demanded), "asked": dict(zip(names, model.asked, strict=True))}
    if isinstance(model, Ensemble) and model.config.combine in ("fixed", "fitted"):
        return {"weights": dict(zip(names, model.shares.tolist(), strict=True))}
    return {}


def told(about: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The same in words."""
    if "weights" in about:
        yield "weighs " + ", ".join(f"{name} {weight:.2f}" for name, weight in about["weights"].items())
    if "asked" in about:
        (first, _), *others = about["asked"].items()
        later = [
            f"then {name} about {share:.1%} of the test samples, where confidence is {demanded:.4g} or less"
            for (name, share), demanded in zip(others, about["confidence"].values(), strict=True)
        ]
        yield f"asks {first}, {', '.join(later)}"
