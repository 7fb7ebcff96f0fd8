"""The loader gives exactly the rows that the order names, in bounded memory, and refuses what is damaged."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from altdiffusion.diffusion import models, noise
from altdiffusion.errors import AltDiffusionError
from altdiffusion.records import LATENTS
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.training.data import layout
from altdiffusion.training.data.layout import decode_latents
from altdiffusion.training.data.loader import Loader, RowGroups
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.order.batches import Order, Part
from tests.training_lake import SHAPE, Recorder, config, write_latents

ROW_BYTES = 2 * 64 + 4 * 8


def order_of(rows: int, batch: int = 24) -> Order:
    part = Part(digest="d", rows=rows)
    return Order([part], seed=1, global_batch=batch, chunk_rows=16, window_chunks=4)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return write_latents(str(tmp_path_factory.mktemp("lake")), "latents", 300, shard_rows=70, group_rows=16)


@pytest.mark.parametrize(("world", "ahead"), [(1, 1), (2, 3), (4, 2)])
def test_samples_are_those_of_the_order(version: Version, world: int, ahead: int) -> None:
    order = order_of(300)
    truth = noise.keyed_normal(0, torch.arange(300), 7, SHAPE).to(torch.float16)
    ids = version.read(["token_ids"])["token_ids"].to_pylist()
    for rank in range(world):
        rows = RowGroups([version], layout.LATENTS, cache_bytes=1 << 20)
        loader = Loader(order, [rows], rank=rank, world=world, start=3, stop=20, ahead=ahead)
        found = list(loader)
        loader.close()
        assert [samples.step for samples in found] == list(range(3, 20))
        for samples in found:
            share = order.share(samples.step, rank, world)
            assert samples.positions.tolist() == share.position.tolist()
            assert torch.equal(samples["latents"], truth[share.row])
            assert samples["token_ids"].tolist() == [ids[row] for row in share.row.tolist()]
            assert samples["token_ids"].dtype == torch.int32


def test_batches_that_are_left_out_are_not_read_ahead(version: Version) -> None:
    """Each step gets the samples of the batch that it takes, behind a gap too, where the next batch is not n + 1."""
    order, skips = order_of(300), ((2, 5), (8, 20))
    truth = noise.keyed_normal(0, torch.arange(300), 7, SHAPE).to(torch.float16)
    loader = Loader(order, [RowGroups([version], layout.LATENTS, cache_bytes=1 << 20)], stop=8, skips=skips)
    found = list(loader)
    loader.close()
    assert [samples.step for samples in found] == [0, 1, 5, 6, 7, 20, 21, 22]
    for samples in found:
        batch = order.batch(samples.step)
        assert samples.positions.tolist() == batch.position.tolist()
        assert torch.equal(samples["latents"], truth[batch.row])


def test_two_versions_in_a_row_are_one_part(version: Version, tmp_path: Path) -> None:
    more = write_latents(str(tmp_path), "more", 40, seed=5)
    rows = RowGroups([version, more], layout.LATENTS, cache_bytes=1 << 20)
    assert rows.rows == 340
    found = rows.empty(2)
    rows.gather(np.array([339, 299]), found)
    latents = found["latents"]
    assert torch.equal(latents[0], noise.keyed_normal(5, torch.tensor([39]), 7, SHAPE)[0].half())
    assert torch.equal(latents[1], noise.keyed_normal(0, torch.tensor([299]), 7, SHAPE)[0].half())


def test_memory_is_bounded_and_a_row_group_is_read_once_per_window(version: Version) -> None:
    order = order_of(300, batch=16)
    tight = RowGroups([version], layout.LATENTS, cache_bytes=3 * 16 * ROW_BYTES)
    loader = Loader(order, [tight], stop=18)
    for _ in loader:
        assert tight.cached_bytes <= 3 * 16 * ROW_BYTES
    loader.close()
    roomy = RowGroups([version], layout.LATENTS, cache_bytes=1 << 30)
    loader = Loader(order, [roomy], stop=2 * 300 // 16)
    list(loader)
    loader.close()
    assert roomy.groups_read == 4 * 5 + 2  # every row group of five shards, once: 70 rows are five groups, 20 are two
    assert tight.groups_read > roomy.groups_read


def test_the_thread_reads_ahead_and_no_further(version: Version) -> None:
    rows = RowGroups([version], layout.LATENTS, cache_bytes=1 << 20)
    loader = Loader(order_of(300), [rows], stop=1000, ahead=2)
    deadline = time.monotonic() + 60
    while loader._queue.qsize() < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert loader._queue.qsize() == 2
    loader.close()
    assert not loader._thread.is_alive()


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize(
    ("damage", "message"),
    [("flip", "is damaged"), ("truncate", "is damaged .*bytes instead of"), ("delete", "is missing")],
)
def test_a_damaged_shard_stops_training_by_name(lake: str, shard: int, damage: str, message: str) -> None:
    version = Lake(lake).version("latents")
    path = Path(version.shard_uri(shard))
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 3] ^= 4
        path.write_bytes(bytes(data))
    elif damage == "truncate":
        path.write_bytes(bytes(data[:-10]))
    else:
        path.unlink()
    with pytest.raises(AltDiffusionError, match=message) as error:
        run_local(config(lake, steps=40), lake, reporter=Recorder())
    assert str(path) in error.value.what


def test_every_flipped_byte_of_the_read_columns_is_found(tmp_path: Path) -> None:
    """Wherever it is flipped, a byte either changes nothing that is read or is refused."""
    lake = str(tmp_path)
    version = write_latents(lake, "latents", 20, shard_rows=20, group_rows=20)
    path = Path(version.shard_uri(0))
    data = path.read_bytes()
    whole = RowGroups([version], layout.LATENTS, cache_bytes=1 << 20)._group(0)[1]
    refused = 0
    for at in range(4, len(data) - 4, 37):
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        try:
            found = RowGroups([version], layout.LATENTS, cache_bytes=1 << 20)._group(0)[1]
        except AltDiffusionError:
            refused += 1
            continue
        assert all(torch.equal(found[name], tensor) for name, tensor in whole.items()), at
    assert refused > 20


def test_a_dataset_of_another_kind_or_without_rows_is_refused(tmp_path: Path) -> None:
    lake = str(tmp_path)
    empty = write_latents(lake, "empty", 0)
    with pytest.raises(AltDiffusionError, match="holds no rows"):
        RowGroups([empty], layout.LATENTS, cache_bytes=1)
    prompts = Lake(lake).dataset("words").publish(kind="prompts", records=[], parents=[], config={}, fingerprint="f")
    with pytest.raises(AltDiffusionError, match="holds prompts, not latents"):
        RowGroups([prompts], layout.LATENTS, cache_bytes=1)
    with pytest.raises(AltDiffusionError, match="dataset nothing: has no version"):
        run_local(config(lake, datasets=[{"name": "nothing"}]), lake, reporter=Recorder())


def row(latent: bytes, ids: list[int], height: int = 4) -> dict[str, object]:
    fixed = {"sample_id": 1, "image_sha256": "", "caption": "", "language": "en", "channels": 4, "width": 4}
    rest = {"resolution": 16, "crop_top": 0, "crop_left": 0, "aesthetic": None}
    return {**fixed, **rest, "height": height, "latent": latent, "token_ids": ids}


@pytest.mark.parametrize(
    "rows",
    [
        [row(b"\0" * 128, [1, 2]), row(b"\0" * 126, [1, 2])],
        [row(b"\0" * 128, [1, 2]), row(b"\0" * 128, [1])],
        [row(b"\0" * 128, [1, 2]), row(b"\0" * 128, [1, 2], height=5)],
    ],
)
def test_rows_of_different_shapes_are_refused(rows: list[dict[str, object]]) -> None:
    with pytest.raises(ValueError, match=r"differs between rows|does not hold"):
        decode_latents(pa.Table.from_pylist(rows, schema=LATENTS))


def test_a_slice_of_a_table_decodes_right() -> None:
    latents = [np.full(64, i, dtype="<f2").tobytes() for i in range(6)]
    table = pa.Table.from_pylist([row(latent, [i, -i]) for i, latent in enumerate(latents)], schema=LATENTS)
    found = decode_latents(table.slice(2, 3))
    assert found["latents"][:, 0, 0, 0].tolist() == [2, 3, 4]
    assert found["token_ids"].tolist() == [[2, -2], [3, -3], [4, -4]]


def test_ids_of_another_tokenizer_are_refused(lake: str) -> None:
    """The dataset stays as it is; the model's tokenizer gives two letters each other's ids."""
    from transformers import XLMRobertaTokenizer

    folder = Path(lake) / "models" / "base"
    base = models.load_bundle(str(folder))
    pieces = json.loads(base.tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    a, b = (next(place for place, (piece, _) in enumerate(pieces) if piece == letter) for letter in "ab")
    pieces[a], pieces[b] = pieces[b], pieces[a]
    vocab = [(piece, score) for piece, score in pieces]
    other = XLMRobertaTokenizer(vocab=vocab, model_max_length=base.tokenizer.model_max_length)
    shutil.rmtree(folder)
    models.save_bundle(replace(base, tokenizer=other), folder)
    with pytest.raises(AltDiffusionError, match=r"dataset:latents@\w+, column token_ids: holds the ids .* for 'aa'"):
        run_local(config(lake), lake, reporter=Recorder())
