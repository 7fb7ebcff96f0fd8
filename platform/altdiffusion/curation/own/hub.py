"""Data sets of the Hugging Face hub as sources: `hf://datasets/OWNER/NAME@<commit>`, read file by file."""

from __future__ import annotations

import re

from altdiffusion.errors import AltDiffusionError

_SCHEME = "hf://"
_PINNED = re.compile(r"hf://datasets/[\w.\-]+(?:/[\w.\-]+)?@[0-9a-f]{40}(?:/.*)?")


def hub_folder(uri: str) -> str:
    """Return the address of a source after a check that a data set of the hub is pinned.

    Raises:
        AltDiffusionError: it is of the hub, but not a data set at one commit.
    """
    if not uri.startswith(_SCHEME) or _PINNED.fullmatch(uri):
        return uri
    name = uri.removeprefix(_SCHEME).removeprefix("datasets/").partition("@")[0]
    raise AltDiffusionError(
        f"source {uri}",
        "is not a data set of the hub at one commit, and a name or branch may mean other data tomorrow",
        f"write hf://datasets/{name}@<commit> with the 40 hex digits of a commit in its history",
    )
