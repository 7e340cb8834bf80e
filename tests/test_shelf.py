"""The shelf: arrays that could be computed anew, whole or absent."""

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from kdrun.errors import StoreError
from kdrun.store import Shelf, Store, shelf, write_json
from kdrun.store.housekeeping import disposable_of_shelf, remove_shelved, shelved

FORMS = {"logits": ((3, 2), "float32"), "index": ((3,), "int64")}


def filled(place, key="key", value=1.5):
    with place.make(key, FORMS, {"what": "logits of a teacher"}) as arrays:
        arrays["logits"][:] = value
        arrays["index"][:] = [0, 1, 2]


def names(place):
    return sorted(path.name for path in place.folder.iterdir())


def test_arrays_come_back_as_they_were(tmp_path):
    place = Shelf(tmp_path / "cache")
    assert place.find("key") is None
    filled(place)
    found = place.find("key")
    logits, index = found.arrays["logits"], found.arrays["index"]
    assert (logits == 1.5).all() and logits.dtype == np.float32
    assert index.tolist() == [0, 1, 2] and not index.flags.writeable
    assert found.about == {"what": "logits of a teacher"} and found.bytes == 48
    assert names(place) == ["key"]


def test_what_failed_leaves_nothing(tmp_path):
    place = Shelf(tmp_path)
    with pytest.raises(KeyError), place.make("key", FORMS, {}):
        raise KeyError("the teacher")
    assert place.find("key") is None and names(place) == []


@pytest.mark.parametrize(
    "files", [None, [], "logits.npy", {"../key/logits.npy": {"bytes": 1, "sha256": ""}}, {"logits.npy": 1}]
)
def test_a_manifest_that_is_none_is_nothing(tmp_path, files):
    place = Shelf(tmp_path)
    filled(place)
    write_json(tmp_path / "key" / "manifest.json", {"what": "logits", "files": files})
    assert place.find("key") is None


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "manifest"])
def test_what_was_damaged_is_made_anew(tmp_path, harm):
    place = Shelf(tmp_path)
    filled(place)
    file = tmp_path / "key" / ("manifest.json" if harm == "manifest" else "logits.npy")
    data = file.read_bytes()
    changed = {"flip": data[:-1] + b"\x01", "cut": data[:-4], "gone": None, "manifest": b"{"}[harm]
    file.unlink() if changed is None else file.write_bytes(changed)
    assert place.find("key") is None
    filled(place, value=2.5)
    assert (place.find("key").arrays["logits"] == 2.5).all()


def test_what_another_process_finished_meanwhile_stays(tmp_path):
    place = Shelf(tmp_path)
    with place.make("key", FORMS, {}) as arrays:
        arrays["logits"][:] = 0
        filled(Shelf(tmp_path / "other"))
        shutil.copytree(tmp_path / "other" / "key", tmp_path / "key")
    assert (place.find("key").arrays["logits"] == 1.5).all()


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shelf.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 60, 40))
    with pytest.raises(StoreError, match="needs 48 bytes, and 40 are free"):
        filled(Shelf(tmp_path))
    assert names(Shelf(tmp_path)) == []


def states(root):
    return {entry.folder.name: entry.state for entry in shelved(Store(root))}


def test_what_lies_on_the_shelf(tmp_path):
    store = Store(tmp_path)
    assert shelved(store) == []
    filled(store.shelf)
    (kept,) = shelved(store)
    assert (kept.state, kept.detail) == ("kept", "logits of a teacher")
    assert kept.bytes == sum(file.stat().st_size for file in kept.folder.iterdir())
    for name, manifest in (("list", "[]"), ("text", "{"), ("empty", "{}"), ("lacks", '{"files": {"x": 1}}')):
        (store.shelf.folder / name).mkdir()
        (store.shelf.folder / name / "manifest.json").write_text(manifest)
    for name in (".gone.x.making", "somebody's", ".git"):
        (store.shelf.folder / name).mkdir()
    (store.shelf.folder / ".gone.x.making" / "lock").touch()
    (store.shelf.folder / ".DS_Store").write_text("")
    with store.shelf._begun("mine") as mine:
        found = states(tmp_path)
    assert found == {
        "key": "kept",
        **dict.fromkeys(["list", "text", "empty", "lacks"], "damaged"),
        mine.name: "at work",
        **dict.fromkeys(["somebody's", ".git", ".DS_Store"], "foreign"),
    }


def test_an_entry_that_lost_bytes_is_damaged(tmp_path):
    filled(Store(tmp_path).shelf)
    os.truncate(tmp_path / "cache/key/logits.npy", 20)
    assert states(tmp_path) == {"key": "damaged"}


def test_what_of_the_shelf_is_deleted(tmp_path):
    store = Store(tmp_path)
    filled(store.shelf)
    (store.shelf.folder / "somebody's").mkdir()
    with store.shelf.make("other", FORMS, {}) as arrays:
        found = shelved(store)
        assert [e.folder.name for e in disposable_of_shelf(found, all_=False)] == []
        (store.shelf.folder / ".gone.x.making").mkdir()
        (store.shelf.folder / ".gone.x.making" / "lock").touch()
        found = shelved(store)
        (left,) = disposable_of_shelf(found, all_=False)
        assert left.state == "unfinished"
        for entry in disposable_of_shelf(found, all_=True):
            remove_shelved(entry)
            remove_shelved(entry)
        assert sorted(states(tmp_path).values()) == ["at work", "foreign"]
        for array in arrays.values():
            array[:] = 1
    assert states(tmp_path) == {"other": "kept", "somebody's": "foreign"}


def test_two_that_make_one_at_once_do_not_disturb_each_other(tmp_path):
    """Whatever their process numbers: of two containers they may be equal."""
    place = Shelf(tmp_path)
    with place.make("key", FORMS, {}) as slow:
        filled(place, value=2.5)
        slow["logits"][:] = 1.5
    assert (place.find("key").arrays["logits"] == 2.5).all() and names(place) == ["key"]


def test_a_sweep_that_is_faster_than_the_lock_is_noticed(tmp_path, monkeypatch):
    """A folder whose lock is there and not held yet looks like one of a process that was killed."""
    place, real, swept = Shelf(tmp_path), shelf.fcntl.flock, []

    def late(file, how):
        if how == shelf.fcntl.LOCK_EX and not swept:
            swept.append(names(place))
            place._sweep()
        real(file, how)

    monkeypatch.setattr(shelf.fcntl, "flock", late)
    filled(place)
    assert len(swept[0]) == 1 and names(place) == ["key"] and place.find("key") is not None


def test_a_disk_that_has_no_room_left_is_one_message(tmp_path, monkeypatch):
    """It gives its room before anything is written: a page that finds none later kills the process."""

    def full(file, first, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        StoreError, match=r"key: cannot be written: No space left .*; it needs 48 B, and .* free"
    ):
        filled(Shelf(tmp_path))
    assert names(Shelf(tmp_path)) == []


def test_all_room_is_taken_before_anything_is_written(tmp_path):
    with Shelf(tmp_path).make("key", {"x": ((1 << 16,), "float32")}, {}):
        (file,) = tmp_path.glob(".key.*/x.npy")
        assert file.stat().st_blocks * 512 >= 4 << 16


def test_a_foreign_name_does_not_keep_anything_from_being_made(tmp_path):
    for name in (".DS_Store", ".git", ".a.b"):
        (tmp_path / name).mkdir()
    filled(Shelf(tmp_path))
    assert names(Shelf(tmp_path)) == [".DS_Store", ".a.b", ".git", "key"]


def test_what_a_killed_process_left_is_swept_away(tmp_path):
    code = f"""
import os, pathlib
from kdrun.store import Shelf
with Shelf(pathlib.Path({str(tmp_path)!r})).make("key", {FORMS!r}, {{}}):
    os._exit(9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert [name[:5] for name in names(Shelf(tmp_path))] == [".key."]
    filled(Shelf(tmp_path), "another")
    assert names(Shelf(tmp_path)) == ["another"]
