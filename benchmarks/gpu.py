"""Everything that docs/performance.md leaves blank, measured on one GPU within eight minutes.

    python -m benchmarks.gpu [--minutes 8] [--out gpu-benchmark] [--cases "train K/V-256,VAE encode"]
    python -m benchmarks.gpu --tiny        every line at tiny shapes, on a CPU: it measures nothing of use

Cases: a training step of K/V-256, whole-256 and whole-512 next to a plain loop; generation; VAE encode; CLIP scoring;
kernels of attention; batches up to the memory's limit; the compiled network, without and with CUDA graphs. Weights are
random, at the real shapes, in bf16. It needs neither Ray nor a lake.

Each case is a process of its own with a time limit, forked from one that has imported the libraries. What does not fit
in memory, is not installed or does not end in time is a line of the table; cases for which the time does not suffice
are named. `OUT.json` and `OUT.md` are written again after each case. Exit status 1 if a case has no figure at all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import torch

from benchmarks.gpu_cases import CASES, run_case

_PRELOADED = ["benchmarks.gpu_cases", "benchmarks.gpu_imports"]
_HEAD = "| case | what | batch | images/s | MFU | peak GiB | note |\n|---|---|---|---|---|---|---|"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="time limit of all cases together")
    parser.add_argument("--out", default="gpu-benchmark", help="path of the two files, without their endings")
    parser.add_argument("--cases", help=f"some of: {', '.join(CASES)}")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on a CPU")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.cases.split(",")] if arguments.cases else list(CASES)
    wrong = [name for name in names if name not in CASES]
    if wrong:
        parser.error(f"{wrong[0]!r} is not a case; cases: {', '.join(CASES)}")
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU that PyTorch can use; --tiny runs every line at tiny shapes on the CPU")
    end = time.monotonic() + 60 * arguments.minutes
    report: dict[str, Any] = {"machine": machine(arguments.tiny), "cases": {}}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            left = end - time.monotonic()
            lines = Path(folder, f"{number}.jsonl")
            began = time.monotonic()
            note = run(context, name, arguments.tiny, lines, min(left, CASES[name][0])) if left > 1 else "not run"
            report["cases"][name] = {"seconds": round(time.monotonic() - began, 1), "lines": read(lines, note)}
            write(arguments.out, report)
            print(table({name: report["cases"][name]}, head=number == 0), flush=True)
    measured = [any(line["rate"] for line in case["lines"]) for case in report["cases"].values()]
    print(f"{arguments.out}.json and {arguments.out}.md are written; Ray imported: {'ray' in sys.modules}")
    return 0 if all(measured) else 1


def run(context: Any, name: str, tiny: bool, lines: Path, limit_s: float) -> str:
    """Run a case in a process of its own; return why it did not end by itself, or nothing."""
    process = context.Process(target=run_case, args=(name, tiny, str(lines)))
    process.start()
    process.join(limit_s)
    if process.is_alive():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        return f"stopped after {limit_s:.0f} s"
    return "" if process.exitcode == 0 else f"ended with status {process.exitcode}"


def read(lines: Path, note: str) -> list[dict[str, Any]]:
    """Return the lines of a case, and one more if it did not end by itself."""
    found = []
    for text in lines.read_text().splitlines() if lines.exists() else []:
        with contextlib.suppress(ValueError):  # cut off when the process was killed
            found.append(json.loads(text))
    if note:
        found.append({"what": "the rest", "batch": None, "rate": None, "mfu": None, "gib": None, "note": note})
    return found


def machine(tiny: bool) -> dict[str, str]:
    """Return what the figures depend on."""
    where = "CPU, tiny shapes" if tiny else torch.cuda.get_device_name()
    return {
        "device": where, "torch": torch.__version__, "cuda": str(torch.version.cuda),
        "python": sys.version.split()[0], "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
    }  # fmt: skip


def write(out: str, report: dict[str, Any]) -> None:
    """Write both files."""
    about = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    Path(f"{out}.json").write_text(json.dumps(report, indent=2) + "\n")
    Path(f"{out}.md").write_text(f"{about}\n\n{table(report['cases'], head=True)}\n")


def table(cases: dict[str, Any], *, head: bool) -> str:
    """Return cases as lines of a Markdown table."""
    rows = [_HEAD] if head else []
    for name, case in cases.items():
        for line in case["lines"]:
            cells = [
                name, line["what"], _number(line["batch"], "{:,}"), _number(line["rate"], "{:,.1f}"),
                _number(line["mfu"], "{:.1%}"), _number(line["gib"], "{:.1f}"), line["note"].replace("|", "/"),
            ]  # fmt: skip
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


if __name__ == "__main__":
    sys.exit(main())
