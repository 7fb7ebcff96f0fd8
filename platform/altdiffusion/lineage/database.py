"""The SQLite database of a lake: one process at a time creates it, and an unfinished one is created again.

MLflow creates its tables by about sixty migrations. Two processes that do so at once, or one that is killed meanwhile,
leave a database that MLflow refuses from then on. So the first contact is under a lock, and an empty database that
lacks migrations is replaced by a new one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from altdiffusion.storage.locks import held

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 8.0
"""Longest wait for a single transaction of another program."""
FIRST_CONTACT_TIMEOUT_S = 180.0
"""Longest wait for another job that creates the tables; migrations take seconds, on a busy machine a minute."""


@contextlib.contextmanager
def first_contact(path: str, timeout_s: float = FIRST_CONTACT_TIMEOUT_S) -> Iterator[None]:
    """Hold the database's lock, so that one process at a time creates or checks its tables.

    Args:
        path: the SQLite file; the lock is the file `<path>.lock` next to it.

    Raises:
        AltDiffusionError: another process holds the lock for longer than `timeout_s`.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with held(f"{path}.lock", f"MLflow database {path}", timeout_s):
        _check_writable(path)
        _set_unfinished_aside(path)
        yield


def _check_writable(path: str) -> None:
    """Check that the file can be created, read and written, since MLflow itself would wait 20 s for each lock."""
    with closing(sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")


def _set_unfinished_aside(path: str) -> None:
    with closing(sqlite3.connect(path, timeout=LOCK_TIMEOUT_S)) as database:
        if not _is_unfinished(database):
            return
    number = next(number for number in range(1, 1000) if not os.path.exists(f"{path}.unfinished-{number}"))
    aside = f"{path}.unfinished-{number}"
    os.rename(path, aside)
    log.warning("MLflow database %s is unfinished and holds no run: moved to %s, a new one is created", path, aside)


def _is_unfinished(database: sqlite3.Connection) -> bool:
    """Return whether there are tables, but no run and no experiment of a user, and migrations are missing."""
    tables = {str(name) for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return False
    if "runs" in tables and database.execute("SELECT count(*) FROM runs").fetchone()[0]:
        return False
    if "experiments" in tables and database.execute("SELECT count(*) FROM experiments").fetchone()[0] > 1:
        return False  # one experiment is MLflow's own, "Default"
    applied = (
        database.execute("SELECT version_num FROM alembic_version").fetchall() if "alembic_version" in tables else []
    )
    return applied != [(_newest_migration(),)]


def _newest_migration() -> str | None:
    found = _migrations().get_current_head()
    return None if found is None else str(found)


def is_known_migration(revision: str) -> bool:
    """Return whether the installed MLflow knows a schema; one that it does not know is of a newer MLflow."""
    return any(script.revision == revision for script in _migrations().walk_revisions())


def _migrations() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    spec = importlib.util.find_spec("mlflow")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("mlflow")
    return ScriptDirectory(str(Path(spec.origin).parent / "store" / "db_migrations"))
