"""What all entry points share: command line, dry run, Ray, the MLflow run, errors to exit codes.

    python -m jobs.NAME --config FILE [key=value ...] [--dry-run]

Exit status: 0 done (or already there), 1 a defect (with its traceback), 2 something the caller can fix (a dry run
too, where the job would stop at it), 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

from altdiffusion.config import fingerprint, load_config, resolved, to_yaml
from altdiffusion.credentials import guard_outputs
from altdiffusion.errors import AltDiffusionError, Resumable
from altdiffusion.execution import cluster
from altdiffusion.execution.pipeline_step import PipelineStep, published, run_pipeline_step
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.documents import NAME, optional_document
from pipelines.common import JobConfig, Plan, Survey

C = TypeVar("C", bound=JobConfig)


@dataclass(frozen=True, kw_only=True)
class Job(Generic[C]):
    """One entry point."""

    name: str
    summary: str | None
    """What `--help` prints: the docstring of the job's module."""
    config: type[C]
    plan: Callable[[C], Plan]
    """Pure: what `--dry-run` prints."""
    result: Callable[[C, Lake], str | None]
    """What the finished job has left in the lake, in a few words; None while there is something to do."""
    run: Callable[[C, Session], None]
    survey: Callable[[C, bool], Survey]
    """What `--dry-run` prints of the inputs after a look at them: rows, units, sizes, and what the job would stop at.
    It reads as little as that takes, and only what is on this machine unless `--remote` is given."""


class Session:
    """A running job: its lake, its one MLflow run, its connection to Ray."""

    def __init__(self, config: JobConfig, lake: Lake, run: Any) -> None:
        self.config = config
        self.lake = lake
        self.run = run

    def connect(self) -> None:
        """Connects to Ray, once; an inline job needs none."""
        execution = self.config.execution
        if execution.backend == "ray":
            cluster.connect(execution.address, num_cpus=execution.num_cpus)

    def complete(self, pipeline_step: PipelineStep) -> tuple[Version, ...]:
        """Run a pipeline step, record its inputs and outputs in MLflow, and return a version per output."""
        if published(self.lake, pipeline_step) is None:
            self.connect()
        versions = run_pipeline_step(self.lake, pipeline_step, backend=self.config.execution.backend)
        for version in versions:
            counts = ", ".join(f"{reason} {count:,}" for reason, count in version.manifest.rejects_by_reason.items())
            print(
                f"[{pipeline_step.name}] {version.ref.short}: {version.rows:,} rows; rejected: {counts or 'none'}",
                flush=True,
            )
            for parent in version.manifest.parent_refs:
                if parent.kind == "dataset":
                    self.run.input(self.lake.version(parent), context=pipeline_step.name)
            self.run.output(version)
        return versions


class Terminated(SystemExit):
    """SIGTERM, raised where the job stands, so that its run is closed as killed."""


def _terminate(*_: object) -> None:
    raise Terminated(143)


def already_published(lake: Lake, pipeline_steps: Sequence[PipelineStep]) -> str | None:
    """Return the versions that all the pipeline steps have made, or None if one of them has something to do."""
    refs: list[str] = []
    for pipeline_step in pipeline_steps:
        try:
            versions = published(lake, pipeline_step)
        except AltDiffusionError:  # an input is missing, which running the job reports
            return None
        if versions is None:
            return None
        refs += [version.ref.short for version in versions]
    return ", ".join(refs)


def job_of_steps(
    *,
    name: str,
    summary: str | None,
    config: type[C],
    plan: Callable[[C], Plan],
    survey: Callable[[C, bool], Survey],
    steps: Callable[[C], Sequence[PipelineStep]],
    finish: Callable[[C, Session, Version], None] = lambda config, session, version: None,
    settle: Callable[[C, Lake], None] = lambda config, lake: None,
) -> Job[C]:
    """Return the job that completes pipeline steps one after the other.

    Args:
        finish: called when all are complete, with the version of the last one.
        settle: called when all were found complete, at the end of this job or of an earlier one.
    """

    def result(config: C, lake: Lake) -> str | None:
        made = already_published(lake, steps(config))
        if made is not None:
            settle(config, lake)
        return made

    def run(config: C, session: Session) -> None:
        versions = [version for pipeline_step in steps(config) for version in session.complete(pipeline_step)]
        finish(config, session, versions[-1])

    return Job(name=name, summary=summary, config=config, plan=plan, survey=survey, result=result, run=run)


def main(job: Job[C], argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run the job."""
    guard_outputs()
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{job.name}", description=job.summary)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML, see jobs/configs/")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and the plan, change nothing")
    parser.add_argument("--remote", action="store_true", help="with --dry-run: look at inputs elsewhere as well")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, e.g. download.threads=32")
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load_config(job.config, arguments.config, arguments.overrides)
        if not NAME.fullmatch(config.run_name):
            raise AltDiffusionError(
                f"config {arguments.config}, name of the run {config.run_name[:200]!r}",
                "cannot be a file name",
                "use up to 200 letters, digits, '.', '_' and '-'",
            )
        plan = job.plan(config)
        if arguments.dry_run:
            return _dry_run(job, config, plan, arguments.remote)
        _run(job, config, plan)
    except Resumable as stopped:
        print(stopped, file=sys.stderr, flush=True)
        return 143
    except AltDiffusionError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except Terminated:
        print("terminated; run the same command again to go on", file=sys.stderr, flush=True)
        return 143
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr, flush=True)
        return 130
    return 0


def _dry_run(job: Job[C], config: C, plan: Plan, remote: bool) -> int:
    """Prints config, plan and survey, and changes nothing; fails where the job would."""
    print(to_yaml(config))
    print("\n".join(plan.lines()))
    survey = job.survey(config, remote)
    print("".join(f"  {line}\n" for line in survey.lines) + f"fingerprint: {fingerprint(config)}", flush=True)
    for problem in survey.problems:
        print(f"error: {problem}", file=sys.stderr, flush=True)
    return 2 if survey.problems else 0


def leave(status: int) -> NoReturn:
    """Ends a job's process once its work is done and written.

    Without the interpreter's teardown: threads that native libraries leave behind have been seen to abort it there,
    which turned a finished job's status into that of a crash.
    """
    cluster.shutdown()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(job: Job[C], config: C, plan: Plan) -> None:
    lake = Lake(config.lake)
    key = fingerprint(config)
    marker = files.within(lake.uri, "runs", f"{job.name}-{config.run_name}-{key[:16]}.json")
    there = job.result(config, lake)
    left = optional_document(marker) if there is not None else None
    if left is not None and left.text("result") == there:
        print(f"[{job.name}] already there: {there}", flush=True)
        return
    print("\n".join(plan.lines()), flush=True)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    from altdiffusion.lineage.job_run import JobRun

    with JobRun.open(
        job=job.name,
        name=config.run_name,
        fingerprint=key,
        config=resolved(config),
        tracking_uri=config.tracking.uri,
        experiment=config.tracking.experiment,
        lake=lake,
    ) as run:
        job.run(config, Session(config, lake, run))
    # Written last, when the run is closed in MLflow: from now on the same command has nothing to do.
    files.write_atomic(marker, files.canonical_json({"result": job.result(config, lake)}))
