"""Generation without Ray: the dataset it makes, its repeatability, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from altdiffusion.diffusion.models import load_bundle
from altdiffusion.diffusion.text_encoder import tokenize
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.generate_work import decode_images, images_folder
from altdiffusion.generation.model import resolve_model
from altdiffusion.generation.truncation import read_by
from altdiffusion.records import PROMPT_ROW
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.verification import damages_of
from tests import generation_lake, training_lake
from tests.flipped import flip


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    return generation_lake.make_lake(tmp_path_factory.mktemp("generation"))


def test_every_prompt_becomes_one_image(lake: str) -> None:
    version = generation_lake.generate(lake, generation_lake.config(lake))
    rows = version.read().to_pylist()
    prompts = Lake(lake).version("prompts").read().to_pylist()
    identity = [field.name for field in PROMPT_ROW]
    assert [{name: row[name] for name in identity} for row in rows] == [
        {name: prompt[name] for name in identity} for prompt in prompts
    ]
    assert version.manifest.rows_by_language == {"de": 10, "en": 10, "ja": 10}
    for row in rows:
        assert row["image_sha256"] == hashlib.sha256(row["image"]).hexdigest()
        file = Path(images_folder(lake, "drawn")) / f"{row['image_sha256']}.png"
        assert file.read_bytes() == row["image"]
        assert decode_images([row["image"]]).shape == (1, row["height"], row["width"], 3)
        assert (row["sampler"], row["steps"], row["guidance_scale"]) == ("ddim", 2, 2.0)
        assert row["checkpoint"] == str(resolve_model(generation_lake.config(lake).model, lake).ref)
    assert damages_of(version) == []


def test_other_units_draw_the_same_images(lake: str) -> None:
    small = generation_lake.generate(lake, generation_lake.config(lake), dataset="small").read(["id", "image_sha256"])
    large = generation_lake.generate(
        lake, generation_lake.config(lake, rows_per_unit=28, image_files=False), dataset="large"
    ).read(["id", "image_sha256"])
    assert small.equals(large)
    assert not Path(images_folder(lake, "large")).exists()


def test_the_same_command_again_draws_nothing(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = generation_lake.generate(lake, generation_lake.config(lake), dataset="again")
    monkeypatch.setattr("altdiffusion.diffusion.models.load_bundle", lambda *_: pytest.fail("a model was loaded"))
    assert generation_lake.generate(lake, generation_lake.config(lake), dataset="again").ref == first.ref


def test_an_export_is_found_by_its_run_and_named_by_its_checkpoint(lake: str) -> None:
    from altdiffusion.diffusion.models import save_bundle

    checkpoint = f"checkpoint:run-a/step-00000020@{'c' * 64}"
    for step in (10, 20):
        folder = Path(lake) / "exports" / "run-a" / f"step-{step:08d}"
        save_bundle(training_lake.bundle(step), folder)
        (folder / "lineage.json").write_text(f'{{"parents": ["{checkpoint}"]}}')
    newest = resolve_model(generation_lake.config(lake, model={"run": "run-a"}).model, lake)
    assert newest.uri.endswith("step-00000020")
    assert str(newest.ref) == checkpoint
    older = resolve_model(generation_lake.config(lake, model={"run": "run-a", "step": 10}).model, lake)
    assert older.content != newest.content
    with pytest.raises(AltDiffusionError, match=r"run run-a: has no export of step 15 .* steps 10, 20"):
        resolve_model(generation_lake.config(lake, model={"run": "run-a", "step": 15}).model, lake)
    with pytest.raises(AltDiffusionError, match=r"run run-b: has no export .* runs with exports: run-a"):
        resolve_model(generation_lake.config(lake, model={"run": "run-b"}).model, lake)


def test_the_wrong_or_a_changed_model_is_refused(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=4)
    settings = generation_lake.config(lake, model={"folder": f"{lake}/models/base", "digest": "0" * 12})
    with pytest.raises(AltDiffusionError, match=r"model folder .*models/base: has content .*, not 000000000000"):
        resolve_model(settings.model, lake)
    pinned = resolve_model(generation_lake.config(lake).model, lake)
    (Path(lake) / "models/base/lineage.json").write_text(f'{{"content": "{pinned.content}"}}')
    assert resolve_model(generation_lake.config(lake).model, lake).content == pinned.content

    weights = Path(lake) / "models/base/unet/diffusion_pytorch_model.safetensors"
    flip(weights, -5)
    with pytest.raises(AltDiffusionError, match="was changed or damaged"):
        resolve_model(generation_lake.config(lake).model, lake)

    from altdiffusion.generation.generate_work import GenerateWork

    with pytest.raises(AltDiffusionError, match="changed while images were drawn"):
        GenerateWork(lake, "drawn", pinned, generation_lake.config(lake)).setup()
    with pytest.raises(AltDiffusionError, match="holds no model_index"):
        resolve_model(generation_lake.config(lake, model={"folder": f"{lake}/models/none"}).model, lake)


def test_a_size_that_the_model_cannot_draw_is_named(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=4)
    file = Path(lake) / "prompts.jsonl"
    file.write_text(file.read_text().replace('"width": 16', '"width": 20', 1))
    loose = {"file": str(file), "size_multiple": 4, "default_size": 16}
    with pytest.raises(AltDiffusionError, match=r"prompt p1 of .*: requires 20 x 16 pixels.*multiples of 8"):
        generation_lake.generate(lake, generation_lake.config(lake, prompts=loose))


def test_what_the_encoder_does_not_read_is_recorded_and_named(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=2)
    tokenizer = load_bundle(f"{lake}/models/base").tokenizer
    most = tokenizer.model_max_length
    words = [f"word{number}" for number in range(400)]
    texts = ["a cat", " ".join(words), ""]
    reading = read_by(tokenizer, texts)
    assert reading.truncated.tolist() == [False, True, False]
    assert reading.tokens.tolist() == [len(tokenizer(text, verbose=False).input_ids) for text in texts]
    assert texts[1].endswith(reading.unread[1])
    read = texts[1].removesuffix(reading.unread[1])
    assert tokenize(tokenizer, [read]).tolist() == tokenize(tokenizer, texts[1:2]).tolist()
    assert len(tokenizer(read).input_ids) == most
    exact = " ".join(words[:5])
    room = len(tokenizer(exact).input_ids)
    assert not read_by(tokenizer, [exact], room).truncated[0] and read_by(tokenizer, [exact], room - 1).truncated[0]
    assert read_by(tokenizer, []).tokens.tolist() == []

    file = Path(lake) / "prompts.jsonl"
    lines = file.read_text().splitlines()
    file.write_text(
        "\n".join(json.dumps({**json.loads(line), "prompt": text}) for line, text in zip(lines, texts, strict=False))
    )
    version = generation_lake.generate(lake, generation_lake.config(lake))
    rows = version.read(["prompt_tokens", "truncated"]).to_pylist()
    assert [row["truncated"] for row in rows] == [False, True]
    assert rows[1]["prompt_tokens"] == reading.tokens[1]


def test_a_bad_prompt_is_a_reject_and_the_others_are_drawn(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=4)
    file = Path(lake) / "prompts.jsonl"
    lines = file.read_text().replace('"width": 16', '"width": 20', 1).splitlines()
    file.write_text("\n".join([*lines[:2], '{"id": "blank", "prompt": " "}', *lines[2:]]))
    version = generation_lake.generate(lake, generation_lake.config(lake))
    assert version.read(["id"])["id"].to_pylist() == ["p0", "p2", "p3"]
    prompts = Lake(lake).version("prompts")
    assert prompts.manifest.rejects_by_reason == {"prompt_blank": 1, "prompt_size": 1}
    assert [reject["row"] for reject in pa.concat_tables(prompts.iter_rejects()).to_pylist()] == [1, 2]


def test_images_survive_png(lake: str) -> None:
    from altdiffusion.generation.generate_work import encode_png

    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_images([encode_png(image)])[0], image)
