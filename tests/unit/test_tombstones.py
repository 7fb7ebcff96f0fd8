"""What was taken down never enters a shard of the lake again, whatever step, config or source would bring it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from altdiffusion.cli import main
from altdiffusion.curation.links.takedown import read_list, take_down
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.pipeline_step import run_pipeline_step
from altdiffusion.execution.range_work import finish_unit
from altdiffusion.execution.units import Unit
from altdiffusion.image_files.image_export import export_images
from altdiffusion.records import LINKS, REJECTS
from altdiffusion.storage import files, shards
from altdiffusion.storage.cleansing import cleansed
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.erasure import erase
from altdiffusion.storage.tombstones import FOLDER, TOMBSTONES, Tombstones, add_tombstones, read_tombstones
from altdiffusion.storage.verification import verify
from altdiffusion.urls import url_keys
from pipelines.common import Workers
from pipelines.generate import generation_pipeline_steps
from tests import generation_lake, toy_work
from tests.curation_lake import write_images
from tests.lineage_lake import publish
from tests.toy_work import NAME, Toy

NOTHING = np.zeros(0, np.int64)


def listed(path: Path, *lines: str) -> Any:
    path.write_text("".join(f"{line}\n" for line in lines))
    return read_list(str(path))


def images_held(lake: Lake) -> set[str]:
    """Return the images of all accepted rows on disk, whatever names the file."""
    found: set[str] = set()
    for path in Path(lake.uri).glob("datasets/*/shards/*.parquet"):
        found |= set(pq.read_table(path, columns=["image_sha256"])["image_sha256"].to_pylist())
    return found


def toys(lake: Lake, x: int) -> Version:
    return lake.dataset(NAME).open(toy_work.run(lake.uri, {"x": x}))


def test_an_erased_row_does_not_return_with_the_same_or_another_config(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    first, image = toys(lake, 1), toy_work.image(4, 2)
    assert image in images_held(lake)
    after = take_down(lake, first, listed(tmp_path / "list.txt", f"sha256:{image}"))[0].after
    assert after is not None
    erase(lake.dataset(NAME), first)
    for x in (1, 2):
        again = toys(lake, x)
        assert again.rows == first.rows - 1 and again.manifest.rejects_by_reason == {"bad": 6, "takedown": 1}
        assert image not in images_held(lake)
        gone = [row for table in again.iter_rejects() for row in table.to_pylist() if row["reason"] == "takedown"]
        assert [(row["sample_id"], row["detail"], row["url"]) for row in gone] == [(402, f"sha256:{image}", None)]
        assert verify(lake.dataset(NAME), again.ref.digest).damages == ()
    Toy.ran.clear()
    assert toys(lake, 2).ref == again.ref and Toy.ran == []


def test_units_recorded_before_a_takedown_do_not_bring_its_rows_back(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    first, image = toys(lake, 1), toy_work.image(4, 2)
    # The takedown is of another dataset: this one still holds the row, in its version and in its ledger.
    other = publish(lake, "images", "images", [{"sample_id": 9, "image_sha256": image, "language": "en"}], [])
    take_down(lake, other, listed(tmp_path / "list.txt", f"sha256:{image}"))
    Toy.ran.clear()
    head = toys(lake, 1)
    assert Toy.ran == [] and head.rows == first.rows - 1 and lake.version(NAME).ref == head.ref
    record = lake.dataset(NAME).ledger(first.manifest.fingerprint).get("u4")
    assert record is not None and record.rejects_by_reason == {"bad": 1, "takedown": 1}
    assert toys(lake, 1).ref == head.ref  # and that is what counts from now on
    # A unit that is made afresh leaves the same bytes as the record that was brought up to date.
    lake.dataset(NAME).ledger(first.manifest.fingerprint).forget("u4")
    files.remove_tree(head.uri)
    assert toys(lake, 1).ref == head.ref and Toy.ran == [4]


def test_tombstones_that_name_nothing_of_a_dataset_change_none_of_its_digests(tmp_path: Path) -> None:
    without, lake = Lake(str(tmp_path / "a")), Lake(str(tmp_path / "b"))
    add_tombstones(
        lake.uri, sample_ids=np.array([7]), of_images=NOTHING, of_final_urls=NOTHING, links=["a.example/1"],
        domains=["b.example"], images=["0" * 64],
    )  # fmt: skip
    assert toys(lake, 1).ref == toys(without, 1).ref
    assert not (tmp_path / "a" / FOLDER).exists() and len(read_tombstones(without.uri)) == 0


def rows_of(links: list[dict[str, Any]]) -> pa.Table:
    base = {"caption": "c", "language": "en", "language_score": 1.0, "source": "s"}
    return pa.Table.from_pylist([{**base, **row} for row in links], schema=LINKS)


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_named_by_id_link_domain_and_image(tmp_path: Path, seed: int) -> None:
    """Against one look at each row."""
    draw = random.Random(seed)
    hosts = ("a.example", "img.a.example", "xa.example", "b.example")
    urls = [f"http{draw.choice(['', 's'])}://{draw.choice(hosts)}/{draw.randrange(30)}.jpg" for _ in range(200)]
    finals = [draw.choice([None, f"http://{draw.choice(hosts)}/{draw.randrange(30)}"]) for _ in urls]
    ids = [draw.randrange(-300, 300) for _ in urls]
    images = [draw.choice([None, "", "no digest", files.sha256_hex(bytes([draw.randrange(90)]))]) for _ in urls]
    keys, final_keys = url_keys(pa.array(urls)).to_pylist(), url_keys(pa.array(finals, pa.string())).to_pylist()
    asked = {
        "sample_ids": np.array(draw.sample(range(-300, 300), 20)), "of_images": np.array([ids[0]]),
        "of_final_urls": np.array([ids[1]]), "links": draw.sample(keys, 5), "domains": draw.choice([[], ["a.example"]]),
        "images": [image for image in draw.sample(images, 30) if image and len(image) == 64],
    }  # fmt: skip
    add_tombstones(str(tmp_path), **asked)  # type: ignore[arg-type]
    tombstones = read_tombstones(str(tmp_path))

    def linked(key: str | None) -> bool:
        host = (key or "").partition("/")[0]
        return key in asked["links"] or any(host == d or host.endswith(f".{d}") for d in asked["domains"])

    whole = pa.table({"sample_id": ids, "url": urls, "final_url": finals, "image_sha256": images})
    meant = [
        n in asked["sample_ids"] or linked(key) or (final is not None and linked(final)) or image in asked["images"]
        for n, key, final, image in zip(ids, keys, final_keys, images, strict=True)
    ]
    assert tombstones.names(whole).tolist() == meant
    only_ids = tombstones.names(whole.select(["sample_id"])).tolist()
    assert only_ids == [n in {*asked["sample_ids"].tolist(), ids[0], ids[1]} for n in ids]
    assert tombstones.names(whole.slice(0, 0)).tolist() == []
    assert not Tombstones().names(whole).any()


def test_a_unit_writes_neither_the_row_nor_the_link_of_its_reject(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    dataset, unit = lake.dataset("links"), Unit(id="u0", index=0, payload={"input_digest": "0" * 64})
    table = rows_of([{"sample_id": n, "url": f"http://h.example/{n}"} for n in range(6)])
    reject = {"unit_id": "u0", "row": 7, "sample_id": 7, "url": "http://h.example/7", "reason": "size", "detail": "red"}
    rejects = pa.Table.from_pylist([reject, {**reject, "row": 8, "sample_id": 8, "url": "http://i.example/"}], REJECTS)
    before = finish_unit(dataset, unit, rows_in=8, accepted=[table.slice(0, 3), table.slice(3)], rejects=[rejects])
    add_tombstones(
        lake.uri, sample_ids=np.array([1]), of_images=NOTHING, of_final_urls=NOTHING,
        links=["h.example/7", *(f"h.example/{n}" for n in (3, 4, 5))],
    )  # fmt: skip
    record = finish_unit(dataset, unit, rows_in=8, accepted=[table.slice(0, 3), table.slice(3)], rejects=[rejects])
    assert [info.rows for info in record.shards] == [2, 0]  # an empty shard keeps its place
    assert record.rejects_by_reason == {"size": 2, "takedown": 4} and record.rows_by_language == {"en": 2}
    path = Path(dataset.folder_uri) / "rejects" / f"{record.rejects[0].sha256}.parquet"
    rows = pq.read_table(path).to_pylist()
    assert [(row["row"], row["url"], row["detail"]) for row in rows if row["reason"] == "size"] == [
        (7, None, None),
        (8, "http://i.example/", "red"),
    ]
    assert [row["row"] for row in rows if row["reason"] == "takedown"] == [1, 3, 4, 5]
    # The record of the unit that ran before the takedown becomes the same one.
    assert cleansed(dataset, "links", before, read_tombstones(lake.uri)) == record


def test_damaged_tombstones_stop_what_writes(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    name = add_tombstones(lake.uri, sample_ids=np.array([1]), of_images=NOTHING, of_final_urls=NOTHING)
    path = tmp_path / FOLDER / name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(AltDiffusionError, match=r"are damaged.*could come back"):
        toys(lake, 1)
    path.unlink()
    forged = pa.table([["image"], [None], [b"short"]], schema=TOMBSTONES)
    data = shards.encode(forged)
    (tmp_path / FOLDER / f"{files.sha256_hex(data)}.tombstones.parquet").write_bytes(data)
    with pytest.raises(AltDiffusionError, match="missing or cut"):
        toys(lake, 1)


def proof(lake: Lake, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    """Return the status and the whole output of `dataset verify --takedowns`."""
    status = main(["dataset", "verify", "--takedowns", "--lake", lake.uri, *more])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def test_the_proof_reads_every_file_whatever_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = Lake(str(tmp_path / "lake"))
    first, image = toys(lake, 1), toy_work.image(4, 2)
    assert proof(lake, capsys) == (
        0,
        f"{lake.uri}: 0 tombstones, 12 files with 36 rows read; none holds a row that was taken down\n",
    )
    take_down(lake, first, listed(tmp_path / "list.txt", f"sha256:{image}"))
    status, printed = proof(lake, capsys)
    assert status == 1 and f"{first.shard_uri(4)}: holds 1 row" in printed
    erase(lake.dataset(NAME), first)
    assert proof(lake, capsys)[0] == 0
    # A killed job's shard, which no manifest names, and a spill file.
    table = pa.table({"image_sha256": [image, "0" * 64], "sample_id": [1, 2]})
    for name in ("shards", "spill"):
        path = Path(lake.uri) / "datasets" / NAME / name / "u9,2,x.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)
        status, printed = proof(lake, capsys)
        assert status == 1 and f"{path}: holds 1 row" in printed and "altdiffusion gc" in printed
        path.write_bytes(b"PAR1")
        assert proof(lake, capsys)[0] == 1
        path.unlink()
    assert proof(lake, capsys)[0] == 0
    assert "leave the name out" in proof(lake, capsys, NAME)[1]
    assert main(["dataset", "verify", "--lake", lake.uri]) == 2 and "names no dataset" in capsys.readouterr().err


def test_an_export_of_an_older_version_leaves_such_rows_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = Lake(str(tmp_path / "lake"))
    version = write_images(lake.uri, range(5))
    take_down(lake, version, listed(tmp_path / "list.txt", "url:https://a/3"))
    out = tmp_path / "out"
    exported = export_images(version, str(out), "files")
    assert (exported.rows, exported.taken_down) == (4, 1)
    assert not any("http://a/3" in path.read_text() for path in out.rglob("*.json"))


def drawn(lake: Lake) -> Version:
    """Draw as the job does, with image files of their own."""
    config = generation_lake.config(lake.uri)
    for step in generation_pipeline_steps(lake.uri, "prompts", "drawn", config, Workers(max=1)):
        (version,) = run_pipeline_step(lake, step, backend="inline", progress=generation_lake.quiet(step.name))
    return version


def test_a_generated_image_that_was_taken_down_is_not_written_again(tmp_path: Path) -> None:
    lake = Lake(generation_lake.make_lake(tmp_path, prompts=3))
    first = drawn(lake)
    image = first.read(["image_sha256"])["image_sha256"][1].as_py()
    assert list(tmp_path.rglob(f"*{image}*"))
    take_down(lake, first, listed(tmp_path / "list.txt", f"sha256:{image}"))
    erase(lake.dataset("drawn"), first)
    again = drawn(lake)
    assert again.rows == first.rows - 1 and again.manifest.rejects_by_reason == {"takedown": 1}
    shards = list(Path(lake.uri).glob("datasets/drawn/shards/*.parquet"))
    assert shards and not any(image in pq.read_table(path)["image_sha256"].to_pylist() for path in shards)
    assert not list(tmp_path.rglob(f"*{image}*"))
