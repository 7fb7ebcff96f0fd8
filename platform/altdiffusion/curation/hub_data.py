"""Data sets of the Hugging Face hub as sources: `hf://datasets/OWNER/NAME@<commit>`, as a whole or below a path."""

from __future__ import annotations

import re
from dataclasses import dataclass

from altdiffusion.errors import AltDiffusionError

_SCHEME = "hf://"
_PINNED = re.compile(r"hf://datasets/(?P<repo>[\w.\-]+/[\w.\-]+)@(?P<revision>[0-9a-f]{40})(?P<below>/.*)?")


@dataclass(frozen=True, kw_only=True)
class HubSet:
    """A data set of the hub at one commit."""

    repo: str
    revision: str

    @property
    def uri(self) -> str:
        """Address of the whole data set."""
        return f"{_SCHEME}datasets/{self.repo}@{self.revision}"


def check_pinned(uri: str) -> None:
    """Check that a data set of the hub is pinned to a commit.

    Raises:
        AltDiffusionError: the address is of the hub, but not of a data set at one commit.
    """
    if not uri.startswith(_SCHEME) or _PINNED.fullmatch(uri):
        return
    name = uri.removeprefix(_SCHEME).removeprefix("datasets/").partition("@")[0]
    if name.count("/") == 0:
        problem = "is not a data set of the hub: these have an owner and a name"
        raise AltDiffusionError(f"source {uri}", problem, f"write hf://datasets/<owner>/{name}@<commit>")
    raise AltDiffusionError(
        f"source {uri}",
        "is not a data set of the hub at one commit, and a name or branch may mean other data tomorrow",
        f"write hf://datasets/{name}@<commit> with the 40 hex digits of a commit in its history",
    )


def whole_set(uri: str) -> HubSet | None:
    """Return the data set that an address names as a whole; None where it names anything else.

    Raises:
        AltDiffusionError: the address is of the hub, but not of a data set at one commit.
    """
    check_pinned(uri)
    match = _PINNED.fullmatch(uri)
    if match is None or (match["below"] or "").strip("/"):
        return None
    return HubSet(repo=match["repo"], revision=match["revision"])
