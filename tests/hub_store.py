"""A real HTTP server on loopback that takes uploads of huggingface_hub as the hub does: repositories, LFS, commits."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.hub_parts import listening, tree_entry

TOKEN = "hf_test_of_push"


@dataclass
class Store:
    """The repositories of the server, and the requests that it got."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Content by path, by `models/owner/name` or `datasets/owner/name`."""
    private: dict[str, bool] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Uploaded LFS objects by SHA-256."""
    puts: list[str] = field(default_factory=list)
    """SHA-256 of every object that was sent."""
    commits: int = 0
    most_puts: int | None = None
    """Objects that are taken; the next one is refused."""
    status: int = 200
    """Status of commits."""
    url: str = ""

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        self.commits += 1
        content = self.files[repo]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                content[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del content[value["path"]]

    def tree(self, repo: str) -> list[dict[str, Any]]:
        return [tree_entry(path, data, large=is_large(path)) for path, data in sorted(self.files[repo].items())]


def is_large(path: str) -> bool:
    return path.endswith((".parquet", ".safetensors"))


@contextmanager
def serve(store: Store) -> Iterator[Store]:
    """Serve until the block ends; `store.url` is what HF_ENDPOINT has to be."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            self._body()
            path = unquote(urlsplit(self.path).path)
            if not self._is_known():
                return self._send({"error": "Invalid credentials"}, 401)
            if path == "/api/whoami-v2":
                return self._send({"name": "someone", "type": "user"})
            repo = "/".join(path.split("/")[2:5])
            if repo not in store.files:
                return self._send({}, 404, "RepoNotFound")
            if "/tree/" in path:
                return self._send(store.tree(repo))
            self._send({"id": repo.partition("/")[2], "private": store.private[repo], "sha": "0" * 40, "tags": []})

        def do_PUT(self) -> None:
            data, oid = self._body(), self.path.rpartition("/")[2]
            if store.most_puts is not None and len(store.puts) >= store.most_puts:
                return self._send({}, 400)
            assert hashlib.sha256(data).hexdigest() == oid
            store.puts.append(oid)
            store.objects[oid] = data
            self._send({})

        def do_POST(self) -> None:
            body, path = self._body(), unquote(urlsplit(self.path).path)
            if not self._is_known():
                return self._send({"error": "Invalid credentials"}, 401)
            if path == "/api/validate-yaml":
                return self._send({"errors": [], "warnings": []})
            if path == "/api/repos/create":
                made = json.loads(body)
                repo = f"{made.get('type', 'model')}s/{made['organization']}/{made['name']}"
                store.files[repo], store.private[repo] = {}, made["visibility"] == "private"
                return self._send({"url": f"{store.url}/{repo.removeprefix('models/')}"})
            if path.endswith("/info/lfs/objects/batch"):
                wanted = json.loads(body)["objects"]
                return self._send({"transfer": "basic", "objects": [self._action(one) for one in wanted]})
            repo = "/".join(path.split("/")[2:5])
            if "/preupload/" in path:
                modes = [
                    {"path": one["path"], "uploadMode": "lfs" if is_large(one["path"]) else "regular",
                     "shouldIgnore": False, "oid": None}
                    for one in json.loads(body)["files"]
                ]  # fmt: skip
                return self._send({"files": modes})
            if store.status != 200:
                return self._send({"error": "no"}, store.status)
            store.commit(repo, [json.loads(line) for line in body.splitlines()])
            self._send({"commitUrl": f"{store.url}/{repo}/commit/{store.commits}", "commitOid": f"{store.commits:040}"})

        def _action(self, wanted: dict[str, Any]) -> dict[str, Any]:
            here = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] in store.objects:
                return here
            return {**here, "actions": {"upload": {"href": f"{store.url}/lfs/{wanted['oid']}"}}}

        def _is_known(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _send(self, answer: Any, status: int = 200, error: str = "") -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/json")
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            self.wfile.write(data)

    with listening(Handler) as store.url:
        yield store
