"""`altdiffusion submit`: a job on a cluster, from any folder."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
from collections.abc import Sequence
from typing import Any

from altdiffusion.cli.arguments import Verbs

JOBS = ("curate", "encode", "evaluate", "generate", "import", "measure", "parallel", "score", "train")


def register(verbs: Verbs) -> None:
    """Add `submit`."""
    text = "run a job on a cluster"
    parser = verbs.add_parser(
        "submit",
        help=text,
        description=f"{text}: it sends this installation and the config, opens a tunnel for a cluster file, and "
        "passes the token of ~/.ray/auth_token on. Other files that the config names must be where the cluster "
        "reaches them.",
    )
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as of the job itself")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--cluster", metavar="FILE", help="the file of `ray up`, whose head is reached by a tunnel")
    where.add_argument("--address", metavar="URL", help="job API, http://HOST:8265 (default: RAY_ADDRESS)")
    parser.add_argument("--no-wait", action="store_true", help="end when the job is submitted, and do not follow it")
    _take_overrides_anywhere(parser)
    parser.set_defaults(run=run)


def _take_overrides_anywhere(parser: argparse.ArgumentParser) -> None:
    """Let overrides follow options too, as a job's own command line does; argparse takes positionals in one go."""
    parse: Any = parser.parse_known_args

    def parse_known(args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        found, rest = parse(args, namespace)
        overrides = [text for text in rest if "=" in text and not text.startswith("-")]
        found.overrides = [*found.overrides, *overrides]
        return found, [text for text in rest if text not in overrides]

    setattr(parser, "parse_known_args", parse_known)  # noqa: B010


def run(arguments: argparse.Namespace) -> int:
    """Submit the job, follow its output, and return 0 if it succeeded.

    Raises:
        AltDiffusionError: the cluster cannot be reached, or refuses the job.
    """
    from altdiffusion.execution.submission import job_api, read_config, submit

    config = read_config(arguments.config)
    with job_api(arguments.address, arguments.cluster) as address:
        env = {"NO_ALBUMENTATIONS_UPDATE": "1"}
        client, job_id = submit(address, arguments.job, config, arguments.overrides, env)
        print(f"submitted {job_id}")
        if arguments.cluster is not None:
            print(f"  tunnel  ray dashboard {shlex.quote(arguments.cluster)}")
            address = "http://127.0.0.1:8265"
        mode = "RAY_AUTH_MODE=token " if os.environ.get("RAY_AUTH_MODE") == "token" else ""
        print(f"  output  {mode}ray job logs {job_id} --follow --address {address}")
        print(f"  stop    {mode}ray job stop {job_id} --address {address}", flush=True)
        if arguments.no_wait:
            return 0

        async def follow() -> None:
            async for lines in client.tail_job_logs(job_id):
                print(lines, end="", flush=True)

        try:
            asyncio.run(follow())
        except KeyboardInterrupt:
            print(f"\nno longer followed; {job_id} goes on")
            return 130
        status = client.get_job_status(job_id)
        print(f"{job_id}: {status.value.lower()}")
        return 0 if status.value == "SUCCEEDED" else 1
