"""The index of a lake: linear in its size, and never the truth."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.cli import main
from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage import graph as graphs
from altdiffusion.refs import Ref
from altdiffusion.storage import files, index
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.summaries import read_summaries
from benchmarks import lineage as bench
from benchmarks.storage_calls import counted
from tests.lineage_lake import SOURCE, SmallLake, publish


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep an index of the smallest lake."""
    monkeypatch.setattr(index, "KEEP_FROM", 1)


def make(folder: Path, count: int) -> str:
    """Return a lake of this many versions and checkpoints."""
    lake = Lake(str(folder))
    refs = bench.make_versions(lake, count)
    for number in range(count):
        bench.write_checkpoint(lake, f"run-{number // 5}", number + 1, [refs[number]])
    (folder / "list").write_text("url:http://pictures.example/7.png\n")
    (folder / "refs.json").write_text(json.dumps([str(ref) for ref in refs]))
    return lake.uri


def test_calls_grow_linearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def calls(count: int) -> dict[str, int]:
        uri = make(tmp_path / str(count), count)
        monkeypatch.setenv("BENCHMARK_REFS", f"{uri}/refs.json")
        numbers = {}
        for name, run in {
            "up": lambda: main(["lineage", "up", "run-0", "--lake", uri]),
            "down": lambda: main(["lineage", "down", str(bench.SOURCE), "--lake", uri]),
            "impact": lambda: main(["lineage", "impact", "--hashes", f"{uri}/list", "--lake", uri]),
            "list": lambda: main(["dataset", "list", "--lake", uri]),
            "published": lambda: bench.find_published(Lake(uri), 3),
        }.items():
            with counted(uri) as found:
                status = run()
            assert not status or (name, status) == ("impact", 3)  # these checkpoints state no order of rows
            numbers[name] = found.total()
        return numbers

    small, large = calls(10), calls(30)
    for name, per_thing in {"up": 5, "down": 3, "impact": 50, "list": 2, "published": 5}.items():
        assert large[name] - small[name] <= 20 * per_thing, (name, small, large)


def seen(uri: str) -> set[str]:
    return {ref for ref, node in graphs.scan(uri).nodes.items() if not node.missing}


@pytest.mark.parametrize("where", ["local", "memory"])
def test_what_other_processes_do_is_noticed(tmp_path: Path, where: str) -> None:
    uri = str(tmp_path / "lake") if where == "local" else "memory://lake-with-index"
    small = SmallLake(uri)
    before = seen(uri)
    assert files.exists(files.join(uri, "index", "datasets", "links.json"))
    added = publish(small.lake, "links", "links", [{"language": "en", "sample_id": 9}], [SOURCE])
    assert seen(uri) == {*before, str(added.ref)}
    files.remove_tree(files.join(added.uri, "manifest.json"))
    assert seen(uri) == before
    manifest = files.join(small.images.uri, "manifest.json")
    good = files.read_bytes(manifest)
    files.write_atomic(manifest, good.replace(b'"rows":3', b'"rows":4'))
    graph = graphs.scan(uri)
    assert [str(error) for error in graph.damaged if manifest in str(error)]
    assert graph.nodes[str(small.images.ref)].missing
    files.write_atomic(manifest, good)
    complete = files.join(uri, "checkpoints", small.quality.name, "COMPLETE.json")
    sealed = json.loads(files.read_bytes(complete))
    files.write_atomic(complete, files.canonical_json({**sealed, "parents": []}))
    assert graphs.scan(uri).damaged
    files.write_atomic(complete, files.canonical_json(sealed))
    assert seen(uri) == before


@pytest.mark.parametrize("damage", [b"", b"x", b"0" * 64 + b"\n{}", None, "forged"])
def test_a_damaged_index_is_as_good_as_none(tmp_path: Path, damage: Any) -> None:
    small = SmallLake(tmp_path / "lake")
    graph = graphs.scan(small.uri)
    place = tmp_path / "lake/index/checkpoints.json"
    whole = place.read_bytes()
    if damage == "forged":  # sealed again, with values of wrong types
        value = json.loads(whole.partition(b"\n")[2])
        for entry in value["entries"].values():
            entry[1] = {"digest": 5}
        body = files.canonical_json(value)
        damage = files.sha256_hex(body).encode() + b"\n" + body
    place.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert graphs.scan(small.uri).nodes == graph.nodes
    assert place.read_bytes() == whole


def test_the_index_spares_reading_and_is_not_needed_for_writing(tmp_path: Path) -> None:
    small = SmallLake(tmp_path / "lake")
    graphs.scan(small.uri)
    with counted(small.uri) as found:
        graphs.scan(small.uri)
    heads = len(small.lake.names())
    assert found["read"] <= heads + len(list((tmp_path / "lake/index").rglob("*.json")))
    (tmp_path / "lake/index").rename(tmp_path / "away")
    (tmp_path / "lake/index").write_text("a file in the place of the folder")
    assert not graphs.scan(small.uri).damaged


def test_writers_at_once_leave_a_whole_index(tmp_path: Path) -> None:
    small = SmallLake(tmp_path / "lake")
    errors: list[BaseException] = []

    def scan(number: int) -> None:
        try:
            for turn in range(4):
                row = {"language": "en", "sample_id": 100 * number + turn}
                publish(small.lake, "links", "links", [row], [Ref("source", f"s{number}-{turn}", "5" * 64)])
                read_summaries(small.lake.dataset("links"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=scan, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(read_summaries(small.lake.dataset("links")).by_digest) == 17
    body = (tmp_path / "lake/index/datasets/links.json").read_bytes()
    assert files.sha256_hex(body.partition(b"\n")[2]).encode() == body.partition(b"\n")[0]


def test_a_link_out_of_the_lake_is_still_refused(tmp_path: Path) -> None:
    small = SmallLake(tmp_path / "lake")
    graphs.scan(small.uri)
    run = tmp_path / "lake/checkpoints/quality"
    run.rename(tmp_path / "outside")
    run.symlink_to(tmp_path / "outside")
    graph = graphs.scan(small.uri)
    assert "symbolic link" in str(graph.damaged[0])
    assert graph.nodes.get(str(small.quality)) is None or graph.nodes[str(small.quality)].missing


def test_a_small_lake_has_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    small = SmallLake(tmp_path / "lake")
    graphs.scan(small.uri)
    assert not (tmp_path / "lake/index").exists()


def test_a_look_up_refuses_a_damaged_manifest_of_its_own_dataset(tmp_path: Path) -> None:
    small = SmallLake(tmp_path / "lake")
    Path(small.links.uri, "manifest.json").write_text("{}")
    with pytest.raises(AltDiffusionError, match="damaged"):
        read_summaries(small.lake.dataset("links")).whole()
