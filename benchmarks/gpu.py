"""What needs a GPU, one benchmark after the other within a time limit; without Ray.

    python -m benchmarks.gpu [--minutes 12]
    python -m benchmarks.gpu --tiny             the same commands at small sizes, on a CPU

Generation comes first, because it is shorter. What the time does not suffice for is named as not run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

CASES = {
    "generation": (
        ["benchmarks.generation", "--device", "cuda", "--real", "--repeats", "2", "--cases", "equal,mixed",
         "--also", "channels_last=true", "--also", "deep_cache=3,channels_last=true"],
        ["benchmarks.generation", "--real", "--tiny", "--repeats", "1", "--also", "deep_cache=3,channels_last=true"],
    ),
    "training": (
        ["benchmarks.train_step", "--repeats", "5"],
        ["benchmarks.train_step", "--repeats", "1", "--cases", "K/V-256", "--batch", "1"],
    ),
}  # fmt: skip
"""Arguments of each benchmark: on a GPU, and at small sizes."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12, help="time limit of all benchmarks together")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on a CPU")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    failed = []
    for name, (full, tiny) in CASES.items():
        command = [sys.executable, "-m", *(tiny if arguments.tiny else full)]
        print(f"== {name}: {' '.join(command[1:])}", flush=True)
        try:
            subprocess.run(command, check=True, timeout=max(end - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            print(f"{name}: not run to its end, the time limit of {arguments.minutes:g} minutes is over")
            failed.append(name)
        except subprocess.CalledProcessError as error:
            print(f"{name}: ended with status {error.returncode}")
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
