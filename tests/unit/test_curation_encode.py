"""Latents are a function of the image, the row id and the config, not of neighbours, units or order."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from altdiffusion.curation.config import EncodeConfig
from altdiffusion.curation.encoding.caption_tokens import token_ids
from altdiffusion.curation.encoding.encode_work import EncodeWork, Target, check_stored_size, plan_encode
from altdiffusion.diffusion.image_crop import crop, open_rgb
from altdiffusion.diffusion.noise import LATENT_SAMPLE, keyed_normal
from altdiffusion.diffusion.pinned_files import folder_digest
from altdiffusion.errors import AltDiffusionError
from altdiffusion.records import LATENTS
from altdiffusion.storage.dataset import Lake, Version
from tests.curation_lake import image, write_images
from tests.encode_job import save_models

RESOLUTION = 32
ROWS = 11


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return a small autoencoder (factor 4) and a word tokenizer."""
    return save_models(tmp_path_factory.mktemp("models"))


def encode(lake: str, images: Version, models: dict[str, str], rows_per_unit: int = 100, **given: Any) -> pa.Table:
    config = EncodeConfig(**{**models, "resolution": RESOLUTION, "max_length": 6, "micro_batch": 4, **given})
    target = Target(dataset="latents", resolution=config.resolution)
    work = EncodeWork(lake=lake, targets=[target], config=config)
    work.setup()
    dataset = Lake(lake).dataset("latents")
    records = [record for unit in plan_encode(images, rows_per_unit) for record in work.run_outputs(unit, ["latents"])]
    return dataset.publish(kind="latents", records=records, parents=[images.ref], config={}, fingerprint="f").read()


def test_rows_carry_scaled_latents_tokens_and_their_crop(tmp_path: Path, models: dict[str, str]) -> None:
    from diffusers import AutoencoderKL

    lake = str(tmp_path)
    version = write_images(lake, range(ROWS))
    table = encode(lake, version, models)
    assert table.schema.equals(LATENTS) and table.num_rows == ROWS
    row = table.to_pylist()[3]
    assert (row["channels"], row["height"], row["width"], row["resolution"]) == (4, 8, 8, 32)
    assert row["token_ids"] == [5, 6, 0, 0, 0, 0]
    assert row["aesthetic"] == 8.0 and table["aesthetic"][2].as_py() == 7.0
    found = Image.open(io.BytesIO(image(3, (43, 36)))).resize((38, 32), Image.Resampling.BILINEAR)
    left, top = row["crop_left"], row["crop_top"]
    assert 0 <= left <= 6 and top == 0
    pixels = np.asarray(found.crop((left, top, left + 32, top + 32)), np.float32).transpose(2, 0, 1) / 127.5 - 1
    vae: Any = AutoencoderKL.from_pretrained(models["vae"]).eval()
    with torch.no_grad():
        mean = vae.encode(torch.from_numpy(pixels)[None]).latent_dist.mean[0]
    stored = np.frombuffer(row["latent"], "<f2").reshape(4, 8, 8)
    expected = ((mean - 0.25) * 0.5).numpy()
    assert np.abs(stored - expected).max() <= 2**-10 * max(1.0, np.abs(expected).max())


def test_a_row_is_encoded_the_same_in_any_order_and_unit(tmp_path: Path, models: dict[str, str]) -> None:
    order = list(range(ROWS))
    first = encode(str(tmp_path / "a"), write_images(str(tmp_path / "a"), order), models)
    mixed = order[::-1]
    second = encode(str(tmp_path / "b"), write_images(str(tmp_path / "b"), mixed), models, rows_per_unit=3)
    by_id = [pa.Table.sort_by(table, "sample_id") for table in (first, second)]
    assert by_id[0].equals(by_id[1])


def test_crops_are_spread_over_the_free_pixels_and_keyed_by_the_seed(tmp_path: Path, models: dict[str, str]) -> None:
    sizes = dict.fromkeys(range(30), (64, 32))
    version = write_images(str(tmp_path), list(range(30)), sizes)
    lefts = [encode(str(tmp_path), version, models, seed=seed)["crop_left"].to_pylist() for seed in (0, 1)]
    assert lefts[0] != lefts[1]
    assert min(lefts[0]) < 8 and max(lefts[0]) > 24 and all(0 <= left <= 32 for left in lefts[0])


def test_a_square_at_the_edges_of_its_range() -> None:
    rgb = open_rgb(image(1, (50, 32)))
    assert crop(rgb, (32, 32), np.array([0.0, 0.0], np.float32))[1] == (0, 0)
    assert crop(rgb, (32, 32), np.array([1 - 2**-24] * 2, np.float32))[1] == (0, 18)
    pixels, _ = crop(rgb, (32, 32), np.array([0.5, 0.5], np.float32))
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8


def test_a_sampled_latent_is_mean_plus_std_times_keyed_noise(tmp_path: Path, models: dict[str, str]) -> None:
    version = write_images(str(tmp_path), [0, 1])
    mode, sample = (encode(str(tmp_path), version, models, latent=kind) for kind in ("mode", "sample"))
    assert sample.equals(encode(str(tmp_path), version, models, latent="sample"))
    means, samples = (
        np.stack([np.frombuffer(x, "<f2").reshape(4, 8, 8) for x in t["latent"].to_pylist()]).astype(float)
        for t in (mode, sample)
    )
    noise = keyed_normal(0, torch.tensor(mode["sample_id"].to_pylist()), LATENT_SAMPLE, (4, 8, 8)).numpy()
    std = (samples - means) / noise / 0.5  # what the noise was multiplied by: positive, as a deviation is
    assert (np.median(std) > 0) and np.mean(std[np.abs(noise) > 0.5] > 0) > 0.99


def test_small_images_are_rejected_not_enlarged(tmp_path: Path, models: dict[str, str]) -> None:
    version = write_images(str(tmp_path), [0, 1, 2], {1: (31, 60)})
    table = encode(str(tmp_path), version, models)
    assert table["sample_id"].to_pylist() == [1000, 986]
    (reject,) = pa.concat_tables(Lake(str(tmp_path)).version("latents").iter_rejects()).to_pylist()
    assert (reject["row"], reject["reason"], reject["detail"]) == (1, "resolution", "31 px")
    nothing = write_images(str(tmp_path / "b"), [1], {1: (31, 60)})
    assert encode(str(tmp_path / "b"), nothing, models).num_rows == 0


def test_captions_with_a_language_suffix_never_reach_the_tokenizer(models: dict[str, str]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models["tokenizer"])
    with pytest.raises(AltDiffusionError, match="language suffix would reach the text encoder"):
        token_ids(tokenizer, ["w1", "w2\tde"], 6)
    long = token_ids(tokenizer, [" ".join(["w3"] * 20)], 6)
    assert long.to_pylist() == [[5] * 6]


def test_other_models_than_those_pinned_are_refused_and_make_other_units(
    tmp_path: Path, models: dict[str, str]
) -> None:
    target = Target(dataset="x", resolution=32)
    for name in ("vae", "tokenizer"):
        for digest, refused in (("0" * 64, True), (folder_digest(models[name]), False)):
            config = EncodeConfig(**models, **{f"{name}_digest": digest})
            work = EncodeWork(lake=str(tmp_path), targets=[target], config=config)
            if refused:
                with pytest.raises(AltDiffusionError, match="has digest"):
                    work.setup()
            else:
                work.setup()
    version = write_images(str(tmp_path), [0])
    assert plan_encode(version, 10, "a")[0].id != plan_encode(version, 10, "b")[0].id
    with pytest.raises(AltDiffusionError, match="is missing or empty"):
        folder_digest(str(tmp_path / "none"))


def test_threads_ahead_of_the_vae_change_nothing(tmp_path: Path, models: dict[str, str]) -> None:
    version = write_images(str(tmp_path), range(ROWS))
    tables = [encode(str(tmp_path), version, models, threads=threads) for threads in (0, 1, 3)]
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])


def test_an_image_that_cannot_be_read_is_rejected_and_the_others_stay(tmp_path: Path, models: dict[str, str]) -> None:
    whole = encode(str(tmp_path / "a"), write_images(str(tmp_path / "a"), range(6)), models)
    bad = {1: b"no picture", 4: image(4, (44, 36))[:100]}
    table = encode(str(tmp_path / "b"), write_images(str(tmp_path / "b"), range(6), bodies=bad), models)
    assert table.equals(whole.take(pa.array([0, 2, 3, 5])).combine_chunks())
    rejects = pa.concat_tables(Lake(str(tmp_path / "b")).version("latents").iter_rejects()).to_pylist()
    assert [(r["row"], r["sample_id"], r["reason"]) for r in rejects] == [(1, 993, "decode"), (4, 972, "decode")]
    assert "UnidentifiedImageError" in rejects[0]["detail"] and "truncated" in rejects[1]["detail"]


def test_an_image_that_download_enlarged_is_a_small_one(tmp_path: Path, models: dict[str, str]) -> None:
    version = write_images(str(tmp_path), range(3), originals={1: (30, 25)})
    assert encode(str(tmp_path), version, models)["sample_id"].to_pylist() == [1000, 986]
    (reject,) = pa.concat_tables(Lake(str(tmp_path)).version("latents").iter_rejects()).to_pylist()
    assert (reject["row"], reject["reason"], reject["detail"]) == (1, "resolution", "25 px")


def download(image_size: int, resize_mode: str = "keep_ratio") -> dict[str, Any]:
    return {"download": {"image_size": image_size, "resize_mode": resize_mode}}


def test_images_stored_smaller_than_the_resolution_are_refused_by_both_names(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    small = write_images(lake.uri, range(2), config=download(384))
    later = write_images(lake.uri, [0], config={"distinct": {}}, parents=[small])
    for version in (small, later):
        check_stored_size(lake, version, 384)
        with pytest.raises(AltDiffusionError, match=r"resolution 512: is more than the 384 pixels.*images@") as caught:
            check_stored_size(lake, version, 512)
        assert str(small.ref) in str(caught.value)
    for config in (download(512), download(256, "no"), {}):
        check_stored_size(lake, write_images(lake.uri, [1], config=config), 512)


PUBLISHED = {
    "en": "a red bicycle leans against the wall of an old house",
    "zh": "一辆红色的自行车靠在老房子的墙上",
    "ja": "赤い自転車が古い家の壁に立てかけてあります",
    "th": "จักรยานสีแดงพิงกำแพงบ้านเก่าในหมู่บ้าน",
    "ko": "빨간 자전거가 오래된 집 벽에 기대어 있습니다",
    "hi": "एक लाल साइकिल पुराने घर की दीवार से टिकी है",
    "uk": "червоний велосипед стоїть біля стіни старої хати",
    "ar": "دراجة حمراء متكئة على جدار منزل قديم",
    "tr": "kırmızı bir bisiklet eski bir evin duvarına yaslanıyor",
    "vi": "một chiếc xe đạp màu đỏ dựa vào tường một ngôi nhà cũ",
    "pl": "czerwony rower stoi oparty o ścianę starego domu",
    "nl": "een rode fiets staat tegen de muur van een oud huis",
    "pt": "uma bicicleta vermelha encostada na parede de uma casa velha",
    "it": "una bicicletta rossa appoggiata al muro di una vecchia casa",
    "es": "una bicicleta roja apoyada en la pared de una casa vieja",
    "de": "ein rotes Fahrrad lehnt an der Mauer eines alten Hauses",
    "fr": "un vélo rouge appuyé contre le mur d'une vieille maison",
    "ru": "красный велосипед стоит у стены старого дома",
}


def test_published_captions_reach_the_tokenizer_without_their_language(tmp_path: Path, models: dict[str, str]) -> None:
    """From the published field `caption\\tlang` through select to token ids, which decode to the caption alone."""
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from altdiffusion.curation.config import LanguageConfig, SelectConfig, SourceConfig
    from altdiffusion.curation.links.select_work import SelectWork
    from altdiffusion.curation.links.sources import plan_sources, scan_source

    rows = len(PUBLISHED)
    columns = {
        "URL": [f"http://site.example/{number}.jpg" for number in range(rows)],
        "TEXT": [f"{text}\t{language}" for language, text in PUBLISHED.items()],
        "WIDTH": [640] * rows,
        "HEIGHT": [480] * rows,
        "similarity": [0.35] * rows,
        "LANGUAGE": list(PUBLISHED),
    }
    pq.write_table(pa.table(columns), tmp_path / "part.parquet")
    source = SourceConfig(name="crawl", uri=str(tmp_path / "part.parquet"))
    select = SelectConfig(punsafe_below=None, pwatermark_below=None, buckets=1)
    selecting = SelectWork(lake=str(tmp_path), dataset="links", source=source, select=select, language=LanguageConfig())
    selecting.setup()
    records = [selecting.run(unit) for unit in plan_sources([scan_source(source)])]
    links = Lake(str(tmp_path)).dataset("links")
    links.publish(kind="links", records=records, parents=[], config={}, fingerprint="f")
    captions = dict(enumerate(Lake(str(tmp_path)).version("links").read()["caption"].to_pylist()))
    assert len(captions) >= 16  # the decision of the language identifier

    letters = Tokenizer(kinds.BPE({c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>").save_pretrained(tmp_path / "letters")
    images = write_images(str(tmp_path), range(len(captions)), captions=captions)
    table = encode(str(tmp_path), images, {**models, "tokenizer": str(tmp_path / "letters")}, max_length=200)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "letters")
    decoded = tokenizer.batch_decode(table["token_ids"].to_pylist(), skip_special_tokens=True)
    assert decoded == table["caption"].to_pylist()
    assert set(decoded) <= set(PUBLISHED.values())  # nothing behind the text, neither tab nor code
