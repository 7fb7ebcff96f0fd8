"""Published lists of prompts load by name: each file here has exactly the shape of the real one, with rows of our own.

The shapes: djghosh13/geneval (prompts/), google-research/parti (PartiPrompts.tsv), DrawBench's table as CSV,
tgxs002/HPSv2 (benchmark/*.json), Crossmodal-3600 (captions.jsonl), poloclub/diffusiondb (metadata.parquet),
superhero-7/AltDiffusion (misc/evaluation*), mlcommons/inference (coco2014/captions/captions_source.tsv),
AUTOMATIC1111/stable-diffusion-webui (scripts/prompts_from_file.py and the text that it keeps with images).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.prompt_presets import FIELDS, PRESETS
from altdiffusion.generation.prompts import Prompts, read_prompts
from altdiffusion.generation.settings import PromptsConfig


def load(path: Path, preset: str, **settings: Any) -> Prompts:
    return read_prompts(PromptsConfig(file=str(path), preset=preset, **settings))


def rows(path: Path, preset: str, *names: str, **settings: Any) -> list[tuple[Any, ...]]:
    """Return some columns of the accepted rows; no row is a reject."""
    prompts = load(path, preset, **settings)
    assert not prompts.rejects.num_rows, prompts.rejects.to_pylist()
    return [tuple(row[name] for name in names) for row in prompts.accepted.to_pylist()]


def test_presets_map_to_our_names() -> None:
    for name, preset in PRESETS.items():
        assert name == name.lower() and {*preset.columns} <= {*FIELDS} and "prompt" in preset.columns, name


def test_geneval(tmp_path: Path) -> None:
    metadata = [
        {"tag": "single_object", "include": [{"class": "kite", "count": 1}], "prompt": "a photo of a kite"},
        {
            "tag": "counting",
            "include": [{"class": "kite", "count": 3}],
            "exclude": [{"class": "kite", "count": 4}],
            "prompt": "a photo of three kites",
        },
        {
            "tag": "position",
            "include": [{"class": "cup", "count": 1}, {"class": "kite", "count": 1, "position": ["left of", 0]}],
            "prompt": "a photo of a kite left of a cup",
        },
    ]
    lines, text = tmp_path / "evaluation_metadata.jsonl", tmp_path / "generation_prompts.txt"
    lines.write_text("".join(json.dumps(one) + "\n" for one in metadata))
    text.write_text("".join(f"{one['prompt']}\n" for one in metadata))
    expected = [(f"row-{n:07}", one["prompt"], "en") for n, one in enumerate(metadata, 1)]
    assert rows(lines, "geneval", "id", "prompt", "language") == expected
    assert rows(text, "geneval", "id", "prompt", "language") == expected
    assert load(lines, "geneval").accepted.equals(load(text, "geneval").accepted)  # seeds too


def test_partiprompts(tmp_path: Path) -> None:
    path = tmp_path / "PartiPrompts.tsv"
    path.write_text(
        "Prompt\tCategory\tChallenge\tNote\n"
        "7\tAbstract\tBasic\tNumbers\n"
        'A wall with the words "Mind the step", and a ladder.\tIndoor Scenes\tWriting & Symbols\t\n'
    )
    assert rows(path, "partiprompts", "id", "prompt", "language") == [
        ("row-0000001", "7", "en"),
        ("row-0000002", 'A wall with the words "Mind the step", and a ladder.', "en"),
    ]


def test_drawbench(tmp_path: Path) -> None:
    path = tmp_path / "DrawBench.csv"
    path.write_bytes(b'Prompts,Category\r\nA green bus.,Colors\r\n"A dog, left of a bus.",Positional\r\n')
    assert rows(path, "drawbench", "prompt", "language") == [("A green bus.", "en"), ("A dog, left of a bus.", "en")]


def test_hpsv2(tmp_path: Path) -> None:
    path = tmp_path / "anime.json"
    path.write_text(json.dumps(["A robot on a swing", "Two foxes, watercolour"]))
    assert rows(path, "hpsv2", "id", "prompt", "language") == [
        ("row-0000001", "A robot on a swing", "en"),
        ("row-0000002", "Two foxes, watercolour", "en"),
    ]


def test_xm3600_has_one_row_per_caption(tmp_path: Path) -> None:
    def captions(*texts: str) -> dict[str, list[str]]:
        lowered = [text.lower() for text in texts]
        return {"caption": list(texts), "caption/tokenized": list(texts), "caption/tokenized/lowercase": lowered}

    images = [
        {
            "image/key": "00aa",
            "image/locale": "de",
            "de": captions("Ein Boot", "Boot am See"),
            "fil": captions("Bangka"),
        },
        {"image/key": "00bb", "image/locale": "zh", "zh": captions("一条河"), "de": captions(" ")},
        {"image/key": "00cc", "image/locale": "sw"},
    ]
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(image) + "\n" for image in images))
    prompts = load(path, "xm3600")
    assert [(row["id"], row["language"], row["prompt"]) for row in prompts.accepted.to_pylist()] == [
        ("00aa-de", "de", "Ein Boot"), ("00aa.2-de", "de", "Boot am See"), ("00aa-fil", "fil", "Bangka"),
        ("00bb-zh", "zh", "一条河"),
    ]  # fmt: skip
    assert prompts.rejects["row"].to_pylist() == [4, 5]
    assert prompts.rejects["detail"].to_pylist() == [
        "row 2, field prompt: ' ' is blank", "row 3: has no image/key, or no captions by language",
    ]  # fmt: skip
    assert load(path, "xm3600", languages=("de",)).by_language == {"de": 2}


def test_diffusiondb(tmp_path: Path) -> None:
    columns = {
        "image_name": ["3bfc.png", "5f47.png", "66b4.png"],
        "prompt": ["a lighthouse, oil", "a lighthouse, oil", "a snail"],
        "part_id": pa.array([1, 1, 2], pa.uint16()),
        "seed": pa.array([2615452719, 0, 4294967295], pa.uint32()),
        "step": pa.array([50, 50, 25], pa.uint16()),
        "cfg": pa.array([7.0, 12.5, 7.0], pa.float32()),
        "sampler": pa.array([1, 8, 8], pa.uint8()),
        "width": pa.array([512, 640, 512], pa.uint16()),
        "height": pa.array([512, 512, 1024], pa.uint16()),
        "user_name": ["u"] * 3,
        "timestamp": pa.array([datetime(2022, 8, 8, tzinfo=UTC)] * 3),
        "image_nsfw": pa.array([0.1] * 3, pa.float32()),
        "prompt_nsfw": pa.array([0.1] * 3, pa.float32()),
    }
    path = tmp_path / "metadata.parquet"
    pq.write_table(pa.table(columns), path)
    names = ("id", "prompt", "seed", "steps", "guidance_scale", "sampler", "width", "height", "language")
    assert rows(path, "diffusiondb", *names) == [
        ("3bfc", "a lighthouse, oil", 2615452719, 50, 7.0, "ddim", 512, 512, "und"),
        ("5f47", "a lighthouse, oil", 0, 50, 12.5, None, 640, 512, "und"),  # k_lms: the job's own sampler
        ("66b4", "a snail", 4294967295, 25, 7.0, None, 512, 1024, "und"),
    ]
    assert rows(path, "diffusiondb", "steps", "sampler", ignore=("steps", "sampler")) == [(None, None)] * 3


def test_the_altdiffusion_authors_files(tmp_path: Path) -> None:
    german = [
        {"target_caption": "Ein Leuchtturm", "source_caption": "A lighthouse", "image": "/data/images/0012.jpg"},
        {"target_caption": ["Eine Schnecke", "Schnecken"], "image": "/data/images/0013.jpg"},
    ]
    english = [{"source_caption": "A lighthouse", "image": "/data/images/0012.jpg"}]
    de, en = tmp_path / "gt_de.json", tmp_path / "gt.json"
    de.write_text(json.dumps(german))
    en.write_text(json.dumps(english))
    names = ("id", "prompt", "language")
    assert rows(de, "altdiffusion", *names, language="de") == [
        ("0012", "Ein Leuchtturm", "de"), ("0013", "Eine Schnecke", "de"),
    ]  # fmt: skip
    assert rows(en, "altdiffusion", *names) == [("0012", "A lighthouse", "en")]


def test_mlperf(tmp_path: Path) -> None:
    path = tmp_path / "captions_source.tsv"
    path.write_text(
        "id\timage_id\tcaption\theight\twidth\tfile_name\tcoco_url\n"
        "70\t227049\tA tram in the rain.\t640\t427\tCOCO_val2014_000000227049.jpg\thttp://example.org/227049.jpg\n"
    )
    names = ("id", "prompt", "language", "width", "height")
    assert rows(path, "mlperf", *names, default_size=1024) == [("70", "A tram in the rain.", "en", 1024, 1024)]


WEBUI = """\
a lighthouse, (oil:1.2)
Negative prompt: fog, blur
Steps: 20, Sampler: Euler, CFG scale: 7.5, Seed: 965400086, Size: 512x768, Model hash: 1a2b, Lora hashes: "a: 1, b: 2"
a snail
on a leaf

Steps: 30, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 3, Size: 64x64
one fox

--prompt "two foxes" --negative_prompt text, words --seed 1 --width 256 --height 128 --cfg_scale 5 --steps 12 --batch_size 2 --n_iter 3
--prompt three foxes --sampler_name "DDIM" --seed -1
--prompt "four --seed 1
--prompt five --colour red
a -- b, masterpiece
"""  # noqa: E501


def test_a1111(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(WEBUI)
    prompts = load(path, "a1111")
    found = {row["id"]: {name: value for name, value in row.items() if value is not None}
             for row in prompts.accepted.to_pylist()}  # fmt: skip
    assert list(found) == [f"row-{number:07}" for number in (1, 4, 5, 8, 10, 11, 14)]
    first = found["row-0000001"]
    assert (first["prompt"], first["negative_prompt"]) == ("a lighthouse, (oil:1.2)", "fog, blur")
    assert (first["steps"], first["guidance_scale"], first["seed"]) == (20, 7.5, 965400086)
    assert (first["width"], first["height"]) == (512, 768)
    options = found["row-0000010"]
    assert (options["prompt"], options["negative_prompt"]) == ("two foxes", "text, words")
    assert (options["seed"], options["width"], options["height"], options["guidance_scale"]) == (1, 256, 128, 5.0)
    assert (options["steps"], options["count"]) == (12, 6)
    drawn = found["row-0000011"]
    assert (drawn["prompt"], drawn["sampler"]) == ("three foxes", "ddim") and drawn["seed"] >= 0  # -1: any seed
    assert found["row-0000014"]["prompt"] == "a -- b, masterpiece"
    details = prompts.rejects["detail"].to_pylist()
    assert details == [
        "row 7, field prompt: None is blank",
        "row 12: has options that cannot be read (No closing quotation)",
        "row 13: has the unknown option --colour",
    ]


def test_an_image_text_may_take_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a snail\non a leaf\nNegative prompt: fog\nrain\nSteps: 30, Seed: 3, Size: 64x64\n\nx\ny\n")
    assert rows(path, "a1111", "prompt", "negative_prompt") == [
        ("a snail\non a leaf", "fog\nrain"), ("x", None), ("y", None),
    ]  # fmt: skip


def test_a_preset_states_what_it_reads(tmp_path: Path) -> None:
    for name, preset in (("a.csv", "a1111"), ("a.parquet", "xm3600"), ("a.txt", "altdiffusion")):
        with pytest.raises(AltDiffusionError, match=f"unknown format.*preset {preset} reads"):
            load(tmp_path / name, preset)
    (tmp_path / "a.csv").write_text("prompt\na\n")
    with pytest.raises(AltDiffusionError, match="has no column 'Prompts'; it has: prompt"):
        load(tmp_path / "a.csv", "drawbench")
    assert rows(tmp_path / "a.csv", "drawbench", "prompt", columns={"prompt": "prompt"}) == [("a",)]
