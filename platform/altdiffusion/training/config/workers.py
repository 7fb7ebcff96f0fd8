"""Where it runs."""

from __future__ import annotations

from dataclasses import dataclass

from altdiffusion.config import operational


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkersConfig:
    """Where a run runs. No setting changes the samples or what is drawn for them; only the rounding of sums changes."""

    count: int = operational(1)
    min_count: int | None = operational(None)
    """Smallest number of workers to go on with while machines are missing; the run grows back to `count`. Null waits
    for all of them. The batch must divide among every number of workers from this to `count`."""
    grow_check_s: float = operational(60.0)
    """Seconds between checks whether there are machines for more workers."""
    cpus: float = operational(1.0)
    """CPUs per worker; also its number of threads."""
    gpus: float = operational(0.0)
    """GPUs per worker: 0 or 1."""
    max_failures: int = operational(10)
    """Restarts before the job gives up; the same step failing three times ends it sooner."""
    stall_timeout_s: float = operational(240.0)
    """Seconds without the end of a step and without a sign of life, after which a worker is named and all workers are
    restarted."""
    prefetch: int = operational(2)
    """Batches read ahead."""
    cache_mb: int = operational(2048)
    """Memory of a worker for row groups that are kept, in MiB; those read ahead take up to half as much again.
    A window (order) should fit, or two with a language temperature: otherwise row groups are read repeatedly."""
    text_cache_mb: int = operational(0)
    """Memory of a CPU worker for the vectors of captions, in MiB; 0 encodes them in every step. It pays where
    captions are repeated often."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("count: must be at least 1; give the number of workers")
        if self.min_count is not None and not 1 <= self.min_count <= self.count:
            raise ValueError("min_count: must be in 1 to count; null waits for all workers")
        if self.grow_check_s <= 0:
            raise ValueError("grow_check_s: must be positive; 60 looks every minute")
        if self.stall_timeout_s <= 0:
            raise ValueError("stall_timeout_s: must be positive; 240 is four minutes")
        if self.cpus <= 0:
            raise ValueError("cpus: must be positive; give the CPUs of one worker")
        if self.gpus not in (0, 1):
            raise ValueError("gpus: must be 0 or 1; use one worker for each GPU")
        if self.max_failures < 0:
            raise ValueError("max_failures: must not be negative; 0 means no restart")
        if self.prefetch < 1:
            raise ValueError("prefetch: must be at least 1; 2 is enough")
        if self.cache_mb < 1:
            raise ValueError("cache_mb: must be positive; a window of row groups should fit")
        if self.text_cache_mb < 0:
            raise ValueError("text_cache_mb: must not be negative; 0 means no cache")
        if self.text_cache_mb and self.gpus:
            raise ValueError("text_cache_mb: is for CPU workers only; leave it 0")
