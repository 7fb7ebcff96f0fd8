"""What the manifests of a dataset state, without opening each version: for lists, look-ups and the lineage graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.records import SCHEMAS, Kind
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Dataset, Manifest
from altdiffusion.storage.documents import Document
from altdiffusion.storage.index import Shelf, read_shelf


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A manifest without its tally, which can hold thousands of counts, and without its table of shards."""

    name: str
    digest: str
    kind: Kind
    parents: tuple[str, ...]
    config: Mapping[str, Any]
    fingerprint: str
    code_version: str
    schema: tuple[str, ...]
    rows: int
    rows_by_language: Mapping[str, int]
    rejects_by_reason: Mapping[str, int]

    @property
    def ref(self) -> Ref:
        return Ref("dataset", self.name, self.digest)


@dataclass(frozen=True, kw_only=True)
class Summaries:
    """All versions of a dataset."""

    by_digest: Mapping[str, Summary]
    damaged: tuple[AltDiffusionError, ...]
    """What keeps the others from being read."""

    def whole(self) -> Mapping[str, Summary]:
        """Return all versions.

        Raises:
            AltDiffusionError: a manifest is damaged.
        """
        for error in self.damaged:
            raise error
        return self.by_digest


def summary_of(digest: str, manifest: Manifest) -> Summary:
    """Return the summary of a manifest with this digest."""
    return Summary(
        digest=digest,
        **{field.name: getattr(manifest, field.name) for field in fields(Summary) if field.name != "digest"},
    )


def read_summaries(dataset: Dataset) -> Summaries:
    """Return what is known of all versions of a dataset, from one listing and the index."""

    def describe(uri: str, parts: tuple[str, ...], data: bytes) -> Mapping[str, Any]:
        manifest = asdict(summary_of(parts[0], dataset.manifest_of(uri, parts[0], data)))
        lists = {key: list(manifest[key]) for key in ("parents", "schema")}
        return {key: value for key, value in manifest.items() if key not in ("name", "digest")} | lists

    def build(parts: tuple[str, ...], document: Document) -> Summary:
        kind: Any = document.text("kind")
        if kind not in SCHEMAS:
            raise document.wrong("kind", f"one of {', '.join(SCHEMAS)}")
        return Summary(
            name=dataset.name,
            digest=parts[0],
            kind=kind,
            parents=document.refs("parents"),
            config=document.object("config").value,
            fingerprint=document.name("fingerprint"),
            code_version=document.text("code_version"),
            schema=document.texts("schema"),
            rows=document.count("rows"),
            rows_by_language=document.counts("rows_by_language"),
            rejects_by_reason=document.counts("rejects_by_reason"),
        )

    found = read_shelf(
        Shelf(
            lake_uri=dataset.lake_uri,
            name=files.join("datasets", dataset.name),
            root_uri=files.join(dataset.folder_uri, "versions"),
            depth=1,
            file="manifest.json",
            describe=describe,
            build=build,
        )
    )
    return Summaries(by_digest={parts[0]: one for parts, one in found.things.items()}, damaged=found.damaged)
