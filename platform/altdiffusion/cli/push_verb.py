"""`altdiffusion push WHAT hf://owner/name`: a dataset, a run's export or a model folder, for the Hugging Face hub."""

from __future__ import annotations

import argparse
import os
import re
from typing import TYPE_CHECKING

from altdiffusion.cli.arguments import Verbs, lake_argument
from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:
    from altdiffusion.documents.hub_push import Push
    from altdiffusion.storage.dataset import Lake, Version

_RUN = re.compile(r"(?:checkpoint:)?(?P<run>[A-Za-z0-9][A-Za-z0-9._\-]*)(?:/step-(?P<step>\d+))?")


def register(verbs: Verbs) -> None:
    """Add `push`."""
    text = (
        "upload a dataset, a run's export or a model folder to the Hugging Face hub, with its card; private by default"
    )
    parser = verbs.add_parser("push", help=text, description=f"{text}. The token is taken from HF_TOKEN.")
    parser.add_argument(
        "what", metavar="RUN|DATASET|FOLDER", help="a run (or run/step-N), a dataset (or name@digest), a model folder"
    )
    parser.add_argument("target", metavar="hf://OWNER/NAME", help="repository, which is made if it is not there")
    parser.add_argument("--public", action="store_true", help="let everyone read it (default: a private repository)")
    parser.add_argument("--dry-run", action="store_true", help="list the files and print the card; send nothing")
    parser.add_argument("--licence", metavar="ID|URL", help="of a dataset: SPDX identifier of the licence, or its page")
    parser.add_argument("--contact", metavar="TEXT", help="of a dataset: where to ask for a takedown")
    parser.add_argument("--creator", metavar="NAME", help="of a dataset: organisation that made it")
    lake_argument(parser, required=False)
    parser.set_defaults(run=push_to_hub)


def push_to_hub(arguments: argparse.Namespace) -> int:
    """Upload, and print what was sent; or list the files and the card.

    Raises:
        AltDiffusionError: nothing has this name, it holds rows that were taken down, or the hub does not take it.
    """
    from altdiffusion.documents.hub_push import push, repository

    what = _planned(arguments, repository(arguments.target))
    if arguments.dry_run:
        for file in what.files:
            print(f"{file.size:>15,}  {file.path}")
        total, access = sum(file.size for file in what.files), "public" if arguments.public else "private"
        print(f"{total:>15,}  bytes in {len(what.files):,} files, for the {access} {what.repo_type} hf://{what.repo}\n")
        print(what.card or "no card: the folder has no README.md")
        return 0
    pushed = push(what, public=arguments.public, announce=lambda line: print(line, flush=True))
    removed = f", {pushed.removed:,} shards of an earlier version removed" if pushed.removed else ""
    access = "private" if pushed.is_private else "public"
    if arguments.public and pushed.is_private:
        access = "private, as it was: change that in its settings on the hub"
    print(f"{pushed.url}: {pushed.sent:,} of {len(what.files):,} files sent{removed} ({access})")
    return 0


def _planned(arguments: argparse.Namespace, repo: str) -> Push:
    """Return what is uploaded: a folder if there is one, else a dataset or a run of the lake."""
    name = arguments.what
    if os.path.isdir(name):
        return _folder(repo, name)
    if arguments.lake is None:
        raise AltDiffusionError(f"{name}", "is not a folder", "give --lake for a run or a dataset, or a model folder")
    from altdiffusion.storage.dataset import Lake
    from altdiffusion.training.checkpoints.format import run_names

    lake = Lake(arguments.lake)
    plain = name.removeprefix("dataset:").partition("@")[0]
    run = _RUN.fullmatch(name)
    is_dataset = plain in lake.names() and not name.startswith("checkpoint:")
    is_run = run is not None and run["run"] in run_names(lake.uri) and not name.startswith("dataset:")
    if is_dataset and is_run:
        raise AltDiffusionError(name, "is a dataset and a run", f"write dataset:{name} or checkpoint:{name}")
    if is_run and run is not None:
        step = int(run["step"]) if run["step"] else None
        return _folder(repo, _export(lake, run["run"], step, dry_run=arguments.dry_run))
    if not is_dataset:
        runs, names = ", ".join(run_names(lake.uri)) or "none", ", ".join(lake.names()) or "none"
        raise AltDiffusionError(
            name, f"is neither a folder nor a dataset or run of {lake.uri}", f"datasets: {names}; runs: {runs}"
        )
    return _dataset(repo, lake, lake.version(name), arguments)


def _export(lake: Lake, run: str, step: int | None, *, dry_run: bool) -> str:
    """Return the folder of a run's export; the export is made where there is none, unless nothing may change."""
    from altdiffusion.storage import files
    from altdiffusion.training.exports.export import export_checkpoint

    there = files.list_names(files.join(lake.uri, "exports", run))
    if dry_run and not any(re.fullmatch(r"step-\d+", one) and step in (None, int(one[5:])) for one in there):
        raise AltDiffusionError(
            f"checkpoint {run}", "has no export yet", "leave out --dry-run, or draw with it once: both make the export"
        )
    return export_checkpoint(lake.uri, run, step=step)


def _folder(repo: str, folder: str) -> Push:
    """Return a model folder as it is uploaded.

    Raises:
        AltDiffusionError: it does not hold a model.
    """
    from altdiffusion.documents.hub_push import Push, PushFile
    from altdiffusion.storage import files

    fs, root = files.filesystem(folder.rstrip("/"))
    found = sorted(path for path in fs.find(root) if not any(part.startswith(".") for part in _inside(path, root)))
    names = ["/".join(_inside(path, root)) for path in found]
    if not any(name == "model_index.json" or name.endswith(".safetensors") for name in names):
        raise AltDiffusionError(
            f"folder {folder}",
            "holds no model (neither model_index.json nor a .safetensors file)",
            "name an export or a model folder; a dataset is named as in `altdiffusion dataset list`, so that rows "
            "that were taken down are not published",
        )
    uris = [files.join(folder.rstrip("/"), *name.split("/")) for name in names]
    sizes = [files.size_bytes(uri) for uri in uris]
    parts = [PushFile(path=name, size=size, uri=uri) for name, uri, size in zip(names, uris, sizes, strict=True)]
    return Push(repo=repo, repo_type="model", files=tuple(parts))


def _inside(path: str, root: str) -> list[str]:
    return path[len(root) :].strip("/").split("/")


def _dataset(repo: str, lake: Lake, version: Version, arguments: argparse.Namespace) -> Push:
    """Return a version as it is uploaded, once it is known that it holds nothing that was taken down."""
    from altdiffusion.documents.dataset_card import dataset_card
    from altdiffusion.documents.history import data_history
    from altdiffusion.documents.hub_push import CARD, Push, PushFile
    from altdiffusion.documents.published_shards import refuse_taken_down
    from altdiffusion.documents.statements import Statements

    stated = Statements(
        licence=arguments.licence, contact=arguments.contact, creator=arguments.creator, url=None, date=None
    )
    refuse_taken_down(version)
    card = dataset_card(version, data_history(lake, version), stated).encode()
    shards = {
        info.sha256: PushFile(
            path=f"shards/{info.sha256}.parquet", size=info.bytes, uri=version.shard_uri(place), sha256=info.sha256
        )
        for place, info in enumerate(version.shards)
    }
    head = PushFile(path=CARD, size=len(card), data=card)
    return Push(repo=repo, repo_type="dataset", files=(head, *shards.values()))
