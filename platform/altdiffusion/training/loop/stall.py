"""The hook that watches for stalls."""

from __future__ import annotations

from altdiffusion.training.faults.watch import Watch
from altdiffusion.training.loop.hooks import Hook


class StallWatch(Hook):
    """Keeps the signs of life of this rank's loop, and names the rank that stalls (see faults.watch)."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __enter__(self) -> StallWatch:
        self._watch.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._watch.__exit__(*error)

    def on_step_start(self, done: int) -> None:
        self._watch.step(done)
