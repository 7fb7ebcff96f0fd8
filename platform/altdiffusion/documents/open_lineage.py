"""A lake's lineage as OpenLineage events, from its manifests alone: a START and a COMPLETE per thing that was made.

The JSON is that of the OpenLineage specification 2-0-2 (RunEvent) and its facets. A run's id is a version 5 UUID over
the reference of what it made, so that every export of a lake names the same runs. Manifests hold no times: START and
COMPLETE have the time of the file that completed the thing, or the one that is given.
"""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import altdiffusion
from altdiffusion.credentials import redact
from altdiffusion.documents.history import in_order_of_making, reasons, step_name
from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.graph import Graph, Node
from altdiffusion.records import SCHEMAS
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version

NAMESPACE = "altdiffusion"
PRODUCER = f"urn:altdiffusion:{altdiffusion.__version__}"
SPEC = "https://openlineage.io/spec"
EVENT = f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
_IDS = uuid.uuid5(uuid.NAMESPACE_URL, "urn:altdiffusion:openlineage")
_COMPLETED_BY = {
    "dataset": "manifest.json",
    "checkpoint": "COMPLETE.json",
    "export": "lineage.json",
    "model": "lineage.json",
}
"""File whose appearance completes a thing, by its kind: only these are made by runs."""
_FACETS = {
    "schema": "1-2-0/SchemaDatasetFacet",
    "version": "1-0-1/DatasetVersionDatasetFacet",
    "documentation": "1-1-0/DocumentationDatasetFacet",
    "outputStatistics": "1-0-2/OutputStatisticsOutputDatasetFacet",
    "parent": "1-2-0/ParentRunFacet",
    "processing_engine": "1-1-1/ProcessingEngineRunFacet",
    "jobType": "2-0-4/JobTypeJobFacet",
    "sourceCode": "1-0-1/SourceCodeJobFacet",
    "job_documentation": "1-1-0/DocumentationJobFacet",
}
Clock = Callable[[Node], str]
"""The time of a node's events, ISO 8601."""


def completed_at(node: Node) -> str:
    """Return when the file that completes a thing was written, as its file system has it: UTC, ISO 8601.

    Raises:
        AltDiffusionError: the file system cannot be asked.
    """
    uri = files.join(node.uri, _COMPLETED_BY[node.kind])
    fs, path = files.filesystem(uri)
    with files.naming(uri, "reading"):
        written: datetime.datetime = fs.modified(path)
    aware = written if written.tzinfo is not None else written.replace(tzinfo=datetime.UTC)
    return aware.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def fixed(text: str) -> Clock:
    """Return a clock that always shows one time.

    Raises:
        AltDiffusionError: the text is not a time with its offset.
    """
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise AltDiffusionError(f"--time {text}", "is not a time with an offset", "write it as 2026-01-31T12:00:00Z")
    return lambda _: text


def events(graph: Graph, *, namespace: str = NAMESPACE, clock: Clock = completed_at) -> Iterator[dict[str, Any]]:
    """Yield START and COMPLETE of the runs that made what a lake holds, parents first.

    Args:
        graph: of the lake.
        namespace: of all jobs and datasets.
        clock: time of a thing's events.

    Raises:
        AltDiffusionError: the table of shards of a version is damaged.
    """
    lake = Lake(graph.lake_uri)
    for node in in_order_of_making(graph):
        if node.kind not in _COMPLETED_BY or node.missing or not node.uri:
            continue
        run = {"runId": run_id(node.ref), "facets": _run_facets(node, namespace)}
        job = _job(node, namespace)
        inputs = [_dataset(graph.nodes[parent], namespace) for parent in graph.parents(node.ref)]
        common = {"eventTime": clock(node), "producer": PRODUCER, "schemaURL": EVENT}
        yield {"eventType": "START", **common, "run": run, "job": job, "inputs": inputs, "outputs": []}
        outputs = [_output(lake, node, namespace)]
        yield {"eventType": "COMPLETE", **common, "run": run, "job": job, "inputs": inputs, "outputs": outputs}


def run_id(name: str) -> str:
    """Return the id of the run that made a thing."""
    return str(uuid.uuid5(_IDS, name))


def _facet(name: str, /, **values: Any) -> dict[str, Any]:
    path = _FACETS[name]
    version, _, kind = path.partition("/")
    return {"_producer": PRODUCER, "_schemaURL": f"{SPEC}/facets/{version}/{kind}.json#/$defs/{kind}", **values}


def _run_facets(node: Node, namespace: str) -> dict[str, Any]:
    code = str(node.facts.get("code_version", altdiffusion.__version__))
    facets = {"processing_engine": _facet("processing_engine", version=code, name="altdiffusion")}
    if node.kind in ("checkpoint", "export") and "run" in node.facts:
        whole = str(node.facts["run"])  # the training run, of which this checkpoint or export is a part
        facets["parent"] = _facet(
            "parent", run={"runId": run_id(f"run:{whole}")}, job={"namespace": namespace, "name": f"train.{whole}"}
        )
    return facets


def _job(node: Node, namespace: str) -> dict[str, Any]:
    if node.kind == "dataset":
        name = step_name(node)
    elif node.kind == "checkpoint":
        name = f"train.{node.facts['run']}.checkpoint"
    else:
        name = f"{node.kind}.{node.name.partition('/')[0]}"
    facets = {
        "jobType": _facet("jobType", processingType="BATCH", integration="ALTDIFFUSION", jobType=node.kind.upper()),
        "documentation": _facet("job_documentation", description=_about_job(node), contentType="text/plain"),
    }
    if node.kind == "dataset":
        config = json.dumps(node.facts["config"], ensure_ascii=False, sort_keys=True)
        facets["sourceCode"] = _facet("sourceCode", language="JSON", sourceCode=redact(config))
    return {"namespace": namespace, "name": name, "facets": facets}


def _about_job(node: Node) -> str:
    if node.kind == "dataset":
        lost = "; ".join(reasons(node.facts["rejects_by_reason"])) or "none"
        return f"Pipeline step with config fingerprint {node.facts['fingerprint']}. Rejected rows: {lost}"
    if node.kind == "checkpoint":
        return f"Training, stage {node.facts['stage']}, up to step {node.facts['step']}"
    return f"Makes {node.kind} {node.name}"


def _dataset(node: Node, namespace: str) -> dict[str, Any]:
    about = _facet("documentation", description=node.label, contentType="text/plain")
    facets: dict[str, Any] = {"documentation": about}
    if node.digest:
        facets["version"] = _facet("version", datasetVersion=node.digest)
    if node.kind == "dataset" and not node.missing:
        columns = SCHEMAS[node.facts["holds"]]
        fields = [
            {
                "name": column.name,
                "type": str(column.type),
                "description": column.metadata[b"meaning"].decode(),
                "ordinal_position": place,
            }
            for place, column in enumerate(columns, 1)
        ]
        facets["schema"] = _facet("schema", fields=fields)
    return {"namespace": namespace, "name": f"{node.kind}/{node.name}", "facets": facets}


def _output(lake: Lake, node: Node, namespace: str) -> dict[str, Any]:
    found = _dataset(node, namespace)
    if node.kind == "dataset":
        version: Version = lake.version(node.ref)
        size = sum(shard.bytes for shard in version.shards)
        statistics = _facet("outputStatistics", rowCount=version.rows, size=size, fileCount=len(version.shards))
        found["outputFacets"] = {"outputStatistics": statistics}
    elif "bytes" in node.facts:
        found["outputFacets"] = {"outputStatistics": _facet("outputStatistics", size=node.facts["bytes"])}
    return found
