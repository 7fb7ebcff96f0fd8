"""Sources of one's own images: what each layout holds, in which order, and what is wrong with a row."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from altdiffusion.curation.config import OwnConfig
from altdiffusion.curation.own.listing import list_source
from altdiffusion.curation.own.sample import Sample
from altdiffusion.curation.own.scan import OwnScan, reader_of, scan_own
from altdiffusion.curation.own.table_rows import check_bounds
from altdiffusion.errors import AltDiffusionError
from tests.download_lake import image
from tests.source_rows import unchecked

Files = dict[str, bytes | str]


def write(root: Path, files: Files) -> Path:
    for name, body in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body.encode() if isinstance(body, str) else body)
    return root


def samples(config: OwnConfig) -> tuple[OwnScan, list[Sample]]:
    scan = scan_own(config)
    read = reader_of(scan.layout, config)
    return scan, [sample for unit in scan.units for sample in read(unit)]


def own(path: Path, **given: Any) -> OwnConfig:
    return OwnConfig(uri=str(path), **given)


def texts(found: list[Sample]) -> dict[str, Any]:
    """Return the captions of each sample, with their labels where they have any, or the reason of its refusal."""
    return {
        sample.name: [one.text if one.label is None else (one.text, one.label) for one in sample.captions]
        if sample.refused is None
        else str(sample.refused.reason)
        for sample in found
    }


def test_captions_next_to_images(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "b/1.JPG": image(1), "b/1.TXT": "\ufeffein Haus\r\nam See\r\n",
            "a.png": image(2), "a.jpg": image(3), "a.txt": "both",
            "c.jpg": image(4), "c.txt": "tags, tags", "c.caption": "a sentence", "c.json": '{"caption": "unused"}',
            "d.webp": image(5), "d.json": '{"caption": ["eins", "zwei"], "lang": "de", "url": "http://a/d"}',
            "e.jpg": image(6), "e.txt": "großes".encode("latin-1"), "f.jpg": image(7), "g.jpg": image(8),
            "g.txt": " \n",
            "u.jpg": image(9), "u.txt": "вікно".encode("utf-16"), "_DSC1.jpg": image(9), "_DSC1.txt": "camera",
            "_SUCCESS": "", ".h.jpg": image(1), "__MACOSX/._a.jpg": b"x", "notes.md": "x", "i.heic": b"x", "i.txt": "x",
            unicodedata.normalize("NFD", "й.jpg"): image(1), unicodedata.normalize("NFC", "й.txt"): "нфс",
        },
    )  # fmt: skip
    scan, found = samples(own(tmp_path, rows_per_unit=3))
    assert texts(found) == {
        "_DSC1.jpg": ["camera"], "a.jpg": ["both"], "a.png": ["both"], "b/1.JPG": ["ein Haus am See"],
        "c.jpg": ["tags, tags", "a sentence"], "d.webp": [("eins", "de"), ("zwei", "de")], "e.jpg": "caption_bytes",
        "f.jpg": "no_caption", "g.jpg": "no_caption", "i.heic": ["x"], "u.jpg": ["вікно"], "й.jpg": ["нфс"],
    }  # fmt: skip
    assert [sample.name for sample in found] == sorted(sample.name for sample in found)
    assert len(scan.units) == 4
    assert "2 images share a caption file" in scan.notes[0] and "md 1" in scan.notes[1]
    _, decoded = samples(own(tmp_path, caption_encoding="latin-1"))
    assert texts(decoded)["e.jpg"] == ["großes"]


def test_the_same_files_elsewhere_are_the_same_source(tmp_path: Path) -> None:
    files: Files = {f"{name}.jpg": image(number) for number, name in enumerate("cab")}
    files |= {f"{name}.txt": name for name in "bac"}
    first = scan_own(own(write(tmp_path / "1", files)))
    second = scan_own(own(write(tmp_path / "2" / "deep", dict(reversed(files.items())))))
    assert first.ref == second.ref and [unit.id for unit in first.units] == [unit.id for unit in second.units]
    (tmp_path / "2/deep/a.txt").write_text("z")
    assert scan_own(own(tmp_path / "2/deep")).ref != first.ref


def test_a_change_since_planning_is_noticed(tmp_path: Path) -> None:
    config = own(write(tmp_path, {"a.jpg": image(1), "a.txt": "a"}))
    scan = scan_own(config)
    (tmp_path / "a.txt").write_text("b")
    with pytest.raises(AltDiffusionError, match=r"a\.txt: changed since planning"):
        list(reader_of("folder", config)(scan.units[0]))
    os.remove(tmp_path / "a.txt")
    with pytest.raises(AltDiffusionError, match=r"a\.txt: cannot be read \(No such file"):
        list(reader_of("folder", config)(scan.units[0]))


def test_links_out_of_the_source_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(image(1))
    folder = write(tmp_path / "own", {"a.jpg": image(1), "sub/b.jpg": image(2), "sub/b.txt": "b", "c.jpg": image(3)})
    (folder / "a.txt").symlink_to("/etc/hostname")
    (folder / "d.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "loop").symlink_to(folder)
    (folder / "c.txt").symlink_to(folder / "sub/b.txt")
    (folder / "gone.jpg").symlink_to(folder / "nothing")
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    assert texts(samples(own(folder))[1]) == {
        "a.jpg": "unsafe_path", "c.jpg": ["b"], "d.jpg": "unsafe_path", "sub/b.jpg": ["b"],
    }  # fmt: skip
    assert (list_source(str(folder)).linked_folders, list_source(str(folder)).broken_links) == (1, 2)
    assert "symbolic links that lead to nothing: 2" in scan_own(own(folder)).notes


def test_text_in_tables_that_is_not_utf8_is_never_changed(tmp_path: Path) -> None:
    text = unchecked([b"gut", b"b\xffse"])
    images = pa.array([image(1), image(2)])
    pq.write_table(pa.table({"jpg": images, "caption": text, "other": text}), tmp_path / "a.parquet")
    _, found = samples(own(tmp_path))
    assert texts(found) == {"a.parquet/0": ["gut"], "a.parquet/1": "caption_bytes"}
    assert found[1].refused is not None and "column caption is not UTF-8 text" in found[1].refused.detail
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), text)
    pq.write_table(pa.table({"jpg": images, "captions": lists}), tmp_path / "a.parquet")
    assert texts(samples(own(tmp_path))[1]) == {"a.parquet/0": ["gut"], "a.parquet/1": "caption_bytes"}
    folder = write(tmp_path / "own", {"a.jpg": image(1), "b.jpg": image(2)})
    pq.write_table(pa.table({"file_name": ["a.jpg", "b.jpg"], "text": text}), folder / "metadata.parquet")
    with pytest.raises(AltDiffusionError, match="row 2: column text is not UTF-8 text"):
        scan_own(own(folder))


def test_offsets_of_an_arrow_file_that_lead_elsewhere_are_refused() -> None:
    """Arrow does not check them, and the process ends where they are followed."""
    check_bounds(
        pa.record_batch({"text": unchecked([b"gut", b"b\xffse"]), "image": [{"bytes": b"x", "path": "a"}, None]})
    )
    offsets, data = pa.py_buffer(np.array([0, 1 << 30, 1, 2], np.int32)), pa.py_buffer(b"ab")
    for dtype in (pa.string(), pa.binary()):
        text = pa.Array.from_buffers(dtype, 3, [None, offsets, data])
        fields = pa.struct({"bytes": dtype})
        for column in (text, pa.Array.from_buffers(fields, 3, [None], children=[text])):
            with pytest.raises(pa.ArrowInvalid, match="offset"):
                check_bounds(pa.RecordBatch.from_arrays([column], ["image"]))


def test_names_that_are_not_utf8_are_taken(tmp_path: Path) -> None:
    folder = write(tmp_path / "own", {os.fsdecode(b"\xff.jpg"): image(1), os.fsdecode(b"\xff.txt"): "a"})
    assert texts(samples(own(folder))[1]) == {"%FF.jpg": ["a"]}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in sorted(os.listdir(folder)):
            tar.add(folder / name, arcname=name)
    assert texts(samples(own(tmp_path / "a.tar"))[1]) == {"a.tar/%FF": ["a"]}


def test_a_column_that_is_nowhere_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [image(1)], "caption": ["x"], "lng": ["uk"]}), tmp_path / "a.parquet")
    with pytest.raises(
        AltDiffusionError, match=r"(?s)no column 'lang' for the language; it has caption, jpg, lng.*did you mean lng"
    ):
        scan_own(own(tmp_path, language_column="lang"))
    with pytest.raises(AltDiffusionError, match="no column of captions"):
        scan_own(own(tmp_path, captions=("title",)))
    with pytest.raises(AltDiffusionError, match="no column 'uid' to keep; it has caption, jpg, lng"):
        scan_own(own(tmp_path, keep=("LNG", "uid")))
    with pytest.raises(AltDiffusionError, match="is an empty address"):
        scan_own(OwnConfig(uri=""))
    assert texts(samples(own(tmp_path, language_column="LNG"))[1]) == {"a.parquet/0": [("x", "uk")]}
    folder = write(
        tmp_path / "folder", {"a.jpg": image(1), "a.txt": "a", "b.jpg": image(2), "b.json": '{"text": "b", "l": "uk"}'}
    )
    with pytest.raises(AltDiffusionError, match="no column 'language' for the language; it has l, text"):
        scan_own(own(folder, language_column="language"))
    assert texts(samples(own(folder, language_column="l"))[1])["b.jpg"] == [("b", "uk")]
    metadata = write(tmp_path / "rows", {"a.jpg": image(1), "metadata.csv": "file_name,title\na.jpg,x\n"})
    with pytest.raises(AltDiffusionError, match="no column of captions"):
        scan_own(own(metadata))
    with tarfile.open(tmp_path / "folder.tar", "w") as tar:
        tar.add(folder, arcname="")
    with pytest.raises(AltDiffusionError, match="no column 'lang' for the language; it has l, text"):
        scan_own(own(tmp_path / "folder.tar", language_column="lang"))
    with pytest.raises(AltDiffusionError, match="no column 'uid' to keep; it has l, text"):
        scan_own(own(tmp_path / "folder.tar", keep=("uid",)))
    assert scan_own(own(tmp_path / "folder.tar", language_column="l", keep=("L",))).layout == "webdataset"


ROWS = [
    {"file_name": "1.jpg", "text": "один", "language": "uk", "uid": 7},
    {"file_name": "./sub/2.jpg", "text": "два", "language": "uk"},
    {"file_name": "1.jpg", "text": "one more", "language": "en"},
    {"file_name": "gone.jpg", "text": "x"},
    {"file_name": "../out.jpg", "text": "x"},
    {"file_name": "/etc/x.jpg", "text": "x"},
]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_metadata_files(kind: str, tmp_path: Path) -> None:
    write(tmp_path, {"1.jpg": image(1), "sub/2.jpg": image(2), "3.jpg": image(3), "1.txt": "not this one"})
    path = tmp_path / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8-sig")
    elif kind == "csv":
        lines = [",".join(str(row.get(name, "")) for name in ("file_name", "text", "language", "uid")) for row in ROWS]
        path.write_bytes("\r\n".join(["file_name,text,language,uid", *lines]).encode())
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    _, found = samples(own(tmp_path))
    assert texts(found) == {
        "../out.jpg": "unsafe_path", "/etc/x.jpg": "unsafe_path", "1.jpg": [("один", "uk"), ("one more", "en")],
        "3.jpg": "no_caption", "gone.jpg": "no_image", "sub/2.jpg": [("два", "uk")],
    }  # fmt: skip
    assert str(found[2].fields["uid"]) == "7"


def test_metadata_in_a_subfolder_and_columns_per_language(tmp_path: Path) -> None:
    row = '{"file_name": "1.jpg", "TEXT_uk": "кіт", "text_hi": ["बिल्ली"], "caption": ["cat", "a cat"]}'
    write(tmp_path, {"sub/1.jpg": image(1), "sub/metadata.jsonl": row})
    assert texts(samples(own(tmp_path))[1]) == {"sub/1.jpg": ["cat", "a cat", ("बिल्ली", "hi"), ("кіт", "uk")]}


@pytest.mark.parametrize(
    ("name", "body", "why"),
    [
        ("metadata.jsonl", "{", r"metadata\.jsonl, line 1: is not JSON"),
        ("metadata.jsonl", '{"text": "a"}', "row 1 has no column file_name; it has text"),
        ("metadata.csv", "file_name,text\n1.jpg,a,b\n", "line 2 has more cells than the header"),
        ("metadata.parquet", "PAR1", "cannot be read"),
    ],
)
def test_wrong_metadata(name: str, body: str, why: str, tmp_path: Path) -> None:
    write(tmp_path, {"1.jpg": image(1), name: body})
    with pytest.raises(AltDiffusionError, match=why):
        scan_own(own(tmp_path))


def tar(files: dict[str, bytes | str], links: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, body in files.items():
            data = body.encode() if isinstance(body, str) else body
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return out.getvalue()


MEMBERS: dict[str, bytes | str] = {
    "./000.jpg": image(1), "./000.txt": "eins", "./000.json": '{"url": "http://a/0", "status": "success", "key": "0"}',
    "001.PNG": image(2), "001.json": '{"caption": "zwei", "language": "de"}', "001.cls": "3",
    "002.left.jpg": image(3), "002.right.jpg": image(4), "002.right.txt": "rechts", "002.txt": "beide",
    "003.txt": "no image", "004.jpg": image(5), "../005.jpg": image(6), "../005.txt": "x", "/006.jpg": image(6),
    "d/007.jpg": image(7), "d/007.txt": "sieben",
}  # fmt: skip
EXPECTED = {
    "000": ["eins"], "001": [("zwei", "de")], "002.left.jpg": ["beide"], "002.right.jpg": ["rechts"],
    "003": "no_image", "004": "no_caption", "../005": "unsafe_path", "006": "unsafe_path", "d/007": ["sieben"],
    "008": "unsafe_path",
}  # fmt: skip


@pytest.mark.parametrize("name", ["0.tar", "0.tar.gz", "0.tgz", "0.tar.zst"])
def test_tar_files(name: str, tmp_path: Path) -> None:
    data = tar(MEMBERS, {"008.jpg": "/etc/passwd"})
    packed = pa.compress(data, "zstd", asbytes=True) if "zst" in name else gzip.compress(data) if "gz" in name else data
    (tmp_path / name).write_bytes(packed)
    scan, found = samples(own(tmp_path))
    assert scan.layout == "webdataset"
    assert texts(found) == {f"{name}/{key}": value for key, value in EXPECTED.items()}
    assert found[0].fields["url"] == "http://a/0"
    (tmp_path / name).write_bytes(packed[: len(packed) // 2])
    with pytest.raises(AltDiffusionError, match=r"is damaged or ends early|cannot be read"):
        samples(own(tmp_path))


def test_rows_that_img2dataset_could_not_download_are_counted(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(tar({"000000000.jpg": image(1), "000000000.txt": "a"}))
    table = pa.table(
        {"key": ["000000000", "000000001"], "url": ["http://a", "http://b"], "caption": ["a", "b"],
         "status": ["success", "failed_to_download"], "error_message": [None, "HTTP Error 404"]}
    )  # fmt: skip
    pq.write_table(table, tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    _, found = samples(own(tmp_path))
    assert [(one.name, one.refused and one.refused.detail) for one in found] == [
        ("00000.tar/000000000", None), ("000000001", "failed_to_download: HTTP Error 404"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream.arrow"])
def test_tables_of_images(kind: str, tmp_path: Path) -> None:
    rows = [{"image": {"bytes": image(n), "path": f"{n}.jpg"}, "text": f"t{n}", "uid": n} for n in range(7)]
    rows[3]["image"] = {"bytes": None, "path": "3.jpg"}
    rows[4]["text"] = None  # type: ignore[assignment]
    table = pa.Table.from_pylist(rows)
    path = tmp_path / f"0.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=3)
    else:
        opened = pa.ipc.new_stream if kind.startswith("stream") else pa.ipc.new_file
        with opened(path, table.schema) as sink:
            sink.write_table(table, max_chunksize=3)
    scan, found = samples(own(tmp_path, rows_per_unit=2))
    assert scan.layout == "table" and len(scan.units) == 4
    assert list(texts(found).values()) == [["t0"], ["t1"], ["t2"], "no_image", "no_caption", ["t5"], ["t6"]]
    assert [one.fields["uid"] for one in found] == list(range(7)) and found[6].body == image(6)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "source .*: holds no file that can be read"),
        ({"links.csv": "url,caption\n"}, r"holds 1 files of \.csv, but no image\. .*imported as links"),
        ({"a.jpg": "x", "0.tar": "x"}, "holds image files and tar files.*set layout"),
        ({"0.parquet": "PAR1"}, "is not a readable Parquet or Arrow file"),
    ],
)
def test_sources_that_are_refused(files: Files, why: str, tmp_path: Path) -> None:
    with pytest.raises(AltDiffusionError, match=why):
        scan_own(own(write(tmp_path, files)))


def test_other_sources_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AltDiffusionError, match="is not there"):
        scan_own(own(tmp_path / "nowhere"))
    pq.write_table(pa.table({"url": ["http://a"], "caption": ["a"]}), tmp_path / "0.parquet")
    with pytest.raises(AltDiffusionError, match=r"holds no images; it has url \(string\)"):
        scan_own(own(tmp_path))
    for uri in ("hf://datasets/a/b", "hf://datasets/a/b@main", "hf://a/b"):
        with pytest.raises(AltDiffusionError, match=r"write hf://datasets/a/b@<commit> with the 40 hex digits"):
            scan_own(OwnConfig(uri=uri))


@pytest.mark.parametrize(
    ("code", "meant"), [("uk-UA", "uk"), ("ua", "uk"), ("Ukrainian", "uk"), ("hin", "hi"), ("zh_CN", "zh")]
)
def test_unknown_languages_suggest_a_code(code: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"language: is not an accepted language; did you mean {meant}?"):
        OwnConfig(uri="x", language=code)
