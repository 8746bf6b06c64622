"""Draw the axes and the heat map of an inspection's page."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from optim4rl.evaluation.response import LIFE, SIZES, Response
from optim4rl.pages import figures
from optim4rl.pages.figures import Axis
from optim4rl.pages.inspection_words import power

# Steps below 10^FLOOR are drawn as zero.
FLOOR = -4
UNIT = "step in learning rates"


@dataclass(frozen=True)
class Picture:
    """Hold a picture with its title, its unit and its explanation."""

    title: str
    unit: str
    drawing: Markup
    words: str


@dataclass(frozen=True)
class Section:
    """Hold pictures of one kind."""

    key: str
    title: str
    words: str
    pictures: tuple[Picture, ...]


class Decades(Axis):
    """An axis whose values are powers of ten."""

    def label(self, tick: float) -> str:
        """Format the power of ten."""
        return power(round(tick))


class Signed(Axis):
    """An axis of decades above and below zero; zero stands for all sizes below 10^FLOOR."""

    def label(self, tick: float) -> str:
        """Format the number."""
        if tick == 0:
            return "0"
        return ("−" if tick < 0 else "") + power(round(abs(tick)) + FLOOR)


def drawn_steps(steps: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Convert steps to places on a `Signed` axis: decades above 10^FLOOR, with their sign."""
    with np.errstate(divide="ignore"):
        return np.sign(steps) * np.maximum(np.log10(np.abs(steps)) - FLOOR, 0.0)


def steps_axis(values: Sequence[np.ndarray]) -> Axis:
    """Return an axis that holds all steps."""
    drawn = drawn_steps(np.concatenate([np.ravel(x) for x in values]))
    drawn = drawn[np.isfinite(drawn)]
    high = math.ceil(max(drawn.max(initial=0.0), 1.0 - FLOOR))
    low = math.floor(min(drawn.min(initial=high), 0.0 - FLOOR))
    return Signed(float(low), float(high), tuple(float(t) for t in range(low, high + 1)))


def surface_figure(responses: Mapping[str, Response]) -> Any:
    """Draw the step by gradient size and optimizer age as a matplotlib figure.

    Args:
        responses: title of a panel -> its response. Panels share one colour scale, from 0.01 to 10
            learning rates. Grey means that the step goes against the gradient.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.9 + 4.1 * len(responses), 3.2), layout="constrained")
    panels = figure.subplots(1, len(responses), squeeze=False, sharey=True)[0]
    ages = np.unique(np.geomspace(1, LIFE, 40).astype(int))
    levels = np.linspace(-2.0, 1.0, 25)
    for axes, (title, response) in zip(panels, responses.items(), strict=True):
        steps = response.constant[0, ages - 1].T
        steps = np.ma.masked_where(~(steps > 0), steps)
        drawn = axes.contourf(
            ages, SIZES, np.ma.log10(steps), levels, cmap="viridis", extend="both"
        )
        axes.set(title=title, xscale="log", yscale="log", xlabel="update", facecolor="0.6")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("|g|")
    bar = figure.colorbar(drawn, ax=panels, label=UNIT, ticks=np.arange(-2, 2))
    bar.ax.set_yticklabels(["0.01", "0.1", "1", "10"])
    return figure


# A placeholder for the page's text colour while matplotlib draws.
_INK = "#010203"


def as_svg(draw: Callable[[], Any], label: str) -> Markup:
    """Return a matplotlib figure as inline SVG in the page's colours."""
    import matplotlib as mpl

    parts = ("text.color", "xtick.color", "ytick.color", "axes.labelcolor", "axes.edgecolor")
    settings: dict[Any, Any] = {
        "svg.hashsalt": label,
        "svg.fonttype": "none",
        "font.size": 11,
        **dict.fromkeys(parts, _INK),
    }
    buffer = io.StringIO()
    with mpl.rc_context(settings):
        draw().savefig(buffer, format="svg", metadata={"Date": None}, facecolor="none")
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Remove metadata, which the page has, and styles, which would reach beyond the picture.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace(_INK, "var(--text)")
    (box,) = re.findall(r'viewBox="([\d. ]+)"', svg[: svg.index(">")])
    inner = svg[svg.index(">") + 1 : svg.rindex("</svg>")]
    return figures.tag(
        "svg", Markup(inner), viewBox=box, class_="chart", role="img", aria_label=label
    )
