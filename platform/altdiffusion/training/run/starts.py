"""The model folders that a run starts from: fetched from the hub or converted first, where that is needed.

Both are done once, by the driver, into `<lake>/models`, where every worker reaches them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altdiffusion.diffusion import hub
from altdiffusion.diffusion.convert import is_published, publish_converted
from altdiffusion.diffusion.folder import content_digest, model_ref, read_lineage
from altdiffusion.diffusion.hub import Part, absolute, located
from altdiffusion.diffusion.stock_base import stock_base
from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage import files


def start_folder(uri: str, lake: str, part: Part, configs: str | None = None) -> str:
    """Return the URI of the folder that a run loads: `uri` itself, or what was fetched or converted from it.

    Args:
        configs: folder of the configs of a base that is a single file.

    Raises:
        AltDiffusionError: the hub does not provide it, or it is published in a form that cannot be converted.
    """
    if part == "base":
        return stock_base(uri, lake, configs)
    folder = located(uri, lake, part)
    if not is_published(folder):
        return folder
    return converted(folder, files.within(lake, "models"))


def at_hand(uri: str, lake: str, part: Part, *, as_published: bool = False) -> bool:
    """Return whether `start_folder` (with `as_published`, `located`) has nothing to fetch or convert for a text encoder
    or a teacher."""
    if not hub.at_hand(uri, lake, part):
        return False
    if as_published:
        return True
    folder, models = located(uri, absolute(lake), part), files.within(absolute(lake), "models")
    if not is_published(folder):
        return True
    digest = content_digest(folder)
    return read_lineage(_converted_place(folder, models, digest)) is not None


def converted(folder: str, models: str) -> str:
    """Return the stock form of a published text encoder, below `models`; it is made once per content."""
    digest = content_digest(folder)
    origin = model_ref(folder, digest)
    target = _converted_place(folder, models, digest)
    if read_lineage(target) is None:
        publish_converted(folder, target, origin)
    return target


def _converted_place(folder: str, models: str, digest: str) -> str:
    return files.join(models, f"{model_ref(folder, digest).name}--{digest[:12]}")


def checked_digest(folder: str) -> str:
    """Return the content digest of a model folder.

    Raises:
        AltDiffusionError: its lineage.json states another content.
    """
    found = content_digest(folder)
    promised = (read_lineage(folder) or {}).get("content")
    if promised is not None and promised != found:
        raise AltDiffusionError(
            f"model folder {folder}",
            f"was changed or damaged: its content is {found[:12]}, its lineage.json states {str(promised)[:12]}",
            "remove the folder and run the same command again (what was fetched, converted or exported is made again)",
        )
    return found


def unchanged_models(record: Mapping[str, Any]) -> tuple[Ref, ...]:
    """Return a run's model folders by its record, each checked to be unchanged: VAE, text encoder, tokenizer come from
    them.

    Raises:
        AltDiffusionError: one was changed or is missing.
    """
    models = tuple(Ref.parse(text) for text in record["models"])
    folders = [record["base"], *([record["text_encoder"]] if record["text_encoder"] else [])]
    for folder, ref in zip(folders, models, strict=False):
        content = checked_digest(folder)
        found = model_ref(folder, content).digest  # a lineage.json may have been added since, outside the content
        if ref.digest not in (found, content):
            raise AltDiffusionError(
                f"model folder {folder}",
                f"is {found[:12]} by now, and run {record['run']} was trained with {ref.digest[:12]}",
                "restore it as it was, or start from an export of that run as start.base",
            )
    return models
