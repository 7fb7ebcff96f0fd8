"""Reports of evaluations, kept in the lake so that a model's card can quote them.

<lake>/evaluations/<name>.json     the newest report of that name; `models` holds the content digest of each state
<lake>/evaluations/outcomes/<sha256>.parquet    what the judges found per state and case; the report names it

A report without `outcomes` was made by an earlier version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files, shards
from altdiffusion.storage.documents import NAME, Document, read_document

FOLDER = "evaluations"


def uri_of(lake: str, name: str) -> str:
    """Return the URI of an evaluation's report.

    Raises:
        AltDiffusionError: the name is not a plain name.
    """
    if not NAME.fullmatch(name):
        raise AltDiffusionError(f"evaluation {name[:200]!r}", "is not a plain name", "give a name without a path")
    return files.within(lake, FOLDER, f"{name}.json")


def write(
    lake: str,
    name: str,
    report: Mapping[str, Any],
    models: Mapping[str, str],
    *,
    protocol: Mapping[str, Any] | None = None,
    outcomes: pa.Table | None = None,
) -> None:
    """Write the report of an evaluation; it replaces an older one.

    Args:
        report: as returned by evaluation.table.Report.to_json.
        models: content digest of each state's model folder.
        protocol: what decides outcomes besides the model; evaluations with equal protocols can be compared.
        outcomes: what the judges found, one row per state and case.
    """
    document = {**report, "models": dict(models)}
    if protocol is not None and outcomes is not None:
        data = shards.encode(outcomes)
        sha256 = files.sha256_hex(data)
        files.write_atomic(_outcomes_uri(lake, sha256), data)
        document |= {"protocol": dict(protocol), "outcomes": sha256}
    files.write_atomic(uri_of(lake, name), files.canonical_json(document))


def _outcomes_uri(lake: str, sha256: str) -> str:
    return files.within(lake, FOLDER, "outcomes", f"{sha256}.parquet")


def read_outcomes(lake: str, name: str, sha256: str) -> pa.Table:
    """Return what the judges of an evaluation found, one row per state and case.

    Raises:
        AltDiffusionError: the file is missing or damaged.
    """
    remedy = "run the evaluation again"
    try:
        data = files.read_bytes(_outcomes_uri(lake, sha256))
    except FileNotFoundError as error:
        raise AltDiffusionError(f"outcomes of evaluation {name}", "are missing", remedy) from error
    if files.sha256_hex(data) != sha256:
        raise AltDiffusionError(f"outcomes of evaluation {name}", f"do not have the SHA-256 {sha256[:12]}", remedy)
    return pq.read_table(pa.BufferReader(data))


def names(lake: str) -> list[str]:
    """Return the names of all evaluations that a lake keeps."""
    found = files.list_names(files.join(lake, FOLDER))
    return sorted(name.removesuffix(".json") for name in found if name.endswith(".json") and NAME.fullmatch(name))


def extend(lake: str, name: str, part: Mapping[str, Any]) -> None:
    """Add keys to the report of an evaluation that was written before; equal keys are replaced."""
    uri = uri_of(lake, name)
    files.write_atomic(uri, files.canonical_json({**read_document(uri).value, **part}))


def of_model(lake: str, content: str) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Yield (name, report, state) of every evaluation of a model folder with this content digest, ordered by name."""
    for name in names(lake):
        report = read_document(uri_of(lake, name))
        models = report.object("models").value
        for state in report.objects("states"):
            if models.get(state.text("state")) == content:
                _check(report, state)
                yield name, report.value, state.value


def _check(report: Document, state: Document) -> None:
    """Check the values of a report that are quoted, so that an error names a damaged report."""
    if "languages" not in state.value:
        return
    report.number("level"), report.number("chance"), state.count("concepts")
    rates = state.object("languages").object("all")
    for code in rates.value:
        rate = rates.object(code)
        rate.number("low"), rate.number("high"), rate.number("value"), rate.count("total")
