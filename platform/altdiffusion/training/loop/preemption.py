"""The hook that acts on preemption notices."""

from __future__ import annotations

from altdiffusion.training.faults.notice import NONE, SAVE, STOP, Agreement, PreemptionNotice
from altdiffusion.training.loop.hooks import Hook, Step


class PreemptionCheck(Hook):
    """Asks for a checkpoint, or for a checkpoint and the end, where any rank was given notice."""

    def __init__(self, notice: PreemptionNotice, world: int) -> None:
        self._notice, self._agreement = notice, Agreement(world)
        self._level = NONE
        self._answered = 0

    def on_step(self, step: Step) -> None:
        level = self._agreement.level(self._notice.level)
        if level == SAVE and self._answered and step.number == self._answered + 1:
            level = NONE  # what was given at the step of the answer is answered
        self._level = level
        if level == SAVE:
            step.save = True
        elif level == STOP:
            step.stop = True

    def on_checkpoint(self, step: Step) -> None:
        if self._level == SAVE:
            self._answered = step.number
            self._notice.answered()

    def on_end(self, step: Step) -> None:
        self._agreement.close()
