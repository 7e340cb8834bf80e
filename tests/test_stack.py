"""Stacked students: small networks of one architecture that take their steps as one."""

import pytest
import torch

from kdrun.console import Console
from kdrun.stack import Team, teams, why_not
from kdrun.train import fit
from support import Ears, checked, experiment, outcome, results, run, students
from test_training import poison  # noqa: F401  # a fixture

LOGIT_METHODS = "[kd, dkd, nkd, dist, ttm, rld, wsld, logit-mse]"
TEXT = """
name: stacked
dataset: {kind: synthetic, shape: [1, 8, 8], samples: 96, test_samples: 64, classes: 4}
seeds: [0, 1]
training: {epochs: 2, batch_size: 16, stack: true, optimizer: {kind: sgd, lr: 0.005}}
teacher: {model: {kind: mlp, hidden: [24]}}
student: {model: {kind: mlp, hidden: [12]}}
methods: METHODS
"""


def text(methods=LOGIT_METHODS):
    return TEXT.replace("METHODS", methods)


def learnt(folder):
    return {
        place: {**result.weights(), **result.predictions()}
        for place, result in results(folder).items()
        if place.startswith("students")
    }


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("training.optimizer={kind: adamw, lr: 0.0003}", "training.ema=0.9", "training.clip=1.0"),
        ("student.model.batch_norm=true", "training.mixup=0.4"),
        ("student.model={kind: vit, dim: 8, depth: 1, heads: 2, patch: 4}", "training.optimizer.lr=0.001"),
        ("dataset.labels_per_class=3",),
    ],
    ids=["sgd", "adamw-ema-clip", "batch-norm-mixup", "vit", "few-labels"],
)
def test_stacked_students_learn_what_they_learn_alone(tmp_path, overrides):
    run(text(), tmp_path / "stacked", *overrides)
    run(text(), tmp_path / "alone", "training.stack=false", *overrides)
    stacked, alone = learnt(tmp_path / "stacked"), learnt(tmp_path / "alone")
    assert stacked.keys() == alone.keys() and len(alone) == 2 * 9
    for place, arrays in alone.items():
        for name, array in arrays.items():
            torch.testing.assert_close(
                torch.from_numpy(stacked[place][name]).double(),
                torch.from_numpy(array).double(),
                rtol=1e-3,
                atol=1e-5,
                msg=lambda told, name=name, place=place: f"{place} {name}: {told}",
            )


def test_losses_that_look_at_layers_can_be_stacked(tmp_path):
    methods = "[kd, rkd, hint, {name: crd, use: crd}]"
    run(text(methods), tmp_path / "stacked")
    run(text(methods), tmp_path / "alone", "training.stack=false")
    stacked, alone = learnt(tmp_path / "stacked"), learnt(tmp_path / "alone")
    for place, arrays in alone.items():
        logits = torch.from_numpy(stacked[place]["logits"])
        torch.testing.assert_close(logits, torch.from_numpy(arrays["logits"]), rtol=1e-3, atol=1e-4)


def test_one_pass_for_methods_and_seeds(tmp_path, monkeypatch):
    sizes = []
    step = Team.step

    def noted(self, lessons):
        sizes.append(len(self.members))
        step(self, lessons)

    monkeypatch.setattr(Team, "step", noted)
    run(text("[kd, dkd]"), tmp_path, roles=["teacher"])
    sizes.clear()
    run(text("[kd, dkd]"), tmp_path)
    assert set(sizes) == {2 * 3} and len(sizes) == 2 * 6


@pytest.mark.parametrize(
    "reason, overrides",
    [
        ("dropout", ["student.model.dropout=0.1"]),
        ("recurrent", ["student.model={kind: gru, hidden: 4}"]),
        ("convolutions", ["student.model={kind: cnn, width: 2}"]),
        ("compiled", ["training.compile=true"]),
    ],
)
def test_what_cannot_be_stacked_goes_alone_and_says_why(tmp_path, reason, overrides):
    made, *_ = students(text("[kd]"), *overrides)
    assert all(reason in why_not(student) for student in made.values())
    if reason != "compiled":
        ears = Ears()
        experiment(text("[kd]"), tmp_path, *overrides, console=ears).run()
        assert any("student/kd is not stacked: " in line and reason in line for line in ears.heard)
    assert [len(team.members) for team in teams(list(made.values()))] == [1, 1]


def test_students_are_not_stacked_unasked():
    made, *_ = students(text("[kd]"), "training.stack=false")
    assert [len(team.members) for team in teams(list(made.values()))] == [1, 1]


@pytest.mark.parametrize("optimizer", ["sgd", "{kind: sgd, momentum: 0.0}", "adamw"])
def test_a_stacked_student_goes_on_from_its_checkpoint(tmp_path, monkeypatch, optimizer):
    from test_resume import stopped

    key, methods = (
        f"training.optimizer={optimizer}",
        text("[kd, crd, {name: hot, use: kd, set: {kd.temperature: 9}}]"),
    )
    stopped(tmp_path / "stopped", monkeypatch, key, text=methods)
    run(methods, tmp_path / "stopped", key)
    run(methods, tmp_path / "whole", key)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_the_failure_of_one_is_its_own(poison):  # noqa: F811
    bad = "{name: bad, losses: [{kind: ce}, {kind: poison, step: 4, what: nan}]}"
    made, _, dataset, _ = students(text(f"[kd, {bad}]"))
    fit(list(made.values()), dataset, 2, Console(quiet=True), lambda: None)
    healthy, _, dataset, _ = students(text("[kd]"))
    fit(list(healthy.values()), dataset, 2, Console(quiet=True), lambda: None)
    assert made["bad"].failure is not None and made["kd"].failure is None
    for name, weight in healthy["kd"].model.state_dict().items():
        torch.testing.assert_close(made["kd"].model.state_dict()[name], weight, rtol=1e-3, atol=1e-5)


def test_stacking_is_part_of_the_fingerprint():
    prints = set()
    for value in ("true", "false"):
        _, _, _, planned = students(text("[kd]"), f"training.stack={value}")
        prints.add(next(r for r in planned.runs if r.method == "kd").fingerprint)
    assert len(prints) == 2 and checked(text("[kd]")).experiment.training.stack


@pytest.mark.parametrize("optimizer", ["{kind: sgd, lr: 0.05, weight_decay: 0.1}", "{kind: adamw, lr: 0.01}"])
@pytest.mark.parametrize(
    "mix",
    [
        "{name: feature, losses: [{kind: hint, weight: 0.1}]}",
        "{name: late, losses: [{kind: hint, weight: 0.1}, {kind: ce, first_epoch: 2}]}",
    ],
    ids=["feature", "late"],
)
def test_a_weight_that_no_term_reaches_stays_as_it_is(tmp_path, mix, optimizer):
    """Beside others it would get a gradient of 0, and with it decay and momentum."""
    key = f"training.optimizer={optimizer}"
    name = mix.split(",")[0].partition(": ")[2]
    run(text(f"[kd, {mix}]"), tmp_path / "stacked", key)
    run(text(f"[kd, {mix}]"), tmp_path / "alone", key, "training.stack=false")
    place = f"students/student/{name}/seed-0"
    stacked, alone = learnt(tmp_path / "stacked")[place], learnt(tmp_path / "alone")[place]
    for weight in ("classifier.weight", "body.0.0.weight"):
        torch.testing.assert_close(
            torch.from_numpy(stacked[weight]), torch.from_numpy(alone[weight]), rtol=1e-3, atol=1e-5
        )


def test_a_weight_that_does_not_learn_keeps_its_student_alone():
    made, *_ = students(text("[kd]"))
    made["kd"].model.classifier.bias.requires_grad_(False)
    assert "do not learn" in why_not(made["kd"])
