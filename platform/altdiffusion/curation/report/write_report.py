"""Writing the report of a version of images."""

from __future__ import annotations

from altdiffusion.curation.config.report import ReportConfig
from altdiffusion.curation.report.collect import collect
from altdiffusion.curation.report.view import render_report
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
    """Return the page: a pure function of the versions, the name and the config.

    Args:
        images: a version of images; its parents in the lake are the steps that the page shows.
        name: title of the page, by default the name of the dataset.
        scores: scores of these images, if there are any.

    Raises:
        AltDiffusionError: `images` is not a version of images, or a file of a version is missing or damaged.
    """
    return render_report(collect(lake, images, config or ReportConfig(), name or images.ref.name, scores))


def write_report(
    lake: Lake,
    images: Version,
    uri: str,
    *,
    name: str | None = None,
    scores: Version | None = None,
    config: ReportConfig | None = None,
) -> str:
    """Write the page to `uri` and return `uri`; see `report_html`."""
    files.write_atomic(uri, report_html(lake, images, name=name, scores=scores, config=config).encode())
    return uri
