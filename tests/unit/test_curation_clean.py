"""Captions lose markup and the damage of encodings, and nothing that was meant."""

from __future__ import annotations

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.curation.language.clean import clean, clean_captions, tidy_captions

CLEANED = {
    # character references, twice at most
    "Salt &amp; pepper": "Salt & pepper",
    "Salt &amp;amp; pepper": "Salt & pepper",
    "Salt &amp;amp;amp; pepper": "Salt &amp; pepper",
    "caf&eacute; cr&egrave;me": "café crème",
    "It&#39;s &#x27;ok&#X27; &quot;here&quot;": "It's 'ok' \"here\"",
    "&nbsp;5&nbsp;&#8364;&#160;": "5 €",
    "&lt;3 love": "<3 love",
    "&#0; &#55296; x": "x",
    # tags
    "<b>Bold</b> and <I>more</I>": "Bold and more",
    "H<sub>2</sub>O": "H2O",
    "<p>One</p><p class='x'>Two</p>three<br/>four": "One Two three four",
    "&lt;b&gt;Sale&lt;/b&gt;": "Sale",
    "&amp;lt;b&amp;gt;Sale&amp;lt;/b&amp;gt;": "Sale",
    '<a href="http://x.example/?a=1&amp;b=2" target=_blank>Link</a>': "Link",
    "<!-- hidden --><script>alert('<b>')</script>Shown<style>p {}</style>": "Shown",
    'A house <img src="x.jpg" alt="': "A house",
    "<font color=red size=2>Rot</font><td nowrap>Zelle</td>": "Rot Zelle",
    # mojibake
    "FranÃ§ois et le cafÃ©": "François et le café",
    "â€œquotedâ€\x9d â€“ itâ€™s": "“quoted” – it’s",
    "Ð¿Ñ€Ð¸Ð²ÐµÑ‚ Ð¼Ð¸Ñ€": "привет мир",
    "РїСЂРёРІРµС‚ РјРёСЂ": "привет мир",
    "ã\x81\x82ã\x82\x8a": "あり",
    "Ã¢â‚¬â„¢": "’",
    # characters without width, and layout
    "a\u200bb\ufeff c\u00add \u202ee\u2069": "ab cd e",
    "a\r\n\x00b\tc": "a b c",
    "  a \u3000 b\u00a0 ": "a b",
    "Ein Rad\tde": "Ein Rad",
    "tail\tpt-BR \n": "tail",
    "\ue000x\ufffd": "x",
    "Latin\u200d \u200cjoiners\u200c": "Latin joiners",
    # NFC
    "e\u0301te\u0301 \u212b \u1100\u1161": "été Å 가",
    "a\u0323\u0307 a\u0307\u0323": unicodedata.normalize("NFC", "a\u0323\u0307 a\u0307\u0323"),
}  # fmt: skip
KEPT = [
    "a < b", "x < y > z", "I <3 you", "<3 <3", "x<y>z", "if a<b and c>d then", "p<b and c>d", "size <S> or <M>",
    "R&D, AT&T; Q&A", "?a=1&copy=2&reg=3", "&notanentity;", "5 > 3 & 2 < 4", "<happy>", "<user@example.org>",
    "naïve façade à la carte « très bien »", "l’été – “quoted” …", "Różowy łóżko’", "ÀÉÎÕÜ »", "Українська «Рік»",
    "می\u200cشود", "क्\u200dष", "👩\u200d👩\u200d👧 family", "❤\ufe0f", "ｆｕｌｌ ｗｉｄｔｈ", "ﬁne print", "ไทย ภาษา",
    "Zürich’s “Altstadt” €5", "",
]  # fmt: skip


def test_what_is_taken_out_and_what_is_not() -> None:
    found = clean_captions(pa.array([*CLEANED, *KEPT, None])).to_pylist()
    for text, was in zip([*CLEANED.values(), *KEPT, None], found, strict=True):
        assert was == text


def test_without_cleaning_only_layout_goes() -> None:
    given_texts = ["<b>Salt</b> &amp; pepper\tde", " a\u200b \n b ", "e\u0301", None, " \t\n "]
    assert tidy_captions(pa.array(given_texts)).to_pylist() == ["<b>Salt</b> &amp; pepper", "a b", "e\u0301", None, ""]
    chunked = pa.chunked_array([given_texts[:2], given_texts[2:]], pa.string())
    assert tidy_captions(chunked).to_pylist() == tidy_captions(pa.array(given_texts)).to_pylist()


PIECES = [
    *CLEANED, *KEPT, "&amp;", "&lt;", "b", ">", "</b>", "<", "/", "Ã©", "â€", "\u200d", "\u200b", "\u0301", "\u0323",
    " ", "\t", "de", "\x1b[1m", "م", "क", "👩", "é", "Р", "С", "‚", "\x85",
]  # fmt: skip
TEXT = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=6).map("".join)


@settings(deadline=None)  # the first text makes the patterns
@given(TEXT)
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = clean(text)
    if "&" in once and ";" in once:
        return  # what was escaped more than twice
    assert clean(once) == once
    assert clean_captions(pa.array([once])).to_pylist() == [once]
    assert unicodedata.is_normalized("NFC", once) and once == once.strip() and "  " not in once


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), TEXT), max_size=5))
def test_what_is_not_looked_at_needs_nothing(texts: list[str | None]) -> None:
    """The regular expression over the column finds every caption that `clean` changes."""
    found = clean_captions(pa.array(texts, pa.string())).to_pylist()
    assert found == [None if text is None else clean(text) for text in texts]


@pytest.mark.timeout(60)  # not the minutes that it took where the end of each beginning was looked for
@pytest.mark.parametrize("size", [16_000, 1_000_000])
def test_hostile_text_takes_no_longer_than_its_length(size: int) -> None:
    for piece in (
        "<",
        "<b",
        "<b ",
        "<b a=",
        "&amp;",
        "&",
        "<!--",
        "<script>",
        "Ã",
        "\u200d",
        "\u0301",
        "</b>",
        "<b a=1 ",
    ):
        clean(piece * (size // len(piece)))
    clean("<" * (size // 4) + "b>" * (size // 4))
