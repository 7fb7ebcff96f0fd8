"""Readers of published sets: files as their authors distribute them become rows of a cases file.

| set | what is read |
|---|---|
| `xtd10` | the repository's folder: `test_image_names.txt` and `test_1kcaptions_<language>.txt`, line by line |
| `xm3600` | Crossmodal-3600's captions.jsonl: the first caption of each image and language |
| `wit` | TSV files of WIT (also .gz): `caption_reference_description` of images that have one in English |
| `pairs` | AltDiffusion's own evaluation files (MG-18): an array of {source_caption, target_caption, image} |

Only the eighteen languages are read. Every row has an English text, because images without one are left out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.evaluation.prompt_sets.case_rows import CaseRow, known_language, plain
from altdiffusion.languages import CODES
from altdiffusion.storage import files
from altdiffusion.storage.unpacking import unpacked

_CAPTIONS = re.compile(r"test_1kcaptions_([a-z]+)\.txt")
_NAMES = "test_image_names.txt"
_WIT = ("language", "image_url", "caption_reference_description")
Captions = Mapping[str, str]
"""Language -> caption."""


def xtd10(folder: str) -> Iterator[CaseRow]:
    """Yield the captions of XTD10 (Aggarwal & Kale: "Towards zero-shot cross-lingual image retrieval", 2020).

    Args:
        folder: URI of the repository; files may be in folders below it, as MIC, STAIR and XTD10 are.

    Raises:
        AltDiffusionError: a file is missing, or has another number of lines than there are images.
    """
    fs, root = files.filesystem(folder)
    paths = {posixpath.basename(str(path)): str(path) for path in sorted(fs.find(root))}
    captions = {known_language(found[1]): path for name, path in paths.items() if (found := _CAPTIONS.fullmatch(name))}
    if _NAMES not in paths or "en" not in captions:
        raise AltDiffusionError(
            f"folder {folder}", f"holds no {_NAMES} or no test_1kcaptions_en.txt", "give XTD10's repository"
        )

    def lines(path: str) -> list[str]:
        return str(fs.cat_file(path).decode("utf-8-sig")).rstrip("\n").split("\n")

    images = [plain(name) for name in lines(paths[_NAMES])]
    texts: dict[str, list[str]] = {}
    for code in CODES:
        if code in captions:
            texts[code] = lines(captions[code])
            if len(texts[code]) != len(images):
                raise AltDiffusionError(
                    f"file {captions[code]}",
                    f"has {len(texts[code]):,} lines, and {_NAMES} has {len(images):,}",
                    "give both files as published",
                )
    for place, image in enumerate(images):
        yield from _of_image(image, {code: captions[place] for code, captions in texts.items()})


def xm3600(uri: str) -> Iterator[CaseRow]:
    """Yield the first captions of Crossmodal-3600 (Thapliyal et al., 2022).

    Args:
        uri: captions.jsonl, also .gz.

    Raises:
        AltDiffusionError: a row is not JSON, or has no image/key.
    """
    for number, line in enumerate(_stream(uri), 1):
        try:
            row = json.loads(line)
            image = row["image/key"]
            captions = {tag: entry["caption"][0] for tag, entry in row.items() if isinstance(entry, dict)}
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise _unusable(uri, number, error, "give captions.jsonl as published") from error
        yield from _of_image(str(image), {tag: str(text) for tag, text in captions.items()})


def wit(uri: str) -> Iterator[CaseRow]:
    """Yield the captions of WIT (Srinivasan et al., 2021) whose image has a caption in English as well.

    The captions of all images are in memory, so give one of the ten files, or a selection.

    Raises:
        AltDiffusionError: it has no columns language, image_url and caption_reference_description.
    """
    csv.field_size_limit(1 << 24)
    by_image: dict[str, dict[str, str]] = {}
    reader = csv.DictReader(_stream(uri), delimiter="\t")
    missing = [name for name in _WIT if name not in (reader.fieldnames or ())]
    if missing:
        raise AltDiffusionError(f"file {uri}", f"has no column {', '.join(missing)}", "give a TSV file of WIT")
    for row in reader:
        tag, image, caption = (row[name] or "" for name in _WIT)
        if caption.strip() and image:
            by_image.setdefault(image, {}).setdefault(tag, caption)
    for image, captions in by_image.items():
        yield from _of_image(image, captions)


def pairs(uri: str, language: str) -> Iterator[CaseRow]:
    """Yield the translations of one of AltDiffusion's evaluation files.

    Args:
        uri: a JSON array of {source_caption (English), target_caption, image}.
        language: that of target_caption.

    Raises:
        AltDiffusionError: it is not such an array, or the language is not one of the eighteen.
    """
    code = known_language(language)
    if code is None:
        raise AltDiffusionError(f"language {language}", "is not one of the eighteen", f"use {', '.join(CODES)}")
    try:
        rows = [(str(row["image"]), row["source_caption"], row["target_caption"]) for row in json.load(_stream(uri))]
    except (ValueError, KeyError, TypeError) as error:
        raise _unusable(uri, 1, error, "give an array of {source_caption, target_caption, image}") from error
    for image, english, target in rows:
        yield from _of_image(image, {"en": str(english), code: str(target)})


def _of_image(image: str, captions: Captions) -> Iterator[CaseRow]:
    """Yield the captions of an image in the order of the languages; none if none of them is English."""
    known: dict[str, str] = {}
    for tag, text in captions.items():
        code = known_language(tag)
        if code is not None and plain(text):
            known.setdefault(code, plain(text))
    for code in CODES if "en" in known else ():
        if code in known:
            yield CaseRow(concept=_concept(image), language=code, prompt=known[code], english=known["en"], image=image)


def _concept(image: str) -> str:
    """Return a name for an image: that of its file without the ending, or a hash of its address."""
    name = re.sub(r"\.[A-Za-z0-9]{1,5}$", "", image)
    if re.fullmatch(r"[A-Za-z0-9._]{1,80}", name):
        return name
    return hashlib.sha256(image.encode()).hexdigest()[:16]


def _stream(uri: str) -> io.TextIOBase:
    """Return a text file, also .gz, that is read line by line."""
    fs, path = files.filesystem(uri)
    try:
        raw: Any = fs.open(path, "rb")
    except FileNotFoundError as error:
        raise AltDiffusionError(f"file {uri}", "does not exist", "check the path") from error
    data = unpacked(raw, f"file {uri}") if uri.endswith(".gz") else raw
    return io.TextIOWrapper(cast("io.BufferedReader", data), "utf-8-sig", newline="\n" if ".tsv" not in uri else "")


def _unusable(uri: str, number: int, error: Exception, remedy: str) -> AltDiffusionError:
    return AltDiffusionError(
        f"file {uri}, row {number}", f"is unusable ({type(error).__name__}: {first_line(error)})", remedy
    )
