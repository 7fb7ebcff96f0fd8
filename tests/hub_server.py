"""A real HTTP server on loopback that answers huggingface_hub as the hub does: a commit's tree, and its files.

Of data sets (`kind="datasets"`) it also answers what `datasets` asks for: facts, folders, and ranges of files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_parts import listening, tree_entry

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The content of the server, and the requests that it got."""

    folder: Path
    repo: str = "someone/small-diffusion"
    kind: str = "models"
    revision: str = REVISION
    status: int = 200
    """Status of every answer; any but 200 comes with `error` as the hub names it."""
    error: str = ""
    spoiled: set[str] = field(default_factory=set)
    """Files whose bytes differ from what the tree states."""
    gone: set[str] = field(default_factory=set)
    """Files that the tree lists and the server does not have."""
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def tree(self) -> list[dict[str, Any]]:
        entries = []
        for path in sorted(self.folder.rglob("*")):
            if not path.is_file():
                continue
            data, name = path.read_bytes(), str(path.relative_to(self.folder))
            large = name.endswith((".safetensors", ".bin", ".parquet", ".tar", ".zip"))
            entries.append(tree_entry(name, data, large=large))
        return entries

    def below(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        """Return what the tree holds below a folder: files, and folders with an empty id."""
        inside = f"{folder}/" if folder else ""
        found = [entry for entry in self.tree() if entry["path"].startswith(inside)]
        folders = {
            entry["path"][:at] for entry in found for at, letter in enumerate(entry["path"])
            if letter == "/" and at > len(inside)
        }  # fmt: skip
        found += [{"type": "directory", "path": path, "size": 0, "oid": ""} for path in sorted(folders)]
        return [entry for entry in found if recursive or "/" not in entry["path"][len(inside) :]]


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

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            hub.requests.append(f"POST {unquote(urlsplit(self.path).path)}")
            wanted = json.loads(asked)["paths"] if asked.startswith("{") else parse_qs(asked).get("paths", [])
            found = [entry for entry in hub.below("", True) if entry["path"] in wanted]
            self._send(json.dumps(found).encode(), True)

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            if hub.status != 200:
                return self._send(b"{}", body, status=hub.status, error=hub.error)
            home = hub.repo if hub.kind == "models" else f"{hub.kind}/{hub.repo}"
            facts = f"/api/{hub.kind}/{hub.repo}"
            if path != facts and not path.startswith((f"{facts}/", f"/{home}/")):
                return self._send(b"{}", body, status=404, error="RepoNotFound")
            if path in (facts, f"{facts}/revision/{hub.revision}"):
                siblings = [{"rfilename": entry["path"]} for entry in hub.tree()]
                return self._send(
                    json.dumps({"id": hub.repo, "sha": hub.revision, "siblings": siblings, "tags": []}).encode(), body
                )
            if hub.revision not in path:
                return self._send(b"{}", body, status=404, error="RevisionNotFound")
            if "/tree/" in path:
                folder = path.partition(f"/tree/{hub.revision}")[2].strip("/")
                recursive = "recursive=true" in self.path.lower()
                listed = hub.tree() if hub.kind == "models" else hub.below(folder, recursive)
                if folder and not listed:
                    return self._send(b"{}", body, status=404, error="EntryNotFound")
                return self._send(json.dumps(listed).encode(), body)
            name = path.partition(f"/resolve/{hub.revision}/")[2]
            file = hub.folder / name
            if not name or not file.is_file() or name in hub.gone:
                return self._send(b"{}", body, status=404, error="EntryNotFound")
            data = file.read_bytes()
            etag = next(e.get("lfs", e)["oid"] for e in hub.tree() if e["path"] == name)
            if name in hub.spoiled:
                data = bytes([data[0] ^ 1]) + data[1:]
            extra = {"ETag": f'"{etag}"', "X-Repo-Commit": hub.revision}
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked is None:
                return self._send(data, body, extra=extra)
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            extra["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self._send(data[first : last + 1], body, status=206, extra=extra)

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
