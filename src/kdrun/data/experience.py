"""What is gathered for a student: states, and of one that acts for rewards what it did there and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdrun.contracts import Acted, Critic, Outputs
from kdrun.data.episodes import EnvironmentConfig, begun, opened, stepped

AT_ONCE = 8
"""Episodes in which a student acts for rewards at once."""


class Recorded(NamedTuple):
    """States of a split (N, F) float32, and what the demonstrator does there (N,) int64."""

    observations: Tensor
    labels: Tensor


class Underway(NamedTuple):
    """An episode that is not over: its seed, and the actions until now, from which all else follows."""

    seed: int
    actions: Sequence[int]


@dataclass(frozen=True)
class Pool:
    """What was gathered for a draw before so many epochs.

    Recorded states may be among it. Of a student that acts for rewards it is what it ``acted`` in the states, with the
    episodes that go on, of the ``begun`` ones.
    """

    states: Recorded
    epochs: int
    acted: Acted | None = None
    underway: Sequence[Underway] = ()
    begun: int = 0

    def as_tensors(self) -> dict[str, Tensor]:
        """The same as a learner keeps it."""
        kept = self.states._asdict() | {
            "epochs": torch.tensor(self.epochs),
            "begun": torch.tensor(self.begun),
        }
        if self.acted is not None:
            kept |= {f"acted_{name}": part for name, part in self.acted.parts.items()}
        for number, one in enumerate(self.underway):
            kept[f"underway_{number}"] = torch.tensor([one.seed, *one.actions])
        return kept

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Pool:
        """What a learner kept."""
        parts = [tensors.get(f"acted_{part.name}") for part in fields(Acted)]
        kept = (name for name in tensors if name.startswith("underway_"))
        episodes = [
            tensors[name].tolist() for name in sorted(kept, key=lambda name: int(name.rpartition("_")[2]))
        ]
        return cls(
            Recorded(tensors["observations"], tensors["labels"]),
            int(tensors["epochs"]),
            None if None in parts else Acted(*(part for part in parts if part is not None)),
            [Underway(seed, actions) for seed, *actions in episodes],
            int(tensors["begun"]),
        )


class Stretch(NamedTuple):
    """T steps in a row of one episode: ``observations`` (T, F), ``actions`` (T,), ``rewards`` (T,), as of an episode.

    ``last`` (F,) is the observation after them. After a stretch that is not ``terminated`` there are more rewards to
    be had: it ends by the limit of time, or because enough was gathered.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    last: np.ndarray
    terminated: bool


Sampled = Callable[[np.ndarray], np.ndarray]
"""Actions (B,) for observations (B, F), drawn by chance."""


class _Room:
    """An environment in which one episode after the other is played, and what of it was not handed over yet."""

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self.first = int(getattr(environment.action_space, "start", 0))
        self.over = True
        self.stretches: list[Stretch] = []

    def begin(self, episode: Underway) -> None:
        """Go on where an episode was left; one without actions begins."""
        self.seed, self.actions, self.over = episode.seed, [*episode.actions], False
        self.now = begun(self.environment, episode.seed)
        for action in self.actions:
            self.now, *_ = stepped(self.environment, action + self.first)
        self._steps: list[tuple[np.ndarray, int, float]] = []

    def step(self, action: int) -> None:
        """Do something, and note what comes of it."""
        seen, reward, terminated, cut = stepped(self.environment, action + self.first)
        self._steps.append((self.now, action, reward))
        self.actions.append(action)
        self.now, self.over = seen, terminated or cut
        if self.over:
            self._close(terminated)

    def _close(self, terminated: bool) -> None:
        if self._steps:
            seen, actions, rewards = (np.array(part) for part in zip(*self._steps, strict=True))
            self.stretches.append(Stretch(seen, actions, rewards, self.now, terminated))

    def leave(self) -> Underway | None:
        """Hand over the rest; the episode, where it is not over."""
        if not self.over:
            self._close(False)
        return None if self.over else Underway(self.seed, self.actions)


def gather(
    config: EnvironmentConfig,
    act: Sampled,
    states: int,
    underway: Sequence[Underway],
    seeds: Iterator[int],
) -> tuple[list[Stretch], list[Underway]]:
    """Exactly so many steps, of episodes that are ``underway`` and of others; and those that are not over then.

    An episode goes on to the same bits wherever it was left, for it is played again up to there.
    """
    with ExitStack() as every:
        rooms = [_Room(every.enter_context(closing(opened(config)))) for _ in range(min(AT_ONCE, states))]
        for room, episode in zip(rooms, underway, strict=False):
            room.begin(episode)
        left = states
        while left:
            turn = rooms[:left]
            for room in turn:
                if room.over:
                    room.begin(Underway(next(seeds), []))
            for room, action in zip(turn, act(np.stack([room.now for room in turn])).tolist(), strict=True):
                room.step(action)
            left -= len(turn)
        going = [room.leave() for room in rooms]
    return [stretch for room in rooms for stretch in room.stretches], [
        one for one in going if one is not None
    ]


def sampled(log_probabilities: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """An action (B,) for each row of log-probabilities (B, C), by chance."""
    below = np.exp(log_probabilities.astype(np.float64)).cumsum(axis=1)
    drawn: np.ndarray = (draw.random((len(below), 1)) * below[:, -1:] >= below).sum(axis=1)
    return drawn


def advantages(
    rewards: np.ndarray, values: np.ndarray, terminated: bool, gamma: float, gae_lambda: float
) -> np.ndarray:
    """How much better each step (T,) of a stretch was than expected, by the values (T + 1,) of its states.

    The last value is that of the state after it, which counts nothing where the environment ended the episode, and is
    what is still to be expected where a limit did. The outcome of a step is its advantage and its value.

    Source: Schulman, Moritz, Levine, Jordan, Abbeel, "High-Dimensional Continuous Control Using Generalized Advantage
    Estimation", 2016, equation 16; of episodes that are cut off: Pardo, Tavakoli, Levdik, Kormushev, "Time Limits in
    Reinforcement Learning", 2018.
    """
    following = np.append(values[1:-1], 0.0 if terminated else values[-1])
    surprises = rewards + gamma * following - values[:-1]
    found, later = np.empty(len(rewards)), 0.0
    for step in reversed(range(len(rewards))):
        found[step] = later = surprises[step] + gamma * gae_lambda * later
    return found


def judged(stretches: Sequence[Stretch], look: Callable[[np.ndarray], Outputs], critic: Critic) -> Acted:
    """What a student did in all stretches, one after the other, and what that was worth by what it expected itself.

    ``look`` gives what it says of observations (B, F).
    """
    seen = [np.concatenate([one.observations, one.last[None]]) for one in stretches]
    said = look(np.concatenate(seen))
    with torch.no_grad():
        values = critic.value(said).double().cpu().numpy()
    own = np.split(values, np.cumsum([len(one) for one in seen])[:-1])
    worth = [
        advantages(one.rewards, expected, one.terminated, critic.gamma, critic.gae_lambda)
        for one, expected in zip(stretches, own, strict=True)
    ]
    outcomes = [found + expected[:-1] for found, expected in zip(worth, own, strict=True)]
    acted_in = np.concatenate([np.arange(len(one)) < len(one) - 1 for one in seen])
    device = said.logits.device
    action = torch.from_numpy(np.concatenate([one.actions for one in stretches])).to(device)
    log_p = said.logits.log_softmax(dim=1)[torch.from_numpy(acted_in).to(device)]
    advantage, outcome = (
        torch.from_numpy(np.concatenate(parts)).float().to(device) for parts in (worth, outcomes)
    )
    return Acted(action, log_p.gather(1, action[:, None]).squeeze(1), advantage, outcome)
