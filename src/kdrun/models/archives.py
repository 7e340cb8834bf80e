"""Archives in which stable-baselines3 keeps its agents: the policy's weights, and what is said of it in plain text.

Raffin et al., "Stable-Baselines3: Reliable Reinforcement Learning Implementations", 2021.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from typing import IO, Any

Facts = Mapping[str, Any]
"""Of the algorithm's attributes those that are plain JSON; of one that was pickled its type, and its parts as texts."""

POLICY, DATA = "policy.pth", "data"
PICKLED = ":serialized:"
"""Under which ``data`` holds a pickle."""


def opened(file: IO[bytes]) -> tuple[bytes, Facts] | None:
    """What ``policy.pth`` holds, and the facts in ``data``; None where an archive is none of stable-baselines3.

    Nothing is unpickled. Raises what ``zipfile`` and ``json`` raise for a damaged one, or ``ValueError``.
    """
    with zipfile.ZipFile(file) as archive:
        if POLICY not in (names := archive.namelist()):
            return None
        policy = archive.read(POLICY)
        data = json.loads(archive.read(DATA)) if DATA in names else {}
    if not isinstance(data, dict):
        raise ValueError(f"its '{DATA}' is no mapping")
    return policy, {name: _plain(value) for name, value in data.items()}


def _plain(value: Any) -> Any:
    return {key: part for key, part in value.items() if key != PICKLED} if isinstance(value, dict) else value


def class_named(text: object) -> str:
    """The name of a class of which only the text is known: ``<class 'torch.nn.modules.activation.ReLU'>``."""
    found = re.search(r"(\w+)'>$", str(text))
    return found[1] if found else str(text)
