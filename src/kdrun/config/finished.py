"""Teachers that are finished runs of other experiments: what their folders say, and whether that fits here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kdrun import errors, registry
from kdrun.config.parts import BESIDE_A_RUN, SHORTHANDS, Experiment, TeacherConfig
from kdrun.contracts import Dataset
from kdrun.errors import Mismatch, Problem, StoreError, did_you_mean, shown
from kdrun.store import fingerprint, read_json
from kdrun.store.files import demand
from kdrun.store.forms import Inputs, fit
from kdrun.store.runs import DEPTH
from kdrun.yamlsource import Source

RESULT, WEIGHTS = "result.json", "weights.safetensors"
OF_A_RUN = [
    field.alias or name for name, field in TeacherConfig.model_fields.items() if name not in BESIDE_A_RUN
]
"""What a teacher with a ``run`` does not say itself."""
BELOW = (
    *("", "seed-*/", "*/seed-*/", "*/*/seed-*/"),
    *("students/*/*/seed-*/", "*/teachers/*/seed-*/", "*/students/*/*/seed-*/"),
)
"""Where runs lie below a folder that is named in place of one."""
MOST_NAMED = 10
"""Runs that are all named, to choose from."""
SPLIT_BY = ("seed", "test", "unseen")
"""The options of a data set that decide which of its samples are test samples."""
NOT_THE_SAMPLES = {
    *SPLIT_BY,
    "validation",
    "labels_per_class",
    "leave_out",
    "transfer_set",
    "augmentation",
    "strong_view",
    "views",
}
"""The options that say how a data set's samples are dealt out and shown, and not which they are."""


def fill_in(data: dict[str, Any], source: Source) -> Iterator[Problem]:
    """Give each teacher with a ``run`` that run's model, view and weights; what is wrong with those that name one.

    What is said of what was filled in points at the ``run``.
    """
    teachers: Any = data.get("teachers")
    for name, teacher in teachers.items() if isinstance(teachers, dict) else ():
        if not isinstance(teacher, dict) or teacher.get("run") is None:
            continue
        path: errors.Path = ("teachers", name)
        for key in OF_A_RUN:
            if teacher.get(key) is not None:
                words = f"a teacher with `run` is finished, so `{key}` says nothing"
                yield Problem((*path, key), words, "remove one", True)
        filled: dict[str, Any] = {"model": "mlp"}  # any: nothing is to be said of it where the run is none
        if isinstance(teacher["run"], str):
            try:
                filled = _model_of(Path(teacher["run"]))
            except (Mismatch, StoreError) as error:
                yield Problem((*path, "run"), str(error), getattr(error, "hint", ""))
        teachers[name] = {key: value for key, value in teacher.items() if key not in OF_A_RUN} | filled
        written = (name,) if SHORTHANDS.get(name) == "teachers" and name in source.data else path
        for key in filled:
            source.alias((*path, key), (*written, "run"))


def _model_of(folder: Path) -> dict[str, Any]:
    """The model, view (with size and normalisation) and weights of a finished run, as a teacher in a config says them.

    Raises ``Mismatch`` where it cannot teach, and ``StoreError`` where it is not as it was written.
    """
    if folder.name.startswith("trial-"):
        words = f"'{folder}' is a trial of a tuning, of which nothing but the scores is kept"
        raise Mismatch(words, "name a run of the config that was tuned")
    if not os.path.isfile(folder / RESULT):
        raise Mismatch(*_missing(folder))
    result = read_json(folder / RESULT)
    inputs = result["inputs"]
    fit(folder / RESULT, Inputs, inputs)
    losses = [loss["kind"] for loss in inputs.get("losses", ())]
    for family, kind in [("model", inputs["model"]["kind"]), *(("loss", kind) for kind in losses)]:
        if kind not in registry.FAMILIES[family]:
            plugins = " ".join(f"--plugin {name}" for name in sorted(inputs["plugins"]))
            hint = f"add {plugins} to the command" if plugins else "update kdrun"
            raise Mismatch(f"the run's {family} '{shown(kind)}' is none that is loaded", hint)
    if registry.MODELS[inputs["model"]["kind"]].combines:
        words = f"the run is made of several others ('{inputs['model']['kind']}')"
        raise Mismatch(words, "name its members, and combine them here")
    if predicting := [kind for kind in losses if registry.LOSSES[kind].at_inference]:
        words = f"the run predicts by parts of its loss '{predicting[0]}', and a teacher by its model alone"
        raise Mismatch(words, "name a run of another method")
    demand(folder, {WEIGHTS: result["files"][WEIGHTS]})
    lens = {key: inputs[key] for key in ("resize", "normalization") if key in inputs}
    return {"model": inputs["model"], "view": inputs["view"], "weights": str(folder / WEIGHTS)} | lens


def _missing(folder: Path) -> tuple[str, str]:
    """What is there in the place of a finished run, and what to write instead."""
    if os.path.isfile(folder / "begun.json"):
        return f"the run in '{folder}' is not finished", "the command that began it goes on with it"
    there = [place for place in (folder, *folder.parents[:DEPTH]) if os.path.isdir(place)][:1]
    found = [str(file.parent) for place in there for below in BELOW for file in place.glob(below + RESULT)]
    words = f"'{folder}' is no finished run" if there == [folder] else f"there is no folder '{folder}'"
    near = did_you_mean(str(folder), found, list_all=len(found) <= MOST_NAMED)
    return words, near or "write the folder of one seed, as in runs/digits/students/student/kd/seed-0"


def _with_results(experiment: Experiment) -> Iterator[tuple[str, errors.Path, dict[str, Any]]]:
    """The teachers that are finished runs: their names, where the config says so, and their manifests."""
    for name, teacher in experiment.teachers.items():
        if teacher.run is not None:
            yield name, ("teachers", name, "run"), read_json(teacher.run / RESULT)


def _told_apart(result: dict[str, Any]) -> list[str]:
    """The names of the classes that a run has an output for."""
    details = result["details"]
    names: list[str] = details["classes"][: len(details["classes"]) - details.get("unseen", 0)]
    return names


def number_problems(experiment: Experiment, dataset: Dataset) -> Iterator[Problem]:
    """The runs that tell another number of classes apart than the data set has."""
    for name, path, result in _with_results(experiment):
        known = len(_told_apart(result))
        classes = dataset.of(experiment.teachers[name].environment).spec.classes
        if known != classes:
            others = " that are not unseen" * bool(experiment.dataset.unseen)
            words = f"this run tells {known} classes apart, and the data set has {classes}{others}"
            yield Problem(path, words, "name a run on these classes")


def sample_problems(
    experiment: Experiment, dataset: Dataset, warn: Callable[[str], None]
) -> Iterator[Problem]:
    """The runs that know a loaded data set's classes by other numbers, or may have learnt from its test samples.

    ``warn`` is given a sentence about each run on other data, of which nobody can tell, and about each that had other
    validation samples.
    """
    every = dataset
    for name, path, result in _with_results(experiment):
        dataset = every.of(experiment.teachers[name].environment)
        theirs, own = _told_apart(result), dataset.class_names[: dataset.spec.classes]
        places = {word: number for number, word in enumerate(theirs)}
        moved = [number for number, word in enumerate(own) if places.get(word, number) != number]
        if theirs != own and moved:
            words = f"class {moved[0]} is '{shown(theirs[moved[0]])}' in this run, and '{shown(own[moved[0]])}' here"
            yield Problem(path, words, "name a run on the same classes in the same order")
            continue
        if dataset.plays:  # no agent ever plays an episode that others are scored in
            continue
        there, here = result["inputs"]["dataset"], dataset.identity()
        if result["protocol"]["test_sha256"] != dataset.test_hash():
            if _samples(there) == _samples(here):
                words = "this run has other test samples of the same data set, and may have learnt from the ones here"
                yield Problem(path, words, _same_split(there, here))
            else:
                seen = "as its run wants them" if "normalization" in result["inputs"] else "as they are here"
                warn(
                    f"the teacher '{name}' is of a run on other data ({there['kind']}): if it learnt from any of the "
                    f"test samples here, it and its students score too high; it sees inputs normalised {seen}"
                )
        elif here.get("validation") and any(
            there.get(key) != here.get(key) for key in ("seed", "validation")
        ):
            warn(
                f"the teacher '{name}' is of a run that held out other validation samples and may have learnt from "
                "those here: weights, confidences and temperatures that they choose stand on what it knows"
            )


def _samples(identity: dict[str, Any]) -> str:
    """What decides which samples a data set has, as a hash."""
    return fingerprint({key: value for key, value in identity.items() if key not in NOT_THE_SAMPLES})


def _same_split(there: dict[str, Any], here: dict[str, Any]) -> str:
    """What to write to have the test split of another identity."""
    other = [f"{key}: {json.dumps(there.get(key))}" for key in SPLIT_BY if there.get(key) != here.get(key)]
    if not other:
        return "give it the files that it had there"
    return f"write `{', '.join(other)}` for the data set, as there"
