"""The sections of the page that show numbers: the funnel, the languages, the distributions, the hosts."""

from __future__ import annotations

from collections.abc import Sequence

from altdiffusion.curation.rejects import explain
from altdiffusion.curation.report import draw
from altdiffusion.curation.report.chain import Chain, Step
from altdiffusion.curation.report.collect import UNLABELLED, Facts, Labels, language_name, of
from altdiffusion.curation.report.hosts import Host
from altdiffusion.curation.report.safe import escaped
from altdiffusion.curation.report.words import STEPS
from altdiffusion.languages import BY_CODE

MAX_REASONS = 30  # of one step; the rest is summed in one line
_FOREIGN = 10
_TITLES = {
    "similarity": "Similarity of picture and text",
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


def percent(part: float, whole: float) -> str:
    """A share for people: what is not nothing is not 0 %, what is not all is not 100 %."""
    if not whole:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "&lt; 0.1 %"
    if 99.9 < share < 100:
        return "&gt; 99.9 %"
    return f"{share:.1f} %"


def count(value: float, *, exact: bool = True) -> str:
    """Rows; an estimate has three digits and says so."""
    if exact or value == 0:
        return f"{value:,.0f}"
    return f"≈ {float(f'{value:.3g}'):,.0f}"


def funnel(facts: Facts) -> str:
    """The steps, what each dropped and why, and that it adds up."""
    chain = facts.chain
    lines = [_way("Links read" if chain.complete else "Rows read", chain.read, chain.read, chain.read)]
    before = chain.read
    for step in chain.steps:
        rows = step.version.rows
        lines.append(_way(step.name.capitalize(), rows, before, chain.read))
        before = rows
    older = "" if chain.complete else '<p class="note">Older versions are not in this lake: the way begins later.</p>'
    return (
        "<p>Rows left after each step; grey is what the step dropped.</p>"
        f'<div class="card way"><ol>{"".join(lines)}</ol>{_sum(chain)}{older}</div>'
        f'<div class="steps">{"".join(_step(step) for step in chain.steps)}</div>'
    )


def _way(name: str, rows: int, before: int, read: int) -> str:
    shares = ((max(before, rows) / read, "lost"), (rows / read, "fill")) if read else ()
    return (
        f'<li><span class="name">{escaped(name)}</span><span class="draw">{draw.bar(*shares)}</span>'
        f'<span class="n">{rows:,}</span><span class="n soft">{percent(rows, read)}</span></li>'
    )


def _sum(chain: Chain) -> str:
    if chain.adds_up:
        return (
            f'<p class="sum"><strong>{chain.read:,}</strong> read = <strong>{chain.kept:,}</strong> kept + '
            f"<strong>{chain.dropped:,}</strong> rejected, each with a reason.</p>"
        )
    return (
        f'<p class="sum wrong">{chain.read:,} read, but {chain.kept:,} kept + {chain.dropped:,} rejected = '
        f"{chain.kept + chain.dropped:,}: these versions do not follow from one another row by row.</p>"
    )


def _step(step: Step) -> str:
    retry = step.name == "retry"
    because, stays, read = (
        ("Still rejected because", "recovered", "Rejects taken up")
        if retry
        else ("Rejected because", "kept", "Rows in")
    )
    rows = []
    shown = list(step.reasons.items())
    rest = shown[MAX_REASONS:]
    if rest:
        shown = [*shown[:MAX_REASONS], (f"{len(rest)} other reasons", sum(n for _, n in rest))]
    most = max((n for _, n in shown), default=0)
    for reason, n in shown:
        rows.append(
            f'<tr><td class="thin"><code>{escaped(reason, 60)}</code> <span class="why">{explain(reason)}</span>'
            f'{draw.bar((n / most, "lost"))}</td><td class="n">{n:,}</td>'
            f'<td class="n">{percent(n, step.rows_in)}</td></tr>'
        )
    ref = step.version.ref
    return (
        f'<article class="card"><div class="step-head"><h3>{escaped(step.name)}</h3>'
        f"<code>{escaped(ref.name, 60)}@{ref.digest[:12]}</code></div>"
        f'<p class="about">{STEPS.get(step.name, "")}</p><table><thead><tr><th scope="col">{because}</th>'
        f'<th scope="col" class="n">Rows</th><th scope="col" class="n">Share</th></tr></thead>'
        f"<tbody>{''.join(rows) or '<tr><td>Nothing was rejected</td><td></td><td></td></tr>'}</tbody>"
        f'<tfoot><tr><th scope="row">{stays.capitalize()}</th><td class="n">{step.rows_out:,}</td>'
        f'<td class="n">{percent(step.rows_out, step.rows_in)}</td></tr>'
        f'<tr><th scope="row">{read} <span class="why">= {step.rows_out:,} {stays} + {step.dropped:,} '
        f'rejected</span></th><td class="n">{step.rows_in:,}</td><td></td></tr></tfoot></table></article>'
    )


def languages(facts: Facts) -> str:
    """Each language from the source's label to the images, and where label and decision differ."""
    labels = facts.labels
    exact = labels.sample is None or labels.sample.whole
    most = max((max(row.selected, row.distinct, row.kept) for row in labels.rows), default=0) or 1
    body = []
    for row in labels.rows:
        bars = draw.bar((row.selected / most, "pale"), (row.distinct / most, "mid"), (row.kept / most, "fill"))
        cells = [
            "–" if row.labelled is None else count(row.labelled, exact=exact),
            f"{row.selected:,}",
            f"{row.distinct:,}",
            f"{row.kept:,}",
            percent(row.kept, row.selected),
            "–" if row.agreement is None else percent(row.agreement, 1),
        ]
        body.append(_language_row(_language(row.code), bars, cells))
    for name, value in (("Another label", labels.other), ("No label", labels.unlabelled)):
        if value:
            body.append(_language_row(name, "", [count(value, exact=exact), "", "", "", "", ""]))
    selected, distinct, kept = (
        sum(getattr(row, name) for row in labels.rows) for name in ("selected", "distinct", "kept")
    )
    total = [
        f"{labels.sample.total:,}" if labels.sample is not None else "–",
        f"{selected:,}",
        f"{distinct:,}",
        f"{kept:,}",
        percent(kept, selected),
        "–" if labels.agreement is None else percent(labels.agreement, 1),
    ]
    key = "".join(
        f'<span><svg viewBox="0 0 12 12" aria-hidden="true"><rect class="{name}" width="12" height="12"/></svg>'
        f"{text}</span>"
        for name, text in (("pale", "Selected"), ("mid", "Distinct links"), ("fill", "Pictures"))
    )
    large = " large" if most >= 1_000_000 else ""  # fewer numbers a line on a phone
    heads = "".join(f'<span class="n" role="columnheader">{name}</span>' for name in _COLUMNS)
    return (
        "<p>The source’s own label of the selected rows, our decision after each step, and how often the two agree "
        "where the source names one of these languages.</p>"
        f'<p class="key">{key}</p>'
        f'<div class="card"><div class="languages{large}" role="table" aria-label="Rows by language">'
        f'<div class="head" role="row"><span role="columnheader">Language</span><span role="cell"></span>{heads}</div>'
        f"{''.join(body)}{_language_row('All', '', total, 'all')}</div>{_sampled(labels)}</div>"
        f"{_differences(facts, exact)}"
    )


_COLUMNS = ("Source label", "Selected", "Links", "Pictures", "Of selected", "Agree")


def _language_row(name: str, bars: str, cells: list[str], style: str = "") -> str:
    """A row as a grid, so that a phone can break it into two lines; the roles keep it a table."""
    told = "".join(
        f'<span class="n" role="cell"><span class="tag">{title} </span>{value}</span>' if value
        else '<span class="n none" role="cell"></span>'
        for title, value in zip(_COLUMNS, cells, strict=True)
    )  # fmt: skip
    return (
        f'<div class="{style}" role="row"><span class="name" role="rowheader">{name}</span>'
        f'<span class="draw" role="cell">{bars}</span>{told}</div>'
    )


def _language(code: str) -> str:
    known = BY_CODE.get(code)
    if known is None:
        return f'<span class="name">{escaped(code, 20)}</span>'
    native = "" if known.native == known.name else f' <bdi class="native" lang="{code}">{known.native}</bdi>'
    return f'<span class="name">{known.name}</span>{native}'


def _sampled(labels: Labels) -> str:
    if labels.sample is None or labels.sample.whole:
        return ""
    return f'<p class="note">Source labels and agreement: {of(labels.sample).lower()} selected rows.</p>'


def _differences(facts: Facts, exact: bool) -> str:
    """Two small tables side by side."""
    labels, cards = facts.labels, []
    if labels.disagreements:
        rows = "".join(
            f'<tr><td>{_named(label)}</td><td>{_named(code)}</td><td class="n">{count(rows, exact=exact)}</td></tr>'
            for label, code, rows in labels.disagreements
        )
        cards.append(
            '<div class="card"><h3>Where label and decision differ most</h3><table><thead><tr>'
            '<th scope="col">Source says</th><th scope="col">We say</th><th scope="col" class="n">Rows</th>'
            "</tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
        )
    if facts.foreign:
        sample = next(part.sample for part in facts.rejected if part.step.name == "select")
        most = facts.foreign[0][1]
        rows = "".join(
            f'<tr><td class="thin">{_named(code)}{draw.bar((rows / most, "lost"))}</td>'
            f'<td class="n">{count(rows, exact=sample.whole)}</td></tr>'
            for code, rows in facts.foreign[:_FOREIGN]
        )
        left = len(facts.foreign) - _FOREIGN
        note = f'<p class="note">and {left:,} other guesses</p>' if left > 0 else ""
        cards.append(
            '<div class="card"><h3>Best guess for rows rejected for their language</h3><table><thead><tr>'
            '<th scope="col">Guess</th><th scope="col" class="n">Rows</th></tr></thead>'
            f"<tbody>{rows}</tbody></table>{note}</div>"
        )
    return f'<div class="pair">{"".join(cards)}</div>' if cards else ""


def _named(code: str) -> str:
    if code == UNLABELLED:
        return "no label"
    name = language_name(code)
    return escaped(name, 20) if name == code else f"{name} <span class='soft'>{escaped(code, 20)}</span>"


def distributions(facts: Facts) -> str:
    """A histogram of all that is measured."""
    panels = []
    for panel in facts.panels:
        charts, empty = [], []
        for found in panel.distributions:
            title = _TITLES.get(found.name, found.name)
            if not found.counts:
                empty.append(title)
                continue
            unknown = f" · {found.unknown:,} without a value" if found.unknown else ""
            outside = f" · {found.outside:,} beyond the picture" if found.outside else ""
            charts.append(
                f'<figure class="card"><figcaption><h4>{title}</h4><span>{found.rows:,} rows</span></figcaption>'
                f"{draw.histogram(found, title)}<p>{draw.middle(found)}{unknown}{outside}</p></figure>"
            )
        none = f'<p class="note">No row has a value: {", ".join(empty)}.</p>' if empty else ""
        panels.append(
            f'<div class="panel"><h3>{panel.title}</h3><p>{panel.about}.</p>'
            f'<div class="charts">{"".join(charts)}</div>{none}</div>'
        )
    notes = _shares("Bytes against the hash the source gives", facts.verdicts)
    notes += _shares("Pictures that state their colours, and what became of that", facts.profiles)
    return (
        "<p>After selection, so thresholds show as edges. "
        f"Point at a bar for its range and count.</p>{''.join(panels)}{notes}"
    )


def _shares(about: str, words: Sequence[tuple[str, float]]) -> str:
    if not words:
        return ""
    total = sum(rows for _, rows in words)
    said = ", ".join(f"{escaped(word, 20)} {percent(rows, total)}" for word, rows in words)
    return f'<p class="note">{about}: {said}.</p>'


def hosts(facts: Facts) -> str:
    """The hosts with most rows, and those that lost most."""
    found = facts.hosts
    if found is None:
        return ""
    cards = [_host_table("Most rows", found.largest, found.whole)]
    if found.number > len(found.largest) and found.lossiest:
        cards.append(_host_table("Most rows lost", found.lossiest, found.whole))
    note = (
        f"All {found.kept.total + found.lost.total:,} rows"
        if found.whole
        else f"Estimates from a sample of {found.kept.rows:,} of {found.kept.total:,} pictures and {found.lost.rows:,} "
        f"of {found.lost.total:,} rejects"
    )
    return (
        "<p>A row succeeds when its picture is downloaded, checked and "
        f"decoded. {note}; {found.number:,} hosts seen.</p>"
        f'<div class="{"pair" if len(cards) > 1 else "one"}">{"".join(cards)}</div>'
    )


def _host_table(title: str, hosts: tuple[Host, ...], exact: bool) -> str:
    rows = []
    for host in hosts:
        why = ""
        if host.reason is not None:
            why = f"mostly <code>{escaped(host.reason, 40)}</code> ({count(host.reason_rows, exact=exact)})"
            if host.reason_rows >= host.lost:
                why = f"all <code>{escaped(host.reason, 40)}</code>"
        lost = f"{count(host.lost, exact=exact)} lost, {why}" if why else "none lost"
        rows.append(
            f'<tr><td class="thin"><bdi class="url">{escaped(host.name, 80) or "(no host)"}</bdi>'
            f'{draw.bar((1.0, "lost"), (host.share, "fill"))}<span class="why">{lost}</span></td>'
            f'<td class="n">{count(host.rows, exact=exact)}</td><td class="n">{percent(host.kept, host.rows)}</td></tr>'
        )
    return (
        f'<div class="card"><h3>{title}</h3><table><thead><tr><th scope="col">Host</th>'
        '<th scope="col" class="n">Rows</th><th scope="col" class="n">Success</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
