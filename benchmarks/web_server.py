"""The slow web, in a process of its own: many hosts, late first bytes, hosts that never answer, bodies that drip.

    python -m benchmarks.web_server FOLDER [--tls FOLDER] [--silent 0.06] [--missing 0.12] [--dripping 0.03]

Serves `/<n>.jpg?<row>` of any host on one port of loopback, one connection per answer. What a host or a link does is
drawn from its name alone, so that every program meets the same web.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import ssl
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

_ROBOTS = b"User-agent: *\nDisallow: /admin/\nDisallow: /search\nAllow: /\n\nSitemap: /sitemap.xml\n"
_WITH_ROBOTS = 0.6
"""Share of hosts that have a robots.txt; the others answer 404."""
_PIECE = 2048


@dataclass(frozen=True, kw_only=True)
class Web:
    """What the hosts do. Shares are of hosts (`silent`) or of links; times are in seconds."""

    silent: float = 0.06
    missing: float = 0.12
    dripping: float = 0.03
    median_s: float = 0.35
    sigma: float = 0.8

    def is_silent(self, host: bytes) -> bool:
        """Return whether the host accepts connections and answers nothing."""
        return _share(b"silent", host) < self.silent

    def first_byte_s(self, link: bytes) -> float:
        """Return the seconds to the first byte: log-normal."""
        drawn = NormalDist().inv_cdf(min(max(_share(b"first byte", link), 1e-6), 1 - 1e-6))
        return self.median_s * math.exp(self.sigma * drawn)

    def fate(self, link: bytes) -> str:
        """Return what becomes of a link of a host that answers: `missing`, `dripping` or `whole`."""
        drawn = _share(b"fate", link)
        return "missing" if drawn < self.missing else "dripping" if drawn < self.missing + self.dripping else "whole"


def _share(purpose: bytes, name: bytes) -> float:
    mixed = zlib.crc32(purpose + b"\0" + name) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    mixed = (mixed ^ mixed >> 31) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    return (mixed >> 11) / (1 << 53)


class _Connection(asyncio.Protocol):
    def __init__(self, web: Web, images: dict[bytes, bytes]) -> None:
        self._web, self._images, self._head, self._gone = web, images, b"", False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = True

    def data_received(self, data: bytes) -> None:
        self._head += data
        if b"\r\n\r\n" not in self._head:
            return
        path = self._head.split(b" ", 2)[1]
        host = self._head.lower().partition(b"\r\nhost: ")[2].partition(b"\r\n")[0]
        if not self._web.is_silent(host):
            wait_s = self._web.first_byte_s(host + path)
            asyncio.get_running_loop().call_later(wait_s, self._answer, host, path)

    def _answer(self, host: bytes, path: bytes) -> None:
        body, fate = self._images.get(path.partition(b"?")[0]), self._web.fate(host + path)
        if path == b"/robots.txt":
            body, fate = (_ROBOTS if _share(b"robots", host) < _WITH_ROBOTS else None), "whole"
        if body is None or fate == "missing":
            body, status = b"<html>not here</html>", b"404 Not Found"
        else:
            status = b"200 OK"
        kind = b"image/jpeg" if status == b"200 OK" else b"text/html"
        self._send(
            b"HTTP/1.1 %s\r\nDate: Sat, 28 Nov 2026 12:00:00 GMT\r\nServer: bench\r\nContent-Type: %s\r\n"
            b'Content-Length: %d\r\nLast-Modified: Sat, 28 Nov 2020 12:00:00 GMT\r\nETag: "5c1-40"\r\n'
            b"Cache-Control: max-age=3600\r\nConnection: close\r\n\r\n" % (status, kind, len(body))
        )
        self._drip(body, 0) if fate == "dripping" else self._finish(body)

    def _send(self, data: bytes) -> None:
        if not self._gone:
            self._transport.write(data)

    def _finish(self, body: bytes) -> None:
        self._send(body)
        if not self._gone:
            self._transport.close()

    def _drip(self, body: bytes, at: int) -> None:
        if self._gone or at >= len(body):
            self._finish(b"")
            return
        self._send(body[at : at + _PIECE])
        asyncio.get_running_loop().call_later(1.0, self._drip, body, at + _PIECE)


async def _serve(folder: Path, web: Web, context: ssl.SSLContext | None) -> None:
    images = {f"/{path.name}".encode(): path.read_bytes() for path in folder.glob("*.jpg")}
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(web, images), "127.0.0.1", 0, ssl=context, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def serving(folder: Path, *, tls: Path | None = None, web: Web) -> Iterator[int]:
    """Serve a web in another process for the block; yield its port.

    Args:
        tls: folder with cert.pem and key.pem.
    """
    command = [sys.executable, "-m", "benchmarks.web_server", str(folder), "--tls", str(tls or "")]
    for name in ("silent", "missing", "dripping"):
        command += [f"--{name}", str(getattr(web, name))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tls", default="")
    for name in ("silent", "missing", "dripping"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Web, name))
    given = parser.parse_args()
    context = None
    if given.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(Path(given.tls) / "cert.pem", Path(given.tls) / "key.pem")
    web = Web(silent=given.silent, missing=given.missing, dripping=given.dripping)
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.install()
    asyncio.run(_serve(given.folder, web, context))


if __name__ == "__main__":
    main()
