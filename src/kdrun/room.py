"""The disk's room for what is to be trained, looked at before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence

from kdrun.contracts import Dataset
from kdrun.errors import StoreError
from kdrun.machine import told_size
from kdrun.plan import Plan, Run
from kdrun.rehearsal import Rehearsed
from kdrun.split import FLOAT_BYTES, Figures, figures
from kdrun.store import Store
from kdrun.store.checkpoints import KEPT
from kdrun.store.housekeeping import size_of

SPARE = 1.05
"""What must be free, as a multiple of what is reckoned: logs and manifests are small, and left out."""


def demand_room(
    store: Store, plan: Plan, todo: Iterable[Run], rehearsed: Iterable[Rehearsed], dataset: Dataset
) -> None:
    """Raises ``StoreError`` where the results of runs, and their checkpoints while they train, have no room."""
    groups = list(plan.groups(todo))
    runs = [run for group in groups for run in group]
    there = sum(size_of(store.root / plan.config.experiment.name / run.folder) for run in runs)
    needed = int(SPARE * needed_room(groups, figures(rehearsed), dataset)) - there
    place = next(place for place in (store.root.absolute(), *store.root.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise StoreError(
            f"{store.root}: {len(runs)} runs need about {told_size(needed)} there, and {told_size(free)} are free; "
            "make room, or choose another --out"
        )


def needed_room(groups: Iterable[Sequence[Run]], known: Figures, dataset: Dataset) -> int:
    """Bytes of the results of all runs, and of the checkpoints of the group that has most, one more than are kept."""
    predictions = FLOAT_BYTES * (dataset.spec.classes + 4) * len(dataset.labels("test"))
    results, most = 0, 0
    for group in groups:
        own = [known[run.kin] for run in group if run.kin in known]
        most = max(most, (KEPT + 1) * sum(one.checkpoint_bytes for one in own))
        results += len(group) * predictions + FLOAT_BYTES * sum(one.parameters for one in own)
    return results + most
