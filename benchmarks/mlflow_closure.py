"""What MLflow takes to find a checkpoint, and everything that was made from a dataset, in a large SQLite store.

    python -m benchmarks.mlflow_closure [--runs 1000] [--checkpoints 10000] [--repeats 20]

The store is MLflow's own, with its schema and indices; the rows of runs and LoggedModels are inserted directly, with
the tags that `lineage.mlflow_view` writes: each checkpoint has a tag for each of the 12 things it was made from. Asked
for through MLflow's client, as a page or a job does: the checkpoint of a reference with its closure (its tags), and the
newest checkpoints of a dataset. Wall-clock medians; exit status 1 if the closure takes 100 ms or more.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.lineage.mlflow_view import DIGEST_DIGITS, find_model
from altdiffusion.lineage.tracking import Tracking, connect
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake

LIMIT_MS, MADE_FROM = 100.0, 12


def reference(number: int) -> str:
    digest = files.sha256_hex(f"checkpoint {number}".encode())
    return f"checkpoint:run-{number // 10:04d}/step-{number % 10 * 100:08d}@{digest}"


def dataset_tag(number: int) -> str:
    """Return the closure's tag of one dataset version."""
    return f"lineage.ds.{files.sha256_hex(f'dataset {number}'.encode())[:DIGEST_DIGITS]}"


def fill(tracking: Tracking, database: Path, runs: int, checkpoints: int) -> None:
    """Insert runs and LoggedModels."""
    experiment, now = int(tracking.experiment_id), int(time.time() * 1000)
    with closing(sqlite3.connect(database)) as store, store:
        for number in range(runs):
            store.execute(
                "INSERT INTO runs (run_uuid, name, source_type, status, start_time, lifecycle_stage, artifact_uri,"
                " experiment_id) VALUES (?, ?, 'LOCAL', 'FINISHED', ?, 'active', ?, ?)",
                (f"{number:032x}", f"train/run-{number:04d}", now, f"mlflow-artifacts:/{number}", experiment),
            )
        for number in range(checkpoints):
            model, ref = f"m-{number:032x}", reference(number)
            store.execute(
                "INSERT INTO logged_models (model_id, experiment_id, name, artifact_location, creation_timestamp_ms,"
                " last_updated_timestamp_ms, status, lifecycle_stage, source_run_id) "
                "VALUES (?, ?, ?, ?, ?, ?, 2, 'active', ?)",
                (model, experiment, f"step-{number}", f"mlflow-artifacts:/m{number}", now + number, now + number,
                 f"{number * runs // checkpoints:032x}"),
            )  # fmt: skip
            tags = {"lineage.ref": ref, "lineage.uri": f"/lake/{number}"}
            tags |= {dataset_tag(number // 100 * MADE_FROM + which): f"set-{which}" for which in range(MADE_FROM)}
            store.executemany(
                "INSERT INTO logged_model_tags (model_id, experiment_id, tag_key, tag_value) VALUES (?, ?, ?, ?)",
                [(model, experiment, key, value) for key, value in tags.items()],
            )


def median_ms(work: Callable[[], object], repeats: int) -> float:
    """Return the median of the calls in milliseconds; the first one does not count."""
    spent = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        spent.append(1000 * (time.perf_counter() - began))
    return statistics.median(spent[1:])


def main() -> int:
    """Run the benchmark, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--checkpoints", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        Lake(folder)
        tracking = connect(None, folder)
        fill(tracking, Path(folder, "mlflow.db"), arguments.runs, arguments.checkpoints)
        ref = reference(arguments.checkpoints // 2)

        def closure() -> None:
            model = find_model(tracking, ref)
            assert model is not None
            tags = tracking.client.get_logged_model(model).tags
            assert sum(key.startswith("lineage.ds.") for key in tags) == MADE_FROM

        def made_from() -> None:
            found = tracking.client.search_logged_models(
                [tracking.experiment_id], filter_string=f"tags.`{dataset_tag(MADE_FROM)}` = 'set-0'", max_results=100
            )
            assert len(found) == min(100, arguments.checkpoints - 100)

        print(f"{arguments.runs:,} runs, {arguments.checkpoints:,} checkpoints of {MADE_FROM} things each, SQLite")
        took = median_ms(closure, arguments.repeats)
        print(f"{'a checkpoint and its closure, by its reference':52}{took:>8.1f} ms (limit {LIMIT_MS:.0f})")
        print(f"{'100 checkpoints that a dataset version is in':52}{median_ms(made_from, arguments.repeats):>8.1f} ms")
    return 1 if took >= LIMIT_MS else 0


if __name__ == "__main__":
    raise SystemExit(main())
