"""All targets, one after the other, with a share of the CPU seconds each, and what came of them as a table.

libFuzzer limits a run by the clock, which counts what other programs take. A target therefore gets runs until its
processes have used its share of CPU seconds.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass

SHARES = {
    "image": 8, "http": 6, "prompts": 3, "lists": 3, "tables": 3, "config": 3, "manifest": 2, "text": 2, "robots": 2,
    "urls": 1,
}  # fmt: skip
"""Parts of the whole. Images and answers of the web come from strangers, and have the most code behind them."""
SHORTEST_S = 5


@dataclass
class Done:
    """What became of a target. The CPU seconds lack those of decoders, which outlive the process that started them."""

    executions: int = 0
    cpu_s: float = 0.0
    edges: int = 0
    """Edges of the control flow of `altdiffusion` that its corpus covers."""
    finding: str = ""


def every(cpu_s: int) -> int:
    """Run all targets for some CPU seconds together, print a table, and return 1 if one has a finding."""
    done = {}
    for name, share in SHARES.items():
        with tempfile.TemporaryDirectory(prefix="corpus") as corpus:
            done[name] = run_target(name, cpu_s * share / sum(SHARES.values()), corpus)
        print(f"{name}: {done[name]}", flush=True)
    print("\n| target | executions | CPU seconds | edges covered |\n|---|---|---|---|")
    for name, one in done.items():
        print(f"| `{name}` | {one.executions:,} | {one.cpu_s:.0f} | {one.edges} |")
    executions, used = sum(one.executions for one in done.values()), sum(one.cpu_s for one in done.values())
    print(f"| all | {executions:,} | {used:.0f} | |")
    found = [name for name, one in done.items() if one.finding]
    print(f"findings: {', '.join(found)}; the inputs are in tests/fuzz/cases" if found else "no finding")
    return 1 if found else 0


def run_target(name: str, cpu_s: float, corpus: str) -> Done:
    """Run one target for some CPU seconds, with a folder of inputs that it begins from and adds to."""
    done = Done()
    while done.cpu_s < cpu_s and not done.finding:
        seconds = max(SHORTEST_S, round(cpu_s - done.cpu_s))
        before = _children_s()
        command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(seconds), "--corpus", corpus]
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        output = ran.stdout.decode("utf-8", "replace")
        executions = re.findall(r"^stat::number_of_executed_units:\s*(\d+)", output, re.MULTILINE)
        done.executions += int(executions[-1]) if executions else 0
        done.edges = max([done.edges, *map(int, re.findall(r"\bcov: (\d+)", output))])
        done.cpu_s += _children_s() - before
        if ran.returncode or not executions:
            print(output[-6000:], flush=True)
            done.finding = f"exit status {ran.returncode}"
    return done


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
