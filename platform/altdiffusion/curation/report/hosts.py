"""The hosts that images came from: how often each gave one, and the most frequent failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.report.sample import Sample, accepted, read_sample, rejected
from altdiffusion.storage.dataset import Version

_HOST = r"^[A-Za-z][A-Za-z0-9+.\-]*://(?:[^/?#@]*@)?(?P<host>\[[^\]/?#]*\]|[^/?#:]*)"


@dataclass(frozen=True, kw_only=True)
class Host:
    """The rows of one host; estimates where the version was sampled."""

    name: str
    """Empty for URLs without one."""
    kept: float
    lost: float
    reason: str | None = None
    """The reason of most rows that were lost."""
    reason_rows: float = 0.0

    @property
    def rows(self) -> float:
        return self.kept + self.lost

    @property
    def share(self) -> float:
        """The share of rows that gave an image."""
        return self.kept / self.rows if self.rows else 0.0


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """The hosts with the most rows, and those that lost the most; `number` different ones were seen."""

    largest: tuple[Host, ...]
    lossiest: tuple[Host, ...]
    number: int
    kept: Sample
    lost: Sample

    @property
    def whole(self) -> bool:
        return self.kept.whole and self.lost.whole


def count_hosts(downloaded: Version, *, sample_rows: int, shown: int) -> Hosts:
    """Count the rows of a downloaded version by host; memory is bounded by the two samples."""
    kept = read_sample(accepted(downloaded), ["url"], sample_rows)
    lost = read_sample(rejected(downloaded), ["url", "reason"], sample_rows)
    good = {entry["values"]: entry["counts"] for entry in pc.value_counts(host_of(kept.table["url"])).to_pylist()}
    bad: dict[str, dict[str, int]] = {}
    if lost.rows:
        pairs = pa.table({"host": host_of(lost.table["url"]), "reason": lost.table["reason"]})
        for entry in pairs.group_by(["host", "reason"]).aggregate([([], "count_all")]).to_pylist():
            bad.setdefault(entry["host"], {})[entry["reason"]] = entry["count_all"]
    hosts = [_host(name, good.get(name, 0), bad.get(name, {}), kept.scale, lost.scale) for name in {*good, *bad}]
    largest = sorted(hosts, key=lambda host: (-host.rows, host.name))
    lossiest = sorted((host for host in hosts if host.lost), key=lambda host: (-host.lost, host.name))
    return Hosts(
        largest=tuple(largest[:shown]), lossiest=tuple(lossiest[:shown]), number=len(hosts), kept=kept, lost=lost
    )


def host_of(urls: Any) -> Any:
    """Return the host of each URL in lower case, "" where there is none."""
    found = pc.struct_field(pc.extract_regex(urls.cast(pa.string()), _HOST), "host")
    return pc.utf8_lower(pc.fill_null(found, ""))


def _host(name: str, good: int, bad: dict[str, int], kept_scale: float, lost_scale: float) -> Host:
    reason = min(bad, key=lambda word: (-bad[word], word), default=None)
    return Host(
        name=name,
        kept=good * kept_scale,
        lost=sum(bad.values()) * lost_scale,
        reason=reason,
        reason_rows=bad[reason] * lost_scale if reason is not None else 0.0,
    )
