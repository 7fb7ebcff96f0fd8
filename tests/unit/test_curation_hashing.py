"""Hashes of columns: the same for every layout of the bytes, LAION's own where it has one, spread evenly."""

from __future__ import annotations

import mmh3
import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.hashing import hash64, murmur64, rows_with, uniform
from altdiffusion.splitmix import splitmix64

TEXTS = st.lists(
    st.one_of(st.none(), st.text(max_size=40), st.text(alphabet="ab", min_size=0, max_size=20)), max_size=40
)


@given(TEXTS)
def test_a_hash_depends_on_the_text_alone(texts: list[str | None]) -> None:
    whole = hash64(pa.array(texts, pa.string())).tolist()
    assert hash64(pa.array(["xy", None, *texts], pa.string()).slice(2)).tolist() == whole
    assert hash64(pa.array(texts, pa.large_string())).tolist() == whole
    assert hash64(pa.chunked_array([texts[:2], texts[2:]], pa.string())).tolist() == whole
    assert [int(hash64(pa.array([text], pa.string()))[0]) for text in texts] == whole
    by_text = {text or "": value for text, value in zip(texts, whole, strict=True)}
    assert len(set(by_text.values())) == len(by_text)


def test_hashes_are_these_for_ever() -> None:
    """Buckets of a version that exists are found again by another machine and a later release."""
    texts = ["", "a", "a.example/1.jpg", "ü" * 9, "x" * 4096, "x" * 5000]
    assert [f"{value:016x}" for value in hash64(pa.array(texts)).tolist()] == [
        "e220a8397b1dcdaf", "6d16bf441c521f6a", "57feffe060dd6c90", "0ad6da833a28db1f", "5abf46a4491b330d",
        "9588af73caa3175d",
    ]  # fmt: skip
    assert f"{int(splitmix64(np.array([0], np.uint64))[0]):016x}" == "e220a8397b1dcdaf"  # of the reference code
    assert uniform(0, np.array([1, -1])).tolist() == [0.03401170130434639, 0.1790798029343914]


def test_long_texts_are_hashed_whole() -> None:
    texts = ["x" * 10_000 + end for end in "ab"] + ["y" + "x" * 9_999 + "a", "x" * 4104, "x" * 4103, "x" * 4097]
    assert len(set(hash64(pa.array(texts)).tolist())) == len(texts)


def test_hashes_are_spread_evenly() -> None:
    """One site's numbered images, which differ in few bits, fill 64 buckets evenly (chi-squared, 63 degrees)."""
    urls = pa.array([f"cdn.example/products/{i:07d}/front_800x800.jpg" for i in range(64_000)])
    counts = np.bincount((hash64(urls) % np.uint64(64)).astype(int), minlength=64)
    assert ((counts - 1000) ** 2 / 1000).sum() < 120
    flips = hash64(urls)[:-1] ^ hash64(urls)[1:]
    assert abs(np.bitwise_count(flips).mean() - 32) < 0.5


@settings(max_examples=50)
@given(st.lists(st.text(max_size=60), max_size=20))
def test_murmur_is_laions_row_id(texts: list[str]) -> None:
    expected = [mmh3.hash64(text)[0] for text in texts]
    assert murmur64(pa.array(texts, pa.string())).to_pylist() == expected
    assert murmur64(pa.array(["q", *texts], pa.string()).slice(1)).to_pylist() == expected


@given(st.lists(st.one_of(st.none(), st.text(alphabet="a?é", max_size=6)), max_size=30))
def test_rows_that_hold_a_character(texts: list[str | None]) -> None:
    expected = [row for row, text in enumerate(texts) if text and "?" in text]
    assert rows_with(pa.array(texts, pa.string()), "?").tolist() == expected
    assert rows_with(pa.array(["?", *texts], pa.string()).slice(1), "?").tolist() == expected


def test_draws_are_uniform_and_keyed() -> None:
    ids = np.arange(100_000)
    draws = uniform(7, ids)
    assert draws.min() >= 0 and draws.max() < 1
    assert (draws == uniform(7, ids)).all() and (draws != uniform(8, ids)).all()
    assert (uniform(7, ids[::-1])[::-1] == draws).all()
    assert abs(draws.mean() - 0.5) < 0.005 and abs(draws.std() - 12**-0.5) < 0.005
    assert abs(np.corrcoef(draws, uniform(8, ids))[0, 1]) < 0.015
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.015
