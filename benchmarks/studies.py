"""What is trained to see what speed costs: data, recipes, variants, and the experiments. Loads nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

METHOD = "kd"
"""The method of all students."""


@dataclass(frozen=True)
class Variant:
    """One way to train the student: what it changes of the training, or of the data set's augmentation."""

    name: str
    what: str
    training: dict[str, Any] = field(default_factory=dict)
    augmentation: Any = None


@dataclass(frozen=True)
class Study:
    """A data set, a teacher, a student and variants of its training; the first variant is the base.

    Where variants differ by the augmentation, each is an experiment of its own; else they are students of one.
    ``left_out`` says of a variant why it is not there. ``bound`` is how many points of accuracy a variant may differ
    from the base, None where the difference is reported only.
    """

    name: str
    source: Literal["mnist", "cifar10"]
    shape: tuple[int, int, int]
    pictures: int
    test_pictures: int
    augmentation: str
    teacher: dict[str, Any]
    student: dict[str, Any]
    training: dict[str, Any]
    variants: Sequence[Variant]
    bound: float | None
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What it is, in a line."""
        models = " → ".join(
            " ".join(f"{key} {value}" if key != "kind" else str(value) for key, value in model.items())
            for model in (self.teacher["model"], self.student)
        )
        recipe = f"{self.training['epochs']} epochs, batch {self.training['batch_size']}"
        return f"{self.name}: {models}, augmentation {self.augmentation}, {recipe}"

    @property
    def file(self) -> str:
        """Where its pictures lie."""
        return f"{self.source}.npz"

    def changed(self, epochs: int | None, pictures: int | None, test_pictures: int | None) -> Study:
        """The study with other sizes, where they are given; the epochs are the teacher's, too."""
        study = self
        if epochs is not None:
            teacher = {**self.teacher, "training": {**self.teacher.get("training", {}), "epochs": epochs}}
            study = replace(study, teacher=teacher, training={**self.training, "epochs": epochs})
        sizes = (pictures or self.pictures, test_pictures or self.test_pictures)
        return replace(study, pictures=sizes[0], test_pictures=sizes[1])

    def experiments(self, seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
        """The experiments by name."""
        apart = any(variant.augmentation is not None for variant in self.variants)
        together = [[variant] for variant in self.variants] if apart else [self.variants]
        names = [f"{self.name}-{of[0].name}" if apart else self.name for of in together]
        return {name: self._experiment(name, of, seeds) for name, of in zip(names, together, strict=True)}

    def _experiment(self, name: str, variants: Sequence[Variant], seeds: Sequence[int]) -> dict[str, Any]:
        students = {
            variant.name: {
                "model": self.student,
                **({"training": variant.training} if variant.training else {}),
            }
            for variant in variants
        }
        augmentation = variants[0].augmentation or self.augmentation
        return {
            "name": name,
            "dataset": {"kind": "arrays", "path": self.file, "augmentation": augmentation},
            "device": "cpu",
            "seeds": list(seeds),
            "training": self.training,
            "teacher": self.teacher,
            "students": students,
            "methods": [METHOD],
        }


LIVE, BF16 = {"cache": False}, {"precision": "bf16"}
FASTER = [
    Variant("live", "fp32, the teacher asked in every step: the base", LIVE),
    Variant("bf16", "bf16, the teacher asked in every step", BF16 | LIVE),
    Variant("cached", "fp32, the teacher asked once for each picture"),
    Variant("bf16-cached", "bf16, the teacher asked once for each picture", BF16),
]
STACKED = Variant("stacked", "as cached, the students of all seeds stacked", {"stack": True})
FRESH = Variant("fresh", "fresh crops and flips in every epoch: the base")
CIFAR = Study(
    name="cifar10",
    source="cifar10",
    shape=(3, 32, 32),
    pictures=5000,
    test_pictures=10_000,
    augmentation="none",
    teacher={"model": {"kind": "resnet20"}, "training": {"epochs": 12}},
    student={"kind": "cnn", "width": 16, "depth": 3, "hidden": 64},
    training={
        "epochs": 8,
        "batch_size": 64,
        "optimizer": {"kind": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4},
        "warmup": 1,
        "ema": 0.99,
    },
    variants=FASTER,
    bound=0.5,
    left_out={"stacked": "convolutional students are not stacked on a CPU"},
)
STUDIES = {
    study.name: study
    for study in (
        Study(
            name="mnist",
            source="mnist",
            shape=(1, 28, 28),
            pictures=60_000,
            test_pictures=10_000,
            augmentation="none",
            teacher={
                "model": {"kind": "cnn", "width": 16, "depth": 2, "hidden": 128},
                "training": {"epochs": 3},
            },
            student={"kind": "mlp", "hidden": [50]},
            training={"epochs": 5, "batch_size": 128, "optimizer": {"kind": "adamw", "lr": 2e-3}},
            variants=[*FASTER, STACKED],
            bound=0.5,
        ),
        CIFAR,
        replace(
            CIFAR,
            name="copies",
            augmentation="standard",
            variants=[
                FRESH,
                *(
                    Variant(
                        f"K{count}",
                        f"{count} fixed {'copy' if count == 1 else 'copies'} of each picture, looked up",
                        augmentation={"copies": count, "parts": "standard"},
                    )
                    for count in (16, 4, 1)
                ),
            ],
            bound=None,
            left_out={},
        ),
    )
}
