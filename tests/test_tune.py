"""Tuning: equal budgets, the validation share only, the same again, and a config of what was chosen."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands import command, surroundings
from kdrun import compare, config
from kdrun.config.spaces import ends, spaces_of, with_values
from kdrun.controls import CONTROLS
from kdrun.data.base import SampleSet
from kdrun.errors import ConfigError, Interrupted
from kdrun.interrupts import Stop
from kdrun.registry import LOSSES
from kdrun.report.words import remarks
from kdrun.store import Store
from kdrun.store.housekeeping import disposable, entries
from kdrun.tune import AT_ONCE, Search, tune
from kdrun.yamlsource import Source
from support import checked, comparison, count_training, experiment, problems, results, run

BASE = """
name: base
dataset: {kind: digits, labels_per_class: 4, validation: 0.1}
device: cpu
seeds: [0, 1]
training: {epochs: 2, batch_size: 128, optimizer: {kind: adamw, lr: 2e-3}}
teacher: {model: {kind: mlp, hidden: [24]}}
student: {model: {kind: mlp, hidden: [8]}}
methods:
  - kd
  - name: mine
    losses:
      - {kind: ce, weight: 0.5}
      - {kind: hint, weight: 10, student_layer: body.0, teacher_layer: body.0}
"""
ENTRIES = ["alone", "label-smoothing", "kd", "mine"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A folder of runs with a tuning of five trials, and what the tuning told."""
    root = tmp_path_factory.mktemp("tuned")
    return root, tune(experiment(BASE, root), 5)


def trials_of(told, method):
    return [(one["values"], one["score"]) for one in told["runs"] if one["method"] == method]


def spaces(text, name, *overrides):
    """What is tuned of the student by a method, or a control."""
    read = checked(text, *overrides)
    entries_ = {**read.experiment.controlled_by, **{m.name: m for m in read.experiment.methods}}
    training = read.training_of(read.experiment.students["student"], read.methods[name])
    return spaces_of(entries_[name], read.methods[name], training, fitted=False)


# --------------------------------------------------------------------------------------------- budgets


def test_every_method_and_every_control_has_as_many_trials(tuned):
    _, told = tuned
    assert [one["method"] for one in told["chosen"]] == ENTRIES
    for method in ENTRIES:
        assert len(trials_of(told, method)) == 5
        assert trials_of(told, method)[0][0] == {}


def test_a_trial_has_the_values_that_are_told(tuned):
    root, told = tuned
    found = results(root)
    for one in told["runs"]:
        inputs = found[f"tuning/student/{one['method']}/trial-{one['trial']}"].manifest["inputs"]
        losses = {loss["name"] or loss["kind"]: loss for loss in inputs["losses"]}
        for key, value in one["values"].items():
            term, _, last = key.partition(".")
            assert (
                inputs["training"]["optimizer"]["lr"] if term == "training" else losses[term][last]
            ) == value


def test_values_stand_in_their_ranges(tuned):
    _, told = tuned
    for chosen in told["chosen"]:
        for values, _ in trials_of(told, chosen["method"])[1:]:
            assert values.keys() == chosen["spaces"].keys()
            for key, value in values.items():
                space = chosen["spaces"][key]
                assert space["low"] <= value <= space["high"] and value == float(f"{value:.3g}")


def test_trials_are_scored_on_the_validation_share_and_never_see_the_test_set(tmp_path, monkeypatch):
    asked = []
    original = SampleSet.split
    run(BASE, tmp_path, roles=["teacher"])
    monkeypatch.setattr(
        SampleSet,
        "split",
        lambda self, name, *rest, **more: asked.append(name) or original(self, name, *rest, **more),
    )
    told = tune(experiment(BASE, tmp_path), 2)
    assert asked and "test" not in asked
    samples = 126  # a tenth of 1,257
    for one in told["runs"]:
        assert (one["score"] * samples) == pytest.approx(round(one["score"] * samples))


def test_of_a_trial_only_its_scores_and_its_log_are_kept(tuned):
    root, _ = tuned
    found = {place: result for place, result in results(root).items() if place.startswith("tuning/")}
    assert len(found) == 4 * 5
    for result in found.values():
        assert set(result.manifest["files"]) == {"metrics.jsonl"}
        assert result.metrics()[-1]["validation"]["accuracy"] == result.manifest["scores"]["accuracy"]


def test_trials_are_trained_by_a_seed_that_the_students_do_not_have(tuned):
    root, told = tuned
    seeds = {r.manifest["seed"] for place, r in results(root).items() if place.startswith("tuning/")}
    assert seeds == {told["seed"]} == {2}


def test_the_best_is_the_highest_and_of_equal_ones_the_first():
    search = Search("student", checked(BASE).experiment.methods[0], {})
    for number, score in enumerate([0.5, None, 0.75, 0.75]):
        search.ask(number).score = score
    assert search.best.number == 2


def test_where_every_trial_stops_there_is_no_best():
    search = Search("student", checked(BASE).experiment.methods[0], {})
    search.ask(0), search.ask(1)
    assert search.best is None


def test_teachers_stay_as_they_are_whatever_a_trial_changes(tmp_path):
    text = BASE.replace(
        "teacher: {model: {kind: mlp, hidden: [24]}}",
        "teachers: {big: {model: {kind: mlp, hidden: [24]}}, "
        "assistant: {model: {kind: mlp, hidden: [16]}, from: big, method: kd}}",
    ).replace("  - kd\n", "  - {use: kd, teacher: assistant}\n")
    tune(experiment(text.split("  - name: mine")[0], tmp_path), 3)
    found = [place for place in results(tmp_path) if place.startswith("teachers/assistant")]
    assert found == ["teachers/assistant/seed-0"]


# ------------------------------------------------------------------------------------------ going on


def test_the_same_again_trains_nothing(tuned, monkeypatch):
    root, told = tuned
    trained = count_training(monkeypatch)
    assert tune(experiment(BASE, root), 5) == told
    assert trained == []


def test_more_trials_begin_with_those_that_were_made(tmp_path, monkeypatch):
    few = tune(experiment(BASE, tmp_path), AT_ONCE + 1)
    more = tune(experiment(BASE, tmp_path), AT_ONCE + 3)
    for method in ENTRIES:
        assert trials_of(more, method)[: AT_ONCE + 1] == trials_of(few, method)
    assert len({json.dumps(values) for values, _ in trials_of(more, "kd")}) > AT_ONCE


def test_a_tuning_that_was_interrupted_comes_to_the_same(tuned, tmp_path, monkeypatch):
    _, told = tuned
    stop = Stop()
    begun = experiment(BASE, tmp_path, stop=stop)
    original = type(begun).lock_step

    def interrupted(self, group):
        if group[0].role == "student":
            stop.signal = 2
        return original(self, group)

    monkeypatch.setattr(type(begun), "lock_step", interrupted)
    with pytest.raises(Interrupted):
        tune(begun, 5)
    monkeypatch.setattr(type(begun), "lock_step", original)
    assert not [entry for entry in disposable(entries(Store(tmp_path))) if entry.state == "finished"]
    again = tune(experiment(BASE, tmp_path), 5)
    assert [trials_of(again, method) for method in ENTRIES] == [trials_of(told, method) for method in ENTRIES]


def test_trials_are_kept_by_clean(tuned):
    root, _ = tuned
    found = entries(Store(root))
    assert sum("tuning" in entry.folder.parts for entry in found) == 4 * 5
    assert not [entry for entry in disposable(found) if "tuning" in entry.folder.parts]


def test_a_trial_that_stops_counts_and_is_not_tried_again(tmp_path, monkeypatch):
    wild = BASE.replace("  - kd\n", "  - {use: kd, tune: {training.optimizer.lr: [1.0e+30, 1.0e+31]}}\n")
    wild = wild.replace("kind: adamw, lr: 2e-3", "kind: sgd, lr: 0.05").split("  - name: mine")[0]
    told = tune(experiment(wild, tmp_path), 3)
    assert [score for _, score in trials_of(told, "kd")[1:]] == [None, None]
    assert told["chosen"][-1]["values"] == {}
    trained = count_training(monkeypatch)
    assert tune(experiment(wild, tmp_path), 3) == told
    assert trained == []


# ----------------------------------------------------------------------------------------- the outcome


def test_the_config_of_the_chosen_values_is_compared_by_fresh_seeds(tuned):
    root, told = tuned
    path = root / "base/base-tuned.yaml"
    assert told["configs"] == [str(path)]
    read = config.read(path)
    assert (read.experiment.name, read.experiment.seeds) == ("base-tuned", [0, 1])
    assert [method.name for method in read.experiment.methods] == ["kd", "kd-tuned", "mine", "mine-tuned"]
    before = checked(BASE)
    for name in ("kd", "mine"):
        assert read.methods[name].losses == before.methods[name].losses
    values = {one["method"]: one["values"] for one in told["chosen"]}
    losses = {
        f"{name}.{loss.label}.{key}": value
        for name in ("kd-tuned", "mine-tuned")
        for loss in read.methods[name].losses
        for key, value in loss.model_dump().items()
    }
    for name in ("kd", "mine"):
        for key, value in values[name].items():
            if not key.startswith("training"):
                assert losses[f"{name}-tuned.{key}"] == value
    student = read.experiment.students["student"]
    alone = read.training_of(student, read.methods["alone"]).optimizer.lr
    assert alone == values["alone"].get("training.optimizer.lr", 2e-3)
    untuned = read.training_of(student, read.methods["kd"])
    assert untuned == before.training_of(student, before.methods["kd"])


def test_the_table_shows_the_budget(tuned):
    root, _ = tuned
    run((root / "base/base-tuned.yaml").read_text(), root)
    rows = comparison(root, "base-tuned")["rows"]
    trials = {row["method"]: row["tuning_trials"] for row in rows if row["method"]}
    tuned_names = {"alone", "label-smoothing", "kd-tuned", "mine-tuned"}
    assert trials == {name: 5 if name in tuned_names else None for name in trials}
    found = compare.comparison(compare.materials(Store(root), ["base-tuned"]))
    head, lines = compare.table.cells(found["rows"], every=False)
    assert {line[1]: line[head.index("trials")] for line in lines}["student kd-tuned"] == "5"
    named = "alone, label-smoothing, kd-tuned and mine-tuned"
    assert f"tuned by 5 trials each, on validation data: {named}" in found["remarks"]
    assert "not tuned, or less than alone beside which they stand: kd and mine" in found["remarks"]


def test_what_was_trained_as_published_is_shared(tmp_path, monkeypatch):
    run(BASE, tmp_path)
    tune(experiment(BASE, tmp_path), 2)
    trained = count_training(monkeypatch)
    run((tmp_path / "base/base-tuned.yaml").read_text(), tmp_path)
    assert not [title for title in trained if "teacher" in title]
    assert not (tmp_path / "base-tuned/students/student/kd").exists()
    assert (tmp_path / "base-tuned/students/student/kd-tuned/seed-0/result.json").is_file()


def test_each_student_gets_a_config_of_its_own(tmp_path):
    text = BASE.replace(
        "student: {model: {kind: mlp, hidden: [8]}}",
        "students: {a: {model: {kind: mlp, hidden: [8]}}, b: {model: {kind: mlp, hidden: [4]}}}",
    ).split("  - name: mine")[0]
    told = tune(experiment(text, tmp_path), 2)
    assert [path.rpartition("/")[2] for path in told["configs"]] == ["base-tuned-a.yaml", "base-tuned-b.yaml"]
    for name, path in zip("ab", told["configs"], strict=True):
        assert list(config.read(Path(path)).experiment.students) == [name]
    assert {(one["model"], one["method"]) for one in told["chosen"]} == {
        (model, method) for model in "ab" for method in ENTRIES[:3]
    }


def test_budgets_that_are_not_alike_are_said():
    def row(method, trials):
        role = "control" if method in CONTROLS else "student"
        blank = dict.fromkeys([*compare.KEYS, "experiment"])
        return blank | {"role": role, "model": "s", "method": method, "tuning_trials": trials, "gain": 0.01,
                        "verdict": "better" if role == "student" else None, "gain_interval": [0.0, 0.02],
                        "gain_seeds": 5, "mean": 0.5}  # fmt: skip

    told = remarks([row("alone", 10), row("kd", 10), row("dkd", 20), row("at", None)], [])
    assert "tuned by 10 trials each, on validation data: alone and kd" in told
    assert "tuned by 20 trials each, on validation data: dkd" in told
    assert "not tuned, or less than alone beside which they stand: at" in told
    assert "tuned more than alone, so that a gain may be the tuning's: dkd" in told
    assert not [line for line in remarks([row("alone", None), row("kd", None)], []) if "tuned" in line]


# ---------------------------------------------------------------------------------------------- spaces


def test_what_is_tuned_where_nothing_is_said():
    shown = {key: (space.low, space.high, space.log) for key, space in spaces(BASE, "kd").items()}
    assert shown == {
        "training.optimizer.lr": (0.0005, 0.008, True),
        "kd.weight": (0.09, 9, True),
        "kd.temperature": (1, 20, True),
    }
    assert list(spaces(BASE, "alone")) == ["training.optimizer.lr"]
    assert list(spaces(BASE, "label-smoothing")) == ["training.optimizer.lr", "ce.label_smoothing"]
    assert list(spaces(BASE, "mine")) == ["training.optimizer.lr", "hint.weight"]
    assert list(spaces(BASE, "shuffled-teacher", "controls=all")) == list(spaces(BASE, "kd"))


def test_a_term_that_stands_alone_has_no_weight_to_tune():
    assert list(spaces(BASE, "kd", "methods.0={name: kd, use: logit-mse}")) == ["training.optimizer.lr"]


def test_a_term_is_called_as_it_was_published():
    keys = spaces(BASE, "kd", "methods.kd={use: kd, set: {kd.name: soft}}")
    assert {"kd.weight", "kd.temperature"} < keys.keys()
    entry = checked(BASE, "methods.kd={use: kd, set: {kd.name: soft}}").experiment.methods[0]
    assert with_values(entry, {"kd.weight": 2.0}, None).set == {"kd.name": "soft", "kd.weight": 2.0}


@pytest.mark.parametrize("name", sorted(config.published_methods().keys() - {"ppo", "kickstarting"}))
def test_every_published_method_can_have_the_values_that_are_tried(name):
    two = BASE.replace("teacher: {", "teachers: {one: {model: mlp, seed: 1}, two: {").replace(
        "[24]}}", "[24]}}}"
    )
    kinds = [term["kind"] for term in config.published_methods()[name].losses]
    teacher = ", teacher: one" if any(LOSSES[kind].needs_teacher for kind in kinds) else ""
    joint = name in ("aekd", "ca-mkd", "ebkd")
    text = two.split("methods:")[0] + f"methods: [{{name: it, use: {name}{teacher * (not joint)}}}]"
    read = checked(text)
    [entry] = read.experiment.methods
    training = read.training_of(read.experiment.students["student"], read.methods["it"])
    for key, space in spaces_of(entry, read.methods["it"], training, fitted=False).items():
        for value in ends(space):
            changed = with_values(entry, {key: value}, training)
            again = config.Config(read.experiment.model_copy(update={"methods": [changed]}), read.source)
            assert len(again.methods["it"].losses) == len(read.methods["it"].losses)


def test_a_space_of_ones_own_is_all_that_is_tuned():
    text = BASE.replace(
        "  - kd\n",
        "  - {use: kd, tune: {kd.temperature: [1, 2], kd.weight: {low: 1, high: 3, whole: true}}}\n",
    )
    found = spaces(text, "kd")
    assert list(found) == ["kd.temperature", "kd.weight"]
    search = Search("student", checked(text).experiment.methods[0], found)
    drawn = [search.ask(number).values for number in range(20)][1:]
    assert {values["kd.temperature"] for values in drawn} == {1, 2}
    assert {values["kd.weight"] for values in drawn} == {1, 2, 3}
    assert all(isinstance(values["kd.weight"], int) for values in drawn)


def test_a_control_can_say_what_is_tuned_of_it():
    text = f"{BASE}\ncontrols: [{{name: alone, tune: {{training.clip: [1.0, 5.0]}}}}]"
    assert spaces(text, "alone") == {"training.clip": [1.0, 5.0]}


def test_values_in_place_of_parts_that_are_missing_are_of_the_trainings_kind():
    read = checked(BASE)
    training = read.training_of(read.experiment.students["student"], read.methods["kd"])
    changed = with_values(
        read.experiment.methods[0], {"training.optimizer.lr": 0.1, "training.clip": 1.0}, training
    )
    assert (changed.training.optimizer.kind, changed.training.optimizer.lr, changed.training.clip) == (
        "adamw",
        0.1,
        1.0,
    )
    both = read.experiment.methods[0].model_copy(update={"training": changed.training})
    own = config.Config(read.experiment.model_copy(update={"methods": [both]}), read.source)
    merged = own.training_of(read.experiment.students["student"], own.methods["kd"])
    assert (merged.optimizer.lr, merged.epochs, merged.optimizer.weight_decay) == (0.1, 2, 0.01)


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("{use: kd, tune: {kd.temperature: {low: 0, high: 2}}}", "tune.kd.temperature: 0.0 is out of range"),
        ("{use: kd, tune: {kd.temprature: [1, 2]}}", "did you mean 'temperature'"),
        ("{use: kd, tune: {dk.temperature: [1, 2]}}", "'dk' is no term of this mix; did you mean 'kd'?"),
        ("{use: kd, tune: {trainign.optimizer.lr: [1, 2]}}", "did you mean 'training'?"),
        ("{use: kd, tune: {training.clip.norm: [1, 2]}, training: {clip: 3.0}}", "a mapping is not a number"),
        ("{use: kd, tune: {kd: [1, 2]}}", "'kd' is a term, and none of its keys is named"),
        ("{use: kd, tune: {training.epochs: [1, 2]}}", "unknown key"),
        ("{use: kd, tune: {training.optimizer.lr: [0.1, fast]}}", "a number"),
        ("{use: kd, tune: {kd.weight: {low: 2, high: 1}}}", "low: 2 is not less than high: 1"),
        ("{use: kd, tune: {kd.weight: {low: 0, high: 1, log: true}}}", "a logarithmic scale starts above 0"),
        ("{use: kd, tune: {kd.weight: [1]}}", "write 2 or more"),
        ("{use: kd, tune: {}}", "write 1 or more"),
        ("{use: kd, training: {epochs: 3}}", "unknown key"),
        ("{use: kd, tune: {training: [1, 2]}}", "none of the training's keys is named"),
        ("{use: kd, tune: {kd.teacher: [teacher, nosuch]}}", "tune.kd.teacher: there is no teacher 'nosuch'"),
        ("{use: kd, tune: {kd.first_epoch: [1, 20]}}", "tune.kd.first_epoch: 'kd' counts in none of the 2 epochs"),
        ("{use: kd, tune: {training.mixup: [0.0, 0.5]}, set: {ce.mask: labelled}}", "the samples are mixed of two"),
        ("{use: kd, tune: {kd.weight: {low: 0.5, high: 2, whole: true}}}", "ends in whole numbers"),
        ("{use: kd, tuning_trials: 0}", "at least 1"),
    ],
)  # fmt: skip
def test_a_method_that_cannot_be_tuned_so_is_told(method, said):
    text = BASE.replace("  - kd\n", f"  - {method}\n")
    assert said in problems(text)
    assert problems(text).count("<text>:10:") == 1


@pytest.mark.parametrize(
    "method",
    [
        "{name: kd, losses: [{kind: kd, name: null}], tune: {kd.weight: [1, 2]}}",
        "{use: kd, training: null, tune: {training.optimizer.lr: [0.1, 0.2]}}",
    ],
)
def test_a_key_of_which_nothing_is_said_can_be_tuned(method):
    text = BASE.replace("  - kd\n", f"  - {method}\n")
    assert len(checked(text).experiment.methods[0].tune) == 1


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        ("[alone, alone]", "controls.1: a second control 'alone'"),
        ("[{name: alone, set: {kd.weight: 1}}]", "'kd' is no term of this mix"),
        ("[{name: alone, tune: {ce.label_smoothing: [0, 2]}}]", "2 is out of range"),
        ("[alnoe]", "alone"),
        ("[{nme: alone}]", "did you mean 'name'"),
        ("[{name: alone, set: {ce.kind: kd}}]", "its terms stay, with weights above 0"),
        ("[{name: alone, set: {ce.weight: 0}}]", "its terms stay, with weights above 0"),
        ("[{name: alone, set: {ce.first_epoch: 20}}]", "counts in none of the 2 epochs"),
        ("[{name: alone, set: {ce.mask: teacher-correct}}]", "looks at no teacher"),
    ],
)
def test_a_control_that_cannot_be_is_told(controls, said):
    assert said in problems(f"{BASE}\ncontrols: {controls}")


def test_a_wrong_control_is_told_with_everything_else():
    text = f"{BASE}\ncontrols: [{{name: alone, set: {{ce.wieght: 2}}}}]"
    assert {"devce", "ce.wieght"} <= set(re.findall(r"[\w.]+", problems(text.replace("device", "devce"))))


def test_a_term_whose_name_has_dots_can_be_tuned():
    text = BASE.replace("{kind: ce, weight: 0.5}", "{kind: kd, name: soft.er}")
    found = spaces(text, "mine")
    assert list(found) == ["training.optimizer.lr", "soft.er.weight", "hint.weight"]
    changed = with_values(checked(text).experiment.methods[1], {"soft.er.weight": 3.0}, None)
    assert changed.losses[0].weight == 3.0


def test_smoothing_is_tried_below_one():
    text = BASE.replace("{kind: ce, weight: 0.5}", "{kind: ce, label_smoothing: 0.6}")
    assert spaces(text, "mine")["ce.label_smoothing"].high < 1


def test_values_that_do_not_go_together_are_a_trial_without_a_score(tmp_path):
    text = BASE.replace("kind: adamw, lr: 2e-3", "kind: sgd, lr: 0.01").split("  - name: mine")[0]
    both = "tune: {training.optimizer.nesterov: [true, false], training.optimizer.momentum: [0.0, 0.9]}"
    told = tune(experiment(text.replace("  - kd\n", f"  - {{use: kd, {both}}}\n"), tmp_path), 9)
    impossible = {"training.optimizer.nesterov": True, "training.optimizer.momentum": 0.0}
    found = [(values == impossible, score is None) for values, score in trials_of(told, "kd")]
    assert (True, True) in found and all(first == second for first, second in found)


def test_a_method_that_always_stops_has_no_tuned_twin(tmp_path):
    text = BASE.replace("  - kd\n", "  - {use: kd, training: {optimizer: {kind: sgd, lr: 1e30}}}\n")
    told = tune(experiment(text.split("  - name: mine")[0], tmp_path), 2)
    assert told["chosen"][-1] | {"spaces": {}} == {
        "model": "student", "method": "kd", "spaces": {}, "as_configured": None, "trial": None, "score": None,
        "values": {},
    }  # fmt: skip
    [method] = config.read(Path(told["configs"][0])).experiment.methods
    assert (method.name, method.tuning_trials) == ("kd", None)


def test_a_method_of_which_nothing_better_was_found_stands_once(tmp_path):
    told = tune(experiment(BASE, tmp_path), 1)
    methods = config.read(Path(told["configs"][0])).experiment.methods
    assert [(method.name, method.tuning_trials) for method in methods] == [("kd", 1), ("mine", 1)]


def test_what_is_null_stays_null(tmp_path):
    text = BASE.replace("epochs: 2,", "epochs: 2, clip: 0.01,").replace(
        "  - kd\n", "  - {use: kd, training: {clip: null}, tune: {training.ema: [null, 0.5]}}\n"
    )
    told = tune(experiment(text.split("  - name: mine")[0], tmp_path), 4)
    read = config.read(Path(told["configs"][0]))
    for name in set(read.methods) - {*CONTROLS}:
        assert read.training_of(read.experiment.students["student"], read.methods[name]).clip is None


def test_a_shorter_tuning_leaves_the_longer_ones_trials(tmp_path):
    text = BASE.split("  - name: mine")[0]
    tune(experiment(text, tmp_path), 4)
    tune(experiment(text, tmp_path), 2)
    assert not [entry for entry in disposable(entries(Store(tmp_path))) if "tuning" in entry.folder.parts]
    tune(experiment(text.replace("  - kd", "  - {use: kd, tune: {kd.weight: [1, 2]}}"), tmp_path), 2)
    gone = {entry.folder.parent.name for entry in disposable(entries(Store(tmp_path)))}
    assert "kd" in gone, "of other spaces"


def test_teachers_of_the_trials_seed_are_kept_by_clean(tmp_path, monkeypatch):
    text = BASE.split("  - name: mine")[0].replace("hidden: [24]}}", "hidden: [24]}, seeds: each}")
    told = tune(experiment(text, tmp_path), 1)
    assert (tmp_path / f"base/teachers/teacher/seed-{told['seed']}/result.json").is_file()
    assert not [entry for entry in disposable(entries(Store(tmp_path))) if entry.state == "finished"]


def test_a_name_that_grows_too_long_is_told_first(tmp_path):
    with pytest.raises(
        ConfigError, match=r"'x*-tuned', as it would be called when tuned, is longer than 100"
    ):
        tune(experiment(BASE, tmp_path, f"methods.mine.name={'x' * 97}"), 1)
    assert not list(tmp_path.iterdir())


def test_without_a_validation_share_nothing_is_tuned(tmp_path):
    with pytest.raises(ConfigError, match="tuning needs a validation share"):
        tune(experiment(BASE, tmp_path, "dataset.validation=0"), 2)
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_taken_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"methods\.kd\.name: 'kd' when tuned would be 'kd-tuned'"):
        tune(experiment(BASE, tmp_path, "methods.mine.name=kd-tuned"), 2)


def test_a_layer_that_is_not_there_is_told_before_anything_is_trained(tmp_path):
    text = BASE.replace(
        "  - name: mine\n", "  - name: mine\n    tune: {hint.student_layer: [body.0, body.9]}\n"
    )
    with pytest.raises(ConfigError, match=r"body\.9"):
        tune(experiment(text, tmp_path), 2)
    assert not list(tmp_path.iterdir())


def test_without_optuna_the_extra_is_named(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    code = "import sys; sys.modules['optuna'] = None; from kdrun.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "tune", "base.yaml"],
        cwd=tmp_path, env=surroundings(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2,
        "error: kdrun tune needs optuna: pip install 'kdrun[tune]'\n",
    )


# ------------------------------------------------------------------------------------------ the command


def test_the_command_prints_what_was_chosen_and_what_comes_next(tuned, tmp_path):
    root, told = tuned
    (tmp_path / "base.yaml").write_text(BASE)
    done = command("tune", "base.yaml", "--trials", 5, "--out", root, folder=tmp_path)
    assert done.code == 0, done.err
    assert done.out.startswith("base: 5 trials each, by seed 2; accuracy in % on the validation share\n")
    for one in told["chosen"]:
        [line] = [line for line in done.out.splitlines() if line.split()[:2] == ["student", one["method"]]]
        assert f"{100 * one['score']:.2f}" in line
    assert done.err.endswith(f"next: kdrun compare {root}/base/base-tuned.yaml\n")
    as_json = command("tune", "base.yaml", "--trials", 5, "--out", root, "--json", "-q", folder=tmp_path)
    assert json.loads(as_json.out) == told


def test_the_trials_of_a_tuning_are_shown_by_status(tuned, tmp_path):
    root, _ = tuned
    shown = json.loads(command("status", "--out", root, "--json", folder=tmp_path).out)
    trials = [one for one in shown if "/tuning/" in one["folder"]]
    assert len(trials) == 4 * 5 and {one["state"] for one in trials} == {"finished"}


def test_the_config_that_is_written_says_where_it_comes_from(tuned):
    root, _ = tuned
    text = (root / "base/base-tuned.yaml").read_text()
    assert text.startswith(
        "# Written by `kdrun tune`: 5 trials of each control and each method, trained by seed 2"
    )
    assert Source.parse(text).data["controls"][0]["name"] == "alone"
