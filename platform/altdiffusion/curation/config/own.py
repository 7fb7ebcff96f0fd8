"""How images of one's own, which are files already, become a dataset."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from altdiffusion.config import added, operational
from altdiffusion.constraints import (
    PLAIN_NAME,
    SHA256,
    Checked,
    Invalid,
    at_least,
    between,
    not_empty,
    together,
    unique,
)
from altdiffusion.curation.config.language import LanguageConfig
from altdiffusion.curation.config.store import FORMATS, StoreConfig
from altdiffusion.languages import language_hint

Layout = Literal["folder", "webdataset", "table", "dataset"]


def _all_formats() -> StoreConfig:
    return StoreConfig(formats=FORMATS)


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnConfig(Checked):
    """Where images of one's own are, where their captions are, and how both are stored."""

    name: Annotated[str, PLAIN_NAME] = "own"
    """Short name; it becomes the `source` column, the name of the source reference and a part of each row's `url`."""
    uri: str = operational()
    """A folder, a file or a glob of files on any fsspec URI, or `hf://datasets/OWNER/NAME@<commit>`."""
    layout: Literal["auto", "folder", "webdataset", "table", "dataset"] = "auto"
    """`folder`: image files, with captions next to them or in metadata files; `webdataset`: tar files; `table`: Parquet
    or Arrow files that hold the images; `dataset`: a whole data set of the hub, as the library datasets opens it;
    `auto` finds out."""
    subset: str | None = added(None)
    """Configuration of a whole data set of the hub; null takes its default or only one."""
    split: str | None = added(None)
    """Split of a whole data set of the hub, such as train; null takes all."""
    captions: Annotated[tuple[str, ...], not_empty("name a column"), unique("column")] = (
        *("caption", "captions", "text", "texts"),
    )
    """Columns (of metadata, JSON or a table) that hold captions: text, or lists of it. Upper case counts as lower case.
    `<column>_<language>`, such as `text_uk`, holds captions in that language."""
    caption_encoding: str = "utf-8"
    """Encoding of caption files without a byte order mark, such as cp1251."""
    image_column: str | None = None
    """The column of a table that holds the image; null finds the one that does."""
    language: str | None = None
    """The language of all captions."""
    language_column: str | None = None
    """Column of each caption's language. Null takes `language` or `lang` where there is one."""
    trust_labels: bool = True
    """Whether the language that a row states is taken as it is. If not, or where a row states none, it is identified,
    and what the row states counts as a hint."""
    identify: LanguageConfig = LanguageConfig()
    """How languages are identified, and which are accepted, stated or not."""
    keep: Annotated[tuple[str, ...], unique("column")] = ()
    """Further columns (of metadata, JSON or a table) to keep, in the dataset <images>-kept."""
    clean_captions: bool = True
    """Whether markup, mojibake and control characters are taken out of captions, as in `select.clean_captions`."""
    max_caption_chars: Annotated[int, between(1, 16_384)] = 4096
    """Characters of the longest caption that is kept."""
    blocklist: str | None = operational(None)
    """URI of a text file of what must not come in: `url:`, `domain:`, `hash:` and `sha256:` lines."""
    blocklist_sha256: Annotated[str | None, SHA256] = None
    """SHA-256 (hex) of that file."""
    store: StoreConfig = field(default_factory=_all_formats)
    rows_per_unit: Annotated[int, at_least(1)] = 1000
    """Images per unit, at most, in folders and tables; a tar file is a unit."""

    def conflicts(self) -> Iterator[Invalid]:
        accepted = self.identify.languages
        for key in ("subset", "split"):
            if getattr(self, key) is not None and not self.uri.startswith("hf://"):
                yield Invalid(
                    key, "is for a whole data set of the hub", "leave it out, or give hf://datasets/... as uri"
                )
        if self.layout == "dataset" and not self.uri.startswith("hf://"):
            yield Invalid("layout", "is for a whole data set of the hub", "set another one, or auto")
        if self.language is not None and self.language not in accepted:
            yield Invalid("language", *language_hint(self.language, accepted))
        if self.language is not None and self.language_column is not None:
            yield Invalid("language_column", "and language exclude each other", "give one of them")
        try:
            codecs.lookup(self.caption_encoding)
        except LookupError:
            yield Invalid("caption_encoding", "is not an encoding of text", "give e.g. utf-8, cp1251 or latin-1")
        yield from together(self, "blocklist", "blocklist_sha256")

    @property
    def identifies(self) -> bool:
        """Whether some caption's language may have to be identified."""
        return self.language is None and not (self.trust_labels and self.language_column is not None)
