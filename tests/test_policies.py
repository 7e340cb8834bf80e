"""Losses by which policies are distilled: what they want of Q-values, in a step and of what is fitted at once."""

import numpy as np
import pytest
import torch
from sklearn import tree

from given import batch_of, build, gradients, outputs
from kdrun import assembly, trees
from kdrun.config import published_methods
from kdrun.contracts import Outputs
from kdrun.registry import LOSSES
from support import checked, results, run, students
from test_trees import build as model_of
from test_trees import hot, probabilities

Q = [[3.0, 1.0, 2.0], [0.0, 0.5, 0.4], [7.0, 7.0, 7.0]]
"""Values of three actions in three states; in the last of them nothing is to be lost."""
COSTS = [2.0, 0.5, 0.0]
BEST = [0, 1]


def said(rows):
    return Outputs(torch.tensor(rows, requires_grad=True))


def value(config, student, teacher):
    return build(config)(student, teacher, batch_of(len(student.logits))).item()


# ------------------------------------------------------------------------------------------- policy-kl


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 5.0])
def test_the_temperature_is_on_the_teacher_s_side_alone(temperature):
    loss = build({"kind": "policy-kl", "temperature": temperature})
    teacher = outputs({}, seed=2)
    there = Outputs((teacher.logits.detach() / temperature).requires_grad_())
    found, (slope,) = gradients(loss, there, teacher, batch_of())
    assert found == pytest.approx(0, abs=1e-5) and slope.abs().max() < 1e-6
    for step in (0.5, -0.5):
        shifted = Outputs(there.logits.detach() + step * torch.sin(100 * there.logits.detach()))
        assert loss(shifted, teacher, batch_of()) > found


def test_its_gradient_is_the_difference_of_the_probabilities_whatever_the_temperature():
    teacher, student = outputs({}, seed=2), outputs({}, seed=1)
    for temperature in (0.01, 1.0, 5.0):
        loss = build({"kind": "policy-kl", "temperature": temperature})
        student.logits.grad = None
        _, (slope,) = gradients(loss, student, teacher, batch_of())
        expected = student.logits.softmax(-1) - (teacher.logits / temperature).softmax(-1)
        torch.testing.assert_close(slope, (expected / len(slope)).detach())


def test_it_is_what_transformed_teacher_matching_is_of_a_sharpened_teacher():
    student, teacher = outputs({}, seed=1), outputs({}, seed=2)
    for temperature in (0.01, 2.0):
        transformed = value({"kind": "ttm", "gamma": 1 / temperature}, student, teacher)
        assert value({"kind": "policy-kl", "temperature": temperature}, student, teacher) == pytest.approx(
            transformed, rel=1e-5
        )


@pytest.mark.parametrize("kind", ["policy-kl", "viper"])
@pytest.mark.parametrize("q", [[500.0, 499.99, -500.0], [-3e4, 1e4, 0.0], [1e-9, 0.0, -1e-9]])
@pytest.mark.parametrize("z", [[1e4, -1e4, 0.0], [-300.0, 300.0, 0.0], [0.0, 0.0, 0.0]])
def test_large_values_leave_value_and_gradient_finite(kind, q, z):
    student = said([z, z])
    found, (slope,) = gradients(build({"kind": kind}), student, said([q, q]), batch_of(2))
    assert np.isfinite(found) and slope.isfinite().all() and slope.abs().max() <= 1


def test_values_that_differ_by_the_temperature_differ_by_a_factor_e():
    wanted = build({"kind": "policy-kl"}).target(said([[300.01, 300.0, 0.0]]), batch_of(1))[0]
    assert wanted.tolist() == pytest.approx([np.e / (1 + np.e), 1 / (1 + np.e), 0], abs=2e-3)


@pytest.mark.parametrize("kind", ["policy-kl", "viper"])
def test_an_action_that_the_teacher_rules_out_leaves_numbers(kind):
    student = outputs({}, 1, seed=1)
    teacher = outputs({}, 1, seed=2)
    with torch.no_grad():
        teacher.logits[0, 1] = -torch.inf
    found, (slope,) = gradients(build({"kind": kind}), student, teacher, batch_of(1))
    assert np.isfinite(found) and slope.isfinite().all() and slope[0, 1] > 0


# ----------------------------------------------------------------------------------------------- viper


def test_a_sample_counts_what_its_worst_action_costs():
    student, teacher = said([[0.1, -0.3, 0.4], [1.0, 0.0, -1.0], [0.3, 0.2, 0.1]]), said(Q)
    errors = [-student.logits.log_softmax(-1)[row, best].item() for row, best in enumerate(BEST)]
    found, (slope,) = gradients(build({"kind": "viper"}), student, teacher, batch_of(3))
    assert found == pytest.approx((2 * errors[0] + 0.5 * errors[1]) / 2.5)
    assert not slope[2].any() and slope[:2].any()
    assert teacher.logits.grad is None


def test_where_all_actions_are_alike_nothing_is_to_learn():
    student = outputs({}, 3, seed=1)
    found, (slope,) = gradients(build({"kind": "viper"}), student, said([[7.0] * 5] * 3), batch_of(3))
    assert found == 0 and not slope.any()


@pytest.mark.parametrize("kind", ["viper", "policy-kl"])
def test_what_a_state_is_worth_does_not_count(kind):
    student, teacher = outputs({}, seed=1), outputs({}, seed=2)
    worth = torch.arange(8.0)[:, None] * 4
    expected = value({"kind": kind}, student, teacher)
    assert value({"kind": kind}, student, Outputs(teacher.logits + worth)) == pytest.approx(
        expected, rel=1e-3
    )


def test_log_probabilities_weigh_as_the_logits_that_they_come_from():
    student, teacher, loss = outputs({}, seed=1), outputs({}, seed=2), build({"kind": "viper"})
    logs = Outputs(teacher.logits.log_softmax(-1))
    assert loss(student, logs, batch_of()).item() == pytest.approx(loss(student, teacher, batch_of()).item())
    torch.testing.assert_close(loss.target(logs, batch_of()), loss.target(teacher, batch_of()))


def test_standardized_logits_of_the_student_leave_what_the_samples_count():
    loss = build({"kind": "viper", "logit_standardization": True})
    torch.testing.assert_close(loss.target(said(Q), batch_of(3)).sum(dim=1), torch.tensor(COSTS))
    student = said([[0.1, -0.3, 0.4], [1.0, 0.0, -1.0], [0.3, 0.2, 0.1]])
    scaled = Outputs(10 * student.logits)
    assert loss(student, said(Q), batch_of(3)).item() == pytest.approx(
        loss(scaled, said(Q), batch_of(3)).item(), rel=1e-5
    )


def test_the_scale_of_the_values_changes_no_step_but_the_targets():
    student, teacher, loss = outputs({}, seed=1), outputs({}, seed=2), build({"kind": "viper"})
    larger = Outputs(1000 * teacher.logits)
    assert loss(student, larger, batch_of()).item() == pytest.approx(
        loss(student, teacher, batch_of()).item()
    )
    torch.testing.assert_close(loss.target(larger, batch_of()), 1000 * loss.target(teacher, batch_of()))


def test_the_target_is_the_best_action_as_often_as_it_counts():
    wanted = build({"kind": "viper"}).target(said(Q), batch_of(3))
    assert not wanted.requires_grad
    torch.testing.assert_close(wanted, torch.tensor([[2.0, 0, 0], [0, 0.5, 0], [0, 0, 0]]))


# ------------------------------------------------------------------------------- what is fitted at once

POLICIES = """
name: policies
device: cpu
dataset: {kind: wine, validation: 0.2}
seeds: [0]
controls: none
training: {epochs: 1, batch_size: 16, optimizer: {kind: adamw, lr: 0.01}}
teacher: {model: {kind: mlp, hidden: [8]}}
student: {model: {kind: tree, depth: 2}}
methods:
"""
VIPER = "  - viper\n"


def wanted_of(methods, rows):
    """What the terms of the last method want together, of what a teacher says of a batch."""
    made, *_ = students(POLICIES + methods)
    student = list(made.values())[-1]
    batch = batch_of(len(rows), labels=[0, 1, 2][: len(rows)])
    return student.objective.target({"teacher": said(rows)}, batch, student._weights)


def test_a_fit_counts_the_samples_as_viper_does():
    found = wanted_of(VIPER, Q)
    assert found.sum(dim=1).tolist() == pytest.approx(COSTS)


def test_beside_viper_other_terms_count_each_sample_by_their_weight():
    mix = "  - {name: both, losses: [{kind: viper, weight: 2}, {kind: ce, weight: 1}]}\n"
    found = wanted_of(mix, Q)
    expected = [[5.0, 0, 0], [0, 2.0, 0], [0, 0, 1.0]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_no_other_mix_weighs_samples():
    assert [kind for kind in LOSSES if LOSSES[kind].weighs_samples] == ["viper"]
    kl = "  - {name: kl, losses: [{kind: policy-kl, temperature: 1, weight: 3}]}\n"
    assert wanted_of(kl, Q).sum(dim=1).tolist() == pytest.approx([1, 1, 1])


def test_a_tree_of_viper_is_fitted_to_the_best_actions_by_what_they_count(tmp_path):
    run(POLICIES + VIPER, tmp_path)
    dataset = assembly.open_dataset(checked(POLICIES + VIPER))
    dataset.load(torch.device("cpu"))
    [batch] = dataset.split("train")
    x, found = batch.views["input"].numpy(), results(tmp_path)
    teacher, student = model_of("mlp", 13, 3, hidden=[8]), model_of("tree", 13, 3, depth=2)
    for model, place in ((teacher, "teachers/teacher"), (student, "students/student/viper")):
        weights = found[f"{place}/seed-0"].weights()
        model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    with torch.no_grad():
        q = teacher.eval()(torch.from_numpy(x)).numpy()
    learner = tree.DecisionTreeRegressor(max_depth=2, random_state=trees.derive(0, "student", "fit") % 2**32)
    best = hot(q.argmax(axis=1), 3)
    plain = learner.fit(x, best).predict(x)
    expected = learner.fit(x, best, sample_weight=np.ptp(q, axis=1)).predict(x)
    said_of = probabilities(student, x)
    np.testing.assert_allclose(said_of, np.clip(expected, 1e-6, 1), atol=1e-4)
    assert np.abs(said_of - plain).max() > 0.01


def test_a_tree_is_pruned_by_what_the_validation_samples_count():
    made, teachers, dataset, _ = students(POLICIES.replace("depth: 2", "depth: 2, prune: true") + VIPER)
    _, wanted, weights = made["viper"]._held_out(dataset)
    q = torch.cat([teachers["teacher"](batch).logits for batch in dataset.split("validation")])
    assert torch.equal(wanted, q.argmax(dim=1))
    torch.testing.assert_close(weights, q.amax(dim=1) - q.amin(dim=1))


@pytest.mark.parametrize("student", ["{kind: tree, depth: 2, prune: true}", "{kind: mlp, hidden: [4]}"])
def test_every_published_way_trains_a_network_and_a_tree(tmp_path, student):
    methods = ["policy-nll", "policy-mse", "policy-kl", "viper"]
    text = POLICIES.replace("{kind: tree, depth: 2}", student) + "".join(f"  - {name}\n" for name in methods)
    run(text, tmp_path)
    found = results(tmp_path)
    assert {f"students/student/{name}/seed-0" for name in methods} <= found.keys()


def test_the_published_ways_see_no_labels():
    names = [name for name in published_methods() if name.startswith("policy-")] + ["viper"]
    assert sorted(names) == ["policy-kl", "policy-mse", "policy-nll", "viper"]
    for name in names:
        [term] = published_methods()[name].losses
        assert LOSSES[term["kind"]].needs_teacher and term["weight"] == 1
