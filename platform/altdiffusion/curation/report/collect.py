"""The facts of the report, read from manifests and, where those do not hold them, from samples of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config.report import ReportConfig
from altdiffusion.curation.rejects import LANGUAGE, withheld
from altdiffusion.curation.report import measures
from altdiffusion.curation.report.chain import Chain, Step, read_chain
from altdiffusion.curation.report.duplicate_pairs import Pair, duplicate_pairs
from altdiffusion.curation.report.gallery import Gallery, choose_images
from altdiffusion.curation.report.hosts import Hosts, count_hosts
from altdiffusion.curation.report.measures import Distribution
from altdiffusion.curation.report.sample import Sample, accepted, keyed_order, read_sample, rejected
from altdiffusion.curation.scoring.scored import check_scores, measured
from altdiffusion.errors import AltDiffusionError
from altdiffusion.languages import BY_CODE, CODES
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.removal import after_takedowns
from altdiffusion.tally import MEASURES

OTHER = "other"
UNLABELLED = "none"
_PAIRS = 8  # disagreements and foreign guesses shown


@dataclass(frozen=True, kw_only=True)
class LanguageRow:
    """One language from step to step; `labelled` and `agreement` are None where the source brings no labels."""

    code: str
    labelled: float | None
    """Selected rows that the source labels as this language (an estimate where sampled)."""
    selected: int
    distinct: int
    kept: int
    agreement: float | None
    """The share of rows that the source labels as this language, among those that we decided are of it and that the
    source labels with any configured language."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The source's labels compared with our decisions, among the selected rows."""

    rows: tuple[LanguageRow, ...]
    other: float
    """Selected rows whose label is not one of the configured languages."""
    unlabelled: float
    agreement: float | None
    disagreements: tuple[tuple[str, str, float], ...]
    """(label, decision, rows), most first."""
    sample: Sample | None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Distributions that were read together."""

    title: str
    about: str
    distributions: tuple[Distribution, ...]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A rejected row."""

    url: str | None
    language: str | None
    detail: str | None


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """Examples of what a step rejected, by reason; none for a reason that is withheld."""

    step: Step
    examples: Mapping[str, tuple[Example, ...]]
    pairs: Mapping[str, tuple[Pair, ...]]
    """Dropped duplicates with what they duplicate, by reason."""
    sample: Sample


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the report is made from."""

    name: str
    config: ReportConfig
    images: Version
    scores: Version | None
    chain: Chain
    labels: Labels
    foreign: tuple[tuple[str, float], ...]
    """Rows rejected for their language, by the language that was guessed, most first."""
    panels: tuple[Panel, ...]
    verdicts: tuple[tuple[str, float], ...]
    """Images by their hash verdict, where the source brings hashes."""
    profiles: tuple[tuple[str, float], ...]
    """Images that state their colours, by what became of that (IMAGES, `color_profile`)."""
    hosts: Hosts | None
    gallery: Gallery
    rejected: tuple[Rejected, ...]


def collect(lake: Lake, images: Version, config: ReportConfig, name: str, scores: Version | None = None) -> Facts:
    """Read the facts of `images`, or of the version that replaces it since rows were taken down.

    Raises:
        AltDiffusionError: `images` is not a version of images, `scores` are those of others, or a file is missing or
            damaged.
    """
    images = after_takedowns(lake.dataset(images.ref.name), images)
    if images.manifest.kind != "images":
        raise AltDiffusionError(
            images.ref.short, f"holds {images.manifest.kind}, not images", "name a dataset of images"
        )
    if scores is not None:
        check_scores(scores, images, ())
    chain = read_chain(lake, images)
    downloaded = chain.last("retry", "download")
    gallery = choose_images(images, config, scores)
    panels, stated = _panels(chain, images, gallery, config, scores)
    dropped = tuple(_examples(lake, chain, step, config) for step in chain.final_steps if step.dropped)
    return Facts(
        name=name,
        config=config,
        images=images,
        scores=scores,
        chain=chain,
        labels=_labels(chain, images, config),
        foreign=_foreign(dropped),
        panels=panels,
        verdicts=stated["hash_verdict"],
        profiles=stated["color_profile"],
        hosts=count_hosts(downloaded.version, sample_rows=config.sample_rows, shown=config.hosts)
        if downloaded is not None
        else None,
        gallery=gallery,
        rejected=dropped,
    )


def configured_languages(chain: Chain) -> tuple[str, ...]:
    """Return the languages of the config, in the order used everywhere; those that occur, where it is not known."""
    select = chain.last("select")
    given: Any = select.version.manifest.config.get("language", {}) if select is not None else {}
    known = set(given.get("languages", ())) or {code for step in chain.steps for code in _by_language(step)}
    return (*(code for code in CODES if code in known), *sorted(known - set(CODES)))


def language_name(code: str) -> str:
    """Return a language's name in English; the code itself for a language that is not one of the 18."""
    return BY_CODE[code].name if code in BY_CODE else code


def _by_language(step: Step | None) -> Mapping[str, int]:
    return step.version.manifest.rows_by_language if step is not None else {}


def _labels(chain: Chain, images: Version, config: ReportConfig) -> Labels:
    languages = configured_languages(chain)
    select = chain.last("select")
    sample = (
        read_sample(accepted(select.version), ["source_language", "language"], config.sample_rows)
        if select is not None
        else None
    )
    pairs: dict[tuple[str, str], int] = {}
    if sample is not None and sample.rows:
        label = pc.fill_null(sample.table["source_language"].cast(pa.string()), UNLABELLED)
        table = pa.table({"label": label, "decision": sample.table["language"]})
        for entry in table.group_by(["label", "decision"]).aggregate([([], "count_all")]).to_pylist():
            pairs[entry["label"], entry["decision"]] = entry["count_all"]
    scale = sample.scale if sample is not None else 0.0
    labelled = any(label != UNLABELLED for label, _ in pairs)

    def rows(label: str | None = None, decision: str | None = None) -> int:
        return sum(n for (one, other), n in pairs.items() if label in (None, one) and decision in (None, other))

    def agreement(code: str | None) -> float | None:
        compared = sum(rows(label, code) for label in languages)
        same = sum(rows(one, one) for one in ([code] if code is not None else languages))
        return same / compared if compared else None

    different = [
        (label, code, n * scale) for (label, code), n in pairs.items() if label not in (code, UNLABELLED) and n
    ]
    links = chain.last("balance", "deduplicate")
    return Labels(
        rows=tuple(
            LanguageRow(
                code=code,
                labelled=rows(label=code) * scale if labelled else None,
                selected=_by_language(select).get(code, 0),
                distinct=_by_language(links).get(code, 0),
                kept=images.manifest.rows_by_language.get(code, 0),
                agreement=agreement(code),
            )
            for code in languages
        ),
        other=sum(n for (label, _), n in pairs.items() if label not in languages and label != UNLABELLED) * scale,
        unlabelled=rows(label=UNLABELLED) * scale,
        agreement=agreement(None),
        disagreements=tuple(sorted(different, key=lambda entry: (-entry[2], entry[:2]))[:_PAIRS]),
        sample=sample,
    )


def _panels(
    chain: Chain, images: Version, gallery: Gallery, config: ReportConfig, scores: Version | None
) -> tuple[tuple[Panel, ...], dict[str, tuple[tuple[str, float], ...]]]:
    """Return the panels, and the images by each value of the columns `_STATED`, most first."""
    panels = []
    links = chain.last("deduplicate")
    if links is not None:
        counts, rows = links.version.manifest.tally, links.version.rows
        if counts:
            about = f"All {rows:,} distinct links, as the source states; medians are read from bins"
            found = measures.of_tally(counts)
        else:
            columns = [name for name in ("width", "height", *MEASURES) if name not in _DERIVED]
            sample = read_sample(accepted(links.version), columns, config.sample_rows)
            about, found = (
                f"{sample.extent} distinct links, as the source states",
                measures.of_rows(sample.table, MEASURES),
            )
        panels.append(Panel(title="Links", about=about, distributions=tuple(found)))
    sample = read_sample(accepted(images), [*measures.IMAGE_COLUMNS, *_STATED], config.sample_rows)
    about = f"{sample.extent} images"
    if gallery.looked_at < images.rows:
        about += f"; bytes of {gallery.looked_at:,} of them"
    found = [*measures.of_rows(sample.table, measures.IMAGES), gallery.stored_bytes]
    panels.append(Panel(title="Images", about=about, distributions=tuple(found)))
    stated = {name: _counts(sample, name) for name in _STATED}
    if scores is not None:
        wanted = {name: how for name, how in measures.SCORES.items() if name in measured(scores)}
        sample = read_sample(accepted(scores), list(wanted), config.sample_rows)
        found = measures.of_rows(sample.table, wanted)
        panels.append(Panel(title="Scores", about=f"{sample.extent} scored images", distributions=tuple(found)))
    return tuple(panels), stated


def _counts(sample: Sample, name: str) -> tuple[tuple[str, float], ...]:
    counts = pc.value_counts(sample.table[name].cast(pa.string()).drop_null()).to_pylist()
    found = [(entry["values"], entry["counts"] * sample.scale) for entry in counts]
    return tuple(sorted(found, key=lambda entry: (-entry[1], entry[0])))


_STATED = ("hash_verdict", "color_profile")
_DERIVED = ("short_side", "aspect")  # measures that are not columns


def _examples(lake: Lake, chain: Chain, step: Step, config: ReportConfig) -> Rejected:
    account = chain.account(step)
    version = after_takedowns(lake.dataset(account.ref.name), account)
    columns = ["sample_id", "row", "url", "language", "reason", "detail"]
    sample = read_sample(rejected(version), columns, config.sample_rows)
    ids = pc.coalesce(sample.table["sample_id"], sample.table["row"]).to_numpy(zero_copy_only=False)
    place = keyed_order(f"{step.version.ref.digest}:examples", ids)
    examples: dict[str, tuple[Example, ...]] = {}
    for reason in step.reasons:
        rows = np.flatnonzero(
            pc.and_(pc.equal(sample.table["reason"], reason), sample.table["url"].is_valid()).to_numpy()
        )
        rows = rows[np.argsort(place[rows])][: 0 if withheld(reason) else config.examples]
        shown = sample.table.select(["url", "language", "detail"]).take(pa.array(rows)).to_pylist()
        examples[reason] = tuple(Example(**row) for row in shown)
    pairs = duplicate_pairs(lake, step, config) if step.name == "distinct" else {}
    return Rejected(step=step, examples=examples, pairs=pairs, sample=sample)


def _foreign(dropped: tuple[Rejected, ...]) -> tuple[tuple[str, float], ...]:
    found: dict[str, float] = {}
    for part in dropped:
        if part.step.name == "select" and part.sample.rows:
            mask = pc.equal(part.sample.table["reason"], LANGUAGE)
            guesses = pc.value_counts(part.sample.table["language"].filter(mask).cast(pa.string()).drop_null())
            found.update({entry["values"]: entry["counts"] * part.sample.scale for entry in guesses.to_pylist()})
    return tuple(sorted(found.items(), key=lambda entry: (-entry[1], entry[0])))
