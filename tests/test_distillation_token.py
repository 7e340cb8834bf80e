"""The distillation token: two classifiers, of which one learns from labels and the other from teachers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from kdrun import stack
from kdrun.errors import WeightsError
from kdrun.models import Frozen, load_weights, parameters
from support import results, run, students
from test_models import CPU, batch, build, same_bits
from test_prepared import near, prepare

CLASS, DISTILLATION = "classifier.of_class_token", "classifier.of_distillation_token"
TEXT = """
name: token
dataset: {kind: digits}
seeds: [0]
training: {epochs: 2, batch_size: 64, optimizer: {kind: sgd, lr: 0.01}}
teacher: {model: {kind: mlp, hidden: [8]}}
student: {model: {kind: vit, dim: 8, depth: 1, heads: 2, patch: 4, distillation_token: true}}
controls: none
methods:
  - hard
  - {name: only, losses: [{kind: kd}]}
  - {name: hint, losses: [{kind: ce}, {kind: hint, student_layer: pooled, teacher_layer: pooled}]}
  - {name: idle, losses: [{kind: ce}, {kind: kd, weight: 0}]}
  - {name: masked, losses: [{kind: ce}, {kind: kd, mask: teacher-correct}]}
  - {name: rkd, losses: [{kind: ce}, {kind: kd}, {kind: rkd}]}
  - {name: wkd, losses: [{kind: ce}, {kind: wkd-logit}]}
  - {name: later, losses: [{kind: ce}, {kind: kd, first_epoch: 2}]}
  - {name: past, losses: [{kind: ps-kd}, {kind: kd}]}
  - {name: exits, losses: [{kind: ce}, {kind: kd}, {kind: exits, layers: [blocks.0]}]}
  - {name: head-only, losses: [{kind: ce}, {kind: kd}], stages: [{epochs: 1, train: [classifier]}]}
"""


@pytest.fixture(scope="module")
def group():
    made, teachers, dataset, _ = students(TEXT)
    lesson = next(dataset.batches(next(iter(made.values())).draw, 0))
    return made, lesson, {"teacher": teachers["teacher"](lesson)}


def reached(student, lesson, taught):
    """For each term the classifiers to whose weights it gives a gradient."""
    weights = {head: student.model.get_submodule(head).weight for head in (CLASS, DISTILLATION)}
    found = {}
    for name, term in student.terms(student.network(lesson), (lesson, taught)).items():
        if not term.requires_grad:
            continue
        slopes = torch.autograd.grad(term, [*weights.values()], retain_graph=True, allow_unused=True)
        found[name] = {head for head, slope in zip(weights, slopes, strict=True) if slope is not None}
    return found


@pytest.mark.parametrize(
    ("method", "heads"),
    [
        ("hard", {"ce": {CLASS}, "hard": {DISTILLATION}}),
        ("masked", {"ce": {CLASS}, "kd": {DISTILLATION}}),
        ("rkd", {"ce": {CLASS}, "kd": {DISTILLATION}, "rkd": set()}),
        ("wkd", {"ce": {CLASS}, "wkd-logit": {DISTILLATION}}),
        ("past", {"ps-kd": {CLASS}, "kd": {DISTILLATION}}),
    ],
)
def test_labels_teach_the_one_classifier_and_teachers_the_other(group, method, heads):
    made, lesson, taught = group
    assert reached(made[method], lesson, taught) == heads


@pytest.mark.parametrize(
    ("method", "term"), [("alone", "ce"), ("only", "kd"), ("hint", "ce"), ("idle", "ce")]
)
def test_where_terms_of_one_kind_see_logits_they_teach_both_classifiers(group, method, term):
    made, lesson, taught = group
    assert reached(made[method], lesson, taught)[term] == {CLASS, DISTILLATION}


def test_each_classifier_reads_its_own_token_and_the_prediction_is_their_mean(group):
    made, lesson, taught = group
    student = copy.deepcopy(made["hard"].model)
    seen = {}
    student.norm.register_forward_hook(lambda _m, _i, tokens: seen.update(tokens=tokens))
    logits = student(lesson.views["input"])
    heads = [
        student.get_submodule(head)(seen["tokens"][:, place])
        for place, head in enumerate((CLASS, DISTILLATION))
    ]
    torch.testing.assert_close(logits, (heads[0] + heads[1]) / 2)
    wanted = lesson.labels, taught["teacher"].logits.argmax(1)
    expected = [F.cross_entropy(z, y) / 2 for z, y in zip(heads, wanted, strict=True)]
    terms = made["hard"].terms(made["hard"].network(lesson), (lesson, taught))
    torch.testing.assert_close([*terms.values()], expected)
    assert len({round(x.item(), 6) for x in expected}) == 2


def test_the_embedding_is_what_both_classifiers_read():
    model, x = build("vit", distillation_token=True), batch().views["input"]
    seen = {}
    model.get_submodule(model.pooled).register_forward_hook(lambda _m, _i, out: seen.update(embedding=out))
    logits = model(x)
    assert seen["embedding"].shape == (4, 32)
    torch.testing.assert_close(model.get_submodule(model.head)(seen["embedding"]), logits)


def test_a_token_costs_its_numbers_its_place_and_a_classifier():
    plain, token = (build("vit", distillation_token=has) for has in (False, True))
    assert parameters(token) - parameters(plain) == 16 + 16 + 16 * 7 + 7
    assert "distillation_token" not in plain.state_dict() and not plain.logits_for


def test_what_deploys_it_is_the_mean_and_a_teacher_with_it_gives_the_mean(tmp_path):
    text = TEXT.replace("methods:", "methods: [hard]\nunused:").partition("unused:")[0]
    text = text.replace(
        "teacher: {model: {kind: mlp, hidden: [8]}}",
        "teacher: {model: {kind: vit, dim: 8, depth: 1, heads: 2, patch: 4, distillation_token: true}}",
    )
    run(text, tmp_path, "training.epochs=1")
    found = results(tmp_path)
    dataset = students(text)[2]
    for place in ("teachers/teacher/seed-0", "students/student/hard/seed-0"):
        model = build("vit", (1, 8, 8), 10, dim=8, depth=1, heads=2, patch=4, distillation_token=True)
        model.load_state_dict(
            {name: torch.from_numpy(a.copy()) for name, a in found[place].weights().items()}
        )
        logits = torch.cat([model(one.views["input"]) for one in dataset.split("test")])
        torch.testing.assert_close(
            torch.from_numpy(found[place].predictions()["logits"]), logits, rtol=1e-4, atol=1e-5
        )


def test_prepared_it_says_what_it_said():
    frozen, asked = Frozen(build("vit", distillation_token=True), "input", CPU), batch()
    fast = prepare(frozen, [frozen.model.pooled], asked)
    assert near(fast(asked).logits, frozen(asked).logits)


def test_a_stage_that_trains_the_classifier_trains_both(group):
    made, lesson, taught = group
    student = made["head-only"]
    before = copy.deepcopy(student.model.state_dict())
    student.step(lesson, taught)
    changed = {
        name for name, value in student.model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {f"{head}.{part}" for head in (CLASS, DISTILLATION) for part in ("weight", "bias")}


def test_initial_weights_of_other_classes_leave_both_classifiers_fresh(tmp_path):
    save_file(
        build("vit", classes=5, seed=1, distillation_token=True).state_dict(), tmp_path / "w.safetensors"
    )
    started = build(
        "vit", seed=2, distillation_token=True, initial_weights=tmp_path / "w.safetensors"
    ).state_dict()
    fresh = build("vit", seed=2, distillation_token=True).state_dict()
    source = build("vit", classes=5, seed=1, distillation_token=True).state_dict()
    head = {name: value for name, value in fresh.items() if name.startswith("classifier.")}
    assert len(head) == 4 and same_bits(started, source | head)


def test_finished_weights_of_other_classes_are_refused_by_their_number(tmp_path):
    save_file(build("vit", classes=5, distillation_token=True).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="tell 5 classes apart, and the data set has 7"):
        load_weights(build("vit", distillation_token=True), tmp_path / "w.safetensors")


def test_students_are_stacked_where_every_step_reaches_both_classifiers(group, monkeypatch):
    made, _, _ = group
    monkeypatch.setattr(
        torch.nn, "Conv2d", type("NoConvolution", (), {})
    )  # which keeps it from being stacked on a CPU
    stacked = {name for name, student in made.items() if stack.why_not(student) is None}
    assert stacked == {"alone", "hard", "only", "hint", "idle", "rkd", "wkd", "past", "exits"}


def test_a_run_without_the_token_is_the_run_that_it_was():
    def model(text):
        planned = students(text)[3]
        return next(one for one in planned.runs if one.role == "student").inputs["model"]

    assert model(TEXT)["distillation_token"] is True
    plain = model(TEXT.replace(", distillation_token: true", ""))
    assert plain == model(TEXT.replace("distillation_token: true", "distillation_token: false"))
    assert plain.keys() == {"kind", "patch", "dim", "depth", "heads", "mlp_ratio", "dropout"}
