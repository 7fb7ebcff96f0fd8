"""A page for blind comparisons by people: the images of two models side by side, without a sign of which is whose.

Sides are balanced and keyed: of the pairs of a language, and of all, each model has the left side half the time. The
images are encoded again, because a file's record names its model. Which side is whose is kept in the lake only:

<lake>/ab/<page>.json       models, and per pair the prompt's id, seed, language and the model on the left
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from altdiffusion.errors import AltDiffusionError
from altdiffusion.html.page import render, script_of
from altdiffusion.languages import BY_CODE, UNDETERMINED, in_order
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version

FOLDER = "ab"
_SMALL = 128
"""Images of at most this side, in pixels, are shown with visible pixels and stored without loss."""
_COLUMNS = ["id", "language", "prompt", "seed", "width", "height"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two images of one prompt and seed."""

    name: str
    """The prompt's id."""
    seed: int
    language: str
    prompt: str
    rows: tuple[int, int]
    """Row of the image in A and in B."""
    same: bool
    """Whether both images are equal."""

    def order(self, key: int, purpose: str) -> str:
        """Return what pairs are sorted by, which only the key, the prompt and the seed decide."""
        return hashlib.sha256(f"{key}/{purpose}/{self.name}/{self.seed}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page that was written."""

    page: str
    """Its name: 16 hex digits."""
    pairs: int
    same: int
    """Pairs that were left out, because both images are equal."""


def write_page(lake: str, first: Version, second: Version, out: str, *, count: int, seed: int) -> Page:
    """Write the page, and its key into the lake.

    Args:
        first: images of model A.
        second: images of model B, of the same prompts and seeds.
        out: local path of the HTML file.
        count: largest number of pairs; languages have equal shares.
        seed: decides which pairs are chosen, their order and their sides.

    Raises:
        AltDiffusionError: the versions have no prompt and seed in common, or all images are equal.
    """
    every = common_pairs(first, second)
    different = [pair for pair in every if not pair.same]
    if not different:
        what = "differ in no image" if every else "have no image of the same prompt, seed and size"
        raise AltDiffusionError(
            f"{first.ref.short} and {second.ref.short}", what, "name the generations of two models for one prompts file"
        )
    chosen = choose(different, count, seed)
    sides = dict(zip(chosen, left_sides(chosen, seed), strict=True))
    shown = sorted(chosen, key=lambda pair: pair.order(seed, "order"))
    document = {
        "a": str(first.ref),
        "b": str(second.ref),
        "pairs": [
            {"id": pair.name, "seed": pair.seed, "language": pair.language, "left": sides[pair]} for pair in shown
        ],
    }
    page = files.sha256_hex(files.canonical_json(document))[:16]
    bodies = [
        version.read_rows([pair.rows[place] for pair in shown], ["image"])
        for place, version in enumerate((first, second))
    ]
    text = _html(
        page, [_entry(pair, sides[pair], a["image"], b["image"]) for pair, a, b in zip(shown, *bodies, strict=True)]
    )
    files.write_atomic(key_uri(lake, page), files.canonical_json(document))
    files.write_atomic(out, text.encode())
    return Page(page=page, pairs=len(shown), same=len(every) - len(different))


def key_uri(lake: str, page: str) -> str:
    """Return where the key of a page is."""
    return files.within(lake, FOLDER, f"{page}.json")


def common_pairs(first: Version, second: Version) -> list[Pair]:
    """Return the pairs of two versions with the same id, seed, prompt and size, in the order of the first one."""
    tables = [version.read(_COLUMNS).to_pylist() for version in (first, second)]
    digests = [version.read(["image_sha256"])["image_sha256"].to_pylist() for version in (first, second)]
    places = {tuple(row.values()): place for place, row in enumerate(tables[1])}
    found = []
    for place, row in enumerate(tables[0]):
        other = places.get(tuple(row.values()))
        if other is not None:
            found.append(
                Pair(
                    name=row["id"],
                    seed=row["seed"],
                    language=row["language"] or UNDETERMINED,
                    prompt=row["prompt"],
                    rows=(place, other),
                    same=digests[0][place] == digests[1][other],
                )
            )
    return found


def choose(pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """Return at most `count` pairs, by language: as many of each as there are, in turn."""
    by_language: dict[str, list[Pair]] = {code: [] for code in in_order(pair.language for pair in pairs)}
    for pair in sorted(pairs, key=lambda pair: pair.order(seed, "choice")):
        by_language[pair.language].append(pair)
    turns = sorted(
        ((turn, place, pair) for place, some in enumerate(by_language.values()) for turn, pair in enumerate(some)),
        key=lambda entry: entry[:2],
    )[:count]
    return [pair for _, _, pair in sorted(turns, key=lambda entry: (entry[1], entry[0]))]


def left_sides(pairs: Sequence[Pair], seed: int) -> list[str]:
    """Return which model, `a` or `b`, is on the left, in turn: half of all pairs and of each language."""
    start = int(hashlib.sha256(f"{seed}/left".encode()).hexdigest(), 16) % 2
    return ["ab"[(start + place) % 2] for place in range(len(pairs))]


def _entry(pair: Pair, left: str, body_a: bytes, body_b: bytes) -> dict[str, Any]:
    a, b = _shown(body_a), _shown(body_b)
    language = BY_CODE.get(pair.language)
    return {
        "prompt": pair.prompt,
        "language": pair.language,
        "named": language.name if language is not None else pair.language,
        "small": a[1],
        "left": (a if left == "a" else b)[0],
        "right": (b if left == "a" else a)[0],
    }


def _shown(body: bytes) -> tuple[Markup, bool]:
    """Return an image as a data URI without its record, and whether it is small."""
    from PIL import Image

    with Image.open(io.BytesIO(body)) as image:
        pixels = image.convert("RGB")
    small = max(pixels.size) <= _SMALL
    clean, out = Image.new("RGB", pixels.size), io.BytesIO()
    clean.paste(pixels)
    clean.save(out, "WEBP", lossless=small, quality=92)
    return Markup("data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()), small


def _html(page: str, pairs: Sequence[Mapping[str, Any]]) -> str:
    return render("ab.html.j2", page=page, pairs=pairs, **script_of("ab.js"))
