"""The disk's room for what is to be trained, looked at before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence

import torch

from kdrun.assembly import finished_network
from kdrun.contracts import Dataset
from kdrun.errors import StoreError
from kdrun.machine import told_size
from kdrun.models import parameters
from kdrun.plan import Plan, Run
from kdrun.rehearsal import FLOAT_BYTES, Rehearsed
from kdrun.split import Figures, figures
from kdrun.store import Store
from kdrun.store.checkpoints import KEPT
from kdrun.store.housekeeping import size_of
from kdrun.store.shelf import SPARE

REPORT_BYTES = 1 << 18
"""Of the comparison and its report, and what else an experiment has once."""
SMALL_BYTES = 1 << 16
"""Of a run's manifest and other small files, and of what each file leaves empty of its last block."""
LINE_BYTES, TERM_BYTES = 300, 120
"""Of an epoch's line in the log, and of each term in it."""


def demand_room(
    store: Store, plan: Plan, todo: Iterable[Run], rehearsed: Iterable[Rehearsed], dataset: Dataset
) -> None:
    """Raises ``StoreError`` where the results of runs, and their checkpoints while they train, have no room."""
    groups = list(plan.groups(todo))
    runs = [run for group in groups for run in group]
    known = figures(rehearsed)
    tables = needed_by_tables(runs, known, dataset)
    needed = int(SPARE * (needed_room(groups, known, dataset) + sum(tables.values())))
    begun = [store.begun(f"{plan.config.experiment.name}/{run.folder}", run.fingerprint) for run in runs]
    needed -= sum(size_of(folder) for folder in begun if folder) + kept(store, tables)
    place = next(place for place in (store.root.absolute(), *store.root.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        without = " or write `training.cache: false`," if sum(tables.values()) > needed - free else ""
        raise StoreError(
            f"{store.root}: {len(runs)} runs need about {told_size(needed)} there, and {told_size(free)} are free; "
            f"make room,{without} or choose another --out"
        )


def needed_room(groups: Iterable[Sequence[Run]], known: Figures, dataset: Dataset) -> int:
    """Bytes of the results of all runs, and of the checkpoints of the group that has most, one more than are kept."""
    results, most = REPORT_BYTES, 0
    for group in groups:
        results += sum(_result_bytes(run, known, dataset) for run in group)
        most = max(most, (KEPT + 1) * sum(_checkpoint_bytes(run, known) for run in group))
    return results + most


def _result_bytes(run: Run, known: Figures, dataset: Dataset) -> int:
    """What is kept of a finished run; of a trial nothing large."""
    if run.trial is not None:
        return SMALL_BYTES + _log_bytes(run, known)
    if run.kin in known:
        numbers = (1 + run.folds) * known[run.kin].parameters
    else:  # its weights are given
        numbers = parameters(finished_network(run, dataset.spec, torch.device("cpu")).model)
    dataset = dataset.of(run.environment)
    numbers += (dataset.spec.classes + 4) * len(dataset.labels("test"))
    return FLOAT_BYTES * numbers + SMALL_BYTES + _log_bytes(run, known)


def _checkpoint_bytes(run: Run, known: Figures) -> int:
    """What a run saves of its state at once; nothing where it does not train."""
    if run.kin not in known:
        return 0
    one = known[run.kin]
    best = FLOAT_BYTES * one.parameters * (run.training.selection == "best-on-validation")
    return one.checkpoint_bytes + best + one.remembered_bytes + _log_bytes(run, known)


def _log_bytes(run: Run, known: Figures) -> int:
    terms = len(known[run.kin].terms) if run.kin in known else 0
    return run.training.epochs * (LINE_BYTES + TERM_BYTES * terms)


def needed_by_tables(runs: Iterable[Run], known: Figures, dataset: Dataset) -> dict[str, int]:
    """Bytes of the tables in which teachers are looked up, by the teacher's fingerprint."""
    tables: dict[str, int] = {}
    for run in runs:
        one, own = known.get(run.kin), dataset.of(run.environment)
        copies, samples = own.copies(run.draw), len(own.labels("train", run.draw.given))
        if one is not None and one.looked_up and copies is not None:
            for name, numbers in one.table_numbers.items():
                teacher = run.teachers[name].fingerprint
                tables[teacher] = max(tables.get(teacher, 0), FLOAT_BYTES * numbers * copies * samples)
    return tables


def kept(store: Store, tables: dict[str, int]) -> int:
    """Bytes of those tables that are on the shelf already."""
    found: dict[str, int] = dict.fromkeys(tables, 0)
    for manifest in store.shelf.folder.glob("*/manifest.json"):
        teacher = (store.read(manifest) or {}).get("teacher")
        if teacher in found:
            found[teacher] += size_of(manifest.parent)
    return sum(min(found[teacher], tables[teacher]) for teacher in tables)
