"""What the parts of a training step take, as a table, and what would help."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

LIVE = 0.3
"""Share of a step from which on it is worth a word that a teacher is asked live."""
DATA, LOSS, LEAST_LOSS = 0.2, 0.2, 0.05
"""Shares of a step, of a student's time and beside it of a step, from which on data and a loss are worth a word."""
NETWORKS, STACKED = 0.5, 0.3
"""Shares of all networks' passes, and of those of students that could be stacked, to be worth a word."""
SMALL = 5e-3
"""Seconds up to which what a network does is as slow for its number of operations as for their sizes."""

STACK = "stacked: "
"""How what stacked students do together is called, before their number."""

Kind = Literal["data", "teacher", "forward", "loss", "backward", "optimizer"]


class Part(NamedTuple):
    """A part of a step: whose it is, what it does, in words, and the median of its seconds."""

    of: str
    kind: Kind
    what: str
    seconds: float


@dataclass(frozen=True)
class Profile:
    """What the steps of one group showed.

    ``parts`` are in the order in which they run, each waited for; ``step_seconds`` are of whole steps that were not
    interrupted. ``lookup`` has, for each live teacher that a change of the config lets be looked up, a
    sentence with that change.
    """

    title: str
    steps: int
    step_seconds: float
    parts: list[Part]
    notes: list[str] = field(default_factory=list)
    lookup: Mapping[str, str] = field(default_factory=dict)
    bf16: bool = False
    """Whether some student computes in fp32 on pictures where the device has bf16."""
    alike: Sequence[str] = ()
    """The students of the largest set that could be stacked and is not."""
    reading: float = 0.0
    """Seconds of a step's batches without their augmentation, where it was worth measuring."""
    augmentation: str = ""
    """The parts of the data set's augmentation in words."""
    crowd: str | None = None
    """What to say of other processes."""

    @property
    def seconds(self) -> float:
        """The sum of the parts."""
        return sum(part.seconds for part in self.parts)

    def share(self, *kinds: Kind, of: Iterable[str] | None = None) -> float:
        """The share of the parts of some kinds in all parts, or of those that belong to somebody."""
        owners = None if of is None else set(of)
        taken = [p.seconds for p in self.parts if p.kind in kinds and (owners is None or p.of in owners)]
        return sum(taken) / self.seconds

    @property
    def heading(self) -> str:
        """The title of its table."""
        return f"{self.title}: {1e3 * self.step_seconds:.2f} ms a step (median of {self.steps})"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and lines."""
        lines = [
            [part.of, part.what, f"{1e3 * part.seconds:.3f}", f"{100 * part.seconds / self.seconds:.1f} %"]
            for part in self.parts
        ]
        return ["of", "part", "ms a step", "share"], lines

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "group": self.title,
            "steps": self.steps,
            "step_seconds": self.step_seconds,
            "parts": [part._asdict() | {"share": part.seconds / self.seconds} for part in self.parts],
            "notes": self.notes,
            "advice": self.advice,
        }

    # ------------------------------------------------------------------------------------------ advice

    @property
    def advice(self) -> list[str]:
        """What would help, as far as the figures show it."""
        return [*self._of_teachers(), *self._of_networks(), *self._of_data(), *self._of_losses()] + (
            [self.crowd] if self.crowd else []
        )

    def _of_teachers(self) -> Iterator[str]:
        for teacher, change in self.lookup.items():
            if (share := self.share("teacher", of=[teacher])) > LIVE:
                yield f"{teacher}, asked live, takes {_percent(share)} of the step: {change}"

    def _of_networks(self) -> Iterator[str]:
        networks = self.share("forward", "backward", "teacher")
        longest = max(
            (p.seconds for p in self.parts if p.kind in ("forward", "backward", "teacher")), default=0
        )
        if self.bf16 and networks > NETWORKS and longest > SMALL:
            yield (
                f"networks take {_percent(networks)} of the step, in fp32, and this device has bf16: "
                "`training.precision: bf16` may take much less (results differ by its rounding)"
            )
        passes = self.share("forward", "backward", "optimizer", of=self.alike)
        if len(self.alike) > 1 and passes > STACKED and passes * self.seconds < SMALL * len(self.alike):
            yield (
                f"{len(self.alike)} small students of one architecture take {_percent(passes)} of the step, one after "
                "the other: `training.stack: true` runs them as one, over methods and seeds (equal up to rounding)"
            )

    def _of_data(self) -> Iterator[str]:
        data = self.share("data")
        if data > DATA:
            read = min(self.reading / (data * self.seconds), 1.0)
            which = (
                f"the augmentation ({self.augmentation})"
                if self.augmentation and read < 0.5
                else "reading and normalising the samples"
            )
            most = max(read, 1 - read) if self.augmentation else 1.0
            yield f"data takes {_percent(data)} of the step, {_percent(most)} of that {which}"

    def _of_losses(self) -> Iterator[str]:
        for part in self.parts:
            if part.kind != "loss" or part.seconds <= LEAST_LOSS * self.seconds:
                continue
            if (share := part.seconds / self._student_seconds(part.of)) > LOSS:
                yield f"the {part.what} takes {_percent(share)} of the time of {part.of}, its gradient not counted"

    def _student_seconds(self, student: str) -> float:
        """A student's own parts, and where it is stacked its part of what all do together."""
        own = [p for p in self.parts if p.of == student]
        common = [p for p in self.parts if p.of.startswith(STACK)]
        if any(p.kind == "forward" for p in own) or not common:
            return sum(p.seconds for p in own)
        members = len({p.of for p in self.parts if p.kind == "optimizer"})
        return sum(p.seconds for p in own) + sum(p.seconds for p in common) / members


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
