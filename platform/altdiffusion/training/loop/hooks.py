"""What goes along with the training loop: hooks, called by the loop in the order in which they are listed.

A hook whose methods communicate between ranks is listed on all ranks, at the same place: the order of collectives is
the order of the hooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from altdiffusion.training.data.loader import Samples


@dataclass(kw_only=True)
class Step:
    """A step that has ended, as hooks see it, and what they ask of the loop."""

    number: int
    """Steps done, with this one."""
    last: bool
    """Whether it is the last one of the run; a hook sets it to end the run here."""
    loss: Tensor
    """Mean loss of this rank's samples, float32 scalar on the device; NaN if the update was skipped."""
    samples: Samples
    save: bool = False
    """Set by a hook that wants a checkpoint of this step."""
    stop: bool = False
    """Set by a hook that wants a checkpoint of this step and then the end of the loop."""


class Hook:
    """Something that goes along with the loop; a context manager around all of its steps. By default it does nothing.

    An error that a method raises ends the loop.
    """

    def __enter__(self) -> Hook:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def on_step_start(self, done: int) -> None:
        """Act when the next step begins, after `done` steps."""

    def on_step(self, step: Step) -> None:
        """Act when a step has ended; this may set `step.save` or `step.stop`."""

    def state(self) -> Mapping[str, Any]:
        """Return what state.json of a checkpoint keeps of the hook."""
        return {}

    def on_checkpoint(self, step: Step) -> None:
        """Act when a checkpoint of this step was taken, which is being written or is written already."""

    def on_end(self, step: Step) -> None:
        """Act when the loop ends after this step: the last one, or one whose `stop` is set."""
