"""Starved of room, memory, permission, readers or company: one message, and what was finished stays finished."""

import errno
import fcntl
import json
import os
import pty
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
from forked import Command, forge
from PIL import Image

from commands import TINY, Done, command, process, surroundings
from kdrun import rehearsal, room
from kdrun.errors import OutOfMemory, StoreError
from kdrun.store import Store, files, lock, read_json
from kdrun.store.housekeeping import disposable, entries, remove
from support import checkpoint_always, outcome, run

TEXT = TINY.replace("[0, 1]", "[0]")
"""A teacher, and two students in lock step."""
REFUSALS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)
NEEDED_AND_FREE = r"cannot be written: .+; it needs .+B, and .+B are free there; .+"
ROOT = os.geteuid() == 0


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Nothing here cuts the power, so nothing has to wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def tiny(tmp_path):
    """A folder with a config and nothing that was run."""
    (tmp_path / "tiny.yaml").write_text(TEXT)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run comes to that lacks nothing."""
    folder = tmp_path_factory.mktemp("whole")
    run(TEXT, folder)
    return outcome(folder)


def kdrun(*arguments, folder, first="", **options):
    """Run a command in a folder in a process of its own, after some code is run ``first``."""
    streams = os.devnull, folder / ".out", folder / ".err"
    for stream in streams[1:]:
        stream.unlink(missing_ok=True)
    at_work = Command(arguments, streams[2], folder=folder, streams=streams, first=first, **options)
    return Done(at_work.code, *(stream.read_text() for stream in streams[1:]))


def begin(*arguments, folder, **options):
    """Begin a command in a folder; what it says is kept elsewhere."""
    (folder / ".told").unlink(missing_ok=True)
    return Command(arguments, folder / ".told", folder=folder, **options)


def demand_sound(root, whole):
    """All that is finished is right, and nothing that was written is half of it; how many runs are finished."""
    there = outcome(root)
    assert there == {place: whole[place] for place in there}
    for pattern in ("result.json", "manifest.json", "begun.json", "resolved.json", "costs.json"):
        for path in root.rglob(pattern):
            read_json(path)
    return len(there)


def demand_goes_on(root, whole, *overrides):
    """The same command comes to what it would have come to, and leaves nothing that is of no use."""
    run(TEXT, root, *overrides)
    assert outcome(root) == whole
    useless = (".*", "checkpoint-*", "begun.json", "failure.json")
    assert [path for pattern in useless for path in root.rglob(pattern)] == []


def one_message(told):
    """What a command said that failed: one line."""
    (line,) = told.err.splitlines()
    assert line.startswith("error: ")
    return line


# ------------------------------------------------------------------------------------------- a full disk


class Disk:
    """What the save path asks of the disk, counted; one of these times it refuses."""

    def __init__(self, patch, refuse=0, code=errno.ENOSPC):
        self.asked, self._refuse, self._code = 0, refuse, code

        ask = self.ask

        class File(FileIO):
            def __init__(self, *given, **named):
                ask()
                super().__init__(*given, **named)

            def write(self, data):
                half = super().write(data[: len(data) // 2])
                ask()
                return half + super().write(data[half:])

        patch.setattr(files, "open", File, raising=False)
        patch.setattr(lock, "FileIO", File)
        for name in ("fsync", "link", "replace"):
            patch.setattr(os, name, self._asking(getattr(os, name)))
        patch.setattr(os, "mkdir", self._asking(os.mkdir, unless=os.path.isdir))

    def ask(self):
        self.asked += 1
        if self.asked == self._refuse:
            raise OSError(self._code, os.strerror(self._code))

    def _asking(self, original, unless=lambda place: False):
        def asked(place, *given, **named):
            if not unless(place):
                self.ask()
            return original(place, *given, **named)

        return asked


def spread(most, number):
    """So many of the numbers from 1 to the most, far from each other."""
    return sorted({round(1 + place * (most - 1) / max(number - 1, 1)) for place in range(number)})


def test_a_disk_that_refuses_once_anywhere_in_the_save_path(tmp_path, monkeypatch, whole, times, figure):
    checkpoint_always(monkeypatch)
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        run(TEXT, tmp_path / "counted")
    places, kept = spread(disk.asked, times(20, disk.asked)), 0
    for number, place in enumerate(places):
        root = tmp_path / str(place)
        with monkeypatch.context() as patch, pytest.raises(StoreError, match=NEEDED_AND_FREE) as caught:
            Disk(patch, place, REFUSALS[number % len(REFUSALS)])
            run(TEXT, root)
        assert "\n" not in str(caught.value)
        kept += demand_sound(root, whole)
        demand_goes_on(root, whole)
        shutil.rmtree(root)
    figure(
        f"{len(places)} of the {disk.asked} times that a run asks the disk for something refused: one message each, "
        f"{kept} results finished before and none lost, the same bits in the end"
    )


def test_a_limit_on_the_size_of_files(tiny, whole, times, figure):
    """As a full disk is, for real, and wherever tests run."""
    run(TEXT, tiny / "measured")
    written = [path for path in (tiny / "measured").rglob("*") if path.is_file()]
    sizes = sorted({path.stat().st_size for path in written if path.name != "provenance.json"})
    limits = [size - 1 for size in sizes if size > 1000][:: times(3, 1)]
    for limit in limits:
        first = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
        told = kdrun("distill", "tiny.yaml", "--quiet", folder=tiny, first=first)
        assert told.code == 1
        assert re.search(NEEDED_AND_FREE, one_message(told)) and "File too large" in told.err
        demand_sound(tiny / "runs", whole)
        demand_goes_on(tiny / "runs", whole)
        shutil.rmtree(tiny / "runs")
    figure(f"{len(limits)} limits on the size of files: one message each, the same bits in the end")


@contextmanager
def small_disk(place, size):
    """A disk of so many bytes, mounted at a place."""
    if not ROOT:
        pytest.skip("only root may mount a small disk")
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "none", place]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk):
    """Fill a disk to its last block."""
    with suppress(OSError), open(disk / "filler", "ab", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass


LONGER = "training.epochs=12"
MOMENTS = ["teachers/teacher/seed-0/checkpoint-{}", "students/student/kd/seed-0/checkpoint-{}"]


def test_a_disk_that_fills_up_while_a_run_goes_on(tiny, times, figure):
    run(TEXT, tiny / "whole", LONGER)
    whole, kept = outcome(tiny / "whole"), 0
    moments = [place.format(step) for place in MOMENTS for step in times([5, 25], range(1, 33, 3))]
    for moment in moments:
        with small_disk(tiny / "disk", 4 << 20) as disk:
            words = ["distill", "tiny.yaml", "--quiet", "--set", LONGER, "--out", disk / "runs"]
            at_work = begin(*words, folder=tiny)
            while at_work.process.is_alive():
                if (disk / "filler").exists() or (disk / "runs/tiny" / moment).exists():
                    fill(disk)
                time.sleep(0.001)
            assert at_work.code == 1, at_work.words
            assert re.search(NEEDED_AND_FREE, at_work.words) and at_work.words.count("\n") == 1
            kept += demand_sound(disk / "runs", whole)
            (disk / "filler").unlink()
            demand_goes_on(disk / "runs", whole, LONGER)
    figure(
        f"{len(moments)} disks that were full in the middle of training: one message each, {kept} results finished "
        "before and none lost, the same bits once there was room"
    )


# ------------------------------------------------------------------------------------ room for the run

ROOMY = {
    "many small runs": ["training.epochs=20"],
    "memory banks, an average and the best weights": [
        "dataset={kind: synthetic, shape: [1, 8, 8], classes: 10, samples: 400, test_samples: 100, validation: 0.2}",
        "training={epochs: 1, batch_size: 100, ema: 0.9, selection: best-on-validation, optimizer: adamw}",
        "teacher.model={kind: cnn, width: 8}",
        "student.model={kind: cnn, width: 4}",
        "methods=[crd, kd]",
    ],
    "tables of teachers": [
        "dataset={kind: synthetic, shape: [8], classes: 100, samples: 2000, test_samples: 200}",
        "training.batch_size=500",
        "methods=[kd, pkt]",
    ],
    "wide models": [
        "teacher.model.hidden=[400, 400]",
        "student.model.hidden=[200]",
        "training.optimizer={kind: sgd, lr: 0.1}",
        "methods=[kd, hint]",
    ],
}


def compare(folder, overrides, *options):
    """The comparison of some overrides."""
    given = [word for text in overrides for word in ("--set", text)]
    return command("compare", "tiny.yaml", "--quiet", *given, *options, folder=folder)


def demanded(folder, overrides, monkeypatch):
    """The bytes that a run is said to need where there are none."""
    with monkeypatch.context() as patch:
        patch.setattr(room, "told_size", str)
        patch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(1, 1, 0))
        told = compare(folder, overrides)
    said = re.search(r"runs need about (\d+) there, and 0 are free; make room, .*--out", one_message(told))
    assert told.code == 1 and said
    return int(said[1])


def peak(folder, overrides, monkeypatch):
    """The most bytes of the disk that a run took at any time."""
    most = 0

    def looked(source, target):
        nonlocal most
        most = max(most, sum(path.lstat().st_blocks * 512 for path in (folder / "runs").rglob("*")))
        return replace(source, target)

    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", looked)
        assert compare(folder, overrides).code == 0
    return most


@pytest.mark.parametrize("name", ROOMY)
def test_the_room_that_a_run_takes_is_known_before(tiny, monkeypatch, name, figure):
    checkpoint_always(monkeypatch)
    needed = demanded(tiny, ROOMY[name], monkeypatch)
    assert not list(tiny.rglob("*.json"))
    taken = peak(tiny, ROOMY[name], monkeypatch)
    assert taken <= needed <= 3 * taken
    figure(f"{name}: {taken:,} bytes of the disk taken at most, {needed:,} demanded before")


def test_weights_that_are_given_are_stored_as_well(tiny, monkeypatch):
    wide = ["teacher.model.hidden=[700, 700]", "methods=[kd]"]
    run(TEXT, tiny / "other", *wide, roles=["teacher"])
    weights = tiny / "other/tiny/teachers/teacher/seed-0/weights.safetensors"
    given = [*wide, f"teacher.weights={weights}"]
    needed = demanded(tiny, given, monkeypatch)
    assert peak(tiny, given, monkeypatch) <= needed <= 2 * weights.stat().st_size


def test_what_is_there_already_needs_no_room(tiny, monkeypatch):
    """Neither what is finished or begun, nor the tables of a teacher; but what lies there of another run counts."""
    overrides, table = ROOMY["tables of teachers"], 2000 * 100 * 4
    before = demanded(tiny, overrides, monkeypatch)
    run(TEXT, tiny / "runs", *overrides, "training.batch_size=501")
    assert demanded(tiny, overrides, monkeypatch) >= before - table
    run(TEXT, tiny / "runs", *overrides, methods=["kd"])
    assert demanded(tiny, overrides, monkeypatch) < before - table


def test_a_disk_that_is_too_small_is_told_before_anything_is_trained(tiny, monkeypatch):
    overrides = ROOMY["wide models"]
    needed = demanded(tiny, overrides, monkeypatch)
    with small_disk(tiny / "small", int(0.9 * needed)) as disk:
        told = compare(tiny, overrides, "--out", disk / "runs")
        words = r"runs: 4 runs need about .+B there, and .+B are free; make room, or choose another --out"
        assert told.code == 1 and re.search(words, one_message(told))
        assert not list(disk.rglob("*.json"))
    with small_disk(tiny / "enough", -(-needed // 4096) * 4096) as disk:
        assert compare(tiny, overrides, "--out", disk / "runs").code == 0


# ----------------------------------------------------------------------- what is no folder, or closed

UNPRIVILEGED = "import ctypes, struct; ctypes.CDLL(None).capset(struct.pack('Ii', 0x20080522, 0), bytes(24))"
"""Code after which root may no more than what permissions say."""
GONE = "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')"
"""Code after which the folder that a command is given in is no more."""
TUNE = ("--trials", "1", "--set", "dataset.validation=0.2")
COMMANDS = {name: (name, "tiny.yaml", "--quiet") for name in ("compare", "distill", "train-teacher", "check")}
COMMANDS |= {
    "tune": ("tune", "tiny.yaml", "--quiet", *TUNE),
    "status": ("status",),
    "clean": ("clean", "--yes"),
}
TRAINING = "compare distill train-teacher tune"
READING = f"{TRAINING} check"
LOOKING = f"{READING} status clean"
LONG = "x" * 300
TAKEN = "taken is a file; it needs .+ free there; choose another place"
READ_ONLY = "Read-only file system; it needs .+ free there; allow it, or choose another place"
NOT_ALLOWED = "Permission denied; it needs .+ free there; allow it, or choose another place"


class Refused(NamedTuple):
    """What lies in the folder, the commands that cannot do with it, what they say, and how they are given."""

    places: dict[str, str | int | None]
    commands: str
    words: str
    code: int = 1
    more: list[str] = []
    first: str = ""


def lay(place, what):
    """Put a file with a text there, or a folder; give it a mode; or take it away."""
    place.parent.mkdir(exist_ok=True)
    if what is None:
        place.unlink()
    elif isinstance(what, str):
        place.write_text(what)
    else:
        if not place.exists():
            place.mkdir()
        place.chmod(what)


REFUSED = {
    "--out is a file": Refused({"runs": ""}, LOOKING, "--out runs: is a file; name a folder", 2),
    "--out lies below a file": Refused({"taken": ""}, TRAINING, TAKEN, 1, ["--out", "taken/runs"]),
    "--out is too long": Refused({}, LOOKING, f"{LONG}: File name too long", 1, ["--out", LONG]),
    "the name is too long": Refused({}, TRAINING, "cannot name a folder", 2, ["--set", f"name={LONG}"]),
    "the index is a file": Refused(
        {"runs/index": ""}, TRAINING, "runs/index is a file; it needs .+ free there"
    ),
    "the experiment is a file": Refused(
        {"runs/tiny": ""}, TRAINING, "runs/tiny is a file; it needs .+ free there"
    ),
    "--out may not be written": Refused({"runs": 0o555}, TRAINING, NOT_ALLOWED, 1, [], UNPRIVILEGED),
    "--out may not be read": Refused({"runs": 0o000}, LOOKING, "runs.* is not readable", 2, [], UNPRIVILEGED),
    "runs may not be read": Refused(
        {"runs/tiny": 0}, LOOKING, "runs/tiny.*: Permission denied", 1, [], UNPRIVILEGED
    ),
    "the config may not be read": Refused(
        {"tiny.yaml": 0}, READING, "yaml.* is not readable", 2, [], UNPRIVILEGED
    ),
    "the config is gone": Refused({"tiny.yaml": None}, READING, "tiny.yaml: no such file", 2),
    "the config is a folder": Refused(
        {"tiny.yaml": None, "tiny.yaml/x": ""}, READING, "a folder, not a file", 2
    ),
    "the working folder is gone": Refused({}, LOOKING, "the working folder is gone", 1, [], GONE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_one_message(tiny, name, times, figure):
    refused = REFUSED[name]
    commands = refused.commands.split()[:: times(3, 1)]
    for place, what in refused.places.items():
        lay(tiny / place, what)
    for one in commands:
        words = [str(tiny / word) if word == "tiny.yaml" else word for word in COMMANDS[one]]
        told = kdrun(*words, *refused.more, folder=tiny, first=refused.first)
        assert told.code == refused.code, told
        assert re.search(refused.words, one_message(told))
    figure(f"{name}: {len(commands)} commands, one message each")


@pytest.mark.skipif(not ROOT, reason="only root may mount a disk that is read-only")
def test_a_disk_that_is_read_only(tiny):
    """What only reads works as ever."""
    run(TEXT, tiny / "runs")
    with small_disk(tiny / "disk", 1 << 20) as disk:
        shutil.copytree(tiny / "runs", disk, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for name in TRAINING.split():
            told = kdrun(*COMMANDS[name], "--out", "disk", folder=tiny)
            if name in ("distill", "train-teacher"):  # all is finished
                assert (told.code, told.err) == (0, "") and "synthetic" in told.out
            else:
                assert told.code == 1 and re.search(READ_ONLY, one_message(told))
                assert ("student kd" in told.out) == (name == "compare")
        told = kdrun("init", "disk/new.yaml", folder=tiny)
        assert told.code == 1 and re.search(READ_ONLY, one_message(told))
        told = kdrun("clean", "--yes", "--out", "disk", folder=tiny)
        assert (told.code, told.err) == (0, "nothing to delete under disk\n")
        for name in ("check", "status"):
            assert kdrun(*COMMANDS[name], "--out", "disk", folder=tiny).code == 0
    with small_disk(tiny / "disk", 1 << 20) as disk:
        littered = disk / "tiny/students/student/kd/seed-0"
        littered.mkdir(parents=True)
        (littered / "result.json").write_text("damaged")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        told = kdrun("clean", "--yes", "--out", "disk", folder=tiny)
        assert told.code == 1 and "cannot be deleted: Read-only file system" in told.err


def test_without_a_home_or_a_place_for_temporary_files(tiny):
    run(TEXT, tiny / "runs")
    nowhere = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), os.devnull)
    told = process("compare", "tiny.yaml", "--no-train", "--json", folder=tiny, **nowhere)
    assert told.code == 0 and told.err.splitlines()[-1].startswith("written to runs/tiny/report.html")
    assert len(told.err.splitlines()) == 1 and len(json.loads(told.out)["rows"]) == 3


# ---------------------------------------------------------------------------------------------- no memory


def narrow(megabytes):
    """Code after which a process can have so many megabytes more."""
    return (
        "import resource\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (size + {int(megabytes * 1e6)},) * 2)"
    )


NOTHING_LEFT = (
    r"the memory of the machine ran out( where .+B more were asked for)? \([\d.]+ [kM]?B are free\)"
)
PICTURES = "dataset={{kind: synthetic, shape: [{}], classes: 3, samples: {}, test_samples: 30}}"
CNN = ["teacher.model={kind: cnn}", "student.model={kind: cnn}"]
TOO_LARGE = {
    "the data set": (
        [PICTURES.format("3, 64, 64", 20000), *CNN],
        400,
        "dataset: .*; take fewer or smaller samples",
    ),
    "a teacher": (
        ["teacher.model.hidden=[9000, 9000]"],
        200,
        "teacher/seed 0: .* as it is built; write a smaller model",
    ),
    "a student": (
        ["student.model.hidden=[9000, 9000]"],
        200,
        "alone/seed 0: .* as it is built; write a smaller model",
    ),
    "a step": (["teacher.model.hidden=[9000, 9000]"], 450, "in a step of 8 samples; write a smaller model"),
    "a batch": (
        [PICTURES.format("1, 16, 16", 8000), "training.batch_size=4000", *CNN],
        250,
        "batch_size: 2000",
    ),
    "a teacher's table": (
        ["dataset.samples=30000", "dataset.classes=2000", "training.batch_size=1000"],
        230,
        "seed 0: .* trained alone",
    ),
    "an evaluation": (
        ["dataset.test_samples=60000", "dataset.samples=1000", "dataset.classes=1000"],
        300,
        "alone",
    ),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_is_too_large_for_the_memory_is_one_message(tiny, whole, name):
    run(TEXT, tiny / "runs")
    overrides, megabytes, words = TOO_LARGE[name]
    given = [word for text in [*overrides, "name=large"] for word in ("--set", text)]
    told = kdrun("compare", "tiny.yaml", "--quiet", *given, folder=tiny, first=narrow(megabytes), every=30.0)
    assert told.code == 1 and "Traceback" not in told.err
    *before, last = told.err.splitlines()
    assert re.search(NOTHING_LEFT, last) and re.search(words, last)
    assert not [line for line in before if not re.search(f"are trained in two halves|{NOTHING_LEFT}", line)]
    assert demand_sound(tiny / "runs", whole) == len(whole)


HUNGRY = [
    "dataset={kind: synthetic, shape: [64], classes: 100, samples: 4000, test_samples: 4000}",
    "training.batch_size=1000",
    "teacher.model.hidden=[1500]",
    "student.model.hidden=[400]",
    "methods=[kd, pkt]",
]


def test_memory_that_runs_out_somewhere(tiny, times, figure):
    run(TEXT, tiny / "whole", *HUNGRY)
    whole, kept, limits = outcome(tiny / "whole"), 0, times([40, 100], range(4, 164, 4))
    given = [word for text in HUNGRY for word in ("--set", text)]
    for megabytes in limits:
        told = kdrun("distill", "tiny.yaml", "-q", *given, folder=tiny, first=narrow(megabytes), every=30.0)
        assert told.code in (0, 1) and "Traceback" not in told.err, told
        assert not told.code or re.search(NOTHING_LEFT, told.err.splitlines()[-1]), told
        kept += demand_sound(tiny / "runs", whole)
        shutil.rmtree(tiny / "runs", ignore_errors=True)
    figure(
        f"{len(limits)} limits of memory: one message each or done, {kept} finished results, all of them right"
    )


ANYWHERE = [
    "kdrun.yamlsource.Source.read",
    "kdrun.config.read",
    "kdrun.experiment.plan",
    "kdrun.experiment.fit",
    "kdrun.bookkeeping.answers",
    "kdrun.store.runs.Result.predictions",
    "kdrun.compare.comparison",
    "kdrun.evidence.page",
]


def test_memory_may_run_out_anywhere(tiny, whole, monkeypatch):
    run(TEXT, tiny / "runs", roles=["teacher"])
    for place in ANYWHERE:
        with monkeypatch.context() as patch:
            patch.setattr(place, mock.Mock(side_effect=MemoryError))
            told = command("compare", "tiny.yaml", "--quiet", folder=tiny)
        assert told.code == 1 and "Traceback" not in told.err, place
        assert "the memory of the machine ran out (" in told.err.splitlines()[-1], place
        demand_sound(tiny / "runs", whole)
    demand_goes_on(tiny / "runs", whole)


def test_a_checkpoint_is_not_damaged_for_want_of_memory(tmp_path, whole, monkeypatch):
    class Killed(BaseException):
        pass

    checkpoint_always(monkeypatch)
    for place, error in (("kdrun.bookkeeping.Seat.finish", Killed), ("safetensors.numpy.load", MemoryError)):
        with monkeypatch.context() as patch, pytest.raises((Killed, OutOfMemory)):
            patch.setattr(place, mock.Mock(side_effect=error))
            run(TEXT, tmp_path)
        assert {path.name for path in tmp_path.rglob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    demand_goes_on(tmp_path, whole)


# ------------------------------------------------------------------------------ workers that are ended

PHOTOS = """
name: photos
dataset: {kind: image-folder, root: photos, size: 8}
device: cpu
training: {epochs: 1, batch_size: 8}
teacher: {model: {kind: cnn, width: 4}}
"""
IMPATIENT = """
from torch.utils.data import _utils, dataloader
_utils.MP_STATUS_CHECK_INTERVAL = 0.2
dataloader._MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.2,)
"""
"""Code after which torch looks five times a second, instead of every five seconds, whether its workers live."""


@pytest.fixture
def photos(tmp_path):
    """A folder with pictures, and a config of a teacher that learns them."""
    draw = np.random.default_rng(0)
    for number in range(40):
        place = tmp_path / f"photos/{'train' if number % 3 else 'test'}/{'ab'[number % 2]}/{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place)
    (tmp_path / "photos.yaml").write_text(PHOTOS)
    return tmp_path


def children(process):
    """The processes that a process has started, and that run."""
    with suppress(FileNotFoundError):
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def test_a_worker_that_is_killed_is_one_message(photos, times, figure):
    words, draw, killed, ended = ("train-teacher", "photos.yaml", "--quiet"), random.Random(0), 0, 0
    forge()
    began = time.monotonic()
    assert kdrun(*words, "--out", "whole", folder=photos, stream=True, first=IMPATIENT).code == 0
    whole, duration = outcome(photos / "whole"), time.monotonic() - began
    while killed < times(2, 40):
        at_work = begin(*words, folder=photos, stream=True, first=IMPATIENT)
        time.sleep(draw.uniform(0, 0.8 * duration))
        victims = []
        while at_work.process.is_alive() and not victims:
            victims = children(at_work.process.pid)
        with suppress(ProcessLookupError, IndexError):
            os.kill(draw.choice(victims), signal.SIGKILL)
            killed += 1
        if at_work.code != 0:
            assert at_work.code == 1 and at_work.words.count("\n") == 1, at_work.words
            assert "a process that decodes pictures was ended from outside" in at_work.words
            ended += 1
            assert kdrun(*words, folder=photos, stream=True).code == 0
        assert not re.search("Traceback|Exception", at_work.words)
        assert outcome(photos / "runs") == whole
        shutil.rmtree(photos / "runs")
    figure(
        f"{killed} workers killed: {ended} messages, no traceback, and the same command went on to the same bits"
    )


# ------------------------------------------------------------------------------- streams that are closed

NO_READER = "error: stdout was closed before all was printed; what was finished is stored"
PRINTING = [
    "compare tiny.yaml --no-train",
    "compare tiny.yaml --no-train --json",
    "status",
    "status --json",
    "check tiny.yaml",
    "layers tiny.yaml",
    "list",
    "list losses --json",
]


@pytest.fixture
def done(tiny):
    """A folder in which all is finished."""
    run(TEXT, tiny / "runs")
    return tiny


def left_after_a_line(*words, folder, which):
    """What a command ends with, and says elsewhere, of which somebody reads one line on some of its streams."""
    pipe, elsewhere = folder / ".pipe", folder / ".told"
    os.mkfifo(pipe)
    elsewhere.unlink(missing_ok=True)
    streams = [os.devnull, *(pipe if number in which else elsewhere for number in (1, 2))]
    at_work = Command(words, elsewhere, folder=folder, streams=streams)
    with open(pipe) as reader:
        assert reader.readline()
    pipe.unlink()
    return at_work.code, elsewhere.read_text() if elsewhere.exists() else ""


def test_a_reader_of_stdout_that_leaves_after_a_line(done, times, figure):
    commands = PRINTING[:: times(2, 1)]
    for words in commands:
        code, told = left_after_a_line(*words.split(), folder=done, which=[1])
        assert (code, NO_READER in told) in ((1, True), (0, False)), (words, told)
        assert not re.search("Traceback|Exception", told), told
    figure(f"{len(commands)} commands whose reader left after a line: one message each, or none was needed")


@pytest.mark.parametrize(("which", "expected"), [([2], 0), ([1, 2], 1)])
def test_a_reader_of_stderr_that_leaves_lets_a_training_go_on(tiny, whole, which, expected):
    code, told = left_after_a_line("compare", "tiny.yaml", folder=tiny, which=which)
    assert (code, "student kd" in told) == (expected, expected == 0)
    assert outcome(tiny / "runs") == whole and (tiny / "runs/tiny/report.html").stat().st_size > 10_000


@pytest.mark.parametrize(("which", "expected"), [([1], 1), ([2], 0), ([1, 2], 1)])
def test_streams_that_are_full(tiny, whole, which, expected, times):
    told = tiny / ".told"
    streams = [os.devnull, *("/dev/full" if number in which else told for number in (1, 2))]
    assert Command(["compare", "tiny.yaml"], told, folder=tiny, streams=streams).code == expected
    assert outcome(tiny / "runs") == whole and (tiny / "runs/tiny/report.html").stat().st_size > 10_000
    if which == [1]:
        assert told.read_text().splitlines()[-1] == "error: stdout: No space left on device"
    if which == [2]:
        assert "student kd" in told.read_text()
    for words in PRINTING[1 :: times(5, 1)]:
        assert Command(words.split(), told, folder=tiny, streams=streams).code == expected
    assert not told.exists() or not re.search("Traceback|Exception", told.read_text())


CLOSED = [
    ("status", ">&-", 0),
    ("status", "2>&-", 0),
    ("clean", "<&-", 2),
    ("compare tiny.yaml --no-train", "<&- >&- 2>&-", 0),
    ("compare tiny.yaml --no-train", ">&-", 0),
    ("compare tiny.yaml", "2>&-", 0),
    ("check tiny.yaml", "<&- >&- 2>&-", 0),
]


def test_streams_that_are_closed_from_the_start(done, whole, times):
    littered = done / "runs/tiny/students/student/old/seed-0"
    littered.mkdir(parents=True)
    (littered / "result.json").touch()
    for words, closed, code in CLOSED[: times(4, len(CLOSED))]:
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "kdrun", *words.split()]
        told = subprocess.run(
            shell, cwd=done, env=surroundings(), capture_output=True, text=True, check=False
        )
        assert told.returncode == code, told
        assert not re.search("Traceback|Exception", told.stderr)
    assert outcome(done / "runs") == whole and (done / "runs/tiny/report.html").stat().st_size > 10_000


def test_a_terminal_that_knows_no_accents(done):
    run(TINY, done / "runs")
    (done / "runs").rename(done / "résultats")
    words = ("compare", "tiny.yaml", "--no-train", "--out", "résultats")
    told = process(*words, folder=done, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert told.code == 0 and r" \xb1 " in told.out and re.search(r"r\\.+sultats/tiny/report", told.err)


ENDED, IGNORED = (
    f"import signal; signal.signal(signal.SIGHUP, signal.{what})" for what in ("SIG_DFL", "SIG_IGN")
)


@pytest.mark.parametrize(("first", "code"), [(ENDED, -signal.SIGHUP), (IGNORED, 1)])
def test_a_terminal_that_goes_away(tiny, whole, first, code):
    """It ends what was begun there, unless that was told to go on; then only the table has no reader."""
    master, slave = pty.openpty()
    streams = [os.ttyname(slave)] * 3
    at_work = Command(["compare", "tiny.yaml"], tiny, folder=tiny, streams=streams, first=first, TERM="xterm")
    assert os.read(master, 100)
    os.close(slave)
    os.close(master)
    assert at_work.code == code
    assert (demand_sound(tiny / "runs", whole) == len(whole)) == (code == 1)
    demand_goes_on(tiny / "runs", whole)


# ------------------------------------------------------------------------------------ one run, one writer

HOLDING = "import signal; from kdrun import experiment; experiment.fit = lambda *_: signal.pause()"
"""Code after which a command never comes to the end of a training."""


def test_the_second_is_told_who_trains_and_the_lock_dies_with_its_holder(tiny, whole):
    holder = begin("distill", "tiny.yaml", folder=tiny, first=HOLDING)
    while not list(tiny.glob("runs/tiny/teachers/teacher/seed-0/begun.json")):
        assert holder.process.is_alive(), holder.words
        time.sleep(0.01)
    who = rf"process {holder.process.pid} on {re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    for name in ("distill", "compare", "train-teacher"):
        told = kdrun(name, "tiny.yaml", "--quiet", folder=tiny)
        assert told.code == 1
        assert re.search(f"teacher/seed 0 is being trained by {who}; wait for it, or use", one_message(told))
    told = kdrun("clean", "--yes", folder=tiny)
    assert (told.code, told.err) == (0, "nothing to delete under runs\n")
    status = kdrun("status", "--json", folder=tiny)
    assert [entry["state"] for entry in json.loads(status.out)] == ["at work"]
    holder.process.kill()
    assert holder.code == -signal.SIGKILL
    assert kdrun("distill", "tiny.yaml", "--quiet", folder=tiny).code == 0
    assert outcome(tiny / "runs") == whole


RACING = """
import os, random, time
from kdrun import experiment

def counted(students, *rest):
    with open("trained", "a") as log:
        log.write("".join(f"{student.title}\\n" for student in students))
    return fit(students, *rest)

fit, experiment.fit = experiment.fit, counted
draw = random.Random(os.getpid())
while not os.path.exists("go"):
    time.sleep(0.001)
while True:
    child = os.fork()
    if not child:
        break
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        os._exit(0)
    if code != 1:
        os._exit(code)
    time.sleep(draw.uniform(0, 0.3))
"""
"""Code after which a command is given again and again until it is done, and what is trained is written down."""
CLEANING = """
import os, pathlib
while not pathlib.Path("over").exists():
    child = os.fork()
    if not child:
        break
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) not in (0, 1):
        os._exit(9)
else:
    os._exit(0)
"""
"""Code after which a command is given again and again until others are done."""


def test_many_that_train_the_same_train_each_run_once(tiny, times, figure):
    run(TINY, tiny / "whole", LONGER)
    racing = ["distill", "tiny.yaml", "--seeds", "0,1", "--set", LONGER]
    whole, number = outcome(tiny / "whole"), times(6, 20)
    racers = [Command(racing, tiny / f"told-{n}", folder=tiny, first=RACING) for n in range(number)]
    others = [
        Command(words, tiny / f"told-{words[0]}", folder=tiny, first=CLEANING)
        for words in (["clean", "--yes"], ["status"])
    ]
    (tiny / "go").touch()
    codes = [racer.code for racer in racers]
    (tiny / "over").touch()
    words = "\n".join(one.words for one in (*racers, *others))
    assert codes == [0] * number and [one.code for one in others] == [0, 0], words
    assert not re.search("Traceback|Exception|cannot be|damaged|passed over", words), words
    trained = (tiny / "trained").read_text().splitlines()
    students = [f"student/{method}/seed {seed}" for method in ("alone", "kd") for seed in (0, 1)]
    assert sorted(trained) == sorted(["teacher/seed 0", *students])
    assert outcome(tiny / "runs") == whole
    refused = words.count("is being trained by process")
    figure(
        f"{number} processes that trained the same: {len(trained)} trainings of {len(whole)} runs, {refused} refused"
    )


# ------------------------------------------------------------- what is met once in a thousand such races


@pytest.fixture
def raced(tiny, monkeypatch):
    """A folder of runs with a run that was begun, and the store's entry of it."""
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("kdrun.bookkeeping.Seat.finish", mock.Mock(side_effect=ZeroDivisionError))
        run(TEXT, tiny)
    (entry,) = disposable(entries(Store(tiny)))
    return tiny, entry


def test_clean_leaves_what_was_finished_since_it_looked(raced, whole):
    root, entry = raced
    run(TEXT, root)
    assert not remove(Store(root), entry)
    assert outcome(root) == whole


def test_clean_leaves_what_is_asked_for_since_it_looked(tiny, whole):
    run(TEXT, tiny)
    run(TEXT, tiny, "methods=[]")
    (entry,) = disposable(entries(Store(tiny)))
    run(TEXT, tiny)
    assert not remove(Store(tiny), entry)
    assert outcome(tiny) == whole


def test_clean_leaves_what_is_about_to_begin(raced):
    root, entry = raced
    begun = (entry.folder / "begun.json").read_bytes()
    (entry.folder / "begun.json").unlink()
    (found,) = entries(Store(root))
    assert found.state == "at work" and found.fingerprint is None
    old = time.time() - 3600
    os.utime(entry.folder, (old, old))
    (found,) = disposable(entries(Store(root)))
    (entry.folder / "begun.json").write_bytes(begun)
    assert not remove(Store(root), found)
    assert entry.folder.is_dir()


def test_a_run_that_is_just_finished_is_never_damaged(raced, monkeypatch):
    """Its claim goes after its result has come: who looks at the claim first sees one of them."""
    root, _ = raced
    store, read = Store(root), Store.read

    def finishing(store, path):
        if path.name == "begun.json":
            monkeypatch.undo()
            run(TEXT, root)
        return read(store, path)

    monkeypatch.setattr(Store, "read", finishing)
    assert {entry.state for entry in entries(store)} == {"finished"}


def test_a_folder_whose_owner_finishes_in_between_is_not_taken_over(raced, whole, monkeypatch):
    root, entry = raced
    store, look = Store(root), Store._other

    def finishing(store, path, *rest):
        found = look(store, path, *rest)
        monkeypatch.undo()
        run(TEXT, root)
        return found

    monkeypatch.setattr(Store, "_other", finishing)
    folder = entry.folder.relative_to(root).as_posix()
    workplace, difference = store.workplace(folder, "f" * 64, {"another": "run"})
    assert workplace.folder != entry.folder and difference
    assert outcome(root) == whole and not (entry.folder / "begun.json").exists()


def test_a_teacher_that_is_deleted_while_it_is_needed_is_one_message(tiny, whole, monkeypatch):
    def deleting(*given):
        shutil.rmtree(tiny / "tiny/teachers")
        return rehearse(*given)

    rehearse = rehearsal.rehearse
    run(TEXT, tiny, roles=["teacher"])
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="teacher/seed 0: was deleted while"):
        patch.setattr(rehearsal, "rehearse", deleting)
        run(TEXT, tiny)
    demand_goes_on(tiny, whole)


def test_who_only_looks_at_a_lock_keeps_nobody_away(tmp_path):
    (tmp_path / "lock").touch()
    with open(tmp_path / "lock") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.03, looking.close).start()
        with lock.locked(tmp_path / "lock", "it"):
            assert f"process {os.getpid()} " in (tmp_path / "lock").read_text()


def test_what_a_cleaner_takes_away_under_a_writer_is_written_again(tmp_path, monkeypatch):
    def swept(source, target):
        if not tried:
            shutil.rmtree(tmp_path / "folder")
        tried.append(target)
        replace(source, target)

    tried, replace = [], os.replace
    monkeypatch.setattr(os, "replace", swept)
    files.write_bytes(tmp_path / "folder/file", b"data")
    assert len(tried) == 2 and (tmp_path / "folder/file").read_bytes() == b"data"


def test_a_config_is_whole_or_as_it_was(tiny, monkeypatch):
    for place in (1, 2, 3, 4):
        with monkeypatch.context() as patch:
            Disk(patch, place)
            told = command("init", "tiny.yaml", "--force", folder=tiny)
        assert told.code == 1 and re.search(NEEDED_AND_FREE, one_message(told))
        assert (tiny / "tiny.yaml").read_text() == TEXT
        assert [path.name for path in tiny.iterdir()] == ["tiny.yaml"]
