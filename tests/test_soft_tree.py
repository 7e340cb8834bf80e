"""The soft decision tree of Frosst and Hinton: what it says, its penalty, and learning by both."""

import numpy as np
import pytest
import torch

from given import batch_of, build, outputs
from kdrun import models, registry
from kdrun.errors import Mismatch
from kdrun.taps import LayerTable
from support import experiment, results, run

TEXT = """
name: soft
device: cpu
dataset: {kind: synthetic, shape: [6], samples: 96, test_samples: 60, classes: 3}
seeds: [0]
training: {epochs: 6, batch_size: 32, optimizer: {kind: adamw, lr: 0.05}}
teacher: {model: {kind: mlp, hidden: [16]}}
student: {model: {kind: soft-tree, depth: 3}}
controls: none
methods:
  - soft-tree
  - {name: labels-balanced, losses: [ce, {kind: split-balance, weight: 0.1}]}
"""


def soft_tree(depth=2, shape=(4,), classes=3, **options):
    config = registry.MODELS["soft-tree"].Config(kind="soft-tree", depth=depth, **options)
    return models.build(config, shape, classes, 0).eval()


def by_hand(model, x):
    """The same sum, leaf by leaf."""
    gates = (model.gates.sharpness * model.gates.filters(x.flatten(1))).sigmoid().detach().double().numpy()
    said = torch.softmax(model.leaves.scores, dim=1).detach().double().numpy()
    depth = int(np.log2(len(said)))
    total = np.zeros((len(x), said.shape[1]))
    for leaf in range(len(said)):
        node, path = 0, np.ones(len(x))
        for level in reversed(range(depth)):
            right = leaf >> level & 1
            path *= gates[:, node] if right else 1 - gates[:, node]
            node = 2 * node + 1 + right
        total += path[:, None] * said[leaf]
    return total


@pytest.mark.parametrize(("depth", "shape"), [(1, (4,)), (3, (4,)), (4, (1, 3, 2))])
def test_it_says_the_mean_of_its_leaves_by_the_paths(depth, shape):
    model, x = soft_tree(depth, shape), torch.randn(5, *shape)
    np.testing.assert_allclose(model(x).exp().detach().numpy(), by_hand(model, x), rtol=1e-5)


def test_its_layers_can_be_tapped():
    network = models.Network(soft_tree(3), "input", torch.device("cpu"))
    network.tap(["gates", "visits", "paths"])
    features = network(batch_with(torch.randn(5, 4))).features
    assert [features[name].shape[1] for name in ("gates", "visits", "paths")] == [7, 15, 8]
    torch.testing.assert_close(features["paths"].sum(dim=1), torch.ones(5))
    torch.testing.assert_close(features["visits"][:, 7:].exp(), features["paths"])
    torch.testing.assert_close(features["visits"][:, 1:3].exp().sum(dim=1), torch.ones(5))


def batch_with(x):
    batch = batch_of(len(x))
    return type(batch)({"input": x}, batch.labels, batch.index)


def test_the_greatest_path_is_one_leaf_but_not_while_it_learns():
    mean, greatest = soft_tree(2), soft_tree(2, predicts_by="greatest-path")
    greatest.load_state_dict(mean.state_dict())
    x = torch.randn(6, 4)
    leaves = torch.softmax(mean.leaves.scores, dim=1)
    paths = mean.paths(mean.visits(mean.gates(x)))
    torch.testing.assert_close(greatest(x).exp(), leaves[paths.argmax(dim=1)])
    torch.testing.assert_close(greatest.train()(x), mean(x))


def test_extreme_inputs_give_numbers_and_gradients():
    model = soft_tree(4)
    x = torch.tensor([[1e20] * 4, [-1e20] * 4, [0.0] * 4])
    logits = model.train()(x)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_penalty_is_least_where_every_node_sends_half_each_way():
    model, x = soft_tree(3), torch.randn(64, 4)
    with torch.no_grad():
        model.gates.filters.weight.zero_()
        model.gates.filters.bias.zero_()
    loss = build({"kind": "split-balance"})
    network = models.Network(model, "input", torch.device("cpu"))
    network.tap(["gates", "visits"])
    even = loss(network(batch_with(x)), None, batch_with(x))
    assert even.item() == pytest.approx(3 * np.log(2))
    even.backward()
    assert model.gates.filters.weight.grad.abs().max() < 1e-6
    for bias in (0.3, -0.3):
        with torch.no_grad():
            model.gates.filters.bias[1] = bias
        assert loss(network(batch_with(x)), None, batch_with(x)) > even + 1e-4


def test_the_penalty_needs_a_soft_tree():
    loss = build({"kind": "split-balance"})
    with pytest.raises(Mismatch, match="the student is none"):
        loss.taps(LayerTable("the student", {"body.0": (4,)}, ("body.0",), "body.0"), None)


def test_the_penalty_ignores_the_teacher_and_the_labels():
    loss, said = build({"kind": "split-balance"}), outputs({"gates": (7,), "visits": (15,)})
    one, other = batch_of(8), batch_of(8, labels=[4] * 8)
    assert loss(said, None, one) == loss(said, outputs({}, seed=3), other)


def test_a_soft_tree_learns_from_labels_and_from_its_teacher(tmp_path):
    run(TEXT, tmp_path)
    found = results(tmp_path)
    for method in ("alone", "soft-tree", "labels-balanced"):
        result = found[f"students/student/{method}/seed-0"]
        assert result.manifest["scores"]["accuracy"] > 0.6, "three classes of a table that are far apart"
        terms = result.metrics()[-1]["terms"]
        assert method == "alone" or 3 * np.log(2) <= terms["split-balance"]["value"] < 3
    assert found["students/student/soft-tree/seed-0"].manifest["likeness"]["test"]["agreement"] > 0.6


def test_another_student_is_refused_at_its_line(tmp_path):
    with pytest.raises(Exception, match=r"is none; use it with `model: soft-tree`"):
        experiment(TEXT, tmp_path, "student.model={kind: mlp, hidden: [4]}").run()
