"""A running job: its lake, its one MLflow run, its connection to Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution import cluster
from altdiffusion.execution.pipeline_step import PipelineStep, published, run_pipeline_step
from altdiffusion.storage.dataset import Lake, Version
from pipelines.common import JobConfig

if TYPE_CHECKING:
    from altdiffusion.lineage.job_run import JobRun


class Session:
    """What a running job works with."""

    def __init__(self, config: JobConfig, lake: Lake, run: JobRun) -> None:
        self.config = config
        self.lake = lake
        self.run = run
        self._outputs = 0

    def connect(self) -> None:
        """Connect to Ray, once; an inline job does not need it."""
        execution = self.config.execution
        if execution.backend == "ray":
            cluster.connect(execution.address, num_cpus=execution.num_cpus, wait_for_nodes_s=execution.wait_for_nodes_s)

    def complete(self, pipeline_step: PipelineStep) -> tuple[Version, ...]:
        """Run a pipeline step, record its inputs and outputs in MLflow, and return the version of each output."""
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
            self._outputs += 1
            self.run.output(version, place=self._outputs)
        return versions


def already_published(lake: Lake, pipeline_steps: Sequence[PipelineStep]) -> str | None:
    """Return the versions that all the pipeline steps have made, or None if one of them has something to do."""
    refs: list[str] = []
    for pipeline_step in pipeline_steps:
        try:
            versions = published(lake, pipeline_step)
        except AltDiffusionError:  # an input is missing; running the job will report which
            return None
        if versions is None:
            return None
        refs += [version.ref.short for version in versions]
    return ", ".join(refs)
