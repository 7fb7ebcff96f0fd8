"""What is known of an image file, as text for a terminal and as JSON. All texts from the file are escaped."""

from __future__ import annotations

import os
from typing import Any

from altdiffusion.image_files.printable import printable
from altdiffusion.image_files.record import FileRecord
from altdiffusion.lineage.file_search import FileOrigin
from altdiffusion.lineage.tree import render


def to_text(origin: FileOrigin) -> str:
    """Return the findings on a file, then the lineage where there is one; it ends in a newline."""
    lines = [f"file {printable(os.path.basename(origin.path))} @{origin.sha256[:12]}"]
    lines += [f"  {line}" for line in (*_match(origin), *_record(origin), *_doubts(origin))]
    return "\n".join(lines) + "\n" + (render(origin.part) if origin.part is not None else "")


def to_json(origin: FileOrigin) -> dict[str, Any]:
    """Return the same for programs: the slice of the lineage, if there is one, and `file`."""
    record = origin.carried.record
    about = {
        "name": os.path.basename(origin.path),
        "sha256": origin.sha256,
        "lake": origin.lake_uri,
        "match": origin.match,
        "candidates": [
            {"image": one.image_sha256, "in": one.version, "distance": one.distance} for one in origin.candidates
        ],
        "record": None if record is None else _record_json(record),
        "record_problem": origin.carried.problem or None,
        "record_edited": origin.edited,
        "pixels_differ": origin.unlike,
        "marked_as_generated": origin.carried.marked,
        "contradictions": [
            {"name": one.name, "file": one.file, "lake": one.lake} for one in origin.contradictions
        ],
    }  # fmt: skip
    return {**(origin.part.to_json() if origin.part is not None else {}), "file": about}


def _record_json(record: FileRecord) -> dict[str, Any]:
    return {
        "model": record.model, "content": record.content, "image": dict(record.image),
        "settings": dict(record.settings), "row_key": record.row_key,
    }  # fmt: skip


def _match(origin: FileOrigin) -> list[str]:
    lake = f"the lake {origin.lake_uri}"
    if origin.match == "bytes":
        return [f"found in {lake} by its SHA-256: these are the bytes that were written"]
    if origin.match == "record":
        first = origin.candidates[0]
        compared = "" if first.distance is None else f"; the pixels differ in {first.distance} of 64 bits of their hash"
        return [
            f"found in {lake} by the row key of its own record, in {first.version}",
            f"the bytes are not those that were written: the file was saved again{compared}",
        ]
    if origin.match == "probable":
        return [
            f"PROBABLE, not certain: {lake} holds images that look alike (perceptual hash, bits of 64 that differ)",
            *(f"  image {one.image_sha256[:12]}  {one.distance} bits  in {one.version}" for one in origin.candidates),
            "the lineage below is that of the first one",
        ]
    if origin.lake_uri is None:
        return ["no lake was given (--lake), so that nothing here was checked against one"]
    if origin.unsearched:
        return [f"{lake} holds neither its bytes nor its row key; one that looks alike was not searched for, because "
                f"the file {origin.unsearched}"]  # fmt: skip
    return [f"{lake} holds no such image, neither its bytes nor its row key nor one that looks alike"]


def _record(origin: FileOrigin) -> list[str]:
    carried, record = origin.carried, origin.carried.record
    if record is None:
        if carried.problem:
            return [f"holds a record that cannot be used: it {printable(carried.problem)}"]
        marked = ", though it has the IPTC mark of generated media" if carried.marked else ""
        why = "the image was stored without one" if origin.match == "bytes" else "it was stripped or made elsewhere"
        return [f"holds no record{marked}: {why}"]
    checked = "" if origin.match in ("bytes", "record") else ", which was not checked against a lake"
    image = record.image
    shown = {
        "prompt": image["prompt"],
        "negative prompt": image["negative_prompt"] or "none",
        "seed": image["seed"],
        "size": f"{image['width']} x {image['height']} px",
        "sampler": f"{image['sampler']}, {image['steps']} steps, guidance {image['guidance_scale']:g}",
        "model": record.model,
        "model content": record.content,
        "row key": record.row_key,
    }
    return [
        f"the file's own record{checked}:",
        *(f"  {name:<16} {printable(value)}" for name, value in shown.items()),
        *([] if carried.marked else ["the IPTC mark of generated media is missing"]),
    ]


def _doubts(origin: FileOrigin) -> list[str]:
    lines = []
    if origin.edited:
        lines.append("CONTRADICTION: the record's row key is not that of its values, so the record was edited")
    if origin.unlike:
        lines.append("CONTRADICTION: the pixels are not those of the image that the record names")
    for one in origin.contradictions:
        lines.append(
            f"CONTRADICTION: {one.name}: the file states {printable(one.file)}, the lake {printable(one.lake)}"
        )
    return lines
