"""What is killed, stopped and starved: small experiments that have all there is to lose."""

import json
from typing import NamedTuple

import numpy as np
from PIL import Image

from test_resume import BASE, RECIPES


class Work(NamedTuple):
    """An experiment by its overrides, and how it is run."""

    overrides: list[str]
    threads: int = 1
    stream: bool = False

    @property
    def how(self):
        """Options of a ``Command``."""
        return {"threads": self.threads, "stream": self.stream}


WORKS = {name: Work(overrides) for name, overrides in RECIPES.items()} | {
    "one-student": Work([*RECIPES["sgd-step-clip"], "methods=[]"]),
    "two-threads": Work([*RECIPES["adamw-cosine-warmup-mixup-ema-best"], "dataset.shape=[600]"], threads=2),
    "fitted": Work(
        [
            "teachers.big={model: {kind: forest, trees: 3}, cross_fit: 2}",
            "students.small={model: {kind: tree, prune: true}}",
            "methods=[kd, {name: asks, use: kd, training: {queries: {per_sample: 2}}}]",
        ]
    ),
    "stacked": Work(["training.stack=true", "students.small.model={kind: mlp, hidden: [8, 8]}"]),
    "workers": Work(
        [
            "dataset={kind: image-folder, root: pictures, size: 8, validation: 0.25, augmentation: strong}",
            *RECIPES["pictures-bf16"][1:3],
        ],
        stream=True,
    ),
}


def write(folder, work):
    """The arguments of the command that does a work in a folder, whose runs go below ``out``."""
    (folder / "work.yaml").write_text(BASE.replace("\n    ", "\n"))
    if work.stream and not (folder / "pictures").exists():
        draw = np.random.default_rng(0)
        for number in range(60):
            place = folder / f"pictures/{'train' if number < 48 else 'test'}/{'abc'[number % 3]}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 256, (9, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    overrides = [
        text.replace("root: pictures", f"root: {json.dumps(str(folder / 'pictures'))}")
        for text in work.overrides
    ]
    return ["distill", folder / "work.yaml", *(part for text in overrides for part in ("--set", text))]
