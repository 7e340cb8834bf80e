"""Agents: networks that learn by reinforcement, in an environment and from no sample; stable-baselines3 trains them."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from kdrun.contracts import ModelConfig
from kdrun.errors import Mismatch, shown
from kdrun.models.archives import Facts, class_named
from kdrun.models.simple import MLP, Width
from kdrun.schedules import Constant, Cosine, Linear
from kdrun.schema import kind_alone

Fall = Annotated[Constant | Linear | Cosine, Field(discriminator="kind"), BeforeValidator(kind_alone)]
"""How a number changes over a training, by the share of the steps that is behind."""
OWN = {
    "kind",
    "initial_weights",
    "hidden",
    "activation",
    "steps",
    "looks",
    "look_episodes",
    "n_envs",
    "physics",
}
"""Options that stable-baselines3 is told in another way, or not at all; all others it calls by the same names."""
SCHEDULE = "_schedule"
"""What the option ends in that says how another one changes."""
EXTRACTOR = "features_extractor."
"""Part of the names of weights that lie before the fully connected layers of a policy."""


class PolicyConfig(ModelConfig):
    """Options of every agent; those of the training are called as stable-baselines3 calls them."""

    hidden: list[Width] = [64, 64]
    """widths of the hidden layers (net_arch); of PPO a second network of the same widths learns the values"""
    steps: int = Field(default=100_000, ge=1)
    """steps in the environment, of all its copies together (total_timesteps); a round that is begun is finished"""
    looks: int = Field(default=20, ge=0)
    """how often, evenly over the training, it plays validation episodes, of seeds that are no test's; the weights that
    came to the highest mean return are kept, of equal ones the last (EvalCallback keeps the first); 0 for those
    of the end"""
    look_episodes: int = Field(default=50, ge=1)
    """how many episodes it plays at each look"""
    learning_rate_schedule: Fall = Constant(kind="constant")
    """how the learning rate falls with the steps: constant, linear or cosine"""
    gamma: float = Field(default=0.99, gt=0, le=1)
    """the discount of a reward for each step that it comes later"""
    physics: dict[str, float] | None = None
    """numbers of the environment that it learns in, where that is to be another than its students': `{}` as usual,
    `{length: 1.0}`. It is scored in theirs"""

    @model_validator(mode="after")
    def _starts_from_nothing(self) -> Self:
        if self.initial_weights is not None:
            raise ValueError(
                "learns from rewards and starts from no weights; remove `initial_weights`, or read a finished agent by "
                "the teacher's `weights`"
            )
        return self

    @property
    def copies(self) -> int:
        """Of the environment, that it acts in at once."""
        return 1

    @property
    @abstractmethod
    def round(self) -> int:
        """Steps of all copies between two times that it learns."""

    @property
    def all_steps(self) -> int:
        """The steps of all rounds."""
        return -(-self.steps // self.round) * self.round

    @property
    @abstractmethod
    def experiences(self) -> int:
        """The most steps that it remembers at once."""

    def options(self) -> dict[str, Any]:
        """What its algorithm in stable-baselines3 is made with, but for the network, the environment and the seed."""
        found = {}
        for name in type(self).model_fields:
            if name not in OWN and not name.endswith(SCHEDULE):
                value, schedule = getattr(self, name), getattr(self, name + SCHEDULE, None)
                found[name] = value if schedule is None else falling(value, schedule)
        return found


def falling(most: float, schedule: Constant | Linear | Cosine) -> float | Callable[[float], float]:
    """A number as stable-baselines3 wants it: as it is, or as a function of the share of the steps that is left."""
    if isinstance(schedule, Constant):
        return most
    return lambda left: most * schedule.factor(1 - left, 1)


class Policy(MLP):
    """A network that chooses actions: fully connected layers, whose largest output is the action.

    Layers are called as those of an `mlp`, and so can be tapped: ``body.0``, ``body.1``, … give the hidden vectors
    (B, D) and are the stages.
    """

    reinforced = True

    ALGORITHM: ClassVar[str]
    """What stable-baselines3 calls it."""
    CHOOSING: ClassVar[str]
    """A pattern of the names, in its policies there, of the layers that choose: ``number`` is their order, if any."""
    FURTHER: ClassVar[str]
    """A pattern of the names of those that serve the training alone."""
    ACTIVATION: ClassVar[str]
    """The one that is used there where nothing is said."""

    def __init__(self, config: Any, shape: tuple[int, ...], classes: int) -> None:
        if len(shape) != 1:
            size = "×".join(map(str, shape))
            raise Mismatch(
                f"'{config.kind}' reads rows of numbers, and these inputs are {size}",
                "choose a view of such rows",
                "kind",
            )
        layers = MLP.Config(kind="mlp", hidden=config.hidden, activation=config.activation)
        super().__init__(layers, shape, classes)
        self.inputs, self.classes, self.activation = shape[0], classes, config.activation
        self.config: PolicyConfig = config

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of a policy of stable-baselines3 → this model's; one of kdrun's own stays as it is.

        Raises ``Mismatch`` where it is none of this algorithm's, or of other sizes.
        """
        kinds = [kind for kind in Policy.__subclasses__() if any(map(kind.chooses, state))]
        if not kinds:
            return dict(state)
        if not isinstance(self, kinds[0]):
            found = kinds[0].ALGORITHM
            raise Mismatch(f"holds a policy of {found}", f"write `kind: {found.lower()}`")
        layers = self._layers(state)
        self._demand_sizes([weight for weight, _ in layers])
        names = [*(f"{stage}.0" for stage in self.stages), self.head]
        return {
            f"{name}.{part}": value
            for name, layer in zip(names, layers, strict=True)
            for part, value in zip(("weight", "bias"), layer, strict=True)
        }

    @classmethod
    def chooses(cls, name: str) -> bool:
        """Whether an entry of a policy's state is one of a layer that chooses."""
        return re.fullmatch(cls.CHOOSING, name) is not None

    def _layers(self, state: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Weights (D, K) and biases (D,) of the layers that choose, from the first to the last."""
        found: dict[float, dict[str, Tensor]] = {}
        for name, value in state.items():
            own = re.fullmatch(self.CHOOSING, name)
            if own is not None:
                place = float(own["number"] or "inf")
                found.setdefault(place, {})[own["part"]] = value
            elif re.match(self.FURTHER, name) is None or EXTRACTOR in name:
                raise _no_rows(name)
        layers = [found[place] for place in sorted(found)]
        for layer in layers:
            if layer.keys() != {"weight", "bias"} or layer["weight"].ndim != 2 or layer["bias"].ndim != 1:
                raise Mismatch("holds a policy whose layers are not whole", "save it anew")
        return [(layer["weight"], layer["bias"]) for layer in layers]

    def _demand_sizes(self, weights: list[Tensor]) -> None:
        """Raise ``Mismatch`` where the weights (D, K) are not of this model's sizes."""
        inputs, actions = weights[0].shape[1], weights[-1].shape[0]
        hidden = [len(weight) for weight in weights[:-1]]
        if (inputs, actions) != (self.inputs, self.classes):
            raise Mismatch(
                f"holds a policy of {inputs} observed numbers and {actions} actions, and the environment has "
                f"{self.inputs} and {self.classes}",
                "write an agent that was trained in this environment",
            )
        if hidden != self.config.hidden:
            raise Mismatch(
                f"holds a policy with the hidden layers {hidden}, and the config says {self.config.hidden}",
                f"write `hidden: {hidden}`",
            )

    @staticmethod
    @abstractmethod
    def theirs(policy: Any, x: Tensor) -> Tensor:
        """What a policy of stable-baselines3 says of inputs (B, F) where this model gives its outputs (B, A)."""

    def demand_described(self, facts: Facts) -> None:
        """Raise ``Mismatch`` where what an archive says of an agent shows that its weights alone do not make it up."""
        written = facts.get("policy_kwargs")
        policy = written if isinstance(written, dict) else {}
        if (extractor := policy.get("features_extractor_class")) is not None:
            raise _no_rows(class_named(extractor))
        activation = class_named(policy.get("activation_fn", self.ACTIVATION)).lower()
        if activation != self.activation:
            raise Mismatch(
                f"holds a policy with the activation {shown(activation)}",
                f"write `activation: {activation}`"
                if activation in ("relu", "tanh")
                else "kdrun's agents have relu, or tanh",
            )


def _no_rows(what: str) -> Mismatch:
    return Mismatch(
        f"holds a policy with '{shown(what)}', which is more than fully connected layers from a row of numbers to "
        "one of several actions",
        "write an agent with an MlpPolicy",
    )


class DQN(Policy):
    """A deep Q-network, the agent of a teacher: its outputs are the values of the actions. Needs `kdrun[rl]` to train.

    Mnih et al., "Human-level control through deep reinforcement learning", 2015; trained by stable-baselines3, whose
    own defaults hold where nothing is said. By the teacher's `weights` it is also read from an archive of
    stable-baselines3, or from a `.pt` of `model.policy.state_dict()`.
    """

    class Config(PolicyConfig):
        """Options of `dqn`."""

        kind: Literal["dqn"]
        activation: Literal["relu", "tanh"] = "relu"
        """the non-linearity after each hidden layer (activation_fn)"""
        learning_rate: float = Field(default=1e-4, gt=0)
        """Adam's, at its highest"""
        batch_size: int = Field(default=32, ge=2)
        """samples of each gradient step"""
        buffer_size: int = Field(default=1_000_000, ge=1)
        """the last steps that are remembered, of which samples are drawn"""
        learning_starts: int = Field(default=100, ge=0)
        """steps of random actions before it learns"""
        tau: float = Field(default=1.0, gt=0, le=1)
        """share of the network that goes into the target network at each update of that"""
        n_steps: int = Field(default=1, ge=1)
        """rewards that are added up before the value of what comes after them is; more are heard of sooner"""
        train_freq: int = Field(default=4, ge=1)
        """steps between two times that it learns"""
        gradient_steps: int = Field(default=1, ge=-1)
        """gradient steps each time that it learns; -1 for as many as steps in the environment"""
        target_update_interval: int = Field(default=10_000, ge=1)
        """steps between two updates of the target network"""
        exploration_fraction: float = Field(default=0.1, gt=0, le=1)
        """share of the steps in which random actions become rarer"""
        exploration_initial_eps: float = Field(default=1.0, ge=0, le=1)
        """share of random actions at the beginning"""
        exploration_final_eps: float = Field(default=0.05, ge=0, le=1)
        """share of random actions after that"""
        max_grad_norm: float = Field(default=10.0, gt=0)
        """the largest norm of a gradient; larger ones are scaled down to it"""

        @model_validator(mode="after")
        def _learns(self) -> Self:
            if self.gradient_steps == 0:
                raise ValueError("of 0 'gradient_steps' nothing is learnt; write 1 or more, or -1")
            if self.learning_starts >= self.steps:
                raise ValueError("'learning_starts' is not below 'steps'; write more steps")
            return self

        @property
        def round(self) -> int:
            """Steps between two times that it learns."""
            return self.train_freq

        @property
        def experiences(self) -> int:
            """Those of its buffer."""
            return min(self.buffer_size, self.all_steps)

    ALGORITHM, ACTIVATION = "DQN", "relu"
    CHOOSING = r"q_net\.q_net\.(?P<number>\d+)\.(?P<part>weight|bias)"
    FURTHER = r"q_net_target\."

    @staticmethod
    def theirs(policy: Any, x: Tensor) -> Tensor:
        """The values of the actions."""
        values: Tensor = policy.q_net(x)
        return values


class PPO(Policy):
    """An agent of a teacher by proximal policy optimization: its outputs are logits. Needs `kdrun[rl]` to train.

    Schulman, Wolski, Dhariwal, Radford, Klimov, "Proximal Policy Optimization Algorithms", 2017; trained by
    stable-baselines3, whose own defaults hold where nothing is said. By the teacher's `weights` it is also read from an
    archive of stable-baselines3, or from a `.pt` of `model.policy.state_dict()`; those of A2C are alike.
    """

    class Config(PolicyConfig):
        """Options of `ppo`."""

        kind: Literal["ppo"]
        activation: Literal["relu", "tanh"] = "tanh"
        """the non-linearity after each hidden layer (activation_fn)"""
        learning_rate: float = Field(default=3e-4, gt=0)
        """Adam's, at its highest"""
        n_envs: int = Field(default=1, ge=1)
        """copies of the environment that it acts in at once"""
        n_steps: int = Field(default=2048, ge=1)
        """steps in each copy between two times that it learns"""
        batch_size: int = Field(default=64, ge=2)
        """samples of each gradient step"""
        n_epochs: int = Field(default=10, ge=1)
        """how often it goes over the samples each time that it learns"""
        gae_lambda: float = Field(default=0.95, ge=0, le=1)
        """λ of the generalized advantage estimate"""
        clip_range: float = Field(default=0.2, gt=0)
        """how far the ratio of new to old probabilities may be from 1, at its highest"""
        clip_range_schedule: Fall = Constant(kind="constant")
        """how that falls with the steps: constant, linear or cosine"""
        ent_coef: float = Field(default=0.0, ge=0)
        """what the entropy of the actions counts"""
        vf_coef: float = Field(default=0.5, ge=0)
        """what the error of the values counts"""
        max_grad_norm: float = Field(default=0.5, gt=0)
        """the largest norm of a gradient; larger ones are scaled down to it"""

        @model_validator(mode="after")
        def _whole_batches(self) -> Self:
            if self.round % self.batch_size:
                raise ValueError(
                    f"n_envs x n_steps = {self.round} steps are no whole number of batches of {self.batch_size}; write "
                    "a 'batch_size' that divides them"
                )
            return self

        @property
        def copies(self) -> int:
            """Of the environment."""
            return self.n_envs

        @property
        def round(self) -> int:
            """Steps of all copies between two times that it learns."""
            return self.n_envs * self.n_steps

        @property
        def experiences(self) -> int:
            """Those of a round."""
            return self.round

    ALGORITHM, ACTIVATION = "PPO", "tanh"
    CHOOSING = r"(mlp_extractor\.policy_net\.(?P<number>\d+)|action_net)\.(?P<part>weight|bias)"
    FURTHER = r"(mlp_extractor\.value_net|value_net)\."

    @staticmethod
    def theirs(policy: Any, x: Tensor) -> Tensor:
        """The logits of the actions."""
        logits: Tensor = policy.action_net(policy.mlp_extractor.forward_actor(x))
        return logits

    def demand_described(self, facts: Facts) -> None:
        """Raise ``Mismatch`` also where the agent saw observations by figures that the archive does not hold."""
        super().demand_described(facts)
        if facts.get("_last_original_obs") is not None and self.lens is None:
            raise Mismatch(
                "holds an agent that saw observations as VecNormalize makes them, by figures that are in a file of "
                "their own",
                "write them as the teacher's `normalization: {mean: [...], std: [...]}`: obs_rms.mean and "
                "obs_rms.var ** 0.5 (0 and 1 where rewards alone were normalised)",
            )
