"""`altdiffusion export RUN` and `altdiffusion convert SOURCE TARGET`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from altdiffusion.errors import AltDiffusionError


def register(subparsers: Any) -> None:
    """Adds both commands."""
    one = subparsers.add_parser("export", help="write a checkpoint as a diffusers folder with its model card")
    one.add_argument("checkpoint", metavar="RUN", help="a run (its newest checkpoint), or run/step-NNNNNNNN")
    one.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step")
    one.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averages (the default) or as trained")
    default = os.environ.get("ALTDIFFUSION_LAKE")
    one.add_argument(
        "--lake",
        metavar="URI",
        default=default,
        required=default is None,
        help="folder or address that the jobs write to (or set ALTDIFFUSION_LAKE)",
    )
    one.set_defaults(run=cmd_export)
    one = subparsers.add_parser("convert", help="make a published text encoder one that stock transformers reads")
    one.add_argument(
        "source", metavar="SOURCE", help="folder of AltDiffusion or AltCLIP as published: m18, m9, the first"
    )
    one.add_argument("target", metavar="TARGET", help="folder to write; it must not exist")
    one.set_defaults(run=cmd_convert)


def cmd_export(arguments: argparse.Namespace) -> int:
    """Writes the folder and prints its place.

    Raises:
        AltDiffusionError: no such run or checkpoint.
    """
    from altdiffusion.training.cli import checkpoint_name  # here: it registers this module
    from altdiffusion.training.exports.export import export_checkpoint

    run, step = checkpoint_name(arguments.checkpoint)
    if step is not None and arguments.step not in (None, step):
        raise AltDiffusionError(
            f"checkpoint {arguments.checkpoint!r}", f"is not of step {arguments.step}", "give the step once"
        )
    print(
        export_checkpoint(arguments.lake, run, step=arguments.step if step is None else step, weights=arguments.weights)
    )
    return 0


def cmd_convert(arguments: argparse.Namespace) -> int:
    """Writes the folder.

    Raises:
        AltDiffusionError: the source is no published encoder, or the target is there.
    """
    from altdiffusion.diffusion.convert import convert_folder, is_published, local_source
    from altdiffusion.diffusion.folder import content_digest, model_ref, publish
    from altdiffusion.diffusion.hub import is_hub_id
    from altdiffusion.diffusion.licence import licence_of
    from altdiffusion.storage import files

    source, target = arguments.source.rstrip("/"), arguments.target.rstrip("/")
    if is_hub_id(source):
        raise AltDiffusionError(
            f"source {source}",
            "is a hub model, and this command takes a folder",
            "name it in start.text_encoder, where it is fetched and converted, or download it first",
        )
    digest = content_digest(source)
    if not is_published(source):
        raise AltDiffusionError(
            f"folder {source}",
            "is not a published text encoder",
            "give a folder of AltDiffusion or AltCLIP as published; an export of ours needs no conversion",
        )
    if files.exists(target):
        raise AltDiffusionError(f"folder {target}", "is there already", "choose another one, or remove it")
    origin = str(model_ref(source, digest))
    rest: list[str] = []
    with local_source(source) as local:
        publish(
            target,
            lambda staging: rest.append(convert_folder(local, staging)),
            {"converted_from": origin, "licence": licence_of(source), "parents": [origin]},
        )
    print(target)
    if rest[0]:
        print(f"not converted: {rest[0]}")
    return 0
