"""A slice of the lineage as a tree for the terminal: each thing's kind, name, short digest, rows and counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altdiffusion.lineage.graph import Node, Slice

_DIGITS = 12
_TEXT = 60  # shown characters of a caption or prompt


def describe(node: Node) -> str:
    """Return a short description of a node without its name: kind of rows, counts, step, stage, seed."""
    facts = node.facts
    words: list[str] = []
    if node.kind == "dataset" and not node.missing:
        words.append(str(facts["holds"]))
        words.append(f"{facts['rows']:,} rows")
        languages = len(facts["rows_by_language"])
        words += [f"{languages} language{'s' if languages != 1 else ''}"] if languages else []
        rejected = sum(facts["rejects_by_reason"].values())
        words += [f"{rejected:,} rejected"] if rejected else []
    elif node.kind in ("checkpoint", "export", "model"):
        words += [str(facts["stage"])] if facts.get("stage") else []
        words += [f"step {facts['step']:,}"] if "step" in facts else []
        words += [_size(facts["bytes"])] if facts.get("bytes") else []
    elif node.kind == "image":
        words += [f"{facts['width']} x {facts['height']} px"] if "width" in facts else []
        words += [f"seed {facts['seed']}", f"{facts['steps']} steps {facts['sampler']}"] if "seed" in facts else []
        words += [f"guidance {facts['guidance_scale']:g}"] if "guidance_scale" in facts else []
        words += [f"in {facts['in']}"] if "in" in facts else []
        words += [f"and {facts['more_rows']} more rows"] if "more_rows" in facts else []
    elif node.kind == "prompt":
        words += [f"{facts['language']} {_quote(facts['prompt'])}", f"seed {facts['seed']}"]
    elif node.kind == "row":
        words += [f"{facts.get('language', '')} {_quote(facts['caption'])}".strip()] if "caption" in facts else []
        words += [str(facts["url"])] if "url" in facts else []
        words += [f"and {facts['more_rows']} more rows"] if "more_rows" in facts else []
        words += [f"rejected in {', '.join(facts['rejected_in'])}"] if "rejected_in" in facts else []
        words += ["trained on with exactly this caption"] if facts.get("seen") else []
    if facts.get("unsealed"):
        words.append("unsealed")
    if node.missing:
        words.append("NOT IN THIS LAKE")
    return ", ".join(words)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count:,} bytes"


def _quote(text: Any) -> str:
    line = " ".join(str(text).split())
    return f'"{line if len(line) <= _TEXT else line[: _TEXT - 1] + "…"}"'


def title(node: Node) -> str:
    """Return one line for a node."""
    digest = f" @{node.digest[:_DIGITS]}" if node.digest and node.kind != "image" else ""
    about = describe(node)
    return f"{node.kind} {node.name}{digest}" + (f"  ({about})" if about else "")


def render(part: Slice) -> str:
    """Return the tree, ending in a newline. A thing below several others is expanded once and then only named."""
    lines = [title(part.nodes[part.root])]
    _branches(part, part.root, "", lines, {part.root})
    if len(lines) == 1:
        nothing = "nothing it was made from is recorded" if part.direction == "up" else "nothing was made from it yet"
        lines.append(f"└─ {nothing}")
    return "\n".join(lines) + "\n"


def _branches(part: Slice, ref: str, indent: str, lines: list[str], drawn: set[str]) -> None:
    steps = part.steps[ref]
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        again = step in drawn and bool(part.steps[step])
        lines.append(f"{indent}{'└─ ' if last else '├─ '}{title(part.nodes[step])}{'  ↑ see above' if again else ''}")
        if step not in drawn:
            drawn.add(step)
            _branches(part, step, indent + ("   " if last else "│  "), lines, drawn)


def markdown_table(nodes: Mapping[str, Node]) -> str:
    """Return the nodes as a Markdown table, for descriptions in MLflow."""
    rows = ["| kind | name | digest | what |", "|---|---|---|---|"]
    for node in sorted(nodes.values(), key=lambda n: (n.kind, n.name, n.digest)):
        rows.append(f"| {node.kind} | {node.name} | `{node.digest[:_DIGITS]}` | {describe(node).replace('|', '/')} |")
    return "\n".join(rows) + "\n"
