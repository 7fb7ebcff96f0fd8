"""Data sets of the hub as sources, through the library `datasets`, from a real server on loopback."""

from __future__ import annotations

import importlib.util
import json
import tarfile
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from altdiffusion import cli
from altdiffusion.curation.config import OwnConfig
from altdiffusion.curation.own import hub_sets
from altdiffusion.curation.own.sample import Sample
from altdiffusion.curation.own.scan import reader_of, scan_own
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Lake
from tests.download_lake import image
from tests.hub_server import Hub, serve

TEXTS = {"uk": "рудий кіт спить на старому дивані", "hi": "लाल साड़ी पहने एक महिला बाज़ार में"}
CARD = """---
dataset_info:
  features:
  - {name: image, dtype: image}
  - {name: text, dtype: string}
  - name: language
    dtype: {class_label: {names: {'0': uk, '1': hi}}}
configs:
- {config_name: default, data_files: [{split: train, path: data/train-*}, {split: test, path: data/test-*}]}
---
# Pets
"""


@pytest.fixture()
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Yield an empty data set; huggingface_hub and datasets ask its server."""
    (tmp_path / "repository/data").mkdir(parents=True)
    with serve(Hub(tmp_path / "repository", repo="someone/pets", kind="datasets")) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", served.url, raising=False)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", served.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        hub_sets._open.cache_clear()
        yield served


def tables(hub: Hub) -> None:
    """Fill the data set with three files of Parquet, of two splits, whose language is a class."""
    for number, name in enumerate(("train-0", "train-1", "test-0")):
        rows = [{"bytes": image(number * 3 + place), "path": f"{place}.png"} for place in range(3)]
        texts = [f"{TEXTS['uk']} {number}", f"{TEXTS['hi']} {number}", f"{TEXTS['uk']} {number + 9}"]
        table = pa.table({"image": rows, "text": texts, "language": pa.array([0, 1, 0], pa.int64())})
        pq.write_table(table, hub.folder / f"data/{name}.parquet")
    (hub.folder / "README.md").write_text(CARD)


def commit(hub: Hub) -> str:
    """Return the address of what the folder holds now; a commit's files are listed once per process."""
    hub.revision = f"{int(hub.revision, 16) + 1:040x}"
    return f"hf://datasets/someone/pets@{hub.revision}"


def samples(config: OwnConfig) -> list[Sample]:
    scan = scan_own(config)
    assert scan.layout == "dataset"
    read = reader_of("dataset", config)
    return [sample for unit in scan.units for sample in read(unit)]


def texts(found: list[Sample]) -> list[Any]:
    return [
        [(one.text, one.label) for one in sample.captions] if sample.refused is None else str(sample.refused.reason)
        for sample in found
    ]


def test_an_import_that_stopped_goes_on_where_it_was(hub: Hub, tmp_path: Path, capsys: Any) -> None:
    tables(hub)
    line = ["import", commit(hub), "--dataset", "pets", "--keep", "split"]
    assert cli.main([*line, "--lake", str(tmp_path / "undisturbed")]) == 0
    first = len(hub.requests)
    hub_sets._open.cache_clear()
    hub.gone.add("data/test-0.parquet")
    assert cli.main([*line, "--lake", str(tmp_path / "stopped")]) == 2
    assert "shard 0 of test: cannot be read" in capsys.readouterr().err
    hub.gone.clear()
    second = len(hub.requests)
    hub_sets._open.cache_clear()
    assert cli.main([*line, "--lake", str(tmp_path / "stopped")]) == 0
    fetched = [name for name in hub.requests[second:] if name.endswith("train-1.parquet") and name.startswith("GET")]
    assert fetched == [] and any(name.endswith("train-1.parquet") for name in hub.requests[first:second])
    made = [Lake(str(tmp_path / name)).version("pets") for name in ("undisturbed", "stopped")]
    assert made[0].ref == made[1].ref and made[0].manifest.rows_by_language == {"uk": 6, "hi": 3}
    splits = Lake(str(tmp_path / "stopped")).version("pets-kept").read(["kept"])["kept"].to_pylist()
    assert [json.loads(one)["split"] for one in splits] == ["train"] * 6 + ["test"] * 3


def test_splits_and_configurations(hub: Hub) -> None:
    tables(hub)
    uri = commit(hub)
    found = samples(OwnConfig(uri=uri, split="test"))
    assert texts(found)[1] == [(f"{TEXTS['hi']} 2", "hi")] and len(found) == 3
    assert [sample.name for sample in found] == [f"test/00000/{place}" for place in range(3)]
    with pytest.raises(AltDiffusionError, match=r"has no split 'valid'.*train, test"):
        scan_own(OwnConfig(uri=uri, split="valid"))
    with pytest.raises(AltDiffusionError, match=r"has no configuration 'big'.*default"):
        scan_own(OwnConfig(uri=uri, subset="big"))
    elsewhere = f"path: '{hub.url}/datasets/someone/pets/resolve/{hub.revision}/data/test-0.parquet'"
    (hub.folder / "README.md").write_text(CARD.replace("path: data/test-*", elsewhere))
    with pytest.raises(AltDiffusionError, match="not of this commit"):
        scan_own(OwnConfig(uri=commit(hub)))


def test_zip_files_folders_and_tar_files(hub: Hub) -> None:
    rows = "".join(json.dumps({"file_name": f"{n}.png", "text": f"кіт {n}", "lang": "uk"}) + "\n" for n in range(2))
    with zipfile.ZipFile(hub.folder / "data/train.zip", "w") as packed:
        for number in range(2):
            packed.writestr(f"a/{number}.png", image(number))
        packed.writestr("a/metadata.jsonl", rows)
    wanted = [[("кіт 0", "uk")], [("кіт 1", "uk")]]
    found = samples(OwnConfig(uri=commit(hub)))
    assert texts(found) == wanted and [sample.body for sample in found] == [image(0), image(1)]
    (hub.folder / "data/train.zip").unlink()
    for number in range(2):
        (hub.folder / f"data/{number}.png").write_bytes(image(number))
    (hub.folder / "data/metadata.jsonl").write_text(rows)
    found = samples(OwnConfig(uri=commit(hub)))
    assert texts(found) == wanted and [sample.body for sample in found] == [image(0), image(1)]
    by_file = OwnConfig(uri=commit(hub), layout="folder")
    assert scan_own(by_file).layout == "folder"
    for path in (hub.folder / "data").iterdir():
        path.unlink()
    with tarfile.open(hub.folder / "data/train-0.tar", "w") as tar:
        for number in range(2):
            parts = {"png": image(number), "txt": f"кіт {number}".encode(), "json": b'{"lang": "uk"}'}
            for kind, body in parts.items():
                info = tarfile.TarInfo(f"{number}.{kind}")
                info.size = len(body)
                tar.addfile(info, BytesIO(body))
    assert texts(samples(OwnConfig(uri=commit(hub)))) == wanted


def test_what_is_no_set_of_images(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (hub.folder / "data/a.jsonl").write_text('{"url": "http://a/1", "text": "x"}\n')
    with pytest.raises(AltDiffusionError, match="holds no images; it has url"):
        scan_own(OwnConfig(uri=commit(hub)))
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    outside = pa.table({"image": pa.array([{"bytes": None, "path": "/etc/hostname"}], cell), "text": ["x"]})
    pq.write_table(outside, hub.folder / "data/a.parquet")
    (hub.folder / "data/a.jsonl").unlink()
    assert texts(samples(OwnConfig(uri=commit(hub)))) == ["no_image"]
    for uri, problem in (
        ("hf://datasets/someone/pets", "at one commit"),
        ("hf://datasets/someone/pets@main", "at one commit"),
        (f"hf://datasets/pets@{hub.revision}", "owner"),
        (f"hf://datasets/nobody/nothing@{hub.revision}", "cannot be read"),
    ):
        with pytest.raises(AltDiffusionError, match=problem):
            scan_own(OwnConfig(uri=uri))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone/pets").mkdir(parents=True)
    with pytest.raises(AltDiffusionError, match="run the command in another folder"):
        scan_own(OwnConfig(uri=commit(hub)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AltDiffusionError, match=r"altdiffusion-platform\[datasets\]"):
        scan_own(OwnConfig(uri=commit(hub)))
    with pytest.raises(ValueError, match="whole data set"):
        OwnConfig(uri=str(tmp_path), split="train")
