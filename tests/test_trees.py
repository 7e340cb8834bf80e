"""What is fitted at once: it says what scikit-learn's says, learns from any mix with targets, and asks its teacher."""

import copy
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from sklearn import datasets, ensemble, linear_model, svm, tree
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import StratifiedKFold

from kdrun import assembly, config, models, registry, trees
from kdrun.contracts import HIDDEN, Batch, Mix, Outputs, Queries
from kdrun.data.queries import asked_in, spreads_of, with_queries
from kdrun.errors import ConfigError, StoreError, TrainingError
from kdrun.models.folds import OutOfFold, dealt
from kdrun.models.trees import Grown, rounded_down
from kdrun.plan import plan
from kdrun.report import table
from kdrun.store import Store, read_json, write_json
from kdrun.store.files import digest
from support import (
    Ears,
    break_teachers,
    checked,
    command,
    comparison,
    count_training,
    experiment,
    kdrun_process,
    outcome,
    problems,
    results,
    run,
    said,
    students,
)

KINDS = ("tree", "forest", "boosting", "svc", "logistic-regression")
SMALL = {"forest": {"trees": 7}, "boosting": {"rounds": 5}}


def build(kind, inputs, classes, **options):
    written = registry.MODELS[kind].Config(kind=kind, **SMALL.get(kind, {}), **options)
    return models.build(written, (inputs,), classes, 0)


def standardised(name):
    """Inputs (N, F) float32 and labels (N,) of one of scikit-learn's sets."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return ((x - x.mean(0)) / (x.std(0) + 1e-9)).astype(np.float32), y


def hot(labels, classes=None):
    return np.eye(classes or labels.max() + 1)[labels]


def soft(labels, classes=None):
    """Class probabilities that no sample shares with another."""
    target = 0.7 * hot(labels, classes) + 0.3 * np.random.default_rng(0).dirichlet(
        np.ones(classes or labels.max() + 1), len(labels)
    )
    return target / target.sum(axis=1, keepdims=True)


def probabilities(model, x):
    with torch.no_grad():
        return torch.softmax(model(torch.from_numpy(x)), dim=1).double().numpy()


# --------------------------------------------------------------------------------- what scikit-learn says


def of_classes(learner):
    """A learner of classes by weights, as one of probabilities: each sample once for each of its classes."""

    def expected(x, target):
        rows, classes = np.nonzero(target >= 1e-3)
        fitted = learner.fit(x[rows], classes, sample_weight=target[rows, classes])
        return fitted.predict_proba(x)

    return expected


def of_probabilities(learner):
    return lambda x, target: learner.fit(x, target).predict(x)


def platt(x, target):
    folds = StratifiedKFold(5, shuffle=True, random_state=3)
    machine = CalibratedClassifierCV(svm.SVC(), method="sigmoid", cv=folds, ensemble=False)
    return machine.fit(x, target.argmax(axis=1)).predict_proba(x)


EXPECTED = {
    "tree": of_probabilities(tree.DecisionTreeRegressor(max_depth=8, random_state=3)),
    "forest": of_probabilities(
        ensemble.RandomForestRegressor(7, max_features="sqrt", random_state=3, n_jobs=1)
    ),
    "boosting": of_classes(
        ensemble.HistGradientBoostingClassifier(max_iter=5, early_stopping=False, random_state=3)
    ),
    "svc": platt,
    "logistic-regression": of_classes(linear_model.LogisticRegression(max_iter=1000)),
}


@pytest.mark.parametrize("targets", [hot, soft])
@pytest.mark.parametrize("data", ["iris", "breast_cancer", "digits"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_fitted_says_what_scikit_learn_says(kind, data, targets):
    x, y = standardised(data)
    x, y = x[::2], y[::2]
    model = build(kind, x.shape[1], y.max() + 1)
    model.fit(x, targets(y), seed=3, threads=2)
    wanted = EXPECTED[kind](x.astype(np.float64) if kind.startswith("logistic") else x, targets(y))
    np.testing.assert_allclose(probabilities(model, x), np.clip(wanted, 1e-6, 1), atol=2e-4)


@pytest.mark.parametrize("c", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("gamma", [1e-12, 1e-5, 1e-3, 10.0])
def test_a_machine_that_learns_hardly_anything_says_what_scikit_learn_s_says(gamma, c):
    x, y = standardised("wine")
    build("svc", 13, 3, gamma=gamma, c=c).fit(x, hot(y), 0, 1)  # it demands that itself


def test_macs_of_a_machine_are_those_of_its_kernel_and_its_decisions():
    x, y = standardised("wine")
    model = build("svc", 13, 3)
    model.fit(x, hot(y), 0, 1)
    assert models.macs(model, (13,)) == len(model.vectors) * (13 + 3)


@pytest.mark.parametrize("targets", [hot, soft])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("tree", {"depth": None}),
        ("tree", {"depth": 4, "min_samples_leaf": 3}),
        ("forest", {}),
        ("forest", {"depth": 3, "max_features": 0.5}),
        ("boosting", {"min_samples_leaf": 2}),
        ("boosting", {"depth": 2}),
        ("svc", {}),
        ("logistic-regression", {}),
    ],
)
@pytest.mark.parametrize("data", ["wine", "breast_cancer"])
def test_what_is_held_at_most_is_known_before_it_is_fitted(data, kind, options, targets):
    x, y = standardised(data)
    model = build(kind, x.shape[1], y.max() + 1, **options)
    most = model.most_numbers(len(x))
    model.fit(x, targets(y), 0, 1)
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 4
    assert held <= most
    if targets is soft and kind == "forest" and not options:
        assert most < 1.2 * held


@pytest.mark.parametrize("kind", KINDS)
def test_one_sample_is_answered_as_among_others(kind):
    x, y = standardised("wine")
    model = build(kind, 13, 3)
    model.fit(x, hot(y), 0, 1)
    alone = np.concatenate([probabilities(model, x[row : row + 1]) for row in range(40)])
    np.testing.assert_allclose(alone, probabilities(model, x[:40]), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_fitted_yet_holds_all_classes_for_equally_likely(kind):
    model = build(kind, 5, 4)
    for rows in (1, 6):
        np.testing.assert_allclose(probabilities(model, np.zeros((rows, 5), np.float32)), 0.25)
    assert models.macs(model, (5,)) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("present", [[1], [0, 3], [0, 2, 3]])
def test_classes_of_which_there_is_no_sample_are_hardly_likely(kind, present):
    x, y = standardised("iris")
    kept = y < len(present)
    labels = np.array(present)[y[kept]]
    model = build(kind, 4, 5)
    model.fit(x[kept], hot(labels, 5), 0, 1)
    found = probabilities(model, x[kept])
    assert found[:, np.setdiff1d(np.arange(5), present)].max() < 1e-5
    assert (found.argmax(axis=1) == labels).mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_again_gives_the_same_bits(kind):
    x, y = standardised("wine")
    first, again, other = build(kind, 13, 3), build(kind, 13, 3), build(kind, 13, 3)
    first.fit(x, soft(y), 5, 2)
    again.fit(x[::-1].copy(), soft(y)[::-1].copy(), 4, 1)  # whatever it was before
    again.fit(x, soft(y), 5, 1)
    assert all(torch.equal(a, again.state_dict()[name]) for name, a in first.state_dict().items())
    other.fit(x, soft(y), 6, 2)
    if kind == "forest":
        assert not np.array_equal(probabilities(first, x), probabilities(other, x))


# ---------------------------------------------------------------------------------- samples that count more


def test_targets_are_parted_in_probabilities_and_what_samples_count():
    targets, weights = trees.parted(np.array([[2, 0, 0], [1, 3, 0]], np.float32))
    assert targets.tolist() == [[1, 0, 0], [0.25, 0.75, 0]] and targets.dtype == np.float32
    assert weights.tolist() == pytest.approx([2 / 3, 4 / 3])


SHALLOW = {"tree": {"depth": 3}, "forest": {"depth": 3}}


@pytest.mark.parametrize("targets", [hot, soft])
@pytest.mark.parametrize("kind", KINDS)
def test_every_model_that_is_fitted_heeds_what_samples_count(kind, targets):
    x, y = standardised("wine")
    odd = np.arange(len(y)) % 2 == 1
    x, told = x[:, :2], np.where(odd, y, (y + 1) % 3)  # half of the labels are wrong
    plain, weighted = (build(kind, 2, 3, **SHALLOW.get(kind, {})) for _ in range(2))
    weights = np.where(odd, 1.98, 0.02)
    plain.fit(x, targets(told), 0, 1)
    weighted.fit(x, targets(told), 0, 1, weights)
    agreement = [(probabilities(model, x).argmax(axis=1) == y).mean() for model in (plain, weighted)]
    assert agreement[1] > agreement[0] + 0.1


def test_a_weighted_tree_is_scikit_learn_s():
    x, y = standardised("wine")
    weights = np.random.default_rng(0).exponential(size=len(y))
    model = build("tree", 13, 3, depth=3)
    model.fit(x, soft(y), 0, 1, weights)
    expected = tree.DecisionTreeRegressor(max_depth=3, random_state=0).fit(x, soft(y), sample_weight=weights)
    np.testing.assert_allclose(probabilities(model, x), np.clip(expected.predict(x), 1e-6, 1), atol=1e-5)


def test_a_weighted_classifier_is_scikit_learn_s():
    x, y = standardised("wine")
    weights = np.random.default_rng(0).exponential(size=len(y))
    model = build("logistic-regression", 13, 3)
    model.fit(x, hot(y), 0, 1, weights)
    learner = linear_model.LogisticRegression(max_iter=1000).fit(
        x.astype(np.float64), y, sample_weight=weights
    )
    np.testing.assert_allclose(probabilities(model, x), learner.predict_proba(x), atol=2e-4)


# --------------------------------------------------------------------------------------- arrays and files


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_any_size_is_loaded_that_makes_a_model(kind):
    x, y = standardised("wine")
    model, twin = build(kind, 13, 3), build(kind, 13, 3)
    model.fit(x, soft(y), 0, 1)
    twin.load_state_dict(model.state_dict())
    assert np.array_equal(probabilities(twin, x), probabilities(model, x))
    again = copy.deepcopy(twin)
    assert np.array_equal(probabilities(again, x[:1]), probabilities(twin, x[:1]))


FORGED = {
    "a feature that is none": ("tree", "feature", lambda a: a + 13),
    "a feature below 0": ("tree", "feature", lambda a: a - 99),
    "a branch back to the root": ("tree", "branches", lambda a: a * 0),
    "a branch to no leaf": ("tree", "branches", lambda a: a * 0 - 999),
    "a branch to no split": ("tree", "branches", lambda a: a * 0 + 999),
    "a root that is none": ("forest", "roots", lambda a: a + 99999),
    "no root": ("tree", "roots", lambda a: a[:0]),
    "leaves of other classes": ("tree", "value", lambda a: a[:, :2]),
    "leaves that say no probabilities": ("tree", "value", lambda a: a + 3),
    "leaves that say no numbers": ("tree", "value", lambda a: a * math.nan),
    "fewer leaves": ("tree", "value", lambda a: a[:1]),
    "fewer thresholds": ("tree", "threshold", lambda a: a[:1]),
    "wide numbers": ("tree", "threshold", lambda a: a.double()),
    "trees of no class": ("boosting", "base", lambda a: a[:1]),
    "a class that is none": ("boosting", "present", lambda a: a + 1),
    "a class twice": ("logistic-regression", "present", lambda a: a * 0),
    "weights of other columns": ("logistic-regression", "weight", lambda a: a[:, :4]),
    "fewer vectors": ("svc", "vectors", lambda a: a[:2]),
    "vectors of no class": ("svc", "of", lambda a: a + 9),
    "no kernel": ("svc", "width", lambda a: a[:0]),
    "fewer sigmoids": ("svc", "slopes", lambda a: a[:1]),
}


@pytest.mark.parametrize(("kind", "name", "change"), FORGED.values(), ids=FORGED)
def test_arrays_that_make_no_model_are_refused(kind, name, change):
    x, y = standardised("wine")
    model = build(kind, 13, 3)
    model.fit(x, soft(y), 0, 1)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"size mismatch|'\w+' (is|are|names|holds|\[)"):
        build(kind, 13, 3).load_state_dict(state | {name: change(state[name])})


@given(st.floats(-1e30, 1e30), st.floats(-(2.0**99), 2.0**99, width=32))
@settings(max_examples=300, deadline=None)
def test_a_threshold_in_float32_parts_what_the_one_in_float64_parts(threshold, value):
    near = rounded_down(np.array([threshold]))[0]
    assert near.dtype == np.float32
    assert (np.float32(value) <= near) == (float(np.float32(value)) <= threshold)


@pytest.mark.parametrize("data", ["wine", "breast_cancer", "digits"])
def test_cutting_the_weakest_links_is_minimal_cost_complexity_pruning(data):
    x, y = standardised(data)
    learner = tree.DecisionTreeRegressor(random_state=0)
    prices = learner.cost_complexity_pruning_path(x, soft(y)).ccp_alphas
    model = build("tree", x.shape[1], y.max() + 1, depth=None)
    model.fit(x, soft(y), 0, 1)
    links = model.whole.weakest_links()
    found = np.unique(links[np.isfinite(links)])
    np.testing.assert_allclose(np.unique(found.round(12)), np.unique(prices[1:].round(12)), atol=1e-9)
    for price in prices[:: max(1, len(prices) // 12)]:
        expected = tree.DecisionTreeRegressor(random_state=0, ccp_alpha=price + 1e-12).fit(x, soft(y))
        model.cut(links <= price + 1e-12)
        assert len(model.value) == expected.get_n_leaves()
        np.testing.assert_allclose(probabilities(model, x), np.clip(expected.predict(x), 1e-6, 1), atol=1e-5)


def test_a_root_is_the_smallest_tree():
    model = build("tree", 4, 3)
    x, y = standardised("iris")
    model.fit(x, hot(y), 0, 1)
    model.cut(np.ones(len(model.whole.left), bool))
    assert (len(model.feature), len(model.value), model.depth) == (0, 1, 0)
    np.testing.assert_allclose(probabilities(model, x[:3]), 1 / 3, atol=1e-6)


def test_a_cut_tree_keeps_what_is_above_the_cut():
    grown = Grown(
        feature=np.array([0, 0, 0, 0, 0]),
        threshold=np.array([0.0, -1.0, 0.0, 0.0, 0.0]),
        left=np.array([1, 2, -1, -1, -1]),
        right=np.array([4, 3, -1, -1, -1]),
        value=np.arange(10.0).reshape(5, 2),
        cost=np.zeros(5),
    )
    cut = grown.cut(np.array([False, True, False, False, False]))
    assert cut.left.tolist() == [1, -1, -1] and cut.right.tolist() == [2, -1, -1]
    assert cut.value.tolist() == [[0, 1], [2, 3], [8, 9]]


# ------------------------------------------------------------------------------------------------ queries


def table_batch(size=40, columns=3):
    x = torch.arange(size * columns, dtype=torch.float32).view(size, columns)
    return Batch({"input": x}, torch.arange(size) % 4, torch.arange(size), all_seen=True)


def asked(batch, seed=0, count=None, spreads=(1.0, 1.0, 1.0), **queries):
    spreads = {"input": torch.tensor(spreads)}
    return with_queries(batch, len(batch) if count is None else count, Queries(**queries), spreads, seed=seed)


@pytest.mark.parametrize("size", [1, 8, 64])
@pytest.mark.parametrize("per_sample", [1, 3, 30])
def test_over_all_batches_queries_are_as_many_to_one_as_asked_for(size, per_sample):
    counts = [asked_in(step, size, Queries(per_sample=per_sample)) for step in range(31 * 4)]
    left = [size - count for count in counts]
    assert sum(left) == 31 * 4 * size // (1 + per_sample) and max(left) - min(left) <= 1


def test_a_share_of_a_batch_are_queries_without_labels():
    count, before = 30, table_batch()
    batch = asked(before, seed=7, count=count, jitter=1)
    changed = batch.labels == HIDDEN
    assert changed.sum() == count and not batch.all_seen
    assert torch.equal(batch.views["input"][~changed], before.views["input"][~changed])
    assert torch.equal(batch.labels[~changed], before.labels[~changed])
    assert (batch.views["input"][changed] != before.views["input"][changed]).all()
    assert torch.equal(batch.index, before.index), "a query is one of its own sample"


def test_of_a_query_of_mixed_samples_neither_has_a_label():
    before = replace(
        table_batch(4), mix=Mix(torch.tensor([1, 0, 3, 2]), torch.full((4,), 0.6)), all_seen=True
    )
    batch = asked(before, count=2)
    for row in (batch.labels == HIDDEN).nonzero().flatten().tolist():
        assert batch.labels[batch.mix.partner[row]] == HIDDEN


def test_noise_is_in_each_number_s_own_standard_deviations():
    zeros = Batch({"input": torch.zeros(4000, 3)}, torch.zeros(4000, dtype=torch.long), torch.arange(4000))
    noise = asked(zeros, jitter=0.5, spreads=(0.0, 1.0, 4.0)).views["input"]
    np.testing.assert_allclose(noise.std(dim=0).numpy(), [0, 0.5, 2.0], rtol=0.05)
    assert noise.mean(dim=0).abs().max() < 0.1


def test_a_mixed_query_lies_between_two_samples():
    mixed = asked(table_batch(), seed=3, jitter=0, mix=1.0).views["input"]
    first = mixed[:, 0] / 3  # samples lie on a line, three apart
    assert ((first >= 0) & (first <= 39)).all() and len(set(first.tolist())) > 30
    torch.testing.assert_close(mixed[:, 1] - mixed[:, 0], torch.ones(40), atol=1e-4, rtol=0)


def test_a_mixed_query_is_mostly_its_own_sample():
    pairs = Batch(
        {"input": torch.eye(40)}, torch.zeros(40, dtype=torch.long), torch.arange(40), all_seen=True
    )
    mixed = asked(pairs, jitter=0, mix=0.3, spreads=[1.0] * 40).views["input"]
    assert (mixed.diagonal() >= 0.5).all() and (mixed.diagonal() < 1).any()


def test_queries_are_a_function_of_their_seed_and_no_global_generator_moves():
    before = torch.get_rng_state()
    one, same, other = (asked(table_batch(), seed).views["input"] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_spreads_are_standard_deviations():
    x = torch.randn(500, 2, 3, generator=torch.Generator().manual_seed(0)) * 7 + 100
    halves = [Batch({"a": part}, torch.zeros(250), torch.arange(250)) for part in x.split(250)]
    torch.testing.assert_close(spreads_of(halves)["a"], x.std(dim=0, correction=0), rtol=1e-4, atol=0)


TEXT = """
name: fitted
device: cpu
dataset: {kind: digits, seed: 1}
seeds: [0]
training: {epochs: 3, batch_size: 64, optimizer: {kind: adamw, lr: 0.005}}
teacher: {model: {kind: mlp, hidden: [32]}}
student: {model: {kind: tree, depth: 5}}
controls: none
methods:
  - {name: soft, use: kd, set: {kd.temperature: 1}}
"""
ASKING = "methods.soft.training.queries={per_sample: 2}"


def loaded(*overrides):
    """The data of the config, and its students' runs by method."""
    read = checked(TEXT, *overrides)
    dataset = assembly.open_dataset(read)
    dataset.load(torch.device("cpu"))
    runs = {run_.method: run_ for run_ in plan(read, dataset).runs if run_.role == "student"}
    return dataset, runs


def shown(dataset, run_):
    rounds = trees.rounds_of(dataset, run_.draw, run_.training.epochs)
    parts = [list(one.open()) for one in rounds]
    assert [len(part) for part in parts] == [one.batches for one in rounds]
    batches = [batch for part in parts for batch in part]
    assert sum(map(len, batches)) == sum(one.samples for one in rounds)
    index = torch.cat([batch.index for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    return index, labels, torch.cat([batch.views["input"] for batch in batches])


def test_every_training_sample_is_shown_once_where_nothing_changes_it():
    dataset, runs = loaded()
    index, labels, x = shown(dataset, runs["soft"])
    assert torch.equal(index, torch.arange(1257))
    assert np.array_equal(labels.numpy(), dataset.labels("train"))
    assert torch.equal(x, torch.cat([batch.views["input"] for batch in dataset.split("train")]))


def test_fixed_copies_are_shown_once_each_and_no_more_than_there_are_epochs():
    for copies, passes in ((2, 2), (5, 3)):
        dataset, runs = loaded(f"dataset.augmentation={{copies: {copies}, parts: standard}}")
        index, _, x = shown(dataset, runs["soft"])
        assert len(index) == passes * 1257
        assert len(np.unique(x.flatten(1).numpy(), axis=0)) > 1.9 * 1257


def test_random_augmentation_is_shown_as_often_as_to_a_network():
    dataset, runs = loaded("dataset.augmentation=standard")
    index, _, _ = shown(dataset, runs["soft"])
    assert len(index) == 3 * (1257 // 64) * 64


def test_queries_come_after_the_samples_and_have_no_labels():
    dataset, runs = loaded(ASKING)
    index, labels, x = shown(dataset, runs["soft"])
    assert torch.equal(index[:1257], torch.arange(1257)) and (labels[:1257] >= 0).all()
    assert (labels[1257:] == HIDDEN).all()
    for asked_about in index[1257:].split(1257):
        assert torch.equal(asked_about.sort().values, torch.arange(1257)), "of each sample one in each round"
        assert not torch.equal(asked_about, asked_about.sort().values)
    assert len(np.unique(x.flatten(1).numpy(), axis=0)) > len(index) - 5


def test_what_is_asked_has_nothing_to_do_with_the_size_of_batches():
    one, other = (
        shown(dataset, runs["soft"])
        for dataset, runs in (loaded(ASKING), loaded(ASKING, "training.batch_size=100"))
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("overrides", [["teacher.view=strong"], ["student.view=strong"]])
def test_a_view_that_differs_in_every_epoch_is_shown_in_every_epoch(tmp_path, overrides):
    data = "dataset={kind: digits, augmentation: none, strong_view: flip}"
    dataset, runs = loaded(data, *overrides)
    assert len(shown(dataset, runs["soft"])[0]) == 3 * (1257 // 64) * 64
    run(TEXT, tmp_path, data, ASKING, *overrides)
    assert of_method(tmp_path).manifest["scores"]["accuracy"] > 0.3


def test_whom_no_teacher_answers_nobody_asks():
    _, runs = loaded(ASKING, "training.queries={per_sample: 3}")
    assert runs["alone"].draw.queries is None
    assert runs["soft"].draw.queries.per_sample == 2


def test_few_labels_are_all_that_a_control_learns_from(tmp_path):
    ears = Ears()
    experiment(TEXT, tmp_path, "dataset.labels_per_class=5", console=ears).run()
    assert "student/alone/seed 0: fitting it to 50 samples" in ears.heard
    assert "student/soft/seed 0: fitting it to 1,257 samples" in ears.heard


# ---------------------------------------------------------------------------------------------- the student


def of_method(root, method="soft", student="student"):
    return results(root)[f"students/{student}/{method}/seed-0"]


def fitted_model(root, method="soft", kind="tree", shape=(1, 8, 8), **options):
    model = models.build(registry.MODELS[kind].Config(kind=kind, **options), shape, 10, 0)
    weights = of_method(root, method).weights()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return model


def test_a_tree_is_scikit_learn_s_for_the_targets_of_its_terms(tmp_path):
    """Its thresholds are moved, so that they can be read, and no training sample changes sides."""
    run(TEXT, tmp_path, "student.model.min_samples_leaf=4")
    dataset, runs = loaded("student.model.min_samples_leaf=4")
    x = np.concatenate([batch.views["input"].flatten(1).numpy() for batch in dataset.split("train")])
    teacher = experiment(TEXT, tmp_path).plan.runs[0]
    network = assembly.frozen(
        teacher, results(tmp_path)["teachers/teacher/seed-0"], dataset.spec, torch.device("cpu")
    )
    p = torch.cat([torch.softmax(network(batch).logits, dim=1) for batch in dataset.split("train")]).numpy()
    labels = hot(dataset.labels("train"))
    for method, target in (("alone", labels), ("soft", 0.1 * labels + 0.9 * p)):
        seed = trees.derive(0, "student", "fit") % 2**32
        learner = tree.DecisionTreeRegressor(max_depth=5, min_samples_leaf=4, random_state=seed)
        expected = learner.fit(x, target).predict(x)
        found = probabilities(fitted_model(tmp_path, method), x.reshape(-1, 1, 8, 8))
        np.testing.assert_allclose(found, np.clip(expected, 1e-6, 1), atol=1e-4)
        assert {"soft": 1257, "alone": 1257}[runs[method].method] == len(x)


def test_questions_make_a_tree_more_like_its_teacher_and_better(tmp_path):
    text = TEXT.replace("depth: 5", "depth: 8").replace("epochs: 3", "epochs: 15")
    run(text, tmp_path, "methods.soft.training.queries={per_sample: 20}", "dataset.seed=0")
    rows = {row["method"]: row for row in comparison(tmp_path, "fitted")["rows"]}
    assert rows["soft"]["mean"] > rows["alone"]["mean"] + 0.02
    assert rows["soft"]["agreement"] > rows["alone"]["agreement"] + 0.02


ALL = """
name: all
device: cpu
dataset: {kind: wine, validation: 0.2}
seeds: [0, 1]
training: {epochs: 4, batch_size: 16, optimizer: {kind: adamw, lr: 0.01}}
teacher: {model: {kind: mlp, hidden: [16]}}
students:
  network: {model: {kind: mlp, hidden: [4]}}
  tree: {model: {kind: tree, depth: 3}}
  forest: {model: {kind: forest, trees: 5}}
  boosting: {model: {kind: boosting, rounds: 4}}
  svc: {model: svc}
  linear: {model: logistic-regression}
controls: all
methods:
  - kd
  - {name: asks, use: kd, training: {queries: {per_sample: 2}}}
  - {name: mixed, use: hard, training: {mixup: 0.4}}
"""


FITTED_STUDENTS = ("tree", "forest", "boosting", "svc", "linear")


def only(*names):
    """The config with some of its students alone."""
    lines = ALL.splitlines()
    gone = [f"  {name}: " for name in ("network", *FITTED_STUDENTS) if name not in names]
    return "\n".join(line for line in lines if not line.startswith(tuple(gone))) + "\n"


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    root = tmp_path_factory.mktemp("all")
    run(ALL, root)
    return root


def test_every_kind_stands_in_one_table_with_all_that_a_network_has(everything):
    compared = comparison(everything, "all")
    rows = [row for row in compared["rows"] if row["role"] in ("control", "student")]
    assert len(rows) == 6 * 7 - 5 and {row["status"] for row in rows} == {"finished"}
    kept = json.loads((everything / "all" / "costs.json").read_text())["models"]
    for row in rows:
        assert len(row["values"]) == 2 and (row["method"] == "alone" or row["gain_seeds"] == 2)
        assert row["parameters"] > 0 and row["bytes"] > 100 and row["peak_memory_bytes"] > 0
        assert row["nll"] < 14 and 0 <= row["ece"] <= 1
        assert row["method"] not in ("kd", "asks", "mixed") or row["verdict"] is not None
    assert len(kept) == 1 + 1 + 5 * 6 * 2, "networks of one form have one cost"
    assert len(table.tables(compared)) == 1


def test_what_cannot_be_trained_for_longer_has_no_control_that_is(everything):
    of_matched = {
        row["model"] for row in comparison(everything, "all")["rows"] if row["method"] == "matched-cost"
    }
    assert of_matched == {"network"}


def test_the_latency_of_each_is_that_of_its_own_arrays(everything):
    costs = json.loads((everything / "all" / "costs.json").read_text())["models"]
    resolved = json.loads((everything / "all" / "resolved.json").read_text())
    keys = {(r["name"], r["method"], r["seed"]): r["model"] for r in resolved["runs"]}
    assert keys["forest", "kd", 0] != keys["forest", "kd", 1] != keys["forest", "asks", 1]
    assert keys["network", "kd", 0] == keys["network", "asks", 1]
    forest, single = costs[keys["forest", "asks", 0]], costs[keys["tree", "asks", 0]]
    assert forest["peak_memory_bytes"] > single["peak_memory_bytes"]


def test_what_is_fitted_is_not_fitted_again(everything, monkeypatch):
    fitted = titles_of_fits(monkeypatch)
    trained = count_training(monkeypatch)
    run(ALL, everything)
    assert fitted == trained == []


def titles_of_fits(monkeypatch):
    """The titles of the runs that are fitted from now on, as they begin."""
    titles, original = [], trees.FittedStudent.fit
    monkeypatch.setattr(
        trees.FittedStudent, "fit", lambda self, *rest: titles.append(self.title) or original(self, *rest)
    )
    return titles


@pytest.mark.parametrize("name", FITTED_STUDENTS)
def test_alone_as_in_company(everything, tmp_path, name):
    run(only(name), tmp_path, "controls=none", "seeds=[1]")
    company, alone = outcome(everything), outcome(tmp_path)
    for method in ("alone", "kd", "asks", "mixed"):
        assert alone[f"students/{name}/{method}/seed-1"] == company[f"students/{name}/{method}/seed-1"]


def test_where_networks_are_stacked_trees_are_fitted_as_ever(everything, tmp_path):
    run(only("tree", "network"), tmp_path, "controls=none", "training.stack=true")
    stacked, apart = outcome(tmp_path), outcome(everything)
    trees_ = [place for place in stacked if place.startswith("students/tree/")]
    assert len(trees_) == 2 * 4 and all(stacked[place] == apart[place] for place in trees_)


def test_what_a_control_draws_has_nothing_to_do_with_its_company(everything, tmp_path):
    run(only("tree"), tmp_path, "controls=[shuffled-teacher]", "seeds=[1]")
    place = "students/tree/shuffled-teacher/seed-1"
    assert outcome(tmp_path)[place] == outcome(everything)[place]


def test_a_learning_rate_fits_nothing_again_and_questions_do(everything, monkeypatch):
    fitted = titles_of_fits(monkeypatch)
    run(only(*FITTED_STUDENTS), everything, "seeds=[0]", "students.tree.training={epochs: 4}")
    assert fitted == []
    run(only(*FITTED_STUDENTS), everything, "seeds=[0]", "methods.asks.training.queries.per_sample=1")
    assert sorted(fitted) == sorted(f"{name}/asks/seed 0" for name in FITTED_STUDENTS)


def test_what_an_optimizer_says_is_not_asked_of_what_is_fitted():
    def of(*overrides):
        read = checked(only("tree"), *overrides)
        return {r.method: r.fingerprint for r in plan(read, assembly.open_dataset(read)).runs if r.seed}

    assert of()["alone"] == of("training.optimizer.lr=0.5", "training.clip=1.0")["alone"]
    assert of()["alone"] != of("training.epochs=5")["alone"]


# ------------------------------------------------------------------------------------------------- pruning

PRUNED = """
name: pruned
device: cpu
dataset: {kind: breast_cancer, validation: 0.3}
seeds: [0]
training: {epochs: 8, batch_size: 32, optimizer: {kind: adamw, lr: 0.01}}
teacher: {model: {kind: mlp, hidden: [16]}}
students:
  whole: {model: {kind: tree, depth: null}}
  pruned: {model: {kind: tree, depth: null, prune: true}}
controls: none
methods: [{name: asks, use: kd, set: {kd.temperature: 1}, training: {queries: {per_sample: 3}}}]
"""


def validated(root, method):
    """How often each tree agrees on the validation samples: with the teacher, or alone with the labels."""
    dataset = assembly.open_dataset(checked(PRUNED))
    dataset.load(torch.device("cpu"))
    x = np.concatenate([batch.views["input"].numpy() for batch in dataset.split("validation")])
    wanted = dataset.labels("validation")
    if method != "alone":
        teacher = models.build(registry.MODELS["mlp"].Config(kind="mlp", hidden=[16]), (30,), 2, 0)
        weights = results(root)["teachers/teacher/seed-0"].weights()
        teacher.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        wanted = probabilities(teacher.eval(), x).argmax(axis=1)
    found = {}
    for student in ("whole", "pruned"):
        model = build("tree", 30, 2)
        weights = results(root)[f"students/{student}/{method}/seed-0"].weights()
        model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        found[student] = (probabilities(model, x).argmax(axis=1) == wanted).mean(), len(model.value)
    return found


def test_pruning_keeps_what_agrees_most_on_the_validation_samples(tmp_path):
    run(PRUNED, tmp_path)
    for method in ("alone", "asks"):
        (whole, leaves), (pruned, fewer) = validated(tmp_path, method).values()
        assert pruned >= whole and 1 < fewer < leaves


def test_of_trees_that_agree_alike_the_smallest_is_kept():
    x, y = standardised("breast_cancer")
    model = build("tree", 30, 2, depth=None)
    model.fit(x, hot(y), 0, 1)
    trees.prune(model, torch.from_numpy(x), torch.from_numpy(y))
    assert len(model.value) == len(np.unique(model.whole.left[model.whole.left >= 0])) + 1, "all are right"
    trees.prune(model, torch.from_numpy(x), torch.ones(len(x), dtype=torch.long))
    assert len(model.value) == 1, "where always the same is wanted no split is"


def test_a_tree_is_pruned_by_what_samples_count():
    x = torch.arange(8.0)[:, None]
    y = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    model = build("tree", 1, 2, depth=None)
    model.fit(x.numpy(), hot(y), 0, 1)
    mostly_first = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    trees.prune(model, x[6:], mostly_first[6:], torch.tensor([5.0, 1.0]))
    assert len(model.value) == 1
    trees.prune(model, x[6:], mostly_first[6:], torch.tensor([1.0, 5.0]))
    assert len(model.value) == 2


def test_a_tree_is_pruned_by_what_it_is_taught(tmp_path):
    """A shuffled teacher would be none if its own choices on the validation samples decided."""
    run(PRUNED, tmp_path, "controls=[shuffled-teacher]")
    dataset = assembly.open_dataset(checked(PRUNED))
    dataset.load(torch.device("cpu"))
    most = np.bincount(dataset.labels("test")).max() / len(dataset.labels("test"))
    shuffled = results(tmp_path)["students/pruned/shuffled-teacher/seed-0"].manifest["scores"]["accuracy"]
    taught = results(tmp_path)["students/pruned/asks/seed-0"].manifest["scores"]["accuracy"]
    assert shuffled < most + 0.05 < taught


def test_models_of_the_folds_are_pruned_too(tmp_path):
    text = PRUNED.replace("mlp, hidden: [16]", "tree, depth: null, prune: true").split("students:")[0]
    text = text.replace("teacher: {", "teacher: {cross_fit: 3, ")
    text += "student: {model: {kind: mlp, hidden: [4]}}\ncontrols: none\nmethods: [kd]\n"
    run(text, tmp_path)
    folder = tmp_path / "pruned" / "teachers" / "teacher" / "seed-0"
    own = len(load_file(folder / "weights.safetensors")["value"])
    folds = load_file(folder / "folds.safetensors")
    whole = build("tree", 30, 2, depth=None)
    x, y = standardised("breast_cancer")
    whole.fit(x[:280], hot(y[:280]), 0, 1)
    assert all(len(folds[f"{number}.value"]) < len(whole.value) for number in range(3))
    assert own < len(whole.value)


# ------------------------------------------------------------------------------------------ cross-fitting

CROSS = """
name: cross
device: cpu
dataset: {kind: digits}
seeds: [0]
training: {epochs: 4, batch_size: 64, optimizer: {kind: adamw, lr: 0.005}}
teachers:
  forest: {model: {kind: forest, trees: 8}, cross_fit: 3}
  plain: {model: {kind: forest, trees: 8}, cross_fit: 0}
student: {model: {kind: mlp, hidden: [16]}}
controls: none
methods:
  - {name: crossed, use: kd, teacher: forest, set: {kd.temperature: 1}}
  - {name: plain, use: kd, teacher: plain, set: {kd.temperature: 1}}
  - {name: asks, use: kd, teacher: forest, training: {queries: {per_sample: 1}}}
"""


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    root = tmp_path_factory.mktemp("cross")
    run(CROSS, root)
    return root


def teacher_of(root):
    """The cross-fitted teacher as its students hear it, and the data."""
    one = experiment(CROSS, root)
    one.dataset.load(torch.device("cpu"))
    run_ = next(run_ for run_ in one.plan.runs if run_.name == "forest")
    places = one.dataset.places()
    return assembly.frozen(
        run_, one.finished(run_), one.dataset.spec, torch.device("cpu"), places
    ), one.dataset


def test_a_training_sample_is_answered_by_a_forest_that_did_not_see_it(crossed):
    teacher, dataset = teacher_of(crossed)
    batches = list(dataset.split("train"))
    x = np.concatenate([batch.views["input"].flatten(1).numpy() for batch in batches])
    labels = dataset.labels("train")
    said_ = torch.cat([torch.softmax(teacher.out_of_fold(batch).logits, dim=1) for batch in batches]).numpy()
    seed = trees.derive(0, "teacher", "fit") % 2**32
    fold = dealt(labels, 3, seed)
    for number in range(3):
        learner = ensemble.RandomForestRegressor(8, max_features="sqrt", random_state=seed)
        learner.fit(x[fold != number], hot(labels)[fold != number])
        expected = learner.predict(x[fold == number])
        np.testing.assert_allclose(said_[fold == number], np.clip(expected, 1e-6, 1), atol=1e-4)
    plain = torch.cat([teacher(batch).logits for batch in batches]).numpy()
    assert (plain.argmax(axis=1) == labels).mean() > 0.99 > (said_.argmax(axis=1) == labels).mean()


def test_cross_fitting_changes_what_students_hear_and_not_how_the_teacher_scores(crossed):
    found = results(crossed)
    scores = [found[f"teachers/{name}/seed-0"].manifest["scores"] for name in ("forest", "plain")]
    assert scores[0] == scores[1]
    files = [found[f"teachers/{name}/seed-0"].manifest["files"] for name in ("forest", "plain")]
    assert files[0]["weights.safetensors"] == files[1]["weights.safetensors"]
    assert "folds.safetensors" in files[0] and "folds.safetensors" not in files[1]
    weights = [found[f"students/student/{m}/seed-0"].weights() for m in ("crossed", "plain")]
    assert not np.array_equal(weights[0]["body.0.0.weight"], weights[1]["body.0.0.weight"])


def test_what_is_looked_up_is_what_is_answered_live(crossed, tmp_path):
    run(CROSS, tmp_path, "training.cache=false")
    for method in ("crossed", "plain"):
        place = f"students/student/{method}/seed-0"
        live, looked_up = results(tmp_path)[place], results(crossed)[place]
        assert looked_up.manifest["resolved"]["cache"] == "looked up"
        assert live.manifest["resolved"]["cache"] == "live"
        np.testing.assert_allclose(live.predictions()["logits"], looked_up.predictions()["logits"], atol=1e-3)
    assert results(crossed)["students/student/asks/seed-0"].manifest["resolved"]["cache"] == "live"


def test_what_is_left_out_changes_no_sample_s_fold(crossed, tmp_path):
    """Samples are counted otherwise then, and each is answered by the same forest as before."""
    teacher, dataset = teacher_of(crossed)
    said_ = torch.cat([teacher.out_of_fold(batch).logits for batch in dataset.split("train")])
    one = experiment(CROSS, crossed, "dataset.leave_out=[0, 7]")
    one.dataset.load(torch.device("cpu"))
    places = one.dataset.places(given=True)
    run_ = next(run_ for run_ in one.plan.runs if run_.name == "forest")
    again = assembly.frozen(run_, one.finished(run_), one.dataset.spec, torch.device("cpu"), places)
    fewer = torch.cat([again.out_of_fold(batch).logits for batch in one.dataset.split("train", given=True)])
    assert fewer.equal(said_[places]) and len(fewer) < len(said_)


def test_of_a_transfer_set_the_whole_forest_answers(crossed, tmp_path):
    """No fold's model has seen its samples, nor has the forest that was fitted to all others."""
    np.savez(tmp_path / "more.npz", x=np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8))
    one = experiment(CROSS, crossed, f"dataset.transfer_set={{path: {tmp_path / 'more.npz'}}}")
    one.dataset.load(torch.device("cpu"))
    teacher, dataset = teacher_of(crossed)
    run_ = next(run_ for run_ in one.plan.runs if run_.name == "forest")
    places = one.dataset.places(given=True)
    again = assembly.frozen(run_, one.finished(run_), one.dataset.spec, torch.device("cpu"), places)
    batches = list(one.dataset.split("train", given=True))
    said_ = torch.cat([again.out_of_fold(batch).logits for batch in batches])
    own = torch.cat([teacher.out_of_fold(batch).logits for batch in dataset.split("train")])
    assert said_[:-20].equal(own)
    assert said_[-20:].equal(torch.cat([teacher(batch).logits for batch in batches])[-20:])


def test_a_tree_learns_from_a_transfer_set_what_its_teacher_says(tmp_path):
    """Its thresholds part the samples of the transfer set as they did before they were moved."""
    x = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "more.npz", x=x)
    option = f"dataset.transfer_set={{path: {tmp_path / 'more.npz'}}}"
    dataset, runs = loaded(option)
    index, labels, _ = shown(dataset, runs["soft"])
    assert torch.equal(index, torch.arange(1317)) and (labels[1257:] == HIDDEN).all()
    run(TEXT, tmp_path / "runs", option)
    plain = tmp_path / "plain"
    run(TEXT, plain)
    same = {
        m: of_method(tmp_path / "runs", m).manifest["files"]["weights.safetensors"] for m in ("alone", "soft")
    }
    assert same["alone"] == of_method(plain, "alone").manifest["files"]["weights.safetensors"]
    assert same["soft"] != of_method(plain, "soft").manifest["files"]["weights.safetensors"]
    likeness = of_method(tmp_path / "runs").manifest["likeness"]["train"]
    assert likeness["agreement"] is not None
    rules = json.loads((of_method(tmp_path / "runs").folder / "rules.json").read_text())
    assert rules["samples"] == 1257, "of those whose class is known"


@pytest.mark.parametrize("cache", ["true", "false"])
def test_a_tree_is_never_shown_a_class_left_out(tmp_path, cache):
    options = (
        "dataset.leave_out=[3]",
        f"training.cache={cache}",
        "methods.soft.training.queries={per_sample: 1}",
    )
    run(TEXT, tmp_path, *options)
    rows = {row["method"]: row for row in comparison(tmp_path, "fitted")["rows"]}
    assert rows["alone"]["left_out_recall"] == 0 < rows[None]["left_out_recall"]
    assert 3 not in of_method(tmp_path, "alone").predictions()["logits"].argmax(axis=1)


def test_further_views_are_answered_out_of_fold_too():
    def one(value):
        network = models.Network(build("tree", 2, 2), "a", torch.device("cpu"))
        frozen = models.Frozen(network.model, "a", torch.device("cpu"))
        frozen.look = lambda x: Outputs(x + value)
        return frozen

    heard = OutOfFold([one(10), one(20)], torch.tensor([0, 1, 1, 0]))
    heard.tap(["b"])
    views = {"a": torch.arange(6.0).view(3, 2), "b": -torch.arange(6.0).view(3, 2)}
    answer = heard(Batch(views, torch.zeros(3, dtype=torch.long), torch.tensor([2, 0, 3])))
    assert answer.logits.tolist() == [[20, 21], [12, 13], [14, 15]]
    assert answer.views["b"].logits.tolist() == [[20, 19], [8, 7], [6, 5]]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.integers(2, 6))
@settings(deadline=None)
def test_samples_are_dealt_out_evenly_and_class_by_class(labels, folds):
    labels = np.array(labels)
    fold = dealt(labels, folds, seed=1)
    sizes = np.bincount(fold, minlength=folds)
    assert sizes.max() - sizes.min() <= 1 and len(sizes) == folds
    for label in set(labels.tolist()):
        own = np.bincount(fold[labels == label], minlength=folds)
        assert own.max() - own.min() <= 1


BROKEN = {
    "no fold": lambda a: {key: value for key, value in a.items() if key != "fold"},
    "folds of no model": lambda a: a | {"fold": a["fold"] + 1},
    "folds that are no numbers": lambda a: a | {"fold": a["fold"].astype(np.float32)},
    "a fold left out": lambda a: {k: v for k, v in a.items() if not k.startswith("1.")},
    "half a fold": lambda a: {k: v for k, v in a.items() if k != "2.value"},
    "a fold of another kind": lambda a: a | {"0.feature": a["0.feature"] + 64},
    "a name of no part": lambda a: a | {"x": a["fold"]},
    "too few samples": lambda a: a | {"fold": a["fold"][:9]},
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_folds_that_kdrun_did_not_write_are_refused(crossed, tmp_path, change):
    shutil.copytree(crossed, tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "cache")
    folder = tmp_path / "runs" / "cross" / "teachers" / "forest" / "seed-0"
    save_file(change(load_file(folder / "folds.safetensors")), folder / "folds.safetensors")
    manifest = read_json(folder / "result.json")
    manifest["files"]["folds.safetensors"] = digest((folder / "folds.safetensors").read_bytes())
    write_json(folder / "result.json", manifest)
    with pytest.raises(StoreError, match=r"folds.safetensors: is not what kdrun writes"):
        run(CROSS, tmp_path / "runs", "seeds=[1]")


def test_a_fitted_teacher_can_come_from_a_file(crossed, tmp_path):
    file = crossed / "cross" / "teachers" / "forest" / "seed-0" / "weights.safetensors"
    text = CROSS.replace(
        "{kind: forest, trees: 8}, cross_fit: 3", f"{{kind: forest, trees: 8}}, weights: {file}"
    )
    run(text, tmp_path)
    read, fitted = (results(root)["teachers/forest/seed-0"].manifest for root in (tmp_path, crossed))
    assert read["scores"] == fitted["scores"] and read["train_seconds"] == 0


def test_what_comes_from_a_file_is_measured_as_it_is_and_can_be_read(crossed, tmp_path):
    file = crossed / "cross" / "teachers" / "plain" / "seed-0" / "weights.safetensors"
    forest, ears = (
        CROSS.replace("{kind: forest, trees: 8}, cross_fit: 3", f"{{kind: forest}}, weights: {file}"),
        Ears(),
    )
    experiment(forest, tmp_path / "forest", console=ears).run()
    assert "the teacher 'forest' is not cross-fitted: of samples that it was fitted to" in " ".join(
        ears.heard
    )
    both = [
        {
            row["model"]: row["peak_memory_bytes"]
            for row in comparison(root, "cross")["rows"]
            if not row["method"]
        }
        for root in (crossed, tmp_path / "forest")
    ]
    assert both[1]["forest"] == both[0]["plain"] > 10_000
    run(TEXT, tmp_path / "tree")
    place = tmp_path / "tree" / "fitted" / "students" / "student" / "soft" / "seed-0"
    text = TEXT.replace(
        "{model: {kind: mlp, hidden: [32]}}", f"{{model: tree, weights: {place / 'weights.safetensors'}}}"
    )
    run(text, tmp_path / "read")
    assert (
        results(tmp_path / "read")["teachers/teacher/seed-0"].rules() == of_method(tmp_path / "tree").rules()
    )


def test_a_file_of_another_forest_is_refused_in_words(crossed, tmp_path):
    source = crossed / "cross" / "teachers" / "forest" / "seed-0" / "weights.safetensors"
    arrays = load_file(source)
    save_file(arrays | {"feature": arrays["feature"] + 64}, tmp_path / "w.safetensors")
    text = CROSS.replace(
        "{kind: forest, trees: 8}, cross_fit: 3", f"{{kind: forest}}, weights: {tmp_path / 'w.safetensors'}"
    )
    with pytest.raises(Exception, match=r"are not the weights of this model: 'feature' is not below 64"):
        run(text, tmp_path)


def test_a_tree_distilled_from_a_network_teaches_another_network(tmp_path):
    text = CROSS.replace(
        "  plain: {model: {kind: forest, trees: 8}, cross_fit: 0}",
        "  big: {model: {kind: mlp, hidden: [64]}}\n  plain: {model: tree, from: big, method: taught}",
    ).replace("methods:\n", "methods:\n  - {name: taught, use: kd, teacher: big, set: {kd.temperature: 1}}\n")
    run(text, tmp_path)
    rows = {row["model"]: row for row in comparison(tmp_path, "cross")["rows"]}
    assert rows["plain"]["teacher"] == "big" and rows["plain"]["mean"] > 0.7
    assert "folds.safetensors" in results(tmp_path)["teachers/plain/seed-0"].manifest["files"]


# ------------------------------------------------------------------------------------- what cannot be fitted


def test_what_scikit_learn_cannot_fit_is_one_failure_and_the_others_go_on(tmp_path):
    few = ("controls=none", "seeds=[0]", "dataset.labels_per_class=1")
    with pytest.raises(TrainingError) as caught:
        run(only("svc", "tree"), tmp_path, *few)
    told = str(caught.value).splitlines()
    assert told == [
        "svc/alone/seed 0: stopped: scikit-learn cannot fit it to these samples: an svc needs two samples of each "
        "class, and there is one of class 0, 1, 2; give it more samples, or other options"
    ]
    found = results(tmp_path)
    assert "students/tree/alone/seed-0" in found and "students/svc/kd/seed-0" in found
    failure = Store(tmp_path).read(
        tmp_path / "all" / "students" / "svc" / "alone" / "seed-0" / "failure.json"
    )
    assert failure["what"].startswith("scikit-learn cannot fit it")


def test_a_sick_teacher_is_told_and_its_samples_are_not_left_out(tmp_path, monkeypatch):
    break_teachers(monkeypatch)
    with pytest.raises(TrainingError, match=r"not finite for the training samples 0, 1, 2"):
        run(TEXT, tmp_path)
    with pytest.raises(
        TrainingError, match=r"soft/seed 0: what a teacher says is not finite for the training samples"
    ):
        run(TEXT, tmp_path, "training.cache=false")


def test_what_scikit_learn_warns_of_is_told(tmp_path):
    ears = Ears()
    hasty = ("controls=none", "seeds=[0]", "students.linear.model.iterations=1")
    experiment(only("linear"), tmp_path, *hasty, console=ears).run()
    told = [line for line in ears.heard if "scikit-learn says" in line]
    assert any(line.startswith("linear/alone/seed 0: scikit-learn says: lbfgs failed") for line in told)


def test_a_signal_while_it_is_fitted_ends_at_once_and_the_same_command_comes_to_the_same_bits(tmp_path):
    text = (
        TEXT.replace("{kind: tree, depth: 5}", "{kind: forest, trees: 200}").split("  - {name: soft")[0]
        + "  []\n"
    )
    (tmp_path / "c.yaml").write_text(text)
    process = kdrun_process("compare", "c.yaml", cwd=tmp_path)
    for line in process.stdout:
        if "student/alone/seed 0: fitting it to" in line:
            process.terminate()
            break
    rest = process.stdout.read()
    assert process.wait() == 143 and "SIGTERM: stopped" in rest
    assert "students/student/alone/seed-0" not in results(tmp_path / "runs")
    run(text, tmp_path / "runs")
    run(text, tmp_path / "other")
    assert outcome(tmp_path / "runs") == outcome(tmp_path / "other")


# ------------------------------------------------------------------------------------------------- configs

WRONG = {
    "a loss without targets": (
        ["methods.soft={name: soft, use: hint}"],
        "methods.soft.hint: 'hint' gives no class probabilities, and 'student' (tree) learns from nothing else; use "
        "ce, ctkd, dist, dkd, hard, kd, logit-mse, mlkd, policy-kl, tf-kd-reg, ttm, viper, wsld, wttm",
    ),
    "one of its terms": (
        ["methods.soft={name: soft, losses: [ce, {kind: rkd, weight: 2}]}"],
        "methods.soft.losses.rkd: 'rkd' gives no class probabilities",
    ),
    "a schedule of its own": (
        ["student.training={optimizer: sgd, epochs: 3}"],
        "students.student.training: 'tree' is fitted at once, so `optimizer` says nothing; remove it",
    ),
    "weights to start from": (
        ["student.model.initial_weights=w.pt"],
        "is fitted at once and starts from no weights; remove `initial_weights`",
    ),
    "pruning without a validation share": (
        ["student.model.prune=true"],
        "students.student.model.prune: pruning looks at the validation share, and there is none; add `validation: 0.2`",
    ),
    "cross-fitting a network": (
        ["teacher.cross_fit=5"],
        "teachers.teacher: 'mlp' is trained in steps, and only what is fitted at once is cross-fitted; remove it",
    ),
    "cross-fitting in one part": (
        ["teacher.model=forest", "teacher.cross_fit=1"],
        "teachers.teacher.cross_fit: one part leaves nothing to fit to; write 0, or 2 or more",
    ),
    "questions to nobody": (
        ["methods.soft={name: soft, use: ce, training: {queries: {jitter: 1}}}"],
        "no term of this method looks at a teacher, who alone can say what queries are; remove it",
    ),
    "questions of a term that weighs nothing": (
        ["methods.soft={name: soft, use: kd, set: {kd.weight: 0}, training: {queries: {}}}"],
        "no term of this method looks at a teacher, who alone can say what queries are; remove it",
    ),
    "questions of a teacher without teachers": (
        ["teacher.training={queries: {per_sample: 3}}"],
        "only teachers can say what queries are, and this one has none",
    ),
    "a mixed sample in two folds": (
        ["teacher.model=forest", "training.mixup=0.2"],
        "'forest' is cross-fitted, and a mixed sample is of two parts of the training set; write `training: {mixup: 0, "
        "cutmix: 0}` or `cross_fit: 0` for it",
    ),
    "a stage of adapters": (
        ["methods.soft.stages=[{epochs: 1, train: [adapters]}, {}]"],
        "a stage leaves the body as it is, and 'student' (tree) is fitted at once; remove the stage's `train`",
    ),
    "a longer training": (
        ["controls=[matched-cost]"],
        "'matched-cost' trains for longer, and every student here is fitted at once; remove it",
    ),
    "more features than there are": (
        ["student.model={kind: forest, max_features: 2.5}"],
        "max_features",
    ),
    "questions that are none": (
        ["methods.soft.training.queries={jitter: 0}"],
        "without 'jitter' and 'mix' the queries are the samples; write one above 0",
    ),
    "questions of a control": (
        ["controls=[{name: alone, training: {queries: {}}}]"],
        "no term of this method looks at a teacher",
    ),
    "a teacher by such a method": (
        ["teachers={a: {model: mlp}, b: {model: forest, from: a, method: hint}}", "teacher=null"],
        "'hint' gives no class probabilities, and 'b' (forest) learns from nothing else",
    ),
}


def test_one_teacher_in_each_step_is_none_for_a_model_that_is_fitted_at_once():
    text = TEXT.replace("teacher: {model", "teachers:\n  other: {model: mlp, seed: 1}\n  teacher: {model")
    method = "methods.soft={name: soft, use: kd, combine: random, teacher: [teacher, other]}"
    words = "'random' takes a teacher in each step, and 'student' (tree) is fitted at once; use mean, fitted or entropy"
    assert words in problems(text, method)


@pytest.mark.parametrize(("overrides", "expected"), WRONG.values(), ids=WRONG)
def test_what_does_not_go_with_a_model_that_is_fitted_at_once(overrides, expected):
    text = TEXT
    if "teacher=null" in overrides:
        overrides, text = overrides[:1], TEXT.replace("teacher: {model: {kind: mlp, hidden: [32]}}\n", "")
        text = text.replace("use: kd", "use: kd, teacher: a")
    assert expected in problems(text, *overrides)


def test_a_loss_without_targets_is_refused_at_its_line(tmp_path):
    (tmp_path / "c.yaml").write_text(TEXT + "  - {name: near, losses: [ce, {kind: hint, weight: 1}]}\n")
    with pytest.raises(ConfigError) as caught:
        config.read(tmp_path / "c.yaml")
    [line] = said(caught.value)
    assert line.startswith(f"{tmp_path}/c.yaml:12:31: methods.near.losses.hint: 'hint' gives no class")


def test_layers_of_what_has_none_are_refused_before_anything_is_trained(tmp_path):
    text = TEXT.replace("{kind: mlp, hidden: [32]}", "{kind: forest, trees: 3}")
    with pytest.raises(
        Exception, match=r"'hint' compares layers, and the teacher 'teacher' has none; use kd"
    ):
        run(text, tmp_path, "student.model=mlp", "methods.soft={name: soft, use: hint}")
    assert not results(tmp_path)


# ---------------------------------------------------------------------------------------------- commands


def test_commands_that_train_nothing_know_trees(everything, tmp_path, monkeypatch, capsys):
    (tmp_path / "all.yaml").write_text(ALL)
    for words in (
        ("check", tmp_path / "all.yaml", "--out", everything),
        ("check", tmp_path / "all.yaml", "--out", everything, "--json"),
        ("layers", tmp_path / "all.yaml"),
        ("status", "--out", everything),
        ("compare", tmp_path / "all.yaml", "--no-train", "--out", everything, "--quiet"),
    ):
        assert command(*words, monkeypatch=monkeypatch) == 0, capsys.readouterr().err
        assert "forest" in capsys.readouterr().out


def test_check_says_what_nobody_knows_before_it_is_fitted(tmp_path, monkeypatch, capsys):
    (tmp_path / "c.yaml").write_text(TEXT)
    assert command("check", tmp_path / "c.yaml", "--out", tmp_path, monkeypatch=monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith("student  soft"))
    assert "fitted at once" in line


def test_check_says_how_large_a_forest_may_become(tmp_path, monkeypatch, capsys):
    (tmp_path / "c.yaml").write_text(TEXT)
    forest = ("--set", "student.model={kind: forest, trees: 1000}")
    assert command("check", tmp_path / "c.yaml", "--json", *forest, monkeypatch=monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    [own] = [row for row in told["rows"] if row["method"] == "soft"]
    assert 4 * own["parameters"] < told["memory_bytes"] and own["parameters"] == 1000 * (805 * 14 + 1)


def test_no_forest_is_fitted_that_has_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 0, 10**8))
    with pytest.raises(StoreError, match=r"3 runs need about \d+ MB there, and 100 MB are free"):
        run(TEXT, tmp_path, "student.model={kind: forest, trees: 3000}")


def test_trees_are_tuned_by_what_they_have(tmp_path):
    pytest.importorskip("optuna")
    from kdrun.tune import tune

    told = tune(experiment(TEXT, tmp_path, "dataset.validation=0.2", ASKING), trials=3)
    spaces = {one["method"]: set(one["spaces"]) for one in told["chosen"]}
    assert spaces == {
        "alone": set(),
        "soft": {"training.queries.jitter", "kd.weight", "kd.temperature"},
    }
    tried = [one for one in told["runs"] if one["method"] == "soft"]
    assert all(one["score"] is not None for one in tried) and len({one["fingerprint"] for one in tried}) == 3


# ------------------------------------------------------------------------------------- networks that ask


def test_a_network_asks_too_and_its_labels_are_those_of_samples_alone(tmp_path):
    text = TEXT.replace("{kind: tree, depth: 5}", "{kind: mlp, hidden: [8]}")
    run(text, tmp_path / "a", ASKING)
    found = of_method(tmp_path / "a")
    assert found.manifest["resolved"]["cache"] == "live"
    run(text.replace("  - {", "  - dkd\n  - {"), tmp_path / "b", ASKING)
    assert (
        outcome(tmp_path / "a")["students/student/soft/seed-0"]
        == (outcome(tmp_path / "b")["students/student/soft/seed-0"])
    )
    made, teachers, dataset, _ = students(text, ASKING)
    student = made["soft"]
    batch = next(dataset.batches(student.draw, 0))
    assert (batch.labels == HIDDEN).sum() == 64 - 64 // 3
    taught = {name: teacher(batch) for name, teacher in teachers.items()}
    said_ = student.network(batch)
    some = batch.labels != HIDDEN
    only = torch.nn.functional.cross_entropy(said_.logits[some], batch.labels[some])
    torch.testing.assert_close(student.objective(said_, taught, batch)["ce"], 0.1 * only)


def test_what_is_asked_is_part_of_the_fingerprint_only_where_it_is_asked():
    plain, asking = (
        {run_.method: run_ for run_ in plan(read, assembly.open_dataset(read)).runs}
        for read in (checked(TEXT), checked(TEXT, ASKING))
    )
    assert plain["alone"].fingerprint == asking["alone"].fingerprint
    assert plain["soft"].fingerprint != asking["soft"].fingerprint
    assert "queries" not in plain[None].inputs["training"]
