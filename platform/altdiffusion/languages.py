"""The 18 languages of AltDiffusion-m18, in the order used everywhere."""

from __future__ import annotations

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
