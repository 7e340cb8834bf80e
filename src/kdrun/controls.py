"""The controls: what stands beside the methods, so that a gain can be told from what any training would have given."""

from __future__ import annotations

from typing import Final, Literal

ALONE: Final = "alone"
SMOOTHED: Final = "label-smoothing"
SHUFFLED: Final = "shuffled-teacher"
MATCHED: Final = "matched-cost"

Control = Literal["alone", "label-smoothing", "shuffled-teacher", "matched-cost"]

MIXES = {ALONE: "ce", SMOOTHED: "label-smoothing", SHUFFLED: "kd", MATCHED: "ce"}
"""The published mix that each control is trained with."""
CONTROLS: dict[str, str] = {
    ALONE: "the student without a teacher",
    SMOOTHED: "the student without a teacher, its labels smoothed by 0.1: what softer targets alone give",
    SHUFFLED: "kd from a teacher whose outputs are shuffled over the batch: what is regularisation and not knowledge",
    MATCHED: "the student without a teacher for the epochs that cost what the dearest method costs, teachers included",
}
"""Each control by its name, and what it is."""
