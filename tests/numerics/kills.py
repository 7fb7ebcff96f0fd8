"""Training in child processes that die where DEATH specifies, then once undisturbed. test_resume runs it as a script.

The parent imports everything and computes nothing, so its children start by fork in milliseconds. Each dies by
SIGKILL: at a file operation (seen by an audit hook inside the child, in the middle of the product's own code), in the
middle of a gradient accumulation, or at any moment by a timer.

    python kills.py LAKE DEATH...   with DEATH one of  open:NAME:N  os.rename::N  backward::N  after:SECONDS
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch

from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.training.launch_local import run_local
from tests import distillation_lake, training_lake
from tests.training_lake import Recorder


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(death: str) -> None:
    """Arrange this process's end."""
    event, _, rest = death.partition(":")
    if event == "after":
        signal.signal(signal.SIGALRM, lambda *_: die())
        signal.setitimer(signal.ITIMER_REAL, float(rest))
        return
    name, _, count = rest.partition(":")
    left = int(count)

    def countdown() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            die()

    if event == "backward":
        original = torch.Tensor.backward

        def backward(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            original(tensor, *args, **kwargs)
            countdown()

        torch.Tensor.backward = backward  # type: ignore[method-assign]
        return

    def audit(seen: str, args: Any) -> None:
        written = seen != "open" or (isinstance(args[1], str) and "w" in args[1])
        if seen == event and written and name in str(args[0]) and "checkpoints" in str(args[0]):
            countdown()

    sys.addaudithook(audit)


def main(lake: str, deaths: list[str]) -> None:
    quiet_libraries()
    stage = distillation_lake if os.environ.get("STAGE") == "distillation" else training_lake
    settings = stage.config(lake)
    for death in deaths:
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            arm(death)
            run_local(settings, lake, reporter=Recorder())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        ended = "killed" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else f"status {status}"
        print(death, ended, flush=True)
    torch.set_num_threads(1)
    recorder = Recorder()
    run_local(settings, lake, reporter=recorder)
    print("finished", recorder.warnings)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
