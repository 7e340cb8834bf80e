"""What a comparison has to come to, for use where a result decides whether something goes on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdrun.errors import GateError, UsageError, did_you_mean
from kdrun.report.scales import scale_of

ROUNDING = 1e-12
"""What a mean may fall short by because numbers are rounded."""
HOW = "write METHOD=SCORE, the score between 0 and 1, unless it is a return: kd=0.92"


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
            if not equals or not method or not math.isfinite(read[method]):
                raise UsageError(f"--fail-under {written}: {HOW}")
        return cls(read, worse_fails)

    def require(self, students: Iterable[str], methods: Iterable[str], metrics: Iterable[str]) -> None:
        """Raises ``UsageError`` where something is demanded of a method, or a student's, that is not among these.

        Or where it is a score that none of the metrics can come to.
        """
        known = set(methods)
        every = known | {f"{student}/{method}" for student in students for method in known}
        for name in self.least.keys() - every:
            raise UsageError(f"--fail-under {name}: there is no such method; {did_you_mean(name, known)}")
        bounds = [scale_of(metric).bounds for metric in metrics]
        for name, score in self.least.items():
            if not any(least <= score <= most for least, most in bounds):
                raise UsageError(f"--fail-under {name}={score:g}: {HOW}")

    def demand(self, compared: Mapping[str, Any]) -> None:
        """Raises ``GateError`` with every reason."""
        rows = [row for row in compared["rows"] if row["role"] in ("control", "student")]
        self.require(*({row[key] for row in rows} for key in ("model", "method", "metric")))
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
                f"{row['model']} {row['method']} is worse than alone: {scale_of(row['metric']).difference(row['gain'])}"
                for row in rows
                if row["verdict"] == "worse"
            ]
        if reasons:
            raise GateError("\n".join(reasons))
