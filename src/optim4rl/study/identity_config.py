"""Sizes and settings of the identity experiment."""

from dataclasses import dataclass

from optim4rl.fields import COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, check_fields
from optim4rl.optimizers.processing import PROCESSINGS

# The two factors crossed, so that they are not confounded, and the symmetric log with two outputs.
NETWORKS: tuple[tuple[str, str], ...] = (
    ("raw", "linear"),
    ("raw", "sign_exp"),
    ("sign_log", "linear"),
    ("sign_log", "sign_exp"),
    ("symlog", "sign_exp"),
    ("symlog", "symexp"),
)
# Forms of a network's output.
OUTPUTS = ("linear", "sign_exp", "symexp")
# Networks with fewer features get zeros up to this many, so that one program serves all.
FEATURES = 2


@dataclass(frozen=True)
class IdentityConfig:
    """Sizes and settings of the experiment.

    Attributes:
        updates: number of the agent's updates whose gradients are recorded.
        every: stride of the recorded parameters; the paper's is 100.
        max_coordinates: at most this many coordinates are kept, drawn at random.
        passes: number of passes over all recorded updates, each from a zero state.
        seeds: seeds of the networks' weights; all share one recording.
        learning_rates: Adam's learning rates for the networks; the best is reported.
        adam_epsilon: Adam's epsilon for the networks. Many gradients of the squared error are
            smaller than optax's default of 1e-8, with which Adam would not be scale-free here.
        recording_learning_rate: RMSProp's learning rate for the agent and the supervised network.
        window: steps of truncated back-propagation; windows pass the state on.
        hidden_size: units of the LSTM.
        head_sizes: hidden layers of the MLP.
        networks: the (input, output) pairs to compare.
        seed: seed of all random numbers in the experiment; each further recording, with its
            networks, has the next seed.
        recordings: number of agents whose gradients are recorded, each with networks of its own.
        num_envs: environments of the agent whose gradients are recorded; None: the task's own.

    Raises:
        ValueError: a size is not a positive whole number, a grid is empty, a learning rate is
            negative or not finite, a network is unknown.
    """

    updates: int
    every: int
    max_coordinates: int
    passes: int
    seeds: int
    learning_rates: tuple[float, ...] = (3e-3, 1e-3, 3e-4, 1e-4)
    adam_epsilon: float = 1e-16
    recording_learning_rate: float = 3e-3
    window: int = 5
    hidden_size: int = 8
    head_sizes: tuple[int, ...] = (16, 16)
    networks: tuple[tuple[str, str], ...] = NETWORKS
    seed: int = 0
    recordings: int = 1
    num_envs: int | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            updates=COUNT,
            every=COUNT,
            max_coordinates=COUNT,
            passes=COUNT,
            seeds=COUNT,
            learning_rates=NOT_NEGATIVE,
            adam_epsilon=NOT_NEGATIVE,
            recording_learning_rate=NOT_NEGATIVE,
            window=COUNT,
            hidden_size=COUNT,
            head_sizes=COUNT,
            seed=COUNT_OR_ZERO,
            recordings=COUNT,
            num_envs=COUNT,
        )
        for field in ("learning_rates", "networks"):
            if not getattr(self, field):
                raise ValueError(f"{field} = {getattr(self, field)!r}: at least one is needed")
        if self.max_coordinates < 4:
            raise ValueError(f"max_coordinates = {self.max_coordinates!r}: at least 4 are needed")
        for source, form in self.networks:
            if source not in PROCESSINGS or PROCESSINGS[source].first_features > FEATURES:
                raise ValueError(f"networks: unknown input {source!r}")
            if form not in OUTPUTS:
                raise ValueError(f"networks: unknown output {form!r}; known: {', '.join(OUTPUTS)}")


# Seconds; shows only that everything runs.
SMOKE = IdentityConfig(
    updates=20, every=25, max_coordinates=16, passes=2, seeds=1, learning_rates=(1e-2,)
)
# Half a minute of one core. So few updates need a larger learning rate than the paper's grid has.
# Even then, the networks with a sign_exp output are still learning at the end.
QUICK = IdentityConfig(
    updates=400, every=25, max_coordinates=100, passes=40, seeds=2, learning_rates=(1e-2, 1e-3)
)
# The paper's 3e7 environment steps, in updates of 512 environments x 20 steps. One
# recording decides nothing: recordings differ in which network is ahead.
PAPER = IdentityConfig(
    updates=2930, every=100, max_coordinates=1000, passes=10, seeds=5, recordings=4, num_envs=512
)
