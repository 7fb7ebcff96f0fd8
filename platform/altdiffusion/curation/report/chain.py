"""The way of the rows: the versions from the select pipeline step to the images, and what each step dropped.

Every number here is exact and read from manifests only. A later version of the same dataset may account for the same
rows again: a retry takes up the rejects of the version before it, and a removal of duplicates carries them over. Its
account then replaces the previous one, so that links read = images kept + all rejects still holds.

The name of a step is the one that its version keeps (`Version.made_by`), as long as the numbers allow it. Older
versions keep none, and their steps are named by kinds, parents and reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from altdiffusion.curation.rejects import DUPLICATE_IMAGE, NEAR_DUPLICATE, TAKEDOWN
from altdiffusion.records import Kind
from altdiffusion.storage.dataset import Lake, Version

_ROWS_OF: tuple[Kind, ...] = ("links", "images")
_KINDS: dict[str, Kind] = {"select": "links", "deduplicate": "links", "balance": "links", "download": "images"}
"""What the steps make that the report reads more of than their numbers."""
_REMOVALS = ("distinct", "takedown")
"""Steps that only take rows out of a dataset."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One version of the chain, seen as what was done to the rows of the previous version."""

    name: str
    """select, deduplicate, balance, download, retry, distinct, takedown; change for a step that is not known."""
    version: Version
    before: Version | None
    """The version whose rows went in, if the lake has it."""
    rows_in: int
    """Rows that the step decided on; for a retry, the rejects that it took up."""
    reasons: Mapping[str, int]
    """Number of rows that the step itself rejected by reason, the most frequent reason first."""
    same_account: bool = False
    """Whether its manifest accounts for the same rows as that of the previous version."""

    @property
    def rows_out(self) -> int:
        """Rows that the step let through; for a retry, those that it recovered."""
        return self.rows_in - self.dropped

    @property
    def dropped(self) -> int:
        """Rows that the step itself rejected."""
        return sum(self.reasons.values())


@dataclass(frozen=True, kw_only=True)
class Chain:
    """All steps, beginning at the source."""

    steps: tuple[Step, ...]

    @property
    def read(self) -> int:
        """Rows that the first step read, which are the links of the sources if the whole chain is in the lake."""
        return self.steps[0].rows_in

    @property
    def kept(self) -> int:
        """Rows of the last version."""
        return self.steps[-1].version.rows

    @property
    def dropped(self) -> int:
        """All rejects; each row is counted in the last account that holds it."""
        return sum(_rejected(step.version) for step in self.steps if not self._replaced(step))

    @property
    def adds_up(self) -> bool:
        """Whether the rows read are the rows kept and dropped."""
        return self.read == self.kept + self.dropped

    @property
    def complete(self) -> bool:
        """Whether the chain begins at a source; older versions may have been removed from the lake."""
        return self.steps[0].name == "select"

    @property
    def final_steps(self) -> tuple[Step, ...]:
        """The steps whose rejects are final, which excludes those that a retry took up."""
        return tuple(step for step in self.steps if (after := self._after(step)) is None or after.name != "retry")

    def account(self, step: Step) -> Version:
        """Return the last version that accounts for the step's rejects.

        Earlier versions may hold links that have been erased since.
        """
        while (after := self._after(step)) is not None and after.same_account:
            step = after
        return step.version

    def last(self, *names: str) -> Step | None:
        """Return the last step that has one of these names."""
        return next((step for step in reversed(self.steps) if step.name in names), None)

    def _after(self, step: Step) -> Step | None:
        following = self.steps.index(step) + 1
        return self.steps[following] if following < len(self.steps) else None

    def _replaced(self, step: Step) -> bool:
        after = self._after(step)
        return after is not None and after.same_account


def read_chain(lake: Lake, images: Version) -> Chain:
    """Return the chain from the sources to a version of images, as far as the lake still has its versions.

    Raises:
        AltDiffusionError: a manifest, or the name next to it, is damaged.
    """
    versions = [images]
    while (parent := _parent(lake, versions[-1])) is not None:
        versions.append(parent)
    versions.reverse()
    befores = [None, *versions[:-1]]
    return Chain(steps=tuple(_step(before, version) for before, version in zip(befores, versions, strict=True)))


def _parent(lake: Lake, version: Version) -> Version | None:
    """Return the version whose rows went in; other parents (drops, scores) only decide what happens to them."""
    for ref in version.manifest.parent_refs:
        if ref.kind == "dataset" and ref.digest in lake.dataset(ref.name).digests():
            parent = lake.version(ref)
            if parent.manifest.kind in _ROWS_OF:
                return parent
    return None


def _rejected(version: Version) -> int:
    return sum(version.manifest.rejects_by_reason.values())


def _step(before: Version | None, version: Version) -> Step:
    rejects = dict(version.manifest.rejects_by_reason)
    account = version.rows + _rejected(version)
    if before is None or before.manifest.name != version.manifest.name or account != before.rows + _rejected(before):
        name = _name(before, version)
        return Step(name=name, version=version, before=before, rows_in=account, reasons=_ordered(rejects))
    earlier = before.manifest.rejects_by_reason
    own = {reason: n - earlier.get(reason, 0) for reason, n in rejects.items() if n > earlier.get(reason, 0)}
    removes = sum(own.values()) == before.rows - version.rows and all(
        rejects.get(reason, 0) >= earlier[reason] for reason in earlier
    )
    retries = version.made_by == "retry" and version.rows >= before.rows
    if removes and not retries:
        name, rows_in, reasons = _removal(version, own), before.rows, own
    else:
        name, rows_in, reasons = "retry", _rejected(before), rejects
    return Step(
        name=name, version=version, before=before, rows_in=rows_in, reasons=_ordered(reasons), same_account=True
    )


def _ordered(reasons: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def _name(before: Version | None, version: Version) -> str:
    """Return the name of a step that does not account for the rows of the previous version again."""
    kind, kept = version.manifest.kind, version.made_by
    if kept is not None and _KINDS.get(kept, kind) == kind and kept not in ("retry", *_REMOVALS):
        return kept
    if before is None:
        from_source = any(ref.kind == "source" for ref in version.manifest.parent_refs)
        return "select" if from_source and kind == "links" else "change"
    reasons = version.manifest.rejects_by_reason
    if before.manifest.name == version.manifest.name:
        return _removal(version, reasons)
    if kind == "images":
        return "download"
    only_duplicates = all(reason.startswith("duplicate_") for reason in reasons)
    return "deduplicate" if only_duplicates and "buckets" in version.manifest.config else "balance"


def _removal(version: Version, reasons: Mapping[str, int]) -> str:
    """Return the name of a step that only takes rows out of a dataset, by the name kept or else by its reasons."""
    if version.made_by in _REMOVALS:
        return str(version.made_by)
    if reasons and set(reasons) <= {DUPLICATE_IMAGE, NEAR_DUPLICATE}:
        return "distinct"
    return "takedown" if reasons and set(reasons) <= {TAKEDOWN} else "change"
