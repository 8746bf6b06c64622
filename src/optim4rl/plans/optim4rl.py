"""The components and metrics of this project's own method, Optim4RL."""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from optim4rl.plans.components import Catalogue, Choice, Component, Metric, Value

COMPONENTS: Final = (
    Component(
        key="structure",
        reference="adaptive",
        study="adaptive",
        phrases=(
            "optimizer structure; optimizer architecture; structure of optimizer; adaptive "
            "structure; update structure; update rule; update function; parameter update; "
            "inductive bias; adaptive inductive bias"
        ),
        description=(
            "The update divides a learned first moment by the root of a learned second one, "
            "Δθ = -α·m/√v, as Adam and RMSProp do."
        ),
        choices=(
            Choice(
                "adaptive",
                "adaptive; adaptive optimizer; adam like; rmsprop like",
                "Δθ = -α·m/√v with learned m and v: the published structure.",
            ),
            Choice(
                "linear",
                "linear; linear update; linear optimizer; linearoptim; affine",
                "LinearOptim: Δθ = -α·(exp(o₁)·g + exp(o₂)·o₃), linear in the gradient.",
            ),
            Choice(
                "non_adaptive",
                "non adaptive; no division; no second moment; no normalization; "
                "first moment only; momentum only",
                "Δθ = -α·m: no division by √v; the rest is unchanged.",
            ),
            Choice(
                "l2l",
                "l2l; l2lgd2; andrychowicz; learning to learn; learning to learn l2l",
                "L2LGD² (Andrychowicz et al. 2016): Δθ = -α·exp(o)·g, only a learned step size.",
            ),
            Choice(
                "anchored",
                "anchored; adam anchored; anchored adam; anchored at adam; residual adam",
                "A learned correction around Adam: untrained, the update is exactly Adam's.",
            ),
            Choice(
                "mirrored",
                "mirrored; odd; mirrored anchored; sign symmetric; sign equivariant",
                "Anchored, without signed inputs: mirrored gradients make mirrored updates.",
            ),
            Choice(
                "modulated",
                "modulated; learned gains; tensor gains; gain of each tensor",
                "Muon's step of one size in every tensor, times a learned gain of the tensor.",
            ),
            Choice(
                "celo2",
                "celo2; adafactor feature",
                "Celo2 (Moudgil et al. 2026): Δθ = -α·o, read from a tensor's scaled moments.",
            ),
            Choice(
                "star",
                "star; nominal term",
                "STAR (Harrison et al. 2022): a nominal Adam-like term, a learned one, decay.",
            ),
            Choice(
                "open",
                "open optimizer; goldie",
                "OPEN (Goldie et al. 2024): momenta of six time scales, noise in the actor.",
            ),
        ),
        defaults=("linear", "non_adaptive"),
        remove="non_adaptive",
        add="non_adaptive",
    ),
    Component(
        key="processing",
        reference="sign_log",
        study="sign_log",
        phrases=(
            "gradient processing; processing of gradient; agent gradient processing; processing of "
            "agent gradient; gradient transformation; transformation of gradient; gradient "
            "processing transformation; input processing; input transformation"
        ),
        description=(
            "The networks read the sign and the logarithm of the size of a gradient, "
            "[sgn g, log(|g| + ε)], instead of g."
        ),
        choices=(
            Choice(
                "sign_log",
                "sign log; sign and log; log and sign; current log; original log",
                "Input [sgn g, log(|g| + ε)]: the published processing.",
            ),
            Choice(
                "raw",
                "raw; raw gradient; raw gradient input; original gradient; unprocessed gradient; "
                "untransformed gradient; identity; identity transformation; identity mapping; "
                "no transformation; no processing",
                "Input g without any transformation; the output is linear.",
            ),
            Choice(
                "symlog",
                "symlog; symmetric log; signed log; alternative log; different log; "
                "alternative log scale; different log scale; log1p",
                "Input sgn(g)·log(1 + |g|/c): another logarithmic scale, linear around zero.",
            ),
            Choice(
                "raw_and_square",
                "raw and square; raw and squared gradient; gradient and squared gradient; "
                "version b; version b input",
                "Inputs g and g², as in the later release of the method.",
            ),
            Choice(
                "andrychowicz",
                "andrychowicz; processing of andrychowicz; l2l processing; l2lgd2; l2l; "
                "l2l transformation",
                "Input (log|g|/p, sgn g), or (-1, exp(p)·g) for tiny g (Andrychowicz 2016).",
            ),
        ),
        defaults=("raw", "symlog"),
        remove="raw",
        add="raw",
    ),
    Component(
        key="resets",
        reference="staggered",
        study="staggered",
        phrases=(
            "pipeline training; agent reset; reset of agent; reset schedule; reset interval; "
            "periodic reset; staggered reset"
        ),
        description=(
            "Pipeline training re-initialises the agents at evenly spaced times, so that the "
            "optimizer always learns from agents of all ages."
        ),
        choices=(
            Choice(
                "staggered",
                "staggered; staggered reset; evenly spaced; evenly spaced reset",
                "Every agent has its own evenly spaced reset time: the published schedule.",
            ),
            Choice(
                "never",
                "never; never reset; no reset; no pipeline; start at once; all at once; "
                "all agent start at once; standard training; vanilla training; "
                "conventional training",
                "All agents start at once and are never reset.",
            ),
            Choice(
                "synchronous",
                "synchronous; synchronous reset; synchronized reset; simultaneous reset; "
                "reset all agent together",
                "All agents are reset together, so all have the same age.",
            ),
            Choice(
                "random",
                "random reset; random interval; random reset interval; stochastic reset",
                "Agents are reset at random times instead of evenly spaced ones.",
            ),
        ),
        defaults=("never",),
        remove="never",
        add="never",
    ),
    Component(
        key="cell",
        reference="gru",
        study="gru",
        phrases=(
            "gru; gru cell; recurrent cell; recurrent unit; recurrent network; recurrent neural "
            "network; recurrent architecture; gated recurrent unit; rnn cell; rnn architecture"
        ),
        description="A gated recurrent unit (GRU) keeps the memory of each agent parameter.",
        choices=(
            Choice("gru", "gru; gru cell; gated recurrent unit", "The published cell."),
            Choice(
                "lstm",
                "lstm; lstm cell; long short term memory",
                "A long short-term memory cell (LSTM) of the same hidden size.",
            ),
            Choice(
                "none",
                "no cell; mlp; feed forward; without memory",
                "No cell: the head reads the features, and no hidden state is kept.",
            ),
        ),
        defaults=("lstm",),
    ),
    Component(
        key="validation",
        study="dense",
        phrases=(
            "validation rollout; dense validation; meta loss; meta objective; outer loss; "
            "outer objective"
        ),
        description=(
            "The meta-loss is the agent's loss on fresh rollouts, at the end of a window of inner "
            "updates or after each of them."
        ),
        choices=(
            Choice(
                "last",
                "last; last rollout; final rollout; single validation rollout",
                "One validation rollout after the window's last update: the published objective.",
            ),
            Choice(
                "dense",
                "dense; dense validation; every rollout; every step; per step validation",
                "Each later rollout of the window also validates the updates before it.",
            ),
        ),
        defaults=("last", "dense"),
        remove="last",
        add="last",
    ),
    Component(
        key="environments",
        study="many",
        phrases=(
            "environments per agent; number of environments; environment count; "
            "parallel environments; batch of environments; agent population"
        ),
        description=(
            "In meta-training every agent learns from as many environments as in evaluation, or "
            "from a single one, whose gradients are noisier."
        ),
        choices=(
            Choice(
                "many",
                "many environments per agent; many environments; few agents",
                "A few agents, each with many environments.",
            ),
            Choice(
                "one",
                "one environment per agent; one environment; single environment; "
                "single environment per agent; many agents",
                "One environment for each agent and as many more agents: as published.",
            ),
        ),
        defaults=("one", "many"),
        remove="one",
        add="one",
    ),
    Component(
        key="width",
        study="narrow",
        phrases="agent width; width; network width; agent network; agent network width",
        description=(
            "The agents of meta-training may have another width of their dense layer than the "
            "agents of the evaluation."
        ),
        choices=(
            Choice(
                "narrow",
                "narrow; narrow agent; narrow network; small network",
                "Narrower agents than in evaluation, which are cheaper.",
            ),
            Choice(
                "full",
                "full width; full; wide; wide network; evaluation width",
                "Agents as wide as in evaluation: as published.",
            ),
        ),
        defaults=("full", "narrow"),
    ),
    Component(
        key="life",
        study="whole",
        phrases="life length; lifetime; life; lifespan; life span",
        description=(
            "How long an agent lives before its reset decides which ages the optimizer has seen: "
            "its whole learning, or only the beginning."
        ),
        choices=(
            Choice(
                "whole",
                "whole; whole life; long life; whole lifetime; long lifetime",
                "A life as long as a run of the evaluation.",
            ),
            Choice(
                "short",
                "short; short life; shorter life; short lifetime; shorter lifetime",
                "An eighth of a whole life, so that the optimizer never meets old agents.",
            ),
        ),
        defaults=("short", "whole"),
    ),
)

METRICS: Final = (
    Metric(
        "return",
        (
            "return; reward; performance; score; cumulative reward; cumulative return; average "
            "return; average reward; mean return; mean reward; episode return; episode reward; "
            "episodic return; episodic reward; total return; total reward; final return; final "
            "performance; sample efficiency; data efficiency; learning efficiency; learning curve; "
            "learning speed; auc; area under curve; area under learning curve"
        ),
        "Final return, and the area under the learning curve, which also shows learning speed.",
    ),
    Metric(
        "stability",
        (
            "stability; training stability; learning stability; performance stability; return "
            "stability; convergence; convergence speed; convergence rate; variance; return "
            "variance; reward variance; performance variance; variance of return; variance of "
            "reward; variance of performance; robustness; reliability; divergence; divergence "
            "rate; failure rate; stuck rate"
        ),
        "Dispersion and risk of learning curves (Chan et al. 2020), failure rate and stuck rate.",
        reported=False,
    ),
    Metric(
        "identity",
        (
            "identity function; identity function approximation; approximation of identity "
            "function; identity approximation; rnn accuracy; accuracy of rnn; rnn approximation; "
            "rnn approximation accuracy; identity function accuracy"
        ),
        "How well a recurrent network approximates the identity on recorded agent-gradients.",
        reported=False,
    ),
)


def touched_weights(field: str, value: Value) -> tuple[int, int]:
    """Return how many weights of a rule differ under a choice, and how many there are."""
    reference = {c.field: c.study for c in COMPONENTS}
    old, new = (
        _weights(rule["structure"], rule["processing"], rule["cell"])
        for rule in (reference, {**reference, field: value})
    )
    sizes = {
        name: max(math.prod(old.get(name, (0,))), math.prod(new.get(name, (0,))))
        for name in {**old, **new}
    }
    touched = sum(size for name, size in sizes.items() if old.get(name) != new.get(name))
    return touched, sum(sizes.values())


@cache
def _weights(structure: str, processing: str, cell: Any) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every weight of a rule, without computing any."""
    import jax

    from optim4rl.optimizers.processing import PROCESSINGS
    from optim4rl.optimizers.rule import OptimizerSpec, init_meta_parameters
    from optim4rl.optimizers.structures import STRUCTURES

    spec = OptimizerSpec(
        processing=PROCESSINGS[processing](), structure=STRUCTURES[structure](), cell=cell
    )
    shapes = jax.eval_shape(lambda: init_meta_parameters(spec, jax.random.key(0)))
    return {
        f"{network}.{name}": array.shape
        for network, weights in shapes.items()
        for name, array in weights.items()
    }


DEFAULT_METRICS: Final = ("return", "stability")
OPTIM4RL: Final = Catalogue(
    "optim4rl",
    COMPONENTS,
    METRICS,
    DEFAULT_METRICS,
    # The identity experiment compares processings.
    further_metrics=(("processing", ("identity",)),),
    about="A learned optimizer for reinforcement learning",
    extent=touched_weights,
)
