"""OpenLineage events: valid for the official classes, the same for the same lake, and sent with bounded patience."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attr
import pytest

from altdiffusion.cli import main
from altdiffusion.documents import event_post, open_lineage
from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.graph import scan
from tests.lineage_lake import SmallLake

TIME = "2026-01-31T12:00:00Z"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallLake:
    return SmallLake(tmp_path_factory.mktemp("lake"))


def events_of(small: SmallLake) -> list[dict[str, Any]]:
    return list(open_lineage.events(scan(small.uri), clock=open_lineage.fixed(TIME)))


class Official:
    """Makes objects of the classes that openlineage-python generates from the specification's schemas."""

    def __init__(self) -> None:
        from openlineage.client import event_v2, facet_v2

        self.events = event_v2
        self.facets = {
            "schema": facet_v2.schema_dataset.SchemaDatasetFacet,
            "version": facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet,
            "outputStatistics": facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
            "parent": facet_v2.parent_run.ParentRunFacet,
            "processing_engine": facet_v2.processing_engine_run.ProcessingEngineRunFacet,
            "jobType": facet_v2.job_type_job.JobTypeJobFacet,
            "sourceCode": facet_v2.source_code_job.SourceCodeJobFacet,
        }
        self.documentation = {
            "job": facet_v2.documentation_job.DocumentationJobFacet,
            "dataset": facet_v2.documentation_dataset.DocumentationDatasetFacet,
        }
        self.fields = facet_v2.schema_dataset.SchemaDatasetFacetFields

    def facet(self, owner: str, name: str, values: dict[str, Any]) -> None:
        """Make a facet: an unknown or missing field is an error, and so is another version of its schema."""
        kind = self.documentation[owner] if name == "documentation" else self.facets[name]
        given = {key: value for key, value in values.items() if not key.startswith("_")}
        made = kind(producer=values["_producer"], **given)
        assert made._get_schema() == values["_schemaURL"]
        for field in values.get("fields", ()):
            self.fields(**field)

    def event(self, event: dict[str, Any]) -> Any:
        run, job = event["run"], event["job"]
        for name, values in run["facets"].items():
            self.facet("run", name, values)
        for name, values in job["facets"].items():
            self.facet("job", name, values)
        for dataset in (*event["inputs"], *event["outputs"]):
            for name, values in {**dataset["facets"], **dataset.get("outputFacets", {})}.items():
                self.facet("dataset", name, values)
        made = self.events.RunEvent(
            eventType=self.events.RunState(event["eventType"]),
            eventTime=event["eventTime"],
            producer=event["producer"],
            run=self.events.Run(**run),
            job=self.events.Job(**job),
            inputs=[self.events.InputDataset(**one) for one in event["inputs"]],
            outputs=[self.events.OutputDataset(**one) for one in event["outputs"]],
        )
        assert made.schemaURL == event["schemaURL"]
        assert set(event) == {field.name for field in attr.fields(type(made))}
        return made


def test_every_event_is_valid_for_the_official_classes(small: SmallLake) -> None:
    official = Official()
    for event in events_of(small):
        official.event(event)


def test_events_state_runs_in_order_with_inputs_and_counts(small: SmallLake) -> None:
    events = events_of(small)
    assert [event["eventType"] for event in events] == ["START", "COMPLETE"] * (len(events) // 2)
    done = {event["outputs"][0]["name"]: event for event in events if event["eventType"] == "COMPLETE"}
    images = done["dataset/images"]
    assert images["job"]["name"] == "make-images" and [one["name"] for one in images["inputs"]] == ["dataset/links"]
    statistics = images["outputs"][0]["outputFacets"]["outputStatistics"]
    assert (statistics["rowCount"], statistics["size"]) == (3, small.images.shards[0].bytes)
    assert images["outputs"][0]["facets"]["version"]["datasetVersion"] == small.images.ref.digest
    assert "too_small: 2 rows" in done["dataset/links"]["job"]["facets"]["documentation"]["description"]
    parents = {done[f"checkpoint/quality/step-{n:08d}"]["run"]["facets"]["parent"]["run"]["runId"] for n in (50, 100)}
    assert parents == {open_lineage.run_id("run:quality")}
    made = list(done)
    for name, event in done.items():
        for one in event["inputs"]:
            assert one["name"] not in made or made.index(one["name"]) < made.index(name)


def test_ids_and_events_are_those_of_the_lake_and_hold_no_place(
    small: SmallLake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = SmallLake(tmp_path / "elsewhere")
    assert events_of(small) == events_of(again)
    out = tmp_path / "events.jsonl"
    command = ["lineage", "export", "--format", "openlineage", "--lake", small.uri]
    assert main([*command, "--out", str(out), "--time", TIME]) == 0
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == events_of(small)
    assert small.uri not in out.read_text(encoding="utf-8")
    assert main([*command, "--out", str(out), "--time", "noon"]) == 2
    assert main(command) == 2
    assert "give --out FILE, --url URL, or both" in capsys.readouterr().err


def test_without_a_time_events_have_that_of_the_completing_file(small: SmallLake) -> None:
    import datetime

    first = next(iter(open_lineage.events(scan(small.uri))))
    age = time.time() - datetime.datetime.fromisoformat(first["eventTime"]).timestamp()
    assert -1 < age < 3600


class Server(http.server.ThreadingHTTPServer):
    """Takes events on loopback; `answers` are the statuses of the next requests, then 201."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[int] = []
        self.requests: list[tuple[str | None, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/api/v1/lineage"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.headers["Authorization"], json.loads(body)))
        status = self.server.answers.pop(0) if self.server.answers else 201
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_events_arrive_in_order_and_failures_are_tried_again(server: Server, small: SmallLake) -> None:
    server.answers = [503, 429, 201]
    events = events_of(small)
    assert event_post.post_events(server.url, events, wait_s=0.0) == len(events)
    received = [body for _, body in server.requests]
    assert received == [events[0], events[0], *events]


@pytest.mark.parametrize(("answers", "tries"), [([401], 1), ([302], 1), ([500] * 9, event_post.TRIES)])
def test_patience_is_bounded_and_the_key_is_not_shown(
    server: Server, monkeypatch: pytest.MonkeyPatch, answers: list[int], tries: int
) -> None:
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "sesame-open-1234")
    server.answers = list(answers)
    with pytest.raises(AltDiffusionError, match=str(answers[0])) as caught:
        event_post.post_events(server.url, [{"a": 1}], wait_s=0.0)
    assert [key for key, _ in server.requests] == ["Bearer sesame-open-1234"] * tries
    assert "sesame" not in str(caught.value)


def test_a_server_that_is_not_there_is_named(server: Server, small: SmallLake) -> None:
    with pytest.raises(AltDiffusionError, match="cannot be reached"):
        event_post.post_events("http://127.0.0.1:9/api", [{}], wait_s=0.0)
    assert main(["lineage", "export", "--format", "openlineage", "--lake", small.uri, "--url", server.url]) == 0
    assert len(server.requests) == len(events_of(small))
