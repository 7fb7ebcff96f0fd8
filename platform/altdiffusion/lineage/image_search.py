"""From one image to the rows that hold it: generated (prompt, seed, checkpoint) or collected (URL, caption).

An image is named by the SHA-256 of its bytes, by a prefix of that, or by a file. Rows are not in manifests, so these
nodes are created on demand from the `image_sha256` column.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.languages import UNDETERMINED, language_of
from altdiffusion.lineage import row_search
from altdiffusion.lineage.graph import Direction, Graph, Node, Slice
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version

MAX_ROWS = 6  # rows that are shown per image
SEARCHED_ROWS = 1_000_000  # training rows that are searched for the caption of a prompt
_PREFIX = re.compile(r"(?:image:)?([0-9a-f]{8,64})")
_GENERATION_COLUMNS = ("id", "language", "prompt", "seed", "width", "height", "image_sha256", "checkpoint", "steps",
                       "guidance_scale", "sampler")  # fmt: skip
_IMAGE_COLUMNS = ("sample_id", "url", "caption", "language", "image_sha256", "source")


@dataclass(frozen=True, kw_only=True)
class Found:
    """Rows of one version that hold the image."""

    version: Version
    rows: Sequence[Mapping[str, Any]]


def lineage(graph: Graph, text: str, direction: Direction) -> Slice:
    """Return the slice above or below what a user typed: any reference, digest prefix, image, image file,
    row id or link.

    Raises:
        AltDiffusionError: nothing or more than one thing matches.
    """
    found = graph.find(text)
    if len(found) > 1:
        raise graph.ambiguous(text, [node.ref for node in found])
    if found:
        return graph.up(found[0].ref) if direction == "up" else graph.down(found[0].ref)
    row = row_search.wanted_row(text)
    prefix, tried = _image(text)
    if row is not None and (prefix is None or not holding(graph, prefix)):
        return row_search.lineage_of_row(graph, row, direction)
    if prefix is None:
        raise graph.unknown(text, tried)
    hits = holding(graph, prefix)
    images = sorted({str(row["image_sha256"]) for hit in hits for row in hit.rows})
    if not images:
        raise graph.unknown(text, " (no digest starts like this, and no row holds such an image)")
    if len(images) > 1:
        raise graph.ambiguous(text, [f"image:{image}" for image in images])
    if direction == "down":
        return _below(graph, images[0], hits)
    whole, root = _above(graph, images[0], hits)
    return whole.up(root)


def _image(text: str) -> tuple[str | None, str]:
    match = _PREFIX.fullmatch(text)
    if match:
        return match[1], ""
    if os.path.isfile(text):
        with open(text, "rb") as file:
            return files.sha256_hex(file.read()), ""
    return None, " and is not a file here" if "/" in text or "." in text else ""


def versions_of(graph: Graph, *kinds: str) -> Iterator[Version]:
    """Yield the versions of a lake that hold rows of some kinds."""
    lake = Lake(graph.lake_uri)
    for ref in sorted(graph.nodes):
        node = graph.nodes[ref]
        if node.kind == "dataset" and not node.missing and node.facts.get("holds") in kinds:
            yield lake.version(ref)


def holding(graph: Graph, prefix: str) -> list[Found]:
    """Return the rows whose image's SHA-256 begins so, by version."""
    hits = []
    for version in versions_of(graph, "generations", "images"):
        columns = _GENERATION_COLUMNS if version.manifest.kind == "generations" else _IMAGE_COLUMNS
        rows: list[Mapping[str, Any]] = []
        for table in version.iter_tables(columns):
            rows += table.filter(pc.starts_with(table["image_sha256"], prefix)).to_pylist()
        if rows:
            hits.append(Found(version=version, rows=rows))
    return hits


def _below(graph: Graph, image: str, hits: Sequence[Found]) -> Slice:
    root = f"image:{image}"
    slices = [graph.down(str(hit.version.ref)) for hit in hits]
    nodes = {ref: node for part in slices for ref, node in part.nodes.items()}
    steps = {ref: step for part in slices for ref, step in part.steps.items()}
    nodes[root] = Node(ref=root, kind="image", name=image[:12], digest=image)
    steps[root] = tuple(sorted(str(hit.version.ref) for hit in hits))
    return Slice(root=root, direction="down", nodes=nodes, steps=steps)


def _above(graph: Graph, image: str, hits: Sequence[Found]) -> tuple[Graph, str]:
    extra: list[Node] = []
    parents: list[str] = []
    facts: dict[str, Any] = {}
    for hit in hits:
        shown = hit.rows[:MAX_ROWS]
        if hit.version.manifest.kind == "generations":
            for row in shown:
                extra += _generated_row(graph, hit.version, row)
                parents += [node.ref for node in extra if node.ref not in parents and node.kind in ("prompt", "row")]
                parents.append(str(row["checkpoint"]))
                facts |= {key: row[key] for key in ("width", "height", "seed", "steps", "guidance_scale", "sampler")}
            facts["in"] = f"{hit.version.ref.short}"
        else:
            for row in shown:
                extra.append(_source_row(row, (str(hit.version.ref),)))
                parents.append(extra[-1].ref)
        if len(hit.rows) > len(shown):
            facts["more_rows"] = facts.get("more_rows", 0) + len(hit.rows) - len(shown)
    root = Node(
        ref=f"image:{image}",
        kind="image",
        name=image[:12],
        digest=image,
        parents=tuple(dict.fromkeys(parents)),
        facts=facts,
    )
    return graph.with_nodes([*extra, root]), root.ref


def _generated_row(graph: Graph, version: Version, row: Mapping[str, Any]) -> list[Node]:
    prompts = tuple(
        parent for parent in version.manifest.parents if graph.nodes[parent].facts.get("holds") == "prompts"
    )
    prompt = Node(
        ref=f"prompt:{row['id']}@{version.ref.digest}",
        kind="prompt",
        name=str(row["id"]),
        digest="",
        parents=prompts or (str(version.ref),),
        facts={key: row[key] for key in ("language", "prompt", "seed")},
    )
    return [prompt, *_seen_in_training(graph, str(row["checkpoint"]), str(row["prompt"]), str(row["language"]))]


def _seen_in_training(graph: Graph, checkpoint: str, prompt: str, language: str) -> list[Node]:
    """Return rows, with their URLs, that the checkpoint was trained on and whose caption is this prompt."""
    if checkpoint not in graph.nodes:
        return []
    closure = graph.up(checkpoint).nodes
    rows: dict[int, tuple[dict[str, Any], list[str]]] = {}
    searched = 0
    lake = Lake(graph.lake_uri)
    for ref in sorted(closure):
        if closure[ref].missing or closure[ref].facts.get("holds") != "latents":
            continue
        version = lake.version(ref)
        for index in range(len(version.shards)):
            searched += version.shards[index].rows
            if searched > SEARCHED_ROWS:
                break
            table = version.read_shard(index, ("sample_id", "caption", "language", "image_sha256"))
            same = pc.equal(table["caption"], prompt)
            if language != UNDETERMINED:
                same = pc.and_(same, pc.equal(table["language"], language_of(language)))
            for row in table.filter(same).to_pylist():
                known = rows.setdefault(row["sample_id"], (row, []))
                if ref not in known[1]:
                    known[1].append(ref)
    chosen = dict(sorted(rows.items())[:MAX_ROWS])
    urls = _urls(lake, closure, list(chosen))
    return [_source_row({**row, **urls.get(key, {}), "seen": True}, tuple(refs)) for key, (row, refs) in chosen.items()]


def _urls(lake: Lake, closure: Mapping[str, Node], sample_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    wanted = pa.array(sample_ids, pa.int64())
    for ref in sorted(closure):
        if closure[ref].missing or closure[ref].facts.get("holds") != "links" or len(found) == len(sample_ids):
            continue
        for table in lake.version(ref).iter_tables(("sample_id", "url", "source")):
            for row in table.filter(pc.is_in(table["sample_id"], value_set=wanted)).to_pylist():
                found.setdefault(row["sample_id"], row)
    return found


def _source_row(row: Mapping[str, Any], parents: tuple[str, ...]) -> Node:
    shown = ("sample_id", "language", "caption", "url", "source", "image_sha256", "seen")
    facts = {key: row[key] for key in shown if row.get(key)}
    return Node(
        ref=f"row:{row['sample_id']}@{parents[0].rpartition('@')[2]}",
        kind="row",
        name=str(row["sample_id"]),
        digest="",
        parents=parents,
        facts=facts,
    )
