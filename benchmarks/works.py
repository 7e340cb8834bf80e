"""The works that are measured: pairs of networks, pictures and batch sizes. Loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

PLUGIN = "benchmarks.models"
"""The plugin with the teacher of work C."""
PICTURES, TEACHER, STUDENT = "pictures.npz", "teacher.safetensors", "student.safetensors"
"""What lies ready in a work's folder, for all contestants alike."""
LR, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 5e-4
"""SGD's options; the learning rate changes no time, and this one lets no method diverge."""
TEMPERATURE, SHARE_OF_LABELS = 4.0, 0.1
"""Of the loss: 0.1·CE + 0.9·T²·KL."""
PADDING = 4
"""Pixels about a picture that a crop is drawn from."""


@dataclass(frozen=True)
class Work:
    """A teacher, a student and their data. ``steps`` and ``warm_up`` are the defaults of a window.

    ``lessons`` are the steps that the teacher is trained before anything is measured.
    """

    name: str
    teacher: dict[str, Any]
    student: dict[str, Any]
    source: str
    shape: tuple[int, int, int]
    batch: int
    augmented: bool
    pictures: int
    steps: int
    warm_up: int
    features: dict[str, Any] = field(default_factory=dict)
    lessons: int = 0
    classes: int = 10

    @property
    def title(self) -> str:
        """What it is, in a line."""
        models = [" ".join(str(value) for value in model.values()) for model in (self.teacher, self.student)]
        size = "×".join(str(length) for length in (*self.shape[1:], self.shape[0]))
        seen = "crop and flip" if self.augmented else "no augmentation"
        return (
            f"{self.name}: {' → '.join(models)}, {size}, {self.classes} classes, batch {self.batch}, {seen}"
        )


A = Work(
    name="A",
    teacher={"kind": "resnet32x4"},
    student={"kind": "resnet8x4"},
    source="cifar10",
    shape=(3, 32, 32),
    batch=64,
    augmented=True,
    pictures=3840,
    steps=15,
    warm_up=3,
    features={"use": "at"},
    lessons=160,
)
B = replace(
    A, name="B", teacher={"kind": "resnet56"}, student={"kind": "resnet20"}, steps=40, warm_up=10, lessons=640
)
C = Work(
    name="C",
    teacher={"kind": "mnist-cnn"},
    student={"kind": "mlp", "hidden": [50]},
    source="mnist",
    shape=(1, 28, 28),
    batch=128,
    augmented=False,
    pictures=60000,
    steps=300,
    warm_up=50,
    features={
        "use": "hint",
        "set": {"hint.weight": 1, "hint.student_layer": "pooled", "hint.teacher_layer": "pooled"},
    },
    lessons=400,
)
WORKS = {work.name: work for work in (A, B, C)}
