"""What a comparison has to come to, for use where a result decides whether something goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdrun.errors import GateError, UsageError, did_you_mean

ROUNDING = 1e-12
"""What a mean may fall short by because numbers are rounded."""


@dataclass(frozen=True)
class Gate:
    """The least mean score of some methods, of all students or of one, and whether being worse than alone fails."""

    least: Mapping[str, float]
    worse_fails: bool

    @classmethod
    def read(cls, least: Iterable[str], worse_fails: bool) -> Gate:
        """From ``METHOD=SCORE``; raises ``UsageError``."""
        read = {}
        for written in least:
            method, equals, score = written.rpartition("=")
            try:
                read[method] = float(score)
            except ValueError:
                equals = ""
            if not equals or not method or not 0 <= read[method] <= 1:
                raise UsageError(
                    f"--fail-under {written}: write METHOD=SCORE, the score between 0 and 1: kd=0.92"
                )
        return cls(read, worse_fails)

    def require(self, students: Iterable[str], methods: Iterable[str]) -> None:
        """Raises ``UsageError`` where something is demanded of a method, or a student's, that is not among these."""
        known = set(methods)
        every = known | {f"{student}/{method}" for student in students for method in known}
        for name in self.least.keys() - every:
            raise UsageError(f"--fail-under {name}: there is no such method; {did_you_mean(name, known)}")

    def demand(self, compared: Mapping[str, Any]) -> None:
        """Raises ``GateError`` with every reason."""
        rows = [row for row in compared["rows"] if row["role"] in ("control", "student")]
        self.require({row["model"] for row in rows}, {row["method"] for row in rows})
        reasons = [
            f"{row['model']} {row['method']}: {row['metric']} {row['mean']:.4f} is under {least}"
            for row in rows
            for name, least in self.least.items()
            if name in (row["method"], f"{row['model']}/{row['method']}")
            and row["mean"] is not None
            and row["mean"] < least - ROUNDING
        ]
        if self.worse_fails:
            reasons += [
                f"{row['model']} {row['method']} is worse than alone: {100 * row['gain']:+.2f} points"
                for row in rows
                if row["verdict"] == "worse"
            ]
        if reasons:
            raise GateError("\n".join(reasons))
