"""The main job, end to end, on real data, in minutes: `make demo`.

Links are curated and encoded, three stages train, and the last model draws and is judged, in 18 languages. The first
images come after the alignment stage. `make miniature` runs the same line with more concepts and longer stages.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from demo.line import DEMO, Line
from demo.line import main as run_line


def run(line: Line) -> None:
    """Run the demo's jobs, and print where the results are."""
    line.prepare()
    line.curate()
    line.job("encode", "encode")
    line.job("train", "alignment")
    first = line.scale.out / "first.png"
    line.sheet("demo-alignment-samples", first)
    print(f"   first images in 18 languages, after {sum(line.seconds.values()):.0f} s: {first}", flush=True)
    line.job("train", "quality")
    line.job("train", "guidance")
    line.job("generate", "generate")
    line.job("evaluate", "evaluate")
    line.show_lineage("demo-guidance")
    line.show_table()
    print(f"\nImage grid      {line.scale.out / 'grid.png'}")
    print(f"Tables          {line.scale.out / 'evaluation.md'}")
    line.show_took()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return an exit status as the jobs do."""
    return run_line(run, DEMO, "python -m demo", "The main job, end to end, on real data.", argv)


if __name__ == "__main__":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from jobs.harness import leave

    leave(main())
