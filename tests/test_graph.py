"""Graph networks that hold training samples: what they say, what they hold, and teaching without the graph."""

import numpy as np
import pytest
import torch

from kdrun import evaluate, models, registry
from kdrun.contracts import Spec
from kdrun.models import Frozen, Prepared, recipe
from support import comparison, problems, results, run, students
from test_stack import noted_sizes

CPU = torch.device("cpu")

DIGITS = """
name: glnn
device: cpu
dataset: {kind: digits, labels_per_class: 3}
seeds: [0]
training: {epochs: 10, batch_size: 128, optimizer: {kind: adamw, lr: 5e-3}}
teachers:
  graph: {model: {kind: appnp, hidden: [32], nodes: 400, steps: 5}, labels: given}
  shuffled: {model: {kind: appnp, hidden: [32], nodes: 400, steps: 5, graph: shuffled}, labels: given}
student: {model: {kind: mlp, hidden: [32]}}
controls: none
methods:
  - {name: glnn, use: kd, teacher: graph, set: {kd.temperature: 1}}
  - {name: glnn-shuffled, use: kd, teacher: shuffled, set: {kd.temperature: 1}}
"""
SMALL = """
name: small
device: cpu
dataset: {kind: synthetic, shape: [1, 4, 4], samples: 48, test_samples: 24, classes: 3, labels_per_class: 4}
seeds: [0, 1]
training: {epochs: 2, batch_size: 16, optimizer: {kind: adamw, lr: 0.01}}
teacher: {model: {kind: mlp, hidden: [8]}}
student: {model: {kind: appnp, hidden: [8], nodes: 24, neighbours: 3, steps: 3}}
controls: none
methods: [kd]
"""


@pytest.fixture(autouse=True)
def little_measured(monkeypatch):
    monkeypatch.setattr(evaluate, "WARM_UP", 1)
    monkeypatch.setattr(evaluate, "ROUNDS", 2)


def graph(samples, classes=3, seed=0, **options):
    """A network that holds some samples (M, …), in training mode."""
    options = {"hidden": [5], "nodes": 12, "neighbours": 3, "steps": 3} | options
    config = registry.MODELS["appnp"].Config(kind="appnp", **options)
    model = models.build(config, tuple(samples.shape[1:]), classes, seed)
    model.remember(samples)
    return model


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numbers(x):
    return x.detach().double().numpy()


def by_hand(model, x, neighbours):
    """What the network says of inputs, of which and of whose nodes the neighbours are given: a loop over them."""

    def own(inputs):
        hidden = numbers(inputs).reshape(len(inputs), -1)
        for layer in model.body:
            hidden = np.maximum(hidden @ numbers(layer[0].weight).T + numbers(layer[0].bias), 0)
        return hidden @ numbers(model.classifier.weight).T + numbers(model.classifier.bias)

    alpha, of_samples, of_nodes = model.config.restart, *neighbours
    first = own(model.samples)
    nodes = first
    for _ in range(model.config.steps - 1):
        nodes = np.array(
            [(1 - alpha) * nodes[near].mean(axis=0) + alpha * first[i] for i, near in enumerate(of_nodes)]
        )
    return np.array(
        [
            (1 - alpha) * nodes[near].mean(axis=0) + alpha * mine
            for near, mine in zip(of_samples, own(x), strict=True)
        ]
    )


def nearest(x, nodes, k):
    """The places of the nodes that are nearest to each sample and are not it."""
    apart = np.array([[np.linalg.norm(numbers(a - b)) for b in nodes] for a in x])
    apart[apart == 0] = np.inf
    return np.argsort(apart, axis=1)[:, :k]


# --------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("options", [{}, {"steps": 1}, {"hidden": []}, {"restart": 0.5, "neighbours": 11}])
def test_it_propagates_what_an_mlp_says_along_the_nearest_nodes(options):
    samples = normal(12, 2, 3)
    model, x = graph(samples, **options), torch.cat([normal(5, 2, 3, seed=1), samples[:2]])
    k = model.config.neighbours
    expected = by_hand(model, x, (nearest(x, samples, k), nearest(samples, samples, k)))
    np.testing.assert_allclose(model(x).detach().numpy(), expected, rtol=1e-4, atol=1e-6)


def test_a_sample_that_is_a_node_is_no_neighbour_of_its_own():
    samples = normal(12, 4)
    model = graph(samples)
    assert not (model.edges == torch.arange(12)[:, None]).any()
    own, other = (model._neighbours(x)[0].tolist() for x in (samples[:1], samples[:1] + 1e-3))
    assert 0 not in own and other[0] == 0 and other[1:] == own[:2]


def test_a_trained_network_asks_no_node_and_says_what_it_said_in_its_last_step():
    model, x = graph(normal(12, 4)), normal(5, 4, seed=1)
    with torch.no_grad():
        model.classifier.bias += 1
    trained = model.train()(x)
    asked = []
    model.classifier.register_forward_hook(lambda _module, _inputs, output: asked.append(len(output)))
    torch.testing.assert_close(model.eval()(x), trained)
    assert asked == [5]


def test_nodes_say_what_they_say_now_where_the_classifier_alone_learns():
    """In a frozen body, which is in eval mode, they are asked in every step as ever."""
    stages = "methods=[{use: kd, stages: [{epochs: 1}, {epochs: 1, train: [classifier]}]}]"
    made, _, dataset, _ = students(SMALL, stages)
    student = made["kd"]
    student.position, before = student.steps_per_epoch, student.model.said.clone()
    first, second, _ = dataset.batches(student.draw, 1)
    student.step(first, {name: teacher(first) for name, teacher in student.teachers.items()})
    student.begin_step()
    student.network(second)
    assert not student.model.training and not torch.equal(student.model.said, before)
    torch.testing.assert_close(student.model.said, student.model._of_nodes())


def test_what_nodes_say_learns_through_the_graph():
    model, x = graph(normal(12, 4)).train(), normal(5, 4, seed=1)
    through = torch.autograd.grad(model(x).square().sum(), model.body[0][0].weight)[0]
    model.eval()
    alone = torch.autograd.grad(model(x).square().sum(), model.body[0][0].weight)[0]
    assert through.norm() > 2 * alone.norm() > 0


def test_fewer_samples_than_nodes_are_all_nodes():
    few, x = normal(6, 4), normal(5, 4, seed=1)
    model, exact = graph(few, nodes=40), graph(few, nodes=6)
    torch.testing.assert_close(model(x), exact(x))
    assert model.count == 6 and not model.samples[6:].any() and (model.edges[6:] == -1).all()
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in graph(normal(40, 4), nodes=40).state_dict().items()
    }


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("edges", ["nearest", "shuffled"])
def test_who_has_no_neighbour_hears_nothing(count, edges):
    samples = normal(count, 4)
    model, x = graph(samples, graph=edges), normal(5, 4, seed=1)
    assert model(x).isfinite().all()
    if count == 0:
        torch.testing.assert_close(model(x), 0.1 * model.classifier(model.body(x)))


def test_shuffled_neighbours_are_those_of_a_random_node_and_always_the_same():
    samples = normal(200, 4)
    model, x = graph(samples, graph="shuffled", nodes=200), normal(100, 4, seed=1)
    found = model._neighbours(x)
    assert torch.equal(model._neighbours(x.flip(0)).flip(0), found)
    assert torch.equal(model._neighbours(x[:1]), found[:1])
    assert all((near == model.edges).all(dim=1).any() for near in found)
    near = nearest(x, samples, 3)
    shared = np.mean([len({*ours.tolist()} & {*theirs}) for ours, theirs in zip(found, near, strict=True)])
    assert shared < 0.3 and len({*found[:, 0].tolist()}) > 50
    assert not torch.equal(model._neighbours(x + 1e-3), found)
    own = (model._neighbours(x), model._neighbours(samples))
    np.testing.assert_allclose(model(x).detach().numpy(), by_hand(model, x, own), rtol=1e-4, atol=1e-6)


def test_the_search_is_counted():
    flat, k, d, n = (2, 8), 3, 16, 12
    model = graph(normal(n, *flat))
    mlp = d * 5 + 5 * 3
    assert models.macs(model, flat) == mlp + n * d
    assert models.macs(graph(normal(n, *flat), graph="shuffled"), flat) == mlp
    assert models.parameters(model) == mlp + 5 + 3 and k == model.config.neighbours


@pytest.mark.parametrize("bf16", [False, True])
def test_it_teaches_as_fast_as_others(bf16):
    """Prepared, it says the same up to rounding; distances are told in full precision."""
    samples = normal(64, 16)
    model = Frozen(graph(samples, nodes=64), "input", CPU)
    batch = Spec({"input": (16,)}, 3).random_batch(64)
    how = recipe(model, ["body.0"], bf16, batch)
    fast = Prepared(model, how, ["body.0"])
    torch.testing.assert_close(fast(batch).logits, model(batch).logits, rtol=0.1, atol=0.02 if bf16 else 1e-5)
    assert fast(batch).features["body.0"].shape == (64, 5)


def test_more_neighbours_than_nodes_are_refused():
    found = problems(SMALL, "student.model.neighbours=24")
    assert "24 nodes have no 24 neighbours each; write `nodes: 25` or more" in found


# ----------------------------------------------------------------------------------------- what it is given


def test_it_holds_training_samples_that_its_role_sees_drawn_by_its_seed():
    made, _, dataset, planned = students(SMALL)
    model = made["kd"].model
    train = torch.cat([batch.views["input"] for batch in dataset.split("train", given=True)]).flatten(1)
    held = [(train == node).all(dim=1).nonzero().item() for node in model.samples]
    assert len({*held}) == 24 == model.count
    again, _, _, _ = students(SMALL)
    other, _, _, _ = students(SMALL, "seeds=[1]")
    assert torch.equal(again["kd"].model.samples, model.samples)
    assert not torch.equal(other["kd"].model.samples, model.samples)
    assert {run_.draw.given for run_ in planned.runs if run_.role == "student"} == {True}


@pytest.mark.parametrize("own", ["resize=3", "normalization={mean: [0.4], std: [0.2]}"])
def test_nodes_are_seen_as_samples_are(own):
    """Through the same lens: a training sample is the node that it is, and no neighbour of its own."""
    made, _, dataset, _ = students(SMALL, f"student.{own}", "student.model.nodes=48")
    model = made["kd"].model
    (batch,) = dataset.split("train", given=True)
    seen = model.lens(batch.views["input"]).flatten(1)
    assert model.count == len(seen) == 48 and torch.equal(model.samples, seen)
    assert not (model._neighbours(seen) == torch.arange(48)[:, None]).any()


def test_classes_that_are_left_out_are_no_nodes():
    made, _, dataset, _ = students(SMALL, "dataset.leave_out=[1]", "student.model.nodes=48")
    model = made["kd"].model
    labels = torch.from_numpy(dataset.labels("train"))
    train = torch.cat([batch.views["input"] for batch in dataset.split("train")]).flatten(1)
    held = [(train == node).all(dim=1).nonzero().item() for node in model.samples[: model.count]]
    assert model.count == (labels != 1).sum() and 1 not in labels[held]


@pytest.mark.parametrize(
    "other", ["dataset.classes=4", "student.model.nodes=30", "student.model.neighbours=5"]
)
def test_what_it_holds_is_no_part_of_the_weights_that_it_starts_from(tmp_path, other):
    """So that it can be tuned to other classes, with nodes of its own."""
    run(SMALL, tmp_path, "seeds=[0]", "methods=[]")
    file = tmp_path / "small/students/student/alone/seed-0/weights.safetensors"
    plain, _, _, _ = students(SMALL, other)
    made, _, _, _ = students(SMALL, other, f"student.model.initial_weights={file}")
    model, before = made["kd"].model, results(tmp_path)["students/student/alone/seed-0"].weights()
    np.testing.assert_array_equal(model.body[0][0].weight.detach(), before["body.0.0.weight"])
    assert torch.equal(model.samples, plain["kd"].model.samples) and model.count > 0
    torch.testing.assert_close(model.said, model._of_nodes())


def test_a_peer_holds_samples_too():
    text = SMALL.replace("methods: [kd]", "methods: [mutual]")
    made, _, _, _ = students(text)
    (peer,) = (m for m in made["mutual"].objective.modules() if isinstance(m, models.APPNP))
    assert peer.count == 24 and not torch.equal(peer.samples, made["mutual"].model.samples)


def test_stacked_ones_learn_what_they_learn_alone(tmp_path, monkeypatch):
    run(SMALL, tmp_path / "alone")
    sizes = noted_sizes(monkeypatch)
    run(SMALL, tmp_path / "stacked", "training.stack=true")
    assert max(sizes) == 2
    alone, stacked = (results(tmp_path / name) for name in ("alone", "stacked"))
    for place in (place for place in alone if place.startswith("students")):
        ours, theirs = stacked[place].weights(), alone[place].weights()
        for name, array in theirs.items():
            np.testing.assert_allclose(ours[name], array, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_finished_run_teaches_elsewhere_with_the_nodes_that_it_had(tmp_path):
    run(SMALL, tmp_path / "runs", "training.ema=0.5", "seeds=[0]")
    folder = tmp_path / "runs/small/students/student/kd/seed-0"
    taught = SMALL.replace("teacher: {model: {kind: mlp, hidden: [8]}}", f"teacher: {{run: {folder}}}")
    run(taught, tmp_path / "elsewhere", "student.model={kind: mlp, hidden: [4]}", "seeds=[0]")
    there, here = results(tmp_path / "runs"), results(tmp_path / "elsewhere")
    own, again = there["students/student/kd/seed-0"], here["teachers/teacher/seed-0"]
    assert own.weights()["samples"].any() and own.weights()["count"] == 24
    np.testing.assert_array_equal(again.predictions()["logits"], own.predictions()["logits"])


def test_a_graph_network_teaches_an_mlp_and_a_shuffled_graph_does_not(tmp_path):
    """With three labels a class; the graph network sees no more."""
    run(DIGITS, tmp_path)
    rows = {row["method"] or row["model"]: row for row in comparison(tmp_path, "glnn")["rows"]}
    alone, taught = rows["alone"]["mean"], rows["glnn"]
    assert rows["graph"]["protocol"]["labels_per_class"] == 3
    assert rows["graph"]["mean"] > alone + 0.05 and taught["gap_closed"] > 0.5
    assert rows["glnn-shuffled"]["mean"] < alone
