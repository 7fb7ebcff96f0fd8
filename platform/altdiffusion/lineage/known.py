"""What a job has recorded so far, by this start or an earlier one, read from its journal: it is not recorded twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from altdiffusion.lineage.outbox import OutboxReader


@dataclass(kw_only=True)
class Known:
    """Checkpoints and images in a journal."""

    checkpoints: dict[str, set[str]] = field(default_factory=dict)
    """Reference -> names of its metrics."""
    nodes: dict[str, Any] = field(default_factory=dict)
    """Reference -> what the view needs of a checkpoint that is gone."""
    removed: set[str] = field(default_factory=set)
    exported: set[str] = field(default_factory=set)
    candidates: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    """References of the outputs whose rows were counted."""
    images: set[tuple[str, int, str]] = field(default_factory=set)
    """Key, step and file."""

    @classmethod
    def read(cls, path: str) -> Known:
        """Return what a journal holds; nothing where there is none."""
        known = cls()
        reader = OutboxReader(path, remember=False)
        while (chunk := reader.read()) is not None:
            for record in chunk.records:
                known.add(record)
            reader.commit(chunk.end)
        return known

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in one record."""
        operation, ref = record.get("op"), str(record.get("ref"))
        if operation == "checkpoint":
            metrics = record.get("metrics")
            self.checkpoints.setdefault(ref, set()).update(metrics if isinstance(metrics, dict) else ())
            self.nodes[ref] = record.get("node")
        elif operation == "removed":
            self.removed.add(ref)
        elif operation == "exported":
            self.exported.add(ref)
        elif operation == "candidate":
            self.candidates.add(ref)
        elif operation == "output" and "place" in record:
            self.outputs.add(ref)
        elif operation == "image" and isinstance(record.get("step"), int):
            self.images.add((str(record.get("key")), record["step"], str(record.get("file"))))
