"""Images that were dropped as duplicates, each next to the one that stayed.

A drop names its survivor by row id only. Both are looked for among the sampled rows of the version that the drop was
decided on. The reading thus stays bounded at any size, and a pair is shown where the sample holds both images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config.report import ReportConfig
from altdiffusion.curation.report.chain import Step
from altdiffusion.curation.report.gallery import Place, ShownImage, image_columns, may_be_shown, read_images
from altdiffusion.curation.report.sample import Group, accepted, draw_groups, keyed_order, read_groups, read_sample
from altdiffusion.storage.cleansing import REASON
from altdiffusion.storage.dataset import Lake, Version

_SPARE = 3  # pairs looked at per pair that is shown: some may be unsafe


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A dropped image and the one it duplicates."""

    dropped: ShownImage
    survivor: ShownImage


def duplicate_pairs(lake: Lake, step: Step, config: ReportConfig) -> Mapping[str, tuple[Pair, ...]]:
    """Return at most `config.examples` pairs for each reason of a distinct step.

    There are none where its drops are not in the lake. There are none either as soon as anything was taken down from
    the dataset, because the version before still holds those images and their duplicates.
    """
    drops = _drops(lake, step.version)
    dataset = lake.dataset(step.version.ref.name)
    if (
        step.before is None
        or drops is None
        or any(REASON in dataset.open(d).manifest.config for d in dataset.digests())
    ):
        return {}
    sample = read_sample(accepted(drops), ["shard", "row", "sample_id", "reason", "survivor"], config.sample_rows).table
    if not sample.num_rows:
        return {}
    source = accepted(step.before)
    ids, groups = [np.zeros(0, np.int64)], draw_groups(source, config.sample_rows)
    for group in groups:
        ids.append(read_groups(source, group.file, [group.group], ["sample_id"])["sample_id"].to_numpy())
    starts = np.cumsum([len(part) for part in ids])
    at = pc.index_in(sample["survivor"], pa.array(np.concatenate(ids)))
    known = np.flatnonzero(at.is_valid())
    known = known[np.argsort(keyed_order(f"{drops.ref.digest}:pairs", sample["sample_id"].to_numpy()[known]))]
    chosen: dict[str, list[tuple[Place, Place]]] = {}
    for number in known.tolist():
        row = {name: sample[name][number].as_py() for name in sample.column_names}
        pairs = chosen.setdefault(row["reason"], [])
        if len(pairs) < _SPARE * config.examples:
            place = int(at[number].as_py())
            nth = int(np.searchsorted(starts, place, side="right")) - 1
            size = source.infos[row["shard"]].row_group_rows
            dropped = (Group(row["shard"], row["row"] // size), row["row"] % size)
            pairs.append((dropped, (groups[nth], place - int(starts[nth]))))
    places = [place for pairs in chosen.values() for pair in pairs for place in pair]
    tables = image_columns(source, sorted({group for group, _ in places}))
    safe = {group: may_be_shown(table, config) for group, table in tables.items()}
    made = read_images(source, tables, [place for place in places if safe[place[0]][place[1]]], config)
    shown = {
        reason: [Pair(dropped=made[one], survivor=made[two]) for one, two in pairs if one in made and two in made]
        for reason, pairs in chosen.items()
    }
    return {reason: tuple(pairs[: config.examples]) for reason, pairs in shown.items()}


def _drops(lake: Lake, version: Version) -> Version | None:
    for ref in version.manifest.parent_refs:
        if ref.kind == "dataset" and ref.digest in lake.dataset(ref.name).digests():
            parent = lake.version(ref)
            if parent.manifest.kind == "drops":
                return parent
    return None
