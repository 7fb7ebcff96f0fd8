"""An S3 server on loopback, moto's, that answers each request after a delay, as a server elsewhere does.

    python -m benchmarks.s3_server --port PORT [--delay-ms 20]

Needs `moto[server]`. A request to /delay/<ms> changes the delay.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def main() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app  # type: ignore[import-not-found]
    from werkzeug.serving import run_simple

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    arguments = parser.parse_args()
    inner = DomainDispatcherApplication(create_backend_app)
    delay_s = [arguments.delay_ms / 1000]

    def application(environment: Mapping[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = str(environment.get("PATH_INFO", ""))
        if path.startswith("/delay/"):
            delay_s[0] = float(path.removeprefix("/delay/")) / 1000
            start("200 OK", [("Content-Length", "0")])
            return []
        time.sleep(delay_s[0])
        return inner(environment, start)  # type: ignore[no-any-return]

    run_simple("127.0.0.1", arguments.port, application, threaded=True)


if __name__ == "__main__":
    main()
