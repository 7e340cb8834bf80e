"""Arithmetic that the losses share: full precision, constants, and gradients that stay finite."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """``x`` in float32 where it is of half precision, else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def fixed(x: Tensor) -> Tensor:
    """The teacher's side of a loss: ``x`` in full precision and without a gradient."""
    return full(x.detach())


def bounded(logits: Tensor) -> Tensor:
    """A teacher's logits, as ``fixed``; of classes that it rules out (−∞) a number, so that nothing times it is 0."""
    return fixed(logits).clamp_min(-1e20)


def exact(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast, which would compute products of matrices like ``x`` in half precision."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


@torch.no_grad()
def follow(average: Mapping[str, Tensor], now: Mapping[str, Tensor], decay: float) -> None:
    """Make an average of a network's state ``decay`` of itself and the rest of what it is now; counts are copied."""
    for name, value in now.items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


def unit(x: Tensor) -> Tensor:
    """``x`` / max(‖``x``‖₂, 1e-12) along the last dimension.

    A zero vector stays zero and gets a zero gradient, not one of 1e12.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp_min(1e-12).masked_fill(length == 0, torch.inf)


def squared_distances(x: Tensor) -> Tensor:
    """Between all pairs of vectors (B, D), at least 1e-12, and 0 on the diagonal: (B, B)."""
    x = x - x.mean(dim=0)  # moves no distance, but keeps the rounding of the differences of squares small
    squares = x.square().sum(dim=1)
    apart = (squares[:, None] + squares - 2 * x @ x.T).clamp_min(1e-12)
    return apart.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0)


def distances(x: Tensor) -> Tensor:
    """Euclidean distances (B, B) of all pairs of vectors (B, D), with gradients that stay finite where they are 0."""
    squares = squared_distances(x)
    return squares.where(squares == 0, squares.clamp_min(1e-12).sqrt())


def z_scores(logits: Tensor) -> Tensor:
    """(z − mean_c z) / (1e-7 + std_c z) for each sample, with the unbiased standard deviation; (B, C).

    Source: Sun et al., "Logit Standardization in Knowledge Distillation", 2024.
    """
    return (logits - logits.mean(dim=-1, keepdim=True)) / (1e-7 + logits.std(dim=-1, keepdim=True))


def relative_entropy(teacher: Tensor, log_student: Tensor) -> Tensor:
    """Σ_c p_t (log p_t − log p_s) of each sample (B,), of probabilities and of logarithms (B, C).

    Classes that the teacher rules out (p_t = 0) count nothing.
    """
    return F.kl_div(log_student, teacher, reduction="none").sum(dim=-1)


def log_relative_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ_c p (log p − log q) of each sample (B,), of logarithms (B, C) with gradients that stay finite on both sides."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def others(x: Tensor, classes: Tensor) -> Tensor:
    """``x`` (B, C) without each row's class: (B, C − 1)."""
    positions = torch.arange(x.shape[1] - 1, device=x.device)
    return x.gather(1, positions + (positions >= classes[:, None]))


def own(x: Tensor, classes: Tensor) -> Tensor:
    """``x`` (B, C) at each row's class: (B,)."""
    return x.gather(1, classes[:, None]).squeeze(1)


def certainty(logits: Tensor) -> Tensor:
    """1 − H_i / Σ_k H_k for each teacher i and sample, (M, B), of logits (M, B, C); they sum to M − 1 over teachers.

    H is the entropy of the softmax. Teachers that are all entirely sure count alike.
    """
    entropy = torch.special.entr(F.softmax(logits, dim=-1)).sum(dim=-1)
    total = entropy.sum(dim=0)
    shares = torch.where(total > 0, entropy / total.clamp_min(torch.finfo(total.dtype).tiny), 1 / len(logits))
    return 1 - shares
