"""`lineage up FILE`: by bytes, by the file's own record, by what it looks like, and honestly not at all."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from altdiffusion.cli import main
from altdiffusion.generation.generate_work import encode_image
from altdiffusion.generation.model import resolve_model
from altdiffusion.image_files.phash import distance, distances, is_plain, phash_rgb
from altdiffusion.image_files.record import FileRecord, key_base, key_of
from altdiffusion.lineage.file_search import NEAR
from altdiffusion.play.drawing import Drawing
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from tests import generation_lake
from tests.lineage_lake import SOURCE_IMAGE, SmallLake, publish

MODEL = Ref("model", "base", "c" * 64)
PROMPTS = ("a corgi", "一只柯基犬", "กำลังวิ่ง", "a red apple")


def scene(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a synthetic image with structure: smooth colours under a few shapes."""
    draw = np.random.default_rng(number)
    image = np.asarray(
        cv2.resize(draw.integers(0, 256, (5, 5, 3)).astype(np.uint8), (256, 256), interpolation=cv2.INTER_CUBIC)
    ).copy()
    for _ in range(6):
        (x, y), radius = draw.integers(0, 256, 2).tolist(), int(draw.integers(10, 60))
        cv2.circle(image, (x, y), radius, draw.integers(0, 256, 3).tolist(), -1)
    return image


def record(number: int) -> FileRecord:
    image = {
        "prompt": PROMPTS[number], "negative_prompt": None, "seed": number, "width": 256, "height": 256, "steps": 25,
        "guidance_scale": 7.5, "sampler": "ddim",
    }  # fmt: skip
    key = key_of(key_base("c" * 64, {}, str(MODEL)), image)
    return FileRecord(model=str(MODEL), content="c" * 64, image=image, settings={}, row_key=key)


DRAWN = [encode_image(scene(number), "png", record=record(number)) for number in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = Lake(str(tmp_path_factory.mktemp("lake")))
    prompts = publish(
        made, "prompts", "prompts", [{"id": f"p{i}", "language": "en", "prompt": text, "seed": i}
                                     for i, text in enumerate(PROMPTS)], [],
    )  # fmt: skip
    rows = [
        {
            **record(i).image, "id": f"p{i}", "language": "en", "image": data, "checkpoint": str(MODEL),
            "image_sha256": files.sha256_hex(data), "row_key": record(i).row_key,
            "perceptual_hash": phash_rgb(scene(i)),
        }
        for i, data in enumerate(DRAWN)
    ]  # fmt: skip
    publish(made, "generations", "generations", rows, [prompts.ref, MODEL])
    return made.uri


def up(capsys: pytest.CaptureFixture[str], file: Path, lake: str | None, *more: str) -> tuple[int, str]:
    status = main(["lineage", "up", str(file), *(["--lake", lake] if lake else []), *more])
    return status, capsys.readouterr().out


def written(tmp_path: Path, data: bytes, name: str = "image.png") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def saved(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def test_a_file_alone_states_what_made_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = up(capsys, written(tmp_path, DRAWN[1]), None)
    assert status == 0
    for part in ("the file's own record, which was not checked against a lake", "一只柯基犬", "c" * 64, "no lake was",
                 "ddim, 25 steps, guidance 7.5", record(1).row_key):  # fmt: skip
        assert part in text


def test_the_bytes_are_found_in_the_lake(lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = up(capsys, written(tmp_path, DRAWN[0]), lake)
    assert status == 0 and "by its SHA-256" in text and "model base @cccccccccccc" in text
    status, text = up(capsys, written(tmp_path, DRAWN[0]), lake, "--json")
    found = json.loads(text)
    assert found["file"]["match"] == "bytes" and found["root"] == f"image:{files.sha256_hex(DRAWN[0])}"
    assert found["file"]["contradictions"] == [] and not found["file"]["record_edited"]


def test_a_collected_image_is_found_by_its_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = SmallLake(tmp_path / "lake")
    status, text = up(capsys, written(tmp_path, SOURCE_IMAGE), small.uri)
    assert status == 0 and "by its SHA-256" in text and "the image was stored without one" in text
    assert "http://pictures.example/ja.png" in text


def test_a_file_that_was_saved_again_with_its_record_is_found_by_row_key(
    lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = up(capsys, written(tmp_path, encode_image(scene(2), "jpg", 50, record(2)), "a.jpg"), lake)
    assert status == 0 and "by the row key of its own record" in text and "saved again" in text
    assert "PROBABLE" not in text and "CONTRADICTION" not in text and "image " + files.sha256_hex(DRAWN[2])[:12] in text


def test_a_record_that_contradicts_the_lake_is_reported_with_both_values(
    lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited = dataclasses.replace(record(0), image={**record(0).image, "prompt": "a cat\x1b[2J", "seed": 9})
    status, text = up(capsys, written(tmp_path, encode_image(scene(0), "png", record=edited)), lake)
    assert status == 1 and "the record was edited" in text
    assert r"prompt: the file states a cat\x1b[2J, the lake a corgi" in text
    assert "seed: the file states 9, the lake 0" in text and "\x1b" not in text


def test_the_record_of_another_image_is_seen_by_the_pixels(
    lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = up(capsys, written(tmp_path, encode_image(scene(77), "png", record=record(0))), lake)
    assert status == 1 and "the pixels are not those of the image that the record names" in text


def test_a_stripped_copy_is_probable_and_never_certain(
    lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Image.fromarray(scene(3)).resize((97, 131))
    file = written(tmp_path, saved(small, format="JPEG", quality=60), "copy.jpg")
    status, text = up(capsys, file, lake)
    assert status == 0 and "PROBABLE, not certain" in text and "holds no record: it was stripped or made" in text
    found = json.loads(up(capsys, file, lake, "--json")[1])["file"]
    assert found["match"] == "probable" and found["candidates"][0]["image"] == files.sha256_hex(DRAWN[3])
    assert found["candidates"][0]["distance"] <= NEAR and found["record"] is None


def test_what_is_not_found_is_stated_and_the_status_is_1(
    lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stripped = written(tmp_path, saved(Image.fromarray(scene(50)), format="PNG"))
    for where in (None, lake):
        status, text = up(capsys, stripped, where)
        assert status == 1 and "holds no record: it was stripped or made elsewhere" in text
    plain = written(tmp_path, saved(Image.new("RGB", (64, 64), (9, 9, 9)), format="PNG"), "plain.png")
    assert up(capsys, plain, lake)[0] == 1 and "has too little structure" in up(capsys, plain, lake)[1]
    status, text = up(capsys, written(tmp_path, b"\x1b]0;title\x07 no image", "\x1bnote.txt"), lake)
    assert status == 1 and "cannot be decoded" in text and "\x1b" not in text
    status, text = up(capsys, written(tmp_path, encode_image(scene(60), "png", record=record(0))), None)
    assert status == 0
    assert main(["lineage", "up", str(tmp_path / "missing.png")]) == 2
    assert main(["lineage", "up", "generations"]) == 2


def test_the_threshold_is_between_copies_and_other_images() -> None:
    """Copies are saved again, resized, greyed or slightly brighter; 60 images are compared with each other."""
    copies = []
    hashes = np.array([phash_rgb(scene(number)) for number in range(60)], np.int64)
    for number in range(60):
        image = Image.fromarray(scene(number))
        for again in (
            saved(image, format="JPEG", quality=30), saved(image, format="WEBP", quality=40),
            saved(image.resize((64, 64)), format="JPEG", quality=75), saved(image.resize((400, 300)), format="PNG"),
            saved(image.convert("L"), format="PNG"),
            saved(image.point(lambda value: min(value + 12, 255)), format="PNG"),
            saved(image.convert("P", palette=Image.Palette.ADAPTIVE, colors=64), format="GIF"),
        ):  # fmt: skip
            with Image.open(io.BytesIO(again)) as opened:
                copies.append(distance(int(hashes[number]), phash_rgb(np.asarray(opened.convert("RGB")))))
    others = np.array([distances(int(one), hashes) for one in hashes])
    others = others[~np.eye(len(hashes), dtype=bool)]
    assert max(copies) <= 6 and others.min() >= 16 and 6 < NEAR < 16
    assert is_plain(phash_rgb(np.full((64, 64, 3), 200, np.uint8)))
    assert not any(is_plain(int(one)) for one in hashes)


def test_a_job_writes_records_that_the_lake_confirms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The job's own files, and the same without records: pixels are equal, row keys are not."""
    lake = generation_lake.make_lake(tmp_path, prompts=6)
    version = generation_lake.generate(lake, generation_lake.config(lake))
    plain = generation_lake.generate(lake, generation_lake.config(lake, file_record=False), dataset="plain")
    for row, other in zip(version.read().to_pylist(), plain.read().to_pylist(), strict=True):
        assert row["row_key"] != other["row_key"] and row["image"] != other["image"]
        pixels, same = (np.asarray(Image.open(io.BytesIO(one["image"]))) for one in (row, other))
        np.testing.assert_array_equal(pixels, same)
        assert row["perceptual_hash"] == other["perceptual_hash"] == phash_rgb(pixels)
    again = generation_lake.generate(lake, generation_lake.config(lake, rows_per_unit=2), dataset="again")
    assert again.read(["image_sha256"]).equals(version.read(["image_sha256"]))
    file = written(tmp_path, row["image"])
    status, text = up(capsys, file, None)
    assert status == 0 and row["row_key"] in text and row["prompt"] in text
    found = json.loads(up(capsys, file, lake, "--json")[1])["file"]
    assert found["match"] == "bytes" and found["contradictions"] == [] and not found["record_edited"]
    assert tmp_path.name not in json.dumps(found["record"])


def test_what_is_drawn_without_a_dataset_has_a_record_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=1)
    settings = generation_lake.config(lake)
    model = resolve_model(settings.model, lake)
    drawing = Drawing(model, settings)
    requests = drawing.requests(
        ["a corgi"], negative_prompt="", seed=3, width=16, height=16, steps=2, guidance_scale=2.0, sampler="ddim"
    )
    for files_so_far in drawing.draw(requests):
        (file,) = files_so_far
    assert file is not None
    status, text = up(capsys, file, None)
    assert status == 0 and "a corgi" in text and model.content in text and "CONTRADICTION" not in text
    drawing.close()
