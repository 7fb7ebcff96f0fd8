"""Terms that no prompt may contain, per language, from a file of one's own.

The file is UTF-8 with one term per line, `language<TAB>term` or `language<TAB>term<TAB>category`. The language is a BCP
47 tag, or `*` for every language; `pt` also holds for `pt-BR`. Empty lines and lines that begin with `#` are skipped.

Prompts and terms are compared in one normal form: compatibility characters replaced (NFKC), case folded with both i of
Turkish as one, without invisible characters, Arabic vowel signs and tatweel. Where a script puts spaces between words,
a term matches whole words, combining marks being a part of their word. Where it does not (Han, kana, Thai, Lao, Khmer,
Burmese), a term matches anywhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from altdiffusion.errors import AltDiffusionError
from altdiffusion.languages import UNDETERMINED, language_of, normalised_tag
from altdiffusion.storage import files

ANY = "*"
MAX_BYTES = 1 << 24
MAX_WORDS = 16
_ARABIC_MARKS = re.compile("[\u0610-\u061a\u0640\u064b-\u065f\u0670]")
_UNSPACED = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")


@dataclass(frozen=True, slots=True)
class _Term:
    line: int
    category: str

    def __str__(self) -> str:
        return f"line {self.line}, {self.category}" if self.category else f"line {self.line}"


@dataclass(slots=True)
class _Terms:
    """The terms of one language, by their normal form."""

    words: dict[tuple[str, ...], _Term] = field(default_factory=dict)
    most_words: int = 0
    pieces: dict[str, _Term] = field(default_factory=dict)
    lengths: set[int] = field(default_factory=set)

    def add(self, text: str, term: _Term) -> None:
        if _UNSPACED_CHARACTER.search(text):
            piece = text.replace(" ", "")
            self.pieces.setdefault(piece, term)
            self.lengths.add(len(piece))
        else:
            words = tuple(text.split())
            self.words.setdefault(words, term)
            self.most_words = max(self.most_words, len(words))

    def first(self, words: Sequence[str], piece: str) -> _Term | None:
        """Return a term that a text contains.

        Args:
            words: of the text, those of scripts without spaces left out.
            piece: the text without spaces.
        """
        for length in range(1, self.most_words + 1):
            for start in range(len(words) - length + 1):
                found = self.words.get(tuple(words[start : start + length]))
                if found is not None:
                    return found
        for length in self.lengths:
            for start in range(len(piece) - length + 1):
                found = self.pieces.get(piece[start : start + length])
                if found is not None:
                    return found
        return None


class BlockedTerms:
    """The terms of one file."""

    def __init__(self, terms: dict[str, _Terms]) -> None:
        self._terms = terms

    def match(self, prompt: str, language: str) -> str | None:
        """Return where the file has a term that a prompt contains: `line 12, violence`; None if there is none.

        Args:
            language: BCP 47 tag; a prompt of undetermined language is compared with the terms of all languages.
        """
        normal = _normal(prompt)
        words = _UNSPACED_CHARACTER.sub(" ", normal).split()
        piece = normal.replace(" ", "")
        wanted = {ANY, language, language_of(language)}
        for tag, terms in self._terms.items():
            if tag in wanted or language == UNDETERMINED:
                found = terms.first(words, piece)
                if found is not None:
                    return str(found)
        return None


def read_terms(uri: str) -> BlockedTerms:
    """Return the terms of a file.

    Raises:
        AltDiffusionError: the file is missing or not of this form; the error names file and line.
    """
    data = terms_bytes(uri)
    terms: dict[str, _Terms] = {}
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].count(b"\n")
        raise _wrong(uri, before + 1, "is not UTF-8", "save the file as UTF-8") from error
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) not in (2, 3):
            raise _wrong(uri, number, f"has {len(fields)} fields", "write language<TAB>term, or add <TAB>category")
        tag = ANY if fields[0].strip() == ANY else normalised_tag(fields[0])
        if tag is None:
            raise _wrong(uri, number, "has no BCP 47 tag as language", "write e.g. de, pt-BR, or * for every language")
        normal = _normal(fields[1])
        if not normal:
            raise _wrong(uri, number, "has no letter or digit in its term", "write the term after the first tab")
        if len(normal.split()) > MAX_WORDS:
            raise _wrong(uri, number, f"has a term of more than {MAX_WORDS} words", "shorten it")
        category = fields[2].strip() if len(fields) == 3 else ""
        terms.setdefault(tag, _Terms()).add(normal, _Term(number, category))
    if not terms:
        raise AltDiffusionError(f"blocked terms {uri}", "hold no term", "write one, or leave prompts.blocked_terms out")
    return BlockedTerms(terms)


def terms_bytes(uri: str) -> bytes:
    """Return the file of terms as stored.

    Raises:
        AltDiffusionError: it does not exist, or is too large.
    """
    try:
        if files.size_bytes(uri) <= MAX_BYTES:
            return files.read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise AltDiffusionError(f"blocked terms {uri}", "do not exist", "check prompts.blocked_terms") from error
    raise AltDiffusionError(f"blocked terms {uri}", f"have more than {MAX_BYTES:,} bytes", "give a shorter list")


def _normal(text: str) -> str:
    """Return the normal form: words of letters, marks and digits, with one space between them."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = _ARABIC_MARKS.sub("", text.replace("i\u0307", "i").replace("ı", "i"))
    kept = []
    for character in text:
        category = unicodedata.category(character)
        if category[0] in "LMN":
            kept.append(character)
        elif category != "Cf":  # an invisible character does not end a word
            kept.append(" ")
    return " ".join("".join(kept).split())


def _wrong(uri: str, line: int, problem: str, remedy: str) -> AltDiffusionError:
    return AltDiffusionError(f"blocked terms {uri}, line {line}", problem, remedy)
