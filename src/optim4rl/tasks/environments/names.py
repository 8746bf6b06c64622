"""The names of environments; nothing here needs JAX or the environments' packages."""

import sys

from optim4rl.tasks.environments.worlds import GRID_WORLDS

# The bodies of the paper and of common benchmarks, all in Brax itself.
BRAX = ("ant", "halfcheetah", "hopper", "humanoid", "inverted_double_pendulum", "walker2d")

# MuJoCo Playground's version of the DeepMind control suite, which needs no download.
PLAYGROUND = (
    *("AcrobotSwingup", "AcrobotSwingupSparse", "BallInCup", "CartpoleBalance"),
    *("CartpoleBalanceSparse", "CartpoleSwingup", "CartpoleSwingupSparse", "CheetahRun"),
    *("FingerSpin", "FingerTurnEasy", "FingerTurnHard", "FishSwim", "HopperHop", "HopperStand"),
    *("HumanoidRun", "HumanoidStand", "HumanoidWalk", "PendulumSwingup", "PointMass"),
    *("ReacherEasy", "ReacherHard", "SwimmerSwimmer6", "WalkerRun", "WalkerStand", "WalkerWalk"),
)

# gymnax's own. Once gymnax is imported, its registry replaces this list: users register more.
GYMNAX = (
    "CartPole-v1",
    "Pendulum-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "Catch-bsuite",
    "DeepSea-bsuite",
    "MemoryChain-bsuite",
    "UmbrellaChain-bsuite",
    "DiscountingChain-bsuite",
    "MNISTBandit-bsuite",
    "SimpleBandit-bsuite",
    "FourRooms-misc",
    "MetaMaze-misc",
    "PointRobot-misc",
    "BernoulliBandit-misc",
    "GaussianBandit-misc",
    "Reacher-misc",
    "Swimmer-misc",
    "Pong-misc",
    "FrozenLake-misc",
)


def environment_names() -> tuple[str, ...]:
    """List the built-in environments; `make_environment` also takes names of other packages."""
    return ("catch", *GRID_WORLDS)


def package_names() -> tuple[str, ...]:
    """List the environments of other packages, such as "gymnax:CartPole-v1" and "brax:ant"."""
    of_gymnax = getattr(sys.modules.get("gymnax"), "registered_envs", GYMNAX)
    packages = {"gymnax": of_gymnax, "brax": BRAX, "playground": PLAYGROUND}
    return tuple(f"{package}:{name}" for package, names in packages.items() for name in names)
