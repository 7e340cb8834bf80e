"""Environments that agents act in, and the episodes that are played there, each by a seed of its own."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, ImageSequence
from pydantic import field_validator

from kdrun.errors import DataError, did_you_mean, shown
from kdrun.machine import raise_lack
from kdrun.randomness import derive
from kdrun.schema import Schema

RL_EXTRA = "gymnasium is not installed; pip install 'kdrun[rl]'"

Purpose = Literal["test", "validation", "recorded", "training"]
PURPOSES: Final[tuple[Purpose, ...]] = ("test", "validation", "recorded", "training")
"""What an episode may be for; no seed is for two of them."""
DRAWN, PICTURES = "render_mode", "rgb_array"
"""How an environment is drawn, and as what."""
RECKONED = ("total_mass", "polemass_length")
"""Numbers of CartPole that follow from others."""
MOST_SEED = 2**31
"""Gymnasium takes any, other libraries no more."""

FRAMES, FRAME_WIDTH, FRAME_COLOURS, FRAME_MILLISECONDS = 100, 300, 32, 50
"""Of a film: its pictures at most, about their width in pixels, their colours, and how long each is shown."""


class EnvironmentConfig(Schema):
    """An environment of gymnasium with discrete actions and observations that are rows of numbers."""

    env: str
    """its id, as `CartPole-v1`; one that is registered, by gymnasium or by a plugin"""
    options: dict[str, bool | int | float | str | None] = {}
    """what it is made with: `{max_episode_steps: 200}`"""
    physics: dict[str, float] = {}
    """numbers of it that are others than usual, as its code calls them: `{length: 1.0, gravity: 15}`"""

    @field_validator("env")
    @classmethod
    def _imports_nothing(cls, env: str) -> str:
        module, colon, name = env.rpartition(":")
        if colon:
            raise ValueError(
                f"a config imports no module; write '{name}', and `--plugin {module}` in the command"
            )
        return env


def with_physics(environment: EnvironmentConfig, physics: dict[str, float] | None) -> EnvironmentConfig:
    """The same environment with other numbers in the place of its own; as it is where there are none."""
    return environment if physics is None else environment.model_copy(update={"physics": physics})


NAMES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "CartPole": (
        ("cart position (m)", "cart velocity (m/s)", "pole angle (rad)", "pole angular velocity (rad/s)"),
        ("push left", "push right"),
    ),
    "Acrobot": (
        (
            "cos of angle 1",
            "sin of angle 1",
            "cos of angle 2",
            "sin of angle 2",
            "angular velocity 1 (rad/s)",
            "angular velocity 2 (rad/s)",
        ),
        ("torque -1", "torque 0", "torque +1"),
    ),
    "MountainCar": (("position", "velocity (per step)"), ("push left", "coast", "push right")),
    "LunarLander": (
        ("x", "y", "velocity x", "velocity y", "angle (rad)", "angular velocity", "left leg", "right leg"),
        ("nothing", "left engine", "main engine", "right engine"),
    ),
}
"""What the numbers and actions of known environments are called, by the id without its version."""


class Episode(NamedTuple):
    """What happened from a reset to the end: T steps, of which each has the observation before it.

    ``observations`` (T, F) float32, ``actions`` (T,) int64, ``rewards`` (T,) float64, the observation ``last`` (F,)
    after all of them; it is ``terminated`` where the environment ended it, and cut off by the limit of time where not.
    """

    seed: int
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    last: np.ndarray
    terminated: bool

    def __len__(self) -> int:
        """Its steps."""
        return len(self.actions)


Act = Callable[[np.ndarray, Sequence[int]], np.ndarray]
"""Actions (B,) for observations (B, F), of episodes whose seeds are given in their order."""


def at_random(actions: int) -> Act:
    """One of so many actions, each as probable as any other; in each episode as its seed has it."""
    draws: dict[int, np.random.Generator] = {}

    def act(observations: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        own = [draws.setdefault(seed, np.random.default_rng((seed, actions))) for seed in seeds]
        return np.array([draw.integers(actions) for draw in own])

    return act


def opened(config: EnvironmentConfig, render: bool = False) -> Any:
    """The environment; raises ``DataError`` where there is none, or none that a policy can be distilled for."""
    try:
        import gymnasium
    except ImportError as error:
        raise DataError(f"dataset.kind: {RL_EXTRA}") from error
    if DRAWN in config.options:
        raise DataError(f"dataset.options.{DRAWN}: the report shows an episode of each by itself; remove it")
    how: dict[str, Any] = config.options | ({DRAWN: PICTURES} if render else {})
    try:
        made = gymnasium.make(config.env, disable_env_checker=True, **how)
    except gymnasium.error.UnregisteredEnv as error:
        near = did_you_mean(config.env, gymnasium.registry, list_all=False)
        hint = near or "write an id as `CartPole-v1`, or name the plugin that registers it"
        raise DataError(f"dataset.env: there is no environment '{config.env}'; {hint}") from error
    except Exception as error:  # it is code of others, and may raise anything
        raise_lack(error)
        told = f"{type(error).__name__}: {shown(error, 300)}"
        raise DataError(f"dataset.env: '{config.env}' cannot be made: {told}") from error
    _demand_form(made, config.env)
    _demand_limit(made, config.env)
    _change(made.unwrapped, config.physics)
    return made


def _demand_form(made: Any, name: str) -> None:
    from gymnasium.spaces import Box, Discrete

    if not isinstance(made.action_space, Discrete):
        raise DataError(
            f"dataset.env: the actions of '{name}' are {shown(made.action_space)}, and only policies that choose one "
            "of several actions can be distilled; name another environment"
        )
    space = made.observation_space
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise DataError(
            f"dataset.env: the observations of '{name}' are {shown(space)}, and rows of numbers are needed; name "
            "another environment"
        )


def _demand_limit(made: Any, name: str) -> None:
    """Refuse what may have an episode without end: a policy that does nothing wrong would be played for ever."""
    from gymnasium import Wrapper
    from gymnasium.wrappers import TimeLimit

    while isinstance(made, Wrapper):
        if isinstance(made, TimeLimit):
            return
        made = made.env
    raise DataError(
        f"dataset.env: '{name}' has no limit of steps, and an episode might never end; write "
        "`options: {max_episode_steps: 500}`"
    )


def _change(bare: Any, physics: Mapping[str, float]) -> None:
    """Give an environment other numbers; what CartPole reckons of them when it is made is reckoned again."""
    known = [name for name in dir(bare) if not name.startswith("_") and _can_be_changed(bare, name)]
    for name, value in physics.items():
        if name not in known:
            raise DataError(
                f"dataset.physics.{name}: the environment has no such number; {did_you_mean(name, known)}"
            )
        setattr(bare, name, value)
    if hasattr(bare, "polemass_length"):
        bare.total_mass = bare.masspole + bare.masscart
        bare.polemass_length = bare.masspole * bare.length


def _can_be_changed(bare: Any, name: str) -> bool:
    """Whether it is a number that is no other's consequence."""
    reckoned = isinstance(getattr(type(bare), name, None), property) or name in RECKONED
    value = None if reckoned else getattr(bare, name, None)
    return isinstance(value, int | float) and not isinstance(value, bool)


def seed_of(purpose: Purpose, *what: str | int) -> int:
    """The seed of an episode: what it is for decides the remainder, so that no two purposes share one."""
    kinds = len(PURPOSES)
    return derive(0, purpose, *what) % (MOST_SEED // kinds) * kinds + PURPOSES.index(purpose)


def begun(made: Any, seed: int) -> np.ndarray:
    """Begin an episode of a seed: what is observed first (F,) float32. Raises ``DataError`` where that fails."""
    try:
        seen, _ = made.reset(seed=seed)
        return _kept(seen)
    except Exception as error:  # see ``opened``
        raise _failed(made, error) from error


def stepped(made: Any, action: int) -> tuple[np.ndarray, float, bool, bool]:
    """Take an action, as the environment counts them: the observation (F,) float32 and the reward that follow.

    And whether the environment ended the episode, and whether a limit did. Raises ``DataError`` where the step fails,
    or its reward is not finite.
    """
    try:
        seen, reward, ended, cut, _ = made.step(action)
        found = _kept(seen), float(reward), bool(ended), bool(cut)
    except Exception as error:  # see ``opened``
        raise _failed(made, error) from error
    if not math.isfinite(found[1]):
        told = f"the environment '{made.spec.id}' gave a reward of {found[1]}"
        raise DataError(f"{told}, of which nothing can be learnt; mend it, or name another")
    return found


def _kept(seen: Any) -> np.ndarray:
    """A copy, for there are environments that hand out their own state, which changes."""
    return np.array(seen, np.float32)


def _failed(made: Any, error: Exception) -> DataError:
    raise_lack(error)
    told = f"{type(error).__name__}: {shown(error, 300)}"
    return DataError(
        f"the environment '{made.spec.id}' failed in an episode: {told}; mend it, or name another"
    )


def play(
    config: EnvironmentConfig, act: Act, seeds: Sequence[int], pause: Callable[[], None] = lambda: None
) -> list[Episode]:
    """An episode of each seed, all at once, so that a policy is asked about a batch; ``pause`` is called at each step.

    Gymnasium's own vectors of environments begin the next episode by themselves, and then only the first has a seed.
    """
    with ExitStack() as rooms:
        environments = [rooms.enter_context(closing(opened(config))) for _ in seeds]
        first = int(getattr(environments[0].action_space, "start", 0)) if environments else 0
        now = [begun(one, seed) for one, seed in zip(environments, seeds, strict=True)]
        tracks: list[list[tuple[np.ndarray, int, float]]] = [[] for _ in seeds]
        terminated = [False] * len(seeds)
        running = list(range(len(seeds)))
        while running:
            pause()
            chosen = act(np.stack([now[place] for place in running]), [seeds[place] for place in running])
            going = []
            for place, action in zip(running, chosen.tolist(), strict=True):
                seen, reward, ended, cut = stepped(environments[place], action + first)
                tracks[place].append((now[place], action, reward))
                now[place], terminated[place] = seen, ended
                if not (ended or cut):
                    going.append(place)
            running = going
    parts = [[np.array(part) for part in zip(*track, strict=True)] for track in tracks]
    return [
        Episode(seed, seen, actions, rewards, last, ended)
        for seed, (seen, actions, rewards), last, ended in zip(seeds, parts, now, terminated, strict=True)
    ]


def film(config: EnvironmentConfig, act: Act, seed: int, say: Callable[[str], None]) -> bytes | None:
    """An episode as a GIF, of evenly chosen pictures; None where the environment cannot be drawn, which is said."""
    made = opened(config)
    made.close()
    if PICTURES not in made.metadata.get("render_modes", ()):
        say(f"no episode of '{config.env}' is shown: it has no `{DRAWN}` '{PICTURES}'")
        return None
    [episode] = play(config, act, [seed])
    chosen = {*np.linspace(0, len(episode), min(FRAMES, len(episode) + 1)).round().astype(int).tolist()}
    frames = []
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pictures are wanted, and no window
    try:
        with closing(opened(config, render=True)) as made:
            made.reset(seed=seed)
            first = int(made.action_space.start)
            for step, action in enumerate([None, *episode.actions.tolist()]):
                if action is not None:
                    made.step(action + first)
                if step in chosen:
                    frames.append(_small(made.render()))
    except Exception as error:  # what an environment cannot draw, or lacks for it, it tells in any way
        say(f"no episode of '{config.env}' is shown: {type(error).__name__}: {shown(error, 200)}")
        return None
    return _as_gif(frames)


def in_turn(films: Sequence[bytes]) -> bytes:
    """Films as one, one after the other, smaller pictures made as large as the largest."""
    frames = [
        frame.convert("RGB") for one in films for frame in ImageSequence.Iterator(Image.open(io.BytesIO(one)))
    ]
    size = max(frame.width for frame in frames), max(frame.height for frame in frames)
    return _as_gif([_quantized(ImageOps.pad(frame, size, color="white")) for frame in frames])


def _as_gif(frames: Sequence[Image.Image]) -> bytes:
    file = io.BytesIO()
    times = {"duration": FRAME_MILLISECONDS, "loop": 0}
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], optimize=True, **times)
    return file.getvalue()


def _small(picture: np.ndarray) -> Image.Image:
    whole = Image.fromarray(picture)
    return _quantized(whole.reduce(max(1, round(whole.width / FRAME_WIDTH))))


def _quantized(picture: Image.Image) -> Image.Image:
    return picture.quantize(FRAME_COLOURS, Image.Quantize.FASTOCTREE)
