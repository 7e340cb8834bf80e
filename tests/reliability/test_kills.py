"""Killed at any moment, the same command goes on and ends with the same bits as one that was never killed."""

import random
import re
import time

import pytest
from forked import Command, forge
from works import WORKS, Work, write

from kdrun.store import files
from support import comparison, outcome, run
from test_resume import BASE

SHORT = ["training.epochs=1", "methods=[]"]
HASH = re.compile("[0-9a-f]{64}")


def to_the_end(arguments, out, told, how):
    """Give a command until it is done."""
    command = Command([*arguments, "--out", out], told, **how)
    assert command.code == 0, command.words
    return outcome(out), comparison(out, "resume")


def litter(out):
    """What a killed process left in the runs' folders that a finished run does not need."""
    names = (".*", "begun.json", "checkpoint-*")
    return [path for name in names for path in [*out.rglob(f"seed-*/{name}"), *out.glob(f"index/{name}")]]


@pytest.mark.parametrize("name", WORKS)
def test_killed_at_random_times(tmp_path, name, times, figure):
    draw, work = random.Random(name), WORKS[name]
    arguments = write(tmp_path, work)
    forge()
    began = time.monotonic()
    whole = to_the_end(arguments, tmp_path / "whole", tmp_path / "told", work.how)
    duration = time.monotonic() - began
    kills, wanted, finished = 0, times(2, 20), 0
    while kills < wanted:
        out, killed = tmp_path / f"killed-{finished}", True
        while killed:
            every = draw.choice([0.0, 0.0, 0.02])
            command = Command([*arguments, "--out", out], tmp_path / "told", every=every, **work.how)
            killed = command.kill_after(draw.uniform(0, duration))
            assert killed or command.code == 0, command.words
            assert not command.survivors()
            kills += killed
        finished += 1
        assert (outcome(out), comparison(out, "resume")) == whole
        assert not litter(out)
    figure(f"{name}: {kills} SIGKILLs at random times, {finished} runs to their end, 0 differing bits")


def points(root, monkeypatch):
    """Every point of the save path that an experiment passes, as a pattern, and how often."""
    passed = []
    with monkeypatch.context() as patch:
        for place in ("files", "runs", "checkpoints"):
            patch.setattr(f"kdrun.store.{place}.reached", passed.append)
        patch.setattr("kdrun.bookkeeping.Keeper.__init__.__defaults__", (0.0,))
        run(BASE, root, *SHORT)
    named = [HASH.sub("?" * 64, point) for point in passed]
    return {point: named.count(point) for point in dict.fromkeys(named)}


def test_killed_at_every_named_point_of_the_save_path(tmp_path, monkeypatch, times, figure):
    arguments = write(tmp_path, Work(SHORT))
    counted = points(tmp_path / "whole", monkeypatch)
    assert {point.rpartition("/")[2] for point in counted} >= set(files.STAGES)
    assert {
        "checkpoint/dropping",
        "checkpoint/half-dropped",
        "result/tidied",
        "weights.safetensors/half",
    } <= set(counted)
    whole = outcome(tmp_path / "whole"), comparison(tmp_path / "whole", "resume")
    kills = 0
    aims = list(counted.items())[:: times(5, 1)]
    for place, (point, count) in enumerate(aims):
        for number in sorted(times({(count + 1) // 2}, {1, (count + 1) // 2, count})):
            out = tmp_path / f"killed-{place}-{number}"
            aimed = Command([*arguments, "--out", out], tmp_path / "told", KDRUN_KILL_AT=f"{point}:{number}")
            assert aimed.code == -9, f"{point}:{number} is not reached"
            kills += 1
            assert to_the_end(arguments, out, tmp_path / "told", {}) == whole, f"{point}:{number}"
            assert not litter(out), f"{point}:{number}"
    figure(f"{kills} SIGKILLs at {len(aims)} named points of the save path: 0 differing bits")
