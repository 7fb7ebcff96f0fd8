"""A dry run of a run: everything that it would stop at before its first update, found without a change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from altdiffusion.diffusion import hub
from altdiffusion.diffusion.models import load_bundle
from altdiffusion.diffusion.objective import Noising
from altdiffusion.diffusion.stock_base import stock_base_at_hand, tried_base
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.run.fit import Parties, check_fit
from altdiffusion.training.run.record import run_named
from altdiffusion.training.run.resolve import refuse_twice, resolve
from altdiffusion.training.run.starts import at_hand
from altdiffusion.training.weights import load_models, newest


def rehearse(config: TrainConfig, lake: str) -> tuple[list[Version], Noising, list[str]]:
    """Find, check and open what a run would, and change nothing: a dry run.

    Whatever would have to be fetched from the hub or converted first is left out, and named.

    Returns:
        The datasets; what the UNet learns to predict; and what could not be checked, in words.

    Raises:
        AltDiffusionError: the run would stop at it.
    """
    with _base(config, lake) as (base, converted):
        return _rehearse(config, lake, base, converted)


@contextmanager
def _base(config: TrainConfig, lake: str) -> Iterator[tuple[str | None, bool]]:
    """Yield (URI of the base's folder, whether it is only a trial of a conversion); None where there is none yet."""
    named, configs = config.start.base, config.start.base_configs
    if named is None:
        yield None, False
        return
    with tried_base(named, lake, configs) as folder:
        yield folder, folder is not None and not stock_base_at_hand(named, lake, configs)


def _rehearse(
    config: TrainConfig, lake: str, base: str | None, converted: bool
) -> tuple[list[Version], Noising, list[str]]:
    """Return what `rehearse` returns.

    Args:
        base: the folder of start.base where it is here.
        converted: whether that folder is a trial of the conversion that the run itself will make.
    """
    text_encoder = config.start.text_encoder
    named: list[tuple[str | None, bool]] = [
        (text_encoder, config.stage == "distillation"),
        (config.distillation.teacher if config.distillation is not None else None, True),
    ]
    missing = [
        uri
        for uri, as_published in named
        if uri is not None
        and run_named(lake, uri) is None  # the run of a student
        and not at_hand(uri, lake, "text_encoder", as_published=as_published)
    ]
    if config.start.lora is not None and not hub.at_hand(config.start.lora, lake, "lora"):
        missing.append(config.start.lora)
    if config.start.base is not None and (base is None or converted):
        missing.insert(0, config.start.base)
    versions = [Lake(lake).version(dataset.name) for dataset in config.datasets]
    if not missing:
        run = resolve(config, lake)
        load_models(run, newest(run))  # whether every weight is there, has its shape and is finite
        return versions, run.noising, []
    refuse_twice(config, [version.ref for version in versions])
    if base is not None:
        load_bundle(base)
    at_hand_already = text_encoder is not None and text_encoder not in missing
    noising = check_fit(
        Parties(
            config=config,
            lake=lake,
            base=base,
            text_encoder=text_encoder,
            text_encoder_at_hand=text_encoder is None or at_hand_already,
            versions=versions,
        )
    )
    return versions, noising, [f"{uri} (it is fetched or converted when the run starts)" for uri in missing]
