"""Teachers with `labels: given`, which see what the students see and no more."""

import pytest
import torch

from kdrun import assembly, evaluate
from kdrun.plan import plan
from support import checked, comparison, experiment, problems, results, run

TEXT = """
name: given
device: cpu
dataset: {kind: synthetic, shape: [1, 4, 4], samples: 48, test_samples: 24, classes: 3, labels_per_class: 4}
seeds: [0]
training: {epochs: 2, batch_size: 16, optimizer: {kind: adamw, lr: 0.01}}
teachers:
  few: {model: {kind: mlp, hidden: [8]}, labels: given}
  other: {model: {kind: mlp, hidden: [6]}, labels: given}
student: {model: {kind: mlp, hidden: [4]}}
controls: none
methods: [{name: taught, use: kd, teacher: few}]
"""


@pytest.fixture(autouse=True)
def little_measured(monkeypatch):
    monkeypatch.setattr(evaluate, "WARM_UP", 1)
    monkeypatch.setattr(evaluate, "ROUNDS", 2)


def drawn(text, *overrides):
    """The runs of a config's teachers by name, and of its students by method, of its first seed."""
    config = checked(text, *overrides)
    found = plan(config, assembly.open_dataset(config)).runs
    return {run_.name if run_.role == "teacher" else run_.method: run_ for run_ in reversed(found)}


def test_a_teacher_of_given_labels_is_drawn_as_a_student_is():
    runs = drawn(TEXT, "teachers.all={model: mlp}", "teachers.again={model: mlp, from: all, method: taught}")
    few, every = runs["few"], runs["all"]
    assert (few.draw.labels, few.draw.labelled_only, few.draw.purpose) == ("given", True, "teacher")
    assert (every.draw.labels, every.draw.labelled_only) == ("all", False)
    assert few.inputs["dataset"]["labels_per_class"] == 4
    assert "labels_per_class" not in every.inputs["dataset"]
    assert "labels" not in every.inputs


def test_its_labels_decide_a_teacher_s_fingerprint_and_no_other_s():
    ours, theirs = drawn(TEXT), drawn(TEXT, "dataset.labels_per_class=5")
    assert ours["few"].fingerprint != theirs["few"].fingerprint
    plain = "teachers.few.labels=all"
    ours, theirs = drawn(TEXT, plain), drawn(TEXT, plain, "dataset.labels_per_class=5")
    assert ours["few"].fingerprint == theirs["few"].fingerprint


def test_a_distilled_teacher_of_given_labels_learns_from_all_samples():
    distilled = "model: mlp, from: few, method: taught, labels: given, training: {labelled_share: 0.5}"
    taught = drawn(TEXT, f"teachers.again={{{distilled}}}")["again"]
    assert (taught.draw.labels, taught.draw.labelled_only, taught.draw.labelled_share) == (
        "given",
        False,
        0.5,
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["dataset.labels_per_class=null"],
            "teachers.few.labels: the students are given all samples and labels, so `labels: given` says nothing; "
            "remove it, or add `labels_per_class`, `leave_out` or a `transfer_set` to the data set",
        ),
        (
            ["teachers.few.weights=WEIGHTS"],
            "teachers.few: a teacher with `weights` is finished, so `labels` says nothing; remove it",
        ),
        (
            ["teachers.both={model: ensemble, from: [few, other], labels: given}"],
            "teachers.both: 'ensemble' is made of finished teachers, so `labels` says nothing; remove it",
        ),
        (["teachers.few.labels=some"], "teachers.few.labels: unknown value 'some'; known: all, given"),
        (
            ["teachers.few.training={labelled_share: 0.5}"],
            "teachers.few.training: this teacher learns from labelled samples only, so "
            "`labelled_share` says nothing; remove it",
        ),
        (
            ["teachers.few.labels=all", "teachers.few.training={labelled_share: 0.5}"],
            "remove it, or write `labels: given` for the teacher",
        ),
    ],
)
def test_given_labels_that_say_nothing_are_refused(tmp_path, overrides, words):
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    found = problems(TEXT, *(one.replace("WEIGHTS", str(weights)) for one in overrides))
    assert words in found, found


@pytest.mark.parametrize("other", ["given", "all"])
def test_the_comparison_says_which_teachers_saw_no_more_than_the_students(tmp_path, other):
    run(TEXT, tmp_path, f"teachers.other.labels={other}")
    remarks = comparison(tmp_path, "given")["remarks"]
    names = {"given": "few and other", "all": "few"}[other]
    expected = f"trained on what is given to the students: the teachers {names}"
    assert (expected if other == "given" else expected.replace("teachers", "teacher")) in remarks
    run(TEXT, tmp_path, "teachers.few.labels=all", "teachers.other.labels=all", "name=all")
    assert not any("given" in remark for remark in comparison(tmp_path, "all")["remarks"])


def test_of_a_data_set_that_is_wrong_nothing_else_is_said():
    told = problems(TEXT, "dataset.noise=none", "training.labelled_share=0.5")
    assert "dataset.noise" in told and "says nothing" not in told


def test_only_classes_that_are_given_are_taught(tmp_path):
    run(TEXT, tmp_path, "dataset.leave_out=[0]", "dataset.labels_per_class=null")
    protocol = results(tmp_path)["teachers/few/seed-0"].manifest["protocol"]
    assert protocol["left_out"] == "0" and protocol["train_samples"] == 32


def test_a_forest_of_given_labels_is_cross_fitted_to_what_it_is_given(tmp_path):
    """Its pupils may be the students, or a teacher that sees all samples."""
    setup = experiment(TEXT, tmp_path, "teachers.few.model={kind: forest, trees: 2}", "dataset.leave_out=[1]")
    forest = next(run_ for run_ in setup.run(roles=["teacher"]).runs if run_.name == "few")
    result, dataset, device = setup.finished(forest), setup.dataset, torch.device("cpu")
    own, every = (
        assembly.teacher(forest, result, dataset, device, given).out_of_fold.fold for given in (True, False)
    )
    assert len(own) == len(dataset.places(True)) == 32 and len(every) == 48
    assert torch.equal(every[dataset.places(True)], own) and own.max() == 4
    assert (every[dataset.labels("train") == 1] == 5).all()  # of which none of them has learnt
