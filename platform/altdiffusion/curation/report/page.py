"""The page: head, sections, foot. It asks for nothing from anywhere, and its Content-Security-Policy says so."""

from __future__ import annotations

import json

import altdiffusion
from altdiffusion.curation.report import sections, showcase
from altdiffusion.curation.report.collect import Facts
from altdiffusion.curation.report.safe import escaped
from altdiffusion.curation.report.style import STYLE

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_MAX_CONFIG = 6000  # characters of one step's config
_MAX_SOURCES = 20


def render(facts: Facts) -> str:
    """The HTML, with as many images as fit into `max_bytes`."""
    number = facts.config.pictures
    while True:
        text = _page(facts, number)
        if number == 0 or len(text.encode()) <= facts.config.max_bytes:
            return text
        number -= 1


def _page(facts: Facts, pictures: int) -> str:
    parts = [
        ("funnel", "From links to pictures", sections.funnel(facts)),
        ("languages", "Languages", sections.languages(facts)),
        ("measures", "What is measured", sections.distributions(facts)),
        ("hosts", "Success by host", sections.hosts(facts)),
        ("accepted", "Accepted pictures", showcase.accepted(facts, pictures)),
        ("rejected", "Rejected rows", showcase.rejected(facts, pictures)),
        ("versions", "Versions", _versions(facts)),
    ]
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, part in parts if part)
    main = "\n".join(f'<section id="{name}"><h2>{title}</h2>{part}</section>' for name, title, part in parts if part)
    title = f"Curation of {escaped(facts.name, 100)}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f'<meta name="format-detection" content="telephone=no"><title>{title}</title>\n<style>{STYLE}</style></head>\n'
        f'<body><div class="page"><header>{_head(facts)}<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f"<main>{main}</main>\n{_foot(facts)}</div></body></html>\n"
    )


def _head(facts: Facts) -> str:
    chain, images = facts.chain, facts.images
    languages = sum(1 for rows in images.manifest.rows_by_language.values() if rows)
    size = sum(shard.bytes for shard in images.shards)
    read = "links" if chain.complete else "rows"
    largest = max(chain.standing, key=lambda step: step.dropped)
    stats = (
        ("Links read" if chain.complete else "Rows read", f"{chain.read:,}", _sources(facts)),
        ("Pictures kept", f"{chain.kept:,}", f"{_bytes(size)} in {len(images.shards):,} shards"),
        ("Share kept", sections.percent(chain.kept, chain.read), f"most dropped in {escaped(largest.name)}"),
        ("Languages", f"{languages}", _agreement(facts)),
    )
    told = "".join(f"<div><dt>{name}</dt><dd>{value} <small>{about}</small></dd></div>" for name, value, about in stats)
    return (
        f'<p class="over">Curation report</p><h1>{escaped(facts.name, 100)}</h1>'
        f'<p class="lede"><strong>{chain.kept:,}</strong> pictures in {languages} languages, kept from '
        f"<strong>{chain.read:,}</strong> {read}.</p>"
        f'<dl class="stats">{told}</dl>'
    )


def _sources(facts: Facts) -> str:
    number = sum(ref.kind == "source" for ref in facts.chain.steps[0].version.manifest.parent_refs)
    return f"of {number:,} source{'' if number == 1 else 's'}" if number else "sources not in this lake"


def _agreement(facts: Facts) -> str:
    agreement = facts.labels.agreement
    return "no labels to compare with" if agreement is None else f"label agrees in {sections.percent(agreement, 1)}"


def _bytes(size: float) -> str:
    for name, unit in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.3g} kB"


def _versions(facts: Facts) -> str:
    rows, configs = [], []
    made = [(step.name, step.version) for step in facts.chain.steps]
    if facts.scores is not None:
        made.append(("score", facts.scores))
    for name, version in made:
        manifest, ref = version.manifest, version.ref
        others = [parent for parent in manifest.parent_refs if parent.kind != "dataset"]
        for parent in others[:_MAX_SOURCES]:
            rows.append(
                f'<tr><td class="soft">{escaped(parent.kind)}</td><td>{escaped(parent.name, 100)} '
                f"<code>{parent.digest[:12]}</code></td><td></td></tr>"
            )
        if len(others) > _MAX_SOURCES:
            rows.append(f"<tr><td></td><td>and {len(others) - _MAX_SOURCES:,} more</td><td></td></tr>")
        rows.append(
            f"<tr><td>{escaped(name)}</td><td>{escaped(ref.name, 100)} <code>{ref.digest[:12]}</code> "
            f'<span class="why">config {manifest.fingerprint[:12]}, altdiffusion {escaped(manifest.code_version, 40)}'
            f'</span></td><td class="n">{version.rows:,}</td></tr>'
        )
        text = json.dumps(manifest.config, ensure_ascii=False, indent=1, sort_keys=True)
        configs.append(f"<details><summary>Config of {escaped(name)}</summary><pre>{_lines(text)}</pre></details>")
    return (
        "<p>What this report is about. <code>altdiffusion dataset show "
        "NAME@DIGEST</code> tells more of each.</p>"
        '<div class="card versions"><table><thead><tr><th scope="col">Step</th><th scope="col">Version</th>'
        f'<th scope="col" class="n">Rows</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f"{''.join(configs)}</div>"
    )


def _lines(text: str) -> str:
    cut = text[:_MAX_CONFIG]
    more = "\n…" if len(text) > _MAX_CONFIG else ""
    return "\n".join(escaped(line, 500) for line in cut.split("\n")) + more


def _foot(facts: Facts) -> str:
    return (
        f"<footer><p>Made by altdiffusion {escaped(altdiffusion.__version__, 40)} from {escaped(facts.images.ref)}. "
        "The same versions give the same page, byte for byte.</p>"
        "<p>Counts of steps, reasons and languages are exact, from the manifests. What manifests do not hold is read "
        f"from at most about {facts.config.sample_rows:,} rows a question, drawn by digest; the page says where.</p>"
        "</footer>"
    )
