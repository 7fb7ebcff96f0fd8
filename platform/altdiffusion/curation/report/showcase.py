"""The sections of the page that show rows: accepted images by language, and examples of what was rejected."""

from __future__ import annotations

import re

from altdiffusion.curation.rejects import LANGUAGE, explain, withheld
from altdiffusion.curation.report.collect import Example, Facts, Rejected, language_name, of
from altdiffusion.curation.report.duplicate_pairs import Pair
from altdiffusion.curation.report.gallery import Picture
from altdiffusion.curation.report.safe import escaped
from altdiffusion.curation.report.sections import MAX_REASONS
from altdiffusion.languages import BY_CODE

MAX_CAPTION = 160
_LONG = re.compile(r"-?[0-9]+\.[0-9]{5,}")


def accepted(facts: Facts, images: int) -> str:
    """At most `images` accepted ones for each language."""
    gallery = facts.gallery
    blocks = []
    for row in facts.labels.rows:
        chosen = gallery.pictures.get(row.code, ())[:images]
        if not chosen:
            continue
        cards = "".join(
            f"<li>{_card(image, f'Picture {n} of {len(chosen)} accepted as {language_name(row.code)}')}</li>"
            for n, image in enumerate(chosen, 1)
        )
        native = f' <bdi class="soft" lang="{row.code}">{BY_CODE[row.code].native}</bdi>' if row.code in BY_CODE else ""
        blocks.append(
            f'<div class="gallery"><h3>{escaped(language_name(row.code), 20)}{native if row.code != "en" else ""} '
            f'<span class="soft">· {row.kept:,} pictures</span></h3><ul>{cards}</ul></div>'
        )
    if not blocks:
        return ""
    hidden = f" {gallery.hidden:,} of them are never shown: they may be unsafe." if gallery.hidden else ""
    return (
        "<p>A few of each language, drawn by the digest of the version "
        f"from {gallery.looked_at:,} rows.{hidden}</p>{''.join(blocks)}"
    )


def _card(image: Picture, alt: str) -> str:
    language = BY_CODE.get(image.language)
    direction = "rtl" if language is not None and language.right_to_left else "ltr" if language is not None else "auto"
    said = [f"language {image.language_score:.2f}"]
    if image.similarity is not None:
        said.append(f"similarity {image.similarity:.2f}")
    if image.aesthetic is not None:
        said.append(f"aesthetic {image.aesthetic:.1f}")
    said.append(f"{image.size[0]} × {image.size[1]} px")
    facts = " ".join(f"<span>{one}</span>" for one in said)
    large = ' class="large"' if max(image.shown) > 96 else ""
    return (
        f'<figure><div class="frame"><img{large} src="{image.data_uri}" alt="{escaped(alt)}" '
        f'width="{image.shown[0]}" height="{image.shown[1]}"></div><figcaption>'
        f'<p class="says" lang="{escaped(image.language, 20)}" dir="{direction}">'
        f'{escaped(image.caption, MAX_CAPTION)}</p><p class="facts">{facts}</p></figcaption></figure>'
    )


def rejected(facts: Facts, images: int) -> str:
    """Examples by step and reason; duplicates as images, unless none fit on the page."""
    parts = "".join(_step(part, images > 0) for part in facts.rejected)
    if not parts:
        return ""
    pairs = images > 0 and any(part.pairs for part in facts.rejected)
    stored = "Of duplicates, the dropped picture stands left of the one that stays." if pairs else ""
    return (
        "<p>A few for each reason. Addresses are plain text, not links, and pictures of rejected rows are not stored. "
        f"{stored} What is blocked, taken down or unsafe is counted, never shown.</p>{parts}"
    )


def _step(part: Rejected, images: bool) -> str:
    cards = []
    for reason in list(part.step.reasons)[:MAX_REASONS]:
        examples = part.examples[reason]
        pairs = part.pairs.get(reason, ()) if images else ()
        if pairs:
            inside = f'<ul class="pairs">{"".join(f"<li>{_pair(pair)}</li>" for pair in pairs)}</ul>'
        elif withheld(reason):
            inside = '<p class="note">Not shown.</p>'
        elif examples:
            inside = f"<ol>{''.join(f'<li>{_example(one, reason)}</li>' for one in examples)}</ol>"
        else:
            inside = '<p class="note">None among the rows that were read.</p>'
        cards.append(
            f'<div class="card"><div class="step-head"><code>{escaped(reason, 60)}</code>'
            f'<span class="soft">{part.step.reasons[reason]:,}</span></div><p class="why">{explain(reason)}</p>'
            f"{inside}</div>"
        )
    note = "" if part.sample.whole else f'<p class="note">{of(part.sample)} rejects.</p>'
    return f'<h3 class="step-name">{escaped(part.step.name)}</h3>{note}<div class="why-not">{"".join(cards)}</div>'


def _pair(pair: Pair) -> str:
    return _card(pair.dropped, "Dropped picture") + _card(pair.survivor, "Picture that it duplicates")


def _example(one: Example, reason: str) -> str:
    url = f'<bdi class="url" dir="ltr">{escaped(one.url, 160)}</bdi>' if one.url is not None else "no address"
    said = []
    if one.language is not None:
        said.append(("guess " if reason == LANGUAGE else "") + escaped(language_name(one.language), 20))
    if one.detail:
        said.append(f'<bdi dir="auto">{escaped(_rounded(one.detail), 160)}</bdi>')
    return f'{url}<span class="detail">{" · ".join(said)}</span>'


def _rounded(detail: str) -> str:
    """A number without the digits that float32 makes up."""
    return f"{float(detail):.4g}" if _LONG.fullmatch(detail) else detail
