"""The state of a run after some steps: as metrics, and as a line for people."""

from __future__ import annotations

from dataclasses import dataclass

from altdiffusion.training.faults.goodput import NO_GOODPUT, Goodput
from altdiffusion.training.reporting.peak import Peak

COLUMNS = 100
"""Width of a progress line where the terminal is not narrower."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """State of a run after some steps; averages are over the steps since the last report of this process."""

    step: int
    steps: int
    loss: float
    """Mean over all samples of those steps."""
    grad_norm: float
    """L2 norm over all that is trained, in the last step."""
    lr: float
    samples_per_second: float
    samples_per_second_per_worker: float
    mfu: float
    """Model FLOPs utilisation: operations that the steps needed, divided by the workers' peak in that time."""
    peak: Peak
    """The peak of a worker, and where the figure comes from."""
    memory_bytes: int
    """Largest peak of any worker: of its GPU, else of its process."""
    data_wait: float
    """Share of the time that the workers waited for data, 0 to 1."""
    epochs: float
    """Samples seen so far per row of all datasets."""
    samples_seen: int
    skipped_steps: int
    """Steps whose loss or gradient was not finite, since the run began."""
    seconds_left: float
    checkpoint_stall: float = 0.0
    """Share of rank 0's time that training stopped for checkpoints, 0 to 1."""
    rows_name: str = "images"
    """What the samples are: images, or pairs of captions."""
    goodput: Goodput = NO_GOODPUT
    """Which share of the run's time was useful since it began, over all restarts."""

    def metrics(self) -> dict[str, float]:
        """Return names and values as they are logged."""
        return {
            "train/loss": self.loss,
            "train/grad_norm": self.grad_norm,
            "train/lr": self.lr,
            f"train/{self.rows_name}_per_second": self.samples_per_second,
            f"train/{self.rows_name}_per_second_per_worker": self.samples_per_second_per_worker,
            "train/mfu": self.mfu,
            "train/peak_tflops": self.peak.tflops,
            "train/memory_gib": self.memory_bytes / 2**30,
            "train/data_wait": self.data_wait,
            "train/epochs": self.epochs,
            "train/samples_seen": float(self.samples_seen),
            "train/skipped_steps": float(self.skipped_steps),
            "train/checkpoint_stall": self.checkpoint_stall,
            "train/goodput": self.goodput.share,
            "train/wasted_steps": float(self.goodput.wasted_steps),
            "train/restarts": float(self.goodput.restarts),
        }

    def line(self, name: str, columns: int = COLUMNS) -> str:
        """Return one line for people; what matters least is left out where it would be longer than `columns`."""
        left = round(self.seconds_left)
        goodput = self.goodput
        parts = (  # as they are printed; the highest numbers are left out first
            (0, f"[{name}] {self.step}/{self.steps} steps"),
            (0, f"loss {self.loss:.4f}"),
            (1, f"{self.samples_per_second:,.1f} {self.rows_name}/s"),
            (4, f"MFU {self.mfu:.1%}"),
            (3, f"data wait {self.data_wait:.1%}"),
            (6, f"checkpoints {self.checkpoint_stall:.1%}"),
            (2, f"{self.skipped_steps} skipped" if self.skipped_steps else ""),
            (5, f"goodput {goodput.share:.1%}"),
            (2, f"{goodput.wasted_steps} repeated" if goodput.wasted_steps else ""),
            (7, f"{self.memory_bytes / 2**30:.2f} GiB"),
            (0, f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"),
        )
        shown = [(rank, text) for rank, text in parts if text]
        while len("  ".join(text for _, text in shown)) > columns and max(rank for rank, _ in shown):
            shown.remove(max(shown, key=lambda part: part[0]))
        return "  ".join(text for _, text in shown)
