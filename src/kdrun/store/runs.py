"""Where each run lies, whether it is finished, and finding it again from any config."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from kdrun.errors import DamagedError, StoreError
from kdrun.machine import raise_lack
from kdrun.store import checkpoints
from kdrun.store.checkpoints import Checkpoint
from kdrun.store.files import (
    ANEW,
    changed,
    claim_json,
    demand,
    digest,
    reached,
    read_bytes,
    read_json,
    read_whole,
    sweep,
    write_bytes,
    write_json,
)
from kdrun.store.fingerprints import first_difference
from kdrun.store.forms import Line, fit, foreign
from kdrun.store.shelf import Shelf

FOLDS, RULES = "folds.safetensors", "rules.json"
"""What a model that was fitted at once may have stored besides: those of its folds, and a tree as rules."""
EPISODE = "episode.gif"
"""What an agent may have stored besides: one of its evaluation episodes."""
GIF = (b"GIF87a", b"GIF89a")
"""How such a file begins."""
EPISODES = {"returns": np.float64, "lengths": np.int64, "truncated": np.bool_}
"""What predictions hold of an agent's evaluation episodes, and of which type."""
IN_SEVERAL = {"environment": np.str_, "normalised": np.float64}
"""What they hold besides where it acts in several environments."""
DEPTH = 6
"""Of the folders below that of all runs: ``EXPERIMENT/students/STUDENT/METHOD/seed-0/checkpoint-9``."""


@dataclass(frozen=True)
class Result:
    """A finished run: its folder and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    def _bytes(self, name: str) -> bytes:
        return read_whole(self.folder / name, self.manifest["files"][name])

    def _read(self, name: str, made: Callable[[bytes], Any]) -> Any:
        """What a file is made into; raises ``DamagedError`` where it is none of kdrun's, whatever its hash."""
        data = self._bytes(name)
        try:
            return made(data)
        except Exception as error:  # every format fails in its own way
            raise_lack(error)
            raise foreign(self.folder / name, error) from error

    def weights(self) -> dict[str, np.ndarray]:
        """The exported weights by name; raises ``DamagedError``."""
        return self.arrays("weights.safetensors")

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a safetensors file by name; raises ``DamagedError``, also where there is no such file."""
        if name not in self.manifest["files"]:
            raise foreign(self.folder / "result.json", f"no {name}")
        arrays: dict[str, np.ndarray] = self._read(name, safetensors.numpy.load)
        return arrays

    def predictions(self) -> dict[str, np.ndarray]:
        """Test ``logits`` (N, C) float32, ``labels`` (N,), ``index`` (N,); raises ``DamagedError``.

        And the classes (N,) that are ``retrieved``, where the embeddings were scored; of an agent's E evaluation
        episodes the ``returns`` (E,) float64, ``lengths`` (E,) int64, and which are ``truncated`` (E,) bool; where it
        acts in several environments also the name of each episode's ``environment`` (E,), and its ``normalised`` return
        (E,) float64.
        """
        arrays: dict[str, np.ndarray] = self._read("predictions.npz", _arrays)
        tested = self.manifest["protocol"]["test_samples"]
        samples = arrays["labels"].size if "returns" in arrays else tested
        details = self.manifest["details"]
        classes = len(details["classes"])
        logits = arrays["logits"]
        shaped = logits.dtype == np.float32 and logits.shape == (samples, classes - details.get("unseen", 0))
        if not shaped or not np.isfinite(logits).all():
            raise foreign(self.folder / "predictions.npz", f"logits {logits.shape} {logits.dtype}")
        for name in arrays.keys() & {"labels", "retrieved"}:
            found = arrays[name]
            if found.dtype.kind != "i" or found.shape != (samples,) or not set(found) <= set(range(classes)):
                raise foreign(self.folder / "predictions.npz", f"{name} {found.shape} {found.dtype}")
        told = {name: kind for name, kind in (EPISODES | IN_SEVERAL).items() if name in arrays}
        for name, kind in told.items():
            found = arrays[name]
            if found.dtype.type != kind or found.shape != (tested,) or not _finite(found):
                raise foreign(self.folder / "predictions.npz", f"{name} {found.shape} {found.dtype}")
        return arrays

    def rules(self) -> dict[str, Any] | None:
        """A tree's rules; None for anything else. Raises ``DamagedError``."""
        return read_json(self.folder / RULES) if RULES in self.manifest["files"] else None

    def episode(self) -> bytes | None:
        """A recorded episode as a GIF; None where none was recorded. Raises ``DamagedError``."""
        return self._read(EPISODE, _gif) if EPISODE in self.manifest["files"] else None

    def metrics(self) -> list[dict[str, Any]]:
        """The training's log, a line an epoch; raises ``DamagedError``."""
        lines: list[dict[str, Any]] = self._read(
            "metrics.jsonl", lambda data: [json.loads(line) for line in data.decode().splitlines()]
        )
        for line in lines:
            fit(self.folder / "metrics.jsonl", Line, line)
        return lines


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of predictions; raises ``ValueError`` for an archive that is packed, which kdrun's are not."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > len(data):
            raise ValueError("it is packed")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        wanted = ["logits", "labels", "index"] + ["retrieved"] * ("retrieved" in arrays)
        wanted += [*EPISODES, *(IN_SEVERAL.keys() & {*arrays})] if "returns" in arrays else []
        return {name: arrays[name] for name in wanted}


def _finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite; names are none."""
    return array.dtype.kind == "U" or bool(np.isfinite(array).all())


def _gif(data: bytes) -> bytes:
    """The same; raises ``ValueError`` where it is no GIF."""
    if not data.startswith(GIF):
        raise ValueError("it is no GIF")
    return data


class Workplace:
    """The folder in which one run is made, until its manifest closes it."""

    def __init__(self, store: Store, folder: Path, fingerprint: str, inputs: dict[str, Any]) -> None:
        self.store, self.folder, self.fingerprint, self.inputs = store, folder, fingerprint, inputs

    @property
    def failed(self) -> bool:
        """Whether the last attempt stopped by itself."""
        return (self.folder / "failure.json").exists()

    @property
    def cut_short(self) -> bool:
        """Whether an attempt was begun, and neither finished nor stopped by itself."""
        begun = self.store.read(self.folder / "begun.json")
        return begun is not None and "total_steps" in begun and not self.failed  # a mere claim has none

    def newest(self, most: float = math.inf) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint, of no later step than ``most``, and warnings about damaged ones."""
        return checkpoints.newest(self.folder, self.fingerprint, most)

    def begin(self, total_steps: int, resolved: dict[str, Any], checkpoint: Checkpoint | None) -> None:
        """Mark the run as begun, at a checkpoint or at its first step; sweep away what a writer left that was killed.

        Raises ``StoreError`` where the checkpoint was made on another device or in another precision.
        """
        sweep(self.folder)
        sweep(self.store.index, f"{self.fingerprint}.*")
        if checkpoint is not None and checkpoint.state["resolved"] != resolved:
            raise StoreError(
                f"{self.folder}: was begun with {checkpoint.state['resolved']} and cannot go on with {resolved}; "
                "run it where it was begun, or delete the folder"
            )
        (self.folder / "failure.json").unlink(missing_ok=True)
        begun = {"fingerprint": self.fingerprint, "inputs": self.inputs, "total_steps": total_steps}
        write_json(self.folder / "begun.json", begun)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint."""
        checkpoint.save(self.folder, self.fingerprint)

    def fail(self, failure: dict[str, Any]) -> None:
        """Leave a note of why the run stopped."""
        write_json(self.folder / "failure.json", failure)

    def finish(
        self,
        manifest: dict[str, Any],
        weights: dict[str, np.ndarray] | None,
        predictions: dict[str, np.ndarray] | None,
        metrics: list[dict[str, Any]],
        extras: Mapping[str, bytes] = {},  # never written to
    ) -> Result:
        """Write the files and the index entry, then the manifest that makes them count.

        Of a run of which only the scores are wanted, weights and predictions are not kept. ``extras`` are more files.
        """
        contents = {"metrics.jsonl": "".join(json.dumps(line) + "\n" for line in metrics).encode(), **extras}
        if weights is not None:
            contents["weights.safetensors"] = safetensors.numpy.save(weights)
        if predictions is not None:
            buffer = io.BytesIO()
            np.savez(buffer, **predictions)  # type: ignore[arg-type]  # any of the names could be an option's
            contents["predictions.npz"] = buffer.getvalue()
        for name, data in contents.items():
            write_bytes(self.folder / name, data)
        files = {name: digest(data) for name, data in contents.items()}
        demand(self.folder, files)
        manifest = {**manifest, "fingerprint": self.fingerprint, "inputs": self.inputs, "files": files}
        self.store.remember(self.fingerprint, self.folder)
        write_json(self.folder / "result.json", manifest)
        _tidy(self.folder)
        return Result(self.folder, manifest)


def _tidy(folder: Path) -> None:
    """Take away what a finished run needs no more; ``begun.json`` last, which tells that there is something."""
    sweep(folder)
    checkpoints.remove_all(folder)
    reached("result/tidied")
    (folder / "begun.json").unlink(missing_ok=True)


def _demand_own(root: Path) -> None:
    """Raise ``StoreError`` where a link leads out of a folder of runs, and what is stored there would lie elsewhere."""
    inside, folders = root.resolve(), [str(root)]
    for _ in range(DEPTH):
        found = [entry for folder in folders for entry in _entries(folder)]
        for entry in found:
            if (
                entry.is_symlink()
                and entry.is_dir()
                and not Path(entry.path).resolve().is_relative_to(inside)
            ):
                raise StoreError(
                    f"{entry.path}: leads out of {root}; put a folder there, or name the other by --out"
                )
        folders = [entry.path for entry in found if entry.is_dir(follow_symlinks=False)]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return list(entries)
    return []


class Store:
    """All runs under one ``--out`` folder; ``tell`` is given a sentence about each file that is damaged, once.

    Raises ``StoreError`` where a link leads out of the folder.
    """

    def __init__(self, root: Path, tell: Callable[[str], None] = lambda sentence: None) -> None:
        _demand_own(root)
        self.root, self.index = root, root / "index"
        self.shelf = Shelf(root / "cache")
        self._tell = tell
        self._told: set[str] = set()
        self._proven: dict[Path, dict[str, Any]] = {}

    def lock_file(self, fingerprint: str) -> Path:
        """Where the lock of a run lies."""
        return self.index / f"{fingerprint}.lock"

    def remember(self, fingerprint: str, folder: Path) -> None:
        """Note where a finished run lies, so that other configs find it."""
        place = folder.relative_to(self.root).as_posix()
        write_json(self.index / f"{fingerprint}.json", {"folder": place})

    def find(self, fingerprint: str, folder: str = "", prove: bool = False) -> Result | None:
        """The finished run of a fingerprint: through the index, or in the ``folder`` where it would lie.

        One that is damaged is none; with ``prove`` every byte of it is looked at, otherwise the sizes of its files.
        """
        entry = self.read(self.index / f"{fingerprint}.json")
        places = [entry["folder"]] if entry else []
        places += [folder, f"{folder}-{fingerprint[:8]}"] if folder else []
        for place in places:
            result = self.result(self.root / place, prove)
            if result is not None and result.manifest["fingerprint"] == fingerprint:
                return result
        return None

    def result(self, folder: Path, prove: bool = False) -> Result | None:
        """The finished run in a folder, if there is one that is not damaged.

        Raises ``StoreError`` where it was written by a newer kdrun.
        """
        manifest = self.read(folder / "result.json")
        if manifest is None:
            return None
        try:
            files = manifest["files"]
            for name, known in files.items():
                if (folder / name).stat().st_size != known["bytes"]:
                    raise changed(folder / name)
            if prove and self._proven.get(folder) != files:
                demand(folder, files)
                self._proven[folder] = files
                if (folder / "begun.json").exists():  # a process was killed as it closed the run
                    with suppress(OSError):  # which is no harm
                        _tidy(folder)
            return Result(folder, manifest)
        except OSError as error:
            self._damaged(f"{error.filename}: cannot be read: {error.strerror}; {ANEW}")
        except DamagedError as error:
            self._damaged(str(error))
        return None

    def read(self, path: Path) -> dict[str, Any] | None:
        """A file's JSON; None where it is missing or damaged."""
        if not path.is_file():
            return None
        try:
            return read_json(path)
        except DamagedError as error:
            self._damaged(str(error))
            return None

    def _damaged(self, what: str) -> None:
        """Tell of a damaged file, once."""
        if what not in self._told:
            self._told.add(what)
            self._tell(what)

    def failure(self, fingerprint: str, folder: str) -> dict[str, Any] | None:
        """Why the last attempt at a run stopped, in the ``folder`` where it would lie or beside another run's."""
        begun = self.begun(folder, fingerprint)
        return None if begun is None else self.read(begun / "failure.json")

    def begun(self, folder: str, fingerprint: str) -> Path | None:
        """Where a run was begun: in the ``folder`` where it would lie, or beside another run's."""
        for place in (self.root / folder, self.root / f"{folder}-{fingerprint[:8]}"):
            begun = self.read(place / "begun.json")
            if begun and begun["fingerprint"] == fingerprint:
                return place
        return None

    def workplace(self, folder: str, fingerprint: str, inputs: dict[str, Any]) -> tuple[Workplace, str]:
        """Where a run is to be made, and what it differs in from what already lies there ('' if nothing).

        A folder that holds another run, finished or begun, is left alone, and so is one of which damage has made
        unknown whose it is. The folder is claimed by its ``begun.json``, which only one process can make; a result is
        looked for after that, since another process may have finished one and taken its claim away in between.
        """
        path = self.root / folder
        while True:
            claimed = claim_json(path / "begun.json", {"fingerprint": fingerprint, "inputs": inputs})
            names = ("result.json", "begun.json")
            finished, begun = (self._other(path / name, fingerprint, inputs) for name in names)
            if claimed or begun is not None:  # or else another process has just finished there
                break
        difference = finished or begun or ""
        if difference:
            if claimed:
                (path / "begun.json").unlink(missing_ok=True)
            path = path.with_name(f"{path.name}-{fingerprint[:8]}")
        return Workplace(self, path, fingerprint, inputs), difference

    def _other(self, path: Path, fingerprint: str, inputs: dict[str, Any]) -> str | None:
        """What a run differs in from that which a file belongs to; '' where it is the same, None without a file."""
        try:
            data = read_bytes(path)
        except FileNotFoundError:
            return f"{path.name} is no file" if path.is_symlink() else None
        except OSError:
            if path.is_file():
                raise
            return f"{path.name} is no file"
        there = self.read(path)
        if there is not None:
            if there["fingerprint"] == fingerprint:
                return ""
            return first_difference(there["inputs"], inputs)
        return "" if self._was_of(path, data, fingerprint) else f"{path.name} is damaged"

    def _was_of(self, path: Path, data: bytes, fingerprint: str) -> bool:
        """Whether a damaged file was of this run: it still says so, or the index does, or a checkpoint beside it."""
        entry = self.read(self.index / f"{fingerprint}.json")
        return (
            fingerprint.encode() in data
            or (entry is not None and self.root / entry["folder"] == path.parent)
            or checkpoints.newest(path.parent, fingerprint)[0] is not None
        )

    def folders(self) -> Iterator[Path]:
        """Every run's folder, finished or not."""
        for experiment in self.root.glob("*/"):
            os.scandir(experiment).close()  # a pattern passes over what may not be read
        for name in ("teachers/*/seed-*", "students/*/*/seed-*", "tuning/*/*/trial-*"):
            yield from sorted(p for p in self.root.glob(f"*/{name}") if p.is_dir())
