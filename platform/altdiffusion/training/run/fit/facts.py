"""Facts about a run, stated by several parties."""

from __future__ import annotations

from typing import Any

from altdiffusion.errors import AltDiffusionError


class Facts:
    """The first value of each name, and its place; another value of the name is an error that names both.

    Args:
        run: the name of the run, for errors.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._known: dict[str, tuple[Any, str]] = {}

    def state(self, name: str, value: Any, place: str, remedy: str) -> None:
        """Note a value of a fact.

        Args:
            place: where the value is, in words.
            remedy: what to do where another place has another value.

        Raises:
            AltDiffusionError: another value is known.
        """
        known, first = self._known.setdefault(name, (value, place))
        if known != value:
            raise AltDiffusionError(
                f"run {self._run}, {name}", f"is {shown(known)} in {first}, but {shown(value)} in {place}", remedy
            )


def shown(value: Any) -> str:
    """Return a value for people; a digest by its first characters."""
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    return f"{value:g}" if isinstance(value, float) else str(value)
