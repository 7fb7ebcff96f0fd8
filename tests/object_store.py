"""A real HTTP server on loopback that answers s3fs as an object store does: lists, facts and ranges of objects."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@contextmanager
def serve(objects: dict[str, bytes]) -> Iterator[str]:
    """Serve the bucket `bucket` until the block ends; yield what AWS_ENDPOINT_URL has to be.

    Args:
        objects: content by key.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            parts = urlsplit(self.path)
            bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
            if bucket != "bucket":
                return self._send(_error("NoSuchBucket"), body, 404)
            if not key:
                asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
                return self._send(_listed(objects, asked.get("prefix", ""), asked.get("delimiter", "")), body)
            if key not in objects:
                return self._send(_error("NoSuchKey"), body, 404)
            data = objects[key]
            ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if ranged is None:
                return self._send(data, body)
            first, last = int(ranged[1]), min(int(ranged[2] or len(data)), len(data) - 1)
            self._send(data[first : last + 1], body, 206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"})

        def _send(self, data: bytes, body: bool, status: int = 200, extra: dict[str, str] | None = None) -> None:
            self.send_response(status)
            facts = {"Content-Length": str(len(data)), "ETag": '"0"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
            for name, value in (facts | (extra or {})).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


def _listed(objects: dict[str, bytes], prefix: str, delimiter: str) -> bytes:
    found = sorted(key for key in objects if key.startswith(prefix))
    folders = sorted(
        {prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter for key in found
         if delimiter and delimiter in key[len(prefix) :]}
    )  # fmt: skip
    files = [key for key in found if not delimiter or delimiter not in key[len(prefix) :]]
    entries = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{len(objects[key])}</Size><ETag>0</ETag>"
        "<LastModified>2026-01-01T00:00:00Z</LastModified><StorageClass>STANDARD</StorageClass></Contents>"
        for key in files
    )
    entries += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
    return (
        f"<ListBucketResult><Name>bucket</Name><Prefix>{escape(prefix)}</Prefix><IsTruncated>false</IsTruncated>"
        f"<KeyCount>{len(files) + len(folders)}</KeyCount><MaxKeys>1000</MaxKeys>{entries}</ListBucketResult>"
    ).encode()
