"""What is drawn, and what is not: rejects, images that are finished already, units for a pool, a row's own settings."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from altdiffusion.config import fingerprint
from altdiffusion.diffusion import models
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.batch_spill import Spill
from altdiffusion.execution.pipeline_step import run_pipeline_step
from altdiffusion.execution.progress import Progress
from altdiffusion.execution.range_work import finish_unit
from altdiffusion.execution.units import Unit
from altdiffusion.generation import prompt_windows
from altdiffusion.generation.cautions import warnings_of
from altdiffusion.generation.finished import IMAGES
from altdiffusion.generation.generate_work import (
    GenerateWork,
    decode_images,
    describe_work,
    generation_units,
    rows_per_shard,
    rows_per_unit,
)
from altdiffusion.generation.image_request import Drawn, Request
from altdiffusion.generation.model import resolve_model
from altdiffusion.generation.prompts import prompts_source
from altdiffusion.generation.sampler import Sampler
from altdiffusion.generation.window_plan import describe_windows
from altdiffusion.records import PROMPTS
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.verification import damages_of
from pipelines.common import Workers
from pipelines.generate import generation_pipeline_steps
from tests import generation_lake, training_lake


def lines_of(lake: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(lake) / "prompts.jsonl").read_text().splitlines()]


def write_lines(lake: str, rows: Sequence[dict[str, Any]]) -> None:
    (Path(lake) / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def generate(lake: str, *, dataset: str = "drawn", workers: int = 1, **changes: Any) -> Version:
    """Draw as the job does."""
    config = generation_lake.config(lake, **changes)
    for step in generation_pipeline_steps(lake, "prompts", dataset, config, Workers(max=workers)):
        (version,) = run_pipeline_step(Lake(lake), step, backend="inline", progress=generation_lake.quiet(step.name))
    return version


def base(lake: str, change: Callable[[models.ModelBundle], None]) -> None:
    """Change the weights of the lake's model."""
    bundle = training_lake.bundle()
    with torch.no_grad():
        change(bundle)
    models.save_bundle(bundle, Path(lake) / "models" / "base")


@pytest.fixture
def drawn_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """Record the prompts of each batch that is drawn."""
    seen: list[list[str]] = []
    original = Sampler._batch

    def batch(self: Sampler, rows: Sequence[Request]) -> list[Drawn]:
        seen.append([row.prompt for row in rows])
        return original(self, rows)

    monkeypatch.setattr(Sampler, "_batch", batch)
    yield seen


def images(version: Version) -> dict[tuple[str, int], bytes]:
    return {(row["id"], row["seed"]): row["image"] for row in version.read().to_pylist()}


def test_a_prompt_whose_numbers_overflow_is_a_reject_and_the_others_are_as_without_it(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=12)
    rows = lines_of(lake)
    rows[5]["prompt"] = "zebra"

    def overflow(bundle: models.ModelBundle) -> None:
        token = bundle.tokenizer("zebra", add_special_tokens=False).input_ids[-1]
        bundle.text_encoder.get_input_embeddings().weight[token] = 3e38  # its variance is not finite

    base(lake, overflow)
    others = [row for row in rows if row["id"] != "p5"]
    write_lines(lake, others)
    without = generate(lake, dataset="without")
    write_lines(lake, [*others, rows[5]])
    version = generate(lake)
    assert version.manifest.rejects_by_reason == {"not_finite": 1}
    (reject,) = [row for table in version.iter_rejects() for row in table.to_pylist()]
    assert reject["detail"] == "prompt p5, seed 5: the text encoder's output"
    assert images(version) == images(without)


@pytest.mark.parametrize(
    ("part", "detail"), [("unet", r"the UNet's output at step [12] of 2"), ("vae", "the VAE's output")]
)
def test_a_job_without_a_finite_image_fails(tmp_path: Path, part: str, detail: str) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=6)

    def overflow(bundle: models.ModelBundle) -> None:
        layer = bundle.unet.conv_out if part == "unet" else bundle.vae.decoder.conv_out
        layer.weight.fill_(3e38)

    base(lake, overflow)
    with pytest.raises(AltDiffusionError, match=r"of 6 rows none was accepted \(not_finite 6\)"):
        generate(lake)
    rejects = (Path(lake) / "datasets/drawn/rejects").iterdir()
    details = [text for file in rejects for text in pq.read_table(file)["detail"].to_pylist()]
    assert len(details) == 6
    assert all(re.search(detail, text) for text in details)


def test_a_vae_that_overflows_in_half_precision_decodes_in_float32() -> None:
    bundle = training_lake.bundle()
    request = Request(prompt="cat", seed=1, width=16, height=16, steps=2, guidance_scale=1.0, sampler="ddim")
    for part in (bundle.unet, bundle.vae, bundle.text_encoder):
        part.half()
    with torch.no_grad():
        bundle.vae.decoder.conv_in.weight.fill_(6e4)  # sums beyond float16; the next normalisation takes them back

    def draw(fallback: bool) -> Drawn:
        return next(Sampler(bundle, batch_rows=2, vae_fallback=fallback).draw_rows([request]))[1][0]

    assert draw(False).problem == "the VAE's output"
    again = draw(True)
    assert (again.problem, again.vae_dtype) == ("", "float32")
    bundle.vae.float()  # the same weights; the UNet stays in half precision
    whole = next(Sampler(bundle, batch_rows=2).draw_rows([request]))[1][0]
    assert whole.vae_dtype is None
    np.testing.assert_array_equal(again.image, whole.image)


def test_only_new_rows_are_drawn(tmp_path: Path, drawn_batches: list[list[str]]) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=12)
    first = generate(lake)
    rows = lines_of(lake)
    drawn_batches.clear()
    new = {**rows[0], "id": "new", "prompt": "a new word"}
    write_lines(lake, [*rows[:6], new, *rows[6:]])
    second = generate(lake)
    assert {prompt for batch in drawn_batches for prompt in batch} == {"a new word"}
    assert images(second) == images(first) | {("new", 0): images(second)[("new", 0)]}
    assert [row["id"] for row in second.read().to_pylist()][6] == "new"
    # It is the version that one undisturbed job makes of the new file.
    other = generation_lake.make_lake(tmp_path / "other", prompts=12)
    write_lines(other, [*rows[:6], new, *rows[6:]])
    assert [shard.sha256 for shard in generate(other).shards] == [shard.sha256 for shard in second.shards]
    drawn_batches.clear()
    renamed = [{**row, "id": f"other-{row['id']}", "language": "en"} for row in reversed(rows)]
    write_lines(lake, renamed)
    assert generate(lake).read(["id"]).num_rows == 12
    assert drawn_batches == []  # neither name, label nor order changes a pixel
    assert damages_of(second) == []


@pytest.mark.parametrize(
    "change", [{"seed": 99}, {"prompt": "other"}, {"width": 8}, {"height": 8}], ids=lambda change: next(iter(change))
)
def test_what_changes_a_pixel_is_drawn(tmp_path: Path, drawn_batches: list[list[str]], change: dict[str, Any]) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=4)
    generate(lake)
    drawn_batches.clear()
    rows = lines_of(lake)
    write_lines(lake, [{**rows[0], **change}, *rows[1:]])
    generate(lake)
    assert len(drawn_batches) == 1


@pytest.mark.parametrize("change", [{"steps": 3}, {"guidance_scale": 3.0}, {"sampler": "dpmpp"}, {"batch_rows": 8}])
def test_another_setting_draws_again(tmp_path: Path, drawn_batches: list[list[str]], change: dict[str, Any]) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=4)
    generate(lake)
    drawn_batches.clear()
    generate(lake, **change)
    assert sorted({prompt for batch in drawn_batches for prompt in batch}) == sorted(
        row["prompt"] for row in lines_of(lake)
    )


def test_another_model_draws_again(tmp_path: Path, drawn_batches: list[list[str]]) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=4)
    before = generate(lake)
    drawn_batches.clear()
    models.save_bundle(training_lake.bundle(1), Path(lake) / "models" / "base")
    after = generate(lake)
    assert len(drawn_batches) == 2  # two sizes
    assert not set(images(before).values()) & set(images(after).values())


def test_forged_spill_files_are_not_taken_for_images(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=4)
    honest = generate(lake, dataset="honest")
    keys = honest.read(["row_key"])["row_key"].to_pylist()
    spill = Spill(Lake(lake).dataset("drawn"))
    digest = hashlib.sha256(b"forged").hexdigest()
    for image_sha256, image_format in (("0" * 64, "png"), (digest, "../png"), (digest, "exe")):
        rows = [
            {"row_key": key, "image": b"forged", "image_sha256": image_sha256, "image_format": image_format}
            for key in keys
        ]
        spill.add(f"unit-{image_format.strip('./')}-{image_sha256[:4]}", pa.Table.from_pylist(rows, schema=IMAGES))
    spill.add("unit-other", pa.table({"row_key": [1, 2], "image": ["a", "b"]}))
    spill.add("unit-without", pa.table({"x": [1]}))
    assert len(spill.names()) == 5
    assert images(generate(lake)) == images(honest)
    assert spill.names() == []


def test_a_stop_loses_one_finished_batch_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=30)
    for row in (rows := lines_of(lake)):
        row["width"] = 16
    write_lines(lake, rows)
    calls: list[int] = []
    original = Sampler._batch

    def dying(self: Sampler, rows: Sequence[Request]) -> list[Drawn]:
        calls.append(len(rows))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(self, rows)

    monkeypatch.setattr(Sampler, "_batch", dying)
    with pytest.raises(KeyboardInterrupt):
        generate(lake, rows_per_unit=30, batch_rows=4)
    spill = Spill(Lake(lake).dataset("drawn"))
    assert not list((Path(lake) / "datasets/drawn").glob("ledger/*/*"))  # the one unit is not finished
    assert spill.rows() >= 16  # of five finished batches
    calls.clear()
    monkeypatch.setattr(Sampler, "_batch", lambda self, rows: calls.append(len(rows)) or original(self, rows))
    # Units are cut otherwise by now: what is finished is found all the same.
    version = generate(lake, rows_per_unit=8, batch_rows=4, workers=2)
    assert len(calls) <= 5  # 14 rows at most, in batches of units of 8
    assert spill.names() == []
    undisturbed = generate(lake, rows_per_unit=30, batch_rows=4, dataset="undisturbed")
    assert version.shards == undisturbed.shards
    assert images(version) == images(undisturbed)


def test_the_version_does_not_depend_on_how_units_are_cut(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=30)
    shards = {
        generate(lake, dataset=f"d{workers}-{size}", workers=workers, rows_per_unit=size, batch_rows=4).shards
        for workers, size in ((1, 512), (3, 512), (64, 512), (1, 8), (1, 30))
    }
    assert len(shards) == 1
    one, other = generation_lake.config(lake), generation_lake.config(lake, rows_per_unit=512)
    assert fingerprint(one) == fingerprint(other)


def test_units_feed_the_pool(tmp_path: Path) -> None:
    config = generation_lake.config(str(tmp_path), batch_rows=32, rows_per_unit=512)
    for images_, workers, units in (
        (1000, 64, 63),
        (64, 64, 64),
        (10, 64, 10),
        (1_000_000, 64, 1954),
        (1000, 1, 2),
        (1000, 2, 8),
    ):
        shard = rows_per_shard(images_)
        size = -(-rows_per_unit(images_, config, workers) // shard) * shard
        assert -(-images_ // size) == units
        assert shard <= 256


def test_a_row_has_its_own_settings(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=4)
    settings = generation_lake.config(lake)
    generation_lake.import_prompts(lake, settings)
    rows = Lake(lake).version("prompts").read().to_pylist()
    rows = [{**row, "prompt": "cat", "seed": 7, "width": 16} for row in rows]
    rows[1] |= {"steps": 3, "sampler": "dpmpp"}
    rows[2] |= {"negative_prompt": "dog", "guidance_scale": 5.0}
    rows[3] |= {"count": 3}
    version = publish(lake, rows, settings)
    model = resolve_model(settings.model, lake)
    work = GenerateWork(lake, "own", model, settings)
    work.setup()
    made = [work.run(unit) for unit in generation_units(version, model, settings)]
    shards = [shard for record in made for shard in record.shards]
    assert sum(record.rows_in for record in made) == 6
    drawn = (
        Lake(lake)
        .dataset("own")
        .publish(kind="generations", records=made, parents=[version.ref], config={}, fingerprint="f" * 64)
    )
    found = drawn.read().to_pylist()
    assert [(row["id"], row["seed"]) for row in found] == [
        ("p0", 7), ("p1", 7), ("p2", 7), ("p3", 7), ("p3", 8), ("p3", 9)
    ]  # fmt: skip
    assert [(row["steps"], row["sampler"], row["guidance_scale"], row["negative_prompt"]) for row in found] == [
        (2, "ddim", 2.0, None), (3, "dpmpp", 2.0, None), (2, "ddim", 5.0, "dog"), *[(2, "ddim", 2.0, None)] * 3
    ]  # fmt: skip
    assert found[0]["image"] == found[3]["image"]  # equal rows are drawn once
    assert len({row["image"] for row in found}) == 5
    assert len(shards) == 6
    # Each is what the sampler draws with these settings alone.
    alone = Sampler(models.load_bundle(model.uri), sampler="dpmpp", steps=3, guidance_scale=2.0, batch_rows=4)
    np.testing.assert_array_equal(decode_images([found[1]["image"]]), alone.draw(["cat"], [7], 16, 16))


def publish(lake: str, rows: list[dict[str, Any]], settings: Any) -> Version:
    dataset = Lake(lake).dataset("prompts")
    unit = Unit(id="u", index=0, payload={"input_digest": "0"})
    record = finish_unit(dataset, unit, rows_in=len(rows), accepted=[pa.Table.from_pylist(rows, schema=PROMPTS)])
    return dataset.publish(
        kind="prompts", records=[record], parents=[prompts_source(settings.prompts)], config={}, fingerprint="e" * 64
    )


def test_a_long_prompt_is_marked(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=3)
    rows = lines_of(lake)
    rows[0]["prompt"], rows[1]["prompt"], rows[2]["prompt"] = "cat", "word " * 400, "red"
    write_lines(lake, rows)
    found = {row["id"]: row for row in generate(lake).read().to_pylist()}
    limit = training_lake.bundle().tokenizer.model_max_length
    assert found["p1"]["truncated"] is True
    assert found["p1"]["prompt_tokens"] > limit
    assert (found["p0"]["truncated"], found["p2"]["truncated"]) == (False, False)
    assert 2 < found["p0"]["prompt_tokens"] <= limit


@pytest.mark.parametrize("image_format", ["jpg", "webp"])
def test_images_in_other_formats(tmp_path: Path, image_format: str) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=3)
    plain = images(generate(lake))
    version = generate(lake, dataset="other", image_format=image_format, image_quality=100)
    for row in version.read().to_pylist():
        assert row["image_format"] == image_format
        assert (Path(lake) / f"datasets/other/images/{row['image_sha256']}.{image_format}").read_bytes() == row["image"]
        there, here = decode_images([row["image"]]), decode_images([plain[(row["id"], row["seed"])]])
        assert np.abs(there.astype(int) - here).mean() < (0.001 if image_format == "webp" else 3)


def test_every_text_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=30)
    write_lines(lake, [{**row, "prompt": "cat"} for row in lines_of(lake)])
    encoded: list[int] = []
    original = prompt_windows.encode_text

    def encode(encoder: Any, ids: torch.Tensor, pad: int) -> torch.Tensor:
        encoded.append(len(ids))
        return original(encoder, ids, pad)

    monkeypatch.setattr(prompt_windows, "encode_text", encode)
    generate(lake, rows_per_unit=30)
    assert encoded == [4]  # "cat" and the empty text, among four: one unit, whatever sizes


def test_images_inside_of_a_unit_are_counted() -> None:
    stream = io.StringIO()
    progress = Progress("generate", rows_name="images", stream=stream)
    made = [32]
    progress.count_unfinished(lambda: made[0])
    progress.begin(5)
    made[0] = 96
    progress._counted_at = -1e9
    progress._count_inside()
    line = progress.line(progress._started + 8.0)
    assert line == "[generate] 0/5 units  96 images  8.0 images/s  0:00:08 so far"  # 32 are of an earlier start
    made[0] = 0
    progress.advance(512)
    progress._counted_at = -1e9
    progress._count_inside()
    assert progress.line(progress._started + 8.0) == "[generate] 1/5 units  512 images  60.0 images/s  0:00:32 left"
    made[0] = 600  # of two units, the first of which is finished before the next count
    progress._counted_at = -1e9
    progress._count_inside()
    before = progress.line(progress._started + 8.0)
    progress.advance(512)
    assert "1/5 units  1,112 images" in before and "2/5 units  1,112 images" in progress.line(progress._started + 8.0)


def test_cut_prompts_and_rejects_are_reported_with_an_example(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=3)
    rows = [{**row, "prompt": "cat"} for row in lines_of(lake)]
    write_lines(lake, rows)
    assert warnings_of(generate(lake)) == []
    rows[1]["prompt"] = "word " * 400
    write_lines(lake, rows)
    (line,) = warnings_of(generate(lake))
    assert line.startswith("1 prompts are longer than the text encoder reads, and their ends are cut off; p1 has ")


def test_a_dry_run_counts_images_units_and_batches(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=30)  # 6 of 24 x 16 pixels, 24 of 16 x 16
    config = generation_lake.config(lake, batch_rows=4, rows_per_unit=512)
    prompts = Lake(lake).version(generation_lake.import_prompts(lake, config).ref)
    assert describe_work(prompts.read(), config, 1) == "draws  30 images in 1 units, 8 batches of up to 4"
    model = resolve_model(config.model, lake)
    for workers in (1, 2, 7):
        units = generation_units(prompts, model, config, workers)
        line = describe_work(prompts.read(), config, workers)
        assert f"30 images in {len(units)} units" in line
    twice = generation_lake.config(lake, batch_rows=4, rows_per_unit=512, count=2)
    assert describe_work(prompts.read(), twice, 1) == "draws  60 images in 1 units, 15 batches of up to 4"


def test_long_images_are_bit_equal_whatever_pool_unit_or_restart(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=8)
    rows = lines_of(lake)
    for number, row in enumerate(rows):
        row["prompt"], row["width"] = "dogs", 16 if number % 4 == 0 else 40
        row["regions"] = ["cat", "word " * 40] if number % 4 == 1 else None
    write_lines(lake, rows)
    settings: dict[str, Any] = {
        "windows": {"side": 16, "overlap": 8, "circular": True}, "vae_tiling": 32, "batch_rows": 4,
        "file_record": False,
    }  # fmt: skip
    version = generate(lake, rows_per_unit=8, **settings)
    other = generate(lake, dataset="other", workers=3, rows_per_unit=1, **settings)
    assert version.shards == other.shards
    found = {row["id"]: row for row in version.read().to_pylist()}
    assert found["p1"]["region_tokens"][1] > found["p1"]["prompt_tokens"] > found["p1"]["region_tokens"][0]
    assert found["p1"]["truncated"] and found["p2"]["region_tokens"] is None
    (warning,) = warnings_of(version)
    assert "p1 has" in warning and f"{found['p1']['region_tokens'][1]} tokens: 'word word" in warning
    assert json.loads(found["p1"]["regions"])[0] == {"from": 0.0, "prompt": "cat", "to": 0.5}
    plain = {
        row["id"]: row for row in generate(lake, dataset="plain", batch_rows=4, file_record=False).read().to_pylist()
    }
    assert found["p0"]["image"] == plain["p0"]["image"]  # no larger than a window
    assert found["p2"]["image"] != plain["p2"]["image"]
    assert plain["p1"]["image"] != plain["p5"]["image"]
    config = generation_lake.config(lake, **settings)
    model = resolve_model(config.model, lake)
    (line,) = describe_windows(Lake(lake).version("prompts").read(), config, model)
    assert line == (
        "windows  6 images of 5 to 8 windows or regions each: 36 in 9 or more calls of the UNet per sampler step, "
        "4 at once"
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"windows": {"side": 20, "overlap": 8}}, r"windows\.side 20: is not a multiple of 8 pixels.* give e\.g\. 16"),
        ({"windows": {"side": 16, "overlap": 4}}, r"windows\.overlap 4: is not a multiple of 8 pixels"),
        ({"vae_tiling": 40}, r"vae_tiling 40: is not a multiple of 16 pixels.* give e\.g\. 32"),
    ],
)
def test_windows_that_the_model_cannot_draw_are_refused(tmp_path: Path, settings: dict[str, Any], problem: str) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=2)
    with pytest.raises(AltDiffusionError, match=problem):
        generate(lake, **settings)
