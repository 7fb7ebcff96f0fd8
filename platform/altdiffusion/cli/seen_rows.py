"""What checkpoints drew of listed rows, as `lineage impact` and `seen --hashes` print it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from altdiffusion.cli.arguments import report_damaged
from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:
    from altdiffusion.lineage.impact import Impact
    from altdiffusion.training.drawn import Drawn, Wanted

_SHOWN_ROWS = 20

Draws: TypeAlias = "list[Drawn] | AltDiffusionError"
"""What one checkpoint drew, or why that is not known."""


def draws_of(lake: str, found: Impact, wanted: Wanted) -> dict[str, Draws]:
    """Return what each checkpoint of an impact that the lake holds drew of the wanted rows, by reference."""
    from altdiffusion.refs import Ref
    from altdiffusion.training.drawn import Draws as LakeDraws

    nodes = [made.node for made in found.made if made.node.kind == "checkpoint" and not made.node.missing]
    drawn = LakeDraws(lake, wanted).of(Ref.parse(node.ref) for node in nodes)
    return {str(ref): parts for ref, parts in drawn}


def is_damaged(draws: Mapping[str, Draws]) -> bool:
    """Return whether a damaged file kept a checkpoint's draws from being known."""
    from altdiffusion.training.seen import NoRecordError

    return any(
        isinstance(parts, AltDiffusionError) and not isinstance(parts, NoRecordError) for parts in draws.values()
    )


def to_json(parts: Draws | None) -> dict[str, Any]:
    """Return the keys that a thing that was made from rows has in `lineage impact --json`."""
    if parts is None:
        return {}
    if isinstance(parts, AltDiffusionError):
        return {"drawn": None, "drawn_unknown": str(parts)}
    return {"drawn": [part.to_json() for part in parts]}


def notes(draws: Mapping[str, Draws]) -> dict[str, list[str]]:
    """Return the lines about each checkpoint."""
    return {
        ref: [f"which of them it drew is not known: {parts}"]
        if isinstance(parts, AltDiffusionError)
        else [_line(part) for part in parts]
        for ref, parts in draws.items()
    }


def _line(part: Drawn) -> str:
    fact = part.to_json()
    whole = f"{part.run} to step {part.steps:,} drew {fact['distinct']:,} of {fact['rows']:,} rows"
    if not fact["samples"]:
        return f"{whole} of {part.version.ref.short}"
    steps = f"first at step {fact['first_step']:,}, last at step {fact['last_step']:,}"
    return f"{whole} of {part.version.ref.short}, {fact['samples']:,} times: {steps}"


def show_listed(arguments: argparse.Namespace, run: str, step: int | None, digest: str) -> int:
    """Print which of the listed rows a checkpoint has seen, when first, and how often.

    Returns:
        0; 3 if a part of the lake could not be searched.

    Raises:
        AltDiffusionError: there is no such checkpoint, or the list is unusable.
    """
    from altdiffusion.curation.links import takedown
    from altdiffusion.lineage.takedown_record import past_of
    from altdiffusion.storage.dataset import Lake
    from altdiffusion.storage.holdings import search
    from altdiffusion.training.drawn import drawn
    from altdiffusion.training.seen import open_checkpoint

    if arguments.out:
        raise AltDiffusionError(
            "seen --out", "writes every sample, and --hashes asks for some", "leave one out; --json lists the rows"
        )
    wanted, lake = takedown.read_list(arguments.hashes), Lake(arguments.lake)
    at = open_checkpoint(lake.uri, run, step, digest=digest)
    holdings = search(lake, wanted, listed=wanted.tombstones)
    parts = drawn(lake.uri, at, takedown.numbers_of(lake, wanted, holdings))
    if arguments.json:
        facts = [{**part.to_json(), "seen": _rows(part)} for part in parts]
        print(json.dumps({"list_sha256": wanted.sha256, "checkpoint": str(at.ref), "drawn": facts}, indent=2))
    else:
        _print(parts, at.ref.short)
    past = past_of(lake.uri, wanted.tombstones)
    return report_damaged((*holdings.damaged, *holdings.unreadable.values(), *past.damaged))


def _print(parts: Sequence[Drawn], checkpoint: str) -> None:
    if not parts:
        print(f"no dataset that {checkpoint} was trained on holds a listed row")
    for part in parts:
        print(_line(part))
        rows = [row for row in _rows(part) if row["times"]]
        for row in rows[:_SHOWN_ROWS]:
            times = f"{row['times']:,} time{'' if row['times'] == 1 else 's'}"
            named = "(erased)" if row["sample_id"] is None else f"hash:{row['sample_id']}"
            print(f"  row {row['row']:,} {named}: {times}, first at step {row['first_step']:,}")
        if len(rows) > _SHOWN_ROWS:
            print(f"  and {len(rows) - _SHOWN_ROWS:,} more rows (--json lists all)")


def _rows(part: Drawn) -> list[dict[str, Any]]:
    """Return one entry per wanted row of a dataset; a row that was never drawn has 0 times and no first step."""
    from altdiffusion.storage.erased import ErasedVersion

    ids: list[int | None] = [None] * len(part.rows)
    if not isinstance(part.version, ErasedVersion) and "sample_id" in part.version.schema_names:
        ids = [row["sample_id"] for row in part.version.read_rows(part.rows.tolist(), ["sample_id"])]
    return [
        {"row": row, "sample_id": sample_id, "times": times, "first_step": first or None}
        for row, sample_id, times, first in zip(
            part.rows.tolist(), ids, part.times.tolist(), part.first_step.tolist(), strict=True
        )
    ]
