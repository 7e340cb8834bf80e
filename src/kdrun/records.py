"""An experiment's own folder: what was asked for, where it comes from, and what its models cost to run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import kdrun
from kdrun import registry
from kdrun.assembly import finished_network, frozen
from kdrun.contracts import Spec
from kdrun.evaluate import THREADS, latencies, peak_bytes, throughputs
from kdrun.models import Cascade, Network
from kdrun.plan import Plan, Run
from kdrun.statistics.scores import OF_CLASSES
from kdrun.store import Store, fingerprint, write_json
from kdrun.store.files import holds, sealed, sweep, write_bytes

LONG = 3600.0
"""Seconds after which nobody is still writing one of an experiment's small files."""
THROUGHPUT_MS = 100.0
"""About what a pass takes whose throughput is measured."""


def open_folder(
    store: Store, plan: Plan, spec: Spec, device: torch.device, command: Sequence[str], trains: bool
) -> None:
    """Write the config with every default and its runs, and as it is; and, before it trains, where they come from.

    The config as it is comes last: a comparison that finds it takes the rest to be its.
    """
    folder = store.root / plan.config.experiment.name
    sweep(folder, age=LONG)
    if trains or not (folder / "provenance.json").is_file():
        write_json(folder / "provenance.json", provenance(device, command))
    for name, data in {
        "resolved.json": sealed(resolution(plan, spec)),
        "config.yaml": plan.config.source.text.encode(),
    }.items():
        if not holds(folder / name, data):  # the folder may be there to be read only
            write_bytes(folder / name, data)


def resolution(plan: Plan, spec: Spec) -> dict[str, Any]:
    """The config with every default, and the runs that it asks for: all that a comparison needs to know."""
    experiment = plan.config.experiment
    return {
        "name": experiment.name,
        "metric": experiment.dataset.metric,
        "left_out": experiment.dataset.leave_out or [],
        "overrides": plan.config.source.overrides,
        "config": experiment.model_dump(mode="json", by_alias=True),
        "ensembles": ensembles(plan),
        "runs": [
            {
                "role": run.role,
                "name": run.name,
                "method": run.method,
                "seed": run.seed,
                "fingerprint": run.fingerprint,
                "folder": f"{experiment.name}/{run.folder}",
                "model": model_key(run, spec),
                "fitted": run.way == "fitted",
                "combined": run.model.kind if run.way == "combined" else None,
                "teachers": {name: teacher.fingerprint for name, teacher in run.teachers.items()},
                "environment": run.environment,
                "origin": run.origin.fingerprint if run.origin is not None else None,
                "tuning_trials": plan.config.methods[run.method].tuning_trials
                if run.role == "student" and run.method
                else None,
            }
            for run in plan.runs
        ],
    }


def ensembles(plan: Plan) -> list[list[str]]:
    """The sets of teachers that some term combines, and all that are no one's students, if several.

    Without those whose mean the config names itself; none where embeddings are scored, of which there is no mean, or
    agents, of which none has acted together with others.
    """
    experiment = plan.config.experiment
    if experiment.dataset.metric not in OF_CLASSES:
        return []
    independent = [name for name, teacher in experiment.teachers.items() if teacher.from_ is None]
    sets = [independent] + [loss.teachers for run in plan.runs for loss in run.losses]
    named = [
        tuple(sorted(teacher.sources))
        for teacher in experiment.teachers.values()
        if getattr(teacher.model, "combine", None) == "mean"
    ]
    wanted = dict.fromkeys(tuple(sorted(s)) for s in sets if len(s) > 1)
    return [list(names) for names in wanted if names not in named]


def model_key(run: Run, spec: Spec) -> str:
    """Runs of one key have one architecture on inputs of one shape, and so one latency."""
    spec = spec.of(run.environment)
    shape = spec.shapes[run.view or spec.default_view]
    model = run.model.model_dump(mode="json", exclude={"initial_weights", "pretrained"})
    what: dict[str, Any] = {"model": model, "shape": shape, "classes": spec.classes}
    if predicting := [loss for loss in run.losses if registry.LOSSES[loss.kind].at_inference]:
        what["parts"] = [
            loss.model_dump(mode="json", exclude={"weight", "name", "teacher"}) for loss in predicting
        ]
        what["teachers"] = [model_key(teacher, spec) for teacher in run.teachers.values()]
    if decided_by_samples(run):
        what["fitted"] = run.fingerprint
    if lens := run.lens_inputs:
        what["lens"] = lens
    return fingerprint(what)[:16]


def decided_by_samples(run: Run) -> bool:
    """Whether only a finished model tells what it costs: how large a tree is, how often a member is asked."""
    model = registry.MODELS[run.model.kind]
    return bool(model.fitted or model.combines)


def provenance(device: torch.device, command: Sequence[str]) -> dict[str, Any]:
    """Versions, device, git and command."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "kdrun": kdrun.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
        "git": _git_revision(),
        "command": list(command),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _git_revision() -> str | None:
    """The revision of the folder the command was given in.

    Whether it has changes is not asked: git would run what the folder's own settings name.
    """
    try:
        done = subprocess.run(
            ["git", "describe", "--always"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def measure(store: Store, plan: Plan, spec: Spec, device: torch.device) -> None:
    """Measure what every architecture costs to run, in turn, unless it was measured before.

    Latency is of one sample; throughput of as many as take about a tenth of a second by that, up to 256.
    """
    fitted = {model_key(run, spec): run for run in plan.runs if decided_by_samples(run)}
    wanted = {key: run for run in plan.runs if (key := model_key(run, spec)) not in fitted}
    results = {
        key: store.find(run.fingerprint, f"{plan.config.experiment.name}/{run.folder}")
        for key, run in fitted.items()
    }
    wanted |= {key: run for key, run in fitted.items() if results[key] is not None}
    path = store.root / plan.config.experiment.name / "costs.json"
    conditions = {"device": str(device), "threads": THREADS, "torch": torch.__version__}
    there = store.read(path)
    if there and wanted.keys() <= there["models"].keys() and there["conditions"] == conditions:
        return
    networks = [
        frozen(run, results[key], spec, device) if key in fitted else finished_network(run, spec, device)
        for key, run in wanted.items()
    ]
    forms = [spec.of(run.environment) for run in wanted.values()]
    single = [_runner(network, form, device, 1) for network, form in zip(networks, forms, strict=True)]
    times = latencies(single, device)
    batches = [min(256, max(1, round(THROUGHPUT_MS / one["p50"]))) for one in times]
    many = [
        _runner(network, form, device, size)
        for network, form, size in zip(networks, forms, batches, strict=True)
    ]
    figures = [
        {
            "latency_ms": time_,
            "throughput": throughput,
            "batch_size": size,
            "peak_memory_bytes": peak_bytes(runner, network.model),
        }
        for time_, throughput, size, runner, network in zip(
            times, throughputs(many, device), batches, single, networks, strict=True
        )
    ]
    write_json(path, {"conditions": conditions, "models": dict(zip(wanted, figures, strict=True))})


def _runner(network: Network, spec: Spec, device: torch.device, size: int) -> Callable[[], int]:
    """A pass of a network over so many random samples; it returns their number."""
    batch, model = spec.random_batch(size).to(device), network.model.eval()
    served = model.served() if isinstance(model, Cascade) else None

    def run() -> int:
        if served is None:
            network(batch)
        else:
            served(batch.views[network.view])
        return size

    return run


def command_line() -> list[str]:
    """The command as it was given, but for bytes that are no text."""
    return ["kdrun", *(os.fsencode(word).decode(errors="replace") for word in sys.argv[1:])]
