"""The chain of versions from the select pipeline step to the images, and what each step dropped.

Every number here is exact and is read from manifests only. A later version of the same dataset may account for the same
rows again: a retry takes up the rejects of the version before it, and a removal of duplicates carries them over. Its
account then replaces the one before, so that links read = images kept + all rejects still holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from altdiffusion.curation.rejects import DUPLICATE_IMAGE, NEAR_DUPLICATE, TAKEDOWN
from altdiffusion.records import Kind
from altdiffusion.storage.dataset import Lake, Version

_ROWS_OF: tuple[Kind, ...] = ("links", "images")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One version of the chain, seen as what was done to the rows of the version before it."""

    name: str
    """select, deduplicate, balance, download, retry, distinct, takedown, or change for a step of another kind."""
    version: Version
    before: Version | None
    """The version whose rows went in, if the lake has it."""
    rows_in: int
    """Rows that the step decided on; for a retry, the rejects that it took up."""
    reasons: Mapping[str, int]
    """Rows that the step itself rejected, by reason, most first."""
    same_account: bool = False
    """Whether its manifest accounts for the same rows as that of the version before."""

    @property
    def rows_out(self) -> int:
        """Rows that the step let through; for a retry, those that it brought back."""
        return self.rows_in - self.dropped

    @property
    def dropped(self) -> int:
        return sum(self.reasons.values())


@dataclass(frozen=True, kw_only=True)
class Chain:
    """All steps, source first."""

    steps: tuple[Step, ...]

    @property
    def read(self) -> int:
        """Rows that the first step read: links of the sources, if the whole chain is in the lake."""
        return self.steps[0].rows_in

    @property
    def kept(self) -> int:
        return self.steps[-1].version.rows

    @property
    def dropped(self) -> int:
        """All rejects, each row counted in the last account that holds it."""
        return sum(_rejected(step.version) for step in self.steps if not self._replaced(step))

    @property
    def adds_up(self) -> bool:
        return self.read == self.kept + self.dropped

    @property
    def complete(self) -> bool:
        """Whether it begins at a source; older versions may have been removed from the lake."""
        return self.steps[0].name == "select"

    @property
    def final_steps(self) -> tuple[Step, ...]:
        """The steps whose rejects are final: not those which a retry took up again."""
        return tuple(step for step in self.steps if (after := self._after(step)) is None or after.name != "retry")

    def account(self, step: Step) -> Version:
        """Return the last version that accounts for the step's rejects: earlier ones may hold links erased since."""
        while (after := self._after(step)) is not None and after.same_account:
            step = after
        return step.version

    def last(self, *names: str) -> Step | None:
        """Return the last step of one of these names."""
        return next((step for step in reversed(self.steps) if step.name in names), None)

    def _after(self, step: Step) -> Step | None:
        following = self.steps.index(step) + 1
        return self.steps[following] if following < len(self.steps) else None

    def _replaced(self, step: Step) -> bool:
        after = self._after(step)
        return after is not None and after.same_account


def read_chain(lake: Lake, images: Version) -> Chain:
    """Follow the parents from a version of images up to the sources, as far as the lake still has them."""
    versions = [images]
    while (parent := _parent(lake, versions[-1])) is not None:
        versions.append(parent)
    versions.reverse()
    befores = [None, *versions[:-1]]
    return Chain(steps=tuple(_step(before, version) for before, version in zip(befores, versions, strict=True)))


def _parent(lake: Lake, version: Version) -> Version | None:
    """Return the version whose rows went in; other parents (drops, scores) only state what to do with them."""
    for ref in version.manifest.parent_refs:
        if ref.kind == "dataset" and ref.digest in lake.dataset(ref.name).digests():
            parent = lake.version(ref)
            if parent.manifest.kind in _ROWS_OF:
                return parent
    return None


def _rejected(version: Version) -> int:
    return sum(version.manifest.rejects_by_reason.values())


def _step(before: Version | None, version: Version) -> Step:
    found = dict(version.manifest.rejects_by_reason)
    account = version.rows + _rejected(version)
    if before is None or before.manifest.name != version.manifest.name or account != before.rows + _rejected(before):
        name = _name(before, version)
        return Step(name=name, version=version, before=before, rows_in=account, reasons=_ordered(found))
    earlier = before.manifest.rejects_by_reason
    own = {reason: count - earlier.get(reason, 0) for reason, count in found.items() if count > earlier.get(reason, 0)}
    if sum(own.values()) == before.rows - version.rows and all(
        found.get(reason, 0) >= earlier[reason] for reason in earlier
    ):
        name, rows_in, reasons = _removal(own), before.rows, own
    else:
        name, rows_in, reasons = "retry", _rejected(before), found
    return Step(
        name=name, version=version, before=before, rows_in=rows_in, reasons=_ordered(reasons), same_account=True
    )


def _ordered(reasons: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def _name(before: Version | None, version: Version) -> str:
    """Return the pipeline step's verb, from kinds and parents: manifests do not carry it."""
    kind = version.manifest.kind
    if before is None:
        from_source = any(ref.kind == "source" for ref in version.manifest.parent_refs)
        return "select" if from_source and kind == "links" else "change"
    if before.manifest.name == version.manifest.name:
        return _removal(version.manifest.rejects_by_reason)
    if kind == "images":
        return "download"
    reasons = version.manifest.rejects_by_reason
    only_duplicates = all(reason.startswith("duplicate_") for reason in reasons)
    return "deduplicate" if only_duplicates and "buckets" in version.manifest.config else "balance"


def _removal(reasons: Mapping[str, int]) -> str:
    """Return the name of a step that only takes rows out of a dataset, from its reasons."""
    if reasons and set(reasons) <= {DUPLICATE_IMAGE, NEAR_DUPLICATE}:
        return "distinct"
    return "takedown" if reasons and set(reasons) <= {TAKEDOWN} else "change"
