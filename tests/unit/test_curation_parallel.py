"""Parallel texts: every row of a corpus is kept once or rejected for one reason, whatever the file's shape."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from altdiffusion.config import from_dict
from altdiffusion.curation.config import CorpusConfig, LanguageConfig, PairsConfig
from altdiffusion.curation.parallel.corpus import plan_corpora, read_rows, scan_corpus
from altdiffusion.curation.parallel.pair_work import REASONS, PairsWork
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.pipeline_step import published, run_pipeline_step
from altdiffusion.execution.units import Unit, UnitWork
from altdiffusion.storage.dataset import Lake, Version
from pipelines.parallel import ParallelConfig, pipeline_steps
from tests.curation_lake import save_tokenizer
from tests.source_rows import unchecked

GERMAN = [
    ("A red apple lies on the wooden table", "Ein roter Apfel liegt auf dem Holztisch"),
    ("The old man reads a newspaper in the garden", "Der alte Mann liest im Garten eine Zeitung"),
    ("Children are playing football on the beach", "Kinder spielen am Strand Fußball"),
    ("A small house stands beside the river", "Ein kleines Haus steht neben dem Fluss"),
    ("She is drinking a cup of hot coffee", "Sie trinkt eine Tasse heißen Kaffee"),
    ("Two dogs are running through the deep snow", "Zwei Hunde laufen durch den tiefen Schnee"),
]


def tsv(path: Path, rows: list[tuple[Any, ...]], opener: Any = open) -> Path:
    with opener(path, "wb") as file:
        file.write("".join("\t".join(str(cell) for cell in row) + "\n" for row in rows).encode())
    return path


def corpus(**changes: Any) -> CorpusConfig:
    tree = {"name": "c", "uri": "", "format": "tsv", "language": "de", "english": 0, "translation": 1}
    return from_dict(CorpusConfig, tree | changes)


def rows_of(config: CorpusConfig) -> list[tuple[Any, ...]]:
    """Return all rows, read by the planned units."""
    tables = [table for unit in plan_corpora([scan_corpus(config)]) for table in read_rows(unit, config)]
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize("rows_per_unit", [1, 2, 4, 6, 100])
@pytest.mark.parametrize(("ending", "opener"), [("", open), (".gz", gzip.open), (".xz", lzma.open)])
def test_units_of_any_size_read_every_line_once(tmp_path: Path, rows_per_unit: int, ending: str, opener: Any) -> None:
    path = tsv(tmp_path / f"WikiMatrix.de-en.tsv{ending}", [(1.25, de, en) for en, de in GERMAN], opener)
    config = corpus(uri=str(path), english=2, translation=1, score=0, rows_per_unit=rows_per_unit)
    assert rows_of(config) == [(en, de, 1.25) for en, de in GERMAN]
    assert len(plan_corpora([scan_corpus(config)])) == -(-len(GERMAN) // rows_per_unit)


def test_a_last_line_without_its_end_and_an_odd_one_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    path.write_bytes(b"a\tb\tx\nonly one\t\n\nc\n" + b"\xff\tbroken\t\nlast\tline\t2.5")
    found = rows_of(corpus(uri=str(path), score=2, rows_per_unit=2))
    assert found == [
        ("a", "b", None), ("only one", "", None), ("", None, None), ("c", None, None), (None, "broken", None),
        ("last", "line", 2.5),
    ]  # fmt: skip


def test_moses_files_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    for column, name in ((0, "en"), (1, "de")):
        (tmp_path / f"opus.de-en.{name}").write_text("".join(pair[column] + "\n" for pair in GERMAN))
    moses = from_dict(
        CorpusConfig,
        {
            "name": "opus", "uri": f"{tmp_path}/opus.*.en", "format": "moses", "language": "de",
            "translation_uri": f"{tmp_path}/opus.*.de", "rows_per_unit": 4,
        },
    )  # fmt: skip
    table = pa.table({"TEXT": [en for en, _ in GERMAN], "german": [de for _, de in GERMAN]})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=4)
    parquet = corpus(
        uri=f"{tmp_path}/*.parquet", format="parquet", english="TEXT", translation="german", rows_per_unit=3
    )
    assert rows_of(moses) == rows_of(parquet) == [(en, de, None) for en, de in GERMAN]
    text = unchecked([b"gut", b"b\xffse"])
    pq.write_table(pa.table({"TEXT": ["a", "b"], "german": text}), tmp_path / "q.parquet")
    odd = corpus(uri=f"{tmp_path}/q.parquet", format="parquet", english="TEXT", translation="german")
    assert rows_of(odd) == [("a", "gut", None), ("b", None, None)]
    (tmp_path / "q.parquet").unlink()
    alone = corpus(uri=f"{tmp_path}/*.parquet", format="parquet", language="en", english="TEXT", translation=None)
    assert rows_of(alone) == [(en, None, None) for en, _ in GERMAN]
    (tmp_path / "opus.de-en.de").write_text("eine Zeile\n")
    with pytest.raises(AltDiffusionError, match=r"has 1 lines, the English file .* has 6"):
        rows_of(moses)


def sift(rows: list[tuple[Any, ...]], config: CorpusConfig, **pairs: Any) -> tuple[list[Any], list[str]]:
    work = PairsWork(lake="", dataset="", corpora={}, pairs=from_dict(PairsConfig, pairs), language=LanguageConfig())
    work.setup()
    table = pa.table(
        [
            pa.array([row[0] for row in rows], pa.string()),
            pa.array([row[1] for row in rows], pa.string()),
            pa.array([row[2] if len(row) > 2 else None for row in rows], pa.float32()),
        ],
        names=["caption", "translation", "score"],
    )
    kept, dropped = work.sift(table, config, "u", 100)
    assert kept.num_rows + dropped.num_rows == len(rows)
    assert all(row >= 100 for row in dropped["row"].to_pylist())
    return kept.to_pylist(), list(dropped["reason"].to_pylist())


def test_every_filter_has_its_reason(tmp_path: Path) -> None:
    good = [(*pair, 1.2) for pair in GERMAN[:2]]
    bad = [
        (None, "Ein Satz ohne Gegenstück", 1.2),
        ("A sentence alone", "", 1.2),
        ("12 34", "12 34", 1.2),
        (*GERMAN[2], 1.0),
        (*GERMAN[3], None),
        ("Berlin Hauptbahnhof", "berlin hauptbahnhof", 1.2),
        ("A cat", "Eine Katze, die den ganzen langen Nachmittag auf der warmen Fensterbank liegt", 1.2),
        ("A red apple lies on the wooden table", "Una manzana roja está sobre la mesa de madera", 1.2),
        ("Ein roter Apfel liegt auf dem Tisch aus Holz", "Ein roter Apfel liegt auf dem Holztisch", 1.2),
    ]
    kept, reasons = sift(good + bad, corpus(score=2, score_above=1.04))
    assert [row["caption"] for row in kept] == [row[0] for row in good]
    assert reasons == ["text"] * 3 + ["score"] * 2 + ["identical", "length_ratio", "language", "caption_language"]
    assert set(reasons) == set(REASONS)
    assert all(row["language"] == "de" and row["language_score"] > 0.5 for row in kept)
    assert all(row["token_ids"] == row["teacher_ids"] == [] for row in kept)
    trusted, _ = sift(bad[-2:], corpus(), check_languages=False)
    assert len(trusted) == 2 and trusted[0]["language_score"] is None


def test_both_sides_are_cleaned_as_captions_are() -> None:
    pair = (
        "A red apple lies &amp; waits on the <b>wooden</b> table",
        "Ein roter Apfel liegt auf dem Tisch fÃ¼r GÃ¤ste",
    )
    (kept,), _ = sift([pair], corpus())
    assert kept["caption"] == "A red apple lies & waits on the wooden table"
    assert kept["translation"] == "Ein roter Apfel liegt auf dem Tisch für Gäste"
    (kept,), _ = sift([pair], corpus(), clean_texts=False)
    assert (kept["caption"], kept["translation"]) == pair


def test_english_alone_is_read_by_both(tmp_path: Path) -> None:
    rows = [(en, None) for en, _ in GERMAN[:3]] + [(GERMAN[3][1], None)]
    kept, reasons = sift(rows, corpus(language="en", translation=None))
    assert [(row["caption"], row["translation"], row["language"]) for row in kept] == [
        (en, en, "en") for en, _ in GERMAN[:3]
    ]
    assert reasons == ["language"]


def job(root: Path, **changes: Any) -> ParallelConfig:
    """Write two corpora that share two pairs, and English texts alone; return the config of their job."""
    data = root / "data"
    if not data.exists():
        data.mkdir()
        tsv(data / "a.tsv", list(GERMAN[:4]))
        tsv(data / "b.tsv", [*GERMAN[2:], GERMAN[5]])
        tsv(data / "en.tsv", [(en,) for en, _ in GERMAN])
        save_tokenizer(root / "student")
        save_tokenizer(root / "teacher")
    tree: dict[str, Any] = {
        "lake": str(root / "lake"), "execution": {"backend": "inline"},
        "corpora": [
            {"name": name, "uri": f"{data}/{name}.tsv", "format": "tsv", "language": "de", "translation": 1,
             "rows_per_unit": 3}
            for name in ("a", "b")
        ] + [{"name": "en", "uri": f"{data}/en.tsv", "format": "tsv", "language": "en"}],
        "filter": {"buckets": 4},
        "ids": {"tokenizer": str(root / "student"), "max_length": 12, "teacher_tokenizer": str(root / "teacher"),
                "teacher_max_length": 10},
    }  # fmt: skip
    return from_dict(ParallelConfig, tree | changes)


def run(config: ParallelConfig) -> list[Version]:
    return [
        version
        for pipeline_step in pipeline_steps(config)
        for version in run_pipeline_step(Lake(config.lake), pipeline_step, backend="inline")
    ]


def test_corpora_become_pairs_once_each_with_ids_of_both_encoders(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    config = job(tmp_path)
    candidates, pairs = run(config)
    assert candidates.rows == 4 + 5 + 6
    assert pairs.manifest.rejects_by_reason == {"duplicate": 3}
    rows = pairs.read().to_pylist()
    expected = {(en, de, "de") for en, de in GERMAN} | {(en, en, "en") for en, _ in GERMAN}
    assert {(row["caption"], row["translation"], row["language"]) for row in rows} == expected
    assert len(rows) == len(expected) == len({row["sample_id"] for row in rows})
    assert {row["source"] for row in rows if row["caption"] == GERMAN[2][0] and row["language"] == "de"} == {"a"}
    reader = AutoTokenizer.from_pretrained(tmp_path / "student")
    for row in rows:
        ours = reader(row["caption"], padding="max_length", truncation=True, max_length=10)["input_ids"]
        theirs = reader(row["translation"], padding="max_length", truncation=True, max_length=12)["input_ids"]
        assert (row["teacher_ids"], row["token_ids"]) == (ours, theirs)
    kinds = [ref.kind for ref in pairs.manifest.parent_refs]
    assert kinds == ["dataset", "model", "model"]
    assert [ref.kind for ref in candidates.manifest.parent_refs] == ["source"] * 3
    assert pairs.manifest.rows_by_language == {"de": 6, "en": 6}


def test_held_out_texts_are_on_one_side_only(tmp_path: Path) -> None:
    whole = run(job(tmp_path, pairs="whole"))[1]
    config = job(tmp_path, filter={"buckets": 4, "held_out": 2})
    _, pairs, held_out = run(config)
    assert held_out.ref.name == "pairs-held-out"
    assert pairs.rows + held_out.rows == whole.rows
    texts = [set(version.read(["caption"])["caption"].to_pylist()) for version in (pairs, held_out)]
    assert all(texts) and not texts[0] & texts[1]


def test_killed_between_units_and_run_again_gives_the_same_digest(tmp_path: Path) -> None:
    whole = [version.ref.digest for version in run(job(tmp_path))]
    config = job(tmp_path, lake=str(tmp_path / "other"))
    lake = Lake(config.lake)
    first, second = pipeline_steps(config)
    work = cast(UnitWork, first.work(lake))
    work.setup()
    ledger = first.output.ledger(lake)
    units = first.units(lake)
    assert len(units) == 2 + 2 + 1
    for unit in (units[3], units[0]):
        ledger.record(work.run(unit))
    work.run(units[1])  # its shards are there, its record is not
    assert [version.ref.digest for version in run(config)] == whole
    assert published(lake, second) is not None


def test_other_texts_or_another_tokenizer_make_another_version(tmp_path: Path) -> None:
    config = job(tmp_path)
    run(config)
    assert all(published(Lake(config.lake), pipeline_step) for pipeline_step in pipeline_steps(config))
    path = tmp_path / "data" / "a.tsv"
    path.write_bytes(path.read_bytes().replace(b"apple", b"grape"))
    assert published(Lake(config.lake), pipeline_steps(config)[0]) is None
    path.write_bytes(path.read_bytes().replace(b"grape", b"apple"))
    (tmp_path / "teacher" / "more.txt").write_text("x")
    assert published(Lake(config.lake), pipeline_steps(config)[1]) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "moses"}, r"translation_uri: .* belongs to format moses"),
        ({"translation": None}, r"translation: .* is missing"),
        ({"english": "TEXT"}, r"english: .* is not a column of tsv"),
        ({"score_above": 1.0}, r"score_above: .* needs the scores' column"),
        ({"rows_per_unit": 0}, r"rows_per_unit: .* must be at least 1"),
    ],
)
def test_invalid_corpora_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AltDiffusionError, match=message.replace(": ", ".*", 1)):
        corpus(**changes)


def test_a_language_that_is_not_looked_for_is_refused_before_anything_runs(tmp_path: Path) -> None:
    swedish = {"name": "sv", "uri": "x", "format": "tsv", "language": "sv", "translation": 1}
    with pytest.raises(AltDiffusionError, match=r"language.languages.* does not contain sv"):
        job(tmp_path, corpora=[swedish])
    job(tmp_path, corpora=[swedish], language={"languages": ["en", "sv"]})
    job(tmp_path, corpora=[swedish], filter={"check_languages": False})


def test_a_file_that_shrank_is_named(tmp_path: Path) -> None:
    path = tsv(tmp_path / "c.tsv", GERMAN)
    config = corpus(uri=str(path))
    units: list[Unit] = plan_corpora([scan_corpus(config)])
    tsv(path, GERMAN[:2])
    with pytest.raises(AltDiffusionError, match=r"corpus part .*c.tsv.* ends 4 rows early"):
        list(read_rows(units[0], config))
