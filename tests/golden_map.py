"""Which terms a golden case is about: its loss and hyperparameters → terms, and the arrays that they read.

Where a term says nothing, ``student_logits``/``teacher_logits`` are the logits, and every array that starts
with ``student_features``/``teacher_features`` is a stage of that name, in the order of the case.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Term:
    """A term as in YAML; the array of the student's logits; the case's learnable modules → the loss's."""

    config: dict[str, Any]
    student_logits: str = "student_logits"
    modules: dict[str, str] = field(default_factory=dict)


def _stages(inputs: list[str]) -> list[list[str]]:
    students = [name for name in inputs if name.startswith("student_features")]
    return [[name, name.replace("student", "teacher")] for name in students]


def _hard_label(h: dict[str, Any], inputs: list[str]) -> list[Term]:
    head = "student_logits_dist" if "student_logits_dist" in inputs else "student_logits"
    return [
        Term({"kind": "ce", "weight": 1 - h["alpha"]}),
        Term({"kind": "hard", "weight": h["alpha"]}, student_logits=head),
    ]


TERMS = {
    "label_smoothing": lambda h, _: [Term({"kind": "ce", "label_smoothing": h["epsilon"]})],
    "kd": lambda h, _: [Term({"kind": "kd", "temperature": h["T"]})],
    "hard_label": _hard_label,
    "logit_mse": lambda h, _: [Term({"kind": "logit-mse"})],
    "fitnet": lambda h, _: [
        Term({"kind": "hint", "adapter": "regressor"}, modules={"conv_reg": "regressor"})
    ],
    "hint_mse": lambda h, _: [Term({"kind": "hint", "adapter": "none"})],
    "at": lambda h, inputs: [Term({"kind": "at", "p": h["p"], "layers": _stages(inputs)})],
    "at_paper": lambda h, inputs: [
        Term({"kind": "at", "p": h["p"], "mode": "paper", "layers": _stages(inputs)})
    ],
    "sp": lambda h, _: [Term({"kind": "sp"})],
    "rkd": lambda h, _: [Term({"kind": "rkd", "distance": h["w_d"], "angle": h["w_a"]})],
    "rkd_distance": lambda h, _: [Term({"kind": "rkd", "distance": 1, "angle": 0})],
    "rkd_angle": lambda h, _: [Term({"kind": "rkd", "distance": 0, "angle": 1})],
}
