"""`altdiffusion doctor`: whether a machine or a cluster has what a job needs."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict

from altdiffusion.cli.arguments import Verbs, json_argument, lake_argument


def register(verbs: Verbs) -> None:
    """Add `doctor`."""
    text = "check a machine or a cluster before a job runs on it"
    parser = verbs.add_parser(
        "doctor",
        help=text,
        description=f"{text}. Each line is ok, warn or FAIL, with what was found and a remedy. The exit status is 1 if "
        "a line is FAIL.",
    )
    parser.add_argument("--nodes", action="store_true", help="check every node of the Ray cluster, one task per node")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="head of the cluster for --nodes (default: RAY_ADDRESS, else auto)"
    )
    lake_argument(parser, required=False)
    parser.add_argument(
        "--tracking-uri",
        metavar="URL",
        default=os.environ.get("MLFLOW_TRACKING_URI"),
        help="MLflow server (default: MLFLOW_TRACKING_URI)",
    )
    parser.add_argument("--all-reduce", action="store_true", help="measure the sum of a tensor: GPUs, processes, nodes")
    parser.add_argument("--spill", metavar="FOLDER", help="folder of Ray's spilled objects, whose space is checked")
    parser.add_argument("--lock", metavar="FILE", help="constraints (default: the checkout's or the image's)")
    json_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the lines, and return 1 if one of them is FAIL."""
    from altdiffusion.doctor.line import FAIL, Line
    from altdiffusion.doctor.machine import Wanted, check_machine
    from altdiffusion.doctor.summary import merged

    wanted = Wanted(arguments.lake, arguments.tracking_uri, arguments.spill, arguments.lock)
    lines: list[Line]
    if arguments.nodes:
        from altdiffusion.doctor.nodes import check_nodes
        from altdiffusion.execution import cluster

        cluster.connect(arguments.address or os.environ.get("RAY_ADDRESS") or "auto")
        try:
            lines = check_nodes(wanted, sums=arguments.all_reduce)
        finally:
            cluster.shutdown()
    else:
        lines = check_machine(wanted)
        if arguments.all_reduce:
            from altdiffusion.doctor.all_reduce import check_all_reduce
            from altdiffusion.doctor.line import guarded

            lines += guarded("all-reduce", check_all_reduce)
    if arguments.json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
    else:
        for line in merged(lines):
            print(line)
        count = {level: sum(line.level == level for line in lines) for level in ("ok", "warn", FAIL)}
        print(", ".join(f"{number} {level}" for level, number in count.items()))
    return int(any(line.level == FAIL for line in lines))
