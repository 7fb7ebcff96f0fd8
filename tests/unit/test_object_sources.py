"""Sources that are not on this machine: an object store on loopback, memory, and stores whose package is missing."""

from __future__ import annotations

import gzip
import importlib.util
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import yaml

from altdiffusion import cli
from altdiffusion.curation.config import OwnConfig, SourceConfig
from altdiffusion.curation.links.sources import scan_source
from altdiffusion.curation.own.scan import reader_of, scan_own
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Lake
from benchmarks.s3_server import serving
from jobs.harness import main
from tests.download_lake import image
from tests.source_rows import read_all

TEXT = "рудий кіт спить на старому дивані"
LINKS = f"url,caption\nhttp://a/1.jpg,{TEXT}\nhttp://a/2.jpg,{TEXT} 2\n".encode()


def objects() -> dict[str, bytes]:
    """Return a folder of images, a tar file, a table and lists of links, by key."""
    found = {f"photos/{n}.jpg": image(n) for n in range(3)} | {
        f"photos/{n}.txt": f"{TEXT} {n}".encode() for n in range(3)
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in sorted(found):
            info = tarfile.TarInfo(name)
            info.size = len(found[name])
            tar.addfile(info, io.BytesIO(found[name]))
    table = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": [image(7)], "text": [TEXT]}), table)
    links = pa.BufferOutputStream()
    pq.write_table(pa.table({"URL": ["http://a/3.jpg"], "TEXT": [TEXT]}), links)
    return {
        **found, "tars/00000.tar": packed.getvalue(), "tables/a.parquet": table.getvalue().to_pybytes(),
        "links.csv.gz": gzip.compress(LINKS), "links.parquet": links.getvalue().to_pybytes(),
    }  # fmt: skip


@pytest.fixture(scope="module", params=["s3", "memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a store that holds `objects`."""
    root = tmp_path_factory.mktemp("store")
    uri = f"memory://{root.name}" if request.param == "memory" else f"file://{root}/bucket"
    for key, data in objects().items():
        with fsspec.open(f"{uri}/{key}", "wb", auto_mkdir=True) as file:
            file.write(data)
    if request.param != "s3":
        yield uri
        return
    with serving(root, delay_ms=0) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield "s3://bucket"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds `objects`."""
    root = tmp_path_factory.mktemp("local")
    for key, data in objects().items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(data)
    return root


@pytest.mark.parametrize("name", ["photos", "photos/*", "tars", "tables/*.parquet"])
def test_images_in_a_store_are_those_of_a_folder(store: str, local: Path, name: str) -> None:
    def read(uri: str) -> Any:
        config = OwnConfig(uri=uri)
        scan = scan_own(config)
        samples = [sample for unit in scan.units for sample in reader_of(scan.layout, config)(unit)]
        return scan.ref, [unit.id for unit in scan.units], [(one.name, one.body, one.captions) for one in samples]

    assert read(f"{store}/{name}") == read(str(local / name))
    with pytest.raises(AltDiffusionError, match="is not there"):
        scan_own(OwnConfig(uri=f"{store}/nothing"))


@pytest.mark.parametrize("name", ["links.csv.gz", "links.parquet"])
def test_links_in_a_store_are_those_of_a_folder(store: str, local: Path, name: str) -> None:
    away, here = (SourceConfig(name="s", preset="own", uri=f"{root}/{name}") for root in (store, str(local)))
    assert scan_source(away).ref == scan_source(here).ref and read_all(away).equals(read_all(here))
    with pytest.raises(AltDiffusionError, match="matches no file"):
        scan_source(SourceConfig(name="s", preset="own", uri=f"{store}/none-*.csv"))


def test_an_import_from_a_store(store: str, local: Path, tmp_path: Path, capsys: Any) -> None:
    made = []
    for uri in (f"{store}/photos", str(local / "photos")):
        lake = str(tmp_path / f"lake-{len(made)}")
        assert cli.main(["import", uri, "--dataset", "pets", "--lake", lake, "--language", "uk"]) == 0
        made.append(Lake(lake).version("pets").ref)
    assert made[0] == made[1]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("uri", "package", "extra"),
    [("gs://b/x", "gcsfs", "gcs"), ("az://b/x", "adlfs", "azure"), ("abfs://b/x", "adlfs", "azure")],
)
def test_a_missing_package_is_named_before_anything_is_read(
    uri: str, package: str, extra: str, tmp_path: Path, capsys: Any
) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    from jobs import curate

    job = importlib.import_module("jobs.import")
    remedy = f"pip install 'altdiffusion-platform[{extra}]'"
    lake = str(tmp_path / "lake")
    for kind in ("images", "links"):
        assert cli.main(["import", uri, "--dataset", "a", "--lake", lake, "--kind", kind]) == 2
        assert remedy in capsys.readouterr().err
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"lake": lake, "images": {"uri": uri}}))
    assert main(job.JOB, ["--config", str(path), "--dry-run"]) == 2
    assert remedy in capsys.readouterr().err
    path.write_text(yaml.safe_dump({"lake": lake, "sources": [{"source": {"name": "s", "preset": "own", "uri": uri}}]}))
    assert main(curate.JOB, ["--config", str(path), "--dry-run"]) == 2
    assert remedy in capsys.readouterr().err
    path.write_text(yaml.safe_dump({"lake": uri, "images": {"uri": str(tmp_path)}}))
    assert main(job.JOB, ["--config", str(path), "--dry-run"]) == 2
    assert remedy in capsys.readouterr().err
