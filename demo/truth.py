"""The comparison of a curation's result with the truth about the crawl.

    python -m demo.truth --lake URI --dataset latents

Every row of the crawl is followed to its end: accepted (and in which language), or rejected (where, and why). A
planted fault that was not caught for its reason, a good row that was lost and a row that vanished or doubled are
errors. What only the language filter decides is counted per language, not demanded.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.languages import CODES
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Lake, Version
from demo.concepts import OFF_TARGET
from demo.crawl import CERTAIN, truth
from demo.npm import default_cache

_PIPELINE_STEP = {"links": "select", "images": "download", "latents": "encode"}
_SHOWN = 10


@dataclass(frozen=True)
class Outcome:
    """Where a row ended: `reason` is empty and `language` ours if it was accepted."""

    pipeline_step: str
    reason: str
    language: str | None = None

    def __str__(self) -> str:
        return f"rejected as {self.reason} at {self.pipeline_step}" if self.reason else f"accepted as {self.language}"


@dataclass(frozen=True, kw_only=True)
class LanguageCount:
    """Rows of a language whose only open question was the language: how they ended."""

    rows: int
    right: int
    wrong: int
    rejected: int
    accepted_as: int
    """All rows, of any language, that were accepted as this one."""
    right_as: int
    """Those of them that really are."""


@dataclass(frozen=True, kw_only=True)
class ReasonCount:
    """Planted rows of one reason. `masked` ones were rejected earlier, because their language was not certain."""

    planted: int
    caught: int
    masked: int
    missed: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result as numbers; `problems` holds one line per row that ended where it must not."""

    rows: int
    languages: Mapping[str, LanguageCount]
    reasons: Mapping[str, ReasonCount]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{'reason':<22}{'planted':>9}{'caught':>9}{'masked':>9}{'missed':>9}"]
        for reason, planted in self.reasons.items():
            lines.append(f"{reason:<22}{planted.planted:>9}{planted.caught:>9}{planted.masked:>9}{planted.missed:>9}")
        lines.append("")
        lines.append(
            f"{'language':<22}{'rows':>9}{'right':>9}{'wrong':>9}{'rejected':>9}{'recall':>9}{'precision':>11}"
        )
        for code in (code for code in CODES if code in self.languages):
            count = self.languages[code]
            lines.append(
                f"{code:<22}{count.rows:>9}{count.right:>9}{count.wrong:>9}{count.rejected:>9}"
                f"{_ratio(count.right, count.rows):>9}{_ratio(count.right_as, count.accepted_as):>11}"
            )
        off = [self.languages[code] for code in OFF_TARGET if code in self.languages]
        rows, taken = sum(count.rows for count in off), sum(count.wrong for count in off)
        lines.append(f"{len(off)} other languages: {taken} of {rows} rows accepted ({_ratio(taken, rows)})")
        lines.append(f"{self.rows:,} rows of the crawl, {len(self.problems)} against the truth")
        return "\n".join(lines)


def compare(lake: Lake, datasets: str | Sequence[str], cache: Path | None = None, crawl: str = "crawl") -> Comparison:
    """Print the comparison and return it.

    Args:
        lake: where the datasets are.
        datasets: the last dataset of the chain (name or reference), or several that share the crawl between them.
        cache: the demo's cache folder, which holds the truth.
        crawl: the crawl's name below it.

    Raises:
        AltDiffusionError: a planted fault was not caught, a good row was lost, or rows vanished or doubled.
    """
    result = examine(lake, datasets, cache, crawl)
    print(result, flush=True)
    if result.problems:
        shown = "; ".join(result.problems[:_SHOWN])
        more = len(result.problems) - _SHOWN
        raise AltDiffusionError(
            f"curation result {datasets}",
            f"differs from the truth in {len(result.problems)} rows: {shown}"
            + (f"; and {more} more" if more > 0 else ""),
            "look at the rejects of these rows; the thresholds that the truth assumes are in demo/crawl.py",
        )
    return result


def examine(lake: Lake, datasets: str | Sequence[str], cache: Path | None = None, crawl: str = "crawl") -> Comparison:
    """Return the comparison alone."""
    names = [datasets] if isinstance(datasets, str) else list(datasets)
    ends = [lake.version(name) for name in names]
    facts = truth(cache or default_cache(), crawl).to_pylist()
    outcomes, problems = _assign(facts, _outcomes(lake, ends))
    problems += _wrong_sizes(lake, ends, facts)
    tallies: dict[str, Counter[str]] = defaultdict(Counter)  # language or reason -> how its rows ended
    accepted_as: Counter[str] = Counter()
    right_as: Counter[str] = Counter()
    for fact, outcome in zip(facts, outcomes, strict=True):
        if outcome is None:
            continue
        verdict = _judge(fact, outcome)
        if verdict in ("missed", "lost"):
            problems.append(f"{fact['url']} ({fact['kind']}, {fact['language']}): {outcome}, not {fact['expected']}")
        open_question = fact["expected"] in ("accept", "language?")
        tallies[f"language {fact['language']}" if open_question else f"reason {fact['expected']}"][verdict] += 1
        if not outcome.reason:
            accepted_as[str(outcome.language)] += 1
            right_as[str(outcome.language)] += outcome.language == fact["language"]
    languages = {
        code: LanguageCount(
            rows=sum(tally.values()), right=tally["right"], wrong=tally["wrong"], rejected=tally["rejected"],
            accepted_as=accepted_as[code], right_as=right_as[code],
        )
        for code in (*CODES, *OFF_TARGET)
        if (tally := tallies.get(f"language {code}"))
    }  # fmt: skip
    reasons = {
        name.removeprefix("reason "): ReasonCount(
            planted=sum(tally.values()),
            caught=tally["caught"],
            masked=tally["masked"],
            missed=tally["missed"],
        )
        for name, tally in sorted(tallies.items())
        if name.startswith("reason ")
    }
    return Comparison(rows=len(facts), languages=languages, reasons=reasons, problems=tuple(problems))


def _judge(fact: Mapping[str, Any], outcome: Outcome) -> str:
    """Return how a row ended: right, wrong, rejected, lost (open rows); caught, masked, missed (planted)."""
    expected, language = fact["expected"], fact["language"]
    by_language = outcome.reason == "language"
    if expected == "accept":
        return "right" if not outcome.reason and outcome.language == language else "lost"
    if expected == "language?":
        if not outcome.reason:
            return "right" if outcome.language == language else "wrong"
        return "rejected" if by_language else "lost"
    if outcome.reason == expected and outcome.pipeline_step == fact["boundary"]:
        return "caught"
    return "masked" if by_language and language not in CERTAIN else "missed"


def _outcomes(lake: Lake, ends: Sequence[Version]) -> dict[int, list[Outcome]]:
    """Return where the rows of each sample_id ended."""
    found: dict[int, list[Outcome]] = defaultdict(list)
    for version in ends:
        for table in version.iter_tables(["sample_id", "language"]):
            for sample_id, language in zip(*(column.to_pylist() for column in table.columns), strict=True):
                found[sample_id].append(Outcome("", "", language))
    for version in _chain(lake, ends):
        pipeline_step = _PIPELINE_STEP.get(version.manifest.kind, version.manifest.kind)
        for table in version.iter_rejects():
            for sample_id, reason in zip(table["sample_id"].to_pylist(), table["reason"].to_pylist(), strict=True):
                found[sample_id].append(Outcome(pipeline_step, reason))
    return found


def _chain(lake: Lake, ends: Iterable[Version]) -> list[Version]:
    """Return these versions and all datasets they were made from, each once."""
    found: dict[str, Version] = {}
    waiting = list(ends)
    while waiting:
        version = waiting.pop()
        if str(version.ref) in found:
            continue
        found[str(version.ref)] = version
        parents = (Ref.parse(parent) for parent in version.manifest.parents)
        waiting += [lake.version(parent) for parent in parents if parent.kind == "dataset"]
    return list(found.values())


def _assign(
    facts: Sequence[Mapping[str, Any]], found: Mapping[int, list[Outcome]]
) -> tuple[list[Outcome | None], list[str]]:
    """Return which outcome is which row's, and the rows that vanished or doubled.

    Copies share a sample_id or a URL, and any one of them may be the one that stays: the acceptance, or the
    reason that is not a duplicate's, counts as the original's.
    """
    problems: list[str] = []
    outcomes: list[Outcome | None] = [None] * len(facts)
    by_id: dict[int, list[int]] = defaultdict(list)
    for index, fact in enumerate(facts):
        by_id[fact["sample_id"]].append(index)
    for sample_id, indices in by_id.items():
        indices.sort(key=lambda index: facts[index]["kind"] == "copy_of_row")
        ended = sorted(found.get(sample_id, ()), key=lambda o: (o.reason == "duplicate_hash", bool(o.reason)))
        if len(ended) != len(indices):
            url = facts[indices[0]]["url"]
            problems.append(f"{url}: {len(indices)} rows in the crawl, {len(ended)} in the result")
        for index, outcome in zip(indices, ended, strict=False):
            outcomes[index] = outcome
    unknown = sum(len(ended) for sample_id, ended in found.items() if sample_id not in by_id)
    if unknown:
        problems.append(f"{unknown} rows of the result are not in the crawl")
    originals = {fact["url"]: index for index, fact in enumerate(facts) if fact["kind"] == "plain"}
    for index, fact in enumerate(facts):
        if fact["kind"] == "copy_of_url":
            original = originals[fact["group"]]
            first = outcomes[original]
            if first is not None and first.reason == "duplicate_url":
                outcomes[original], outcomes[index] = outcomes[index], first
    return outcomes, problems


def _wrong_sizes(lake: Lake, ends: Sequence[Version], facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the accepted links whose width and height are not the true ones (the base release has them swapped)."""
    true = {fact["sample_id"]: (fact["width"], fact["height"]) for fact in facts}
    problems = []
    for version in _chain(lake, ends):
        if version.manifest.kind != "links":
            continue
        for table in version.iter_tables(["sample_id", "url", "width", "height"]):
            for row in table.to_pylist():
                size = (row["width"], row["height"])
                if size != true.get(row["sample_id"], size):
                    problems.append(f"{row['url']}: {size[0]} x {size[1]} pixels, not {true[row['sample_id']]}")
    return problems


def _ratio(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.truth", description="Check a curation of the demo's crawl.")
    parser.add_argument("--lake", required=True, help="URI of the lake")
    parser.add_argument("--dataset", required=True, action="append", help="last dataset of the chain; may be repeated")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="the demo's cache folder")
    parser.add_argument("--crawl", default="crawl", help="the crawl's name below it")
    options = parser.parse_args(arguments)
    try:
        compare(Lake(options.lake), options.dataset, options.cache, options.crawl)
    except AltDiffusionError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
