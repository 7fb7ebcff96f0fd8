"""Filling an empty MLflow again from the lake: manifests are the truth, so the view can always be rebuilt.

First the journals and metric outboxes in the lake are applied again, which restores curves and status. Then every
dataset version and checkpoint that is not shown yet gets its run from its manifest alone. A second run adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage import graph as graphs
from altdiffusion.lineage.alias_view import show_aliases
from altdiffusion.lineage.job_run import ABOUT, JOURNAL, METRICS
from altdiffusion.lineage.kept import Kept
from altdiffusion.lineage.mlflow_view import DIGEST_DIGITS, RunView, find_model, find_or_create_run
from altdiffusion.lineage.outbox import OutboxReader
from altdiffusion.lineage.tracking import DEFAULT_EXPERIMENT, Tracking, answering, connect
from altdiffusion.storage import files
from altdiffusion.storage.documents import NAME, optional_document

JOB_OF = {"links": "curate", "images": "curate", "latents": "encode", "prompts": "prompts", "generations": "generate"}


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """The numbers of added things."""

    tracking_uri: str
    journals: int
    versions: int
    checkpoints: int
    damaged: tuple[AltDiffusionError, ...] = ()
    """What of the lake could not be read, and was not added."""

    def __str__(self) -> str:
        return (
            f"{self.tracking_uri}: {self.journals} job journals applied, {self.versions} dataset versions and "
            f"{self.checkpoints} checkpoints added from manifests"
        )


def rebuild(lake_uri: str, tracking_uri: str | None = None, experiment: str = DEFAULT_EXPERIMENT) -> Rebuilt:
    """Add to MLflow everything that the lake holds.

    Raises:
        AltDiffusionError: the lake or MLflow is not usable, or MLflow stops answering meanwhile.
    """
    lake = lake_uri.rstrip("/")
    whole = graphs.scan(lake)
    tracking = connect(tracking_uri, lake, experiment)
    with answering(tracking.uri):
        return _rebuild(tracking, lake, whole)


def _rebuild(tracking: Tracking, lake: str, whole: graphs.Graph) -> Rebuilt:
    journals = _replay(tracking, lake)
    versions = checkpoints = 0
    for ref in _parents_first(whole):
        node = whole.nodes[ref]
        if node.kind == "dataset" and not node.missing and not _shown(tracking, node):
            job = JOB_OF.get(str(node.facts["holds"]), "curate")
            _add(tracking, lake, job=job, name=node.name, node=node, config=node.facts["config"])
            versions += 1
        elif node.kind == "checkpoint" and not node.missing and find_model(tracking, node.ref) is None:
            _add(tracking, lake, job="train", name=str(node.facts["run"]), node=node, config=_state(node).get("config"))
            checkpoints += 1
    show_aliases(tracking, lake)
    return Rebuilt(
        tracking_uri=tracking.uri, journals=journals, versions=versions, checkpoints=checkpoints, damaged=whole.damaged
    )


def _replay(tracking: Tracking, lake: str) -> int:
    if not files.is_local(lake):
        return 0
    root = files.join(files.local_path(lake), "tracking")
    count = 0
    for name in files.list_folders(root):
        folder = files.join(root, name)
        about = optional_document(files.within(lake, "tracking", name, ABOUT))
        if about is None:
            continue
        job, fingerprint = about.text("job", NAME, needed="the name of a job"), about.text("fingerprint")
        run_id = find_or_create_run(tracking, job=job, name=about.text("name"), fingerprint=fingerprint)
        view = RunView(tracking, run_id, lake, Kept(folder))
        for reader, send in (
            (OutboxReader(files.within(folder, METRICS), remember=False), view.metrics),
            (OutboxReader(files.within(folder, JOURNAL), remember=False), view.apply),
        ):
            while (chunk := reader.read()) is not None:
                send(chunk.records)
                reader.commit(chunk.end)
        count += 1
    return count


def _parents_first(whole: graphs.Graph) -> list[str]:
    done: dict[str, None] = {}

    def visit(start: str) -> None:
        waiting = [(start, False)]
        while waiting:
            ref, ready = waiting.pop()
            if ready:
                done.setdefault(ref)
            elif ref not in done:
                waiting.append((ref, True))
                waiting.extend((parent, False) for parent in whole.parents(ref))

    for ref in sorted(whole.nodes):
        visit(ref)
    return list(done)


def _shown(tracking: Tracking, node: graphs.Node) -> bool:
    tag = f"lineage.out.{node.digest[:DIGEST_DIGITS]}"
    return bool(
        tracking.client.search_runs(
            [tracking.experiment_id], filter_string=f"tags.`{tag}` = '{node.name}'", max_results=1
        )
    )


def _state(node: graphs.Node) -> dict[str, Any]:
    state = optional_document(files.within(node.uri, "state.json"))
    return {} if state is None else state.value


def _add(tracking: Tracking, lake: str, *, job: str, name: str, node: graphs.Node, config: Any) -> None:
    run_id = find_or_create_run(tracking, job=job, name=name, fingerprint=str(node.facts["fingerprint"]))
    records: list[dict[str, Any]] = [{"op": "params", "config": config}] if isinstance(config, dict) else []
    context = "training" if job == "train" else "input"
    records += [{"op": "input", "ref": parent, "context": context} for parent in node.parents]
    if node.kind == "dataset":
        records.append({"op": "output", "ref": node.ref})
    else:
        metrics = _state(node).get("metrics")
        metrics = metrics if isinstance(metrics, dict) else {}
        records.append(
            {
                "op": "checkpoint",
                "ref": node.ref,
                "step": node.facts["step"],
                "time_ms": int(node.facts["step"]),  # a checkpoint has no recorded time; this keeps the order
                "metrics": {key: value for key, value in metrics.items() if isinstance(value, (int, float))},
                "datasets": [parent for parent in node.parents if parent.startswith("dataset:")],
            }
        )
    RunView(tracking, run_id, lake).apply(records)
    started = tracking.client.get_run(run_id).info.start_time  # the duration is unknown, so it is shown as 0
    tracking.client.set_terminated(run_id, status="FINISHED", end_time=started)
