"""What one student does in a step, and all that it has to remember between two."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdrun.contracts import Batch, Outputs
from kdrun.models import Frozen, Network
from kdrun.objective import Objective
from kdrun.optimization import Training, load_optimizer_tensors, optimizer_tensors
from kdrun.randomness import derive, seed_device
from kdrun.store import Checkpoint

REPORT_EVERY = 50
"""Steps after which what lies on the device is read: terms for the log, and whether all was finite."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Where a student stopped: the first step whose term or gradient was not finite."""

    epoch: int
    step: int
    term: str

    def __str__(self) -> str:
        return f"{self.term} is not finite in epoch {self.epoch + 1}, step {self.step + 1} of it"


def _copied(function: Any) -> FunctionType:
    """The function with a code object of its own: torch compiles one code object a few times only, then never."""
    return FunctionType(function.__code__.replace(), function.__globals__)


class Student:
    """A model in training: network, objective, optimizer, average of the weights, log.

    ``position`` counts its steps. A step whose terms or gradients are not finite changes no weight, and no
    later step does; ``flush`` tells.
    """

    def __init__(
        self,
        title: str,
        network: Network,
        objective: Objective,
        training: Training,
        seed: int,
        steps: int,
        bf16: bool,
    ) -> None:
        self.title, self.network, self.objective, self.training = title, network, objective, training
        self.model, self.seed, self.steps_per_epoch, self.bf16 = network.model, seed, steps, bf16
        self.parameters = [p for p in (*self.model.parameters(), *objective.parameters()) if p.requires_grad]
        self.device = self.parameters[0].device
        self.optimizer = training.optimizer.build(self.parameters)
        self.average = copy.deepcopy(self.model.state_dict()) if training.ema else None
        self.best: dict[str, Tensor] | None = None
        self.best_score = float("-inf")
        self.position = self.epochs_closed = 0
        self.seconds = 0.0
        self.failure: Failure | None = None
        self.metrics: list[dict[str, Any]] = []
        self._sums = dict.fromkeys(objective.weights, 0.0)
        self._unread: list[Tensor] = []
        self._not_finite = torch.zeros((), device=self.device)
        self._one = torch.ones((), device=self.device)
        self._run = (
            torch.compile(MethodType(_copied(Student._terms), self)) if training.compile else self._terms
        )

    def step(self, batch: Batch, taught: Mapping[str, Outputs]) -> None:
        """Learn from one batch and from what the teachers say of it."""
        began = time.perf_counter()
        seed_device(derive(self.seed, "step", self.position), self.device)
        rate = self.training.learning_rate(self.position, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        self.objective.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            terms = self._run(batch, taught)
        values = torch.stack([term.float() for term in terms.values()])
        values.sum().backward()
        self._guard(values)
        if self.training.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.training.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self._update_average()
        self.position += 1
        self.seconds += time.perf_counter() - began

    def _terms(self, batch: Batch, taught: Mapping[str, Outputs]) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.objective(self.network(batch), taught, batch)
        return terms

    def _guard(self, values: Tensor) -> None:
        """Freeze on the first value that is not finite, without waiting for the device.

        The optimizers skip a step where ``found_inf`` is set, as they do under a gradient scaler.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if gradients:
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._not_finite, self._one)
        self._not_finite.logical_or_(~values.detach().isfinite().all())
        # torch's own gradient scaler hands these over in the same way, undeclared.
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.found_inf = self._not_finite  # type: ignore[attr-defined]
        self._unread.append(torch.cat([values.detach(), self._not_finite.view(1)]))

    def _update_average(self) -> None:
        assert self.average is not None and self.training.ema is not None
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - self.training.ema)
                else:
                    self.average[name].copy_(value)

    def flush(self) -> None:
        """Read what the last steps left on the device: the terms' sums, and the ``failure`` if there is one."""
        if not self._unread or self.failure is not None:
            return
        first = self.position - len(self._unread)
        rows = torch.stack(self._unread).tolist()
        self._unread = []
        for number, (*values, bad) in enumerate(rows, start=first):
            if bad:
                names = [n for n, v in zip(self._sums, values, strict=True) if not np.isfinite(v)]
                epoch, step = divmod(number, self.steps_per_epoch)
                what = f"the term '{names[0]}'" if names else "the gradient"
                self.failure = Failure(epoch, step, what)
                return
            for name, value in zip(self._sums, values, strict=True):
                self._sums[name] += value

    def close_epoch(self, validation: dict[str, float] | None, metric: str) -> None:
        """Write the epoch's line of the log, and keep the weights if they are the best on validation."""
        self.flush()
        weights = self.objective.weights
        terms = {
            name: {
                "value": total / self.steps_per_epoch / weights[name] if weights[name] else None,
                "weight": weights[name],
                "gradient_share": None,
            }
            for name, total in self._sums.items()
        }
        rate = self.training.learning_rate(self.position - 1, self.steps_per_epoch)
        line = {"epoch": self.epochs_closed, "step": self.position, "lr": rate, "terms": terms}
        self.metrics.append(line | {"validation": validation})
        self._sums = dict.fromkeys(self._sums, 0.0)
        self.epochs_closed += 1
        if (
            self.training.selection == "best-on-validation"
            and validation
            and validation[metric] > self.best_score
        ):
            self.best, self.best_score = copy.deepcopy(self._current()), validation[metric]

    def _current(self) -> dict[str, Tensor]:
        return self.average if self.average is not None else self.model.state_dict()

    def exported(self) -> Frozen:
        """A network with the weights that count now: the average's if there is one, never an adapter."""
        return self.network.with_state(self._current())

    def selected(self) -> Frozen:
        """A network with the weights that ``selection`` chose."""
        return self.network.with_state(self.best if self.best is not None else self._current())

    # ------------------------------------------------------------------------------------ checkpoints

    def checkpoint(self, resolved: dict[str, Any]) -> Checkpoint:
        """All that the next steps depend on."""
        self.flush()
        parts = {
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "average": self.average or {},
            "best": self.best or {},
        }
        arrays = {
            f"{part}/{name}": tensor.detach().cpu().contiguous().numpy()
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        }
        state = {
            "epochs_closed": self.epochs_closed,
            "best_score": self.best_score if self.best is not None else None,
            "seconds": self.seconds,
            "metrics": self.metrics,
            "sums": self._sums,
            "resolved": resolved,
        }
        return Checkpoint(self.position, arrays, state)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint was made."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, array in checkpoint.arrays.items():
            part, name = key.split("/", 1)
            parts.setdefault(part, {})[name] = torch.from_numpy(array.copy()).to(self.device)
        self.model.load_state_dict(parts["model"])
        self.objective.load_state_dict(parts.get("objective", {}))
        load_optimizer_tensors(self.optimizer, parts.get("optimizer", {}))
        self.average = parts.get("average")
        self.best = parts.get("best")
        state = checkpoint.state
        self.best_score = float("-inf") if state["best_score"] is None else state["best_score"]
        self.position, self.epochs_closed = checkpoint.step, state["epochs_closed"]
        self.seconds, self.metrics, self._sums = state["seconds"], state["metrics"], state["sums"]
