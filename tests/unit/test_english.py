"""Comments, docstrings, messages and documents are written in standard English (CONTRIBUTING.md has the rules).

List every finding: `python -m tests.unit.test_english`.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_COUNTED = (
    "bytes|rows|images|samples|pairs|times|values|tokens|keys|entries|steps|units|files?|tests?|[KMGT]i?B|G?FLOPs?|one|once"
    "|twice"
)
_PER = (
    "second|minute|hour|day|row|image|sample|pair|token|step|update|batch|epoch|turn|unit|bucket|shard|group|file|part|line"
    "|word|caption|language|column|key|thread|worker|core|host|question|operator|verb|position|weight"
)
_WORDS = (
    ("mend", r"mend(?:s|ed|ing)?", "fix, or pass (of failures)"),
    ("anew", r"anew", "again"),
    (" no ", r"(?<!there )(?:is|are|was|were) no(?! longer)(?= )", "is not a"),
    ("no more", r"no more(?!(?: \w+)? than)", "no longer, or nothing else"),
    ("any more", r"any more", "no longer"),
    ("impossible", r"impossible", "invalid, or cannot"),
    ("somebody", r"somebody", "a user, or people"),
    ("whoever", r"whoever", "a caller, or anyone who"),
    ("guilty", r"guilty", "the cause"),
    ("beside", r"beside", "next to, besides, or as well as"),
    ("lie", r"lies?", "is, or are"),
    ("stand", r"stands?(?!-)", "is, or means"),
    ("tell", r"tells?", "state, report, print, or specify"),
    ("told", r"told", "stated, reported, printed, or specified"),
    ("say", r"says?", "state, report, print, or specify"),
    ("said", r"said", "stated, reported, printed, or specified"),
    ("picture", r"pictures?", "image"),
    ("boundar", r"boundar(?:y|ies)", "pipeline step"),
    ("spool", r"spool(?:s|ed)?", "spill file (download), or outbox (lineage)"),
    ("twin", r"twins?", "mirrored latents"),
    ("mailbox", r"mailbox", "message relay"),
    ("postman", r"postman", "message relay"),
    ('"""of ', r'(?<=""")Of', "a verb or a noun first"),
    (" a ", rf"(?:{_COUNTED}) a (?:{_PER})", "per"),
    (" an ", rf"(?:{_COUNTED}) an (?:{_PER})", "per"),
)
WORDS = [(hint, re.compile(rf"\b{word}\b", re.IGNORECASE), right) for hint, word, right in _WORDS]
"""A text that every match contains, which is quicker to look for; the wrong word; what to write."""
_TEXTS = (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))  # the latter from Python 3.12 on

ALLOWED = {
    "CONTRIBUTING.md": r"(?s)## English.*?(?=\n## )",  # the rules name the words
    "benchmarks/language_id.py": r"This picture",  # a template of captions, as measured
    "demo/base.py": r"(?s)A small model of.*?are shown\.",  # a file of the base model
    "platform/altdiffusion/curation/images/containers.py": r"avif without a picture",  # details of rejects are stored
    "platform/altdiffusion/curation/images/decode_guard.py": r"(?:gif|webp) without a picture",
    "platform/altdiffusion/curation/images/decoder_process.py": r"larger than its header says",
    "platform/altdiffusion/curation/language/clean.py": r"\bpicture\b",  # a tag of HTML
    "platform/altdiffusion/curation/web/addresses.py": r"is no address",
    "docs/columns.md": r"(?m)^\|.*",  # the meanings of records.py
    "platform/altdiffusion/records.py": r"_field\([^()]*(?:\([^()]*\)[^()]*)*\)",  # meanings are stored in every shard
    "tests/unit/test_curation_decode.py": r"Somebody's Camera",
    "tests/unit/test_curation_parallel.py": r"\"A (?:red apple|small house)[^\"]*\"",
    "tests/unit/test_english.py": r"(?s).*",
}
"""Text by file that is left out: a regular expression."""
_DATA = r"own-pictures|\"a picture[^\"]*\"|real pictures through the|group:? pictures|pictures, text, unseen"
"""Text of any file that is left out: captions as measured, and names that evaluations store."""

_NOT_A_VERB = re.compile(
    "A|An|The|Its|Our|Their|This|That|These|Those|It|One|Two|Three|All|Both|Each|Every|Everything|No|Nothing|Only|Of|At|By"
    "|For|From|In|Up|With|As|About|What|Whether|How|Where|Which|When|Who|Whose|Why|Endless|Same|Mean"
)
_VERBS_IN_S = re.compile("Access|Compress|Discuss|Express|Focus|Guess|Pass|Press|Process")


def tracked(*patterns: str) -> list[str]:
    """Return the paths of the files under version control, relative to the repository's root."""
    done = subprocess.run(["git", "ls-files", "--", *patterns], cwd=ROOT, capture_output=True, text=True, check=False)
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def left_out(name: str, text: str) -> str:
    """Return the text of a file with what ALLOWED and _DATA name blanked, line by line."""
    for pattern in (_DATA, ALLOWED.get(name, r"(?!)")):
        text = re.sub(pattern, lambda found: re.sub(r"\S", " ", found[0]), text)
    return text


def python_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of comments and of texts with a blank in them, without addresses and code in backticks."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        prose = token.string
        if token.type in _TEXTS:
            prefix = re.match(r"\w{0,2}(?=[\"'])|", prose.lower())
            assert prefix is not None
            if "b" in prefix[0] or " " not in prose:
                continue  # bytes, and names such as keys
            if "f" in prefix[0]:
                prose = re.sub(r"\{[^{}]*\}", lambda found: "\n" * found[0].count("\n"), prose)
        elif token.type != tokenize.COMMENT:
            continue
        for number, line in enumerate(re.sub(r"`[^`\n]+`|\w+://\S+", "", prose).splitlines()):
            yield token.start[0] + number, line


def document_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of a document, without code, quotations and addresses."""
    fenced = False
    for number, line in enumerate(text.splitlines(), start=1):
        fenced ^= line.lstrip().startswith("```")
        yield number, re.sub(r"`[^`]+`|\"[^\"]+\"|\]\([^)]+\)", "", line)


def comment_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the comments of a YAML, TOML or make file."""
    for number, line in enumerate(text.splitlines(), start=1):
        yield number, re.sub(r"`[^`]+`", "", line.partition("#")[2])


_PROSE = {".py": python_prose, ".md": document_prose, ".j2": document_prose}


def findings(name: str) -> list[str]:
    """Return what is wrong in a file: one line each, with the replacement."""
    text = left_out(name, (ROOT / name).read_text(encoding="utf-8"))
    lower = text.lower()
    words = [(word, right) for hint, word, right in WORDS if hint in lower and word.search(text)]
    if not words:
        return []  # most files: no need to separate comments and texts from code
    prose = list(_PROSE.get(Path(name).suffix, comment_prose)(text))
    found = [(n, match[0], right) for word, right in words for n, line in prose for match in word.finditer(line)]
    return [f"{name}:{n}: {wrong!r}: write {right}" for n, wrong, right in sorted(found)]


def openings(name: str) -> list[str]:
    """Return the functions of a file whose docstring does not begin with an imperative verb; properties may name."""
    found = []
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue
        first = re.match(r"\S+", ast.get_docstring(node) or "Return")
        assert first is not None
        word = first[0].rstrip(",.:;")
        plural = word.endswith("s") and not _VERBS_IN_S.fullmatch(word)
        if plural or _NOT_A_VERB.fullmatch(word) or not re.fullmatch(r"[A-Z][a-z]+", word):
            found.append(f"{name}:{node.lineno}: {node.name} begins with {word!r}: begin with a verb, such as Return")
    return found


def all_findings() -> list[str]:
    """Return every finding in the repository."""
    files = tracked("*.py", "*.md", "*.j2", "*.yaml", "*.toml", "Makefile")
    words = [line for name in files for line in findings(name)]
    return words + [line for name in tracked("platform/*.py", "pipelines/*.py", "jobs/*.py") for line in openings(name)]


def test_code_and_documents_are_in_standard_english() -> None:
    if not tracked("*.py"):
        pytest.skip("not a git checkout")
    found = all_findings()
    assert not found, f"{len(found)} findings:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "# mend it",
        "# an answer that is no image",
        "# the file beside it",
        "x = 'the file lies there'",
        'x = f"{x} says so"',
        '"""Of one row."""',
        "# 5 rows a second",
    ],
)
def test_a_wrong_word_is_found(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "x.py").write_text(f"a = 1\n{text}\n")
    (found,) = findings("x.py")
    assert found.startswith("x.py:2: ")


@pytest.mark.parametrize(
    "text",
    [
        "# there is no such file, and it is no longer read",
        "said = beside('picture')",
        'x = f"{said} rows"',
        "# amended, besides, a stand-in, standard; `boundary` is a column",
    ],
)
def test_code_and_standard_words_are_not_found(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "x.py").write_text(f"a = 1\n{text}\n")
    assert findings("x.py") == []


def test_a_docstring_that_begins_with_a_noun_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    bodies = {"good": "Return one.", "wrong": "The one.", "reads": "Reads one.", "name": "URI of one."}
    (tmp_path / "x.py").write_text("".join(f'def {name}():\n    """{text}"""\n' for name, text in bodies.items()))
    assert [line.split(" ")[1] for line in openings("x.py")] == ["wrong", "reads", "name"]


if __name__ == "__main__":
    print("\n".join(all_findings()))
