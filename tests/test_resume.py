"""Stopped at any moment, the same command goes on to the same bits as if it had never been stopped."""

import os
import re
import shutil
import signal
import textwrap
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from kdrun import bookkeeping, rehearsal, train
from kdrun.console import Console
from kdrun.errors import Interrupted, StoreError
from kdrun.interrupts import Stop
from kdrun.store import Workplace, checkpoints, read_json
from kdrun.train import fit
from support import (
    Ears,
    checkpoint_always,
    comparison,
    experiment,
    kdrun_process,
    outcome,
    results,
    run,
)

BASE = """
    name: resume
    device: cpu
    dataset: {kind: synthetic, shape: [6], classes: 3, samples: 64, test_samples: 24, validation: 0.25}
    seeds: [2]
    training: {epochs: 3, batch_size: 16}
    teachers:
      big: {model: {kind: mlp, hidden: [12, 12], batch_norm: true}}
    students:
      small: {model: {kind: mlp, hidden: [8, 8], dropout: 0.3, batch_norm: true}}
    controls: none
    methods: [kd, hint]
"""
"""Three steps an epoch, nine in all; the teacher, then ``alone``, ``kd`` and ``hint`` in lock step."""
PICTURES = ["dataset={kind: synthetic, shape: [1, 8, 8], classes: 3, samples: 48, augmentation: strong}"] + [
    f"{name}.model={{kind: cnn, width: {width}, depth: 2, hidden: 8, dropout: 0.2}}"
    for name, width in (("teachers.big", 4), ("students.small", 3))
]
RECIPES = {
    "sgd-step-clip": [
        "training.optimizer={kind: sgd, lr: 0.1, nesterov: true}",
        "training.schedule={kind: step, milestones: [1, 2]}",
        "training.clip=0.5",
    ],
    "adamw-cosine-warmup-mixup-ema-best": [
        "training.optimizer={kind: adamw, lr: 0.02}",
        "training.warmup=1.5",
        "training.mixup=0.4",
        "training.label_smoothing=0.1",
        "training.ema=0.7",
        "training.selection=best-on-validation",
    ],
    "adam-few-labels": ["training.optimizer=adam", "dataset.labels_per_class=4"],
    "classes-unseen": [
        "dataset={kind: synthetic, shape: [9], classes: 5, samples: 60, unseen: [1, 3], metric: recall@1, "
        "validation: 0.2}",
        "methods=[kd, relative, {use: triplet}]",
    ],
    "graph-of-samples": [
        "teachers.big.model={kind: appnp, hidden: [8], nodes: 20, neighbours: 3, steps: 3}",
        "students.small.model={kind: appnp, hidden: [6], nodes: 12, neighbours: 3, steps: 3}",
        "training.mixup=0.4",
        "training.ema=0.7",
        "training.selection=best-on-validation",
        "methods=[kd, mutual, mean-teacher]",
    ],
    "classes-left-out": ["dataset.leave_out=[1]", "methods=[kd, crd]"],
    "pictures-copies": [
        PICTURES[0].replace("augmentation: strong", "augmentation: {copies: 2, parts: strong}"),
        *PICTURES[1:],
        "training.optimizer={kind: sgd, lr: 0.02}",
        "methods=[kd, hint, rkd]",
    ],
    "pictures-bf16": [*PICTURES, "training.precision=bf16", "training.selection=last"],
    "methods-with-state": [
        "dataset={kind: synthetic, shape: [1, 8, 8], classes: 3, samples: 48, validation: 0.25}",
        "training={epochs: 3, batch_size: 12, optimizer: {kind: sgd, lr: 0.05}, ema: 0.5}",
        "training.selection=best-on-validation",
        "teachers.big.model={kind: resnet8}",
        "students.small.model={kind: resnet8}",
        "methods=[{use: crd, momentum_gap: 0.05}, {use: ft, stages: [{epochs: 1, losses: [ft], train: [adapters]}]}, "
        "{use: ctkd, early_stop: 2}, simkd, {use: mgd, set: {mgd.mask: teacher-confident, mgd.schedule: cosine}}]",
    ],
    "peers-and-pasts": [
        "training.mixup=0.4",
        "methods=[ps-kd, {use: mutual, set: {mutual.peers: 2}}, kdcl, mean-teacher, be-your-own-teacher]",
    ],
}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Nothing here cuts the power, so nothing has to wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def stopping_after(steps, monkeypatch):
    """From now on, every group of runs is asked to stop after so many of its steps, or while they are validated."""

    def pause(self):
        _, done, _ = self.progress
        self.first = getattr(self, "first", done)
        if done - self.first == steps:
            self.stop.signal = signal.SIGTERM
        original(self)

    original = bookkeeping.Keeper.pause
    monkeypatch.setattr(bookkeeping.Keeper, "pause", pause)


def to_the_end(text, root, *overrides):
    """Give the same command until it comes to its end; how often it was given."""
    for times in range(1, 200):
        try:
            experiment(text, root, *overrides).run()
        except Interrupted:
            continue
        return times
    raise AssertionError("it never ends")


# ------------------------------------------------------------------------------------- between two steps


@pytest.mark.parametrize("recipe", RECIPES)
def test_stopped_after_every_single_step(tmp_path, monkeypatch, recipe):
    overrides = RECIPES[recipe]
    run(BASE, tmp_path / "whole", *overrides)
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: [])
    stopping_after(1, monkeypatch)
    groups = (
        3 if "few" in recipe else 2
    )  # few labels: the control draws other batches, so it is a group of its own
    assert to_the_end(BASE, tmp_path / "pieces", *overrides) == groups * 9 + 1
    assert outcome(tmp_path / "pieces") == outcome(tmp_path / "whole")
    assert comparison(tmp_path / "pieces", "resume") == comparison(tmp_path / "whole", "resume")


def test_stopped_after_every_step_with_a_transfer_set(tmp_path, monkeypatch):
    np.savez(tmp_path / "more.npz", x=np.random.default_rng(0).standard_normal((20, 6)))
    overrides = f"dataset.transfer_set={{path: {tmp_path / 'more.npz'}}}", "methods=[kd, crd]"
    run(BASE, tmp_path / "whole", *overrides)
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: [])
    stopping_after(1, monkeypatch)
    assert to_the_end(BASE, tmp_path / "pieces", *overrides) == 3 * 3 + 2 * 3 * 4 + 1, (
        "students take more steps"
    )
    assert outcome(tmp_path / "pieces") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("step", [0, 1, 2, 3, 5, 8, 9])
def test_stopped_once(tmp_path, monkeypatch, step):
    overrides = RECIPES["adamw-cosine-warmup-mixup-ema-best"]
    run(BASE, tmp_path, *overrides)
    whole = outcome(tmp_path)
    shutil.rmtree(tmp_path / "resume/students")
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
        stopping_after(step, patch)
        run(BASE, tmp_path, *overrides)
    assert caught.value.exit_code == 143
    for method in ("alone", "kd", "hint"):
        folder = tmp_path / f"resume/students/small/{method}/seed-2"
        assert [path.name for path in folder.glob("checkpoint-*")] == [f"checkpoint-{step}"]
    run(BASE, tmp_path, *overrides)
    assert outcome(tmp_path) == whole
    assert not list(tmp_path.rglob("checkpoint-*")), "a finished run needs none"


@pytest.mark.parametrize("behind", ["alone", "kd", "hint"])
@pytest.mark.parametrize("lost", ["newest", "both"])
def test_students_of_a_group_at_different_steps(tmp_path, monkeypatch, behind, lost):
    overrides = RECIPES["sgd-step-clip"]
    run(BASE, tmp_path, *overrides)
    whole = outcome(tmp_path)
    shutil.rmtree(tmp_path / "resume/students")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        checkpoint_always(patch)
        stopping_after(4, patch)
        run(BASE, tmp_path, *overrides)
    folder = tmp_path / f"resume/students/small/{behind}/seed-2"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    for step in (3, 4) if lost == "both" else (4,):
        shutil.rmtree(folder / f"checkpoint-{step}")
    run(BASE, tmp_path, *overrides)
    assert outcome(tmp_path) == whole


def test_a_method_that_joins_later(tmp_path, monkeypatch):
    run(BASE, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        run(BASE, tmp_path / "later", "methods=[kd]", roles=["teacher"])
        stopping_after(5, patch)
        run(BASE, tmp_path / "later", "methods=[kd]")
    run(BASE, tmp_path / "later")
    assert outcome(tmp_path / "later") == outcome(tmp_path / "whole")


def test_a_checkpoint_changes_nothing(tmp_path, monkeypatch):
    overrides = RECIPES["adamw-cosine-warmup-mixup-ema-best"]
    run(BASE, tmp_path / "none", *overrides)
    checkpoint_always(monkeypatch)
    run(BASE, tmp_path / "always", *overrides)
    assert outcome(tmp_path / "always") == outcome(tmp_path / "none")


def test_training_time_goes_on_counting(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        run(BASE, tmp_path, roles=["teacher"])
        stopping_after(9, patch)
        run(BASE, tmp_path)
    run(BASE, tmp_path)
    for result in results(tmp_path).values():
        assert result.manifest["train_seconds"] > 0


# ----------------------------------------------------------------------------------- what cannot go on


def positions_at_the_start(monkeypatch):
    """The steps at which students begin or go on, from now on, by title."""
    begun = {}

    def noted(students, *rest):
        begun.update({student.title: student.position for student in students})
        return fit(students, *rest)

    monkeypatch.setattr("kdrun.experiment.fit", noted)
    return begun


def stopped(root, monkeypatch, *overrides, steps=4, text=BASE):
    """Students that were stopped with their newest two checkpoints there."""
    run(text, root, *overrides, roles=["teacher"])
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        checkpoint_always(patch)
        stopping_after(steps, patch)
        run(text, root, *overrides)
    return root / "resume/students/small/kd/seed-2"


def test_another_precision_is_refused(tmp_path, monkeypatch):
    stopped(tmp_path, monkeypatch, "training.precision=auto")
    monkeypatch.setattr(bookkeeping, "resolve_bf16", lambda *_: True)
    with pytest.raises(StoreError, match=r"was begun with .*fp32.* cannot go on with .*bf16"):
        run(BASE, tmp_path, "training.precision=auto")


def test_a_teacher_may_be_renamed_meanwhile(tmp_path, monkeypatch):
    """Names are not in the fingerprint, and not in what a run was begun with."""
    stopped(tmp_path, monkeypatch)
    run(BASE.replace("big:", "large:"), tmp_path)
    run(BASE, tmp_path / "whole")
    place = "students/small/kd/seed-2"
    assert outcome(tmp_path)[place]["scores"] == outcome(tmp_path / "whole")[place]["scores"]


def test_another_device_is_refused(tmp_path, monkeypatch):
    stopped(tmp_path, monkeypatch)

    def elsewhere(seat):
        return resolved.fget(seat) | {"device": "cuda"}

    resolved = bookkeeping.Seat.resolved
    monkeypatch.setattr(bookkeeping.Seat, "resolved", property(elsewhere))
    with pytest.raises(StoreError, match=r"'device': 'cpu'.* cannot go on with .*'device': 'cuda'.*delete"):
        run(BASE, tmp_path)


def test_another_number_of_threads_is_told(tmp_path, monkeypatch):
    stopped(tmp_path, monkeypatch)
    console = Ears()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    experiment(BASE, tmp_path, console=console).run()
    told = [text for text in console.heard if "threads" in text]
    assert told == [
        "was begun with 1 threads and goes on with 3: the last digits will be others than in one go; "
        "OMP_NUM_THREADS=1 keeps them"
    ]


DAMAGE = {
    "a flipped bit": lambda folder: flip(folder / "state.safetensors"),
    "cut off": lambda folder: os.truncate(folder / "state.safetensors", 100),
    "a file is gone": lambda folder: (folder / "state.json").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: os.truncate(folder / "manifest.json", 20),
    "an empty manifest": lambda folder: (folder / "manifest.json").write_text("{}"),
}


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, monkeypatch, capfd, damage):
    run(BASE, tmp_path / "whole")
    folder = stopped(tmp_path / "cut", monkeypatch)
    DAMAGE[damage](folder / "checkpoint-4")
    begun = positions_at_the_start(monkeypatch)
    capfd.readouterr()
    run(BASE, tmp_path / "cut")
    assert begun == {"small/alone/seed 2": 4, "small/kd/seed 2": 3, "small/hint/seed 2": 4}
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    if damage != "no manifest":  # which is how an unfinished one looks
        told = capfd.readouterr().err
        assert "kd/seed-2/checkpoint-4" in told and "passed over" in told


def rewritten(folder, change):
    """Change the newest checkpoint in a folder, and say in its manifest that it should be so."""
    fingerprint = read_json(folder / "begun.json")["fingerprint"]
    found, _ = checkpoints.newest(folder, fingerprint)
    change(found)
    found.save(folder, fingerprint)


FOREIGN_STATES = {
    "of an older kdrun": lambda state: state.pop("both_gradients"),
    "a log that is none": lambda state: state.update(metrics=[{"epoch": "one"}]),
    "epochs that are none": lambda state: state.update(epochs_closed=-1),
    "empty": lambda state: state.clear(),
}


@pytest.mark.parametrize("change", FOREIGN_STATES)
def test_a_foreign_state_is_passed_over(tmp_path, monkeypatch, capfd, change):
    run(BASE, tmp_path / "whole")
    folder = stopped(tmp_path / "cut", monkeypatch)
    rewritten(folder, lambda found: FOREIGN_STATES[change](found.state))
    run(BASE, tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    assert re.search(
        "kd/seed-2/checkpoint-4: passed over: .*is not what kdrun writes", capfd.readouterr().err
    )


def renamed(found):
    found.arrays["model/x"] = found.arrays.pop(next(name for name in found.arrays if name[:6] == "model/"))


FOREIGN_PARTS = {
    "another weight": renamed,
    "weights of another shape": lambda found: found.arrays.update(
        {name: array[:1] for name, array in found.arrays.items() if name[:6] == "model/" and array.ndim == 2}
    ),
    "moments of another shape": lambda found: found.arrays.update(
        {name: array[:1] for name, array in found.arrays.items() if name[:10] == "optimizer/" and array.ndim}
    ),
    "an optimizer that is none": lambda found: found.arrays.update({"optimizer/x": np.zeros(1)}),
    "an optimizer too many": lambda found: found.arrays.update({"optimizer/7.0.step": np.zeros(1)}),
    "a name of no part": lambda found: found.arrays.update({"x": np.zeros(1)}),
    "sums of other terms": lambda found: found.state.update(sums={"x": 0.0}),
    "gradients of others": lambda found: found.state.update(both_gradients=[True]),
}


@pytest.mark.parametrize("change", FOREIGN_PARTS)
def test_a_foreign_checkpoint_is_refused_in_words(tmp_path, monkeypatch, change):
    folder = stopped(tmp_path, monkeypatch)
    rewritten(folder, FOREIGN_PARTS[change])
    with pytest.raises(StoreError, match=r"kd/seed-2/checkpoint-4: does not fit this run: .*; go on with"):
        run(BASE, tmp_path)


def test_after_a_damaged_checkpoint_two_whole_ones_are_kept(tmp_path, monkeypatch):
    folder = stopped(tmp_path, monkeypatch, steps=6)
    DAMAGE["a flipped bit"](folder / "checkpoint-6")
    shutil.rmtree(folder / "checkpoint-5")
    shutil.copytree(
        folder / "checkpoint-6", folder / "checkpoint-8"
    )  # damaged, and further than anything good
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        checkpoint_always(patch)
        stopping_after(3, patch)
        run(BASE, tmp_path)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


def test_checkpoints_hold_no_teacher(tmp_path, monkeypatch):
    folder = stopped(tmp_path, monkeypatch).parents[1] / "hint/seed-2/checkpoint-4"
    shapes = {name: array.shape for name, array in load_file(folder / "state.safetensors").items()}
    assert {name.split("/")[0] for name in shapes} == {"model", "objective", "optimizer"}
    adapter = {name: shape for name, shape in shapes.items() if name.startswith("objective/")}
    assert set(adapter.values()) == {(12, 8), (12,)}, (
        "one linear layer, from the student's width to the teacher's"
    )
    assert all(12 not in shapes[name] for name in shapes if name.startswith("model/"))
    assert set(read_json(folder / "manifest.json")["files"]) == {"state.safetensors", "state.json"}


# ------------------------------------------------------------------------------------------ processes

SLOW = [
    "--set",
    "training.epochs=30",
    "--set",
    "training.optimizer={kind: sgd, lr: 0.05}",
    "--set",
    "training.mixup=0.2",
    "--set",
    "training.clip=1.0",
]
"""Ninety steps a group."""


def written(tmp_path):
    path = tmp_path / "resume.yaml"
    path.write_text(textwrap.dedent(BASE))
    return path


def compare(tmp_path, out, *options, **environment):
    arguments = ["compare", str(written(tmp_path)), "--out", str(tmp_path / out), *SLOW, *options]
    return kdrun_process(*arguments, cwd=tmp_path, **environment)


def overrides():
    return [SLOW[n] for n in range(1, len(SLOW), 2)]


def wait_for(process, ready, seconds=120):
    """Wait until something is so while a process is at work."""
    until = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


def reached(folder, step):
    """Whether a run has a whole checkpoint of this step or a later one."""
    found = [
        path.parent.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*/manifest.json")
    ]
    return any(int(name) >= step for name in found)


def test_killed_three_times(tmp_path, monkeypatch):
    run(BASE, tmp_path / "whole", *overrides())
    runs = tmp_path / "killed/resume"
    moments = [
        ("teachers/big/seed-0", 4),
        ("students/small/kd/seed-2", 2),
        ("students/small/hint/seed-2", 32),
    ]
    for place, step in moments:
        process = compare(tmp_path, "killed", KDRUN_CHECKPOINT_SECONDS="0")
        wait_for(process, lambda place=place, step=step: reached(runs / place, step))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (runs / place / "result.json").exists()
    begun = positions_at_the_start(monkeypatch)
    run(BASE, tmp_path / "killed", *overrides())
    assert len(begun) == 3 and min(begun.values()) >= 31
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert comparison(tmp_path / "killed", "resume") == comparison(tmp_path / "whole", "resume")


def test_signals_save_and_the_same_command_goes_on(tmp_path):
    longer = "training.epochs=80"
    for number, code, moment in ((signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 40)):
        process = compare(tmp_path, "cut", "--set", longer)
        told = ""
        while f"lock step, seed 2: epoch {moment}/80" not in told:
            line = process.stdout.readline()
            assert line, told
            told += line
        process.send_signal(number)
        told += process.communicate()[0]
        assert process.returncode == code, told
        assert (
            number.name in told and "the same command goes on from here" in told and "Traceback" not in told
        )
        for method in ("alone", "kd", "hint"):
            folder = tmp_path / f"cut/resume/students/small/{method}/seed-2"
            saved = max(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))
            assert 3 * moment <= saved < 240
    run(BASE, tmp_path / "cut", *overrides(), longer)
    run(BASE, tmp_path / "whole", *overrides(), longer)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("moment", ["answers", "temperature", "likenesses", "score"])
def test_a_signal_while_students_are_scored_saves_them_and_begins_nothing_more(tmp_path, monkeypatch, moment):
    """Not a pass over a split is finished first, however long it would take."""
    run(BASE, tmp_path / "whole", "training.ema=0.5")
    with monkeypatch.context() as patch:
        made = experiment(BASE, tmp_path, "training.ema=0.5")
        place = train if moment == "score" else bookkeeping
        original = getattr(place, moment)

        def scored(networks, batches, *_metric):
            made.stop._ask(signal.SIGTERM, None)
            next(iter(batches))
            raise AssertionError("it goes on to the next batch")

        patch.setattr(place, moment, scored)
        with pytest.raises(Interrupted, match="stopped and saved") as caught:
            made.run()
    assert caught.value.exit_code == 143 and not made.stop.waits
    assert getattr(place, moment) is original
    who = "students/small/kd/seed-2" if moment == "likenesses" else "teachers/big/seed-0"
    (saved,) = (tmp_path / "resume" / who).glob("checkpoint-*")
    assert saved.name == ("checkpoint-3" if moment == "score" else "checkpoint-9")
    experiment(BASE, tmp_path, "training.ema=0.5", console=Console()).run()
    assert outcome(tmp_path) == outcome(tmp_path / "whole")


def test_a_signal_while_a_result_is_written_is_heeded_when_it_is(tmp_path, monkeypatch):
    made = experiment(BASE, tmp_path)
    original = Workplace.finish

    def finish(workplace, *what):
        made.stop._ask(signal.SIGTERM, None)
        return original(workplace, *what)

    monkeypatch.setattr(Workplace, "finish", finish)
    with pytest.raises(Interrupted, match="what was finished is stored") as caught:
        made.run()
    assert caught.value.exit_code == 143 and list(results(tmp_path)) == ["teachers/big/seed-0"]
    assert not (tmp_path / "resume/students").exists()


def test_a_step_is_saved_once(tmp_path, monkeypatch):
    """Saved again, the checkpoint of the same step would have to go first."""

    def save(checkpoint, folder, fingerprint):
        assert not (folder / f"checkpoint-{checkpoint.step}").exists()
        saved.append(checkpoint.step)
        original(checkpoint, folder, fingerprint)

    saved, original = [], checkpoints.Checkpoint.save
    checkpoint_always(monkeypatch)
    monkeypatch.setattr(checkpoints.Checkpoint, "save", save)
    run(BASE, tmp_path)
    assert saved.count(3) == saved.count(9) == 4  # a teacher and three students; both end an epoch


def test_a_signal_stops_at_once_where_there_is_nothing_to_save(capfd, monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    Stop()._ask(signal.SIGTERM, None)
    assert ended == [143]


def test_a_second_interrupt_stops_at_once(capfd, monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    stop = Stop()
    stop.waits = True
    stop._ask(signal.SIGTERM, None)
    assert not ended and stop.exit_code == 143
    stop._ask(signal.SIGINT, None)
    assert ended == [130]
