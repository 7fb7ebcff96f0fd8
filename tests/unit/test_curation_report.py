"""The report adds up, is the same for the same versions, and lets nothing from the open web act in it."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.cli import main
from altdiffusion.curation.config.report import ReportConfig
from altdiffusion.curation.rejects import explain, withheld
from altdiffusion.curation.report import draw, measures
from altdiffusion.curation.report.chain import read_chain
from altdiffusion.curation.report.collect import Facts, Panel, collect
from altdiffusion.curation.report.hosts import count_hosts, host_of
from altdiffusion.curation.report.sample import accepted, draw_groups, read_sample
from altdiffusion.curation.report.view import render_report
from altdiffusion.curation.report.write_report import report_html, write_report
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.reject_reasons import rejects_table
from altdiffusion.html.page import BIDI, fit, plain
from altdiffusion.records import IMAGES, SCORES
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Lake
from altdiffusion.tally import MEASURES
from tests.report_lake import (
    LANGUAGES,
    NASTY,
    SELECT,
    SOURCE,
    UNSAFE,
    Made,
    images,
    links,
    make,
    publish,
    reject_rows,
    table,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(str(tmp_path_factory.mktemp("lake")))


@pytest.fixture(scope="module")
def facts(made: Made) -> Facts:
    return collect(made.lake, made.distinct, ReportConfig(), "a run")


@pytest.fixture(scope="module")
def page(facts: Facts) -> str:
    return render_report(facts)


class Reader(HTMLParser):
    """Tags with attributes, text, and whether every tag is closed in order."""

    VOID = frozenset({"meta", "img", "br", "rect", "path"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_every_step_adds_up_and_so_does_the_whole(made: Made) -> None:
    chain = read_chain(made.lake, made.distinct)
    steps = [(step.name, step.rows_in, step.rows_out, dict(step.reasons)) for step in chain.steps]
    assert steps == [
        ("select", 447, 400, {"language": 40, "blocklist": 4, "punsafe": 3}),
        ("deduplicate", 400, 380, {"duplicate_url": 20}),
        ("download", 380, 300, {"timeout": 45, "http_404": 35}),
        ("retry", 80, 40, {"http_404": 35, "timeout": 5}),
        ("distinct", 340, 330, {"near_duplicate": 6, "duplicate_image": 4}),
    ]
    assert (chain.read, chain.kept, chain.dropped, chain.adds_up, chain.complete) == (447, 330, 117, True, True)
    assert [step.name for step in chain.final_steps] == ["select", "deduplicate", "retry", "distinct"]
    assert "447 read = 330 kept + 117 rejected" in Reader(report_html(made.lake, made.distinct)).text


def test_a_chain_whose_beginning_is_gone_is_marked(tmp_path: Path) -> None:
    made = make(str(tmp_path))
    shutil.rmtree(made.candidates.uri)
    chain = read_chain(made.lake, made.downloaded)
    assert [(step.name, step.rows_in) for step in chain.steps] == [("change", 400), ("download", 380)]
    assert not chain.complete and chain.adds_up
    text = Reader(report_html(made.lake, made.downloaded)).text
    assert "Older versions are not in this lake" in text and "Rows read" in text


def test_versions_that_do_not_follow_from_one_another_are_called_out(made: Made) -> None:
    other = publish(
        made.lake.dataset("images-other"), "images", [images(range(5))], reject_rows("x", {}), parents=[made.links.ref]
    )
    assert not read_chain(made.lake, other).adds_up
    assert "do not follow from one another" in report_html(made.lake, other)


def test_a_balanced_version_between_links_and_images(made: Made) -> None:
    balanced = publish(
        made.lake.dataset("balanced"),
        "links",
        [links(range(100))],
        reject_rows("b", {"balance": range(100, 380)}),
        parents=[made.links.ref],
        config={"buckets": 8, "per_language": 34},
    )
    pictures = publish(
        made.lake.dataset("few"), "images", [images(range(100))], reject_rows("x", {}), parents=[balanced.ref]
    )
    facts = collect(made.lake, pictures, ReportConfig(), "x")
    assert [step.name for step in facts.chain.steps] == ["select", "deduplicate", "balance", "download"]
    assert facts.chain.adds_up and [row.distinct for row in facts.labels.rows] == [34, 33, 33]


def test_languages_from_label_to_image(made: Made, facts: Facts) -> None:
    rows = made.candidates.read(["language", "source_language"]).to_pylist()
    by = {row.code: row for row in facts.labels.rows}
    assert list(by) == ["en", "th", "ar"]  # the order used everywhere
    for code in LANGUAGES:
        assert by[code].labelled == sum(row["source_language"] == code for row in rows)
        assert by[code].selected == sum(row["language"] == code for row in rows)
        assert by[code].distinct == made.links.manifest.rows_by_language[code]
        assert by[code].kept == made.distinct.manifest.rows_by_language[code]
        compared = [row for row in rows if row["language"] == code and row["source_language"] in LANGUAGES]
        same = sum(row["source_language"] == code for row in compared)
        assert by[code].agreement == pytest.approx(same / len(compared))
    assert facts.labels.other == sum(row["source_language"] == "xx" for row in rows)
    assert facts.labels.unlabelled == sum(row["source_language"] is None for row in rows)
    different = Counter(
        (row["source_language"], row["language"])
        for row in rows
        if row["source_language"] not in (None, row["language"])
    )
    assert {(label, code): n for label, code, n in facts.labels.disagreements} == dict(different)
    assert dict(facts.foreign) == Counter(("hu", "en", "cs")[k % 3] for k in SELECT["language"])


def test_the_same_versions_give_the_same_bytes_wherever_they_are(made: Made, page: str, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(made.lake.uri, copy)
    lake = Lake(str(copy))
    uri = str(tmp_path / "report.html")
    assert write_report(lake, lake.version(made.distinct.ref), uri, name="a run") == uri
    assert Path(uri).read_bytes() == page.encode()
    assert str(tmp_path) not in page


def test_the_page_asks_for_nothing_and_runs_nothing(page: str) -> None:
    reader = Reader(page)
    tags = Counter(tag for tag, _ in reader.tags)
    for forbidden in ("script", "iframe", "link", "object", "embed", "form", "base", "video", "audio"):
        assert tags[forbidden] == 0
    assert tags["style"] == 1 and tags["img"] > 10
    for tag, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("srcset", "style", "background")]
        if "src" in attributes:
            assert tag == "img" and str(attributes["src"]).startswith("data:image/webp;base64,")
        if "href" in attributes:
            assert str(attributes["href"]).startswith("#")
    policy = next(a["content"] for t, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    assert not re.search(r"url\(|@import|javascript:", page)


def test_captions_of_the_open_web_stay_text(page: str, facts: Facts) -> None:
    shown = {image.caption for images in facts.gallery.images.values() for image in images}
    examples = {one.detail for part in facts.rejected for ones in part.examples.values() for one in ones}
    assert shown | examples >= {NASTY[0]}
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not set(page) & BIDI
    assert "word " * 40 not in page
    assert len(max(Reader(page).words, key=len)) < 300
    everything = render_report(collect_all(facts))
    assert not set(everything) & BIDI and "<script" not in everything
    Reader(everything)


def collect_all(facts: Facts) -> Facts:
    """The same facts with every nasty text as name, caption and host."""
    some = next(iter(facts.gallery.images.values()))[0]
    shown = {code: tuple(replace(some, caption=text, language=code) for text in NASTY) for code in LANGUAGES}
    assert facts.hosts is not None
    hosts = tuple(replace(facts.hosts.largest[0], name=text, reason=text) for text in NASTY)
    return replace(
        facts,
        name=NASTY[0] + NASTY[1],
        gallery=replace(facts.gallery, images=shown),
        hosts=replace(facts.hosts, largest=hosts, lossiest=hosts),
        verdicts=tuple((text, 1.0) for text in NASTY),
        foreign=tuple((text, 1.0) for text in NASTY),
    )


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
@settings(max_examples=300, deadline=None)
def test_plain_text_holds_no_controls_and_is_bounded(text: str) -> None:
    made = plain(text, 50)
    assert len(made) <= 51
    assert not [c for c in made if unicodedata.category(c) in ("Cc", "Zl", "Zp") or c in BIDI]
    assert not re.search(r"[<>\"']", fit(text, 50))
    assert plain("กิ่ง नमस्ते العربية 中文 👩\u200d🚀") == "กิ่ง नमस्ते العربية 中文 👩\u200d🚀"


def test_arabic_is_set_right_to_left_and_every_caption_has_its_language(page: str) -> None:
    captions = [a for tag, a in Reader(page).tags if a.get("class") == "says"]
    assert {(a["lang"], a["dir"]) for a in captions} == {("ar", "rtl"), ("en", "ltr"), ("th", "ltr")}
    alts = [a.get("alt") for tag, a in Reader(page).tags if tag == "img"]
    assert all(alts)
    assert "Image 1 of 6 accepted as Arabic" in alts


def test_what_is_blocked_or_unsafe_is_counted_but_not_shown(page: str, facts: Facts, made: Made) -> None:
    assert "secret.example" not in page and UNSAFE not in page
    text = Reader(page).text
    assert "blocklist 4" in text and "punsafe 3" in text
    assert facts.gallery.hidden > 0
    shown = collect(made.lake, made.distinct, ReportConfig(hide_unsafe_from=1.0, pictures=30), "a run")
    assert any(p.caption == UNSAFE for ps in shown.gallery.images.values() for p in ps)  # it was hidden by its score
    for reason in ("blocklist", "blocklist_sha256", "takedown", "punsafe", "nsfw"):
        assert withheld(reason)
    assert not withheld("timeout") and not withheld("blocked_address")


def test_our_own_nsfw_score_hides_images_too(tmp_path: Path) -> None:
    made = make(str(tmp_path))
    rows = made.distinct.read(["sample_id", "image_sha256", "language"]).to_pydict()
    unsafe = {k for k in rows["sample_id"] if k % 4 == 0}
    columns = {**rows, "nsfw": [0.99 if k in unsafe else 0.01 for k in rows["sample_id"]]}
    full = table(SCORES, columns, made.distinct.rows)
    names = ("aesthetic_v1", "aesthetic_v2", "nsfw", "watermark")
    scores = publish(
        made.lake.dataset("scores"),
        "scores",
        [full.slice(0, 290), full.slice(290)],
        reject_rows("x", {}),
        parents=[made.distinct.ref],
        config={"score": {"rows_per_unit": 1000, **{name: "head" if name == "nsfw" else None for name in names}}},
    )
    facts = collect(made.lake, made.distinct, ReportConfig(pictures=100), "x", scores)
    captions = {p.caption for ps in facts.gallery.images.values() for p in ps}
    safe_ids = {k for k in rows["sample_id"] if k not in unsafe and k % 10 != 9}
    assert captions == set(made.distinct.read(["sample_id", "caption"]).filter(
        pa.compute.is_in(made.distinct.read(["sample_id"])["sample_id"], pa.array(sorted(safe_ids)))
    )["caption"].to_pylist())  # fmt: skip
    assert [d.name for panel in facts.panels if panel.title == "Scores" for d in panel.distributions] == ["nsfw"]
    with pytest.raises(AltDiffusionError, match="was not made from"):
        collect(made.lake, made.retried, ReportConfig(), "x", scores)


def test_duplicates_are_next_to_what_they_duplicate(made: Made, facts: Facts, page: str) -> None:
    part = next(part for part in facts.rejected if part.step.name == "distinct")
    captions = dict(zip(*made.retried.read(["sample_id", "caption"]).to_pydict().values(), strict=True))
    survivors = {captions[k]: captions[k + 100] for k in [7, 8, 10, 11, 12, 20, 21, 22, 23]}  # 9 is unsafe
    assert {reason: len(pairs) for reason, pairs in part.pairs.items()} == {"near_duplicate": 3, "duplicate_image": 3}
    for pairs in part.pairs.values():
        for pair in pairs:
            assert survivors[pair.dropped.caption] == pair.survivor.caption
    assert page.count('alt="Dropped image"') == 6


def test_after_a_takedown_nothing_of_it_is_in_the_page(tmp_path: Path) -> None:
    from altdiffusion.storage.cleansing import REASON

    made = make(str(tmp_path))
    dataset = made.lake.dataset("images")
    gone = list(range(100, 200))
    stay = [k for k in made.distinct.read(["sample_id"])["sample_id"].to_pylist() if k not in gone]
    before = pa.concat_tables(made.distinct.iter_rejects())
    erased = before.set_column(3, before.schema.field(3), pa.nulls(before.num_rows, pa.string()))
    taken = rejects_table("t", row=gone, reason=[REASON] * len(gone), sample_id=gone)
    after = publish(
        dataset,
        "images",
        [images(stay)],
        pa.concat_tables([erased, taken]),
        parents=[made.distinct.ref, Ref("blocklist", REASON, "b" * 64)],
        config={REASON: "b" * 64},
    )
    for version in (after, made.distinct):  # an older version is shown as its replacement
        facts = collect(made.lake, version, ReportConfig(), "x")
        assert facts.images.ref == after.ref and facts.chain.adds_up
        assert [(s.name, s.rows_out) for s in facts.chain.steps][-2:] == [
            ("distinct", 330),
            ("takedown", 330 - len(gone)),
        ]
        page = render_report(facts)
        assert not re.search(r"caption 1\d\d\b", page)
        assert all(not part.pairs for part in facts.rejected)
        assert "/timeout/" not in page and "/http_404/" not in page  # the links were erased in the version that remains


def test_thousands_of_images_do_not_make_a_larger_page(made: Made) -> None:
    many = collect(made.lake, made.distinct, ReportConfig(pictures=60), "x")
    full = len(render_report(many).encode())
    small = render_report(replace(many, config=ReportConfig(pictures=60, max_bytes=400_000)))
    assert len(small.encode()) <= 400_000
    assert full <= 3_000_000
    none = render_report(replace(many, config=ReportConfig(pictures=0)))
    assert "<img" not in none


def test_a_sample_is_spread_repeatable_and_stated(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    shards = [links(range(start, start + 500)) for start in range(0, 20_000, 500)]
    gone = {"timeout": range(50_000, 53_000)}
    version = publish(lake.dataset("images"), "links", shards, reject_rows("x", gone), parents=[SOURCE])
    groups = draw_groups(accepted(version), 2000)
    assert groups == draw_groups(accepted(lake.version(version.ref)), 2000)
    assert sorted(set(groups)) == groups and 1800 <= 16 * len(groups) <= 2200
    per_tenth = Counter(group.file // 4 for group in groups)
    assert len(per_tenth) == 10 and max(per_tenth.values()) - min(per_tenth.values()) <= 4
    other = publish(lake.dataset("images"), "links", shards[:-1], reject_rows("x", gone), parents=[SOURCE])
    assert draw_groups(accepted(other), 2000) != groups  # keyed by the digest

    sample = read_sample(accepted(version), ["url", "new_column"], 2000)
    assert not sample.whole and sample.total == 20_000 and sample.table["new_column"].null_count == sample.rows
    assert read_sample(accepted(version), ["url"], 20_000).whole

    hosts = count_hosts(version, sample_rows=2000, shown=5)
    assert not hosts.whole and sum(host.rows for host in hosts.largest) == pytest.approx(23_000)
    big = next(host for host in hosts.largest if host.name == "big.example")
    assert big.kept == pytest.approx(15_000, rel=0.02) and big.lost == pytest.approx(3000)
    assert (big.reason, big.reason_rows) == ("timeout", pytest.approx(3000))
    exact = count_hosts(version, sample_rows=10**6, shown=5)
    assert [(host.name, host.kept, host.lost) for host in exact.largest] == [
        ("big.example", 15_000, 3000),
        ("small.example", 5000, 0),
    ]


def test_a_sampled_page_is_marked(made: Made) -> None:
    config = ReportConfig(sample_rows=1000)
    object.__setattr__(config, "sample_rows", 64)  # less than a config may set: the versions here are small
    facts = collect(made.lake, made.distinct, config, "x")
    text = Reader(render_report(facts)).text
    assert "Source labels and agreement: a sample of" in text and "Estimates from a sample of" in text and "≈" in text
    assert sum(row.labelled or 0 for row in facts.labels.rows) + facts.labels.other + facts.labels.unlabelled == (
        pytest.approx(400)
    )


def test_only_what_is_shown_is_read(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    from altdiffusion.curation.report import gallery

    read: list[Any] = []
    inner = gallery.iter_images
    monkeypatch.setattr(gallery, "iter_images", lambda source, group: (read.append(group), inner(source, group))[1])
    found = gallery.choose_images(made.distinct, ReportConfig(pictures=2))
    assert len(read) == len(set(read)) == gallery.MIN_GROUPS  # of 22 row groups
    assert found.looked_at <= 16 * gallery.MIN_GROUPS
    assert {code: len(images) for code, images in found.images.items()} == dict.fromkeys(LANGUAGES, 2)


def test_hosts_of_urls() -> None:
    urls = {
        "http://A.Example/x": "a.example",
        "https://user:pw@b.example:8080/x?y@z": "b.example",
        "http://[::1]:80/": "[::1]",
        "http://c.example?x": "c.example",
        "http://d.example#x": "d.example",
        "pictures/no/host.jpg": "",
        "http:///x": "",
    }
    assert host_of(pa.chunked_array([list(urls)])).to_pylist() == list(urls.values())


def test_distributions_of_tally_and_of_rows_agree(made: Made) -> None:
    rows = made.links.read()
    from_rows = {d.name: d for d in measures.of_rows(rows, MEASURES)}
    for found in measures.of_tally(made.links.manifest.tally):
        exact = from_rows[found.name]
        assert (found.counts, found.unknown, found.rows) == (exact.counts, exact.unknown, exact.rows)
        if found.rows:
            width = found.measure.edge(max(found.counts) + 1) - found.measure.edge(max(found.counts))
            for one, other in ((found.low, exact.low), (found.median, exact.median), (found.high, exact.high)):
                assert one == pytest.approx(other, abs=width)
    assert from_rows["language_score"].high == 1.0
    assert max(d.high for d in measures.of_tally(made.links.manifest.tally) if d.name == "language_score") <= 1.0


def test_strange_values_neither_break_nor_flatten_a_histogram(facts: Facts) -> None:
    sizes = [0, -5, None, 2**30, *range(200, 400)]
    rows = pa.table({"bytes": pa.array(sizes, pa.int64())})
    found = measures.of_rows(rows, {"bytes": measures.STORED_BYTES})[0]
    assert (found.rows, found.unknown, found.outside) == (201, 3, 0)
    scores = pa.table({"aesthetic_score": pa.array([1e9, -1e9, float("nan"), *np.linspace(4, 6, 50)], pa.float32())})
    found = measures.of_rows(scores, {"aesthetic_score": measures.IMAGES["aesthetic_score"]})[0]
    assert (found.rows, found.unknown, found.outside) == (52, 1, 2) and len(found.counts) <= measures.MAX_BINS
    panel = Panel(title="A <title>", about="x", distributions=(replace(found, name="A <measure>"),))
    page = render_report(replace(facts, panels=(panel,)))
    assert page.count('role="img"') == 1 and "A &lt;title&gt;" in page and 'aria-label="A &lt;measure&gt;: 52' in page
    Reader(page)


def test_round_ticks() -> None:
    assert draw.ticks(0.25, 0.41, logarithmic=False, decimal=False) == [0.25, 0.3, 0.35, 0.4]
    assert draw.ticks(7.0, 9.0, logarithmic=False, decimal=False) == [7.0, 7.5, 8.0, 8.5, 9.0]
    assert draw.ticks(60.0, 300.0, logarithmic=True, decimal=False) == [64.0, 96.0, 128.0, 192.0, 256.0]
    assert draw.ticks(900.0, 9000.0, logarithmic=True, decimal=True) == [1000.0, 2000.0, 5000.0]
    for exponent in range(1, 40):
        found = draw.ticks(1.0, 2.0**exponent, logarithmic=True, decimal=False)
        assert 1 <= len(found) <= 6 and found == sorted(found)


def test_every_reason_on_the_page_is_explained(page: str, facts: Facts) -> None:
    text = Reader(page).text
    reasons = {reason for step in facts.chain.steps for reason in step.reasons}
    assert len(reasons) > 5
    for reason in reasons:
        assert explain(reason) and explain(reason) in text, reason


def test_a_version_from_before_the_new_columns(tmp_path: Path) -> None:
    made = make(str(tmp_path), tallied=False)
    old = images(range(40)).drop_columns(["phash", "hash_verdict", "expected_hash"])
    version = publish(made.lake.dataset("old"), "images", [old], reject_rows("x", {}), parents=[made.links.ref])
    facts = collect(made.lake, version, ReportConfig(), "x")
    assert facts.verdicts == () and "All 380 distinct links" in facts.panels[0].about
    assert [d.rows for d in facts.panels[0].distributions if d.name == "similarity"] == [380]


def test_a_lost_or_damaged_file_is_named(tmp_path: Path) -> None:
    made = make(str(tmp_path))
    path = Path(made.distinct.shard_uri(0))
    body = path.read_bytes()
    path.write_bytes(body[: len(body) // 2])
    with pytest.raises(AltDiffusionError, match=path.name):
        report_html(made.lake, made.distinct)
    path.unlink()
    with pytest.raises(AltDiffusionError, match="is missing"):
        report_html(made.lake, made.distinct)
    with pytest.raises(AltDiffusionError, match="holds links, not images"):
        report_html(made.lake, made.links)


def test_an_empty_step_and_an_unreadable_image(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    rows = images(range(9))
    rows = rows.set_column(rows.column_names.index("image"), IMAGES.field("image"), pa.array([b"no picture"] * 9))
    version = publish(lake.dataset("images"), "images", [rows], reject_rows("x", {}), parents=[])
    page = report_html(lake, version)
    Reader(page)
    assert "<img" not in page and "Nothing was rejected" in page and "Accepted images" not in page


def test_the_command(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "r.html")
    given_ = [
        "dataset",
        "report",
        "images",
        "--lake",
        made.lake.uri,
        "--out",
        out,
        "--title",
        "<My run>",
        "--pictures",
        "1",
    ]
    assert main(given_) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = Path(out).read_text()
    assert "<title>Curation of &lt;My run&gt;</title>" in page
    assert main([*given_, "--sample-rows", "3"]) == 2
    assert "sample_rows" in capsys.readouterr().err
