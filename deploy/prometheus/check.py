"""Ask a Prometheus every query of the dashboard, and print which panels have data.

    python -m deploy.prometheus.check --url http://127.0.0.1:9090 [--last 1h] [--ran ROW ...] [--image FILE]

Also prints which of the alert rules that Prometheus has loaded are pending or firing.

Each line is a panel: `data` with the number of series per query, `no data`, or `error` with Prometheus's own words.
The variables of the dashboard take all of their values, as in Grafana at first. `--ran` names rows of the dashboard
whose part of the platform ran: a panel there without data fails the check, unless its description states when it is
empty. `--image` draws the panels, where the dashboard has them (deploy.prometheus.drawing).

Exit status: 0; 1 if a query or a rule is refused, or a panel of a row that ran has no data; 2 if Prometheus does not
answer.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).resolve().parents[1] / "grafana/altdiffusion.json"
SCRAPE_S = 15.0
"""What Grafana takes as the interval of scrapes, unless the data source states another one."""
POINTS = 240
"""Points per series, at most."""
MAY_BE_EMPTY = "Empty "
"""How the description of a panel begins that has no data in a healthy, plain cluster."""
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Unreachable(Exception):
    """Prometheus did not answer, or something else did."""


@dataclass(frozen=True)
class Series:
    """One line of a panel."""

    name: str
    points: tuple[tuple[float, float], ...]
    """Seconds since 1970, and the value."""


@dataclass(frozen=True)
class Answer:
    """What Prometheus knows for one panel."""

    row: str
    panel: Mapping[str, Any]
    series: tuple[tuple[Series, ...], ...]
    """Per query."""
    error: str = ""

    @property
    def state(self) -> str:
        """Return `data`, `no data` or `error`."""
        if self.error:
            return "error"
        return "data" if any(self.series) else "no data"

    @property
    def may_be_empty(self) -> bool:
        return MAY_BE_EMPTY in str(self.panel.get("description", ""))


class Prometheus:
    """The HTTP API of a server, for one span of time."""

    def __init__(self, url: str, start: float, end: float, scrape_s: float = SCRAPE_S) -> None:
        self._url = url.rstrip("/")
        self.start, self.end = start, end
        self._step = max(1.0, math.ceil((end - start) / POINTS))
        rate_s = max(4 * scrape_s, self._step + scrape_s)  # as Grafana computes $__rate_interval
        self._variables = {"__rate_interval": f"{rate_s:g}s", "job": ".*", "run": ".*"}

    def filled(self, query: str) -> str:
        """Return a query with the variables of the dashboard filled in."""
        return re.sub(r"\$(\w+)", lambda found: self._variables[found[1]], query)

    def series(self, query: str, legend: str) -> tuple[Series, ...]:
        """Return what a query gives over the span; series without a finite value are left out.

        Raises:
            ValueError: Prometheus refuses the query.
            Unreachable: it does not answer.
        """
        span = {"start": self.start, "end": self.end, "step": self._step}
        found = self._ask("query_range", {"query": self.filled(query), **span})["result"]
        named = (
            Series(legend_of(legend, one["metric"]), tuple((at, float(value)) for at, value in one["values"]))
            for one in found
        )
        return tuple(one for one in named if any(math.isfinite(value) for _, value in one.points))

    def label_values(self, query: str) -> list[str]:
        """Return the values that a variable of the dashboard, `label_values(SELECTOR, LABEL)`, offers."""
        parsed = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
        if parsed is None:
            raise ValueError(f"{query} is not label_values(SELECTOR, LABEL)")
        span = {"match[]": self.filled(parsed[1]), "start": self.start, "end": self.end}
        return [str(value) for value in self._ask(f"label/{parsed[2]}/values", span)]

    def rules(self) -> list[tuple[str, str, str]]:
        """Return the alert rules that are loaded: name, state, and an error of the last evaluation."""
        groups = self._ask("rules", {"type": "alert"})["groups"]
        return [(rule["name"], rule["state"], rule.get("lastError", "")) for group in groups for rule in group["rules"]]

    def _ask(self, what: str, parameters: Mapping[str, Any]) -> Any:
        address = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                document = json.load(answer)
        except urllib.error.HTTPError as refused:
            try:
                raise ValueError(json.load(refused)["error"]) from refused
            except (KeyError, TypeError, json.JSONDecodeError):
                raise Unreachable(f"HTTP {refused.code}, which is not Prometheus's own answer") from refused
        except (OSError, json.JSONDecodeError) as error:
            raise Unreachable(str(error)) from error
        return document["data"]


def legend_of(legend: str, labels: Mapping[str, str]) -> str:
    """Return the name of a series, as Grafana fills in `{{label}}`."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), legend).strip()


def panels(dashboard: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each panel with the title of its row."""
    row = ""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            yield row, panel


def check(prometheus: Prometheus, dashboard: Mapping[str, Any]) -> list[Answer]:
    """Ask all queries of a dashboard.

    Raises:
        Unreachable: Prometheus does not answer.
    """
    answers = []
    for row, panel in panels(dashboard):
        try:
            found = tuple(prometheus.series(one["expr"], one["legendFormat"]) for one in panel["targets"])
            answers.append(Answer(row, panel, found))
        except ValueError as refused:
            answers.append(Answer(row, panel, (), str(refused)))
    return answers


def failures(answers: Sequence[Answer], ran: Sequence[str]) -> list[str]:
    """Return what is wrong: refused queries, and panels of rows that ran without data."""
    wrong = [f"{one.row} / {one.panel['title']}: {one.error}" for one in answers if one.error]
    for one in answers:
        if one.row in ran and one.state == "no data" and not one.may_be_empty:
            wrong.append(f"{one.row} / {one.panel['title']}: no data")
    return wrong


def table(answers: Sequence[Answer]) -> str:
    """Return a line per panel."""
    lines, row = [], None
    for one in answers:
        if one.row != row:
            row = one.row
            lines.append(row)
        counts = ", ".join(str(len(series)) for series in one.series)
        detail = {"data": f"series: {counts}", "error": one.error}.get(one.state, str(one.panel.get("description", "")))
        lines.append(f"  {one.state:8} {one.panel['title']:40} {detail}".rstrip())
    return "\n".join(lines)


def seconds(text: str) -> float:
    """Return the seconds of `90s`, `15m`, `6h` or `2d`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write a number and s, m, h or d, as in 15m")
    return float(found[1]) * _UNITS_S[found[2]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the dashboard, and return the exit status."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="address of Prometheus")
    parser.add_argument("--last", type=seconds, default=3600.0, help="span to look at, up to now (default: 1h)")
    parser.add_argument("--scrape", type=seconds, default=SCRAPE_S, help="interval of its scrapes (default: 15s)")
    parser.add_argument("--ran", nargs="+", choices=rows, default=[], help="rows whose panels must have data")
    parser.add_argument("--image", type=Path, help="PNG file to draw the panels into")
    given = parser.parse_args(arguments)
    now = time.time()
    prometheus = Prometheus(given.url, now - given.last, now, given.scrape)
    try:
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                values = prometheus.label_values(variable["definition"])
                print(f"{variable['label']}: {', '.join(values) or 'no values'}")
        answers, rules = check(prometheus, dashboard), prometheus.rules()
    except Unreachable as error:
        print(f"error: {given.url}: {error}. Remedy: give the address of a Prometheus that runs", file=sys.stderr)
        return 2
    print(table(answers))
    states = [one.state for one in answers]
    print(f"{len(answers)} panels: " + ", ".join(f"{states.count(s)} {s}" for s in ("data", "no data", "error")))
    active = [f"{name} {state}" for name, state, _ in rules if state != "inactive"]
    print(f"{len(rules)} alert rules are loaded: {', '.join(active) or 'none fires'}")
    if given.image is not None:
        from deploy.prometheus.drawing import draw

        draw(dashboard, answers, (prometheus.start, prometheus.end), given.image)
        print(given.image)
    wrong = [*failures(answers, given.ran), *(f"alert {name}: {error}" for name, _, error in rules if error)]
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
