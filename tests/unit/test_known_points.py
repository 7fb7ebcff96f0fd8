"""Points that MLflow has are not sent again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from altdiffusion.lineage.known_points import KnownPoints


@dataclass(frozen=True, kw_only=True)
class Point:
    key: str
    timestamp: int
    step: int
    value: float


@dataclass
class Client:
    history: list[Point]
    asked: list[str] = field(default_factory=list)

    def get_metric_history(self, run_id: str, key: str) -> list[Point]:
        self.asked.append(f"{run_id} {key}")
        return [point for point in self.history if point.key == key]


def test_others_are_those_that_differ_in_time_step_or_value() -> None:
    first = Point(key="loss", timestamp=5, step=1, value=0.1)
    gone = Point(key="loss", timestamp=6, step=2, value=math.nan)
    client = Client([first, gone])
    new = [
        Point(key="loss", timestamp=6, step=1, value=0.1), Point(key="loss", timestamp=5, step=2, value=0.1),
        Point(key="loss", timestamp=5, step=1, value=math.nextafter(0.1, 1)),
        Point(key="rate", timestamp=5, step=1, value=0.1), Point(key="loss", timestamp=2**63 - 1, step=0, value=0.0),
    ]  # fmt: skip
    known = KnownPoints(client, "r")
    assert known.others([first, new[0], gone, *new[1:], first]) == new
    assert known.others([first, gone]) == []
    assert client.asked == ["r loss", "r rate"]
