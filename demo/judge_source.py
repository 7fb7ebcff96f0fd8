"""What the judge learns from: one more source of links, to images by artists whose work the generator never sees.

The source is LAION-shaped like the others, so that it goes through the same curation, into datasets of its own. The
labels state what each image shows and what it is for (`docs/evaluation.md`). An image that looks like one of the
generator's, as two artists' red circles do, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mmh3
import numpy as np
import pyarrow as pa

from altdiffusion.image_files.phash import distance, phash_rgb
from demo import site
from demo.artists import BY_NAME, artists, icons
from demo.captions import caption
from demo.concepts import Concept
from demo.images import STYLES, draw

NAME = "judge-artists"
LABELS = pa.schema([("sample_id", pa.int64()), ("concept", pa.string()), ("use", pa.string())])
_SIDE = 64  # pixels at which images are compared, as curation keeps them
_NEAR_BITS = 6  # of the hash's 64; more than the evaluation's limit, since published images are coded once more


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """An image by one of the judge's or the control's artists."""

    concept: Concept
    artist: str

    @property
    def url(self) -> str:
        return site.image_url(self.artist, self.concept.key, "en", "words")

    @property
    def text(self) -> str:
        return caption(self.concept, "en", "words")

    @property
    def sample_id(self) -> int:
        """LAION's row id."""
        return mmh3.hash64(self.url + self.text)[0]


def drawings(concepts: Sequence[Concept], cache: Path) -> list[Drawing]:
    """Return the images of the concepts by the artists of judge and control, without those that look alike."""
    known = [phash_rgb(draw(style, concept.key, _SIDE, cache)) for style in STYLES for concept in concepts]
    return [
        Drawing(concept=concept, artist=artist)
        for artist in artists("judge", "control")
        for concept in concepts
        if concept.key in icons(artist, cache)
        and all(distance(phash_rgb(draw(artist, concept.key, _SIDE, cache)), other) > _NEAR_BITS for other in known)
    ]


def source_table(made: Sequence[Drawing]) -> pa.Table:
    """Return the source's rows: English texts, scores that pass every threshold."""
    sizes = np.array([site.image_size(one.artist, one.concept.key) for one in made], np.float64).reshape(-1, 2)
    rows = len(made)
    return pa.table(
        {
            "url": [one.url for one in made],
            "text": [one.text for one in made],
            "width": sizes[:, 0],
            "height": sizes[:, 1],
            "similarity": pa.array([0.35] * rows, pa.float64()),
            "hash": pa.array([one.sample_id for one in made], pa.int64()),
            "pwatermark": pa.array([0.1] * rows, pa.float32()),
            "punsafe": pa.array([0.1] * rows, pa.float32()),
            "aesthetic": pa.array([8.0] * rows, pa.float32()),
        }
    )


def labels(made: Sequence[Drawing], truth: pa.Table) -> pa.Table:
    """Return what every image shows and what it is for; `truth` is the crawl's, whose images the generator learns."""
    known = (
        pa.table({"sample_id": truth["sample_id"], "concept": truth["concept"]})
        .group_by(["sample_id", "concept"], use_threads=False)
        .aggregate([])
    )
    mine = pa.table(
        {
            "sample_id": [one.sample_id for one in made],
            "concept": [one.concept.key for one in made],
            "use": [BY_NAME[one.artist].use for one in made],
        },
        schema=LABELS,
    )
    learned = pa.table(
        {"sample_id": known["sample_id"], "concept": known["concept"], "use": ["generator"] * len(known)},
        schema=LABELS,
    )
    return pa.concat_tables([mine, learned]).sort_by("sample_id")
