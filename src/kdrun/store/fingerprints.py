"""Fingerprints: a hash of all that decides a result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any


def fingerprint(inputs: dict[str, Any]) -> str:
    """SHA-256 over the canonical JSON of what decides a result."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first key in which two sets of inputs differ: ``training.epochs: 30 → 40``."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    for key in [*after, *(key for key in before if key not in after)]:
        if before.get(key) != after.get(key):
            return f"{key}: {_short(before.get(key))} → {_short(after.get(key))}"
    return "nothing"


def _short(value: Any) -> Any:
    """A hash by its first digits: which one it is says all."""
    return value[:8] if isinstance(value, str) and len(value) == hashlib.sha256().digest_size * 2 else value


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    items: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if items is None:
        yield path, value
        return
    for key, item in items:
        yield from _leaves(item, f"{path}.{key}" if path else str(key))
