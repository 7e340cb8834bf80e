"""Files that mean harm: none runs code, writes outside of its folder, hangs, fills the memory or ends in a traceback.

Each case is a command as a user would give it. What lies around it (a home, programs that must not be called, the file
that foreign code would make) is looked at before and after.
"""

import contextlib
import ctypes
import hashlib
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import matplotlib.font_manager  # noqa: F401 (its cache is written when it is imported, and by no case)
import numpy as np
import pytest
from safetensors.torch import save

import hostile
from commands import Done, command, process
from hostile import CONFIG, KD, TABLE, TEACHER, TEACHERS, evil
from kdrun.data import files
from kdrun.store.files import sealed
from support import results

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="bounds and permissions are set as Linux has them"
)

SECONDS = 20
"""What a case may take."""
GROWTH = 600 << 20
"""Bytes by which a case may let the memory grow."""
ROOM = 4 << 30
"""Bytes of addresses that a case may ask for; what wants more is told that there is no memory."""


class Ground:
    """A folder where kdrun runs, and around it all that a hostile file could reach."""

    def __init__(self, folder):
        self.folder, self.work, self.ran = folder, folder / "work", folder / "ran"
        self.runs = self.work / "runs"
        for name in ("work", "home", "bin"):
            (folder / name).mkdir()
        (folder / "home" / ".profile").write_text("# mine\n")
        for name in ("gs", "gswin64c", "magick"):
            (folder / "bin" / name).write_text(f"#!/bin/sh\ntouch {self.ran}\n")
            (folder / "bin" / name).chmod(0o755)

    def config(self, dataset=TABLE, teacher=TEACHER):
        """Write ``c.yaml``."""
        (self.work / "c.yaml").write_text(CONFIG.format(dataset=dataset, teacher=teacher))

    def put(self, folder, contents):
        """Write files below a folder, by their places in it."""
        for place, data in contents.items():
            file = self.work / folder / place
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data.encode() if isinstance(data, str) else data)

    def around(self):
        """All that lies outside of the folder of runs, with what a write would change of it."""
        found, folders = {}, [self.folder]
        while folders:
            with contextlib.suppress(PermissionError), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    known = entry.stat(follow_symlinks=False)
                    found[entry.path] = (known.st_mode, known.st_size, known.st_mtime_ns)
                    if entry.is_dir(follow_symlinks=False) and Path(entry.path) != self.runs:
                        folders.append(entry.path)
        return {path: known for path, known in found.items() if Path(path) not in (self.work, self.runs)}

    def attempt(self, *arguments, growth=GROWTH):
        """Run a command; what it ended with, and what is wrong with how it did."""
        before, began, faults = self.around(), time.monotonic(), []
        with in_bounds() as grown, permissions_respected(), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("default")
            try:
                done = command(*arguments, folder=self.work)
            except Exception as error:
                done = Done(1, "", traceback.format_exc())
                faults.append(f"a traceback: {type(error).__name__}: {error}"[:300])
        faults += [
            f"warns: {one.message}" for one in warned if not issubclass(one.category, DeprecationWarning)
        ]
        if time.monotonic() - began > SECONDS:
            faults.append(f"took {time.monotonic() - began:.0f} s")
        if grown() > growth:
            faults.append(f"took {grown() / 1e6:.0f} MB")
        return done, faults + self.harm(before) + obeyed(done)

    def harm(self, before):
        """What foreign code did, and what was written outside of the folder of runs."""
        after = self.around()
        changed = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
        ran = ["foreign code ran"] * self.ran.exists()
        self.ran.unlink(missing_ok=True)
        return ran + [f"outside of the runs: {path}" for path in changed]

    def refused(self, named, *arguments):
        """What is wrong with how a command is refused, in one message that names a file."""
        done, faults = self.attempt(*arguments)
        return faults + not_told(done, named)


def obeyed(done):
    """What a terminal would not print of what a command said, but obey."""
    odd = {letter for letter in done.out + done.err if letter != "\n" and not letter.isprintable()}
    return [f"a terminal would obey {sorted(odd)}"] if odd else []


def not_told(done, named):
    """What is wrong with a refusal, which has to be one message that names a file."""
    message = "\n".join(
        line for line in done.err.splitlines() if " | " not in line
    )  # without the config's line
    faults = [f"ended with {done.code}"] * (done.code not in (1, 2))
    faults += [f"does not name {named}"] * (named not in message)
    faults += ["a traceback"] * ("Traceback" in message)
    faults += ["more than one short message"] * (len(message) > 5000 or message.count("error: ") > 1)
    return faults + [done.err[-500:]] * bool(faults)


def told(faults):
    """The faults of several cases, by name."""
    return "\n".join(f"{name}: {'; '.join(of)}" for name, of in faults.items() if of)


@contextlib.contextmanager
def in_bounds():
    """Bound the time and the addresses of what is done in the block; by how much it lets the memory grow."""

    def resident(key):
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status[key].split()[0]) << 10

    def out_of_time(_signal, _frame):
        raise AssertionError("hangs")

    handler, limits = signal.signal(signal.SIGALRM, out_of_time), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (resident("VmSize") + ROOM, limits[1]))
    with contextlib.suppress(OSError):  # not every container may have the highest mark begin anew
        Path("/proc/self/clear_refs").write_text("5")
    began = resident("VmHWM")
    signal.alarm(2 * SECONDS)
    try:
        yield lambda: resident("VmHWM") - began
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


@contextlib.contextmanager
def permissions_respected():
    """Have files' permissions count, also for root: give up the capabilities that pass over them, for a while."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the version of the interface, and this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable ones, and their upper halves
    assert libc.capget(header, sets) == 0
    had = sets[0]
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = had
        assert libc.capset(header, sets) == 0


def remove(path):
    """Delete a file or a folder of any kind."""
    if path.is_dir() and not path.is_symlink():
        subprocess.run(["chmod", "-R", "u+rwX", path], check=True)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@pytest.fixture
def ground(tmp_path, monkeypatch):
    """The surroundings of a case: a home, programs that must not be called, and a network that does not answer."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    return Ground(tmp_path)


# --------------------------------------------------------------------------------------- configs, places


def test_hostile_configs(ground, figure):
    faults = {}
    for name, make in hostile.CONFIGS.items():
        ground.put(".", {"c.yaml": make(ground.ran)})
        faults[name] = ground.refused(hostile.SAID.get(name, "c.yaml"), "check", "c.yaml")
    assert not told(faults), told(faults)
    figure(
        f"{len(faults)} hostile configs: 0 lines of foreign code run, 0 files written outside, each is named"
    )


def test_what_is_no_file_is_not_taken_for_one(ground, times, figure):
    ground.put("data", hostile.mnist() | {"test_32x32.mat": b""})
    cases = [(file, kind) for file in hostile.TAKEN for kind in hostile.PLACES]
    faults = {}
    for file, kind in cases[:: times(2, 1)]:
        remove(ground.work / file)
        ground.config(**hostile.TAKEN[file])
        remove(ground.work / file)
        hostile.PLACES[kind](ground.work / file)
        faults[f"{kind} for {file}"] = ground.refused(file, "compare", "c.yaml")
        remove(ground.work / file)
    assert not told(faults), told(faults)
    figure(
        f"{len(faults)} times something else in a file's place, such as a pipe: each is named, and none waited for"
    )


# ----------------------------------------------------------------------------------------------- weights


def teacher_from(file, way):
    """A teacher whose weights come from a file, in one of two ways."""
    return {
        "weights": f"{{model: {{kind: mlp, hidden: [8]}}, weights: {file}}}",
        "initial_weights": f"{{model: {{kind: mlp, hidden: [8], initial_weights: {file}}}}}",
    }[way]


def test_the_teacher_is_taken_where_nothing_is_wrong_with_its_file(ground):
    """Or all that is refused below could be refused for another reason."""
    good = hostile.good()
    for name, data in {
        "a.pt": hostile.saved(good),
        "b.pt": hostile.legacy(good),
        "c.safetensors": save(good),
    }.items():
        for way in ("weights", "initial_weights"):
            ground.put(".", {name: data})
            ground.config(teacher=teacher_from(name, way))
            done, faults = ground.attempt("check", "c.yaml")
            assert (done.code, faults) == (0, []), done


def test_evil_does_what_it_says_where_it_is_unpickled(ground):
    """Or that it has not been done would prove nothing."""
    pickle.loads(pickle.dumps(evil(ground.ran)))
    assert ground.harm(ground.around())[0] == "foreign code ran"


@pytest.mark.filterwarnings("ignore")  # of what is old-fashioned, while the files are made
def test_hostile_files_of_weights(ground, times, figure):
    faults, cases = {}, list(hostile.WEIGHTS.items())[:: times(2, 1)]
    for number, (name, (file, make)) in enumerate(cases):
        ground.put(".", {file: make(ground.ran)})
        ways = ("weights", "initial_weights")
        for way in times((ways[number % 2],), ways):
            ground.config(teacher=teacher_from(file, way))
            faults[f"{name} ({way})"] = ground.refused(file, "check", "c.yaml")
        (ground.work / file).unlink()
    assert not told(faults), told(faults)
    figure(
        f"{len(cases)} hostile files of weights: 0 lines of foreign code run, 0 files written outside, "
        "every message names the file"
    )


REAL = {
    "a name of tuples in 300,000 tuples": "the stack of a process overflowed where such a name was hashed",
    "the shell in an archive": "foreign code",
    "a bomb": "memory",
    "the shell in torch's oldest format": "foreign code",
}
"""Weights that are also read in a process of its own, and what they aim at."""


def test_hostile_weights_in_a_process_of_its_own(ground, times):
    made = {name.partition(": ")[2]: case for name, case in hostile.WEIGHTS.items()}
    for name in list(REAL)[: times(1, len(REAL))]:
        file, make = made[name]
        ground.put(".", {file: make(ground.ran)})
        ground.config(teacher=teacher_from(file, "weights"))
        before = ground.around()
        done = process("check", "c.yaml", folder=ground.work)
        faults = ground.harm(before) + obeyed(done) + not_told(done, file)
        assert not faults, (name, REAL[name], faults)


# ---------------------------------------------------------------------------------------------- archives


def test_hostile_archives(ground, times, figure):
    faults = {}
    for name, (file, make) in list(hostile.ARCHIVES.items())[:: times(2, 1)]:
        ground.put(".", {file: make(ground.ran)})
        ground.config(dataset=f"{{kind: arrays, path: {file}}}")
        faults[name] = ground.refused(file, "check", "c.yaml")
        (ground.work / file).unlink()
    assert not told(faults), told(faults)
    figure(
        f"{len(faults)} hostile archives and tables: 0 lines of foreign code run, 0 files written outside, every "
        "message names the file"
    )


def test_hostile_files_of_known_sets(ground, figure):
    faults = {}
    for name, (kind, named, make) in hostile.SETS.items():
        ground.put("data", make(ground.ran))
        ground.config(dataset=f"{{kind: {kind}}}")
        faults[name] = ground.refused(named, "compare", "c.yaml")
        shutil.rmtree(ground.work / "data")
    assert not told(faults), told(faults)
    figure(f"{len(faults)} hostile files in the places of known data sets: 0 lines of foreign code run")


def test_no_file_of_cifar_is_unpickled_that_is_not_the_published_one(ground, monkeypatch):
    """Not even the one with the names of the classes, beside pictures that are all right."""
    from torchvision.datasets import CIFAR10

    harmless = pickle.dumps({"data": np.zeros((10, 3072), np.uint8), "labels": list(range(10))})
    for known in ("train_list", "test_list"):
        published = [(name, hashlib.md5(harmless).hexdigest()) for name, _ in getattr(CIFAR10, known)]
        monkeypatch.setattr(CIFAR10, known, published)
    contents = dict.fromkeys(hostile.cifar(ground.ran), harmless)
    names = "cifar-10-batches-py/batches.meta"
    ground.put("data", contents | {names: pickle.dumps(evil(ground.ran))})
    ground.config(dataset="{kind: cifar10}")
    assert not ground.refused(names, "compare", "c.yaml")


# ---------------------------------------------------------------------------------------------- pictures

PHOTOS = "{kind: image-folder, root: photos, size: 8}"


@pytest.fixture
def photos(ground):
    """A folder of pictures that is right, and a config that takes it."""
    ground.config(dataset=PHOTOS)
    hostile.classes(ground.work / "photos")
    return ground.work / "photos"


def test_broken_folders_of_pictures(ground, photos, times, figure):
    faults = {}
    for name, (named, change) in list(hostile.FOLDERS.items())[:: times(2, 1)]:
        change(photos, ground.ran)
        faults[name] = ground.refused(named, "check", "c.yaml")
        remove(photos)
        hostile.classes(photos)
    assert not told(faults), told(faults)
    figure(
        f"{len(faults)} broken folders of pictures: 0 lines of foreign code run, 0 files written outside, every "
        "message names the file"
    )


def samples(runs):
    """The classes, and the number of samples, that a finished run tells of."""
    manifest = next(iter(results(runs).values())).manifest
    protocol = manifest["protocol"]
    return manifest["details"]["classes"], protocol["train_samples"] + protocol["test_samples"]


def test_pictures_that_are_odd_and_right_are_read(ground, photos, figure):
    shutil.rmtree(photos / "cat")
    ground.put("photos/cat", {name: make() for name, make in hostile.ODD.items()})
    done, faults = ground.attempt("compare", "c.yaml")
    assert (done.code, faults) == (0, []), done.err
    assert samples(ground.runs) == (["cat", "dog"], len(hostile.ODD) + 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a broken place and date, for one
        shades = {name: files.decode(photos / "cat" / name, (8, 8)).astype(int) for name in hostile.ODD}
    assert {name: shade for name, shade in shades.items() if abs(shade - hostile.SHADE).max() > 3} == {}
    figure(f"{len(shades)} pictures that are odd and right are read, with their classes and their number")


def test_large_pictures_are_decoded_one_at_a_time(ground, photos):
    """Each is a file of some kB that takes half a GB while it is decoded."""
    large = hostile.black(10_000)
    between = {
        f"small {number:03}.png": hostile.png() for number in range(files.AT_ONCE)
    }  # so that two threads decode
    ground.put("photos/cat", {"a large one.png": large, **between, "the last, a large one.png": large})
    done, faults = ground.attempt("check", "c.yaml", growth=700 << 20)
    assert (done.code, faults) == (0, []), done.err


def test_odd_names_are_obeyed_neither_by_the_terminal_nor_by_the_report(ground, figure):
    ground.config(dataset=PHOTOS)
    for number, name in enumerate(hostile.NAMES):
        ground.put(Path("photos", name), {file: hostile.png(10 * number) for file in (name, *"abcd")})
    done, faults = ground.attempt("compare", "c.yaml", "--plots", "runs/plots")
    assert (done.code, faults) == (0, []), done.err
    names = [os.fsencode(name).decode(errors="replace") for name in sorted(hostile.NAMES)]
    assert samples(ground.runs) == (names, 5 * len(names))
    report = (ground.runs / "tiny" / "report.html").read_text()
    assert "<script" not in report and "<img" not in report
    assert all((ground.runs / "tiny" / f"comparison.{kind}").is_file() for kind in ("json", "md", "csv"))
    figure(f"{len(names)} odd names of classes and files: obeyed neither by the terminal nor by the report")


def test_folders_in_folders_are_read_however_deep(ground, photos):
    with contextlib.chdir(photos / "cat"):
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
        Path("deep.png").write_bytes(hostile.png())
    try:
        done, faults = ground.attempt("compare", "c.yaml")
    finally:
        subprocess.run(["rm", "-r", photos], check=True)  # shutil, by which pytest cleans up, goes no deeper
    assert (done.code, faults) == (0, []), done.err[-300:]
    assert samples(ground.runs) == (["cat", "dog"], 13)


# ------------------------------------------------------------------------------------- a folder of runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished experiment, which nobody changes."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "c.yaml").write_text(CONFIG.format(dataset=TABLE, teacher=TEACHER))
    assert command("compare", "c.yaml", folder=folder).code == 0
    return folder / "runs"


@pytest.fixture
def handed_over(ground, finished):
    """Puts a copy of the finished experiment's runs on the ground, in place of the one that is there."""
    ground.config()

    def copied():
        remove(ground.runs)
        return shutil.copytree(finished, ground.runs)

    return copied


def test_forged_results(ground, handed_over, times, figure):
    """All hashes are right, and what they are of kdrun did not write."""
    faults, cases = {}, list(hostile.FORGED.items())[:: times(6, 1)]
    for number, (name, forge) in enumerate(cases):
        commands = ["compare", "c.yaml", "--no-train"], ["compare", "c.yaml"], ["status"]
        for arguments in times(commands[number % 2 :][:1], commands):
            forge(handed_over(), ground.ran)
            done, found = ground.attempt(*arguments)
            faults[f"{name}: {' '.join(arguments)}"] = found + [f"ended with {done.code}"] * (
                done.code not in (0, 1)
            )
    assert not told(faults), told(faults)
    figure(
        f"{len(cases)} forged results with right hashes: 0 lines of foreign code run, 0 files written outside"
    )


def test_no_student_learns_from_forged_weights(ground, handed_over, times):
    faults = {}
    for name, make in list(hostile.EXCHANGED["weights.safetensors"].items())[:: times(2, 1)]:
        runs = handed_over()
        shutil.rmtree(runs / "tiny" / "students")
        shutil.rmtree(runs / "cache")
        hostile.exchange(runs / TEACHERS, "weights.safetensors", make(ground.ran))
        faults[name] = ground.refused("teacher", "compare", "c.yaml", "--quiet")
    assert not told(faults), told(faults)


def names_a_fingerprint(runs, outside):
    (runs / KD / "result.json").unlink()
    begun = {"fingerprint": "../../../home/precious", "inputs": {}, "total_steps": 9}
    (runs / KD / "begun.json").write_bytes(sealed(begun))


def links_a_lock(runs, outside):
    shutil.rmtree(runs / KD)
    for lock in (runs / "index").glob("*.lock"):
        lock.unlink()
        lock.symlink_to(outside / "precious.lock")


def links_a_file(runs, outside):
    for name in ("comparison.json", "report.html", "config.yaml", "costs.json"):
        (runs / "tiny" / name).unlink()
        (runs / "tiny" / name).symlink_to(outside / "precious.json")


def links_a_run(runs, outside):
    shutil.copytree(runs / KD, outside / "seed-0", dirs_exist_ok=True)
    shutil.rmtree(runs / KD)
    (runs / KD).symlink_to(outside / "seed-0")


def links_a_run_that_is_not_finished(runs, outside):
    links_a_run(runs, outside)
    (outside / "seed-0" / "result.json").unlink()


def links_a_folder_of(depth):
    def links(runs, outside):
        folder = (runs / KD).parents[depth]
        shutil.move(folder, outside / "moved")
        folder.symlink_to(outside / "moved")

    links.__name__ = f"links_a_folder_{depth}_above_a_run"
    return links


def links_a_checkpoint(runs, outside):
    (runs / KD / "result.json").unlink()
    for name in ("manifest.json", "state.json"):
        (outside / name).write_text("mine")
    (runs / KD / "checkpoint-7").symlink_to(outside)


def links_the_cache(runs, outside):
    shutil.rmtree(runs / "cache")
    (runs / "cache").symlink_to(outside)


def links_the_index(runs, outside):
    shutil.rmtree(runs / "index")
    (runs / "index").symlink_to(outside)


def indexes_another_folder(runs, outside):
    for path in (runs / "index").glob("*.json"):
        path.write_bytes(sealed({"folder": "../../home"}))


def has_odd_names(runs, outside):
    (runs / KD).with_name("seed-[bold]\x1b[2J").mkdir()


WAYS = (
    names_a_fingerprint,
    links_a_lock,
    links_a_file,
    links_a_run,
    links_a_run_that_is_not_finished,
    *map(links_a_folder_of, (0, 2, 3)),
    links_a_checkpoint,
    links_the_cache,
    links_the_index,
    indexes_another_folder,
    has_odd_names,
)


def test_paths_in_a_folder_of_runs_lead_nowhere_else(ground, handed_over, figure):
    """Neither those in its files nor its links have anything written, emptied or deleted elsewhere."""
    outside, faults = ground.folder / "home", {}
    for way in WAYS:
        for arguments in (["status"], ["compare", "c.yaml"], ["clean", "--yes"]):
            remove(outside)
            outside.mkdir()
            (outside / "precious.json").write_text("{}")
            (outside / "precious.lock").write_text("mine\n")
            way(handed_over(), outside)
            done, found = ground.attempt(*arguments)
            faults[f"{way.__name__}: {arguments[0]}"] = found + [done.err] * (done.code not in (0, 1))
    assert not told(faults), told(faults)
    figure(f"{len(WAYS)} ways out of a folder of runs: 0 files written, emptied or deleted outside")


PIPES = (
    "tiny/resolved.json",
    "tiny/provenance.json",
    "tiny/costs.json",
    "tiny/config.yaml",
    "tiny/comparison.json",
    f"{KD}/result.json",
    f"{KD}/begun.json",
    f"{KD}/weights.safetensors",
    f"{KD}/predictions.npz",
    f"{KD}/metrics.jsonl",
    f"{KD}/checkpoint-2/manifest.json",
    "cache/*/manifest.json",
    "cache/*/logits.npy",
    "cache/.x.abcd.making/lock",
    "index/*.json",
    "index/*.lock",
)


def test_nobody_waits_for_a_pipe_in_a_folder_of_runs(ground, handed_over, times, figure):
    faults = {}
    for place in PIPES[:: times(3, 1)]:
        for arguments in (
            ["status"],
            ["compare", "c.yaml"],
            ["compare", "c.yaml", "--no-train"],
            ["clean", "--yes"],
        ):
            runs = handed_over()
            for file in [*runs.glob(place)] or [runs / place]:
                file.unlink(missing_ok=True)
                file.parent.mkdir(exist_ok=True)
                os.mkfifo(file)
            done, found = in_time(ground, *arguments)
            faults[f"{place}: {arguments}"] = found + [done.err] * (done.code not in (0, 1))
    assert not told(faults), told(faults)
    figure(
        f"{len(PIPES[:: times(3, 1)])} pipes in the places of files of a folder of runs: nobody waits for them"
    )


class Waiting(BaseException):
    """Something waits for ever."""


def in_time(ground, *arguments):
    """What a command ends with that has to come to its end soon."""

    def ring(*_):
        raise Waiting

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        return ground.attempt(*arguments)
    except Waiting:
        return Done(99, "", "waits for ever"), []
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_the_name_of_an_experiment_leads_nowhere_else(ground):
    """Although without training nothing else of the config is read."""
    ground.runs.mkdir()
    ground.put(".", {"c.yaml": hostile.tiny(name="../../home")})
    ground.put("../home", {"resolved.json": sealed({"name": "../../home", "runs": []})})
    assert not ground.refused("c.yaml", "compare", "c.yaml", "--no-train")
