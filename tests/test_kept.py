"""Runs of every format that there was are still read: what each came to then is what is compared now."""

import json
import shutil
from pathlib import Path

import pytest

from commands import command
from kdrun.store import FORMAT, Store

KEPT = sorted((Path(__file__).parent / "kept").iterdir())
"""A config with the folder of runs, and the comparison, that the last kdrun of each format made of it."""


def test_no_format_is_missing():
    assert [folder.name for folder in KEPT] == [f"format-{number}" for number in range(1, FORMAT + 1)]


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_what_an_earlier_kdrun_finished_is_compared_as_it_was_then(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "kept")
    then = json.loads((place / "runs/kept/comparison.json").read_text())
    done = command("compare", "kept.yaml", "--no-train", "--json", folder=place)
    assert done.code == 0 and "is damaged" not in done.err, done.err
    now = json.loads(done.out)
    assert [row["status"] for row in now["rows"]] == ["finished"] * 3
    for before, row in zip(then["rows"], now["rows"], strict=True):
        for key, value in before.items():
            assert row[key] == (pytest.approx(value) if isinstance(value, float | list) else value), key
    assert now["protocol"] == then["protocol"]


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_what_an_earlier_kdrun_finished_is_whole(folder):
    store = Store(folder / "runs", pytest.fail)
    found = [store.result(place, prove=True) for place in store.folders()]
    assert len(found) == 5 and all(found)
    assert all(result.weights() and len(result.predictions()["labels"]) == 45 for result in found)
    for result in found:
        assert store.find(result.manifest["fingerprint"]) == result


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_what_an_earlier_kdrun_finished_can_teach(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "kept")
    finished = "runs/kept/students/student/kd/seed-0"
    done = command(
        *("train-teacher", "kept.yaml", "--out", "now", "--json", "--set", f"teacher={{run: {finished}}}"),
        folder=place,
    )
    [row] = json.loads(done.out)["rows"]
    then = json.loads((place / finished / "result.json").read_text())
    assert row["values"] == [pytest.approx(then["scores"]["accuracy"])]
