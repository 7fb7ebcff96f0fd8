"""A real HTTP server on loopback that answers huggingface_hub as the hub does: a commit's tree, and its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.hub_parts import listening, tree_entry

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The content of the server, and the requests that it got."""

    folder: Path
    repo: str = "someone/small-diffusion"
    revision: str = REVISION
    status: int = 200
    """Status of every answer; any but 200 comes with `error` as the hub names it."""
    error: str = ""
    spoiled: set[str] = field(default_factory=set)
    """Files whose bytes differ from what the tree states."""
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def tree(self) -> list[dict[str, Any]]:
        entries = []
        for path in sorted(self.folder.rglob("*")):
            if not path.is_file():
                continue
            data, name = path.read_bytes(), str(path.relative_to(self.folder))
            entries.append(tree_entry(name, data, large=name.endswith((".safetensors", ".bin"))))
        return entries


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve until the block ends; `hub.url` is what HF_ENDPOINT has to be."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            if hub.status != 200:
                return self._send(b"{}", body, status=hub.status, error=hub.error)
            if not path.startswith((f"/api/models/{hub.repo}/", f"/{hub.repo}/")):
                return self._send(b"{}", body, status=404, error="RepoNotFound")
            if hub.revision not in path:
                return self._send(b"{}", body, status=404, error="RevisionNotFound")
            if "/tree/" in path:
                return self._send(json.dumps(hub.tree()).encode(), body)
            name = path.partition(f"/resolve/{hub.revision}/")[2]
            file = hub.folder / name
            if not name or not file.is_file():
                return self._send(b"{}", body, status=404, error="EntryNotFound")
            data = file.read_bytes()
            etag = next(e.get("lfs", e)["oid"] for e in hub.tree() if e["path"] == name)
            if name in hub.spoiled:
                data = bytes([data[0] ^ 1]) + data[1:]
            self._send(data, body, extra={"ETag": f'"{etag}"', "X-Repo-Commit": hub.revision})

        def _send(
            self, data: bytes, body: bool, *, status: int = 200, error: str = "", extra: dict[str, str] | None = None
        ) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), "X-Error-Code": error, **(extra or {})}.items():
                if value:
                    self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    with listening(Handler) as hub.url:
        yield hub
