"""The prompts file: what is read, and how a bad row becomes a reject."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import mmh3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from altdiffusion.config import from_dict
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation import prompt_files
from altdiffusion.generation.prompts import Prompts, prompts_source, read_prompts
from altdiffusion.generation.settings import GenerateConfig, PromptsConfig
from altdiffusion.records import PROMPTS, REJECTS
from tests.source_rows import unchecked

ROWS: list[dict[str, Any]] = [
    {"id": "a", "language": "en", "prompt": "a red, ripe apple", "seed": 1, "width": 32, "height": 48},
    {"id": "b.2", "language": "ar", "prompt": "تفاحة حمراء", "seed": -5, "width": 32, "height": 32},
    {"id": "c_3", "language": "zh", "prompt": "红苹果 🍎", "seed": 2**62, "width": 64, "height": 32},
]
UNSET = dict.fromkeys(("negative_prompt", "steps", "guidance_scale", "sampler", "count", "regions"))


def read_all(path: Path, **settings: Any) -> Prompts:
    prompts = read_prompts(PromptsConfig(file=str(path), **settings))
    assert prompts.accepted.schema.equals(PROMPTS, check_metadata=True)
    assert prompts.rejects.schema.equals(REJECTS, check_metadata=True)
    return prompts


def read(path: Path, **settings: Any) -> list[dict[str, Any]]:
    """Return the accepted rows without what they leave to the job; no row is a reject."""
    prompts = read_all(path, **settings)
    assert not prompts.rejects.num_rows, prompts.rejects.to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in prompts.accepted.to_pylist()]


def texts(path: Path, **settings: Any) -> list[str]:
    return [row["prompt"] for row in read(path, **settings)]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def test_all_formats_read_the_same(tmp_path: Path) -> None:
    extra = [{**row, "concept": "apple"} for row in ROWS]  # columns of the file's owner are left alone
    plain = jsonl(tmp_path / "p.jsonl", extra).read_bytes()
    pq.write_table(pa.Table.from_pylist(extra), tmp_path / "p.parquet")
    (tmp_path / "p.json").write_text(json.dumps(extra))
    (tmp_path / "lines.json").write_bytes(plain)
    (tmp_path / "p.ndjson.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "windows.jsonl").write_bytes(b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"))
    for name, separator in (
        ("p.csv", ","),
        ("semicolon.csv", ";"),
        ("tab.csv", "\t"),
        ("bar.csv", "|"),
        ("p.tsv", "\t"),
    ):
        with open(tmp_path / name, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(extra[0]), delimiter=separator)
            writer.writeheader()
            writer.writerows(extra)
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress((tmp_path / "p.csv").read_bytes()))
    (tmp_path / "colon.csv").write_bytes((tmp_path / "semicolon.csv").read_bytes().replace(b";", b":"))
    found = sorted(path for path in tmp_path.iterdir() if path.name != "colon.csv")
    assert len(found) == 12
    for path in found:
        assert read(path) == ROWS, path.name
    assert read(tmp_path / "colon.csv", separator=":") == ROWS


def test_plain_text_has_one_prompt_per_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa cat\r\n\r\n# a hash\r\n猫, zwei\u2028Zeilen".encode())
    assert texts(path) == ["a cat", "# a hash", "猫, zwei\u2028Zeilen"]
    assert [row["id"] for row in read(path)] == ["row-0000001", "row-0000003", "row-0000004"]  # as an editor counts
    assert texts(path, comments="#") == ["a cat", "猫, zwei\u2028Zeilen"]


def test_what_pandas_writes_is_read(tmp_path: Path) -> None:
    """An index as id; whole numbers as floats, because one row has none; NaN for what is missing."""
    path = tmp_path / "p.parquet"
    columns = {
        "id": pa.array([0, 1, 2], pa.uint32()),
        "prompt": pa.array(["a", "b", "c"]).dictionary_encode(),
        "seed": pa.array([1.0, float("nan"), 4294967295.0]),
        "width": pa.array([64.0, None, 32.0], pa.float32()),
        "language": pa.array(["en", None, "de"], pa.large_string()),
        "negative_prompt": pa.nulls(3),
    }
    pq.write_table(pa.table(columns), path)
    rows = read(path, default_seed=9, default_size=40)
    assert [(row["id"], row["seed"], row["width"], row["language"]) for row in rows] == [
        ("0", 1, 64, "en"), ("1", 9, 40, "und"), ("2", 4294967295, 32, "de"),
    ]  # fmt: skip
    (tmp_path / "p.jsonl").write_text('{"id": 7, "prompt": "a", "seed": 1.0, "width": NaN}\n')
    (tmp_path / "p.csv").write_text("id,prompt,seed,width\n7,a,1.0,\n")
    for name in ("p.jsonl", "p.csv"):
        (row,) = read(tmp_path / name)
        assert (row["id"], row["seed"], row["width"]) == ("7", 1, 512)


def test_rows_without_an_id_are_named_by_their_number_in_every_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_files, "CHUNK_ROWS", 4)
    rows = [{"prompt": f"p{number}"} for number in range(1, 11)]
    path = jsonl(tmp_path / "p.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    names = [f"row-{number:07}" for number in range(1, 11)]
    assert [row["id"] for row in read(path)] == [row["id"] for row in read(tmp_path / "p.parquet")] == names


def test_a_row_without_a_seed_has_its_own_whatever_else_the_file_holds(tmp_path: Path) -> None:
    """Repeated prompts differ, and a prompt keeps its seed when others are added before it."""
    rows = read(jsonl(tmp_path / "p.jsonl", [{"prompt": text} for text in ("cat", "dog", "cat", "cat")]))
    seeds = [row["seed"] for row in rows]
    assert len(set(seeds)) == 4 and all(0 <= seed < 2**32 for seed in seeds)
    assert seeds[0] == mmh3.hash("cat", 0, signed=False)  # anyone can compute it
    more = read(jsonl(tmp_path / "p.jsonl", [{"prompt": text} for text in ("bird", "cat", "cat", "dog")]))
    assert [row["seed"] for row in more][1:] == [seeds[0], seeds[2], seeds[1]]
    assert {row["seed"] for row in read(tmp_path / "p.jsonl", default_seed=3)} == {3}


@pytest.mark.parametrize(
    ("field", "value", "reason", "problem"),
    [
        ("id", "../../x", "prompt_id", "is not 1 to 200 of"),
        ("id", "x" * 201, "prompt_id", "is not 1 to 200 of"),
        ("id", "a", "prompt_duplicate", "is also the id of an earlier row"),
        ("id", ["a"], "prompt_row", "is not a text or number"),
        ("language", "english", "prompt_language", "is not a BCP 47 tag"),
        ("language", "e", "prompt_language", "is not a BCP 47 tag"),
        ("prompt", " \n", "prompt_blank", "is blank"),
        ("prompt", "\u200b\u3000", "prompt_blank", "is blank"),
        ("prompt", None, "prompt_blank", "is blank"),
        ("prompt", 7, "prompt_row", "is not a text"),
        ("prompt", "a\x00b", "prompt_characters", "has control characters"),
        ("prompt", "é" * 4097, "prompt_length", "has more than 4096 characters"),
        ("seed", "x", "prompt_seed", "is not a whole number"),
        ("seed", 1.5, "prompt_seed", "is not a whole number"),
        ("seed", True, "prompt_row", "is not a text or number"),
        ("seed", 2**63, "prompt_seed", "is not a whole number of 64 bits"),
        ("width", 0, "prompt_size", "is not between 8 and 2048 pixels"),
        ("height", 4096, "prompt_size", "is not between 8 and 2048 pixels"),
        ("height", 500, "prompt_size", "is not a multiple of 8"),
        ("width", "wide", "prompt_size", "is not a whole number"),
        ("steps", 1001, "prompt_setting", "is not a whole number from 1 to 1000"),
        ("count", 0, "prompt_setting", "is not a whole number from 1 to 10000"),
        ("guidance_scale", -1, "prompt_setting", "is not a number from 0 to 100"),
        ("guidance_scale", "much", "prompt_setting", "is not a number from 0 to 100"),
        ("sampler", "k_lms", "prompt_setting", "is not one of ddim, dpmpp"),
        ("negative_prompt", "a\x07", "prompt_setting", "has control characters"),
    ],
)
def test_a_bad_row_is_one_reject_with_its_number_and_field(
    tmp_path: Path, field: str, value: Any, reason: str, problem: str
) -> None:
    rows = [ROWS[0], {**ROWS[1], field: value}, ROWS[2]]
    prompts = read_all(jsonl(tmp_path / "p.jsonl", rows))
    assert prompts.accepted.to_pylist() == [{**row, **UNSET} for row in (ROWS[0], ROWS[2])]
    (reject,) = prompts.rejects.to_pylist()
    assert (reject["row"], reject["reason"], reject["unit_id"]) == (1, reason, "prompts")
    assert reject["detail"].startswith(f"row 2{':' if reason == 'prompt_row' else ','} field {field}: ")
    assert problem in reject["detail"] and len(reject["detail"]) < 250
    assert (prompts.rows, prompts.by_reason) == (3, {reason: 1})
    with pytest.raises(AltDiffusionError, match=rf"strict is set \({reason}\): row 2"):
        read(tmp_path / "p.jsonl", strict=True)


@pytest.mark.parametrize(
    ("name", "bad", "detail"),
    [
        ("p.jsonl", b'{"id": "x"', "row 2: is not JSON (Expecting ',' delimiter)"),
        ("p.jsonl", b"[1]", "row 2: is not an object"),
        ("p.jsonl", b'{"prompt": "\xe4"}', "row 2: field prompt: holds bytes or half characters that are not UTF-8"),
        ("p.jsonl", b'{"prompt": "\\ud83c"}', "row 2: field prompt: holds bytes or half characters that are not UTF-8"),
        ("p.jsonl", b"[" * 100_000, "row 2: is not JSON"),
        ("p.csv", b"too,few", "row 2: has 2 fields where the header has 3"),
        ("p.csv", b'x,"a" b,1', "row 2: has a misplaced quotation mark"),
        ("p.csv", b"x,\xe4,1", "row 2: field prompt: holds bytes or half characters that are not UTF-8"),
        ("p.txt", b"\xff", "row 2: field prompt: holds bytes or half characters that are not UTF-8"),
    ],
)
def test_a_line_that_cannot_be_read_is_one_reject(tmp_path: Path, name: str, bad: bytes, detail: str) -> None:
    good = {
        "p.jsonl": (b'{"prompt": "a"}', b'{"prompt": "b"}'),
        "p.csv": (b"id,prompt,seed\nk,a,1", b"l,b,2"),
        "p.txt": (b"a", b"b"),
    }[name]
    (tmp_path / name).write_bytes(b"\n".join([good[0], bad, good[1]]))
    prompts = read_all(tmp_path / name)
    assert prompts.accepted["prompt"].to_pylist() == ["a", "b"]
    (reject,) = prompts.rejects.to_pylist()
    assert reject["reason"] == "prompt_row" and reject["detail"].startswith(detail)


def test_a_text_of_parquet_that_is_not_utf8_is_one_reject(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": unchecked([b"a", b"b\xff", b"c"])}), tmp_path / "p.parquet")
    prompts = read_all(tmp_path / "p.parquet")
    assert prompts.accepted["prompt"].to_pylist() == ["a", "c"]
    (reject,) = prompts.rejects.to_pylist()
    assert reject["reason"] == "prompt_row" and "row 2: field prompt: holds bytes" in reject["detail"]


def test_rejects_are_in_order_and_ids_count_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_files, "CHUNK_ROWS", 3)
    names = ["a", "b", "a", "c", "b", "d", "a", "e"]
    rows: list[Any] = [{"id": name, "prompt": "x" if name != "d" else ""} for name in names]
    prompts = read_all(jsonl(tmp_path / "p.jsonl", [*rows, {"id": "d", "prompt": "x"}]))  # the first d is not drawn
    assert prompts.accepted["id"].to_pylist() == ["a", "b", "c", "e", "d"]
    assert prompts.rejects["row"].to_pylist() == [2, 4, 5, 6]
    assert prompts.by_reason == {"prompt_blank": 1, "prompt_duplicate": 3}


@pytest.mark.parametrize(
    ("given", "stored"),
    [("sv", "sv"), ("zh-CN", "zh-CN"), ("pt_br", "pt-BR"), ("EN", "en"), (" ZH_hant_tw ", "zh-Hant-TW"),
     ("es-419", "es-419"), ("", "und"), (None, "und"), ("und", "und"), ("x-elvish", "x-elvish"),
     ("sl-nedis", "sl-nedis"),
     ("de-CH-1996", "de-CH-1996"), ("en-a-BBB-x-A", "en-a-bbb-x-a")],
)  # fmt: skip
def test_any_language_is_taken_and_written_in_one_way(tmp_path: Path, given: str | None, stored: str) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": "x", "language": given}])
    assert read(path)[0]["language"] == stored
    assert read(jsonl(path, [{"prompt": "x"}]), language="pt-BR")[0]["language"] == "pt-BR"


def test_a_job_may_draw_some_languages_only(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "p.jsonl", [{"prompt": "x", "language": tag} for tag in ("pt-BR", "PT", "de", "zh-CN", "zh-TW")]
    )
    prompts = read_all(path, languages=("pt", "zh-CN"))
    assert prompts.by_language == {"pt": 1, "pt-BR": 1, "zh-CN": 1}
    assert prompts.by_reason == {"prompt_language": 2}


def test_the_language_is_detected_where_a_row_has_none(tmp_path: Path) -> None:
    asked: list[str] = []

    def detect(captions: pa.Array) -> pa.Array:
        asked.extend(captions.to_pylist())
        return pa.array(["de" if "ein" in text else None for text in captions.to_pylist()], pa.string())

    rows = [{"prompt": "ein Haus"}, {"prompt": "ein Hund", "language": "nl"}, {"prompt": "42"}, {"prompt": " "}]
    path = jsonl(tmp_path / "p.jsonl", rows)
    config = PromptsConfig(file=str(path), detect_language=True)
    assert read_prompts(config, detect).accepted["language"].to_pylist() == ["de", "nl", "und"]
    assert asked == ["ein Haus", "42"]
    only = PromptsConfig(file=str(path), detect_language=True, languages=("de",))
    prompts = read_prompts(only, detect)
    assert prompts.by_language == {"de": 1} and prompts.by_reason == {"prompt_blank": 1, "prompt_language": 2}
    assert "und" in read_prompts(PromptsConfig(file=str(path)), detect).by_language


def test_a_limit_counts_the_same_in_every_script(tmp_path: Path) -> None:
    for text in ("a" * 400, "क" * 400, "字" * 400, "🍎" * 400):
        path = jsonl(tmp_path / "p.jsonl", [{"prompt": text}])
        assert texts(path, max_prompt_chars=400) == [text]
        with pytest.raises(AltDiffusionError, match="prompt_length 1"):
            read(path, max_prompt_chars=399)


def test_settings_of_a_row_are_kept_with_null_for_the_jobs(tmp_path: Path) -> None:
    given = {"negative_prompt": "fog", "steps": 20, "guidance_scale": 7.5, "sampler": "DPMPP", "count": 4}
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": "a", **given}, {"prompt": "b", "guidance_scale": "1e1"}])
    first, second = read_all(path).accepted.to_pylist()
    assert {name: first[name] for name in UNSET} == {**given, "sampler": "dpmpp", "regions": None}
    assert {name: second[name] for name in UNSET} == {**UNSET, "guidance_scale": 10.0}
    assert read(path, ignore=("steps", "count", "sampler", "negative_prompt", "guidance_scale", "seed", "id")) == [
        {name: row[name] for name in row if name not in UNSET} for row in (first, second)
    ]


def test_columns_are_mapped_to_our_names(tmp_path: Path) -> None:
    rows = [{"Text": "ein Haus", "nr": 3, "prompt": "not this", "w": 64}]
    mapped = {"prompt": "Text", "id": "nr", "width": "w"}
    for path in (jsonl(tmp_path / "p.jsonl", rows), tmp_path / "p.parquet", tmp_path / "p.csv"):
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        if path.suffix == ".csv":
            path.write_text("Text,nr,prompt,w\nein Haus,3,not this,64\n")
        (row,) = read(path, columns=mapped)
        assert (row["prompt"], row["id"], row["width"], row["height"]) == ("ein Haus", "3", 64, 512)
        with pytest.raises(AltDiffusionError, match="does not have the mapped columns seed: noise; it has: Text, nr"):
            read(path, columns={**mapped, "seed": "noise"})


def test_files_that_are_not_prompts(tmp_path: Path) -> None:
    cases = {
        "missing.jsonl": (None, "does not exist"),
        "empty.jsonl": (b"", "holds no rows"),
        "blank.txt": (b"\n \n", "holds no rows"),
        "broken.jsonl": (b'{"id": "a"\n', r"no usable row among 1 \(prompt_row 1\); the first: row 1: is not JSON"),
        "latin.jsonl": (b'\n{"prompt": "\xe4"}\n', "row 2: field prompt: holds bytes"),
        "texts.jsonl": (
            b'{"text": "a", "n": 1}\n',
            "it has: n, text.*map it in prompts.columns",
        ),
        "parti.csv": (b"Prompt,Category\na,b\n", "no column 'prompt'; it has: Category, Prompt.*preset: partiprompts"),
        "twice.csv": (b"prompt,prompt\na,b\n", "names a column twice"),
        "open.csv": (b'id,prompt\nx,a\ny,"b\nz,c\n', "a quotation mark in row 2 that is never closed"),
        "cut.parquet": (b"PAR1xxxx", "is not readable Parquet"),
        "cut.jsonl.gz": (gzip.compress(b'{"prompt": "a"}\n')[:-9], "is not readable gzip"),
        "not.jsonl.gz": (b'{"prompt": "a"}\n', "is not readable gzip"),
        "object.json": (b'{"prompt": "a"}', "is not an array"),
        "cut.json": (b'[{"prompt": "a"}', "is not JSON"),
        "excel.csv": ("prompt\na".encode("utf-16"), "is UTF-16"),
        "prompts.docx": (b"a cat\n", "has an unknown format.*name it .jsonl"),
        "prompts": (b"a cat\n", "has an unknown format"),
    }
    for name, (data, problem) in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(AltDiffusionError, match=f"(?s){problem}") as caught:
            read(tmp_path / name)
        assert name in str(caught.value) and len(str(caught.value)) < 500
    pq.write_table(pa.table({"prompt": [["a"]]}), tmp_path / "lists.parquet")
    with pytest.raises(AltDiffusionError, match=r"has the type list<.*> in column prompt"):
        read(tmp_path / "lists.parquet")


def test_the_source_is_named_by_content(tmp_path: Path) -> None:
    first = prompts_source(PromptsConfig(file=str(jsonl(tmp_path / "p.jsonl", ROWS))))
    moved = prompts_source(PromptsConfig(file=str(jsonl(tmp_path / "q.jsonl", ROWS))))
    other = prompts_source(PromptsConfig(file=str(jsonl(tmp_path / "p.jsonl", ROWS[:1]))))
    assert first.digest == moved.digest != other.digest
    assert (first.kind, first.name) == ("source", "p.jsonl")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"steps": 0}, "between 1 and 1000"),
        ({"guidance_scale": -1.0}, "between 0 and 100"),
        ({"rows_per_unit": 0}, "must be at least 1"),
        ({"dtype": "float16"}, "does not run on a CPU"),
        ({"sampler": "heun"}, "not one of the choices"),
        ({"model": {}}, "exactly one of folder and run"),
        ({"model": {"folder": "x", "run": "y"}}, "exactly one of folder and run"),
        ({"model": {"folder": "x", "digest": "xyz"}}, "8 to 64 hex digits"),
        ({"prompts": {"file": "p.jsonl", "languages": ["swedish"]}}, "is not a BCP 47 tag"),
        ({"prompts": {"file": "p.jsonl", "languages": ["PT_br"]}}, "is not a BCP 47 tag in its usual case"),
        ({"prompts": {"file": "p.jsonl", "preset": "partiprompt"}}, "did you mean partiprompts"),
        ({"prompts": {"file": "p.jsonl", "columns": {"text": "t"}}}, "cannot map 'text'.*use our names"),
        ({"prompts": {"file": "p.jsonl", "ignore": ["prompt"]}}, "cannot contain 'prompt'"),
        ({"prompts": {"file": "p.txt", "preset": "a1111", "columns": {"prompt": "t"}}}, "leave columns out"),
        ({"prompts": {"file": "p.csv", "separator": "::"}}, "is not one character"),
        ({"prompts": {"file": "p.jsonl", "default_size": 500}}, "must be a multiple of 8"),
        ({"prompts": {"file": "p.jsonl", "max_prompt_bytes": 4096}}, "did you mean prompts.max_prompt_chars"),
    ],
)
def test_invalid_settings_are_refused(change: dict[str, Any], problem: str) -> None:
    good: dict[str, Any] = {"model": {"folder": "m"}, "prompts": {"file": "p.jsonl"}}
    from_dict(GenerateConfig, good)
    with pytest.raises(AltDiffusionError, match=problem):
        from_dict(GenerateConfig, good | change)


def test_prompts_by_region_have_one_form_however_they_are_written(tmp_path: Path) -> None:
    shares = [{"prompt": "sea", "from": 0, "to": 0.5}, {"prompt": "海", "from": 0.5, "to": 1}]
    rows = [
        {"prompt": "a", "width": 64, "regions": regions}
        for regions in (["sea", "海"], shares, json.dumps(shares), None, "")
    ]
    wanted = '[{"from":0.0,"prompt":"sea","to":0.5},{"from":0.5,"prompt":"海","to":1.0}]'
    found = read_all(jsonl(tmp_path / "p.jsonl", rows)).accepted["regions"].to_pylist()
    assert found == [wanted] * 3 + [None] * 2
    pq.write_table(pa.Table.from_pylist([rows[0], rows[3]]), tmp_path / "p.parquet")
    assert read_all(tmp_path / "p.parquet").accepted["regions"].to_pylist() == [wanted, None]


@pytest.mark.parametrize(
    ("regions", "problem"),
    [
        ("[", "is not JSON"),
        (7, "is not a list of 1 to 64 regions"),
        ([], "is not a list of 1 to 64 regions"),
        (["a"] * 65, "is not a list of 1 to 64 regions"),
        (["a", 3], "has a region 2 that is neither a text nor {prompt, from, to}"),
        ([{"prompt": "a", "from": 0}], "has a region 1 that is neither a text nor {prompt, from, to}"),
        ([{"prompt": "a", "from": 0.5, "to": 0.5}], "has a region 1 that is not 0 <= from < to <= 1"),
        ([{"prompt": "a", "from": 0, "to": 1.5}], "has a region 1 that is not 0 <= from < to <= 1"),
        ([{"prompt": "a", "from": True, "to": 1}], "has a region 1 that is not 0 <= from < to <= 1"),
        (["a", " "], "has no prompt in region 2"),
        ([{"prompt": None, "from": 0, "to": 1}], "has no prompt in region 1"),
        (["a\u0000"], "has control or half characters, or more than 4096, in region 1"),
        ('["\\ud800"]', "has control or half characters, or more than 4096, in region 1"),
        (["a" * 3000, "b" * 3000], "has more than 4096 characters in all regions together"),
        (["a"] * 9, "gives region 1 a share of 0.1111; the least is 0.125"),
    ],
)
def test_regions_that_cannot_be_drawn_are_rejects(tmp_path: Path, regions: Any, problem: str) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "width": 64, "regions": regions}]
    (reject,) = read_all(jsonl(tmp_path / "p.jsonl", rows)).rejects.to_pylist()
    assert reject["reason"] == "prompt_regions"
    assert reject["detail"].startswith("row 2, field regions: ") and reject["detail"].endswith(problem)
