"""Real images for the judge: the curated images with the concept that each shows, and the same through the VAE.

Shapes: N images, S = judge.SIDE pixels.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.judge import SIDE
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version


def labelled_images(images: Version, labels_uri: str) -> tuple[NDArray[np.uint8], NDArray[np.str_]]:
    """Return each distinct labelled image of an images version, in the order of its first row.

    Args:
        labels_uri: Parquet with sample_id (int64) and concept (string).

    Returns:
        Images, uint8 [N, S, S, 3], and the concept that each shows, [N].

    Raises:
        AltDiffusionError: the labels are not readable, or do not name any of the images.
    """
    labels = _read_labels(labels_uri)
    bodies, concepts = [], []
    known: set[str] = set()
    for table in images.iter_tables(["sample_id", "image", "image_sha256"]):
        place = pc.index_in(table["sample_id"], value_set=labels["sample_id"])
        shown = labels["concept"].take(place)
        for name, sha256, body in zip(
            shown.to_pylist(), table["image_sha256"].to_pylist(), table["image"], strict=True
        ):
            if name is not None and sha256 not in known:
                known.add(sha256)
                bodies.append(_small(body.as_py()))
                concepts.append(name)
    if not bodies:
        raise _no_labels(images, labels_uri)
    return np.stack(bodies), np.array(concepts)


def count_labelled(images: Version, labels_uri: str) -> dict[str, int]:
    """Return the number of rows of an images version that show each concept, without reading an image.

    Raises:
        AltDiffusionError: the labels are not readable, or do not name any of the images.
    """
    labels = _read_labels(labels_uri)
    counts: dict[str, int] = {}
    for table in images.iter_tables(["sample_id"]):
        shown = labels["concept"].take(pc.index_in(table["sample_id"], value_set=labels["sample_id"]))
        for entry in pc.value_counts(shown.drop_null()).to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    if not counts:
        raise _no_labels(images, labels_uri)
    return counts


def _no_labels(images: Version, labels_uri: str) -> AltDiffusionError:
    return AltDiffusionError(
        f"labels {labels_uri}", f"do not name an image of {images.ref.short}", "give the labels of this dataset"
    )


def through_autoencoder(folder: str, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the control: real images [N, S, S, 3], encoded (mode) and decoded by the generator's VAE."""
    import torch

    from altdiffusion.diffusion.autoencoder import load_autoencoder

    vae: Any = load_autoencoder(folder)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        decoded = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in pixels.split(64)])
    rounded = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.asarray(rounded.permute(0, 2, 3, 1).numpy())


def small_images(bodies: list[bytes]) -> NDArray[np.uint8]:
    """Decode images and return them as squares, uint8 [N, S, S, 3]."""
    return np.stack([_small(body) for body in bodies])


def _small(body: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(io.BytesIO(body)) as image:
        rgb = image.convert("RGB")
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    square = rgb.crop((left, top, left + side, top + side))
    if side != SIDE:
        square = square.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(square, np.uint8)


def _read_labels(uri: str) -> pa.Table:
    try:
        table = pq.read_table(pa.BufferReader(files.read_bytes(uri)))
        return pa.table(
            {"sample_id": table["sample_id"].cast(pa.int64()), "concept": table["concept"].cast(pa.string())}
        )
    except (FileNotFoundError, KeyError, pa.ArrowInvalid) as error:
        raise AltDiffusionError(
            f"labels {uri}", f"cannot be used ({error})", "give a Parquet file with the columns sample_id and concept"
        ) from error
