"""Train: one stage of the recipe on a Ray TorchTrainer. The same command resumes it."""

from __future__ import annotations

from jobs.command_line import show_help

if __name__ == "__main__":
    show_help("train", __doc__)

from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.exports.export import export_checkpoint, export_start
from altdiffusion.training.run.resolve import finished, resolve
from jobs.checkpoint_watch import CheckpointWatch
from jobs.contact_sheets import log_samples
from jobs.harness import Job, leave, main
from jobs.held_out import measure_retrieval
from jobs.session import Session
from pipelines.train import TrainJobConfig, check, plan, prepare, survey


def result(config: TrainJobConfig, lake: Lake) -> str | None:
    """Return the last checkpoint of a finished run, if it is exported."""
    found = finished(config.train, lake.uri)
    if found is None:
        return None
    export = files.join(lake.uri, "exports", config.train.run, checkpoints.step_name(found.step), "lineage.json")
    return found.ref.short if files.exists(export) else None


def run(config: TrainJobConfig, session: Session) -> None:
    """Train, export every kept checkpoint and draw samples; checkpoints are in MLflow when they are written."""
    train, lake = config.train, session.lake.uri
    for line in check(config):
        print(f"[train] {line}", flush=True)
    versions = [session.lake.version(dataset.name) for dataset in train.datasets]
    for version in versions:
        session.run.input(version, context="training")
    session.run.compare({"datasets": ", ".join(f"{version.ref.name}@{version.ref.digest[:8]}" for version in versions)})
    outbox = session.run.metrics_path
    session.run.ship(outbox)
    resolved = resolve(train, lake)
    first = resolved.continued or resolved.start
    for origin in [first] if first is not None else resolved.models:
        session.run.input(origin, context="start")
    export_start(resolved)
    session.connect()  # before a second thread could
    with CheckpointWatch(config, session):
        if config.execution.backend == "ray":
            from altdiffusion.training import launch_ray

            launch_ray.train(train, lake, outbox_path=outbox, event_files=config.tensorboard)
        else:
            from altdiffusion.training.launch_local import run_local

            run_local(train, lake, outbox_path=outbox, event_files=config.tensorboard)
    if config.samples is not None:
        log_samples(config, session, 0)
    kept = [checkpoints.open_step(lake, train.run, step) for step in checkpoints.complete_steps(lake, train.run)]
    for found, measured in zip(kept, measure_retrieval(config, resolved, kept), strict=True):
        step, metrics = found.step, {**found.state()["metrics"], **measured}
        session.run.checkpoint(found.ref, step=step, metrics=metrics)
        exported = export_checkpoint(lake, train.run, step=step)
        print(f"[export] {exported}", flush=True)
        session.run.exported(found.ref, exported)
        if config.samples is not None and (config.draws_at_end(step) or found is kept[-1]):
            log_samples(config, session, step)
    session.run.candidate(found.ref)
    session.run.page(found.ref)


JOB = Job(
    name="train", summary=__doc__, config=TrainJobConfig, prepare=prepare, plan=plan, result=result, run=run,
    survey=survey,
)  # fmt: skip

if __name__ == "__main__":
    leave(main(JOB))
