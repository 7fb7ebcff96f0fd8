"""`altdiffusion dataset export|report`: rows for other tools, and the page of a curation."""

from __future__ import annotations

import argparse

from altdiffusion.cli.arguments import Verbs, dataset_argument, lake_argument
from altdiffusion.curation.config.report import ReportConfig
from altdiffusion.errors import AltDiffusionError


def register(verbs: Verbs) -> None:
    """Add `export` and `report` to the verbs of `dataset`."""
    parser = verbs.add_parser(
        "export", help="write rows for other tools, images as img2dataset or as Hugging Face has them"
    )
    dataset_argument(parser, "a dataset; of images or generations for all formats but parquet")
    parser.add_argument("--format", choices=("webdataset", "files", "parquet", "imagefolder"), required=True)
    parser.add_argument("--output", metavar="FOLDER", required=True, help="a new or empty folder, or an address of one")
    parser.add_argument("--rows-per-shard", metavar="N", type=int, default=10_000, help="default: %(default)s")
    lake_argument(parser)
    parser.set_defaults(run=export_images)

    text = "one HTML page of what a curation read, kept and dropped"
    parser = verbs.add_parser("report", help=text, description=text)
    dataset_argument(parser, "a dataset of images")
    lake_argument(parser)
    parser.add_argument("--out", default="report.html", metavar="FILE", help="file to write (default %(default)s)")
    parser.add_argument("--title", metavar="TEXT", help="title of the page (default: the dataset's name)")
    parser.add_argument("--scores", metavar="NAME[@DIGEST]", help="dataset of scores of these images")
    defaults = ReportConfig()
    parser.add_argument(
        "--pictures",
        type=int,
        default=defaults.pictures,
        metavar="N",
        help="images shown per language (default %(default)s)",
    )
    parser.add_argument(
        "--sample-rows",
        type=int,
        default=defaults.sample_rows,
        metavar="N",
        help="rows read per question (default %(default)s)",
    )
    parser.set_defaults(run=write_report)


def export_images(arguments: argparse.Namespace) -> int:
    """Write a version's rows in one of the formats for other tools, and print how many there are.

    Raises:
        AltDiffusionError: the version does not exist, its kind does not have the format, or the folder is not empty.
    """
    from altdiffusion.image_files.image_export import export_images
    from altdiffusion.storage.dataset import Lake

    version = Lake(arguments.lake).version(arguments.name)
    exported = export_images(version, arguments.output, arguments.format, rows_per_shard=arguments.rows_per_shard)
    written = f"{exported.rows:,} rows, {exported.shards:,} shards of {arguments.format}"
    if exported.taken_down:
        written += f"; {exported.taken_down:,} rows that were taken down are left out"
    print(f"{version.ref.short} -> {arguments.output}: {written}")
    return 0


def write_report(arguments: argparse.Namespace) -> int:
    """Write the page of a curation and print where it is.

    Raises:
        AltDiffusionError: there is no such version, it does not hold images, or one of its files is damaged.
    """
    from altdiffusion.curation.report.write_report import write_report
    from altdiffusion.storage.dataset import Lake

    try:
        config = ReportConfig(pictures=arguments.pictures, sample_rows=arguments.sample_rows)
    except ValueError as error:
        raise AltDiffusionError(
            "dataset report", f"cannot be written with these options ({error})", "change the option"
        ) from error
    lake = Lake(arguments.lake)
    scores = lake.version(arguments.scores) if arguments.scores else None
    images = lake.version(arguments.name)
    print(write_report(lake, images, arguments.out, name=arguments.title, scores=scores, config=config))
    return 0
