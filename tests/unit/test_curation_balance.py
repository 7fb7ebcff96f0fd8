"""Balance: thresholds and rates follow from the manifest alone, and a row's fate from the row and these."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.config import fingerprint, from_dict
from altdiffusion.curation.config import BalanceConfig
from altdiffusion.curation.links.balance_work import BalanceWork, plan_balance, shares, targets
from altdiffusion.errors import AltDiffusionError
from altdiffusion.records import LINKS
from altdiffusion.splitmix import splitmix64
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.tally import tally

LAKE = "memory://balance"


def links(
    rows: Sequence[tuple[str, float | None]], lake: str = LAKE, shard: int = 50, *, counted: bool = True
) -> Version:
    """Return a version of rows (language, similarity)."""
    ids = splitmix64(np.arange(len(rows), dtype=np.uint64)).view(np.int64)
    columns: dict[str, Any] = {
        "sample_id": ids,
        "url": [f"http://a/{i}" for i in range(len(rows))],
        "caption": ["x"] * len(rows),
        "language": [language for language, _ in rows],
        "language_score": [0.5] * len(rows),
        "similarity": [similarity for _, similarity in rows],
        "source": ["s"] * len(rows),
    }
    table = pa.table(
        [
            pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(len(rows), field.type)
            for field in LINKS
        ],
        schema=LINKS,
    )
    dataset = Lake(lake).dataset("links")
    records = []
    for index, start in enumerate(range(0, len(rows), shard)):
        part = table.slice(start, shard)
        by_language = {
            language: part["language"].to_pylist().count(language) for language in set(part["language"].to_pylist())
        }
        records.append(
            UnitRecord(
                unit_id=f"u{index}", index=index, input_digest="d", rows_in=part.num_rows,
                shards=(dataset.write_shard(part),), rows_by_language=by_language, tally=tally(part) if counted else {},
            )
        )  # fmt: skip
    return dataset.publish(kind="links", records=records, parents=[], config={}, fingerprint="f")


def run(version: Version, config: BalanceConfig, lake: str = LAKE, order: Sequence[int] | None = None) -> Version:
    units, _ = plan_balance(version, config)
    records = []
    for index in range(len(units)) if order is None else order:
        work = BalanceWork(lake=lake, dataset="balanced", balance=config)  # a worker of its own for every unit
        work.setup()
        records.append(work.run(units[index]))
    dataset = Lake(lake).dataset("balanced")
    return dataset.publish(kind="links", records=records, parents=[version.ref], config={}, fingerprint="f")


def ids(version: Version) -> list[int]:
    found: list[int] = version.read(["sample_id"])["sample_id"].to_pylist()
    return found


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["en", "ko", "th"]),
        st.one_of(st.none(), st.sampled_from([0.25, 0.255, 0.26, 0.2599, 0.3, -0.1]), st.floats(-1, 1, width=32)),
    ),
    min_size=1, max_size=80,
)  # fmt: skip
CONFIG = st.builds(
    BalanceConfig,
    similarity_quantile=st.one_of(st.none(), st.floats(0, 0.99), st.fixed_dictionaries({"ko": st.floats(0, 0.99)})),
    rows_per_language=st.one_of(st.none(), st.integers(1, 40)),
    temperature=st.one_of(st.none(), st.floats(1, 100)),
    seed=st.integers(0, 3),
    rows_per_unit=st.integers(1, 60),
)


@settings(max_examples=80, deadline=None)
@given(ROWS, CONFIG, st.randoms(use_true_random=False))
def test_every_row_is_kept_or_rejected_by_the_rule(
    rows: list[tuple[str, float | None]], config: BalanceConfig, chance: random.Random
) -> None:
    fsspec.filesystem("memory").store.clear()
    version = links(rows, shard=20)
    units, by_language = plan_balance(version, config)
    balanced = run(version, config, order=chance.sample(range(len(units)), len(units)))
    kept = set(ids(balanced))
    reasons = {
        row["sample_id"]: row["reason"] for table in balanced.iter_rejects() for row in table.to_pylist()
    }  # fmt: skip
    above = dict.fromkeys(by_language, 0)
    for row in version.read().to_pylist():
        share = by_language[row["language"]]
        eligible = share.threshold is None or (
            row["similarity"] is not None and round(row["similarity"] * 200, 4) >= round(share.threshold * 200, 4)
        )
        above[row["language"]] += eligible
        key = int(splitmix64(np.array([config.seed], np.uint64))[0])
        word = int(splitmix64(np.array([(row["sample_id"] & (2**64 - 1)) ^ key], np.uint64))[0])
        drawn = (word >> 11) / 2**53 < share.rate
        expected = None if eligible and drawn else "balance" if eligible else "similarity_quantile"
        assert reasons.get(row["sample_id"]) == expected and (row["sample_id"] in kept) == (expected is None)
    for language, share in by_language.items():
        mine = [similarity for spoken, similarity in rows if spoken == language]
        known = sum(similarity is not None for similarity in mine)
        assert share.rows == len(mine) and share.eligible == above[language] and 0 < share.rate <= 1
        if share.threshold is not None:
            assert share.eligible >= (1 - config.quantile(language)) * known > 0
    assert balanced.rows + len(reasons) == len(rows)
    assert sum(n for key, n in balanced.manifest.tally.items() if key.startswith("similarity|")) == balanced.rows


@settings(max_examples=20, deadline=None)
@given(ROWS, CONFIG, st.integers(1, 60), st.randoms(use_true_random=False))
def test_units_and_their_order_change_nothing(
    rows: list[tuple[str, float | None]], config: BalanceConfig, other: int, chance: random.Random
) -> None:
    fsspec.filesystem("memory").store.clear()
    version = links(rows, shard=20)
    units, _ = plan_balance(version, config)
    one = run(version, config)
    shuffled = run(version, config, order=chance.sample(range(len(units)), len(units)))
    assert one.ref == shuffled.ref
    recut = BalanceConfig(
        similarity_quantile=config.similarity_quantile, rows_per_language=config.rows_per_language,
        temperature=config.temperature, seed=config.seed, rows_per_unit=other,
    )  # fmt: skip
    assert ids(run(version, recut)) == ids(one)


COUNTS = {"en": 1_000_000, "zh": 250_000, "ko": 10_000, "hi": 0}


def test_targets() -> None:
    def wanted(**given: Any) -> dict[str, int]:
        return {name: round(rows) for name, rows in targets(COUNTS, BalanceConfig(**given)).items()}

    assert wanted() == COUNTS
    assert wanted(rows_per_language=100_000) == {"en": 100_000, "zh": 100_000, "ko": 10_000, "hi": 0}
    assert wanted(temperature=1.0) == COUNTS
    # shares proportional to the root, the scarcest language whole
    assert wanted(temperature=2.0) == {"en": 100_000, "zh": 50_000, "ko": 10_000, "hi": 0}
    # the same weights, the largest language at the cap, and none above what it has
    assert wanted(temperature=2.0, rows_per_language=400_000) == {"en": 400_000, "zh": 200_000, "ko": 10_000, "hi": 0}
    assert wanted(temperature=1.0, rows_per_language=500_000) == {"en": 500_000, "zh": 125_000, "ko": 5_000, "hi": 0}
    assert wanted(rows_per_language=10**9, temperature=3.0)["en"] == 1_000_000
    limit = wanted(temperature=1e9, rows_per_language=50_000)  # T -> infinity is the cap alone
    assert limit == wanted(rows_per_language=50_000)
    assert targets({}, BalanceConfig(temperature=2.0)) == {}


def test_numbers_are_binomial_and_a_higher_cap_only_adds_rows(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    rows = [("en", 0.3)] * 20_000 + [("ko", 0.3)] * 800
    chance.shuffle(rows)  # type: ignore[arg-type]
    version = links([(str(language), float(similarity)) for language, similarity in rows], str(tmp_path), 65_536)
    before: set[int] = set()
    half: set[int] = set()
    for cap in (500, 5_000, 10_000, 30_000):
        config = BalanceConfig(rows_per_language=cap, seed=3)
        share = shares(version, config)
        balanced = run(version, config, str(tmp_path))
        counts = balanced.manifest.rows_by_language
        assert counts["ko"] == 800 if cap > 800 else abs(counts["ko"] - cap) < 4 * share["ko"].deviation
        assert abs(counts["en"] - share["en"].expected) <= 4 * share["en"].deviation
        assert share["en"].expected == min(cap, 20_000)
        kept = set(ids(balanced))
        assert before <= kept
        before = kept
        half = kept if cap == 10_000 else half
    other = set(ids(run(version, BalanceConfig(rows_per_language=10_000, seed=4), str(tmp_path))))
    assert 0.4 < len(other & half) / len(other) < 0.6  # another seed, other rows


def test_thresholds_are_per_language(tmp_path: Path) -> None:
    rows: list[tuple[str, float | None]] = [("en", 0.20 + i / 1000) for i in range(100)]
    rows += [("ko", 0.30 + i / 1000) for i in range(100)] + [("th", None)] * 5 + [("ko", None)]
    version = links(rows, str(tmp_path))
    config = BalanceConfig(similarity_quantile={"en": 0.5, "ko": 0.1, "th": 0.5})
    share = shares(version, config)
    assert (share["en"].threshold, share["en"].eligible) == (pytest.approx(0.25), 50)
    assert (share["ko"].threshold, share["ko"].eligible) == (pytest.approx(0.31), 90)
    assert (share["th"].threshold, share["th"].eligible) == (None, 5)  # nothing to rank them by
    balanced = run(version, config, str(tmp_path))
    assert dict(balanced.manifest.rows_by_language) == {"en": 50, "ko": 90, "th": 5}
    assert dict(balanced.manifest.rejects_by_reason) == {"similarity_quantile": 61}
    english = [row["similarity"] for row in balanced.read().to_pylist() if row["language"] == "en"]
    assert min(english) == pytest.approx(0.25)


def test_a_version_without_a_tally_has_no_quantiles(tmp_path: Path) -> None:
    version = links([("en", 0.3)], str(tmp_path), counted=False)
    with pytest.raises(AltDiffusionError, match="has no tally"):
        plan_balance(version, BalanceConfig(similarity_quantile=0.1))
    assert plan_balance(version, BalanceConfig(rows_per_language=1))[1]["en"].rate == 1.0


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"similarity_quantile": 1.0}, "similarity_quantile"),
        ({"similarity_quantile": {"ko": -0.1}}, "similarity_quantile.ko"),
        ({"rows_per_language": 0}, "rows_per_language"),
        ({"temperature": 0.5}, "temperature"),
        ({"rows_per_unit": 0}, "rows_per_unit"),
    ],
)
def test_an_invalid_value_names_its_key(values: dict[str, Any], key: str) -> None:
    with pytest.raises(AltDiffusionError, match=f"key {key}: .*Remedy: "):
        from_dict(BalanceConfig, values, "job.yaml")


def test_the_config_reads_one_share_or_one_per_language() -> None:
    one, each = (from_dict(BalanceConfig, {"similarity_quantile": value}) for value in (0.2, {"ko": 0.1}))
    assert (one.quantile("ko"), each.quantile("ko"), each.quantile("en"), BalanceConfig().quantile("en")) == (
        0.2, 0.1, 0.0, 0.0,
    )  # fmt: skip
    assert fingerprint(one) != fingerprint(each) != fingerprint(BalanceConfig(seed=1))
