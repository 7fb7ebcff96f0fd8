"""What the letters of a text show about its language, before any model is asked, and which of them make up words.

Every code point has a script, a mask of the languages whose alphabet holds it, and more; all in one table, so that a
column of tokens is judged by a few NumPy passes. Counts are packed four to an int64, and a caption's are the sums of
its tokens'.

A word is a run of letters and marks. A run of an alphabet's letters that holds a digit is not a word (product codes,
sizes, dates), and its letters do not count.

Shapes: U different tokens, P code points of all of them, W words, T captions.
"""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from altdiffusion.curation.language.caption_words import Tokens, Words, WordTable, code_points, spans, totals, words_of

SCRIPTS = 12
NONE, LATIN, CYRILLIC, ARABIC, DEVANAGARI, GREEK, HEBREW, THAI, HANGUL, KANA, HAN, OTHER = range(SCRIPTS)
# A syllable or ideograph counts as much as about three letters of an alphabet.
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
COUNTS = 4
"""int64 columns of packed counts: letters by script, ideographs by kind, capitals of Latin and of all other scripts."""
_PER_LANE, _FIELD, _FIELD_MASK = 4, 16, 0xFFFF  # a caption has at most 4,096 letters
_TABLE = 0x30000  # code points beyond belong to no script here
_ALPHABET, _APART = 1, 2  # scripts that are written without spaces make words of their own
_JOINERS = [0x200C, 0x200D]
_BITS = {language: bit for bit, language in enumerate(ALPHABETS)}
_ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


def _labels(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Latin letters next to another script are mostly the name of a brand or a product, and show nothing. Where small words
# are among them they are a sentence with a foreign name in it. How many letters the other script must then have, as
# a share of the Latin ones: without such words, with one, with more.
_OWN_SHARE = np.array([0.25, 0.4, 0.6])
_SMALL_WORDS = (
    "the of and with for from in on at by to is are this that de la le les des du del della der die das und mit für "
    "von et en con para por em do da dos van het een met voor och med og ve ile için của và với cho dla oraz"
)


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
class Letters:
    """What the letters of U different tokens show, and their words."""

    counts: npt.NDArray[np.int64]
    """[COUNTS, U] packed counts of letters by kind."""
    allowed: npt.NDArray[np.uint64]
    """[U] bit `bit(language)`: whether that language's alphabet holds every letter of the token."""
    words: Words
    token: npt.NDArray[np.intp]
    """[W] which token a word is of; in rising order."""

    def latin(self) -> npt.NDArray[np.bool_]:
        """Return whether each word is in Latin letters, [W]."""
        return _is_latin(self.words)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the letters of T captions show. All arrays have length T."""

    script: npt.NDArray[np.uint8]
    """The script of the text's language; NONE where there is no letter. Not Latin where that is a name in it."""
    mixed: npt.NDArray[np.bool_]
    """Whether there are Latin letters and others."""
    share: npt.NDArray[np.float32]
    """The script's weighted share of the letters, of which Latin ones next to another script are not counted."""
    letters: npt.NDArray[np.int32]
    """Weighted number of these letters."""
    allowed: npt.NDArray[np.uint64]
    """Bit `bit(language)`: whether that language's alphabet holds every letter of the text."""
    capitals: npt.NDArray[np.bool_]
    """Whether all letters of its script that have two cases are capitals, and there is one."""
    kana: npt.NDArray[np.int32]
    simplified: npt.NDArray[np.int32]
    """Ideographs that GB 2312 holds and JIS X 0208 does not."""
    japanese: npt.NDArray[np.int32]
    """Ideographs that JIS X 0208 holds and neither GB 2312 nor Big5 does."""
    traditional: npt.NDArray[np.int32]
    """Ideographs that Big5 holds and neither GB 2312 nor JIS X 0208 does."""


def load() -> None:
    """Make the tables now instead of on first use: half a second, once per process."""
    _table()
    _lower()


def bit(language: str) -> int | None:
    """Return the mask bit of a language with a known alphabet."""
    return _BITS.get(language)


def may_write(label: str, script: int) -> bool:
    """Return whether texts of a fastText label are written in a script."""
    if script == LATIN:
        return label not in _NOT_LATIN
    return label in LABEL_SCRIPTS.get(script, frozenset())


def letters(tokens: pa.StringArray) -> Letters:
    """Judge U different tokens (no nulls, none empty)."""
    table = _table()
    points, begin = code_points(tokens)
    kind = table.kind.take(points, mode="clip").astype(np.intp)
    group = table.group.take(kind, mode="clip")
    edge = np.ones(len(points), bool)
    np.not_equal(group[1:], group[:-1], out=edge[1:])
    edge[begin] = True
    run = np.flatnonzero(edge)
    length = np.diff(run, append=len(points))
    code = np.zeros(len(run), bool)
    code[np.searchsorted(run, np.flatnonzero(table.digit.take(kind, mode="clip")), side="right") - 1] = True
    kind[np.repeat(code, length)] = 0
    word = (group.take(run) > 0) & ~code
    start, length = run[word], length[word]
    token = np.searchsorted(begin, start, side="right") - 1
    allowed = np.zeros(0, np.uint64)
    if len(begin):
        allowed = np.bitwise_and.reduceat(table.allowed.take(kind, mode="clip"), begin)
    allowed[_hard_signs(points, begin)] &= ~np.uint64(1 << _BITS["ru"])
    counts = np.zeros((COUNTS, len(begin)), np.int64)
    for values, sums in zip(table.counts, counts, strict=True):
        if len(begin):
            np.add.reduceat(values.take(kind, mode="clip"), begin, out=sums)
    inside, begins = spans(start, start + length)
    return Letters(
        counts=counts,
        allowed=allowed,
        words=Words(points=points[inside], start=begins),
        token=token,
    )


def listed(words: Words) -> npt.NDArray[np.bool_]:
    """Return whether each word is in a script that word lists are for, [W]."""
    table = _table()
    return np.asarray(table.listed.take(table.kind.take(words.points[words.start], mode="clip")))


def _is_latin(words: Words) -> npt.NDArray[np.bool_]:
    table = _table()
    return np.asarray(table.latin.take(table.kind.take(words.points[words.start], mode="clip")))


def lower(words: Words) -> Words:
    """Return the words in lower case, letter by letter."""
    points = np.where(words.points < _TABLE, _lower().take(words.points, mode="clip"), words.points)
    return Words(points=points, start=words.start)


def _hard_signs(points: npt.NDArray[np.uint32], begin: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Return the tokens in which a hard sign is before another letter than e, ё, ю, я: Bulgarian, never Russian."""
    at = np.flatnonzero((points == ord("ъ")) | (points == ord("Ъ")))
    if not len(at):
        return at
    after = points[np.minimum(at + 1, len(points) - 1)]
    token = np.searchsorted(begin, at, side="right") - 1
    last = at + 1 == np.append(begin, len(points))[token + 1]
    soft = np.isin(after, [ord(c) for c in "еёюяЕЁЮЯ"]) & ~last
    return np.asarray(token[~soft])


def evidence(tokens: Tokens, signs: Letters) -> Evidence:
    """Judge T captions by the letters of their tokens."""
    sums = totals(tuple(signs.counts), tokens.code, tokens.first)
    field = [((lane >> (_FIELD * part)) & _FIELD_MASK).astype(np.int32) for lane in sums for part in range(_PER_LANE)]
    counts = np.stack([np.zeros(len(tokens.first), np.int32), *field[: SCRIPTS - 1]]) * WEIGHTS[:, None]
    simplified, japanese, traditional, latin_capitals, other_capitals = field[SCRIPTS - 1 :]
    kana = counts[KANA].copy()
    counts[HAN] += kana  # Japanese mixes kana and ideographs: they count as one script
    counts[KANA] = 0
    latin = counts[LATIN].copy()
    counts[LATIN] = 0
    other = counts.max(axis=0)
    mixed = (latin > 0) & (other > 0)
    own = other > 0
    rows = np.flatnonzero(mixed)
    if len(rows):
        small = np.minimum(_small_words(tokens, signs, rows), len(_OWN_SHARE) - 1)
        own[rows] = other[rows] >= _OWN_SHARE[small] * latin[rows]
    counts[LATIN] = np.where(own, 0, latin)
    all_letters = counts.sum(axis=0, dtype=np.int32)
    script = counts.argmax(axis=0).astype(np.uint8)
    script[all_letters == 0] = NONE
    share = counts.max(axis=0) / np.maximum(all_letters, 1)
    capitals = np.where(own, other_capitals, latin_capitals)
    return Evidence(
        script=script,
        mixed=mixed,
        share=share.astype(np.float32),
        letters=all_letters,
        allowed=tokens.all_of(signs.allowed),
        capitals=(capitals > 0) & (capitals >= counts.max(axis=0)),
        kana=kana // WEIGHTS[KANA],
        simplified=simplified,
        japanese=japanese,
        traditional=traditional,
    )


def _small_words(tokens: Tokens, signs: Letters, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
    """Return how many of `_SMALL_WORDS` some captions have."""
    cut = tokens.choose(rows)
    used = np.zeros(signs.counts.shape[1], bool)
    used[cut.code] = True
    words = np.flatnonzero(used[signs.token])
    words = words[_is_latin(signs.words.choose(words))]
    small = _small().find(lower(signs.words.choose(words)).hashes()) >= 0
    of_token = np.bincount(signs.token[words[small]], minlength=len(used))
    return np.asarray(totals([of_token], cut.code, cut.first)[0])


@functools.cache
def _small() -> WordTable:
    return WordTable(words_of(_SMALL_WORDS.split()).hashes(), bits=10)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Code points by kind; all else by kind, of which there are a few hundred."""

    kind: npt.NDArray[np.uint16]
    """[0x30000 + 1] 0 is what shows nothing; the last one is for all code points beyond."""
    group: npt.NDArray[np.uint8]
    """0 outside of words; a word holds one of the others only: `_ALPHABET` (digits too), `_APART`."""
    digit: npt.NDArray[np.bool_]
    listed: npt.NDArray[np.bool_]
    latin: npt.NDArray[np.bool_]
    allowed: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.int64]
    """[COUNTS, kinds] what one such letter adds."""


@functools.cache
def _table() -> _Table:
    categories = [unicodedata.category(chr(point)) for point in range(_TABLE)]
    major = np.array([ord(category[0]) for category in categories], np.uint8)
    letter, mark = major == ord("L"), major == ord("M")
    digit = np.array([category == "Nd" for category in categories])
    script = np.where(letter, np.uint8(OTHER), np.uint8(NONE))
    block = np.zeros(_TABLE, np.uint8)
    for first, last, number in _RANGES:
        span = slice(first, last + 1)
        script[span] = np.where(letter[span], np.uint8(number), script[span])
        block[span] = number
    group = np.where(letter | mark | digit, np.uint8(_ALPHABET), np.uint8(0))
    group[_JOINERS] = _ALPHABET
    group[(letter | mark) & np.isin(block, (THAI, HANGUL, KANA, HAN))] = _APART
    # ª and º have no case: they are not small letters among capitals
    capital = np.array([category in ("Lu", "Lt") for category in categories])
    capital |= (script == LATIN) & np.array([category == "Lo" for category in categories])
    allowed, which = np.unique(_alphabet_masks(script), return_inverse=True)
    ideograph = np.zeros(_TABLE, np.uint8)
    for point in range(0x4E00, 0xA000):
        repertoire = tuple(_encodes(chr(point), name) for name in ("gb2312", "shift_jis", "big5"))
        ideograph[point] = _KINDS.get(repertoire, 0)
    features: tuple[npt.NDArray[Any], ...] = (script, group, digit, capital, ideograph, which)
    key = np.zeros(_TABLE, np.int64)
    for feature, size in zip(features, (16, 4, 2, 2, 4, len(allowed)), strict=True):
        key = key * size + feature
    nothing = -1
    key = np.append(np.where(group == 0, nothing, key), nothing)
    _, example, kind = np.unique(key, return_index=True, return_inverse=True)
    example = np.minimum(example, _TABLE - 1)
    fields = [script[example] == number for number in range(1, SCRIPTS)]
    fields += [ideograph[example] == number for number in (1, 2, 3)]
    latin = script[example] == LATIN
    fields += [capital[example] & chosen for chosen in (latin, ~latin)]
    counts = np.zeros((COUNTS, len(example)), np.int64)
    for number, counted in enumerate(fields):
        counts[number // _PER_LANE] += counted.astype(np.int64) << (_FIELD * (number % _PER_LANE))
    return _Table(
        kind=kind.astype(np.uint16),
        group=group[example],
        digit=digit[example],
        listed=np.isin(script[example], (LATIN, CYRILLIC, ARABIC, DEVANAGARI)),
        latin=latin,
        allowed=allowed[which[example]],
        counts=counts,
    )


def _alphabet_masks(script: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return the languages whose alphabet holds each code point, one bit per language."""
    masks = np.full(_TABLE, _ALL, np.uint64)
    known = np.uint64(sum(1 << number for number in _BITS.values()))
    for number in (LATIN, CYRILLIC, ARABIC):
        # a language is only judged by letters of scripts it is written in: a Latin brand name does not disprove Russian
        writers = [name for name in ALPHABETS if any(script[ord(c)] == number for c in ALPHABETS[name])]
        forbidden = np.uint64(sum(1 << _BITS[name] for name in writers))
        masks[script == number] = _ALL & ~(forbidden & known)
    for name, alphabet in ALPHABETS.items():
        for character in alphabet + alphabet.upper():
            masks[ord(character)] |= np.uint64(1 << _BITS[name])
    return masks


@functools.cache
def _lower() -> npt.NDArray[np.uint32]:
    """Return the code points below `_TABLE` in lower case; of several letters the first."""
    return np.array([ord(chr(point).lower()[0]) for point in range(_TABLE)], np.uint32)


# (in GB 2312, in JIS X 0208, in Big5) -> 1 simplified, 2 Japanese, 3 traditional; what several hold shows nothing.
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
