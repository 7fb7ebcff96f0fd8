"""`altdiffusion import PATH --dataset NAME --lake L`: images of one's own, or links, become a dataset, in one line.

It is the job `jobs.import` with its units run in this process.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from altdiffusion.cli.arguments import Verbs, lake_argument

if TYPE_CHECKING:
    from altdiffusion.curation.config import OwnConfig
    from altdiffusion.execution.pipeline_step import PipelineStep
    from altdiffusion.storage.dataset import Lake, Version

_CONFIG = "altdiffusion import"


def register(verbs: Verbs) -> None:
    """Add `import`."""
    text = "make a dataset of a folder, tar files or tables of images, or of a list of links"
    parser = verbs.add_parser(
        "import", help=text, description=f"{text} (python -m jobs.import does large ones, on Ray)"
    )
    parser.add_argument(
        "path", metavar="PATH", help="folder, file or glob; s3://, gs://, az:// or hf://datasets/N@COMMIT"
    )
    parser.add_argument("--dataset", metavar="NAME", required=True, help="name of the dataset to make")
    lake_argument(parser)
    parser.set_defaults(makes_lake=True)
    parser.add_argument(
        "--kind",
        choices=("images", "links"),
        default="images",
        help="links: addresses alone (default %(default)s)",
    )
    language = parser.add_mutually_exclusive_group()
    language.add_argument("--language", metavar="CODE", help="language of all captions, such as uk")
    language.add_argument("--language-column", metavar="COL", help="column of metadata that states it")
    language.add_argument(
        "--identify",
        action="store_true",
        help="identify it always (default: where the source states none)",
    )
    parser.add_argument("--caption-column", metavar="COL", action="append", help="column of captions; may be repeated")
    parser.add_argument("--keep", metavar="COL,COL", help="further columns to keep, in the dataset NAME-kept")
    parser.add_argument("--layout", choices=("auto", "folder", "webdataset", "table", "dataset"), default="auto")
    parser.add_argument("--subset", metavar="NAME", help="configuration of a data set of the hub")
    parser.add_argument("--split", metavar="NAME", help="split of a data set of the hub (default: all)")
    parser.add_argument("--size", metavar="PIXELS", type=int, help="shorter side as stored (default 512)")
    parser.add_argument("--encoding", metavar="NAME", help="of caption files that are not UTF-8, such as cp1251")
    parser.add_argument("--source-name", metavar="NAME", default="own", help="the source, in lineage (default own)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be read, and change nothing")
    parser.set_defaults(run=import_own)


def import_own(arguments: argparse.Namespace) -> int:
    """Make the dataset, and print what became of every row.

    Raises:
        AltDiffusionError: the source, an option or the dataset's name is not usable, or no row was accepted.
    """
    from altdiffusion.curation.own.readiness import check_ready
    from altdiffusion.execution.pipeline_step import published, run_pipeline_step
    from altdiffusion.storage.dataset import Lake, check_name

    check_name(arguments.dataset)
    lake = Lake(arguments.lake)
    if arguments.kind == "links":
        lines, steps = _links(arguments)
        check_ready(lake, arguments.dataset, "links")
    else:
        config = _config(arguments)
        lines, steps = _images(arguments, config)
        check_ready(lake, arguments.dataset, "images", config)
    for line in lines:
        print(line)
    if arguments.dry_run:
        print(f"would make {steps[-1].target} in {lake.uri}; nothing was changed")
        return 0
    made: tuple[Version, ...] = ()
    for step in steps:
        there = published(lake, step) is not None
        made = run_pipeline_step(lake, step, backend="inline")
        for version in made:
            _report(version, there)
    _hint(arguments, lake, made[0])
    return 0


def _report(version: Version, there: bool) -> None:
    """Print a version, its languages and its rejects."""
    manifest = version.manifest
    languages = ", ".join(f"{code} {rows:,}" for code, rows in sorted(manifest.rows_by_language.items()))
    print(f"{'already there: ' if there else ''}{version.ref.short}: {version.rows:,} rows ({languages or 'none'})")
    if manifest.rejects_by_reason and manifest.kind != "kept":
        from altdiffusion.curation.rejects import explain

        examples = _examples(version)
        for reason, count in manifest.rejects_by_reason.items():
            print(f"  rejected: {reason} {count:,} ({explain(reason)}){examples.get(reason, '')}")


def _examples(version: Version) -> dict[str, str]:
    """Return the first rejected row of each reason that may be shown: its name and what exactly was wrong."""
    from altdiffusion.curation.rejects import withheld

    found: dict[str, str] = {}
    for table in version.iter_rejects():
        for row in table.select(["reason", "url", "detail"]).to_pylist():
            if row["reason"] not in found and not withheld(row["reason"]) and row["url"]:
                detail = f": {row['detail']}" if row["detail"] else ""
                found[row["reason"]] = f", e.g. {unquote(row['url'])[:200]}{detail[:200]}"
    return found


def _hint(arguments: argparse.Namespace, lake: Lake, version: Version) -> None:
    name = version.ref.name
    if arguments.kind == "links":
        print("next: python -m jobs.curate downloads them, with the same file as its source (preset: own)")
    else:
        print(f"look at it: altdiffusion dataset report {name} --lake {lake.uri} --out report.html")


def _config(arguments: argparse.Namespace) -> OwnConfig:
    """Return what the job's config would be for this command line."""
    from altdiffusion.config import from_dict
    from altdiffusion.curation.config import OwnConfig

    settings: dict[str, Any] = {
        "name": arguments.source_name,
        "uri": arguments.path,
        "layout": arguments.layout,
        "subset": arguments.subset,
        "split": arguments.split,
        "language": arguments.language,
        "language_column": arguments.language_column,
        "trust_labels": not arguments.identify,
        "keep": _names(arguments.keep),
    }
    if arguments.caption_column:
        settings["captions"] = arguments.caption_column
    if arguments.encoding is not None:
        settings["caption_encoding"] = arguments.encoding
    if arguments.size is not None:
        settings["store"] = {"image_size": arguments.size, "formats": list(OwnConfig(uri="").store.formats)}
    return from_dict(OwnConfig, settings, _CONFIG)


def _images(arguments: argparse.Namespace, config: OwnConfig) -> tuple[list[str], list[PipelineStep]]:
    from altdiffusion.curation.own.scan import scan_own
    from altdiffusion.curation.own.steps import import_step

    return scan_own(config).lines(), [import_step(arguments.lake, arguments.dataset, config)]


def _links(arguments: argparse.Namespace) -> tuple[list[str], list[PipelineStep]]:
    """Return what a table of links holds, and the steps that make links of it.

    Raises:
        AltDiffusionError: an option is for images only, the label is not a language, or the table cannot be read.
    """
    from altdiffusion.config import from_dict
    from altdiffusion.curation.config import LanguageConfig, SourceConfig
    from altdiffusion.curation.config.select import every_row
    from altdiffusion.curation.links.sources import describe_sources, scan_source
    from altdiffusion.curation.links.steps import links_steps
    from altdiffusion.errors import AltDiffusionError
    from altdiffusion.languages import language_hint

    for option in ("keep", "size", "encoding", "subset", "split"):
        if getattr(arguments, option) is not None:
            raise AltDiffusionError(f"--{option}", "is for images, and links have none yet", "leave it out")
    language = LanguageConfig()
    if arguments.language is not None and arguments.language not in language.languages:
        raise AltDiffusionError(
            f"--language {arguments.language}", *language_hint(arguments.language, language.languages)
        )
    columns = {}
    if arguments.caption_column:
        columns["caption"] = arguments.caption_column[0]
    if arguments.language_column is not None:
        columns["source_language"] = arguments.language_column
    settings = {
        "name": arguments.source_name,
        "uri": arguments.path,
        "preset": "own",
        "language": arguments.language,
        "columns": columns,
        "ignore": ["source_language"] if arguments.identify else [],
    }
    source, select = from_dict(SourceConfig, settings, _CONFIG), every_row()
    steps = links_steps(
        arguments.lake,
        [(source, select)],
        language,
        candidates=f"{arguments.dataset}-candidates",
        links=arguments.dataset,
    )
    return describe_sources([scan_source(source, select)]), list(steps)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]
