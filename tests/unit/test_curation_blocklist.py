"""Blocklists: pinned files of links, domains, row ids and images; no real source without one."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altdiffusion.config import from_dict
from altdiffusion.curation.config import PRESETS, SelectConfig, SourceConfig
from altdiffusion.curation.links.sources import scan_source
from altdiffusion.curation.web import blocklist
from altdiffusion.curation.web.blocklist import (
    DigestSet,
    TextSet,
    blocklist_refs,
    load_blocklist,
    parse_list,
    source_blocklist,
)
from altdiffusion.errors import AltDiffusionError
from altdiffusion.urls import url_keys
from tests.source_rows import believing, reasons

EMPTY = hashlib.sha256(b"").hexdigest()


def listed(folder: Path, text: str) -> dict[str, str]:
    path = folder / "blocked.txt"
    path.write_text(text)
    return {"blocklist": str(path), "blocklist_sha256": hashlib.sha256(text.encode()).hexdigest()}


def read(folder: Path, text: str) -> blocklist.Blocklist:
    given = listed(folder, text)
    return load_blocklist(given["blocklist"], given["blocklist_sha256"])


def test_it_drops_links_however_spelled_domains_and_row_ids(tmp_path: Path) -> None:
    text = (
        "\ufeff# removals\r\nurl:http://a.example/bad.jpg\rurl:\u00a0https://B.example/%7Ex?utm_source=q\n\n"
        f"domain:.Evil。Example..\t\ndomain:10.0.1\ndomain:[0::1]\nhash:-77\n  hash:5  \nsha256:{'Ab' * 32}\n"
    )
    found = read(tmp_path, text)
    assert (len(found.urls), len(found.domains), found.hashes.tolist(), set(found.image_sha256)) == (
        2, 3, [-77, 5], {"ab" * 32},
    )  # fmt: skip
    assert len(found) == 8
    rows: list[tuple[str | None, int, bool]] = [
        ("http://a.example/bad.jpg", 1, True),
        ("HTTPS://A.example:443/bad.jpg#x", 1, True),
        ("http://a.example/bad.jpg?x", 1, False),
        ("http://b.example/~x", 1, True),
        ("https://IMG.deep.evil.example:8080/x", 1, True),
        ("http://evil.example", 1, True),
        ("http://notevil.example/evil.example", 1, False),
        ("http://me@evil.example/x", 1, True),
        ("http://evil.example.org/", 1, False),
        ("http://x。ＥＶＩＬ.example../%61 b", 1, True),
        ("http://ev%69l.example:0080/", 1, True),
        ("\ufeff http://10.1/ ", 1, True),
        ("http://10.0.0.1./", 1, True),
        (" http://a.exam\tple:080/./x/../b%61d.jpg#f", 1, True),
        ("http://10.0.0.1/x", 1, True),
        ("http://[::1]:8080/x", 1, True),
        ("http://b.example/y", -77, True),
        ("http://b.example/y", 5, True),
        (None, 5, True),
        (None, 6, False),
    ]
    urls, ids, expected = zip(*rows, strict=True)
    assert found.blocks(url_keys(pa.array(urls, pa.string())), pa.array(ids, pa.int64())).tolist() == list(expected)


def test_select_gives_it_as_the_reason(tmp_path: Path) -> None:
    source = SourceConfig(name="s", uri="x", **listed(tmp_path, "domain:evil.example\nhash:-77\n"))
    work = believing(SelectConfig(), source)
    work._blocklist = source_blocklist(source)
    found = reasons(SelectConfig(), {"url": "http://x.evil.example/"}, {"sample_id": -77}, {}, {"url": None}, work=work)
    assert found == ["blocklist", "blocklist", "", "url_scheme"]


@pytest.mark.parametrize(
    "line",
    ["hash:abc", "hash:1.5", "hash:", "host:a.example", "url:", "http://a.example/", "sha256:abc", f"sha256:{'g' * 64}",
     f"md5:{'a' * 32}", "URL:http://a/", "url:a.example/x", "url:http:///x", "url:ftp://a.example/x", "url:http://",
     "url:http://a.example:99999/", "url:http://256.1.1.1/", "url:http://-a.example/",
     "url:http://a.example/x # why", "url:http://a..example/", "domain:", "domain:.", "domain:*.example",
     "domain:http://a.example", "domain:a.example/x", "domain:a.example:80", "domain:u@a.example",
     "domain:a b.example", "domain:a..example", "domain:256.1.1.1", "domain:-a.example", "domain:a.example # why",
     f"domain:{'a' * 64}.example", "domain:[::1", "domain:a%2Eexample", "hash:99999999999999999999",
     "hash:9223372036854775808", f"sha256:{'a' * 63}", f"sha256:{'a' * 65}"],
)  # fmt: skip
def test_an_invalid_line_is_an_error_that_names_it(tmp_path: Path, line: str) -> None:
    with pytest.raises(AltDiffusionError, match=r"blocked\.txt, line 3.*is '.*write url:"):
        read(tmp_path, f"# first\nurl:http://a/\n{line}\n")


def test_a_file_that_is_another_or_not_text_or_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AltDiffusionError, match="has SHA-256"):
        load_blocklist(listed(tmp_path, "hash:1")["blocklist"], "0" * 64)
    with pytest.raises(AltDiffusionError, match="64-bit integer"):
        read(tmp_path, "hash:9999999999999999999")
    raw = b"url:\xff\n"
    (tmp_path / "raw").write_bytes(raw)
    with pytest.raises(AltDiffusionError, match="not UTF-8"):
        load_blocklist(str(tmp_path / "raw"), hashlib.sha256(raw).hexdigest())
    with pytest.raises(AltDiffusionError, match="is not there"):
        load_blocklist(str(tmp_path / "gone"), EMPTY)


@given(
    st.lists(
        st.sampled_from(["url:http://a.example/1", "url:x", "hash:1", "domain:*", "# x", "", "sha256:0"]), max_size=30
    )
)
def test_every_wrong_line_of_a_list_is_found(lines: list[str]) -> None:
    data = "\n".join(lines).encode()
    wrong = [number for number, line in enumerate(lines, 1) if line in ("url:x", "domain:*", "sha256:0")]
    if not wrong:
        found = parse_list(data, "list")
        assert (len(found.urls), len(found.hashes)) == (lines.count("url:http://a.example/1"), int("hash:1" in lines))
        return
    with pytest.raises(AltDiffusionError) as caught:
        parse_list(data, "list")
    named = [int(number) for number in re.findall(r"line (\d+): is", str(caught.value))]
    assert named == wrong[:5] and ("and so on" in str(caught.value)) == (len(wrong) > 5)


@given(st.lists(st.text(max_size=6), max_size=30), st.lists(st.one_of(st.none(), st.text(max_size=6)), max_size=30))
def test_a_set_of_texts_is_a_set(entries: list[str], asked: list[str | None]) -> None:
    asked = [*asked, *entries[:5]]
    expected = [text in set(entries) for text in asked]
    column = pa.array(asked, pa.string())
    assert TextSet(pa.array(entries, pa.string())).holds(column).tolist() == expected
    with mock.patch.object(blocklist, "hash64", lambda texts: np.zeros(len(texts), np.uint64)):
        assert TextSet(pa.array(entries, pa.string())).holds(column).tolist() == expected  # all hashes equal


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=20), st.binary(min_size=32, max_size=32))
def test_a_set_of_digests_is_a_set(digests: list[bytes], other: bytes) -> None:
    digests = [*digests, *([digests[0][:31] + b"\0"] if digests else [])]
    hexes = {digest.hex() for digest in digests}
    found = DigestSet(hexes)
    assert set(found) == hexes and len(found) == len(hexes) and all(digest in found for digest in hexes)
    assert (other.hex() in found) == (other in digests) and None not in found


def test_large_lists_are_read_and_asked_without_a_loop(tmp_path: Path) -> None:
    entries = 200_000
    found = read(tmp_path, "\n".join(f"url:http://h{i % 997}.example/{i}" for i in range(entries)))
    keys = pa.array([f"h{i % 997}.example/{i}" for i in range(entries - 10, entries + 10)])
    assert found.blocks(keys, pa.array([0] * 20)).tolist() == [True] * 10 + [False] * 10


# Real sources


def config(**values: Any) -> SourceConfig:
    return from_dict(SourceConfig, {"name": "a", "uri": "x", **values}, "job.yaml")


MAPPED = {"columns": {"url": "u", "caption": "c"}}


@pytest.mark.parametrize("preset", [name for name, preset in PRESETS.items() if preset.published])
def test_a_real_set_without_a_blocklist_is_refused_with_the_reason(preset: str) -> None:
    more: dict[str, Any] = MAPPED if preset == "columns" else {}
    with pytest.raises(AltDiffusionError) as caught:
        config(preset=preset, **more)
    message = str(caught.value)
    assert all(part in message for part in ("job.yaml, key blocklist", preset, "2,236", "Remedy: give the URI"))
    safe = preset.endswith("-research-safe")
    assert ("may be empty" in message) == safe
    empty = {"blocklist": "b", "blocklist_sha256": EMPTY}
    if safe:
        assert config(preset=preset, **empty, **more).blocklist == "b"
    else:
        with pytest.raises(AltDiffusionError, match=r"is empty, but .* list what was removed, or use a research-safe"):
            config(preset=preset, **empty, **more)
    assert config(preset=preset, blocklist="b", blocklist_sha256="1" * 64, **more).shape.published


def test_no_word_means_no_list() -> None:
    for word in ("none", "null", "", None):
        with pytest.raises(AltDiffusionError, match="key blocklist"):
            config(preset="laion2b-en", blocklist=word)
        with pytest.raises(AltDiffusionError, match=r"key blocklist_sha256"):
            config(preset="laion2b-en", blocklist=str(word), blocklist_sha256="none")


def part(folder: Path) -> str:
    folder.mkdir()
    columns = {"URL": ["http://a/1"], "TEXT": ["x"], "WIDTH": [1], "HEIGHT": [1], "similarity": [0.3]}
    pq.write_table(pa.table(columns), folder / "part.parquet")
    return str(folder / "*.parquet")


def test_a_list_of_comments_is_an_empty_list_and_found_when_the_parts_are_scanned(tmp_path: Path) -> None:
    uri = part(tmp_path / "parts")
    only_comments = listed(tmp_path, "# nothing yet\n")
    with pytest.raises(AltDiffusionError, match=r"lists nothing, but laion2b-en still holds"):
        scan_source(SourceConfig(name="a", uri=uri, preset="laion2b-en", **only_comments))
    safe = SourceConfig(name="a", uri=uri, preset="relaion2b-en-research-safe", **only_comments)
    assert scan_source(safe).rows == 1
    with pytest.raises(AltDiffusionError, match=r"blocked\.txt.*has SHA-256"):
        scan_source(SourceConfig(name="a", uri=uri, blocklist=only_comments["blocklist"], blocklist_sha256="1" * 64))


def test_laions_shapes_without_a_name_are_for_small_sets(tmp_path: Path) -> None:
    uri = part(tmp_path / "parts")
    with mock.patch("altdiffusion.curation.links.sources.OWN_ROWS", 0):
        with pytest.raises(AltDiffusionError, match=r"has 1 rows and no blocklist.*name the published set"):
            scan_source(SourceConfig(name="a", uri=uri))
        assert scan_source(SourceConfig(name="a", uri=uri, **listed(tmp_path, "hash:1"))).rows == 1


def test_lineage_names_each_list_once() -> None:
    one, other = "1" * 64, "2" * 64
    configs = [
        SourceConfig(name=name, uri="x", blocklist=f"{name}.txt", blocklist_sha256=digest)
        for name, digest in (("a", one), ("b", other), ("c", one))
    ]
    refs = blocklist_refs([*configs, SourceConfig(name="d", uri="x")])
    assert [(ref.name, ref.digest) for ref in refs] == [("sources", one), ("sources", other)]
