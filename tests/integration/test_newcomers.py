"""The commands of the documents for who has a cluster and for who has other people's sets; they are counted.

Those for who has images are run by `test_own_images.py`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from altdiffusion.image_files.image_export import export_images
from altdiffusion.storage.dataset import Lake
from tests.documented import ROOT, commands, run
from tests.download_lake import HOST, image
from tests.fetch_server import reply, serving
from tests.hub_server import Hub
from tests.image_lake import ROWS, publish
from tests.unit.test_hub_sets import commit, hub, tables

__all__ = ["hub"]
TEXTS = {
    "en": "a red bicycle leans against the wall of an old house", "uk": "рудий кіт спить на старому дивані",
    "hi": "लाल साड़ी पहने एक महिला बाज़ार में", "ko": "오래된 집의 벽에 기대어 있는 빨간 자전거",
}  # fmt: skip


def shell(words: Sequence[str]) -> int:
    return subprocess.run(list(words), check=False).returncode


def test_a_data_engineer_needs_three_commands(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    given = commands("docs/own-pictures.md", "From img2dataset and the hub to other tools")
    assert len(given) <= 3
    monkeypatch.chdir(tmp_path)
    publish(str(tmp_path / "published"))
    export_images(Lake(str(tmp_path / "published")).version("images"), "own/crawl", "webdataset", rows_per_shard=10)
    tables(hub)
    for words in given:
        named = [commit(hub) if word.startswith("hf://") else word for word in words]
        assert run(named, {}, shell) == 0, capsys.readouterr().err
    lake = Lake("own/lake")
    assert lake.version("set").manifest.rows_by_language == {"uk": 6, "hi": 3}
    kept = lake.version("crawl").rows
    assert kept + sum(lake.version("crawl").manifest.rejects_by_reason.values()) == ROWS
    shards = [str(path) for path in sorted((tmp_path / "own/out").glob("*.tar"))]
    assert len(list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))) == kept > 0


def test_a_platform_engineer_needs_five_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    given = commands("docs/sources.md", "A small curation first")
    assert len(given) <= 5
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    with serving() as site:
        for name, codes in (("en", ["en"] * 6), ("multi", ["uk", "hi", "ko"] * 4)):
            paths = [f"/{name}{number}.png" for number in range(len(codes))]
            site.answers |= {
                path: reply(image(number + 50 * len(name), (300, 280))) for number, path in enumerate(paths)
            }
            rows = {
                "url": [f"http://{HOST}{path}" for path in paths],
                "caption": [f"{TEXTS[code]} {number}" for number, code in enumerate(codes)],
                "width": [300] * len(codes), "height": [280] * len(codes), "status": ["ok"] * len(codes),
            }  # fmt: skip
            if name == "multi":
                rows["language"] = codes
            folder = tmp_path / f"relaion/relaion2B-{name}-research-safe"
            folder.mkdir(parents=True)
            pq.write_table(pa.table(rows), folder / "part-00000.snappy.parquet")
        here = json.dumps({f"{HOST}:80": f"127.0.0.1:{site.port}"})
        small = [f"download.connect_to={here}", "download.allow_private=[127.0.0.1/32]", "download.image_size=64"]
        for words in given:
            added = [] if "jobs/configs/m18/curate.yaml" in words else small
            assert run(words, {"curate": added}, shell) == 0, capsys.readouterr().err
    made = Lake("relaion/lake").version("images").manifest.rows_by_language
    assert set(made) == {"en", "uk", "hi", "ko"}, made
    printed = capsys.readouterr().out
    assert "TB fetched" in printed and "source relaion2b-multi: 12 rows" in printed
