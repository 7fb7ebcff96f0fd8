"""An HTTP server on loopback that does what no tracking server should: hangs, refuses access, fails."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WrongServer:
    """Answers every request with a status; 0 accepts it and never answers."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.requests = 0
        self.ended = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.requests += 1
                if outer.status == 0:
                    outer.ended.wait(120)
                    return
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(outer.status)
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def wrong_server(status: int) -> Iterator[WrongServer]:
    """Run one for the duration of the block."""
    server = WrongServer(status)
    try:
        yield server
    finally:
        server.close()
