"""Graph networks over training samples that the model holds."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdrun.contracts import Model, ModelConfig
from kdrun.models.simple import Width

CHUNK = 512
"""Nodes whose neighbours are searched at a time."""
NOBODY = -1
"""A neighbour that is not there, where a graph has fewer nodes than each sample is to have neighbours."""
GRAIN = 2**16
"""Of how many steps a unit of an input has, by which samples are told apart that get other random neighbours."""
GOLDEN = -7046029254386353131
"""2^64 divided by the golden ratio, as an int64: products with it scatter numbers that are near each other."""


class APPNP(Model):
    """Personalised propagation of an MLP's predictions along a graph of nearest neighbours.

    The nodes are training samples without their labels, drawn by the run's seed, which the model holds. A sample's
    neighbours are the nodes nearest to it by the Euclidean distance of the flattened inputs; a sample that is a node is
    no neighbour of its own. The MLP gives each node its own logits H; from Z = H on, `steps` − 1 times, Z becomes
    (1 − α) · the mean of Z over a node's neighbours + α·H, with α = `restart`; and what the network says of a sample is
    that once more. The hidden layers ``body.0``, … of the samples are the stages, and ``classifier`` gives the samples'
    own logits.

    `graph: shuffled` is the control: each sample has the neighbours of a random node in the place of its own, always
    the same ones for equal samples.

    In training every step asks the MLP about all nodes. What they said last is stored with the weights, as BatchNorm
    stores its statistics, so that a trained network looks for a sample's neighbours and asks no node.

    Source: Gasteiger, Bojchevski, Günnemann, "Predict then Propagate: Graph Neural Networks meet Personalized
    PageRank", 2019; as a teacher of an MLP: Zhang, Liu, Sun, Shah, "Graph-less Neural Networks: Teaching Old MLPs New
    Tricks via Distillation", 2022.
    Trap: there the graph is given, its edges go both ways and nodes have loops; here each takes the mean over its own
    neighbours. There are no dropout and no penalty on the first layer's weights.
    """

    class Config(ModelConfig):
        """Options of `appnp`."""

        kind: Literal["appnp"]
        hidden: list[Width] = [64]
        """widths of the MLP's hidden layers; `[]` for a linear classifier"""
        nodes: int = Field(default=1024, ge=2)
        """how many training samples are nodes of the graph; all of them where there are fewer"""
        neighbours: int = Field(default=10, ge=1)
        """how many nodes each sample, and each node, has for neighbours"""
        steps: int = Field(default=10, ge=1)
        """how many edges far predictions go"""
        restart: float = Field(default=0.1, gt=0, lt=1)
        """α, the share of its own prediction that each keeps in each of the steps"""
        graph: Literal["nearest", "shuffled"] = "nearest"
        """nearest: neighbours are the nearest nodes; shuffled: those of a random node, the control"""

        @model_validator(mode="after")
        def _enough_nodes(self) -> Self:
            if self.neighbours >= self.nodes:
                words = f"{self.nodes} nodes have no {self.neighbours} neighbours each"
                raise ValueError(f"{words}; write `nodes: {self.neighbours + 1}` or more")
            return self

    head = "classifier"
    held_buffers = ("samples", "squares", "count", "edges", "said")
    samples: Tensor
    squares: Tensor
    count: Tensor
    edges: Tensor
    said: Tensor

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.config, self.memory = config, config.nodes
        widths = [math.prod(shape), *config.hidden]
        self.flatten = nn.Flatten()
        self.body = nn.Sequential(*(nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(widths)))
        self.classifier = nn.Linear(widths[-1], classes)
        self.stages = tuple(f"body.{i}" for i in range(len(self.body)))
        self.pooled = self.stages[-1] if self.stages else "flatten"
        self.preactivations = tuple(f"{stage}.0" for stage in self.stages)
        self.register_buffer("samples", torch.zeros(config.nodes, widths[0]))
        self.register_buffer("squares", torch.zeros(config.nodes))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("edges", torch.full((config.nodes, config.neighbours), NOBODY))
        self.register_buffer("said", torch.zeros(config.nodes, classes))

    @torch.no_grad()
    def remember(self, samples: Tensor) -> None:
        """Make training samples (M, …) the nodes of the graph, and find their neighbours."""
        there = len(samples)
        self.samples.zero_()
        self.samples[:there] = samples.flatten(1)
        self.squares.copy_(self.samples.square().sum(dim=1))
        self.count.fill_(there)
        self.edges.copy_(torch.cat([self._nearest(some) for some in self.samples.split(CHUNK)]))
        self.edges[there:] = NOBODY
        self.said.copy_(self._of_nodes())

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of inputs (B, …)."""
        learns = self.training or self.classifier.training  # which may learn alone
        nodes = self._of_nodes() if learns else self.said
        if learns:
            self.said.copy_(nodes.detach())
        x = self.flatten(x)  # after the nodes: what is tapped is what a layer gave last
        return self._step(self.classifier(self.body(x)), nodes, self._neighbours(x))

    def _of_nodes(self) -> Tensor:
        """What the nodes say (N, C) that a sample hears of."""
        own = self.classifier(self.body(self.samples))
        shuffled = self.config.graph == "shuffled"
        edges = self._neighbours(self.samples) if shuffled else self.edges
        said = own
        for _ in range(self.config.steps - 1):
            said = self._step(own, said, edges)
        return said

    def _step(self, own: Tensor, said: Tensor, neighbours: Tensor) -> Tensor:
        """What samples say (B, C) that would have said ``own``, of what their ``neighbours`` (B, k) among nodes said.

        Who has no neighbour hears nothing.
        """
        there = (neighbours != NOBODY).unsqueeze(2)
        heard = (said[neighbours.clamp_min(0)] * there).sum(dim=1) / there.sum(dim=1).clamp_min(1)
        alpha = self.config.restart
        return (1 - alpha) * heard + alpha * own

    def _neighbours(self, x: Tensor) -> Tensor:
        """The neighbours (B, k) of flattened inputs (B, D) among the nodes."""
        return self.edges[self._drawn(x)] if self.config.graph == "shuffled" else self._nearest(x)

    def _nearest(self, x: Tensor) -> Tensor:
        """The nodes (B, k) that are nearest to inputs (B, D) and are not they."""
        with torch.autocast(x.device.type, enabled=False):  # half precision cannot tell near ones apart
            nodes = self.samples.float()
            squares = self.squares if self.squares.dtype == nodes.dtype else nodes.square().sum(dim=1)
            apart = squares - 2 * x.float() @ nodes.T  # and what is the same for all nodes
        nobody = torch.arange(len(nodes), device=x.device) >= self.count
        near = apart.masked_fill(nobody, torch.inf).topk(self.config.neighbours + 1, largest=False).indices
        itself = (self.samples[near[:, 0]] == x).all(dim=1, keepdim=True)
        places = torch.arange(self.config.neighbours, device=x.device) + itself.long()
        near = near.gather(1, places)
        return near.where(near < self.count, NOBODY)

    def _drawn(self, x: Tensor) -> Tensor:
        """A node (B,) for each input (B, D): as good as random, and the same for the same input."""
        steps = (x.float() * GRAIN).round().long()  # of whole numbers, sums are the same in any order
        places = torch.arange(1, x.shape[1] + 1, device=x.device)
        scattered = (steps * places).sum(dim=1) * GOLDEN
        return ((scattered >> 32) & 0x7FFFFFFF) % self.count.clamp_min(1)
