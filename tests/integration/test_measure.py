"""jobs.measure as a command: on a pool of two Ray workers and in one process, with metrics linked in MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from altdiffusion.execution import cluster
from altdiffusion.lineage.mlflow_view import find_model
from altdiffusion.lineage.tracking import connect
from jobs.harness import main
from jobs.measure import JOB
from tests import measure_lake


def run(root: Path, lake: str, name: str, **changes: object) -> dict[str, object]:
    tree = measure_lake.config(root, lake, name=name, output=str(root / name), **changes)
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert main(JOB, ["--config", str(path)]) == 0
    found: dict[str, object] = json.loads((root / f"{name}.json").read_text())
    return found


def test_one_process_and_two_workers_give_the_same_version_values_and_linked_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = measure_lake.make_lake(tmp_path)
    alone = run(tmp_path, lake, "alone")
    try:
        pool = run(tmp_path, lake, "pool", execution={"backend": "ray", "num_cpus": 2}, workers={"min": 2, "max": 2})
    finally:
        cluster.shutdown()
    assert alone == pool
    for state in ("quality", "reference"):
        one, other = (measure_lake.published(lake, f"{name}-{state}-features") for name in ("alone", "pool"))
        assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in other.shards]
    assert "### fid (lower is better)" in (tmp_path / "alone.md").read_text()
    assert "resize: clean to 8 pixels" in (tmp_path / "alone.md").read_text()
    tracking = connect(None, lake, "altdiffusion")
    drawn = measure_lake.published(lake, "drawn")
    (origin,) = drawn.manifest.parent_refs
    found = find_model(tracking, str(origin))
    assert found is not None
    metrics = {metric.key: metric for metric in tracking.client.get_logged_model(found).metrics}
    fid = metrics["measured/quality/fid/de"]
    states = alone["states"]
    assert isinstance(states, dict) and fid.value == states["quality"]["fid"]["languages"]["de"]["value"]
    assert (fid.dataset_name, fid.dataset_digest, fid.step) == ("drawn", drawn.ref.digest[:32], 100)
    assert "measured/quality/retrieval_5/mean" in metrics
    capsys.readouterr()
    run(tmp_path, lake, "alone")
    assert "already there" in capsys.readouterr().out
