"""Draw the panels of the dashboard from Prometheus's answers, where and with what units the dashboard's file has them.

It is not Grafana: the places, titles, units, limits and legends are those of the file, and the rest is matplotlib's.
"""

from __future__ import annotations

import datetime
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.prometheus.check import Answer, Series

COLUMNS = 24
"""Columns of Grafana's grid."""
CELL_IN = (0.62, 0.30)
"""Width and height of a cell of the grid, in inches."""
DPI = 80
COLOURS = 128
"""Colours of the PNG: panels have few, and a repository has to hold the file."""
_LINES = ("#3274d9", "#e0752d", "#37872d", "#c4162a", "#8f3bb8", "#b7a400", "#1f9e9e", "#5c5c5c")
_LEGEND = 6
"""Names in a legend, at most."""


def draw(dashboard: Mapping[str, Any], answers: Sequence[Answer], span: tuple[float, float], target: Path) -> None:
    """Write a PNG of all panels.

    Args:
        span: of the time axes, in seconds since 1970.

    Raises:
        SystemExit: matplotlib is not installed; it comes with MLflow.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit("error: --image needs matplotlib. Remedy: pip install matplotlib") from error
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = max(place["y"] + place["h"] for place in places)
    figure = Figure(figsize=(COLUMNS * CELL_IN[0], cells * CELL_IN[1]), dpi=DPI, facecolor="#f4f5f5")
    canvas = FigureCanvasAgg(figure)
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            x, y, _, height = _box(panel["gridPos"], cells)
            figure.text(x + 0.004, y + height / 2, panel["title"], weight="bold", size=11, va="center")
    for answer in answers:
        _panel(figure, _box(answer.panel["gridPos"], cells), answer, span)
    canvas.draw()
    _save(canvas, target)


def _box(place: Mapping[str, int], cells: int) -> tuple[float, float, float, float]:
    """Return left, bottom, width and height, in shares of the figure."""
    bottom = 1 - (place["y"] + place["h"]) / cells
    return place["x"] / COLUMNS, bottom, place["w"] / COLUMNS, place["h"] / cells


def _panel(figure: Any, box: tuple[float, float, float, float], answer: Answer, span: tuple[float, float]) -> None:
    x, y, width, height = box
    left, lower, upper, right = 0.040, height * 0.26, height * 0.14, 0.006
    axes = figure.add_axes((x + left, y + lower, width - left - right, height - lower - upper), facecolor="white")
    axes.set_title(answer.panel["title"], size=9, loc="left", pad=3)
    settings = answer.panel["fieldConfig"]["defaults"]
    axes.set_xlim(*span)
    axes.set_xticks([span[0] + (span[1] - span[0]) * share for share in (0.1, 0.5, 0.9)])
    axes.xaxis.set_major_formatter(lambda at, _: f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%H:%M:%S}")
    axes.yaxis.set_major_formatter(_formatter(settings.get("unit", "short")))
    axes.tick_params(labelsize=6.5, length=2)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    lines = [line for series in answer.series for line in series]
    for number, line in enumerate(lines):
        _line(axes, line, _LINES[number % len(_LINES)])
    if lines:
        names = [line.name for line in lines]
        handles = axes.get_lines()[: len(names)]
        if len(names) > _LEGEND:
            names = [*names[: _LEGEND - 1], f"and {len(names) - _LEGEND + 1} more"]
        axes.legend(
            handles[: len(names)], names, loc="upper left", bbox_to_anchor=(x + left / 2, y + height * 0.15),
            bbox_transform=figure.transFigure, ncols=2, fontsize=6, frameon=False, handlelength=1,
            columnspacing=0.8, labelspacing=0.2, borderaxespad=0,
        )  # fmt: skip
    else:
        text = "Error" if answer.error else "No data"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", size=9, color="#888888")
    axes.set_ylim(*_limits(settings, lines))


def _line(axes: Any, series: Series, colour: str) -> None:
    """Draw a series; where it has no value, the line is interrupted."""
    times = [at for at, _ in series.points]
    step = min((b - a for a, b in itertools.pairwise(times)), default=0.0)
    xs: list[float] = []
    ys: list[float] = []
    for at, value in series.points:
        if xs and at - xs[-1] > 1.5 * step:
            xs.append(at - step / 2)
            ys.append(math.nan)
        xs.append(at)
        ys.append(value)
    axes.plot(xs, ys, color=colour, linewidth=1.1, marker="." if len(times) < 3 else None, markersize=3, clip_on=False)


def _limits(settings: Mapping[str, Any], lines: Sequence[Series]) -> tuple[float, float]:
    values = [value for line in lines for _, value in line.points if math.isfinite(value)] or [0.0, 1.0]
    low, high = settings.get("min", min(values)), settings.get("max", max(values) * 1.08)
    return float(low), float(high if high > low else low + 1)


def _formatter(unit: str) -> Callable[[float, int], str]:
    """Return the formatter of an axis for a unit of Grafana.

    Raises:
        KeyError: the dashboard uses a unit that is not known here.
    """
    scaled: dict[str, Callable[[float], str]] = {
        "short": lambda value: _scaled(value, 1000, ("", " K", " Mil", " Bil")),
        "percentunit": lambda value: f"{100 * value:.3g}%",
        "percent": lambda value: f"{value:.3g}%",
        "s": _time,
        "bytes": lambda value: _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB")),
        "Bps": lambda value: _scaled(value, 1000, (" B/s", " kB/s", " MB/s", " GB/s")),
        "rowsps": lambda value: _scaled(value, 1000, (" rows/s", "K rows/s", "M rows/s")),
    }
    write = scaled[unit]
    return lambda value, _: write(value)


def _scaled(value: float, base: int, names: Sequence[str]) -> str:
    power = 0
    while abs(value) >= base and power < len(names) - 1:
        value, power = value / base, power + 1
    return f"{value:.3g}{names[power]}"


def _time(value: float) -> str:
    for size, name in ((3600.0, "h"), (60.0, "min"), (1.0, "s")):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return f"{value * 1000:.3g} ms" if value else "0 s"


def _save(canvas: Any, target: Path) -> None:
    from PIL import Image

    drawn = io.BytesIO()
    canvas.print_png(drawn)
    few = Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(target, optimize=True)
