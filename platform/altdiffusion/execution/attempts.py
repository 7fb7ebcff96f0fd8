"""How often a unit was begun by workers that had been killed and started again.

Ray counts neither a worker that its memory monitor killed nor the task that it had against `max_task_retries`: a unit
that needs more memory than there is would be tried for as long as the worker may be restarted. The numbers are in the
cluster's own key-value store, and end with the run of the units.
"""

from __future__ import annotations

import contextlib

from altdiffusion.errors import AltDiffusionError

MAX_ATTEMPTS = 12
"""How often a unit may be begun by workers that were started again.

It is above what deaths that Ray counts reach: three pools with three tries each.
"""
_NAMESPACE = b"altdiffusion"


def count(run: str, unit_id: str) -> None:
    """Note that a worker begins a unit, where that worker was killed before.

    Args:
        run: identifies the run of the units.

    Raises:
        AltDiffusionError: it was begun too often.
    """
    import ray
    from ray.experimental import internal_kv as kv

    if not ray.get_runtime_context().was_current_actor_reconstructed:
        return
    key = f"{run}/{unit_id}".encode()
    tries = int(kv._internal_kv_get(key, namespace=_NAMESPACE) or 0) + 1
    kv._internal_kv_put(key, str(tries).encode(), namespace=_NAMESPACE)
    if tries > MAX_ATTEMPTS:
        raise AltDiffusionError(
            f"unit {unit_id}",
            f"was begun {tries - 1} times by workers that were killed, as by Ray's memory monitor",
            "give the workers more memory (workers.memory_gib) or fewer of them per machine, or look for a crash in "
            "native code, then run it again: finished units are kept",
        )


def forget(run: str) -> None:
    """Remove the numbers of a run."""
    from ray.experimental import internal_kv as kv

    with contextlib.suppress(Exception):  # a cluster that was lost has forgotten them, and its error is on its way
        kv._internal_kv_del(f"{run}/".encode(), del_by_prefix=True, namespace=_NAMESPACE)
