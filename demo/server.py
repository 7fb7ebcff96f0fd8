"""The demo's web on loopback.

    python -m demo.server --cache DIR --port 0 --port-file FILE

It writes the port it listens on to FILE and serves until it is ended. Which page a request gets is decided by its
Host header and path; see `demo.site`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import os
import socketserver
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from demo import site
from demo.npm import default_cache

_LONGEST_S = 60.0  # a drip or a flood ends then, whatever the client does
_DRIP_S = 0.2
_FLOOD_S = 0.002  # between two blocks of a flood: fast enough to reach any cap, slow enough to share two cores


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; HTTP/1.1 with keep-alive."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet
    timeout = 30.0  # of an idle connection, seconds
    disable_nagle_algorithm = True

    def __init__(self, *args: object, cache: Path) -> None:
        self.cache = cache
        super().__init__(*args)  # type: ignore[arg-type]  # socketserver's (request, address, server)

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").partition(":")[0].lower()
        reply = site.answer(host, self.path, self.cache)
        with contextlib.suppress(ConnectionError, TimeoutError):
            self._send(reply)

    do_HEAD = do_GET

    def _send(self, reply: site.Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.type)
        if reply.declared is None:
            self.send_header("Content-Length", str(len(reply.body)))
        elif reply.declared >= 0:
            self.send_header("Content-Length", str(reply.declared))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.manner != "whole":
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        if reply.manner in ("whole", "close"):
            self.wfile.write(reply.body)
            return
        pieces = [reply.body] if reply.manner == "flood" else [bytes([byte]) for byte in reply.body]
        pause = _FLOOD_S if reply.manner == "flood" else _DRIP_S
        ends = time.monotonic() + _LONGEST_S
        while time.monotonic() < ends:
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(pause)
                if time.monotonic() >= ends:
                    break
            else:
                if reply.manner == "drip":
                    return

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the client counts what it gets."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own looks its name up in the DNS, which may take long
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that leaves in the middle."""


def make_server(cache: Path, port: int = 0) -> ThreadingHTTPServer:
    """Return a bound server that does not yet serve; port 0 takes a free one."""
    site.bomb()  # made now: at its first request it could take longer than the client waits
    return _Server(("127.0.0.1", port), functools.partial(_Handler, cache=cache))


@contextlib.contextmanager
def running(cache: Path | None = None) -> Iterator[int]:
    """Serve in a thread of this process for the length of the block; yield the port."""
    with make_server(cache or default_cache()) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def wait_until_ready(port: int, timeout_s: float = 30.0) -> None:
    """Return as soon as something answers HTTP on the port.

    Raises:
        TimeoutError: nothing did.
    """
    ends = time.monotonic() + timeout_s
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
            connection.request("GET", "/robots.txt", headers={"Host": site.BROKEN})
            connection.getresponse().read()
            return
        except (ConnectionError, TimeoutError) as error:
            if time.monotonic() > ends:
                raise TimeoutError(f"nothing answers on 127.0.0.1:{port}") from error
            time.sleep(0.05)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.server", description="Serve the demo's images.")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="the demo's cache folder")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--port-file", type=Path, help="where to write the port")
    options = parser.parse_args(arguments)
    with make_server(options.cache, options.port) as server:
        port = server.server_address[1]
        if options.port_file is not None:
            scratch = options.port_file.with_name(options.port_file.name + ".new")
            scratch.write_text(f"{port}\n")
            os.replace(scratch, options.port_file)
        print(f"serving on 127.0.0.1:{port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
