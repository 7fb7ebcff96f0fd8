"""The command line of all jobs: config, dry run, the MLflow run, errors as exit codes.

    python -m jobs.NAME --config FILE [key=value ...] [--dry-run]
    python -m jobs.NAME --explain KEY

Exit status: 0 if the job is done (or was already), 1 for a defect (with its traceback), 2 for something that the caller
can fix (also in a dry run, if it would stop the job), 130 if interrupted, 143 if terminated.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

from altdiffusion.config import fingerprint, from_dict, load_tree, resolved, to_yaml
from altdiffusion.config_keys import explain, meant, top_keys
from altdiffusion.credentials import guard_outputs
from altdiffusion.errors import AltDiffusionError, Resumable
from altdiffusion.execution import cluster
from altdiffusion.execution.pipeline_step import PipelineStep
from altdiffusion.monitoring import json_logs
from altdiffusion.monitoring.identity import Identity, adopt, identity
from altdiffusion.monitoring.json_logs import JsonLogs
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.documents import NAME, optional_document
from altdiffusion.terminal import naming_paths, print_any_text
from jobs.cluster_look import cluster_problems
from jobs.command_line import job_parser
from jobs.session import Session, already_published
from pipelines.common import JobConfig, Plan, Survey
from pipelines.kinds import kind_of

C = TypeVar("C", bound=JobConfig)


@dataclass(frozen=True, kw_only=True)
class Job(Generic[C]):
    """One entry point."""

    name: str
    summary: str | None
    """Text of `--help`: the docstring of the job's module."""
    config: type[C]
    plan: Callable[[C], Plan]
    """Returns what the job will do, without I/O; `--dry-run` prints it."""
    result: Callable[[C, Lake], str | None]
    """Describes what the finished job left in the lake; returns None while there is something to do."""
    run: Callable[[C, Session], None]
    prepare: Callable[[C, bool], C] = lambda config, look: config
    """Returns the config with what only the lake knows; `look` is false where a dry run must not look into it."""
    survey: Callable[[C, bool], Survey]
    """Returns what `--dry-run` prints about the inputs: rows, units, sizes, and errors that would stop the job.

    It reads as little as possible, and only what is on this machine unless its second argument (`--remote`) is true.
    """


def job_of_steps(
    *,
    name: str,
    summary: str | None,
    config: type[C],
    plan: Callable[[C], Plan],
    survey: Callable[[C, bool], Survey],
    steps: Callable[[C], Sequence[PipelineStep]],
    check: Callable[[C], Sequence[str]] = lambda config: (),
    finish: Callable[[C, Session, Version], None] = lambda config, session, version: None,
    settle: Callable[[C, Lake], None] = lambda config, lake: None,
) -> Job[C]:
    """Return the job that completes pipeline steps one after the other.

    Args:
        check: called before the first step; it returns lines to print, or raises what would stop the job at its end.
        finish: called when all steps are complete, with the version that the last one published.
        settle: called when all steps are found complete, at the end of this job or of an earlier one.
    """

    def result(config: C, lake: Lake) -> str | None:
        made = already_published(lake, steps(config))
        if made is not None:
            settle(config, lake)
        return made

    def run(config: C, session: Session) -> None:
        for line in check(config):
            print(f"[{name}] {line}", flush=True)
        versions = [version for pipeline_step in steps(config) for version in session.complete(pipeline_step)]
        finish(config, session, versions[-1])

    return Job(name=name, summary=summary, config=config, plan=plan, survey=survey, result=result, run=run)


class Terminated(SystemExit):
    """SIGTERM, raised inside the job, so that its run is closed as killed."""


def _terminate(*_: object) -> None:
    raise Terminated(143)


def main(job: Job[C], argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run the job, and return the exit status."""
    guard_outputs()
    print_any_text()
    before = identity()
    with JsonLogs() as logs:
        status = _main(job, argv, logs)
    adopt(before)  # not after an exception, whose traceback is still to be printed
    return status


def _main(job: Job[C], argv: Sequence[str] | None, logs: JsonLogs) -> int:
    adopt(Identity(job=job.name))
    parser = job_parser(job.name, job.summary)
    try:
        if json_logs.is_asked_for():
            logs.start()
    except ValueError as error:
        parser.error(f"the environment variable {json_logs.VARIABLE}: {error}")
    arguments = parser.parse_intermixed_args(argv)
    try:
        if arguments.explain is not None:
            print("\n".join(_explained(job, arguments.explain)), flush=True)
            return 0
        if arguments.config is None:
            parser.error("the following arguments are required: --config")
        config = _load(job, arguments.config, arguments.overrides, logs)
        if not NAME.fullmatch(config.run_name):
            raise AltDiffusionError(
                f"config {arguments.config}, name of the run {config.run_name[:200]!r}",
                "cannot be a file name",
                "use up to 200 letters, digits, '.', '_' and '-'",
            )
        adopt(Identity(job=job.name, run=config.run_name, json=logs.started))
        config = job.prepare(config, not arguments.dry_run or arguments.remote or files.is_local(config.lake))
        plan = job.plan(config)
        with naming_paths():
            if arguments.dry_run:
                return _dry_run(job, config, plan, arguments.remote)
            _run(job, config, plan)
    except Resumable as stopped:
        print(stopped, file=sys.stderr, flush=True)
        return stopped.status
    except AltDiffusionError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except Terminated:
        print("terminated; run the same command again to continue", file=sys.stderr, flush=True)
        return 143
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr, flush=True)
        return 130
    return 0


def _load(job: Job[C], path: str, overrides: Sequence[str], logs: JsonLogs) -> C:
    """Return the config of a file; from here on, lines have the form that it asks for, errors in it included.

    Raises:
        AltDiffusionError: it is wrong, or another job's.
    """
    tree = load_tree(path, overrides)
    execution = tree.get("execution")
    if isinstance(execution, dict) and execution.get("log_format") == "json":
        logs.start()
    try:
        config = from_dict(job.config, tree, path)
    except AltDiffusionError:
        other = kind_of(tree, job.name)
        if other is not None:
            raise AltDiffusionError(
                f"config {path}",
                f"is one of jobs.{other}, and this is jobs.{job.name}",
                f"run python -m jobs.{other} --config {path}",
            ) from None
        raise
    if files.is_local(config.lake) and os.path.isfile(files.local_path(config.lake)):
        raise AltDiffusionError(f"lake {config.lake}", "is a file, not a folder", "name a folder, which may be new")
    return config


def _explained(job: Job[C], key: str) -> list[str]:
    try:
        return explain(job.config, key)
    except KeyError:
        found = meant(job.config, key)
        raise AltDiffusionError(
            f"key {key} of jobs.{job.name}",
            "is not known",
            f"did you mean {' or '.join(found)}?" if found else f"keys at the top: {', '.join(top_keys(job.config))}",
        ) from None


def _dry_run(job: Job[C], config: C, plan: Plan, remote: bool) -> int:
    """Print config, plan and survey; change nothing, and return 2 if the job would stop."""
    print(to_yaml(config))
    print("\n".join(plan.lines()))
    survey = job.survey(config, remote)
    print("".join(f"  {line}\n" for line in survey.lines) + f"fingerprint: {fingerprint(config)}", flush=True)
    problems = [*survey.problems, *cluster_problems(config)]
    for text in dict.fromkeys(map(str, problems)):  # two looks may find the same one
        print(f"error: {text}", file=sys.stderr, flush=True)
    return 2 if problems else 0


def leave(status: int) -> NoReturn:
    """End a job's process once its work is done and written, without the interpreter's teardown.

    Threads that native libraries leave behind have been seen to abort the process in the teardown, which turned a
    finished job's status into that of a crash.
    """
    cluster.shutdown()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(job: Job[C], config: C, plan: Plan) -> None:
    """Run the job in its MLflow run, unless the same command has already finished."""
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
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})  # a parent may have blocked them
    from altdiffusion.lineage.job_run import JobRun

    with JobRun.open(
        job=job.name,
        name=config.run_name,
        fingerprint=key,
        config=resolved(config),
        tracking_uri=config.tracking.uri,
        experiment=config.tracking.experiment,
        system_metrics=config.tracking.system_metrics,
        lake=lake,
    ) as run:
        job.run(config, Session(config, lake, run))
    # The marker is written last, when the run is closed in MLflow: from now on the same command has nothing to do.
    files.write_atomic(marker, files.canonical_json({"result": job.result(config, lake)}))
