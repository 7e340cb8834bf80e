"""Loops written by hand, with the data in memory: ``bare``, and ``tricks`` with all that changes no mathematics."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks import material
from benchmarks.gate import Gate
from benchmarks.works import LR, MOMENTUM, PADDING, SHARE_OF_LABELS, TEMPERATURE, WEIGHT_DECAY, WORKS, Work
from kdrun.models.fused import chains, fuse

Look = Callable[[Tensor], Tensor]
"""From positions (B,) to the pictures there as the networks see them."""


def steps(contestant: str, options: argparse.Namespace, _gate: Gate) -> Iterator[int]:
    """The steps of one of the loops."""
    work, device = WORKS[options.work], torch.device(options.device)
    teacher, student = (material.model(work, role, device) for role in ("teacher", "student"))
    tricks = contestant != "bare"
    if tricks:
        fold(teacher)
        teacher, student = (model.to(memory_format=torch.channels_last) for model in (teacher, student))
    pictures, labels = (stored.to(device) for stored in material.pictures())
    look = (augmented if work.augmented else unchanged)(pictures)
    if tricks:
        look = channels_last(look)
        if device.type == "cpu":
            fuse(teacher, chains(teacher, look(torch.arange(2)), []))
    teach = cached(teacher, look, work, len(labels)) if contestant == "tricks-cached" else live(teacher)
    optimizer = torch.optim.SGD(
        student.parameters(), LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True if tricks else None
    )
    while True:
        for rows in torch.randperm(len(labels), device=device).split(work.batch):
            if len(rows) < work.batch:
                continue
            x = look(rows)
            taught = teach(rows, x)
            loss = kd_loss(student(x), taught, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield len(rows)


def kd_loss(said: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
    """0.1·CE + 0.9·T²·KL of the softened probabilities."""
    soft = F.kl_div(
        F.log_softmax(said / TEMPERATURE, 1), F.softmax(taught / TEMPERATURE, 1), reduction="batchmean"
    )
    return SHARE_OF_LABELS * F.cross_entropy(said, labels) + (1 - SHARE_OF_LABELS) * TEMPERATURE**2 * soft


# --------------------------------------------------------------------------------------- what is looked at


def unchanged(pictures: Tensor) -> Look:
    """The pictures as they are, normalised once."""
    mean, std = material.colours(pictures)
    ready = (pictures.float().div(255) - mean) / std
    return lambda rows: ready[rows]


def augmented(pictures: Tensor) -> Look:
    """A random window of each padded picture, half of them flipped, a batch at a time."""
    mean, std = material.colours(pictures)
    padded = F.pad(pictures, [PADDING] * 4)
    channels, height, width = pictures.shape[1:]
    down, right = (torch.arange(length, device=pictures.device) for length in (height, width))
    every = torch.arange(channels, device=pictures.device)[None, :, None, None]

    def look(rows: Tensor) -> Tensor:
        top, left = torch.randint(2 * PADDING + 1, (2, len(rows), 1), device=rows.device)
        flips = torch.rand(len(rows), 1, device=rows.device) < 0.5
        lines = (top + down)[:, None, :, None]
        columns = (left + torch.where(flips, width - 1 - right, right))[:, None, None, :]
        return (padded[rows[:, None, None, None], every, lines, columns].float().div_(255) - mean) / std

    return look


def channels_last(look: Look) -> Look:
    """The same pictures, laid out with their channels last."""
    return lambda rows: look(rows).contiguous(memory_format=torch.channels_last)


# ----------------------------------------------------------------------------------------------- teachers


def live(teacher: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The teacher is asked in every step."""

    def teach(_rows: Tensor, x: Tensor) -> Tensor:
        with torch.inference_mode():
            taught = teacher(x)
        return taught.clone()

    return teach


def cached(teacher: nn.Module, look: Look, work: Work, samples: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The teacher was asked once for each picture."""
    device = next(teacher.parameters()).device
    with torch.no_grad():
        known = torch.cat(
            [teacher(look(rows)) for rows in torch.arange(samples, device=device).split(work.batch)]
        )
    return lambda rows, _x: known[rows]


def fold(model: nn.Module) -> None:
    """Fold every BatchNorm of a model in eval mode into the convolution before it.

    They are neighbours in a ``Sequential``, or called ``conv1`` and ``bn1``, ``conv2`` and ``bn2``, ….
    """
    for module in list(model.modules()):
        children = dict(module.named_children())
        following = (
            dict(zip(children, list(children)[1:], strict=False)) if isinstance(module, nn.Sequential) else {}
        )
        for name, child in children.items():
            partner = following.get(name, name.replace("conv", "bn"))
            norm = children.get(partner)
            if isinstance(child, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(child, norm))
                setattr(module, partner, nn.Identity())
