"""After `--purge`, no file of a lake or of MLflow's artifacts holds the link, the caption or the image of a row."""

from __future__ import annotations

import base64
import html
import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

from altdiffusion.cli import main
from altdiffusion.curation.report.write_report import write_report
from altdiffusion.lineage.job_run import JobRun
from altdiffusion.lineage.rebuild import rebuild
from altdiffusion.records import IMAGES
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from tests.integration.test_mlflow import template
from tests.lineage_lake import SOURCE, publish
from tests.report_lake import images as report_rows

__all__ = ["template"]
URL = "http://taken.example/down?a=1&b=2"
CAPTION = 'the caption "of" a <row> that goes & is long'


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (48, 64), (seed, 9, 77)).save(out, "PNG")
    return out.getvalue()


def holding(root: Path) -> list[str]:
    """Return the files that hold the row, by brute force."""
    words = [URL, html.escape(URL), CAPTION, html.escape(CAPTION), html.escape(CAPTION).replace("&quot;", "&#34;")]
    needles = [word.encode() for word in words] + [png(1), base64.b64encode(png(1))]
    found = [path for path in root.rglob("*") if path.is_file()]
    return [str(path) for path in found if any(needle in path.read_bytes() for needle in needles)]


@pytest.fixture
def lake(tmp_path: Path, template: Path) -> Lake:
    """Return a lake of one dataset, whose report a job logged to MLflow with the image itself and a list of rows."""
    lake = Lake(str(tmp_path / "lake"))
    (tmp_path / "lake").mkdir()
    shutil.copy(template, tmp_path / "lake/mlflow.db")
    rows = report_rows(range(4)).select(IMAGES.names).to_pylist()
    for number, row in enumerate(rows):
        row |= {"image": png(number + 1), "image_sha256": files.sha256_hex(png(number + 1)), "punsafe": 0.0}
    rows[0] |= {"url": URL, "caption": CAPTION}
    images = publish(lake, "images", "images", rows, [SOURCE])
    page = write_report(lake, images, files.join(images.uri, "report.html"))
    listing = tmp_path / "rows.txt"
    listing.write_text(f"{URL}\n{CAPTION}\n")
    with JobRun.open(job="curate", name="images", fingerprint="c" * 64, config={}, lake=lake) as run:
        run.output(images)
        run.artifact(page)
        run.artifact(str(listing), "lists")
        run.image("samples", png(1), step=0)
        run.image("samples", png(2), step=1)
    return lake


def test_impact_names_every_page(lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list").write_text(f"url:{URL}\n")
    assert main(["lineage", "impact", "--hashes", str(tmp_path / "list"), "--lake", lake.uri]) == 0
    printed = capsys.readouterr().out
    version = lake.version("images")
    for part in (
        f"report {version.uri}/report.html",
        "artifact MLflow, run curate/images: report.html",
        "artifact MLflow, run curate/images: lists/rows.txt",
        "sample sheet MLflow, run curate/images: samples, step 0",
    ):
        assert part in printed, printed


def test_nothing_holds_the_row_after_a_purge(lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = lake.version("images").ref
    (tmp_path / "list").write_text(f"url:{URL}\n")
    (tmp_path / "rows.txt").unlink()
    artifacts = Path(lake.uri, "mlartifacts")
    assert {Path(path).name for path in holding(artifacts)} >= {"report.html", "rows.txt"}
    assert len(list(artifacts.rglob("*+compressed.webp"))) == 2
    assert main(["dataset", "remove", "images", "--hashes", str(tmp_path / "list"), "--lake", lake.uri, "--purge"]) == 0
    left = holding(Path(lake.uri))
    assert all(f"{lake.uri}/datasets/images/shards/" in path for path in left), left
    assert main(["dataset", "erase", f"images@{before.digest}", "--lake", lake.uri, "--purge"]) == 0
    # Shards are compressed, so that their rows are looked for by the proof that reads them.
    assert main(["dataset", "verify", "--takedowns", "--lake", lake.uri]) == 0
    assert holding(Path(lake.uri)) == []
    (page,) = artifacts.rglob("report.html")
    assert "<title>Removed" not in page.read_text()  # the report of the version that is left
    assert len(list(artifacts.rglob("*+compressed.webp"))) == 1
    rebuild(lake.uri, f"sqlite:///{tmp_path}/other.db")  # from the journal's copies
    assert holding(Path(lake.uri)) == [] and "pages and copies made again" in capsys.readouterr().out
