"""Making the report of a version of images."""

from __future__ import annotations

from altdiffusion.curation.config.report import ReportConfig
from altdiffusion.curation.report.collect import collect
from altdiffusion.curation.report.page import render
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version


def report_html(
    lake: Lake,
    images: Version,
    *,
    name: str | None = None,
    scores: Version | None = None,
    config: ReportConfig | None = None,
) -> str:
    """The page as text: a pure function of the versions, the name and the config.

    Args:
        images: a version of images; its parents in the lake tell the way of the rows.
        name: title of the page, by default the name of the dataset.
        scores: scores of these images, if there are any.

    Raises:
        AltDiffusionError: not a version of images, or a file of a version is missing or damaged.
    """
    return render(collect(lake, images, config or ReportConfig(), name or images.ref.name, scores))


def write_report(
    lake: Lake,
    images: Version,
    uri: str,
    *,
    name: str | None = None,
    scores: Version | None = None,
    config: ReportConfig | None = None,
) -> str:
    """Writes the page to `uri` and returns `uri`; see `report_html`."""
    files.write_atomic(uri, report_html(lake, images, name=name, scores=scores, config=config).encode())
    return uri
