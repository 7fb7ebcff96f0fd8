"""The cases of an evaluation: a prompts file, read as generation reads it, whose rows also state concept and group.

A file may state `seen` (true or false) instead of `group`: true is the group `pictures`, false is `unseen`.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.outcomes import GROUPS, Case, Group, group_of
from altdiffusion.generation.prompt_files import read_bytes, read_chunks
from altdiffusion.generation.prompts import Prompts, read_prompts
from altdiffusion.generation.settings import PromptsConfig
from altdiffusion.languages import in_order
from altdiffusion.storage import files

_SWITCHES = {"true": True, "false": False, "1": True, "0": False}
_REMEDY = (
    f"give each row its concept (what the judge should name), and seen (true or false) or group ({', '.join(GROUPS)})"
)


@dataclass(frozen=True, kw_only=True)
class Cases:
    """All rows of a cases file."""

    prompts: Prompts
    by_id: dict[str, Case]
    """In the file's order."""
    images: dict[str, int]
    """Number of images that are asked for, by the prompt's id."""
    sha256: str
    """SHA-256 of the file."""

    @property
    def languages(self) -> list[str]:
        """The languages, in the project's order."""
        return in_order(case.language for case in self.by_id.values())

    @property
    def images_by_language(self) -> dict[str, int]:
        """Number of images that are asked for, by language."""
        counts = dict.fromkeys(self.languages, 0)
        for name, images in self.images.items():
            counts[self.by_id[name].language] += images
        return counts

    @property
    def concepts(self) -> list[str]:
        """The concepts, in the file's order."""
        return list(dict.fromkeys(case.concept for case in self.by_id.values()))


def read_cases(config: PromptsConfig, count: int) -> Cases:
    """Return the cases of a prompts file: JSON lines, CSV, Parquet or another of its formats, in any language.

    Args:
        config: the file; `strict` must be set, since a table of fewer cases would be another table.
        count: images per prompt where a row does not state it.

    Raises:
        AltDiffusionError: the file or one of its rows cannot be used; the error names the row.
    """
    if not config.strict:
        raise ValueError("cases are read with `strict`")
    prompts = read_prompts(config)
    raw = pa.concat_tables(read_chunks(config, ("concept", "seen", "group")))
    rows = zip(
        *(prompts.accepted[name].to_pylist() for name in ("id", "language", "count")),
        *(raw[name].to_pylist() for name in ("number", "concept", "seen", "group")),
        strict=True,  # no row is a reject
    )
    by_id: dict[str, Case] = {}
    images: dict[str, int] = {}
    for name, language, own_count, number, concept, seen, group in rows:
        at = f"cases file {config.file}, row {number}, field"
        if not concept:
            raise AltDiffusionError(f"{at} concept", "is missing" if concept is None else "is empty", _REMEDY)
        by_id[name] = Case(concept=concept, language=language, group=_group(at, seen, group))
        images[name] = own_count or count
    return Cases(prompts=prompts, by_id=by_id, images=images, sha256=files.sha256_hex(read_bytes(config.file)))


def _group(at: str, seen: str | None, group: str | None) -> Group:
    """Return the group of a row's name.

    Args:
        at: the row, for errors.
    """
    of_seen = None
    if seen is not None:
        switch = _SWITCHES.get(seen.strip().lower())
        if switch is None:
            raise AltDiffusionError(f"{at} seen", f"{seen!r} is neither true nor false", _REMEDY)
        of_seen = group_of(switch)
    if group is None:
        if of_seen is None:
            raise AltDiffusionError(f"{at} seen", "is missing, and so is group", _REMEDY)
        return of_seen
    named = next((one for one in GROUPS if one == group.strip()), None)
    if named is None:
        raise AltDiffusionError(f"{at} group", f"{group!r} is none of {', '.join(GROUPS)}", _REMEDY)
    if of_seen is not None and (of_seen == "pictures") != (named == "pictures"):
        raise AltDiffusionError(f"{at} group", f"is {named}, and seen is {seen}", "let them agree, or leave seen out")
    return named
