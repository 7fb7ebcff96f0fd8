"""The one error that a user can cause: it names the thing, the problem and the remedy."""

from __future__ import annotations

from altdiffusion.credentials import redact_all


class AltDiffusionError(Exception):
    """A failure that its reader can fix. Credentials in its texts are hidden.

    Args:
        what: the thing, by name: a file, a config key with its value, a dataset version, an address.
        problem: what is wrong with it, one clause.
        remedy: what to do about it, one clause.

    Jobs print it without a traceback and exit with status 2.
    """

    def __init__(self, what: str, problem: str, remedy: str) -> None:
        what, problem, remedy = redact_all(what, problem, remedy)
        super().__init__(what, problem, remedy)  # all three in args: it pickles across Ray workers
        self.what = what
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}: {self.problem}. Remedy: {self.remedy}"


class Resumable(AltDiffusionError):
    """The work was stopped on request and can be continued."""

    status = 143
    """Exit status of the job: 128 plus the number of the signal, SIGTERM unless it was another one."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, at most 300 characters; its class where it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
