"""Draw a report's figures as inline SVG: small pure functions from numbers to markup.

Colours, fonts and dashes are CSS classes of the report, so a figure follows its light, dark and
print styles. Nothing depends on time or chance: the same numbers give the same bytes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from markupsafe import Markup, escape

from optim4rl.evaluation.returns import Estimate

# Marks, centred on (0, 0) and about 10 pixels across. Shape and colour have the same meaning.
MARKS = {
    "better": "M0,-6 6,5 -6,5Z",
    "unclear": "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0Z",
    "worse": "M0,6 6,-5 -6,-5Z",
    "reference": "M0,-6.5 6.5,0 0,6.5 -6.5,0Z",
    "diverged": "M-4,-4 4,4M-4,4 4,-4",
    "dot": "M-3.5,0a3.5,3.5 0 1,0 7,0a3.5,3.5 0 1,0 -7,0Z",
}


def tag(name: str, *children: str, **attributes: str | int | float) -> Markup:
    """Return an element with escaped text and values; `class_` and `aria_label` are renamed."""
    pairs = Markup("").join(
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), value if isinstance(value, str) else _short(value)
        )
        for key, value in attributes.items()
    )
    inner = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), pairs, inner)


@dataclass(frozen=True)
class Axis:
    """A linear scale with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Return a value's place between the axis' ends, 0 to 1; values beyond are clipped."""
        # NaN, a diverged run's score, is at the low end: Python's max(0.0, NaN) is 0.0.
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def label(self, tick: float) -> str:
        """Format a tick, in thousands (k) or millions (M) if the axis is that long."""
        size = max(abs(self.low), abs(self.high))
        for unit, suffix in ((1e6, "M"), (1e3, "k")):
            if size >= 2 * unit:
                return "0" if tick == 0 else f"{tick / unit:g}{suffix}"
        return f"{tick:g}".replace("-", "−")


def axis(values: Iterable[float], *, ticks: int = 5, margin: float = 0.04) -> Axis:
    """Return an axis for all finite values, with a margin and about `ticks` round ticks."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    pad = margin * (high - low)
    low, high = low - pad, high + pad
    rough = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step), math.floor(high / step)
    decimals = max(0, 2 - math.floor(math.log10(step)))
    return Axis(low, high, tuple(round(i * step, decimals) for i in range(first, last + 1)))


# --- Strips: one row of a table, as wide as its cell ----------------------------------------------


def interval_strip(
    scale: Axis, estimate: Estimate, mark: str, guides: Sequence[tuple[str, float]], label: str
) -> Markup:
    """Draw an estimate as a mark on its 95 % interval, across vertical guide lines.

    If diverged runs leave the interval unbounded below, it reaches the left edge. A diverged value
    is a cross at this edge. Without an interval, only the mark is drawn.
    """
    value = estimate.value
    ends = (estimate.low, estimate.high) if estimate.has_interval else (value, value)
    left, right = (_percent(scale.share(end)) for end in ends)
    shape = "diverged" if math.isnan(value) else mark
    return _strip(
        label,
        *_guides(scale, guides),
        tag("line", x1=left, x2=right, y1="50%", y2="50%", class_=f"bar {mark}"),
        _mark(scale.share(value), shape, f"mark {mark}"),
    )


def dot_strip(
    scale: Axis, values: Sequence[float], guides: Sequence[tuple[str, float]], label: str
) -> Markup:
    """Draw a dot for every value, and a cross at the left edge for a diverged one."""
    marks = []
    for value in values:
        shape, kind = ("diverged", "lost") if math.isnan(value) else ("dot", "seed")
        marks.append(_mark(scale.share(value), shape, f"mark {kind}"))
    return _strip(label, *_guides(scale, guides), *marks)


def scale_strip(scale: Axis) -> Markup:
    """Draw the axis above a column of strips, with labelled ticks."""
    parts = []
    for tick in scale.ticks:
        place = scale.share(tick)
        anchor = "start" if place < 0.06 else "end" if place > 0.94 else "middle"
        parts.append(tag("text", scale.label(tick), x=_percent(place), y="11", text_anchor=anchor))
        parts.append(tag("line", x1=_percent(place), x2=_percent(place), y1="15", y2="20"))
    return tag("svg", *parts, class_="strip scale", aria_hidden="true")


def _strip(label: str, *parts: Markup) -> Markup:
    return tag("svg", *parts, class_="strip", role="img", aria_label=label)


def _guides(scale: Axis, guides: Sequence[tuple[str, float]]) -> list[Markup]:
    places = [(name, _percent(scale.share(x))) for name, x in guides if math.isfinite(x)]
    return [
        tag("line", x1=place, x2=place, y1="0", y2="100%", class_=f"guide {name}")
        for name, place in places
    ]


def _mark(share: float, shape: str, classes: str) -> Markup:
    # A nested svg places the path by percentage and stays unscaled.
    path = tag("path", d=MARKS[shape], class_=classes)
    return tag("svg", path, x=_percent(share), y="50%", overflow="visible")


# --- Line charts ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """Hold one line of a chart.

    Attributes:
        label: written at the line's end.
        style: CSS classes of its colour and dash.
        x: ascending.
        y: NaN where there is no value; the line breaks there.
        low: lower edge of a band around it; NaN where it is unbounded. None: no band.
        high: upper edge of the band. A part of the line with a NaN here has no band.
        dots: whether points are marked.
    """

    label: str
    style: str
    x: Float[np.ndarray, " points"]
    y: Float[np.ndarray, " points"]
    low: Float[np.ndarray, " points"] | None = None
    high: Float[np.ndarray, " points"] | None = None
    dots: bool = False


@dataclass(frozen=True)
class Frame:
    """Hold the size of a chart and its margins, in pixels."""

    width: float = 350.0
    height: float = 210.0
    left: float = 38.0
    right: float = 98.0
    top: float = 12.0
    bottom: float = 36.0

    def point(self, x: Axis, y: Axis, at_x: float, at_y: float) -> tuple[float, float]:
        """Return a point's place in pixels."""
        across = self.width - self.left - self.right
        down = self.height - self.top - self.bottom
        return self.left + across * x.share(at_x), self.top + down * (1 - y.share(at_y))


def line_chart(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    x_label: str,
    label: str,
    frame: Frame | None = None,
) -> Markup:
    """Draw lines with bands on common axes, each labelled at its end; the last one is on top."""
    frame = frame or Frame()
    lines = [part for one in series for part in _series(frame, x, y, one)]
    return tag(
        "svg",
        *_grid(frame, x, y, x_label),
        *lines,
        *_end_labels(frame, x, y, series),
        viewBox=f"0 0 {frame.width} {frame.height}",
        class_="chart",
        role="img",
        aria_label=label,
    )


def _grid(frame: Frame, x: Axis, y: Axis, x_label: str) -> Iterable[Markup]:
    left, right = frame.left, frame.width - frame.right
    bottom = frame.height - frame.bottom
    for tick in y.ticks:
        at = frame.point(x, y, x.low, tick)[1]
        yield tag("line", x1=left, x2=right, y1=at, y2=at, class_="grid")
        yield tag("text", y.label(tick), x=left - 6, y=at + 4, text_anchor="end", class_="tick")
    for tick in x.ticks:
        at = frame.point(x, y, tick, y.low)[0]
        yield tag("line", x1=at, x2=at, y1=bottom, y2=bottom + 4, class_="axis")
        yield tag("text", x.label(tick), x=at, y=bottom + 16, text_anchor="middle", class_="tick")
    yield tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis")
    middle, base = (left + right) / 2, frame.height - 4
    yield tag("text", x_label, x=middle, y=base, text_anchor="middle", class_="tick")


def _series(frame: Frame, x: Axis, y: Axis, series: Series) -> Iterable[Markup]:
    for part in _finite_parts(series.y):
        low, high = series.low, series.high
        if low is not None and high is not None and not np.isnan(high[part]).any():
            low = np.where(np.isnan(low), y.low, low)
            there = _points(frame, x, y, series.x[part], high[part])
            back = _points(frame, x, y, series.x[part][::-1], low[part][::-1])
            yield tag("polygon", points=f"{there} {back}", class_=f"band {series.style}")
        points = _points(frame, x, y, series.x[part], series.y[part])
        yield tag("polyline", points=points, class_=f"line {series.style}")
        if series.dots:
            for point in points.split():
                cx, cy = point.split(",")
                yield tag("circle", cx=cx, cy=cy, r="2.5", class_=f"point {series.style}")
    lost = np.flatnonzero(np.isnan(series.y))
    if lost.size and not series.dots:  # the curve diverged there; between dots a gap is only a gap
        at = series.x[lost[0]]
        before = series.y[lost[0] - 1] if lost[0] else y.low
        left, top = frame.point(x, y, float(at), float(before))
        cross = tag("path", d=MARKS["diverged"], class_=f"cross {series.style}")
        yield tag("g", cross, transform=f"translate({_short(left)},{_short(top)})")


def _finite_parts(values: Float[np.ndarray, " points"]) -> Iterable[slice]:
    edges = np.flatnonzero(np.diff(np.isfinite(values), prepend=False, append=False))
    yield from (slice(int(a), int(b)) for a, b in edges.reshape(-1, 2))


def _points(frame: Frame, x: Axis, y: Axis, xs: np.ndarray, ys: np.ndarray) -> str:
    places = (frame.point(x, y, float(a), float(b)) for a, b in zip(xs, ys, strict=True))
    return " ".join(f"{_short(left)},{_short(top)}" for left, top in places)


def _end_labels(frame: Frame, x: Axis, y: Axis, series: Sequence[Series]) -> Iterable[Markup]:
    """Label each line at its last value, and move labels apart where lines end close together."""
    ends = []
    for one in series:
        last = np.flatnonzero(np.isfinite(one.y))
        value = float(one.y[last[-1]]) if last.size else y.low
        ends.append((frame.point(x, y, x.high, value)[1], one))
    ends.sort(key=lambda end: end[0])
    places = _apart([place for place, _ in ends], 14.0, frame.top, frame.height - frame.bottom)
    left = frame.width - frame.right
    for place, (_, one) in zip(places, ends, strict=True):
        yield tag("line", x1=left + 3, x2=left + 15, y1=place, y2=place, class_=f"line {one.style}")
        text = _clip(one.label, int((frame.right - 19) / 6.2))
        yield tag("text", text, x=left + 19, y=place + 4, class_=f"name {one.style}")


def _apart(places: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Move ascending places apart until all are at least `gap` from each other."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else max(place, top))
    limit = bottom
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _short(value: str | int | float) -> str:
    """Round a coordinate to a tenth of a pixel."""
    return f"{round(float(value), 1):g}"
