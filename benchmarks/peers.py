"""``torchdistill``, driven as its example for image classification drives it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import RandomSampler
from torchdistill.core.distillation import get_distillation_box
from torchdistill.misc.log import MetricLogger, SmoothedValue

from benchmarks import material
from benchmarks.gate import Gate
from benchmarks.tutorial import WORKERS, PilPictures
from benchmarks.works import LR, MOMENTUM, SHARE_OF_LABELS, TEMPERATURE, WEIGHT_DECAY, WORKS, Work

LOG_EVERY = 1000
"""Steps between two lines of its log; its example's default."""


def steps(_contestant: str, options: argparse.Namespace, gate: Gate) -> Iterator[int]:
    """The steps of torchdistill's loop; says in which mode its teacher is."""
    work, device = WORKS[options.work], torch.device(options.device)
    teacher, student = (material.model(work, role, device) for role in ("teacher", "student"))
    teacher.train()  # as a model is built; its examples change nothing of that
    box = get_distillation_box(
        teacher, student, {"train": PilPictures(work)}, _config(work, device), device, None, False, 1
    )
    epoch = 0
    while True:
        box.pre_epoch_process(epoch=epoch)
        gate.told["teacher_in_training_mode"] = box.teacher_model.training
        yield from _epoch(box, device, epoch)
        box.post_epoch_process()
        epoch += 1


def _epoch(box: Any, device: torch.device, epoch: int) -> Iterator[int]:
    """Its example's ``train_one_epoch``."""
    logger = MetricLogger(delimiter="  ")
    logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    logger.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
    for sample_batch, targets, supp_dict in logger.log_every(
        box.train_data_loader, LOG_EVERY, f"Epoch: [{epoch}]"
    ):
        start_time = time.time()
        sample_batch, targets = sample_batch.to(device), targets.to(device)
        box.pre_forward_process()
        loss = box.forward_process(sample_batch, targets, supp_dict)
        box.post_forward_process(loss=loss)
        logger.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        logger.meters["img/s"].update(len(targets) / (time.time() - start_time))
        yield len(targets)


def _config(work: Work, device: torch.device) -> dict[str, Any]:
    """As in its sample configs, with the loss and the recipe of the other loops."""
    logits = {
        f"{role}_module_{what}": value
        for role in ("student", "teacher")
        for what, value in (("path", "."), ("io", "output"))
    }
    kd = {"key": "KDLoss", "kwargs": {**logits, "temperature": TEMPERATURE, "alpha": SHARE_OF_LABELS}}
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {
                "batch_size": work.batch,
                "num_workers": WORKERS,
                "drop_last": True,
                "persistent_workers": True,
                "pin_memory": device.type == "cuda",
            },
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}},
        },
    }
