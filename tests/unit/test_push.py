"""`altdiffusion push` against a real server on loopback: what arrives, what is refused, and what a second push does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from altdiffusion.cli import main
from altdiffusion.storage.tombstones import add_tombstones
from tests.hub_store import TOKEN, Store, serve
from tests.image_lake import publish

REPO = "datasets/someone/small"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serve(Store()) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


@pytest.fixture
def lake(tmp_path: Path) -> str:
    publish(str(tmp_path / "lake"))
    return str(tmp_path / "lake")


def shards(lake: str) -> dict[str, bytes]:
    folder = Path(lake) / "datasets" / "images" / "shards"
    return {f"shards/{path.name}": path.read_bytes() for path in folder.iterdir()}


def push(lake: str, *options: str) -> int:
    return main(["push", "images", "hf://someone/small", "--lake", lake, *options])


def test_a_dataset_is_private_whole_and_sent_once(store: Store, lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(lake, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "for the private dataset hf://someone/small" in shown and "# images" in shown and not store.files
    assert all(f"{len(data):,}  {name}" in shown for name, data in shards(lake).items())

    assert push(lake, "--licence", "CC-BY-4.0") == 0
    assert store.private[REPO] is True and (len(store.files[REPO]), store.commits) == (5, 1)
    assert {name: data for name, data in store.files[REPO].items() if name != "README.md"} == shards(lake)
    assert b"license: cc-by-4.0" in store.files[REPO]["README.md"].lower()

    assert push(lake, "--licence", "CC-BY-4.0") == 0
    assert "0 of 5 files sent (private)" in capsys.readouterr().out
    assert (store.commits, len(store.puts)) == (1, 4)


def test_a_push_that_was_interrupted_ends_the_same(
    store: Store, lake: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("altdiffusion.documents.hub_push._PART_FILES", 2)
    store.most_puts = 3
    assert push(lake) == 2
    assert "run the same command again" in capsys.readouterr().err
    assert "README.md" not in store.files[REPO]  # the card comes last
    store.most_puts = None
    assert push(lake) == 0
    assert {name: data for name, data in store.files[REPO].items() if name != "README.md"} == shards(lake)
    assert sorted(store.puts) == sorted(set(store.puts))  # nothing was sent twice


def test_rows_that_were_taken_down_are_not_pushed(store: Store, lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(lake) == 0
    none = np.zeros(0, np.int64)
    add_tombstones(lake, sample_ids=np.array([3]), of_images=none, of_final_urls=none)
    for options in ([], ["--dry-run"]):
        assert push(lake, *options) == 2
        assert "holds rows that were taken down" in capsys.readouterr().err


def test_shards_of_an_earlier_version_are_removed(store: Store, lake: str) -> None:
    store.files[REPO] = {"shards/old.parquet": b"old", "notes.txt": b"of the owner"}
    store.private[REPO] = True
    assert push(lake) == 0
    assert "shards/old.parquet" not in store.files[REPO] and store.files[REPO]["notes.txt"] == b"of the owner"


def test_a_model_folder_is_a_model(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model" / "unet").mkdir(parents=True)
    (tmp_path / "model" / "model_index.json").write_text("{}")
    (tmp_path / "model" / "unet" / "one.safetensors").write_bytes(b"weights")
    assert main(["push", str(tmp_path / "model"), "hf://someone/model", "--public"]) == 0
    assert store.files["models/someone/model"] == {"model_index.json": b"{}", "unet/one.safetensors": b"weights"}
    assert store.private["models/someone/model"] is False
    assert main(["push", str(tmp_path / "model"), "hf://someone/model"]) == 2
    assert "is public, and --public is not given" in capsys.readouterr().err
    (tmp_path / "images").mkdir()
    assert main(["push", str(tmp_path / "images"), "hf://someone/model"]) == 2
    assert "holds no model" in capsys.readouterr().err


def test_what_the_hub_refuses_is_one_line(
    store: Store, lake: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(message: str) -> None:
        assert push(lake) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused("the hub does not accept HF_TOKEN")
    monkeypatch.delenv("HF_TOKEN")
    refused("HF_TOKEN: is not set")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    store.status = 403
    refused("HF_TOKEN may not write to it")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused("the hub cannot be reached")
    assert main(["push", "imagse", "hf://someone/small", "--lake", lake]) == 2
    assert "datasets: images; runs: none" in capsys.readouterr().err
    assert main(["push", "images", "someone/small", "--lake", lake]) == 2
    assert "write hf://owner/name" in capsys.readouterr().err
