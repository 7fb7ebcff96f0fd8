"""The page of a kept evaluation and its figures as files."""

from __future__ import annotations

from altdiffusion.evaluation.figures.kept import read_kept
from altdiffusion.evaluation.figures.page import figures_of, page_of
from altdiffusion.storage import files


def write_page(lake: str, name: str, out: str) -> list[str]:
    """Write OUT.html and one OUT-<figure>.svg per figure, and return their paths.

    Args:
        name: of the evaluation.
        out: local path; `.html` at its end is optional.

    Raises:
        AltDiffusionError: the lake keeps no such evaluation, or its file is damaged.
    """
    kept = read_kept(lake, name)
    stem = out.removesuffix(".html")
    written = {f"{stem}.html": page_of(kept).encode()}
    written |= {f"{stem}-{figure.name}.svg": figure.file for figure in figures_of(kept)}
    for path, data in written.items():
        files.write_atomic(path, data)
    return list(written)
