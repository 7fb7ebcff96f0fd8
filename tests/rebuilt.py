"""What an MLflow store shows, without what cannot be equal in another store: ids, and lineage.html."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from altdiffusion.lineage.tracking import Tracking


def everything(tracking: Tracking, folder: Path) -> dict[str, Any]:
    """Return all fields of all runs and models by name; ids of models are replaced by what they are models of.

    Args:
        folder: an empty folder, for downloads.
    """
    client, experiment = tracking.client, tracking.experiment_id
    models = {model.model_id: model for model in client.search_logged_models([experiment])}
    names = {model_id: model.tags["lineage.ref"] for model_id, model in models.items()}
    runs = client.search_runs([experiment])
    jobs = {run.info.run_id: run.info.run_name for run in runs}
    shown: dict[str, Any] = {
        ref: _model(models[model_id], jobs) for model_id, ref in sorted(names.items(), key=lambda item: item[1])
    }
    assert len(shown) == len(models)
    shown["registered"] = _registered(tracking, jobs)
    for run in runs:
        key = (run.info.run_name, run.data.tags["altdiffusion.fingerprint"])
        assert key not in shown
        shown[str(key)] = _run(tracking, run, names, folder)
    return shown


def _model(model: Any, jobs: dict[str, str]) -> Any:
    points = sorted(
        (m.key, m.value, m.step, m.timestamp, m.dataset_name, m.dataset_digest) for m in model.metrics or ()
    )
    source = jobs.get(model.source_run_id, "")
    return (model.name, model.model_type, str(model.status), dict(model.tags), dict(model.params), points, source)


def _registered(tracking: Tracking, jobs: dict[str, str]) -> Any:
    found = {}
    for model in tracking.client.search_registered_models():
        versions = tracking.client.search_model_versions(f"name = '{model.name}'")
        numbers = {str(one.version): one.tags["lineage.ref"] for one in versions}
        aliases = {alias: numbers[str(version)] for alias, version in model.aliases.items()}
        made = sorted((str(one.version), dict(one.tags), jobs.get(one.run_id, "")) for one in versions)
        found[model.name] = (model.description, aliases, made)
    return found


def _run(tracking: Tracking, run: Any, names: dict[str, str], folder: Path) -> Any:
    client = tracking.client
    place = folder / run.info.run_id
    place.mkdir()
    client.download_artifacts(run.info.run_id, "", str(place))
    points = {
        key: sorted(
            (point.step, point.timestamp, str(point.value)) for point in client.get_metric_history(run.info.run_id, key)
        )
        for key in run.data.metrics
    }
    outputs = run.outputs.model_outputs if run.outputs else []
    return {
        "info": (run.info.status, run.info.start_time, run.info.end_time, run.info.lifecycle_stage, run.info.user_id),
        "params": dict(run.data.params),
        "tags": dict(run.data.tags),
        "points": points,
        "datasets": sorted(
            (str(vars(one.dataset)), sorted((tag.key, tag.value) for tag in one.tags))
            for one in run.inputs.dataset_inputs
        ),
        "models": sorted(names[one.model_id] for one in run.inputs.model_inputs or ()),
        "made": sorted((names[one.model_id], one.step) for one in outputs),
        "files": {
            str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(place.rglob("*"))
            if path.is_file() and path.name != "lineage.html"
        },
        "pages": [path.name for path in place.rglob("lineage.html")],
    }
