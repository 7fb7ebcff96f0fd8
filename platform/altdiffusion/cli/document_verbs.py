"""`altdiffusion dataset card`, `altdiffusion summary`, `altdiffusion lineage export` and `altdiffusion sign`."""

from __future__ import annotations

import argparse
import json
import sys

from altdiffusion.cli.arguments import Verbs, dataset_argument, lake_argument, report_damaged
from altdiffusion.errors import AltDiffusionError


def register(verbs: Verbs, dataset: Verbs, lineage: Verbs) -> None:
    """Add `summary` and `sign`, `card` to the verbs of `dataset`, and `export` to those of `lineage`."""
    _register_card(dataset)
    _register_summary(verbs)
    _register_export(lineage)
    _register_sign(verbs)


def _register_card(verbs: Verbs) -> None:
    text = "describe one version for catalogues and loaders: Croissant, or the Hugging Face hub's dataset card"
    parser = verbs.add_parser("card", help=text, description=text)
    dataset_argument(parser)
    parser.add_argument("--format", choices=("croissant", "huggingface"), required=True)
    lake_argument(parser)
    parser.add_argument("--out", metavar="FILE", help="file to write (default: print it)")
    parser.add_argument("--with-shards", action="store_true", help="copy the shards to the folder of --out as well")
    parser.add_argument(
        "--licence",
        metavar="ID|URL",
        help="SPDX identifier of the licence, like CC-BY-4.0, or its address",
    )
    parser.add_argument("--url", metavar="URL", help="page where the dataset is published")
    parser.add_argument("--creator", metavar="NAME", help="organisation that made the dataset")
    parser.add_argument("--date", metavar="YYYY-MM-DD", help="date of publication")
    parser.add_argument("--contact", metavar="TEXT", help="where to ask for a takedown")
    parser.set_defaults(run=write_card)


def write_card(arguments: argparse.Namespace) -> int:
    """Write or print the card of a version; what only people can state and nobody stated is named.

    Raises:
        AltDiffusionError: there is no such version, it holds rows that were taken down, a manifest that it was made
            from is damaged, or an option has another form.
    """
    import os

    from altdiffusion.documents import croissant, dataset_card
    from altdiffusion.documents.history import data_history
    from altdiffusion.documents.published_shards import copy_shards, refuse_taken_down
    from altdiffusion.documents.statements import Statements
    from altdiffusion.storage.dataset import Lake

    if arguments.with_shards and arguments.out is None:
        raise AltDiffusionError("--with-shards", "has no folder", "give --out FILE: shards are copied next to it")
    stated = Statements(
        licence=arguments.licence,
        url=arguments.url,
        creator=arguments.creator,
        date=arguments.date,
        contact=arguments.contact,
    )
    lake = Lake(arguments.lake)
    version = lake.version(arguments.name)
    refuse_taken_down(version)
    history = data_history(lake, version)
    needed: tuple[str, ...] = dataset_card.EXPECTED
    if arguments.format == "croissant":
        needed = croissant.REQUIRED
        text = json.dumps(croissant.croissant(version, history, stated), ensure_ascii=False, indent=2) + "\n"
    else:
        text = dataset_card.dataset_card(version, history, stated)
    if arguments.with_shards:
        copied = copy_shards(version, os.path.dirname(arguments.out) or ".")
        print(f"{len(version.shards):,} shards, {copied / 1e6:,.1f} MB")
    _write(text, arguments.out)
    missing = ", ".join(stated.missing(*needed))
    if missing:
        print(f"not stated, because manifests do not hold it: give {missing}", file=sys.stderr)
    return 0


def _register_summary(verbs: Verbs) -> None:
    text = "draft the European Union's public summary of the content that a checkpoint was trained on"
    parser = verbs.add_parser("summary", help=text, description=text)
    parser.add_argument(
        "checkpoint", metavar="RUN[/step-N]", help="a run (its newest checkpoint), or run/step-NNNNNNNN"
    )
    lake_argument(parser)
    parser.add_argument("--out", metavar="FILE", help="file to write (default: print it)")
    parser.add_argument("--date", metavar="YYYY-MM-DD", help="date of the summary's last update")
    parser.add_argument("--domains", metavar="FILE", help="write the list of domains here instead of into the summary")
    parser.add_argument(
        "--small-provider", action="store_true", help="list the domains that small and medium-sized enterprises list"
    )
    parser.set_defaults(run=write_summary)


def write_summary(arguments: argparse.Namespace) -> int:
    """Write or print the draft, and its list of domains if asked to.

    Returns:
        0; 3 if a part of the lake could not be read.

    Raises:
        AltDiffusionError: there is no such checkpoint, or something that it was made from is damaged.
    """
    import os

    from altdiffusion.documents.public_summary import domain_lines, public_summary
    from altdiffusion.documents.statements import check_date
    from altdiffusion.documents.training_content import training_content
    from altdiffusion.lineage.graph import scan
    from altdiffusion.storage import files
    from altdiffusion.storage.dataset import Lake

    if arguments.date is not None:
        check_date(arguments.date)
    graph = scan(arguments.lake)
    content = training_content(Lake(arguments.lake), arguments.checkpoint, graph)
    listed = None if arguments.domains is None else os.path.basename(arguments.domains)
    small = arguments.small_provider
    text = public_summary(content, date=arguments.date, small_provider=small, domains_file=listed)
    if arguments.domains is not None:
        lines = domain_lines(content, small_provider=small)
        files.write_atomic(arguments.domains, "".join(f"{line}\n" for line in lines).encode())
    _write(text, arguments.out)
    return report_damaged(graph.damaged)


def _register_export(verbs: Verbs) -> None:
    text = "write or send the lineage of a lake for other tools: OpenLineage events"
    parser = verbs.add_parser("export", help=text, description=text)
    parser.add_argument("--format", choices=("openlineage",), required=True)
    lake_argument(parser)
    parser.add_argument("--out", metavar="FILE", help="file to write, one event per line")
    parser.add_argument("--url", metavar="URL", help="server to post the events to")
    parser.add_argument("--namespace", default="altdiffusion", help="of jobs and datasets (default: %(default)s)")
    parser.add_argument(
        "--time", metavar="ISO", help="time of all events (default: when each thing's last file was written)"
    )
    parser.set_defaults(run=export_lineage)


def export_lineage(arguments: argparse.Namespace) -> int:
    """Write the events of a lake to a file, or send them to a server, or both; print how many.

    Returns:
        0; 3 if a part of the lake could not be read.

    Raises:
        AltDiffusionError: neither file nor server is named, the time has another form, or the server does not take
            the events.
    """
    from altdiffusion.documents import event_post, open_lineage
    from altdiffusion.lineage.graph import scan
    from altdiffusion.storage import files

    if arguments.out is None and arguments.url is None:
        raise AltDiffusionError("lineage export", "has no destination", "give --out FILE, --url URL, or both")
    clock = open_lineage.completed_at if arguments.time is None else open_lineage.fixed(arguments.time)
    graph = scan(arguments.lake)
    events = list(open_lineage.events(graph, namespace=arguments.namespace, clock=clock))
    if arguments.out is not None:
        lines = [json.dumps(event, ensure_ascii=False) + "\n" for event in events]
        files.write_atomic(arguments.out, "".join(lines).encode())
        print(f"{arguments.out}: {len(events):,} events of {len(events) // 2:,} runs")
    if arguments.url is not None:
        print(f"{arguments.url}: {event_post.post_events(arguments.url, events):,} events were taken")
    return report_damaged(graph.damaged)


def _register_sign(verbs: Verbs) -> None:
    text = "write copies of generated images with signed Content Credentials (C2PA)"
    parser = verbs.add_parser("sign", help=text, description=text)
    parser.add_argument(
        "images", metavar="FILE|NAME[@DIGEST]", nargs="+", help="image files, or one dataset of kind generations"
    )
    parser.add_argument("--cert", metavar="FILE", required=True, help="certificate chain in PEM, the signing one first")
    parser.add_argument("--key", metavar="FILE", required=True, help="private key of the certificate in PEM")
    parser.add_argument("--output", metavar="FOLDER", required=True, help="where signed copies are written")
    lake_argument(parser, required=False)
    parser.set_defaults(run=sign_images)


def sign_images(arguments: argparse.Namespace) -> int:
    """Write signed copies of image files, or of the images of a dataset; print how many.

    Raises:
        AltDiffusionError: c2pa-python is not installed, the certificate cannot be used, or an image cannot be signed.
    """
    import os

    from altdiffusion.documents.signed_copies import sign_files, sign_version
    from altdiffusion.documents.signing import Signer
    from altdiffusion.storage.dataset import Lake

    are_files = [os.path.isfile(image) for image in arguments.images]
    if not all(are_files) and (len(are_files) > 1 or arguments.lake is None):
        missing = arguments.images[are_files.index(False)]
        raise AltDiffusionError(
            f"file {missing}", "is not there", "give image files, or one dataset and --lake (or set ALTDIFFUSION_LAKE)"
        )
    signer = Signer(arguments.cert, arguments.key)
    if all(are_files):
        signed = sign_files(signer, arguments.images, arguments.output)
    else:
        signed = sign_version(signer, Lake(arguments.lake).version(arguments.images[0]), arguments.output)
    left_out = f"; {signed.taken_down:,} that were taken down are left out" if signed.taken_down else ""
    print(f"{arguments.output}: {signed.images:,} signed images{left_out}")
    return 0


def _write(text: str, path: str | None) -> None:
    from altdiffusion.storage import files

    if path is None:
        print(text, end="")
    else:
        files.write_atomic(path, text.encode())
        print(path)
