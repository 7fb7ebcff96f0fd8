"""The 18 languages of AltDiffusion-m18, in the order used everywhere."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """A language: `code` is ISO 639-1, `script` is ISO 15924, `native` is the name in the language itself."""

    code: str
    name: str
    native: str
    script: str
    right_to_left: bool = False


LANGUAGES: tuple[Language, ...] = (
    Language("en", "English", "English", "Latn"),
    Language("zh", "Chinese", "中文", "Hans"),
    Language("ja", "Japanese", "日本語", "Jpan"),
    Language("th", "Thai", "ไทย", "Thai"),
    Language("ko", "Korean", "한국어", "Kore"),
    Language("hi", "Hindi", "हिन्दी", "Deva"),
    Language("uk", "Ukrainian", "Українська", "Cyrl"),
    Language("ar", "Arabic", "العربية", "Arab", right_to_left=True),
    Language("tr", "Turkish", "Türkçe", "Latn"),
    Language("vi", "Vietnamese", "Tiếng Việt", "Latn"),
    Language("pl", "Polish", "Polski", "Latn"),
    Language("nl", "Dutch", "Nederlands", "Latn"),
    Language("pt", "Portuguese", "Português", "Latn"),
    Language("it", "Italian", "Italiano", "Latn"),
    Language("es", "Spanish", "Español", "Latn"),
    Language("de", "German", "Deutsch", "Latn"),
    Language("fr", "French", "Français", "Latn"),
    Language("ru", "Russian", "Русский", "Cyrl"),
)
CODES: tuple[str, ...] = tuple(language.code for language in LANGUAGES)
BY_CODE: dict[str, Language] = {language.code: language for language in LANGUAGES}
UNDETERMINED = "und"
"""BCP 47's tag of a text whose language is not stated."""

# RFC 5646, section 2.1, for languages that have a code of ISO 639 (two or three letters), and private tags (x-...).
_TAG = re.compile(
    r"[a-z]{2,3}(?:-[a-z]{3}){0,3}(?:-[a-z]{4})?(?:-(?:[a-z]{2}|[0-9]{3}))?(?:-(?:[a-z0-9]{5,8}|[0-9][a-z0-9]{3}))*"
    r"(?:-[a-wyz0-9](?:-[a-z0-9]{2,8})+)*(?:-x(?:-[a-z0-9]{1,8})+)?|x(?:-[a-z0-9]{1,8})+"
)


def normalised_tag(text: str) -> str | None:
    """Return a BCP 47 tag with `-` between subtags and in the case of RFC 5646, section 2.1.1; None for other texts.

    The language is lower case, the script title case, the region upper case: `ZH_hant_tw` is `zh-Hant-TW`.
    """
    subtags = text.strip().replace("_", "-").lower().split("-")
    if not _TAG.fullmatch("-".join(subtags)):
        return None
    cased, single = subtags[:1], len(subtags[0]) == 1
    for subtag in subtags[1:]:
        single = single or len(subtag) == 1
        plain = single or subtag[0].isdigit()
        cased.append(subtag if plain else {2: subtag.upper(), 4: subtag.title()}.get(len(subtag), subtag))
    return "-".join(cased)


def language_of(tag: str) -> str:
    """Return the language of a normalised tag, without script and region."""
    return tag.partition("-")[0]


_ISO_639_2 = {
    "eng": "en", "zho": "zh", "jpn": "ja", "tha": "th", "kor": "ko", "hin": "hi", "ukr": "uk", "ara": "ar", "tur": "tr",
    "vie": "vi", "pol": "pl", "nld": "nl", "por": "pt", "ita": "it", "spa": "es", "deu": "de", "fra": "fr", "rus": "ru",
}  # fmt: skip
"""Three-letter codes of the project's languages."""
_COUNTRIES = {
    "ua": "uk", "jp": "ja", "cn": "zh", "tw": "zh", "kr": "ko", "in": "hi", "vn": "vi", "br": "pt", "gb": "en",
    "us": "en", "at": "de", "mx": "es", "cz": "cs", "dk": "da", "gr": "el", "se": "sv", "ee": "et", "si": "sl",
}  # fmt: skip
"""Countries whose code is taken for that of their language."""


def nearest_language(text: str, known: Collection[str]) -> str | None:
    """Return the known code that a person may have meant: by a tag with a region, a country, a name or an old code."""
    tag = normalised_tag(text)
    base = language_of(tag) if tag is not None else text.strip().lower()
    names = {name.lower(): one.code for one in LANGUAGES for name in (one.name, one.native)}
    for code in (base, _COUNTRIES.get(base), _ISO_639_2.get(base), names.get(text.strip().lower())):
        if code in known:
            return code
    return None


def in_order(languages: Iterable[str]) -> list[str]:
    """Return the distinct languages in the project's order; those outside of it follow as they come."""
    given = list(dict.fromkeys(languages))
    project = {code: place for place, code in enumerate(CODES)}
    return sorted(given, key=lambda language: project.get(language, len(project)))


def named_language(code: str) -> str:
    """Return a language's code with its English name, where it is one of the project's: `th Thai`, `sv`."""
    return f"{code} {BY_CODE[code].name}" if code in BY_CODE else code


_OTHER_CODES = {
    "ua": "uk", "cn": "zh", "jp": "ja", "kr": "ko", "vn": "vi", "cz": "cs", "dk": "da", "se": "sv", "gr": "el",
    "ukr": "uk", "eng": "en", "zho": "zh", "chi": "zh", "jpn": "ja", "tha": "th", "kor": "ko", "hin": "hi", "ara": "ar",
    "tur": "tr", "vie": "vi", "pol": "pl", "nld": "nl", "dut": "nl", "por": "pt", "ita": "it", "spa": "es", "deu": "de",
    "ger": "de", "fra": "fr", "fre": "fr", "rus": "ru", "in": "id", "iw": "he",
}  # fmt: skip
"""What people write for a language: codes of countries, of ISO 639-2 and 639-3, and withdrawn ones."""


def code_of(text: str, accepted: Collection[str]) -> str | None:
    """Return the accepted language that a text means: `uk-UA`, `ua`, `ukr` and `Ukrainian` mean `uk`; else None."""
    plain = text.strip().replace("_", "-").lower()
    names = {language.name.lower(): language.code for language in LANGUAGES}
    names |= {language.native.lower(): language.code for language in LANGUAGES}
    first = plain.partition("-")[0]
    for candidate in (plain, first, _OTHER_CODES.get(plain), _OTHER_CODES.get(first), names.get(plain)):
        if candidate is not None and candidate in accepted:
            return candidate
    return None


def language_hint(text: str, accepted: Collection[str]) -> tuple[str, str]:
    """Return what is wrong with a text that is not the code of an accepted language, and what to write instead."""
    meant = code_of(text, accepted)
    choices = f"use one of {', '.join(accepted)}"
    return "is not an accepted language", choices if meant is None else f"did you mean {meant}? {choices}"
