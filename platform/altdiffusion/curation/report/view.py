"""What report.html shows of the facts: the values of `report.html.j2`, which adds only markup."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altdiffusion
from altdiffusion.curation import rejects
from altdiffusion.curation.report.chain import Step
from altdiffusion.curation.report.collect import UNLABELLED, Facts, Panel, language_name
from altdiffusion.curation.report.draw import Histogram, histogram
from altdiffusion.curation.report.measures import Distribution
from altdiffusion.html.page import count, percent, render
from altdiffusion.languages import BY_CODE
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Version

_MAX_REASONS = 30  # per step; the others are summed in one line
_MAX_FOREIGN = 10
_MAX_SOURCES = 20
_MAX_CONFIG = 6000  # characters of one step's config
_LONG = re.compile(r"-?[0-9]+\.[0-9]{5,}")
_STEPS = {
    "select": "Filters and language identification over the links as published",
    "deduplicate": "Exact duplicates by row id and by URL, across all sources",
    "balance": "No more than a number of rows per language",
    "download": "Fetched, checked, decoded and resized",
    "retry": "Rejects whose reason may pass, tried again",
    "distinct": "Duplicates among the images themselves",
    "change": "A later version of the same rows",
}
_MEASURES = {
    "similarity": "Similarity of image and text",
    "aesthetic": "Aesthetic score",
    "punsafe": "Probability of unsafe",
    "pwatermark": "Probability of a watermark",
    "language_score": "Confidence of the language",
    "short_side": "Shorter side",
    "aspect": "Longer / shorter side",
    "original_short_side": "Shorter side, as downloaded",
    "stored_short_side": "Shorter side, as stored",
    "aesthetic_score": "Aesthetic score, by our scorer",
    "stored_bytes": "Bytes, as stored",
    "aesthetic_v1": "Aesthetic score V1",
    "aesthetic_v2": "Aesthetic score V2",
    "nsfw": "NSFW score",
    "watermark": "Watermark score",
}


@dataclass(frozen=True, kw_only=True)
class LanguageLine:
    """One line of the table of languages."""

    name: str
    cells: tuple[str, ...]
    """One per column of numbers; empty where the column does not apply."""
    shares: tuple[float, ...] = ()
    """Selected rows, distinct links and images, as shares of the largest number in the table."""
    code: str = ""
    native: str = ""
    """The name in the language itself, where it differs."""


def render_report(facts: Facts) -> str:
    """Return the page, with as many images as fit into `max_bytes`."""
    images = facts.config.pictures
    while True:
        text = _render(facts, images)
        if images == 0 or len(text.encode()) <= facts.config.max_bytes:
            return text
        images -= 1


def _render(facts: Facts, images: int) -> str:
    """Return the page with at most `images` accepted images per language, and pairs of duplicates unless it is 0."""
    chain, labels = facts.chain, facts.labels
    galleries = [(row, facts.gallery.images.get(row.code, ())[:images]) for row in labels.rows]
    galleries = [(row, shown) for row, shown in galleries if shown]
    sections = {
        "funnel": "From links to images",
        "languages": "Languages",
        "measures": "What is measured",
        "hosts": "Success by host" if facts.hosts is not None else "",
        "accepted": "Accepted images" if galleries else "",
        "rejected": "Rejected rows" if facts.rejected else "",
        "versions": "Versions",
    }
    made = [(step.name, step.version) for step in chain.steps]
    return render(
        "report.html.j2",
        facts=facts,
        sections={name: title for name, title in sections.items() if title},
        languages=sum(1 for rows in facts.images.manifest.rows_by_language.values() if rows),
        sources=sum(ref.kind == "source" for ref in chain.steps[0].version.manifest.parent_refs),
        bytes=sum(shard.bytes for shard in facts.images.shards),
        largest=max(chain.final_steps, key=lambda step: step.dropped),
        stages=_stages(facts),
        steps=[(step, _reasons(step)) for step in chain.steps],
        lines=_lines(facts),
        large=_most(facts) >= 1_000_000,  # a phone then shows fewer numbers per line
        exact=_exact(facts),
        foreign_exact=all(part.sample.whole for part in facts.rejected if part.step.name == "select"),
        panels=[_panel(panel) for panel in facts.panels],
        galleries=galleries,
        pairs=images > 0 and any(part.pairs for part in facts.rejected),
        versions=[_version(*one) for one in (made if facts.scores is None else [*made, ("score", facts.scores)])],
        **_FIXED,
    )


def _stages(facts: Facts) -> list[tuple[str, int, int]]:
    """Return each stage of the rows: its name, rows after it, and the larger of that and the rows before it."""
    chain = facts.chain
    rows = [chain.read, *(step.version.rows for step in chain.steps)]
    names = ["Links read" if chain.complete else "Rows read", *(step.name.capitalize() for step in chain.steps)]
    return [(name, n, max(n, before)) for name, n, before in zip(names, rows, [chain.read, *rows[:-1]], strict=True)]


def _reasons(step: Step) -> list[tuple[str, int]]:
    reasons = list(step.reasons.items())
    rest = reasons[_MAX_REASONS:]
    return reasons[:_MAX_REASONS] + ([(f"{len(rest)} other reasons", sum(rows for _, rows in rest))] if rest else [])


def _exact(facts: Facts) -> bool:
    """Return whether the numbers of labels were counted, not estimated."""
    return facts.labels.sample is None or facts.labels.sample.whole


def _most(facts: Facts) -> int:
    return max((max(row.selected, row.distinct, row.kept) for row in facts.labels.rows), default=0)


def _lines(facts: Facts) -> list[LanguageLine]:
    """Return the table of languages; its last line is the total."""
    labels, exact, most = facts.labels, _exact(facts), _most(facts) or 1

    def cells(labelled: str, selected: int, distinct: int, kept: int, agreement: float | None) -> tuple[str, ...]:
        agree = "–" if agreement is None else percent(agreement, 1)
        return labelled, count(selected), count(distinct), count(kept), percent(kept, selected), agree

    lines = []
    for row in labels.rows:
        labelled = "–" if row.labelled is None else count(row.labelled, exact)
        line = LanguageLine(
            name=language_name(row.code),
            cells=cells(labelled, row.selected, row.distinct, row.kept, row.agreement),
            shares=(row.selected / most, row.distinct / most, row.kept / most),
            code=row.code,
            native=_native(row.code),
        )
        lines.append(line)
    for name, rows in (("Another label", labels.other), ("No label", labels.unlabelled)):
        if rows:
            lines.append(LanguageLine(name=name, cells=(count(rows, exact), "", "", "", "", "")))
    selected, distinct, kept = (
        sum(getattr(row, name) for row in labels.rows) for name in ("selected", "distinct", "kept")
    )
    labelled = count(labels.sample.total) if labels.sample is not None else "–"
    return [*lines, LanguageLine(name="All", cells=cells(labelled, selected, distinct, kept, labels.agreement))]


def _panel(panel: Panel) -> tuple[Panel, list[tuple[str, Distribution, Histogram]], list[str]]:
    """Return a panel, its charts (title, distribution, drawing), and the titles of measures without a value."""
    named = [(_MEASURES.get(found.name, found.name), found) for found in panel.distributions]
    charts = [(title, found, histogram(found)) for title, found in named if found.counts]
    return panel, charts, [title for title, found in named if not found.counts]


def _version(name: str, version: Version) -> tuple[str, Version, Sequence[Ref], int, list[str]]:
    """Return a version with its step, the first parents that are not datasets, how many more there are, and its config.

    The config is lines of JSON.
    """
    others = [ref for ref in version.manifest.parent_refs if ref.kind != "dataset"]
    text = json.dumps(version.manifest.config, ensure_ascii=False, indent=1, sort_keys=True)
    lines = text[:_MAX_CONFIG].split("\n") + (["…"] if len(text) > _MAX_CONFIG else [])
    return name, version, others[:_MAX_SOURCES], max(0, len(others) - _MAX_SOURCES), lines


def _native(code: str) -> str:
    known = BY_CODE.get(code)
    return known.native if known is not None and known.native != known.name else ""


def _direction(code: str) -> str:
    known = BY_CODE.get(code)
    return "auto" if known is None else "rtl" if known.right_to_left else "ltr"


def _rounded(detail: str) -> str:
    """Return a number without the digits that float32 makes up."""
    return f"{float(detail):.4g}" if _LONG.fullmatch(detail) else detail


_FIXED: dict[str, Any] = {
    "altdiffusion": altdiffusion.__version__,
    "step_texts": _STEPS,
    "max_reasons": _MAX_REASONS,
    "max_foreign": _MAX_FOREIGN,
    "unlabelled": UNLABELLED,
    "guessed": rejects.LANGUAGE,
    "explain": rejects.explain,
    "withheld": rejects.withheld,
    "language_name": language_name,
    "native": _native,
    "direction": _direction,
    "rounded": _rounded,
}
"""What the template uses in every report: texts, limits, and the functions that put codes and reasons into words."""
