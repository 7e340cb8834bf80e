"""Stacked students: small networks of one architecture that take their steps as one."""

import shutil
import signal
from typing import Literal

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from kdrun import assembly, models, registry, stack, train
from kdrun.bookkeeping import Keeper, Seat
from kdrun.console import Console
from kdrun.contracts import Loss, LossConfig, Taps
from kdrun.errors import Interrupted, TrainingError
from kdrun.stack import Team, teams, why_not
from kdrun.train import fit
from support import Ears, checked, checkpoint_always, experiment, outcome, results, run, students
from test_training import poison  # noqa: F401  # a fixture

LOGIT_METHODS = "[kd, dkd, nkd, dist, ttm, rld, wsld, logit-mse]"
TEXT = """
name: stacked
dataset: {kind: synthetic, shape: [1, 8, 8], samples: 96, test_samples: 64, classes: 4}
seeds: [0, 1]
training: {epochs: 2, batch_size: 16, stack: true, optimizer: {kind: sgd, lr: 0.005}}
teacher: {model: {kind: mlp, hidden: [24]}}
student: {model: {kind: mlp, hidden: [12]}}
controls: none
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
        (
            "student.model={kind: vit, dim: 8, depth: 1, heads: 2, patch: 4}",
            "training.optimizer.lr=0.0001",
            "training.epochs=1",
        ),
        (
            "student.model={kind: vit, dim: 8, depth: 1, heads: 2, patch: 4, distillation_token: true}",
            "training.optimizer.lr=0.0001",
            "training.epochs=1",
        ),
        ("dataset.labels_per_class=3",),
        ("dataset.leave_out=[0]",),
    ],
    ids=["sgd", "adamw-ema-clip", "batch-norm-mixup", "vit", "vit-token", "few-labels", "class-left-out"],
)
def test_stacked_students_learn_what_they_learn_alone(tmp_path, monkeypatch, overrides):
    config = text()
    if "vit" in str(overrides):
        config = text(
            LOGIT_METHODS.replace("dist, ", "")
        )  # which divides by how the logits vary: here not at all
    run(config, tmp_path / "alone", "training.stack=false", *overrides)
    if "vit" in str(overrides):  # on a GPU it is stacked, convolution and all
        monkeypatch.setattr(stack, "why_not", lambda student: None)
    sizes = noted_sizes(monkeypatch)
    run(config, tmp_path / "stacked", *overrides)
    stacked, alone = learnt(tmp_path / "stacked"), learnt(tmp_path / "alone")
    assert stacked.keys() == alone.keys() and max(sizes) >= len(alone) - 2
    for place, arrays in alone.items():
        for name, array in arrays.items():
            apart = np.linalg.norm(stacked[place][name].astype(float) - array)
            assert apart <= 1e-5 * max(np.linalg.norm(array), 1), (place, name, apart)


def test_losses_that_look_at_layers_or_at_the_student_s_weights_can_be_stacked(tmp_path, monkeypatch):
    methods, deep = (
        "[kd, rkd, hint, {name: crd, use: crd}, mean-teacher, be-your-own-teacher]",
        "student.model.hidden=[12, 12]",
    )
    run(text(methods), tmp_path / "alone", "training.stack=false", deep)
    sizes = noted_sizes(monkeypatch)
    run(text(methods), tmp_path / "stacked", deep)
    assert max(sizes) == 2 * 7
    stacked, alone = learnt(tmp_path / "stacked"), learnt(tmp_path / "alone")
    for place, arrays in alone.items():
        logits = torch.from_numpy(stacked[place]["logits"])
        torch.testing.assert_close(logits, torch.from_numpy(arrays["logits"]), rtol=1e-3, atol=1e-4)


def noted_sizes(monkeypatch):
    """How many students each team has that takes a step from now on."""
    sizes, original = [], Team.step

    def noted(team, lessons):
        sizes.append(len(team.members))
        original(team, lessons)

    monkeypatch.setattr(Team, "step", noted)
    return sizes


def test_one_pass_for_methods_and_seeds(tmp_path, monkeypatch):
    run(text("[kd, dkd]"), tmp_path, roles=["teacher"])
    sizes = noted_sizes(monkeypatch)
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


@pytest.mark.parametrize("lost", ["newest", "both"])
def test_stacked_students_go_on_from_a_step_that_all_have(tmp_path, monkeypatch, lost):
    """A process that is killed may have saved some of them before the others."""
    from test_resume import stopped

    methods = text("[kd, {name: hot, use: kd, set: {kd.temperature: 9}}]")
    stopped(tmp_path / "stopped", monkeypatch, text=methods)
    (folder,) = tmp_path.glob("stopped/*/students/*/hot/seed-0")
    for step in sorted(folder.glob("checkpoint-*"))[lost == "newest" :]:
        shutil.rmtree(step)
    run(methods, tmp_path / "stopped")
    run(methods, tmp_path / "whole")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_stacked_students_are_saved_before_one_is_finished(tmp_path, monkeypatch):
    """Or the others, if they had to go back, took their last steps without it."""
    methods, finish = text("[kd, {name: hot, use: kd, set: {kd.temperature: 9}}]"), Seat.finish
    methods = methods.replace("[0, 1]", "[0]")
    run(methods, tmp_path / "killed", roles=["teacher"])

    def finished(seat, *given):
        if seat.run.method == "hot":
            raise ZeroDivisionError
        return finish(seat, *given)

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Seat, "finish", finished)
        run(methods, tmp_path / "killed")
    run(methods, tmp_path / "killed")
    run(methods, tmp_path / "whole")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_who_failed_keeps_no_stacked_student_back(tmp_path, monkeypatch, poison):  # noqa: F811
    bad = "{name: bad, losses: [{kind: ce}, {kind: poison, step: 2, what: nan}]}"
    hot, begun = "{name: hot, use: kd, set: {kd.temperature: 9}}", {}

    def pause(keeper):
        if max(seat.student.position for seat in keeper.seats) == 7:
            keeper.stop.signal = signal.SIGTERM
        original(keeper)

    original = Keeper.pause
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        run(text("[kd]"), tmp_path, roles=["teacher"])
        checkpoint_always(patch)
        patch.setattr(train, "REPORT_EVERY", 1)
        patch.setattr(Keeper, "pause", pause)
        run(text(f"[kd, {hot}, {bad}]"), tmp_path)
    go_on = Seat.go_on

    def noted(seat, checkpoint):
        go_on(seat, checkpoint)
        begun[seat.run.method] = seat.student.position

    monkeypatch.setattr(Seat, "go_on", noted)
    with pytest.raises(TrainingError):
        run(text(f"[kd, {hot}, {bad}]"), tmp_path)
    assert begun.pop("bad") < 3 and set(begun.values()) == {7}


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


@pytest.fixture
def registered(monkeypatch):
    """What is registered in a test is forgotten after it."""
    for family in (registry.LOSSES, registry.MODELS):
        monkeypatch.setattr(family, "_classes", dict(family._classes))


def test_a_loss_of_which_nobody_says_that_it_looks_at_logits_keeps_its_student_alone(registered):
    class OnFeatures(Loss):
        class Config(LossConfig):
            kind: Literal["on-features"]

        needs_teacher = False

        def taps(self, student, teacher):
            self.layer = student.pooled
            return Taps((self.layer,))

        def forward(self, student, teacher, batch):
            return student.features[self.layer].square().mean()

    made, *_ = students(text("[kd, {name: own, losses: [{kind: on-features}]}]"))
    assert why_not(made["kd"]) is None and "no term looks at its logits" in why_not(made["own"])


def test_students_that_differ_in_an_option_alone_are_not_stacked(registered):
    class Steeper(models.MLP):
        class Config(models.MLP.Config):
            kind: Literal["steep"]
            steepness: float = 1.0

        def forward(self, x):
            return super().forward(x) * self.made_from.steepness

    config = text("[kd]").replace("student: {model: {kind: mlp, hidden: [12]}}", "STUDENTS")
    one = "{model: {kind: steep, hidden: [12], steepness: %d}}"
    several = f"students: {{a: {one % 1}, b: {one % 2}}}"
    _, teachers, dataset, planned = students(config.replace("STUDENTS", several))
    made = [
        assembly.make_student(
            one, {name: teachers[name] for name in one.teachers}, dataset, torch.device("cpu")
        )
        for one in planned.runs
        if one.role == "student"
    ]
    assert [{m.model.made_from.steepness for m in team.members} for team in teams(made)] == [{1.0}, {2.0}]


@pytest.mark.parametrize(
    "layer", [nn.Dropout1d(0.1), nn.AlphaDropout(0.1), torchvision.ops.StochasticDepth(0.1, "row")]
)
def test_all_that_drops_units_keeps_its_student_alone(layer):
    made, *_ = students(text("[kd]"))
    made["kd"].model.classifier = nn.Sequential(layer, made["kd"].model.classifier)
    assert why_not(made["kd"]) == "dropout draws anew for each"


def test_a_network_that_draws_by_itself_is_one_message(registered, tmp_path):
    class Drawing(models.MLP):
        class Config(models.MLP.Config):
            kind: Literal["drawing"]

        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.1, self.training)

    with pytest.raises(TrainingError, match=r"student/alone/seed 0: .*draws random.*training.stack: false"):
        run(text("[kd]"), tmp_path, "student.model={kind: drawing, hidden: [12]}")


def test_a_weight_that_does_not_learn_keeps_its_student_alone():
    made, *_ = students(text("[kd]"))
    made["kd"].model.classifier.bias.requires_grad_(False)
    assert "do not learn" in why_not(made["kd"])
