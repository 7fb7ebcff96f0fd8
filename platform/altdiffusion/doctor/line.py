"""One line of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from altdiffusion.errors import AltDiffusionError, first_line

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclass(frozen=True)
class Line:
    """What one check found; the remedy is empty where all is well."""

    level: str
    name: str
    found: str
    remedy: str = ""
    node: str = ""
    """Address of the node that it is about; empty for this machine."""

    def __str__(self) -> str:
        remedy = f"  ({self.remedy})" if self.remedy else ""
        node = f"{self.node}  " if self.node else ""
        return f"{self.level:<4}  {node}{self.name:<14}  {self.found}{remedy}"


def guarded(name: str, check: Callable[[], Iterable[Line]]) -> Iterator[Line]:
    """Yield the lines of a check; an exception of its becomes a line that fails."""
    try:
        yield from check()
    except AltDiffusionError as error:
        yield Line(FAIL, name, f"{error.what} {error.problem}", error.remedy)
    except Exception as error:
        remedy = "report it with this line: the check itself failed"
        yield Line(FAIL, name, f"{type(error).__name__}: {first_line(error)}", remedy)
