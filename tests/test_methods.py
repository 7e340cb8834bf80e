"""Every published method, beside all others: it trains, its adapters move, it resumes, it exports without them."""

import copy

import pytest
import torch

from kdrun import config
from kdrun.contracts import JointLoss
from kdrun.controls import CONTROLS
from kdrun.models import Deployed, parameters
from kdrun.registry import LOSSES
from kdrun.store import read_json
from support import results, run, students

PUBLISHED = config.published_methods()
ELSEWHERE = {"soft-tree", "minilm", "minilm-v2", "ppo", "kickstarting"}
"""What needs a soft tree or a transformer for a student, or an environment: see tests/test_soft_tree.py,
tests/test_attention.py and tests/test_kickstarting.py."""
METHODS = [name for name in PUBLISHED if name not in {"ce", *ELSEWHERE}]
"""All but ``alone`` by another name, and those of other students."""
HEAD = """
name: all
dataset: {kind: digits}
seeds: [0]
training: {epochs: 8, batch_size: 32, optimizer: {kind: sgd, lr: 0.01}, warmup: 1, clip: 1.0}
teachers:
  a: {model: {kind: resnet14}}
  b: {model: {kind: resnet8}, seed: 1}
student: {model: {kind: resnet8}}
controls: [label-smoothing]
methods:
"""


def text_of(names):
    """A config with some published methods; those that look at one teacher look at 'a'."""
    lines = []
    for name in (name for name in names if name not in CONTROLS):
        losses = [LOSSES[term["kind"]] for term in PUBLISHED[name].losses]
        one = any(loss.needs_teacher for loss in losses) and not any(issubclass(x, JointLoss) for x in losses)
        lines.append(f"  - {{name: {name}, use: {name}{', teacher: a' if one else ''}}}")
    return HEAD + ("\n".join(lines) or "  []")


@pytest.fixture(scope="module")
def group():
    """All methods' students, their teachers, and the batches of two epochs' first steps."""
    made, teachers, dataset, planned = students(text_of(METHODS))
    draw = next(run_.draw for run_ in planned.runs if run_.role == "student")
    steps = dataset.steps(draw)
    batches = [next(dataset.batches(draw, epoch)) for epoch in range(2)]
    return made, teachers, batches, steps


def moved(student, before):
    return {
        name for name, value in before.items() if not torch.equal(value, student.objective.state_dict()[name])
    }


@pytest.fixture(scope="module")
def trained(group):
    """Steps in the first and the second epoch: each method's adapters before them, and its checkpoint between them."""
    made, teachers, batches, steps = group
    found = {}
    before = {name: {k: v.clone() for k, v in s.objective.state_dict().items()} for name, s in made.items()}
    for student in made.values():
        student.network.model.train()
    for place, batch in enumerate(batches):
        taught = {name: teacher(batch) for name, teacher in teachers.items()}
        for name, student in made.items():
            student.position = place * steps
            student.step(batch, taught)
            if place == 0:
                found[name] = copy.deepcopy(student.checkpoint({}))
    return found, before


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_beside_all_others_and_its_adapters_move(group, trained, name):
    made, _, _, steps = group
    student, (_, before) = made[name], trained
    student.flush()
    assert student.failure is None
    assert student.position == steps + 1
    learns = {key for key, p in student.objective.named_parameters() if p.requires_grad}
    assert learns <= moved(student, before[name])


@pytest.mark.parametrize("name", METHODS)
def test_a_method_goes_on_from_its_checkpoint_with_the_same_bits(group, trained, name):
    made, teachers, batches, steps = group
    (again, *_), found = [students(text_of([name]), teachers=teachers)], trained[0]
    student = again[0][name]
    student.resume(found[name])
    student.position = steps
    student.step(batches[1], {key: teacher(batches[1]) for key, teacher in teachers.items()})
    for part in ("model", "objective"):
        ours, theirs = getattr(student, part).state_dict(), getattr(made[name], part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), part


@pytest.mark.parametrize("name", METHODS)
def test_a_student_is_exported_without_its_method(group, trained, name):
    made, _, batches, _ = group
    exported = made[name].exported()
    keys = exported.model.state_dict().keys()
    assert exported(batches[0]).logits.shape == (32, 10)
    if name == "simkd":
        assert {key.split(".")[0] for key in keys} == {"body", "parts"}
    else:
        assert keys == made["alone"].model.state_dict().keys()
    assert not any(parameter.requires_grad for parameter in exported.model.parameters())


def test_the_student_of_simkd_predicts_by_the_teacher_s_classifier(group, trained):
    made, teachers, batches, _ = group
    student = made["simkd"]
    exported, teacher = student.exported(), teachers["a"].model
    assert isinstance(exported.model, Deployed)
    loss, _ = student.objective.predictor
    body = parameters(student.model) - parameters(student.model.get_submodule(student.model.head))
    assert parameters(exported.model) == body + parameters(loss.projector) + parameters(teacher.fc)
    assert torch.equal(exported.model.parts.classifier.weight, teacher.fc.weight)
    student.network.tap([])
    student.model.eval(), student.objective.eval()
    with torch.no_grad():
        features = student.network(batches[0]).features
        projected = loss.projector(features["layer3"])
        expected = torch.nn.functional.linear(projected.mean(dim=(2, 3)), teacher.fc.weight, teacher.fc.bias)
    torch.testing.assert_close(exported(batches[0]).logits, expected, rtol=1e-4, atol=1e-5)


CHAIN = """
name: chain
dataset: {kind: digits}
seeds: [0]
training: {epochs: 1, batch_size: 64, optimizer: {kind: sgd, lr: 0.01}}
teachers:
  big: {model: {kind: resnet14}}
  middle: {model: {kind: resnet8}, from: big, method: simkd}
student: {model: {kind: resnet8}}
methods:
  - {name: kd, use: kd, teacher: middle}
  - {name: rkd, use: rkd, teacher: middle}
  - {name: simkd, use: simkd, teacher: middle}
"""


def test_a_student_of_simkd_is_stored_scored_and_teaches_with_its_projector(tmp_path):
    run(CHAIN, tmp_path)
    found = results(tmp_path)
    middle = found["teachers/middle/seed-0"]
    weights = middle.weights()
    assert {name.split(".")[0] for name in weights} == {"body", "parts"}
    counted = sum(
        v.size for n, v in weights.items() if not n.endswith(("running_mean", "running_var", "tracked"))
    )
    assert middle.manifest["cost"]["parameters"] == counted
    assert (
        middle.manifest["cost"]["parameters"]
        > found["students/student/kd/seed-0"].manifest["cost"]["parameters"]
    )
    latencies = read_json(tmp_path / "chain" / "costs.json")
    assert len(latencies["models"]) == 4  # big, small, small with one projector, and with one onto the other
