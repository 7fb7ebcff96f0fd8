"""Generation on nodes that come and go: 0 to 2 nodes, one of them killed, 0 again, and the undisturbed version."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.autoscaling_trace import Trace

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1400)
def test_two_nodes_come_and_go_and_a_kill_changes_nothing(tmp_path: Path) -> None:
    """The command itself compares the digests, and refuses images that were drawn again beyond one batch."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.autoscaling", "--out", str(tmp_path)),
            *("--images", "360", "--steps", "25", "--idle", "20", "--kill-after", "5", "--timeout", "1200"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    trace = Trace.load(tmp_path / "trace.json")
    nodes = [sample.nodes for sample in trace.samples]
    assert nodes[0] == nodes[-1] == 0 and max(nodes) == 2
    finished = [sample.images for sample in trace.samples]
    assert finished == sorted(finished) and finished[-1] == trace.images
    assert 0 < trace.killed_s < trace.ended_s
    first_two = list(trace.starts())[:2]
    later = {draw.worker for draw in trace.draws if draw.s > trace.killed_s + 2}
    assert len(later.intersection(first_two)) == 1  # the other worker was not restarted by the kill
    assert len(trace.starts()) <= 4  # Ray Data may end a worker between two units, and start another
    print(f"note: killed after {trace.killed_s:.0f} of {trace.ended_s:.0f} s, {trace.drawn_again} images drawn again")
    assert (tmp_path / "autoscaling.png").stat().st_size > 10_000
