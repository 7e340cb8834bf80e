"""Students without a teacher: peers that learn along, and their own past."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kdrun import assembly, rehearsal, split
from kdrun.plan import plan
from support import checked, outcome, problems, run, students

TABLE = """
name: peers
device: cpu
dataset: {kind: synthetic, shape: [6], classes: 3, samples: 48, test_samples: 24}
seeds: [1]
training: {epochs: 3, batch_size: 16, optimizer: {kind: adamw, lr: 0.01}}
student: {model: {kind: mlp, hidden: [8, 8], dropout: 0.2, batch_norm: true}}
controls: none
methods: [mutual, {use: mutual, name: three, set: {mutual.peers: 2}}, kdcl, ps-kd]
"""


def peers_of(student, term="mutual"):
    (loss,) = student.objective.named[term].losses
    return [peer.state_dict() for peer in loss.peers]


def alike(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items() if value.is_floating_point())


def test_peers_are_of_the_student_s_architecture_and_start_apart():
    made, *_ = students(TABLE)
    own = made["three"].model.state_dict()
    networks = [own, *peers_of(made["three"])]
    assert len(networks) == 3 and all(one.keys() == own.keys() for one in networks)
    first = "stages.0.0.weight" if "stages.0.0.weight" in own else next(iter(own))
    assert not any(torch.equal(networks[i][first], networks[j][first]) for i, j in [(0, 1), (0, 2), (1, 2)])
    assert alike(own, made["alone"].model.state_dict())
    assert alike(peers_of(made["mutual"])[0], networks[1])
    other, *_ = students(TABLE, "seeds=[2]")
    assert not alike(peers_of(other["mutual"])[0], networks[1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_peer_sees_the_input_and_the_arithmetic_of_the_student(precision):
    made, _, dataset, planned = students(TABLE, f"training.precision={precision}")
    student, batch = made["mutual"], next(dataset.batches(planned.runs[-1].draw, 0))
    (loss,) = student.objective.named["mutual"].losses
    (peer,), seen = loss.peers, []
    peer.register_forward_hook(lambda module, inputs, said: seen.append((inputs[0], module.training, said)))
    student.step(batch, {})
    [(x, training, said)] = seen
    assert torch.equal(x, batch.views["input"]) and training
    assert said.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


def test_peers_of_two_terms_are_different_networks():
    both = "[{name: both, losses: [ce, mutual, {kind: mutual, name: more}, kdcl]}]"
    made, *_ = students(TABLE, f"methods={both}")
    networks = [peers_of(made["both"], term)[0] for term in ("mutual", "more", "kdcl")]
    assert not any(alike(networks[i], networks[j]) for i, j in [(0, 1), (0, 2), (1, 2)])


def test_peers_learn_of_samples_without_a_label_and_the_control_never_sees_them():
    _, _, dataset, planned = students(TABLE, "dataset.labels_per_class=3", "methods=[mutual, ps-kd]")
    draws = {run_.method: run_.draw for run_ in planned.runs}
    labels = {
        method: torch.cat([batch.labels for batch in dataset.batches(draw, 0)])
        for method, draw in draws.items()
    }
    assert (labels["mutual"] == -1).any()
    assert not (labels["alone"] == -1).any() and not (labels["ps-kd"] == -1).any()


def test_a_control_of_the_same_cost_counts_the_peers():
    teacher = "teacher={model: {kind: mlp, hidden: [4]}}"
    methods = "methods=[{use: mutual, set: {mutual.peers: 4}}]"
    planned = students(TABLE, teacher, methods, "controls=[matched-cost]")[-1]
    epochs = {run_.method: run_.training.epochs for run_ in planned.runs}
    assert epochs["matched-cost"] == 5 * epochs["mutual"] == 15


def test_what_a_loss_remembers_is_in_the_memory_that_is_asked_for():
    config = checked(TABLE, "methods=[ps-kd]")
    dataset = assembly.open_dataset(config)
    planned = plan(config, dataset)
    rehearsed = rehearsal.rehearse(planned, dataset, torch.device("cpu"))
    numbers = [split.needed(planned.runs, split.figures(rehearsed))]
    rehearsed = [replace(one, remembered_bytes=0) for one in rehearsed]
    numbers.append(split.needed(planned.runs, split.figures(rehearsed)))
    assert numbers[0] - numbers[1] == 2 * 48 * 3 * 4


def test_peers_of_a_student_that_starts_from_weights_are_refused(tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"")
    said = problems(TABLE, f"student.model.initial_weights={file}")
    assert "'student' starts from weights that were trained, and the peers of 'kdcl' would not" in said
    assert "of 'ps-kd'" not in said


def test_peers_learn_and_are_not_exported(tmp_path):
    made, _, dataset, planned = students(TABLE)
    student, before = made["mutual"], peers_of(made["mutual"])[0]
    before = {name: value.clone() for name, value in before.items()}
    for batch in dataset.batches(planned.runs[-1].draw, 0):
        student.step(batch, {})
    student.flush()
    assert student.failure is None
    after = peers_of(student)[0]
    assert all(not torch.equal(value, after[name]) for name, value in before.items())
    assert student.exported().model.state_dict().keys() == student.model.state_dict().keys()


def test_what_is_logged_is_what_the_student_learns():
    """The peers' own losses are in the gradient, and not in the value."""
    made, _, dataset, planned = students(TABLE, "student.model.dropout=0", "student.model.batch_norm=false")
    student, batch = made["mutual"], next(dataset.batches(planned.runs[-1].draw, 0))
    (loss,) = student.objective.named["mutual"].losses
    with torch.no_grad():
        p = loss.peers[0](batch.views["input"]).softmax(1)
        log_q = student.model(batch.views["input"]).log_softmax(1)
    student.step(batch, {})
    expected = (p * (p.log() - log_q)).sum(1).mean().item()
    assert student.rehearsed()["mutual"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stack", [False, True])
def test_company_changes_no_bit(tmp_path, stack):
    plain = ["student.model={kind: mlp, hidden: [8, 8]}"] if stack else []
    run(TABLE, tmp_path / "all", f"training.stack={str(stack).lower()}", *plain)
    run(TABLE, tmp_path / "one", "methods=[mutual]", f"training.stack={str(stack).lower()}", *plain)
    both = [outcome(tmp_path / name)["students/student/mutual/seed-1"] for name in ("all", "one")]
    if not stack:
        assert both[0] == both[1]
    assert np.isclose(both[0]["scores"]["nll"], both[1]["scores"]["nll"], rtol=1e-3)


def test_a_model_that_no_gradient_reaches_has_no_peers():
    for method in ("mutual", "kdcl", "ps-kd"):
        said = problems(TABLE, "student.model=tree", "student.training=null", f"methods=[{method}]")
        assert f"'{method}' gives no class probabilities" in said
