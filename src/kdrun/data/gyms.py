"""Several environments as one data set: what is learnt from it is to act in each of them."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from kdrun.contracts import (
    Batch,
    Dataset,
    Draw,
    JointSpec,
    Outputs,
    Played,
    Predictor,
    Pupil,
    Shelf,
    Split,
    Units,
)
from kdrun.data.episodes import in_turn
from kdrun.data.gym import NOT_HERE, OBSERVATION, SCALED, Gym, NamedEnvironment, StatesConfig, demand_states
from kdrun.data.views import EnvironmentName
from kdrun.errors import DataError
from kdrun.statistics.scores import NORMALISED


@dataclass(frozen=True)
class Within:
    """A policy for several environments as it acts in one of them."""

    policy: Predictor
    environment: str
    spec: JointSpec

    def __call__(self, batch: Batch) -> Outputs:
        """The logits (B, A) of this environment's actions."""
        said = self.policy(self.spec.joined({self.environment: batch}))
        return Outputs(said.logits[:, : self.spec.parts[self.environment].classes])


class PupilWithin:
    """A student of several environments as the data set of one of them sees it; it learns from no rewards."""

    critic = None

    def __init__(self, student: Pupil, draw: Draw, environment: str, spec: JointSpec) -> None:
        self.draw, self._student, self._environment, self._spec = draw, student, environment, spec
        self.gathered = {
            key.removeprefix(f"{environment}/"): tensor
            for key, tensor in student.gathered.items()
            if key.startswith(f"{environment}/")
        }

    def exported(self) -> Predictor:
        """What it is now, in this environment."""
        return Within(self._student.exported(), self._environment, self._spec)

    def look(self, batch: Batch) -> Outputs:
        """What it says of a batch of this environment while it learns."""
        return Within(self._student.look, self._environment, self._spec)(batch)

    def keep(self) -> None:
        """Have the student keep what was gathered for it here."""
        self._student.gathered |= {f"{self._environment}/{key}": one for key, one in self.gathered.items()}


class Returns(NamedTuple):
    """The mean returns in an environment by which others are measured."""

    random: float
    demonstrator: float

    def normalised(self, returns: np.ndarray) -> np.ndarray:
        """Returns (E,), where 0 is what random actions get, and 1 what the demonstrator gets."""
        scaled: np.ndarray = (returns - self.random) / (self.demonstrator - self.random)
        return scaled


class Gyms(Dataset):
    """States of several environments of gymnasium, for one student with a head for each, and for others of one of them.

    A teacher or a student that names its `environment` learns there alone, as with `gym`, and its score is its return.
    Who names none acts in all of them: a teacher of kind `specialists` as the teachers that it is made of, a network
    by its head for the environment. Each batch has as many states of one environment as of another. The score is the
    mean over the environments of the normalised return: 0 is what random actions get in the same episodes, and 1 what
    the teacher gets; it is shown in percent. Views: `observation` and `scaled` as of `gym`, those of all environments
    side by side, zeros for the others, and then which one it is. Needs `pip install 'kdrun[rl]'`.

    Source: Rusu et al., "Policy Distillation", 2015, section 3.3, for students of several tasks; Mnih et al.,
    "Human-level control through deep reinforcement learning", 2015, for returns that are measured by others.
    """

    class Config(StatesConfig):
        """Options of `gyms`; what is counted is counted in each environment."""

        kind: Literal["gyms"]
        metric: Literal["normalised-return"] = NORMALISED
        """the score of who acts in all of them"""
        environments: Annotated[dict[EnvironmentName, NamedEnvironment], Field(min_length=2)]
        """each by a name: `{pole: {env: CartPole-v1}, acrobot: {env: Acrobot-v1}}`"""

    config: Config
    spec: JointSpec
    plays = True

    def __init__(self, config: Config) -> None:
        self.config = config
        demand_states(config)
        shared = config.model_dump(include={*StatesConfig.model_fields} - {"kind", "metric"})
        self.parts = {name: _opened(name, one, shared) for name, one in config.environments.items()}
        self.spec = JointSpec.joining({name: part.spec for name, part in self.parts.items()})
        names = [part.class_names for part in self.parts.values()]
        self.classes = [
            " / ".join(dict.fromkeys(of[number] for of in names if number < len(of)))
            for number in range(self.spec.classes)
        ]
        self.demonstrator: Predictor | None = None
        self._shown: dict[str, Gyms] = {}
        self._at_random: dict[tuple[str, Split], float] = {}
        self._measures: dict[Split, dict[str, Returns]] = {}

    def of(self, environment: str | None) -> Dataset:
        """The set of one environment; all of them where none is named."""
        return self if environment is None else self.parts[environment]

    @property
    def setting(self) -> str:
        """The environments, and what of them is unusual."""
        return "; ".join(part.setting for part in self.parts.values())

    def identity(self) -> dict[str, Any]:
        """The config without what decides no sample."""
        told = {"root", "metric", *NOT_HERE, "environments"}
        environments = {
            name: one.model_dump(mode="json", exclude={"observation_names", "action_names"})
            for name, one in self.config.environments.items()
        }
        return self.config.model_dump(mode="json", exclude=told) | {"environments": environments}

    def load(
        self, device: torch.device, shelf: Shelf | None = None, say: Callable[[str], None] = lambda text: None
    ) -> None:
        """Nothing is read: all that there is, is shown by a teacher."""
        for part in self.parts.values():
            part.load(device, shelf, say)
        self.spec = JointSpec.joining({name: part.spec for name, part in self.parts.items()}, self.units)

    def shown_by(self, name: str, demonstrator: Callable[[], Predictor]) -> Gyms:
        """The set with the states that a teacher of all environments visits in each, and what it does there."""
        if name not in self._shown:
            shown = copy.copy(self)
            shown.demonstrator = policy = demonstrator()
            shown._shown, shown._measures = {}, {}
            shown.parts = {
                environment: part.shown_by(name, partial(Within, policy, environment, self.spec))
                for environment, part in self.parts.items()
            }
            self._shown[name] = shown
        return self._shown[name]

    # ---------------------------------------------------------------------------------------- batches

    def _draws(self, draw: Draw) -> dict[str, Draw]:
        """How each environment's share of the batches is drawn."""
        shares = self.spec.shared(draw.batch_size)
        return {
            name: replace(draw, batch_size=max(1, share), purpose=f"{draw.purpose} {name}")
            for name, share in shares.items()
        }

    def steps(self, draw: Draw) -> int:
        """Batches an epoch."""
        return min(self.parts[name].steps(own) for name, own in self._draws(draw).items())

    def training_samples(self, draw: Draw) -> int:
        """How many states a draw is of at most, of all environments."""
        return sum(part.training_samples(draw) for part in self.parts.values())

    def refresh(self, epoch: int, students: Sequence[Pupil]) -> None:
        """Gather states in each environment for the students that ask for it."""
        for name, part in self.parts.items():
            pupils = [PupilWithin(one, self._draws(one.draw)[name], name, self.spec) for one in students]
            part.refresh(epoch, pupils)
            for pupil in pupils:
                pupil.keep()

    def batches(self, draw: Draw, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, of all environments alike."""
        firsts = self._firsts([part.training_samples(draw) for part in self.parts.values()])
        streams = [self.parts[name].batches(own, epoch, first) for name, own in self._draws(draw).items()]
        for several in zip(*streams, strict=False):  # as many as there are of the one with fewest
            numbered = zip(self.parts, several, firsts, strict=True)
            yield self.spec.joined({name: _moved(one, by) for name, one, by in numbered})

    def queries(self, draw: Draw, number: int, batch_size: int) -> Iterator[Batch]:
        """There are none: states are gathered by ``rollouts``."""
        raise AssertionError("the config refuses queries of states")

    def copies(self, draw: Draw) -> int | None:
        """One, where nothing is gathered."""
        return 1 if draw.rollouts is None else None

    def copy(self, number: int, batch_size: int, given: bool = False) -> Iterator[Batch]:
        """The recorded states in their order."""
        return self.split("train", batch_size)

    @property
    def copied_views(self) -> tuple[str, ...]:
        """Both views are of the same numbers."""
        return OBSERVATION, SCALED

    def split(self, name: Split, batch_size: int = 512, given: bool = False) -> Iterator[Batch]:
        """The states of a split, of one environment after the other; no batch is of two."""
        firsts = self._firsts([len(part.labels(name)) for part in self.parts.values()])
        for (environment, part), by in zip(self.parts.items(), firsts, strict=True):
            for batch in part.split(name, batch_size):
                yield self.spec.joined({environment: _moved(batch, by)})

    def labels(self, name: Split, given: bool = False) -> np.ndarray:
        """What the demonstrator does in the states of a split (N,)."""
        return np.concatenate([part.labels(name) for part in self.parts.values()])

    @staticmethod
    def _firsts(samples: Sequence[int]) -> list[int]:
        """Where each environment's samples begin among those of all."""
        return [0, *accumulate(samples)][:-1]

    def units(self, view: str) -> Units:
        """What the numbers of all environments are called, and then which one it is."""
        found = [part.units(view) for part in self.parts.values()]
        several = zip(self.parts, found, strict=True)
        names = [f"{name}: {number}" for name, own in several for number in own.names]
        flags = np.zeros(len(found)), np.ones(len(found))
        offset, scale = (
            np.concatenate([*(getattr(own, key) for own in found), flag])
            for key, flag in zip(("offset", "scale"), flags, strict=True)
        )
        return Units((*names, *(f"is {name}" for name in self.parts)), offset, scale)

    # ------------------------------------------------------------------------------------------ acting

    def play(
        self, policy: Predictor, split: Split, pause: Callable[[], None], episodes: range | None = None
    ) -> Played:
        """What a policy does in the episodes of a split, in one environment after the other."""
        played = {
            name: part.play(Within(policy, name, self.spec), split, pause, episodes)
            for name, part in self.parts.items()
        }
        measures = self.measures(split, pause)
        returns, lengths, truncated, normalised = (
            np.concatenate(of)
            for of in zip(
                *(
                    (one.returns, one.lengths, one.truncated, measures[name].normalised(one.returns))
                    for name, one in played.items()
                ),
                strict=True,
            )
        )
        states = [self.spec.joined({name: batch}) for name, one in played.items() for batch in one.states]
        which = np.repeat([*played], [len(one.returns) for one in played.values()])
        return Played(returns, lengths, truncated, states, which, normalised)

    def measures(self, split: Split, pause: Callable[[], None] = lambda: None) -> Mapping[str, Returns]:
        """What random actions and the demonstrator get in the episodes of a split, in each environment; played once.

        Raises ``DataError`` where the demonstrator gets no more.
        """
        if split not in self._measures:
            self._measures[split] = {name: self._measured(name, split, pause) for name in self.parts}
        return self._measures[split]

    def _measured(self, name: str, split: Split, pause: Callable[[], None]) -> Returns:
        part = self.parts[name]
        assert part.demonstrator is not None
        if (name, split) not in self._at_random:
            self._at_random[name, split] = float(part.at_random(split, pause).mean())
        shown = float(part.play(part.demonstrator, split, pause).returns.mean())
        found = Returns(self._at_random[name, split], shown)
        if found.demonstrator <= found.random:
            raise DataError(
                f"dataset.environments.{name}: its teacher gets {found.demonstrator:g}, and random actions get "
                f"{found.random:g} in the same {split} episodes: there is nothing to be learnt from it; take a better "
                "teacher"
            )
        return found

    def film(self, policy: Predictor, say: Callable[[str], None] = lambda text: None) -> bytes | None:
        """The first test episode in each environment as a GIF, one after the other."""
        films = [part.film(Within(policy, name, self.spec), say) for name, part in self.parts.items()]
        there = [one for one in films if one is not None]
        return in_turn(there) if there else None

    def scored_by(self) -> dict[str, Any]:
        """What the returns are measured by."""
        found = self.measures("test")
        return {
            "random_return": {name: one.random for name, one in found.items()},
            "demonstrator_return": {name: one.demonstrator for name, one in found.items()},
        }

    def test_hash(self) -> str:
        """SHA-256 of the environments, and of where their test episodes begin."""
        hashes = "".join(part.test_hash() for part in self.parts.values())
        return hashlib.sha256(hashes.encode()).hexdigest()


def _opened(name: str, written: NamedEnvironment, shared: Mapping[str, Any]) -> Gym:
    """The data set of one environment; raises ``DataError``."""
    try:
        return Gym(Gym.Config(kind="gym", **dict(written), **shared))
    except DataError as error:
        keys = "|".join(NamedEnvironment.model_fields)
        raise DataError(
            re.sub(rf"^dataset\.({keys})\b", rf"dataset.environments.{name}.\1", str(error))
        ) from error


def _moved(batch: Batch, by: int) -> Batch:
    """The samples at other places in their split."""
    return replace(batch, index=batch.index + by)
