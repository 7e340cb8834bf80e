"""States of environments, which a teacher shows: what is learnt from them is to act."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdrun.contracts import (
    HIDDEN,
    Batch,
    Dataset,
    DatasetConfig,
    Draw,
    Outputs,
    Played,
    Predictor,
    Pupil,
    Rollouts,
    Shelf,
    Spec,
    Split,
    Units,
)
from kdrun.data import sampling
from kdrun.data.episodes import (
    NAMES,
    Act,
    EnvironmentConfig,
    Episode,
    Purpose,
    at_random,
    begun,
    film,
    opened,
    play,
    seed_of,
)
from kdrun.data.experience import Pool, Recorded, gather, judged, sampled
from kdrun.errors import DataError
from kdrun.randomness import derive

OBSERVATION, SCALED = "observation", "scaled"
"""The views: what the environment gives, and that by its bounds."""
WIDEST = 1e6
"""Bounds that are further away are none."""
MOST_AT_ONCE = 16
"""Episodes that are recorded at once: one, two, four, … as more states are wanted."""
MOST_STATES = 5_000
"""Of a split's episodes, in which policies are compared action by action; evenly chosen where there are more."""
NOT_HERE = {
    "labels_per_class": "write `states` for fewer samples",
    "transfer_set": "write `rollouts` in the training for further states",
    "leave_out": "remove it",
    "unseen": "remove it",
}
"""Keys of other data sets, and what to write instead."""

Names = Annotated[list[str], Field(min_length=1)]


class NamedEnvironment(EnvironmentConfig):
    """An environment, and what its numbers and actions are called."""

    observation_names: Names | None = None
    """what the numbers of an observation are called, for rules; of classic control kdrun knows them"""
    action_names: Names | None = None
    """what the actions are called"""


class StatesConfig(DatasetConfig):
    """Options of states that a teacher shows."""

    states: int = Field(default=10_000, ge=2)
    """how many of its states are recorded, in whole episodes, the last one cut off"""
    episodes: int = Field(default=100, ge=2)
    """how many episodes a policy is scored in"""
    validation_episodes: int = Field(default=20, ge=2)
    """in how many others a student is looked at after each epoch, where there is a validation share"""


def demand_states(config: StatesConfig) -> None:
    """Raise ``DataError`` where a key is given that is of samples."""
    for key, cure in NOT_HERE.items():
        if getattr(config, key) is not None:
            raise DataError(f"dataset.{key}: says nothing of states of an environment; {cure}")


class Gym(Dataset):
    """States of an environment of gymnasium, labelled by what a teacher does there; the score is the mean return.

    The training set is recorded in episodes of the demonstrator, the validation share in others. Who learns from it is
    scored in `episodes` of its own, whose seeds are the same for all and are used for nothing else. Views:
    `observation`, as the environment gives it, and `scaled`, where numbers with bounds lie between -1 and 1. Needs
    `pip install 'kdrun[rl]'`.
    """

    class Config(NamedEnvironment, StatesConfig):
        """Options of `gym`."""

        kind: Literal["gym"]
        metric: Literal["return"] = "return"
        """the score of the comparison: the mean over the evaluation episodes of the sum of rewards"""
        demonstrator: str | None = None
        """the teacher whose states and actions the students see; the first that is not distilled where nothing is said
        """
        target: float | None = None
        """the return that students are to reach who act by themselves: `compare` tells after how many steps they do, in
        the validation episodes after each epoch"""

    config: Config
    plays = True

    def __init__(self, config: Config) -> None:
        self.config = config
        demand_states(config)
        if not self._samples("train"):
            raise DataError(
                f"dataset.validation: of {config.states} states none is left to learn from; write a smaller share"
            )
        made = opened(config)
        space, actions = made.observation_space, int(made.action_space.n)
        made.close()
        low, high = (np.asarray(bound, np.float64) for bound in (space.low, space.high))
        bounded = (abs(low) < WIDEST) & (abs(high) < WIDEST) & (high > low)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        self._middle, self._scale = (low + high) / 2, 2 / (high - low)
        known = NAMES.get(config.env.rpartition("/")[2].rpartition("-v")[0], ((), ()))
        self.numbers = self._names("observation_names", len(low), known[0], "x")
        self.classes = self._names("action_names", actions, known[1], "action ")
        self.spec = Spec({OBSERVATION: (len(low),), SCALED: (len(low),)}, actions, acts=True)
        self.device = torch.device("cpu")
        self.demonstrator: Predictor | None = None
        self._recorded: dict[Split, Recorded] = {}
        self._pools: dict[Draw, Pool] = {}
        self._shown: dict[str, Gym] = {}

    def _names(self, key: str, count: int, known: Sequence[str], otherwise: str) -> Sequence[str]:
        written = getattr(self.config, key)
        if written is None:
            return known if len(known) == count else [f"{otherwise}{number}" for number in range(count)]
        if len(written) != count:
            raise DataError(f"dataset.{key}: there are {count}, and {len(written)} names; write one for each")
        return list(written)

    @property
    def environment(self) -> EnvironmentConfig:
        """What is played."""
        return self.config

    @property
    def setting(self) -> str:
        """The environment, and what of it is unusual."""
        changes = self.config.options | self.config.physics
        return ", ".join([self.config.env, *(f"{name} {value}" for name, value in changes.items())])

    def identity(self) -> dict[str, Any]:
        """The config without what decides no sample."""
        told = {"root", "metric", "target", "demonstrator", *NOT_HERE, "observation_names", "action_names"}
        return self.config.model_dump(mode="json", exclude=told)

    def load(
        self, device: torch.device, shelf: Shelf | None = None, say: Callable[[str], None] = lambda text: None
    ) -> None:
        """Nothing is read: all that there is, is shown by a teacher."""
        self.device = device
        self.spec = replace(self.spec, units=self.units)

    # ---------------------------------------------------------------------------------- what is shown

    def shown_by(self, name: str, demonstrator: Callable[[], Predictor]) -> Gym:
        """The set with the states that a teacher visits, and what it does there."""
        if name not in self._shown:
            shown = copy.copy(self)
            shown.demonstrator, shown._pools, shown._shown = demonstrator(), {}, {}
            shown._recorded = {
                "train": shown._record("recorded", self._samples("train")),
                "validation": shown._record("validation", self._samples("validation")),
                "test": shown._labelled(_thinned(shown._tested())),
            }
            self._shown[name] = shown
        return self._shown[name]

    def _tested(self) -> list[Episode]:
        """The demonstrator's own test episodes."""
        assert self.demonstrator is not None
        return play(self.config, self._acting(self.demonstrator), self._seeds("test"))

    def _samples(self, split: Split) -> int:
        """How many a split has before it is shown; of the test split at most."""
        held_out = sampling.held_out(self.config.states, self.config.validation)
        return {"train": self.config.states - held_out, "validation": held_out, "test": MOST_STATES}[split]

    def _record(self, purpose: Purpose, states: int) -> Recorded:
        """States of the demonstrator's episodes."""
        assert self.demonstrator is not None
        return self._labelled(
            self._visited(self._acting(self.demonstrator), states, purpose, self.config.seed, "states")
        )

    def _visited(self, act: Act, states: int, purpose: Purpose, *what: str | int) -> np.ndarray:
        """So many states (N, F), in whole episodes but for the last."""
        found, total = [np.empty((0, *self.spec.shapes[OBSERVATION]), np.float32)], 0
        at_once = 1
        while total < states:
            seeds = [seed_of(purpose, *what, len(found) - 1 + number) for number in range(at_once)]
            found += [episode.observations for episode in play(self.config, act, seeds)]
            total, at_once = sum(map(len, found)), min(2 * at_once, MOST_AT_ONCE)
        return np.concatenate(found)[:states]

    def _labelled(self, observations: np.ndarray) -> Recorded:
        """States, with what the demonstrator does there."""
        assert self.demonstrator is not None
        seen = torch.from_numpy(observations).to(self.device)
        with torch.no_grad():
            said = [self.demonstrator(batch).logits.argmax(dim=1) for batch in self._in_pieces(seen, 512)]
        return Recorded(seen, torch.cat([torch.empty(0, dtype=torch.int64, device=self.device), *said]))

    def _acting(self, policy: Predictor) -> Act:
        """What a policy does: the action of its largest logit."""

        def act(observations: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
            with torch.no_grad():
                logits = policy(self._batch(torch.from_numpy(observations).to(self.device))).logits
            chosen: np.ndarray = logits.argmax(dim=1).cpu().numpy()
            return chosen

        return act

    def _mixed(self, first: Predictor, second: Predictor, share: float) -> Act:
        """In each step the one or the other, by a coin of each episode's own."""
        acts = [self._acting(first), self._acting(second)]
        coins: dict[int, np.random.Generator] = {}

        def act(observations: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
            drawn = [coins.setdefault(seed, np.random.default_rng(seed)).random() < share for seed in seeds]
            one, other = (of(observations, seeds) for of in acts)
            return np.where(drawn, one, other)

        return act

    # -------------------------------------------------------------------------------------- gathering

    def refresh(self, epoch: int, students: Sequence[Pupil]) -> None:
        """Gather states for the students that ask for it."""
        drawn: dict[Draw, list[Pupil]] = {}
        for student in students:
            if student.draw.rollouts is not None:
                drawn.setdefault(student.draw, []).append(student)
        for draw, pupils in drawn.items():
            kept = [Pool.of(pupil.gathered) for pupil in pupils if pupil.gathered]
            pool = (
                min(kept, key=lambda one: one.epochs) if len(kept) == len(pupils) else self._first_pool(draw)
            )
            while pool.epochs <= epoch:
                pool = self._grown(pool, draw, pupils[0])
            self._pools[draw] = pool
            for pupil in pupils:
                pupil.gathered = pool.as_tensors()

    def _first_pool(self, draw: Draw) -> Pool:
        assert draw.rollouts is not None
        if draw.rollouts.source == "self":
            return Pool(Recorded(*(part[:0] for part in self._recorded["train"])), 0)
        start = min(draw.rollouts.start or draw.rollouts.cap, draw.rollouts.cap)
        return Pool(Recorded(*(part[:start] for part in self._recorded["train"])), 1)

    def _grown(self, pool: Pool, draw: Draw, pupil: Pupil) -> Pool:
        """The pool with the states of one epoch more."""
        assert draw.rollouts is not None and self.demonstrator is not None
        how: Rollouts = draw.rollouts
        if how.source == "self":
            return self._experienced(pool, draw, how, pupil)
        act = self._acting(self.demonstrator if how.source == "teacher" else pupil.exported())
        if how.source == "mixed":
            act = self._mixed(self.demonstrator, pupil.exported(), how.teacher_share)
        found = self._visited(act, how.states, "recorded", self.config.seed, "epoch", draw.seed, pool.epochs)
        grown = (
            torch.cat(parts)[-how.cap :] for parts in zip(pool.states, self._labelled(found), strict=True)
        )
        return Pool(Recorded(*grown), pool.epochs + 1)

    def _experienced(self, pool: Pool, draw: Draw, how: Rollouts, pupil: Pupil) -> Pool:
        """What a student does next, by chance, in the place of what it did before."""
        chance = np.random.default_rng(derive(self.config.seed, "acts", draw.seed, pool.epochs))

        def look(observations: np.ndarray) -> Outputs:
            return pupil.look(self._batch(torch.from_numpy(observations).to(self.device)))

        def act(observations: np.ndarray) -> np.ndarray:
            return sampled(look(observations).logits.log_softmax(dim=1).cpu().numpy(), chance)

        begun = itertools.count(pool.begun)
        seeds = (seed_of("training", self.config.seed, "acts", draw.seed, number) for number in begun)
        stretches, underway = gather(self.config, act, how.states, pool.underway, seeds)
        states = self._labelled(np.concatenate([stretch.observations for stretch in stretches]))
        acted = None if pupil.critic is None else judged(stretches, look, pupil.critic)
        return Pool(states, pool.epochs + 1, acted, underway, next(begun))

    def gathered(self, draw: Draw, batch_size: int) -> Iterator[Batch]:
        """All that was gathered for a draw until now."""
        return self._of(self._pools[draw].states, batch_size)

    # ---------------------------------------------------------------------------------------- batches

    def steps(self, draw: Draw) -> int:
        """Batches an epoch: as many as the recorded states make, whatever is gathered beside them."""
        return sampling.steps(self._samples("train"), draw.batch_size)

    def training_samples(self, draw: Draw) -> int:
        """How many states a draw is of at most."""
        recorded, how = self._samples("train"), draw.rollouts
        if how is None:
            return recorded
        return how.states if how.source == "self" else max(recorded, how.cap)

    def batches(self, draw: Draw, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch: of the recorded states, or of what was gathered for the draw."""
        acted = None
        if draw.rollouts is None:
            states = self._recorded["train"]
            order = sampling.epoch_order(len(states.labels), draw, epoch, first)
        else:
            states, acted = self._pools[draw].states, self._pools[draw].acted
            recorded = self._samples("train")
            size = min(draw.batch_size, recorded)
            order = sampling.gathered_order(len(states.labels), draw, epoch, self.steps(draw), size, first)
        for rows in order.to(self.device):
            batch = self._batch(states.observations[rows], states.labels[rows], rows)
            yield batch if acted is None else replace(batch, acted=acted.rows(rows))

    def queries(self, draw: Draw, number: int, batch_size: int) -> Iterator[Batch]:
        """There are none: states are gathered by ``rollouts``."""
        raise AssertionError("the config refuses queries of states")

    def copies(self, draw: Draw) -> int | None:
        """One, where nothing is gathered."""
        return 1 if draw.rollouts is None else None

    def copy(self, number: int, batch_size: int, given: bool = False) -> Iterator[Batch]:
        """The recorded states in their order."""
        return self._of(self._recorded["train"], batch_size)

    @property
    def copied_views(self) -> tuple[str, ...]:
        """Both views are of the same numbers."""
        return OBSERVATION, SCALED

    def split(self, name: Split, batch_size: int = 512, given: bool = False) -> Iterator[Batch]:
        """The states of a split, in the order in which the demonstrator came by."""
        return self._of(self._recorded[name], batch_size)

    def labels(self, name: Split, given: bool = False) -> np.ndarray:
        """What the demonstrator does in the states of a split (N,); ``HIDDEN`` before there is one."""
        if not self._recorded:
            return np.full(self._samples(name), HIDDEN)
        return self._recorded[name].labels.cpu().numpy().copy()

    def _of(self, states: Recorded, size: int) -> Iterator[Batch]:
        rows = torch.arange(len(states.labels), device=self.device)
        for some in rows.split(size) if len(rows) else ():
            yield self._batch(states.observations[some], states.labels[some], some)

    def _in_pieces(self, observations: Tensor, size: int) -> Iterator[Batch]:
        return map(self._batch, observations.split(size) if len(observations) else ())

    def _batch(
        self, observations: Tensor, labels: Tensor | None = None, index: Tensor | None = None
    ) -> Batch:
        """States as models see them."""
        if labels is None or index is None:
            labels = torch.full((len(observations),), HIDDEN, device=observations.device)
            index = torch.arange(len(observations), device=observations.device)
        wide = (observations.cpu() if observations.device.type == "mps" else observations).double()
        middle, scale = (torch.from_numpy(of).to(wide.device) for of in (self._middle, self._scale))
        scaled = ((wide - middle) * scale).float().to(observations.device)
        return Batch({OBSERVATION: observations, SCALED: scaled}, labels, index)

    def units(self, view: str) -> Units:
        """What the numbers of an observation are called; both views are told as the environment gives them."""
        zeros, ones = np.zeros(len(self._middle)), np.ones(len(self._middle))
        return Units(tuple(self.numbers), *((self._middle, self._scale) if view == SCALED else (zeros, ones)))

    # ------------------------------------------------------------------------------------------ acting

    def _seeds(self, split: Split, episodes: range | None = None) -> list[int]:
        assert split != "train" and (split == "validation" or episodes is None)
        count = self.config.episodes if split == "test" else self.config.validation_episodes
        numbers = range(count) if episodes is None else episodes
        return [seed_of(split, self.config.seed, "episode", number) for number in numbers]

    def play(
        self, policy: Predictor, split: Split, pause: Callable[[], None], episodes: range | None = None
    ) -> Played:
        """What a policy does in the episodes of a split."""
        played = play(self.config, self._acting(policy), self._seeds(split, episodes), pause)
        visited = torch.from_numpy(_thinned(played)).to(self.device)
        return Played(
            np.array([episode.rewards.sum() for episode in played]),
            np.array([len(episode) for episode in played]),
            np.array([not episode.terminated for episode in played]),
            list(self._in_pieces(visited, 512)),
        )

    def at_random(self, split: Split, pause: Callable[[], None] = lambda: None) -> np.ndarray:
        """What random actions get in the episodes of a split (E,)."""
        played = play(self.config, at_random(self.spec.classes), self._seeds(split), pause)
        return np.array([episode.rewards.sum() for episode in played])

    def film(self, policy: Predictor, say: Callable[[str], None] = lambda text: None) -> bytes | None:
        """The first test episode as a GIF."""
        return film(self.config, self._acting(policy), self._seeds("test")[0], say)

    def test_hash(self) -> str:
        """SHA-256 of the environment, and of where its test episodes begin."""
        digest = hashlib.sha256(self.config.model_dump_json(include={"env", "options", "physics"}).encode())
        with closing(opened(self.config)) as made:
            for seed in self._seeds("test"):
                digest.update(begun(made, seed).tobytes())
        return digest.hexdigest()


def _thinned(episodes: Sequence[Episode]) -> np.ndarray:
    """The states of episodes, evenly chosen where they are many (N, F)."""
    states = np.concatenate([episode.observations for episode in episodes])
    rows = np.linspace(0, len(states) - 1, min(len(states), MOST_STATES)).round().astype(int)
    return states[rows]
