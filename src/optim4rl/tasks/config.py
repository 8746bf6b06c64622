"""Settings of tasks as plain values, and the words in them; nothing here needs JAX."""

from dataclasses import dataclass
from typing import Literal

from optim4rl.fields import COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, POSITIVE, SHARE, check_fields

TimeLimit = Literal["terminal", "bootstrap"]
MapOrder = Literal["channels", "rows"]
TorsoKind = Literal["dense", "conv", "mlp"]
Activation = Literal["relu", "swish", "tanh"]
Initialisation = Literal["lecun", "orthogonal"]

# Ranges of the settings that both learners have.
_BOTH = {
    "rollout": COUNT,
    "gamma": SHARE,
    "lam": SHARE,
    "value_weight": NOT_NEGATIVE,
    "entropy_weight": NOT_NEGATIVE,
    "reward_scale": POSITIVE,
}


@dataclass(frozen=True)
class A2CConfig:
    """Settings of the inner learner.

    Attributes:
        rollout: environment steps T between updates, in each environment.
        gamma: discount factor.
        lam: lambda of the TD(lambda) errors.
        value_weight: weight of the values' squared error in the loss.
        entropy_weight: weight of the policy's entropy.
        reward_scale: multiplies rewards before learning, but not the reported returns.
    """

    rollout: int = 20
    gamma: float = 0.995
    lam: float = 0.95
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    reward_scale: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, **_BOTH)


@dataclass(frozen=True)
class PPOConfig:
    """Settings of the inner learner.

    Attributes:
        rollout: environment steps T of a rollout, in each environment.
        epochs: passes over the whole rollout.
        minibatches: updates of an epoch; their number must divide the samples of a rollout.
        gamma: discount factor.
        lam: lambda of the generalised advantage estimates and of the values' targets.
        clip: limit of the ratio of probabilities, 1 - clip to 1 + clip.
        value_weight: weight of the values' squared error in the loss.
        entropy_weight: weight of the policy's entropy.
        normalise_advantages: whether advantages have mean 0 and deviation 1 in each minibatch.
        reward_scale: multiplies rewards before learning, but not the reported returns.
        value_clip: limit of a value's change since the rollout, beyond which its squared error does
            not fall; None: no limit.
    """

    rollout: int = 32
    epochs: int = 4
    minibatches: int = 4
    gamma: float = 0.99
    lam: float = 0.95
    clip: float = 0.2
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    normalise_advantages: bool = True
    reward_scale: float = 1.0
    value_clip: float | None = None

    def __post_init__(self) -> None:
        own = {"epochs": COUNT, "minibatches": COUNT, "clip": POSITIVE, "value_clip": POSITIVE}
        check_fields(self, **_BOTH, **own)


@dataclass(frozen=True)
class TaskConfig:
    """A task by name, with all its settings as plain values.

    Attributes:
        environment: a name from `environment_names()`, "gymnax:NAME", or another that
            `make_environment` knows.
        num_envs: environments that one agent learns from at once.
        torso: "dense": policy and value share a dense layer. "conv": they share a convolution and a
            dense layer. "mlp": each has its own layers.
        width: units of the shared dense layer. With several values every fresh agent draws one.
            Arrays have the largest size, and units beyond the agent's width are masked out. So one
            program serves all agents.
        maps: order of the observation's maps in a convolution; "rows" is the paper's release.
        learner: the inner learner's settings: A2C or PPO.
        normalise_rewards: each agent divides its rewards by a running scale of its returns;
            reported returns are not scaled.
        normalise_observations: each agent scales its observations to mean 0 and variance 1, with
            statistics of its earlier rollouts.
        policy_layers: units of the policy's hidden layers in an "mlp"; the default is Brax's.
        value_layers: units of the value's hidden layers in an "mlp"; the default is the paper's.
        activation: activation between the layers of an "mlp".
        time_limit: the kind of state after a step that hits the time limit. "bootstrap": a state
            whose value counts. "terminal": a terminal state. None: the environment's own
            `time_limit`, or else "bootstrap".
        initialisation: initialisation of an "mlp": "lecun", or "orthogonal" as in PPO's first
            implementation (see `networks.make_mlps`).
        greedy_episodes: episodes that a finished agent plays, always with its most probable action;
            evaluation reports their mean return. 0: none.
    """

    environment: str = "catch"
    num_envs: int = 64
    torso: TorsoKind = "dense"
    width: int | tuple[int, ...] = 256
    maps: MapOrder = "channels"
    learner: A2CConfig | PPOConfig = A2CConfig()
    normalise_rewards: bool = False
    normalise_observations: bool = False
    policy_layers: tuple[int, ...] = (32, 32, 32, 32)
    value_layers: tuple[int, ...] = (64, 64, 64, 64, 64)
    activation: Activation = "swish"
    time_limit: TimeLimit | None = None
    initialisation: Initialisation = "lecun"
    greedy_episodes: int = 0

    def __post_init__(self) -> None:
        check_fields(
            self,
            num_envs=COUNT,
            width=COUNT,
            policy_layers=COUNT,
            value_layers=COUNT,
            greedy_episodes=COUNT_OR_ZERO,
        )
        if self.initialisation != "lecun" and self.torso != "mlp":
            raise ValueError(
                f"initialisation = {self.initialisation!r}: this is for torso 'mlp', and torso is "
                f"{self.torso!r}"
            )
        if not self.widths:
            raise ValueError(
                f"width = {self.width!r}: a whole number of at least 1 is needed, or several"
            )
        samples = self.num_envs * self.learner.rollout
        if isinstance(self.learner, PPOConfig) and samples % self.learner.minibatches:
            raise ValueError(
                f"minibatches = {self.learner.minibatches}: a divisor of num_envs x rollout = "
                f"{self.num_envs} x {self.learner.rollout} is needed"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the possible widths of agents."""
        return self.width if isinstance(self.width, tuple) else (self.width,)
