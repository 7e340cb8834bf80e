"""The shelf: arrays that could be computed anew, whole or absent."""

import shutil

import numpy as np
import pytest

from kdrun.errors import StoreError
from kdrun.store import Shelf, shelf

FORMS = {"logits": ((3, 2), "float32"), "index": ((3,), "int64")}


def filled(place, key="key", value=1.5):
    with place.make(key, FORMS, {"what": "logits of a teacher"}) as arrays:
        arrays["logits"][:] = value
        arrays["index"][:] = [0, 1, 2]


def names(place):
    return sorted(path.name for path in place.folder.glob("*")) + sorted(
        p.name for p in place.folder.glob(".*")
    )


def test_arrays_come_back_as_they_were(tmp_path):
    place = Shelf(tmp_path / "cache")
    assert place.find("key") is None
    filled(place)
    found = place.find("key")
    assert (found["logits"] == 1.5).all() and found["logits"].dtype == np.float32
    assert found["index"].tolist() == [0, 1, 2] and not found["index"].flags.writeable
    assert names(place) == ["key"]


def test_what_failed_leaves_nothing(tmp_path):
    place = Shelf(tmp_path)
    with pytest.raises(KeyError), place.make("key", FORMS, {}):
        raise KeyError("the teacher")
    assert place.find("key") is None and names(place) == []


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
    assert (place.find("key")["logits"] == 2.5).all()


def test_what_another_process_finished_meanwhile_stays(tmp_path):
    place = Shelf(tmp_path)
    with place.make("key", FORMS, {}) as arrays:
        arrays["logits"][:] = 0
        filled(Shelf(tmp_path / "other"))
        shutil.copytree(tmp_path / "other" / "key", tmp_path / "key")
    assert (place.find("key")["logits"] == 1.5).all()


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shelf.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 60, 40))
    with pytest.raises(StoreError, match="needs 48 bytes, and 40 are free"):
        filled(Shelf(tmp_path))
    assert names(Shelf(tmp_path)) == []
