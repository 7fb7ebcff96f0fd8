"""Arrow schemas of every dataset kind: column, dtype, unit, meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import pyarrow as pa

Kind = Literal[
    "links",
    "images",
    "keys",
    "drops",
    "scores",
    "latents",
    "parallel",
    "prompts",
    "generations",
    "features",
    "kept",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


def _field(name: str, dtype: pa.DataType, meaning: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, dtype, nullable=nullable, metadata={"meaning": meaning})


_ROW = [
    _field("sample_id", pa.int64(), "LAION's row id: mmh3.hash64(url + text)[0], signed"),
    _field("url", pa.string(), "where the picture was published"),
    _field("caption", pa.string(), "the text beside the picture, cleaned"),
    _field("original_caption", pa.string(), "the same as published, where cleaning changed it", nullable=True),
    _field("language", pa.string(), "our decision, one of the configured languages"),
    _field("language_score", pa.float32(), "confidence of that decision, 0 to 1"),
    _field("source_language", pa.string(), "the source's own label, if it has one", nullable=True),
    _field("width", pa.int32(), "pixels, as the source states", nullable=True),
    _field("height", pa.int32(), "pixels, as the source states", nullable=True),
    _field("similarity", pa.float32(), "CLIP cosine of picture and text, on the source's scale", nullable=True),
    _field("punsafe", pa.float32(), "probability that the picture is unsafe", nullable=True),
    _field("pwatermark", pa.float32(), "probability of a watermark", nullable=True),
    _field("aesthetic", pa.float32(), "LAION aesthetic score V1 as the source states, about 1 to 10", nullable=True),
    _field(
        "expected_hash",
        pa.string(),
        "what the source says of the bytes: md5:, sha256: or phash: and hex",
        nullable=True,
    ),
    _field("source", pa.string(), "name of the source in the config"),
]

LINKS = pa.schema(_ROW)

IMAGES = pa.schema(
    [
        *_ROW,
        _field("image", pa.binary(), "the picture, encoded, as stored"),
        _field("image_format", pa.string(), "jpg, png or webp"),
        _field("image_sha256", pa.string(), "identity of the picture: SHA-256 (hex) of the bytes as downloaded"),
        _field("hash_verdict", pa.string(), "match, drift or mismatch, where the source brings a hash", nullable=True),
        _field("phash", pa.int64(), "perceptual hash of the picture as stored, 64 bits"),
        _field(
            "color_profile",
            pa.string(),
            "what became of the colours that the file states: same (as sRGB), converted, or why they were ignored: "
            "broken, oversized, mismatch, unsupported; null: it states none",
            nullable=True,
        ),
        _field("original_width", pa.int32(), "pixels, as downloaded"),
        _field("original_height", pa.int32(), "pixels, as downloaded"),
        _field("stored_width", pa.int32(), "pixels, as stored"),
        _field("stored_height", pa.int32(), "pixels, as stored"),
        _field("aesthetic_score", pa.float32(), "aesthetic score by our scorer", nullable=True),
        _field("final_url", pa.string(), "the link that gave the picture, where redirects led to it", nullable=True),
    ]
)

KEYS = pa.schema(
    [
        _field("shard", pa.int32(), "number of the picture's shard in its version"),
        _field("row", pa.int32(), "its row there"),
        _field("sample_id", pa.int64(), "LAION's row id"),
        _field("language", pa.string(), "language of its caption"),
        _field("image_sha256", pa.string(), "identity of the picture"),
        _field("phash", pa.int64(), "its perceptual hash, 64 bits"),
        _field("band", pa.int8(), "the part of the hash that chose this bucket"),
        _field("area", pa.int64(), "pixels, as downloaded: the larger picture survives"),
        _field("similarity", pa.float32(), "then the more similar one", nullable=True),
    ]
)

DROPS = pa.schema(
    [
        _field("shard", pa.int32(), "number of the picture's shard in its version"),
        _field("row", pa.int32(), "its row there"),
        _field("sample_id", pa.int64(), "LAION's row id"),
        _field("language", pa.string(), "language of its caption"),
        _field("reason", pa.string(), "duplicate_image or near_duplicate"),
        _field("survivor", pa.int64(), "row id of the picture that stays instead"),
    ]
)

SCORES = pa.schema(
    [
        _field("sample_id", pa.int64(), "LAION's row id"),
        _field("image_sha256", pa.string(), "identity of the picture"),
        _field("language", pa.string(), "language of its caption"),
        _field("embedding", pa.binary(), "CLIP image embedding, L2-normalised, float16 little-endian", nullable=True),
        _field("aesthetic_v1", pa.float32(), "LAION aesthetic predictor V1, about 1 to 10", nullable=True),
        _field("aesthetic_v2", pa.float32(), "LAION aesthetic predictor V2, on its own scale", nullable=True),
        _field("nsfw", pa.float32(), "probability that the picture is unsafe", nullable=True),
        _field("watermark", pa.float32(), "probability of a watermark", nullable=True),
    ]
)

LATENTS = pa.schema(
    [
        _field("sample_id", pa.int64(), "LAION's row id"),
        _field("image_sha256", pa.string(), "identity of the picture"),
        _field("caption", pa.string(), "the text"),
        _field("language", pa.string(), "language of the text"),
        _field("latent", pa.binary(), "VAE latent, scaled, float16 little-endian, C x H x W"),
        _field("channels", pa.int16(), "C"),
        _field("height", pa.int16(), "H, latent pixels"),
        _field("width", pa.int16(), "W, latent pixels"),
        _field("resolution", pa.int32(), "side of the square that was encoded, pixels"),
        _field("crop_top", pa.int32(), "of the square in the resized picture, pixels"),
        _field("crop_left", pa.int32(), "of the square in the resized picture, pixels"),
        _field("token_ids", pa.list_(pa.int32()), "token ids of the caption, padded to the encoder's length"),
        _field("aesthetic", pa.float32(), "aesthetic score", nullable=True),
    ]
)

PARALLEL = pa.schema(
    [
        _field("sample_id", pa.int64(), "mmh3.hash64(caption + tab + translation)[0], signed"),
        _field("caption", pa.string(), "the English text, which the teacher reads"),
        _field("translation", pa.string(), "the same in `language`, which the student reads; for English the caption"),
        _field("language", pa.string(), "language of the translation"),
        _field("language_score", pa.float32(), "confidence that it is, 0 to 1; null: not checked", nullable=True),
        _field("score", pa.float32(), "how sure the source is of the pair, on its scale", nullable=True),
        _field("source", pa.string(), "name of the source in the config"),
        _field("token_ids", pa.list_(pa.int32()), "the student's ids of the translation, padded; none until encoded"),
        _field("teacher_ids", pa.list_(pa.int32()), "the teacher's ids of the caption, padded; none until encoded"),
    ]
)

PROMPT_ROW = [
    _field("id", pa.string(), "the prompt's name, unique in its file"),
    _field("language", pa.string(), "language of the prompt, a BCP 47 tag; und: not stated"),
    _field("prompt", pa.string(), "the text"),
    _field("seed", pa.int64(), "key of the initial noise"),
    _field("width", pa.int32(), "pixels"),
    _field("height", pa.int32(), "pixels"),
]
"""What identifies an image of a prompt, in `prompts` and `generations` alike."""

PROMPTS = pa.schema(
    [
        *PROMPT_ROW,
        _field("negative_prompt", pa.string(), "what the image shall not show; null: the job's", nullable=True),
        _field("steps", pa.int32(), "sampler steps; null: the job's", nullable=True),
        _field("guidance_scale", pa.float32(), "classifier-free guidance; null: the job's", nullable=True),
        _field("sampler", pa.string(), "name of the sampler; null: the job's", nullable=True),
        _field("count", pa.int32(), "images to draw of the row; null: the job's", nullable=True),
        _field("regions", pa.string(), "JSON: prompts of ranges of the width, [{from, prompt, to}]", nullable=True),
    ]
)

GENERATIONS = pa.schema(
    [
        *PROMPT_ROW,
        _field("image", pa.binary(), "the picture, encoded"),
        _field("image_sha256", pa.string(), "SHA-256 (hex) of the encoded bytes"),
        _field("checkpoint", pa.string(), "reference of the checkpoint or model that drew it"),
        _field("steps", pa.int32(), "sampler steps"),
        _field("guidance_scale", pa.float32(), "classifier-free guidance"),
        _field("sampler", pa.string(), "name of the sampler"),
        _field("prompt_tokens", pa.int32(), "tokens of the whole prompt, with those at its ends", nullable=True),
        _field("truncated", pa.bool_(), "whether the text encoder read only a part of the prompt", nullable=True),
        _field("negative_prompt", pa.string(), "the text that guidance leads away from; null: none", nullable=True),
        _field("row_key", pa.string(), "SHA-256 (hex) of everything that decides the image", nullable=True),
        _field("image_format", pa.string(), "png, jpg or webp; null: png", nullable=True),
        _field("vae_dtype", pa.string(), "type in which the VAE decoded, where not the model's", nullable=True),
        _field("perceptual_hash", pa.int64(), "DCT hash of the image as drawn, 64 bits", nullable=True),
        _field("regions", pa.string(), "JSON: prompts of ranges of the width, [{from, prompt, to}]", nullable=True),
        _field("region_tokens", pa.list_(pa.int32()), "tokens of each region's whole prompt", nullable=True),
    ]
)

FEATURES = pa.schema(
    [
        _field("id", pa.string(), "the prompt's name, or the row id of a real image"),
        _field("seed", pa.int64(), "key of the initial noise; null: a real image", nullable=True),
        _field("language", pa.string(), "language of the prompt or caption"),
        _field("image_sha256", pa.string(), "identity of the image"),
        _field("concept", pa.string(), "what prompts in several languages share; null: a real image", nullable=True),
        _field("features", pa.binary(), "of the feature network, float32 little-endian", nullable=True),
        _field("probabilities", pa.binary(), "of its classes, float32 little-endian", nullable=True),
        _field("image_embedding", pa.binary(), "the judge's, L2-normalised, float32 little-endian", nullable=True),
        _field("text_embedding", pa.binary(), "the same of the prompt", nullable=True),
        _field("english_embedding", pa.binary(), "the same of the prompt's English text", nullable=True),
    ]
)

KEPT = pa.schema(
    [
        _field("sample_id", pa.int64(), "row id of the image's row"),
        _field("image_sha256", pa.string(), "identity of the image"),
        _field("language", pa.string(), "language of its caption"),
        _field("url", pa.string(), "where the image was published, or its name in its source"),
        _field("kept", pa.string(), "JSON: the columns of the source that the config keeps, by name"),
    ]
)

REJECTS = pa.schema(
    [
        _field("unit_id", pa.string(), "the unit that dropped the row"),
        _field("row", pa.int64(), "row within the unit's input range"),
        _field("sample_id", pa.int64(), "LAION's row id, where known", nullable=True),
        _field("url", pa.string(), "where known", nullable=True),
        _field("language", pa.string(), "where known", nullable=True),
        _field("reason", pa.string(), "one word, counted in the manifest"),
        _field("detail", pa.string(), "what exactly, for people", nullable=True),
    ]
)

SCHEMAS: dict[Kind, pa.Schema] = {
    "links": LINKS,
    "images": IMAGES,
    "keys": KEYS,
    "drops": DROPS,
    "scores": SCORES,
    "latents": LATENTS,
    "parallel": PARALLEL,
    "prompts": PROMPTS,
    "generations": GENERATIONS,
    "features": FEATURES,
    "kept": KEPT,
}

TYPES: dict[str, tuple[pa.DataType, ...]] = {}
"""The types that a column of this name has, over all kinds: a shard with another type was not written here."""
for _schema in (*SCHEMAS.values(), REJECTS):
    for _column in _schema:
        if _column.type not in TYPES.get(_column.name, ()):
            TYPES[_column.name] = (*TYPES.get(_column.name, ()), _column.type)

_NULLABLE = {field.name for schema in SCHEMAS.values() for field in schema if field.nullable}


def present(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return those of the wanted columns that a shard has; one that may be null can be younger than the shard."""
    return [name for name in columns if name in names or name not in _NULLABLE]


def completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table in this schema: columns that may be null and that an older shard does not have are null."""
    missing = [field for field in schema if field.nullable and field.name not in table.column_names]
    for field in missing:
        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names) if missing else table
