"""The difference between two things of a lake, in what they were made with and from.

Compared are their configs, the datasets on the way to their sources (by name: versions, rows, languages, code, ids of
rows), everything else that they were made from, and the figures that a checkpoint records of itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.graph import Graph, Node
from altdiffusion.lineage.row_difference import RowDifference, key_of, row_difference, unshared_rows
from altdiffusion.lineage.source import CODE
from altdiffusion.lineage.starts import Starts
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.documents import read_document

_COMPARED = ("dataset", "checkpoint", "export", "model")
_SHOWN_IDS = 1000


class _Absent:
    """The value of a key that one side lacks."""

    def __repr__(self) -> str:
        return "(not set)"


ABSENT = _Absent()


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two values of one key; ABSENT where a side lacks it."""

    key: str
    a: Any
    b: Any

    def to_json(self) -> dict[str, Any]:
        sides = {"a": self.a, "b": self.b}
        return {"key": self.key, **{side: value for side, value in sides.items() if value is not ABSENT}}


@dataclass(frozen=True, kw_only=True)
class DatasetPair:
    """One dataset of which the two sides have different versions; None where a side has none."""

    name: str
    a: Node | None
    b: Node | None
    languages: tuple[Pair, ...]
    """Rows of each language whose count differs."""
    rows: RowDifference | str
    """Rows by id, or why they were not compared."""

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"name": self.name, "languages": [pair.to_json() for pair in self.languages]}
        for side, node in (("a", self.a), ("b", self.b)):
            value[side] = None if node is None else {key: _facts(node).get(key) for key in _DATASET_FACTS}
        if isinstance(self.rows, str):
            value["rows_not_compared"] = self.rows
        else:
            value["rows"] = self.rows.to_json(_SHOWN_IDS)
        return value


_DATASET_FACTS = ("ref", "rows", "holds", "code_version", "missing")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Everything in which two things differ; empty where they are equal."""

    a: Node
    b: Node
    config: tuple[Pair, ...]
    data: tuple[DatasetPair, ...]
    equal_datasets: tuple[str, ...]
    languages: tuple[Pair, ...]
    """Rows of the languages that only one side's own data has."""
    code: tuple[Pair, ...]
    """Version, commit, working copy and libraries with which each side was made, and the same of every dataset."""
    made_from: tuple[Pair, ...]
    """Digests of sources, models and checkpoints on the way, by kind and name."""
    metrics: tuple[Pair, ...]

    @property
    def is_equal(self) -> bool:
        """Whether both are the same thing: equal digests mean equal content."""
        parts = (self.config, self.data, self.languages, self.code, self.made_from, self.metrics)
        return self.a.digest == self.b.digest and not any(parts)

    def to_json(self) -> dict[str, Any]:
        return {
            "equal": self.is_equal,
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "config": [pair.to_json() for pair in self.config],
            "data": [pair.to_json() for pair in self.data],
            "equal_datasets": list(self.equal_datasets),
            "languages": [pair.to_json() for pair in self.languages],
            "code": [pair.to_json() for pair in self.code],
            "made_from": [pair.to_json() for pair in self.made_from],
            "metrics": [pair.to_json() for pair in self.metrics],
        }


def find_one(graph: Graph, text: str) -> Node:
    """Return the one thing with a manifest that a reference names.

    Raises:
        AltDiffusionError: it names none or several, or the lake does not hold it.
    """
    found = graph.find(text)
    if not found:
        raise graph.unknown(text)
    if len(found) > 1:
        raise graph.ambiguous(text, [node.ref for node in found])
    (node,) = found
    if node.kind not in _COMPARED or node.missing or not node.uri:
        raise AltDiffusionError(
            f"reference {text!r}",
            f"names {node.label}, which has no manifest in this lake",
            "name a dataset version, a run, a checkpoint, an export or a model folder of this lake",
        )
    return node


def difference(graph: Graph, a: Node, b: Node, starts: Starts, *, max_rows: int) -> Difference:
    """Return in what two things differ.

    Args:
        starts: the starts of the lake's jobs, which state the code.
        max_rows: datasets with more rows in shards that the two versions do not share are not compared by id.

    Raises:
        AltDiffusionError: a file of one of them is damaged.
    """
    (own_a, record_a), (own_b, record_b) = _record(graph, a), _record(graph, b)
    sides = [_nearest(graph, root) for root in (a, b)]
    if a.kind == b.kind == "dataset":  # the two are compared, whatever their names are
        name = a.name if a.name == b.name else f"{a.name} | {b.name}"
        for side, root in zip(sides, (a, b), strict=True):
            side.pop(("dataset", root.name), None)
            side["dataset", name] = root
    data = list(_datasets(graph, sides[0], sides[1], max_rows))
    return Difference(
        a=a,
        b=b,
        config=tuple(pairs_of(flat(own_a), flat(own_b))),
        data=tuple(pair for pair in data if isinstance(pair, DatasetPair)),
        equal_datasets=tuple(pair for pair in data if isinstance(pair, str)),
        languages=tuple(_languages(graph, a, b)),
        code=tuple(pairs_of(*(_code(graph, starts, root, side) for root, side in zip((a, b), sides, strict=True)))),
        made_from=tuple(pairs_of(*(_others(side) for side in sides))),
        metrics=tuple(pairs_of(record_a, record_b)),
    )


def flat(tree: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Return a config's values by dotted key; entries of lists of mappings are numbered from 0."""
    found: dict[str, Any] = {}
    value: Any
    for key, value in tree.items():
        if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            value = {str(number): one for number, one in enumerate(value)}
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{at}{key}.")
        else:
            found[f"{at}{key}"] = value
    return found


def pairs_of(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Pair]:
    """Yield the keys whose values differ, ascending. 1, 1.0 and true are different values."""
    for key in sorted(a.keys() | b.keys()):
        one, other = a.get(key, ABSENT), b.get(key, ABSENT)
        if type(one) is not type(other) or one != other:
            yield Pair(key=key, a=one, b=other)


def _facts(node: Node) -> Mapping[str, Any]:
    return node.to_json()


def _record(graph: Graph, node: Node) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the config of a thing, and the figures that it records of itself. An export's are its checkpoint's."""
    if node.kind == "dataset":
        return node.facts["config"], {}
    if node.kind == "checkpoint":
        state = read_document(files.within(node.uri, "state.json"))
        metrics = state.object("metrics").value if "metrics" in state.value else {}
        return (state.object("config").value if "config" in state.value else {}), metrics
    own: dict[str, Any] = {key: node.facts[key] for key in ("weights",) if key in node.facts}
    parents = [graph.nodes[ref] for ref in graph.parents(node.ref)]
    for parent in (parent for parent in parents if parent.kind == "checkpoint" and not parent.missing):
        config, recorded = _record(graph, parent)
        return {**config, **own}, recorded
    return own, {}


def _nearest(graph: Graph, root: Node) -> dict[tuple[str, str], Node]:
    """Return everything above a thing by kind and name; of several versions of a name, the nearest one."""
    found: dict[tuple[str, str], Node] = {}
    level, known = [root.ref], {root.ref}
    while level:
        for ref in level:
            node = graph.nodes[ref]
            if ref != root.ref or node.kind == "dataset":
                found.setdefault((node.kind, node.name), node)
        level = [parent for ref in level for parent in graph.parents(ref) if parent not in known]
        level = list(dict.fromkeys(level))
        known.update(level)
    return found


def _data(side: Mapping[tuple[str, str], Node]) -> Iterator[tuple[tuple[str, str], Node]]:
    return ((key, node) for key, node in side.items() if key[0] == "dataset")


def _code(graph: Graph, starts: Starts, root: Node, side: Mapping[tuple[str, str], Node]) -> dict[str, str]:
    """Return the code of a thing, and after its name that of each dataset on the way, as far as it is recorded."""
    found: dict[str, str] = {}
    own = [("", root)] if root.kind != "dataset" else []
    for prefix, node in [*own, *((f"{key[1]}: ", node) for key, node in _data(side))]:
        start = starts.of(graph, node)
        known = {} if start is None else start.facts
        if node.kind == "dataset" and not node.missing:
            known = {**known, "version": node.facts["code_version"]}
        found |= {f"{prefix}{key}": known[key] for key in CODE if key in known}
    return found


def _others(side: Mapping[tuple[str, str], Node]) -> dict[str, str]:
    return {f"{kind}:{name}": node.digest for (kind, name), node in side.items() if kind != "dataset"}


def _datasets(
    graph: Graph, a: Mapping[tuple[str, str], Node], b: Mapping[tuple[str, str], Node], max_rows: int
) -> Iterator[DatasetPair | str]:
    """Yield the name of every dataset that is the same on both sides, and a pair for every other one."""
    names = sorted({key[1] for key, _ in _data(a)} | {key[1] for key, _ in _data(b)})
    for name in names:
        one, other = a.get(("dataset", name)), b.get(("dataset", name))
        if one is not None and other is not None and one.ref == other.ref:
            yield name
            continue
        counts = [_counts(node) for node in (one, other)]
        yield DatasetPair(
            name=name, a=one, b=other, languages=tuple(pairs_of(*counts)), rows=_rows(graph, one, other, max_rows)
        )


def _counts(node: Node | None) -> Mapping[str, int]:
    return {} if node is None or node.missing else node.facts["rows_by_language"]


def _rows(graph: Graph, a: Node | None, b: Node | None, max_rows: int) -> RowDifference | str:
    if a is None or b is None:
        return "only one side has this dataset"
    if a.missing or b.missing:
        return "a version is not in this lake"
    if a.facts["holds"] != b.facts["holds"]:
        return f"one holds {a.facts['holds']}, the other {b.facts['holds']}"
    lake = Lake(graph.lake_uri)
    one, other = lake.version(a.ref), lake.version(b.ref)
    key = key_of(one, other)
    if key is None:
        return f"rows of {a.facts['holds']} have no id"
    rows = unshared_rows(one, other)
    if rows > max_rows:
        return f"{rows:,} rows are in shards of one version alone, more than --max-rows {max_rows:,}"
    return row_difference(one, other, key)


def _languages(graph: Graph, a: Node, b: Node) -> Iterator[Pair]:
    """Yield the languages that only one side's own data has, with the rows there."""
    one, other = (_own_languages(graph, root) for root in (a, b))
    for pair in pairs_of(one, other):
        if pair.a is ABSENT or pair.b is ABSENT:
            yield pair


def _own_languages(graph: Graph, root: Node) -> dict[str, int]:
    """Return the rows by language of a dataset, or of the nearest datasets that anything else was made from."""
    found: Counter[str] = Counter()
    waiting, known = [root.ref], {root.ref}
    while waiting:
        node = graph.nodes[waiting.pop()]
        if node.kind == "dataset":
            found.update({} if node.missing else node.facts["rows_by_language"])
            continue
        more: Sequence[str] = [parent for parent in graph.parents(node.ref) if parent not in known]
        known.update(more)
        waiting += more
    return {language: rows for language, rows in sorted(found.items()) if rows}
