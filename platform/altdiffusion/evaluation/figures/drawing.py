"""What all figures share: a frame as wide as a phone, a legend, axes, and a mark per series.

Each series has a colour, a shape of its points and a dash pattern of its lines, so that none depends on colour alone.
The colours are distinguishable with deficient colour vision (after Okabe and Ito, "Color universal design", 2008),
darkened for light paper and lightened for dark paper to a contrast of at least 3. They are in `figures.css`.

Lengths are in units of the SVG. On a screen 390 pixels wide a unit is 0.97 pixels, so text of 12 units is readable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from altdiffusion.html.page import environment, plain

WIDTH = 340
TEXT = 12
COLOURS = 8
_CHARACTER = 6.6
"""Width of an average character of text."""
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "10 4", "4 2 1 2")


@dataclass(kw_only=True)
class Figure:
    """One figure."""

    name: str
    """Its part of a file name."""
    title: str
    about: str
    """A sentence on how to read it."""
    order: Sequence[str]
    """All states; a state has the same mark in every figure, also where others are missing."""
    height: float = 0
    parts: list[Markup] = field(default_factory=list)

    @property
    def svg(self) -> Markup:
        """The figure for a page that has the styles of `figures.css`."""
        return self._svg(Markup(""))

    @property
    def file(self) -> bytes:
        """The figure as a file of its own."""
        styles = environment().get_template("figures.css").render()
        return (
            f'<?xml version="1.0" encoding="UTF-8"?>\n{self._svg(Markup("<style>" + styles + "</style>"))}\n'.encode()
        )

    def _svg(self, styles: Markup) -> Markup:
        return Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" class="figure" viewBox="0 0 {w} {h}" width="{w}" height="{h}" '
            'role="img" aria-label="{label}">{styles}<rect class="paper" width="{w}" height="{h}"/>{body}</svg>'
        ).format(w=WIDTH, h=number(self.height), label=self.title, styles=styles, body=Markup("").join(self.parts))

    def head(self, series: Sequence[str]) -> float:
        """Draw the title and the legend of the series, and return where the drawing may begin."""
        for line in _wrapped(self.title, 44):
            self.height += 18
            self.text(0, self.height, line, "title")
        x, self.height = 0.0, self.height + 20
        for name in series:
            shown = plain(name, 32)
            width = 24 + _CHARACTER * len(shown) + 14
            if x and x + width > WIDTH:
                x, self.height = 0.0, self.height + 18
            self.line(name, [(x, self.height - 4), (x + 18, self.height - 4)])
            self.mark(name, x + 9, self.height - 4, name)
            self.text(x + 24, self.height, shown)
            x += width
        return self.height + 14

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "start") -> None:
        """Draw a line of text; y is its baseline."""
        self.parts.append(
            Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>').format(
                number(x), number(y), anchor, style, plain(text)
            )
        )

    def path(self, style: str, points: Sequence[tuple[float, float]], *, closed: bool = False) -> None:
        """Draw a line through points."""
        self.parts.append(Markup('<path class="{}" d="{}"/>').format(style, _d(points, closed)))

    def tick(self, x: float, y: float, text: str) -> None:
        """Draw the text of a tick below an axis: centred at x, unless it would leave the figure."""
        over = x + _CHARACTER * len(text) / 2 > WIDTH
        self.text(WIDTH if over else x, y, text, "tick", "end" if over else "middle")

    def band(self, state: str, points: Sequence[tuple[float, float]]) -> None:
        """Draw the area of a series' intervals, given by its outline."""
        self.path(f"band {self._colour(state)}", points, closed=True)

    def _colour(self, state: str) -> str:
        return f"c{self.order.index(state) % COLOURS}"

    def line(self, state: str, points: Sequence[tuple[float, float]], *, closed: bool = False) -> None:
        """Draw a line through the points of a series."""
        dashes = _DASHES[self.order.index(state) % len(_DASHES)]
        self.parts.append(
            Markup('<path class="line {}" stroke-dasharray="{}" d="{}"/>').format(
                self._colour(state), dashes or "none", _d(points, closed)
            )
        )

    def whisker(self, state: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw an interval of a series."""
        self.parts.append(
            Markup('<path class="whisker {}" d="{}"/>').format(self._colour(state), _d([start, end], False))
        )

    def mark(self, state: str, x: float, y: float, label: str) -> None:
        """Draw a point of a series, with a label for whom points at it."""
        self.parts.append(
            Markup('<path class="mark {}" d="{}"><title>{}</title></path>').format(
                self._colour(state), _SHAPES[self.order.index(state) % len(_SHAPES)](x, y), escape(plain(label))
            )
        )


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map from values to places."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Return the place of a value."""
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def fitted(values: Sequence[float], start: float, end: float, *, share: bool) -> tuple[Scale, list[float]]:
    """Return a linear scale for values with 3 to 7 round ticks; that of shares is always 0 to 1."""
    if share:
        return Scale(0, 1, start, end), [0, 0.25, 0.5, 0.75, 1]
    low, high = min(values), max(values)
    room = (high - low) or abs(high) or 1.0
    raw = room / 4
    step = 10 ** math.floor(math.log10(raw))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if factor * step >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    last += last == first
    return Scale(first * step, last * step, start, end), [step * n for n in range(first, last + 1)]


def tick_texts(ticks: Sequence[float], *, share: bool) -> list[str]:
    """Return the ticks with as many digits as make them differ."""
    if share:
        return [f"{100 * tick:g}" for tick in ticks]
    digits = max(0, 1 - math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)) if len(ticks) > 1 else 2
    texts = [f"{tick:.{digits}f}" for tick in ticks]
    while all("." in text and text.endswith(("0", ".")) for text in texts):
        texts = [text[:-1] for text in texts]
    return [text.rstrip(".") for text in texts]


def number(value: float) -> str:
    """Return a length with at most two decimals, the same on every machine."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _d(points: Sequence[tuple[float, float]], closed: bool) -> str:
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points) + ("Z" if closed else "")


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _circle(x: float, y: float) -> str:
    return f"M{number(x - 3.4)} {number(y)}a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0 -6.8 0Z"


def _polygon(*corners: tuple[float, float]) -> Callable[[float, float], str]:
    return lambda x, y: _d([(x + dx, y + dy) for dx, dy in corners], True)


_SHAPES: tuple[Callable[[float, float], str], ...] = (
    _circle,
    _polygon((-3.2, -3.2), (3.2, -3.2), (3.2, 3.2), (-3.2, 3.2)),
    _polygon((0, -4.6), (4.6, 0), (0, 4.6), (-4.6, 0)),
    _polygon((0, -4.4), (4.2, 3.2), (-4.2, 3.2)),
    _polygon((0, 4.4), (4.2, -3.2), (-4.2, -3.2)),
    _polygon((-4, -1.4), (-1.4, -1.4), (-1.4, -4), (1.4, -4), (1.4, -1.4), (4, -1.4),
             (4, 1.4), (1.4, 1.4), (1.4, 4), (-1.4, 4), (-1.4, 1.4), (-4, 1.4)),
)  # fmt: skip
