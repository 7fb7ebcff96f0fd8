"""What a lake's files state is input: no forged name reads, writes or deletes anything outside, and nothing crashes."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from altdiffusion import cli
from altdiffusion.curation.report.chain import read_chain
from altdiffusion.diffusion.autoencoder import noted
from altdiffusion.errors import AltDiffusionError
from altdiffusion.lineage.job_folder import metrics_path, same_run
from altdiffusion.lineage.job_run import JobRun
from altdiffusion.lineage.kept import Kept
from altdiffusion.lineage.mlflow_view import RunView
from altdiffusion.lineage.starts import Start
from altdiffusion.lineage.tracking import default_uri
from altdiffusion.refs import Ref
from altdiffusion.storage import evaluations, files
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.documents import read_document
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.storage.seals import seal
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.faults import failures, goodput
from altdiffusion.training.order.language_rows import language_rows
from tests.lineage_lake import SmallLake

CANARY = "a-canary-that-no-output-may-show"
WAYS_OUT = ["../../../../victim/marker", "../victim", "..", "/victim/marker", "a/../../b", "marker\0.parquet", "./x"]
NASTY: list[Any] = [
    *WAYS_OUT, "", "x" * 5000, "é" * 100, None, True, -1, 2**70, 10**400, -(10**400), 1e308, [], {}, [None], ["../x"],
    {"../x": 1}, {"a": {"b": []}}, [[[]]], "dataset:../../victim@" + "0" * 64, "model:a/../../b@" + "0" * 64,
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a lake and, next to it, files of another owner."""
    root = tmp_path_factory.mktemp("forged")
    small = SmallLake(root / "lake")
    evaluations.write(small.uri, "night", {"states": [{"state": "a"}]}, {"a": "0" * 64})
    files.write_atomic(files.join(small.uri, "models", "base", "lineage.json"), b'{"parents": []}')
    dataset = small.lake.dataset("links")
    record = UnitRecord(unit_id="u0", index=0, input_digest="0" * 64, rows_in=3, shards=small.links.shards)
    dataset.ledger(small.links.manifest.fingerprint).record(record)
    failures.record(small.uri, "quality", attempt="1", rank=0, step=3, error=AltDiffusionError("a", "b", "c"))
    goodput.Journal(small.uri, "quality", step=0, world=1, so_far_s=1.0).note(3, stall_s=0.5)
    language_rows(small.latents)
    files.write_atomic(files.join(small.uri, "autoencoders", f"{'0' * 64}.json"), b'{"encoder": "a"}')
    victim = root / "victim"
    (victim / ".ssh").mkdir(parents=True)
    (victim / ".ssh" / "id_key").write_text(CANARY)
    for name in ("marker", "marker.parquet", "marker.json", "marker.png"):
        (victim / name).write_text(CANARY)
    return root


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths to every value of a document, the whole document included."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, list):
        for place in range(len(value)):
            yield from leaves(value[place], (*path, place))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return the document with another value at a path."""
    if not path:
        return new
    value = copy.deepcopy(value)
    inner = value
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = new
    return value


def forge(lake: Path, file: Path, value: Any) -> None:
    """Write a document as an attacker who can write to the lake would: with every checksum right."""
    if file.name == "manifest.json":
        data = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        digest = files.sha256_hex(data)
        target = file.parent.parent / digest
        shutil.move(file.parent, target)
        (target / "manifest.json").write_bytes(data)
        (file.parents[2] / "head.json").write_text(json.dumps({"digest": digest}))
        return
    if isinstance(value, dict) and file.name == "COMPLETE.json":
        value = seal({key: item for key, item in value.items() if key not in ("digest", "checksum")})
    if isinstance(value, dict) and "ledger" in file.parts and "sha256" in value:
        value = {key: item for key, item in value.items() if key != "sha256"}
        value["sha256"] = files.sha256_hex(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
    file.write_text(json.dumps(value))


COMMANDS = (
    ["dataset", "list"], ["dataset", "show", "links"], ["dataset", "show", "generations", "--json"],
    ["dataset", "verify", "links"], ["dataset", "verify", "generations", "--forget"],
    ["dataset", "verify", "links", "--forget"], ["dataset", "verify", "latents", "--forget"],
    ["lineage", "up", "generations"], ["lineage", "down", "links"], ["lineage", "up", "quality", "--json"],
    ["dataset", "verify", "--takedowns"], ["gc", "--older-than", "0s"],
)  # fmt: skip


def run_everything(lake: Path) -> None:
    """Run what reads a lake. A damaged one is refused with one message; nothing raises anything else."""
    for command in COMMANDS:
        assert cli.main([*command, "--lake", str(lake)]) in (0, 1, 2, 3)
    for run in ("alignment", "quality"):
        for read in (checkpoints.latest_verified, failures.read, goodput.read):
            try:
                read(str(lake), run)
            except AltDiffusionError:
                continue
    try:
        for step in read_chain(Lake(str(lake)), Lake(str(lake)).version("images")).steps:
            print(step.name)
        language_rows(Lake(str(lake)).version("latents"))
        list(evaluations.of_model(str(lake), "0" * 64))
        for digest in Lake(str(lake)).dataset("generations").digests():
            cli.main(["dataset", "erase", f"generations@{digest}", "--lake", str(lake)])
    except AltDiffusionError:
        pass


DOCUMENTS = st.integers(0, 10_000)


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(which=DOCUMENTS, where=DOCUMENTS, nasty=st.sampled_from(NASTY))
def test_no_document_of_a_lake_reaches_outside(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, capsys: Any, which: int, where: int, nasty: Any
) -> None:
    root = tmp_path_factory.mktemp("try")
    try:
        shutil.copytree(whole, root, dirs_exist_ok=True)
        lake = root / "lake"
        documents = sorted(lake.rglob("*.json"))
        file = documents[which % len(documents)]
        value = json.loads(file.read_text())
        paths = list(leaves(value))
        forge(lake, file, replaced(value, paths[where % len(paths)], nasty))
        before = tree(root / "victim")
        run_everything(lake)
        assert tree(root / "victim") == before
        out = capsys.readouterr()
        assert CANARY not in out.out + out.err and "Traceback" not in out.err
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("name", [*WAYS_OUT, "", "A" * 64, "0" * 63])
def test_a_table_of_shards_that_names_other_files_deletes_nothing(
    whole: Path, tmp_path: Path, capsys: Any, name: str
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    lake, before = tmp_path / "lake", tree(tmp_path / "victim")
    head = json.loads((lake / "datasets/links/head.json").read_text())["digest"]
    folder = lake / "datasets/links/versions" / head
    rows = pq.read_table(folder / "shards.parquet")
    table = rows.set_column(1, rows.schema.field("sha256"), pa.array([name] * rows.num_rows))
    pq.write_table(table, folder / "shards.parquet")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards_table_sha256"] = files.sha256_hex((folder / "shards.parquet").read_bytes())
    forge(lake, folder / "manifest.json", manifest)
    assert cli.main(["dataset", "verify", "links", "--forget", "--lake", str(lake)]) == 1
    assert "is not a SHA-256 in hex" in capsys.readouterr().err
    assert tree(tmp_path / "victim") == before


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("url", pa.array([1, 2, 3])),
        ("sample_id", pa.array(["a", "b", "c"])),
        ("language", None),
        ("caption", pa.array([[1]] * 3)),
    ],
)
def test_a_shard_of_other_columns_or_types_is_damage(
    whole: Path, tmp_path: Path, capsys: Any, column: str, values: pa.Array | None
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    lake, folder = tmp_path / "lake", tmp_path / "lake/datasets/links"
    version = Lake(str(lake)).version("links")
    table = version.read()
    place = table.schema.get_field_index(column)
    table = table.remove_column(place) if values is None else table.set_column(place, column, values)
    pq.write_table(table, folder / "forged")
    data = (folder / "forged").read_bytes()
    sha256 = files.sha256_hex(data)
    (folder / "shards" / f"{sha256}.parquet").write_bytes(data)
    path = folder / "versions" / version.ref.digest
    rows = pq.read_table(path / "shards.parquet").to_pylist()
    forged = [row | {"sha256": sha256, "bytes": len(data)} if row["role"] == "shard" else row for row in rows]
    schema = pq.read_schema(path / "shards.parquet")
    pq.write_table(pa.Table.from_pylist(forged, schema=schema), path / "shards.parquet")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["shards_table_sha256"] = files.sha256_hex((path / "shards.parquet").read_bytes())
    forge(lake, path / "manifest.json", manifest)
    (tmp_path / "list").write_text("url:http://pictures.example/en.png\n")
    assert cli.main(["dataset", "remove", "links", "--hashes", str(tmp_path / "list"), "--lake", str(lake)]) in (1, 2)
    printed = capsys.readouterr().err
    assert "is damaged" in printed or "No match" in printed, printed


@pytest.mark.parametrize("part", ["shards", "versions", "rejects", "."])
def test_a_linked_folder_of_a_dataset_is_refused(whole: Path, tmp_path: Path, capsys: Any, part: str) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    lake = tmp_path / "lake"
    place = (lake / "datasets/links" / part).resolve()
    shutil.move(place, tmp_path / "victim/moved")
    place.symlink_to(tmp_path / "victim/moved")
    before = tree(tmp_path / "victim")
    for command in (["verify", "links", "--forget"], ["show", "links"]):
        assert cli.main(["dataset", *command, "--lake", str(lake)]) == 2
        assert "symbolic link" in capsys.readouterr().err
    assert tree(tmp_path / "victim") == before


def test_the_lake_itself_may_be_a_link(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(whole / "lake")
    assert cli.main(["dataset", "verify", "links", "--lake", str(tmp_path / "link")]) == 0


def a_checkpoint(lake: Path, listing: dict[str, Any]) -> Path:
    """Write a checkpoint folder whose COMPLETE.json lists certain files, sealed."""
    folder = lake / "checkpoints/r/step-00000001"
    folder.mkdir(parents=True)
    head = {
        "format": checkpoints.FORMAT, "run": "r", "step": 1, "stage": "quality", "config_fingerprint": "0" * 64,
        "parents": [], "files": listing,
    }  # fmt: skip
    (folder / "COMPLETE.json").write_bytes(files.canonical_json(seal(head)))
    return folder


def entry(path: Path) -> dict[str, Any]:
    return {"sha256": files.sha256_hex(path.read_bytes()), "bytes": path.stat().st_size}


@pytest.mark.parametrize("name", ["../../../../outside.safetensors", "/outside.safetensors", "a/b", "..", ""])
def test_a_checkpoint_reads_its_own_files_only(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"weights of another owner")
    folder = a_checkpoint(tmp_path / "lake", {name: entry(outside)})
    assert "plain file names" in "; ".join(checkpoints.verify(str(folder)))
    with pytest.raises(AltDiffusionError, match="whole"):
        checkpoints.latest_verified(str(tmp_path / "lake"), "r")


def test_a_checkpoint_reads_no_file_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"weights of another owner")
    folder = a_checkpoint(tmp_path / "lake", {"unet.safetensors": entry(outside)})
    (folder / "unet.safetensors").symlink_to(outside)
    assert "symbolic link" in "; ".join(checkpoints.verify(str(folder)))


@pytest.mark.parametrize("run", ["../x", "a/b", "..", "", "/abs", ".hidden"])
def test_a_run_is_a_plain_name(tmp_path: Path, run: str) -> None:
    with pytest.raises(AltDiffusionError, match="not the name of a run"):
        checkpoints.run_folder(str(tmp_path), run)


@pytest.mark.parametrize("name", ["..", "a/../b", "../b", "a/..", ".", "a//b", "/a", "a/"])
def test_a_reference_holds_no_way_up(name: str) -> None:
    with pytest.raises(AltDiffusionError, match="kind:name@digest"):
        Ref.parse(f"model:{name}@{'0' * 64}")
    assert Ref.parse(f"model:a..b/.c@{'0' * 64}").name == "a..b/.c"


@pytest.mark.parametrize("far", [False, True])
def test_a_thing_that_was_made_from_itself_is_refused(tmp_path: Path, capsys: Any, far: bool) -> None:
    small = SmallLake(tmp_path / "lake")
    one, other = (f"model:{name}@{digit * 64}" for name, digit in (("a", "1"), ("b", "2")))
    for name, digit, parent in (("a", "1", other if far else one), ("b", "2", one)):
        document = {"digest": digit * 64, "parents": [parent, str(small.quality)]}
        files.write_atomic(files.join(small.uri, "models", name, "lineage.json"), json.dumps(document).encode())
    for command in (["up", one], ["page", "quality", "--out", str(tmp_path / "p.html")], ["rebuild"]):
        assert cli.main(["lineage", *command, "--lake", small.uri]) == 2
        assert "was made from itself" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1" * 5000, "[" * 100_000, "\xff", "{", "nul"])
def test_what_is_not_json_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(AltDiffusionError, match="is not JSON"):
        files.read_json(str(file))


def test_a_removed_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/file").write_text("kept")
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake/link").symlink_to(tmp_path / "victim")
    with pytest.raises(AltDiffusionError, match="symbolic link"):
        files.remove_tree(str(tmp_path / "lake/link/file"), below=str(tmp_path / "lake"))
    with pytest.raises(AltDiffusionError, match="is not below"):
        files.remove_tree(str(tmp_path / "victim/file"), below=str(tmp_path / "lake"))
    files.remove_tree(str(tmp_path / "lake/link"), below=str(tmp_path / "lake"))
    assert not (tmp_path / "lake/link").exists() and (tmp_path / "victim/file").read_text() == "kept"


def use_everything(lake: Path) -> None:
    """Read and write what jobs do, MLflow aside."""
    run_everything(lake)
    for use in (
        lambda: failures.record(str(lake), "quality", attempt="2", rank=0, step=4, error=ValueError("x")),
        lambda: goodput.Journal(str(lake), "quality", step=0, world=1, so_far_s=1.0).note(4, stall_s=0.5),
        lambda: evaluations.write(str(lake), "night", {"states": []}, {}),
        lambda: failures.clear(str(lake), "quality"),
        lambda: noted(str(lake), "0" * 64),
    ):
        with contextlib.suppress(AltDiffusionError):
            use()


def test_nothing_is_read_or_written_through_a_link(whole: Path, tmp_path: Path, capsys: Any) -> None:
    """Each folder is a link to its copy elsewhere; each document is a link to one of another owner."""
    for number, place in enumerate(sorted((whole / "lake").rglob("*"))):
        alike = place.parts[-2:-1] != ("datasets",) and {"images", "prompts", "generations"} & set(place.parts)
        if place.suffix == ".parquet" or alike:
            continue  # a shard's name is what it holds; one dataset is as good as another
        root = tmp_path / str(number)
        shutil.copytree(whole, root)
        linked = root / place.relative_to(whole)
        target = root / "victim/target"
        shutil.move(linked, target)
        linked.symlink_to(target)
        if place.suffix == ".json":
            forged = dict.fromkeys(json.loads(target.read_text()), CANARY)
            target.write_text(json.dumps(forged))
        before = tree(root / "victim")
        use_everything(root / "lake")
        assert tree(root / "victim") == before, place
        out = capsys.readouterr()
        assert CANARY not in out.out + out.err and "Traceback" not in out.err, place
        shutil.rmtree(root)


@pytest.mark.parametrize("name", ["journal.jsonl", "metrics.jsonl", "job.json", "files"])
def test_a_journal_is_written_in_the_lake_only(tmp_path: Path, name: str) -> None:
    folder, victim = tmp_path / "lake/tracking/train-r-0", tmp_path / "victim"
    folder.mkdir(parents=True)
    if name == "files":
        victim.mkdir()
    else:
        victim.write_text('{"run_id": "x"}')
    (folder / name).symlink_to(victim)
    start = Start(job="train", name="r", fingerprint="0" * 64, time_ms=0, facts={}, outputs=[])
    kept, tracking = Kept(str(folder)), cast(Any, SimpleNamespace(client=None))
    with pytest.raises(AltDiffusionError, match="symbolic link"):
        {
            "journal.jsonl": lambda: JobRun(tracking, "r", str(tmp_path / "lake"), str(folder), start),
            "metrics.jsonl": lambda: metrics_path(str(folder)),
            "job.json": lambda: same_run(str(folder), {"run_id": "y", "uri": "z"}),
            "files": lambda: kept.keep(b"a picture"),
        }[name]()
    assert not list(victim.iterdir()) if name == "files" else victim.read_text() == '{"run_id": "x"}'


@pytest.mark.parametrize("name", ["mlflow.db", "mlflow.db.lock", "mlartifacts"])
def test_a_database_elsewhere_is_named_not_linked(tmp_path: Path, name: str) -> None:
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / name).symlink_to(tmp_path / "victim")
    with pytest.raises(AltDiffusionError, match="symbolic link"):
        default_uri(str(tmp_path / "lake"))


@pytest.mark.parametrize("linked", ["lineage.html", "config.json", "images", ""])
def test_mlflow_follows_no_link_out_of_the_lake(tmp_path: Path, linked: str) -> None:
    lake, victim = tmp_path / "lake", tmp_path / "victim"
    place = lake / "mlartifacts/r/artifacts" / linked
    place.parent.mkdir(parents=True)
    place.symlink_to(victim)

    class Client:
        def get_run(self, run_id: str) -> Any:
            return SimpleNamespace(info=SimpleNamespace(artifact_uri=f"file://{lake}/mlartifacts/r/artifacts"))

    view = RunView(cast(Any, SimpleNamespace(client=Client())), "r", str(lake))
    with pytest.raises(AltDiffusionError, match="symbolic link"):
        view._store(*([linked] if linked else []), "a.png")


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", "1e999", '{"a": 1, "a": 2}', '"\\ud800"', '{"\\udc00": 1}'])
def test_a_document_holds_what_could_be_written_again(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(f'{{"value": {text}}}')
    with pytest.raises(AltDiffusionError, match="is not JSON"):
        read_document(str(file))
    file.write_text('{"value": "\\ud83d\\ude00 NaN", "number": -1e300}')
    assert read_document(str(file)).value == {"value": "😀 NaN", "number": -1e300}


def test_a_damaged_dataset_hides_no_other(whole: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    datasets = tmp_path / "lake/datasets"
    (datasets / "links/head.json").write_text("[]")
    next((datasets / "images/versions").iterdir()).joinpath("manifest.json").write_text("{}")
    (datasets / "prompts-2").symlink_to(tmp_path / "victim")
    assert cli.main(["dataset", "list", "--lake", str(tmp_path / "lake")]) == 2
    out = capsys.readouterr()
    assert [line.split()[0] for line in out.out.splitlines()] == ["generations", "latents", "links", "prompts"]
    assert out.err.count("error: ") == 3 and "head.json" in out.err and "symbolic link" in out.err


@pytest.mark.parametrize(
    "odd", [".DS_Store", "._a.json", "notes.txt", "Thumbs.db", "lost+found/", ".ipynb_checkpoints/"]
)
def test_what_is_not_part_of_a_lake_is_skipped(whole: Path, tmp_path: Path, capsys: Any, odd: str) -> None:
    """File managers, editors and file systems leave such things in every folder."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    lake = tmp_path / "lake"
    for folder in [lake, *(path for path in sorted(lake.rglob("*")) if path.is_dir())]:
        if odd.endswith("/"):
            (folder / odd).mkdir()
        else:
            (folder / odd).write_bytes(b"\x00of another program")
    for command in (["dataset", "list"], ["dataset", "verify", "links"], ["lineage", "up", "generations"]):
        assert cli.main([*command, "--lake", str(lake)]) == 0, capsys.readouterr().err
    assert checkpoints.run_names(str(lake)) == ["alignment", "quality"]
    assert len(failures.read(str(lake), "quality")) == 1
    assert list(evaluations.of_model(str(lake), "0" * 64))
    assert Lake(str(lake)).names() == ["generations", "images", "latents", "links", "prompts"]
