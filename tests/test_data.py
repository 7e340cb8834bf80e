import csv
import ctypes
import gzip
import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
import zipfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from kdrun import assembly, machine, registry
from kdrun.console import Console
from kdrun.contracts import HIDDEN, Dataset, Draw, Queries, Spec
from kdrun.data import Raw, SampleSet, files, sampling, sources
from kdrun.data.augmentation import PRESETS, Crop, Cutout, Flip, Jitter, PictureConfig, crop
from kdrun.errors import ConfigError, DataError
from kdrun.plan import plan
from kdrun.randomness import generator
from kdrun.store import Shelf, Store, shelf
from kdrun.store.housekeeping import shelved
from support import Ears, checked, comparison, experiment, results, run

CPU = torch.device("cpu")
VIEW = "input"


def make(kind, **options):
    component = registry.DATASETS[kind]
    return component(component.Config.model_validate({"kind": kind, **options}))


def loaded(kind, **options):
    dataset = make(kind, **options)
    dataset.load(CPU)
    return dataset


def small(**options):
    return loaded(
        "synthetic", **{"shape": [3, 6, 6], "classes": 4, "samples": 40, "test_samples": 8} | options
    )


def same(one, other):
    mixes = (one.mix is None) == (other.mix is None)
    if one.mix is not None and other.mix is not None:
        mixes = one.mix.partner.equal(other.mix.partner) and one.mix.share.equal(other.mix.share)
    tensors = [(one.views[VIEW], other.views[VIEW]), (one.labels, other.labels), (one.index, other.index)]
    return mixes and all(a.dtype == b.dtype and a.equal(b) for a, b in tensors)


def all_same(some, others):
    some, others = list(some), list(others)
    return len(some) == len(others) and all(same(a, b) for a, b in zip(some, others, strict=True))


def whole(dataset, name):
    batches = list(dataset.split(name, batch_size=7))
    views, labels = (torch.cat([b.views[VIEW] for b in batches]), torch.cat([b.labels for b in batches]))
    assert torch.cat([b.index for b in batches]).tolist() == list(range(len(labels)))
    return views, labels


# ------------------------------------------------------------------------------------------- every kind


def test_the_kinds():
    kinds = "arrays breast_cancer cifar10 cifar100 digits fashion-mnist image-folder iris mnist svhn synthetic wine"
    assert set(kinds.split()) <= set(registry.DATASETS)


@pytest.mark.parametrize("kind", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "digits", "iris"])
def test_fixed_sets_know_their_form_without_files(kind, tmp_path):
    dataset = make(kind, root=str(tmp_path))
    assert dataset.spec.classes == {"cifar100": 100, "iris": 3}.get(kind, 10)
    assert dataset.steps(Draw(0, 32)) > 0
    assert dataset.identity()["kind"] == kind
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "shape", "classes", "rows"),
    [
        ("digits", (1, 8, 8), 10, 540),
        ("iris", (4,), 3, 45),
        ("wine", (13,), 3, 54),
        ("breast_cancer", (30,), 2, 171),
    ],
)
def test_bundled_sets(kind, shape, classes, rows):
    dataset = loaded(kind)
    assert dataset.spec == Spec({VIEW: shape}, classes)
    assert len(dataset.labels("test")) == rows
    assert len(dataset.classes) == classes
    assert len(dataset.feature_names) == (0 if dataset.pictures else shape[0])
    batch = next(dataset.batches(Draw(0, 16), 0))
    assert batch.views[VIEW].shape == (16, *shape)
    assert (batch.views[VIEW].dtype, batch.labels.dtype, batch.index.dtype) == (
        torch.float32,
        torch.int64,
        torch.int64,
    )
    assert batch.mix is None


def test_digits_keep_all_seventeen_shades():
    dataset = loaded("digits")
    from sklearn.datasets import load_digits

    mean, std = dataset._inputs[VIEW].normaliser
    views, labels = whole(dataset, "test")
    shades = ((views * std + mean) * 16).round().long().flatten(1)
    known = {
        tuple(row.astype(int)): int(label) for row, label in zip(*load_digits(return_X_y=True), strict=True)
    }
    assert all(
        known[tuple(row)] == label for row, label in zip(shades.tolist(), labels.tolist(), strict=True)
    )


def test_load_reads_once(monkeypatch):
    dataset = make("digits")
    calls = []
    read = type(dataset).read
    monkeypatch.setattr(type(dataset), "read", lambda self: calls.append(1) or read(self))
    dataset.load(CPU)
    dataset.load(CPU)
    assert len(calls) == 1


def test_a_new_set_is_one_small_class():
    class Two(SampleSet):
        class Config(PictureConfig):
            kind: str = "two"

        spec = Spec({VIEW: (1, 2, 2)}, 2)
        samples = 4

        def read(self):
            pictures = np.arange(16, dtype=np.uint8).reshape(4, 1, 2, 2)
            return Raw(pictures, np.array([0, 1, 0, 1]), pictures[:1], np.array([1]))

    dataset = Two(Two.Config())
    dataset.load(CPU)
    assert dataset.labels("test").tolist() == [1]
    assert dataset.steps(Draw(0, 3)) == 1


def test_what_is_scored_and_where_it_lies_are_no_part_of_the_identity(tmp_path):
    one = make("digits", root=str(tmp_path), metric="macro-f1").identity()
    assert one == make("digits").identity()
    for change in (
        {"seed": 1},
        {"validation": 0.1},
        {"labels_per_class": 3},
        {"augmentation": "crop"},
        {"test": 0.2},
    ):
        assert make("digits", **change).identity() != one


def test_steps_are_known_before_loading():
    for options in ({}, {"validation": 0.13}, {"test": 0.37, "validation": 0.2}):
        dataset = make("iris", **options)
        before = [dataset.steps(Draw(0, size)) for size in (1, 7, 1000)]
        dataset.load(CPU)
        left = len(dataset.labels("train"))
        assert before == [left, left // 7, 1]


# ---------------------------------------------------------------------------------------------- splits


@given(
    counts=st.lists(st.integers(3, 40), min_size=2, max_size=6),
    share=st.floats(0.05, 0.5),
    seed=st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_stratified_splits(counts, share, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    rest, held = sampling.stratified(labels, share, seed, "test")
    assert sorted([*rest, *held]) == list(range(len(labels)))
    assert len(held) == sampling.held_out(len(labels), share)
    found = np.bincount(labels[held], minlength=len(counts))
    exact = np.array(counts) * len(held) / len(labels)
    assert (np.bincount(labels[rest], minlength=len(counts)) >= 1).all()
    assert (np.abs(found - exact) < 1.001).all()


def test_shares_are_not_rounded_up_by_binary_fractions():
    assert sampling.held_out(100, 0.07) == 7
    assert sampling.held_out(1797, 0.3) == 540


def test_a_split_leaves_every_class_a_sample_or_says_so():
    rest, held = sampling.stratified(np.array([0, 0, 0, 0, 0, 1]), 0.6, 0, "test")
    assert len(held) == 4 and 5 in rest
    with pytest.raises(DataError, match=r"dataset\.validation: 2 of 3 .* smaller share"):
        sampling.stratified(np.array([0, 1, 1]), 0.5, 0, "validation")


def test_splits_are_disjoint_and_drawn_by_the_sets_own_seed():
    dataset = loaded("iris", validation=0.2)
    parts = [whole(dataset, name)[0] for name in ("train", "validation", "test")]
    assert [len(p) for p in parts] == [84, 21, 45]
    assert np.bincount(dataset.labels("validation")).tolist() == [7, 7, 7]
    again, other = loaded("iris", validation=0.2), loaded("iris", validation=0.2, seed=1)
    assert again.test_hash() == dataset.test_hash() != other.test_hash()
    assert whole(again, "validation")[0].equal(parts[1])


def test_no_validation_split_is_an_empty_one():
    dataset = small()
    assert list(dataset.split("validation")) == []
    assert len(dataset.labels("validation")) == 0


def test_the_test_hash_depends_on_inputs_and_labels_alone(tmp_path):
    plain = loaded("iris")
    assert loaded("iris", validation=0.3, labels_per_class=2).test_hash() == plain.test_hash()
    assert len(plain.test_hash()) == 64

    def hashed(**changes):
        saved = {"x_train": BYTES, "y_train": Y, "x_test": BYTES, "y_test": Y} | changes
        dataset = arrays(tmp_path, **saved)
        dataset.load(CPU)
        return dataset.test_hash()

    one = hashed()
    assert hashed(x_train=255 - BYTES, y_train=1 - Y) == one
    assert len({one, hashed(x_test=255 - BYTES), hashed(y_test=1 - Y)}) == 3


def test_labelled_subset():
    dataset = loaded("digits", labels_per_class=5, validation=0.1)
    labels, given_ = dataset.labels("train"), dataset.labels("train", given=True)
    seen = given_ != HIDDEN
    assert np.bincount(given_[seen]).tolist() == [5] * 10
    assert (given_[seen] == labels[seen]).all() and (labels != HIDDEN).all()
    more = loaded("digits", labels_per_class=6, validation=0.1).labels("train", given=True) != HIDDEN
    assert (more | ~seen).all(), "a larger subset contains the smaller one"
    for name in ("validation", "test"):
        assert (dataset.labels(name, given=True) == dataset.labels(name)).all()
    _, train = whole(dataset, "train")
    assert train.tolist() == labels.tolist()


def test_labels_are_handed_out_as_a_copy():
    dataset = small()
    dataset.labels("train")[:] = 0
    assert dataset.labels("train").max() == 3


def test_too_many_labels_are_an_error():
    with pytest.raises(DataError, match=r"labels_per_class: 36 .* 'setosa' has 35 .* at most 35"):
        loaded("iris", labels_per_class=36)
    dataset = make("iris", labels_per_class=36)
    for _ in range(2):  # a load that failed is no load
        with pytest.raises(DataError):
            dataset.load(CPU)


# ---------------------------------------------------------------------------------------- classes left out

LEFT_OUT = {"leave_out": [1, 3], "validation": 0.2, "labels_per_class": 3, "augmentation": {"copies": 2}}


def test_students_never_see_a_sample_of_a_class_that_is_left_out():
    dataset, asking = small(**LEFT_OUT), Draw(3, 8, queries=Queries(per_sample=1))
    labels, places = dataset.labels("train"), dataset.places(True)
    for name, draw in (DRAWS | {"asking": asking}).items():
        index = torch.cat([b.index for epoch in range(6) for b in dataset.batches(draw, epoch)])
        seen = set(labels[places[index]] if draw.given else labels[index])
        assert seen == ({0, 2} if draw.given else {0, 1, 2, 3}), name
    passes = dataset.split("train", given=True), dataset.copy(1, 7, given=True), dataset.queries(asking, 0, 7)
    for batches in passes:
        index = torch.cat([batch.index for batch in batches])
        assert sorted(index.tolist()) == list(range(len(places)))
    assert set(labels[places]) == set(dataset.labels("validation", given=True)) == {0, 2}
    assert set(dataset.labels("validation")) == set(dataset.labels("test", given=True)) == {0, 1, 2, 3}


def test_what_is_left_changes_places_only():
    """The samples, their order and the labels that are given are those of the set from which nothing is left out."""
    dataset, full = small(**LEFT_OUT), small(**LEFT_OUT | {"leave_out": None})
    for name in ("train", "validation", "test"):
        assert all_same(dataset.split(name), full.split(name))
    teacher = DRAWS["teacher"]
    assert all_same(dataset.batches(teacher, 1), full.batches(teacher, 1))
    places, labels = dataset.places(True), full.labels("train", given=True)
    assert dataset.labels("train", given=True).tolist() == labels[places].tolist()
    assert np.bincount(labels[places][labels[places] != HIDDEN]).tolist() == [3, 0, 3]
    views, kept = (torch.cat([b.views[VIEW] for b in d.split("train", given=True)]) for d in (full, dataset))
    assert kept.equal(views[places])
    assert full.places(True).tolist() == full.places().tolist() == list(range(32))


def test_students_take_as_many_steps_without_the_classes_left_out():
    dataset, full = small(leave_out=["0", "1", "2"]), small()
    for draw in (Draw(0, 8), Draw(0, 8, labelled_only=True), Draw(0, 30)):
        epochs = [list(dataset.batches(draw, epoch)) for epoch in range(4)]
        assert {len(batches) for batches in epochs} == {full.steps(draw)} == {dataset.steps(draw)}
        index = torch.cat([batch.index for batches in epochs for batch in batches])
        counts = torch.bincount(index, minlength=10)
        assert len(counts) == 10 and counts.max() - counts.min() <= 1, "pass after pass"
        assert all_same(dataset.batches(draw, 2, first=1), epochs[2][1:])


def test_wrong_classes_to_leave_out_are_told():
    for leave_out, told in (
        (["4"], "no class '4'; .* known: 0, 1, 2, 3"),
        (["0", "1", "2", "3"], "no train sample is of another class"),
    ):
        with pytest.raises(DataError, match=rf"dataset\.leave_out: .*{told}"):
            small(leave_out=leave_out)
    with pytest.raises(DataError, match="class 'setos'; did you mean 'setosa'"):
        loaded("iris", leave_out=["setos"])
    with pytest.raises(DataError, match=r"leave_out: no validation sample is of another class"):
        small(leave_out=["0", "1", "3"], validation=0.01)
    for wrong in ([], [True], [1.5], 3):
        with pytest.raises(ValidationError):
            make("iris", leave_out=wrong)
    with pytest.raises(DataError, match=r"labels_per_class: 11 .* '1' has 10 "):
        small(leave_out=["0"], labels_per_class=11)
    text = "dataset: {kind: iris, leave_out: LEFT}\nteacher: {model: {kind: mlp}}\nstudent: {model: {kind: mlp}}\n"
    with pytest.raises(ConfigError, match=r":1:34: dataset\.leave_out: no class is left to learn from"):
        assembly.open_dataset(checked(text.replace("LEFT", "[setosa, versicolor, virginica]")))
    config = checked(text.replace("LEFT", "[tulip]"))
    with pytest.raises(ConfigError, match=r":1:34: dataset\.leave_out: the data set has no class 'tulip'"):
        dataset = assembly.open_dataset(config)
        assembly.load(plan(config, dataset), dataset, CPU, None, Console(quiet=True))


# ----------------------------------------------------------------------------------------------- order


@given(
    samples=st.integers(1, 50),
    size=st.integers(1, 60),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
    first=st.integers(0, 10),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_is_a_permutation_cut_into_full_batches(samples, size, seed, epoch, first):
    order = sampling.epoch_order(samples, Draw(seed, size), epoch)
    assert order.shape == (max(1, samples // size), min(size, samples))
    drawn = order.flatten().tolist()
    assert len(set(drawn)) == len(drawn) and set(drawn) <= set(range(samples))
    assert sampling.epoch_order(samples, Draw(seed, size), epoch, first).equal(order[first:])


@given(
    labelled=st.integers(1, 12),
    size=st.integers(1, 15),
    per_epoch=st.integers(1, 9),
    seed=st.integers(0, 3),
    first=st.integers(0, 10),
)
@settings(max_examples=60, deadline=None)
def test_few_labels_are_drawn_pass_after_pass(labelled, size, per_epoch, seed, first):
    rows, draw = torch.arange(labelled) * 3 + 1, Draw(seed, size, labelled_only=True)
    epochs = [sampling.stream_order(rows, draw, epoch, per_epoch) for epoch in range(5)]
    assert all(order.shape == (per_epoch, min(size, labelled)) for order in epochs)
    stream = torch.cat(epochs).flatten()
    for start in range(0, len(stream) - labelled + 1, labelled):
        assert sorted(stream[start : start + labelled].tolist()) == rows.tolist(), "without replacement"
    counts = torch.bincount(stream, minlength=int(rows[-1]) + 1)[rows]
    assert counts.max() - counts.min() <= 1, "every label equally often"
    assert sampling.stream_order(rows, draw, 3, per_epoch, first).equal(epochs[3][first:])


@given(
    labelled=st.integers(1, 12),
    others=st.integers(1, 30),
    size=st.integers(2, 15),
    share=st.floats(0.01, 0.99),
    first=st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_a_share_of_each_batch_is_labelled(labelled, others, size, share, first):
    rows = torch.arange(labelled) * 2, torch.arange(others) * 2 + 1
    draw = Draw(1, size, labelled_share=share)
    epochs = [sampling.shared_order(*rows, draw, epoch, 4) for epoch in range(6)]
    size = min(size, labelled + others)
    assert all(order.shape == (4, size) for order in epochs), "every batch is full"
    [known] = {int((batch % 2 == 0).sum()) for order in epochs for batch in order}
    assert known == min(max(1, round(share * size), size - others), labelled, size - 1)
    for place, of in enumerate(rows):
        stream = torch.cat(epochs).flatten()
        counts = torch.bincount(stream[stream % 2 == place], minlength=int(of[-1]) + 1)[of]
        assert counts.max() - counts.min() <= 1, "each equally often"
    assert sampling.shared_order(*rows, draw, 3, 4, first).equal(epochs[3][first:])


def test_a_share_of_labels_is_left_to_chance_where_nothing_is_said_and_where_all_are_labelled():
    few, all_ = small(labels_per_class=2), small()
    counts = [
        [int((b.labels >= 0).sum()) for b in few.batches(Draw(3, 8, labelled_share=s), 0)]
        for s in (None, 0.5)
    ]
    assert len(set(counts[0])) > 1 and counts[1] == [4] * 5
    plain, shared = ([*all_.batches(Draw(3, 8, labelled_share=s), 0)] for s in (None, 0.5))
    assert all(same(a, b) for a, b in zip(plain, shared, strict=True))


def test_passes_differ():
    rows = torch.arange(30)
    order = sampling.stream_order(rows, Draw(0, 30, labelled_only=True), 0, 4)
    assert len({tuple(row) for row in order.tolist()}) == 4


DRAWS = {
    "plain": Draw(3, 8),
    "teacher": Draw(3, 8, labels="all", purpose="teacher"),
    "labelled": Draw(3, 8, labelled_only=True),
    "mixup": Draw(3, 8, mixup=0.4),
}


@pytest.mark.parametrize("name", DRAWS)
def test_first_skips_to_the_very_same_batches(name):
    dataset = small(augmentation="strong", labels_per_class=3)
    every = list(dataset.batches(DRAWS[name], epoch=2))
    assert len(every) == dataset.steps(DRAWS[name]) == 5
    for first in (0, 1, 4, 5, 9):
        assert all_same(dataset.batches(DRAWS[name], 2, first), every[first:])


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_gives_the_same_batches_whatever_else_was_drawn(name):
    alone = list(small(augmentation="strong", labels_per_class=3).batches(DRAWS[name], 1))
    dataset = small(augmentation="strong", labels_per_class=3)
    others = [dataset.batches(draw, epoch) for draw in DRAWS.values() for epoch in range(2)]
    torch.manual_seed(7)
    mine = []
    for batch in dataset.batches(DRAWS[name], 1):
        mine.append(batch)
        for other in others:
            next(other, None)
    assert all_same(mine, alone)


def test_global_generators_are_left_alone():
    before, np_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    dataset = small(augmentation="strong", labels_per_class=3, validation=0.2)
    list(dataset.batches(DRAWS["mixup"], 0))
    assert torch.random.get_rng_state().equal(before)
    assert (np.random.get_state()[1] == np_before).all()


def test_seeds_purposes_and_epochs_differ():
    dataset = small(augmentation="standard")
    draws = [(Draw(0, 8), 0), (Draw(1, 8), 0), (Draw(0, 8, purpose="teacher"), 0), (Draw(0, 8), 1)]
    orders = {tuple(torch.cat([b.index for b in dataset.batches(*d)]).tolist()) for d in draws}
    assert len(orders) == 4


def test_the_stream_of_labelled_samples_differs_by_seed_and_purpose():
    draws = [Draw(0, 9, labelled_only=True), Draw(1, 9, labelled_only=True)]
    draws += [Draw(0, 9, labelled_only=True, purpose="teacher")]
    streams = {tuple(sampling.stream_order(torch.arange(9), d, 0, 4).flatten().tolist()) for d in draws}
    assert len(streams) == 3


def test_augmentation_and_mixup_differ_by_seed_purpose_epoch_and_step(tmp_path):
    pictures = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 1, 9, 9), dtype=np.uint8), 20, axis=0)
    np.savez(tmp_path / "alike.npz", x_train=pictures, y_train=Y, x_test=pictures, y_test=Y)
    dataset = loaded("arrays", path=str(tmp_path / "alike.npz"), augmentation="standard")
    seen, mixes = set(), set()
    for draw in (Draw(0, 10), Draw(1, 10), Draw(0, 10, purpose="teacher")):
        for epoch in range(2):
            seen |= {b.views[VIEW].numpy().tobytes() for b in dataset.batches(draw, epoch)}
            mixed = dataset.batches(replace(draw, mixup=1.0), epoch)
            mixes |= {tuple(b.mix.partner.tolist()) + tuple(b.mix.share.tolist()) for b in mixed}
    assert len(seen) == len(mixes) == 3 * 2 * 2


def test_index_is_the_place_in_the_training_split():
    dataset = loaded("iris", validation=0.2)
    views, labels = whole(dataset, "train")
    for batch in dataset.batches(Draw(0, 16), 0):
        assert batch.views[VIEW].equal(views[batch.index]) and batch.labels.equal(labels[batch.index])


def test_labels_are_hidden_as_the_draw_says():
    dataset = loaded("iris", labels_per_class=3)
    given_ = torch.from_numpy(dataset.labels("train", given=True))
    everything = torch.from_numpy(dataset.labels("train"))
    for batch in dataset.batches(Draw(0, 16), 0):
        assert batch.labels.equal(given_[batch.index])
    for batch in dataset.batches(Draw(0, 16, labels="all"), 0):
        assert batch.labels.equal(everything[batch.index])
    few = list(dataset.batches(Draw(0, 16, labelled_only=True), 0))
    assert len(few) == dataset.steps(Draw(0, 16)) and {len(b) for b in few} == {9}
    assert all((batch.labels != HIDDEN).all() for batch in few)


def test_a_batch_is_never_larger_than_the_set():
    batches = list(loaded("iris").batches(Draw(0, 1000), 0))
    assert [len(batch) for batch in batches] == [105]


# --------------------------------------------------------------------------------------- normalisation


def test_tables_are_standardised_by_the_training_split():
    dataset = loaded("wine", validation=0.2)
    train, _ = whole(dataset, "train")
    assert torch.allclose(train.mean(0), torch.zeros(13), atol=1e-5)
    assert torch.allclose(train.std(0, correction=0), torch.ones(13), atol=1e-5)
    assert whole(dataset, "test")[0].mean(0).abs().max() > 0.01


def test_constant_columns_are_zero_and_large_offsets_keep_their_digits(tmp_path):
    x = np.stack([np.full(40, 0.1), 1.7e9 + np.arange(40), np.arange(40) % 3], axis=1)
    np.savez(tmp_path / "t.npz", x_train=x, y_train=np.arange(40) % 2, x_test=x + 1, y_test=np.arange(40) % 2)
    dataset = loaded("arrays", path=str(tmp_path / "t.npz"))
    train, test = whole(dataset, "train")[0], whole(dataset, "test")[0]
    assert (train[:, 0] == 0).all() and (test[:, 0] == 0).all()
    exact = (np.arange(40) - 19.5) / np.arange(40).std()
    assert np.allclose(train[:, 1], exact, atol=1e-6)
    assert np.allclose(test[:, 1], exact + 1 / np.arange(40).std(), atol=1e-6)


def test_pictures_without_published_figures_are_normalised_by_the_training_split():
    dataset = small(validation=0.2)
    train, _ = whole(dataset, "train")
    assert torch.allclose(train.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(train.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)


def test_synthetic_sets_can_be_learnt_and_come_from_the_seed():
    from sklearn.linear_model import LogisticRegression

    for shape in ([1, 28, 28], [12]):
        dataset = loaded("synthetic", shape=shape)
        (x, y), (x_test, y_test) = whole(dataset, "train"), whole(dataset, "test")
        assert not x[:200].equal(x_test[:200])
        model = LogisticRegression(max_iter=50).fit(x.flatten(1), y)
        assert model.score(x_test.flatten(1), y_test) > 0.7
        assert loaded("synthetic", shape=shape).test_hash() == dataset.test_hash()
        assert loaded("synthetic", shape=shape, seed=1).test_hash() != dataset.test_hash()
    with pytest.raises(DataError, match="3 samples cannot show 10 classes"):
        make("synthetic", samples=3)
    with pytest.raises(ValidationError, match="channels, height, width"):
        make("synthetic", shape=[28, 28])


# ------------------------------------------------------------------------------------------------ mixup


def test_mixup():
    dataset, draw = small(), Draw(0, 8, mixup=0.5)
    for plain, mixed in zip(dataset.batches(Draw(0, 8), 0), dataset.batches(draw, 0), strict=True):
        assert mixed.index.equal(plain.index) and mixed.labels.equal(plain.labels)
        assert sorted(mixed.mix.partner.tolist()) == list(range(8))
        assert mixed.mix.share.shape == (8,) and len(set(mixed.mix.share.tolist())) == 8
        assert ((mixed.mix.share >= 0) & (mixed.mix.share <= 1)).all()
        share, x = mixed.mix.share.view(-1, 1, 1, 1), plain.views[VIEW]
        assert torch.allclose(mixed.views[VIEW], share * x + (1 - share) * x[mixed.mix.partner])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_shares_are_beta(alpha):
    from scipy.stats import beta, kstest

    dataset = loaded("synthetic", shape=[1], samples=2000)
    shares = torch.cat([b.mix.share for b in dataset.batches(Draw(0, 200, mixup=alpha), 0)])
    assert kstest(shares.numpy(), beta(alpha, alpha).cdf).pvalue > 1e-3


# --------------------------------------------------------------------------------------- augmentation


MEAN = torch.tensor([0.25, 0.5, 0.75]).view(3, 1, 1)


def changed(part, pictures):
    drawn = part.draw(len(pictures), tuple(pictures.shape[2:]), generator(0, "test"))
    return part.apply(pictures, MEAN[: pictures.shape[1]], drawn)


def test_crop_is_the_window_of_the_padded_picture():
    pictures = torch.rand(25, 3, 5, 7)
    top, left = torch.arange(25) // 5, torch.arange(25) % 5
    found = crop(pictures, top, left, padding=2)
    padded = np.pad(pictures.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    for i in range(25):
        assert (found[i].numpy() == padded[i, :, top[i] : top[i] + 5, left[i] : left[i] + 7]).all()


def test_crop_offsets_are_uniform_and_each_samples_own():
    place = (torch.arange(64) + 1.0).view(1, 1, 8, 8).expand(8100, 1, 8, 8)
    out = changed(Crop(kind="crop", padding=1), place)
    centre = out[:, 0, 4, 4].long() - 1
    counts = torch.bincount((centre // 8 - 3) * 3 + centre % 8 - 3, minlength=9)
    assert len(counts) == 9 and counts.sum() == 8100
    assert ((counts - 900).square() / 900).sum() < 26.1  # chi-square, 8 degrees of freedom, p = 0.001


def test_crop_equals_torchvisions_where_the_offsets_are_equal():
    from torchvision.transforms import v2

    picture = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    reference = {v2.RandomCrop(8, padding=1)(picture).numpy().tobytes() for _ in range(300)}
    cropped = changed(Crop(kind="crop", padding=1), picture.expand(300, -1, -1, -1) / 255)
    assert {(p * 255).round().to(torch.uint8).numpy().tobytes() for p in cropped} == reference


def test_flip():
    pictures = torch.rand(2000, 1, 3, 4)
    out = changed(Flip(kind="flip"), pictures)
    flipped = (out == pictures.flip(-1)).all(dim=(1, 2, 3))
    kept = (out == pictures).all(dim=(1, 2, 3))
    assert (flipped ^ kept).all()
    assert 900 < flipped.sum() < 1100


def test_cutout_fills_a_square_with_the_mean_colour():
    out = changed(Cutout(kind="cutout", size=4), torch.full((3000, 3, 8, 8), 0.1))
    hole = (out == MEAN).all(dim=1)
    assert ((out == MEAN) == hole[:, None]).all() and (
        out.masked_select(~hole[:, None].expand_as(out)) == 0.1
    ).all()
    rows, columns = hole.any(2).sum(1), hole.any(1).sum(1)
    assert (hole.sum((1, 2)) == rows * columns).all(), "a rectangle"
    assert set(rows.tolist()) == {2, 3, 4}, "cut off at the border"
    assert hole.any(0).all() and len(torch.unique(hole, dim=0)) == 64, "every centre occurs"


def test_jitter():
    part = Jitter(kind="jitter", brightness=0.5, contrast=0.0)
    out = changed(part, torch.full((500, 3, 2, 2), 0.4))
    factors = out[:, 0, 0, 0] / 0.4
    assert torch.allclose(out, out[:, :1, :1, :1].expand_as(out))
    assert 0.5 <= factors.min() < 0.55 and 1.45 < factors.max() <= 1.5
    pictures = 0.3 + 0.4 * torch.rand(500, 3, 4, 4)
    out = changed(Jitter(kind="jitter", brightness=0.0, contrast=0.3), pictures)
    assert torch.allclose(out.mean((1, 2, 3)), pictures.mean((1, 2, 3)), atol=1e-6)
    ratios = out.std((1, 2, 3)) / pictures.std((1, 2, 3))
    assert 0.7 <= ratios.min() + 1e-5 < 0.75 and 1.25 < ratios.max() <= 1.3 + 1e-5
    out = changed(Jitter(kind="jitter", brightness=1.0, contrast=1.0), torch.rand(500, 3, 4, 4))
    assert out.min() >= 0 and out.max() <= 1


DRAWN = 3000


def theirs(transform, picture):
    """What a transform of torchvision's makes of one picture, many times."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.stack([transform(picture) for _ in range(DRAWN)])


def ours(part, picture):
    return changed(part, picture.expand(DRAWN, -1, -1, -1))


def demand_equal_frequencies(one, other):
    from scipy.stats import chi2_contingency

    assert set(one.tolist()) == set(other.tolist())
    values = torch.cat([one, other]).unique()
    table = [[int((part == value).sum()) for value in values] for part in (one, other)]
    assert chi2_contingency(table).pvalue > 1e-3


def demand_equal_distributions(one, other):
    from scipy.stats import ks_2samp

    assert one.std() > 0 and ks_2samp(one.numpy(), other.numpy()).pvalue > 1e-3


def test_crops_are_distributed_as_torchvisions():
    from torchvision.transforms import v2

    rows = torch.arange(1, 9, dtype=torch.uint8).view(8, 1).expand(8, 8)
    picture = torch.stack([rows, rows.T])

    def offsets(pictures):
        """First row and column of each window, as one number: the least and the last that are seen tell both."""
        seen = pictures.flatten(2).long()
        least = seen.where(seen > 0, 99).amin(2)
        top, left = (least + seen.amax(2) - 5).unbind(1)
        return 9 * top + left

    one, other = offsets(ours(Crop(kind="crop"), picture)), offsets(theirs(v2.RandomCrop(8, 4), picture))
    assert set(one.tolist()) == set(range(81))
    demand_equal_frequencies(one, other)
    for number in (one, other):
        assert abs(np.corrcoef(number // 9, number % 9)[0, 1]) < 4 / DRAWN**0.5


def test_flips_are_distributed_as_torchvisions():
    from torchvision.transforms import v2

    picture = torch.arange(12, dtype=torch.uint8).view(1, 3, 4)
    one, other = ours(Flip(kind="flip"), picture), theirs(v2.RandomHorizontalFlip(), picture)
    demand_equal_frequencies(one[:, 0, 0, 0], other[:, 0, 0, 0])
    both = {made.numpy().tobytes() for made in (*one, *other)}
    assert both == {picture.numpy().tobytes(), picture.flip(-1).numpy().tobytes()}


def test_brightness_and_contrast_are_those_of_torchvision():
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as reference

    def jittered(pictures, bright, contrast):
        drawn = torch.tensor([bright]), torch.tensor([contrast])
        return Jitter(kind="jitter").apply(pictures[None], MEAN, drawn)[0]

    grey, coloured = (torch.rand(c, 5, 6, generator=generator(0, "test")) for c in (1, 3))
    for factor in (0.3, 0.8, 1.0, 1.7):
        for picture in (grey, coloured):
            expected = reference.adjust_brightness(picture, factor)
            assert torch.allclose(jittered(picture, factor, 1.0), expected, atol=1e-6)
        assert torch.allclose(jittered(grey, 1.0, factor), reference.adjust_contrast(grey, factor), atol=1e-6)
    assert not torch.allclose(
        jittered(coloured, 1.0, 0.3), reference.adjust_contrast(coloured, 0.3), atol=1e-3
    )
    picture = 0.35 + 0.3 * grey  # nothing is cut off at 0 or 1
    for name, figure in (("brightness", torch.mean), ("contrast", torch.std)):
        options = {"brightness": 0.0, "contrast": 0.0, name: 0.4}
        part, transform = Jitter(kind="jitter", **options), v2.ColorJitter(**options)
        one, other = ours(part, picture), theirs(transform, picture)
        demand_equal_distributions(*(figure(made, (1, 2, 3)) for made in (one, other)))


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "none"])
def test_presets_change_training_batches_only(name):
    plain, changed = small(), small(augmentation=name)
    for split in ("train", "test"):
        assert whole(plain, split)[0].equal(whole(changed, split)[0])
    one, other = next(plain.batches(Draw(0, 8), 0)), next(changed.batches(Draw(0, 8), 0))
    assert one.index.equal(other.index) and not one.views[VIEW].equal(other.views[VIEW])
    spelt = small(augmentation=[part.model_dump() for part in PRESETS[name]])
    assert all_same(spelt.batches(Draw(0, 8), 0), changed.batches(Draw(0, 8), 0))


@pytest.mark.parametrize("name", PRESETS)
def test_pictures_come_channels_last(name):
    dataset = small(augmentation=name, strong_view="strong")
    batches = [next(dataset.batches(Draw(0, 8, mixup=m, cutmix=c), 0)) for m, c in ((0, 0), (1, 0), (0, 1))]
    for batch in [*batches, next(dataset.split("test", 5))]:
        for view in batch.views.values():
            assert view.shape[1:] == (3, 6, 6) and view.is_contiguous(memory_format=torch.channels_last)


def test_pictures_that_nothing_augments_are_normalised_once_where_there_is_room(monkeypatch):
    ready, held = small(), small(strong_view="strong")
    monkeypatch.setattr("kdrun.data.inputs.room_for_data", lambda device: 0)
    cramped = small()
    kinds = [d._parts[False]["train"].sources[VIEW]._samples.dtype for d in (ready, held, cramped)]
    assert kinds == [torch.float32, torch.uint8, torch.uint8]
    for split in ("train", "test"):
        assert whole(ready, split)[0].equal(whole(cramped, split)[0])
    assert all_same(ready.batches(Draw(0, 8, mixup=1.0), 1), cramped.batches(Draw(0, 8, mixup=1.0), 1))


def test_crop_pads_with_black():
    dataset = small(augmentation=[{"kind": "crop", "padding": 6}])
    mean, std = dataset._inputs[VIEW].normaliser
    black = torch.isclose(next(dataset.batches(Draw(0, 40), 0)).views[VIEW], (0 - mean) / std).float().mean()
    assert 0.5 < black < 0.9


def test_tables_cannot_be_augmented(tmp_path):
    with pytest.raises(DataError, match="rows of 5 numbers"):
        make("synthetic", shape=[5], augmentation="flip")


def test_defaults_of_augmentation():
    kinds = {"cifar10": "standard", "cifar100": "standard", "mnist": "none", "digits": "none", "svhn": "none"}
    for kind, preset in kinds.items():
        assert make(kind).config.augmentation == preset


@pytest.mark.parametrize("given_", ["standrad", [{"kind": "crop", "pading": 3}], [{"kind": "crpo"}]])
def test_a_wrong_augmentation_is_one_error(given_):
    with pytest.raises(ValidationError) as caught:
        make("cifar10", augmentation=given_)
    assert caught.value.error_count() == 1


# ---------------------------------------------------------------------------------------- image folders


@pytest.fixture
def folder(tmp_path):
    """Two classes, different sizes and modes, each picture of one colour: 40·i in class a, 30·i + 5 in class b."""
    for part, count in (("train", 5), ("test", 2)):
        for name, step, start in (("a", 40, 0), ("b", 30, 5)):
            place = tmp_path / "photos" / part / name
            place.mkdir(parents=True)
            (place / ".DS_Store").write_bytes(b"x")
            for i in range(count):
                mode = ["L", "RGB", "RGBA", "P", "L"][i]
                Image.new("L", (6 + i, 9), step * i + start).convert(mode).save(place / f"{i}.png")
    return tmp_path / "photos"


def test_image_folder(folder):
    dataset = loaded("image-folder", root=str(folder), size=[4, 5])
    assert dataset.spec == Spec({VIEW: (3, 4, 5)}, 2) and list(dataset.classes) == ["a", "b"]
    views, labels = whole(dataset, "train")
    assert labels.tolist() == [0] * 5 + [1] * 5
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    shades = (views * std.view(3, 1, 1) + mean.view(3, 1, 1)) * 255
    expected = torch.tensor([0, 40, 80, 120, 160, 5, 35, 65, 95, 125.0]).view(-1, 1, 1, 1)
    assert torch.allclose(shades, expected.expand_as(shades), atol=1e-3)
    assert dataset.labels("test").tolist() == [0, 0, 1, 1]
    assert dataset.config.augmentation == "flip"


def test_pictures_are_resized_as_pillow_does(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    found = files.decode(tmp_path / "p.png", (8, 6))
    assert (found.transpose(1, 2, 0) == np.asarray(Image.fromarray(pixels).resize((6, 8), 2))).all()
    deep = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert (files.decode(tmp_path / "deep.png", (8, 8)) == (deep >> 8)).all()


def test_val_serves_as_test_and_one_folder_is_split(folder):
    (folder / "test").rename(folder / "val")
    assert len(loaded("image-folder", root=str(folder), size=4).labels("test")) == 4
    dataset = loaded("image-folder", root=str(folder / "train"), size=4, test=0.4)
    assert np.bincount(dataset.labels("test")).tolist() == [2, 2]
    assert np.bincount(dataset.labels("train")).tolist() == [3, 3]
    with pytest.raises(DataError, match="has a test split of its own, val; leave `test` out"):
        make("image-folder", root=str(folder), test=0.4)


WAYS = ["memory", "shelf", "map", "stream"]


def by_way(way, monkeypatch, tmp_path, **options):
    """A folder of pictures, loaded in one of the ways that sets of different sizes are, and what it said."""
    monkeypatch.setattr(files, "room_for_data", lambda device: 0 if way in ("map", "stream") else 1 << 40)
    monkeypatch.setattr(files, "WORTH_KEEPING", 0 if way == "shelf" else 1 << 40)
    monkeypatch.setattr(sources, "WORKERS", 2)
    dataset, said = make("image-folder", **options), []
    dataset.load(CPU, None if way in ("memory", "stream") else Shelf(tmp_path / "cache"), said.append)
    return dataset, said


def test_pictures_on_the_shelf_say_what_they_are(folder, monkeypatch, tmp_path):
    by_way("shelf", monkeypatch, tmp_path, root=str(folder), size=[6, 5])
    (entry,) = shelved(Store(tmp_path))
    assert (entry.state, entry.detail) == ("kept", "14 pictures of 6×5")


@pytest.mark.parametrize("own_test", [True, False])
def test_all_ways_to_keep_pictures_give_the_same_bits(folder, monkeypatch, tmp_path, own_test):
    options = {"root": str(folder if own_test else folder / "train"), "size": [6, 5], "labels_per_class": 2}
    options |= {"augmentation": COPIES, "strong_view": "strong", "validation": 0.2}
    state = torch.random.get_rng_state()
    sets = {way: by_way(way, monkeypatch, tmp_path, **options)[0] for way in WAYS}
    kinds = {way: type(dataset._parts[False]["train"].sources[VIEW]) for way, dataset in sets.items()}
    stored, mapped, streamed = sources.Stored, sources.Mapped, sources.Streamed
    assert kinds == {"memory": stored, "shelf": stored, "map": mapped, "stream": streamed}
    for way in WAYS[1:]:
        demand_batches_of_copies(sets[way], epochs=2)
        for draw in (Draw(1, 3, mixup=0.3), Draw(1, 3, labels="all", purpose="teacher")):
            one, other = (list(sets[w].batches(draw, 1, first=1)) for w in ("memory", way))
            assert all_same(one, other)
            assert all(a.views["strong"].equal(b.views["strong"]) for a, b in zip(one, other, strict=True))
        assert all_same(sets["memory"].split("test", 3), sets[way].split("test", 3))
        assert sets["memory"].test_hash() == sets[way].test_hash()
    assert torch.random.get_rng_state().equal(state)


@pytest.mark.parametrize("way", WAYS)
def test_the_hash_of_training_samples_is_of_what_they_hold(folder, monkeypatch, tmp_path, way):
    """Not of their files' names and sizes alone: other pixels of a BMP change neither."""

    def hashes():
        dataset, _ = by_way(way, monkeypatch, tmp_path, root=str(folder), size=4, augmentation="standard")
        return dataset.train_hash(), Dataset.train_hash(dataset), dataset.identity()

    path = folder / "train" / "a" / "more.bmp"
    found = []
    for shade in (0, 0, 255):
        if not found or shade:
            Image.new("RGB", (4, 4), (shade, shade, shade)).save(path)
            os.utime(path, ns=(shade, shade))
        found.append(hashes())
    one, again, other = found
    assert one == again
    assert all(before != after for before, after in zip(one, other, strict=True))


def test_workers_leave_signals_to_the_process_that_trains():
    """Who saves, and says so once, is that process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        sources._belong_to_the_parent(0)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        ctypes.CDLL(None).prctl(machine.PR_SET_PDEATHSIG, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def test_every_way_is_told_before_it_is_gone(folder, monkeypatch, tmp_path):
    options = {"root": str(folder), "size": 300}
    said = {way: by_way(way, monkeypatch, tmp_path, **options)[1] for way in ("memory", "stream")}
    assert said == {"memory": [], "stream": ["checking 14 pictures, to be decoded while they are used"]}
    for way in ("map", "shelf"):
        told = by_way(way, monkeypatch, tmp_path / way, **options)[1]
        assert told == [f"decoding 14 pictures to 3.8 MB in {tmp_path / way / 'cache'}, once"]
        assert by_way(way, monkeypatch, tmp_path / way, **options)[1] == []
    monkeypatch.setattr(files, "WORTH_KEEPING", 0)
    monkeypatch.setattr(files, "room_for_data", lambda device: 1 << 40)
    told = []
    make("image-folder", **options).load(CPU, None, told.append)
    assert told == ["decoding 14 pictures to 3.8 MB of memory"]


@pytest.mark.parametrize("way", ["map", "shelf"])
def test_pictures_are_decoded_once(folder, monkeypatch, tmp_path, way):
    options = {"root": str(folder), "size": 6}
    first = by_way(way, monkeypatch, tmp_path, **options)[0]
    calls, decode = [], files.decode
    monkeypatch.setattr(files, "decode", lambda *given: calls.append(1) or decode(*given))
    again = by_way(way, monkeypatch, tmp_path, **options)[0]
    assert not calls and all_same(first.split("train"), again.split("train"))
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert not by_way(way, monkeypatch, tmp_path, **options | {"root": str(moved)})[1]
    by_way(way, monkeypatch, tmp_path, **options | {"size": 7})
    assert len(calls) == 14
    os.utime(folder / "train" / "a" / "1.png", ns=(1, 1))
    by_way(way, monkeypatch, tmp_path, **options)
    assert len(calls) == 28
    for kept in (tmp_path / "cache").glob("*/*.npy"):
        kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    mended, said = by_way(way, monkeypatch, tmp_path, **options)
    assert len(calls) == 42 and said and all_same(first.split("train"), mended.split("train"))


def test_without_room_on_the_disk_pictures_are_streamed(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(shelf.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 60, 40))
    for way, kind in (("map", sources.Streamed), ("shelf", sources.Stored)):
        dataset, said = by_way(way, monkeypatch, tmp_path, root=str(folder), size=6)
        assert isinstance(dataset._parts[False]["train"].sources[VIEW], kind)
        assert said[0].startswith("decoded pictures are not kept: ") and "40 are free" in said[0]


def test_broken_pictures_leave_nothing_on_the_shelf(folder, monkeypatch, tmp_path):
    (folder / "train" / "a" / "broken.png").touch()
    with pytest.raises(DataError, match=r"1 of 15 pictures cannot be read.*\n.*broken\.png"):
        by_way("map", monkeypatch, tmp_path, root=str(folder), size=6)
    assert not any((tmp_path / "cache").iterdir())


def nothing_but(threads):
    """Whether no others are left, once closed queues have ended theirs; some of these may have ended, too."""
    for thread in set(threading.enumerate()) - threads:
        thread.join(2)
    return set(threading.enumerate()) <= threads and not multiprocessing.active_children()


@pytest.mark.parametrize("way", ["map", "stream"])
def test_nothing_is_left_behind_when_an_iterator_is_dropped(folder, monkeypatch, tmp_path, way):
    dataset, _ = by_way(way, monkeypatch, tmp_path, root=str(folder), size=6)
    threads = set(threading.enumerate())
    for name in ("train", "test", "batches"):
        batches = dataset.batches(Draw(0, 2), 0) if name == "batches" else dataset.split(name, 2)
        next(batches)
        assert set(threading.enumerate()) - threads or multiprocessing.active_children()
        del batches
        assert nothing_but(threads)
    with pytest.raises(ZeroDivisionError):
        for _ in dataset.batches(Draw(0, 2), 0):
            raise ZeroDivisionError
    assert nothing_but(threads)


def test_what_a_reading_thread_meets_is_an_error_of_the_file(tmp_path):
    pixels = np.lib.format.open_memmap(tmp_path / "pixels.npy", "w+", np.uint8, (20, 2, 2, 3))
    mapped, threads = sources.Mapped(pixels, CPU), set(threading.enumerate())
    rows = torch.tensor([0, 1, 2, 3, 4, 99, 5, 6])
    batches = mapped.gather(rows, 2)
    assert len(list(islice(batches, 2))) == 2
    with pytest.raises(DataError, match=r"pixels\.npy can no longer be read: .*99"):
        next(batches)
    assert nothing_but(threads)


def test_a_picture_that_vanishes_while_streaming_is_named(folder, monkeypatch):
    monkeypatch.setattr(files, "room_for_data", lambda device: 0)
    monkeypatch.setattr(sources, "WORKERS", 1)
    dataset = loaded("image-folder", root=str(folder), size=6)
    (folder / "train" / "a" / "3.png").unlink()
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        list(dataset.split("train", 4))
    assert time.monotonic() - began < 4, "workers that still wait for orders are killed after five seconds"
    assert str(caught.value).startswith(str(folder / "train" / "a" / "3.png"))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("limit", [0, 1 << 40])
def test_all_broken_pictures_are_named_at_once(folder, monkeypatch, limit):
    monkeypatch.setattr(files, "room_for_data", lambda device: limit)
    train = folder / "train" / "a"
    whole_file = (train / "1.png").read_bytes()
    Image.effect_noise((64, 64), 50).save(train / "noise.jpg")
    (train / "truncated.jpg").write_bytes((train / "noise.jpg").read_bytes()[:900])
    (train / "truncated.png").write_bytes(whole_file[: len(whole_file) // 2])
    (train / "empty.png").touch()
    (folder / "test" / "b" / "notes.txt").write_text("no picture")
    (train / "gone.png").symlink_to(folder / "nowhere.png")
    dataset = make("image-folder", root=str(folder), size=6)
    assert dataset.identity()
    with pytest.raises(DataError) as caught:
        dataset.load(CPU)
    message = str(caught.value)
    assert message.startswith("dataset: 5 of 20 pictures cannot be read")
    for name in ("truncated.jpg", "truncated.png", "empty.png", "notes.txt", "gone.png"):
        assert name in message
    assert "noise.jpg" not in message


def test_many_broken_pictures_are_counted(folder):
    for i in range(23):
        (folder / "train" / "a" / f"broken{i}.png").touch()
    with pytest.raises(DataError) as caught:
        loaded("image-folder", root=str(folder), size=6)
    assert str(caught.value).count("/broken") == 10
    assert str(caught.value).endswith("and 13 more")


def test_wrong_folders(folder, tmp_path):
    def refused(match, root=folder):
        with pytest.raises(DataError, match=match):
            make("image-folder", root=str(root))

    refused("there is no folder .*nowhere", tmp_path / "nowhere")
    (folder / "test" / "b").rename(folder / "test" / "c")
    refused("test has other classes than the training folder: it lacks b and adds c")
    (folder / "test" / "c").rename(folder / "test" / "b")
    (folder / "train" / "empty").mkdir()
    (folder / "test" / "empty").mkdir()
    (folder / "train" / "empty" / ".DS_Store").touch()
    refused("empty holds no pictures")
    shutil.rmtree(folder / "test")
    refused("1 class folders .*train.* at least two")


def test_the_identity_of_a_folder_is_its_contents(folder, tmp_path):
    one = make("image-folder", root=str(folder)).identity()
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert make("image-folder", root=str(moved)).identity() == one
    (moved / "train" / "a" / ".hidden").touch()
    assert make("image-folder", root=str(moved)).identity() == one
    (moved / "train" / "a" / "0.png").rename(moved / "train" / "a" / "zero.png")
    assert make("image-folder", root=str(moved)).identity() != one


def test_deeper_folders_belong_to_their_class(folder):
    (folder / "train" / "a" / "deeper").mkdir()
    (folder / "train" / "a" / "0.png").rename(folder / "train" / "a" / "deeper" / "0.png")
    assert np.bincount(loaded("image-folder", root=str(folder), size=4).labels("train")).tolist() == [5, 5]


# ----------------------------------------------------------------------------------------------- arrays


def arrays(tmp_path, options=None, **saved):
    np.savez(tmp_path / "data.npz", **saved)
    return make("arrays", path=str(tmp_path / "data.npz"), **(options or {}))


Y = np.arange(20) % 2
RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (20, 3, 6, 5), dtype=np.uint8)


def raw_pictures(dataset):
    dataset.load(CPU)
    mean, std = dataset._inputs[VIEW].normaliser
    return whole(dataset, "test")[0] * std + mean


@pytest.mark.parametrize(
    ("x", "shape", "exact"),
    [
        (BYTES, None, BYTES / 255),
        (BYTES.transpose(0, 2, 3, 1), None, BYTES / 255),
        (BYTES[:, 0], None, BYTES[:, :1] / 255),
        (BYTES.astype(np.int64), None, BYTES / 255),
        (BYTES.astype(np.float64), None, BYTES / 255),
        ((BYTES / 255).astype(np.float32), None, BYTES / 255),
        (BYTES.reshape(20, -1), [3, 6, 5], BYTES / 255),
        (BYTES.transpose(0, 2, 3, 1), [3, 6, 5], BYTES / 255),
        (BYTES[:, 0], [1, 6, 5], BYTES[:, :1] / 255),
        (BYTES[:, :2], [2, 6, 5], BYTES[:, :2] / 255),
    ],
)
def test_arrays_of_pictures(tmp_path, x, shape, exact):
    dataset = arrays(tmp_path, {"shape": shape}, x_train=x, y_train=Y, x_test=x, y_test=Y)
    assert dataset.spec.shapes[VIEW] == exact.shape[1:]
    assert np.allclose(raw_pictures(dataset), exact, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "shape", "message"),
    [
        (BYTES / 255 - 0.5, None, "from -0.5 to 0.5; save them as whole numbers from 0 to 255"),
        (BYTES + 0.5, None, "save them as whole numbers"),
        (BYTES[:, :2], None, r"\[2, 6, 5\] are not clearly pictures; write `shape"),
        (BYTES[..., :3], None, r"\[3, 6, 3\] are not clearly pictures"),
        (BYTES, [1, 6, 5], r"dataset\.shape: .*\[3, 6, 5\] cannot be read as \[1, 6, 5\]"),
        (BYTES.astype(complex), None, "complex128, not numbers"),
        (np.where(BYTES == 7, np.nan, BYTES), None, r"x\[\d+, \d, \d, \d\] is not a finite number"),
        (np.arange(20), None, r"x is \(20,\) and its labels are \(20,\)"),
        (BYTES[:19], None, r"x is \(19, 3, 6, 5\) and its labels are \(20,\)"),
    ],
)
def test_arrays_that_are_no_pictures(tmp_path, x, shape, message):
    with pytest.raises(DataError, match=message):
        arrays(tmp_path, {"shape": shape}, x=x, y=Y)


def test_arrays_of_tables(tmp_path):
    x = RANDOM.normal(size=(20, 4)).astype(np.float32)
    dataset = arrays(tmp_path, x=x, y=Y.reshape(-1, 1))
    dataset.load(CPU)
    assert dataset.spec == Spec({VIEW: (4,)}, 2)
    assert [len(dataset.labels(name)) for name in ("train", "test")] == [14, 6]
    assert dataset.feature_names == ["x0", "x1", "x2", "x3"]


@pytest.mark.parametrize(
    ("y", "classes", "labels"),
    [
        (["cat", "ant", "cat", "bee"], ["ant", "bee", "cat"], [2, 0, 2, 1]),
        ([10, 2, 10, -1], ["-1", "2", "10"], [2, 1, 2, 0]),
        (["10", "2", "10", "9"], ["2", "9", "10"], [2, 0, 2, 1]),
        ([True, False, True, True], ["False", "True"], [1, 0, 1, 1]),
    ],
)
def test_labels_of_arrays(tmp_path, y, classes, labels):
    x = np.arange(8.0).reshape(4, 2)
    dataset = arrays(tmp_path, x_train=x, y_train=np.array(y), x_test=x, y_test=np.array(y))
    dataset.load(CPU)
    assert list(dataset.classes) == classes
    assert dataset.labels("train").tolist() == dataset.labels("test").tolist() == labels


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"images": BYTES, "labels": Y}, "holds images, labels; it must hold x and y"),
        ({"x": BYTES, "y": Y + 0.5}, "labels are float64"),
        ({"x": BYTES, "y": Y * 0}, "all labels are 0"),
        ({"x": BYTES, "y": np.eye(20)}, r"labels are \(20, 20\)"),
        ({"x": np.array([{}, {}]), "y": Y[:2]}, "holds Python objects"),
        ({"x_train": BYTES, "y_train": Y, "x_test": BYTES, "y_test": Y + 1}, "test part has the classes 2"),
        ({"x_train": BYTES, "y_train": Y, "x_test": BYTES[:, :1], "y_test": Y}, "different kinds"),
    ],
)
def test_wrong_npz(tmp_path, saved, message):
    with pytest.raises(DataError, match=message):
        arrays(tmp_path, **saved)


def test_a_test_share_is_not_for_files_that_have_a_test_part(tmp_path):
    with pytest.raises(DataError, match=r"dataset\.test: .*leave `test` out"):
        arrays(tmp_path, {"test": 0.2}, x_train=BYTES, y_train=Y, x_test=BYTES, y_test=Y)


def test_files_that_are_no_arrays(tmp_path):
    (tmp_path / "a.npz").write_text("nothing of the kind")
    (tmp_path / "empty.npz").touch()
    (tmp_path / "a.txt").write_text("x")
    np.save(tmp_path / "single.npy", Y)
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    for name, message in (
        ("a.npz", "cannot be read as .npz"),
        ("empty.npz", "cannot be read as .npz"),
        ("single.npz", "cannot be read as .npz"),
        ("a.txt", "neither a .npz nor a .csv"),
        ("gone.npz", "there is no file"),
    ):
        with pytest.raises(DataError, match=message):
            make("arrays", path=str(tmp_path / name))


def test_nothing_is_unpickled(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.npz").write_bytes(pickle.dumps(Evil()))
    np.savez(tmp_path / "evil2.npz", x=np.array([Evil(), Evil()], dtype=object), y=Y[:2])
    (tmp_path / "ran").unlink(missing_ok=True)
    for name in ("evil.npz", "evil2.npz"):
        with pytest.raises(DataError):
            make("arrays", path=str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


def table(tmp_path, text):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    return str(tmp_path / "t.csv")


def test_csv(tmp_path):
    rows = [["height", "kind", "width"]] + [[i, "ab"[i % 2], -i / 2] for i in range(20)]
    with open(tmp_path / "t.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(rows)
    dataset = loaded("arrays", path=str(tmp_path / "t.csv"), label="kind")
    assert dataset.spec == Spec({VIEW: (2,)}, 2)
    assert (dataset.feature_names, list(dataset.classes)) == (["height", "width"], ["a", "b"])
    views = whole(dataset, "train")[0]
    assert torch.allclose(views[:, 0], -views[:, 1], atol=1e-5)


def test_csv_of_flat_pictures(tmp_path):
    header = ",".join(["label", *(f"p{i}" for i in range(4))])
    lines = [f"{i % 2},{i},255,0,7" for i in range(10)]
    dataset = loaded("arrays", path=table(tmp_path, "\n".join([header, *lines])), shape=[1, 2, 2])
    mean, std = dataset._inputs[VIEW].normaliser
    picture = (next(dataset.split("train", 1)).views[VIEW] * std + mean) * 255
    assert picture.flatten()[1:].round().tolist() == [255, 0, 7] and not dataset.feature_names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,lable\n1,x\n", r"t\.csv:1: there is no column 'label' .* did you mean 'lable'"),
        ("a,label\n1,x\n\n2,y\nbig,x\n", r"t\.csv:5: column 'a' holds 'big'"),
        ("a,label\n1,x\n,y\n", r"t\.csv:3: column 'a' holds ''"),
        ("a,label\nnan,x\n", r"t\.csv:2: column 'a' holds 'nan'"),
        ("a,label\ninf,x\n", r"t\.csv:2: column 'a' holds 'inf'"),
        ("a,b,label\n1,x\n", r"t\.csv:2: 2 cells, but the header has 3"),
        ("a,label\n1,x\n2,\n", r"t\.csv:3: the label is missing"),
        ("a,label\n", "holds no samples"),
        ("label\nx\ny\n", "holds no samples"),
        ("", r"t\.csv:1: there is no column 'label'"),
        ("a,label\n1,x\n2,x\n", "all labels are x"),
    ],
)
def test_wrong_csv(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        make("arrays", path=table(tmp_path, text))


def test_a_csv_in_another_encoding_is_named(tmp_path):
    (tmp_path / "t.csv").write_bytes("größe,label\n1,x\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        make("arrays", path=str(tmp_path / "t.csv"))


@pytest.mark.parametrize("whole", [0, 10**9])
def test_other_pictures_of_the_same_size_are_another_set(folder, monkeypatch, whole):
    monkeypatch.setattr(files, "READ_WHOLE", whole)
    one = make("image-folder", root=str(folder)).identity()
    for path in folder.rglob("*.png"):
        picture = bytearray(path.read_bytes())
        picture[-20] ^= 1
        path.write_bytes(picture)
    assert make("image-folder", root=str(folder)).identity() != one


def test_the_identity_of_arrays_is_the_file(tmp_path):
    path = Path(table(tmp_path, "a,label\n1,x\n2,y\n3,x\n4,y\n"))
    one = make("arrays", path=str(path)).identity()
    assert one["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and "path" not in one
    moved = shutil.copy(path, tmp_path / "other.csv")
    assert make("arrays", path=str(moved)).identity() == one


# ---------------------------------------------------------------------------------------- fixed copies


EVERY_PART = ["crop", "flip", "jitter", {"kind": "cutout", "size": 3}]
COPIES = {"copies": 3, "parts": EVERY_PART}


def rows_of(copies, batch):
    views, labels = copies[batch.copy]
    return views[batch.index], labels[batch.index]


def seen_in(dataset, number, size=7):
    batches = list(dataset.copy(number, size, given=True))
    assert {batch.copy for batch in batches} == {number} and batches[0].views.keys() == {VIEW}
    assert torch.cat([b.index for b in batches]).tolist() == list(range(len(dataset.labels("train", True))))
    return torch.cat([b.views[VIEW] for b in batches]), torch.cat([b.labels for b in batches])


def demand_batches_of_copies(dataset, epochs=4):
    """Every batch that students see is rows of the copy that it says, and the copies come in turn."""
    draw = Draw(5, 8)
    number = dataset.copies(draw)
    copies = [seen_in(dataset, k) for k in range(number)]
    for drawn in (draw, replace(draw, seed=6, batch_size=5), replace(draw, labelled_only=True)):
        for epoch in range(epochs):
            for batch in dataset.batches(drawn, epoch):
                views, labels = rows_of(copies, batch)
                assert batch.copy == epoch % number
                assert batch.views[VIEW].equal(views) and batch.labels.equal(
                    torch.where(batch.labels == HIDDEN, HIDDEN, labels)
                )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("iris", {"labels_per_class": 4}),
        ("digits", {"validation": 0.9, "test": 0.5}),
        ("synthetic", {"shape": [3, 6, 6], "samples": 40, "augmentation": COPIES, "labels_per_class": 2}),
        ("synthetic", {"shape": [1, 8, 6], "samples": 40, "augmentation": {"copies": 2}}),
    ],
)
def test_batches_are_rows_of_the_copies(kind, options):
    demand_batches_of_copies(loaded(kind, **options))


def test_copies_of_pictures_of_floats(tmp_path):
    pictures = (BYTES / 255).astype(np.float32)
    dataset = arrays(
        tmp_path, {"augmentation": COPIES}, x_train=pictures, y_train=Y, x_test=pictures, y_test=Y
    )
    dataset.load(CPU)
    demand_batches_of_copies(dataset)


def test_a_copy_is_the_same_alone_and_in_any_company():
    dataset = small(augmentation=COPIES, validation=0.2)
    for number in range(3):
        views, labels = seen_in(dataset, number)
        assert all(seen_in(dataset, number, size)[0].equal(views) for size in (1, 3, 500))
        assert labels.tolist() == dataset.labels("train").tolist()
    assert seen_in(small(augmentation=COPIES, validation=0.2), 1)[0].equal(seen_in(dataset, 1)[0])


def test_a_large_picture_is_the_same_alone_with_several_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pictures = torch.rand(3, 3, 120, 120)
        part = Jitter(kind="jitter")
        drawn = part.draw(3, (120, 120), generator(0, "test"))
        alone = [part.apply(pictures[i : i + 1], MEAN, tuple(n[i : i + 1] for n in drawn)) for i in range(3)]
        assert torch.cat(alone).equal(part.apply(pictures, MEAN, drawn))
    finally:
        torch.set_num_threads(threads)


def test_copies_differ_by_number_sample_and_the_sets_seed(tmp_path):
    pictures = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 3, 9, 9), dtype=np.uint8), 20, axis=0)
    options = {"augmentation": COPIES}
    saved = {"x_train": pictures, "y_train": Y, "x_test": pictures, "y_test": Y}
    seen = set()
    for seed in (0, 1):
        dataset = arrays(tmp_path, options | {"seed": seed}, **saved)
        dataset.load(CPU)
        seen |= {row.numpy().tobytes() for k in range(3) for row in seen_in(dataset, k)[0]}
    assert len(seen) == 2 * 3 * 20


def test_without_augmentation_the_copy_is_the_training_split():
    for dataset in (loaded("iris"), small()):
        assert all_same(dataset.copy(0, 9), dataset.split("train", 9))


def test_how_many_passes_differ():
    teacher, mixed = Draw(0, 8, labels="all", purpose="teacher"), Draw(0, 8, mixup=0.2)
    expected = {"none": (1, 1, None), "standard": (None, None, None), "fixed": (3, None, None)}
    for name, passes in expected.items():
        dataset = small(augmentation=COPIES if name == "fixed" else name)
        assert tuple(dataset.copies(draw) for draw in (Draw(0, 8), teacher, mixed)) == passes
    assert small().copies(Draw(0, 8, cutmix=1.0)) is None
    assert loaded("iris").copies(Draw(0, 8)) == 1
    assert small(strong_view="strong").copies(Draw(0, 8)) == 1, "the default view is asked for"


def test_teachers_see_no_copies():
    plain, fixed = small(augmentation=EVERY_PART), small(augmentation=COPIES)
    draw = Draw(0, 8, labels="all", purpose="teacher")
    assert all_same(plain.batches(draw, 1), fixed.batches(draw, 1))
    assert {batch.copy for batch in fixed.batches(draw, 1)} == {0}
    assert not all_same(plain.batches(Draw(0, 8), 1), fixed.batches(Draw(0, 8), 1))


def test_copies_can_be_mixed_and_have_a_strong_view_beside_them():
    dataset = small(augmentation=COPIES, strong_view="strong")
    copies = [seen_in(dataset, k)[0] for k in range(3)]
    plain, mixed = (list(dataset.batches(Draw(0, 8, mixup=mixup), 1)) for mixup in (0.0, 0.4))
    for batch, other in zip(plain, mixed, strict=True):
        share, x = other.mix.share.view(-1, 1, 1, 1), copies[1][other.index]
        assert torch.allclose(other.views[VIEW], share * x + (1 - share) * x[other.mix.partner])
        assert not batch.views["strong"].equal(batch.views[VIEW]) and other.copy == 1


def test_a_batch_keeps_the_number_of_its_copy():
    batch = next(small(augmentation=COPIES).batches(Draw(0, 8), 2))
    assert batch.copy == 2
    for other in (batch.to(CPU), batch.with_labels(batch.labels), batch.rows(torch.tensor([1, 3]))):
        assert other.copy == 2


def test_every_part_is_named_where_copies_are_wrong():
    for wrong, told in (
        ({"copies": 0}, "greater than or equal to 1"),
        ({"parts": "standard"}, "Field required"),
        ({"copies": 2, "parts": "none"}, "write `parts: standard`"),
        ({"copies": 2, "parts": []}, "write `parts: standard`"),
        ({"copies": 2, "part": "crop"}, "Extra inputs"),
        ({"copies": 2, "parts": {"copies": 2}}, "Input should be"),
    ):
        with pytest.raises(ValidationError, match=told) as caught:
            make("cifar10", augmentation=wrong)
        assert caught.value.error_count() == 1
    with pytest.raises(ValidationError, match="a second view has no copies; write"):
        make("cifar10", strong_view={"copies": 2})


def test_parts_that_are_a_preset_are_told_by_its_name():
    spelt = [part.model_dump() for part in PRESETS["standard"]]
    assert make("cifar10", augmentation=spelt).identity() == make("cifar10").identity()
    one, other = ({"copies": 4, "parts": parts} for parts in (spelt, "standard"))
    assert make("cifar10", augmentation=one).identity() == make("cifar10", augmentation=other).identity()
    assert make("cifar10", augmentation=one).identity() != make("cifar10").identity()
    assert (
        make("cifar10", augmentation=one, seed=1).identity() != make("cifar10", augmentation=one).identity()
    )


def test_one_teacher_serves_students_with_and_without_copies():
    def fingerprints(augmentation):
        text = (
            f"dataset: {{kind: digits, augmentation: {augmentation}}}\n"
            "teacher: {model: {kind: mlp}}\nstudent: {model: {kind: mlp}}\nmethods: [kd]\n"
        )
        config = checked(text)
        runs = plan(config, assembly.open_dataset(config)).runs
        return [{run.fingerprint for run in runs if run.role == role} for role in ("teacher", "student")]

    teachers, students = fingerprints("standard")
    for written in ("{copies: 4}", "{copies: 4, parts: standard}", "{copies: 4, parts: [crop, flip]}"):
        others = fingerprints(written)
        assert others[0] == teachers and not others[1] & students
    assert fingerprints("{copies: 4, parts: crop}")[0] != teachers


# ------------------------------------------------------------------------------------------ torchvision


@pytest.mark.parametrize("kind", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"])
def test_a_failed_download_says_where_the_files_must_lie(kind, tmp_path, monkeypatch, capsys):
    from torchvision.datasets import cifar, mnist, svhn

    def fail(*_args, **_kwargs):
        print("torchvision says something")
        raise URLError("no network here")

    for module, name in (
        (mnist, "download_and_extract_archive"),
        (cifar, "download_and_extract_archive"),
        (svhn, "download_url"),
    ):
        monkeypatch.setattr(module, name, fail)
    with pytest.raises(DataError) as caught:
        loaded(kind, root=str(tmp_path / "data"))
    message = str(caught.value)
    place = {
        "mnist": "MNIST/raw/train-images-idx3-ubyte",
        "fashion-mnist": "FashionMNIST/raw/t10k-labels-idx1-ubyte",
        "cifar10": "cifar-10-batches-py/data_batch_5",
        "cifar100": "cifar-100-python/test",
        "svhn": "test_32x32.mat",
    }[kind]
    assert str(tmp_path / "data" / place) in message
    assert "download failed" in message and "no network here" in message and "\n" not in message
    assert capsys.readouterr().out == "", "only results go to stdout"


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 10)):
        write_idx(raw / f"{part}-images-idx3-ubyte", np.full((count, 28, 28), 51))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    monkeypatch.setattr(registry.DATASETS["mnist"], "samples", 30)
    return tmp_path


def test_files_that_are_there_need_no_network(tiny_mnist, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "socket", None)
    dataset = loaded("mnist", root=str(tiny_mnist))
    views, labels = whole(dataset, "test")
    assert labels.tolist() == list(range(10))
    assert torch.allclose(views, torch.tensor((0.2 - 0.1307) / 0.3081))


def test_damaged_files_are_named(tiny_mnist):
    images = tiny_mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"are damaged .* delete them .*train-images-idx3-ubyte"):
        loaded("mnist", root=str(tiny_mnist))


class FakeColours:
    """What torchvision's CIFAR and SVHN loaders keep: pictures that differ in every axis."""

    def __init__(self, channels_last):
        self.pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
        self.data = self.pixels.transpose(0, 2, 3, 1) if channels_last else self.pixels
        self.targets = [i % 10 for i in range(20)]
        self.labels = np.array(self.targets)
        self.classes = [f"class {i}" for i in range(10)]


@pytest.mark.parametrize(("kind", "channels_last"), [("cifar10", True), ("svhn", False)])
def test_colour_pictures_come_channels_first(kind, channels_last, tmp_path, monkeypatch):
    component, fake = registry.DATASETS[kind], FakeColours(channels_last)
    for file in component.files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.setattr(component, "_open", lambda self, train, download=False: fake)
    monkeypatch.setattr(component, "samples", 20)
    dataset = loaded(kind, root=str(tmp_path))
    mean, std = (torch.tensor(figures).view(3, 1, 1) for figures in (component.mean, component.std))
    assert torch.allclose(
        whole(dataset, "train")[0], (torch.from_numpy(fake.pixels) / 255 - mean) / std, atol=1e-5
    )
    assert dataset.classes[3] == ("class 3" if kind == "cifar10" else "3")


def test_the_home_folder_is_known(monkeypatch, tiny_mnist):
    monkeypatch.setenv("HOME", str(tiny_mnist))
    assert len(loaded("mnist", root="~").labels("train")) == 30


# ------------------------------------------------------------------------------------------- real files


def real(name):
    folder = Path(os.environ.get("KDRUN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (folder / name).exists():
        pytest.skip(f"{name} is not in {folder}: set KDRUN_DATA to a folder that has it")
    return folder / name


@pytest.mark.data
def test_mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in real("mnist").glob("*.gz"):
        with gzip.open(packed) as source, open(raw / packed.stem, "wb") as sink:
            shutil.copyfileobj(source, sink)
    dataset = loaded("mnist", root=str(tmp_path), validation=0.1)
    assert [len(dataset.labels(name)) for name in ("train", "validation", "test")] == [54000, 6000, 10000]
    assert dataset.labels("test")[:5].tolist() == [7, 2, 1, 0, 4]
    assert dataset.classes == [str(i) for i in range(10)]
    full = loaded("mnist", root=str(tmp_path))
    assert full.labels("train")[0] == 5 and len(full.labels("train")) == 60000
    pictures = torch.cat([batch.views[VIEW] for batch in full.split("train", 10000)])
    assert pictures.shape == (60000, 1, 28, 28)
    assert abs(pictures.mean()) < 1e-3 and abs(pictures.std() - 1) < 1e-3
    assert full.test_hash() == dataset.test_hash()


@pytest.mark.data
def test_cifar10_as_a_folder_of_jpegs(tmp_path):
    with zipfile.ZipFile(real("cifar10-jpeg.zip")) as archive:
        for part in ("train", "test"):
            for name in ("cat", "ship"):
                members = (
                    m for m in archive.namelist() if m.startswith(f"{part}/{name}/") and m.endswith(".jpg")
                )
                archive.extractall(tmp_path, islice(members, 20))
    dataset = loaded("image-folder", root=str(tmp_path), size=32)
    assert list(dataset.classes) == ["cat", "ship"] and dataset.spec.shapes[VIEW] == (3, 32, 32)
    assert np.bincount(dataset.labels("train")).tolist() == [20, 20]
    assert whole(dataset, "test")[0].std() > 0.5


# ------------------------------------------------------------------------------------- the transfer set

TABLE = np.random.default_rng(3).standard_normal((9, 4))


def rows_file(path, x=TABLE, names="abcd", label=None):
    """A .csv file of rows, with a column of labels where there are some."""
    with path.open("w") as file:
        print(*names, *["label"] * (label is not None), sep=",", file=file)
        for place, row in enumerate(x):
            print(
                *(repr(float(v)) for v in row), *[] if label is None else [label[place]], sep=",", file=file
            )
    return str(path)


@pytest.fixture
def own_table(tmp_path):
    """Options of a set of 30 rows of four columns and three classes."""
    x = np.random.default_rng(0).standard_normal((30, 4)) * [1, 2, 3, 4] + 5
    return {"path": rows_file(tmp_path / "set.csv", x, label=np.arange(30) % 3), "validation": 0.2}


def with_transfer(own_table, **options):
    return loaded("arrays", **own_table, **options)


def test_students_see_the_transfer_set_after_the_training_set_and_teachers_do_not(own_table, tmp_path):
    plain = with_transfer(own_table)
    dataset = with_transfer(own_table, transfer_set={"path": rows_file(tmp_path / "more.csv")})
    assert dataset.test_hash() == plain.test_hash()
    for name in ("train", "validation", "test"):
        assert all_same(dataset.split(name), plain.split(name))
        assert dataset.labels(name).tolist() == plain.labels(name).tolist()
    teacher = Draw(0, 5, labels="all", purpose="teacher")
    assert dataset.steps(teacher) == plain.steps(teacher) == 3
    assert all_same(dataset.batches(teacher, 2), plain.batches(teacher, 2))
    own, labels = whole(plain, "train")
    mean, scale = dataset._inputs[VIEW]._standard
    views = torch.cat([b.views[VIEW] for b in dataset.split("train", 4, given=True)])
    assert views.equal(torch.cat([own, torch.from_numpy(((TABLE - mean) * scale).astype(np.float32))]))
    assert dataset.labels("train", True).tolist() == labels.tolist() + [HIDDEN] * 9
    assert dataset.places(True).tolist() == list(range(16)) + [-1] * 9
    for batches in (dataset.split("train", given=True), dataset.batches(Draw(0, 7), 0)):
        assert not any(batch.all_seen for batch in batches)


def test_the_transfer_set_is_drawn_like_the_training_set_but_for_those_who_need_labels(own_table, tmp_path):
    options = {"transfer_set": {"path": rows_file(tmp_path / "more.csv")}}
    for few in (None, 2):
        for left_out in (None, ["1"]):
            dataset = with_transfer(own_table, **options, leave_out=left_out, labels_per_class=few)
            given_ = torch.from_numpy(dataset.labels("train", True))
            steps = dataset.steps(Draw(0, 5))
            assert steps == (16 + 9) // 5, "known before loading, and equal"
            index = torch.cat([b.index for epoch in range(9) for b in dataset.batches(Draw(0, 5), epoch)])
            counts = torch.bincount(index)
            assert len(counts) == len(given_) and counts.max() - counts.min() <= 9 * (left_out is None) + 1
            for batch in (b for epoch in range(3) for b in dataset.batches(Draw(0, 5), epoch)):
                assert batch.labels.equal(given_[batch.index])
            control = [list(dataset.batches(Draw(0, 5, labelled_only=True), epoch)) for epoch in range(9)]
            assert {len(batches) for batches in control} == {steps}
            index = torch.cat([b.index for batches in control for b in batches])
            assert set(index.tolist()) == set((given_ != HIDDEN).nonzero().flatten().tolist())
            asking = Draw(0, 5, queries=Queries(per_sample=1))
            index = torch.cat([b.index for b in dataset.queries(asking, 0, 4)])
            assert sorted(index.tolist()) == list(range(len(given_)))


def test_the_columns_of_a_transfer_set_are_known_by_their_names(own_table, tmp_path):
    def views(**file):
        dataset = with_transfer(own_table, transfer_set={"path": rows_file(tmp_path / "more.csv", **file)})
        return torch.cat([b.views[VIEW] for b in dataset.split("train", given=True)])

    ordered = views()
    assert views(x=TABLE[:, [2, 0, 3, 1]], names="cadb").equal(ordered)
    assert views(label=["x"] * 9).equal(ordered), "labels are not looked at"
    np.savez(tmp_path / "more.npz", x=TABLE, y=np.full(9, "no label"))
    of_arrays = with_transfer(own_table, transfer_set={"path": str(tmp_path / "more.npz")})
    assert torch.cat([b.views[VIEW] for b in of_arrays.split("train", given=True)]).equal(ordered)
    bunch = loaded("iris")
    file = rows_file(tmp_path / "iris.csv", names=bunch.feature_names[::-1])
    given_ = loaded("iris", transfer_set={"path": file})
    x = torch.cat([b.views[VIEW] for b in given_.split("train", given=True)])[105:]
    mean, scale = given_._inputs[VIEW]._standard
    assert x.equal(torch.from_numpy(((TABLE[:, ::-1] - mean) * scale).astype(np.float32)))


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ({"names": "abce"}, "has other columns than the data set: it lacks d and adds e"),
        (
            {"names": "abc", "x": TABLE[:, :3]},
            r"samples are of shape \[3\], and those of the data set of \[4\]",
        ),
        ({"x": TABLE[:0]}, "holds no samples"),
        (
            {"x": np.where(TABLE > 2, np.nan, TABLE)},
            r"more\.csv:\d: column '.' holds 'nan', which is no finite",
        ),
    ],
)
def test_wrong_columns_of_a_transfer_set(own_table, tmp_path, file, told):
    with pytest.raises(DataError, match=rf"dataset\.transfer_set\.path: .*{told}"):
        with_transfer(own_table, transfer_set={"path": rows_file(tmp_path / "more.csv", **file)})


def test_wrong_transfer_sets(own_table, tmp_path, folder):
    def refused(told, kind="iris", **options):
        with pytest.raises(DataError, match=rf"dataset\.transfer_set\.{told}"):
            loaded(kind, **options)

    refused("path: there is no file", transfer_set={"path": str(tmp_path / "none.npz")})
    refused("path: .* is neither a .npz nor a .csv", transfer_set={"path": str(folder / "train/a/1.png")})
    refused(r"root: .*no samples of shape \[4\]; write `path`", transfer_set={"root": str(folder)})
    np.savez(tmp_path / "other.npz", x_train=TABLE)
    refused("path: .*holds x_train; it must hold x", transfer_set={"path": str(tmp_path / "other.npz")})
    pictures = {"kind": "synthetic", "shape": [3, 6, 6], "classes": 4, "samples": 40}
    refused("root: there is no folder", **pictures, transfer_set={"root": str(tmp_path / "nowhere")})
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    refused("root: .* holds no pictures", **pictures, transfer_set={"root": str(tmp_path / "empty")})
    np.savez(tmp_path / "grey.npz", x=np.zeros((2, 1, 6, 6), np.uint8))
    refused(
        r"path: .*shape \[1, 6, 6\], .* \[3, 6, 6\]",
        **pictures,
        transfer_set={"path": str(tmp_path / "grey.npz")},
    )
    np.savez(tmp_path / "floats.npz", x=np.full((2, 3, 6, 6), 0.5, np.float32))
    with pytest.raises(
        DataError, match=r"dataset\.transfer_set: .* bytes and the other one of floats; save both alike"
    ):
        loaded(**pictures, transfer_set={"path": str(tmp_path / "floats.npz")})
    for wrong in ({}, {"root": "a", "path": "b.npz"}):
        with pytest.raises(ValidationError, match="write `root: FOLDER` of pictures, or `path: FILE`"):
            make("iris", transfer_set=wrong)


def test_the_place_of_a_wrong_transfer_set_is_told():
    text = "dataset: {kind: iris, transfer_set: {path: none.csv}}\nteacher: {model: {kind: mlp}}\n"
    with pytest.raises(ConfigError, match=r":1:44: dataset\.transfer_set\.path: there is no file none\.csv"):
        assembly.open_dataset(checked(text + "student: {model: {kind: mlp}}\n"))


def test_pictures_of_a_transfer_folder_take_the_form_of_the_set(folder):
    """They lie anywhere in it, and what their folders are called says nothing."""
    for shape in ([3, 6, 5], [1, 6, 5]):
        options = {"kind": "synthetic", "shape": shape, "classes": 4, "samples": 40, "test_samples": 8}
        dataset = loaded(**options, transfer_set={"root": str(folder)})
        mean, std = dataset._inputs[VIEW].normaliser
        views = torch.cat([b.views[VIEW] for b in dataset.split("train", given=True)])[40:]
        shades = (views * std + mean) * 255
        expected = [0, 40, *range(0, 161, 40), 5, 35, *range(5, 126, 30)]
        assert sorted(shades.mean((1, 2, 3)).round().int().tolist()) == sorted(expected)
        assert dataset.spec.shapes[VIEW] == tuple(shape) == views.shape[1:]


@pytest.mark.parametrize("augmentation", ["none", COPIES])
def test_all_ways_to_keep_a_transfer_folder_give_the_same_bits(folder, monkeypatch, tmp_path, augmentation):
    more = tmp_path / "more" / "deep"
    more.mkdir(parents=True)
    for i in range(6):
        Image.new("RGB", (9, 5 + i), (i, 20 * i, 255 - i)).save(more / f"{i}.png")
    options = {"root": str(folder), "size": [6, 5], "augmentation": augmentation}
    options |= {"transfer_set": {"root": str(tmp_path / "more")}}
    sets = {way: by_way(way, monkeypatch, tmp_path, **options)[0] for way in WAYS}
    known = sets["memory"].train_hash(), sets["memory"].train_hash(given=True)
    for way, dataset in sets.items():
        assert len(dataset.labels("train", True)) == 16
        demand_batches_of_copies(dataset, epochs=2)
        for draw in (Draw(1, 3), Draw(1, 4, labels="all", purpose="teacher")):
            assert all_same(dataset.batches(draw, 1, first=1), sets["memory"].batches(draw, 1, first=1))
        assert all_same(dataset.split("train", 3, given=True), sets["memory"].split("train", 3, given=True))
        hashes = dataset.train_hash(), dataset.train_hash(given=True)
        assert hashes[0] != hashes[1]
        assert way == "stream" or augmentation == "none" or hashes == known


@given(rows=st.lists(st.integers(0, 11), min_size=1, max_size=30), size=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_joined_sources_are_one(rows, size):
    x = np.arange(24, dtype=np.float32).reshape(12, 2)
    joined = sources.Joined(*(sources.Stored(part.copy(), CPU) for part in (x[:5], x[5:6], x[6:])))
    found = list(joined.gather(torch.tensor(rows), size))
    assert [len(part) for part in found] == [len(part) for part in torch.tensor(rows).split(size)]
    assert torch.cat(found).equal(torch.from_numpy(x)[rows]) and len(joined) == 12


def test_test_samples_in_a_transfer_set_are_counted(own_table, tmp_path, folder):
    def shared(kind, options):
        return loaded(kind, **options).shared_by_transfer_set

    x = np.loadtxt(own_table["path"], delimiter=",", skiprows=1)[:, :4]
    plain = with_transfer(own_table)
    mean, scale = plain._inputs[VIEW]._standard
    tested = torch.cat([b.views[VIEW] for b in plain.split("test")]).numpy()
    of_test = [row for row in x if (((row - mean) * scale).astype(np.float32) == tested).all(axis=1).any()]
    file = rows_file(tmp_path / "more.csv", np.concatenate([TABLE, of_test[:4]]))
    assert shared("arrays", own_table | {"transfer_set": {"path": file}})["test"] == 4
    none = shared("arrays", own_table | {"transfer_set": {"path": rows_file(tmp_path / "more.csv")}})
    assert none and not any(none.values())
    options = {"root": str(folder), "size": 6, "transfer_set": {"root": str(folder / "test")}}
    assert shared("image-folder", options)["test"] == 4


def test_what_a_transfer_set_should_not_hold_is_told_in_the_table_too(tmp_path):
    x, y = pool()
    np.savez(tmp_path / "set.npz", x=x, y=y)
    np.savez(tmp_path / "more.npz", x=x)
    text = POOL.replace("ROOT", str(tmp_path))
    ears = Ears()
    experiment(text, tmp_path / "runs", "dataset.leave_out=[2]", console=ears).run()
    heard = " ".join(ears.heard)
    for what in (
        "18 of 60 samples of the transfer set are test samples",
        "of a class that is left out",
        "validation",
    ):
        assert what in heard
    [said] = [s for s in comparison(tmp_path / "runs", "pool")["remarks"] if "transfer set" in s]
    assert said.startswith("18 samples of a transfer set are test samples, too")


def test_a_cross_fitted_teacher_says_of_its_own_samples_in_a_transfer_set_what_its_fold_says(tmp_path):
    x, y = pool()
    np.savez(tmp_path / "set.npz", x=x, y=y)
    dataset = loaded(
        "arrays", path=str(tmp_path / "set.npz"), labels_per_class=5, transfer_set=transfer_of(tmp_path, x)
    )
    places, samples = dataset.places(given=True), dataset.transfer_samples
    own = np.concatenate([b.views[VIEW].numpy() for b in dataset.split("train")])
    seen = np.concatenate([b.views[VIEW].numpy() for b in dataset.split("train", given=True)])
    assert samples == 60 and (places[-samples:] >= 0).sum() == len(own)
    assert np.array_equal(seen[places >= 0], own[places[places >= 0]])


def test_rules_of_a_student_are_supported_by_the_samples_that_it_saw(tmp_path):
    x, y = pool()
    np.savez(tmp_path / "set.npz", x=x, y=y)
    np.savez(tmp_path / "more.npz", x=x + 1)
    text = POOL.replace("ROOT", str(tmp_path)).replace("{kind: mlp, hidden: [4]}", "{kind: tree, depth: 2}")
    run(text, tmp_path / "runs", "dataset.leave_out=[2]")
    found = results(tmp_path / "runs")
    assert found["students/student/kd/seed-0"].manifest["protocol"]["train_samples"] == 23
    assert found["students/student/kd/seed-0"].rules()["samples"] == 23


def test_a_control_of_matched_cost_counts_the_samples_that_it_sees(tmp_path):
    x, y = pool()
    np.savez(tmp_path / "set.npz", x=x, y=y)
    np.savez(tmp_path / "more.npz", x=x + 1)
    config = checked(POOL.replace("ROOT", str(tmp_path)), "training.batch_size=64", "controls=[matched-cost]")
    epochs = {one.method: one.training.epochs for one in plan(config, assembly.open_dataset(config)).runs}
    own = 35  # of 60 samples 18 are tested, and 7 validate
    assert epochs["kd"] == 1 and epochs["matched-cost"] == -(-64 * 4 // (own * 3))


def test_a_transfer_set_of_a_named_input_is_of_that_name(tmp_path):
    x, y = pool()
    np.savez(tmp_path / "set.npz", sensor=x, y=y)
    np.savez(tmp_path / "more.npz", sensor=x[:4] + 1)
    options = {"path": str(tmp_path / "set.npz"), "inputs": ["sensor"]}
    dataset = loaded("arrays", **options, transfer_set={"path": str(tmp_path / "more.npz")})
    assert dataset.transfer_samples == 4 and dataset.spec.default_view == "sensor"
    with pytest.raises(DataError, match=r"^dataset\.transfer_set\.path: .*holds x; it must hold sensor"):
        make("arrays", **options, transfer_set=transfer_of(tmp_path, x))


def test_two_columns_of_one_name_are_told_apart_in_a_transfer_set_too(tmp_path):
    for name, header in (("set", "a,b,b,label"), ("more", "b,a,b,label")):
        lines = [f"{n},{10 + n},{100 + n * n},{n % 2}" for n in range(12)]
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *lines]))
    dataset = loaded(
        "arrays", path=str(tmp_path / "set.csv"), transfer_set={"path": str(tmp_path / "more.csv")}
    )
    seen = np.concatenate([b.views[VIEW].numpy() for b in dataset.split("train", given=True)])[-12:]
    mean, scale = dataset._inputs[VIEW]._standard
    raw = np.array([[10 + n, n, 100 + n * n] for n in range(12)])
    np.testing.assert_allclose(seen, (raw - mean) * scale, atol=1e-5)


def test_a_broken_picture_of_a_transfer_set_has_its_key(folder, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"^dataset\.transfer_set\.root: 1 of 1 pictures cannot be read"):
        loaded("image-folder", root=str(folder), size=6, transfer_set={"root": str(tmp_path / "bad")})


POOL = """
name: pool
dataset: {kind: arrays, path: ROOT/set.npz, validation: 0.15, transfer_set: {path: ROOT/more.npz}}
seeds: [0]
training: {epochs: 1, batch_size: 8}
teacher: {model: {kind: mlp, hidden: [4]}}
student: {model: {kind: mlp, hidden: [4]}}
methods: [kd]
"""


def pool():
    """Sixty rows of three classes, no two of them alike."""
    x = np.random.default_rng(5).normal(size=(60, 3))
    return x, np.arange(60) % 3


def transfer_of(folder, x):
    np.savez(folder / "more.npz", x=x)
    return {"path": str(folder / "more.npz")}


def test_a_transfer_set_is_known_by_what_it_holds(own_table, tmp_path, folder):
    def identity(**written):
        return make("arrays", **own_table, transfer_set=written).identity()

    one = identity(path=rows_file(tmp_path / "one.csv"))
    assert identity(path=rows_file(tmp_path / "other.csv")) == one
    assert identity(path=rows_file(tmp_path / "other.csv", TABLE + 1)) != one
    options = {"kind": "synthetic", "shape": [1, 6, 5], "transfer_set": {"root": str(folder)}}
    before = make(**options).identity()
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert make(**options | {"transfer_set": {"root": str(moved)}}).identity() == before
    Image.new("L", (3, 3), 7).save(folder / "further.png")
    assert make(**options).identity() != before


def test_a_teacher_serves_students_with_and_without_a_transfer_set(tmp_path):
    rows_file(tmp_path / "more.csv", names=loaded("iris").feature_names)
    text = (
        "dataset: {kind: iris}\nteachers: {big: {model: {kind: mlp}}, small: {model: {kind: mlp}, from: big, method: "
        "kd}}\nstudent: {model: {kind: mlp}}\nmethods: [{use: kd, teacher: small}]\n"
    )

    def planned(*overrides):
        config = checked(text, *overrides)
        return plan(config, assembly.open_dataset(config)).runs

    shared = planned("dataset.labels_per_class=3", "training.labelled_share=0.5")
    for before, after in zip(planned("dataset.labels_per_class=3"), shared, strict=True):
        taught = after.role == "student" and bool(after.teachers)
        assert (before.fingerprint == after.fingerprint) != taught, before.title
        assert after.draw.labelled_share == (0.5 if taught else None)
        assert "labelled_share" not in before.inputs["training"]
    more = f"dataset.transfer_set={{path: {tmp_path / 'more.csv'}}}"
    for before, after in zip(planned(), planned(more), strict=True):
        assert (before.fingerprint == after.fingerprint) == (before.role == "teacher"), before.title
        assert "transfer_set" not in before.inputs["dataset"]
        assert after.labelled_only == (after.role == "student" and not after.teachers)
