"""kdrun's variants: what each is, and the experiment that is written for it. Loads nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.works import LR, MOMENTUM, PICTURES, PLUGIN, STUDENT, TEACHER, WEIGHT_DECAY, WORKS, Work

EPOCHS = 10_000
"""More than any measurement takes: a contestant is told to stop."""
EIGHT = ["kd", "dkd", "nkd", "dist", "wsld", "rld", "ttm", "logit-standardization"]
"""Published methods that look at logits only, and at one view of each picture."""
LIVE = {"cache": False}
"""The training in which kdrun asks its teacher in every step."""


@dataclass(frozen=True)
class Variant:
    """One way to run kdrun. ``methods`` are published mixes, perhaps changed; each is one student."""

    name: str
    what: str
    methods: Sequence[dict[str, Any]] = ({"use": "kd"},)
    training: dict[str, Any] = field(default_factory=dict)
    augmentation: Any = None

    def warm_up(self, steps: int, epoch: int) -> int:
        """Steps before the first window: those asked for, and a whole epoch where the teacher's outputs are kept."""
        return steps if "cache" in self.training else max(steps, epoch + epoch // 5 + 1)

    def config(self, work: Work) -> str:
        """The experiment in YAML."""
        augmentation = self.augmentation or ("standard" if work.augmented else "none")
        dataset = {"kind": "arrays", "path": PICTURES, "augmentation": augmentation}
        models = Models(
            {"model": work.teacher, "weights": TEACHER}, {**work.student, "initial_weights": STUDENT}
        )
        text = experiment(self.name, dataset, models, self.methods, work.batch, self.training)
        return yaml.safe_dump(text, sort_keys=False)


def variants(work: Work) -> list[Variant]:
    """All of a work's variants."""
    bf16 = {"precision": "bf16"}
    eight = [{"use": name} for name in EIGHT]
    views = {"copies": 1, "parts": "standard"}
    alike = [
        Variant("exact", "fp32, the teacher asked in every step", training=LIVE),
        Variant("bf16", "bf16, the teacher asked in every step", training=bf16 | LIVE),
        Variant("features", f"fp32, live: {work.features['use']}", [work.features], LIVE),
        Variant("relations", "fp32, live: rkd", [{"use": "rkd"}], LIVE),
    ]
    if work.augmented:
        return [
            *alike,
            Variant("cached", "bf16, one fixed view of each picture", training=bf16, augmentation=views),
            Variant("group", "bf16, live: eight methods in lock step", eight, bf16 | LIVE),
        ]
    return [
        *alike,
        Variant("cached", "fp32, the teacher asked once for each picture"),
        Variant("group", "fp32, cached: eight methods in lock step", eight),
        Variant("stacked", "as group, the students' layers stacked", eight, {"stack": True}),
    ]


@dataclass(frozen=True)
class Models:
    """The teacher as a config says it, and the student's model."""

    teacher: dict[str, Any]
    student: dict[str, Any]


def experiment(
    name: str,
    dataset: dict[str, Any],
    models: Models,
    methods: Sequence[dict[str, Any]],
    batch: int,
    training: dict[str, Any],
) -> dict[str, Any]:
    """An experiment that trains one student for each method in one group."""
    named = [{"name": f"m{number}", **method} for number, method in enumerate(methods)]
    optimizer = {"kind": "sgd", "lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    recipe = {"epochs": EPOCHS, "batch_size": batch, "optimizer": optimizer, "schedule": "constant"}
    return {
        "name": name,
        "plugins": [PLUGIN],
        "dataset": dataset,
        "seeds": [0],
        "training": recipe | training,
        "teacher": models.teacher,
        "student": {"model": models.student},
        "controls": "none",
        "methods": named,
    }


def write(folder: Path, work: str, variant: Variant) -> str:
    """Write a variant's experiment into the work's folder; the file's name."""
    name = f"{variant.name}.yaml"
    (folder / name).write_text(variant.config(WORKS[work]))
    return name
