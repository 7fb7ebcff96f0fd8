"""The MLflow database of a lake that was moved or copied: its absolute addresses are made those of the lake again.

MLflow stores where artifacts are as absolute addresses: of experiments, runs and LoggedModels, and our records add the
folders of datasets and checkpoints. A copy of the lake would read and write the artifacts of the original. So the
first program that opens the database in a lake puts this right, in one transaction. Addresses below another
lake's folder, which the experiments name as `<that lake>/mlartifacts`, become the same ones below this lake.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from contextlib import closing

from altdiffusion.lineage.database import LOCK_TIMEOUT_S

log = logging.getLogger(__name__)

ARTIFACTS = "mlartifacts"
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_FOLDERS = (
    ("logged_model_tags", "tag_value", "tag_key IN ('lineage.uri', 'lineage.export')"),
    ("model_version_tags", "value", "key = 'lineage.export'"),
)


def reanchor(database: str, lake: str) -> None:
    """Make the addresses in a lake's own database those of this lake; nothing happens where they are already.

    Args:
        database: the SQLite file; one that is not in the lake's folder is left alone.
        lake: the lake's folder.
    """
    here = os.path.abspath(lake)
    if os.path.realpath(os.path.dirname(os.path.abspath(database))) != os.path.realpath(here):
        return
    with closing(sqlite3.connect(database, timeout=LOCK_TIMEOUT_S, isolation_level=None)) as connection:
        moved = _old_places(connection, here)
        if not moved:
            return
        connection.execute("BEGIN IMMEDIATE")
        for old in moved:
            _replace(connection, old, here)
        connection.execute("COMMIT")
    log.warning("MLflow database %s was written at %s: its addresses are now below %s", database, moved[0], here)


def _old_places(connection: sqlite3.Connection, here: str) -> list[str]:
    """Return the folders of lakes, other than this one, whose artifacts the experiments name."""
    tables = {str(name) for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {table for table, *_ in (*_ADDRESSES, *_FOLDERS)} | {"datasets"} <= tables:
        return []  # not created yet, or by an MLflow that is refused next
    found = []
    for (address,) in connection.execute("SELECT DISTINCT artifact_location FROM experiments"):
        folder, _, name = _path(str(address or "")).rpartition("/")
        if name == ARTIFACTS and os.path.realpath(folder) != os.path.realpath(here):
            found.append(folder)
    return found


def _path(address: str) -> str:
    """Return the path of a file address, which is stored without its prefix where a user created the experiment."""
    return address.removeprefix("file://") if address.startswith(("file:///", "/")) else ""


def _replace(connection: sqlite3.Connection, old: str, new: str) -> None:
    for prefix in ("file://", ""):
        before, after = f"{prefix}{old}/{ARTIFACTS}", f"{prefix}{new}/{ARTIFACTS}"
        for table, column in _ADDRESSES:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                (after, len(before) + 1, before, len(before) + 1, f"{before}/"),
            )
    for table, column, where in _FOLDERS:
        connection.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {where} AND substr({column}, 1, ?) = ?",
            (f"{new}/", len(old) + 2, len(old) + 1, f"{old}/"),
        )
    for key, source in connection.execute("SELECT dataset_uuid, dataset_source FROM datasets").fetchall():
        uri = _source(source)
        if uri.startswith(f"{old}/"):
            value = json.dumps({"uri": new + uri.removeprefix(old)})
            connection.execute("UPDATE datasets SET dataset_source = ? WHERE dataset_uuid = ?", (value, key))


def _source(text: str) -> str:
    try:
        return str(json.loads(text)["uri"])
    except (ValueError, KeyError, TypeError):  # of another program
        return ""
