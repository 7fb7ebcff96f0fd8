"""References: the names of things that have a digest, in manifests, logs and commands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from altdiffusion.errors import AltDiffusionError

RefKind = Literal["source", "blocklist", "dataset", "checkpoint", "model"]
KINDS: tuple[RefKind, ...] = get_args(RefKind)
# A name has one or several parts. None may be "." or "..", since the name becomes a path below the lake.
_PART = r"(?!\.{1,2}(?:[/@]|$))[A-Za-z0-9._\-]+"
_PATTERN = re.compile(rf"(?P<kind>[a-z]+):(?P<name>{_PART}(?:/{_PART})*)@(?P<digest>[0-9a-f]{{8,64}})")


@dataclass(frozen=True, order=True)
class Ref:
    """`kind:name@digest`; the digest is SHA-256 in hex, or a prefix of at least 8 digits when a person types it."""

    kind: RefKind
    name: str
    digest: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}@{self.digest}"

    @property
    def short(self) -> str:
        """The reference with 12 digits of the digest, for display."""
        return f"{self.kind}:{self.name}@{self.digest[:12]}"

    def matches(self, other: Ref) -> bool:
        """Return whether this (possibly shortened) reference names `other`."""
        return (self.kind, self.name) == (other.kind, other.name) and other.digest.startswith(self.digest)

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Parse `kind:name@digest`.

        Raises:
            AltDiffusionError: the text is not of that form, or its kind is unknown.
        """
        match = _PATTERN.fullmatch(text)
        if match is None or match["kind"] not in KINDS:
            raise AltDiffusionError(
                f"reference {text!r}",
                "is not of the form kind:name@digest",
                f"write one of {', '.join(KINDS)}, a name and at least 8 hex digits, like dataset:links@0123abcd",
            )
        return cls(cast(RefKind, match["kind"]), match["name"], match["digest"])
