"""What a model sees of a view: ``resize`` and ``normalization`` change its input, and nothing else."""

import json
import shutil

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as T

from kdrun import assembly, models, rehearsal
from kdrun.errors import ConfigError
from kdrun.models import Frozen, Prepared, macs, recipe
from kdrun.models.lens import IMAGENET, Lens
from kdrun.stack import likeness, teams, why_not
from support import (
    Ears,
    checked,
    comparison,
    experiment,
    outcome,
    problems,
    results,
    run,
    students,
)

CPU = torch.device("cpu")
TEXT = """
name: lens
device: cpu
dataset: {kind: arrays, path: FILE, validation: 0.2}
seeds: [0]
training: {epochs: 2, batch_size: 32, optimizer: {kind: adamw, lr: 0.01}}
teacher: {model: {kind: cnn, width: 3, depth: 2, hidden: 8}}
student: {model: {kind: mlp, hidden: [8]}}
controls: none
methods: [kd]
"""
OWN = {"mean": [0.3, 0.4, 0.5], "std": [0.2, 0.25, 0.3]}
LENS = ("teacher.resize=[13, 11]", f"teacher.normalization={json.dumps(OWN)}")


def samples(kind, count):
    """Pictures of bytes, grey or in colour, floats, or rows of a table, in three classes."""
    draw, labels = np.random.default_rng(count), np.arange(count) % 3
    if kind == "table":
        return draw.normal(labels[:, None] + np.array([0, 500, 0]), [1, 20, 0.1]), labels
    channels = 1 if kind == "grey" else 3
    pictures = draw.integers(0, 120, (count, channels, 8, 9)) + 60 * labels[:, None, None, None]
    return (pictures / 240).astype(np.float32) if kind == "floats" else pictures.astype(np.uint8), labels


@pytest.fixture
def text(tmp_path):
    """A config on a file of samples of some kind."""

    def written(kind="colour"):
        (x, y), (x_test, y_test) = samples(kind, 60), samples(kind, 24)
        np.savez(tmp_path / f"{kind}.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
        return TEXT.replace("FILE", str(tmp_path / f"{kind}.npz"))

    return written


def teacher_of(text, *options):
    """The teacher at its first step, frozen, its loaded data set, and its plan's run."""
    one = experiment(text, "runs", *options)
    one.dataset.load(CPU)
    [run_] = [run_ for run_ in one.plan.runs if run_.name == "teacher"]
    network = assembly.fresh_network(run_, one.dataset.spec, CPU)
    return Frozen(network.model, network.view, CPU), one.dataset, run_


def raw(kind):
    """The test samples as they were measured."""
    x, _ = samples(kind, 24)
    return torch.from_numpy(x / 255 if x.dtype == np.uint8 else x).double()


def as_measured(x, units):
    """Inputs (B, …) of a batch on the scale of what was measured."""
    offset, scale = (torch.from_numpy(figures) for figures in (units.offset, units.scale))
    return (x.flatten(1).double() / scale + offset).view(x.shape)


def bare(run_, shape, classes=3):
    """The run's model without a lens, for inputs of the shape that it sees."""
    plain = assembly.derive(run_.seed, run_.role, "weights")
    return models.build(run_.model, shape, classes, plain).eval()


def first_of(dataset):
    return next(iter(dataset.split("test")))


# --------------------------------------------------------------------------------- nothing but the input


@pytest.mark.parametrize(
    "kind, own",
    [("colour", OWN), ("floats", OWN), ("grey", {"mean": [0.2], "std": [0.4]}), ("grey", OWN)],
)
@pytest.mark.parametrize("size", [None, [13, 11], [4, 4]])
def test_a_network_says_of_batches_what_it_says_of_pictures_made_its_own_way(text, kind, own, size):
    options = [f"teacher.normalization={json.dumps(own)}", f"teacher.resize={json.dumps(size)}"]
    frozen, dataset, run_ = teacher_of(text(kind), *options)
    x = raw(kind)
    x = (
        x.expand(-1, len(own["mean"]), -1, -1)
        if size is None
        else T.resize(x, size).expand(-1, len(own["mean"]), -1, -1)
    )
    seen = T.normalize(x, **own).float()
    model = bare(run_, seen.shape[1:])
    torch.testing.assert_close(frozen(first_of(dataset)).logits, model(seen), rtol=1e-4, atol=1e-5)
    state = frozen.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert state.keys() == model.state_dict().keys()


def test_columns_of_a_table_are_translated(text):
    own = {"mean": [0.5, 480.0, 1.0], "std": [1.0, 10.0, 0.5]}
    mlp = "teacher.model={kind: mlp, hidden: [6]}"
    frozen, dataset, run_ = teacher_of(text("table"), mlp, f"teacher.normalization={json.dumps(own)}")
    seen = ((raw("table") - torch.tensor(own["mean"])) / torch.tensor(own["std"])).float()
    torch.testing.assert_close(frozen(first_of(dataset)).logits, bare(run_, (3,))(seen), rtol=1e-4, atol=1e-4)


def test_a_column_that_never_varied_is_seen_as_it_was(tmp_path, text):
    x = np.tile([1.0, 2.0, 7.0], (12, 1))
    x[:, :2] += np.random.default_rng(0).normal(size=(12, 2))
    np.savez(tmp_path / "still.npz", x=x, y=np.arange(12) % 3)
    still = text("table").replace("table.npz", "still.npz").replace(", validation: 0.2", "")
    own = "teacher.normalization={mean: [0, 0, 5], std: [1, 1, 4]}"
    frozen, dataset, _ = teacher_of(still, "teacher.model={kind: mlp, hidden: [6]}", own)
    seen = frozen.model.lens(first_of(dataset).views["input"])
    assert torch.allclose(seen[:, 2], torch.tensor(0.5)) and seen[:, 0].std() > 0


@pytest.mark.parametrize("view, shape", [("small", (3, 4, 4)), ("grey", (1, 8, 9)), ("corner", (3, 2, 3))])
def test_any_view_can_be_looked_at_through_a_lens(text, view, shape):
    views = "dataset.views={small: {size: 4}, grey: {grey: true}, corner: {crop: [2, 3], at: [0, 1]}}"
    own = {key: figures[: shape[0]] for key, figures in OWN.items()}
    frozen, dataset, _ = teacher_of(
        text(),
        views,
        f"teacher.view={view}",
        f"teacher.normalization={json.dumps(own)}",
        "student.view=small",
    )
    units, x = dataset.units(view), first_of(dataset).views[view]
    measured = as_measured(x, units)
    torch.testing.assert_close(
        frozen.model.lens(x), T.normalize(measured, **own).float(), rtol=1e-4, atol=1e-5
    )


def test_augmented_pictures_and_the_strong_view_are_seen_through_it_too(text):
    frozen, dataset, run_ = teacher_of(
        text(), "dataset.augmentation=strong", "dataset.strong_view=strong", *LENS
    )
    frozen.tap([], ["strong"])
    batch = next(dataset.batches(run_.draw, 0))
    said, model = frozen(batch), bare(run_, (3, 13, 11))
    for view, logits in (("input", said.logits), ("strong", said.views["strong"].logits)):
        units = dataset.units(view)
        seen = T.normalize(T.resize(as_measured(batch.views[view], units), [13, 11]), **OWN).float()
        torch.testing.assert_close(logits, model(seen), rtol=1e-4, atol=1e-5)


def test_a_lens_that_changes_nothing_changes_no_bit(text, tmp_path):
    """Of the teacher, nor of what learns from it, nor of what stands beside it."""
    _, dataset, _ = teacher_of(text())
    units = dataset.units("input")
    own = {"mean": units.offset[::72].tolist(), "std": (1 / units.scale[::72]).tolist()}
    for name, more in {
        "plain": [],
        "lens": [f"teacher.normalization={json.dumps(own)}", "teacher.resize=[8, 9]"],
    }.items():
        run(text(), tmp_path / name, *more)
    assert outcome(tmp_path / "plain") == outcome(tmp_path / "lens")


def test_a_teachers_lens_changes_no_bit_of_who_does_not_listen_to_it(text, tmp_path):
    for name, more in {"plain": [], "lens": LENS}.items():
        run(text(), tmp_path / name, *more)
    alone, kd = (
        [outcome(tmp_path / name)[f"students/student/{method}/seed-0"]["files"] for name in ("plain", "lens")]
        for method in ("alone", "kd")
    )
    assert alone[0] == alone[1] and kd[0] != kd[1]


# ----------------------------------------------------------------------------------------- everywhere


def test_looked_up_and_live_teachers_say_the_same(text, tmp_path):
    for name in ("true", "false"):
        run(text(), tmp_path / name, *LENS, f"training.cache={name}")
    said = [
        results(tmp_path / name)["students/student/kd/seed-0"].predictions()["logits"]
        for name in ("true", "false")
    ]
    np.testing.assert_allclose(*said, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_prepared_teacher_sees_through_it(text, bf16):
    frozen, dataset, _ = teacher_of(text(), *LENS)
    batch = first_of(dataset)
    frozen.model.train()(batch.views["input"])
    fast = Prepared(frozen, recipe(frozen, ["hidden"], bf16, batch), ["hidden"])
    plain, said = frozen(batch), fast(batch)
    assert (said.logits - plain.logits).norm() <= (0.05 if bf16 else 1e-5) * plain.logits.norm()


def test_macs_layers_and_costs_are_of_the_size_that_the_model_sees(text, tmp_path):
    planned = run(text(), tmp_path, *LENS)
    result = results(tmp_path)["teachers/teacher/seed-0"]
    run_ = planned.runs[0]
    assert result.manifest["cost"]["macs"] == macs(bare(run_, (3, 13, 11)), (3, 13, 11))
    tables = rehearsal.layer_tables(planned, experiment(text(), tmp_path).dataset.spec)
    assert tables["teacher", "teacher"].shapes["body.0"] == (3, 6, 5)
    row = next(row for row in comparison(tmp_path, "lens")["rows"] if row["role"] == "teacher")
    assert row["macs"] == result.manifest["cost"]["macs"] and row["peak_memory_bytes"] > 4 * 3 * 13 * 11


def test_a_finished_run_and_its_file_bring_the_lens_along(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(text(), "runs", *LENS, roles=["teacher"])
    first = results("runs")["teachers/teacher/seed-0"]
    folder = first.folder
    plain = (
        text()
        .replace("name: lens", "name: again")
        .replace("{kind: cnn, width: 3, depth: 2, hidden: 8}", "MODEL")
    )
    by_run = plain.replace("teacher: {model: MODEL}", f"teacher: {{run: {folder}}}")
    model = "{kind: cnn, width: 3, depth: 2, hidden: 8}"
    by_file = plain.replace("MODEL", f"{model}, weights: {folder}/weights.safetensors")
    for name, config, more in (("by-run", by_run, ()), ("by-file", by_file, LENS)):
        run(config, name, *more, roles=["teacher"])
        found = results(name)["teachers/teacher/seed-0"].manifest["files"]
        assert found["predictions.npz"] == first.manifest["files"]["predictions.npz"]
    same = [experiment(config, "x", *more).plan.runs[0] for config, more in ((by_run, ()), (by_file, LENS))]
    assert same[0].fingerprint == same[1].fingerprint


def test_members_of_an_ensemble_may_see_other_sizes(text, tmp_path):
    teachers = {
        "teacher": {"model": {"kind": "cnn", "width": 3}, "resize": [13, 11], "normalization": OWN},
        "other": {"model": {"kind": "cnn", "width": 3}, "resize": 6},
        "both": {"model": "ensemble", "from": ["teacher", "other"]},
    }
    config = text().replace(
        "teacher: {model: {kind: cnn, width: 3, depth: 2, hidden: 8}}", f"teachers: {teachers}"
    )
    run(config.replace("[kd]", "[{use: kd, teacher: both}]"), tmp_path)
    found = results(tmp_path)
    one, other, both = (found[f"teachers/{name}/seed-0"] for name in teachers)
    assert both.manifest["cost"]["macs"] == sum(member.manifest["cost"]["macs"] for member in (one, other))
    shares = [torch.from_numpy(each.predictions()["logits"]).softmax(1) for each in (one, other, both)]
    torch.testing.assert_close(shares[2], (shares[0] + shares[1]) / 2, rtol=1e-3, atol=1e-4)


METHODS = "methods=[kd, mean-teacher, {use: mutual, set: {mutual.peers: 1}}, hint, simkd]"


def test_all_that_a_student_runs_beside_itself_sees_through_its_lens(text, tmp_path):
    """Peers, averages and what is exported; its stored predictions are those of its stored weights."""
    small = "student.model=resnet8", "student.resize=8", "student.normalization=imagenet"
    options = ["teacher.model=resnet8", *small, METHODS, "training.epochs=1"]
    planned = run(text(), tmp_path, *options)
    one = experiment(text(), tmp_path, *options)
    one.dataset.load(CPU)
    for run_ in planned.runs:
        result = results(tmp_path)[run_.folder]
        frozen = assembly.frozen(run_, result, one.dataset.spec, CPU)
        logits = torch.cat([frozen(batch).logits for batch in one.dataset.split("test")])
        torch.testing.assert_close(logits, torch.from_numpy(result.predictions()["logits"]))


def test_students_of_one_lens_are_stacked_and_of_several_are_not(text, tmp_path):
    options = ["student.resize=6", f"student.normalization={json.dumps(OWN)}", "methods=[kd, dkd]"]
    for name in ("true", "false"):
        run(text(), tmp_path / name, *options, f"training.stack={name}")
    for place, result in results(tmp_path / "true").items():
        logits = [
            found[place].predictions()["logits"] for found in (results(tmp_path / "false"), {place: result})
        ]
        np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-4)
    made, *_ = students(text(), *options, "training.stack=true")
    assert why_not(made["kd"]) is None and len(teams([*made.values()])) == 1
    other, *_ = students(text(), "student.resize=6", "methods=[kd, dkd]", "training.stack=true")
    assert likeness(made["kd"]) != likeness(other["kd"])


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_a_compiled_student_sees_through_it(text, monkeypatch):
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compiled(function, backend="aot_eager"))
    told = []
    for compiles in ("true", "false"):
        options = [
            "student.resize=6",
            f"student.normalization={json.dumps(OWN)}",
            f"training.compile={compiles}",
        ]
        made, _, dataset, _ = students(text(), *options)
        batch = next(dataset.batches(made["alone"].draw, 0))
        made["alone"].step(batch, {})
        told.append(made["alone"].rehearsed()["ce"])
    assert told[0] == pytest.approx(told[1], rel=1e-4)


def test_bf16_trains_through_it(text, tmp_path):
    run(text(), tmp_path, *LENS, "training.precision=bf16", "student.resize=6")
    assert {result.manifest["resolved"]["precision"] for result in results(tmp_path).values()} == {"bf16"}


def test_who_asks_for_none_keeps_his_fingerprint(text):
    plain, lensed = (experiment(text(), "runs", *more).plan.runs for more in ((), LENS))
    assert not {"resize", "normalization"} & plain[0].inputs.keys()
    assert plain[1].fingerprint == lensed[1].fingerprint and plain[0].fingerprint != lensed[0].fingerprint
    written = f"teacher.normalization={IMAGENET.model_dump_json()}"
    named, same = (
        experiment(text(), "runs", one).plan.runs for one in ("teacher.normalization=imagenet", written)
    )
    assert named[0].fingerprint == same[0].fingerprint
    square, sides = (experiment(text(), "runs", f"teacher.resize={one}").plan.runs for one in ("6", "[6, 6]"))
    assert square[0].fingerprint == sides[0].fingerprint


# --------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    "kind, options, told",
    [
        ("table", ["teacher={model: mlp, resize: 4}"], "rows of 3 numbers, and `resize` is for pictures"),
        (
            "table",
            ["teacher={model: mlp, normalization: {mean: [0, 1], std: [1, 1]}}"],
            "teacher.normalization: 2 means and stds for inputs of 3 columns; write one for each, or one for all",
        ),
        (
            "colour",
            ["teacher.normalization={mean: [0, 1], std: [1, 1]}"],
            "2 means and stds for inputs of 3 channels",
        ),
        ("colour", ["student.resize=2", "student.model=vgg8"], "student.model.kind: 'vgg8' halves its input"),
    ],
)
def test_what_cannot_be_seen_is_told(text, kind, options, told):
    one = experiment(text(kind), "runs", *options)
    with pytest.raises(ConfigError) as caught:
        rehearsal.rehearse(one.plan, one.dataset, CPU)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "options, told",
    [
        (
            ["teacher.normalization=imagnet"],
            "no normalisation is called 'imagnet'; write imagenet, or {mean: [...]",
        ),
        (["teacher.normalization={mean: [0.5], std: [0]}"], "normalization.std"),
        (["teacher.normalization={mean: [0.5, 0.5], std: [1]}"], "2 means and 1 stds; write as many of each"),
        (["teacher.resize=[3, 4, 5]"], "teacher.resize"),
        (
            [
                "dataset.inputs=[x, sensor]",
                "teacher.normalization=imagenet",
                "methods=[{losses: [{kind: mlkd, view: sensor}], name: own}]",
            ],
            "each input is normalised by figures of its own, and `normalization` translates those of one; look at",
        ),
        (
            ["student={model: tree, resize: 4, normalization: imagenet}"],
            "'tree' is fitted at once to the numbers of the data set, so `resize` says nothing; remove it",
        ),
        (
            ["teachers={a: {model: mlp}, b: {model: cnn}, c: {model: ensemble, from: [a, b], resize: 4}}"],
            "'ensemble' is made of finished teachers, so `resize` says nothing; remove it",
        ),
    ],
)
def test_what_says_nothing_is_told(text, options, told):
    config = text().replace("teacher: {model: {kind: cnn, width: 3, depth: 2, hidden: 8}}\n", "")
    alone = text() if "teachers" not in options[0] else config.replace("[kd]", "[{use: kd, teacher: c}]")
    assert told in problems(alone, *options)


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_published_weights_that_know_other_figures_are_told_with_what_to_write(text, tmp_path, kind):
    if kind == "timm":
        pytest.importorskip("timm")
    model = f"teacher.model={{kind: {kind}, name: resnet18, pretrained: true}}"
    for more, told in (([], True), (["teacher.normalization=imagenet"], False)):
        one, ears = experiment(text(), tmp_path, model, *more), Ears()
        assembly.load(one.plan, one.dataset, CPU, one.store.shelf, ears)
        said = [line for line in ears.heard if "published weights" in line]
        assert len(said) == told
        assert all(
            "the teacher 'teacher'" in line and "write `normalization: imagenet`" in line for line in said
        )


def test_nothing_is_said_where_the_data_set_is_normalised_so(text):
    assert not IMAGENET.differs((3, 1, 1), _Figures(IMAGENET))
    assert not IMAGENET.differs((4, 1, 1), _Figures(IMAGENET)), "of which nobody can tell"
    assert (
        checked(text(), "teacher.normalization=imagenet").experiment.teachers["teacher"].normalization
        == IMAGENET
    )


class _Figures:
    def __init__(self, normalization):
        self.offset, self.scale = np.array(normalization.mean), 1 / np.array(normalization.std)


def test_a_lens_is_told_apart_by_what_is_asked_of_it():
    factors = torch.ones(1), torch.zeros(1)
    assert Lens((2, 2)) == Lens((2, 2), factors=factors) and hash(Lens((2, 2))) == hash(
        Lens((2, 2), factors=factors)
    )
    assert Lens((2, 2)) != Lens((2, 2), (0.5,), (0.5,))
