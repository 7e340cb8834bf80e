"""A byte that is not as it was written is noticed, named, and never loaded; what it belongs to is made again."""

import random
import re
import shutil

import pytest

from kdrun.errors import Interrupted
from kdrun.store import Store, checkpoints
from support import Ears, checkpoint_always, comparison, experiment, outcome, run
from test_resume import BASE, RECIPES, stopping_after

ASIDE = re.compile("-[0-9a-f]{8}$")
RECIPE = RECIPES["adamw-cosine-warmup-mixup-ema-best"]


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A folder with a finished teacher, and students that were stopped with two checkpoints each."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        run(BASE, tmp_path / "stopped", *RECIPE, roles=["teacher"])
        checkpoint_always(patch)
        stopping_after(4, patch)
        run(BASE, tmp_path / "stopped", *RECIPE)
    return tmp_path / "stopped"


def flip(path, draw):
    """Change some bits of one byte of a file."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
    path.write_bytes(data)


def cut(path, draw):
    """Lose the end of a file, or all of it."""
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


HARMS = {"flipped bytes": (flip, 1000), "truncations": (cut, 200)}


def is_silent(folder, path, heard):
    """Whether a run's folder is read as if nothing had happened to one of its files, or its file is not named."""
    fingerprint = Store(folder.parent).read(folder / "begun.json") or {}
    if path.parent.name.startswith("checkpoint-"):
        step = int(path.parent.name.removeprefix("checkpoint-"))
        found, told = checkpoints.newest(folder, fingerprint["fingerprint"])
        return (found is not None and found.step == step) or (step == 4 and not named(told, path))
    return Store(folder.parent, heard.append).result(folder, prove=True) is not None or not named(heard, path)


def named(told, path):
    return any(path.name in text and path.parent.name in text for text in told)


@pytest.mark.parametrize("harm", HARMS)
def test_nothing_that_is_damaged_is_loaded(stopped, harm, figure):
    draw, (harmed, count) = random.Random(harm), HARMS[harm]
    teacher = stopped / "resume/teachers/big/seed-0"
    student = stopped / "resume/students/small/kd/seed-2"
    files = [*teacher.iterdir(), *student.glob("checkpoint-*/*")]
    assert len(files) == 4 + 2 * 3
    silent = 0
    for _ in range(count):
        path = draw.choice(files)
        whole = path.read_bytes()
        harmed(path, draw)
        silent += is_silent(teacher if path.is_relative_to(teacher) else student, path, [])
        path.write_bytes(whole)
    assert silent == 0
    figure(f"{count} {harm} of checkpoints and results: {silent} silent loads")


def came_to(root):
    """All that a folder of runs came to, also where nobody could know any more whose a place was, and left it alone."""
    found = {ASIDE.sub("", place): one for place, one in outcome(root).items()}
    return found, comparison(root, "resume")


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_damaged_is_made_again_to_the_same_bits(stopped, tmp_path, harm, times, figure):
    draw, (harmed, _), count = random.Random(harm), HARMS[harm], times(3, 60)
    run(BASE, tmp_path / "whole", *RECIPE)
    whole = came_to(tmp_path / "whole")
    for number in range(count):
        root = tmp_path / f"harmed-{number}"
        shutil.copytree(stopped, root)
        every = [path for path in root.rglob("*.*") if path.is_file() and path.suffix != ".lock"]
        some = draw.sample(every, 3)
        for path in some:
            harmed(path, draw)
        experiment(BASE, root, *RECIPE, console=Ears()).run()
        assert came_to(root) == whole, some
    figure(f"{count} folders of runs with 3 {harm} each: the same command comes to 0 differing bits")
