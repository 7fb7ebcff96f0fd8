"""Buckets by formula, each image in one of them, and mirrored latents that match the others row by row."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from altdiffusion.curation.encoding.buckets import bucket_sizes, nearest
from altdiffusion.diffusion.image_crop import crop
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Lake, Version
from pipelines.encode import pipeline_steps, plan
from tests.curation_lake import image, write_images
from tests.encode_job import job, run, save_models


def test_the_lists_of_two_resolutions() -> None:
    assert bucket_sizes(512, 64, 2.0) == ((384, 640), (448, 576), (512, 512), (576, 448), (640, 384))
    assert bucket_sizes(1024, 64, 1.8) == (
        (768, 1344), (832, 1216), (896, 1152), (960, 1088), (1024, 1024),
        (1088, 960), (1152, 896), (1216, 832), (1344, 768),
    )  # fmt: skip
    assert bucket_sizes(256, 64, 1.0) == ((256, 256),)
    with pytest.raises(ValueError, match="not a multiple"):
        bucket_sizes(500, 64, 2.0)


@settings(max_examples=60, deadline=None)
@given(sides=st.integers(1, 24), step=st.sampled_from([8, 16, 32, 64]), aspect=st.floats(1, 4))
def test_every_bucket_obeys_the_rule(sides: int, step: int, aspect: float) -> None:
    resolution = sides * step
    sizes = bucket_sizes(resolution, step, aspect)
    assert (resolution, resolution) in sizes and len(set(sizes)) == len(sizes)
    assert {(h, w) for w, h in sizes} == set(sizes)
    assert list(sizes) == sorted(sizes, key=lambda size: size[0] / size[1])
    for width, height in sizes:
        long, short = max(width, height), min(width, height)
        assert width % step == height % step == 0
        assert long * short <= resolution**2 < long * (short + step)  # the largest that fits
        assert long <= aspect * short


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(32, 4000), st.integers(32, 4000)), min_size=1, max_size=20))
def test_nearest_is_the_smallest_ratio_of_ratios(shapes: list[tuple[int, int]]) -> None:
    sizes = bucket_sizes(512, 64, 2.0)
    found = nearest(sizes, np.array([w for w, _ in shapes]), np.array([h for _, h in shapes]))

    def off(width: int, height: int, size: tuple[int, int]) -> float:
        ratio = (width * size[1]) / (height * size[0])
        return max(ratio, 1 / ratio)

    for (width, height), number in zip(shapes, found.tolist(), strict=True):
        assert off(width, height, sizes[number]) <= min(off(width, height, size) for size in sizes) * (1 + 1e-9)
    turned = nearest(sizes, np.array([h for _, h in shapes]), np.array([w for w, _ in shapes]))
    for (width, height), number, other in zip(shapes, found.tolist(), turned.tolist(), strict=True):
        assert off(width, height, sizes[number]) == pytest.approx(off(height, width, sizes[other]))


def test_a_crop_covers_the_bucket_and_keeps_the_aspect() -> None:
    rgb = Image.open(io.BytesIO(image(1, (90, 50)))).convert("RGB")
    pixels, (top, left) = crop(rgb, (48, 32), np.array([0.999, 0.999], np.float32))
    assert pixels.shape == (32, 48, 3) and (top, left) == (0, 10)  # 90 x 50 -> 58 x 32
    resized = rgb.resize((58, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels, np.asarray(resized)[:, 10:58])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {**save_models(tmp_path_factory.mktemp("models")), "rows_per_unit": 4, "threads": 1}


# step 8, aspect 2 at 32 px: 24 x 40, 32 x 32, 40 x 24
SIZES = {
    0: (64, 64), 1: (80, 48), 2: (48, 80), 3: (60, 50), 4: (200, 40), 5: (40, 200), 6: (36, 20), 7: (31, 31),
    8: (80, 50), 9: (50, 80),
}  # fmt: skip
BODIES = {3: b"no picture"}


def latents(version: Version) -> dict[int, np.ndarray[Any, Any]]:
    rows = version.read().to_pylist()
    return {
        (1000 - r["sample_id"]) // 7: np.frombuffer(r["latent"], "<f2").reshape(r["channels"], r["height"], r["width"])
        for r in rows
    }


def test_each_image_goes_to_its_bucket_and_all_are_accounted_for(tmp_path: Path, models: dict[str, Any]) -> None:
    write_images(str(tmp_path), range(10), SIZES, bodies=BODIES)
    config = job(tmp_path, models, buckets={"step": 8, "max_aspect": 2.0})
    versions = run(config)
    assert list(versions) == ["latents-24x40", "latents-32x32", "latents-40x24"]
    found = {name.removeprefix("latents-"): latents(version) for name, version in versions.items()}
    assert {name: sorted(rows) for name, rows in found.items()} == {
        "24x40": [2, 5, 9], "32x32": [0], "40x24": [1, 4, 8],
    }  # fmt: skip
    assert {rows[0].shape for rows in map(list, map(dict.values, found.values()))} == {
        (4, 10, 6), (4, 8, 8), (4, 6, 10),
    }  # fmt: skip
    reasons = {name: version.manifest.rejects_by_reason for name, version in versions.items()}
    assert reasons == {
        "latents-24x40": {"bucket": 7},
        "latents-32x32": {"bucket": 7, "decode": 1, "resolution": 1},
        "latents-40x24": {"bucket": 6, "resolution": 1},
    }
    rejects = {r["sample_id"]: r for t in versions["latents-40x24"].iter_rejects() for r in t.to_pylist()}
    assert rejects[1000 - 7 * 2]["detail"] == "nearest to 24 x 40"
    assert set(versions["latents-40x24"].read()["resolution"].to_pylist()) == {32}
    assert "keyed random bucket crop" in "\n".join(plan(config).lines())


def test_a_bucket_is_the_same_made_alone_or_again(tmp_path: Path, models: dict[str, Any]) -> None:
    """Lost in one bucket, a shard is made again for that bucket alone, byte for byte."""
    write_images(str(tmp_path), range(10), SIZES, bodies=BODIES)
    config = job(tmp_path, models, buckets={"step": 8}, mirrored=True)
    before = {name: version.ref.digest for name, version in run(config).items()}
    assert len(before) == 6
    victim = Path(Lake(config.lake).version("latents-40x24-mirrored").shard_uri(0))
    victim.unlink()
    assert {name: version.ref.digest for name, version in run(config).items()} == before
    assert victim.exists()


def test_options_that_are_off_leave_the_fingerprint_as_it_was(tmp_path: Path, models: dict[str, Any]) -> None:
    (plain,) = pipeline_steps(job(tmp_path, models))[0].outputs
    assert set(plain.settings) == {"encode"}
    first, mirrored = pipeline_steps(job(tmp_path, models, mirrored=True))[0].outputs
    assert first.fingerprint == plain.fingerprint and mirrored.settings == {**plain.settings, "mirrored": True}


def test_mirrored_latents_are_the_mirrored_images_encoded_row_by_row(tmp_path: Path, models: dict[str, Any]) -> None:
    from diffusers import AutoencoderKL

    write_images(str(tmp_path), range(6), bodies={3: b"no picture"})
    versions = run(job(tmp_path, models, mirrored=True))
    plain, mirrored = versions["latents"], versions["latents-mirrored"]
    columns = ["sample_id", "token_ids", "crop_left", "crop_top", "language"]
    assert plain.read(columns).equals(mirrored.read(columns))
    assert [s.rows for s in plain.shards] == [s.rows for s in mirrored.shards]
    row = plain.read().to_pylist()[2]
    rgb = Image.open(io.BytesIO(image(2, (42, 36)))).convert("RGB").resize((37, 32), Image.Resampling.BILINEAR)
    left, top = row["crop_left"], row["crop_top"]
    pixels = np.asarray(rgb.crop((left, top, left + 32, top + 32)), np.float32)[:, ::-1].transpose(2, 0, 1) / 127.5 - 1
    vae: Any = AutoencoderKL.from_pretrained(models["vae"]).eval()
    with torch.no_grad():
        expected = ((vae.encode(torch.from_numpy(pixels.copy())[None]).latent_dist.mean[0] - 0.25) * 0.5).numpy()
    found, straight = latents(mirrored)[2], latents(plain)[2]
    assert np.abs(found - expected).max() <= 2**-9 * max(1.0, np.abs(expected).max())
    assert np.abs(straight[:, :, ::-1] - expected).max() > 0.01  # what mirroring the latent itself would have given


def test_invalid_buckets_name_their_key(tmp_path: Path, models: dict[str, Any]) -> None:
    with pytest.raises(AltDiffusionError, match=r"key buckets.step: value 64 does not divide every resolution"):
        job(tmp_path, models, buckets={})
    with pytest.raises(AltDiffusionError, match=r"key buckets.step: .* multiple of 8"):
        job(tmp_path, models, buckets={"step": 12})


def test_rejects_of_buckets_add_up(tmp_path: Path, models: dict[str, Any]) -> None:
    images = write_images(str(tmp_path), range(10), SIZES, bodies=BODIES)
    versions = run(job(tmp_path, models, buckets={"step": 8})).values()
    taken = sum(version.rows for version in versions)
    other = sum(v for version in versions for k, v in version.manifest.rejects_by_reason.items() if k != "bucket")
    assert taken + other == images.rows
    assert all(pa.concat_tables(version.iter_rejects()).num_rows + version.rows == 10 for version in versions)
