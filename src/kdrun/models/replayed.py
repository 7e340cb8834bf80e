"""What a frozen network does on a GPU, recorded and replayed: one launch instead of one for each operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdrun.contracts import Outputs

CALLS = 3
"""Of inputs of one form before theirs is recorded: what comes once is not worth it."""
CLOSE = 1e-3
"""How far replayed outputs may be from those of the network, relative to their size."""

Look = Callable[[Tensor], Outputs]


class Replayed:
    """A network's pass over inputs (B, …) as CUDA graphs, or as it is where none can be made that says the same."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._calls: Counter[Any] = Counter()
        self._graphs: dict[Any, Graph | None] = {}

    def __call__(self, x: Tensor) -> Outputs:
        """The outputs, which no later call changes."""
        form = x.shape, x.stride(), x.dtype
        self._calls[form] += 1
        if self._calls[form] == CALLS:
            self._graphs[form] = _recorded(self._look, x)
        graph = self._graphs.get(form)
        return self._look(x) if graph is None else graph(x)


class Graph:
    """A recorded pass over inputs of one form.

    The memory in which it works is its own and stays the same, so that what it gives is copied.
    """

    def __init__(self, look: Look, x: Tensor) -> None:
        self._x, aside = x.clone(), torch.cuda.Stream(x.device)
        aside.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(aside):
            look(self._x)  # what libraries set up in a first pass on a stream cannot be recorded
        torch.cuda.current_stream(x.device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._said = look(self._x)

    def __call__(self, x: Tensor) -> Outputs:
        """The outputs for other inputs of the same form."""
        self._x.copy_(x)
        self._graph.replay()
        features = {name: feature.clone() for name, feature in self._said.features.items()}
        return replace(self._said, logits=self._said.logits.clone(), features=features)


def _recorded(look: Look, x: Tensor) -> Graph | None:
    """None where something in the pass cannot be recorded, or the memory does not suffice for it."""
    try:
        graph = Graph(look, x)
        return graph if _alike(graph(x), look(x)) else None
    except RuntimeError:
        return None


def _alike(a: Outputs, b: Outputs) -> bool:
    pairs = [(a.logits, b.logits), *((a.features[name], b.features[name]) for name in b.features)]
    return all(bool((x - y).norm() <= CLOSE * y.norm()) for x, y in pairs)
