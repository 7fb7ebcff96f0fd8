"""The dataset card of a version: a README.md whose head the Hugging Face hub reads.

It holds no time, host or path, so that a version and its `Statements` give one card.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from altdiffusion.credentials import redact
from altdiffusion.documents.croissant import NO_SEARCH, describe
from altdiffusion.documents.history import History, languages_of, reasons
from altdiffusion.documents.statements import Statements
from altdiffusion.html.markdown import table
from altdiffusion.languages import named_language
from altdiffusion.records import SCHEMAS
from altdiffusion.storage.dataset import Version

EXPECTED = ("licence", "contact")
"""What a card should state and only people can."""
UNKNOWN = "unknown"
"""The hub's value for a licence that is not known."""
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
_TASKS: Mapping[str, list[str]] = {
    "links": ["text-to-image"],
    "images": ["text-to-image", "image-to-text"],
    "latents": ["text-to-image"],
    "parallel": ["translation"],
    "prompts": ["text-to-image"],
    "generations": ["text-to-image"],
}
"""The hub's tasks that rows of a kind serve."""


def dataset_card(version: Version, history: History, stated: Statements) -> str:
    """Return README.md of a version.

    Args:
        history: of the version.

    Raises:
        AltDiffusionError: the version's table of shards is damaged.
    """
    parts = [
        _front(version, stated),
        f"# {version.manifest.name}\n\n{describe(version)}",
        _origin(history),
        _funnel(history),
        _languages(version),
        _columns(version),
        _filters(history),
        _rights(stated),
        _loading(version),
        f"## Identity\n\n- version: `{version.ref}`\n- made with altdiffusion {version.manifest.code_version}",
    ]
    return redact("\n\n".join(parts)) + "\n"


def size_category(rows: int) -> str:
    """Return the hub's category of a number of rows."""
    for place, name in enumerate(_SIZES):
        if rows < 10 ** (place + 3):
            return f"{_SIZES[place - 1]}<n<{name}" if place else f"n<{name}"
    return f"n>{_SIZES[-1]}"


def _front(version: Version, stated: Statements) -> str:
    manifest = version.manifest
    named = stated.licence is not None and "://" not in stated.licence
    head: dict[str, Any] = {"pretty_name": manifest.name}
    if stated.licence is None or named:
        head["license"] = (stated.licence or UNKNOWN).lower()
    else:
        head |= {"license": "other", "license_link": stated.licence}
    codes = [code for code in languages_of(version) if len(code) in (2, 3) and code != "und"]
    if codes:
        head["language"] = codes  # the hub takes ISO 639 codes only
    if len(codes) > 1:
        head["multilinguality"] = ["multilingual"]
    head["size_categories"] = [size_category(manifest.rows)]
    if manifest.kind in _TASKS:
        head["task_categories"] = _TASKS[manifest.kind]
    head["tags"] = ["altdiffusion", manifest.kind]
    if version.shards:
        head["configs"] = [
            {"config_name": "default", "data_files": [{"split": "train", "path": shard_paths(version)}]},
        ]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---"


def shard_paths(version: Version) -> list[str]:
    """Return the shards' paths relative to the dataset's folder, in the order of the rows.

    Each one is named, because the folder holds the shards of other versions too.
    """
    return [f"shards/{shard.sha256}.parquet" for shard in version.shards]


def _origin(history: History) -> str:
    lines = ["## Made from", ""]
    lines += [f"- {node.kind} `{node.ref}`" for node in history.nodes("source", "blocklist", "model", "checkpoint")]
    lines += [f"- dataset `{node.ref}`, no longer in the lake" for node in history.absent]
    return "\n".join(lines) if len(lines) > 2 else "## Made from\n\nNothing outside of this dataset."


def _funnel(history: History) -> str:
    rows = [["pipeline step", "dataset", "rows in", "rejected", "rows out"]]
    lost = [f"- {made.step}: {line}" for made in history.latest for line in reasons(made.rejects)]
    for made in history.made:
        gone = made.rows_in - made.rows
        rows.append([made.step, made.node.label, f"{made.rows_in:,}", f"{gone:,}", f"{made.rows:,}"])
    text = "## From source to dataset\n\nEvery row is accepted or rejected with a reason. "
    text += "A later version of a dataset counts the rejects of the earlier one too.\n\n"
    return text + table(rows, texts=2) + ("\n\nRejected rows by reason:\n\n" + "\n".join(lost) if lost else "")


def _languages(version: Version) -> str:
    counts, total = version.manifest.rows_by_language, max(version.rows, 1)
    rows = [["language", "rows", "share"]]
    rows += [[named_language(c), f"{counts[c]:,}", f"{100 * counts[c] / total:.1f} %"] for c in languages_of(version)]
    return "## Languages\n\n" + (table(rows) if len(rows) > 1 else "No row has a language.")


def _columns(version: Version) -> str:
    lines = ["## Columns", "", "| column | type | meaning |", "| --- | --- | --- |"]
    for column in SCHEMAS[version.manifest.kind]:
        null = ", may be null" if column.nullable else ""
        lines.append(f"| `{column.name}` | {column.type}{null} | {column.metadata[b'meaning'].decode()} |")
    return "\n".join(lines)


def _filters(history: History) -> str:
    lines = [
        "## Filters and settings",
        "",
        "What decides which rows are kept, as the manifests state it.",
    ]
    for made in history.made:
        text = yaml.safe_dump(dict(made.config), sort_keys=True, allow_unicode=True, width=110)
        lines += ["", f"{made.step} -> {made.node.label}:", "", f"```yaml\n{text}```"]
    return "\n".join(lines)


def _rights(stated: Statements) -> str:
    licence = stated.licence or "not stated"
    contact = stated.contact or "not stated: ask the publisher of this card"
    return (
        "## Licence, personal data, takedown\n\n"
        f"- licence of this dataset: {licence}\n"
        "- images and captions stay under their owners' terms; manifests record no licence per row\n"
        f"- {NO_SEARCH[0].lower()}{NO_SEARCH[1:]}\n"
        f"- takedown: {contact}. Name the link, the domain or the SHA-256 of the image."
    )


def _loading(version: Version) -> str:
    if not version.shards:
        return "## Load\n\nThe version holds no rows."
    return (
        "## Load\n\nWith this file next to the folder `shards`:\n\n```python\n"
        "from datasets import load_dataset\n\n"
        'rows = load_dataset("this/folder", split="train")\n```\n\n'
        "Or without the library:\n\n```python\nimport pyarrow.parquet\n\n"
        f'rows = pyarrow.parquet.read_table("{shard_paths(version)[0]}")  # the first of '
        f"{len(version.shards):,} shards\n```"
    )
