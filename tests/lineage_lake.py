"""A small lake with every kind of thing that lineage can meet, made through the real storage."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from altdiffusion.records import REJECTS, SCHEMAS, Kind
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.storage.seals import seal

WORDS = {"en": "red apple", "de": "roter Apfel", "ja": "赤いリンゴ"}
SOURCE = Ref("source", "crawl", "5" * 64)
BASE = Ref("model", "base", "b" * 64)


def png(colour: tuple[int, int, int]) -> bytes:
    """Return an image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, format="PNG")
    return buffer.getvalue()


SOURCE_IMAGE = png((200, 30, 30))
DRAWN = {language: png((10 * i, 200, 90)) for i, language in enumerate(WORDS, 1)}


def publish(
    lake: Lake, name: str, kind: Kind, rows: Sequence[Mapping[str, Any]], parents: Sequence[Ref], rejected: int = 0
) -> Version:
    """Publish one version of one unit."""
    dataset = lake.dataset(name)
    schema = SCHEMAS[kind]
    filled = [{field.name: row.get(field.name, _empty(field)) for field in schema} for row in rows]
    shard = dataset.write_shard(pa.Table.from_pylist(filled, schema=schema))
    rejects = [{"unit_id": "u0", "row": 100 + i, "reason": "too_small"} for i in range(rejected)]
    languages: dict[str, int] = {}
    for row in filled:
        languages[row["language"]] = languages.get(row["language"], 0) + 1
    record = UnitRecord(
        unit_id="u0",
        index=0,
        input_digest="0" * 64,
        rows_in=len(rows) + rejected,
        shards=(shard,),
        rejects=(dataset.write_rejects(pa.Table.from_pylist(rejects, schema=REJECTS)),) if rejected else (),
        rejects_by_reason={"too_small": rejected} if rejected else {},
        rows_by_language=dict(sorted(languages.items())),
    )
    config = {"of": name, "threshold": 0.5}
    return dataset.publish(
        kind=kind, records=[record], parents=parents, config=config, fingerprint=files.sha256_hex(name.encode()),
        made_by=f"make-{name}",
    )  # fmt: skip


def _empty(field: pa.Field) -> Any:
    dtype = field.type
    if pa.types.is_boolean(dtype):
        return None
    if pa.types.is_list(dtype):
        return [1, 2]
    if pa.types.is_binary(dtype):
        return b"x"
    return "" if pa.types.is_string(dtype) else 0


def checkpoint(
    lake: Lake, run: str, step: int, stage: str, parents: Sequence[Ref], metrics: Mapping[str, float]
) -> Ref:
    """Write a complete checkpoint folder; return its reference."""
    folder = files.join(lake.uri, "checkpoints", run, f"step-{step:08d}")
    state = files.canonical_json(
        {"step": step, "metrics": metrics, "config": {"stage": stage, "optimizer": {"lr": 1e-4}}}
    )
    files.write_atomic(files.join(folder, "state.json"), state)
    complete: dict[str, Any] = {
        "files": {"state.json": {"sha256": files.sha256_hex(state), "bytes": len(state)}},
        "parents": [str(parent) for parent in parents],
        "run": run,
        "step": step,
        "stage": stage,
        "config_fingerprint": files.sha256_hex(run.encode()),
    }
    complete = seal(complete)
    files.write_atomic(files.join(folder, "COMPLETE.json"), files.canonical_json(complete))
    return Ref("checkpoint", f"{run}/step-{step:08d}", complete["digest"])


class SmallLake:
    """crawl -> links -> images -> latents -> alignment -> quality -> generations, with an export and a base model."""

    def __init__(self, uri: str | Path) -> None:
        self.lake = Lake(str(uri))
        rows = [
            {
                "sample_id": 100 + i,
                "url": f"http://pictures.example/{language}.png",
                "caption": text,
                "language": language,
                "image_sha256": files.sha256_hex(SOURCE_IMAGE),
                "phash": 0,
                "source": "crawl",
            }
            for i, (language, text) in enumerate(WORDS.items())
        ]
        self.links = publish(self.lake, "links", "links", rows, [SOURCE], rejected=2)
        self.images = publish(
            self.lake, "images", "images", [{**row, "image": SOURCE_IMAGE} for row in rows], [self.links.ref]
        )
        self.latents = publish(self.lake, "latents", "latents", rows, [self.images.ref, BASE])
        self.alignment = checkpoint(self.lake, "alignment", 100, "alignment", [BASE, self.latents.ref], {"loss": 0.5})
        self.quality_50 = checkpoint(
            self.lake, "quality", 50, "quality", [self.alignment, self.latents.ref], {"loss": 0.4}
        )
        self.quality = checkpoint(
            self.lake, "quality", 100, "quality", [self.alignment, self.latents.ref], {"loss": 0.25}
        )
        # Next to its checkpoints a run keeps a record, which is not a folder
        files.write_atomic(files.join(self.lake.uri, "checkpoints", "quality", "run.json"), b"{}")
        export = files.join(self.lake.uri, "exports", "quality", "step-00000100", "lineage.json")
        files.write_atomic(export, json.dumps({"parents": [str(self.quality)], "stage": "quality"}).encode())
        prompts = [
            {"id": f"apple-{language}", "language": language, "prompt": text, "seed": 7, "width": 32, "height": 32}
            for language, text in WORDS.items()
        ]
        self.prompts = publish(self.lake, "prompts", "prompts", prompts, [])
        self.generations = publish(
            self.lake,
            "generations",
            "generations",
            [
                {
                    **row,
                    "image": DRAWN[row["language"]],
                    "image_sha256": files.sha256_hex(DRAWN[row["language"]]),
                    "checkpoint": str(self.quality),
                    "steps": 20,
                    "guidance_scale": 3.0,
                    "sampler": "ddim",
                }
                for row in prompts
            ],
            [self.prompts.ref, self.quality],
        )

    @property
    def uri(self) -> str:
        return self.lake.uri
