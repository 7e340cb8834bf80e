"""What lies in the folder of runs and on its shelf, and what of it nobody needs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from kdrun.errors import StoreError
from kdrun.store import checkpoints
from kdrun.store.files import read_json
from kdrun.store.lock import held, locked
from kdrun.store.runs import Store
from kdrun.store.shelf import NEW, at_work


@dataclass(frozen=True)
class Entry:
    """One run's folder, its ``progress`` in [0, 1], and its size.

    ``state`` is finished, damaged, failed, unfinished or at work.
    """

    folder: Path
    state: str
    progress: float
    bytes: int
    fingerprint: str | None
    referenced: bool
    detail: str = ""


@dataclass(frozen=True)
class Shelved:
    """What lies at one place of the shelf, what it is, and its size.

    ``state`` is kept, damaged, unfinished (its process is gone), at work, or foreign: not from kdrun.
    """

    folder: Path
    state: str
    bytes: int
    detail: str = ""


def shelved(store: Store) -> list[Shelved]:
    """Everything on the store's shelf."""
    folder = store.shelf.folder
    return [_shelved(path) for path in sorted(folder.iterdir())] if folder.is_dir() else []


def _shelved(path: Path) -> Shelved:
    size = size_of(path)
    if (busy := at_work(path)) is not None:
        return Shelved(path, "at work" if busy else "unfinished", size)
    if not (path / "manifest.json").is_file():
        return Shelved(path, "foreign", size, "not from kdrun, which leaves it alone")
    try:
        about = read_json(path / "manifest.json")
        whole = all((path / n).stat().st_size == known["bytes"] for n, known in about["files"].items())
        return Shelved(path, "kept" if whole else "damaged", size, str(about.get("what", "")))
    except (OSError, StoreError, LookupError, TypeError, AttributeError):
        return Shelved(path, "damaged", size, "its manifest or a file cannot be read")


def entries(store: Store) -> list[Entry]:
    """Every run under the store's root."""
    wanted = _referenced(store)
    return [_entry(store, folder, wanted) for folder in store.folders()]


def _referenced(store: Store) -> set[str]:
    """The fingerprints that some config's ``resolved.json``, or its tuning, asks for; runs that teach there, too."""
    wanted: set[str] = set()
    for path in store.root.glob("*/resolved.json"):
        resolved = read_json(path)
        wanted |= {run["fingerprint"] for run in resolved["runs"]}
        teachers = resolved["config"].get("teachers", {}).values()
        for folder in filter(None, (teacher.get("run") for teacher in teachers)):
            wanted.add((store.read(Path(folder) / "result.json") or {}).get("fingerprint", ""))
    for path in store.root.glob("*/tuning.json"):
        wanted |= set(read_json(path)["fingerprints"])
    return wanted


def _entry(store: Store, folder: Path, wanted: set[str]) -> Entry:
    size = size_of(folder)
    begun, failure = (store.read(folder / name) or {} for name in ("begun.json", "failure.json"))
    result = store.result(folder)  # after that, or a run that is just finished would be neither
    if result is not None:
        fingerprint = result.manifest["fingerprint"]
        return Entry(folder, "finished", 1.0, size, fingerprint, fingerprint in wanted)
    fingerprint = begun.get("fingerprint")
    progress = max(checkpoints.steps(folder), default=0) / max(begun.get("total_steps", 1), 1)
    state, detail = "unfinished", ""
    if held(store.lock_file(fingerprint)) if fingerprint else _new(folder):
        state = "at work"
    elif failure:
        state, detail = "failed", failure["what"]
    elif (folder / "result.json").is_file():
        state, detail = "damaged", "the same command trains it again"
    return Entry(folder, state, progress, size, fingerprint, fingerprint in wanted, detail)


def _new(folder: Path) -> bool:
    """Whether a folder may be of a run that is about to begin there, since it is new and nothing in it says whose."""
    with suppress(FileNotFoundError):
        return not (folder / "result.json").exists() and time.time() - folder.stat().st_mtime < NEW
    return False


def disposable(found: Iterable[Entry]) -> list[Entry]:
    """Runs that are not finished, and finished ones that no config asks for any more."""
    return [
        entry
        for entry in found
        if entry.state != "at work" and (entry.state != "finished" or not entry.referenced)
    ]


def size_of(path: Path) -> int:
    """The bytes of a file, or of all in a folder; what a process takes away meanwhile counts nothing."""
    files = [Path(place, name) for place, _, names in os.walk(path) for name in names]
    total = 0
    for file in files if path.is_dir() else [path]:
        with suppress(FileNotFoundError, NotADirectoryError):
            total += file.lstat().st_size
    return total


def disposable_of_shelf(found: Iterable[Shelved], all_: bool) -> list[Shelved]:
    """What processes that are gone left unfinished, or all that no living process makes; never what is foreign."""
    states = {"unfinished", "kept", "damaged"} if all_ else {"unfinished"}
    return [entry for entry in found if entry.state in states]


def remove_shelved(entry: Shelved) -> None:
    """Delete an entry of the shelf; raises ``StoreError`` where that is not allowed."""
    try:
        shutil.rmtree(entry.folder)
    except FileNotFoundError:  # another process swept it away meanwhile
        return
    except OSError as error:
        raise StoreError(f"{entry.folder}: cannot be deleted: {error.strerror}") from error


def remove(store: Store, entry: Entry) -> bool:
    """Delete a run's folder and what leads to it, unless somebody has come to need it since it was looked at.

    A run that is unfinished here may be finished elsewhere: then its index entry stays. Raises ``StoreError`` where
    deleting is not allowed, or the run is at work.
    """
    lock = store.lock_file(entry.fingerprint) if entry.fingerprint else None
    try:
        with locked(lock, str(entry.folder)) if lock else nullcontext():
            if _come_to_be_needed(store, entry):
                return False
            finished = store.find(entry.fingerprint) if entry.fingerprint else None
            if lock and (finished is None or finished.folder == entry.folder):
                lock.with_suffix(".json").unlink(missing_ok=True)
            shutil.rmtree(entry.folder)
            with suppress(OSError):  # it holds something, as most do
                for parent in list(entry.folder.parents)[:3]:
                    if parent != store.root:
                        parent.rmdir()
            if lock:
                lock.unlink()
    except OSError as error:
        raise StoreError(f"{entry.folder}: cannot be deleted: {error.strerror}") from error
    return True


def _come_to_be_needed(store: Store, entry: Entry) -> bool:
    """Whether a run was begun, finished or asked for since it was looked at."""
    if entry.state == "finished":
        return entry.fingerprint in _referenced(store)
    begun = store.read(entry.folder / "begun.json") or {}
    return begun.get("fingerprint") != entry.fingerprint or store.result(entry.folder) is not None
