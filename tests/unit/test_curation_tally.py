"""Tallies: they add up over any split, histograms hold every row, quantiles bound what is below."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.storage.ledger import total
from altdiffusion.tally import MEASURES, bins, histogram, quantile, tally


def table(rows: int, seed: int) -> pa.Table:
    draw = np.random.default_rng(seed)
    columns = {
        "language": pa.array(draw.choice(["en", "ko", "zh"], rows), pa.string()),
        "width": pa.array(draw.integers(1, 5000, rows), pa.int32(), mask=draw.random(rows) < 0.1),
        "height": pa.array(draw.integers(1, 5000, rows), pa.int32()),
    }
    for name in ("similarity", "aesthetic", "punsafe", "pwatermark", "language_score"):
        columns[name] = pa.array(draw.random(rows), pa.float32(), mask=draw.random(rows) < 0.2)
    return pa.table(columns)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 5))
def test_tallies_of_parts_add_up_to_that_of_the_whole(rows: int, cut: int, seed: int) -> None:
    whole = table(rows, seed)
    parts = [whole.slice(0, min(cut, rows)), whole.slice(min(cut, rows))]
    assert total(tally(part) for part in parts) == tally(whole)


def test_histograms_hold_every_row_that_has_a_value() -> None:
    rows = table(5000, 1)
    counted = tally(rows)
    for measure, how in MEASURES.items():
        known = len(rows) - how.value(rows).null_count
        assert sum(count for _, _, count in histogram(counted, measure)) == known
        assert sum(sum(bins(counted, measure, language).values()) for language in ("en", "ko", "zh")) == known


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.integers(0, 3))
def test_quantile_bounds_what_is_below_it(q: float, seed: int) -> None:
    rows = table(2000, seed)
    found = quantile(tally(rows), "similarity", "ko", q)
    assert found is not None
    mine = rows.filter(pa.compute.equal(rows["language"], "ko"))["similarity"].drop_null().to_numpy()
    assert np.mean(mine < found) <= q + 1e-9
    assert np.mean(mine < found + 0.005 + 1e-6) >= q - 1e-3


def test_an_edge_belongs_to_the_bin_above_it() -> None:
    values = pa.array([0.28, 0.2799, 0.285, 0.2849], pa.float32())
    rows = table(4, 0).set_column(3, "similarity", values).set_column(0, "language", pa.array(["en"] * 4))
    assert bins(tally(rows), "similarity", "en") == {55: 1, 56: 2, 57: 1}


def test_no_value_no_quantile() -> None:
    assert quantile({}, "similarity", "en", 0.5) is None


def test_what_is_not_a_number_counts_as_unknown() -> None:
    rows = table(4, 0).set_column(0, "language", pa.array(["en"] * 4))
    rows = rows.set_column(3, "similarity", pa.array([float("nan"), float("inf"), None, 0.3], pa.float32()))
    rows = rows.set_column(1, "width", pa.array([0, 10, 10, 10], pa.int32()))
    counted = tally(rows)
    assert bins(counted, "similarity") == {60: 1} and counted["similarity|en|null"] == 3
    assert sum(bins(counted, "aspect").values()) == 3
