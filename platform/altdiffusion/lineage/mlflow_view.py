"""The view of the lineage in MLflow: each operation is one idempotent sequence of calls on a run.

A record that is applied twice (a restart between shipping and marking, or a rebuild) changes nothing: runs, models
and links are looked up by tag before they are created, and the name of an image follows from its content.

Tags: `altdiffusion.key` finds a run; `lineage.ref` finds a checkpoint's LoggedModel; the closure tags
`lineage.ds.<first 32 digits>` = dataset name and `lineage.model.<first 32 digits>` = model name answer "what was this
made from" in one search; `lineage.out.<first 32 digits>` = name marks what a run made.
"""

from __future__ import annotations

import io
import json
import logging
import os
import posixpath
import re
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from altdiffusion.lineage import graph as graphs
from altdiffusion.lineage import lineage_page, registry
from altdiffusion.lineage.compared import flatten, key_name
from altdiffusion.lineage.described import model_note
from altdiffusion.lineage.kept import Kept
from altdiffusion.lineage.known_points import KnownPoints
from altdiffusion.lineage.outbox import Record
from altdiffusion.lineage.tracking import Tracking, is_refusal
from altdiffusion.refs import Ref
from altdiffusion.storage import files

log = logging.getLogger(__name__)

DIGEST_DIGITS = 32  # MLflow takes at most 36
MAX_NOTE = 7500  # tags; MLflow takes 8000
SHOWN_SIDE = 1024
"""Longest side of the copy of an image that MLflow's pages show; its own 256 make a sheet of samples unreadable."""
_COLUMN_TYPES = {"int64": "long", "int32": "integer", "int16": "integer", "float": "float", "double": "double",
                 "string": "string", "binary": "binary", "bool": "boolean"}  # fmt: skip


def run_key(job: str, name: str, fingerprint: str) -> str:
    """Return the key of a job's single run, across all its restarts."""
    return files.sha256_hex(files.canonical_json([job, name, fingerprint]))[:32]


def find_or_create_run(
    tracking: Tracking, *, job: str, name: str, fingerprint: str, start_ms: int | None = None
) -> tuple[str, int]:
    """Return the id of the job's run, which is set to running again if it had ended, and when it was first started.

    Args:
        start_ms: start of a run that is not there yet, in milliseconds since the epoch; None for now.
    """
    key = run_key(job, name, fingerprint)
    found = tracking.client.search_runs(
        [tracking.experiment_id],
        filter_string=f"tags.`altdiffusion.key` = '{key}'",
        max_results=1,
        order_by=["attributes.start_time ASC"],
    )
    if found:
        run_id = str(found[0].info.run_id)
        if found[0].info.status != "RUNNING":
            tracking.client.update_run(run_id, status="RUNNING")
        return run_id, int(found[0].info.start_time)
    tags = {
        "altdiffusion.key": key,
        "altdiffusion.job": job,
        "altdiffusion.name": name,
        "altdiffusion.fingerprint": fingerprint,
    }
    run = tracking.client.create_run(tracking.experiment_id, start_time=start_ms, tags=tags, run_name=f"{job}/{name}")
    return str(run.info.run_id), int(run.info.start_time)


class RunView:
    """Applies records of the journal to one MLflow run, in order."""

    def __init__(
        self, tracking: Tracking, run_id: str, lake_uri: str, kept: Kept | None = None, *, session: int | None = None
    ) -> None:
        self._tracking = tracking
        self._client = tracking.client
        self._run_id = run_id
        self._lake = lake_uri
        self._nodes = graphs.NodeReader(lake_uri)
        self._kept = kept  # the copies of the journal whose records are applied; None if no record names a file
        self._session = session  # the end of the job's earlier start must not end this one; None: apply all
        self._artifacts: str | None = None  # MLflow's URI of the run's artifacts, once it is known
        self._operations: dict[str, Callable[[Record], None]] = {
            "params": self._params,
            "source": self._source,
            "compare": self._compare,
            "input": self._input,
            "output": self._output,
            "checkpoint": self._checkpoint,
            "exported": self._exported,
            "removed": self._removed,
            "candidate": self._candidate,
            "measured": self._measured,
            "system": self._system,
            "image": self._image,
            "artifact": self._artifact,
            "picture": self._page,
            "status": self._status,
        }

    def apply(self, records: Sequence[Record]) -> None:
        """Apply journal records. A refused one is skipped with a warning; an outage raises."""
        for record in records:
            operation = self._operations.get(str(record.get("op")))
            if operation is None:
                log.warning("MLflow run %s: a record of unknown kind %r is skipped", self._run_id, record.get("op"))
                continue
            try:
                operation(record)
            except Exception as error:
                if not is_refusal(error):
                    raise
                log.warning("MLflow run %s: %s is skipped (%s)", self._run_id, record.get("op"), error)

    def metrics(self, records: Sequence[Record], known: KnownPoints | None = None) -> None:
        """Ship lines of a metric outbox. Refused points are skipped one by one; an outage raises.

        Args:
            known: what the run has, for a replay of all points.
        """
        from mlflow.entities import Metric

        points = [
            Metric(key=key_name(str(key)), value=float(value), timestamp=record["time_ms"], step=record["step"])
            for record in records
            if isinstance(record.get("metrics"), dict) and _is_whole(record.get("time_ms"), record.get("step"))
            for key, value in record["metrics"].items()
            if isinstance(value, float) or _is_whole(value)
        ]
        self._log_metrics(points if known is None else known.others(points))

    def _log_metrics(self, points: Sequence[Any]) -> None:
        if not points:
            return
        try:
            self._client.log_batch(self._run_id, metrics=points)
        except Exception as error:
            if not is_refusal(error):
                raise
            if len(points) == 1:
                log.warning("MLflow run %s: metric %s is skipped (%s)", self._run_id, points[0].key, error)
                return
            middle = len(points) // 2
            self._log_metrics(points[:middle])
            self._log_metrics(points[middle:])

    def _tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self._run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _params(self, record: Record) -> None:
        """Log the params that people compare, the whole config as an artifact, and the run's source and description."""
        if "params" in record:
            self._store("config.yaml")
            text = yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True, width=110)
            self._client.log_text(self._run_id, text, "config.yaml")
            self._compare(record)
            self._source(record)
        else:  # of an earlier version, which logged all
            self._compare({"params": flatten(record["config"])})
            self._store("config.json")
            self._client.log_dict(self._run_id, record["config"], "config.json")

    def _source(self, record: Record) -> None:
        """Log which code, machine and command ran the job."""
        self._tags({str(key): str(value)[:MAX_NOTE] for key, value in record.get("tags", {}).items()})

    def _compare(self, record: Record) -> None:
        """Log new params; one that a restart changed (a worker count) keeps its first value, a tag has the new one."""
        from mlflow.entities import Param

        params = {str(key): str(value) for key, value in record["params"].items()}
        known = self._client.get_run(self._run_id).data.params
        new = [Param(key, value) for key, value in params.items() if key not in known]
        self._client.log_batch(self._run_id, params=new)
        changed = {
            key_name(f"restarted.{key}"): value[:MAX_NOTE]
            for key, value in params.items()
            if key in known and known[key] != value
        }
        self._tags(changed)

    def _input(self, record: Record) -> None:
        self._link(self._nodes.node(record["ref"]), str(record["context"]), "lineage.ds")

    def _output(self, record: Record) -> None:
        node = self._nodes.node(record["ref"])
        self._link(node, "output", "lineage.out")
        if _is_whole(record.get("place"), record.get("time_ms")) and not node.missing:
            self._funnel(node, record["place"], record["time_ms"])

    def _funnel(self, node: graphs.Node, place: int, time_ms: int) -> None:
        """Log the rows that a step of a curation kept, by language, and those it rejected, by reason.

        The metric's step is the number of the pipeline step; a tag names the dataset that it made.
        """
        counts = {"funnel/all": node.facts["rows"]}
        counts |= {f"funnel/{code}": rows for code, rows in node.facts["rows_by_language"].items()}
        counts |= {f"rejected/{reason}": rows for reason, rows in node.facts["rejects_by_reason"].items()}
        self.metrics([{"step": place, "time_ms": time_ms, "metrics": counts}])
        self._tags({f"altdiffusion.funnel.{place}": node.name})

    def _system(self, record: Record) -> None:
        self.metrics([record])

    def _link(self, node: graphs.Node, context: str, tag: str) -> None:
        from mlflow.entities import DatasetInput, InputTag, LoggedModelInput

        if node.kind in ("checkpoint", "model", "export"):
            model_id = self._model(node, source_run=None)
            self._client.log_inputs(self._run_id, models=[LoggedModelInput(model_id=model_id)])
            self._tags({f"lineage.model.{node.digest[:DIGEST_DIGITS]}": node.name})
            return
        tags = [InputTag("mlflow.data.context", context)]
        self._client.log_inputs(self._run_id, datasets=[DatasetInput(dataset=dataset_entity(node), tags=tags)])
        self._tags({f"{tag}.{node.digest[:DIGEST_DIGITS]}": node.name})

    def _model(self, node: graphs.Node, source_run: str | None) -> str:
        """Return the id of the LoggedModel of a checkpoint, model or export; create it if there is none."""
        known = find_model(self._tracking, node.ref)
        if known is not None:
            return known
        closure = self._nodes.ancestors(node.parents)
        model = self._client.create_logged_model(
            self._tracking.experiment_id,
            name=re.sub(r"[^A-Za-z0-9_\-]", "-", node.name),
            source_run_id=source_run,
            tags={
                "lineage.ref": node.ref,
                "lineage.uri": node.uri,
                "mlflow.model.isExternal": "true",
                "mlflow.note.content": model_note(node, closure.nodes),
                **closure_tags(closure.nodes),
            },
            params={key: str(node.facts[key]) for key in ("run", "stage", "step", "fingerprint") if key in node.facts},
            model_type=node.kind,
        )
        self._client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def _checkpoint(self, record: Record) -> None:
        from mlflow.entities import LoggedModelOutput

        node = self._node_of(record)
        model_id = self._model(node, source_run=self._run_id)
        outputs = self._client.get_run(self._run_id).outputs
        linked = [output.model_id for output in outputs.model_outputs] if outputs else []
        step = int(record["step"])
        if model_id not in linked:
            self._client.log_outputs(self._run_id, [LoggedModelOutput(model_id=model_id, step=step)])
        self._model_metrics(record, model_id, step, "checkpoint")

    def _node_of(self, record: Record) -> graphs.Node:
        """Return the node of a checkpoint: by its name, since a journal could hold any folder.

        The record describes one that was removed after it was logged.
        """
        node = self._nodes.node(record["ref"])
        if not node.missing:
            return node
        known = record.get("node")
        if not isinstance(known, dict):
            raise FileNotFoundError(f"{record['ref']} is not in the lake")
        uri = files.join(self._lake, "checkpoints", node.name)
        parents = tuple(str(Ref.parse(str(parent))) for parent in known["parents"])
        return replace(node, missing=False, uri=uri, parents=parents, facts=dict(known["facts"]))

    def _exported(self, record: Record) -> None:
        """Show where a checkpoint's export is, and its model card."""
        node = self._node_of(record)
        export = f"exports/{node.name}"
        self._note_model(node, {"lineage.export": files.join(self._lake, export)}, export=export, card=record["card"])

    def _candidate(self, record: Record) -> None:
        """Register the checkpoint with which a stage ended."""
        node = self._node_of(record)
        registry.set_alias(self._tracking, self._lake, node, self._model(node, source_run=None), registry.CANDIDATE)

    def _removed(self, record: Record) -> None:
        self._note_model(self._node_of(record), {"lineage.removed": "true"}, removed=True)

    def _note_model(self, node: graphs.Node, tags: Mapping[str, str], **about: Any) -> None:
        model_id = find_model(self._tracking, node.ref)
        if model_id is None:
            return
        note = model_note(node, self._nodes.ancestors(node.parents).nodes, **about)
        self._client.set_logged_model_tags(model_id, {**tags, "mlflow.note.content": note})

    def _measured(self, record: Record) -> None:
        node = self._nodes.node(record["ref"])
        model_id = self._model(node, source_run=None)
        self._model_metrics(record, model_id, int(node.facts.get("step", 0)), "measured")

    def _model_metrics(self, record: Record, model_id: str, step: int, prefix: str) -> None:
        """Log a record's metrics, linked to a model.

        MLflow keeps one dataset per point of a model, which is the record's first one. Closure tags name them all.
        """
        from mlflow.entities import Metric

        dataset = self._nodes.node(record["datasets"][0]) if record["datasets"] else None
        self._log_metrics(
            [
                Metric(
                    key=key_name(f"{prefix}/{key}"),
                    value=float(value),
                    timestamp=int(record["time_ms"]),
                    step=step,
                    model_id=model_id,
                    dataset_name=dataset.name if dataset else None,
                    dataset_digest=dataset.digest[:DIGEST_DIGITS] if dataset else None,
                )
                for key, value in record["metrics"].items()
            ]
        )

    def _image(self, record: Record) -> None:
        """Log an image in the layout of `MlflowClient.log_image(key=, step=)`, under a name that a replay repeats."""
        from PIL import Image

        path = self._copy(record)
        if path is None:
            return  # an earlier version deleted the journal's copy when it was shipped
        with open(path, "rb") as file:
            data = file.read()
        image = Image.open(io.BytesIO(data))
        image.load()
        key = re.sub(r"[^A-Za-z0-9_\-./ ]", "_", str(record["key"])).replace("/", "~")
        identity = uuid.uuid5(uuid.NAMESPACE_OID, files.sha256_hex(data))
        name = f"{key}+step+{int(record['step'])}+timestamp+{int(record['time_ms'])}+{identity}"
        with tempfile.TemporaryDirectory() as folder:
            image.save(os.path.join(folder, f"{name}.png"))
            image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
            image.convert("RGB").save(os.path.join(folder, f"{name}+compressed.webp"))
            for file_name in sorted(os.listdir(folder)):
                self._store("images", file_name)
                self._client.log_artifact(self._run_id, os.path.join(folder, file_name), "images")
        self._tags({"mlflow.loggedImages": "True"})

    def _artifact(self, record: Record) -> None:
        path = self._copy(record)
        if path is None:
            return  # as above
        below = str(record["path"] or "")
        if os.path.isdir(path):
            below = posixpath.join(below, os.path.basename(path))
            for folder, _, names in os.walk(path):
                for name in names:
                    self._store(below, os.path.relpath(os.path.join(folder, name), path))
            self._client.log_artifacts(self._run_id, path, below)
        else:
            self._store(below, os.path.basename(path))
            self._client.log_artifact(self._run_id, path, record["path"])

    def _store(self, *parts: str) -> None:
        """Refuse a path of an artifact in the lake where a symbolic link leads out: MLflow would follow it."""
        if self._artifacts is None:
            self._artifacts = str(self._client.get_run(self._run_id).info.artifact_uri or "")
        root = self._artifacts
        if root and files.is_local(self._lake) and ("://" not in root or root.startswith("file://")):
            place = files.join(root, *parts)
            lake = files.local_path(self._lake)
            inside = os.path.abspath(files.local_path(root)).startswith(os.path.join(os.path.abspath(lake), ""))
            files.beneath(lake if inside else root, place)

    def _copy(self, record: Record) -> str | None:
        return None if self._kept is None else self._kept.find(record["file"])

    def _page(self, record: Record) -> None:
        whole = graphs.scan(self._lake)
        if record["ref"] not in whole.nodes:
            raise KeyError(record["ref"])
        self._store("lineage.html")
        self._client.log_text(self._run_id, lineage_page.render(whole, record["ref"]), "lineage.html")

    def _status(self, record: Record) -> None:
        if self._session is not None and record["session"] != self._session:
            return
        if record.get("error"):
            self._tags({"altdiffusion.error": str(record["error"])[:MAX_NOTE]})
        self._client.set_terminated(self._run_id, status=record["status"], end_time=int(record["time_ms"]))


def _is_whole(*values: Any) -> bool:
    """Return whether these are integers of 64 bits."""
    return all(isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 for value in values)


def find_model(tracking: Tracking, ref: str) -> str | None:
    """Return the id of the LoggedModel of `ref`, or None."""
    found = tracking.client.search_logged_models(
        experiment_ids=[tracking.experiment_id], filter_string=f"tags.`lineage.ref` = '{ref}'", max_results=1
    )
    return str(found[0].model_id) if found else None


def closure_tags(nodes: Mapping[str, graphs.Node]) -> dict[str, str]:
    """Return one tag for each dataset and each model among the nodes that a thing was made from."""
    tags = {}
    for node in nodes.values():
        word = {"dataset": "ds", "source": "ds", "checkpoint": "model", "model": "model"}.get(node.kind)
        if word is not None and node.digest:
            tags[f"lineage.{word}.{node.digest[:DIGEST_DIGITS]}"] = node.name
    return tags


def dataset_entity(node: graphs.Node) -> Any:
    """Return the mlflow.entities.Dataset of a dataset version or source."""
    from mlflow.entities import Dataset

    columns = []
    for entry in node.facts.get("schema", ()):
        name, _, dtype = entry.partition(":")
        columns.append({"type": _COLUMN_TYPES.get(dtype, "string"), "name": name, "required": True})
    profile = {
        key: node.facts[key]
        for key in ("holds", "rows", "rows_by_language", "rejects_by_reason", "code_version")
        if key in node.facts
    }
    uri = node.uri or node.ref
    return Dataset(
        name=node.name[:500],
        digest=node.digest[:DIGEST_DIGITS],
        source_type="s3" if uri.startswith("s3://") else "local",
        source=json.dumps({"uri": uri}),
        schema=json.dumps({"mlflow_colspec": columns}) if columns else None,
        profile=json.dumps({**profile, "num_rows": profile.get("rows"), "digest": node.digest}),
    )
