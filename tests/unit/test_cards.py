"""Cards of datasets and models: deterministic, and valid for the libraries that read them."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from altdiffusion.cli import main
from altdiffusion.documents.croissant import croissant
from altdiffusion.documents.dataset_card import dataset_card, size_category
from altdiffusion.documents.history import data_history
from altdiffusion.documents.statements import Statements
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from tests import report_lake
from tests.lineage_lake import SmallLake, publish

STATED = Statements(
    licence="CC-BY-4.0", url="https://data.example/images", creator="A lab", date="2026-01-02", contact="a@lab.example"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallLake:
    return SmallLake(tmp_path_factory.mktemp("lake"))


def loaded(folder: Path, version: Version, stated: Statements = STATED) -> Any:
    """Write a version's document next to a copy of its shards, and open it with mlcroissant."""
    import mlcroissant

    files.copy_tree(f"{version.folder_uri}/shards", str(folder / "shards"))
    document = croissant(version, data_history(Lake(version.lake_uri), version), stated)
    (folder / "croissant.json").write_text(json.dumps(document), encoding="utf-8")
    return mlcroissant.Dataset(str(folder / "croissant.json"))


def plain(value: Any) -> Any:
    """Return a value that mlcroissant read in the types of pyarrow's rows: its texts are bytes."""
    if isinstance(value, Image.Image):
        return value.tobytes()
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value.item() if hasattr(value, "item") else value


def ours(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


@pytest.mark.parametrize("name", ["links", "images", "latents", "prompts", "generations"])
def test_mlcroissant_reads_the_rows_of_a_version(small: SmallLake, tmp_path: Path, name: str) -> None:
    version: Version = getattr(small, name)
    dataset = loaded(tmp_path, version)
    assert not dataset.metadata.ctx.issues.errors and not dataset.metadata.ctx.issues.warnings
    read = list(dataset.records("rows"))
    rows = version.read().to_pylist()
    assert len(read) == len(rows) == version.rows
    for found, row in zip(read, rows, strict=True):
        assert [key.removeprefix("rows/") for key in found] == list(row)
        for column, value in row.items():
            if column == "image":
                value = Image.open(io.BytesIO(value)).tobytes()
            assert plain(found[f"rows/{column}"]) == ours(value), column


def test_croissant_describes_only_the_shards_of_its_version(tmp_path: Path) -> None:
    """A second version in the same folder adds shards there, which the first one's document does not read."""
    small = SmallLake(tmp_path / "lake")
    rows = [{"sample_id": 7, "url": "http://b.example/1.png", "caption": "b", "language": "en", "source": "crawl"}]
    publish(small.lake, "links", "links", rows, small.links.manifest.parent_refs)
    dataset = loaded(tmp_path, small.links)
    assert len(os.listdir(tmp_path / "shards")) == 2
    assert len(list(dataset.records("rows"))) == small.links.rows == 3


def test_croissant_states_digests_provenance_and_rejects_and_no_place_or_time(small: SmallLake) -> None:
    version = small.images
    document = croissant(version, data_history(small.lake, version), Statements())
    shard = version.shards[0]
    assert document["distribution"][0]["sha256"] == shard.sha256
    assert document["distribution"][0]["contentSize"] == f"{shard.bytes} B"
    assert document["prov:wasDerivedFrom"][0]["prov:label"] == str(small.links.ref)
    assert "too_small: 2 rows" in document["rai:dataCollectionMissingData"]
    assert "de 1" in document["rai:dataBiases"][0]
    assert document["rai:dataCollectionType"] == ["Web Scraping", "Secondary Data Analysis"]
    assert not {"license", "url", "creator", "datePublished"} & set(document), "nobody stated these"
    assert small.uri not in json.dumps(document)
    assert document == croissant(version, data_history(Lake(small.uri), version), Statements())


def test_generated_images_are_not_described_as_what_their_model_was_trained_on(small: SmallLake) -> None:
    version = small.generations
    document = croissant(version, data_history(small.lake, version), Statements())
    assert "rai:dataCollectionType" not in document and "links" not in document["rai:dataCollection"]
    assert "trainedAlgorithmicMedia" in document["rai:dataLimitations"][0]
    card = dataset_card(version, data_history(small.lake, version), Statements())
    assert f"- checkpoint `{small.quality}`" in card and "dataset:images@" not in card


def front(card: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", card, flags=re.S)
    assert match is not None
    found: dict[str, Any] = yaml.safe_load(match[1])
    return found


def test_the_hub_reads_the_dataset_card_and_its_files_are_the_version(small: SmallLake) -> None:
    from huggingface_hub import DatasetCard

    for version in (small.links, small.images, small.latents, small.prompts, small.generations):
        card = dataset_card(version, data_history(small.lake, version), STATED)
        data = DatasetCard(card).data
        assert data.to_dict() == front(card)
        assert data.language == ["en", "ja", "de"] and data.size_categories == ["n<1K"] and data.license == "cc-by-4.0"
        paths = data.configs[0]["data_files"][0]["path"]
        rows = sum(pq.read_metadata(f"{version.folder_uri}/{path}").num_rows for path in paths)
        assert rows == version.rows
        assert small.uri not in card and "a@lab.example" in card


def test_a_dataset_card_shows_the_whole_funnel_with_sentences(tmp_path: Path) -> None:
    made = report_lake.make(str(tmp_path))
    card = dataset_card(made.distinct, data_history(Lake(str(tmp_path)), made.distinct), Statements())
    assert front(card)["license"] == "unknown" and "licence of this dataset: not stated" in card
    assert f"| candidates | {made.candidates.ref.short} | 447 | 47 | 400 |" in card
    assert (
        card.index(made.candidates.ref.short) < card.index(made.links.ref.short) < card.index(made.distinct.ref.short)
    )
    assert "punsafe: 3 rows (the image is probably unsafe, or that was not scored)" in card
    assert report_lake.UNSAFE not in card and report_lake.SECRET not in card


@pytest.mark.parametrize(
    ("rows", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**9, "1B<n<10B"), (10**12, "n>1T")],
)
def test_size_categories_are_those_of_the_hub(rows: int, category: str) -> None:
    assert size_category(rows) == category


def test_the_command_names_what_nobody_stated(
    small: SmallLake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "croissant.json"
    command = ["dataset", "card", "images", "--format", "croissant", "--lake", small.uri, "--out", str(out)]
    assert main([*command, "--date", "2026-01-02"]) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["datePublished"] == "2026-01-02"
    assert capsys.readouterr().err.strip().endswith("give --licence, --url, --creator")
    assert main([*command, "--date", "2 January"]) == 2
    assert "write it as YYYY-MM-DD" in capsys.readouterr().err


def test_a_folder_to_publish_is_made_in_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With rows that lack values: mlcroissant reads null where the version has null."""
    import mlcroissant

    made = report_lake.make(str(tmp_path / "lake"))
    out = tmp_path / "public" / "croissant.json"
    command = ["dataset", "card", "links", "--lake", str(tmp_path / "lake"), "--out", str(out), "--with-shards"]
    assert main([*command, "--format", "croissant"]) == 0
    assert capsys.readouterr().out.startswith(f"{len(made.links.shards)} shards, ")
    names = sorted(path.stem for path in (out.parent / "shards").iterdir())
    assert names == sorted(shard.sha256 for shard in made.links.shards)
    rows = {row["sample_id"]: row for row in made.links.read().to_pylist()}
    read = list(mlcroissant.Dataset(str(out)).records("rows"))
    assert len(read) == len(rows)
    for found in read:
        row = rows[int(found["rows/sample_id"])]
        assert {f"rows/{name}": ours(value) for name, value in row.items()} == {k: plain(v) for k, v in found.items()}
    assert main([*command[:-3], "--with-shards", "--format", "huggingface"]) == 2
    assert "give --out FILE" in capsys.readouterr().err


def test_a_version_with_rows_that_were_taken_down_has_no_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = SmallLake(tmp_path / "lake")
    listed = tmp_path / "list"
    listed.write_text("url:http://pictures.example/de.png\n")
    assert main(["dataset", "remove", "links", "--hashes", str(listed), "--lake", small.uri]) == 0
    capsys.readouterr()
    command = ["--format", "huggingface", "--lake", small.uri]
    assert main(["dataset", "card", f"links@{small.links.ref.digest}", *command]) == 2
    assert "holds rows that were taken down" in capsys.readouterr().err
    assert main(["dataset", "card", "links", *command]) == 0
    assert "takedown: 1 row (the row was removed on request)" in capsys.readouterr().out


def test_a_version_without_rows_is_refused_by_name(small: SmallLake) -> None:
    empty = small.lake.dataset("empty").publish(kind="links", records=[], parents=[], config={}, fingerprint="0" * 64)
    with pytest.raises(AltDiffusionError, match="holds no rows"):
        croissant(empty, data_history(small.lake, empty), Statements())
