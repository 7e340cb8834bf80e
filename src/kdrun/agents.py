"""Agents: networks that learn from the rewards of an environment, by stable-baselines3, and what is written of it."""

from __future__ import annotations

import copy
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from kdrun.console import Console
from kdrun.contracts import Dataset, Draw
from kdrun.data.episodes import (
    Act,
    EnvironmentConfig,
    begun,
    opened,
    play,
    seed_of,
    stepped,
    with_physics,
)
from kdrun.errors import Mismatch, shown
from kdrun.machine import raise_lack
from kdrun.models import Frozen, Network, Policy
from kdrun.models.simple import ACTIVATIONS
from kdrun.objective import Objective
from kdrun.optimization import Training
from kdrun.randomness import derive
from kdrun.student import Failure, Learner, Plugs

STRETCHES = 20
"""Lines of the log, evenly over the steps, where an agent is not looked at in between."""
CURE = "a smaller learning_rate may help"
CLOSE = 1e-5
"""How far what was taken over from stable-baselines3 may be from it, relative to the largest output, or to 1."""
NUMBERS = 8
"""That are remembered of a step beside two observations, at most."""


@runtime_checkable
class WithEnvironment(Protocol):
    """A data set of an environment."""

    environment: EnvironmentConfig


def demand_trainer() -> None:
    """Raise ``Mismatch`` where stable-baselines3 is not there; an agent that is finished can do without."""
    try:
        import stable_baselines3  # noqa: F401  (whether it is there)
    except ImportError as error:
        raise Mismatch(
            "stable-baselines3, which trains it, is not installed", "pip install 'kdrun[rl]'", "kind"
        ) from error


class Agent(Learner):
    """A network that learns by acting in an environment, from no teacher and from no sample of the data set.

    Its ``metrics`` have a line for each stretch of the training: the mean return of the episodes that ended in it,
    explored as the algorithm does, and of those that were played to look at it, by the best actions.
    """

    def __init__(
        self,
        title: str,
        network: Network,
        objective: Objective,
        training: Training,
        draw: Draw,
        plugs: Plugs,
    ) -> None:
        super().__init__(title, network, objective, training, draw, plugs=plugs)
        assert isinstance(network.model, Policy)
        self.policy: Policy = network.model
        self.config = self.policy.config
        self.stretches = min(self.config.looks or STRETCHES, -(-self.total_steps // self.config.copies))
        self._returns: list[float] = []
        self._best = float("-inf")
        self._kept: dict[str, Tensor] | None = None

    @property
    def total_steps(self) -> int:
        """The steps that it takes in the environment."""
        return self.config.all_steps

    @property
    def held_bytes(self) -> int:
        """What it remembers at most of its steps while it learns, in bytes."""
        return 4 * self.config.experiences * (2 * self.policy.inputs + NUMBERS)

    def learn(self, environment: EnvironmentConfig, console: Console, pause: Callable[[], None]) -> None:
        """Train it from the start; a failure where stable-baselines3 cannot, or where its weights are not finite.

        Its episodes have seeds for training, and those at which it is looked seeds for validation. ``pause`` is called
        at each step of both, and may raise. Of one seed come the same weights, by however many threads.
        """
        began = time.perf_counter()
        self.metrics, self._returns, self._best, self._kept = [], [], float("-inf"), None
        seed = derive(self.draw.seed, self.draw.purpose, "agent") % 2**32
        with _on_its_own():
            algorithm = self._algorithm(environment, seed)
            try:
                algorithm.learn(
                    self.config.steps, lambda *_: self._after_step(algorithm, environment, console, pause)
                )
                self._close_stretch(algorithm, environment, console, pause)
            except (RuntimeError, ValueError) as error:  # as torch says of probabilities that are not finite
                raise_lack(error)
                told = f"stable-baselines3 cannot train it: {shown(error, 300)}"
                self.failure = Failure(told, CURE)
                return
            finally:
                algorithm.env.close()
            self._take_over(algorithm, environment)
        self.seconds += time.perf_counter() - began

    def _algorithm(self, environment: EnvironmentConfig, seed: int) -> Any:
        import stable_baselines3
        from stable_baselines3.common.logger import Logger
        from stable_baselines3.common.vec_env import DummyVecEnv

        seeds = (seed_of("training", self.draw.seed, number) for number in count())
        made = DummyVecEnv(
            [lambda: _practice(environment, seeds, self._seen, self._returns)] * self.config.copies
        )
        algorithm = getattr(stable_baselines3, self.policy.ALGORITHM)(
            "MlpPolicy",
            made,
            seed=seed,
            device="cpu",
            policy_kwargs={
                "net_arch": self.config.hidden,
                "activation_fn": ACTIVATIONS[self.policy.activation],
            },
            **self.config.options(),
        )
        algorithm.set_logger(Logger(None, []))  # its own would make a folder
        return algorithm

    def _seen(self, observations: np.ndarray) -> Tensor:
        """Observations (B, F) as the network sees them, on the CPU."""
        raw = torch.from_numpy(observations)
        return raw if self.policy.lens is None else self.policy.lens(raw.to(self.network.device)).cpu()

    def _after_step(
        self, algorithm: Any, environment: EnvironmentConfig, console: Console, pause: Callable[[], None]
    ) -> bool:
        """Told by stable-baselines3; it goes on."""
        pause()
        for _ in range(self.config.copies):
            console.step(1)
        done = algorithm.num_timesteps
        if (
            (len(self.metrics) + 1) * self.total_steps
            <= done * self.stretches
            < self.total_steps * self.stretches
        ):
            self._close_stretch(algorithm, environment, console, pause)
        return True

    def _close_stretch(
        self, algorithm: Any, environment: EnvironmentConfig, console: Console, pause: Callable[[], None]
    ) -> None:
        """Look at it, keep its weights if they are the best, and write a line of the log."""
        heard, number = self._returns.copy(), len(self.metrics)
        self._returns.clear()
        explored = float(np.mean(heard)) if heard else None
        looked = self._look(algorithm, environment, pause) if self.config.looks else None
        if looked is not None and looked >= self._best:
            self._best, self._kept = looked, copy.deepcopy(algorithm.policy.state_dict())
        self.metrics.append(
            {
                "epoch": number,
                "step": algorithm.num_timesteps,
                "terms": {},
                "validation": None,
                "training_episodes": len(heard),
                "training_return": explored,
                "validation_return": looked,
            }
        )
        told = [("in training", explored), ("when looked at", looked)]
        words = ", ".join(f"{value:.1f} {where}" for where, value in told if value is not None)
        console.epoch(number + 1, self.stretches, f"; mean return {words}" if words else "")

    def _look(self, algorithm: Any, environment: EnvironmentConfig, pause: Callable[[], None]) -> float:
        """The mean return of validation episodes."""
        seeds = [seed_of("validation", "look", number) for number in range(self.config.look_episodes)]
        episodes = play(environment, self._greedy(algorithm), seeds, pause)
        return float(np.mean([episode.rewards.sum() for episode in episodes]))

    def _greedy(self, algorithm: Any) -> Act:
        """The best actions, as it stands."""

        def act(observations: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
            with torch.no_grad():
                said = self.policy.theirs(algorithm.policy, self._seen(observations))
            best: np.ndarray = said.argmax(dim=1).numpy()
            return best

        return act

    def _take_over(self, algorithm: Any, environment: EnvironmentConfig) -> None:
        """Give the network the weights that were kept, and make sure that it says what stable-baselines3's says."""
        if self._kept is not None:
            algorithm.policy.load_state_dict(self._kept)
        self.policy.load_state_dict(self.policy.translate(algorithm.policy.state_dict()))
        [episode] = play(environment, self._greedy(algorithm), [seed_of("validation", "look", 0)])
        with torch.no_grad():
            expected = self.policy.theirs(algorithm.policy, self._seen(episode.observations))
            if not expected.isfinite().all():
                self.failure = Failure("its outputs are not finite", CURE)
                return
            found = self.policy(torch.from_numpy(episode.observations).to(self.network.device)).cpu()
        off = float((found - expected).abs().max())
        assert off <= CLOSE * max(1.0, float(expected.abs().max())), f"the outputs are off by {off}"

    def flush(self) -> None:
        """Nothing is left on the device."""

    def exported(self) -> Frozen:
        """The network as it was taken over."""
        return self.network.copied(self.policy, self.policy.state_dict())

    def selected(self) -> Frozen:
        """The trained network."""
        return self.exported()


def _practice(
    environment: EnvironmentConfig,
    seeds: Iterator[int],
    see: Callable[[np.ndarray], Tensor],
    returns: list[float],
) -> Any:
    """An environment whose episodes have seeds of their own; it tells of each the return, as it ends."""
    import gymnasium
    from gymnasium.spaces import Box, Discrete

    class Practice(gymnasium.Wrapper[Any, Any, Any, Any]):
        def __init__(self, made: Any) -> None:
            super().__init__(made)
            self.first = int(made.action_space.start)
            self.action_space = Discrete(int(made.action_space.n))
            self.observation_space = Box(-np.inf, np.inf, made.observation_space.shape, np.float32)
            self.total = 0.0

        def _show(self, observation: np.ndarray) -> np.ndarray:
            shown_: np.ndarray = see(observation[None])[0].numpy()
            return shown_

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            self.total = 0.0
            return self._show(begun(self.env, next(seeds))), {}

        def step(self, action: Any) -> Any:
            observation, reward, ended, cut = stepped(self.env, int(action) + self.first)
            self.total += reward
            if ended or cut:
                returns.append(self.total)
            return self._show(observation), reward, ended, cut, {}

    return Practice(opened(environment))


@contextmanager
def _on_its_own() -> Iterator[None]:
    """On one thread, so that the number of them changes no bit; the global generators are left as they were."""
    threads, drawn, numpy_drawn = torch.get_num_threads(), random.getstate(), np.random.get_state()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # recommendations of stable-baselines3
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(drawn)
        np.random.set_state(numpy_drawn)


def fit(
    students: Sequence[Agent],
    dataset: Dataset,
    epochs: int,
    console: Console,
    pause: Callable[[], None],
) -> None:
    """Train agents of one draw in the data set's environment, one after the other; ``epochs`` mean nothing to them.

    One that has ``physics`` of its own learns with these. ``pause`` is called at each step, when nothing can be saved;
    it may raise.
    """
    assert isinstance(dataset, WithEnvironment), "the config sees to it"
    for student in students:
        with console.training(student.title, student.total_steps, 0, student.stretches):
            student.learn(with_physics(dataset.environment, student.config.physics), console, pause)
