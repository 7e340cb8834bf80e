"""What all contestants of a work begin with: pictures, a teacher and a student's first weights, in a folder.

``python -m benchmarks.material`` reads what is wanted as JSON and prints what the pictures are.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.works import MOMENTUM, PICTURES, PLUGIN, STUDENT, TEACHER, WEIGHT_DECAY, Work
from kdrun import models, registry
from kdrun.assembly import has_bf16
from kdrun.config import published_methods  # noqa: F401  (importing the config registers all components)
from kdrun.contracts import Model

TEST = 200
"""Pictures of the test split, which is scored outside of all windows."""
SETTLED = 10
"""Batches that a teacher's BatchNorm statistics are of."""

TEACHER_LR = 0.05
"""The largest learning rate of a teacher's short training."""

Labelled = tuple[np.ndarray, np.ndarray]


def prepare(work: Work, folder: Path, count: int, data: Path | None) -> str:
    """Write a work's pictures and weights into a folder; says what the pictures are."""
    what, train, test = read(work.source, work.shape, work.classes, (count, TEST), data)
    write(folder / PICTURES, train, test)
    registry.load_plugins([PLUGIN])
    teacher, student = _fresh(work, work.teacher, 1), _fresh(work, work.student, 2)
    _settle(teacher, train[0], work.batch)
    _teach(teacher, train, work)
    for model, name in ((teacher, TEACHER), (student, STUDENT)):
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / name)
    return what


def model(work: Work, role: str, device: torch.device) -> Model:
    """The teacher (frozen) or the student of the folder that this is run in, of kdrun's own classes."""
    registry.load_plugins([PLUGIN])
    config, file = (work.teacher, TEACHER) if role == "teacher" else (work.student, STUDENT)
    built = _fresh(work, config, 0)
    built.load_state_dict(load_file(file))
    if role == "teacher":
        built.eval().requires_grad_(False)
    return built.to(device)


def pictures() -> tuple[Tensor, Tensor]:
    """The training pictures (N, C, H, W) uint8 and labels (N,) of the folder that this is run in."""
    with np.load(PICTURES) as archive:
        return torch.from_numpy(archive["x_train"]), torch.from_numpy(archive["y_train"])


def colours(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in [0, 1], (C, 1, 1)."""
    values = pictures.float().div(255)
    return values.mean((0, 2, 3)).view(-1, 1, 1), values.std((0, 2, 3)).view(-1, 1, 1)


def _fresh(work: Work, config: dict[str, object], seed: int) -> Model:
    made = registry.MODELS[str(config["kind"])].Config(**config)
    return models.build(made, work.shape, work.classes, seed)


def _settle(teacher: Model, train: np.ndarray, batch: int) -> None:
    """Give the BatchNorms of random weights the statistics of real pictures."""
    for module in teacher.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    mean, std = colours(torch.from_numpy(train[: SETTLED * batch]))
    with torch.no_grad():
        for rows in torch.from_numpy(train[: SETTLED * batch]).split(batch):
            teacher((rows.float().div(255) - mean) / std)


def _teach(teacher: Model, train: Labelled, work: Work) -> None:
    """Train a teacher a little: one that knows nothing is sure of nothing, and no coarser arithmetic agrees with it."""
    pictures, labels = torch.from_numpy(train[0]), torch.from_numpy(train[1]).long()
    mean, std = colours(pictures)
    for module in teacher.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1
    teacher.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        teacher.parameters(), TEACHER_LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TEACHER_LR, max(work.lessons, 1))
    drawn = torch.Generator().manual_seed(3)
    native = has_bf16(torch.device("cpu"))  # where it is not, a step in bf16 takes many times as long
    for _ in range(work.lessons):
        rows = torch.randint(len(labels), (work.batch,), generator=drawn)
        x = ((pictures[rows].float().div(255) - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=native):
            said = teacher(x)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(said.float(), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    teacher.to(memory_format=torch.contiguous_format)


# -------------------------------------------------------------------------------------------- pictures


def read(
    source: str, shape: tuple[int, ...], classes: int, counts: tuple[int, int], data: Path | None
) -> tuple[str, Labelled, Labelled]:
    """What the pictures are, and so many of the training and test split; made up where the files are not there."""
    files = {"cifar10": "cifar10-jpeg.zip", "mnist": "mnist/train-images-idx3-ubyte.gz"}
    if data is None or source not in files or not (data / files[source]).is_file():
        train, test = (_synthetic(shape, classes, count, seed) for seed, count in enumerate(counts))
        return f"{counts[0]} synthetic pictures", train, test
    if source == "cifar10":
        train, test = (
            _cifar(data / files[source], split, n) for split, n in zip(("train", "test"), counts, strict=True)
        )
        return f"{len(train[1])} pictures of CIFAR-10 (JPEG)", train, test
    train, test = (
        _mnist(data / "mnist", split, n) for split, n in zip(("train", "t10k"), counts, strict=True)
    )
    return f"{len(train[1])} pictures of MNIST", train, test


def write(path: Path, train: Labelled, test: Labelled) -> None:
    """Keep pictures as kdrun's data set `arrays` reads them; the same pictures give the same bytes."""
    np.savez(path, x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])


def _synthetic(shape: tuple[int, ...], classes: int, count: int, seed: int) -> Labelled:
    draw = np.random.default_rng(seed)
    return draw.integers(256, size=(count, *shape), dtype=np.uint8), np.arange(count) % classes


def _cifar(path: Path, split: str, count: int) -> Labelled:
    """As many pictures of each class as of any other."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith(f"{split}/"))
        classes = sorted({name.split("/")[1] for name in names})
        members = [
            [name for name in names if name.split("/")[1] == one][: count // len(classes)] for one in classes
        ]
        decoded = [[_decoded(archive.read(name)) for name in some] for some in members]
    labels = np.repeat(np.arange(len(classes)), [len(some) for some in decoded])
    return np.stack([picture for some in decoded for picture in some]), labels


def _decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


def _mnist(folder: Path, split: str, count: int) -> Labelled:
    def values(name: str, header: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((folder / f"{split}-{name}.gz").read_bytes())[header:], np.uint8)

    images, labels = values("images-idx3-ubyte", 16), values("labels-idx1-ubyte", 8)
    return images.reshape(-1, 1, 28, 28)[:count].copy(), labels[:count].astype(np.int64)


def main() -> None:
    """Prepare the work that is written on stdin, in the folder that this is run in."""
    wanted = json.load(sys.stdin)
    work = Work(**{**wanted["work"], "shape": tuple(wanted["work"]["shape"])})
    print(prepare(work, Path(), wanted["pictures"], Path(wanted["data"]) if wanted["data"] else None))


if __name__ == "__main__":
    main()
