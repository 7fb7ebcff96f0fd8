"""The plan of a campaign: needs, nodes, hours, money, downloads, failures, scale."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.capacity import room
from pipelines.campaign.needs import Need, needs_of, with_workers
from pipelines.campaign.order import Thing, ordered, read_jobs
from pipelines.campaign.prices import PricesConfig, tiered

HOURS_PER_MONTH = 730.0
COUNTS = (8, 16, 32, 64, 128, 256, 512)
RELEASED = 2022 + 2 / 12
"""When LAION-5B was released, 31 March 2022."""
PUBLISHED_DAYS = {"alignment": (330_000, 3072, 8), "quality": (270_000, 3840, 7), "guidance": (150_000, 3840, 4)}
"""Steps, global batch and days on 64 A100 of the published stages (arXiv 2308.09991)."""


@dataclass(frozen=True, kw_only=True)
class Priced:
    """A need with its nodes and what they cost."""

    need: Need
    kind: str
    """Kind of node."""
    nodes: int
    money: float | None
    """None where the hours are not known."""


@dataclass(frozen=True, kw_only=True)
class ScalePoint:
    """One run on a number of GPUs."""

    gpus: int
    days: float
    goodput: float
    failures: float
    money: float


@dataclass(frozen=True, kw_only=True)
class PublishedStage:
    """A stage of the published recipe, in days."""

    stage: str
    published: float
    steps: float
    """The steps alone, at the config's rate."""
    checkpoints: float
    """What stops for checkpoints add."""
    failures: float
    """What failures add: restarts, and steps that are done again."""

    @property
    def planned(self) -> float:
        """All of it."""
        return self.steps + self.checkpoints + self.failures


@dataclass(frozen=True, kw_only=True)
class LinkYear:
    """A download in the middle of one year."""

    year: int
    success: float
    fetched_tb: float
    stored_tb: float
    gigabits_per_s: float


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """The whole plan."""

    prices: PricesConfig
    parts: Sequence[Priced]
    given: Sequence[Thing]
    """Datasets that are read and that no job makes."""
    storage: float
    """Money for what is stored, from the end of the part that makes it to the end of the campaign."""
    storage_per_month: float
    """Money for all of it, per month that it is kept."""
    egress: float
    scale: dict[str, list[ScalePoint]]
    """By run."""

    @property
    def hours(self) -> float:
        """The parts one after the other, as far as they are estimated."""
        return sum(part.need.hours or 0.0 for part in self.parts)

    @property
    def head(self) -> float:
        """Money for the head."""
        return self.hours * self.prices.nodes[self.prices.head].per_hour

    @property
    def money(self) -> float:
        """All money, as far as it is estimated."""
        return sum(part.money or 0.0 for part in self.parts) + self.head + self.storage + self.egress

    @property
    def stored_tb(self) -> float:
        """Terabytes at the end."""
        return sum(part.need.stored_tb for part in self.parts)

    @property
    def egress_tb(self) -> float:
        """Terabytes that leave the region."""
        return sum(part.need.egress_tb for part in self.parts)

    @property
    def unknown(self) -> list[Need]:
        """The parts whose hours are not known."""
        return [part.need for part in self.parts if part.need.hours is None]

    @property
    def downloads(self) -> list[Need]:
        """The parts that fetch from the web."""
        return [part.need for part in self.parts if part.need.download is not None]

    @property
    def published(self) -> list[PublishedStage]:
        """The stages of the published recipe among the runs."""
        return [stage for part in self.parts for stage in _published(part.need)]


def plan_campaign(patterns: Sequence[str], prices: PricesConfig, there: Collection[str] = ()) -> Campaign:
    """Return the plan of the jobs of some configs.

    Nothing is read but the configs, and of a lake on this machine what the training's dry run reads too.

    Args:
        patterns: config files, or patterns of them.
        there: names of runs and datasets that the lake already has.

    Raises:
        AltDiffusionError: a config is wrong, or they do not fit together.
    """
    jobs, given = ordered(read_jobs(patterns), there)
    parts = [_priced(need, prices) for need in needs_of(jobs)]
    whole = sum(part.need.hours or 0.0 for part in parts)
    stored = storage = done = 0.0
    for part in parts:
        done += part.need.hours or 0.0
        before = tiered(prices.storage, stored)
        stored += part.need.stored_tb
        storage += (tiered(prices.storage, stored) - before) * (whole - done) / HOURS_PER_MONTH
    return Campaign(
        prices=prices,
        parts=parts,
        given=given,
        storage=storage,
        storage_per_month=tiered(prices.storage, stored),
        egress=tiered(prices.egress, sum(part.need.egress_tb for part in parts)),
        scale={part.need.job.name: _scale(part, prices) for part in parts if part.need.training is not None},
    )


def _priced(need: Need, prices: PricesConfig) -> Priced:
    try:
        kind = prices.node_for(need.resources)
    except AltDiffusionError as error:
        raise AltDiffusionError(f"config {need.job.file}: {error.what}", error.problem, error.remedy) from None
    nodes = _nodes(need.count, need, kind, prices)
    money = None if need.hours is None else nodes * need.hours * prices.nodes[kind].per_hour
    return Priced(need=need, kind=kind, nodes=nodes, money=money)


def _nodes(count: int, need: Need, kind: str, prices: PricesConfig) -> int:
    return math.ceil(count / room(need.resources, [prices.nodes[kind].has]))


def _scale(part: Priced, prices: PricesConfig) -> list[ScalePoint]:
    """Return the run on 8 to 512 GPUs, at most one per image of the batch."""
    need, node = part.need, prices.nodes[part.kind]
    training = need.training
    assert training is not None
    found = []
    for count in COUNTS:
        if count > training.config.train.global_batch:
            break
        _, simulated = with_workers(need, count, node.network_gbit_s, node.gpus)
        nodes = _nodes(count, need, part.kind, prices)
        found.append(
            ScalePoint(
                gpus=count,
                days=simulated.total_s / 86400,
                goodput=simulated.goodput,
                failures=simulated.failures,
                money=nodes * simulated.total_s / 3600 * node.per_hour,
            )
        )
    return found


def _published(need: Need) -> list[PublishedStage]:
    training = need.training
    if training is None:
        return []
    train = training.config.train
    steps, batch, days = PUBLISHED_DAYS.get(train.stage, (0, 0, 0))
    if (train.steps, train.global_batch) != (steps, batch):
        return []
    model, found = training.model, training.simulated
    checkpoints = model.useful_s / model.interval_s * model.stall_s
    return [
        PublishedStage(
            stage=train.stage,
            published=days,
            steps=model.useful_s / 86400,
            checkpoints=checkpoints / 86400,
            failures=(found.total_s - model.useful_s - checkpoints) / 86400,
        )
    ]


def success_by_year(need: Need, first: int, last: int) -> list[LinkYear]:
    """Return what a download finds in the middle of each year, if links die at a constant rate since their release."""
    given = need.download
    assert given is not None
    found = []
    for year in range(first, last + 1):
        alive = min(1.0, (1 - given.link_rot_per_month) ** (12 * (year + 0.5 - RELEASED)))
        share = alive / given.success if given.success else 0.0
        found.append(
            LinkYear(
                year=year,
                success=alive,
                fetched_tb=given.fetched_tb * share,
                stored_tb=given.stored_tb * share,
                gigabits_per_s=given.gigabits_per_s(need.count) * share,
            )
        )
    return found
