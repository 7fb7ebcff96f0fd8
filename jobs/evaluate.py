"""Evaluate: measure per language how often a judge finds the requested concept in what each state draws."""

from __future__ import annotations

from typing import Any

import numpy as np

from altdiffusion.evaluation import judge_images, retrieval_accuracy, table
from altdiffusion.evaluation.judge import train_judge
from altdiffusion.storage import evaluations, files
from altdiffusion.storage.dataset import Lake, Version
from jobs import evaluation_measures
from jobs.cards import record_scores, write_table
from jobs.harness import Job, leave, main
from jobs.session import Session, already_published
from pipelines.evaluate import EvaluateConfig, pipeline_steps, plan, survey


def result(config: EvaluateConfig, lake: Lake) -> str | None:
    drawn = already_published(lake, [step for state in config.states for step in pipeline_steps(config, state)])
    written = all(files.exists(f"{config.output}.{suffix}") for suffix in ("json", "md", "txt"))
    written &= evaluation_measures.done(config, lake)
    kept = files.exists(evaluations.uri_of(lake.uri, config.name))
    return f"{config.output}.md of {drawn}" if drawn and written and kept else None


def run(config: EvaluateConfig, session: Session) -> None:
    """Draw the cases with every state, judge the images, and write the table."""
    cases = retrieval_accuracy.read_cases(config.cases)  # before anything is drawn
    evaluation_measures.check(config, session)
    drawn = {
        state.name: [session.complete(step) for step in pipeline_steps(config, state)][-1][-1]
        for state in config.states
    }
    images = session.lake.version(config.images)
    session.run.input(images, context="judge")
    real, shown = judge_images.labelled_images(images, config.labels)
    name_images = _judge(config, real, shown)
    scores, controls = [], {}
    codec = name_images(judge_images.through_autoencoder(config.autoencoder, real))
    controls["real pictures through the autoencoder"] = retrieval_accuracy.rate_of(codec == shown, shown)
    for state, version in drawn.items():
        asked, named = _named(version, cases, name_images)
        scores.append(retrieval_accuracy.score(state, named, asked))
    controls["last state, captions shuffled"] = retrieval_accuracy.shuffled(named, asked)
    report = table.Report(states=scores, controls=controls)
    write_table(config, session, report)
    record_scores(config, session, report)
    print(report.to_text(), flush=True)
    evaluation_measures.add(config, session)
    if config.require is not None:
        table.require(
            report,
            min_mean=config.require.others_at_least,
            min_ratio=config.require.others_to_english_at_least,
            min_lowest_ratio=config.require.lowest_to_english_at_least,
            min_concepts=config.require.concepts_at_least,
        )


def _judge(config: EvaluateConfig, real: Any, shown: Any) -> Any:
    names, labels = np.unique(shown, return_inverse=True)
    print(f"[judge] trained on {len(real)} real images of {len(names)} concepts", flush=True)
    judge = train_judge(real, labels.astype(np.int64), config.judge.seed, steps=config.judge.steps)
    return lambda images: names[judge.predict(images)]


def _named(version: Version, cases: Any, name_images: Any) -> tuple[list[retrieval_accuracy.Case], Any]:
    rows = version.read(["id", "image"])
    named = name_images(judge_images.small_images(rows["image"].to_pylist()))
    return retrieval_accuracy.select_cases(cases, rows["id"].to_pylist()), named


JOB = Job(name="evaluate", summary=__doc__, config=EvaluateConfig, plan=plan, result=result, run=run, survey=survey)

if __name__ == "__main__":
    leave(main(JOB))
