"""Fine-tuning: frozen epochs, and a body with a learning rate of its own."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from kdrun import models, registry, rehearsal
from kdrun.stack import why_not
from support import checked, comparison, experiment, outcome, problems, results, run, students
from test_resume import stopping_after, to_the_end

BASE = """
    name: tuned
    device: cpu
    dataset: {kind: synthetic, shape: [6], classes: 3, samples: 64, test_samples: 24, validation: 0.25}
    seeds: [2]
    training:
      epochs: 4
      batch_size: 16
      optimizer: {kind: sgd, lr: 0.05, momentum: 0.9, weight_decay: 0.01}
      warmup: 1
    teachers:
      big: {model: {kind: mlp, hidden: [12, 12], batch_norm: true}}
    students:
      small: {model: {kind: mlp, hidden: [8, 8], batch_norm: true}}
    controls: none
    methods: [kd]
"""
"""Three steps an epoch."""
FROZEN = "students.small.training={frozen_epochs: 2}"
METHODS = (
    "methods=[kd, {use: kd, name: dot, momentum_gap: 0.05}, mean-teacher, crd, {name: staged, use: hint, "
    "stages: [{epochs: 1, losses: [hint], train: [adapters, body]}, {epochs: 2, train: [body, classifier]}]}]"
)
WITHOUT_MOMENTUM = METHODS.replace("{use: kd, name: dot, momentum_gap: 0.05}, ", "")


@pytest.fixture
def start(tmp_path):
    """The option with which the student starts from weights of a network for five classes."""
    config = registry.MODELS["mlp"].Config(kind="mlp", hidden=[8, 8], batch_norm=True)
    network = models.build(config, (6,), 5, seed=7)
    network.train()(torch.randn(64, 6, generator=torch.Generator().manual_seed(1)) * 3 + 1)
    save_file(network.state_dict(), tmp_path / "five.safetensors")
    return f"students.small.model.initial_weights={tmp_path / 'five.safetensors'}"


def body_of(student):
    """All that is the body's: weights and statistics."""
    return {
        name: value.clone()
        for name, value in student.model.state_dict().items()
        if not name.startswith("classifier.")
    }


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def epochs_of(student, dataset, teachers):
    """Have a student learn, and stop after each epoch."""
    for epoch in range(student.training.epochs):
        for batch in dataset.batches(student.draw, epoch):
            student.step(batch, {name: teacher(batch) for name, teacher in student.teachers.items()})
        student.close_epoch(None, "accuracy")
        yield epoch


# ------------------------------------------------------------------------------------- frozen epochs


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_frozen_is_frozen(start, optimizer):
    """No weight, no statistic, no momentum of the body; from then on it learns as if from its first step."""
    methods = METHODS if optimizer == "sgd" else WITHOUT_MOMENTUM
    options = [FROZEN, start, methods, "training.clip=1.0", "training.ema=0.5"]
    made, teachers, dataset, _ = students(BASE, *options, f"training.optimizer={optimizer}")
    for method, student in made.items():
        first, head = body_of(student), student.model.classifier.weight.detach().clone()
        for epoch in epochs_of(student, dataset, teachers):
            frozen = epoch < 2
            assert same(first, body_of(student)) == frozen, (method, epoch)
            if frozen:
                states = [o.state.get(p, {}) for o in student.optimizers for p in student.parts["body"]]
                kept = [value for state in states for value in state.values() if value is not None]
                assert not any(value.any() for value in kept), (method, epoch)
        assert not torch.equal(head, student.model.classifier.weight)


def test_the_classifier_learns_while_the_body_is_frozen(start):
    made, teachers, dataset, _ = students(BASE, FROZEN, start)
    for student in made.values():
        head = student.model.classifier.weight.detach().clone()
        next(epochs_of(student, dataset, teachers))
        assert not torch.equal(head, student.model.classifier.weight)


def test_a_body_may_be_frozen_to_the_end(start):
    made, teachers, dataset, _ = students(BASE, "students.small.training={frozen_epochs: 4}", start)
    first, head = body_of(made["kd"]), made["kd"].model.classifier.weight.detach().clone()
    assert [*epochs_of(made["kd"], dataset, teachers)] == [0, 1, 2, 3]
    assert same(first, body_of(made["kd"])) and not torch.equal(head, made["kd"].model.classifier.weight)


def test_adapters_learn_while_the_body_is_frozen(start):
    made, teachers, dataset, _ = students(BASE, FROZEN, start, "methods=[hint]")
    student = made["hint"]
    before = [parameter.detach().clone() for parameter in student.parts["adapters"]]
    next(epochs_of(student, dataset, teachers))
    assert before and not any(
        torch.equal(a, b) for a, b in zip(before, student.parts["adapters"], strict=True)
    )


def test_frozen_epochs_are_rehearsed(start):
    made, *_ = students(BASE, FROZEN, start)
    assert made["kd"].turns() == [0, 2]


# --------------------------------------------------------------------------------- two learning rates


def test_each_part_learns_at_its_own_rate(start):
    """In a step of plain descent, the body goes a tenth of the way that it goes at the optimizer's rate."""
    plain = "training.optimizer={kind: sgd, lr: 0.05, momentum: 0.0, weight_decay: 0.0}"
    went = {}
    for rate in (0.05, 0.005):
        options = [start, plain, f"students.small.training={{body_lr: {rate}}}", "methods=[hint]"]
        made, _, dataset, _ = students(BASE, *options)
        student = made["hint"]
        before = {part: [p.detach().double() for p in own] for part, own in student.parts.items()}
        before = {part: [p.clone() for p in own] for part, own in before.items()}
        batch = next(dataset.batches(student.draw, 0))
        student.step(batch, {name: teacher(batch) for name, teacher in student.teachers.items()})
        went[rate] = {
            part: [b - a for a, b in zip(before[part], own, strict=True)]
            for part, own in student.parts.items()
        }
    for part, factor in (("body", 10), ("classifier", 1), ("adapters", 1)):
        for far, near in zip(went[0.05][part], went[0.005][part], strict=True):
            assert far.any() or part == "body"
            torch.testing.assert_close(far, factor * near, rtol=1e-2, atol=1e-6)


def test_the_optimizer_s_own_rate_for_the_body_changes_no_bit(start, tmp_path):
    for name, more in {"plain": [], "said": ["students.small.training={body_lr: 0.05}"]}.items():
        run(BASE, tmp_path / name, start, "methods=[{use: kd, momentum_gap: 0.05}]", *more)
    files = [
        {
            place: one.manifest["files"]["weights.safetensors"]
            for place, one in results(tmp_path / name).items()
        }
        for name in ("plain", "said")
    ]
    assert files[0] == files[1]


def test_schedule_and_warm_up_count_for_both_and_are_logged(start):
    keys = "{body_lr: 0.005, frozen_epochs: 2}"
    made, teachers, dataset, _ = students(BASE, start, f"students.small.training={keys}")
    student = made["kd"]
    for epoch in epochs_of(student, dataset, teachers):
        line = student.metrics[-1]
        groups = [group["lr"] for group in student.optimizers[0].param_groups]
        assert groups == pytest.approx([line["lr"] / 10, line["lr"]])
        assert line["body_lr"] == pytest.approx(0.0 if epoch < 2 else line["lr"] / 10)


def test_nothing_is_logged_unasked(start):
    made, teachers, dataset, _ = students(BASE, start)
    next(epochs_of(made["kd"], dataset, teachers))
    assert "body_lr" not in made["kd"].metrics[-1]


# ------------------------------------------------------------------------------------------ beside others


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_stopped_after_every_single_step(tmp_path, monkeypatch, start, optimizer):
    keys = "{epochs: 3, frozen_epochs: 1, body_lr: 0.003, ema: 0.7, clip: 0.5}"
    options = [start, f"students.small.training={keys}", f"training.optimizer={optimizer}", "methods=[hint]"]
    options += ["methods=[kd, {use: hint, name: dot, momentum_gap: 0.05}]"] * (optimizer == "sgd")
    run(BASE, tmp_path / "whole", *options)
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: [])
    stopping_after(1, monkeypatch)
    assert to_the_end(BASE, tmp_path / "pieces", *options) == 12 + 9 + 1
    assert outcome(tmp_path / "pieces") == outcome(tmp_path / "whole")
    assert comparison(tmp_path / "pieces", "tuned") == comparison(tmp_path / "whole", "tuned")


@pytest.mark.parametrize("keys", ["{frozen_epochs: 1}", "{body_lr: 0.01}"])
def test_it_is_not_stacked(start, keys):
    made, *_ = students(BASE, start, f"students.small.training={keys}")
    assert "its body" in why_not(made["kd"])


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_a_compiled_student_learns_the_same(start, monkeypatch):
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compiled(function, backend="aot_eager"))
    keys = "students.small.training={epochs: 2, frozen_epochs: 1, body_lr: 0.003}"
    told = {}
    for compiles in ("true", "false"):
        made, teachers, dataset, _ = students(BASE, start, keys, f"training.compile={compiles}")
        list(epochs_of(made["kd"], dataset, teachers))
        told[compiles] = [line["terms"]["kd"]["value"] for line in made["kd"].metrics]
    assert told["true"] == pytest.approx(told["false"], rel=1e-3)


def test_a_method_may_freeze(start):
    made, *_ = students(BASE, start, "methods=[kd, {use: kd, name: later, training: {frozen_epochs: 2}}]")
    assert [made[name].training.frozen_epochs for name in ("alone", "kd", "later")] == [0, 0, 2]


def test_who_asks_for_neither_keeps_his_fingerprint(start):
    plans = [experiment(BASE, "runs", *more).plan for more in ([start], [start, FROZEN])]
    (teacher, alone, _), (same_teacher, frozen, _) = (one.runs for one in plans)
    assert teacher.fingerprint == same_teacher.fingerprint and alone.fingerprint != frozen.fingerprint
    assert not {"frozen_epochs", "body_lr"} & alone.inputs["training"].keys()
    assert frozen.inputs["training"]["frozen_epochs"] == 2 and "body_lr" not in frozen.inputs["training"]


def test_a_teacher_of_other_classes_is_tuned_on_its_own(start, tmp_path):
    """Of a network that told four classes apart the body, of which no number changes before its turn."""
    text = """
        name: digits
        device: cpu
        dataset: {kind: digits}
        seeds: [0]
        training: {epochs: 3, batch_size: 64}
        teacher:
          model: {kind: mlp, hidden: [32, 32], initial_weights: FILE}
          training: {frozen_epochs: 1, body_lr: 3e-4}
    """
    config = registry.MODELS["mlp"].Config(kind="mlp", hidden=[32, 32])
    save_file(models.build(config, (1, 8, 8), 4, seed=0).state_dict(), tmp_path / "four.safetensors")
    run(text.replace("FILE", str(tmp_path / "four.safetensors")), tmp_path, roles=["teacher"])
    [result] = results(tmp_path).values()
    assert result.weights()["classifier.weight"].shape == (10, 32)
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["body_lr"] > 0 for line in lines] == [False, True, True]


# ------------------------------------------------------------------------------------------------ words


RANDOM = "'small' starts from random weights, and its body would be frozen as it was drawn; write it in the training"


@pytest.mark.parametrize(
    "options, told",
    [
        ([FROZEN], RANDOM),
        (["methods=[{use: kd, training: {frozen_epochs: 1}}]"], RANDOM),
        (["training.frozen_epochs=1"], "'big' starts from random weights"),
        (
            ["START", "students.small.training={frozen_epochs: 5}"],
            "the training of 'small' has 4 epochs; write at most 4",
        ),
        (["START", "students.small.training={body_lr: 0}"], "students.small.training.body_lr"),
        (
            ["START", FROZEN, "methods=[{use: kd, stages: [{epochs: 1, train: [body]}]}]"],
            "a stage has nothing but the body learn in epochs in which that is frozen",
        ),
        (
            ["students.small={model: tree, training: {frozen_epochs: 1, body_lr: 0.1}}"],
            "'tree' is fitted at once, so `frozen_epochs` says nothing",
        ),
    ],
)
def test_what_says_nothing_is_told(start, options, told):
    words = problems(BASE, *(start if option == "START" else option for option in options))
    assert told in words


def test_a_finished_teacher_is_not_asked_how_it_was_trained(tmp_path, start):
    """Of a training that all share; its own says nothing, which is told as of any key."""
    file = start.partition("=")[2]
    options = [start, f"teachers.big.weights={file}", "training.frozen_epochs=1"]
    assert checked(BASE, *options).experiment.training.frozen_epochs == 1
