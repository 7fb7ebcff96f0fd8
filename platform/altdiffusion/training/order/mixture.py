"""From a run's datasets to the parts of its order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from altdiffusion.storage.dataset import Version
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.order.batches import BucketOrder, Order, Part
from altdiffusion.training.order.language_rows import rows_by_language
from altdiffusion.training.order.run_key import RunKey


@dataclass(frozen=True, kw_only=True)
class Source:
    """What one part of an order draws from: the rows of some versions, numbered in sequence."""

    versions: tuple[Version, ...]
    rows: int
    language: str | None = None
    """Only the rows in this language, numbered among themselves; None is all rows."""

    @property
    def name(self) -> str:
        """Return its name for people."""
        names = " + ".join(version.ref.name for version in self.versions)
        return names if self.language is None else f"{names} ({self.language})"


def groups_of(config: TrainConfig, versions: Sequence[Version]) -> list[tuple[Version, ...]]:
    """Return groups of versions that are drawn from separately: one per dataset where datasets have weights or are
    buckets; else one group of all, row after row."""
    apart = config.datasets[0].weight is not None or config.order.buckets
    return [(version,) for version in versions] if apart else [tuple(versions)]


def sources_of(config: TrainConfig, versions: Sequence[Version]) -> list[Source]:
    """Return what each part of the order draws from: a part per group, or per language of a group."""
    return [source for group in groups_of(config, versions) for source in _sources(config, group)]


def make_order(config: TrainConfig, versions: Sequence[Version], key: RunKey | None = None) -> Order:
    """Return the order of a run: which row of which part is at each position. It needs manifests only.

    Args:
        key: the run's key; by default that of a new run of this config.
    """
    key = key or RunKey.of(config)
    groups = groups_of(config, versions)
    weights = [config.datasets[number].weight for number in range(len(groups))]
    if config.order.buckets:
        each = [_order(config, key, _parts(config, group, 1.0)) for group in groups]
        shares = [float(sum(v.rows for v in g)) if w is None else w for g, w in zip(groups, weights, strict=True)]
        return BucketOrder(each, shares, seed=key.seed(config.seed), mixed_draws=key.format == 1)
    return _order(
        config, key, [part for g, w in zip(groups, weights, strict=True) for part in _parts(config, g, w if w else 1.0)]
    )


def _order(config: TrainConfig, key: RunKey, parts: Sequence[Part]) -> Order:
    return Order(
        parts,
        seed=key.seed(config.seed),
        global_batch=config.global_batch,
        chunk_rows=config.order.chunk_rows,
        window_chunks=config.order.window_chunks,
        mixed_draws=key.format == 1,
    )


def _sources(config: TrainConfig, group: tuple[Version, ...]) -> list[Source]:
    if config.order.language_temperature is None:
        return [Source(versions=group, rows=sum(version.rows for version in group))]
    return [Source(versions=group, rows=rows, language=language) for language, rows in rows_by_language(group).items()]


def chunk_rows_of(config: TrainConfig, rows: int, of_all: int) -> int:
    """Return the rows per chunk of a language: what a chunk of all languages holds of it on average."""
    return max(1, round(config.order.chunk_rows * rows / of_all))


def _parts(config: TrainConfig, group: tuple[Version, ...], weight: float) -> list[Part]:
    """Return the parts of a group, which together have its weight.

    Languages have shares proportional to rows ** (1 / T) (multilingual BERT's and XLM's exponential smoothing: Conneau
    and Lample, "Cross-lingual language model pretraining", 2019, section 3.1, with alpha = 1 / T). A window of all
    languages takes the memory of one of the dataset, because a language's chunks are smaller.
    """
    sources = _sources(config, group)
    digest = "+".join(version.ref.digest for version in group)
    temperature = config.order.language_temperature
    if temperature is None:
        return [Part(digest=digest, rows=sources[0].rows, weight=weight)]
    rows = sum(source.rows for source in sources)
    heat = [(source.rows / rows) ** (1.0 / temperature) for source in sources]
    return [
        Part(
            digest=f"{digest}#{source.language}",
            rows=source.rows,
            weight=weight * share / sum(heat),
            chunk_rows=chunk_rows_of(config, source.rows, rows),
        )
        for source, share in zip(sources, heat, strict=True)
    ]
