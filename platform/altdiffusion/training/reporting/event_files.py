"""TensorBoard's event files: the metrics of a run as curves, by torch's own writer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files


def require_tensorboard() -> None:
    """Check that event files can be written.

    Raises:
        AltDiffusionError: the package is missing.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise AltDiffusionError(
            "key tensorboard of a train config",
            f"needs the package tensorboard ({error})",
            "install the extra: pip install '.[tensorboard]'",
        ) from error


class EventFiles:
    """Writes metrics into `<folder>/<run>`.

    Each start of a run writes a file. It states its first step, so that TensorBoard leaves out what an earlier start
    wrote from there on: steps that are trained again are one curve.

    Args:
        folder: of all runs; a local path.
    """

    def __init__(self, folder: str, run: str) -> None:
        self._path = files.join(files.local_path(folder), run)
        self._writer: Any = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one point of each metric, so that it can be read at once."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._path, purge_step=step)  # type: ignore[no-untyped-call]
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()
