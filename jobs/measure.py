"""Measure: FID, KID, CMMD, IS, CLIP-Sim and retrieval of images that were drawn, per language and in the mean."""

from __future__ import annotations

from jobs.command_line import show_help

if __name__ == "__main__":
    show_help("measure", __doc__)

from collections.abc import Mapping
from typing import Any

from altdiffusion.evaluation.measures import tables
from altdiffusion.evaluation.measures.measure import MEAN, Measured, measure
from altdiffusion.languages import CODES
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from jobs.harness import Job, leave, main
from jobs.session import Session, already_published
from pipelines.measures import REFERENCE, MeasureJobConfig, about, check, pipeline_steps, plan, survey


def result(config: MeasureJobConfig, lake: Lake) -> str | None:
    made = already_published(lake, list(pipeline_steps(config).values()))
    written = all(files.exists(f"{config.output}.{suffix}") for suffix in ("json", "md"))
    return f"{config.output}.md of {made}" if made and written else None


def run(config: MeasureJobConfig, session: Session) -> None:
    """Make the features of every state, measure, write the tables and record the metrics."""
    measure_states(config, session)


def measure_states(config: MeasureJobConfig, session: Session) -> dict[str, Any]:
    """Do the job, and return what OUTPUT.json holds.

    Each value becomes a metric linked to the state's checkpoint and to the datasets.
    """
    for line in check(config, session.lake):
        print(f"[measure] {line}", flush=True)
    drawn = {state: session.lake.version(name) for state, name in config.states.items()}
    made = {name: session.complete(step)[0] for name, step in pipeline_steps(config).items()}
    found = {}
    for state, version in drawn.items():
        codes = [code for code, count in version.manifest.rows_by_language.items() if count]
        ordered = sorted(codes, key=lambda code: (CODES.index(code) if code in CODES else len(CODES), code))
        found[state] = measure(made[state], made.get(REFERENCE), ordered, config.measures)
        _record(session, state, version, found[state], made.get(REFERENCE))
    return _write(config, session, found)


def _write(config: MeasureJobConfig, session: Session, states: tables.States) -> dict[str, Any]:
    """Write the values as JSON and Markdown, print them, and attach the files to the run."""
    facts = about(config.measures)
    report, text = tables.to_json(states, facts), tables.to_markdown(states, facts)
    for suffix, data in (("json", files.canonical_json(report)), ("md", text.encode())):
        files.write_atomic(f"{config.output}.{suffix}", data)
        session.run.artifact(f"{config.output}.{suffix}")
    print(text, flush=True)
    return report


def _record(
    session: Session, state: str, version: Version, measured: Mapping[str, Measured], reference: Version | None
) -> None:
    metrics = {}
    for name, one in measured.items():
        for code, value in {**one.languages, MEAN: one.mean}.items():
            metrics[f"{state}/{name}/{code}"] = value.value
    datasets = [version, *([reference] if reference is not None else [])]
    for origin in version.manifest.parent_refs:
        if origin.kind in ("checkpoint", "model"):
            session.run.measured(origin, metrics, datasets=datasets)


JOB = Job(name="measure", summary=__doc__, config=MeasureJobConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
