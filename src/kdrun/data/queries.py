"""Queries: samples of the training set changed into others, of which only a teacher can say what they are.

After Craven, Shavlik, "Extracting Tree-Structured Representations of Trained Networks", 1996, and Bucila, Caruana,
Niculescu-Mizil, "Model Compression", 2006.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kdrun.contracts import HIDDEN, Batch, Mix, Queries


def asked_in(step: int, size: int, queries: Queries) -> int:
    """How many of a batch's samples are queries: as many to one as are asked for, over all batches up to it."""
    left = [number * size // (1 + queries.per_sample) for number in (step, step + 1)]
    return size - (left[1] - left[0])


def with_queries(batch: Batch, count: int, queries: Queries, spreads: dict[str, Tensor], seed: int) -> Batch:
    """The batch with so many of its samples changed into queries, whose labels are hidden.

    ``spreads`` are the standard deviations of each view's numbers (…). All views of a sample are mixed with those of
    one other, and get noise of their own; its own share is the larger one.
    """
    numbers, size = np.random.default_rng(seed), len(batch)
    rows = np.sort(numbers.permutation(size)[:count])
    partners = numbers.integers(size, size=len(rows))
    own = numbers.beta(queries.mix, queries.mix, len(rows)) if queries.mix else np.ones(len(rows))
    own = np.maximum(own, 1 - own)
    device = batch.labels.device
    at, partner = (torch.from_numpy(places).to(device) for places in (rows, partners))
    views = {}
    for name, x in batch.views.items():
        part = torch.from_numpy(own.astype(np.float32)).to(device).view(-1, *[1] * (x.ndim - 1))
        asked = x[at]
        if queries.mix:
            asked = part * asked + (1 - part) * x[partner]
        if queries.jitter:
            noise = numbers.standard_normal(tuple(asked.shape), np.float32)
            asked = asked + queries.jitter * spreads[name] * torch.from_numpy(noise).to(device)
        views[name] = x.index_copy(0, at, asked)
    labels, mix = batch.labels.index_fill(0, at, HIDDEN), batch.mix
    if mix is not None:  # its partner's label is no more a query's than its own
        mix = Mix(mix.partner.index_copy(0, at, at), mix.share)
    return replace(batch, views=views, labels=labels, mix=mix, all_seen=False)


def spreads_of(batches: Iterable[Batch]) -> dict[str, Tensor]:
    """The standard deviation of each number (…) of each view, over all samples of some batches."""
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        count += len(batch)
        for name, x in batch.views.items():
            wide = x.double()
            found = torch.stack([wide.sum(dim=0), wide.square().sum(dim=0)])
            sums[name] = sums[name] + found if name in sums else found
    spreads = {}
    for name, (total, squares) in sums.items():
        variance = (squares / count - (total / count).square()).clamp_min(0)
        spreads[name] = variance.sqrt().float()
    return spreads
