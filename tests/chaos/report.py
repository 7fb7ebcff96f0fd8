"""Run the chaos cases and write the table of docs/reliability.md.

    python -m tests.chaos.report [--only NAME ...] [--no-write]

Each case runs by itself, one after the other, with its seed. Rows of cases that were not asked for keep what an
earlier run wrote. Exit status 1 if a case did not end as it must.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.cases import CASES
from tests.chaos.outcome import Case

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- table of tests.chaos.report: begin -->", "<!-- end -->"
HEAD = (
    "| case | fault | how, with its seed | survived | lost | wasted | seconds to recover | of the case | note |",
    "|---|---|---|---|---|---|---|---|---|",
)
NOT_RUN = "not run here"


def main() -> int:
    """Run the cases and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="cases to run (default: all)")
    parser.add_argument("--no-write", action="store_true", help="print the rows, and leave the page as it is")
    options = parser.parse_args()
    chosen = [case for case in CASES if options.only is None or case.name in options.only]
    failed = []
    for number, case in enumerate(chosen, 1):
        print(f"{number} of {len(chosen)}  {case.name}: {case.fault}", flush=True)
        found, error = measured(case)
        print(f"  {found}", flush=True)
        if error:
            failed.append(case.name)
            print(error, flush=True)
        if not options.no_write:  # after each case: an interrupted run keeps what it has
            write([found if one is case else before(one) for one in CASES])
    print(f"{len(chosen) - len(failed)} of {len(chosen)} ended as they must" + (f"; not: {failed}" if failed else ""))
    return 1 if failed else 0


def measured(case: Case) -> tuple[str, str]:
    """Run a case, and return its row and what went wrong, if anything."""
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        if case.run is None:
            error, notes = pytest(case)
            cells = ["nothing", "bounded by the test", "-"] if not error else ["-", "-", "-"]
            note = "; ".join([f"{len(case.tests)} test{'s' * (len(case.tests) > 1)}", *notes])
        else:
            outcome = case.run(folder, random.Random(case.seed))
            recover = "-" if outcome.recover_s is None else f"{outcome.recover_s:.1f}"
            error, cells, note = "", [outcome.lost, outcome.wasted, recover], outcome.note
    except Exception as failure:  # whatever a case stumbles over is its result
        error, cells, note = f"{type(failure).__name__}: {failure}", ["-", "-", "-"], "see the output"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - began
    return row(case, "no" if error else "yes", *cells, f"{seconds:.0f}", note), error


def pytest(case: Case) -> tuple[str, list[str]]:
    """Run the tests of a case.

    Returns:
        The end of their output if one failed or was skipped, else nothing, and what they printed as `note: ...`.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-rP", "-p", "no:cacheprovider", "--timeout", "1500", *case.tests]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or re.search(r"\d+ skipped", done.stdout):
        return done.stdout[-3000:] + done.stderr[-1000:], []
    return "", re.findall(r"^note: (.+)$", done.stdout, re.MULTILINE)


def row(case: Case, *cells: str) -> str:
    """Return a line of the table."""
    plain = [re.sub(r"\s+", " ", cell).replace("|", "/") for cell in cells]
    return f"| {' | '.join([case.name, case.fault, f'{case.how} ({case.seed})', *plain])} |"


def before(case: Case) -> str:
    """Return the row of a case as the page has it, or one that states that it was not run."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"| {case.name} |"):
            return line
    return row(case, NOT_RUN, *["-"] * 4, "")


def write(rows: list[str]) -> None:
    """Put the rows into the page."""
    text = PAGE.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(text[:start] + "\n" + "\n".join([*HEAD, *rows]) + "\n" + text[end:], encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
