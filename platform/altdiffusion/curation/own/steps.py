"""The pipeline step that imports images of one's own; the job and the command `altdiffusion import` share it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from altdiffusion.config import semantic
from altdiffusion.curation.config import OwnConfig
from altdiffusion.curation.own.own_work import OwnWork
from altdiffusion.curation.own.scan import scan_own
from altdiffusion.execution.pipeline_step import Output, PipelineStep
from altdiffusion.execution.units import Pool, Resources
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Lake

KEPT_SUFFIX = "-kept"
"""Suffix of the dataset that holds the columns of `keep`."""


def import_step(
    lake: str, images: str, config: OwnConfig, pool: Pool | None = None, resources: Resources | None = None
) -> PipelineStep:
    """Return the pipeline step that makes `images`, and `<images>-kept` where columns are kept.

    The source is listed and identified once for all that is asked of the step.
    """
    scan = functools.cache(lambda: scan_own(config))
    kept = f"{images}{KEPT_SUFFIX}"
    # `download` is what later steps ask for the size that images were stored in.
    settings = {"import": semantic(config), "download": semantic(config.store)}
    outputs = [Output(dataset=images, kind="images", settings=settings)]
    if config.keep:
        outputs.append(Output(dataset=kept, kind="kept", settings=settings))

    def parents(_: Lake) -> Sequence[Ref]:
        listed = config.blocklist_sha256
        return [scan().ref, *([Ref("blocklist", config.name, listed)] if listed is not None else [])]

    return PipelineStep(
        name="import",
        outputs=tuple(outputs),
        noun="rows",
        parents=parents,
        units=lambda _: scan().units,
        work=lambda _: OwnWork(lake=lake, images=images, kept=kept, layout=scan().layout, config=config),
        pool=pool or Pool(),
        resources=resources or Resources(),
        when_empty=(
            "read the reasons: no_caption asks for NAME.txt next to each image or for metadata.jsonl, caption_bytes "
            "for --encoding NAME (caption_encoding), language and language_label for --language CODE (language)"
        ),
    )
