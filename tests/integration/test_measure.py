"""jobs.measure as a command: on a pool of two Ray workers and in one process, with metrics linked in MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from altdiffusion.lineage.mlflow_view import find_model
from altdiffusion.lineage.tracking import connect
from altdiffusion.storage import evaluations, files
from altdiffusion.storage.dataset import Lake
from jobs.evaluate import JOB as EVALUATE
from jobs.harness import main
from jobs.measure import JOB
from tests import generation_lake, lineage_lake, measure_lake
from tests.ray_folder import embedded_ray


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
    with embedded_ray():
        pool = run(tmp_path, lake, "pool", execution={"backend": "ray", "num_cpus": 2}, workers={"min": 2, "max": 2})
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


def test_an_evaluation_measures_what_it_draws(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path)
    rows = [row | {"width": 16, "height": 16} for row in measure_lake.prompts() if row["concept"] in ("c0", "c1", "c2")]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    real = [
        {"sample_id": n, "language": "en", "image": measure_lake.png(n), "image_sha256": f"{n:064x}"} for n in range(6)
    ]
    lineage_lake.publish(Lake(lake), "images", "images", real, [])
    labels = pa.table({"sample_id": pa.array(range(6), pa.int64()), "concept": [f"c{n % 3}" for n in range(6)]})
    pq.write_table(labels, tmp_path / "labels.parquet")
    tree = {
        "name": "small", "lake": lake, "cases": str(tmp_path / "cases.jsonl"), "output": str(tmp_path / "out"),
        "labels": str(tmp_path / "labels.parquet"), "autoencoder": f"{lake}/models/base/vae",
        "states": [{"name": "base", "model": {"folder": f"{lake}/models/base"}}], "judge": {"steps": 2},
        "sampling": {"steps": 2, "batch_rows": 4, "rows_per_unit": 4}, "execution": {"backend": "inline"},
        "measures": measure_lake.settings(tmp_path, measures=["kid", "cmmd", "clip_sim_native"], reference="images"),
    }  # fmt: skip
    path = tmp_path / "evaluate.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert main(EVALUATE, ["--config", str(path), "--dry-run"]) == 0
    assert main(EVALUATE, ["--config", str(path)]) == 0
    kept = json.loads(files.read_bytes(evaluations.uri_of(lake, "small")))
    written = json.loads((tmp_path / "out-measures.json").read_text())
    assert kept["measures"] == written and kept["states"][0]["state"] == "base"
    assert set(written["states"]["base"]) == {"kid", "cmmd", "clip_sim_native"}
    assert set(written["states"]["base"]["kid"]["languages"]) == set(measure_lake.CODES)
    tree["measures"] = measure_lake.settings(tmp_path, reference="images")
    path.write_text(yaml.safe_dump(tree))
    assert main(EVALUATE, ["--config", str(path), "--dry-run"]) == 2  # three images per language do not suffice for FID
