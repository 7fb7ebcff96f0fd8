"""jobs.measure as a command: on a pool of two Ray workers and in one process, with metrics linked in MLflow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from altdiffusion.config import load_config
from altdiffusion.lineage.mlflow_view import find_model
from altdiffusion.lineage.tracking import connect
from altdiffusion.storage import evaluations, files
from altdiffusion.storage.dataset import Lake
from jobs.evaluate import JOB as EVALUATE
from jobs.harness import main
from jobs.measure import JOB
from pipelines.evaluate import EvaluateConfig, cases_as_prompts
from tests import generation_lake, lineage_lake, measure_lake
from tests.ray_folder import embedded_ray


def run(root: Path, lake: str, name: str, **changes: object) -> dict[str, object]:
    tree = measure_lake.config(root, lake, name=name, output=str(root / name), **changes)
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert main(JOB, ["--config", str(path)]) == 0
    found: dict[str, object] = json.loads((root / f"{name}.json").read_text())
    return found


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """Run a Ray of two CPUs for the tests that need a pool."""
    with embedded_ray():
        yield


@pytest.mark.usefixtures("ray")
def test_one_process_and_two_workers_give_the_same_version_values_and_linked_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = measure_lake.make_lake(tmp_path)
    alone = run(tmp_path, lake, "alone")
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


AUTHORS = "jobs/configs/m18/evaluate.yaml"


def tiny(root: Path, lake: str) -> list[str]:
    """Return what makes the authors' protocol tiny: folders, devices, two steps, and 8 prompts in two languages."""
    rows = [
        row | {"english": f"en{row['concept'][1:]}", "width": 16, "height": 16}
        for row in measure_lake.prompts()
        if row["language"] != "ja" and int(row["concept"][1:]) < 8
    ]
    (root / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bodies = [measure_lake.png(n) for n in range(8)]
    real = [
        {"sample_id": n, "language": "en", "image": body, "image_sha256": hashlib.sha256(body).hexdigest()}
        for n, body in enumerate(bodies)
    ]
    lineage_lake.publish(Lake(lake), "images", "images", real, [])
    labels = pa.table({"sample_id": pa.array(range(8), pa.int64()), "concept": [f"c{n}" for n in range(8)]})
    pq.write_table(labels, root / "labels.parquet")
    settings = measure_lake.settings(root)
    return [
        f"lake={lake}", "tracking={}", f"cases={root}/cases.jsonl",
        *(f"states.{place}.model={{folder: {lake}/models/base}}" for place in range(5)),
        "sampling.steps=2", "sampling.device=cpu", "sampling.dtype=float32", "sampling.batch_rows=4",
        "sampling.rows_per_unit=4", "measures.device=cpu", "measures.batch=4", "measures.reference=images",
        *(f"measures.network.{key}={settings['network'][key]}" for key in ("file", "sha256", "side", "width")),
        *(f"measures.judge.{key}={settings['judge'][key]}" for key in ("folder", "digest", "languages", "text_tokens")),
        "workers={min: 2, max: 2}", "execution.num_cpus=2",
    ]  # fmt: skip


def test_the_authors_protocol_dry_runs_at_its_own_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = generation_lake.make_lake(tmp_path)
    overrides = [one for one in tiny(tmp_path, lake) if not one.startswith("sampling.steps")]
    output = f"output={tmp_path}/out"
    assert main(EVALUATE, ["--config", AUTHORS, *overrides, output, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "ddim, 50 steps, guidance 9, 1 per prompt" in printed and "seed: 54551" in printed
    assert "measures  fid, is, clip_sim_english, clip_sim_native; 8 images or more per language" in printed
    assert "judge  none: no labels are given" in printed
    assert cases_as_prompts(load_config(EvaluateConfig, AUTHORS)).default_size == 512  # of cases without a size
    culture = ["measures.measures=[is, clip_sim_english, clip_sim_native]", "measures.reference=null", "name=m18-mc18"]
    assert main(EVALUATE, ["--config", AUTHORS, *overrides, output, *culture, "--dry-run"]) == 0
    lines = (tmp_path / "cases.jsonl").read_text().splitlines()
    (tmp_path / "cases.jsonl").write_text("\n".join(lines[:12]) + "\n")
    assert main(EVALUATE, ["--config", AUTHORS, *overrides, output, "--dry-run"]) == 2
    assert "images in en" in capsys.readouterr().err  # six do not suffice for FID


@pytest.mark.usefixtures("ray")
def test_the_authors_protocol_gives_the_same_in_one_process_and_on_two_workers(tmp_path: Path) -> None:
    """Same images, outcomes and measures, with a judge and a sweep too; each state has its own metrics and card."""
    lake = generation_lake.make_lake(tmp_path)
    judge = [f"labels={tmp_path}/labels.parquet", f"autoencoder={lake}/models/base/vae", "judge={steps: 2, seeds: 2}"]
    states = f"states=[{{name: base, model: {{folder: {lake}/models/base}}}}]"
    overrides = [*tiny(tmp_path, lake), *judge, "sweep={guidance_scale: [1, 9]}", states]

    def evaluate(name: str, *more: str) -> dict[str, object]:
        arguments = ["--config", AUTHORS, *overrides, f"name={name}", f"output={tmp_path}/{name}", *more]
        assert main(EVALUATE, arguments) == 0
        document: dict[str, object] = json.loads(files.read_bytes(evaluations.uri_of(lake, name)))
        return document

    alone = evaluate("alone", "execution.backend=inline")
    pool = evaluate("pool")
    assert alone == pool and alone["outcomes"] == pool["outcomes"]
    for made in ("base", "base-g1", "base-features", "base-g1-features", "prompts"):
        one, other = (measure_lake.published(lake, f"{name}-{made}") for name in ("alone", "pool"))
        assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in other.shards]
    assert set(measure_lake.published(lake, "pool-base").read(["seed"])["seed"].to_pylist()) == {54551}
    pages = [(tmp_path / f"{name}.html").read_text() for name in ("alone", "pool")]
    assert pages[0].replace("alone", "pool") == pages[1] and "over guidance scale" in pages[1]
    measures = alone["measures"]
    assert isinstance(measures, dict) and set(measures["states"]) == {"base", "base-g1"}
    assert set(measures["states"]["base"]) == {"fid", "is", "clip_sim_english", "clip_sim_native"}
    assert measures == json.loads((tmp_path / "alone-measures.json").read_text())
