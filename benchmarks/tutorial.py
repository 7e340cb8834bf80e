"""``usual``: the loop of PyTorch's tutorials, with torchvision's transforms on PIL pictures and a DataLoader."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks import material
from benchmarks.gate import Gate
from benchmarks.works import LR, MOMENTUM, PADDING, SHARE_OF_LABELS, TEMPERATURE, WEIGHT_DECAY, WORKS, Work

WORKERS = 2
"""Of the DataLoader; more of them gain nothing on few cores."""


class PilPictures(Dataset[tuple[Tensor, int]]):
    """Pictures as torchvision's own sets give them: a PIL picture through transforms, and a label."""

    def __init__(self, work: Work) -> None:
        stored, labels = material.pictures()
        mean, std = material.colours(stored)
        self.pictures = stored.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = labels.tolist()
        size = work.shape[1]
        changes = [transforms.RandomCrop(size, padding=PADDING), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose(
            [
                *(changes if work.augmented else []),
                transforms.ToTensor(),
                transforms.Normalize(mean.flatten().tolist(), std.flatten().tolist()),
            ]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        picture: np.ndarray = self.pictures[position]
        return self.transform(Image.fromarray(picture.squeeze())), self.targets[position]


def steps(_contestant: str, options: argparse.Namespace, _gate: Gate) -> Iterator[int]:
    """The steps of the tutorial."""
    work, device = WORKS[options.work], torch.device(options.device)
    teacher, student = (material.model(work, role, device) for role in ("teacher", "student"))
    loader = DataLoader(
        PilPictures(work),
        batch_size=work.batch,
        shuffle=True,
        num_workers=WORKERS,
        drop_last=True,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    ce_loss, kl_loss = nn.CrossEntropyLoss(), nn.KLDivLoss(reduction="batchmean")
    optimizer = torch.optim.SGD(student.parameters(), LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    running_loss = 0.0
    student.train()
    while True:
        for inputs, labels in loader:
            inputs, labels = inputs.to(device), labels.to(device)
            optimizer.zero_grad()
            with torch.no_grad():
                teacher_logits = teacher(inputs)
            student_logits = student(inputs)
            soft_targets = nn.functional.softmax(teacher_logits / TEMPERATURE, dim=-1)
            soft_prob = nn.functional.log_softmax(student_logits / TEMPERATURE, dim=-1)
            soft_loss = kl_loss(soft_prob, soft_targets) * TEMPERATURE**2
            loss = (1 - SHARE_OF_LABELS) * soft_loss + SHARE_OF_LABELS * ce_loss(student_logits, labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            yield len(labels)
