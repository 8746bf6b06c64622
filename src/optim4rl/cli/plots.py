"""Pictures of evaluations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from optim4rl.evaluation.curves import Curves

# Okabe and Ito's palette tells apart for every kind of colour vision.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def plot_curves(title: str, curves: Mapping[str, Sequence[Curves]], path: Path) -> None:
    """Learning curves as SVG: mean over all runs, and the range of the middle half of them.

    Args:
        title: above the picture.
        curves: optimizer -> its curves, one for each meta-seed. An optimizer whose name ends in
            "untrained" is drawn thin and dashed.
        path: file to write.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # The same runs give the same bytes.
    with mpl.rc_context({"svg.hashsalt": "optim4rl", "svg.fonttype": "none", "font.size": 11}):
        figure = Figure(figsize=(8.0, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for index, (name, found) in enumerate(curves.items()):
            control = name.endswith("untrained")
            thinned = [c.thin(min(130, c.returns.shape[1])) for c in found]
            returns = np.concatenate([c.returns for c in thinned])
            steps = thinned[0].env_steps
            colour = "0.45" if control else _COLOURS[index % len(_COLOURS)]
            axes.plot(
                steps,
                returns.mean(axis=0),
                label=name,
                color=colour,
                lw=1.2 if control else 2.0,
                ls="--" if control else "-",
            )
            low, high = np.quantile(returns, (0.25, 0.75), axis=0)
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
        axes.set(title=title, xlabel="environment steps", ylabel="episode return")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="lower right")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
