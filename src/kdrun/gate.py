"""What a comparison has to come to, for use where a result decides whether something goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdrun.errors import GateError, UsageError, did_you_mean


@dataclass(frozen=True)
class Gate:
    """The least mean score of some methods, and whether one that is worse than alone is a failure."""

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

    def require(self, methods: Iterable[str]) -> None:
        """Raises ``UsageError`` where something is demanded of a method that is not among these."""
        known = set(methods)
        for method in self.least.keys() - known:
            raise UsageError(f"--fail-under {method}: there is no such method; {did_you_mean(method, known)}")

    def demand(self, compared: Mapping[str, Any]) -> None:
        """Raises ``GateError`` with every reason."""
        rows = [row for row in compared["rows"] if row["role"] in ("control", "student")]
        self.require(row["method"] for row in rows)
        reasons = [
            f"{row['model']} {row['method']}: {row['metric']} {row['mean']:.4f} is under {self.least[row['method']]}"
            for row in rows
            if row["method"] in self.least
            and row["mean"] is not None
            and row["mean"] < self.least[row["method"]]
        ]
        if self.worse_fails:
            reasons += [
                f"{row['model']} {row['method']} is worse than alone: {100 * row['gain']:+.2f} points"
                for row in rows
                if row["verdict"] == "worse"
            ]
        if reasons:
            raise GateError("\n".join(reasons))
