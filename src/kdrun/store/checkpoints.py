"""Checkpoints: folders that count once their manifest is there; the newest two are kept."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from kdrun.machine import raise_lack
from kdrun.store.files import demand, digest, reached, read_json, read_whole, write_bytes, write_json
from kdrun.store.forms import State, fit

KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state of one student at one step: named arrays, and what is not an array."""

    step: int
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]

    @property
    def bytes(self) -> int:
        """About what it takes on the disk."""
        return sum(array.nbytes for array in self.arrays.values())

    def save(self, folder: Path, fingerprint: str) -> None:
        """Write ``checkpoint-<step>/`` with its manifest last, then drop all but the newest two.

        None is dropped before the new one is read back as it was written. Those of later steps are dropped too: they
        were passed over as damaged when this run went on; and what a writer that was killed left unfinished.
        """
        target = folder / f"checkpoint-{self.step}"
        contents = {
            "state.safetensors": safetensors.numpy.save(self.arrays),
            "state.json": json.dumps(self.state).encode(),
        }
        for path in {target, *_folders(folder)} - {path for path in _whole(folder) if path != target}:
            _drop(path)
        for name, data in contents.items():
            write_bytes(target / name, data)
        files = {name: digest(data) for name, data in contents.items()}
        write_json(target / "manifest.json", {"fingerprint": fingerprint, "step": self.step, "files": files})
        demand(target, files)
        kept = [path for path in _whole(folder) if _step(path) <= self.step][-KEPT:]
        for path in _folders(folder):
            if path not in kept:
                _drop(path)


def newest(folder: Path, fingerprint: str, most: float = math.inf) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of a fingerprint, of no later step than ``most``.

    With it a sentence about each damaged one that was passed over.
    """
    damaged: list[str] = []
    for path in reversed([path for path in _whole(folder) if _step(path) <= most]):
        try:
            manifest = read_json(path / "manifest.json")
            contents = {name: read_whole(path / name, known) for name, known in manifest["files"].items()}
            if (manifest["fingerprint"], manifest["step"]) != (fingerprint, _step(path)):
                continue
            arrays = safetensors.numpy.load(contents["state.safetensors"])
            state = json.loads(contents["state.json"])
            fit(path / "state.json", State, state)
            return Checkpoint(_step(path), arrays, state), damaged
        except Exception as error:
            raise_lack(error)
            damaged.append(f"{path}: passed over: {error}")
    return None, damaged


def steps(folder: Path) -> list[int]:
    """Of what look like checkpoints, oldest first."""
    return [_step(path) for path in _folders(folder)]


def remove_all(folder: Path) -> None:
    """Drop every checkpoint of a finished run."""
    for path in _folders(folder):
        _drop(path)


def _drop(path: Path) -> None:
    """Its manifest first, so that what is left of it after a crash does not count."""
    reached("checkpoint/dropping")
    (path / "manifest.json").unlink(missing_ok=True)
    reached("checkpoint/half-dropped")
    shutil.rmtree(path, ignore_errors=True)
    reached("checkpoint/dropped")


def _step(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _folders(folder: Path) -> list[Path]:
    """All that look like checkpoints, oldest first."""
    found = [
        path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()
    ]
    return sorted(found, key=_step)


def _whole(folder: Path) -> list[Path]:
    """The checkpoints that have a manifest, oldest first."""
    return [path for path in _folders(folder) if (path / "manifest.json").is_file()]
