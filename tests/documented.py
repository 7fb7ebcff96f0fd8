"""Commands as documents print them, run as they are printed there."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from altdiffusion import cli
from jobs.harness import main

ROOT = Path(__file__).resolve().parents[1]


def commands(page: str, heading: str | None = None) -> list[list[str]]:
    """Return the commands of the first block of bash of a page, or of the part below a heading, as words."""
    text = (ROOT / page).read_text(encoding="utf-8")
    part = text if heading is None else text[text.index(f"\n## {heading}\n") :]
    block = re.search(r"```bash\n(.*?)```", part, re.DOTALL)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines() if line.strip()]


def run(words: Sequence[str], more: Mapping[str, Sequence[str]], other: Callable[[Sequence[str]], int]) -> int:
    """Run a command in this process and return its status.

    Args:
        more: what is added to the commands of a job, by its name.
        other: runs what is neither a job nor `altdiffusion`.
    """
    if words[0] == "altdiffusion":
        return cli.main(list(words[1:]))
    if words[:2] == ["python", "-m"]:
        added = more.get(words[2].removeprefix("jobs."), ())
        return main(importlib.import_module(words[2]).JOB, [*words[3:], "execution.backend=inline", *added])
    return other(words)
