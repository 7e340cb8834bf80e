"""What training promises: bits, frozen teachers, honest controls, failures that stay where they happen."""

import itertools
import math
import shutil
from json import loads
from textwrap import dedent
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from kdrun import assembly, bookkeeping, models, registry, rehearsal
from kdrun.contracts import HIDDEN, Loss, LossConfig, Outputs
from kdrun.data.base import SampleSet
from kdrun.errors import TrainingError
from kdrun.models import Frozen
from kdrun.optimization import Training, load_optimizer_tensors, merged, optimizer_tensors
from kdrun.plan import plan
from kdrun.store import checkpoints, read_json
from kdrun.student import REPORT_EVERY, Student
from kdrun.train import fit
from support import (
    Ears,
    break_teachers,
    checked,
    checkpoint_always,
    command,
    comparison,
    count_training,
    outcome,
    results,
    run,
    students,
    weights_hash,
)

PICTURES = """
    name: pictures
    device: cpu
    dataset: {kind: synthetic, shape: [1, 8, 8], classes: 4, samples: 96, test_samples: 32, augmentation: strong}
    seeds: [3]
    training:
      epochs: 2
      batch_size: 16
      optimizer: {kind: sgd, lr: 0.02}
      clip: 2.0
      label_smoothing: 0.1
      mixup: 0.3
      ema: 0.8
    teachers:
      big: {model: {kind: cnn, width: 6, depth: 2, hidden: 12}}
    students:
      small: {model: {kind: cnn, width: 3, depth: 2, hidden: 8, dropout: 0.3}}
"""
TABLE = """
    name: table
    device: cpu
    dataset: {kind: synthetic, shape: [6], classes: 3, samples: 48, test_samples: 24}
    seeds: [1]
    training: {epochs: 3, batch_size: 16, optimizer: {kind: adamw, lr: 0.01}, warmup: 1}
    teachers:
      big: {model: {kind: mlp, hidden: [16, 16]}}
    students:
      small: {model: {kind: mlp, hidden: [8, 8], dropout: 0.2, batch_norm: true}}
"""
"""Bases of the tests' configs: three steps an epoch on tables, six on pictures."""
OWN_MIX = """{name: own, losses: [{kind: ce, weight: 0.5}, {kind: kd, weight: 0.5, temperature: 2},
 {kind: hint, weight: 3}]}"""
SEVEN = ["kd", "hint", "sp", "rkd", "hard", "logit-mse", OWN_MIX]
GROUPS = {"pictures": (PICTURES, ["at", *SEVEN[1:]]), "table": (TABLE, SEVEN)}


def with_methods(base, *methods):
    return base + "    controls: none\n    methods: [" + ", ".join(methods) + "]\n"


# ------------------------------------------------------------------------------------------------- bits


def test_the_same_config_gives_the_same_bits(tmp_path):
    text = with_methods(PICTURES, "kd", "hint")
    for folder in ("a", "b"):
        run(text, tmp_path / folder)
    first = outcome(tmp_path / "a")
    assert set(first) == {
        "teachers/big/seed-0",
        *(f"students/small/{method}/seed-3" for method in ("alone", "kd", "hint")),
    }
    assert first == outcome(tmp_path / "b")
    assert all(
        set(run_["files"]) == {"weights.safetensors", "predictions.npz", "metrics.jsonl"}
        for run_ in first.values()
    )


def test_another_seed_gives_other_bits(tmp_path):
    run(TABLE, tmp_path, "seeds=[1, 2]")
    alone = [weights_hash(tmp_path, f"students/small/alone/seed-{seed}") for seed in (1, 2)]
    assert alone[0] != alone[1]


def with_teachers_of(origin, target):
    """A folder of runs that holds only what the teachers of another are."""
    shutil.copytree(origin, target, ignore=shutil.ignore_patterns("students", "index"))
    return target


@pytest.mark.parametrize("name", GROUPS)
def test_in_a_group_of_eight_as_alone(tmp_path, monkeypatch, name):
    base, methods = GROUPS[name]
    groups = []
    monkeypatch.setattr(
        "kdrun.experiment.fit", lambda pupils, *rest: (groups.append(len(pupils)), fit(pupils, *rest))
    )
    run(with_methods(base, *methods), tmp_path / "all")
    assert groups == [1, 8]
    together = outcome(tmp_path / "all")
    assert len({run_["files"]["weights.safetensors"]["sha256"] for run_ in together.values()}) == 9
    for method in methods:
        root = with_teachers_of(tmp_path / "all", tmp_path / "one" / str(methods.index(method)))
        names = checked(with_methods(base, method)).methods
        run(with_methods(base, method), root, methods=list(names))
        for place, result in outcome(root).items():
            assert result == together[place], place


def test_another_student_changes_nothing(tmp_path):
    text = with_methods(PICTURES, "kd", "hint")
    run(text, tmp_path / "one")
    run(text, tmp_path / "two", "students.first={model: {kind: cnn, width: 2, hidden: 5, dropout: 0.4}}")
    one, two = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    assert len(two) == len(one) + 3
    assert {place: two[place] for place in one} == one


def test_methods_share_the_weights_that_they_start_from_and_the_data():
    made, *_ = students(with_methods(TABLE, "kd", "hint"))
    states = [student.model.state_dict() for student in made.values()]
    assert all(torch.equal(states[0][name], state[name]) for state in states for name in states[0])


def test_every_step_draws_dropout_anew_and_alike_for_all(monkeypatch):
    drawn = {}

    def noted(self, batch, taught):
        step(self, batch, taught)
        drawn.setdefault(self.title, []).append(torch.default_generator.initial_seed())

    step = Student.step
    made, _, dataset, _ = students(with_methods(TABLE, "kd", "hint"))
    monkeypatch.setattr(Student, "step", noted)
    fit(list(made.values()), dataset, 3, Ears(), lambda: None)
    alone, *others = drawn.values()
    assert len(set(alone)) == 9 and others == [alone, alone]


def test_no_sample_is_seen_before_the_first_step():
    made, *_ = students(with_methods(PICTURES, "hint"))
    for student in made.values():
        for name, buffer in student.model.named_buffers():
            fresh = 1 if name.endswith("running_var") else 0
            assert (buffer == fresh).all(), f"{student.title}: {name} was changed by a dry run"


# -------------------------------------------------------------------------------- teachers and exports


def teachers_as_used(monkeypatch):
    """Every teacher that an experiment hands to its students, with its state and modes at that moment."""
    seen = []

    def kept(*arguments):
        teacher = original(*arguments)
        modes = [module.training for module in teacher.model.modules()]
        seen.append((teacher, {n: t.clone() for n, t in teacher.model.state_dict().items()}, modes))
        return teacher

    original = assembly.frozen
    monkeypatch.setattr(assembly, "frozen", kept)
    return seen


def test_a_teacher_does_not_change(tmp_path, monkeypatch):
    text = with_methods(PICTURES, "kd", "hint", "at")
    run(text, tmp_path, roles=["teacher"])
    place = "teachers/big/seed-0"
    before = {p.name: p.read_bytes() for p in results(tmp_path)[place].folder.iterdir()}
    seen = teachers_as_used(monkeypatch)
    run(text, tmp_path)
    assert seen
    for teacher, state, modes in seen:
        assert not any(modes) and not any(module.training for module in teacher.model.modules())
        assert not any(p.requires_grad or p.grad is not None for p in teacher.model.parameters())
        after = teacher.model.state_dict()
        assert any(name.endswith("running_mean") for name in state)
        for name, value in state.items():
            assert torch.equal(value, after[name]), name
    assert {p.name: p.read_bytes() for p in results(tmp_path)[place].folder.iterdir()} == before


def test_an_exported_student_is_its_model_and_nothing_else(tmp_path):
    planned = run(with_methods(PICTURES, "hint", OWN_MIX), tmp_path)
    for run_ in planned.runs:
        own = models.build(run_.model, (1, 8, 8), 4, seed=0).state_dict()
        exported = load_file(results(tmp_path)[run_.folder].folder / "weights.safetensors")
        assert {name: value.shape for name, value in exported.items()} == {
            name: value.shape for name, value in own.items()
        }
        assert all(value.dtype == own[name].dtype for name, value in exported.items())


def test_stored_predictions_are_those_of_the_stored_weights(tmp_path):
    text = with_methods(PICTURES, "hint")
    planned = run(text, tmp_path, "dataset.validation=0.2", "training.selection=best-on-validation")
    dataset = assembly.open_dataset(checked(text, "dataset.validation=0.2"))
    dataset.load(torch.device("cpu"))
    batches = list(dataset.split("test"))
    for run_ in planned.runs:
        result = results(tmp_path)[run_.folder]
        again = assembly.frozen(run_, result, dataset.spec, torch.device("cpu"))
        logits = torch.cat([again(batch).logits for batch in batches])
        stored = result.predictions()
        assert torch.equal(logits, torch.from_numpy(stored["logits"])), run_.title
        assert stored["logits"].dtype == "float32"
        assert (stored["labels"] == dataset.labels("test")).all()
        assert (stored["index"] == range(32)).all()


# ------------------------------------------------------------------------------------ what is not finite


@pytest.fixture
def poison(monkeypatch):
    """A loss ``poison`` whose value, or only whose gradient, is not finite at one step."""
    monkeypatch.setattr(registry.LOSSES, "_classes", dict(registry.LOSSES._classes))

    class Poison(Loss):
        class Config(LossConfig):
            kind: Literal["poison"]
            step: int
            what: Literal["nan", "inf", "gradient", "nothing"]

        needs_teacher = False

        def __init__(self, config):
            super().__init__(config)
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, student, teacher, batch):
            bad = self.config.what if self.calls == self.config.step else "nothing"
            self.calls += 1
            nothing = student.logits.sum() * 0
            if bad == "gradient":
                return nothing.sqrt()
            return nothing + {"nothing": 0.0, "nan": math.nan, "inf": math.inf}[bad]


def poisoned(step, what):
    return f"{{name: bad, losses: [{{kind: ce}}, {{kind: poison, step: {step}, what: {what}}}]}}"


NOT_FINITE = ["nan", "inf", "gradient"]
OPTIMIZERS = ["{kind: sgd, lr: 0.05}", "{kind: adam}", "{kind: adamw}"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("what", NOT_FINITE)
def test_a_student_freezes_in_the_step_that_is_not_finite(poison, what, optimizer):
    text = with_methods(TABLE, poisoned(4, what))
    made, _, dataset, planned = students(text, f"training.optimizer={optimizer}", "training.clip=1.0")
    student = made["bad"]
    run_ = planned.runs[-1]
    batches = itertools.chain.from_iterable(dataset.batches(run_.draw, epoch) for epoch in range(3))
    for position, batch in enumerate(batches):
        if position == 4:
            before = [p.detach().clone() for p in student.parameters]
            state = {n: t.clone() for n, t in optimizer_tensors(student.optimizers).items()}
        student.step(batch, {})
    student.flush()
    assert (student.failure.epoch, student.failure.step) == (1, 1)
    term = "the gradient" if what == "gradient" else "the term 'poison'"
    assert str(student.failure).startswith(f"{term} is not finite in epoch 2, step 2")
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters, strict=True))
    after = optimizer_tensors(student.optimizers)
    assert state.keys() == after.keys() and all(torch.equal(state[name], after[name]) for name in state)


def test_an_overflow_in_bf16_stops_a_student_at_its_last_good_checkpoint(tmp_path, monkeypatch):
    """Its range is that of float32: what overflows is a network that ran away."""
    checkpoint_always(monkeypatch)
    wild = (
        "{name: wild, losses: [{kind: ce}], training: {optimizer: {kind: sgd, lr: 1e13}, schedule: constant}}"
    )
    with pytest.raises(
        TrainingError, match=r"small/wild/seed 1: stopped: the .* is not finite in epoch "
    ) as caught:
        run(with_methods(TABLE, "kd", wild), tmp_path, "training.precision=bf16")
    found = results(tmp_path)
    assert "students/small/kd/seed-1" in found and "students/small/wild/seed-1" not in found
    assert found["students/small/kd/seed-1"].manifest["resolved"]["precision"] == "bf16"
    folder = tmp_path / "table/students/small/wild/seed-1"
    failure = read_json(folder / "failure.json")
    assert failure["what"] in str(caught.value)
    newest, damaged = checkpoints.newest(folder, read_json(folder / "begun.json")["fingerprint"])
    assert not damaged and newest.step <= 3 * failure["epoch"] + failure["step"]
    learnt = {name: array for name, array in newest.arrays.items() if name.endswith(("weight", "bias"))}
    assert learnt and all(np.isfinite(array).all() for array in learnt.values())


class Witness(Ears):
    """Keeps with what it is told the step at which a student heard it."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def warn(self, text):
        self.heard.append((text, self.student.position))


def test_a_failure_is_told_within_fifty_steps(poison):
    text = with_methods(TABLE, "kd", poisoned(7, "nan"))
    made, _, dataset, planned = students(text, "dataset.samples=2000")
    console = Witness(made["kd"])
    fit(list(made.values()), dataset, 1, console, lambda: None)
    ((told, position),) = console.heard
    assert dataset.steps(planned.runs[-1].draw) == 125 > 2 * REPORT_EVERY
    assert position <= 7 + 50
    assert all(word in told for word in ("small/bad/seed 1", "epoch 1", "step 8 of it", "'poison'"))
    assert made["kd"].position == 125 and made["bad"].position < 60


def test_a_group_whose_students_all_failed_stops(poison):
    text = with_methods(TABLE, poisoned(1, "nan"))
    made, _, dataset, _ = students(text)
    asked = []
    made["bad"].teachers["big"] = lambda batch: asked.append(1) or Outputs(torch.zeros(len(batch), 3))
    fit([made["bad"]], dataset, 3, Ears(), lambda: None)
    assert len(asked) == 3 + 1, "the rest of the epoch, once more to find who is to blame, and no further"


@pytest.mark.parametrize("what", NOT_FINITE)
def test_the_others_go_on_and_only_the_failed_one_is_trained_again(tmp_path, monkeypatch, poison, what):
    run(with_methods(TABLE, "kd", "hint"), tmp_path / "healthy")
    text = with_methods(TABLE, "kd", poisoned(4, what), "hint")
    with pytest.raises(TrainingError, match=r"small/bad/seed 1.* is not finite in epoch 2, step 2 of it"):
        run(text, tmp_path / "sick")
    assert outcome(tmp_path / "sick") == outcome(tmp_path / "healthy")
    folder = tmp_path / "sick/table/students/small/bad/seed-1"
    assert not (folder / "result.json").exists()
    failure = read_json(folder / "failure.json")
    assert (failure["epoch"], failure["step"]) == (1, 1)
    status = {row["method"]: row["status"] for row in comparison(tmp_path / "sick", "table")["rows"]}
    assert status == {
        None: "finished",
        "alone": "finished",
        "kd": "finished",
        "bad": "failed",
        "hint": "finished",
    }
    trained = count_training(monkeypatch)
    with pytest.raises(TrainingError):
        run(text, tmp_path / "sick")
    assert trained == ["small/bad/seed 1"]


def test_the_command_tells_and_ends_with_one(tmp_path, monkeypatch, capfd):
    text = with_methods(TABLE, "kd", "{name: bad, losses: [{kind: ce}, {kind: logit-mse, weight: 1e300}]}")
    (tmp_path / "table.yaml").write_text(dedent(text))
    arguments = ["compare", tmp_path / "table.yaml", "--out", tmp_path / "runs"]
    assert command(*arguments, monkeypatch=monkeypatch) == 1
    told = capfd.readouterr().err
    assert "small/bad/seed 1: stopped: the term 'logit-mse' is not finite in epoch 1, step 1 of it" in told
    assert "Traceback" not in told
    assert set(results(tmp_path / "runs")) == {
        "teachers/big/seed-0",
        "students/small/alone/seed-1",
        "students/small/kd/seed-1",
    }
    assert command(*arguments, "--no-train", "--json", monkeypatch=monkeypatch) == 1
    shown = loads(capfd.readouterr().out)["rows"]
    assert {row["method"]: row["status"] for row in shown}["bad"] == "failed"


def test_a_failed_student_leaves_no_checkpoint_after_its_failure(tmp_path, monkeypatch, poison):
    monkeypatch.setattr(bookkeeping.Keeper.__init__, "__defaults__", (0.0,))
    with pytest.raises(TrainingError):
        run(with_methods(TABLE, poisoned(4, "nan")), tmp_path)
    folder = tmp_path / "table/students/small/bad/seed-1"
    steps = sorted(int(p.name.removeprefix("checkpoint-")) for p in folder.glob("checkpoint-*"))
    assert steps == [3, 4], "the last good ones stay, for the next run to fail in the same place"


def test_a_teacher_that_fails_stops_the_experiment(tmp_path):
    text = with_methods(TABLE, "kd")
    with pytest.raises(TrainingError, match="big/seed 0: stopped: the term 'ce'"):
        run(text, tmp_path, "teachers.big.training={optimizer: {kind: sgd, lr: 1e38}, warmup: 0}")
    assert not results(tmp_path)


class Sick(Frozen):
    """A teacher that has no finite answer for some samples."""

    def __call__(self, batch):
        outputs = super().__call__(batch)
        outputs.logits[(batch.index == 7) | (batch.index == 31)] = math.nan
        return outputs


def test_a_teacher_with_broken_weights_stops_the_group(tmp_path, monkeypatch):
    break_teachers(monkeypatch)
    with pytest.raises(
        TrainingError, match=r"the teacher 'big' is not finite in epoch 1, step 1 of it, for the training"
    ):
        run(with_methods(TABLE, "kd"), tmp_path, "training.cache=false")
    assert set(results(tmp_path)) == {"teachers/big/seed-0"}


def sick_where(index):
    """In which step of the first epoch the table's draw shows a sample."""
    _, _, dataset, planned = students(with_methods(TABLE, "kd"))
    batches = dataset.batches(planned.runs[-1].draw, 0)
    return next(step for step, batch in enumerate(batches) if index in batch.index.tolist())


def test_the_samples_of_a_sick_teacher_are_named():
    text = with_methods(TABLE, "kd")
    made, teachers, dataset, _ = students(text)
    made["kd"].teachers["big"] = Sick(teachers["big"].model, "input", torch.device("cpu"))
    first = min(sick_where(7), sick_where(31))
    named = sorted(index for index in (7, 31) if sick_where(index) == first)
    with pytest.raises(TrainingError) as caught:
        fit(list(made.values()), dataset, 1, Ears(), lambda: None)
    message = str(caught.value)
    assert f"epoch 1, step {first + 1} of it" in message and "'big'" in message
    told = message.partition("samples ")[2].partition(";")[0]
    assert sorted(int(part) for part in told.split(",")) == named


def test_the_samples_of_a_sick_batch_are_named(monkeypatch):
    def sick(self, draw, epoch, first=0):
        for batch in batches(self, draw, epoch, first):
            batch.views["input"][batch.index == 20] = math.inf
            yield batch

    first = sick_where(20)
    batches = SampleSet.batches
    monkeypatch.setattr(SampleSet, "batches", sick)
    made, _, dataset, _ = students(with_methods(TABLE, "kd"))
    with pytest.raises(
        TrainingError, match=rf"the input 'input' .* step {first + 1} of it, for the training samples 20;"
    ):
        fit(list(made.values()), dataset, 1, Ears(), lambda: None)


# ------------------------------------------------------------------------------------------- few labels

FEW = TABLE.replace("shape: [6]", "labels_per_class: 3, shape: [6]")


def test_who_sees_which_labels(tmp_path, monkeypatch):
    seen = {}

    def noted(self, batch, taught):
        seen.setdefault(self.title, []).append(batch)
        step(self, batch, taught)

    step = Student.step
    *_, dataset, _ = students(with_methods(FEW, "kd"))
    labels = torch.from_numpy(dataset.labels("train", given=True))
    monkeypatch.setattr(Student, "step", noted)
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: [])
    run(with_methods(FEW, "kd"), tmp_path)
    teacher, control, method = (seen[n] for n in ("big/seed 0", "small/alone/seed 1", "small/kd/seed 1"))
    assert len(seen["small/alone/seed 1"]) == len(seen["small/kd/seed 1"]) == 9
    assert all((batch.labels != HIDDEN).all() for batch in teacher)
    assert all((batch.labels != HIDDEN).all() and len(batch) == 9 for batch in control)
    shown = torch.cat([batch.index for batch in control])
    labelled = (labels != HIDDEN).nonzero().flatten().tolist()
    assert sorted(shown.tolist()) == sorted(labelled * 9), "pass after pass, every label equally often"
    assert len(labelled) == 9
    hidden = torch.cat([batch.labels for batch in method]) == HIDDEN
    assert hidden.float().mean() == pytest.approx(39 / 48)
    assert all(torch.equal(batch.labels, labels[batch.index]) for batch in method)


def test_who_sees_the_transfer_set(tmp_path, monkeypatch):
    seen = {}

    def noted(self, batch, taught):
        seen.setdefault(self.title, []).append(batch)
        step(self, batch, taught)

    np.savez(tmp_path / "more.npz", x=np.random.default_rng(0).standard_normal((20, 6)))
    text = with_methods(TABLE, "kd", "crd").replace(
        "shape: [6]", f"shape: [6], transfer_set: {{path: {tmp_path}/more.npz}}"
    )
    step = Student.step
    monkeypatch.setattr(Student, "step", noted)
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: [])
    run(text, tmp_path)
    teacher, control, *taught = (
        seen[n] for n in ("big/seed 0", "small/alone/seed 1", "small/kd/seed 1", "small/crd/seed 1")
    )
    assert len(control) == len(taught[0]) == len(taught[1]) > len(teacher)
    for batches in (teacher, control):
        assert all((batch.labels != HIDDEN).all() and batch.index.max() < 48 for batch in batches)
    for batches in taught:
        index, labels = (torch.cat([getattr(b, what) for b in batches]) for what in ("index", "labels"))
        assert ((labels == HIDDEN) == (index >= 48)).all() and set(index.tolist()) == set(range(68))
    found = results(tmp_path)
    protocol = {
        place: found[place].manifest["protocol"]
        for place in ("teachers/big/seed-0", "students/small/kd/seed-1")
    }
    assert [(p["train_samples"], p["transfer_samples"]) for p in protocol.values()] == [(48, None), (48, 20)]


def test_a_student_knows_of_a_class_left_out_what_its_teacher_says(tmp_path):
    """The digits without a 3 of Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015."""
    text = """
        name: unseen
        device: cpu
        dataset: {kind: digits, leave_out: [3], validation: 0.1}
        seeds: [0]
        training: {epochs: 20, batch_size: 64, optimizer: {kind: adamw, lr: 0.003}}
        teacher: {model: {kind: mlp, hidden: [64]}}
        student: {model: {kind: mlp, hidden: [32]}}
        controls: none
        methods: [{name: soft, losses: [{kind: kd, temperature: 8}]}]
    """
    run(text, tmp_path)
    rows = {row["method"]: row for row in comparison(tmp_path, "unseen")["rows"]}
    assert rows["alone"]["left_out_recall"] == 0
    assert rows["soft"]["left_out_recall"] > 0.5
    assert rows[None]["left_out_recall"] > 0.9
    for method, row in rows.items():
        found = results(tmp_path)[
            f"students/student/{method}/seed-0" if method else "teachers/teacher/seed-0"
        ]
        assert row["left_out_recall"] == pytest.approx(found.manifest["details"]["by_class"][3])
        assert row["protocol"]["left_out"] == ("3" if method else None)
        assert row["protocol"]["train_samples"] == (1016 if method else 1131)


def test_label_terms_average_over_the_labelled_samples_only():
    made, teachers, dataset, planned = students(with_methods(FEW, "kd"))
    student = made["kd"]
    batch = next(b for b in dataset.batches(planned.runs[-1].draw, 0) if (b.labels != HIDDEN).any())
    student.model.eval()
    outputs = student.network(batch)
    terms = student.objective(outputs, {"big": teachers["big"](batch)}, batch)
    known = batch.labels != HIDDEN
    assert 0 < known.sum() < len(batch)
    expected = 0.1 * F.cross_entropy(outputs.logits[known], batch.labels[known])
    torch.testing.assert_close(terms["ce"], expected)
    none = student.objective(
        outputs, {"big": teachers["big"](batch)}, batch.with_labels(torch.full((16,), HIDDEN))
    )
    assert none["ce"] == 0 and none["kd"] == terms["kd"]


# --------------------------------------------------------------------------------------------- teachers


@pytest.mark.parametrize("base", [TABLE, PICTURES], ids=["table", "pictures"])
def test_a_teacher_from_a_file_scores_the_same_and_is_not_trained(tmp_path, monkeypatch, base):
    run(base, tmp_path / "before", roles=["teacher"])
    was = results(tmp_path / "before")["teachers/big/seed-0"]
    file = tmp_path / "teacher.safetensors"
    shutil.copy(was.folder / "weights.safetensors", file)
    trained = count_training(monkeypatch)
    run(with_methods(base, "kd"), tmp_path / "after", f"teachers.big.weights={file}")
    assert trained == [
        f"small/{method}/seed {checked(base).experiment.seeds[0]}" for method in ("alone", "kd")
    ]
    now = results(tmp_path / "after")["teachers/big/seed-0"]
    assert now.manifest["scores"] == was.manifest["scores"]
    assert now.manifest["files"]["predictions.npz"] == was.manifest["files"]["predictions.npz"]
    assert now.manifest["files"]["weights.safetensors"] == was.manifest["files"]["weights.safetensors"]
    assert now.manifest["train_seconds"] == 0


def test_a_teacher_from_a_file_teaches_the_same_bits(tmp_path):
    text = with_methods(PICTURES, "kd", "hint")
    run(text, tmp_path / "before")
    file = results(tmp_path / "before")["teachers/big/seed-0"].folder / "weights.safetensors"
    run(text, tmp_path / "after", f"teachers.big.weights={file}")
    for method in ("alone", "kd", "hint"):
        place = f"students/small/{method}/seed-3"
        assert weights_hash(tmp_path / "before", place) == weights_hash(tmp_path / "after", place)


def test_expecting_too_much_of_a_trained_teacher(tmp_path, monkeypatch):
    text = with_methods(TABLE, "kd")
    for _ in range(2):  # once when it was just trained, once when it was found
        with pytest.raises(
            TrainingError, match=r"<text>:\d+:\d+.*teachers\.big\.expect.*'big' has accuracy 0\.\d+"
        ):
            run(text.replace("hidden: [16, 16]}}", "hidden: [16, 16]}, expect: 1.0}"), tmp_path)
        assert set(results(tmp_path)) == {"teachers/big/seed-0"}
        trained = count_training(monkeypatch)
    assert trained == []


def test_expecting_too_much_ends_the_command_with_one(tmp_path, monkeypatch, capfd):
    config = tmp_path / "table.yaml"
    config.write_text(dedent(with_methods(TABLE, "kd").replace("[16, 16]}}", "[16, 16]}, expect: 1.0}")))
    line = next(n for n, text in enumerate(config.read_text().splitlines(), 1) if "expect" in text)
    assert command("distill", config, "--out", tmp_path / "runs", monkeypatch=monkeypatch) == 1
    told = capfd.readouterr().err
    assert f"{config}:{line}:" in told and "expect: 1.0" in told and "Traceback" not in told


def test_a_teacher_for_each_seed(tmp_path):
    text = with_methods(TABLE, "kd")
    planned = run(text, tmp_path, "seeds=[4, 5]", "teachers.big.seeds=each")
    assert {place for place in results(tmp_path) if place.startswith("teachers")} == {
        "teachers/big/seed-4",
        "teachers/big/seed-5",
    }
    assert len({weights_hash(tmp_path, f"teachers/big/seed-{seed}") for seed in (4, 5)}) == 2
    taught = [run_ for run_ in planned.runs if run_.method == "kd"]
    assert [(run_.seed, run_.teachers["big"].seed) for run_ in taught] == [(4, 4), (5, 5)]


CHAIN = with_methods(
    TABLE.replace(
        "    students:",
        "      helper: {model: {kind: mlp, hidden: [12]}, from: big, method: kd}\n    students:",
    ),
    "{name: kd, use: kd, teacher: helper}",
)


def fingerprints(text, *overrides):
    config = checked(text, *overrides)
    planned = plan(config, assembly.open_dataset(config))
    return {(run_.name, run_.method): run_.fingerprint for run_ in planned.runs}


def test_a_chain_depends_on_its_first_link():
    plain = fingerprints(CHAIN)
    other = fingerprints(CHAIN, "teachers.big.seed=9")
    assert {key for key in plain if plain[key] != other[key]} == {
        ("big", None),
        ("helper", "kd"),
        ("small", "kd"),
    }


def test_a_chain_is_trained_from_its_first_link_on(tmp_path, monkeypatch):
    trained = count_training(monkeypatch)
    run(CHAIN, tmp_path)
    assert trained == ["big/seed 0", "helper/kd/seed 0", "small/alone/seed 1", "small/kd/seed 1"]
    assert results(tmp_path)["teachers/helper/seed-0"].manifest["method"] == "kd"


def test_a_term_with_two_teachers_asks_for_their_mean_at_its_temperature():
    text = with_methods(TWO, "{name: both, use: kd, teacher: [big, wide], set: {kd.temperature: 3}}")
    made, teachers, dataset, planned = students(text)
    student = made["both"]
    batch = next(iter(dataset.batches(planned.runs[-1].draw, 0)))
    student.model.eval()
    outputs = student.network(batch)
    taught = {name: teacher(batch) for name, teacher in teachers.items()}
    mean = torch.stack([(said.logits / 3).softmax(-1) for said in taught.values()]).mean(0)
    expected = 0.9 * 9 * F.kl_div((outputs.logits / 3).log_softmax(-1), mean, reduction="batchmean")
    torch.testing.assert_close(student.objective(outputs, taught, batch)["kd"], expected)


TWO = TABLE.replace("    students:", "      wide: {model: {kind: mlp, hidden: [24, 20]}}\n    students:")


def test_a_feature_term_with_two_teachers_is_the_mean_of_two_with_adapters_of_their_own():
    text = with_methods(TWO, "{name: both, losses: [{kind: hint, weight: 5, teacher: [big, wide]}]}")
    made, teachers, dataset, planned = students(text)
    student = made["both"]
    (term,) = student.objective.terms
    widths = [loss.regressor.weight.shape for loss in term.losses]
    assert widths == [(16, 8), (20, 8)]
    batch = next(iter(dataset.batches(planned.runs[-1].draw, 0)))
    student.model.eval()
    outputs = student.network(batch)
    taught = {name: teacher(batch) for name, teacher in teachers.items()}
    each = [
        F.mse_loss(loss.regressor(outputs.features["body.1"]), taught[name].features["body.1"])
        for loss, name in zip(term.losses, ("big", "wide"), strict=True)
    ]
    expected = 5 * (each[0] + each[1]) / 2
    torch.testing.assert_close(student.objective(outputs, taught, batch)["hint"], expected)


def test_adapters_of_equal_shape_start_apart():
    text = TWO.replace("[24, 20]", "[24, 16]")
    made, *_ = students(with_methods(text, "{name: both, losses: [{kind: hint, teacher: [big, wide]}]}"))
    first, second = (loss.regressor.weight for loss in made["both"].objective.terms[0].losses)
    assert first.shape == second.shape and not torch.equal(first, second)


# ----------------------------------------------------------------------------------------- optimization


def training(**keys):
    return Training.model_validate(keys)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"schedule": {"kind": "constant"}}, {0: 0.1, 57: 0.1, 99: 0.1}),
        (
            {"schedule": {"kind": "cosine"}},
            {0: 0.1, 25: 0.1 * (1 + math.sqrt(0.5)) / 2, 50: 0.05, 75: 0.0146447},
        ),
        ({"schedule": {"kind": "cosine", "final": 0.2}}, {0: 0.1, 50: 0.06, 100: 0.02}),
        (
            {"schedule": {"kind": "step", "milestones": [4, 8], "gamma": 0.5}},
            {0: 0.1, 39: 0.1, 40: 0.05, 79: 0.05, 80: 0.025, 99: 0.025},
        ),
        ({"schedule": {"kind": "constant"}, "warmup": 2}, {0: 0.005, 9: 0.05, 19: 0.1, 20: 0.1}),
        ({"schedule": {"kind": "constant"}, "warmup": 0.5}, {0: 0.02, 3: 0.08, 4: 0.1, 5: 0.1}),
        ({"schedule": {"kind": "cosine"}, "warmup": 5}, {0: 0.002, 24: 0.05 * 0.8644843, 50: 0.05}),
    ],
)
def test_learning_rates(keys, expected):
    recipe = training(epochs=10, optimizer={"kind": "sgd", "lr": 0.1}, **keys)
    for step, rate in expected.items():
        assert recipe.learning_rate(step, steps_per_epoch=10) == pytest.approx(rate, rel=1e-5), step


def test_a_step_uses_the_rate_of_its_position(tmp_path):
    text = with_methods(TABLE, "kd")
    made, _, dataset, planned = students(text, "training.schedule=cosine")
    student = made["alone"]
    rates = []
    for epoch in range(3):
        for batch in dataset.batches(planned.runs[-1].draw, epoch):
            student.step(batch, {})
            rates.append(student.optimizers[0].param_groups[0]["lr"])
    assert rates == pytest.approx(
        [0.01 * min((s + 1) / 3, 1) * 0.5 * (1 + math.cos(math.pi * s / 9)) for s in range(9)]
    )


def test_merged_changes_only_what_is_said():
    base = training(
        epochs=7, batch_size=9, clip=1.0, optimizer={"kind": "sgd", "lr": 0.5, "momentum": 0.1}, ema=0.5
    )
    assert merged(base, None) == base
    changed = merged(base, training(clip=None, optimizer={"kind": "sgd", "momentum": 0.3}))
    assert (changed.epochs, changed.batch_size, changed.clip, changed.ema) == (7, 9, None, 0.5)
    assert (changed.optimizer.lr, changed.optimizer.momentum) == (0.5, 0.3)
    other = merged(base, training(optimizer={"kind": "adamw"}))
    assert other.optimizer == training(optimizer={"kind": "adamw"}).optimizer


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "{kind: sgd, momentum: 0.0}"])
def test_an_optimizer_goes_on_from_its_tensors(optimizer):
    recipe = checked(TABLE, f"training.optimizer={optimizer}").experiment.training
    draw = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, 5, generator=draw)
    ours = [nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(()))]
    first = recipe.optimizer.build(ours)

    def steps(optimizer, parameters, rows):
        for row in rows:
            parameters[0].grad, parameters[1].grad = row.clone(), row[0].clone()
            optimizer.step()

    steps(first, ours, gradients[:3])
    kept = {name: value.clone() for name, value in optimizer_tensors([first]).items()}
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    second = recipe.optimizer.build(theirs)
    load_optimizer_tensors([second], kept)
    steps(first, ours, gradients[3:])
    steps(second, theirs, gradients[3:])
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    again = optimizer_tensors([second])
    assert {n: t.shape for n, t in again.items()} == {n: t.shape for n, t in kept.items()}


# -------------------------------------------------------------------------------- averages and selection


def test_the_average_of_the_weights_is_what_is_exported():
    made, _, dataset, planned = students(TABLE, "training.ema=0.75")
    student = made["alone"]
    expected = {n: v.clone() for n, v in student.model.state_dict().items() if v.is_floating_point()}
    for batch in dataset.batches(planned.runs[-1].draw, 0):
        student.step(batch, {})
        for name, value in student.model.state_dict().items():
            if name in expected:
                expected[name] = 0.75 * expected[name] + 0.25 * value
    exported = student.exported().model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(exported[name], value)


def test_the_best_on_validation_is_kept(tmp_path):
    keys = ("dataset.validation=0.25", "dataset.samples=64", "training.selection=best-on-validation")
    made, *_ = students(TABLE, *keys)
    student = made["alone"]
    scores, states = [0.5, 0.9, 0.9, 0.2], []
    for score in scores:
        with torch.no_grad():
            for parameter in student.model.parameters():
                parameter.add_(1)
        states.append({n: v.clone() for n, v in student.model.state_dict().items()})
        student.position += 1
        student.close_epoch({"accuracy": score}, "accuracy")
    chosen = student.selected().model.state_dict()
    assert all(torch.equal(chosen[name], states[1][name]) for name in chosen), "the first of the best"


def test_the_weights_that_selection_chose_are_scored_and_stored(tmp_path):
    keys = [
        "dataset.validation=0.25",
        "dataset.samples=64",
        "training.schedule=constant",
        "training.warmup=0",
    ]
    best = [*keys, "training.epochs=6", "training.selection=best-on-validation"]
    run(TABLE, tmp_path / "best", *best, "training.optimizer={kind: sgd, lr: 0.5}")
    chosen = {}
    for place, result in results(tmp_path / "best").items():
        lines = [loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
        scores = [line["validation"]["accuracy"] for line in lines]
        chosen[place] = scores.index(max(scores)) + 1
    assert min(chosen.values()) < 6, "a test that can tell the best from the last"
    for place, epochs in chosen.items():
        root = tmp_path / f"last-{epochs}"
        run(TABLE, root, *keys, f"training.epochs={epochs}", "training.optimizer={kind: sgd, lr: 0.5}")
        assert outcome(root)[place]["scores"] == outcome(tmp_path / "best")[place]["scores"]
        assert weights_hash(root, place) == weights_hash(tmp_path / "best", place)


def test_training_lowers_what_it_minimises(tmp_path):
    run(with_methods(TABLE, "kd"), tmp_path, "training.epochs=12")
    for place, result in results(tmp_path).items():
        lines = (result.folder / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 12, place
        assert [set(eval_line) for eval_line in map(loads, lines)] == [
            {"epoch", "step", "lr", "terms", "validation"}
        ] * 12
        first, last = loads(lines[0]), loads(lines[-1])
        assert (last["epoch"], last["step"]) == (11, 36)
        assert all(last["terms"][name]["value"] < first["terms"][name]["value"] for name in first["terms"])


# ------------------------------------------------------------------------------------------- precision


def test_bf16_and_auto_on_the_cpu(tmp_path):
    text = with_methods(TABLE, "kd")
    for precision in ("fp32", "bf16", "auto"):
        run(text, tmp_path / precision, f"training.precision={precision}")
    outcomes = {precision: outcome(tmp_path / precision) for precision in ("fp32", "bf16", "auto")}
    resolved = {
        precision: {r.manifest["resolved"]["precision"] for r in results(tmp_path / precision).values()}
        for precision in outcomes
    }
    assert resolved == {"fp32": {"fp32"}, "bf16": {"bf16"}, "auto": {"fp32"}}
    assert outcomes["auto"] == outcomes["fp32"]
    for place, result in results(tmp_path / "bf16").items():
        assert outcomes["bf16"][place]["files"] != outcomes["fp32"][place]["files"]
        weights = result.weights().values()
        assert all(array.dtype != "float16" and (array == array).all() for array in weights)


def losses_when(compiled, method, *overrides):
    """The last epoch's terms of one student."""
    text = with_methods(TABLE, "kd", "hint", "rkd", "mean-teacher", "be-your-own-teacher")
    made, _, dataset, _ = students(text, f"training.compile={compiled}", *overrides)
    fit([made[method]], dataset, 3, Ears(), lambda: None)
    return {name: term["value"] for name, term in made[method].metrics[-1]["terms"].items()}


NO_DROPOUT = "students.small.model={kind: mlp, hidden: [8, 8]}"  # compiled code draws it in another order


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_a_compiled_student_learns_the_same():
    assert losses_when("true", "alone", NO_DROPOUT) == pytest.approx(
        losses_when("false", "alone", NO_DROPOUT), rel=1e-3
    )


def test_every_student_is_compiled_once(monkeypatch):
    """Torch gives up on a function that was compiled eight times, and goes on without a word to the user."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compiled(function, backend="aot_eager"))
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for method in ("alone", "kd", "hint", "rkd", "mean-teacher", "be-your-own-teacher"):
            assert losses_when("true", method, NO_DROPOUT) == pytest.approx(
                losses_when("false", method, NO_DROPOUT), rel=1e-3
            )


# ------------------------------------------------------------------------------- shares of the gradient

SHARES = """
name: shares
dataset: {kind: digits}
seeds: [0]
training: {epochs: 4, batch_size: 64}
teacher: {model: {kind: mlp, hidden: [24]}}
student: {model: {kind: mlp, hidden: [16], dropout: 0.2}}
controls: none
methods: [{name: m, losses: [ce, {kind: kd, weight: 2}, {kind: hint, weight: 3}]}]
"""


def test_shares_of_the_gradient_are_those_of_each_terms_own_backward_pass():
    made, teachers, dataset, _ = students(SHARES)
    student = made["m"]
    batch = next(dataset.batches(student.draw, 0))
    said = {"teacher": teachers["teacher"](batch)}
    norms = {}
    for name in ("ce", "kd", "hint"):
        student.begin_step()
        student.answer(batch, said)[name].backward()
        weights = [p for p in student.model.parameters() if p.grad is not None]
        norms[name] = float(torch.cat([p.grad.flatten() for p in weights]).norm())
        for p in student.parameters:
            p.grad = None
    student.step(batch, said)
    student.flush()
    total = sum(norms.values())
    assert student._shares == {name: pytest.approx(norm / total, rel=1e-4) for name, norm in norms.items()}


def test_looking_at_gradients_changes_no_bit(tmp_path, monkeypatch):
    run(SHARES, tmp_path / "seen")
    monkeypatch.setattr(Student, "_looks", lambda self: False)
    run(SHARES, tmp_path / "unseen")
    place = "students/student/m/seed-0"
    assert weights_hash(tmp_path / "seen", place) == weights_hash(tmp_path / "unseen", place)
    first, *rest = results(tmp_path / "seen")[place].metrics()
    assert sum(term["gradient_share"] for term in first["terms"].values()) == pytest.approx(1)
    for line in [*rest, *results(tmp_path / "unseen")[place].metrics()]:
        assert {term["gradient_share"] for term in line["terms"].values()} == {None}, "epochs are short here"


@pytest.mark.parametrize(("steps", "looks"), [(19, 3), (150, 20), (1000, 40)])
def test_looks_take_under_two_percent_of_the_steps(steps, looks):
    """Three terms are three more backward passes, each less than a step."""
    student = students(SHARES)[0]["m"]
    student.steps_per_epoch = steps
    taken = 0
    for student.position in range(40 * steps):
        taken += student._looks()
    assert 1 <= taken <= looks
    assert 3 * taken / (40 * steps) < 0.02


def test_a_single_term_has_no_share_to_tell(tmp_path):
    run(SHARES, tmp_path)
    for line in results(tmp_path)["students/student/alone/seed-0"].metrics():
        assert line["terms"]["alone" if "alone" in line["terms"] else "ce"]["gradient_share"] is None


def test_stacked_students_shares_are_those_of_each_alone(tmp_path):
    text = SHARES.replace(", dropout: 0.2", "").replace("{kind: hint, weight: 3}", "{kind: dkd, weight: 3}")
    text = text.replace("seeds: [0]", "seeds: [0, 1]")
    run(text, tmp_path / "alone")
    run(text, tmp_path / "stacked", "training.stack=true")
    place = "students/student/m/seed-1"
    one, other = (results(tmp_path / name)[place].metrics()[0]["terms"] for name in ("alone", "stacked"))
    for name, term in one.items():
        assert term["gradient_share"] == pytest.approx(other[name]["gradient_share"], rel=1e-3)
