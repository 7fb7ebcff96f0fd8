"""The one error a user can cause: it names the thing, the problem and the remedy."""

from __future__ import annotations

from altdiffusion.credentials import redact


class AltDiffusionError(Exception):
    """A failure that its reader can fix. Credentials in its texts are hidden.

    Args:
        what: the thing, by name: a file, a config key with its value, a dataset version, an address.
        problem: what is wrong with it, one clause.
        remedy: what to do about it, one clause.

    Jobs print it without a traceback and exit with status 2.
    """

    def __init__(self, what: str, problem: str, remedy: str) -> None:
        what, problem, remedy = redact(what), redact(problem), redact(remedy)
        super().__init__(what, problem, remedy)  # all three in args: it pickles across Ray workers
        self.what = what
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}: {self.problem}. Remedy: {self.remedy}"


class Resumable(AltDiffusionError):
    """The work was told to stop and has left everything to go on from. Jobs exit with status 143, as after SIGTERM."""
