"""`altdiffusion convert SOURCE TARGET`."""

from __future__ import annotations

import argparse

from altdiffusion.cli.arguments import Verbs
from altdiffusion.errors import AltDiffusionError


def register(verbs: Verbs) -> None:
    """Add `convert`."""
    parser = verbs.add_parser("convert", help="make a published text encoder one that stock transformers reads")
    parser.add_argument(
        "source", metavar="SOURCE", help="folder of AltDiffusion or AltCLIP as published: m18, m9, the first"
    )
    parser.add_argument("target", metavar="TARGET", help="folder to write; it must not exist")
    parser.set_defaults(run=convert)


def convert(arguments: argparse.Namespace) -> int:
    """Convert a published text encoder, and print what else its folder holds.

    Raises:
        AltDiffusionError: the source is not a published encoder, or the target exists.
    """
    from altdiffusion.diffusion.convert import is_published, publish_converted
    from altdiffusion.diffusion.folder import content_digest, model_ref
    from altdiffusion.diffusion.hub import is_hub_id
    from altdiffusion.storage import files

    source, target = arguments.source.rstrip("/"), arguments.target.rstrip("/")
    if is_hub_id(source):
        raise AltDiffusionError(
            f"source {source}",
            "is a hub model, and this command takes a folder",
            "name it in start.text_encoder, where it is fetched and converted, or download it first",
        )
    origin = model_ref(source, content_digest(source))
    if not is_published(source):
        raise AltDiffusionError(
            f"folder {source}",
            "is not a published text encoder",
            "give a folder of AltDiffusion or AltCLIP as published; an export of this platform needs no conversion",
        )
    if files.exists(target):
        raise AltDiffusionError(f"folder {target}", "is there already", "choose another one, or remove it")
    rest = publish_converted(source, target, origin)
    print(target)
    if rest:
        print(f"not converted: {rest}")
    return 0
