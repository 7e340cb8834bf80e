"""Checkpoints: folders that count once their manifest is there; the newest two are kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from kdrun.store.files import digest, read_json, write_bytes, write_json

KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state of one student at one step: named arrays, and what is not an array."""

    step: int
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]

    def save(self, folder: Path, fingerprint: str) -> None:
        """Write ``checkpoint-<step>/`` with its manifest last, then drop all but the newest two.

        Those of later steps are dropped too: they were passed over as damaged when this run went on.
        """
        target = folder / f"checkpoint-{self.step}"
        contents = {
            "state.safetensors": safetensors.numpy.save(self.arrays),
            "state.json": json.dumps(self.state).encode(),
        }
        for name, data in contents.items():
            write_bytes(target / name, data)
        files = {name: digest(data) for name, data in contents.items()}
        write_json(target / "manifest.json", {"fingerprint": fingerprint, "step": self.step, "files": files})
        found = _folders(folder)
        kept = [path for step, path in found if step <= self.step][-KEPT:]
        for _, path in found:
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)


def newest(folder: Path, fingerprint: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of a fingerprint, and a sentence about each damaged one passed over."""
    damaged: list[str] = []
    for step, path in reversed(_folders(folder)):
        try:
            manifest = read_json(path / "manifest.json")
            contents = {name: (path / name).read_bytes() for name in manifest["files"]}
            if any(digest(data) != manifest["files"][name] for name, data in contents.items()):
                raise ValueError("its bytes are not those that were written")
            if manifest["fingerprint"] != fingerprint:
                continue
            arrays = safetensors.numpy.load(contents["state.safetensors"])
            return Checkpoint(step, arrays, json.loads(contents["state.json"])), damaged
        except Exception as error:
            damaged.append(f"{path}: passed over: {error}")
    return None, damaged


def remove_all(folder: Path) -> None:
    """Drop every checkpoint of a finished run."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def _folders(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints that have a manifest, oldest first."""
    found = [(path.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*")]
    return sorted((int(n), path) for n, path in found if n.isdigit() and (path / "manifest.json").is_file())
