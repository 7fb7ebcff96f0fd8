"""Balance: links -> links with each language's share as wanted. Which row stays is decided by the row alone.

How much of a language is to stay follows from the tally in the manifest of `links`, without reading a row:

1. Threshold. With a share q for language l, rows whose similarity is below the bin that holds l's q-quantile are
   dropped (`similarity_quantile`), and with them those without a similarity, unless no row has one. As a threshold
   is the edge of a bin (0.005 wide), at least a share of 1 - q stays, and how many do is known exactly: n_l.
2. Rate. Of these n_l rows, m_l = min(n_l, S n_l ** (1 / T)) are wanted: with temperature T, and with S such that the
   largest language is left with `rows_per_language`, or, without that, such that no language would need more rows
   than it has: then the scarcest (with any rows) stays whole and the shares are exactly proportional to
   n_l ** (1 / T). Without a temperature m_l = min(n_l, rows_per_language): the limit of T -> infinity.
   A row stays if its draw, uniform on [0, 1) and keyed by (seed, sample_id), is below m_l / n_l (`balance`).

The number that stays is therefore binomial: m_l on average, with a standard deviation of sqrt(m_l (1 - m_l / n_l)),
0.3 % of 100,000. In return workers are independent of each other, the same rows stay in whatever order and units they
are processed, and more of a language (a higher cap) only ever adds rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config import BalanceConfig
from altdiffusion.curation.rejects import BALANCE, SIMILARITY_QUANTILE, coded, rejected
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.range_work import RangeWork, finish_unit
from altdiffusion.execution.ranges import plan_ranges
from altdiffusion.execution.units import Unit
from altdiffusion.hashing import uniform
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.storage.shards import NARROW_GROUP_ROWS
from altdiffusion.tally import MEASURES, bins, quantile, tally

REASONS = (SIMILARITY_QUANTILE, BALANCE)


@dataclass(frozen=True, kw_only=True)
class Share:
    """What stays of a language."""

    rows: int
    """Rows there are."""
    threshold: float | None
    """Similarity from which on rows are eligible; None takes all."""
    eligible: int
    rate: float
    """Probability of an eligible row to stay."""

    @property
    def expected(self) -> float:
        """Rows that stay, on average."""
        return self.eligible * self.rate

    @property
    def deviation(self) -> float:
        """Standard deviation of their number."""
        return math.sqrt(self.expected * (1 - self.rate))


def plan_balance(links: Version, config: BalanceConfig) -> tuple[list[Unit], dict[str, Share]]:
    """Return the units of a version of links, and what will stay of each language."""
    return plan_ranges(links, config.rows_per_unit), shares(links, config)


def shares(links: Version, config: BalanceConfig) -> dict[str, Share]:
    """Return what stays of each language, by the version's manifest alone.

    Raises:
        AltDiffusionError: similarity decides, but the manifest has no tally.
    """
    counts = links.manifest.tally
    if links.rows and not counts and any(config.quantile(language) for language in links.manifest.rows_by_language):
        raise AltDiffusionError(
            links.ref.short,
            "has no tally in its manifest, so that no quantile of similarity is known",
            "balance what the deduplicate step makes",
        )
    counted: dict[str, tuple[int, float | None, int]] = {}
    for language, rows in links.manifest.rows_by_language.items():
        share = config.quantile(language)
        threshold = quantile(counts, "similarity", language, share) if share else None
        eligible = rows
        if threshold is not None:
            lowest = _bin(np.array([threshold]))[0]
            eligible = sum(n for bin, n in bins(counts, "similarity", language).items() if bin >= lowest)
        counted[language] = rows, threshold, eligible
    wanted = targets({language: eligible for language, (_, _, eligible) in counted.items()}, config)
    return {
        language: Share(
            rows=rows, threshold=threshold, eligible=eligible, rate=wanted[language] / eligible if eligible else 1.0
        )
        for language, (rows, threshold, eligible) in counted.items()
    }


def targets(rows: Mapping[str, int], config: BalanceConfig) -> dict[str, float]:
    """Return m_l for each language, of n_l rows: the rule of step 2."""
    some = [n for n in rows.values() if n]
    limit = config.rows_per_language
    if not some or (limit is None and config.temperature is None):
        return {language: float(n) for language, n in rows.items()}
    power = 1.0 / config.temperature if config.temperature is not None else 0.0
    scale = limit / max(some) ** power if limit is not None else min(some) ** (1.0 - power)
    return {language: min(float(n), scale * n**power) if n else 0.0 for language, n in rows.items()}


def _bin(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the tally's bin of each similarity: rows and thresholds are compared as they were counted."""
    return np.asarray(np.floor(MEASURES["similarity"].number(values)), np.int64)


class BalanceWork(RangeWork):
    """The work on a row range of links."""

    def __init__(self, *, lake: str, dataset: str, balance: BalanceConfig) -> None:
        super().__init__(lake=lake, dataset=dataset)
        self.balance = balance
        self._shares: dict[str, dict[str, Share]] = {}

    def run(self, unit: Unit) -> UnitRecord:
        """Keep the rows that are eligible and drawn."""
        table, version = self.rows_of(unit), self.version_of(unit)
        name = str(version.ref)
        if name not in self._shares:
            self._shares[name] = shares(version, self.balance)
        codes = verdict(table, self._shares[name], self.balance.seed)
        lost = np.flatnonzero(codes)
        return finish_unit(
            self.output,
            unit,
            rows_in=table.num_rows,
            accepted=[table.filter(pa.array(codes == 0))],
            row_group_rows=NARROW_GROUP_ROWS,
            rejects=[rejected(unit.id, table, lost, coded(REASONS, codes[lost]))],
            tally=tally,
        )


def verdict(table: pa.Table, by_language: Mapping[str, Share], seed: int) -> npt.NDArray[np.uint8]:
    """Return 0 for each row that stays, else 1 + the place of its reason in REASONS, [rows]."""
    coded = table["language"].combine_chunks().dictionary_encode()
    mine = [by_language[language] for language in coded.dictionary.to_pylist()]
    language = coded.indices.to_numpy(zero_copy_only=False)
    everything = np.iinfo(np.int64).min
    lowest = np.array(
        [everything if one.threshold is None else _bin(np.array([one.threshold]))[0] for one in mine], np.int64
    )
    rate = np.array([one.rate for one in mine])
    similarity = np.asarray(pc.fill_null(table["similarity"], -np.inf), np.float64)
    known = np.isfinite(similarity)
    bin = np.where(known, _bin(np.where(known, similarity, 0.0)), everything)
    codes = np.zeros(table.num_rows, np.uint8)
    codes[uniform(seed, table["sample_id"].to_numpy()) >= rate[language]] = 2
    codes[bin < lowest[language]] = 1
    return codes
