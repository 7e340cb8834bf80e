"""Where each run lies, whether it is finished, and finding it again from any config."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from kdrun.errors import StoreError
from kdrun.store import checkpoints
from kdrun.store.checkpoints import Checkpoint
from kdrun.store.files import claim_json, digest, read_json, write_bytes, write_json
from kdrun.store.fingerprints import first_difference
from kdrun.store.shelf import Shelf

FORMAT = 1


@dataclass(frozen=True)
class Result:
    """A finished run: its folder and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    def _bytes(self, name: str) -> bytes:
        path, entry = self.folder / name, self.manifest["files"][name]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
        if digest(data) != entry:
            raise StoreError(
                f"{path}: its bytes are not those that were written; delete {self.folder} to train it again"
            )
        return data

    def weights(self) -> dict[str, np.ndarray]:
        """The exported weights by name; raises ``StoreError`` where the file is damaged."""
        return safetensors.numpy.load(self._bytes("weights.safetensors"))

    def predictions(self) -> dict[str, np.ndarray]:
        """Test ``logits`` (N, C) float32, ``labels`` (N,), ``index`` (N,); raises ``StoreError``."""
        with np.load(io.BytesIO(self._bytes("predictions.npz")), allow_pickle=False) as arrays:
            return dict(arrays)

    def metrics(self) -> list[dict[str, Any]]:
        """The training's log, a line an epoch; raises ``StoreError`` where the file is damaged."""
        return [json.loads(line) for line in self._bytes("metrics.jsonl").decode().splitlines()]


class Workplace:
    """The folder in which one run is made, until its manifest closes it."""

    def __init__(self, store: Store, folder: Path, fingerprint: str, inputs: dict[str, Any]) -> None:
        self.store, self.folder, self.fingerprint, self.inputs = store, folder, fingerprint, inputs

    def begin(self, total_steps: int, resolved: dict[str, Any]) -> tuple[Checkpoint | None, list[str]]:
        """Mark the run as begun; the newest whole checkpoint and warnings about damaged ones.

        Raises ``StoreError`` where a checkpoint was made on another device or in another precision.
        """
        checkpoint, damaged = checkpoints.newest(self.folder, self.fingerprint)
        if checkpoint is not None and checkpoint.state["resolved"] != resolved:
            raise StoreError(
                f"{self.folder}: was begun with {checkpoint.state['resolved']} and cannot go on with {resolved}; "
                "run it where it was begun, or delete the folder"
            )
        (self.folder / "failure.json").unlink(missing_ok=True)
        begun = {"fingerprint": self.fingerprint, "inputs": self.inputs, "total_steps": total_steps}
        write_json(self.folder / "begun.json", begun)
        return checkpoint, damaged

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
    ) -> Result:
        """Write the files and the index entry, then the manifest that makes them count.

        Of a run of which only the scores are wanted, weights and predictions are not kept.
        """
        contents = {"metrics.jsonl": "".join(json.dumps(line) + "\n" for line in metrics).encode()}
        if weights is not None:
            contents["weights.safetensors"] = safetensors.numpy.save(weights)
        if predictions is not None:
            buffer = io.BytesIO()
            np.savez(buffer, **predictions)  # type: ignore[arg-type]  # any of the names could be an option's
            contents["predictions.npz"] = buffer.getvalue()
        for name, data in contents.items():
            write_bytes(self.folder / name, data)
        manifest = {
            "format": FORMAT,
            **manifest,
            "fingerprint": self.fingerprint,
            "inputs": self.inputs,
            "files": {name: digest(data) for name, data in contents.items()},
        }
        self.store.remember(self.fingerprint, self.folder)
        write_json(self.folder / "result.json", manifest)
        (self.folder / "begun.json").unlink(missing_ok=True)
        checkpoints.remove_all(self.folder)
        return Result(self.folder, manifest)


class Store:
    """All runs under one ``--out`` folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shelf = Shelf(root / "cache")

    def lock_file(self, fingerprint: str) -> Path:
        """Where the lock of a run lies."""
        return self.root / "index" / f"{fingerprint}.lock"

    def remember(self, fingerprint: str, folder: Path) -> None:
        """Note where a finished run lies, so that other configs find it."""
        place = folder.relative_to(self.root).as_posix()
        write_json(self.root / "index" / f"{fingerprint}.json", {"folder": place})

    def find(self, fingerprint: str, folder: str = "") -> Result | None:
        """The finished run of a fingerprint: through the index, or in the ``folder`` where it would lie."""
        entry = self.root / "index" / f"{fingerprint}.json"
        places = [read_json(entry)["folder"]] if entry.is_file() else []
        places += [folder, f"{folder}-{fingerprint[:8]}"] if folder else []
        for place in places:
            result = self.result(self.root / place)
            if result is not None and result.manifest["fingerprint"] == fingerprint:
                return result
        return None

    def result(self, folder: Path) -> Result | None:
        """The finished run in a folder, if there is one whose files have their sizes.

        Raises ``StoreError`` where it was written by a newer kdrun.
        """
        path = folder / "result.json"
        if not path.is_file():
            return None
        manifest = read_json(path)
        if manifest["format"] > FORMAT:
            raise StoreError(
                f"{path}: format {manifest['format']} is newer than this kdrun's {FORMAT}; update kdrun"
            )
        sizes = {name: folder / name for name in manifest["files"]}
        whole = all(
            p.is_file() and p.stat().st_size == manifest["files"][n]["bytes"] for n, p in sizes.items()
        )
        return Result(folder, manifest) if whole else None

    def failure(self, fingerprint: str, folder: str) -> dict[str, Any] | None:
        """Why the last attempt at a run stopped, in the ``folder`` where it would lie or beside another run's."""
        for place in (folder, f"{folder}-{fingerprint[:8]}"):
            begun, failure = (self.root / place / name for name in ("begun.json", "failure.json"))
            if begun.is_file() and failure.is_file() and read_json(begun)["fingerprint"] == fingerprint:
                why: dict[str, Any] = read_json(failure)
                return why
        return None

    def workplace(self, folder: str, fingerprint: str, inputs: dict[str, Any]) -> tuple[Workplace, str]:
        """Where a run is to be made, and what it differs in from what already lies there ('' if nothing).

        A folder that holds another run, finished or begun, is left alone. The folder is claimed by its
        ``begun.json``, which only one process can make; a result is looked for after that, since another process
        may have finished one and taken its claim away in between.
        """
        path = self.root / folder
        claimed = claim_json(path / "begun.json", {"fingerprint": fingerprint, "inputs": inputs})
        for name in ("result.json", "begun.json"):
            there = read_json(path / name) if (path / name).is_file() else None
            if there is not None and there["fingerprint"] != fingerprint:
                if claimed:
                    (path / "begun.json").unlink()
                aside = path.with_name(f"{path.name}-{fingerprint[:8]}")
                return Workplace(self, aside, fingerprint, inputs), first_difference(there["inputs"], inputs)
        return Workplace(self, path, fingerprint, inputs), ""

    def folders(self) -> Iterator[Path]:
        """Every run's folder, finished or not."""
        for name in ("teachers/*/seed-*", "students/*/*/seed-*", "tuning/*/*/trial-*"):
            yield from sorted(p for p in self.root.glob(f"*/{name}") if p.is_dir())
