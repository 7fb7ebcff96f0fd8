"""What a pass over images stores: digests that were computed before a pipeline step could have several outputs.

The autoencoder and the tokenizer are integer arithmetic here, so that the bytes depend on no kernel. They do depend on
the versions of Pillow and Arrow in constraints.txt, and on the format of the lake: a digest that changes with neither
means that stored datasets are no longer found.
"""

from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import altdiffusion
from altdiffusion.config import from_dict
from altdiffusion.curation.encoding import encode_work
from altdiffusion.curation.links.takedown import read_list, take_down
from altdiffusion.execution.pipeline_step import run_pipeline_step
from altdiffusion.execution.progress import Progress
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.erasure import erase
from jobs.session import Session, already_published
from pipelines.common import ExecutionConfig
from pipelines.encode import EncodeJobConfig, pipeline_steps
from tests.curation_lake import write_images

DIGESTS = {
    "latents": "14b9be1e6cb60412be48969a66fd0ee184937487c7db782a12b31f74c1e59010",
    "small": "02e5f33bae4eb578d2bdec21d9951d6e04f0f808731253de2785e1ed010d9db9",
}
LEDGERS = "bbf90c6558171110c17dbfff7aa6a984d42ba770917af32e5efbd2a4344755cc"
"""SHA-256 over the paths and the bytes of all records."""


class IntegerEncoder:
    """Means of 8 x 8 blocks and the row id, in place of an autoencoder."""

    def __init__(self, config: Any) -> None:
        self.config, self.identity = config, self

    def note(self, lake: str, digest: str) -> None:
        """Leave no note: there is no autoencoder."""

    def encode(self, pixels: np.ndarray[Any, Any], sample_ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        count, height, width, _ = pixels.shape
        blocks = pixels.reshape(count, height // 8, 8, width // 8, 8, 3).astype(np.int64).sum(axis=(2, 4)) // 64
        ids = np.broadcast_to((sample_ids % 1000)[:, None, None, None], (*blocks.shape[:3], 1))
        return np.concatenate([blocks, ids], axis=-1).transpose(0, 3, 1, 2).astype(np.float16)


class ByteTokenizer:
    """The first bytes of a caption."""

    def __call__(self, captions: list[str], max_length: int, **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(caption.encode().ljust(max_length, b"\0"))[:max_length] for caption in captions]}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EncodeJobConfig:
    monkeypatch.setattr(altdiffusion, "__version__", "golden")
    monkeypatch.setattr(encode_work, "LatentEncoder", IntegerEncoder)
    monkeypatch.setattr(encode_work, "check_folder", lambda folder, _: folder)
    monkeypatch.setattr(encode_work, "open_tokenizer", lambda *_: ByteTokenizer())
    write_images(str(tmp_path), range(8), {2: (40, 31), 5: (20, 20)}, bodies={3: b"not an image"}, rows_per_shard=5)
    encode = {
        "vae": "a-vae", "vae_digest": "a" * 64, "tokenizer": "a-tokenizer", "tokenizer_digest": "b" * 64,
        "resolution": 32, "max_length": 6, "micro_batch": 3, "rows_per_unit": 3, "threads": 2,
    }  # fmt: skip
    also = [{"latents": "small", "resolution": 16}]
    return from_dict(EncodeJobConfig, {"lake": str(tmp_path), "encode": encode, "also": also})


def run(config: EncodeJobConfig) -> dict[str, str]:
    """The digest of each head after the job."""
    lake = Lake(config.lake)
    for step in pipeline_steps(config):
        run_pipeline_step(lake, step, backend="inline", progress=Progress("encode", stream=io.StringIO()))
    return {name: str(lake.dataset(name).head_digest()) for name in DIGESTS}


def records(config: EncodeJobConfig) -> dict[str, bytes]:
    """Every ledger record by its path in the lake."""
    lake = Path(config.lake)
    return {str(path.relative_to(lake)): path.read_bytes() for path in sorted(lake.glob("datasets/*/ledger/*/*"))}


def test_a_pass_stores_what_it_always_did(config: EncodeJobConfig) -> None:
    assert run(config) == DIGESTS
    found = {path: files.sha256_hex(data) for path, data in records(config).items()}
    assert len(found) == 6 and files.sha256_hex(files.canonical_json(found)) == LEDGERS


def test_a_half_finished_lake_goes_on(config: EncodeJobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier code recorded a unit for the other datasets first, and published the datasets one after the other."""
    run(config)
    before, lake = records(config), Path(config.lake)
    for name in ("small", "latents"):
        shutil.rmtree(lake / "datasets" / name / "versions")
        (lake / "datasets" / name / "head.json").unlink()
    large, small = (sorted(path for path in before if f"/{name}/" in path) for name in ("latents", "small"))
    for path in (large[1], large[2], small[2]):  # killed between the two records of the second of three units
        (lake / path).unlink()
    opened: list[int] = []
    open_rgb = encode_work.open_rgb
    monkeypatch.setattr(encode_work, "open_rgb", lambda body: opened.append(len(body)) or open_rgb(body))
    assert run(config) == DIGESTS
    assert records(config) == before
    assert len(opened) == 5  # the two rows of the second unit and the three rows of the third, once each


class Notes:
    """A run in MLflow that keeps what it is given."""

    def __init__(self) -> None:
        self.inputs: set[tuple[str, str]] = set()
        self.outputs: list[str] = []

    def input(self, version: Version, context: str) -> None:
        self.inputs.add((version.ref.name, context))

    def output(self, version: Version, *, place: int) -> None:
        self.outputs.append(version.ref.name)
        assert place == len(self.outputs)


def test_a_session_records_and_prints_all_outputs(config: EncodeJobConfig, capsys: pytest.CaptureFixture[str]) -> None:
    lake, notes = Lake(config.lake), Notes()
    inline = dataclasses.replace(config, execution=ExecutionConfig(backend="inline"))
    steps = pipeline_steps(inline)
    assert already_published(lake, steps) is None
    (step,) = steps
    versions = Session(inline, lake, cast(Any, notes)).complete(step)
    assert {version.ref.name: version.ref.digest for version in versions} == DIGESTS
    assert (notes.inputs, notes.outputs) == ({("images", "encode")}, ["latents", "small"])
    large, small = (version.ref.short for version in versions)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"[encode] {large}: 5 rows; rejected: decode 1, resolution 2",
        f"[encode] {small}: 7 rows; rejected: decode 1",
    ]
    assert already_published(lake, steps) == f"{large}, {small}"  # what jobs have always left in runs/


@pytest.mark.parametrize("erased", [True, False])
def test_what_was_taken_down_is_not_encoded_again(config: EncodeJobConfig, tmp_path: Path, erased: bool) -> None:
    """Neither from images that still hold it, nor from units that were recorded before."""
    run(config)
    lake, listed = Lake(config.lake), tmp_path / "list.txt"
    gone = lake.version("latents").read(["sample_id"])["sample_id"][1].as_py()
    listed.write_text(f"hash:{gone}\n")
    before = {name: lake.version(name) for name in DIGESTS}
    take_down(lake, before["latents"], read_list(str(listed)))  # and from no other dataset
    if erased:
        erase(lake.dataset("latents"), before["latents"])
    run(config)
    for name, version in before.items():
        head = lake.version(name)
        assert gone in lake.version("images").read(["sample_id"])["sample_id"].to_pylist()
        assert gone not in head.read(["sample_id"])["sample_id"].to_pylist()
        assert head.rows == version.rows - 1 and head.manifest.rejects_by_reason["takedown"] == 1
    heads = run(config)
    assert heads == {name: str(lake.dataset(name).head_digest()) for name in DIGESTS}
