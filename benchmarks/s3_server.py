"""An S3 server on loopback that serves a folder, and answers each request after a delay, as a server elsewhere does.

    python -m benchmarks.s3_server --root FOLDER --port PORT [--delay-ms 20]

The buckets are the folders in FOLDER. It knows what reading and writing a lake needs: objects (whole, in ranges,
written, also only if absent and in parts, and deleted), listings with and without a delimiter. Requests wait at the
same time, as on a real server. `GET /?counts` returns how many it answered, by kind (with --keys by kind and key), as
JSON; `POST /?faults` has it do things wrong (benchmarks.s3_faults), and `GET /?faults` returns how many requests each
rule has hit. It checks no signature: it is for measurements on this machine alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape, unescape

from aiohttp import web

from benchmarks.s3_faults import Faults, Rule

_PAGE = 1000
"""Keys per answer to a listing."""
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_PART = re.compile(r"<PartNumber>(\d+)</PartNumber>")
_KEY = re.compile(r"<Key>(.*?)</Key>", re.DOTALL)


class Server:
    """The folders of one root as buckets."""

    def __init__(self, root: Path, delay_ms: float, *, keys: bool = False) -> None:
        self._root = root
        self._keys: Counter[str] | None = Counter() if keys else None
        self._delay_s = delay_ms / 1000
        self._left: dict[str, Iterator[tuple[str, bool]]] = {}
        self._parts: dict[str, dict[int, bytes]] = {}
        self._counts: Counter[str] = Counter()
        self._tokens = itertools.count()
        self._faults = Faults()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, or do what a rule has it do."""
        bucket, _, key = request.path.lstrip("/").partition("/")
        if not bucket and "counts" in request.query:
            return web.json_response(self._counts if self._keys is None else self._keys)
        if not bucket and "faults" in request.query:
            if request.method == "GET":
                return web.json_response([rule.hits for rule in self._faults.rules])
            self._faults.replace(await request.json())
            return web.Response()
        kind = _kind(request, key)
        self._counts[kind] += 1
        if self._keys is not None:
            self._keys[f"{kind} {key or request.query.get('prefix', '')}"] += 1
        fault = self._faults.of(kind, request.path)
        await asyncio.sleep(self._delay_s + (fault.delay_s if fault else 0.0))
        if fault is not None and fault.status is not None:
            return _error(fault.status, fault.code)
        if fault is not None and fault.cut:
            return await _cut(request, self._root / bucket / key)
        answer = await self._answer(request, bucket, key, fault)
        if fault is not None and fault.unanswered and request.transport is not None:
            request.transport.abort()
        return answer

    async def _answer(self, request: web.Request, bucket: str, key: str, fault: Rule | None) -> web.StreamResponse:
        folder = self._root / bucket
        if not bucket or not folder.is_dir():
            return _error(404, "NoSuchBucket")
        if not key:
            if request.method == "POST" and "delete" in request.query:
                return self._delete_many(folder, (await request.read()).decode())
            return web.Response() if request.method == "HEAD" else self._list(folder, request, fault)
        path = folder / key
        if folder.resolve() not in path.resolve().parents:
            return _error(403, "AccessDenied")
        if request.method == "POST":
            return self._upload(path, key, request, await request.read())
        if request.method == "PUT":
            return self._put(path, request, await request.read())
        if request.method == "DELETE":
            if "uploadId" in request.query:  # gives an upload up, and leaves the object of that key as it is
                self._parts.pop(request.query["uploadId"], None)
            else:
                _delete(path, folder)
            return web.Response(status=204)
        return _object(path)

    def _put(self, path: Path, request: web.Request, data: bytes) -> web.Response:
        if "uploadId" in request.query:
            self._parts[request.query["uploadId"]][int(request.query["partNumber"])] = data
            return web.Response(headers={"ETag": f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'})
        if not self._place(path, data, request):
            return _error(412, "PreconditionFailed", "<Condition>If-None-Match</Condition>")
        return web.Response(headers={"ETag": _tag(path.stat())})

    def _place(self, path: Path, data: bytes, request: web.Request) -> bool:
        """Make an object whole, and return False where it was to be new and is not."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{next(self._tokens)}")
        temporary.write_bytes(data)
        try:
            if request.headers.get("If-None-Match") == "*":
                os.link(temporary, path)
            else:
                temporary.rename(path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _upload(self, path: Path, key: str, request: web.Request, body: bytes) -> web.Response:
        """Begin an upload in parts, or join its parts."""
        if "uploads" in request.query:
            number = f"u{next(self._tokens)}"
            self._parts[number] = {}
            return _xml(
                f"<InitiateMultipartUploadResult><Key>{escape(key)}</Key><UploadId>{number}</UploadId>"
                "</InitiateMultipartUploadResult>"
            )
        parts = self._parts[request.query["uploadId"]]
        data = b"".join(parts[int(number)] for number in _PART.findall(body.decode()))
        if not self._place(path, data, request):
            return _error(412, "PreconditionFailed", "<Condition>If-None-Match</Condition>")
        del self._parts[request.query["uploadId"]]
        return _xml(
            f"<CompleteMultipartUploadResult><Key>{escape(key)}</Key><ETag>{escape(_tag(path.stat()))}</ETag>"
            "</CompleteMultipartUploadResult>"
        )

    def _delete_many(self, folder: Path, body: str) -> web.Response:
        keys = [unescape(key) for key in _KEY.findall(body)]
        for key in keys:
            _delete(folder / key, folder)
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return _xml(f"<DeleteResult>{deleted}</DeleteResult>")

    def _list(self, folder: Path, request: web.Request, fault: Rule | None) -> web.Response:
        """Return up to 1,000 keys, and a token for the rest."""
        newest = time.time() - fault.stale_s if fault else float("inf")
        prefix, token = request.query.get("prefix", ""), request.query.get("continuation-token", "")
        entries = (
            self._left.pop(token, iter(())) if token else _entries(folder, prefix, bool(request.query.get("delimiter")))
        )
        entries = ((key, is_folder) for key, is_folder in entries if (folder / key).stat().st_mtime <= newest)
        page = list(itertools.islice(entries, min(_PAGE, int(request.query.get("max-keys", _PAGE)))))
        after = next(entries, None)
        more = ""
        if after is not None:
            more = f"t{next(self._tokens)}"
            self._left[more] = itertools.chain([after], entries)
        items = [_item(folder, key, is_folder) for key, is_folder in page]
        return _xml(
            f"<ListBucketResult><Name>{escape(folder.name)}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<KeyCount>{len(page)}</KeyCount><MaxKeys>{_PAGE}</MaxKeys><IsTruncated>{str(bool(more)).lower()}"
            f"</IsTruncated>{f'<NextContinuationToken>{more}</NextContinuationToken>' if more else ''}"
            f"{''.join(items)}</ListBucketResult>"
        )


def _kind(request: web.Request, key: str) -> str:
    """Return as what a request is counted: its method, but LIST, and PART for a part of an upload in parts."""
    if request.method == "PUT" and "uploadId" in request.query:
        return "PART"
    return "LIST" if request.method == "GET" and not key else request.method


def _delete(path: Path, bucket: Path) -> None:
    """Delete an object; a key that only others begin with is none. No listing shows a folder without an object."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
        path.unlink()
        while path.parent != bucket and not any(path.parent.iterdir()):
            path = path.parent
            path.rmdir()


async def _cut(request: web.Request, path: Path) -> web.StreamResponse:
    """Close the connection in the middle of the body of a request that writes, or of the answer to another one."""
    assert request.transport is not None
    if request.method in ("PUT", "POST"):
        await request.content.readany()
        request.transport.abort()
        return web.Response()
    data = path.read_bytes() if path.is_file() else b"x" * 1000
    answer = web.StreamResponse(headers={"Content-Length": str(len(data)), "ETag": '"cut"'})
    await answer.prepare(request)
    await answer.write(data[: len(data) // 2])
    request.transport.abort()
    return answer


def _entries(folder: Path, prefix: str, delimited: bool) -> Iterator[tuple[str, bool]]:
    """Yield keys that begin with a prefix, and whether each is that of a folder, in order."""
    above = prefix.rpartition("/")[0]
    try:
        found = sorted(os.scandir(folder / above), key=lambda entry: f"{entry.name}/" if entry.is_dir() else entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in found:
        key = f"{above}/{entry.name}" if above else entry.name
        if not entry.is_dir():
            if key.startswith(prefix):
                yield key, False
        elif f"{key}/".startswith(prefix):
            if delimited:
                yield f"{key}/", True
            else:
                yield from _entries(folder, f"{key}/", False)


def _item(folder: Path, key: str, is_folder: bool) -> str:
    if is_folder:
        return f"<CommonPrefixes><Prefix>{escape(key)}</Prefix></CommonPrefixes>"
    facts = (folder / key).stat()
    return (
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>{escape(_tag(facts))}</ETag><Size>{facts.st_size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


def _object(path: Path) -> web.StreamResponse:
    """Return an object, or the range that is asked for, sent by the kernel."""
    return web.FileResponse(path, chunk_size=1 << 20) if path.is_file() else _error(404, "NoSuchKey")


def _tag(facts: os.stat_result) -> str:
    """Return the tag that FileResponse gives a file, which listings must have too."""
    return f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"'


def _xml(text: str, status: int = 200) -> web.Response:
    return web.Response(
        status=status, text=f'<?xml version="1.0" encoding="UTF-8"?>{text}', content_type="application/xml"
    )


def _error(status: int, code: str, more: str = "") -> web.Response:
    return _xml(f"<Error><Code>{code}</Code><Message>{code}</Message>{more}</Error>", status)


@contextlib.contextmanager
def serving(root: Path, delay_ms: float, *, keys: bool = False) -> Iterator[dict[str, str]]:
    """Serve a folder of buckets by a process of its own; yield the environment in which s3:// addresses reach it.

    Args:
        keys: count requests by kind and key.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    command = [sys.executable, "-m", "benchmarks.s3_server", "--root", str(root), "--port", str(port)]
    command += ["--delay-ms", str(delay_ms), *(["--keys"] if keys else [])]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield {
            "AWS_ACCESS_KEY_ID": "benchmark",
            "AWS_SECRET_ACCESS_KEY": "benchmark",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"the S3 server did not come up on port {port}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback)")
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--keys", action="store_true", help="count requests by kind and key")
    arguments = parser.parse_args()
    application = web.Application(client_max_size=1 << 30)
    server = Server(arguments.root, arguments.delay_ms, keys=arguments.keys)
    application.router.add_route("*", "/{path:.*}", server.handle)
    web.run_app(application, host=arguments.host, port=arguments.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
