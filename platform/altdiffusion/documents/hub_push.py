"""Upload of a dataset's version or of a model folder to the Hugging Face hub, so that running it again completes it.

Files that the repository has already, by their hashes, are not sent again. They are committed in parts; the card comes
with the last one. Of a dataset, files in `shards/` that are not the version's are removed in that commit: what was
taken down since the last push must not stay. (It stays in the repository's history until its owner removes that.)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage import files

_TARGET = re.compile(r"hf://(?P<repo>[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*)")
_PART_BYTES = 1 << 30
_PART_FILES = 50
CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class PushFile:
    """One file to upload."""

    path: str
    """Path in the repository."""
    size: int
    """Bytes."""
    uri: str | None = None
    """Where it is; None where `data` is its content."""
    data: bytes = b""
    sha256: str | None = None
    """SHA-256 (hex) that the file has to have; None where none is known."""

    def read(self) -> bytes:
        """Return the content.

        Raises:
            AltDiffusionError: its SHA-256 is another one.
        """
        content = self.data if self.uri is None else files.read_bytes(self.uri)
        if self.sha256 is not None and files.sha256_hex(content) != self.sha256:
            raise AltDiffusionError(
                f"file {self.uri}", "is damaged: its SHA-256 is not its name", "run `altdiffusion dataset verify` on it"
            )
        return content


@dataclass(frozen=True, kw_only=True)
class Push:
    """What is uploaded, and where to."""

    repo: str
    repo_type: Literal["model", "dataset"]
    files: tuple[PushFile, ...]

    @property
    def card(self) -> str:
        """Text of the card; empty where there is none."""
        return next((file.read().decode() for file in self.files if file.path == CARD), "")


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push has done."""

    url: str
    sent: int
    """Files that were sent."""
    removed: int
    """Shards of an earlier version that were removed."""
    is_private: bool


def repository(target: str) -> str:
    """Return owner/name of `hf://owner/name`.

    Raises:
        AltDiffusionError: it is not of this form.
    """
    match = _TARGET.fullmatch(target.rstrip("/"))
    if match is None:
        raise AltDiffusionError(f"target {target}", "is not a repository of the hub", "write hf://owner/name")
    return match["repo"]


def push(what: Push, *, public: bool, announce: Callable[[str], None]) -> Pushed:
    """Upload the files, with HF_TOKEN, to a repository that is made if it is not there.

    Args:
        public: whether everyone may read the repository.
        announce: gets a line per commit.

    Raises:
        AltDiffusionError: HF_TOKEN is not set, not accepted or may not write; the hub cannot be reached; the repository
            is public although `public` is false; a file is damaged.
    """
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise AltDiffusionError("HF_TOKEN", "is not set", "set it to a token of the hub that may write")
    with _naming(what.repo):
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if not sys.stderr.isatty():
            disable_progress_bars()
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
        api.whoami()
        is_private = _prepared(api, what, public)
        there = _listing(api, what)
        wanted = {file.path for file in what.files}
        stale = [path for path in there if path.startswith("shards/") and path not in wanted]
        stale = stale if what.repo_type == "dataset" else []
        sent = _commit(api, what, there, stale, announce)
        prefix = "datasets/" if what.repo_type == "dataset" else ""
        url = f"{api.endpoint}/{prefix}{what.repo}"
    return Pushed(url=url, sent=sent, removed=len(stale), is_private=is_private)


def _prepared(api: Any, what: Push, public: bool) -> bool:
    """Make the repository if it is not there, and return whether it is private."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(what.repo, repo_type=what.repo_type)
    except RepositoryNotFoundError:
        api.create_repo(what.repo, repo_type=what.repo_type, private=not public)
        return not public
    if not info.private and not public:
        raise AltDiffusionError(
            f"hf://{what.repo}", "is public, and --public is not given", "add --public, or name another repository"
        )
    return bool(info.private)


def _listing(api: Any, what: Push) -> dict[str, Any]:
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(what.repo, recursive=True, repo_type=what.repo_type)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _commit(
    api: Any, what: Push, there: Mapping[str, Any], stale: Sequence[str], announce: Callable[[str], None]
) -> int:
    """Commit the missing files in parts, the card and removals last; return how many files were sent."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    part: list[Any] = []
    sent = size = 0
    for file in sorted(what.files, key=lambda file: file.path == CARD):
        entry = there.get(file.path)
        if entry is not None and entry.lfs is not None and file.sha256 == entry.lfs.sha256:
            continue
        if part and file.path != CARD and (len(part) >= _PART_FILES or size + file.size > _PART_BYTES):
            _send(api, what, part, announce)
            part, size = [], 0
        content = file.read()
        if entry is not None and _hash_like(entry, content) == (entry.lfs.sha256 if entry.lfs else entry.blob_id):
            continue
        part.append(CommitOperationAdd(file.path, content))
        sent, size = sent + 1, size + file.size
    part += [CommitOperationDelete(path) for path in stale]
    if part:
        _send(api, what, part, announce)
    return sent


def _hash_like(entry: Any, content: bytes) -> str:
    """Return the hash of content of the kind that the hub lists for a file: SHA-256 (LFS), or git's blob id."""
    if entry.lfs is not None:
        return files.sha256_hex(content)
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _send(api: Any, what: Push, operations: Sequence[Any], announce: Callable[[str], None]) -> None:
    api.create_commit(what.repo, operations, commit_message=f"Upload {len(operations)} files", repo_type=what.repo_type)
    announce(f"committed {len(operations)} files")


@contextlib.contextmanager
def _naming(repo: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one error with the repository's name and a remedy."""
    try:
        yield
    except AltDiffusionError:
        raise
    except Exception as error:
        from huggingface_hub import errors

        what = f"hf://{repo}"
        again = "run the same command again: what has arrived is not sent again"
        if isinstance(error, errors.HfHubHTTPError):
            status = error.response.status_code if error.response is not None else 0
            problem, remedy = {
                401: ("is refused: the hub does not accept HF_TOKEN", "set HF_TOKEN to a valid token that may write"),
                403: ("is refused: HF_TOKEN may not write to it", "use a token with write access to this owner"),
            }.get(status, (f"cannot be written (the hub answered {status})", again))
        elif isinstance(error, errors.OfflineModeIsEnabled):
            problem, remedy = "cannot be reached: HF_HUB_OFFLINE forbids it", "unset HF_HUB_OFFLINE"
        elif isinstance(error, (OSError, RuntimeError)) or type(error).__module__.startswith(("httpx", "httpcore")):
            problem = f"cannot be written: the hub cannot be reached ({first_line(error)})"
            remedy = f"check the connection and HF_ENDPOINT; then {again}"
        elif isinstance(error, ValueError):
            problem, remedy = f"does not take these files ({first_line(error)})", "correct the card or the files"
        else:
            raise
        raise AltDiffusionError(what, problem, remedy) from error
