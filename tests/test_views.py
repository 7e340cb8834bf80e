"""Views: what a model sees that sees less than the others, of the same samples."""

import itertools

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdrun import assembly, registry, trees
from kdrun.contracts import Draw, Queries
from kdrun.data.shades import Shades
from kdrun.errors import ConfigError, DataError, Mismatch
from kdrun.plan import plan
from support import checked, experiment, outcome, results, run, students

CPU = torch.device("cpu")
TEXT = """
name: views
device: cpu
dataset: {kind: digits, views: {small: {size: 4}, left: {crop: [8, 4], at: [0, 0]}}}
seeds: [0]
training: {epochs: 2, batch_size: 64, optimizer: {kind: sgd, lr: 0.05}}
teacher: {model: {kind: mlp, hidden: [48]}}
student: {model: {kind: mlp, hidden: [16]}, view: small}
controls: none
methods: [kd]
"""
PICTURES = {
    "small": "{size: 3}",
    "uneven": "{size: [4, 5]}",
    "one": "{size: 1}",
    "middle": "{crop: 3}",
    "corner": "{crop: [2, 5], at: [4, 1]}",
    "grey": "{grey: true}",
    "all": "{crop: [4, 6], at: [2, 0], size: [2, 3], grey: true}",
}
COLOURS = "{kind: synthetic, shape: [3, 6, 6], classes: 4, samples: 40, test_samples: 8, validation: 0.2"
AUGMENTED = "augmentation: strong, strong_view: standard"
COPIED = "augmentation: {copies: 2, parts: strong}"


def opened(data, *overrides):
    """The data set of a config, loaded, and the config."""
    config = checked(TEXT, f"dataset={data}", *overrides)
    dataset = assembly.open_dataset(config)
    dataset.load(CPU)
    return dataset


def colours(more=AUGMENTED):
    views = ", ".join(f"{name}: {view}" for name, view in PICTURES.items())
    return opened(f"{COLOURS}, {more}, views: {{{views}}}}}", "student.view=null")


def windows(length, size):
    return [slice(place * length // size, -(-(place + 1) * length // size)) for place in range(size)]


def averaged(pixels, height, width):
    rows, columns = windows(pixels.shape[2], height), windows(pixels.shape[3], width)
    means = [[pixels[:, :, r, c].mean(axis=(2, 3)) for c in columns] for r in rows]
    return np.array(means).transpose(2, 3, 0, 1)


def in_grey(pixels):
    return np.einsum("bchw,c->bhw", pixels, [0.299, 0.587, 0.114])[:, None]


EXPECTED = {
    "small": lambda p: averaged(p, 3, 3),
    "uneven": lambda p: averaged(p, 4, 5),
    "one": lambda p: averaged(p, 1, 1),
    "middle": lambda p: p[:, :, 1:4, 1:4],
    "corner": lambda p: p[:, :, 4:6, 1:6],
    "grey": in_grey,
    "all": lambda p: in_grey(averaged(p[:, :, 2:6], 2, 3)),
}
"""What each of the views is of pixels from 0 to 1 (B, C, H, W)."""


def demand_made_of_the_default_view(dataset, batch):
    mean, std = (figures.double().numpy() for figures in dataset._inputs["input"].normaliser)
    pixels = batch.views["input"].double().numpy() * std + mean
    for name, expected in EXPECTED.items():
        grey = name in ("grey", "all")
        own_mean, own_std = (in_grey(f[None])[0] if grey else f for f in (mean, std))
        view = batch.views[name]
        assert view.dtype == torch.float32 and tuple(view.shape[1:]) == dataset.spec.shapes[name]
        assert view.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_allclose(view.numpy() * own_std + own_mean, expected(pixels), atol=1e-5)


# ---------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    "options",
    [{}, {"mixup": 0.4}, {"cutmix": 1.0}, {"queries": Queries(per_sample=2)}],
    ids=["plain", "mixup", "cutmix", "queries"],
)
@pytest.mark.parametrize("more", ["augmentation: none", AUGMENTED, COPIED], ids=["none", "strong", "copies"])
def test_a_view_is_of_the_very_pixels_that_the_default_one_shows(more, options):
    dataset = colours(more)
    draw = Draw(0, 8, **options)
    batches = [*dataset.batches(draw, 1), *dataset.split("test"), *dataset.split("validation")]
    if draw.queries is not None:
        batches += dataset.queries(draw, 0, 8)
    for batch in batches:
        demand_made_of_the_default_view(dataset, batch)


def test_copies_give_all_views_with_the_bits_of_the_batches():
    dataset = colours(f"{COPIED}, strong_view: standard")
    assert {*dataset.copied_views} == {"input", *PICTURES}
    for number in (0, 1):
        copies = list(dataset.copy(number, 7))
        for batch in dataset.batches(Draw(0, 8), number):
            assert batch.copy == number
            for name in dataset.copied_views:
                rows = torch.cat([copy.views[name] for copy in copies])
                assert rows[batch.index].equal(batch.views[name])


@pytest.mark.parametrize("threads", [1, 4])
def test_a_view_has_the_same_bits_in_any_company(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for shape in ("[3, 6, 6]", "[1, 300, 300]"):
            views = "views: {a: {size: 1}, b: {size: 4}, c: {crop: 2}}"
            dataset = opened(f"{{kind: synthetic, shape: {shape}, samples: 20, {views}}}", "student.view=a")
            for name in "abc":
                alone, together = (
                    torch.cat([batch.views[name] for batch in dataset.split("train", size)])
                    for size in (1, 20)
                )
                assert alone.equal(together)
    finally:
        torch.set_num_threads(before)


def test_views_that_nobody_looks_at_are_not_made_and_change_nothing():
    plain, whole, less = opened(f"{COLOURS}, {AUGMENTED}}}", "student.view=null"), colours(), colours()
    less.show({"grey"})
    for queries in (None, Queries(per_sample=1)):
        draw = Draw(0, 8, queries=queries)
        streams = (dataset.batches(draw, 1) for dataset in (plain, whole, less))
        for one, other, few in zip(*streams, strict=True):
            assert few.views.keys() == {"input", "grey"}
            assert other.views.keys() == {"input", "strong", *PICTURES}
            assert all(one.views["input"].equal(batch.views["input"]) for batch in (other, few))
            assert one.views["strong"].equal(other.views["strong"])
            assert few.views["grey"].equal(other.views["grey"])


def test_an_experiment_makes_the_views_that_its_runs_look_at(tmp_path):
    one = experiment(TEXT, tmp_path, "training.epochs=1")
    one.run(roles=["teacher"])
    assert next(iter(one.dataset.split("test"))).views.keys() == {"input"}
    one.run()
    assert next(iter(one.dataset.split("test"))).views.keys() == {"input", "small"}


# ------------------------------------------------------------------------------------------------ tables


def test_columns_are_taken_by_name_or_number_in_their_order():
    dataset = opened("{kind: wine, views: {few: {columns: [proline, 1, ash]}}}", "student.view=few")
    for batch in dataset.batches(Draw(0, 32, mixup=0.3), 0):
        assert batch.views["few"].equal(batch.views["input"][:, [12, 1, 2]])
    assert dataset.spec.shapes == {"input": (13,), "few": (3,)}
    whole, few = dataset.units("input"), dataset.units("few")
    assert few.names == ("proline", "malic_acid", "ash")
    assert few.offset.tolist() == whole.offset[[12, 1, 2]].tolist()
    assert few.scale.tolist() == whole.scale[[12, 1, 2]].tolist()


def test_columns_of_a_file_are_known_before_it_is_loaded(tmp_path):
    (tmp_path / "t.csv").write_text("width,width,label\n1,2,a\n3,4,b\n5,6,a\n7,8,b\n")
    data = f"dataset={{kind: arrays, path: {tmp_path / 't.csv'}, views: {{few: {{columns: [NAME]}}}}}}"
    dataset = opened(data.replace("dataset=", "").replace("NAME", "width (2)"), "student.view=few")
    assert dataset.units("few").names == ("width (2)",)
    config = checked(TEXT, data.replace("NAME", "widht"), "student.view=few")
    with pytest.raises(ConfigError, match="there is no column 'widht'; did you mean 'width'"):
        assembly.open_dataset(config)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ("[alcohl]", "there is no column 'alcohl'; did you mean 'alcohol'"),
        ("[ash, 2]", "'ash' is there twice"),
    ],
)
def test_names_are_looked_for_when_they_are_known(tmp_path, columns, told):
    data = f"dataset={{kind: wine, views: {{few: {{columns: {columns}}}}}}}"
    with pytest.raises(ConfigError, match=f"dataset.views.few.columns: {told}"):
        run(TEXT, tmp_path, data, "student.view=few")


# ------------------------------------------------------------------------------------------------- units


def test_pixels_of_views_are_called_by_what_they_cover():
    dataset = colours()
    names = {name: dataset.units(name).names for name in PICTURES}
    for name, shape in dataset.spec.shapes.items():
        assert len({*dataset.units(name).names}) == np.prod(shape)
    assert names["corner"][:2] == ("pixel 4,1 of channel 0", "pixel 4,2 of channel 0")
    assert names["small"][10] == "mean of pixels 0,2 to 1,3 of channel 1"
    assert names["grey"][7] == "pixel 1,1"
    assert names["all"] == tuple(
        f"mean of pixels {r},{c} to {r + 1},{c + 1}" for r, c in itertools.product((2, 4), (0, 2, 4))
    )


@pytest.mark.parametrize("name", PICTURES)
def test_units_of_views_are_how_they_are_seen(name):
    dataset = colours("augmentation: none")
    whole, units = dataset.units("input"), dataset.units(name)
    assert isinstance(units, Shades)
    for batch in dataset.split("test"):
        seen = batch.views["input"].flatten(1).numpy()
        raw = np.stack([whole.raw(seen[:, n], n) for n in range(seen.shape[1])], axis=1).round()
        raw = EXPECTED[name](raw.reshape(-1, 3, 6, 6)).reshape(len(raw), -1)
        view = batch.views[name].flatten(1).numpy()
        for number in range(view.shape[1]):
            own = units.seen(raw[:, number], number)
            if name in ("middle", "corner"):
                assert np.array_equal(own, view[:, number]), "to the bit"
            np.testing.assert_allclose(own, view[:, number], atol=1e-4)
            np.testing.assert_allclose(units.raw(view[:, number], number), raw[:, number], atol=1e-2)


def test_rules_of_a_tree_on_a_view_speak_of_its_pixels(tmp_path):
    run(TEXT, tmp_path, "student.model={kind: tree, depth: 3}", "student.view=left")
    found = results(tmp_path)["students/student/kd/seed-0"].rules()
    assert found["features"][:5] == [*(f"pixel 0,{column}" for column in range(4)), "pixel 1,0"]
    assert len(found["features"]) == 32


# ----------------------------------------------------------------------------------- teachers and students


@pytest.mark.parametrize(
    ("augmentation", "view"), [("none", "small"), ("{copies: 2, parts: standard}", "input")]
)
def test_students_learn_the_same_from_tables_as_from_teachers_of_any_view(tmp_path, augmentation, view):
    keys = [
        f"dataset.augmentation={augmentation}",
        f"teacher.view={view}",
        "controls=[alone, shuffled-teacher]",
    ]
    run(TEXT, tmp_path / "looked-up", *keys)
    run(TEXT, tmp_path / "live", *keys, "training.cache=false")
    for method in ("alone", "shuffled-teacher", "kd"):
        place = f"students/student/{method}/seed-0"
        one, other = (results(tmp_path / name)[place] for name in ("looked-up", "live"))
        if method != "alone":
            assert one.manifest["resolved"]["cache"] == "looked up"
            assert other.manifest["resolved"]["cache"] == "live"
        assert one.manifest["protocol"]["input"] == [1, 4, 4]
        assert one.manifest["cost"]["macs"] == 16 * 16 + 16 * 10
        logits = [result.predictions()["logits"] for result in (one, other)]
        np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-4)


def test_company_with_other_views_changes_no_bits(tmp_path):
    group = TEXT.replace("student:", "students:\n  student:").replace(
        "controls", "  left: {model: {kind: mlp}, view: left}\n  whole: {model: {kind: mlp}}\ncontrols"
    )
    for name, text in (("alone", TEXT), ("group", group)):
        run(text, tmp_path / name, "dataset.augmentation=standard")
    alone, together = (outcome(tmp_path / name) for name in ("alone", "group"))
    assert len(alone) == 3 and len(together) == 7 and alone.items() <= together.items()


def test_a_tree_on_a_view_is_shown_every_copy_once():
    data = "{kind: digits, augmentation: {copies: 2}, views: {small: {size: 4}}}"
    dataset, config = opened(data, "student.model={kind: tree}"), checked(TEXT, f"dataset={data}")
    draw = next(one.draw for one in plan(config, dataset).runs if one.role == "student")
    rounds = trees.rounds_of(dataset, draw, epochs=4)
    assert len(rounds) == 2
    for number, one in enumerate(rounds):
        given, copies = (
            torch.cat([b.views["small"] for b in x]) for x in (one.open(), dataset.copy(number, 99))
        )
        assert given.equal(copies)


@pytest.mark.parametrize(
    ("where", "owner"),
    [("student.view=small", "the student"), ("teacher.view=small", "the teacher 'teacher'")],
)
def test_a_further_view_of_another_shape_is_refused_in_words(where, owner):
    mix = "methods=[{use: mlkd, set: {mlkd.view: strong}}]"
    with pytest.raises(Mismatch) as caught:
        students(TEXT, "student.view=null", where, "dataset.strong_view=crop", mix)
    assert str(caught.value) == f"the view 'strong' is of shape (1, 8, 8), and {owner} sees (1, 4, 4)"


# ----------------------------------------------------------------------------------------- several inputs


NUMBERS = np.random.default_rng(0)
LABELS = np.arange(90) % 3
PHOTO = (NUMBERS.integers(0, 120, (90, 3, 6, 5)) + 60 * LABELS[:, None, None, None]).astype(np.uint8)
SENSOR = NUMBERS.normal(size=(90, 4)) + LABELS[:, None]
PAIRS = {"photo": PHOTO, "sensor": SENSOR, "y": LABELS}
PARTS = {f"{name}_{part}": x for part in ("train", "test") for name, x in PAIRS.items()}


def of_file(tmp_path, options, saved):
    np.savez(tmp_path / "pairs.npz", **saved)
    component = registry.DATASETS["arrays"]
    written = {"kind": "arrays", "path": str(tmp_path / "pairs.npz")} | options
    dataset = component(component.Config.model_validate(written))
    dataset.load(CPU)
    return dataset


@pytest.mark.parametrize(
    "augmentation", ["strong", {"copies": 2, "parts": "strong"}], ids=["strong", "copies"]
)
@pytest.mark.parametrize("saved", [PAIRS, PARTS], ids=["whole", "parts"])
def test_several_inputs_are_each_as_they_are_alone(tmp_path, saved, augmentation):
    def alone(name, **options):
        renamed = {key.replace(name, "x"): x for key, x in saved.items() if key.startswith((name, "y"))}
        return of_file(tmp_path, {"validation": 0.1, "seed": 3} | options, renamed)

    options = {"validation": 0.1, "seed": 3, "augmentation": augmentation}
    both = of_file(tmp_path, options | {"inputs": ["sensor", "photo"]}, saved)
    assert both.spec.shapes == {"sensor": (4,), "photo": (3, 6, 5)} and not both.pictures
    draws = [Draw(0, 16), Draw(0, 16, mixup=0.4), Draw(0, 16, labels="all", purpose="teacher")]
    for name, one in (("sensor", alone("sensor")), ("photo", alone("photo", augmentation=augmentation))):
        passes = [lambda d, draw=draw: d.batches(draw, 1) for draw in draws]
        passes += [lambda d, split=split: d.split(split) for split in ("train", "validation", "test")]
        for go in passes:
            for batch, other in zip(go(both), go(one), strict=True):
                assert batch.views.keys() == {"sensor", "photo"}
                assert batch.views[name].equal(other.views["input"]) and batch.index.equal(other.index)
        ours, theirs = both.units(name), one.units("input")
        assert ours.names == theirs.names and np.array_equal(ours.scale, theirs.scale)
    assert both.copies(draws[0]) == (None if augmentation == "strong" else 2)


def test_pictures_of_one_sample_are_augmented_alike(tmp_path):
    options = {
        "inputs": ["photo", "depth"],
        "augmentation": {"copies": 2, "parts": "strong"},
        "strong_view": "crop",
    }
    dataset = of_file(tmp_path, options, {"photo": PHOTO, "depth": PHOTO, "y": LABELS})
    assert {*dataset.copied_views} == {"photo", "depth"}
    for number in (0, 1):
        copies = list(dataset.copy(number, 7))
        batches = [*dataset.batches(Draw(0, 16), number), *dataset.batches(Draw(0, 16, cutmix=1.0), number)]
        for batch in [*copies, *batches]:
            assert batch.views["photo"].equal(batch.views["depth"])
        depth = torch.cat([copy.views["depth"] for copy in copies])
        assert all(batch.views["depth"].equal(depth[batch.index]) for batch in batches if batch.mix is None)


def test_cutmix_cuts_the_same_part_of_all_pictures_and_mixes_tables_by_its_share(tmp_path):
    large = PHOTO.repeat(2, axis=2).repeat(3, axis=3)
    saved = PAIRS | {"large": large}
    dataset = of_file(tmp_path, {"inputs": ["photo", "large", "sensor"]}, saved)
    for plain, mixed in zip(
        dataset.batches(Draw(0, 16), 0), dataset.batches(Draw(0, 16, cutmix=1.0), 0), strict=True
    ):
        share, partner = mixed.mix.share[:, None], mixed.mix.partner
        photo, wide = mixed.views["photo"], mixed.views["large"]
        torch.testing.assert_close(photo.repeat_interleave(2, 2).repeat_interleave(3, 3), wide)
        sensor = plain.views["sensor"]
        torch.testing.assert_close(mixed.views["sensor"], share * sensor + (1 - share) * sensor[partner])


def test_a_student_of_one_input_learns_from_a_teacher_of_another(tmp_path):
    np.savez(tmp_path / "pairs.npz", **PAIRS)
    data = f"dataset={{kind: arrays, path: {tmp_path / 'pairs.npz'}, inputs: [photo, sensor]}}"
    keys = [data, "student.view=sensor", "training.epochs=30", "training.batch_size=16"]
    run(TEXT, tmp_path / "looked-up", *keys)
    run(TEXT, tmp_path / "live", *keys, "training.cache=false")
    one, other = (results(tmp_path / n)["students/student/kd/seed-0"] for n in ("looked-up", "live"))
    assert one.manifest["resolved"]["cache"] == "looked up" and other.manifest["resolved"]["cache"] == "live"
    assert one.manifest["protocol"]["input"] == [4] and one.manifest["scores"]["accuracy"] > 0.6
    logits = [result.predictions()["logits"] for result in (one, other)]
    np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-4)
    swapped = data.replace("[photo, sensor]", "[sensor, photo]")
    run(TEXT, tmp_path / "swapped", swapped, "teacher.view=photo", *keys[1:])
    assert (
        results(tmp_path / "swapped")["students/student/kd/seed-0"].manifest["resolved"]["cache"]
        == "looked up"
    )


def test_views_are_of_the_first_input(tmp_path):
    views = {"small": {"size": 2}, "few": {"columns": [1]}}
    dataset = of_file(tmp_path, {"inputs": ["photo", "sensor"], "views": {"small": views["small"]}}, PAIRS)
    assert dataset.spec.shapes == {"photo": (3, 6, 5), "sensor": (4,), "small": (3, 2, 2)}
    dataset = of_file(tmp_path, {"inputs": ["sensor", "photo"], "views": {"few": views["few"]}}, PAIRS)
    batch = next(dataset.batches(Draw(0, 8), 0))
    assert batch.views["few"].equal(batch.views["sensor"][:, 1:2])


def test_the_hashes_are_of_all_inputs(tmp_path):
    saved = [PAIRS, PAIRS | {"sensor": SENSOR[:, ::-1]}, PAIRS | {"photo": PHOTO + 1}]
    sets = [of_file(tmp_path, {"inputs": ["photo", "sensor"]}, one) for one in saved]
    assert len({one.test_hash() for one in sets}) == len({one.train_hash() for one in sets}) == 3


@pytest.mark.parametrize(
    ("options", "saved", "told"),
    [
        (
            {"inputs": ["photo", "senor"]},
            PAIRS,
            "dataset.inputs: .* holds photo, sensor, y; it must hold photo, senor and y, or photo_train, senor_train, "
            "y_train, photo_test, senor_test, y_test; for 'senor', did you mean 'sensor'",
        ),
        (
            {"inputs": ["photo", "sensor"]},
            PAIRS | {"sensor": SENSOR[:80]},
            r"sensor is \(80, 4\) and its labels are \(90,\)",
        ),
        (
            {"inputs": ["photo", "sensor"]},
            PARTS | {"sensor_test": SENSOR[:, 1:]},
            "sensor_train .* and sensor_test .* are of different kinds",
        ),
        (
            {"inputs": ["photo", "sensor"]},
            PAIRS | {"sensor": SENSOR * np.nan},
            r"sensor\[0, 0\] is not a finite number",
        ),
        (
            {"inputs": ["photo", "sensor"]},
            PAIRS | {"sensor": PHOTO[:, :2]},
            r"sensor: samples of shape \[2, 6, 5\] are not "
            r"clearly pictures; write `shape`: {sensor: \[",
        ),
        ({"inputs": ["photo"], "shape": [3, 6, 5]}, PAIRS, r"dataset.shape: .* write `{photo: \[3, 6, 5\]}`"),
        (
            {"inputs": ["photo"], "shape": {"foto": [3, 6, 5]}},
            PAIRS,
            "dataset.shape: there is no input 'foto'; did you mean",
        ),
        (
            {"inputs": ["photo", "sensor"], "views": {"sensor": {"size": 2}}},
            PAIRS,
            "dataset.views.sensor: there is another",
        ),
        (
            {"inputs": ["sensor"], "augmentation": "flip"},
            PAIRS,
            "dataset.augmentation: the samples .* rows of 4 numbers",
        ),
        (
            {"inputs": ["sensor", "photo"], "strong_view": "flip"},
            PAIRS,
            "dataset.strong_view: the samples .* rows of 4",
        ),
        ({"inputs": ["photo", "photo"]}, PAIRS, "'photo' is there twice; write it once"),
        ({"inputs": ["photo", "y"]}, PAIRS, "'y' is what the labels are called"),
        ({"inputs": ["photo", "strong"]}, PAIRS, "'strong' is what a `strong_view` is called"),
        ({"inputs": []}, PAIRS, "at least 1 item"),
    ],
)
def test_wrong_inputs(tmp_path, options, saved, told):
    with pytest.raises((DataError, ValidationError), match=told):
        of_file(tmp_path, options, saved)


def test_shapes_of_inputs_are_written_by_name(tmp_path):
    saved = PAIRS | {"photo": PHOTO.reshape(90, -1), "sensor": SENSOR.clip(0, 1).reshape(90, 2, 2, 1)}
    shape = {"photo": [3, 6, 5], "sensor": [1, 2, 2]}
    dataset = of_file(tmp_path, {"inputs": ["photo", "sensor"], "shape": shape}, saved)
    assert dataset.spec.shapes == {"photo": (3, 6, 5), "sensor": (1, 2, 2)}


def test_a_table_has_no_several_inputs(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,label\n1,2,x\n3,4,y\n")
    with pytest.raises(DataError, match=r"dataset\.inputs: a \.csv file holds one table"):
        of_file(tmp_path, {"inputs": ["a"], "path": str(tmp_path / "t.csv")}, PAIRS)


# ------------------------------------------------------------------------------------------- fingerprints


def fingerprints(views, *overrides):
    config = checked(TEXT, f"dataset={{kind: digits{views}}}", *overrides)
    return {run_.kin[1:3]: run_.fingerprint for run_ in plan(config, assembly.open_dataset(config)).runs}


def test_views_are_no_reason_to_train_what_does_not_look_at_them():
    plain = fingerprints("", "student.view=null")
    some = fingerprints(", views: {small: {size: 4}}", "student.view=null")
    assert plain == some == fingerprints(", views: {}", "student.view=null")
    small = fingerprints(", views: {small: {size: 4}}")
    assert small == fingerprints(", views: {left: {crop: 4}, small: {size: 4}}, strong_view: crop")
    assert (
        small["teacher", None] == plain["teacher", None] and small["student", "kd"] != plain["student", "kd"]
    )
    assert small["student", "kd"] != fingerprints(", views: {small: {size: 2}}")["student", "kd"]


def test_inputs_that_are_not_named_are_no_part_of_the_identity(tmp_path):
    plain = of_file(tmp_path, {}, {"x": PHOTO, "y": LABELS})
    assert "inputs" not in plain.identity() and plain.spec.shapes == {"input": (3, 6, 5)}
    named = of_file(tmp_path, {"inputs": ["x"]}, {"x": PHOTO, "y": LABELS})
    assert named.identity()["inputs"] == ["x"] and named.spec.shapes == {"x": (3, 6, 5)}
