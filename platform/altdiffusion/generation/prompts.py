"""The prompts file: it is read, every row is checked, and the rows become a dataset of kind `prompts`.

prompt_presets.py   published lists by name
prompt_files.py     formats -> columns of text
prompt_checks.py    columns of text -> prompts and rejects
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.range_work import RangeWork, finish_unit
from altdiffusion.execution.units import Unit
from altdiffusion.generation.blocked_terms import read_terms, terms_bytes
from altdiffusion.generation.prompt_checks import Detect, PromptChecker, with_seeds
from altdiffusion.generation.prompt_files import read_bytes, read_chunks
from altdiffusion.generation.settings import PromptsConfig
from altdiffusion.records import PROMPTS, REJECTS
from altdiffusion.refs import Ref, RefKind
from altdiffusion.storage import files
from altdiffusion.storage.ledger import UnitRecord, count

ROWS_PER_SHARD = 65_536


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The rows of a prompts file."""

    accepted: pa.Table
    """What is drawn, as records.PROMPTS, in the file's order."""
    rejects: pa.Table
    """All other rows, as records.REJECTS."""

    @property
    def rows(self) -> int:
        """Number of rows of the file, after lists of captions became one row each."""
        return int(self.accepted.num_rows + self.rejects.num_rows)

    @property
    def by_reason(self) -> dict[str, int]:
        """Number of rejects by reason."""
        return count(self.rejects["reason"])

    @property
    def by_language(self) -> dict[str, int]:
        """Number of accepted rows by language."""
        return count(self.accepted["language"])

    def shards(self) -> Iterator[pa.Table]:
        """Yield the accepted rows in tables of at most ROWS_PER_SHARD rows."""
        for start in range(0, self.accepted.num_rows, ROWS_PER_SHARD):
            yield self.accepted.slice(start, ROWS_PER_SHARD)


def read_prompts(config: PromptsConfig, detect: Detect | None = None, unit_id: str = "prompts") -> Prompts:
    """Return the rows of a prompts file, good and bad.

    Columns of other names are left out, since a prompts file may have columns for its owner's use.

    Args:
        detect: finds the languages of rows without one, where the config asks for that.
        unit_id: the unit that the rejects name.

    Raises:
        AltDiffusionError: the file as a whole is unusable, no row of it is good, or one is not and `strict` is set; or
            the file of blocked terms is unusable.
    """
    blocked = read_terms(config.blocked_terms) if config.blocked_terms is not None else None
    checker = PromptChecker(config, unit_id, detect if config.detect_language else None, blocked)
    accepted, rejects = [PROMPTS_UNSEEDED.empty_table()], [REJECTS.empty_table()]
    for raw in read_chunks(config):
        good, bad = checker.check(raw)
        accepted.append(good)
        rejects.append(bad)
        if config.strict and bad.num_rows:
            break
    table = pa.concat_tables(accepted)
    prompts = Prompts(accepted=with_seeds(table).cast(PROMPTS), rejects=pa.concat_tables(rejects))
    if not prompts.accepted.num_rows or (config.strict and prompts.rejects.num_rows):
        raise _unusable(config, prompts)
    return prompts


def _unusable(config: PromptsConfig, prompts: Prompts) -> AltDiffusionError:
    what = f"prompts file {config.file}"
    if not prompts.rows:
        return AltDiffusionError(what, "holds no rows", "write one row per image")
    first = prompts.rejects.slice(0, 1).to_pylist()[0]
    problem = f"has a bad row, and prompts.strict is set ({first['reason']}): {first['detail']}"
    if not prompts.accepted.num_rows:
        counts = ", ".join(f"{reason} {rows:,}" for reason, rows in prompts.by_reason.items())
        problem = f"has no usable row among {prompts.rows:,} ({counts}); the first: {first['detail']}"
    return AltDiffusionError(what, problem, "fix the rows, or the settings of prompts")


PROMPTS_UNSEEDED = pa.schema([field.with_nullable(True) for field in PROMPTS]).remove_metadata()


class PromptsWork(RangeWork):
    """The work on a prompts file: one unit, which is the whole file, for an id may occur only once in it.

    Args:
        lake_uri: URI of the lake.
        dataset: name of the dataset of prompts.
        config: the file, and how it is read.
        detector: makes, in the worker, what finds languages; None finds none.
    """

    def __init__(
        self,
        lake_uri: str,
        dataset: str,
        config: PromptsConfig,
        detector: Callable[[], Detect] | None = None,
    ) -> None:
        super().__init__(lake=lake_uri, dataset=dataset)
        self._config = config
        self._detector = detector

    def run(self, unit: Unit) -> UnitRecord:
        """Read, check and write the prompts."""
        detect = self._detector() if self._detector is not None and self._config.detect_language else None
        prompts = read_prompts(self._config, detect, unit.id)
        return finish_unit(
            self.output, unit, rows_in=prompts.rows, accepted=prompts.shards(), rejects=[prompts.rejects]
        )


def prompts_source(config: PromptsConfig) -> Ref:
    """Return how lineage names the prompts file: by name and content."""
    return _file_ref("source", config.file, read_bytes(config.file))


def prompts_parents(config: PromptsConfig) -> list[Ref]:
    """Return what prompts are made from: the file, and the blocked terms if there are any."""
    if config.blocked_terms is None:
        return [prompts_source(config)]
    return [prompts_source(config), _file_ref("blocklist", config.blocked_terms, terms_bytes(config.blocked_terms))]


def _file_ref(kind: RefKind, uri: str, data: bytes) -> Ref:
    name = re.sub(r"[^A-Za-z0-9._\-]", "-", uri.rstrip("/").rsplit("/", 1)[-1])
    return Ref(kind, name, files.sha256_hex(data))


def prompts_units(config: PromptsConfig) -> list[Unit]:
    """Return the one unit of `PromptsWork`; another content of a file that it reads is another unit."""
    digests = [ref.digest for ref in prompts_parents(config)]
    digest = digests[0] if len(digests) == 1 else files.sha256_hex(files.canonical_json(digests))
    return [Unit(id=f"prompts-{digest[:32]}", index=0, payload={"input_digest": digest})]
