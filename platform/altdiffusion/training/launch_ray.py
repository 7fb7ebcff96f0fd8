"""Training on Ray: one group of workers, restarted while that may help.

Ray places the workers, connects them and restarts them when one is lost. What a restart continues from is decided by
our own checkpoints alone: nothing is reported to Ray, whose record of checkpoints is not durable when `report()`
returns and whose metrics-only reports take seconds. So a resume is the same command again.
"""

from __future__ import annotations

import os
import threading
import uuid
import warnings
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.errors import AltDiffusionError, Resumable
from altdiffusion.execution import cluster
from altdiffusion.execution.capacity import wait_for_nodes, wanted
from altdiffusion.execution.units import Resources
from altdiffusion.monitoring.identity import identity
from altdiffusion.monitoring.json_logs import begin_worker
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.faults import failures, ray_notice
from altdiffusion.training.faults.notice import STOP, PreemptionNotice, on_stop_signals
from altdiffusion.training.loop.loop import train_loop
from altdiffusion.training.reporting.relay import MessageRelay, RelayReader, RelayReporter
from altdiffusion.training.reporting.reporter import LineReporter, Reporter
from altdiffusion.training.run.ended import has_ended
from altdiffusion.training.run.resolve import resolve
from altdiffusion.training.run.resolved import ResolvedRun
from altdiffusion.training.run.run_name import check_checkpoint
from altdiffusion.training.update.trainer import Counters

COLLECTIVE_TIMEOUT_S = 600
WAKE_S = 1.0


def train(config: TrainConfig, lake: str, *, outbox_path: str | None = None, event_files: str | None = None) -> Ref:
    """Train on the Ray cluster that this process is connected to (an embedded one is started if there is none).

    Args:
        config: what to train, and with which workers.
        lake: URI of the lake; with several machines one that all of them reach.
        outbox_path: file on this machine to which the metrics are appended (see lineage.outbox).
        event_files: folder on this machine for TensorBoard's event files.

    Returns:
        The checkpoint of the last step.

    Raises:
        AltDiffusionError: what a user can fix.
        Resumable: this process was sent SIGTERM or SIGINT; the workers have written a checkpoint of their last step.
        TrainingFailed: the workers failed too often; its text holds the original traceback.
    """
    run = resolve(config, lake)
    reporter = LineReporter(config)
    found = checkpoints.latest_verified(run.lake, config.run, reporter.warning)
    if found is not None:
        check_checkpoint(run, found)
        if has_ended(config, found):
            checkpoints.sweep(run.lake, config.run, found.step)
            return found.ref
    failures.clear(run.lake, config.run)
    notice = PreemptionNotice()
    with on_stop_signals(notice):
        error = _fit(run, LineReporter(config, outbox_path, event_files), notice)
        last = checkpoints.latest_verified(run.lake, config.run, reporter.warning)
        if notice.level == STOP and not has_ended(config, last):
            raise Resumable(
                f"run {config.run}",
                f"was asked to stop; {f'the checkpoint of step {last.step}' if last else 'no checkpoint'} is there",
                "run the same command again to continue",
            )
    noted = failures.read(run.lake, config.run)
    ended = failures.final(noted)
    if ended is not None:
        raise ended.error()
    if error is not None:
        raise (failures.cause(noted).error() if noted else error) from error
    if last is None or not has_ended(config, last):
        raise failures.TrainingFailed(f"run {config.run} ended without the checkpoint of step {config.steps}")
    return last.ref


def _fit(run: ResolvedRun, reporter: Reporter, notice: PreemptionNotice) -> Exception | None:
    """Run the workers to their end, or to the next step where notice to stop is given; return Ray's error after the
    last of its restarts."""
    cluster.connect()
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    workers = run.config.workers
    least = workers.min_count or workers.count
    if cluster.is_embedded():
        have = ray.cluster_resources()
        for kind, each in (("CPU", workers.cpus), ("GPU", workers.gpus)):
            if least * each > have.get(kind, 0):
                raise AltDiffusionError(
                    f"config of run {run.config.run}, key workers",
                    f"asks for {least * each:g} {kind}s, this machine has {have.get(kind, 0):g}",
                    "lower workers.count, or connect to a cluster",
                )
    needs = Resources(num_cpus=workers.cpus, num_gpus=workers.gpus, custom=workers.custom)
    wait_s = cluster.wait_for_nodes_s()
    if not wait_for_nodes(least, needs, wait_s, reporter.warning, lambda: notice.level == STOP):
        return None
    name = f"{run.config.run}-{run.fingerprint[:12]}"
    storage = files.within(run.lake, "ray")
    # Ray's record of an earlier start is not needed, and a torn one would make the name unusable.
    files.remove_tree(files.join(storage, name), below=storage)
    relay = ray.remote(num_cpus=0, max_restarts=-1)(MessageRelay).remote()
    trainer = TorchTrainer(
        worker,
        train_loop_config={"run": run, "relay": relay, "identity": identity()},
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=(workers.min_count, workers.count) if workers.min_count is not None else workers.count,
            elastic_resize_monitor_interval_s=workers.grow_check_s,
            use_gpu=workers.gpus > 0,
            resources_per_worker=wanted(needs),
        ),
        run_config=RunConfig(
            name=name, storage_path=storage, failure_config=FailureConfig(max_failures=workers.max_failures)
        ),
    )

    def forward() -> None:
        if notice.level == STOP:  # repeatedly: a relay that was lost and came back has forgotten it
            relay.stop.remote()

    try:
        with RelayReader(lambda: ray.get(relay.take.remote(), timeout=30), reporter, forward):
            result = _in_thread(trainer.fit)
    except Exception as error:
        return error
    finally:
        ray.kill(relay)
    failed: Exception | None = result.error
    return failed


def _in_thread(call: Callable[[], Any]) -> Any:
    """Return what a call returns that runs in a thread: in the main one, Ray takes Ctrl-C over and aborts the run."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="fit", daemon=True).start()
    while not outcome.done():  # a signal that another thread has received is handled when this thread wakes
        wait([outcome], timeout=WAKE_S)
    return outcome.result()


def worker(settings: dict[str, Any]) -> None:
    """Run one Ray worker. A failure is noted next to the checkpoints before it reaches Ray."""
    from ray import train as ray_train
    from ray.train.torch import get_device

    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    quiet_libraries()
    run: ResolvedRun = settings["run"]
    config = run.config
    context = ray_train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if not config.workers.gpus:
        torch.set_num_threads(max(1, int(config.workers.cpus)))
    begin_worker(replace(settings["identity"], rank=rank))
    attempt = [uuid.uuid4().hex]
    if world > 1:
        dist.broadcast_object_list(attempt, src=0)
    relay = settings["relay"]
    if failures.final(failures.read(run.lake, config.run)) is not None or ray_notice.stopping(relay):
        return  # the driver reads the same notes, or was asked to stop itself, and ends the run
    counters, notice = Counters(), PreemptionNotice()
    ray_notice.listen(notice, relay if rank == 0 else None)
    try:
        train_loop(
            run,
            reporter=RelayReporter(relay),
            device=get_device(),
            rank=rank,
            world=world,
            counters=counters,
            notice=notice,
        )
    except Resumable:
        raise  # Ray restarts the workers, here or elsewhere
    except Exception as error:
        failures.record(run.lake, config.run, attempt=attempt[0], rank=rank, step=counters.step, error=error)
        raise
