"""A plan for people, as text or Markdown, and for programs, as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from altdiffusion.execution.capacity import named
from altdiffusion.training.estimate.goodput import best_interval_s
from pipelines.campaign.plan import Campaign, success_by_year

FIRST_YEAR, LAST_YEAR = 2022, 2027


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table with a heading, and sentences below it."""

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()


def text(campaign: Campaign) -> str:
    """Return the plan for a terminal."""
    return "\n\n".join("\n".join(_text(section)) for section in _sections(campaign)) + "\n"


def markdown(campaign: Campaign) -> str:
    """Return the plan as Markdown."""
    return "# Plan\n\n" + "\n\n".join("\n".join(_markdown(section)) for section in _sections(campaign)) + "\n"


def as_json(campaign: Campaign) -> dict[str, Any]:
    """Return the plan as plain values."""
    return {
        "currency": campaign.prices.currency,
        "prices": {"date": campaign.prices.date, "source": campaign.prices.source},
        "unknown": [f"{need.part} of {need.job.name}" for need in campaign.unknown],
        "total": {
            "hours": campaign.hours,
            "money": campaign.money,
            "head": campaign.head,
            "storage": campaign.storage,
            "storage_per_month": campaign.storage_per_month,
            "egress": campaign.egress,
            "stored_tb": campaign.stored_tb,
            "egress_tb": campaign.egress_tb,
        },
        "parts": [
            {
                "job": part.need.job.kind,
                "run": part.need.job.name,
                "config": part.need.job.file,
                "part": part.need.part,
                "workers": part.need.count,
                "worker": named(part.need.resources),
                "node": part.kind,
                "nodes": part.nodes,
                "hours": part.need.hours,
                "missing": part.need.missing or None,
                "money": part.money,
                "stored_tb": part.need.stored_tb,
                "failures": part.need.training.simulated.failures if part.need.training else None,
                "goodput": part.need.training.simulated.goodput if part.need.training else None,
                "assumed": part.need.figures,
                "source": part.need.source,
            }
            for part in campaign.parts
        ],
        "downloads": [
            asdict(year) for need in campaign.downloads for year in success_by_year(need, FIRST_YEAR, LAST_YEAR)
        ],
        "published": [{**asdict(stage), "planned": stage.planned} for stage in campaign.published],
        "scale": {run: [asdict(point) for point in points] for run, points in campaign.scale.items()},
        "taken_as_there": [f"{kind} {name}" for kind, name in campaign.given],
        "assumptions": [dict(zip(("of", "what", "source"), row, strict=True)) for row in _assumptions(campaign)],
    }


def _sections(campaign: Campaign) -> Iterator[Section]:
    yield _parts(campaign)
    yield _money(campaign)
    if campaign.downloads:
        yield _downloads(campaign)
    if campaign.scale:
        yield _failures(campaign)
        yield _scale(campaign)
    if campaign.published:
        yield _published(campaign)
    yield Section(
        title="Assumptions",
        columns=("of", "what", "source"),
        rows=list(_assumptions(campaign)),
        notes=[f"Taken as there: {kind} {name}." for kind, name in campaign.given],
    )


def _parts(campaign: Campaign) -> Section:
    cash = campaign.prices.currency
    rows = [
        (
            part.need.job.name,
            part.need.part,
            f"{part.need.count:,} x {named(part.need.resources)}",
            f"{part.nodes:,} {part.kind}",
            "unknown" if part.need.hours is None else f"{part.need.hours:,.1f}",
            "unknown" if part.money is None else f"{part.money:,.0f}",
            f"{part.need.stored_tb:,.2f}",
        )
        for part in campaign.parts
    ]
    rows.append(
        (
            _all(campaign),
            "one after the other",
            "",
            "",
            f"{campaign.hours:,.1f}",
            f"{sum(part.money or 0 for part in campaign.parts):,.0f}",
            f"{campaign.stored_tb:,.2f}",
        )
    )
    return Section(
        title="Jobs",
        columns=("run", "part", "workers", "nodes", "hours", cash, "TB stored"),
        rows=rows,
        notes=[
            f"Unknown: {need.part} of {need.job.name}; give {need.missing} in {need.job.file}."
            for need in campaign.unknown
        ],
    )


def _all(campaign: Campaign) -> str:
    return "all that is known" if campaign.unknown else "all"


def _money(campaign: Campaign) -> Section:
    cash = campaign.prices.currency
    nodes: dict[str, float] = {}
    for part in campaign.parts:
        nodes[part.kind] = nodes.get(part.kind, 0.0) + (part.money or 0.0)
    hours = {
        kind: sum(part.nodes * (part.need.hours or 0) for part in campaign.parts if part.kind == kind) for kind in nodes
    }
    rows = [
        (
            f"nodes {kind}",
            f"{hours[kind]:,.0f} node-hours of {campaign.prices.nodes[kind].instance}",
            f"{money:,.0f}",
        )
        for kind, money in nodes.items()
    ]
    rows += [
        ("head", f"{campaign.hours:,.0f} hours of {campaign.prices.nodes[campaign.prices.head].instance}",
         f"{campaign.head:,.0f}"),
        ("storage", f"{campaign.stored_tb:,.1f} TB, until the campaign ends", f"{campaign.storage:,.0f}"),
        ("egress", f"{campaign.egress_tb:,.2f} TB: an export per run, all generated images", f"{campaign.egress:,.0f}"),
        (_all(campaign), f"{campaign.hours / 24:,.1f} days", f"{campaign.money:,.0f}"),
    ]  # fmt: skip
    return Section(
        title="Money",
        columns=("what", "how much", cash),
        rows=rows,
        notes=[f"To keep everything afterwards costs {campaign.storage_per_month:,.0f} {cash} per month."],
    )


def _downloads(campaign: Campaign) -> Section:
    rows, notes = [], []
    for need in campaign.downloads:
        given = need.download
        assert given is not None and need.hours is not None
        rows.append(
            (
                need.job.name,
                "as configured",
                f"{given.success:.0%}",
                f"{given.fetched_tb:,.0f}",
                f"{given.stored_tb:,.0f}",
                f"{given.gigabits_per_s(need.count):,.1f}",
            )
        )
        rows += [
            (
                need.job.name,
                f"in {one.year}",
                f"{one.success:.0%}",
                f"{one.fetched_tb:,.0f}",
                f"{one.stored_tb:,.0f}",
                f"{one.gigabits_per_s:,.1f}",
            )
            for one in success_by_year(need, FIRST_YEAR, LAST_YEAR)
        ]
        notes.append(
            f"{need.job.name}: {given.links:,} links in {need.hours / 24:,.1f} days. The years assume that "
            f"{given.link_rot_per_month:.1%} of the links die per month since LAION-5B's release (March 2022); the "
            "plan's money and terabytes are those of the configured share."
        )
    return Section(
        title="Downloads",
        columns=("run", "download", "links alive", "TB fetched", "TB stored", "Gbit/s"),
        rows=rows,
        notes=notes,
    )


def _failures(campaign: Campaign) -> Section:
    rows = []
    for part in campaign.parts:
        training = part.need.training
        if training is None:
            continue
        model, found = training.model, training.simulated
        rows.append(
            (
                part.need.job.name,
                f"{model.mean_s / 3600:,.0f} h",
                f"{found.failures:.1f}",
                f"{found.goodput:.2%}",
                f"{found.low:.1%} to {found.high:.1%}",
                f"{found.lost_s / 3600:.1f}",
                f"{model.interval_s / 60:.1f} min",
                f"{max(best_interval_s(model.stall_s, model.mean_s), model.write_s) / 60:.1f} min",
            )
        )
    return Section(
        title="Failures",
        columns=(
            "run", "one per", "expected", "goodput", "in 90 of 100 runs", "hours computed twice", "checkpoint every",
            "least loss at",
        ),
        rows=rows,
        notes=["Goodput is simulated (1,000 keyed trials); the best interval is Daly's (2006)."],
    )  # fmt: skip


def _scale(campaign: Campaign) -> Section:
    rows = [
        (
            run,
            f"{point.gpus:,}",
            f"{point.days:,.1f}",
            f"{point.goodput:.1%}",
            f"{point.failures:.1f}",
            f"{point.money:,.0f}",
        )
        for run, points in campaign.scale.items()
        for point in points
    ]
    return Section(
        title="Scale",
        columns=("run", "GPUs", "days", "goodput", "failures", campaign.prices.currency),
        rows=rows,
        notes=[
            "The same steps on other numbers of GPUs: ceil(batch / GPUs) images each, gradients exchanged in a ring "
            "of nodes without overlap. Where the batch does not divide, a run needs another batch. Whether the memory "
            "of a GPU suffices is not looked at."
        ],
    )


def _published(campaign: Campaign) -> Section:
    rows = [
        (
            stage.stage,
            f"{stage.published:g}",
            f"{stage.steps:.2f}",
            f"{stage.checkpoints:.3f}",
            f"{stage.failures:.2f}",
            f"{stage.planned:.2f}",
            f"{stage.planned - stage.published:+.2f}",
        )
        for stage in campaign.published
    ]
    return Section(
        title="Against the published days",
        columns=("stage", "published days", "steps alone", "+ checkpoints", "+ failures", "planned", "difference"),
        rows=rows,
        notes=[
            "Where a config's rate is that of the published run, which its days give, the steps alone are the "
            "published days but for rounding; the difference is checkpoints, restarts and repeated steps, of which "
            "the paper states nothing.",
            "The released guidance config starts from step 45,000 = 270,000 / 6, so the published steps may be "
            "micro-batches of 640 images; the plan reads them as updates of the global batch.",
        ],
    )


def _assumptions(campaign: Campaign) -> Iterator[tuple[str, str, str]]:
    prices = campaign.prices
    for part in campaign.parts:
        yield f"{part.need.job.name}, {part.need.part}", part.need.figures, part.need.source
        training = part.need.training
        if training is not None and training.config.samples is not None:
            yield (
                part.need.job.name,
                "samples drawn during training, and their GPU, are not counted",
                "their rate is not stated",
            )
        if part.need.job.kind == "curate" and part.need.part == "download":
            yield part.need.job.name, "retries and the search for near duplicates are not counted", "not measured"
    for need in campaign.downloads:
        assert need.download is not None
        yield (
            f"{need.job.name}, download",
            f"{need.download.link_rot_per_month:.1%} of the links die per month",
            'assumed; compare "Link-Rot in Web-Sourced Multimedia Datasets" (MMM 2023): more than 20 % of 270 million '
            "links of 24 datasets were gone",
        )
    for kind, node in prices.nodes.items():
        yield (
            f"node {kind}",
            f"{node.instance}: {node.per_hour:g} {prices.currency} per hour",
            f"prices of {prices.date}: {prices.source}",
        )
    yield "pools", "each has its largest number of workers all the time, and parts run one after the other", "the plan"
    yield "requests to the store, addresses, logs", "are not counted", "the plan"


def _text(section: Section) -> Iterator[str]:
    yield section.title
    widths = [max(len(row[n]) for row in (section.columns, *section.rows)) for n in range(len(section.columns))]
    if section.title == "Assumptions":
        for of, what, source in section.rows:
            yield f"  {of}: {what} [{source}]"
    else:
        for row in (section.columns, *section.rows):
            yield (
                "  "
                + "  ".join(
                    cell.rjust(width) if _is_number(cell) else cell.ljust(width)
                    for cell, width in zip(row, widths, strict=True)
                ).rstrip()
            )
    yield from (f"  {note}" for note in section.notes)


def _markdown(section: Section) -> Iterator[str]:
    yield f"## {section.title}\n"
    if section.columns:
        yield f"| {' | '.join(section.columns)} |"
        yield f"|{'---|' * len(section.columns)}"
        yield from (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in section.rows)
    for note in section.notes:
        yield f"\n{note}"


def _is_number(cell: str) -> bool:
    return cell == "unknown" or cell.strip("+-%").replace(",", "").replace(".", "", 1).isdigit()
