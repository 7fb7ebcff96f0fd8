"""Train: one stage of the recipe on a Ray TorchTrainer. The same command resumes it."""

from __future__ import annotations

from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.exports.export import export_checkpoint, export_start
from altdiffusion.training.run.resolve import finished, resolve
from jobs.contact_sheets import log_samples
from jobs.harness import Job, leave, main
from jobs.held_out import measure_retrieval
from jobs.session import Session
from pipelines.train import TrainJobConfig, check, plan, survey


def result(config: TrainJobConfig, lake: Lake) -> str | None:
    """Return the last checkpoint of a finished run, if it is exported."""
    found = finished(config.train, lake.uri)
    if found is None:
        return None
    export = files.join(lake.uri, "exports", config.train.run, checkpoints.step_name(found.step), "lineage.json")
    return found.ref.short if files.exists(export) else None


def run(config: TrainJobConfig, session: Session) -> None:
    """Train, then export and draw samples of every kept checkpoint."""
    train, lake = config.train, session.lake.uri
    for line in check(config):
        print(f"[train] {line}", flush=True)
    for dataset in train.datasets:
        session.run.input(session.lake.version(dataset.name), context="training")
    session.run.ship(session.run.metrics_path)
    resolved = resolve(train, lake)
    first = resolved.continued or resolved.start
    for origin in [first] if first is not None else resolved.models:
        session.run.input(origin, context="start")
    export_start(resolved)
    if config.execution.backend == "ray":
        from altdiffusion.training import launch_ray

        session.connect()
        launch_ray.train(train, lake, outbox_path=session.run.metrics_path)
    else:
        from altdiffusion.training.launch_local import run_local

        run_local(train, lake, outbox_path=session.run.metrics_path)
    if config.samples is not None:
        log_samples(config, session, 0)
    kept = [checkpoints.open_step(lake, train.run, step) for step in checkpoints.steps(lake, train.run)]
    for found, measured in zip(kept, measure_retrieval(config, resolved, kept), strict=True):
        step, metrics = found.step, {**found.state()["metrics"], **measured}
        session.run.checkpoint(found.ref, step=step, metrics=metrics)
        print(f"[export] {export_checkpoint(lake, train.run, step=step)}", flush=True)
        if config.samples is not None:
            log_samples(config, session, step)
    session.run.page(found.ref)


JOB = Job(name="train", summary=__doc__, config=TrainJobConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
