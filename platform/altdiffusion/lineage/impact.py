"""The things that hold certain rows or were made from them, for a takedown.

Whether a dataset version holds the rows is read from its own rows (`storage.holdings`), so a row that was rejected on
the way does not affect later versions. A checkpoint, an export, a model or a set of generated images does not hold
rows; it was made from them if one of its parents holds them or was itself made from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.graph import Graph, Node
from altdiffusion.lineage.shown import Shown, concerned, pages_of
from altdiffusion.lineage.tree import title
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.holdings import Holdings
from altdiffusion.storage.judges import TaughtJudge


@dataclass(frozen=True, kw_only=True)
class Held:
    """A dataset version that holds some of the rows."""

    node: Node
    rows: int
    shards: int
    rejected: int
    """Number of rejected rows that still have their link."""
    is_head: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "ref": self.node.ref,
            "kind": self.node.facts["holds"],
            "rows": self.rows,
            "shards": self.shards,
            "rejected": self.rejected,
            "head": self.is_head,
        }


@dataclass(frozen=True, kw_only=True)
class Made:
    """A checkpoint, export, model or set of generated images that was made from some of the rows."""

    node: Node
    of: tuple[str, ...]
    """Its parents that hold them or were made from them."""

    def to_json(self) -> dict[str, Any]:
        return {"ref": self.node.ref, "kind": self.node.kind, "of": list(self.of)}


@dataclass(frozen=True, kw_only=True)
class Impact:
    """The complete result for one lake."""

    held: tuple[Held, ...]
    made: tuple[Made, ...]
    erased: tuple[Held, ...] = ()
    """Versions that held some of the rows and are gone from the lake, as the records of takedowns know them."""
    requests: tuple[str, ...] = ()
    """One line per recorded takedown of such rows."""
    pages: tuple[Shown, ...] = ()
    """Reports, artifacts, sample sheets and other pages that may show the rows."""
    judges: tuple[TaughtJudge, ...] = ()
    """Kept judges that were trained on the rows, or may have been."""
    damaged: tuple[AltDiffusionError, ...] = ()
    """Records of takedowns that cannot be read: what they know is missing here."""
    unknown: tuple[str, ...]
    """What could not be searched: damaged files, and versions that a manifest names but the lake does not hold."""

    def to_json(self) -> dict[str, Any]:
        return {
            "held": [held.to_json() for held in self.held],
            "made": [made.to_json() for made in self.made],
            "erased": [held.to_json() for held in self.erased],
            "takedowns": list(self.requests),
            "pages": [page.to_json() for page in self.pages],
            "judges": [judge.to_json() for judge in self.judges],
            "unknown": list(self.unknown),
        }


def impact(
    graph: Graph,
    holdings: Holdings,
    *,
    past: Mapping[str, int] | None = None,
    covered: Set[str] = frozenset(),
    requests: Sequence[str] = (),
    judges: Sequence[TaughtJudge] = (),
    damaged: Sequence[AltDiffusionError] = (),
) -> Impact:
    """Return what holds the rows and, by walking down from there, what was made from them.

    Args:
        graph: the graph of the lake that was searched, with what records know to be gone from it.
        past: rows by the version that held them, as records of takedowns know it.
        covered: references of versions that such a takedown has searched for all of the rows.
        requests: one line per such takedown.
        judges: judges that were trained on the rows, or may have been.
        damaged: records of takedowns that cannot be read.
    """
    lake, past = Lake(graph.lake_uri), past or {}
    searched = {str(version.ref): version for version in holdings.versions}
    held: list[Held] = []
    erased: list[Held] = []
    unknown = [str(error) for error in (*damaged, *holdings.damaged, *holdings.unreadable.values(), *graph.damaged)]
    for node in _ordered(graph):
        if node.kind != "dataset":
            continue
        if node.missing:
            if past.get(node.ref):
                erased.append(Held(node=node, rows=past[node.ref], shards=0, rejected=0, is_head=False))
            elif node.ref not in covered:
                unknown.append(f"{node.label}: not in this lake")
            continue
        version = searched.get(node.ref) or lake.version(node.ref)
        rows, rejected = holdings.readable(version), holdings.readable(version, "rejects")
        if rows or rejected:
            held.append(
                Held(
                    node=node,
                    rows=sum(len(numbers) for _, numbers in rows),
                    shards=len(rows),
                    rejected=sum(len(numbers) for _, numbers in rejected),
                    is_head=graph.heads.get(node.name) == node.digest,
                )
            )
    holding = {one.node.ref for one in held if one.rows} | {ref for ref in past if ref in graph.nodes}
    unread: list[AltDiffusionError] = []
    pages = pages_of(graph.lake_uri, concerned(graph, holding), unread)
    unknown += [str(error) for error in unread]
    return Impact(
        pages=tuple(pages),
        held=tuple(held),
        erased=tuple(erased),
        made=_made(graph, sorted(holding)),
        requests=tuple(requests),
        judges=tuple(judges),
        damaged=tuple(damaged),
        unknown=tuple(dict.fromkeys(unknown)),
    )


def _made(graph: Graph, holding: list[str]) -> tuple[Made, ...]:
    tainted: dict[str, set[str]] = {ref: set() for ref in holding}
    waiting = list(holding)
    while waiting:
        parent = waiting.pop()
        for child in graph.children(parent):
            if not follows(graph.nodes[child]):
                continue
            if child not in tainted:
                tainted[child] = set()
                waiting.append(child)
            tainted[child].add(parent)
    return tuple(
        Made(node=node, of=tuple(sorted(tainted[node.ref]))) for node in _ordered(graph) if tainted.get(node.ref)
    )


def follows(node: Node) -> bool:
    """Return whether a thing derives from everything that its parents derive from.

    A dataset derives only from what its rows derive from, unless it was generated.
    """
    return node.kind != "dataset" or node.facts.get("holds") == "generations"


def _ordered(graph: Graph) -> list[Node]:
    return sorted(graph.nodes.values(), key=lambda node: (node.kind, node.name, node.digest))


def render(result: Impact, notes: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return the result as text, ending in a newline.

    Args:
        notes: lines that are shown below a thing that was made from the rows, by its reference.
    """
    lines: list[str] = []
    if result.held:
        lines.append("holds the rows:")
    for held in result.held:
        parts = [f"{_count(held.rows, 'row')} in {_count(held.shards, 'shard')}"] if held.rows else []
        parts += [f"{_count(held.rejected, 'rejected row')} with link"] if held.rejected else []
        lines.append(f"  {title(held.node)}{' head' if held.is_head else ''}: {', '.join(parts)}")
    if result.erased:
        lines.append("held the rows, and was erased:")
    lines += [f"  {title(held.node)}: {_count(held.rows, 'row')}" for held in result.erased]
    if result.made:
        lines.append("was made from them:")
    for made in result.made:
        lines.append(f"  {title(made.node)}, from {', '.join(_short(ref) for ref in made.of)}")
        lines += [f"    {note}" for note in (notes or {}).get(made.node.ref, ())]
    if result.pages:
        lines.append("may show them (`--purge` makes these again without the rows):")
    lines += [f"  {page.kind} {page.name}, of {', '.join(_short(ref) for ref in page.of)}" for page in result.pages]
    if result.judges:
        lines.append("judges that `dataset remove` deletes, and an evaluation trains again:")
    lines += [f"  {judge}" for judge in result.judges]
    if result.requests:
        lines.append("was taken down before:")
    lines += [f"  {text}" for text in result.requests]
    if result.unknown:
        lines.append("could not be searched:")
    lines += [f"  {text}" for text in result.unknown]
    if not (result.held or result.erased or result.judges or result.unknown):
        lines.append("nothing in this lake holds these rows, and nothing was made from them")
    return "\n".join(lines) + "\n"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _short(ref: str) -> str:
    name, at, digest = ref.partition("@")
    return f"{name}{at}{digest[:12]}"


def renewal(result: Impact, lake_uri: str, list_file: str) -> list[tuple[str, str]]:
    """Return what to do about each thing, as (its label, a command or an instruction)."""
    steps: list[tuple[str, str]] = []
    for held in result.held:
        name, digest = held.node.name, held.node.digest[:12]
        if held.is_head:
            step = f"altdiffusion dataset remove {name} --hashes {list_file} --lake {lake_uri}"
        else:
            step = f"altdiffusion dataset erase {name}@{digest} --lake {lake_uri}"
        steps.append((held.node.label, step))
    for made in result.made:
        if made.node.kind == "dataset":
            step = "generate it again with a checkpoint that was not made from the rows, then erase it"
        elif made.node.kind == "checkpoint":
            seen = f"altdiffusion seen {made.node.name} --out FILE --lake {lake_uri}"
            step = f"train again from versions without the rows ({seen} shows whether it drew them), then delete it"
        else:
            step = "make it again from such a checkpoint, then delete it"
        steps.append((made.node.label, step))
    return steps
