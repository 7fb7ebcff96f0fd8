"""Captions as they are stored: what a page's markup and encodings left in them is taken out, and nothing else.

- Tags of HTML, and comments, scripts and styles with what is in them. Only what is a tag: an element that HTML has,
  with attributes that have values. `a < b`, `<3`, `x<y>z` and `p<b and c>d` are text.
- Character references (`&amp;`, `&#39;`), twice at most: pages escape what was escaped already. Only with their
  semicolon: `R&D` and `?a=1&copy=2` are text.
- Mojibake, UTF-8 that was read as another encoding, by ftfy (Speer, doi 10.5281/zenodo.2591652).
- The language code that published training data appends (FACTS 1), control and direction characters, and characters
  without width. Joiners stay where a script needs them: Arabic, Indic and their neighbours, emoji.
- Unicode NFC, single spaces, none at the ends.

A caption that needs none of it is not touched: one regular expression over the column finds the others.
"""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html.entities import html5

import ftfy
import pyarrow as pa
import pyarrow.compute as pc
from ftfy.badness import is_bad

_SUFFIX = r"\t[A-Za-z]{2,3}(?:[-_][A-Za-z]{2,4})?\s*$"
_SPACES = r"\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"
"""What separates words besides the space, for a character class."""
_LOST = r"\x{0}-\x{1F}\x{7F}-\x{9F}\x{E000}-\x{F8FF}\x{F0000}-\x{FFFFD}\x{100000}-\x{10FFFD}"
_CONTROL = rf"{_LOST}\x{{FFFD}}"
"""What replaces a lost character or is layout: it becomes a space."""
_WIDTHLESS = r"\x{AD}\x{61C}\x{180E}\x{200B}\x{200E}\x{200F}\x{202A}-\x{202E}\x{2060}-\x{206F}\x{FEFF}\x{FFF9}-\x{FFFB}"
"""What has no width and no meaning to a reader."""
_UNTIDY = rf"[{_CONTROL}{_WIDTHLESS}{_SPACES}]|  |^ | $"
"""What `_tidy` removes from a whole column at once; all other steps work caption by caption."""
_JOINERS = "\u200c\u200d"
_ELEMENTS = (
    "a abbr acronym address applet area article aside audio b base basefont bdi bdo big blink blockquote body br "
    "button canvas caption center cite code col colgroup dd del details dfn dialog dir div dl dt em embed fieldset "
    "figcaption figure font footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html i iframe img "
    "input ins kbd label legend li link main map mark marquee menu meta meter nav nobr noframes noscript object ol "
    "optgroup option output p param picture pre progress q rp rt ruby s samp script section select small source span "
    "strike strong style sub summary sup svg table tbody td template textarea tfoot th thead time title tr track tt u "
    "ul var video wbr"
)
_INLINE_ELEMENTS = (
    "a abbr b bdi bdo big code em font i ins kbd mark nobr q s small span strike strong sub sup tt u var wbr"
)
"""Elements that do not separate words."""
_INLINE = frozenset(_INLINE_ELEMENTS.split())
_LETTERS = frozenset("abiqsu")
_CLOSING = re.compile(r"</([abiqsu])\s*>", re.IGNORECASE)
_ATTRIBUTE = (
    r"""\s+[a-z_:][\w:.\-]*\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>=]+)|\s+(?:nowrap|noshade|disabled|checked|hidden)\b"""
)
_TAG = re.compile(rf"</?({_ELEMENTS.replace(' ', '|')})(?:{_ATTRIBUTE})*\s*/?>", re.IGNORECASE)
_CUT = re.compile(rf"<(?:{_ELEMENTS.replace(' ', '|')})\s+[a-z\-]+\s*=[^<>]*$", re.IGNORECASE)
"""A tag with attributes that the end of the caption cut off."""
_CONTENT = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), end)
    for pattern, end in (
        (r"<!--.*?-->", "-->"),
        (r"<script\b[^<>]*>.*?</script\s*>", "</script"),
        (r"<style\b[^<>]*>.*?</style\s*>", "</style"),
        (r"<!\[CDATA\[|\]\]>", "]]>"),
        (r"<!doctype\b[^<>]*>", "<!doctype"),
    )
)
"""What goes with its content, and what its end has (lower case)."""
_REFERENCE = re.compile(r"&(?:#(?:\d{1,7}|[xX][0-9a-fA-F]{1,6})|([A-Za-z][A-Za-z0-9]{1,31}));")
_TIMES = 2
_ROUNDS = 8
"""Taking something out can bring together what then has to go; after this many rounds that is not an accident."""
_LONGEST = 16_384
"""Characters. No setting keeps captions this long (`max_caption_chars`), and no text may take long."""
# Bytes of UTF-8 as the characters of an 8-bit code: a lead byte, then a continuation byte. Of windows-1252 and 1254,
# 1250, 1251, 1253, 1257, and of DOS's code pages.
_TRAIL = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_MOJIBAKE = "|".join(
    (
        f"[Â-ôğĞĆ][{_TRAIL}]",
        f"[ÂĂÄĹĺâăđŃ][{_TRAIL}ŁłĄąĽľŚśŞşŤťŹźŻżˇ˘˝˛˙]",
        f"[РС][{_TRAIL}ЂЃѓЉЊЌЋЏђљњќћџЎўЈҐЁЄЇІіґё№єјЅѕї]",
        f"[ΒΓΞΟβ][{_TRAIL}ΆΈΉΊΌΎΏ΄΅―]",
        "[├┬╬╨╤╧ΓÔÃ][¬®░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧ªºæÆ£¥éñ¡¿]",
    )
)
_FTFY = ftfy.TextFixerConfig(
    unescape_html=False,
    remove_terminal_escapes=True,
    fix_encoding=True,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    fix_surrogates=False,
    remove_control_chars=False,
    normalization=None,
    explain=False,
)


def load() -> None:
    """Make the tables of code points, most of a second, so that a worker's first unit is as fast as the others."""
    clean_captions(pa.array(["<b>&amp;\u00e3\u00a9</b> \u200d"]))


def tidy_captions(captions: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return captions without language suffix, control and widthless characters, with single spaces; null stays."""
    return _where(_flat(captions), _UNTIDY, _tidy)


def clean_captions(captions: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return captions without all that the module names; null stays null. What was nothing but markup is empty.

    Cleaning twice changes nothing but references that were escaped more than twice.
    """
    return _where(_flat(captions), rf"{_UNTIDY}|{_marked()}", _clean_some)


def _flat(captions: pa.ChunkedArray | pa.Array) -> pa.Array:
    return captions.combine_chunks() if isinstance(captions, pa.ChunkedArray) else captions


def _where(captions: pa.Array, pattern: str, change: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """Apply a function of arrays to the captions that match."""
    matches = pc.fill_null(pc.match_substring_regex(captions, pattern), False)
    some = captions.filter(matches)
    if not len(some):
        return captions
    return pc.replace_with_mask(captions, matches, change(some))


def _clean_some(captions: pa.Array) -> pa.Array:
    """Clean some captions; most that need anything need only `_tidy`, which works on columns."""
    marked = pc.match_substring_regex(captions, _marked())
    tidy = _tidy(captions.filter(pc.invert(marked)))
    cleaned = pa.array([clean(text) for text in captions.filter(marked).to_pylist()], captions.type)
    result = pc.replace_with_mask(captions, pc.invert(marked), tidy)
    return pc.replace_with_mask(result, marked, cleaned)


def _tidy(captions: pa.Array) -> pa.Array:
    captions = pc.replace_substring_regex(captions, _SUFFIX, "")
    captions = pc.replace_substring_regex(captions, f"[{_WIDTHLESS}]+", "")
    return pc.utf8_trim(pc.replace_substring_regex(captions, rf"[ {_CONTROL}{_SPACES}]+", " "), " ")


def clean(text: str) -> str:
    """Clean one caption; of a longer text than any caption only what `tidy_captions` takes out."""
    patterns = _patterns()
    if len(text) > _LONGEST:
        text = patterns.widthless.sub("", patterns.suffix.sub("", text))
        return patterns.gap.sub(" ", text).strip(" ")
    text = _composed(patterns.suffix.sub("", text) if "\t" in text else text)
    text = _without_tags(text)
    for _ in range(_TIMES if "&" in text else 0):
        text = _without_tags(_REFERENCE.sub(_referred, text))
    for _ in range(_ROUNDS):
        before = text
        if patterns.misread.search(text) and ("\x1b" in text or is_bad(text)):
            text = ftfy.fix_text(text, _FTFY)
        if patterns.untidy.search(text):
            text = patterns.idle.sub("", patterns.widthless.sub("", text))
            text = patterns.gap.sub(" ", text).strip(" ")
        text = _composed(_without_tags(text))
        if text == before:
            break
    return text


def _composed(text: str) -> str:
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def _without_tags(text: str) -> str:
    for _ in range(_ROUNDS if "<" in text or "]]>" in text else 0):
        before = text
        ends = text.lower()
        for pattern, end in _CONTENT:
            if end in ends:  # else every beginning would be followed to the end of the text
                text = pattern.sub(" ", text)
        closed = {name.lower() for name in _CLOSING.findall(text)}
        text = _CUT.sub(" ", _TAG.sub(functools.partial(_gap, closed), text))
        if text == before:
            break
    return text


def _gap(closed: set[str], tag: re.Match[str]) -> str:
    """Return what takes a tag's place: for a single letter that is never closed, itself (`size <S>`)."""
    name = tag[1].lower()
    if tag[0][1:-1].lower() == name and name in _LETTERS and name not in closed:
        return tag[0]
    return "" if name in _INLINE else " "


def _referred(reference: re.Match[str]) -> str:
    name = reference[1]
    return html.unescape(reference[0]) if name is None or f"{name};" in html5 else reference[0]


@dataclass(frozen=True, kw_only=True)
class _Patterns:
    """The patterns for one text that `_tidy` uses for columns, and one for joiners that join nothing."""

    suffix: re.Pattern[str]
    untidy: re.Pattern[str]
    """Whether one of the next three may find anything."""
    widthless: re.Pattern[str]
    gap: re.Pattern[str]
    idle: re.Pattern[str]
    misread: re.Pattern[str]
    """What mojibake has, as does much that is not mojibake: ftfy decides."""


@functools.cache
def _patterns() -> _Patterns:
    joining = _class(_joining())
    control = rf"\ufffd{_python(_LOST)}{_python(_SPACES)}"
    return _Patterns(
        suffix=re.compile(_SUFFIX),
        untidy=re.compile(rf"[{_JOINERS}{_python(_WIDTHLESS)}{control}]|  |^ | $"),
        widthless=re.compile(f"[{_python(_WIDTHLESS)}]+"),
        gap=re.compile(rf"[ {control}]+"),
        idle=re.compile(f"(?<![{joining}])[{_JOINERS}]+|[{_JOINERS}]+(?![{joining}])"),
        misread=re.compile(rf"{_MOJIBAKE}|\x1b"),
    )


@functools.cache
def _marked() -> str:
    """Return the RE2 pattern of captions that `clean` changes and `_tidy` alone does not."""
    joining = _arrow(_joining())
    joiner = f"[{_JOINERS}]"
    idle = f"(?:^|[^{joining}]){joiner}|{joiner}(?:$|[^{joining}])"
    # What NFC replaces by itself, or may put together with the character before; and marks that may be out of order.
    second = _second()
    moves = [point for point in _points() if point in second or not unicodedata.is_normalized("NFC", chr(point))]
    marks = [point for point in _points() if unicodedata.combining(chr(point))]
    normal = f"[{_arrow(moves)}]|[{_arrow(marks)}]{{2}}"
    return rf"&#?[0-9A-Za-z]{{1,31}};|<[A-Za-z/!]|\]\]>|{_MOJIBAKE}|{idle}|{normal}|\x1b"


def _second() -> frozenset[int]:
    """Return the code points that a canonical composition may end with."""
    points = set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))  # of Hangul syllables
    for point in _points():
        parts = unicodedata.decomposition(chr(point)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            points.add(int(parts[1], 16))
    return frozenset(points)


def _joining() -> list[int]:
    """Return the code points next to which a joiner has a meaning: scripts whose letters join or stack, and emoji."""
    blocks = (
        (0x600, 0x8FF), (0x900, 0xDFF), (0xF00, 0x109F), (0x1780, 0x18AF), (0x1A20, 0x1AAF), (0x1B00, 0x1BFF),
        (0xA840, 0xA8FF), (0xA980, 0xA9FF), (0xAA60, 0xAAFF), (0xABC0, 0xABFF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE),
        (0x11000, 0x11FFF), (0xFE0F, 0xFE0F), (0x1F3FB, 0x1F3FF), (0x200C, 0x200D),
    )  # fmt: skip
    inside = {point for first, last in blocks for point in range(first, last + 1)}
    return [p for p in _points() if p in inside or (p > 0x2000 and unicodedata.category(chr(p)) == "So")]


def _points() -> Iterator[int]:
    """Return the code points of planes that hold letters, marks and emoji."""
    yield from (point for point in range(0x30000) if not 0xD800 <= point <= 0xDFFF)


def _spans(points: Iterable[int]) -> Iterator[tuple[int, int]]:
    ordered = sorted(points)
    start = before = ordered[0]
    for point in [*ordered[1:], -1]:
        if point != before + 1:
            yield start, before
            start = point
        before = point


def _class(points: Iterable[int]) -> str:
    """Return the code points inside of Python's brackets."""
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in _spans(points))


def _arrow(points: Iterable[int]) -> str:
    """Return the code points inside of RE2's brackets."""
    return "".join(rf"\x{{{first:X}}}-\x{{{last:X}}}" for first, last in _spans(points))


def _python(inside: str) -> str:
    """Return RE2's way of writing code points as Python's."""
    return re.sub(r"\\x\{([0-9A-F]+)\}", lambda found: f"\\U{int(found[1], 16):08x}", inside)
