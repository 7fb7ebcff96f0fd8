"""The demo's crawl: built the same every time, with LAION's quirks and every planted fault really in it."""

from __future__ import annotations

import http.client
import io
import re
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from altdiffusion.curation.config import SourceConfig
from altdiffusion.curation.links.sources import scan_source
from altdiffusion.errors import AltDiffusionError
from altdiffusion.languages import CODES
from altdiffusion.records import LINKS, REJECTS
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.ledger import UnitRecord
from demo import crawl, npm, site
from demo.artists import ARTISTS, artists, icons
from demo.captions import captions
from demo.concepts import OFF_TARGET, WITHOUT_IMAGES, demo_concepts, group, has_images, unseen
from demo.images import STYLES, draw
from demo.lexicon import lexicon, pairs
from demo.server import running, wait_until_ready
from demo.truth import Comparison, compare, examine
from tests.source_rows import read_part


def fresh_cache(folder: Path) -> Path:
    """Return an empty cache that shares the fetched packages."""
    npm.fetch_packages()
    folder.mkdir(parents=True)
    (folder / "npm").symlink_to(npm.default_cache().resolve() / "npm")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = fresh_cache(tmp_path_factory.mktemp("demo") / "cache")
    crawl.build_crawl(root)
    return root


@pytest.fixture(scope="module")
def facts(cache: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = crawl.truth(cache).to_pylist()
    return rows


@pytest.fixture(scope="module")
def port(cache: Path) -> Iterator[int]:
    with running(cache) as port:
        yield port


def parts(cache: Path) -> dict[str, list[pa.Table]]:
    return {
        source: [pq.read_table(path) for path in sorted((cache / "crawl" / source).glob("*.parquet"))]
        for source in crawl.PRESETS
    }


def get(port: int, url: str, timeout_s: float = 10.0) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
    place = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    connection.request("GET", place.path, headers={"Host": place.netloc})
    return connection.getresponse(), connection


# The data


def test_packages_that_are_not_the_pinned_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "npm").mkdir()
    (tmp_path / "npm" / f"{npm.NOTO.stem}.tgz").write_bytes(b"something else")
    with pytest.raises(AltDiffusionError, match="is not the pinned @iconify-json/noto"):
        npm.fetch(npm.NOTO, tmp_path)
    assert not (tmp_path / "npm" / npm.NOTO.stem).exists()


def test_without_npm_the_error_gives_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AltDiffusionError, match=r"npm: is missing.*Remedy: install it"):
        npm.fetch(npm.NOTO, tmp_path)


def test_a_failing_npm_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin" / "npm"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'npm error code E404' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    with pytest.raises(AltDiffusionError, match=r"failed .npm error code E404"):
        npm.fetch(npm.NOTO, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "npm").iterdir())


def test_concepts_are_distinct_in_name_and_image(cache: Path) -> None:
    concepts = demo_concepts(128, cache)
    for language in CODES:
        assert len({concept.names[language].casefold() for concept in concepts}) == 128
    for style in STYLES:
        pixels = np.stack([draw(style, concept.key, 32, cache) for concept in concepts]).astype(np.float32)
        assert pixels.shape == (128, 32, 32, 3)
        flat = pixels.reshape(128, -1)
        distance = np.sqrt(((flat[:, None] - flat[None]) ** 2).mean(-1))
        np.fill_diagonal(distance, np.inf)
        assert distance.min() > 20  # of 255: the nearest two of a style still differ plainly


def test_more_concepts_than_there_are_is_an_error(cache: Path) -> None:
    with pytest.raises(AltDiffusionError, match="ask for fewer"):
        demo_concepts(10_000, cache)


def test_names_without_images_are_in_no_text_of_an_image(cache: Path, facts: list[dict[str, Any]]) -> None:
    concepts = demo_concepts(128, cache)
    without = {(c.key, language) for c in concepts for language in CODES if not has_images(c, language)}
    assert not any(language == "en" for _, language in without)
    assert {(c.key, language) for c in concepts for language in WITHOUT_IMAGES} <= without
    assert not without & {(fact["concept"], fact["language"]) for fact in facts}
    for language in CODES:
        secret = [c.names[language].casefold() for c in concepts if not has_images(c, language)]
        names = {c.names[language] for c in concepts if has_images(c, language)}
        for concept in concepts:
            for text in captions(concept, language).values():
                words = re.split(r"[:：]", text.casefold().removeprefix(concept.names[language].casefold()))[-1]
                keywords = [word.strip() for word in re.split(r"[,、،]", words)]
                assert not set(keywords) & set(secret), (text, language)
                assert text not in secret or text in names


def test_groups_of_names(cache: Path) -> None:
    concepts = demo_concepts(128, cache)
    groups = Counter(group(c, language) for c in concepts for language in CODES)
    assert groups.total() == 128 * 18 and groups["pictures"] > 1500 and groups["text"] > 400 and groups["unseen"] > 80
    for concept in concepts:
        pictured = {concept.names[code].casefold() for code in CODES if has_images(concept, code)}
        for language in CODES:
            if group(concept, language) == "text":  # else another language's image would show what it is called
                assert concept.names[language].casefold() not in pictured


def test_nothing_reads_a_name_that_must_stay_unseen(cache: Path) -> None:
    entries = lexicon(cache, 128)
    for language in CODES:
        secret = [c.names[language].casefold() for c in entries[:128] if unseen(c, language)]
        texts = [pair.text.casefold() for pair in pairs(entries, 128, language)]
        assert len(texts) > 5000
        assert not [text for text in texts for name in secret if name in text]


def test_judge_and_generator_share_no_artist(cache: Path) -> None:
    assert len(ARTISTS) == 9 and STYLES == ("noto", "twemoji")
    assert len(artists("judge")) == 6 and len(artists("control")) == 1
    labels = crawl.labels(cache)
    by_use = {use: labels.filter(pc.equal(labels["use"], use)) for use in ("judge", "control", "generator")}
    samples = {use: set(table["sample_id"].to_pylist()) for use, table in by_use.items()}
    assert not samples["judge"] & samples["generator"] and not samples["control"] & samples["generator"]
    keys = {concept.key for concept in demo_concepts(128, cache)}
    for use, table in by_use.items():
        assert keys - set(table["concept"].to_pylist()) == set() or use == "control"
    drawn = sum(concept in icons(artist, cache) for artist in artists("judge", "control") for concept in keys)
    assert drawn - 40 < len(samples["judge"] | samples["control"]) < drawn  # some look like a generator's image


# The crawl


def test_same_bytes_every_time(cache: Path, tmp_path: Path) -> None:
    again = fresh_cache(tmp_path / "again")
    crawl.build_crawl(again)
    names = sorted(path.relative_to(cache) for path in (cache / "crawl").rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in (again / "crawl").rglob("*") if path.is_file())
    assert len(names) == 9  # five parts, the judge's, the truth, the labels, FORMAT
    for name in names:
        assert (cache / name).read_bytes() == (again / name).read_bytes(), name


def test_a_finished_crawl_is_kept_and_another_one_is_replaced(tmp_path: Path) -> None:
    root = fresh_cache(tmp_path / "cache")
    folder = crawl.build_crawl(root, concepts=4)
    before = (folder / "truth.parquet").stat().st_mtime_ns
    crawl.build_crawl(root, concepts=4)
    assert (folder / "truth.parquet").stat().st_mtime_ns == before
    rows = crawl.truth(root).num_rows
    crawl.build_crawl(root, concepts=8)
    assert crawl.truth(root).num_rows > rows


def test_truth_covers_every_row(cache: Path, facts: list[dict[str, Any]]) -> None:
    tables = {
        (source, f"part-{i:05d}.snappy.parquet"): t for source, all_ in parts(cache).items() for i, t in enumerate(all_)
    }
    assert sum(table.num_rows for table in tables.values()) == len(facts)
    by_part: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for fact in facts:
        by_part[fact["source"], fact["part"]].append(fact)
    for place, table in tables.items():
        assert [fact["row"] for fact in by_part[place]] == list(range(table.num_rows))
        assert [fact["url"] for fact in by_part[place]] == table[
            "url" if "url" in table.column_names else "URL"
        ].to_pylist()


def test_counts(facts: list[dict[str, Any]]) -> None:
    assert 7_000 < len(facts) < 8_000
    expected = Counter(fact["expected"] for fact in facts)
    assert set(expected) >= {
        "accept", "language?", "url_scheme", "caption", "size", "aspect", "similarity", "punsafe", "pwatermark",
        "aesthetic", "duplicate_hash", "duplicate_url", "http_404", "http_500", "connect", "timeout", "not_image",
        "truncated", "too_many_pixels", "dims", "blocked_address", "format", "opt_out:x-robots-tag", "too_large",
    }  # fmt: skip
    assert min(expected.values()) >= 2
    plain = Counter(fact["language"] for fact in facts if fact["kind"] == "plain")
    assert set(plain) == set(CODES) - set(WITHOUT_IMAGES)
    assert min(plain.values()) > 128 * 2.1
    off = Counter(fact["language"] for fact in facts if fact["kind"] == "off_target")
    assert off == dict.fromkeys(OFF_TARGET, 128)
    copies = [(f["group"], f["source"]) for f in facts if f["kind"] == "copy_of_row"]
    places = {(f["url"], f["source"]) for f in facts if f["kind"] == "plain"}
    assert {place in places for place in copies} == {
        True,
        False,
    }  # copies in the same source, and across sources
    urls = Counter(fact["url"] for fact in facts)
    assert sum(count - 1 for count in urls.values()) == expected["duplicate_hash"] + expected["duplicate_url"]


def test_schema_quirks(cache: Path, facts: list[dict[str, Any]]) -> None:
    tables = parts(cache)
    base, joined, english = tables[crawl.BASE][0], tables[crawl.JOINED], tables[crawl.ENGLISH][0]
    assert base.column_names == [
        "URL",
        "TEXT",
        "WIDTH",
        "HEIGHT",
        "similarity",
        "NSFW",
        "LICENSE",
        "LANGUAGE",
    ]
    assert {"hash", "pwatermark", "punsafe"} <= set(joined[0].column_names) and "aesthetic" not in joined[
        0
    ].column_names
    assert all(name == name.lower() for name in english.column_names) and "language" not in english.column_names
    assert joined[0].schema != joined[1].schema  # within one source
    widths = {str(t.schema.field("width" if t is english else "WIDTH").type) for all_ in tables.values() for t in all_}
    assert widths == {"int32", "int64", "double"}
    assert {str(t.schema.field("similarity").type) for all_ in tables.values() for t in all_} == {
        "float",
        "double",
    }
    assert joined[0]["punsafe"].null_count and joined[0]["pwatermark"].null_count and base["TEXT"].null_count
    true = {fact["url"]: (fact["width"], fact["height"]) for fact in facts}
    sizes = [(true[row["URL"]], (row["WIDTH"], row["HEIGHT"])) for row in base.to_pylist()]
    assert all(size == stated[::-1] for size, stated in sizes)
    assert sum(size != stated for size, stated in sizes) > 100  # not only squares


def test_labels_err_as_often_as_cld3(facts: list[dict[str, Any]]) -> None:
    for variant, share in (("name", 0.17), ("words", 0.08)):
        rows = [f for f in facts if f["kind"] == "plain" and f["variant"] == variant and f["source"] != crawl.ENGLISH]
        wrong = sum(fact["label"] != fact["language"] for fact in rows) / len(rows)
        assert abs(wrong - share) < 0.03
    assert {f["label"] for f in facts if f["language"] == "he"} >= {"iw"}
    assert all(fact["label"] is None for fact in facts if fact["source"] == crawl.ENGLISH)


def test_row_ids_and_sizes_as_curation_reads_them(cache: Path, facts: list[dict[str, Any]]) -> None:
    """The same id and the true size for every row of every variant, whether `hash` is there or not."""
    true = {(fact["source"], fact["part"], fact["row"]): fact for fact in facts}
    seen = 0
    for source, preset in crawl.PRESETS.items():
        uri = str(cache / "crawl" / source / "*.parquet")
        config = SourceConfig(name=source, uri=uri, preset=preset)
        scan = scan_source(config)
        for part in scan.parts:
            for number, row in enumerate(read_part(part, config).to_pylist()):
                fact = true[source, part.name, number]
                assert (row["sample_id"], row["width"], row["height"]) == (
                    fact["sample_id"], fact["width"], fact["height"],
                )  # fmt: skip
                seen += 1
    assert seen == len(facts)


# The server, over real sockets


def test_every_good_link_is_an_image_of_the_stated_size(port: int, facts: list[dict[str, Any]]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    seen: set[tuple[str, str]] = set()
    formats: Counter[str] = Counter()
    for fact in facts:
        if fact["kind"] != "plain" or (fact["concept"], fact["style"]) in seen:
            continue
        seen.add((fact["concept"], fact["style"]))
        place = urlsplit(fact["url"])
        connection.request("GET", place.path, headers={"Host": place.netloc})  # one connection: keep-alive
        reply = connection.getresponse()
        body = reply.read()
        assert (reply.status, int(reply.headers["Content-Length"])) == (200, len(body))
        with Image.open(io.BytesIO(body)) as image:
            assert image.size == (fact["width"], fact["height"])
            formats[str(image.format)] += 1
            assert np.asarray(image.convert("RGB"))[0, 0].min() > 240  # white ground, as JPEG keeps it
    assert len(seen) == 256
    assert set(formats) == {"JPEG", "PNG", "WEBP"} and formats["JPEG"] > 180


def test_links_of_the_same_image_give_the_same_bytes(port: int, facts: list[dict[str, Any]]) -> None:
    rows = [f for f in facts if f["kind"] == "plain" and (f["concept"], f["style"]) == ("1f418", "noto")]
    assert len({fact["url"] for fact in rows}) > 10
    assert len({get(port, fact["url"])[0].read() for fact in rows}) == 1


def fault_url(facts: list[dict[str, Any]], kind: str) -> str:
    return str(next(fact["url"] for fact in facts if fact["kind"] == kind))


def test_errors_and_unknown_pages(port: int, facts: list[dict[str, Any]]) -> None:
    assert get(port, fault_url(facts, "http_404"))[0].status == 404
    assert get(port, fault_url(facts, "http_500"))[0].status == 500
    assert get(port, "http://noto.pictures.example/en/name/nothing.jpg")[0].status == 404
    assert get(port, "http://noto.pictures.example/../../etc/passwd")[0].status == 404
    assert get(port, "http://elsewhere.example/en/name/1f418.jpg")[0].status == 404
    assert b"Allow: /" in get(port, "http://noto.pictures.example/robots.txt")[0].read()


@pytest.mark.parametrize("kind", ["html", "random", "empty", "svg"])
def test_what_is_not_a_raster_image(port: int, facts: list[dict[str, Any]], kind: str) -> None:
    reply, _ = get(port, fault_url(facts, kind))
    body = reply.read()
    assert reply.status == 200
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(io.BytesIO(body))
    assert {"html": b"<!doctype html", "svg": b"<svg", "empty": b"", "random": b""}[kind] in body[:60].lower()
    assert (len(body) == 0) == (kind == "empty")


def test_truncated_images(port: int, facts: list[dict[str, Any]]) -> None:
    body = get(port, fault_url(facts, "truncated"))[0].read()
    with Image.open(io.BytesIO(body)) as image, pytest.raises(OSError, match="truncated"):
        image.load()
    with pytest.raises(http.client.IncompleteRead):
        get(port, fault_url(facts, "short"))[0].read()


def test_sizes_that_only_the_download_shows(port: int, facts: list[dict[str, Any]]) -> None:
    with Image.open(io.BytesIO(get(port, fault_url(facts, "tiny"))[0].read())) as image:
        assert image.size == (16, 16)
    with Image.open(io.BytesIO(get(port, fault_url(facts, "wide"))[0].read())) as image:
        assert image.size == (2048, 16)
    body = get(port, fault_url(facts, "bomb"))[0].read()
    assert len(body) < 200_000
    assert int.from_bytes(body[16:20], "big") * int.from_bytes(body[20:24], "big") == 900_000_000


def test_redirects(port: int, facts: list[dict[str, Any]]) -> None:
    for kind, target in (("private", "http://10.0.0.7/"), ("loopback", "http://127.0.0.2/")):
        reply, _ = get(port, fault_url(facts, kind))
        assert reply.status == 302 and reply.headers["Location"].startswith(target)
    for fact in facts:
        if fact["kind"] == "moved":
            reply, _ = get(port, fact["url"])
            followed, _ = get(port, reply.headers["Location"])
            with Image.open(io.BytesIO(followed.read())) as image:
                assert image.size == (fact["width"], fact["height"])


def test_opt_out_header(port: int, facts: list[dict[str, Any]]) -> None:
    reply, _ = get(port, fault_url(facts, "noai"))
    assert "noai" in reply.headers["X-Robots-Tag"]
    Image.open(io.BytesIO(reply.read())).load()  # the image itself is good


def test_slow_and_endless_bodies_end_when_the_client_leaves(port: int, facts: list[dict[str, Any]]) -> None:
    reply, connection = get(port, fault_url(facts, "slow"))
    start = time.monotonic()
    assert len(reply.read(4)) == 4
    assert 0.3 < time.monotonic() - start < 60
    connection.close()
    reply, connection = get(port, fault_url(facts, "endless"))
    assert reply.headers["Content-Length"] is None
    assert len(reply.read(3 << 20)) == 3 << 20
    connection.close()
    reply, connection = get(port, fault_url(facts, "declared"))
    assert int(reply.headers["Content-Length"]) == 5 << 30
    connection.close()
    assert get(port, fault_url(facts, "http_404"))[0].status == 404  # still there


def test_nobody_listens_where_gone_points(port: int) -> None:
    table = site.connect_to(port)
    assert {source for source, target in table.items() if target.endswith(f":{port}")} == {
        f"{host}:80" for host in site.hosts()
    }
    address, _, closed = table[f"{site.GONE}:80"].rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, int(closed)), timeout=5)


def test_command_line_writes_the_port_and_serves(cache: Path, tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    command = [
        sys.executable,
        "-m",
        "demo.server",
        "--cache",
        str(cache),
        "--port",
        "0",
        "--port-file",
        str(port_file),
    ]
    root = Path(crawl.__file__).parents[1]
    with subprocess.Popen(
        command, cwd=root, env={"PYTHONPATH": f"{root / 'platform'}"}, stdout=subprocess.DEVNULL
    ) as server:
        try:
            for _ in range(600):
                if port_file.exists():
                    break
                time.sleep(0.05)
            port = int(port_file.read_text())
            wait_until_ready(port)
            assert get(port, "http://broken.pictures.example/http_500/en/1f418.jpg")[0].status == 500
        finally:
            server.terminate()


# The comparison


def imitate(lake: Lake, facts: list[dict[str, Any]]) -> None:
    """Write the result that a perfect curation of these rows would leave: `links`, then `images` made from it."""
    accepted = [fact for fact in facts if fact["boundary"] != "select"]
    dropped = [fact for fact in facts if fact["boundary"] == "select"]
    links = publish(lake, "links", accepted, dropped, ())
    publish(
        lake,
        "images",
        [fact for fact in accepted if not fact["boundary"]],
        [fact for fact in accepted if fact["boundary"] == "download"],
        (links,),
    )


def publish(
    lake: Lake,
    name: str,
    accepted: list[dict[str, Any]],
    dropped: list[dict[str, Any]],
    parents: tuple[Ref, ...],
) -> Ref:
    dataset = lake.dataset(name)
    rows = [
        {**dict.fromkeys(LINKS.names), **{k: f[k] for k in ("sample_id", "url", "language", "width", "height")},
         "caption": "x", "language_score": 1.0, "source": f["source"]}
        for f in accepted
    ]  # fmt: skip
    rejects = [
        {"unit_id": "u", "row": i, "sample_id": f["sample_id"], "url": f["url"], "language": None,
         "reason": f["expected"], "detail": None}
        for i, f in enumerate(dropped)
    ]  # fmt: skip
    record = UnitRecord(
        unit_id="u",
        index=0,
        input_digest="00",
        rows_in=len(accepted) + len(dropped),
        shards=(dataset.write_shard(pa.Table.from_pylist(rows, schema=LINKS)),),
        rejects=(dataset.write_rejects(pa.Table.from_pylist(rejects, schema=REJECTS)),),
        rejects_by_reason=dict(Counter(f["expected"] for f in dropped)),
        rows_by_language=dict(Counter(f["language"] for f in accepted)),
    )
    # both pipeline steps are written with the links schema here: the comparison reads ids, languages and reasons only
    return dataset.publish(kind="links" if name == "links" else "images", records=[record], parents=parents,
                           config={}, fingerprint="f").ref  # fmt: skip


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def perfect(facts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the crawl with the off-target rows rejected by language, and otherwise as the truth requires."""
    return [
        {**fact, "boundary": "select", "expected": "language"} if fact["kind"] == "off_target" else dict(fact)
        for fact in facts
    ]


def test_a_perfect_curation_agrees(cache: Path, facts: list[dict[str, Any]], lake: Lake, capsys: Any) -> None:
    imitate(lake, perfect(facts))
    result = compare(lake, "images", cache)
    assert result.problems == ()
    assert all(count.right == count.rows == count.accepted_as for c, count in result.languages.items() if c in CODES)
    assert all(count.caught == count.planted for count in result.reasons.values())
    printed = capsys.readouterr().out
    assert "duplicate_hash" in printed and "10 other languages: 0 of 1280 rows accepted" in printed


def found(cache: Path, facts: list[dict[str, Any]], lake: Lake) -> Comparison:
    imitate(lake, facts)
    with pytest.raises(AltDiffusionError, match="differs from the truth"):
        compare(lake, "images", cache)
    return examine(lake, "images", cache)


def test_a_fault_that_was_let_through_is_found(cache: Path, facts: list[dict[str, Any]], lake: Lake) -> None:
    rows = perfect(facts)
    row = next(row for row in rows if row["expected"] == "not_image")
    row["boundary"] = ""
    assert [row["url"] in problem for problem in found(cache, rows, lake).problems] == [True]


def test_a_fault_under_another_reason_is_found(cache: Path, facts: list[dict[str, Any]], lake: Lake) -> None:
    rows = perfect(facts)
    row = next(row for row in rows if row["kind"] == "tiny")
    row["expected"] = "not_image"
    result = found(cache, rows, lake)
    assert len(result.problems) == 1 and result.reasons["dims"].missed == 1


def test_a_good_row_that_was_lost_is_found(cache: Path, facts: list[dict[str, Any]], lake: Lake) -> None:
    rows = perfect(facts)
    row = next(row for row in rows if row["kind"] == "plain" and row["language"] == "de")
    row.update(boundary="download", expected="http_404")
    assert len(found(cache, rows, lake).problems) == 1


def test_rows_that_vanish_or_double_are_found(cache: Path, facts: list[dict[str, Any]], lake: Lake) -> None:
    rows = perfect(facts)
    rows = [*rows[1:], rows[7]]
    problems = found(cache, rows, lake).problems
    assert any(problem.endswith("1 rows in the crawl, 0 in the result") for problem in problems)
    assert any(problem.endswith("1 rows in the crawl, 2 in the result") for problem in problems)


def test_swapped_sizes_are_found(cache: Path, facts: list[dict[str, Any]], lake: Lake) -> None:
    rows = perfect(facts)
    row = next(row for row in rows if row["kind"] == "plain" and row["width"] != row["height"])
    row["width"], row["height"] = row["height"], row["width"]
    assert len(found(cache, rows, lake).problems) == 1


def test_which_copy_stays_does_not_matter(cache: Path, facts: list[dict[str, Any]], lake: Lake) -> None:
    rows = perfect(facts)
    copy = next(row for row in rows if row["kind"] == "copy_of_url")
    original = next(row for row in rows if row["kind"] == "plain" and row["url"] == copy["group"])
    copy.update(boundary="", expected="accept")
    original.update(boundary="select", expected="duplicate_url")
    imitate(lake, rows)
    assert examine(lake, "images", cache).problems == ()


def test_language_decisions_are_counted_not_demanded(cache: Path, facts: list[dict[str, Any]], lake: Lake) -> None:
    rows = perfect(facts)
    spanish = [row for row in rows if row["kind"] == "plain" and row["language"] == "es"]
    spanish[0]["language"] = "pt"
    spanish[1].update(boundary="select", expected="language")
    next(row for row in rows if row["kind"] == "off_target").update(boundary="", expected="accept", language="ru")
    imitate(lake, rows)
    result = examine(lake, "images", cache)
    assert result.problems == ()
    count = result.languages["es"]
    assert (count.rows - count.right, count.wrong, count.rejected) == (2, 1, 1)
    assert result.languages["pt"].accepted_as - result.languages["pt"].right_as == 1
    assert result.languages["ru"].accepted_as - result.languages["ru"].right_as == 1
