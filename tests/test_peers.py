"""Students without a teacher: peers that learn along, their own past, the average of their weights, their exits."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdrun import assembly, models, rehearsal, split
from kdrun.errors import ConfigError
from kdrun.plan import plan
from support import checked, outcome, problems, results, run, students

TABLE = """
name: peers
device: cpu
dataset: {kind: synthetic, shape: [6], classes: 3, samples: 48, test_samples: 24}
seeds: [1]
training: {epochs: 3, batch_size: 16, optimizer: {kind: adamw, lr: 0.01}}
student: {model: {kind: mlp, hidden: [8, 8], dropout: 0.2, batch_norm: true}}
controls: none
methods: [mutual, {use: mutual, name: three, set: {mutual.peers: 2}}, kdcl, ps-kd, mean-teacher, be-your-own-teacher]
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
    together = outcome(tmp_path / "all")
    for method in ("mutual", "mean-teacher", "be-your-own-teacher"):
        run(TABLE, tmp_path / method, f"methods=[{method}]", f"training.stack={str(stack).lower()}", *plain)
        place = f"students/student/{method}/seed-1"
        both = [together[place], outcome(tmp_path / method)[place]]
        if not stack:
            assert both[0] == both[1]
        assert np.isclose(both[0]["scores"]["nll"], both[1]["scores"]["nll"], rtol=1e-3)


def test_a_model_that_no_gradient_reaches_has_no_peers_and_teaches_itself_nothing():
    for kind in ("mutual", "kdcl", "ps-kd", "mean-teacher", "exits"):
        mix = f"methods=[{{name: mine, losses: [ce, {kind}]}}]"
        said = problems(TABLE, "student.model=tree", "student.training=null", mix)
        assert f"'{kind}' gives no class probabilities" in said


# ---------------------------------------------------------------------------- the average of the weights

AVERAGED = "{name: averaged, losses: [ce, {kind: mean-teacher, ema: 0.6, weight: 10, first_epoch: 2}]}"


def average_of(student, term="mean-teacher"):
    (loss,) = student.objective.named[term].losses
    return loss.average


def steps_of(student, dataset, planned, count):
    """The student's weights before each of its first steps, and after the last of so many."""
    batches = [b for epoch in range(3) for b in dataset.batches(planned.runs[-1].draw, epoch)]
    seen = [{name: value.clone() for name, value in student.model.state_dict().items()}]
    for batch in batches[:count]:
        student.step(batch, {})
        seen.append({name: value.clone() for name, value in student.model.state_dict().items()})
    return seen


def test_the_average_follows_the_student_in_every_step_also_where_its_term_does_not_count():
    made, _, dataset, planned = students(TABLE, f"methods=[{AVERAGED}]", "student.model.batch_norm=false")
    student = made["averaged"]
    assert alike(average_of(student).state_dict(), student.model.state_dict())
    seen = steps_of(student, dataset, planned, 5)  # the term counts from the fourth on
    for name, value in average_of(student).state_dict().items():
        expected = seen[0][name].double()
        for step, now in enumerate(seen[1:], start=1):
            decay = min(1 - 1 / (step + 1), 0.6)
            expected = decay * expected + (1 - decay) * now[name]
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    assert not alike(average_of(student).state_dict(), student.model.state_dict())


def test_the_average_of_a_student_that_does_not_learn_is_the_student():
    stages = "stages: [{epochs: 1, train: [adapters]}]"
    made, _, dataset, planned = students(
        TABLE, f"methods=[{{name: late, use: mean-teacher, {stages}}}]", "student.model.batch_norm=false"
    )
    seen = steps_of(made["late"], dataset, planned, 3)
    assert alike(seen[-1], seen[0]) and alike(average_of(made["late"]).state_dict(), seen[0])


def test_the_average_takes_no_gradients_and_is_not_exported():
    made, _, dataset, planned = students(TABLE, "methods=[mean-teacher]")
    student = made["mean-teacher"]
    averaged = {id(parameter) for parameter in average_of(student).parameters()}
    assert not averaged & {id(parameter) for parameter in student.parameters}
    seen = steps_of(student, dataset, planned, 3)
    assert all(parameter.grad is None for parameter in average_of(student).parameters())
    assert student.exported().model.state_dict().keys() == seen[0].keys()


def test_the_average_sees_what_the_student_sees_through_another_dropout():
    made, _, dataset, planned = students(TABLE, "methods=[mean-teacher]", "student.model.dropout=0.5")
    student, batch = made["mean-teacher"], next(dataset.batches(planned.runs[-1].draw, 0))
    seen = []
    for network in (student.model, average_of(student)):
        network.register_forward_hook(lambda module, x, logits: seen.append((x[0], logits)))
    student.step(batch, {})
    [(ours, logits), (theirs, averaged)] = seen
    assert torch.equal(ours, theirs) and not torch.equal(logits, averaged)
    assert logits.requires_grad and not averaged.requires_grad


PICTURES = "dataset={kind: synthetic, shape: [1, 8, 8], classes: 3, samples: 48, strong_view: strong}"


def test_the_average_can_look_at_another_view_and_the_student_looks_once():
    method = "methods=[{use: mean-teacher, set: {mean-teacher.view: strong}}]"
    made, _, dataset, planned = students(TABLE, PICTURES, method)
    student, batch = made["mean-teacher"], next(dataset.batches(planned.runs[-1].draw, 0))
    inputs = []
    for network in (student.model, average_of(student)):
        network.register_forward_hook(lambda module, x, logits: inputs.append(x[0]))
    student.step(batch, {})
    ours, theirs = inputs
    assert torch.equal(ours, batch.views["input"]) and torch.equal(theirs, batch.views["strong"])
    assert not torch.equal(ours, theirs)


def test_what_the_second_view_is_decides_what_its_average_teaches():
    prints = [
        [run_.fingerprint for run_ in students(TABLE, PICTURES.replace("strong}", look), method)[-1].runs]
        for method in (
            "methods=[{use: mean-teacher, set: {mean-teacher.view: strong}}]",
            "methods=[mean-teacher]",
        )
        for look in ("strong}", "standard}")
    ]
    (alone, viewed), (same, other), (_, plain), (_, again) = prints
    assert alone == same and viewed != other and plain == again


def test_a_view_that_is_not_there_is_refused_where_it_stands(tmp_path):
    method = "methods=[{use: mean-teacher, set: {mean-teacher.view: strnog}}]"
    with pytest.raises(ConfigError) as caught:
        run(TABLE, tmp_path, PICTURES, method)
    assert "mean-teacher.view: the data set has no view 'strnog' of the student's shape, (1, 8, 8)" in str(
        caught.value
    )
    assert "'strong'" in str(caught.value)


@pytest.mark.parametrize("view", ["", ", set: {mean-teacher.view: strong}"])
def test_a_control_of_the_same_cost_counts_a_pass_of_the_average(view):
    teacher = "teacher={model: {kind: mlp, hidden: [4]}}"
    methods = f"methods=[{{use: mean-teacher{view}}}]"
    planned = students(TABLE, PICTURES, teacher, methods, "controls=[matched-cost]")[-1]
    epochs = {run_.method: run_.training.epochs for run_ in planned.runs}
    assert epochs["mean-teacher"] == 3 and epochs["matched-cost"] == 4


def test_students_that_teach_themselves_learn_of_samples_without_a_label():
    methods = "methods=[mean-teacher, be-your-own-teacher]"
    made, _, dataset, planned = students(TABLE, "dataset.labels_per_class=3", methods)
    for run_ in planned.runs[1:]:
        batch = next(dataset.batches(run_.draw, 0))
        assert (batch.labels == -1).any()
        made[run_.method].step(batch.with_labels(torch.full_like(batch.labels, -1)), {})
        told = made[run_.method].rehearsed()
        assert told.pop("ce") == 0 and all(value > 0 for value in told.values())


# ------------------------------------------------------------------------------------------------ exits


@pytest.mark.parametrize(
    "model",
    [
        "{kind: mlp, hidden: [8, 6, 5]}",
        "{kind: gru, hidden: 5, layers: 3}",
        "{kind: cnn, width: 3, depth: 3}",
        "{kind: vit, dim: 8, depth: 3, heads: 2, patch: 4}",
        "resnet8",
        "vgg8",
    ],
)
def test_students_of_every_form_have_exits_and_are_exported_without(model):
    made, _, dataset, planned = students(
        TABLE, PICTURES, "methods=[be-your-own-teacher]", f"student.model={model}"
    )
    student, batch = made["be-your-own-teacher"], next(dataset.batches(planned.runs[-1].draw, 0))
    (loss,) = student.objective.named["exits"].losses
    assert len(loss.exits) == len(student.model.stages) - 1
    before = {name: value.clone() for name, value in loss.exits.state_dict().items()}
    student.step(batch, {})
    student.flush()
    assert student.failure is None
    after = loss.exits.state_dict()
    assert all(
        not torch.equal(value, after[name]) for name, value in before.items() if name.endswith("weight")
    )
    assert student.exported().model.state_dict().keys() == student.model.state_dict().keys()


def test_a_student_without_stages_has_no_exits(tmp_path):
    with pytest.raises(ConfigError) as caught:
        run(TABLE, tmp_path, "methods=[be-your-own-teacher]", "student.model.hidden=[8]")
    assert "'exits' come after all stages but the last, and the student has one stage" in str(caught.value)


def test_exits_learn_the_labels_as_smoothly_as_the_student():
    made, *_ = students(TABLE, "methods=[be-your-own-teacher]", "training.label_smoothing=0.2")
    (loss,) = made["be-your-own-teacher"].objective.named["exits"].losses
    assert loss.labels.config.label_smoothing == 0.2


def test_peers_may_be_of_other_architectures(tmp_path):
    other = "{use: mutual, set: {mutual.models: [{kind: mlp, hidden: [5]}, gru]}}"
    shaped = "dataset={kind: synthetic, shape: [4, 3, 3], classes: 3, samples: 48, test_samples: 24}"
    made, _, dataset, planned = students(TABLE, shaped, f"methods=[{other}]", "controls=[matched-cost]")
    (loss,) = made["mutual"].objective.named["mutual"].losses
    assert [type(peer).__name__ for peer in loss.peers] == ["MLP", "GRU"]
    student, before = made["mutual"], [copy.deepcopy(peer.state_dict()) for peer in loss.peers]
    for batch in dataset.batches(student.draw, 0):
        student.step(batch, {})
    student.flush()
    assert student.failure is None
    assert not any(alike(then, peer.state_dict()) for then, peer in zip(before, loss.peers, strict=True))
    own = [models.macs(one, (4, 3, 3)) for one in (student.model, *loss.peers)]
    epochs = {one.method: one.training.epochs for one in planned.runs}
    assert epochs["matched-cost"] == -(-epochs["mutual"] * sum(own) // own[0])
    twice = [students(TABLE, shaped, "methods=[mutual]")[3].runs, planned.runs]
    assert len({one.fingerprint for runs in twice for one in runs if one.method == "mutual"}) == 2
    run(TABLE, tmp_path, shaped, f"methods=[{other}]")
    assert "peers" not in " ".join(results(tmp_path)["students/student/mutual/seed-1"].weights())


NO_PEERS = {
    "[mpl]": "mutual.models.0.kind: unknown kind 'mpl'; did you mean 'mlp'?",
    "[tree]": "'tree' is trained in no steps, and a peer is; name a network",
    "[ensemble]": "'ensemble' is trained in no steps, and a peer is; name a network",
    "[{kind: mlp, hiden: [3]}]": "unknown key 'hiden'; did you mean 'hidden'?",
    "[{hidden: [3]}]": "the key 'kind' is missing",
    "[3]": "3 is no known kind",
    "[{kind: mlp, initial_weights: w.safetensors}]": "a peer starts from weights of its own; name no others",
    "[]": "models",
}


@pytest.mark.parametrize(("written", "words"), NO_PEERS.items(), ids=NO_PEERS)
def test_what_can_be_no_peer_is_refused_with_its_place(written, words):
    told = problems(TABLE, f"methods=[{{use: mutual, set: {{mutual.models: {written}}}}}]")
    assert words in told and "methods.mutual" in told


def test_peers_are_counted_once_and_fit_the_data():
    told = problems(TABLE, "methods=[{use: mutual, set: {mutual.models: [mlp], mutual.peers: 2}}]")
    assert "`models` says how many peers there are; remove `peers`" in told
    config = checked(TABLE, "methods=[{use: mutual, set: {mutual.models: [cnn]}}]")
    dataset = assembly.open_dataset(config)
    with pytest.raises(ConfigError, match=r"methods\.mutual\.set\.mutual\.models: 'cnn' reads pictures"):
        rehearsal.rehearse(plan(config, dataset), dataset, torch.device("cpu"))


def test_without_a_teacher_what_peers_cost_can_be_matched():
    planned = students(TABLE, "controls=[matched-cost]", "methods=[mutual]")[-1]
    epochs = {one.method: one.training.epochs for one in planned.runs}
    assert epochs == {"alone": 3, "mutual": 3, "matched-cost": 6}
    for methods in ("[ps-kd]", "[]", "[no-such-method]"):
        told = problems(TABLE, "controls=[matched-cost]", f"methods={methods}")
        assert "'matched-cost' needs a teacher and the config has none; add `teacher:`" in told


# --------------------------------------------------------------------------------- few labels in a batch

SHARED = """
name: shared
dataset: {kind: digits, labels_per_class: 5}
seeds: [0]
training: {epochs: 2, batch_size: 64}
teacher: {model: {kind: mlp}}
student: {model: {kind: mlp, hidden: [16]}}
methods: [mean-teacher, {name: even, use: mean-teacher, training: {labelled_share: 0.5}}]
"""


def test_a_student_that_learns_from_unlabelled_samples_is_given_its_share_of_labels():
    made, _, dataset, _ = students(SHARED)
    counts = {}
    for method in ("alone", "mean-teacher", "even"):
        batches = dataset.batches(made[method].draw, 0)
        counts[method] = [int((batch.labels >= 0).sum()) for batch in batches]
    assert set(counts["alone"]) == {50} and set(counts["even"]) == {32}
    assert max(counts["mean-teacher"]) < 16


NOT_SHARED = {
    "training": ["training.labelled_share=0.5", "dataset={kind: digits}"],
    "students.student.training": [
        "student.training={labelled_share: 0.5}",
        "dataset={kind: digits}",
    ],
    "methods.even.training": ["dataset={kind: digits}"],
}


@pytest.mark.parametrize(("place", "options"), NOT_SHARED.items(), ids=NOT_SHARED)
def test_a_share_of_labels_is_refused_where_all_samples_have_one(place, options):
    assert (
        f"{place}: all samples have a label, so `labelled_share` says nothing; remove it, or add"
        in problems(SHARED, *options)
    )


def test_a_share_of_labels_is_refused_where_nothing_else_is_seen():
    told = problems(SHARED, "methods.even={name: even, use: ce, training: {labelled_share: 0.5}}")
    assert (
        "methods.even.training: this method learns from labelled samples only, so `labelled_share` says"
        in told
    )
    told = problems(SHARED, "teacher.training={labelled_share: 0.5}")
    assert "teacher.training: a teacher sees all labels, so `labelled_share` says nothing; remove it" in told
