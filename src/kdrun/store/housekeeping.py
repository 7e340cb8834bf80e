"""What lies in the folder of runs, and what of it nobody needs."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kdrun.errors import StoreError
from kdrun.store.files import read_json
from kdrun.store.runs import Store


@dataclass(frozen=True)
class Entry:
    """One run's folder: its ``state`` (finished, failed, unfinished, at work), ``progress`` in [0, 1], size."""

    folder: Path
    state: str
    progress: float
    bytes: int
    fingerprint: str | None
    referenced: bool
    detail: str = ""


def entries(store: Store) -> list[Entry]:
    """Every run under the store's root."""
    wanted = _referenced(store)
    return [_entry(store, folder, wanted) for folder in store.folders()]


def _referenced(store: Store) -> set[str]:
    """The fingerprints that some config's ``resolved.json`` asks for."""
    wanted: set[str] = set()
    for path in store.root.glob("*/resolved.json"):
        wanted |= {run["fingerprint"] for run in read_json(path)["runs"]}
    return wanted


def _entry(store: Store, folder: Path, wanted: set[str]) -> Entry:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    result = store.result(folder)
    if result is not None:
        fingerprint = result.manifest["fingerprint"]
        return Entry(folder, "finished", 1.0, size, fingerprint, fingerprint in wanted)
    begun = read_json(folder / "begun.json") if (folder / "begun.json").is_file() else {}
    fingerprint = begun.get("fingerprint")
    steps = [
        int(p.name.removeprefix("checkpoint-")) for p in folder.glob("checkpoint-*") if p.name[11:].isdigit()
    ]
    progress = max(steps, default=0) / max(begun.get("total_steps", 1), 1)
    detail = ""
    if (folder / "failure.json").is_file():
        state, detail = "failed", read_json(folder / "failure.json")["what"]
    else:
        state = "at work" if fingerprint and _held(store.lock_file(fingerprint)) else "unfinished"
    return Entry(folder, state, progress, size, fingerprint, fingerprint in wanted, detail)


def _held(path: Path) -> bool:
    """Whether some process holds a run's lock."""
    if not path.is_file():
        return False
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def disposable(found: Iterable[Entry]) -> list[Entry]:
    """Runs that are not finished, and finished ones that no config asks for any more."""
    return [
        entry
        for entry in found
        if entry.state != "at work" and (entry.state != "finished" or not entry.referenced)
    ]


def remove(store: Store, entry: Entry) -> None:
    """Delete a run's folder and what leads to it; raises ``StoreError`` where that is not allowed.

    A run that is unfinished here may be finished elsewhere: then its index entry stays.
    """
    try:
        finished = store.find(entry.fingerprint) if entry.fingerprint else None
        if entry.fingerprint and (finished is None or finished.folder == entry.folder):
            (store.root / "index" / f"{entry.fingerprint}.json").unlink(missing_ok=True)
            store.lock_file(entry.fingerprint).unlink(missing_ok=True)
        shutil.rmtree(entry.folder)
        for parent in list(entry.folder.parents)[:3]:
            if parent != store.root and not any(parent.iterdir()):
                parent.rmdir()
    except OSError as error:
        raise StoreError(f"{entry.folder}: cannot be deleted: {error.strerror}") from error
