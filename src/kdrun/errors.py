"""What can go wrong for a user, and the exit code that it ends with.

Programmers' errors are asserts; everything here is one message that says where, what, and what to write
instead::

    KdrunError                      1   failed: one message, no traceback
    ├── ConfigError                 2   the YAML file or ``--set``: every problem at once
    ├── UsageError                  2   the command line
    ├── DataError                   1   the data set's files
    ├── WeightsError                1   a file of weights
    ├── DeviceError                 1   the device is not there
    ├── StoreError                  1   the folder of runs: locked, missing, full
    │   └── DamagedError            1   a file in it is not what was written
    ├── TrainingError               1   a student or a whole group stopped
    │   └── OutOfMemory             1   there was no memory left for it
    ├── GateError                   3   a comparison does not come to what was demanded of it
    └── Interrupted           130/143   SIGINT or SIGTERM, after the state was saved

``Mismatch`` is not an error of the user by itself: components raise it where two parts do not fit, and
whoever knows the place in the config turns it into a ``Problem``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

Path = tuple[str | int, ...]
"""Where something stands in a config: ``("methods", 0, "losses", 1, "temperature")``."""


class KdrunError(Exception):
    """A failure that is told in one message."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a config.

    ``path`` is the place in the config, ``on_key`` whether the key (and not its value) is to be pointed at,
    ``message`` what is wrong and ``hint`` what to write instead.
    """

    path: Path
    message: str
    hint: str = ""
    on_key: bool = False


class ConfigError(KdrunError):
    """The config is wrong; ``problems`` are all that were found, ``lines`` their places and words."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem], lines: Iterable[str] = ()) -> None:
        self.problems = list(problems)
        self.lines = list(lines)
        super().__init__("\n".join(self.lines or [str(p.message) for p in self.problems]))


class UsageError(KdrunError):
    """The command line is wrong."""

    exit_code = 2


class DataError(KdrunError):
    """The files of a data set are missing or broken; ``dataset.KEY: …`` where one key is to blame."""


class WeightsError(KdrunError):
    """A file of weights is missing, broken, or does not fit its model."""


class DeviceError(KdrunError):
    """The device that was asked for is not there."""


class GateError(KdrunError):
    """A comparison does not come to what was demanded of it."""

    exit_code = 3


class StoreError(KdrunError):
    """The folder of runs is locked by another process, cannot be written, or lacks what was asked for."""


class DamagedError(StoreError):
    """A file in the folder of runs is gone, or its bytes are not those that were written."""


class TrainingError(KdrunError):
    """A student or a group of students could not be trained to the end."""


class OutOfMemory(TrainingError):
    """The memory of the device, or of the machine, ran out."""


class Interrupted(KdrunError):
    """The run was stopped by a signal, after the state of the students was saved."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Mismatch(Exception):
    """Two parts do not fit: a model and its input, a loss and the layers it taps.

    ``key`` names the option of the component that is to blame, if there is one.
    """

    def __init__(self, message: str, hint: str = "", key: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.key = key


def printable(text: str, lines: bool = False) -> str:
    """The text with all escaped that a terminal would not print, or would obey; ``lines`` keeps its line ends."""
    if lines:
        return "\n".join(map(printable, text.split("\n")))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(text: object, most: int = 100) -> str:
    """What a file says of itself, on one line and as long as a message can bear: names, cells, others' errors."""
    told = printable(str(text)[: most + 1])
    return told if len(told) <= most else f"{told[:most]}…"


def did_you_mean(name: object, known: Iterable[str], list_all: bool = True) -> str:
    """The nearest of the ``known`` names, and the list of them: ``did you mean 'kd'? known: at, ce, kd``.

    Nearest are all that begin with the name or are one slip away from it, or else the one that it begins or ends with
    or is most like.
    """
    names = sorted(set(known))
    parts = []
    if near := _nearest(str(name), names):
        *others, last = [f"'{n}'" for n in near]
        parts.append(f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?")
    if list_all and names:
        parts.append("known: " + ", ".join(names))
    return " ".join(parts)


def _nearest(name: str, names: list[str]) -> list[str]:
    wanted, plain = _plain(name), {n: _plain(n) for n in names}
    if not wanted:
        return []
    begun = [n for n in names if plain[n].startswith(f"{wanted}-")]
    slips = [n for n in names if n not in begun and _one_slip(wanted, plain[n])]
    if begun or slips:
        return begun + sorted(slips, key=lambda n: -_likeness(wanted, plain[n]))
    if beginnings := [n for n in names if wanted.startswith(f"{plain[n]}-")]:
        return [max(beginnings, key=len)]
    if ends := [n for n in names if wanted.endswith(f"-{plain[n]}")]:
        return [max(ends, key=len)]
    like = difflib.get_close_matches(wanted, plain.values(), n=1, cutoff=0.55)
    return [n for n in names if plain[n] in like][:1]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, other, one).ratio()


def _one_slip(one: str, other: str) -> bool:
    """Whether two texts are the same but for a letter more, less or other, or for two neighbours changed over."""
    for _ in range(2):  # what both begin with, then what both end with
        equal = [a == b for a, b in zip(one, other, strict=False)]
        same = (*equal, False).index(False)
        one, other = one[same:][::-1], other[same:][::-1]
    return max(len(one), len(other)) <= 1 or (len(one) == 2 and one == other[::-1])
