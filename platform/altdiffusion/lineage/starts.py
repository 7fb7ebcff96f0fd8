"""The starts of jobs, kept in the lake: with which code each result was made.

    <lake>/starts/<job>-<name>-<fingerprint>/<time, ms>.json    one file per start of a job

A start records its code, machine and command (`lineage.source`), and what the job put out since. MLflow shows the same
as tags, and gets them from here again if a job's journal is not in the lake.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.graph import Graph, Node
from altdiffusion.storage import files
from altdiffusion.storage.documents import parse_document

log = logging.getLogger(__name__)

FOLDER = "starts"


@dataclass(kw_only=True)
class Start:
    """One start of a job."""

    job: str
    name: str
    fingerprint: str
    time_ms: int
    facts: Mapping[str, str]
    """`lineage.source.source_facts`."""
    outputs: list[str]
    """References of the dataset versions and checkpoints that the job put out since; it may have found a version
    already made by an earlier start."""

    @property
    def path(self) -> tuple[str, ...]:
        """Names of the file and its folders, below the lake."""
        readable = re.sub(r"[^A-Za-z0-9._\-]", "-", f"{self.job}-{self.name}-{self.fingerprint[:12]}")
        return FOLDER, readable, f"{self.time_ms}.json"

    def write(self, lake_uri: str) -> None:
        """Write the start; a lake that refuses it is reported in the log, since the job itself does not need it."""
        value = {
            "job": self.job,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "time_ms": self.time_ms,
            "facts": dict(self.facts),
            "outputs": self.outputs,
        }
        try:
            files.write_atomic(files.within(lake_uri, *self.path), files.canonical_json(value))
        except (AltDiffusionError, OSError) as error:
            log.warning("the code that this job runs with is not recorded in the lake (%s)", error)

    def output(self, lake_uri: str, ref: str) -> None:
        """Add a result."""
        if ref not in self.outputs:
            self.outputs.append(ref)
            self.write(lake_uri)


@dataclass(frozen=True, kw_only=True)
class Starts:
    """All starts in a lake, oldest first."""

    all: Sequence[Start]
    damaged: Sequence[AltDiffusionError]
    """Files that cannot be read."""

    @functools.cached_property
    def _makers(self) -> Mapping[str, Start]:
        return {ref: start for start in reversed(self.all) for ref in start.outputs}

    def of(self, graph: Graph, node: Node) -> Start | None:
        """Return the start that made a thing; None where it is not known.

        That is the first one that put it out. A model folder that was exported has the start of its checkpoint.
        """
        if node.kind in ("dataset", "checkpoint"):
            return self._makers.get(node.ref)
        above = [graph.nodes[parent] for parent in graph.parents(node.ref)]
        return next((self.of(graph, one) for one in above if one.kind in ("checkpoint", "export")), None)


def read_starts(lake_uri: str) -> Starts:
    """Return all starts in a lake."""
    root = files.join(lake_uri, FOLDER)
    uris = [
        files.join(root, folder, name)
        for folder in files.list_folders(root)
        for name in files.list_names(files.join(root, folder))
        if name.endswith(".json")
    ]
    found: list[Start] = []
    damaged: list[AltDiffusionError] = []
    for uri, data in zip(uris, files.read_many(uris), strict=True):
        if isinstance(data, FileNotFoundError):
            continue
        try:
            if isinstance(data, AltDiffusionError):
                raise data
            document = parse_document(uri, data)
            facts = document.object("facts")
            found.append(
                Start(
                    job=document.text("job"),
                    name=document.text("name"),
                    fingerprint=document.text("fingerprint"),
                    time_ms=document.count("time_ms"),
                    facts={key: facts.text(key) for key in facts.value},
                    outputs=list(document.texts("outputs")),
                )
            )
        except AltDiffusionError as error:
            damaged.append(error)
    return Starts(all=sorted(found, key=lambda one: (one.time_ms, one.path)), damaged=damaged)
