"""Filling an empty MLflow again from the lake: manifests are the truth, so the view can always be rebuilt.

The journals, metric outboxes and copies of files in `<lake>/tracking` are applied again, all jobs' records in the order
of their times. So the store gets the same runs as before: names, times, status, params, metrics, models, images and
artifacts. Only ids are new, and lineage.html shows the lake as it is now. A job that has ended without a last word is
marked KILLED. A second run adds nothing.

Where a lake has no journal at all, every dataset version and checkpoint gets a run from its manifest alone. With
`manifests`, so do those that no journal names.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage import graph as graphs
from altdiffusion.lineage.alias_view import show_aliases
from altdiffusion.lineage.job_folder import ABOUT, JOURNAL, METRICS, first_start, is_running, is_time
from altdiffusion.lineage.kept import Kept
from altdiffusion.lineage.known_points import KnownPoints
from altdiffusion.lineage.mlflow_view import DIGEST_DIGITS, RunView, find_model, find_or_create_run
from altdiffusion.lineage.outbox import OutboxReader, Record
from altdiffusion.lineage.source import source_tags
from altdiffusion.lineage.starts import Start, read_starts
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


def rebuild(
    lake_uri: str,
    tracking_uri: str | None = None,
    experiment: str = DEFAULT_EXPERIMENT,
    *,
    manifests: bool = False,
) -> Rebuilt:
    """Add to MLflow everything that jobs have logged.

    Args:
        manifests: also add a run for each version and checkpoint that no journal names, as where there is no journal.

    Raises:
        AltDiffusionError: the lake or MLflow is not usable, or MLflow stops answering meanwhile.
    """
    lake = files.anchored(lake_uri)
    whole = graphs.scan(lake)
    tracking = connect(tracking_uri, lake, experiment)
    with answering(tracking.uri):
        return _rebuild(tracking, lake, whole, manifests=manifests)


def _rebuild(tracking: Tracking, lake: str, whole: graphs.Graph, *, manifests: bool) -> Rebuilt:
    journals = _replay(tracking, lake)
    starts = read_starts(lake)
    versions = checkpoints = 0
    for ref in whole.parents_first() if manifests or not journals else ():
        node = whole.nodes[ref]
        if node.kind == "dataset" and not node.missing and not _shown(tracking, node):
            job = JOB_OF.get(str(node.facts["holds"]), "curate")
            made = starts.of(whole, node)
            _add(tracking, lake, job=job, name=node.name, node=node, config=node.facts["config"], made=made)
            versions += 1
        elif node.kind == "checkpoint" and not node.missing and find_model(tracking, node.ref) is None:
            made, config = starts.of(whole, node), _state(node).get("config")
            _add(tracking, lake, job="train", name=str(node.facts["run"]), node=node, config=config, made=made)
            checkpoints += 1
    show_aliases(tracking, lake)
    return Rebuilt(
        tracking_uri=tracking.uri,
        journals=journals,
        versions=versions,
        checkpoints=checkpoints,
        damaged=(*whole.damaged, *starts.damaged),
    )


@dataclass(frozen=True, kw_only=True)
class _Journal:
    """What a job has logged, and the run that shows it."""

    folder: str
    run_id: str
    view: RunView

    def records(self, name: str) -> Iterator[Sequence[Record]]:
        """Yield the whole lines of one of its files, some at a time."""
        reader = OutboxReader(files.within(self.folder, name), remember=False)
        while (chunk := reader.read()) is not None:
            yield chunk.records
            reader.commit(chunk.end)

    def entries(self) -> Iterator[tuple[int, _Journal, Record]]:
        """Yield the journal's records, each after the time from which on it counts, which never goes back."""
        now = 0
        for records in self.records(JOURNAL):
            for record in records:
                time_ms = record.get("time_ms")
                now = max(now, time_ms if is_time(time_ms) else 0)
                yield now, self, record


def _replay(tracking: Tracking, lake: str) -> int:
    """Apply all journals and return their number."""
    journals = list(_journals(tracking, lake)) if files.is_local(lake) else []
    for journal in journals:
        known = KnownPoints(tracking.client, journal.run_id)
        for records in journal.records(METRICS):
            journal.view.metrics(records, known)
    last: dict[str, tuple[int, Record]] = {}
    entries = heapq.merge(*(journal.entries() for journal in journals), key=lambda entry: entry[0])
    for now, journal, record in entries:  # in the order in which the jobs have logged
        journal.view.apply([record])
        last[journal.folder] = (now, record)
    for journal in journals:
        now, record = last.get(journal.folder, (0, {}))
        if record.get("op") == "status":
            continue
        if is_running(journal.folder):
            tracking.client.update_run(journal.run_id, status="RUNNING")
        else:
            _mark_killed(tracking, journal, now)
    return len(journals)


def _journals(tracking: Tracking, lake: str) -> Iterator[_Journal]:
    found = []
    for name in files.list_folders(files.join(lake, "tracking")):
        folder = files.within(lake, "tracking", name)
        about = optional_document(files.within(folder, ABOUT))
        if about is not None:
            found.append((first_start(folder), folder, about))
    for start_ms, folder, about in sorted(found, key=lambda one: (one[0] or 0, one[1])):
        job, fingerprint = about.text("job", NAME, needed="the name of a job"), about.text("fingerprint")
        run_id, _ = find_or_create_run(
            tracking, job=job, name=about.text("name"), fingerprint=fingerprint, start_ms=start_ms
        )
        yield _Journal(folder=folder, run_id=run_id, view=RunView(tracking, run_id, lake, Kept(folder)))


def _mark_killed(tracking: Tracking, journal: _Journal, now: int) -> None:
    """End the run of a job that was killed, at the time of its last sign of life."""
    end = now
    for records in journal.records(METRICS):
        times = [record["time_ms"] for record in records if is_time(record.get("time_ms"))]
        end = max([end, *times])
    started = int(tracking.client.get_run(journal.run_id).info.start_time)
    tracking.client.set_terminated(journal.run_id, status="KILLED", end_time=max(end, started))


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


def _add(
    tracking: Tracking, lake: str, *, job: str, name: str, node: graphs.Node, config: Any, made: Start | None
) -> None:
    run_id, started = find_or_create_run(tracking, job=job, name=name, fingerprint=str(node.facts["fingerprint"]))
    records: list[dict[str, Any]] = [{"op": "params", "config": config}] if isinstance(config, dict) else []
    if made is not None:
        records.append({"op": "source", "tags": source_tags(made.job, made.facts)})
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
    tracking.client.set_terminated(run_id, status="FINISHED", end_time=started)  # the duration is not known
