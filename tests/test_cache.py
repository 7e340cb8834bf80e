"""What answers in a teacher's place: asked once where every pass shows it the same views, and live elsewhere."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdrun import assembly, cache, models
from kdrun.cache import LookedUp
from kdrun.errors import StoreError, TrainingError
from kdrun.store import Kept, Shelf, Store, read_json, write_json
from kdrun.store.files import digest
from support import Ears, break_teachers, experiment, outcome, results, run

TEXT = """
name: cached
device: cpu
dataset: {kind: synthetic, shape: [3, 8, 8], samples: 70, test_samples: 32, classes: 4}
seeds: [0]
training: {epochs: 3, batch_size: 16, optimizer: {kind: sgd, lr: 0.02}}
teacher: {model: {kind: cnn, width: 4, hidden: 12}}
student: {model: {kind: cnn, width: 2, hidden: 8}}
controls: none
methods: METHODS
"""
AUGMENTED = "dataset.augmentation={copies: 2, parts: strong}"


def text(methods="[kd]"):
    return TEXT.replace("METHODS", methods)


@pytest.fixture
def asked(monkeypatch):
    """The batch of every pass of a prepared teacher through real samples, while students are trained."""
    batches = []
    original = models.Prepared.__call__

    def noted(self, batch):
        batches.append(batch)
        return original(self, batch)

    monkeypatch.setattr(models.Prepared, "__call__", noted)
    return batches


def resolved(folder, method="kd"):
    return results(folder)[f"students/student/{method}/seed-0"].manifest["resolved"]


def logits(folder, method="kd"):
    return results(folder)[f"students/student/{method}/seed-0"].predictions()["logits"]


@pytest.mark.parametrize("augmentation", ["none", "{copies: 2, parts: strong}"])
def test_looking_up_equals_asking(tmp_path, augmentation):
    key = f"dataset.augmentation={augmentation}"
    run(text("[kd, rkd, dkd]"), tmp_path / "looked-up", key)
    run(text("[kd, rkd, dkd]"), tmp_path / "live", key, "training.cache=false")
    for method in ("kd", "rkd", "dkd"):
        assert resolved(tmp_path / "looked-up", method)["cache"] == "looked up"
        assert resolved(tmp_path / "live", method)["cache"] == "live"
        a, b = (logits(tmp_path / folder, method) for folder in ("looked-up", "live"))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert not (tmp_path / "live" / "cache").exists()


@pytest.mark.parametrize("copies", [1, 2])
def test_a_teacher_is_asked_once_for_all_seeds_methods_and_commands(tmp_path, asked, copies):
    key = f"dataset.augmentation={{copies: {copies}, parts: standard}}"
    run(text("[kd, dkd]"), tmp_path, key, "seeds=[0, 1]")
    samples = [batch for batch in asked if len(batch) != 70]
    assert sum(map(len, samples)) == 0, "only whole passes: the samples on which it is tried, and the copies"
    assert {batch.copy for batch in asked} == set(range(copies))
    asked.clear()
    run(text("[kd, dkd, nkd]"), tmp_path, key, "seeds=[0, 1, 2]")
    assert not asked


def test_tables_are_shared_by_configs_that_differ_in_their_students_only(tmp_path, asked):
    run(text("[kd]"), tmp_path)
    asked.clear()
    run(text("[kd]"), tmp_path, "name=other", "student.model.width=3", "dataset.labels_per_class=4")
    assert not asked


@pytest.mark.parametrize("augmentation", ["none", "{copies: 2, parts: strong}"])
def test_tables_of_fewer_samples_are_others_and_equal_asking(tmp_path, asked, augmentation):
    options = f"dataset.augmentation={augmentation}", "dataset.leave_out=[2]"
    run(text("[kd]"), tmp_path / "looked-up", options[0])
    asked.clear()
    run(text("[kd]"), tmp_path / "looked-up", "name=fewer", *options)
    assert asked
    run(text("[kd]"), tmp_path / "live", *options, "training.cache=false")
    store = Store(tmp_path / "looked-up", print)
    of_fewer = store.result(tmp_path / "looked-up" / "fewer" / "students/student/kd/seed-0")
    assert of_fewer.manifest["resolved"]["cache"] == "looked up"
    a, b = of_fewer.predictions()["logits"], logits(tmp_path / "live")
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("augmentation", ["none", "{copies: 2, parts: strong}"])
def test_tables_cover_the_transfer_set_and_equal_asking(tmp_path, asked, augmentation):
    np.savez(
        tmp_path / "more.npz", x=np.random.default_rng(0).integers(0, 256, (50, 3, 8, 8), dtype=np.uint8)
    )
    options = (
        f"dataset.augmentation={augmentation}",
        f"dataset.transfer_set={{path: {tmp_path / 'more.npz'}}}",
    )
    run(text("[kd, crd]"), tmp_path / "looked-up", *options)
    of_a_pass = sum(len(batch) for batch in asked if batch.copy == 1 or augmentation == "none")
    assert of_a_pass >= 120
    run(text("[kd, crd]"), tmp_path / "live", *options, "training.cache=false")
    for method in ("kd", "crd"):
        assert resolved(tmp_path / "looked-up", method)["cache"] == "looked up"
        a, b = (logits(tmp_path / folder, method) for folder in ("looked-up", "live"))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    tables = [np.load(file) for file in (tmp_path / "looked-up").glob("cache/*/logits.npy")]
    assert [len(table) for table in tables] == [120 * (1 + (augmentation != "none"))]
    assert all((table.std(axis=1) > 0).all() for table in tables), "each row was asked about"


@pytest.mark.parametrize(
    "methods, overrides",
    [
        ("[hint]", ()),
        ("[kd]", ("dataset.augmentation=standard",)),
        ("[kd]", ("training.mixup=0.3",)),
        ("[kd]", ("training.cutmix=0.3",)),
        ("[kd]", (AUGMENTED, "training.mixup=0.3")),
        ("[{use: mlkd, set: {mlkd.view: strong}}]", ("dataset.strong_view=standard",)),
    ],
    ids=["layers", "augmentation", "mixup", "cutmix", "copies-mixed", "second-view"],
)
def test_what_differs_from_pass_to_pass_is_asked_live(tmp_path, methods, overrides):
    run(text(methods), tmp_path, *overrides)
    method = "mlkd" if "mlkd" in methods else methods.strip("[]")
    assert resolved(tmp_path, method)["cache"] == "live"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("key", ["dataset.augmentation=none", AUGMENTED], ids=["plain", "copies"])
def test_company_changes_no_bits(tmp_path, key):
    run(text("[kd]"), tmp_path / "alone", key)
    run(text("[kd, hint, rkd, {name: raw, losses: [ce, RAW]}]".replace("RAW", RAW)), tmp_path / "group", key)
    assert resolved(tmp_path / "group", "hint")["cache"] == "live"
    alone, group = outcome(tmp_path / "alone"), outcome(tmp_path / "group")
    assert alone["students/student/kd/seed-0"] == group["students/student/kd/seed-0"]


RAW = "{kind: hint, teacher_layer: body.1.0, student_layer: body.1}"
"""A loss that looks at a convolution which a BatchNorm follows: its teacher cannot be folded there."""


def test_a_student_that_looks_at_a_convolution_unfolds_nothing_for_others(tmp_path):
    key = "dataset.augmentation=standard"
    run(text("[kd]"), tmp_path / "alone", key)
    run(text(f"[kd, {{name: raw, losses: [ce, {RAW}]}}]"), tmp_path / "group", key)
    alone, group = outcome(tmp_path / "alone"), outcome(tmp_path / "group")
    assert alone["students/student/kd/seed-0"] == group["students/student/kd/seed-0"]


def test_tables_that_do_not_fit_are_read_from_their_file(tmp_path, monkeypatch):
    run(text("[rkd]"), tmp_path / "memory", AUGMENTED)
    monkeypatch.setattr(cache, "room_for_data", lambda device: 0)
    run(text("[rkd]"), tmp_path / "file", AUGMENTED)
    assert outcome(tmp_path / "memory") == outcome(tmp_path / "file")


def test_a_damaged_table_is_made_anew(tmp_path, asked):
    run(text("[kd]"), tmp_path)
    (table,) = tmp_path.glob("cache/*/logits.npy")
    whole = table.read_bytes()
    table.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    asked.clear()
    run(text("[kd, dkd]"), tmp_path)
    assert asked and table.read_bytes() == whole


def forged(place, name="logits.npy", **about):
    """Put other arrays in the place of a table, with the right hashes."""
    manifest = read_json(place / "manifest.json") | about
    manifest["files"] = {name: digest((place / "logits.npy").read_bytes())}
    (place / "logits.npy").rename(place / name)
    write_json(place / "manifest.json", manifest)


FORGED = {
    "fewer-samples": lambda place: np.save(place / "logits.npy", np.zeros((69, 4), np.float32)),
    "other-classes": lambda place: np.save(place / "logits.npy", np.zeros((70, 3), np.float32)),
    "a-vector": lambda place: np.save(place / "logits.npy", np.zeros(70, np.float32)),
    "other-numbers": lambda place: np.save(place / "logits.npy", np.zeros((70, 4), np.int64)),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_a_table_that_kdrun_did_not_make_is_refused(tmp_path, forge):
    run(text("[kd]"), tmp_path)
    (place,) = tmp_path.glob("cache/*/")
    forge(place)
    forged(place)
    with pytest.raises(StoreError, match=r"manifest.json: is not what kdrun writes: no logits of 70 samples"):
        run(text("[kd, dkd]"), tmp_path)


@pytest.mark.parametrize("about", [{"arithmetic": "fp64"}, {"arithmetic": None}, {"arithmetic": ["fp32"]}])
def test_a_table_of_unknown_arithmetic_is_refused(tmp_path, about):
    run(text("[kd]"), tmp_path)
    forged(next(tmp_path.glob("cache/*/")), **about)
    with pytest.raises(StoreError, match=r"manifest.json: is not what kdrun writes"):
        run(text("[kd, dkd]"), tmp_path)


def test_a_table_of_another_name_is_refused(tmp_path):
    run(text("[kd]"), tmp_path)
    forged(next(tmp_path.glob("cache/*/")), name="other.npy")
    with pytest.raises(StoreError, match=r"no logits of 70 samples"):
        run(text("[kd, dkd]"), tmp_path)


def test_other_weights_of_a_teacher_have_other_tables(tmp_path, monkeypatch):
    """One that is trained again by other threads, or on a GPU, has the same inputs and not the same weights."""
    run(text("[kd]"), tmp_path)
    original = assembly.frozen

    def trained_again(*arguments):
        teacher = original(*arguments)
        teacher.model.classifier.bias.data[0] += 1e-3
        return teacher

    monkeypatch.setattr(assembly, "frozen", trained_again)
    run(text("[kd]"), tmp_path, "seeds=[1]")
    tables = [np.load(file) for file in tmp_path.glob("cache/*/logits.npy")]
    assert len(tables) == 2 and 9e-4 < np.abs(tables[0] - tables[1])[:, 0].min() < 1.1e-3


def test_other_pictures_of_the_same_names_and_sizes_have_other_tables(tmp_path):
    config = text("[kd]").replace(
        "{kind: synthetic, shape: [3, 8, 8], samples: 70, test_samples: 32, classes: 4}",
        f"{{kind: image-folder, root: {tmp_path / 'pictures'}, size: 8, augmentation: none}}",
    )
    draw = np.random.default_rng(0)
    for number in range(2):
        for name in ("a", "b"):
            (tmp_path / "pictures" / name).mkdir(exist_ok=True, parents=True)
            for place in range(20):
                pixels = draw.integers(256, size=(8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{place}.bmp")
        run(config, tmp_path / "runs", f"seeds=[{number}]")
    assert len(list(tmp_path.glob("runs/cache/*/logits.npy"))) == 2


def test_a_table_that_somebody_deletes_at_once_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(Shelf, "find", lambda self, key: None)
    with pytest.raises(StoreError, match=r"somebody deletes there what was just made.*cache: false"):
        run(text("[kd]"), tmp_path)


def test_no_room_is_one_message(tmp_path, monkeypatch):
    def full(self, key, forms, about):
        raise StoreError("cache/x: needs 1,120 bytes, and 40 are free")

    monkeypatch.setattr(Shelf, "make", full)
    with pytest.raises(StoreError, match=r"needs 1,120 bytes, and 40 are free.*training.cache: false"):
        run(text("[kd]"), tmp_path)


def test_a_sick_teacher_leaves_no_table(tmp_path, monkeypatch):
    break_teachers(monkeypatch)
    with pytest.raises(
        TrainingError, match="the teacher 'teacher' is not finite for the training samples 0, 1"
    ):
        run(text("[kd]"), tmp_path)
    assert not list(tmp_path.glob("cache/*"))


def test_what_answers_is_said_once(tmp_path):
    ears = Ears()
    experiment(text("[kd, dkd, hint]"), tmp_path, "seeds=[0, 1]", console=ears).run()
    told = [line for line in ears.heard if "the teacher 'teacher'" in line]
    assert told[0] == (
        f"the teacher 'teacher' is asked once about 70 samples: 1.1 kB to keep in {tmp_path / 'cache'}"
    )
    assert "the teacher 'teacher' was asked once, in fp32, and is looked up: logits, 1.1 kB" in told
    assert "the teacher 'teacher' is asked about every batch, in fp32" in told
    assert len(told) == len(set(told))


# ------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("method", ["kd", "hint"])
def test_bf16_teaches_in_bf16(tmp_path, monkeypatch, method):
    monkeypatch.setattr(models.prepared, "AGREEMENT", 0.0)
    run(text(f"[{method}]"), tmp_path, "training.precision=bf16")
    told = resolved(tmp_path, method)
    assert (told["precision"], list(told["teachers"].values())) == ("bf16", ["bf16"])
    assert results(tmp_path)["students/student/alone/seed-0"].manifest["resolved"]["teachers"] == {}


@pytest.mark.parametrize(
    "able, shape, expected",
    [(True, "[3, 8, 8]", "bf16"), (False, "[3, 8, 8]", "fp32"), (True, "[6]", "fp32")],
)
def test_auto_is_bf16_for_pictures_where_the_machine_has_it(tmp_path, monkeypatch, able, shape, expected):
    monkeypatch.setattr(assembly, "has_bf16", lambda device: able)
    changes = ["training.precision=auto", f"dataset.shape={shape}"]
    if shape == "[6]":
        changes += ["teacher.model={kind: mlp, hidden: [8]}", "student.model={kind: mlp, hidden: [4]}"]
    ears = Ears()
    experiment(text(), tmp_path, *changes, console=ears).run()
    assert f"`precision: auto` is {expected} here, on cpu" in ears.heard
    found = results(tmp_path)["students/student/kd/seed-0"].manifest
    assert found["resolved"]["precision"] == found["protocol"]["precision"] == expected


def test_looked_up_rows():
    tables = {"logits": Kept({"logits": np.arange(12.0).reshape(6, 2)}, {"arithmetic": "fp32"})}
    look = LookedUp(tables, "pooled", 3, torch.device("cpu"))
    batch = type("Batch", (), {"index": torch.tensor([2, 0]), "copy": 1})
    assert look(batch).logits.tolist() == [[10, 11], [6, 7]]
