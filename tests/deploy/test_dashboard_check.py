"""The check of the dashboard against an API of Prometheus: what has data, what has none, what is refused."""

from __future__ import annotations

import json
import math
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deploy.prometheus import check, drawing

DASHBOARD: dict[str, Any] = json.loads(check.DASHBOARD.read_text(encoding="utf-8"))


class Api(BaseHTTPRequestHandler):
    """Answers as Prometheus does: the loss has two series, GPUs have NaN alone, and one query is refused."""

    refused = "train_goodput_ratio"
    asked: list[dict[str, str]]

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        given = dict(urllib.parse.parse_qsl(query))
        type(self).asked.append(given)
        text = given.get("query", "")
        status, body = 200, {"status": "success", "data": {"resultType": "matrix", "result": []}}
        start = float(given.get("start", 0))
        if path.endswith("/rules"):
            rules = [
                {"name": "GoodputLow", "state": "firing"},
                {"name": "DiskNearlyFull", "state": "inactive", "lastError": "many-to-many matching"},
            ]
            body["data"] = {"groups": [{"rules": rules}]}
        elif path.endswith("/values"):
            body["data"] = ["curate", "train"]  # type: ignore[assignment]
        elif self.refused in text:
            status, body = 400, {"status": "error", "error": "parse error: unexpected <by>"}  # type: ignore[dict-item]
        elif "train_loss" in text:
            values = [[start + 15 * n, f"{1 / (n + 1)}"] for n in (0, 1, 2, 6, 7)]
            body["data"]["result"] = [  # type: ignore[index]
                {"metric": {"run": run}, "values": values} for run in ("a", "b")
            ]
        elif "gpus_utilization" in text:
            body["data"]["result"] = [{"metric": {"ip": "x"}, "values": [[start, "NaN"]]}]  # type: ignore[index]
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Api.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_each_panel_has_data_none_or_an_error(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = tmp_path / "panels.png"
    assert check.main(["--url", url, "--last", "10m", "--ran", "Training", "--image", str(drawn)]) == 1
    found = capsys.readouterr()
    lines = {line[11:51].strip(): line.split() for line in found.out.splitlines() if line.startswith("  ")}
    panels = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert set(lines) == set(panels)
    assert lines["Loss"] == ["data", "Loss", "series:", "2"]
    assert lines["GPU utilisation"][:2] == ["no", "data"]
    assert lines["Goodput"][0] == "error" and "unexpected <by>" in found.out
    assert "Job: curate, train\n" in found.out
    assert f"{len(panels)} panels: 1 data, {len(panels) - 2} no data, 1 error" in found.out
    wrong = found.err.splitlines()
    assert "error: Training / Steps: no data" in wrong and not any("Loss" in line for line in wrong)
    assert "2 alert rules are loaded: GoodputLow firing\n" in found.out
    assert "error: alert DiskNearlyFull: many-to-many matching" in wrong
    assert not any("Cluster" in line for line in wrong)  # that row was not named
    queries = [given["query"] for given in Api.asked if "query" in given]
    assert not any("$" in query for query in queries) and any("[60s]" in query for query in queries)
    assert all(
        float(given["end"]) - float(given["start"]) == pytest.approx(600) for given in Api.asked if "start" in given
    )
    with Image.open(drawn) as image:
        assert image.width == round(drawing.COLUMNS * drawing.CELL_IN[0] * drawing.DPI)
        assert image.height > image.width / 2
        assert len(image.convert("RGB").getcolors(1 << 16) or ()) > 10
    assert drawn.stat().st_size < 200_000


def test_a_panel_that_states_when_it_is_empty_fails_nothing() -> None:
    plain = {"title": "p", "description": ""}
    stated = {"title": "q", "description": f"{check.MAY_BE_EMPTY}without a failure."}
    answers = [check.Answer("r", panel, ((),)) for panel in (plain, stated)]
    assert check.failures(answers, ["r"]) == ["r / p: no data"]
    assert check.failures(answers, []) == []


@pytest.mark.parametrize("listening", [True, False])
def test_what_is_not_prometheus_is_an_error_with_a_remedy(listening: bool, capsys: pytest.CaptureFixture[str]) -> None:
    class Another(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Another)
    if listening:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    else:
        server.server_close()
    try:
        assert check.main(["--url", f"http://127.0.0.1:{server.server_port}"]) == 2
    finally:
        if listening:
            server.shutdown()
            server.server_close()
    assert "Remedy: give the address of a Prometheus that runs" in capsys.readouterr().err


def test_every_unit_of_the_dashboard_can_be_drawn() -> None:
    units = {panel["fieldConfig"]["defaults"]["unit"] for panel in DASHBOARD["panels"] if panel["type"] != "row"}
    for unit in units:
        assert drawing._formatter(unit)(0.5, 0)
    written = {
        "percentunit": (0.25, "25%"), "percent": (25, "25%"), "s": (90, "1.5 min"), "bytes": (3 << 20, "3 MiB"),
        "Bps": (2000, "2 kB/s"), "rowsps": (1.5, "1.5 rows/s"), "short": (12_000, "12 K"),
    }  # fmt: skip
    assert {unit: drawing._formatter(unit)(value, 0) for unit, (value, _) in written.items()} == {
        unit: text for unit, (_, text) in written.items()
    }
    assert written.keys() == units


def test_legends_and_gaps_are_those_of_the_answers() -> None:
    assert check.legend_of("{{run}} p95 {{step}}", {"run": "r"}) == "r p95"
    assert check.seconds("15m") == 900 and math.isclose(check.seconds("1.5h"), 5400)
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    drawing._line(axes, check.Series("x", ((0, 1), (1, 2), (9, 3), (10, 4))), "red")
    assert [math.isnan(y) for y in axes.get_lines()[0].get_ydata()] == [False, False, True, False, False]
