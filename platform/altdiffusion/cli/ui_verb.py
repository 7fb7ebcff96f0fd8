"""`altdiffusion ui`: MLflow on the runs of a lake, in a browser."""

from __future__ import annotations

import argparse
import signal

from altdiffusion.cli.arguments import Verbs, lake_argument


def register(verbs: Verbs) -> None:
    """Add `ui`."""
    text = "open MLflow on the runs, models and images of a lake"
    parser = verbs.add_parser("ui", help=text, description=f"{text}; Ctrl-C ends it")
    lake_argument(parser)
    parser.add_argument("--port", type=int, metavar="N", help="port of 127.0.0.1 (default: a free one)")
    parser.set_defaults(run=serve)


def serve(arguments: argparse.Namespace) -> int:
    """Serve MLflow until the process is interrupted, and print what to open.

    Raises:
        AltDiffusionError: the lake's database, or the port, is not usable.
    """
    from altdiffusion.lineage.server import serving

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)  # the terminal was closed
    try:
        with serving(arguments.lake, arguments.port) as server:
            for name, address in server.links:
                print(f"{name}:\n  {address}")
            print("Ctrl-C ends it", flush=True)
            server.wait()
    except KeyboardInterrupt:
        print()
    return 0
