"""Languages drawn apart: shares by temperature, exact epochs of each, and the rows that the order names."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.config import from_dict
from altdiffusion.diffusion import noise
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Lake, Manifest, Version
from altdiffusion.storage.shard_reader import ShardReader
from altdiffusion.training.config import TrainConfig, WorkersConfig
from altdiffusion.training.data import language_chunks, layout
from altdiffusion.training.data.language_rows import LanguageRows
from altdiffusion.training.data.loader import Loader, open_sources
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.order.language_rows import FACTS, ROWS, ChosenRows, choose, language_rows
from altdiffusion.training.order.mixture import make_order, sources_of
from altdiffusion.training.seen import seen
from tests import training_lake
from tests.training_lake import SHAPE, Recorder, write_latents

# Of ten rows in sequence: en 5, de 3, th 1, fr 1.
PATTERN = ("en", "de", "en", "th", "en", "de", "en", "fr", "en", "de")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which rows are kept by language."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/altdiffusion/chunks"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = training_lake.make_lake(tmp_path_factory.mktemp("languages"))
    write_latents(where, "mixed", 430, shard_rows=110, group_rows=16, languages=PATTERN)
    write_latents(where, "more", 70, seed=3, languages=("de", "ru"))
    return where


def config(lake: str, temperature: float | None, names: tuple[str, ...] = ("mixed",), **changes: object) -> TrainConfig:
    order = {"chunk_rows": 16, "window_chunks": 4, "language_temperature": temperature, **changes}
    return training_lake.config(lake, datasets=[{"name": name} for name in names], order=order)


def versions(lake: str, *names: str) -> list[Version]:
    return [Lake(lake).version(name) for name in names]


def invented(rows: dict[str, int], digest: str = "a") -> Version:
    """Return a version that has a manifest only, for orders of any size."""
    facts = {field.name: "" for field in dataclasses.fields(Manifest)}
    total = sum(rows.values())
    return Version("", Manifest(**{**facts, "name": digest, "rows": total, "rows_by_language": rows}))  # type: ignore[arg-type]


def order_config(temperature: float, **changes: object) -> TrainConfig:
    tree = {
        "run": "x", "stage": "alignment", "trainable": "all", "start": {"base": "b"}, "datasets": [{"name": "a"}],
        "steps": 1, "global_batch": 8, "micro_batch": 8, "order": {"language_temperature": temperature}, **changes,
    }  # fmt: skip
    return from_dict(TrainConfig, tree)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(20, 2_000_000), min_size=2, max_size=18),
    temperature=st.floats(1, 50),
)
def test_shares_are_the_formula(rows: list[int], temperature: float) -> None:
    """rows ** (1 / T), normalised, to within the resolution of the shares (1 in 10,000, and at least 1)."""
    by_language = {f"l{number:02}": count for number, count in enumerate(rows)}
    order = make_order(order_config(temperature), [invented(by_language)])
    heat = np.array(rows, dtype=float) ** (1 / temperature)
    expected = heat / heat.sum()
    found = np.array(order.shares) / sum(order.shares)
    assert np.abs(found - expected).max() <= (2e-3 if (expected < 1e-4).any() else 1.01e-4)
    turn = sum(order.shares)
    counts = np.bincount(order.samples(np.arange(3 * turn, 4 * turn)).part, minlength=len(rows))
    assert counts.tolist() == list(order.shares)


def test_one_is_natural_and_infinity_is_uniform() -> None:
    version = invented({"en": 700, "de": 200, "th": 100})
    assert make_order(order_config(1.0), [version]).shares == (2, 7, 1)
    assert sorted(make_order(order_config(1e9), [version]).shares) == [3333, 3333, 3334]


def test_dataset_weights_hold_whatever_the_languages() -> None:
    mine = [invented({"en": 9000, "de": 1000}, "a"), invented({"fr": 50, "en": 50}, "b")]
    weighted = order_config(2.0, datasets=[{"name": "a", "weight": 3}, {"name": "b", "weight": 1}])
    order, sources = make_order(weighted, mine), sources_of(weighted, mine)
    assert [source.name for source in sources] == ["a (de)", "a (en)", "b (en)", "b (fr)"]
    a, b = sum(order.shares[:2]), sum(order.shares[2:])
    assert a / (a + b) == pytest.approx(0.75, abs=2e-4)
    assert order.shares[1] / order.shares[0] == pytest.approx(3.0, rel=2e-3)  # sqrt(9000 / 1000)


@settings(max_examples=25, deadline=None)
@given(temperature=st.floats(1, 9), batches=st.integers(1, 60), seed=st.integers(0, 99))
def test_each_language_has_exact_epochs(temperature: float, batches: int, seed: int) -> None:
    version = invented({"en": 97, "de": 31, "th": 5})
    settings_ = order_config(temperature, seed=seed, global_batch=24, micro_batch=24)
    order = make_order(settings_, [version])
    wanted = [np.zeros(part.rows, np.int64) for part in order.parts]
    for n in range(batches):
        batch = order.batch(n)
        for number, counts in enumerate(wanted):
            counts += np.bincount(batch.row[batch.part == number], minlength=len(counts))
    for counts, found in zip(wanted, order.times(batches), strict=True):
        assert np.array_equal(counts, found)
    assert order.drawn(batches) == [int(counts.sum()) for counts in wanted]
    turns = sum(order.shares)
    whole = order.samples(np.arange(2 * turns))  # whole turns: a language's draws have no gaps
    for number, part in enumerate(order.parts):
        counts = np.bincount(whole.row[whole.part == number], minlength=part.rows)
        assert counts.max() - counts.min() <= 1


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 10**9), world=st.sampled_from([1, 2, 4, 8]), temperature=st.floats(1, 20))
def test_workers_share_a_batch_and_any_batch_stands_alone(n: int, world: int, temperature: float) -> None:
    version = invented({"en": 4_000_000_000, "de": 90_000_000, "th": 100})
    order = make_order(order_config(temperature), [version])
    whole = order.batch(n)
    shares = [order.share(n, rank, world) for rank in range(world)]
    assert np.concatenate([share.position for share in shares]).tolist() == whole.position.tolist()
    assert sorted(whole.position.tolist()) == list(range(n * 8, (n + 1) * 8))
    again = make_order(order_config(temperature), [version]).samples(whole.position)
    assert np.array_equal(again.row, whole.row) and np.array_equal(again.part, whole.part)


def test_row_numbers_of_languages_are_those_of_the_rows(lake: str) -> None:
    mixed, more = versions(lake, "mixed", "more")
    languages = mixed.read(["language"])["language"].to_pylist()
    found = language_rows(mixed)
    assert {name: rows.tolist() for name, rows in found.items()} == {
        name: [row for row, language in enumerate(languages) if language == name] for name in sorted(set(languages))
    }
    chosen = choose([mixed, more], "de")
    rows = chosen.rows(np.arange(len(chosen)))
    assert rows.tolist() == [*found["de"].tolist(), *range(430, 500, 2)]
    for start, stop in ((0, 16), (16, 32), (110, 126), (330, 430), (430, 446), (480, 500)):
        first, inside = chosen.between(start, stop)
        assert inside.tolist() == [row for row in rows.tolist() if start <= row < stop]
        assert rows[first : first + len(inside)].tolist() == inside.tolist()


def test_the_file_is_made_once_and_damage_is_refused(lake: str, tmp_path: Path) -> None:
    copy = str(shutil.copytree(lake, tmp_path / "lake"))
    (version,) = versions(copy, "mixed")
    first = {name: rows.tolist() for name, rows in language_rows(version).items()}
    path = Path(version.uri) / ROWS
    assert path.stat().st_size == 4 * 430
    data = path.read_bytes()
    path.unlink()
    (Path(version.uri) / FACTS).unlink()
    assert {name: rows.tolist() for name, rows in language_rows(version).items()} == first
    assert path.read_bytes() == data
    moved = Lake(str(shutil.copytree(copy, tmp_path / "damaged"))).version("mixed")
    path = Path(moved.uri) / ROWS
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(AltDiffusionError, match=r"languages.rows: is damaged"):
        language_rows(moved)


def test_counts_that_are_not_the_rows_are_refused(tmp_path: Path) -> None:
    lake = str(tmp_path)
    version = write_latents(lake, "latents", 40, languages=PATTERN)
    wrong = dataclasses.replace(version.manifest, rows_by_language={"en": 21, "de": 11, "fr": 4, "th": 4})
    lying = Version(version.folder_uri, wrong)
    shutil.copytree(version.uri, lying.uri)  # with the table of shards that it needs
    with pytest.raises(AltDiffusionError, match="another number of rows in"):
        choose([lying], "en")
    short = dataclasses.replace(version.manifest, rows_by_language={"en": 20})
    with pytest.raises(AltDiffusionError, match="counts 20 rows by language and holds 40"):
        make_order(config(lake, 2.0), [Version(version.folder_uri, short)])


@pytest.mark.parametrize("world", [1, 2])
def test_the_loader_reads_the_rows_of_the_language(lake: str, world: int) -> None:
    settings_ = config(lake, 3.0, ("mixed", "more"))
    opened = versions(lake, "mixed", "more")
    truth = torch.cat([noise.keyed_normal(seed, torch.arange(n), 7, SHAPE).half() for seed, n in ((0, 430), (3, 70))])
    order, sources = make_order(settings_, opened), sources_of(settings_, opened)
    rows = [choose(source.versions, source.language or "") for source in sources]
    languages = [row for version in opened for row in version.read(["language"])["language"].to_pylist()]
    for rank in range(world):
        loader = Loader(order, open_sources(settings_, sources, layout.LATENTS), rank=rank, world=world, stop=30)
        for samples in loader:
            share = order.share(samples.step, rank, world)
            at = np.array([rows[p].rows(np.array([r]))[0] for p, r in zip(share.part, share.row, strict=True)])
            assert torch.equal(samples["latents"], truth[at])
            assert [languages[row] for row in at] == [sources[part].language for part in share.part]
        loader.close()


def test_memory_holds_only_rows_of_the_language(lake: str) -> None:
    settings_ = config(lake, 3.0)
    opened = versions(lake, "mixed")
    sources = sources_of(settings_, opened)
    rows = open_sources(settings_, sources, layout.LATENTS)
    for source, part in zip(sources, rows, strict=True):
        into = part.empty(source.rows)
        part.gather(np.arange(source.rows), into)
        assert part.cached_bytes == source.rows * (2 * 64 + 4 * 8)


def all_rows(settings_: TrainConfig, opened: list[Version]) -> Iterator[tuple[LanguageRows, torch.Tensor]]:
    """Yield each language's rows, and all of their latents."""
    for part in open_sources(settings_, sources_of(settings_, opened), layout.LATENTS):
        assert isinstance(part, LanguageRows)
        into = part.empty(part.rows)
        part.gather(np.arange(part.rows), into)
        yield part, into["latents"]


def test_a_row_group_is_read_from_the_lake_once_for_all_languages(
    lake: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Counter[tuple[int, int]]()
    whole = ShardReader.read

    def counted(self: ShardReader, group: int, *given: Any, **more: Any) -> Any:
        read[id(self), group] += 1
        return whole(self, group, *given, **more)

    monkeypatch.setattr(ShardReader, "read", counted)
    opened = versions(lake, "mixed")
    groups = sum(-(-shard.rows // shard.row_group_rows) for shard in opened[0].shards)
    found = list(all_rows(config(lake, 3.0), opened))
    assert len(list(cache.glob("*/*-*"))) == groups == read.total() - 1  # and a row, for its shape
    read.clear()
    direct = dataclasses.replace(config(lake, 3.0), workers=WorkersConfig(language_disk_gb=0))
    for (part, latents), (plain, expected) in zip(found, all_rows(direct, opened), strict=True):
        assert torch.equal(latents, expected)
        part.close(), plain.close()
    assert read.total() > 2 * groups and not list(cache.iterdir())


def test_every_flipped_byte_of_a_kept_file_is_found(lake: str, cache: Path) -> None:
    """Wherever it is flipped or cut off, it gives the row group's rows, from the file or else from the lake."""
    rows, languages = 40, np.array([PATTERN[row % len(PATTERN)] for row in range(40)], dtype=object)
    shapes = {"latents": SHAPE, "token_ids": (8,)}
    group = {name: torch.randn(rows, *shape).half() for name, shape in shapes.items()}
    chunks, read = language_chunks.LanguageChunks("x", None), Counter[str]()

    def whole(name: str) -> tuple[layout.Rows, Any]:
        read[name] += 1
        return group, languages

    def check(name: str) -> None:
        for language, first, count in (("en", 0, 20), ("en", 3, 9), ("de", 11, 1), ("fr", 0, 4), ("th", 2, 2)):
            into = {key: torch.empty(count, *shape).half() for key, shape in shapes.items()}
            chunks.read("group", rows, language, first, into, lambda: whole(name))
            mine = torch.from_numpy(np.flatnonzero(languages == language)[first : first + count])
            assert all(torch.equal(tensor, group[key][mine]) for key, tensor in into.items()), (name, language)

    check("first")
    (path,) = cache.glob("x*/group")
    data = path.read_bytes()
    check("again")
    latents = 4096 + 4096  # after the header, and the checksums, which fill less than a page
    ids = latents + rows * 2 * int(np.prod(SHAPE))
    assert len(data) == ids + -ids % 4096 + rows * 8 * 2
    every = {"header": range(1, 60, 7), "checksums": range(4096, 4096 + 8 * (rows + 1), 12)}
    every |= {"latents": range(latents, ids, 131), "ids": range(len(data) - rows * 16, len(data), 23)}
    for name, places in every.items():
        for at in places:
            path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
            check(name)
    for size in (0, 10, 4096, latents, ids, len(data) - 1):
        path.write_bytes(data[:size])
        check("cut off")
    chunks.close()
    assert not path.exists() and read["first"] == 1 and read["again"] == 0
    # The five pieces hold 27 of 40 rows, and 8 checksums per tensor.
    assert read["header"] == len(every["header"]) and read["cut off"] == 6
    assert all(read[name] > len(every[name]) // 2 for name in ("latents", "ids")) and read["checksums"] >= 4


def test_a_batch_that_takes_more_chunks_than_are_kept(lake: str) -> None:
    opened = versions(lake, "mixed")
    sources = sources_of(config(lake, 3.0), opened)
    expected = [latents for _, latents in all_rows(config(lake, 3.0), opened)]
    parts = open_sources(config(lake, 3.0), sources, layout.LATENTS)
    for source, part, latents in zip(sources, parts, expected, strict=True):
        assert isinstance(part, LanguageRows)
        chunk_bytes = part._chunk_rows * (2 * 64 + 4 * 8)
        part._cache_bytes = 3 * chunk_bytes
        everything = np.arange(source.rows)
        chunks = -(-source.rows // part._chunk_rows)
        assert part.begin(everything) == (chunks <= 1)
        for _ in range(2):
            into = part.empty(source.rows)
            part.gather(everything, into)
            assert torch.equal(into["latents"], latents)
            assert part.cached_bytes <= 3 * chunk_bytes
        assert sum(tensor.nbytes for tensor in part._memory.values()) == min(4, chunks) * chunk_bytes
        part.close()


def test_closing_one_language_waits_for_the_reads_of_another(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The languages of a dataset share its open shards."""
    direct = dataclasses.replace(config(lake, 3.0), workers=WorkersConfig(language_disk_gb=0))
    opened = versions(lake, "mixed")
    expected = [latents for _, latents in all_rows(direct, opened)]
    one, other, *_ = open_sources(direct, sources_of(direct, opened), layout.LATENTS)
    one.gather(np.arange(1), one.empty(1))  # what a row looks like is known, and its shard is open
    entered, release, whole = threading.Event(), threading.Event(), ShardReader.read

    def waiting(self: ShardReader, *given: Any, **more: Any) -> Any:
        entered.set()
        release.wait(60)
        return whole(self, *given, **more)

    monkeypatch.setattr(ShardReader, "read", waiting)
    other.begin(np.arange(1))
    assert entered.wait(60)
    closing = threading.Thread(target=one.close)
    closing.start()
    closing.join(0.5)
    release.set()
    into = other.empty(1)
    other.gather(np.arange(1), into)
    closing.join()
    assert torch.equal(into["latents"], expected[1][:1])
    other.close()


def test_what_is_kept_is_checked_bounded_and_removed(lake: str, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = versions(lake, "mixed")
    parts = [(part, latents) for part, latents in all_rows(config(lake, 3.0), opened)]
    kept = sorted(cache.glob("*/*-*"))
    for number, path in enumerate(kept):  # damaged in the rows, in the header, cut off, or gone
        data = path.read_bytes()
        path.write_bytes((data[:-70] + b"x" + data[-69:], b"?" + data[1:], data[:4000], data)[number % 4])
        if number % 4 == 3:
            path.unlink()
    kept[3].mkdir()  # cannot be read, which is not the shard's damage
    for (_, latents), (part, again) in zip(parts, list(all_rows(config(lake, 3.0), opened)), strict=True):
        assert torch.equal(latents, again)
        part.close()
    left, held = cache / "left", cache / "held"
    for folder in (left, held):
        folder.mkdir()
        (folder / "rows").write_bytes(b"x" * 1000)
        (folder / ".lock").touch()
    with open(held / ".lock") as lock:  # another run reads there
        fcntl.flock(lock, fcntl.LOCK_SH)
        for part, _ in parts:
            part.close()
        small = dataclasses.replace(config(lake, 3.0), workers=WorkersConfig(language_disk_gb=2e-5))
        for (_, latents), (_, again) in zip(parts, all_rows(small, opened), strict=True):
            assert torch.equal(latents, again)
        assert held.exists() and not left.exists()
        assert 0 < sum(path.stat().st_size for path in cache.glob("*/*-*")) <= 20_000 - 1000


@pytest.mark.parametrize("call", ["replace", "makedirs"])
def test_a_disk_without_room_costs_no_rows(
    lake: str, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    opened = versions(lake, "mixed")
    expected = [latents for _, latents in all_rows(config(lake, 3.0), opened)]
    shutil.rmtree(cache)
    monkeypatch.setattr(language_chunks.os, call, full)
    found = [latents for _, latents in all_rows(config(lake, 3.0), opened)]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert "No space left on device" in caplog.text and not list(cache.glob("*/*-*"))


def test_training_counts_what_it_saw_by_language(lake: str) -> None:
    settings_ = dataclasses.replace(config(lake, 5.0, ("mixed", "more")), run="hot", steps=11)
    run_local(settings_, lake, reporter=Recorder())
    opened = versions(lake, "mixed", "more")
    order, sources = make_order(settings_, opened), sources_of(settings_, opened)
    wanted: Counter[int] = Counter()
    for n in range(11):
        batch = order.batch(n)
        for part, row in zip(batch.part.tolist(), batch.row.tolist(), strict=True):
            source = sources[part]
            wanted[int(choose(source.versions, source.language or "").rows(np.array([row]))[0])] += 1
    parts = seen(lake, "hot", 11)
    times = np.concatenate([part.times for part in parts])
    assert {row: count for row, count in enumerate(times.tolist()) if count} == dict(wanted)
    by_language: Counter[str] = Counter()
    for part in parts:
        by_language.update(part.by_language())
    names = Counter({source.language: 0 for source in sources})
    for count, source in zip(order.drawn(11), sources, strict=True):
        names[source.language] += count
    assert {name: count for name, count in by_language.items() if count} == {n: c for n, c in names.items() if c}


def test_the_number_of_chosen_rows_of_nothing_is_zero() -> None:
    assert len(ChosenRows([])) == 0


@pytest.mark.parametrize("temperature", [0.5, 0.0, -1.0, float("nan")])
def test_a_temperature_below_one_is_refused(lake: str, temperature: float) -> None:
    with pytest.raises((ValueError, AltDiffusionError), match="language_temperature"):
        config(lake, temperature)
