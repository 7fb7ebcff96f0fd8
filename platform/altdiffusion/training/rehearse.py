"""A dry run of a run: everything that it would stop at before its first update, found without a change."""

from __future__ import annotations

from altdiffusion.diffusion.hub import Part
from altdiffusion.diffusion.models import load_bundle
from altdiffusion.diffusion.objective import Noising
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.run.fit import Parties, check_fit
from altdiffusion.training.run.record import read_record
from altdiffusion.training.run.resolve import refuse_twice, resolve
from altdiffusion.training.run.starts import at_hand, start_folder
from altdiffusion.training.weights import load_models, newest


def rehearse(config: TrainConfig, lake: str) -> tuple[list[Version], Noising, list[str]]:
    """Find, check and open what a run would, and change nothing: a dry run.

    Whatever would have to be fetched from the hub or converted first is left out, and named.

    Returns:
        The datasets; what the UNet learns to predict; and what could not be checked, in words.

    Raises:
        AltDiffusionError: the run would stop at it.
    """
    named: list[tuple[str | None, Part, bool]] = [
        (config.start.base, "base", False),
        (config.start.text_encoder, "text_encoder", config.stage == "distillation"),
        (config.distillation.teacher if config.distillation is not None else None, "text_encoder", True),
    ]
    missing = [
        uri
        for uri, part, as_published in named
        if uri is not None
        and ("/" in uri or read_record(lake, uri) is None)  # the run of a student
        and not at_hand(uri, lake, part, as_published=as_published)
    ]
    versions = [Lake(lake).version(dataset.name) for dataset in config.datasets]
    if not missing:
        run = resolve(config, lake)
        load_models(run, newest(run))  # whether every weight is there, has its shape and is finite
        return versions, run.noising, []
    refuse_twice(config, [version.ref for version in versions])
    base, text_encoder = config.start.base, config.start.text_encoder
    if base is not None and base not in missing:
        load_bundle(start_folder(base, lake, "base"))
    noising = check_fit(
        Parties(
            config=config,
            lake=lake,
            base=None if base is None or base in missing else start_folder(base, lake, "base"),
            text_encoder=text_encoder,
            text_encoder_at_hand=text_encoder is None or text_encoder not in missing,
            versions=versions,
        )
    )
    return versions, noising, [f"{uri} (it is fetched or converted when the run starts)" for uri in missing]
