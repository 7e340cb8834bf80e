"""``kdrun check --profile``: where the time of a step goes, and what would help."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from commands import TINY, command
from kdrun import cache, checking, profiling
from kdrun.advice import Part, Profile
from kdrun.console import Console
from kdrun.data.synthetic import Synthetic
from kdrun.store import Store
from kdrun.train import fit
from support import checked, run

TEXT = """
name: profiled
device: cpu
dataset: {kind: synthetic, shape: [3, 8, 8], samples: 70, test_samples: 32, classes: 4}
seeds: [0, 1]
training: {epochs: 3, batch_size: 16, optimizer: {kind: sgd, lr: 0.02}}
teacher: {model: {kind: cnn, width: 4, hidden: 12}}
student: {model: {kind: mlp, hidden: [8]}}
controls: none
methods: METHODS
"""
MAPS = "student.model={kind: cnn, width: 2, hidden: 8}"
"""A student whose layers can be compared with the teacher's."""


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(profiling, "SECONDS", 0.05)


def profiles(root, *overrides, methods="[kd]"):
    """The profile of each group, teachers first."""
    config, store = checked(TEXT.replace("METHODS", methods), *overrides), Store(root)
    told = checking.check(config, store, Console(quiet=True), on_device=True)
    return profiling.profile(told.plan, told.dataset, store, told.device)


def named(profile):
    return [(part.of, part.what) for part in profile.parts]


def how(profile):
    """How the teachers answer."""
    return [part.what for part in profile.parts if part.kind == "teacher"]


# ------------------------------------------------------------------------------------------ measuring


def test_every_part_is_named_in_its_order_and_they_cover_the_step(tmp_path, monkeypatch):
    own = SimpleNamespace(perf_counter=time.process_time)  # what other processes take is not measured
    monkeypatch.setattr(profiling, "time", own)
    teachers, students = profiles(tmp_path, MAPS, methods="[kd, hint]")
    assert named(teachers) == [
        ("data", "batches"),
        *[("teacher", what) for what in ("forward", "loss ce", "backward", "optimizer")],
    ]
    assert named(students) == [
        ("data", "batches"),
        ("teacher teacher", "looked up"),
        ("teacher teacher", "live, fp32"),
        *[("student alone", what) for what in ("forward", "loss ce", "backward", "optimizer")],
        *[("student kd", what) for what in ("forward", "loss ce", "loss kd", "backward", "optimizer")],
        *[("student hint", what) for what in ("forward", "loss ce", "loss hint", "backward", "optimizer")],
    ]
    for profile in (teachers, students):
        assert profile.steps >= profiling.LEAST
        assert all(part.seconds > 0 for part in profile.parts)
        assert profile.step_seconds / 2 < profile.seconds < 2 * profile.step_seconds


@pytest.mark.parametrize(
    "overrides", [("training.clip=0.5", MAPS), ("training.stack=true",)], ids=["alone", "stacked"]
)
def test_the_parts_do_what_a_step_does(tmp_path, overrides):
    """The weights after a step in parts are those after a whole one, and after one of ``fit``, to the bit."""
    made, methods = [], "[kd, hint]" if MAPS in overrides else "[kd, dkd]"
    for action in ("_step_in_parts", "_whole_step", "fit"):
        config = checked(TEXT.replace("METHODS", methods), "training.ema=0.9", *overrides)
        told = checking.check(config, Store(tmp_path), Console(quiet=True), on_device=True)
        runs = [one for one in told.plan.runs if one.role == "student" and one.seed == 0]
        stand = profiling.StandIn(told.dataset, {one.draw for one in runs}, told.device)
        group = profiling.Group(runs, told.plan, stand, Store(tmp_path), told.device)
        if action == "fit":
            for student in group.students:
                student.go_to(0)
            first_batches = stand.batches
            stand.batches = lambda draw, epoch, first, begin=first_batches: begin(draw, epoch)
            with pytest.raises(StopIteration):
                fit(group.students, stand, 1, Console(quiet=True), iter([None]).__next__)
        else:
            getattr(group, action)()
        made.append([student.model.state_dict() for student in group.students])
    for parts, whole, trained in zip(*made, strict=True):
        assert all((parts[name] == whole[name]).all() for name in whole)
        assert all((parts[name] == trained[name]).all() for name in trained)


def test_nothing_is_written_and_no_table_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.Faculty, "_compute", None)
    _, students = profiles(tmp_path / "runs")
    assert how(students) == ["looked up"]
    assert not (tmp_path / "runs").exists()


def test_finished_teachers_are_those_of_the_store(tmp_path, monkeypatch):
    run(TEXT.replace("METHODS", "[kd]"), tmp_path, roles=["teacher"])
    monkeypatch.setattr(profiling, "finished_network", None)
    assert how(profiles(tmp_path)[1]) == ["looked up"]


@pytest.mark.parametrize(
    "overrides, answers",
    [
        ((), "looked up"),
        (("dataset.augmentation={copies: 2, parts: strong}",), "looked up"),
        (("dataset.augmentation=standard",), "live, fp32"),
        (("training.cache=false",), "live, fp32"),
        (("training.mixup=0.3",), "live, fp32"),
        (("training.precision=bf16", "training.cache=false"), "live, bf16"),
    ],
)
def test_teachers_answer_as_in_training(tmp_path, overrides, answers):
    (told,) = how(profiles(tmp_path, *overrides)[1])
    assert told.startswith(answers)


def test_stacked_students_are_profiled_together_over_seeds(tmp_path):
    *_, students = profiles(tmp_path, "training.stack=true")
    assert "seeds 0, 1" in students.title
    assert named(students)[2:] == [
        ("stacked: 4 students", "forward"),
        ("student alone", "loss ce"),
        ("student kd", "loss ce"),
        ("student kd", "loss kd"),
        ("stacked: 4 students", "backward"),
        ("stacked: 4 students", "optimizer"),
    ]
    assert students.alike == []


def test_a_compiled_student_is_two_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.compile", lambda function: function)
    *_, students = profiles(tmp_path, "student.training.compile=true")
    assert ("student kd", "forward and losses, compiled") in named(students)


@pytest.mark.parametrize("methods", ["[kd]", "[hint]"])
def test_random_samples_stand_for_data_that_are_not_at_hand(tmp_path, monkeypatch, methods):
    monkeypatch.setattr(Synthetic, "at_hand", property(lambda self: False))
    monkeypatch.setattr(Synthetic, "load", None)
    for profile in profiles(tmp_path, MAPS, methods=methods):
        assert "data" not in {part.kind for part in profile.parts}
        assert any("is not known" in note for note in profile.notes)


def test_the_longest_stretch_of_a_training_is_measured(tmp_path):
    late = "[{name: late, losses: [ce, {kind: kd, first_epoch: 2}]}]"
    *_, students = profiles(tmp_path, methods=late)
    assert any(note.startswith("student late: measured as in epoch 2 of 3") for note in students.notes)


# --------------------------------------------------------------------------------------------- advice


def made(**changes):
    """A profile in which nothing stands out; ``changes`` by field, and in ms by kind."""
    kinds = {"data": 1, "teacher": 1, "forward": 10, "loss": 1, "backward": 20, "optimizer": 5}
    owners = {"data": "data", "teacher": "teacher big"}
    kinds |= {kind: changes.pop(kind) for kind in list(changes) if kind in kinds}
    parts = [Part(owners.get(kind, "student kd"), kind, kind, ms / 1e3) for kind, ms in kinds.items()]
    return replace(Profile("made up", 5, 0.04, parts), **changes)


@pytest.mark.parametrize(
    "cause, cured, words",
    [
        (
            {"teacher": 40, "lookup": {"teacher big": "CHANGE"}},
            {"teacher": 5},
            "teacher big, asked live, takes 52 % of the step: CHANGE",
        ),
        ({"teacher": 40, "lookup": {"teacher big": "CHANGE"}}, {"lookup": {}}, "CHANGE"),
        ({"bf16": True}, {"bf16": False}, "training.precision: bf16"),
        ({"bf16": True}, {"forward": 1, "backward": 1}, "training.precision: bf16"),
        (
            {"alike": ["student kd"] * 20},
            {"alike": ["student kd"]},
            "training.stack: true",
        ),
        (
            {"data": 20, "augmentation": "crop, flip", "reading": 0.002},
            {"data": 2},
            "augmentation (crop, flip)",
        ),
        ({"data": 20, "augmentation": "crop", "reading": 0.018}, {"data": 2}, "90 % of that reading"),
        ({"data": 20, "reading": 0.018}, {"data": 2}, "100 % of that reading"),
        ({"loss": 20}, {"loss": 5}, "takes 36 % of the time of student kd"),
        ({"crowd": "try OMP_NUM_THREADS=1"}, {"crowd": None}, "OMP_NUM_THREADS=1"),
    ],
)
def test_advice_comes_and_goes_with_its_cause(cause, cured, words):
    assert made().advice == []
    (told,) = made(**cause).advice
    assert words in told
    assert made(**cause | cured).advice == []


@pytest.mark.parametrize(
    "overrides, methods, change",
    [
        (("dataset.augmentation=standard",), "[kd]", "{copies: 4, parts: standard}"),
        (("training.cache=false",), "[kd]", "`training.cache: true`"),
        ((), "[kd]", None),
        (("dataset.augmentation=standard", MAPS), "[kd, hint]", None),
        (("dataset.augmentation=standard", "training.mixup=0.3"), "[kd]", None),
        (("dataset.augmentation=standard", "training.cache=false"), "[kd]", None),
    ],
    ids=["augmented", "not-cached", "looked-up", "layers", "mixed", "two-keys"],
)
def test_what_lets_a_teacher_be_looked_up(tmp_path, overrides, methods, change):
    found = profiles(tmp_path, *overrides, methods=methods)[1].lookup
    assert list(found) == (["teacher teacher"] if change else [])
    assert change is None or change in found["teacher teacher"]


def test_what_else_the_config_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "has_bf16", lambda device: True)
    monkeypatch.setattr(profiling, "crowded", lambda busy, threads: "crowded")
    monkeypatch.setattr(profiling, "DATA", 0.0)
    students = profiles(tmp_path, "dataset.augmentation=standard")[1]
    assert students.alike == ["student alone", "student kd"]
    assert students.bf16 and students.crowd == "crowded"
    assert students.augmentation == "crop, flip" and students.reading > 0
    assert not profiles(tmp_path, "training.precision=bf16")[1].bf16
    assert not profiles(tmp_path, "dataset.shape=[8]", "teacher.model={kind: mlp}")[1].bf16


# ------------------------------------------------------------------------------------------- the command


def test_the_command_says_it_as_tables_and_as_json(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    told = command("check", "tiny.yaml", "--profile", folder=tmp_path)
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    assert sum(line.split() == ["of", "part", "ms", "a", "step", "share"] for line in lines) == 2
    assert any(line.startswith("student kd") and "loss kd" in line for line in lines)
    found = json.loads(command("check", "tiny.yaml", "--profile", "--json", folder=tmp_path).out)
    assert [group["group"] for group in found["profile"]] == [
        "teacher/seed 0",
        "student: 2 students in lock step, seed 0",
    ]
    for group in found["profile"]:
        assert sum(part["share"] for part in group["parts"]) == pytest.approx(1)
        assert group["steps"] >= profiling.LEAST and group["step_seconds"] > 0
        assert {"notes", "advice"} <= group.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
    plain = command("check", "tiny.yaml", "--json", folder=tmp_path)
    assert "profile" not in json.loads(plain.out)


def test_a_narrow_terminal_shows_whole_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    (tmp_path / "tiny.yaml").write_text(TINY.replace("[kd]", "[kd, {name: a-rather-long-name, use: hint}]"))
    told = command("check", "tiny.yaml", "--profile", folder=tmp_path).out.splitlines()
    rows = [line for line in told if "a-rather-long-name" in line and "optimizer" in line]
    assert len(rows) == 1 and rows[0].rstrip().endswith("%") and len(rows[0].rstrip()) <= 80
