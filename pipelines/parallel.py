"""Parallel texts: corpora -> candidates (checked pairs) -> pairs with token ids [and pairs held out]."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from altdiffusion.config import operational, semantic
from altdiffusion.constraints import DATASET_NAME, Invalid
from altdiffusion.curation.config import CorpusConfig, IdsConfig, LanguageConfig, PairsConfig
from altdiffusion.curation.parallel.corpus import Corpus, plan_corpora, scan_corpus
from altdiffusion.curation.parallel.pair_tokens import EncodePairsWork
from altdiffusion.curation.parallel.pair_work import PairsWork
from altdiffusion.curation.parts import find_parts
from altdiffusion.diffusion.pinned_files import folder_digest
from altdiffusion.execution.pipeline_step import PipelineStep
from altdiffusion.execution.ranges import plan_buckets
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from pipelines.common import (
    JobConfig,
    Plan,
    Survey,
    Workers,
    device_conflicts,
    look_at,
    make_pipeline_step,
    not_looked_at,
    units_line,
)
from pipelines.encode import model_name
from pipelines.estimates import WorkEstimateConfig, work_line
from pipelines.languages import look_at_languages


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig(JobConfig):
    """`jobs/parallel.py`."""

    name: str = operational("parallel")
    """Name of the run in MLflow."""
    corpora: tuple[CorpusConfig, ...]
    """Corpora to read. Among equal pairs, the one from the corpus that is listed first is kept."""
    filter: PairsConfig = PairsConfig()
    language: LanguageConfig = LanguageConfig()
    ids: IdsConfig
    pairs: Annotated[str, DATASET_NAME] = "pairs"
    """Name of the dataset that the job makes, along with `<name>-candidates` and, if asked for, `<name>-held-out`."""
    workers: Workers = operational(factory=Workers)
    estimate: WorkEstimateConfig = operational(factory=WorkEstimateConfig)
    """What `--dry-run` assumes of the work."""

    def conflicts(self) -> Iterator[Invalid]:
        names = [corpus.name for corpus in self.corpora]
        if not names or len(set(names)) != len(names):
            yield Invalid("corpora", "must be at least one, each with its own name", "name each once")
        unknown = sorted({corpus.language for corpus in self.corpora} - set(self.language.languages))
        if self.filter.check_languages and unknown:
            yield Invalid(
                "language.languages",
                f"does not contain {', '.join(unknown)}, the languages of corpora",
                "add them, or set filter.check_languages to false",
            )
        yield from device_conflicts(self, self.workers, {})

    @property
    def run_name(self) -> str:
        return self.name

    @property
    def candidates(self) -> str:
        return f"{self.pairs}-candidates"

    @property
    def held_out(self) -> str:
        return f"{self.pairs}-held-out"


def pipeline_steps(config: ParallelConfig) -> tuple[PipelineStep, ...]:
    """Return all pipeline steps, in order."""
    filtered = config.filter

    @functools.cache  # the files are read once for parents and units
    def corpora() -> tuple[Corpus, ...]:
        return tuple(scan_corpus(corpus) for corpus in config.corpora)

    first = make_pipeline_step(
        name="pair",
        output=config.candidates,
        settings={
            "corpora": [semantic(corpus) for corpus in config.corpora],
            "filter": {key: value for key, value in semantic(filtered).items() if key != "held_out"},
            "language": semantic(config.language) if filtered.check_languages else None,
        },
        workers=config.workers,
        noun="pairs",
        kind="parallel",
        parents=lambda _: [corpus.ref for corpus in corpora()],
        units=lambda _: plan_corpora(corpora()),
        work=lambda _: PairsWork(
            lake=config.lake,
            dataset=config.candidates,
            corpora={corpus.name: corpus for corpus in config.corpora},
            pairs=filtered,
            language=config.language,
        ),
        when_empty="loosen the filter that rejected most, or check the corpora's columns and languages",
    )
    learned = range(filtered.buckets - filtered.held_out)
    sides = [(config.pairs, learned)]
    if filtered.held_out:
        sides.append((config.held_out, range(len(learned), filtered.buckets)))
    return (first, *(_encode(config, name, chosen) for name, chosen in sides))


def _encode(config: ParallelConfig, name: str, chosen: range) -> PipelineStep:
    ids = config.ids
    folders = ((ids.tokenizer, ids.tokenizer_digest), (ids.teacher_tokenizer, ids.teacher_tokenizer_digest))

    def models() -> list[Ref]:
        return [
            Ref("model", model_name(folder, "tokenizer"), digest or folder_digest(folder)) for folder, digest in folders
        ]

    def parents(lake: Lake) -> Sequence[Ref]:
        return [lake.version(config.candidates).ref, *models()]

    return make_pipeline_step(
        name="encode",
        output=name,
        settings={"ids": semantic(ids), "buckets": [chosen.start, chosen.stop, config.filter.buckets]},
        workers=config.workers,
        noun="pairs",
        kind="parallel",
        parents=parents,
        units=lambda lake: plan_buckets(
            lake.version(config.candidates), config.filter.buckets, *(str(ref) for ref in models()), chosen=chosen
        ),
        work=lambda _: EncodePairsWork(lake=config.lake, dataset=name, ids=ids),
        when_empty="give more pairs, or fewer buckets",
    )


def survey(config: ParallelConfig, remote: bool = False) -> Survey:
    """Return how much there is to read, and whether corpora or tokenizers are missing."""

    def tokenizers(_: Lake) -> list[str]:
        ids = config.ids
        folders = (ids.tokenizer, ids.teacher_tokenizer)
        for folder in folders:
            if remote or files.is_local(folder):
                folder_digest(folder)
        return not_looked_at(folders, remote)

    def languages(_: Lake) -> list[str]:
        return look_at_languages(config.language, remote)

    def corpora(lake: Lake) -> list[str]:
        uris = [uri for corpus in config.corpora for uri in (corpus.uri, corpus.translation_uri) if uri is not None]
        if remote or all(map(files.is_local, uris)):
            return units_line(lake, pipeline_steps(config)[0])
        for corpus in config.corpora:
            for uri in filter(None, (corpus.uri, corpus.translation_uri)):
                if files.is_local(uri):
                    find_parts(uri, f"corpus {corpus.name}")
        return ["corpora  not looked at: not all are on this machine (--remote looks)"]

    more = work_line(config.estimate, config.workers.max)
    return look_at(config.lake, remote, corpora, tokenizers, languages, more=more)


def plan(config: ParallelConfig) -> Plan:
    """Return what the job will do."""
    filtered, ids = config.filter, config.ids
    held = f"{filtered.held_out} of {filtered.buckets} buckets" if filtered.held_out else "none"
    return Plan(
        title=f"pair {', '.join(corpus.name for corpus in config.corpora)}",
        steps=tuple(pipeline_step.describe() for pipeline_step in pipeline_steps(config)),
        facts={
            "languages": " ".join(dict.fromkeys(corpus.language for corpus in config.corpora)),
            "held out": held,
            "token ids": f"{ids.max_length} of {ids.tokenizer}, {ids.teacher_max_length} of {ids.teacher_tokenizer}",
        },
    )
