"""Every reason that code can give has its sentence, once, and the documents state the same.

Renew docs/rejects.md: `python -m tests.unit.test_rejects`.
"""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import altdiffusion
from altdiffusion.curation import rejects
from altdiffusion.curation.config import RetryConfig
from altdiffusion.curation.download.outage import OWN, UNASKED
from altdiffusion.curation.rejects import KNOWN, Refused, explain, find, http_status, withheld
from altdiffusion.execution.reject_reasons import Reason
from altdiffusion.generation import drop_reasons as generation_rejects
from altdiffusion.storage import removal

PACKAGE = Path(altdiffusion.__file__).parent
DOCUMENT = Path(__file__).parents[2] / "docs" / "rejects.md"
GIVERS = {
    "Refused": 0, "_Unasked": 0, "Later": 0, "Reason": 0, "refuse": 1, "drop": 1, "rejected": 3, "coded": 0,
    "rejects_table": None,
}  # fmt: skip
"""What takes a reason, and as which positional argument; all take it as `reason` too."""
TABLES = {Path(rejects.__file__), Path(generation_rejects.__file__)}
"""Where reasons are defined."""
STORED = {PACKAGE / "storage" / "removal.py"}
"""Spells a reason out, as configs do: `test_lower_layers_spell_reasons_as_the_table_does`."""


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path not in TABLES:
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def literals(node: ast.AST) -> list[str]:
    found = [one for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return [str(one.value) for one in found]


def is_given_as_text(call: ast.Call) -> bool:
    """Return whether a call gives a reason as a literal, in an f-string or as one of several."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name not in GIVERS:
        return False
    place = GIVERS[name]
    given = [word.value for word in call.keywords if word.arg == "reason"]
    given += call.args[place : place + 1] if place is not None else []
    return any(text != "reason" for one in given for text in literals(one))  # which is the name of the column


def test_no_reason_is_given_as_text() -> None:
    """mypy checks the same for what has a type; this also sees lists, and what goes into a table."""
    wrong = [
        f"{path.name}:{node.lineno}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and is_given_as_text(node)
    ]
    assert not wrong
    for text in ('Refused("dns", "x")', 'Refused(f"http_{status}")', 'rejected(u, t, rows, ["decode"] * 3)',
                 'rejects_table(u, row=r, reason=["decode"])'):  # fmt: skip
        (call,) = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
        assert is_given_as_text(call), text


def test_no_name_of_a_reason_is_outside_of_the_table() -> None:
    """Names that are common words, such as `size`, are columns too: those are left to mypy."""
    telling = {name for name in (*KNOWN, *generation_rejects.KNOWN) if re.search("[_:]", name)}
    wrong = [
        f"{path.name}: {text}"
        for path, tree in trees()
        if path not in STORED and path.parent.name != "config"  # the names of settings
        for text in literals(tree)
        if text in telling or re.fullmatch(r"http_\d{3}", text)
    ]
    assert not wrong


def test_every_reason_of_the_table_is_given_somewhere() -> None:
    used = {node.id for _, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for module, others in ((rejects, {rejects.NONE}), (generation_rejects, set[Reason]())):
        constants = {name for name, value in vars(module).items() if isinstance(value, Reason) and name.isupper()}
        assert constants <= used, constants - used
        assert {getattr(module, name) for name in constants} == {*module.KNOWN, *others}


@pytest.mark.parametrize("name", [*KNOWN, *(f"http_{status}" for status in (100, 101, 206, 301, 404, 429, 503, 999))])
def test_a_reason_has_a_sentence_and_survives_pickling(name: str) -> None:
    reason = find(name)
    assert reason is not None and reason == name
    assert explain(name) == reason.sentence
    assert re.fullmatch(r"[^A-Z].{9,88}[^.]", reason.sentence.removeprefix("HTTP")), reason.sentence
    copied = pickle.loads(pickle.dumps(Refused(reason, "detail")))
    assert (copied.reason, copied.reason.sentence, copied.reason.withheld, copied.detail) == (
        name, reason.sentence, reason.withheld, "detail",
    )  # fmt: skip


def test_no_two_parts_name_a_reason_alike() -> None:
    assert not {*KNOWN} & {*generation_rejects.KNOWN}


def test_sentences_distinguish_reasons() -> None:
    sentences = [reason.sentence for reason in (*KNOWN.values(), *generation_rejects.KNOWN.values())]
    assert all(re.fullmatch(r"[^A-Z].{9,88}[^.]", sentence) for sentence in sentences), sentences
    assert len(set(sentences)) == len(sentences)
    assert "forbids" in explain("opt_out:robots") and "forbids" not in explain("robots_unreachable")


def test_what_is_blocked_unsafe_or_unknown_is_withheld() -> None:
    assert {name for name in KNOWN if withheld(name)} == {"blocklist", "takedown", "punsafe", "nsfw"}
    assert not withheld("http_404")
    assert withheld("something_new") and explain("something_new") == "" and find("http_5xx") is None


def test_lower_layers_spell_reasons_as_the_table_does() -> None:
    assert removal.REASON == rejects.TAKEDOWN
    for name in RetryConfig().reasons:
        assert find(name.replace("xx", "00")) is not None, name
    assert {*OWN, *UNASKED} <= {*KNOWN, http_status(407), http_status(511)}


def document() -> str:
    """Return the text of docs/rejects.md."""
    rows = [(f"`{name}`", reason.sentence, reason.withheld) for name, reason in KNOWN.items()]
    rows += [(f"`http_{status}`", http_status(status).sentence, False) for status in (403, 404, 410, 429)]
    rows += [(f"`http_{kind}xx`", http_status(100 * kind).sentence, False) for kind in range(1, 6)]
    lines = [f"| {name} | {sentence} | {'no' if hidden else 'yes'} |" for name, sentence, hidden in rows]
    drawn = [f"| `{name}` | {reason.sentence} |" for name, reason in generation_rejects.KNOWN.items()]
    return (
        "# Reject reasons\n\n"
        "A row that is dropped is kept as a *reject* with one of these reasons, the first that applies. The\n"
        "order is that of the pipeline. Where the last column has *no*, a report counts such rows but shows\n"
        "neither their addresses nor their images. The table is `curation/rejects.py`, and a test keeps this\n"
        "page equal to it (renew it with `python -m tests.unit.test_rejects`).\n\n"
        "| reason | what is wrong | shown in reports |\n|---|---|---|\n" + "\n".join(lines) + "\n\n"
        "Generation has reasons of its own (`generation/drop_reasons.py`):\n\n"
        "| reason | what is wrong |\n|---|---|\n" + "\n".join(drawn) + "\n"
    )


def test_the_document_lists_every_reason() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document()


def test_other_documents_name_no_reason_that_is_not_in_the_table() -> None:
    """In the places where the documents list a step's reasons in its order."""
    docs = DOCUMENT.parent
    listed = {
        "sources.md": r"reason, in the order `([a-z_\s]+)`",
        "scoring.md": r"A row has one reason: ([^.]+)\.",
        "training.md": r"Rows are rejected for one reason, in this order: (.+?)\.\s",
    }
    for name, pattern in listed.items():
        found = re.search(pattern, " ".join((docs / name).read_text(encoding="utf-8").split()))
        assert found is not None, name
        names = re.findall(r"`([a-z_]+)`", found[1]) or found[1].split()
        assert len(names) >= 4 and all(one in KNOWN for one in names), (name, names)


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
