"""Run one target for some seconds, guided by coverage. Exit status 0 without a finding; a finding is kept as a file."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.fuzz.every import every

CASES = Path(__file__).parent / "cases"
"""Inputs that were findings, by target: `tests/unit/test_fuzz.py` runs them again."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "target",
        help="image, http, robots, manifest, config, prompts, lists, tables, text, urls; or all, one after the other",
    )
    parser.add_argument("--seconds", type=int, default=60, help="of a target; CPU seconds of all together with `all`")
    parser.add_argument("--corpus", help="folder of inputs to begin from and to keep new ones in (default: a new one)")
    arguments = parser.parse_args()
    try:
        import atheris  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        parser.error("atheris is not installed. Remedy: pip install -c constraints.txt -e '.[fuzz]'")
    if arguments.target == "all":
        sys.exit(every(arguments.seconds))
    with atheris.instrument_imports(include=["altdiffusion"]):
        from tests.fuzz.targets import TARGETS
    if arguments.target not in TARGETS:
        parser.error(f"target {arguments.target} is not known. Remedy: name one of {', '.join(TARGETS)}")
    target = TARGETS[arguments.target]
    corpus = Path(arguments.corpus or tempfile.mkdtemp(prefix="corpus"))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed{number}").write_bytes(seed)
    for case in (CASES / arguments.target).glob("*"):
        (corpus / case.name).write_bytes(case.read_bytes())
    found = CASES / arguments.target
    found.mkdir(parents=True, exist_ok=True)
    options = [
        sys.argv[0], f"-max_total_time={arguments.seconds}", "-max_len=8192", "-timeout=20", "-rss_limit_mb=4096",
        f"-artifact_prefix={found}{os.sep}", "-print_final_stats=1", str(corpus),
    ]  # fmt: skip
    atheris.Setup(options, target.read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
