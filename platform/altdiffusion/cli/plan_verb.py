"""`altdiffusion plan`: a whole campaign on paper, from its configs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from altdiffusion.cli.arguments import Verbs
from altdiffusion.errors import AltDiffusionError


def register(verbs: Verbs) -> None:
    """Add `plan`."""
    text = "estimate nodes, hours, money, storage, downloads and failures of a campaign from its configs"
    parser = verbs.add_parser(
        "plan", help=text, description=f"{text}; nothing is started, and datasets need not be there yet"
    )
    parser.add_argument(
        "--config", required=True, nargs="+", action="extend", metavar="FILE", help="configs of jobs, or patterns"
    )
    parser.add_argument("--prices", metavar="FILE", help="prices (default: a dated list of AWS's, us-east-1)")
    parser.add_argument(
        "--there", nargs="+", default=[], action="extend", metavar="NAME", help="runs that the lake already has"
    )
    parser.add_argument("--json", action="store_true", help="print the plan for programs")
    parser.add_argument("--markdown", metavar="FILE", help="write the plan as Markdown too")
    parser.add_argument("--plot", metavar="FILE", help="write the scale curves as SVG")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan, and write the files that are asked for.

    Raises:
        AltDiffusionError: a config or the price list is wrong, or the configs do not fit together.
    """
    from pipelines.campaign.plan import plan_campaign
    from pipelines.campaign.plot import figure
    from pipelines.campaign.prices import load_prices
    from pipelines.campaign.report import as_json, markdown, text

    for path in filter(None, (arguments.markdown, arguments.plot)):
        if not Path(path).absolute().parent.is_dir():
            raise AltDiffusionError(f"file {path}", "is in a folder that does not exist", "make the folder first")
    campaign = plan_campaign(arguments.config, load_prices(arguments.prices), arguments.there)
    if arguments.plot is not None and not campaign.scale:
        raise AltDiffusionError(
            f"--plot {arguments.plot}",
            "has nothing to draw: no config of a training stage with estimate.images_per_s_per_worker is given",
            "give such a config, or leave --plot out",
        )
    if arguments.markdown is not None:
        Path(arguments.markdown).write_text(markdown(campaign), encoding="utf-8")
    if arguments.plot is not None:
        Path(arguments.plot).write_bytes(figure(campaign))
    print(
        json.dumps(as_json(campaign), indent=2) if arguments.json else text(campaign),
        end="" if not arguments.json else "\n",
    )
    return 0
