"""Duplicates among images, through keys, buckets and units, equal the obvious comparison of all with all."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.config import semantic
from altdiffusion.curation.config import DistinctConfig
from altdiffusion.curation.images import near_hashes
from altdiffusion.curation.images.duplicates import (
    CompareWork,
    DistinctWork,
    FingerprintWork,
    carried_rejects,
    drops,
    key_rows,
    plan_distinct,
    plan_fingerprint,
)
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.pipeline_step import Output, PipelineStep, run_pipeline_step
from altdiffusion.execution.progress import Progress
from altdiffusion.execution.ranges import plan_buckets
from altdiffusion.records import IMAGES, REJECTS, Kind
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.storage.verification import damages_of

CENTRES = (0, 0xFFFF_FFFF_FFFF_FFFF, 0x0123_4567_89AB_CDEF, 0x8000_0000_0000_0001)


@dataclass(frozen=True)
class Downloaded:
    """A row, as far as duplicates go."""

    id: int
    language: str
    bytes: int
    phash: int
    side: int = 10
    similarity: float | None = None

    @property
    def rank(self) -> tuple[float, float, int]:
        """Smaller is better."""
        return (-self.side, -(self.similarity if self.similarity is not None else -np.inf), self.id)


def table(downloaded: Sequence[Downloaded]) -> pa.Table:
    known = {
        "sample_id": [p.id for p in downloaded],
        "url": [f"http://a/{p.id}" for p in downloaded],
        "caption": ["x"] * len(downloaded),
        "language": [p.language for p in downloaded],
        "language_score": [0.5] * len(downloaded),
        "similarity": [p.similarity for p in downloaded],
        "source": ["s"] * len(downloaded),
        "image": [b"x"] * len(downloaded),
        "image_format": ["jpg"] * len(downloaded),
        "image_sha256": [f"{p.bytes:064x}" for p in downloaded],
        "phash": [p.phash - (1 << 64) if p.phash >> 63 else p.phash for p in downloaded],
        **{
            f"{kind}_{side}": [p.side for p in downloaded]
            for kind in ("original", "stored")
            for side in ("width", "height")
        },
    }
    return pa.table(
        [pa.array(known.get(f.name, [None] * len(downloaded)), f.type) for f in IMAGES],
        schema=IMAGES,
    )


def images(lake: str, downloaded: Sequence[Downloaded], rows: int) -> Version:
    """Publish a version of shards of `rows` rows, with one row that was rejected on the way."""
    dataset = Lake(lake).dataset("images")
    records = []
    for index, start in enumerate(range(0, len(downloaded), rows)):
        part = downloaded[start : start + rows]
        reject = pa.Table.from_pylist([{"unit_id": "u", "row": 0, "reason": "timeout"}], schema=REJECTS)
        records.append(
            UnitRecord(
                unit_id=f"u{index}",
                index=index,
                input_digest="d",
                rows_in=len(part) + 1,
                shards=(dataset.write_shard(table(part)),),
                rejects=(dataset.write_rejects(reject),),
                rejects_by_reason={"timeout": 1},
            )
        )
    return publish(lake, "images", "images", records, [])


def publish(lake: str, name: str, kind: Kind, records: Sequence[UnitRecord], parents: Sequence[Ref]) -> Version:
    return Lake(lake).dataset(name).publish(kind=kind, records=records, parents=parents, config={}, fingerprint="f")


def distinct(lake: str, version: Version, config: DistinctConfig) -> Version:
    """Run the three pipeline steps."""
    fingerprint = FingerprintWork(lake=lake, dataset="image-keys", config=config)
    made = [fingerprint.run(unit) for unit in plan_fingerprint(version, config)]
    keys = publish(lake, "image-keys", "keys", made, [version.ref])
    compare = CompareWork(lake=lake, dataset="image-drops", config=config)
    made = [compare.run(unit) for unit in plan_buckets(keys, config.buckets)]
    found = publish(lake, "image-drops", "drops", made, [keys.ref])
    rewrite = DistinctWork(lake=lake, dataset="images")
    made = [rewrite.run(unit) for unit in plan_distinct(version, found)]
    return publish(lake, "images", "images", [*made, *carried_rejects(version)], [version.ref, found.ref])


def brute_force(downloaded: Sequence[Downloaded], config: DistinctConfig) -> dict[int, tuple[str, int]]:
    """Return sample_id -> (reason, survivor) of what is dropped."""
    found = {}
    for one in downloaded:
        others = [p for p in downloaded if config.within == "all" or p.language == one.language]
        better = [p for p in others if p.rank < one.rank]
        equal = [p for p in better if p.bytes == one.bytes]
        if equal:
            found[one.id] = ("duplicate_image", min(equal, key=lambda p: p.rank).id)
            continue
        if config.max_distance is None:
            continue
        alike = [p for p in better if p.phash == one.phash]
        best = {p.phash: p.id for p in sorted(others, key=lambda p: p.rank, reverse=True)}
        close = [p for p in better if (p.phash ^ one.phash).bit_count() <= config.max_distance]
        if alike:
            found[one.id] = ("near_duplicate", min(alike, key=lambda p: p.rank).id)
        elif close:
            found[one.id] = ("near_duplicate", min(p.id for p in close if p.id == best[p.phash]))
    return found


def dropped(version: Version) -> dict[int, tuple[str, int]]:
    """Return the same from the rejects of a version."""
    rows = pa.concat_tables([REJECTS.empty_table(), *version.iter_rejects()]).to_pylist()
    return {
        row["sample_id"]: (row["reason"], int(row["detail"].removeprefix("of sample ")))
        for row in rows
        if row["reason"] != "timeout"
    }


def flipped(centre: int, bits: Sequence[int]) -> int:
    for bit in bits:
        centre ^= 1 << bit
    return centre


HASHES = st.builds(flipped, st.sampled_from(CENTRES), st.lists(st.integers(0, 63), max_size=6, unique=True))
DOWNLOADED = st.lists(
    st.tuples(
        st.sampled_from(["en", "ko"]),
        st.integers(0, 12),
        HASHES,
        st.integers(1, 3),
        st.sampled_from([None, 0.25, 0.5]),
    ),
    max_size=30,
).map(lambda rows: [Downloaded((n * 7919) % 1000 - 500, *row) for n, row in enumerate(rows)])
CONFIGS = st.builds(
    DistinctConfig,
    within=st.sampled_from(["language", "all"]),
    max_distance=st.sampled_from([None, 0, 1, 4, 7]),
    buckets=st.integers(1, 5),
    rows_per_unit=st.integers(1, 12),
)


@settings(max_examples=80, deadline=None)
@given(DOWNLOADED, CONFIGS, st.integers(1, 9), st.sampled_from([1, 64]))
def test_all_that_is_dropped_and_nothing_else(
    downloaded: list[Downloaded], config: DistinctConfig, rows: int, large: int
) -> None:
    fsspec.filesystem("memory").store.clear()
    lake = "memory://distinct"
    near_hashes.LARGE, before = large, near_hashes.LARGE
    try:
        version = images(lake, downloaded, rows)
        after = distinct(lake, version, config)
    finally:
        near_hashes.LARGE = before
    wanted = brute_force(downloaded, config)
    assert dropped(after) == wanted
    assert after.read(["sample_id"])["sample_id"].to_pylist() == [p.id for p in downloaded if p.id not in wanted]
    assert sum(after.manifest.rejects_by_reason.values()) == len(wanted) + len(version.rejects)
    assert after.rows == sum(after.manifest.rows_by_language.values())
    stay = [p for p in downloaded if p.id not in wanted]
    assert not brute_force(stay, config)  # once is enough
    assert damages_of(after) == []


@settings(max_examples=40, deadline=None)
@given(DOWNLOADED, st.randoms(use_true_random=False))
def test_neither_order_nor_units_nor_buckets_choose_the_survivor(downloaded: list[Downloaded], random: object) -> None:
    fsspec.filesystem("memory").store.clear()
    shuffled = list(downloaded)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = DistinctConfig(buckets=1, rows_per_unit=100), DistinctConfig(buckets=7, rows_per_unit=1)
    first = distinct("memory://a", images("memory://a", downloaded, 100), one)
    second = distinct("memory://b", images("memory://b", shuffled, 4), other)
    assert dropped(first) == dropped(second)


def test_untouched_shards_are_shared(tmp_path: Path) -> None:
    downloaded = [Downloaded(n, "en", n, flipped(0, range(n, n + 12))) for n in range(40)]
    downloaded[33] = Downloaded(33, "en", 5, downloaded[33].phash)  # the bytes of image 5
    version = images(str(tmp_path), downloaded, 10)
    written = sorted((tmp_path / "datasets/images/shards").iterdir())
    after = distinct(str(tmp_path), version, DistinctConfig(max_distance=None))
    assert after.shards[:3] == version.shards[:3]
    assert after.shards[3].rows == 9
    assert len(sorted((tmp_path / "datasets/images/shards").iterdir())) == len(written) + 1
    assert after.manifest.rejects_by_reason == {"duplicate_image": 1, "timeout": 4}
    row = next(row for table in after.iter_rejects() for row in table.to_pylist() if row["reason"] != "timeout")
    assert (row["row"], row["url"], row["language"]) == (3, "http://a/33", "en")
    again = distinct(str(tmp_path), after, DistinctConfig(max_distance=None))  # nothing is left to drop
    assert again.shards == after.shards
    with pytest.raises(ValueError, match="cannot share its shards"):
        DistinctWork(lake=str(tmp_path), dataset="other").run(plan_distinct(version, again)[0])


def chain(lake: str, version: Version, config: DistinctConfig) -> list[PipelineStep]:
    """Return the three as pipeline steps of a job."""

    def pipeline_step(
        name: str, output: str, kind: Kind, parents: list[str], units: Any, work: Any, carried: Any = lambda _: (),
        **more: Any,
    ) -> PipelineStep:  # fmt: skip
        return PipelineStep(
            name=name,
            outputs=(Output(dataset=output, kind=kind, settings=semantic(config), carried=carried),),
            noun="images",
            parents=lambda lake: [version.ref, *(lake.version(parent).ref for parent in parents)],
            units=units,
            work=work,
            **more,
        )

    return [
        pipeline_step(
            *("fingerprint", "image-keys", "keys", [], lambda _: plan_fingerprint(version, config)),
            lambda _: FingerprintWork(lake=lake, dataset="image-keys", config=config),
        ),
        pipeline_step(
            *("compare", "image-drops", "drops", ["image-keys"]),
            lambda lake: plan_buckets(lake.version("image-keys"), config.buckets),
            lambda _: CompareWork(lake=lake, dataset="image-drops", config=config),
            may_be_empty=True,
        ),
        pipeline_step(
            *("distinct", "images", "images", ["image-drops"]),
            lambda lake: plan_distinct(version, lake.version("image-drops")),
            lambda _: DistinctWork(lake=lake, dataset="images"),
            carried=lambda _: carried_rejects(version),
        ),
    ]


@pytest.mark.parametrize("same", [True, False], ids=["duplicates", "none"])
def test_as_pipeline_steps_of_a_job_that_is_run_twice(tmp_path: Path, same: bool) -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, 20).tolist()
    bytes_ = [n % 7 if same else n for n in range(20)]
    downloaded = [Downloaded(n, "en", number, hashes[number]) for n, number in enumerate(bytes_)]
    version = images(str(tmp_path), downloaded, 6)
    lake = Lake(str(tmp_path))
    runs = [
        [
            run_pipeline_step(lake, one, backend="inline", progress=Progress("x", stream=io.StringIO()))[0].ref
            for one in chain(str(tmp_path), version, DistinctConfig())
        ]
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    after = lake.version("images")
    assert after.manifest.parent_refs == (version.ref, runs[0][1])
    assert after.manifest.rejects_by_reason == ({"duplicate_image": 13, "timeout": 4} if same else {"timeout": 4})
    assert (after.shards == version.shards) == (not same)
    for name in ("image-keys", "image-drops", "images"):
        assert damages_of(lake.version(name)) == []


def test_captions_in_several_languages_keep_their_image(tmp_path: Path) -> None:
    downloaded = [Downloaded(n, language, 1, 2) for n, language in enumerate(["en", "ko", "ko", "de"])]
    for within, left in (("language", [0, 1, 3]), ("all", [0])):
        lake = str(tmp_path / within)
        version = distinct(lake, images(lake, downloaded, 2), DistinctConfig(within=within))
        assert version.read(["sample_id"])["sample_id"].to_pylist() == left


def test_the_larger_image_stays_then_the_more_similar_then_the_smaller_id(tmp_path: Path) -> None:
    downloaded = [
        *(Downloaded(1, "en", 1, 0, side=9), Downloaded(2, "en", 2, 0, side=11), Downloaded(3, "en", 3, 0)),
        *(
            Downloaded(4, "ko", 4, 0),
            Downloaded(5, "ko", 5, 0, similarity=0.1),
            Downloaded(6, "ko", 6, 0, similarity=0.3),
        ),
        *(Downloaded(8, "de", 8, 0), Downloaded(7, "de", 7, 0)),
    ]
    version = distinct(str(tmp_path), images(str(tmp_path), downloaded, 100), DistinctConfig())
    assert version.read(["sample_id"])["sample_id"].to_pylist() == [2, 6, 7]


@pytest.mark.parametrize("distance", range(13))
def test_bands_cover_every_bit_once(distance: int) -> None:
    for bits in (64, 51):
        covered = [bit for low, width in near_hashes.bands(bits, distance) for bit in range(low, low + width)]
        assert covered == list(range(bits))
        assert len(near_hashes.bands(bits, distance)) == distance + 1
    hashes = np.random.default_rng(0).integers(0, 2**64, 500, np.uint64)
    for band in near_hashes.bands(64, distance):
        rest = near_hashes.outside(hashes, band)
        whole = [
            (int(r) & ((1 << band[0]) - 1)) | int(c) << band[0] | (int(r) >> band[0] << band[0] + band[1])
            for r, c in zip(rest, near_hashes.cut(hashes, band), strict=True)
        ]
        assert whole == hashes.tolist()


def test_blank_images_and_crowded_bands_cost_little() -> None:
    """100,000 images of one hash, and 20,000 hashes that share a band: not the square of them."""
    config = DistinctConfig(max_distance=4, buckets=1)
    draw = np.random.default_rng(1)
    crowd = (draw.integers(0, 2**51, 20_000, np.uint64) << np.uint64(13)).tolist()
    downloaded = [Downloaded(n, "en", n, 0) for n in range(100_000)]
    downloaded += [Downloaded(200_000 + n, "en", 200_000 + n, hash) for n, hash in enumerate(crowd)]
    keys, _ = key_rows(table(downloaded), 0, config)
    start = time.process_time()
    found = drops(keys, config)
    assert time.process_time() - start < 20
    assert 99_999 <= found.num_rows <= 100_100
    assert set(found["survivor"].to_pylist()[:99_999]) == {0}


def test_keys_of_another_number_of_buckets_are_refused(tmp_path: Path) -> None:
    version = images(str(tmp_path), [Downloaded(1, "en", 1, 1)], 1)
    config = DistinctConfig(buckets=3)
    work = FingerprintWork(lake=str(tmp_path), dataset="image-keys", config=config)
    made = [work.run(unit) for unit in plan_fingerprint(version, config)]
    keys = publish(str(tmp_path), "image-keys", "keys", made, [version.ref])
    with pytest.raises(AltDiffusionError, match="has 3 shards, which are not 2 buckets"):
        plan_buckets(keys, 2)


def test_invalid_settings_of_distinct_are_refused() -> None:
    for bad in ({"max_distance": 13}, {"max_distance": -1}, {"buckets": 0}, {"rows_per_unit": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            DistinctConfig(**bad)  # type: ignore[arg-type]
