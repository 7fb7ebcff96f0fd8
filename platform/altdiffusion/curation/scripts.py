"""What the letters of a text say about its language, before any model is asked.

Every code point has a script class and a mask of the languages whose alphabet holds it. Both are tables, so that a
column of captions is judged by a few NumPy passes: counts by script, and the AND of the masks of all its letters.

Shapes: T texts, N code points of all of them together.
"""

from __future__ import annotations

import functools
import sys
import unicodedata
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

SCRIPTS = 12
NONE, LATIN, CYRILLIC, ARABIC, DEVANAGARI, GREEK, HEBREW, THAI, HANGUL, KANA, HAN, OTHER = range(SCRIPTS)
# A syllable or ideograph says as much as about three letters of an alphabet.
WEIGHTS = np.array([0, 1, 1, 1, 1, 1, 1, 1, 3, 3, 3, 1], np.int32)
_RANGES: tuple[tuple[int, int, int], ...] = (
    (0x41, 0x24F, LATIN), (0x1E00, 0x1EFF, LATIN), (0xFF21, 0xFF5A, LATIN),
    (0x370, 0x3FF, GREEK), (0x1F00, 0x1FFF, GREEK),
    (0x400, 0x52F, CYRILLIC), (0x590, 0x5FF, HEBREW),
    (0x600, 0x6FF, ARABIC), (0x750, 0x77F, ARABIC), (0x8A0, 0x8FF, ARABIC), (0xFB50, 0xFDFF, ARABIC),
    (0xFE70, 0xFEFF, ARABIC),
    (0x900, 0x97F, DEVANAGARI), (0xE00, 0xE7F, THAI),
    (0x1100, 0x11FF, HANGUL), (0x3130, 0x318F, HANGUL), (0xAC00, 0xD7AF, HANGUL),
    (0x3041, 0x30FF, KANA), (0x31F0, 0x31FF, KANA), (0xFF66, 0xFF9D, KANA),
    (0x3400, 0x4DBF, HAN), (0x4E00, 0x9FFF, HAN), (0xF900, 0xFAFF, HAN), (0x20000, 0x2FFFF, HAN),
)  # fmt: skip
_BASIC = "abcdefghijklmnopqrstuvwxyz"
_CYRILLIC = "абвгдежзийклмнопрстуфхцчшщьюя"
_ARABIC = "ءابتثجحخدذرزسشصضطظعغفقلمنهو" + "آأؤئ" + "ـ"
_VIETNAMESE = "àáâãèéêìíòóôõùúýăđĩũơư" + "".join(chr(c) for c in range(0x1EA0, 0x1EFA))
# Letters beyond the basic ones that texts of a language use, common loans included. The 18, and neighbours that
# would otherwise be taken for one of them; a language that is not listed may use any letter of its script.
ALPHABETS: dict[str, str] = {
    "en": _BASIC + "éèêïñç",
    "de": _BASIC + "äöüßé",
    "nl": _BASIC + "éëïöüèáóíêç",
    "fr": _BASIC + "àâæçéèêëîïôœùûüÿñ",
    "es": _BASIC + "áéíñóúüªº",
    "pt": _BASIC + "áâãàçéêíóôõúüªº",
    "it": _BASIC + "àèéìíîòóùúªº",
    "pl": _BASIC + "ąćęłńóśźżé",
    "tr": _BASIC + "çğıöşüâîû\u0307",
    "vi": _BASIC + _VIETNAMESE,
    "sv": _BASIC + "åäöéàü",
    "da": _BASIC + "æøåé",
    "no": _BASIC + "æøåéòôèóêà",
    "fi": _BASIC + "äöåšž",
    "et": _BASIC + "äöõüšž",
    "cs": _BASIC + "áčďéěíňóřšťúůýž",
    "sk": _BASIC + "áäčďéíĺľňóôŕšťúýž",
    "hu": _BASIC + "áéíóöőúüű",
    "ro": _BASIC + "ăâîșțşţ",
    "id": _BASIC + "é",
    "ms": _BASIC + "é",
    "hr": _BASIC + "čćđšž",
    "sl": _BASIC + "čšžćđ",
    "lt": _BASIC + "ąčęėįšųūž",
    "lv": _BASIC + "āčēģīķļņšūž",
    "ca": _BASIC + "àçèéíïòóúü·",
    "gl": _BASIC + "áéíñóúü",
    "is": _BASIC + "áðéíóúýþæö",
    "az": _BASIC + "əğıöşüç\u0307",
    "sq": _BASIC + "ëç",
    "ru": _CYRILLIC + "ёъыэ",
    "uk": _CYRILLIC + "ґєії",
    "bg": _CYRILLIC + "ъѝ",
    "be": _CYRILLIC.replace("и", "").replace("щ", "") + "ёіўыэ",
    "mk": "абвгдѓежзѕијклљмнњопрстќуфхцчџшѐѝ",
    "sr": _BASIC + "čćđšž" + "абвгдђежзијклљмнњопрстћуфхцчџш",
    "ar": _ARABIC + "إىيةك" + "ڤ",
    "fa": _ARABIC + "پچژگکیۀ",
    "ur": _ARABIC + "پچژگکیٹڈڑںھہےۓۂ",
}  # fmt: skip
_BITS = {language: bit for bit, language in enumerate(ALPHABETS)}
_ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


def _labels(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Scripts of fastText's labels; a label that is not listed is written in Latin letters.
LABEL_SCRIPTS: dict[int, frozenset[str]] = {
    CYRILLIC: _labels(
        "ab av ba be bg bxr ce cv kk krc kv ky lez mdf mhr mk mn mrj myv os ru rue sah sr tg tt tyv uk xal"
    ),
    ARABIC: _labels("ar arz azb ckb fa glk ks lrc mzn pnb ps sd ug ur"),
    DEVANAGARI: _labels("bh dty gom hi mai mr ne new sa"),
    GREEK: frozenset({"el"}),
    HEBREW: frozenset({"he", "yi"}),
    THAI: frozenset({"th"}),
    HANGUL: frozenset({"ko"}),
    HAN: frozenset({"zh", "ja", "wuu", "yue"}),
    KANA: frozenset({"ja"}),
    OTHER: _labels("am as bn bo bpy dv gu hy ka km kn lo ml my or pa si ta te ti"),
}
_NOT_LATIN = frozenset().union(*LABEL_SCRIPTS.values()) - {"sr"}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the letters of T texts say. All arrays have length T."""

    script: npt.NDArray[np.uint8]
    """The script most of the text is in; NONE where there is no letter."""
    share: npt.NDArray[np.float32]
    """Its weighted share of all letters."""
    letters: npt.NDArray[np.int32]
    """Weighted number of letters."""
    allowed: npt.NDArray[np.uint64]
    """Bit `bit(language)`: whether that language's alphabet holds every letter of the text."""
    kana: npt.NDArray[np.int32]
    simplified: npt.NDArray[np.int32]
    """Ideographs that GB 2312 holds and JIS X 0208 does not."""
    japanese: npt.NDArray[np.int32]
    """Ideographs that JIS X 0208 holds and neither GB 2312 nor Big5 does."""
    traditional: npt.NDArray[np.int32]
    """Ideographs that Big5 holds and neither GB 2312 nor JIS X 0208 does."""


def bit(language: str) -> int | None:
    """The mask bit of a language with a known alphabet."""
    return _BITS.get(language)


def may_write(label: str, script: int) -> bool:
    """Whether texts of a fastText label are written in a script."""
    if script == LATIN:
        return label not in _NOT_LATIN
    return label in LABEL_SCRIPTS.get(script, frozenset())


def evidence(texts: pa.Array) -> Evidence:
    """Judges T texts (no nulls, no newlines) by their letters."""
    points, starts = _code_points(texts)
    scripts, masks, han = _tables()
    script_of = scripts[points]
    counts = np.stack(
        [np.add.reduceat(script_of == s, starts, dtype=np.int32) * WEIGHTS[s] for s in range(SCRIPTS)], axis=1
    )
    merged = counts.copy()  # Japanese mixes kana and ideographs: count them as one script
    merged[:, HAN] += np.where(counts[:, HAN] + counts[:, KANA] > 0, counts[:, KANA], 0)
    merged[:, KANA] = 0
    script = merged.argmax(axis=1).astype(np.uint8)
    letters = counts.sum(axis=1, dtype=np.int32)
    script[letters == 0] = NONE
    best = np.take_along_axis(merged, script[:, None].astype(np.intp), axis=1)[:, 0]
    kinds = han[points]
    return Evidence(
        script=script,
        share=(best / np.maximum(letters, 1)).astype(np.float32),
        letters=letters,
        allowed=np.bitwise_and.reduceat(masks[points], starts),
        kana=counts[:, KANA] // WEIGHTS[KANA],
        simplified=np.add.reduceat(kinds == 1, starts, dtype=np.int32),
        japanese=np.add.reduceat(kinds == 2, starts, dtype=np.int32),
        traditional=np.add.reduceat(kinds == 3, starts, dtype=np.int32),
    )


def _code_points(texts: pa.Array) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.intp]]:
    """All code points, a newline after each text (so that no segment is empty), and where each text starts."""
    joined = "\n".join(texts.to_pylist()) + "\n"
    points = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
    lengths = pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.intp) + 1
    starts = np.zeros(len(lengths), np.intp)
    np.cumsum(lengths[:-1], out=starts[1:])
    return points, starts


@functools.cache
def _tables() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    """By code point: script class, mask of languages, kind of ideograph (1 simplified, 2 Japanese, 3 traditional)."""
    size = sys.maxunicode + 1
    letter = np.zeros(size, bool)
    letter[:0x30000] = [unicodedata.category(chr(point))[0] == "L" for point in range(0x30000)]
    scripts = np.where(letter, np.uint8(OTHER), np.uint8(NONE))
    for first, last, script in _RANGES:
        span = slice(first, last + 1)
        scripts[span] = np.where(letter[span], np.uint8(script), scripts[span])
    masks = np.full(size, _ALL, np.uint64)
    judged = np.isin(scripts, [LATIN, CYRILLIC, ARABIC])
    known = np.uint64(sum(1 << number for number in _BITS.values()))
    for script in (LATIN, CYRILLIC, ARABIC):
        # a language is only judged by letters of scripts it is written in: a Latin brand name says nothing of Russian
        writers = [name for name in ALPHABETS if any(scripts[ord(c)] == script for c in ALPHABETS[name])]
        forbidden = np.uint64(sum(1 << _BITS[name] for name in writers))
        masks[judged & (scripts == script)] = _ALL & ~(forbidden & known)
    for name, alphabet in ALPHABETS.items():
        for character in alphabet + alphabet.upper():
            masks[ord(character)] |= np.uint64(1 << _BITS[name])
    han = np.zeros(size, np.uint8)
    for point in range(0x4E00, 0xA000):
        repertoire = tuple(_encodes(chr(point), name) for name in ("gb2312", "shift_jis", "big5"))
        han[point] = _KINDS.get(repertoire, 0)
    return scripts, masks, han


# (in GB 2312, in JIS X 0208, in Big5) -> 1 simplified, 2 Japanese, 3 traditional; what several hold says nothing.
_KINDS: dict[tuple[bool, ...], int] = {
    (True, False, False): 1,
    (True, False, True): 1,
    (False, True, False): 2,
    (False, False, True): 3,
}


def _encodes(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
