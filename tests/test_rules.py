"""A tree as rules: in the data's own units, equal to the tree on every row, as text, as JSON and as Python."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from kdrun import assembly, models, registry
from kdrun.contracts import Units
from kdrun.data.shades import Shades
from kdrun.errors import DamagedError
from kdrun.models.trees import Tree, _between, _last, _shortest
from kdrun.report import rules as printed
from kdrun.store import Store, read_json, write_json
from kdrun.store.files import digest
from support import checked, command, results, run

TEXT = """
name: rules
device: cpu
dataset: DATASET
seeds: [0]
training: {epochs: 10, batch_size: 32, optimizer: {kind: adamw, lr: 0.01}}
teacher: {model: {kind: mlp, hidden: [32]}}
student: {model: {kind: tree, depth: null}}
controls: none
methods:
  - {name: asks, use: kd, set: {kd.temperature: 1}, training: {queries: {per_sample: 4}}}
  - {name: mixes, use: kd, set: {kd.temperature: 1}, training: {queries: {per_sample: 2, jitter: 0, mix: 1}}}
"""
DATASETS = {
    "times": "{kind: arrays, path: times.csv, label: kind}",
    "shades": "{kind: arrays, path: shades.npz}",
    "iris": "{kind: iris}",
    "wine": "{kind: wine, validation: 0.2}",
    "breast_cancer": "{kind: breast_cancer}",
    "digits": "{kind: digits}",
    "csv": "{kind: arrays, path: table.csv, label: kind}",
    "colours": "{kind: arrays, path: colours.npz}",
}
NASTY = ["a", "a b", 'say "a"', "it's", "\\", "<= 3", "and", "if x then y", "ü\u202e", "[0]", "a"]
"""Names of columns, two of them the same."""


def write_tables(folder):
    """A table with names that could be taken for something else, and pictures in colour as floats."""
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(200, len(NASTY))).round(2)
    kinds = np.where(rows[:, 0] > 0.3, "yes'", np.where(rows[:, 3] + rows[:, 4] > 0, 'no"', "\\maybe"))
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*NASTY, "kind"])
        writer.writerows([*row, kind] for row, kind in zip(rows.tolist(), kinds, strict=True))
    times = np.where(
        draw.random(300) < 0.5, draw.integers(9, size=300), 1_700_000_000 + draw.integers(99, size=300)
    )
    nanoseconds = 1_700_000_000_000_000_000 + 256 * draw.integers(2000, size=300)
    late = np.where((times % 7 > 3) ^ (nanoseconds // 256 % 50 > 20), "late", "early")
    with open(folder / "times.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "nanoseconds", "", "kind"])
        writer.writerows(zip(times, nanoseconds, draw.integers(2, size=300), late, strict=True))
    x = draw.integers(17, size=(300, 4, 4)).astype(np.uint8)
    np.savez(folder / "shades.npz", x=x, y=10 * (x[:, 1, 1] + x[:, 2, 2] > x[:, 3, 3]) + 3)
    x = draw.random((120, 3, 5, 6)).astype(np.float32)
    np.savez(folder / "colours.npz", x=x, y=(x[:, 0, 1, 1] + x[:, 2, 2, 2] > 1).astype(int))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of runs for each of the data sets."""
    root = tmp_path_factory.mktemp("rules")
    write_tables(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, dataset in DATASETS.items():
            run(TEXT.replace("DATASET", dataset), root / name)
    return root


def rows_of(trained, name):
    """Every sample of a set: as its makers have it, flat, as a model sees it, and the names of numbers and classes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        dataset = assembly.open_dataset(checked(TEXT.replace("DATASET", DATASETS[name])))
        dataset.load(torch.device("cpu"))
        pieces = dataset._pieces(dataset.read())
    inputs = {id(p.inputs["input"]): p.inputs["input"] for p in pieces.values()}
    if name == "digits":  # kdrun spreads their 17 shades over bytes
        inputs = dict.fromkeys(inputs, load_digits().data)
    raw = [
        np.asarray(inputs[id(p.inputs["input"])], np.float64)[p.rows] for p in pieces.values() if len(p.rows)
    ]
    seen = [batch.views["input"] for split in pieces for batch in dataset.split(split)]
    rows = np.concatenate(raw)
    return rows.reshape(len(rows), -1), torch.cat(seen), dataset


def tree_of(trained, name, method, dataset):
    model = models.build(
        registry.MODELS["tree"].Config(kind="tree"), dataset.spec.shapes["input"], dataset.spec.classes, 0
    )
    weights = result_of(trained, name, method).weights()
    model.load_state_dict({key: torch.from_numpy(array) for key, array in weights.items()})
    return model


def result_of(trained, name, method="asks"):
    return results(trained / name)[f"students/student/{method}/seed-0"]


def by_json(rules, rows):
    """The class that each row's only rule gives it."""
    place = {name: number for number, name in enumerate(rules["features"])}
    found = np.full(len(rows), None, object)
    times = np.zeros(len(rows), int)
    for rule in rules["rules"]:
        true_of = np.ones(len(rows), bool)
        for bound in rule["if"]:
            values = rows[:, place[bound["feature"]]]
            true_of &= values > bound["above"] if bound["above"] is not None else True
            true_of &= values <= bound["at_most"] if bound["at_most"] is not None else True
        found[true_of] = rule["then"]
        times += true_of
    assert (times == 1).all(), "of every row one rule is true, and no more"
    return found


def by_text(lines, features, rows):
    """The same, read from what is printed; names are replaced first, for they may hold anything."""
    names = sorted(range(len(features)), key=lambda n: -len(printed_name(features[n])))
    found = np.full(len(rows), None, object)
    for line in lines:
        body = re.sub(r"^\d+\. (if )?", "", line).rsplit("    (", 1)[0]
        for number in names:
            body = body.replace(f"{printed_name(features[number])} <= ", f"@{number} <= ")
            body = body.replace(f"{printed_name(features[number])} > ", f"@{number} > ")
        conditions, _, chosen = body.rpartition("then ") if "then " in body else ("", "", body)
        true_of = np.ones(len(rows), bool)
        for low, number, high in re.findall(
            r"(?:(-?[\d.e+-]+) < )?@(\d+) (<= -?[\d.e+-]+|> -?[\d.e+-]+)", conditions
        ):
            values = rows[:, int(number)]
            true_of &= values > float(low) if low else True
            sign, value = high.split()
            true_of &= values <= float(value) if sign == "<=" else values > float(value)
        found[true_of] = chosen.removeprefix("always ")
    return found


def printed_name(name):
    return printed.printable(name)


def by_python(code, rows, folder, named=None):
    """The same, by an interpreter that has nothing but Python, and no site packages."""
    (folder / "rules.py").write_text(code, encoding="utf-8")
    (folder / "rows.json").write_text(json.dumps(rows.tolist()))
    script = (
        "import json, sys\nsys.path.insert(0, '.')\nimport rules\n"
        "rows = json.load(open('rows.json'))\n"
        + ("rows = [dict(zip(rules.FEATURES, row)) for row in rows]\n" if named else "")
        + "print(json.dumps([rules.predict(row) for row in rows]))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout), object)


@pytest.mark.parametrize("method", ["alone", "asks", "mixes"])
@pytest.mark.parametrize("name", DATASETS)
def test_rules_say_of_every_row_what_the_tree_says(trained, tmp_path, name, method):
    rows, seen, dataset = rows_of(trained, name)
    with torch.no_grad():
        said = tree_of(trained, name, method, dataset)(seen).argmax(dim=1).numpy()
    expected = np.array(dataset.class_names, object)[said]
    rules = result_of(trained, name, method).rules()
    assert np.array_equal(by_json(rules, rows), expected)
    assert np.array_equal(
        by_text(printed.text(rules), rules["features"], rows),
        np.array([printed_name(label) for label in expected], object),
    )
    for named in (False, True):
        found = by_python(printed.python(rules, 'it\'s a "tree"'), rows, tmp_path, named)
        whole = all(label.isdigit() for label in dataset.class_names)
        assert np.array_equal(found, expected.astype(int) if whole else expected)


@pytest.mark.parametrize("name", DATASETS)
def test_what_a_rule_is_true_of_is_counted(trained, name):
    rows, _, dataset = rows_of(trained, name)
    train = len(dataset.labels("train"))
    rules = result_of(trained, name).rules()
    labels = np.array(dataset.class_names)[dataset.labels("train")]
    place = {feature: number for number, feature in enumerate(rules["features"])}
    assert rules["samples"] == train == sum(rule["samples"] for rule in rules["rules"])
    for rule in rules["rules"]:
        true_of = np.ones(train, bool)
        for bound in rule["if"]:
            values = rows[:train, place[bound["feature"]]]
            true_of &= values > bound["above"] if bound["above"] is not None else True
            true_of &= values <= bound["at_most"] if bound["at_most"] is not None else True
        assert rule["samples"] == true_of.sum()
        assert rule["support"] == pytest.approx(true_of.mean())
        own = labels[true_of] == rule["then"]
        assert rule["confidence"] == (pytest.approx(own.mean()) if true_of.any() else None)
    counts = [rule["samples"] for rule in rules["rules"]]
    assert counts == sorted(counts, reverse=True)


def test_bounds_of_one_feature_are_merged_and_empty_splits_left_out(trained):
    for name in DATASETS:
        for rule in result_of(trained, name).rules()["rules"]:
            features = [bound["feature"] for bound in rule["if"]]
            assert len(features) == len(set(features))
            for bound in rule["if"]:
                if bound["above"] is not None and bound["at_most"] is not None:
                    assert bound["above"] < bound["at_most"]


def test_splits_that_change_no_class_are_left_out():
    tree = {
        "feature": np.array([0, 1, 0]),
        "branches": np.array([1, 2, ~0, ~1, ~2, ~3]),
        "roots": np.array([0]),
        "value": np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]]),
    }
    found = printed.extracted(
        tree,
        np.array([0, 0, 1, 0]),
        np.array([1.5, 7.0, 3.0]),
        ["x", "y"],
        ["a", "b"],
        np.array([0, 1, 2, 3, 3]),
        np.array([0, 0, 1, 0, 1]),
    )
    assert [(rule["if"], rule["then"], rule["samples"]) for rule in found["rules"]] == [
        ([{"feature": "x", "above": None, "at_most": 1.5}], "a", 2),
        ([{"feature": "x", "above": 3.0, "at_most": None}], "a", 2),
        ([{"feature": "x", "above": 1.5, "at_most": 3.0}], "b", 1),
    ]
    assert printed.mean_length(found) == pytest.approx(4 / 3)
    assert list(printed.text(found)) == [
        "1. if x <= 1.5 then a    (2 training samples, 40.0 %; right for 100.0 % of them)",
        "2. if x > 3 then a    (2 training samples, 40.0 %; right for 50.0 % of them)",
        "3. if 1.5 < x <= 3 then b    (1 training sample, 20.0 %; right for 100.0 % of them)",
    ]


def test_a_tree_that_says_one_class_is_one_rule(tmp_path):
    tree = {
        "feature": np.zeros(0, int),
        "branches": np.zeros(0, int),
        "roots": np.array([~0]),
        "value": np.array([[0.4, 0.6]]),
    }
    found = printed.extracted(
        tree, np.array([1]), np.zeros(0), ["x"], ["a", "b"], np.zeros(3, int), np.array([0, 1, 1])
    )
    assert list(printed.text(found)) == [
        "1. always b    (3 training samples, 100.0 %; right for 66.7 % of them)"
    ]
    assert by_python(printed.python(found, ""), np.zeros((2, 1)), tmp_path).tolist() == ["b", "b"]


# ---------------------------------------------------------------------------------------------- thresholds

numbers = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)


def seen_as(units, number):
    return units.seen(np.array(number), 0)


@given(st.lists(numbers, min_size=2, max_size=2, unique=True), numbers, st.floats(1e-3, 1e3))
@settings(max_examples=300, deadline=None)
def test_a_threshold_lies_between_its_samples_in_both_units(ends, offset, scale):
    units = Units(("x",), np.array([offset]), np.array([scale]))
    low, high = units.seen(np.sort(np.array(ends)), 0)
    if not low < high:
        return
    seen = _between(low, high, 0, units)
    assert low <= seen < high and seen.dtype == np.float32
    number = _shortest(seen, 0, units)
    assert seen_as(units, number) == seen or seen == low
    last = _last(seen, 0, units)
    assert seen_as(units, last) <= seen < seen_as(units, np.nextafter(last, np.inf))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (12.83, 12.87, 12.85),
        (100, 140, 120),
        (127, 128, 127.5),
        (0.001, 0.002, 0.0015),
        (-7, 900, 400),
        (-1, 1, 0),
        (5, 5.0001, 5.00005),
    ],
)
def test_a_threshold_is_a_short_number_near_the_middle(low, high, expected):
    units = Units(("x",), np.array([3.0]), np.array([0.5]))
    number = _shortest(_between(*units.seen(np.array([low, high]), 0), 0, units), 0, units)
    assert abs(number - (low + high) / 2) <= (high - low) / 4 * 1.01
    assert len(repr(number).removesuffix(".0").strip("-0.")) <= len(repr(expected).strip("-0."))
    assert repr(number) != "-0.0"


def test_neighbours_in_float32_are_parted_all_the_same():
    units = Units(("x",), np.array([0.1]), np.array([3.7]))
    low = np.float32(1.2345678)
    high = np.nextafter(low, np.float32(9))
    seen = _between(low, high, 0, units)
    assert seen == low and seen_as(units, _shortest(seen, 0, units)) == low


def test_what_float64_cannot_tell_apart_is_parted_as_a_model_sees_it():
    """Of nanoseconds since 1970 float64 knows every 256th."""
    units = Units(("x",), np.array([1.7e18]), np.array([1e-3]))
    low, high = np.float32(0.01), np.float32(0.05)
    assert _between(low, high, 0, units) == low
    assert units.raw(np.array([low]), 0) == units.raw(np.array([high]), 0)
    assert seen_as(units, _last(low, 0, units)) <= low


def test_no_sample_changes_sides_when_thresholds_are_made_short():
    x = np.random.default_rng(3).normal(size=(400, 5)).astype(np.float32)
    labels = (x[:, 0] * x[:, 1] + x[:, 2] > 0).astype(int)
    model = models.build(Tree.Config(kind="tree", depth=None), (5,), 2, 0)
    model.fit(x, np.eye(2)[labels], 0, 1)
    before, old = model.leaves(torch.from_numpy(x)), model.threshold.clone()
    units = Units(tuple("abcde"), np.full(5, 7.0), np.full(5, 2.0))
    model.make_readable(x, units)
    assert torch.equal(model.leaves(torch.from_numpy(x)), before)
    assert not torch.equal(model.threshold, old)
    short = model.thresholds(units, [torch.from_numpy(x)])
    assert np.median([len(repr(float(number))) for number in short]) <= 7


def test_only_where_a_sample_is_on_the_threshold_it_is_written_to_the_last_digit():
    x = np.array([[0.0], [1.0]], np.float32)
    units = Units(("x",), np.array([0.1]), np.array([0.3]))
    model = models.build(Tree.Config(kind="tree"), (1,), 2, 0)
    model.fit(x, np.eye(2), 0, 1)
    model.make_readable(x, units)
    threshold = model.threshold
    [short] = model.thresholds(units, [torch.from_numpy(x)]).tolist()
    [exact] = model.thresholds(units, [threshold.view(1, 1), torch.from_numpy(x)]).tolist()
    assert len(repr(short)) <= 4 < len(repr(exact)) and exact >= short
    assert seen_as(units, exact) == seen_as(units, short) == threshold.item()
    assert seen_as(units, np.nextafter(exact, np.inf)) > threshold.item()


@given(st.integers(1, 255), st.floats(-9, 9), st.floats(0.01, 9), st.lists(st.floats(-300, 600), min_size=9))
@settings(max_examples=100, deadline=None)
def test_shades_rise_and_are_found_again(white, mean, std, values):
    units = Shades(("x",), np.array([np.float32(mean)]), np.array([1 / np.float64(np.float32(std))]), white)
    raw = np.sort([*values, 0, 1, white])
    seen = units.seen(raw, 0)
    assert seen.dtype == np.float32 and (np.diff(seen) >= 0).all()
    np.testing.assert_allclose(units.raw(seen, 0), raw, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", DATASETS)
def test_units_are_how_a_set_sees_its_numbers(trained, name):
    rows, seen, dataset = rows_of(trained, name)
    units, flat = dataset.units("input"), seen.flatten(1).numpy()
    assert len(units.names) == rows.shape[1] and len(set(units.names)) == len(units.names)
    for number in range(rows.shape[1]):
        assert np.array_equal(units.seen(rows[:, number], number), flat[:, number])
        if units.scale[number]:
            found, near = units.raw(flat[:, number], number), 1e-3 + 1e-6 * rows[:, number].std()
            np.testing.assert_allclose(found, rows[:, number], atol=near, rtol=1e-4)


def test_pixels_and_columns_are_called_what_they_are(trained):
    def names(name):
        return rows_of(trained, name)[2].units("input").names

    assert names("iris")[0] == "sepal length (cm)"
    assert names("digits")[:9] == (*(f"pixel 0,{column}" for column in range(8)), "pixel 1,0")
    assert names("colours")[30] == "pixel 0,0 of channel 1"
    assert names("csv")[0] == "a" and names("csv")[-1] == "a (2)"


# --------------------------------------------------------------------------------------------- the command

PLACE = "rules/students/student/asks/seed-0"


def test_the_command_prints_text_json_and_python(trained, tmp_path, monkeypatch, capsys):
    root, rules = trained / "wine", result_of(trained, "wine").rules()

    def told(*options, place=PLACE):
        assert command("rules", place, "--out", root, *options, monkeypatch=monkeypatch) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    first, *lines = told().splitlines()
    assert re.fullmatch(
        r"student asks, seed 0: right on \d+\.\d % of 54 test samples, agrees with its teacher on \d+\.\d % of them, "
        rf"{len(rules['rules'])} rules of \d\.\d conditions in the mean",
        first,
    )
    assert lines == list(printed.text(rules)) and told(place=root / PLACE).splitlines()[1:] == lines
    for options in (("--json",), ("--format", "json")):
        found = json.loads(told(*options))
        assert found["rules"] == rules["rules"] and found["number"] == len(rules["rules"])
        assert 0.5 < found["agreement"] <= 1 and 0.5 < found["accuracy"] <= 1 and found["seed"] == 0
    code = told("--format", "python")
    rows, _, _ = rows_of(trained, "wine")
    assert np.array_equal(by_python(code, rows, tmp_path), by_json(rules, rows))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (
            "rules/students/student/asks/seed-9",
            r"seed-9: there is no such folder; runs with rules: \S*asks/seed-0, \S*alone/seed-0, \S*mixes/seed-0$",
        ),
        ("rules/students/student/mixes", r"mixes: is no run; runs with rules: \S*mixes/seed-0, "),
        (
            "rules/teachers/teacher/seed-0",
            r"is of 'mlp', and rules are of one tree: a student `model: tree` that it teaches has some; runs with ",
        ),
        ("nowhere", r"nowhere: there is no such folder; runs with rules: "),
    ],
)
def test_what_has_no_rules_is_told(trained, monkeypatch, capsys, place, words):
    assert command("rules", place, "--out", trained / "iris", monkeypatch=monkeypatch) == 2
    assert re.search(words, capsys.readouterr().err)


def test_of_a_run_that_was_stopped_it_is_told_how_it_goes_on(trained, tmp_path, monkeypatch, capsys):
    import shutil

    shutil.copytree(trained / "iris", tmp_path / "runs")
    for file in (tmp_path / "runs" / PLACE).iterdir():
        file.unlink()
    write_json(tmp_path / "runs" / PLACE / "begun.json", {"total_steps": 1})
    assert command("rules", PLACE, "--out", tmp_path / "runs", monkeypatch=monkeypatch) == 2
    assert "is not finished; the command that began it goes on with it; runs" in capsys.readouterr().err


def test_where_there_are_no_runs_none_are_named(tmp_path, monkeypatch, capsys):
    assert command("rules", "x", "--out", tmp_path / "none", monkeypatch=monkeypatch) == 2
    assert "no run under" in capsys.readouterr().err


def test_the_command_loads_neither_torch_nor_scikit_learn(trained):
    code = (
        "import sys; sys.argv = ['kdrun', 'rules', sys.argv[1]]\nfrom kdrun.cli import app\n"
        "try: app(standalone_mode=False)\nfinally: sys.exit(9 * bool({'torch', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(trained / "iris" / PLACE)], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


FORGED = {
    "a rule of no bound beside others": lambda rules: (
        rules | {"rules": [rules["rules"][0] | {"if": []}, *rules["rules"]]}
    ),
    "a bound without a number": lambda rules: (
        rules
        | {
            "rules": [
                rules["rules"][0] | {"if": [{"feature": "alcohol", "above": None, "at_most": None}]},
                *rules["rules"],
            ]
        }
    ),
    "none": lambda rules: rules | {"rules": []},
    "of a class that is none": lambda rules: rules | {"classes": []},
    "of a feature that is none": lambda rules: rules | {"features": []},
    "a bound that is code": lambda rules: (
        rules
        | {
            "rules": [
                rules["rules"][0]
                | {"if": [{"feature": "alcohol", "above": "__import__('os')", "at_most": None}]}
            ]
        }
    ),
    "a class that is code": lambda rules: (
        rules | {"rules": [rules["rules"][0] | {"then": "'; import os; '"}]}
    ),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_rules_that_kdrun_did_not_write_are_refused(trained, tmp_path, forge):
    import shutil

    shutil.copytree(trained / "wine", tmp_path / "runs")
    folder = tmp_path / "runs" / PLACE
    write_json(folder / "rules.json", forge(read_json(folder / "rules.json")))
    manifest = read_json(folder / "result.json")
    manifest["files"]["rules.json"] = digest((folder / "rules.json").read_bytes())
    write_json(folder / "result.json", manifest)
    with pytest.raises(DamagedError, match=r"rules.json: is not what kdrun writes"):
        Store(tmp_path / "runs").result(folder, prove=True).rules()


# ------------------------------------------------------------------------------------- the Python function


@pytest.fixture
def predict(trained, tmp_path):
    """The function of a tree of digits, where 64 numbers are told apart by place."""
    code, found = printed.python(result_of(trained, "digits").rules(), "a tree"), {}
    exec(compile(code, "rules.py", "exec"), found)
    return found["predict"], found


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1.0] * 63, "a row of 63 and not of 64 numbers"),
        ([1.0] * 65, "a row of 65 and not of 64 numbers"),
        ([float("nan")] * 64, "are finite numbers"),
        ([float("inf")] * 64, "are finite numbers"),
        (["x"] * 64, "could not convert string to float"),
    ],
)
def test_the_function_refuses_what_no_tree_was_fitted_to(predict, row, words):
    with pytest.raises(ValueError, match=words):
        predict[0](row)


def test_the_function_reads_rows_as_they_come(predict):
    row = load_digits().data[7]
    found = predict[0](row)
    assert isinstance(found, int) and found in predict[1]["CLASSES"] == list(range(10))
    named = dict(zip(predict[1]["FEATURES"], row, strict=True))
    assert predict[0]({name: str(named[name]) for name in predict[1]["USED"]}) == found


def test_a_class_that_no_rule_names_is_told():
    rules = {"classes": ["a", "b", "c"], "rules": [{"if": [], "then": "b"}], "features": [], "samples": 3}
    manifest = {
        "likeness": None,
        "name": "tree",
        "method": None,
        "seed": 0,
        "protocol": {"test_samples": 5},
        "scores": {"accuracy": 0.4},
    }
    told = printed.sentence(printed.about(None, manifest, rules))
    assert told.endswith("1 rule of 0.0 conditions in the mean, and it never says a, c")
