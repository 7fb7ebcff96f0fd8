"""The public summary of training content that the European Union's AI Act asks for, as a draft to be completed.

Article 53(1)(d) of Regulation (EU) 2024/1689 obliges providers of general-purpose AI models to publish it in the form
of the European Commission's template. The headings and their numbers are those of the template in the Annex of the
Explanatory Notice, first published on 24 July 2025, adopted as C(2025) 8311 final of 5 December 2025. Manifests fill in
what they hold. Everything else is marked for people, and nothing is invented.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from altdiffusion.credentials import redact
from altdiffusion.curation import rejects
from altdiffusion.curation.config.presets import PRESETS
from altdiffusion.documents.history import Made, reasons
from altdiffusion.documents.training_content import Sizes, TrainingContent
from altdiffusion.html.markdown import table
from altdiffusion.image_files.printable import printable
from altdiffusion.languages import in_order, named_language
from altdiffusion.lineage.graph import Node

TEMPLATE = "C(2025) 8311 final of 5 December 2025 (first published on 24 July 2025)"
MARK = "TO FILL IN"
_IMAGES = ((10**6, "Less than 1 million images"), (10**9, "1 million to 1 billion images"))
_MORE_IMAGES = "More than 1 billion images"
_TOKENS = ((10**9, "Less than 1 billion tokens"), (10**13, "1 billion to 10 trillion tokens"))
_MORE_TOKENS = "More than 10 trillion tokens"
_RESERVED = (
    rejects.OPT_OUT_ROBOTS,
    rejects.OPT_OUT_X_ROBOTS_TAG,
    rejects.OPT_OUT_TDM,
    rejects.OPT_OUT_CONTENT_USAGE,
    rejects.ROBOTS_UNREACHABLE,
)
_ILLEGAL = (rejects.PUNSAFE, rejects.NSFW, rejects.BLOCKLIST, rejects.TAKEDOWN)
_PAGES = {"relaion": "https://laion.ai/blog/relaion-5b/", "laion": "https://laion.ai/blog/laion-5b/"}
"""Pages of published sets, by the beginning of their preset's name."""


def ask(what: str) -> str:
    """Return the mark of a field that people have to fill in."""
    return f"**[{MARK}: {what}]**"


def public_summary(
    content: TrainingContent, *, date: str | None = None, small_provider: bool = False, domains_file: str | None = None
) -> str:
    """Return the draft as Markdown.

    Args:
        date: of the last update; None leaves it to people.
        small_provider: whether the shorter list of domains for small and medium-sized enterprises is enough.
        domains_file: name of the file that lists the domains; None lists them in the text.
    """
    parts = [
        "# Public summary of training content\n\n"
        f"Draft for Article 53(1)(d) of Regulation (EU) 2024/1689, in the form of the template {TEMPLATE}. "
        f"Fields marked {MARK} are for people: no manifest holds them.\n\n"
        f"- Version of the summary: {ask('version')}\n- Last update: {date or ask('date')}",
        _general(content),
        "## 2. List of data sources",
        _published(content),
        _private(content),
        _crawled(content, small_provider=small_provider, domains_file=domains_file),
        f"### 2.4. User data\n\nData from users of the model or of other services: {ask('yes or no, and which')} "
        "Manifests do not state it.",
        _synthetic(content),
        f"### 2.6. Other sources of data\n\n{ask('yes or no, and which')}",
        _processing(content),
        _evidence(content),
    ]
    return redact("\n\n".join(parts)) + "\n"


def domain_lines(content: TrainingContent, *, small_provider: bool) -> list[str]:
    """Return the most relevant domains, one per line: the name and its rows, with a tab between them."""
    return [f"{name}\t{rows}" for name, rows in content.domains.top(small_provider=small_provider)]


def _general(content: TrainingContent) -> str:
    node = content.checkpoint
    bases = [_model(*model) for model in content.models] or ["- none is recorded"]
    sizes = [["modality", "training data size", "types of content"]]
    if content.images.most != 0:
        size = _range(content.images, _IMAGES, _MORE_IMAGES, "images")
        sizes.append(["Image", size, f"images of the web with their captions. {ask('photos, art, ...')}"])
    if content.tokens.most != 0:
        size = _range(content.tokens, _TOKENS, _MORE_TOKENS, "tokens")
        sizes.append(["Text", size, "captions of images" + _with_parallel(content)])
    head = ["## 1. General information", "### 1.1. Provider identification"]
    head += [
        f"- Provider name and contact details: {ask('name and contact')}\n"
        f"- Authorised representative name and contact details: {ask('name and contact, or not applicable')}",
        "### 1.2. Model identification",
        f"- Versioned model name(s): {ask('name on the market')}; checkpoint `{node.ref}`\n"
        "- Model dependencies:\n" + "\n".join(f"  {line}" for line in bases) + "\n"
        f"- Date of placement of the model on the Union market: {ask('date')}",
        "### 1.3. Modalities, overall training data size and other characteristics",
        table(sizes, texts=3),
        f"- Latest date of data acquisition: {ask('month and year; manifests hold no dates, the jobs in MLflow do')}\n"
        f"- Is the model continuously trained on new data: {ask('yes or no')}\n"
        "- Linguistic characteristics: rows by language over all datasets that training read:",
        _language_table(content),
        f"- Other relevant characteristics: {ask('optional')}\n- Additional comments: {ask('optional')}",
    ]
    return "\n\n".join(head)


def _with_parallel(content: TrainingContent) -> str:
    return ", and texts with their translations" if any(made.kind == "parallel" for made in content.read) else ""


def _model(node: Node, facts: Mapping[str, Any]) -> str:
    hub = facts.get("hub")
    licence = facts.get("licence")
    more = [f"from {_code(hub)}" if hub is not None else "", f"licence {_code(licence)}" if licence is not None else ""]
    text = "; ".join(part for part in more if part)
    return f"- {node.name}, digest `{node.digest}`{'; ' + text if text else ''}. {ask('link to its own summary')}"


def _code(value: object) -> str:
    """Return a value of a file that others may have written as code, so that it cannot become markup."""
    return f"`{printable(value).replace('`', '')}`"


def _range(sizes: Sizes, bins: Sequence[tuple[int, str]], above: str, unit: str) -> str:
    """Return the template's range; where the bounds are in different ranges, it is left to people."""

    def place(number: int) -> str:
        return next((name for limit, name in bins if number < limit), above)

    bounds = f"{sizes.least:,} to {'?' if sizes.most is None else format(sizes.most, ',')} {unit}"
    if sizes.most is not None and place(sizes.least) == place(sizes.most):
        return f"{place(sizes.least)} ({f'{sizes.most:,} {unit}' if sizes.least == sizes.most else bounds})"
    return f"{ask('range')} (by manifests: {bounds})"


def _language_table(content: TrainingContent) -> str:
    counts = content.languages()
    rows = [["language", "rows"], *([named_language(code), f"{counts[code]:,}"] for code in in_order(sorted(counts)))]
    return table(rows) if counts else ask("languages")


def _published(content: TrainingContent) -> str:
    lines = ["### 2.1. Publicly available datasets", ""]
    found = [(node, facts) for node, facts in content.sources if _is_published(facts)]
    lines.append(f"Used: {'yes' if found else ask('yes or no; no source has the preset of a published set')}")
    for node, facts in found:
        lines.append(f"- {node.name}, preset {facts['preset']}: {_page(str(facts['preset']))}; listing `{node.ref}`")
    if found:
        lines += ["", f"- Modalities: text and image (links with captions). Period of collection: {ask('period')}"]
        lines.append(f"- Other publicly available datasets: {ask('description')}")
    return "\n".join(lines)


def _is_published(facts: Mapping[str, Any]) -> bool:
    preset = PRESETS.get(str(facts.get("preset")))
    return preset is not None and preset.published


def _page(preset: str) -> str:
    for beginning, page in _PAGES.items():
        if preset.startswith(beginning):
            return page
    return ask("link")


def _private(content: TrainingContent) -> str:
    other = [node for node, facts in content.sources if not _is_published(facts)]
    listed = "\n".join(f"- {node.name}, listing `{node.ref}`: {ask('where it comes from')}" for node in other)
    return (
        "### 2.2. Private non-publicly available datasets obtained from third parties\n\n"
        "#### 2.2.1. Datasets commercially licensed by rightsholders or their representatives\n\n"
        f"{ask('yes or no, and modalities')}\n\n"
        "#### 2.2.2. Private datasets obtained from other third parties\n\n"
        f"{ask('yes or no, and which')}"
    ) + (f"\n\nSources without the preset of a published set:\n\n{listed}" if other else "")


def _crawled(content: TrainingContent, *, small_provider: bool, domains_file: str | None) -> str:
    fetched = [made for made in content.curation if made.kind == "images"]
    lines = ["### 2.3. Data crawled and scraped from online sources", ""]
    if not fetched:
        return "\n".join([*lines, f"Used: {ask('yes or no; no dataset of downloaded images is among the manifests')}"])
    images = ", ".join(f"`{made.node.ref}`" for made in content.history.latest if made.kind == "images")
    lines += [
        f"Used: yes. Images were downloaded from the links of the sources into {images}.",
        "",
        f"- Crawler name(s)/identifier(s): {ask('the user agent of the config, download.user_agent')}",
        f"- Purposes of the crawler(s): download of linked images for training. {ask('other purposes')}",
        "- General description of crawler behaviour: only links of the sources are requested, with no login, cookie "
        f"or proxy; settings recorded: {_behaviour(content)}",
        f"- Period of data collection: {ask('from month/year to month/year; the download jobs in MLflow have times')}",
        f"- Type of content and online sources crawled: {ask('description')}",
        "- Type of modality covered: image",
        f"- Summary of the most relevant domain names crawled: {_domains(content, small_provider, domains_file)}",
    ]
    if domains_file is None:
        found = [line.split("\t") for line in domain_lines(content, small_provider=small_provider)]
        if found:
            lines += ["", table([["domain", "rows"], *([name, f"{int(rows):,}"] for name, rows in found)])]
    return "\n".join(lines)


def _behaviour(content: TrainingContent) -> str:
    shown = []
    for made in content.curation:
        download = made.config.get("download")
        if isinstance(download, Mapping):
            shown += [f"{key}: {value}" for key, value in sorted(download.items()) if key.startswith("honor_")]
    return ", ".join(dict.fromkeys(shown)) or ask("robots.txt, paywalls, captchas")


def _domains(content: TrainingContent, small_provider: bool, domains_file: str | None) -> str:
    domains = content.domains
    share = "the top 5 %, at most 1,000 (small and medium-sized enterprises)" if small_provider else "the top 10 %"
    text = f"{share} of {len(domains.rows):,} host names, by rows of images (not by bytes)"
    if domains_file is not None:
        text += f", in the file `{domains_file}`"
    if domains.unnamed:
        text += f"; {domains.unnamed:,} rows have a link without a host"
    if domains.unread:
        text += f"; erased, so that their links are not known: {', '.join(f'`{ref}`' for ref in domains.unread)}"
    return text


def _synthetic(content: TrainingContent) -> str:
    drawn = [made for made in content.curation if made.kind == "generations"]
    parallel = [made for made in content.read if made.kind == "parallel"]
    lines = ["### 2.5. Synthetic data", ""]
    if drawn:
        lines.append("Used: yes, images that a model drew:")
        lines += [f"- `{made.node.ref}`: {made.rows:,} rows" for made in drawn]
    else:
        lines.append(f"No dataset of generated images is among the manifests. Used: {ask('yes or no')}")
    for made in parallel:
        lines.append(f"- `{made.node.ref}`: {made.rows:,} translations: {ask('made by people or by which model')}")
    return "\n".join(lines)


def _processing(content: TrainingContent) -> str:
    opted = reasons(content.rejects(_RESERVED))
    illegal = reasons(content.rejects(_ILLEGAL))
    lists = [f"- blocklist `{node.ref}`" for node in content.history.nodes("blocklist")]
    lists += [f"- blocklist of source {name}, SHA-256 `{digest}`" for name, digest in _blocklists(content)]
    return "\n".join(
        [
            "## 3. Data processing aspects",
            "",
            "### 3.1. Respect of reservation of rights from text and data mining exception or limitation",
            "",
            f"- Signatory to the Code of Practice with commitments on reservations of rights: {ask('yes or no')}",
            f"- Measures, as recorded: {_behaviour(content)}",
            f"- Rows that were not taken because of a reservation: {'none' if not opted else ''}",
            *(f"  - {line}" for line in opted),
            f"- Additional comments: {ask('optional')}",
            "",
            "### 3.2. Removal of illegal content",
            "",
            f"- General description of measures: {ask('description')}",
            f"- Rows that were removed as unsafe, listed or taken down: {'none' if not illegal else ''}",
            *(f"  - {line}" for line in illegal),
            *(lists or [f"- Blocklists: none is recorded. {ask('other lists')}"]),
            "",
            "### 3.3. Other information (optional)",
            "",
            ask("optional"),
        ]
    )


def _blocklists(content: TrainingContent) -> Iterator[tuple[str, str]]:
    for node, facts in content.sources:
        if isinstance(facts.get("blocklist_sha256"), str):
            yield node.name, facts["blocklist_sha256"]


def _evidence(content: TrainingContent) -> str:
    lines = ["## Evidence", "", f"Everything above that is not marked {MARK} comes from the manifests of:", ""]
    lines += [f"- `{made.node.ref}`: {made.rows:,} rows, read by training{_erased(made)}" for made in content.read]
    lines += [f"- `{ref}`: read by training, no longer in the lake" for ref in content.gone]
    used = {made.node.ref for made in content.read}
    others = [made for made in content.curation if made.node.ref not in used]
    lines += [f"- `{made.node.ref}`: {made.rows:,} rows{_erased(made)}" for made in others]
    return "\n".join(lines)


def _erased(made: Made) -> str:
    return ", erased since then" if made.node.missing else ""
