"""Where it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from altdiffusion.config import operational
from altdiffusion.constraints import Checked, Constraint, Invalid, at_least, each, positive

_ONE_GPU = Constraint(lambda value: value in (0, 1), "must be 0 or 1", "use one worker per GPU")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkersConfig(Checked):
    """Where a run runs. No setting changes the samples or what is drawn for them; only the rounding of sums changes."""

    count: Annotated[int, at_least(1, "give the number of workers")] = operational(1)
    """Workers that train together."""
    min_count: Annotated[int | None, at_least(1, "null waits for all workers")] = operational(None)
    """Smallest number of workers to continue with while machines are missing; the run grows back to `count`. Null waits
    for all of them. The batch must divide among every number of workers from this to `count`."""
    grow_check_s: Annotated[float, positive("60 looks every minute")] = operational(60.0)
    """Seconds between checks whether there are machines for more workers."""
    cpus: Annotated[float, positive("give the CPUs of one worker")] = operational(1.0)
    """CPUs per worker; also its number of threads."""
    gpus: Annotated[float, _ONE_GPU] = operational(0.0)
    """GPUs per worker: 0 or 1."""
    custom: Annotated[dict[str, float], each(positive("give an amount per worker, as in {training: 1}"))] = operational(
        factory=dict
    )
    """Custom resources of Ray that one worker reserves, as in `{training: 1}`: it runs only on nodes that have them."""
    max_failures: Annotated[int, at_least(0, "0 means no restart")] = operational(10)
    """Restarts before the job gives up; the same step failing three times ends it sooner."""
    stall_timeout_s: Annotated[float, positive("240 is four minutes")] = operational(240.0)
    """Seconds without the end of a step and without a sign of life, after which a worker is named and all workers are
    restarted."""
    prefetch: Annotated[int, at_least(1, "2 is enough")] = operational(2)
    """Batches read ahead."""
    cache_mb: Annotated[int, at_least(1, "a window of row groups should fit")] = operational(2048)
    """Memory of a worker for row groups that are kept, in MiB; those read ahead take up to half as much again.
    A window (order) should fit: otherwise row groups are read repeatedly."""
    language_disk_gb: Annotated[float | None, at_least(0, "0 keeps none")] = operational(None)
    """With a language temperature: disk of a machine for rows that are kept by language while a run reads them, in GB,
    in ~/.cache/altdiffusion or $XDG_CACHE_HOME. Null takes up to half of what is free there. What does not fit is read
    from the dataset again for each language."""
    text_cache_mb: Annotated[int, at_least(0, "0 means no cache")] = operational(0)
    """Memory of a CPU worker for the vectors of captions, in MiB; 0 encodes them in every step. It pays where
    captions are repeated often."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.min_count is not None and self.min_count > self.count:
            yield Invalid("min_count", "must be in 1 to count", "null waits for all workers")
        if self.text_cache_mb and self.gpus:
            yield Invalid("text_cache_mb", "is for CPU workers only", "leave it 0")
