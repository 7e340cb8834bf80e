"""What the folder of runs promises: nothing finished is trained twice, lost, or mixed up with anything else."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import kdrun
from kdrun import assembly, bookkeeping, models, registry, rehearsal
from kdrun import plan as plan_module
from kdrun.console import Console
from kdrun.errors import DamagedError, Interrupted, StoreError, TrainingError
from kdrun.plan import plan
from kdrun.store import (
    FORMAT,
    Checkpoint,
    Store,
    checkpoints,
    files,
    fingerprint,
    first_difference,
    read_json,
)
from kdrun.store.housekeeping import disposable, entries, remove
from kdrun.store.lock import locked
from support import (
    Ears,
    checked,
    checkpoint_always,
    comparison,
    count_training,
    experiment,
    outcome,
    results,
    run,
    weights_hash,
)

BASE = """
    name: first
    device: cpu
    dataset: {kind: iris}
    seeds: [0]
    training: {epochs: 1, batch_size: 32}
    teachers:
      big: {model: {kind: mlp, hidden: [12]}}
    students:
      small: {model: {kind: mlp, hidden: [6]}}
    controls: none
    methods:
      - kd
      - {name: mine, losses: [{kind: ce, weight: 0.5}, {kind: kd, weight: 0.5}, {kind: hint, weight: 2}]}
"""
TITLES = ["big/seed 0", "small/alone/seed 0", "small/kd/seed 0", "small/mine/seed 0"]
MINE = "students/small/mine/seed-0"


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Nothing here cuts the power, so nothing has to wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def no_training(monkeypatch):
    def refuse(*_):
        raise AssertionError("something is trained")

    monkeypatch.setattr("kdrun.experiment.fit", refuse)


def tree(root):
    """Every file below a folder with its content."""
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def without_clock(found):
    return {path: data for path, data in found.items() if path.name != "provenance.json"}


# ------------------------------------------------------------------------------------- never trained twice


def test_a_second_run_trains_nothing_and_changes_nothing(tmp_path, monkeypatch):
    trained = count_training(monkeypatch)
    run(BASE, tmp_path)
    assert trained == TITLES
    before = without_clock(tree(tmp_path))
    no_training(monkeypatch)
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: pytest.fail("nothing is to be trained"))
    run(BASE, tmp_path)
    assert without_clock(tree(tmp_path)) == before


def test_distill_after_compare_trains_nothing(tmp_path, monkeypatch):
    run(BASE, tmp_path)
    no_training(monkeypatch)
    run(BASE, tmp_path, roles=["teacher"])
    run(BASE, tmp_path, methods=["kd"])
    run(BASE, tmp_path, methods=["kd", "mine"])


def test_distilling_one_method_trains_it_and_its_control(tmp_path, monkeypatch):
    trained = count_training(monkeypatch)
    run(BASE, tmp_path, methods=["mine"])
    assert trained == [TITLES[0], TITLES[1], TITLES[3]]
    run(BASE, tmp_path)
    assert trained[3:] == [TITLES[2]]


def test_a_changed_weight_trains_that_method_alone(tmp_path, monkeypatch, capfd):
    run(BASE, tmp_path)
    before = tree(tmp_path / "first/students")
    trained = count_training(monkeypatch)
    planned = experiment(BASE, tmp_path, "methods.mine.losses.2.weight=3", console=Console()).run()
    assert trained == ["small/mine/seed 0"]
    new = next(r for r in planned.runs if r.method == "mine")
    place = f"{MINE}-{new.fingerprint[:8]}"
    assert set(results(tmp_path)) == {
        MINE,
        place,
        *(f"students/small/{m}/seed-0" for m in ("alone", "kd")),
    } | {"teachers/big/seed-0"}
    after = tree(tmp_path / "first/students")
    assert {path: after[path] for path in before} == before, "nothing finished is overwritten"
    told = capfd.readouterr().err
    assert "losses.2.weight: 2.0 → 3.0" in told and place in told.replace("\n", "")
    row = next(r for r in comparison(tmp_path, "first")["rows"] if r["method"] == "mine")
    assert row["values"] == [results(tmp_path)[place].manifest["scores"]["accuracy"]]
    run(BASE, tmp_path, "methods.mine.losses.2.weight=3")
    run(BASE, tmp_path)
    assert trained == ["small/mine/seed 0"], "neither is trained again"


def test_a_third_value_goes_to_a_third_folder(tmp_path, monkeypatch):
    for weight in (2, 3, 4):
        run(BASE, tmp_path, f"methods.mine.losses.2.weight={weight}")
    assert len([place for place in results(tmp_path) if place.startswith(MINE)]) == 3


def test_what_was_begun_with_another_config_is_left_alone(tmp_path, monkeypatch):
    run(BASE, tmp_path, roles=["teacher"])
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(bookkeeping.Keeper, "pause", lambda self: stop(self))
        run(BASE, tmp_path)
    begun = tree(tmp_path / "first" / MINE)
    assert begun
    run(BASE, tmp_path, "methods.mine.losses.2.weight=3")
    assert tree(tmp_path / "first" / MINE) == begun
    run(BASE, tmp_path / "fresh")
    run(BASE, tmp_path)
    assert weights_hash(tmp_path, MINE) == weights_hash(tmp_path / "fresh", MINE)


def stop(keeper):
    """Save and stop, as at a signal."""
    keeper.stop.signal = signal.SIGTERM
    original_pause(keeper)


original_pause = bookkeeping.Keeper.pause


def test_configs_share_what_is_finished(tmp_path, monkeypatch):
    run(BASE, tmp_path)
    trained = count_training(monkeypatch)
    run(BASE, tmp_path, "name=second")
    assert trained == []
    assert not (tmp_path / "second/students").exists()
    first, second = (
        [row | {"experiment": None} for row in comparison(tmp_path, name)["rows"]]
        for name in ("first", "second")
    )
    assert second == first
    run(BASE, tmp_path, "name=third", "methods=[kd, hint]")
    assert trained == ["small/hint/seed 0"]
    assert (tmp_path / "third/students/small/hint/seed-0/result.json").is_file()
    run(BASE, tmp_path, "methods=[hint]")
    assert trained == ["small/hint/seed 0"]


def test_a_renamed_teacher_is_the_same_teacher(tmp_path, monkeypatch):
    run(BASE, tmp_path)
    trained = count_training(monkeypatch)
    run(BASE.replace("big:", "great:"), tmp_path, "name=renamed")
    assert trained == []


def test_without_an_index_a_run_is_found_where_it_lies(tmp_path, monkeypatch):
    run(BASE, tmp_path)
    run(BASE, tmp_path, "methods.mine.losses.2.weight=3")
    shutil.rmtree(tmp_path / "index")
    no_training(monkeypatch)
    run(BASE, tmp_path)
    run(BASE, tmp_path, "methods.mine.losses.2.weight=3")


def test_what_another_process_finished_meanwhile_is_not_trained_again(tmp_path, monkeypatch):
    @contextmanager
    def after_another(store, group):
        with monkeypatch.context() as patch:
            patch.setattr(bookkeeping, "locked_group", lock)
            run(BASE, tmp_path)
        no_training(monkeypatch)
        with lock(store, group):
            yield

    lock = bookkeeping.locked_group
    monkeypatch.setattr(bookkeeping, "locked_group", after_another)
    run(BASE, tmp_path)


def test_methods_that_come_to_the_same_are_trained_once(tmp_path, monkeypatch):
    trained = count_training(monkeypatch)
    same = "{name: kd-T4, use: kd, set: {kd.temperature: 4}}, {name: plain, losses: [{kind: ce}]}"
    run(BASE, tmp_path, f"methods=[kd, {same}]")
    assert trained == TITLES[:3]
    rows = {row["method"]: row for row in comparison(tmp_path, "first")["rows"]}
    assert rows["kd"]["values"] == rows["kd-T4"]["values"]
    assert rows["alone"]["values"] == rows["plain"]["values"]
    assert {row["status"] for row in rows.values()} == {"finished"}


# -------------------------------------------------------------------------------------- what decides a result


def prints(*overrides, text=BASE):
    config = checked(text, *overrides)
    planned = plan(config, assembly.open_dataset(config))
    return {run_.title: run_.fingerprint for run_ in planned.runs}


def changed(*overrides, base=()):
    before, after = prints(*base), prints(*base, *overrides)
    return {title for title in before if before[title] != after.get(title)}


ALL, STUDENTS = set(TITLES), set(TITLES[1:])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epochs=2", ALL),
        ("training.optimizer={kind: adamw, lr: 0.002}", ALL),
        ("device=auto", ALL),
        ("dataset.seed=1", ALL),
        ("dataset.validation=0.1", ALL),
        ("dataset.labels_per_class=5", STUDENTS),
        ("dataset.leave_out=[1]", STUDENTS),
        ("dataset.leave_out=null", set()),
        ("teachers.big.training={epochs: 2}", {TITLES[0], *TITLES[2:]}),
        ("teachers.big.seed=1", {TITLES[0], *TITLES[2:]}),
        ("students.small.training={epochs: 2}", STUDENTS),
        ("students.small.model.hidden=[7]", STUDENTS),
        ("methods.mine.losses.0.weight=0.6", {TITLES[3]}),
        ("methods.mine.losses.1.temperature=5", {TITLES[3]}),
        ("name=other", set()),
        ("dataset.root=elsewhere", set()),
        ("dataset.metric=macro-f1", set()),
        ("dataset.metric=recall@1", ALL),
        ("dataset.unseen=null", set()),
        ("teachers.big.expect=0.1", set()),
    ],
)
def test_what_a_key_decides(override, expected):
    assert changed(override) == expected


def test_classes_left_out_are_the_same_in_any_order_and_as_numbers_or_words():
    assert prints("dataset.leave_out=[1, 0]") == prints("dataset.leave_out=['0', '1', 1]")


def test_what_asks_for_nothing_is_no_part_of_a_fingerprint():
    config = checked(BASE)
    for run_ in plan(config, assembly.open_dataset(config)).runs:
        assert not {"leave_out", "unseen"} & run_.inputs["dataset"].keys() and "scored_by" not in run_.inputs


def test_the_names_of_methods_and_terms():
    renamed = prints("methods.mine.name=other")
    assert renamed["small/other/seed 0"] == prints()["small/mine/seed 0"]


def test_the_metric_decides_where_it_selects():
    base = ["dataset.validation=0.2", "training.selection=best-on-validation"]
    assert changed("dataset.metric=macro-f1", base=base) == ALL


def weights_file(path, seed):
    config = checked(BASE).experiment.students["small"].model
    save_file(models.build(config, (4,), 3, seed).state_dict(), path)
    return path


def test_a_file_of_weights_decides_by_its_content(tmp_path):
    one, copy, two = (
        weights_file(tmp_path / f"{n}.safetensors", s) for n, s in (("a", 1), ("b", 1), ("c", 2))
    )
    for key in ("students.small.model.initial_weights", "teachers.big.weights"):
        found = [prints(f"{key}={path}") for path in (one, copy, two)]
        assert found[0] == found[1]
        assert found[0] != found[2]
    before = prints(f"students.small.model.initial_weights={one}")
    weights_file(one, 3)
    after = prints(f"students.small.model.initial_weights={one}")
    assert {title for title in before if before[title] != after[title]} == STUDENTS


def test_fingerprints_are_canonical():
    assert fingerprint({"a": 1, "b": [1, {"c": 2.5, "d": None}]}) == fingerprint(
        {"b": [1, {"d": None, "c": 2.5}], "a": 1}
    )
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    with pytest.raises(ValueError):
        fingerprint({"a": float("nan")})


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            {"training": {"epochs": 30, "lr": 1}},
            {"training": {"epochs": 40, "lr": 1}},
            "training.epochs: 30 → 40",
        ),
        ({"losses": [{"w": 1}, {"w": 2}]}, {"losses": [{"w": 1}, {"w": 3}]}, "losses.1.w: 2 → 3"),
        ({"losses": [{"w": 1}]}, {"losses": [{"w": 1}, {"w": 3}]}, "losses.1.w: None → 3"),
        ({"a": 1, "b": 2}, {"a": 1}, "b: 2 → None"),
        ({"a": 1}, {"a": 1}, "nothing"),
    ],
)
def test_the_changed_key_is_named(old, new, told):
    assert first_difference(old, new) == told


# ------------------------------------------------------------------------------------------ whole or absent


def test_the_manifest_is_written_last(tmp_path, monkeypatch):
    order = []

    def noted(source, target):
        order.append(Path(target))
        replace(source, target)

    replace = os.replace
    run(BASE, tmp_path, roles=["teacher"])
    monkeypatch.setattr(os, "replace", noted)
    run(BASE, tmp_path, methods=["kd"])
    monkeypatch.undo()
    folder = tmp_path / "first/students/small/kd/seed-0"
    own = [path.name for path in order if path.parent == folder and not path.name.endswith(".claim")]
    assert own[-1] == "result.json"
    assert set(own) == {
        "begun.json",
        "weights.safetensors",
        "predictions.npz",
        "metrics.jsonl",
        "result.json",
    }
    found = results(tmp_path)["students/small/kd/seed-0"]
    index = order.index(tmp_path / "index" / f"{found.manifest['fingerprint']}.json")
    assert index < order.index(folder / "result.json"), "a finished run is found from every config"
    assert set(json.loads((folder / "result.json").read_text())) >= {
        *("format", "kind", "name", "method", "seed", "fingerprint", "inputs", "files", "scores", "resolved"),
        "train_seconds",
    }
    assert set(found.manifest["resolved"]) == {"device", "precision", "cache", "teachers"}
    assert sorted(path.name for path in folder.iterdir()) == sorted(set(own) - {"begun.json"})


@pytest.mark.parametrize("moment", ["weights.safetensors", "predictions.npz", "metrics.jsonl", "result.json"])
def test_killed_while_the_result_is_written(tmp_path, monkeypatch, moment):
    class Killed(BaseException):
        pass

    def killed(source, target):
        if Path(target).name == moment and "kd" in str(target):
            raise Killed
        replace(source, target)

    replace = os.replace
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", killed)
        checkpoint_always(patch)
        run(BASE, tmp_path)
    place = "students/small/kd/seed-0"
    assert place not in results(tmp_path)
    run(BASE, tmp_path / "whole")
    run(BASE, tmp_path)
    assert outcome(tmp_path)[place] == outcome(tmp_path / "whole")[place]


@pytest.mark.parametrize("name", ["weights.safetensors", "predictions.npz", "metrics.jsonl"])
@pytest.mark.parametrize("harm", ["missing", "cut", "empty"])
def test_a_result_with_a_missing_or_cut_file_is_unfinished(tmp_path, monkeypatch, name, harm):
    run(BASE, tmp_path, methods=["kd"])
    place = "students/small/kd/seed-0"
    whole = results(tmp_path)[place]
    path = whole.folder / name
    path.unlink() if harm == "missing" else os.truncate(
        path, 0 if harm == "empty" else path.stat().st_size - 1
    )
    assert place not in results(tmp_path)
    trained = count_training(monkeypatch)
    run(BASE, tmp_path, methods=["kd"])
    assert trained == ["small/kd/seed 0"]
    assert outcome(tmp_path)[place]["files"] == whole.manifest["files"]


def flip(path, position=-1):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["weights.safetensors", "predictions.npz", "metrics.jsonl", "result.json"])
def test_a_flipped_bit_in_a_result_is_named_and_answered_by_training_it_again(
    tmp_path, monkeypatch, capfd, name
):
    run(BASE, tmp_path)
    before = outcome(tmp_path)
    place = "teachers/big/seed-0"
    flip(tmp_path / "first" / place / name, -5)
    heard = Ears()
    trained = count_training(monkeypatch)
    experiment(BASE, tmp_path, console=heard).run()
    assert trained == ["big/seed 0"]
    told = [text for text in heard.heard if name in text]
    assert len(told) == 1 and "its bytes are not those that were written" in told[0] and place in told[0]
    assert outcome(tmp_path) == before


def test_flipped_bits_in_predictions_are_noticed_without_training(tmp_path):
    run(BASE, tmp_path)
    path = results(tmp_path)["students/small/kd/seed-0"].folder / "predictions.npz"
    flip(path, 200)
    with pytest.raises(
        DamagedError, match=r"predictions\.npz: its bytes are not .*the command that made it makes it anew"
    ):
        comparison(tmp_path, "first")


@pytest.mark.parametrize("harm", ["flipped", "cut", "emptied", "another's"])
def test_what_a_comparison_stands_on_is_not_read_where_it_is_damaged(tmp_path, harm):
    run(BASE, tmp_path)
    path = tmp_path / "first/resolved.json"
    whole = path.read_bytes()
    harmed = {"flipped": whole.replace(b"1", b"2", 1), "cut": whole[:-40], "emptied": b"", "another's": b"[]"}
    path.write_bytes(harmed[harm])
    with pytest.raises(DamagedError, match=r"resolved.json: .*the command that made it makes it anew"):
        comparison(tmp_path, "first")
    run(BASE, tmp_path)
    read_json(path)
    comparison(tmp_path, "first")


def test_a_damaged_index_is_not_needed(tmp_path, monkeypatch):
    run(BASE, tmp_path)
    for path in (tmp_path / "index").glob("*.json"):
        flip(path, 30)
    heard = Ears()
    no_training(monkeypatch)
    experiment(BASE, tmp_path, console=heard).run()
    assert sum("index" in text for text in heard.heard) == 4


def test_a_folder_of_which_nobody_knows_any_more_whose_it_is_is_left_alone(tmp_path):
    run(BASE, tmp_path)
    folder = tmp_path / "first" / MINE
    for name in ("result.json", "weights.safetensors"):
        (folder / name).write_bytes(b"?" * 100)
    before = tree(folder)
    shutil.rmtree(tmp_path / "index")
    run(BASE, tmp_path)
    assert tree(folder) == before
    assert len([place for place in results(tmp_path) if place.startswith(MINE)]) == 1
    assert state_of(tmp_path)["small/mine/seed-0"].state == "damaged"
    assert [entry.folder for entry in disposable(entries(Store(tmp_path)))] == [folder]


def test_a_damaged_manifest_of_which_the_index_knows_whose_it_is_is_replaced(tmp_path):
    run(BASE, tmp_path)
    before = outcome(tmp_path)
    (tmp_path / "first" / MINE / "result.json").write_bytes(b"")
    run(BASE, tmp_path)
    assert outcome(tmp_path) == before


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    run(BASE, tmp_path, roles=["teacher"])
    path = results(tmp_path)["teachers/big/seed-0"].folder / "result.json"
    manifest = json.loads(path.read_text())
    assert manifest["format"] == FORMAT
    path.write_text(json.dumps(manifest | {"format": FORMAT + 1}))
    no_training(monkeypatch)
    with pytest.raises(
        StoreError, match=rf"result\.json: format {FORMAT + 1} is newer than this kdrun's {FORMAT}"
    ):
        run(BASE, tmp_path)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.data())
def test_no_byte_of_json_can_be_changed_unnoticed(data):
    value = {
        "format of": "runs",
        "scores": {"accuracy": 0.1 + 0.2, "nll": None},
        "name": "größe\x00",
        "n": [1, 2],
    }
    whole = files.sealed(value)
    with TemporaryDirectory() as folder:
        path = Path(folder, "it.json")
        path.write_bytes(whole)
        assert read_json(path) == value
        place = data.draw(st.integers(0, len(whole) - 1))
        byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
        path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
        with pytest.raises(StoreError, match=r"it\.json"):
            read_json(path)
        path.write_bytes(whole[:place])
        with pytest.raises(DamagedError, match=r"it\.json"):
            read_json(path)


def test_json_of_the_first_format_has_no_seal_and_is_read(tmp_path):
    for number, (text, known) in enumerate(
        [('{"a": 1}', True), ('{"format": 1, "a": 1}', True), ('{"format": 2, "a": 1}', False)]
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        if known:
            assert read_json(path) == {"a": 1}
        else:
            with pytest.raises(DamagedError):
                read_json(path)


def test_a_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "deep/down/file"
    files.write_bytes(path, b"old")
    assert path.read_bytes() == b"old"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        StoreError, match=r"file: cannot be written: No space left on device; it needs 3 B, and .* free"
    ):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path], "nothing half-written is left"


def test_a_result_is_synced_before_it_counts(tmp_path, monkeypatch):
    order = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: order.append("sync"))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("replace"), replace(*names)))
    files.write_bytes(tmp_path / "file", b"data")
    assert order == ["sync", "replace", "sync"]


def test_not_a_number_is_no_json(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "file.json", {"score": float("nan")})
    assert not (tmp_path / "file.json").exists()


# ------------------------------------------------------------------------------------------------ locks


def test_a_run_has_one_writer(tmp_path, monkeypatch):
    planned = run(BASE, tmp_path, roles=["teacher"])
    student = next(run_ for run_ in planned.runs if run_.method == "kd")
    path = Store(tmp_path).lock_file(student.fingerprint)
    no_training(monkeypatch)
    with (
        locked(path, "that"),
        pytest.raises(
            StoreError, match=rf"small/kd/seed 0 is being trained by process {os.getpid()} on \S+ since "
        ),
    ):
        run(BASE, tmp_path)
    monkeypatch.undo()
    run(BASE, tmp_path)


HOLD = """
import os, signal, sys
from pathlib import Path
from kdrun.store.lock import locked
with locked(Path(sys.argv[1]), "that"):
    print("held", flush=True)
    signal.pause()
"""


def test_a_lock_dies_with_its_holder(tmp_path):
    path = tmp_path / "index/some.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(kdrun.__file__).parents[1])},
    )
    with holder.stdout:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(StoreError, match=f"this is being trained by process {holder.pid} on"),
            locked(path, "this"),
        ):
            pass
        holder.kill()
        holder.wait()
    with locked(path, "this"):
        assert f"process {os.getpid()}" in path.read_text()


# ------------------------------------------------------------------------------------------- checkpoints


def checkpoint(step, value=1.0):
    arrays = {"model/w": np.full((2, 3), value, np.float32), "optimizer/0.step": np.array(step, np.float32)}
    state = {
        "epochs_closed": 0,
        "best_score": None,
        "seconds": 1.5,
        "metrics": [],
        "sums": {"ce": 0.1 + 0.2},
        "shares": None,
        "both_gradients": [False],
        "resolved": {"device": "cpu"},
        "threads": 1,
    }
    return Checkpoint(step, arrays, state)


def steps_in(folder):
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    checkpoint(7, 1 / 3).save(tmp_path, "print")
    found, damaged = checkpoints.newest(tmp_path, "print")
    assert found.step == 7 and damaged == [] and found.state == checkpoint(7).state
    for name, array in checkpoint(7, 1 / 3).arrays.items():
        assert (found.arrays[name] == array).all()
        assert (found.arrays[name].dtype, found.arrays[name].shape) == (array.dtype, array.shape)


def test_the_newest_two_checkpoints_are_kept(tmp_path):
    for step in (1, 5, 9, 10, 110):
        checkpoint(step).save(tmp_path, "print")
        assert len(steps_in(tmp_path)) <= 2
    assert steps_in(tmp_path) == [10, 110], "by number, not by name"
    assert checkpoints.newest(tmp_path, "print")[0].step == 110


def test_damaged_checkpoints_never_push_out_whole_ones(tmp_path):
    for step in (8, 9):
        checkpoint(step).save(tmp_path, "print")
        flip(tmp_path / f"checkpoint-{step}/state.safetensors")
    found, damaged = checkpoints.newest(tmp_path, "print")
    assert found is None and len(damaged) == 2
    for step in (1, 2, 3):
        checkpoint(step).save(tmp_path, "print")
        assert checkpoints.newest(tmp_path, "print")[0].step == step


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path):
    checkpoint(4).save(tmp_path, "other")
    assert checkpoints.newest(tmp_path, "print") == (None, [])


def test_a_checkpoint_counts_once_its_manifest_is_there(tmp_path, monkeypatch):
    checkpoint(1).save(tmp_path, "print")
    replace = os.replace
    for name in ("state.safetensors", "state.json", "manifest.json"):

        def killed(source, target, name=name):
            if Path(target).name == name:
                raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", killed)
            checkpoint(2).save(tmp_path, "print")
        found, damaged = checkpoints.newest(tmp_path, "print")
        assert found.step == 1 and damaged == []


# ------------------------------------------------------------------------------------------ housekeeping


def state_of(root):
    return {"/".join(entry.folder.parts[-3:]): entry for entry in entries(Store(root))}


def test_the_states_of_runs(tmp_path, monkeypatch):
    run(BASE, tmp_path, roles=["teacher"])
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(bookkeeping.Keeper, "pause", lambda self: self.progress[1] and stop(self))
        run(BASE, tmp_path)
    states = state_of(tmp_path)
    assert {key: entry.state for key, entry in states.items()} == {
        "teachers/big/seed-0": "finished",
        "small/alone/seed-0": "unfinished",
        "small/kd/seed-0": "unfinished",
        "small/mine/seed-0": "unfinished",
    }
    kd = states["small/kd/seed-0"]
    assert kd.progress == pytest.approx(1 / 3) and kd.bytes > 0 and kd.referenced
    with locked(Store(tmp_path).lock_file(kd.fingerprint), "kd"):
        assert state_of(tmp_path)["small/kd/seed-0"].state == "at work"
        assert "kd" not in {entry.folder.parent.name for entry in disposable(entries(Store(tmp_path)))}
    run(BASE, tmp_path)
    assert {entry.state for entry in entries(Store(tmp_path))} == {"finished"}
    assert disposable(entries(Store(tmp_path))) == []


def test_clean_takes_what_nobody_asks_for(tmp_path):
    run(BASE, tmp_path)
    run(BASE, tmp_path, "methods.mine.losses.2.weight=3")
    store = Store(tmp_path)
    (old,) = disposable(entries(store))
    assert old.folder == tmp_path / "first" / MINE
    remove(store, old)
    assert not old.folder.exists()
    assert disposable(entries(store)) == []


def test_clean_keeps_what_another_config_finished(tmp_path, monkeypatch):
    run(BASE, tmp_path, roles=["teacher"])
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(bookkeeping.Keeper, "pause", stop)
        run(BASE, tmp_path)
    run(BASE, tmp_path, "name=second")
    store = Store(tmp_path)
    for entry in disposable(entries(store)):
        assert entry.folder.is_relative_to(tmp_path / "first/students")
        remove(store, entry)
    no_training(monkeypatch)
    run(BASE, tmp_path)


# ------------------------------------------------------------------- what a review found: one test each


def test_a_folder_is_claimed_by_one_of_two(tmp_path):
    store = Store(tmp_path)
    first, difference = store.workplace("a/students/s/kd/seed-0", "1" * 64, {"lr": 1})
    assert difference == ""
    second, difference = store.workplace("a/students/s/kd/seed-0", "2" * 64, {"lr": 2})
    assert difference == "lr: 1 → 2" and second.folder != first.folder
    again, difference = store.workplace("a/students/s/kd/seed-0", "1" * 64, {"lr": 1})
    assert (again.folder, difference) == (first.folder, "")


def experiment_plan(text, *overrides):
    config = checked(text, *overrides)
    return plan(config, assembly.open_dataset(config))


TWO_NAMES = """
name: twins
dataset: {kind: iris}
seeds: [0]
training: {epochs: 2, batch_size: 32}
teachers:
  a: {model: {kind: mlp, hidden: [8]}}
  b: {model: {kind: mlp, hidden: [8]}, expect: 0.0}
  c: {model: {kind: mlp, hidden: [4]}, from: b, method: kd}
student: {model: {kind: mlp, hidden: [4]}}
methods: [{use: kd, teacher: c}]
"""


def test_two_names_for_one_teacher_are_one_run(tmp_path):
    run(TWO_NAMES, tmp_path)
    assert len([place for place in results(tmp_path) if place.startswith("teachers/")]) == 2
    with pytest.raises(TrainingError, match="under its expect"):
        run(TWO_NAMES.replace("expect: 0.0", "expect: 1.0"), tmp_path / "strict")


def test_a_finished_teacher_is_not_another_one_for_another_training(tmp_path):
    run(TWO_NAMES, tmp_path / "made", roles=["teacher"])
    weights = tmp_path / "made/twins/teachers/a/seed-0/weights.safetensors"
    text = f"""
    name: given
    dataset: {{kind: iris}}
    seeds: [0]
    training: {{epochs: 2, batch_size: 32}}
    teacher: {{model: {{kind: mlp, hidden: [8]}}, weights: {weights}}}
    student: {{model: {{kind: mlp, hidden: [4]}}, training: {{epochs: 2}}}}
    methods: [kd]
    """
    prints = [[r.fingerprint for r in experiment_plan(text, *o).runs] for o in ((), ("training.epochs=9",))]
    assert prints[0] == prints[1]


def test_mended_plugin_code_is_another_run(monkeypatch):
    before = experiment_plan(TWO_NAMES).runs[-1].fingerprint
    assert experiment_plan(TWO_NAMES).runs[-1].fingerprint == before
    monkeypatch.setattr(registry.LOSSES["kd"], "__module__", __name__)
    named = experiment_plan(TWO_NAMES).runs[-1]
    assert list(named.inputs["plugins"]) == [__name__] and named.fingerprint != before
    monkeypatch.setattr(plan_module, "_source_hash", lambda module: "mended")
    assert experiment_plan(TWO_NAMES).runs[-1].fingerprint != named.fingerprint


def test_weights_that_overflow_in_the_last_step_are_a_failure_of_one_student(tmp_path):
    text = TWO_NAMES.replace(
        "student: {",
        "students:\n  wild: {training: {epochs: 1, batch_size: 105, "
        "optimizer: {kind: sgd, lr: 1e30}}, model: {kind: mlp, hidden: [4]}}\n  student: {",
    )
    with pytest.raises(TrainingError, match="wild/kd/seed 0: the outputs on the test set are not finite"):
        run(text, tmp_path)
    assert "students/student/kd/seed-0" in results(tmp_path)
    assert "students/wild/kd/seed-0" not in results(tmp_path)
