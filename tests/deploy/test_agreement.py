"""The cluster files are what the values make of them, and give Ray the same nodes, settings and versions everywhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.render import ValuesError, read_values, rendered
from tests.deploy.clusters import KINDS, ROOT, environments, kuberay, launcher_file, node_types, spill_folders

VALUES = read_values()


def test_files_are_what_the_values_make_of_them() -> None:
    for path, text in rendered(VALUES).items():
        assert (ROOT / path).read_text() == text, f"{path}: run python -m deploy.render"


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_have_the_same_resources_on_every_kind_of_cluster(kind: str) -> None:
    found = node_types(kind)
    for name in ("curation", "a100"):
        same = dict(VALUES[name]["resources"])
        if kind == "gcp" and name == "a100":  # its machine has less memory
            same["memory"] = int(VALUES["gcp"]["memory_gib"]["a100"] * 2**30 * 0.7)
        assert found[name].resources == same, name
        if (kind, name) != ("slurm", "curation"):
            assert found[name].count == VALUES[name]["nodes"]
    if kind != "slurm":  # there the first node is head and worker
        assert found["head"].resources == {"CPU": 0}


@pytest.mark.parametrize("kind", KINDS)
def test_every_start_of_ray_has_the_same_environment(kind: str) -> None:
    wanted = {key: str(value) for key, value in VALUES["environment"].items()}
    found = environments(kind)
    assert found
    for environment in found:
        assert {key: environment.get(key) for key in wanted} == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_caches_are_on_the_disk_where_objects_spill(kind: str) -> None:
    """Models and rows by language are copied there: a home folder is on the root volume, or on a shared file system."""
    found, folders = environments(kind), spill_folders(kind)
    assert len(found) == len(folders) > 1
    assert [environment.get("XDG_CACHE_HOME") for environment in found] == [f"{folder}/cache" for folder in folders]
    if kind == "slurm":
        for path in (ROOT / "deploy/slurm").glob("*.sbatch"):
            text = path.read_text()
            assert f'spill="{VALUES["slurm"]["spill"]}/$SLURM_JOB_ID"' in text and 'rm -rf "$spill"' in text
    else:
        assert set(folders) == {VALUES["spill"]}


@pytest.mark.parametrize("kind", ["aws", "gcp"])
def test_nodes_log_in_to_the_registry_of_their_image(kind: str) -> None:
    own = {**VALUES, kind: VALUES[kind] | {"image": "registry.example.org/team/altdiffusion:1"}}
    files = rendered(own)
    made = yaml.safe_load(files["cluster.yaml" if kind == "aws" else "deploy/gcp/cluster.yaml"])
    (login,) = [line for line in made["initialization_commands"] if "docker" in line.split("|")[-1]]
    assert "registry.example.org" in login.split()
    if kind == "gcp":
        assert "configure-docker registry.example.org " in files["deploy/gcp/mlflow.sh"]


def test_the_example_of_own_values_has_what_an_aws_account_gives(tmp_path: Path) -> None:
    page = (ROOT / "docs/cluster.md").read_text()
    (example,) = re.findall(r"^cat > my.yaml <<'END'\n(.*?)^END$", page, re.M | re.S)
    (tmp_path / "my.yaml").write_text(example)
    made, given = read_values(str(tmp_path / "my.yaml")), yaml.safe_load(example)
    assert set(given["aws"]) == set(VALUES["aws"]) - {"machines"} and given["bucket"] != VALUES["bucket"]
    account, _, _, region, *_ = made["aws"]["image"].split(".")
    assert account.isdigit() and region == made["aws"]["region"] and made["aws"]["zone"].startswith(region)
    assert made["aws"]["image"].endswith(f"/{made['name']}:{VALUES['package']}-cuda")


def test_versions_are_those_of_the_package_and_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert VALUES["package"] == project["version"]
    assert VALUES["ray"] == version("ray") and f"\nray=={VALUES['ray']}\n" in (ROOT / "constraints.txt").read_text()
    assert {tree["rayVersion"] for tree in (kuberay("cluster.yaml")[0]["spec"], _train())} == {VALUES["ray"]}
    (base,) = re.findall(r"^ARG BASE=python:(\d+\.\d+)-", (ROOT / "deploy/Dockerfile").read_text(), re.M)
    assert base == VALUES["python"]
    images = [launcher_file(kind)["docker"]["image"] for kind in ("aws", "gcp")] + [VALUES["kubernetes"]["image"]]
    assert {image.rpartition(":")[2] for image in images} == {f"{VALUES['package']}-cuda"}


def _train() -> dict[str, Any]:
    found: dict[str, Any] = kuberay("train.yaml")[0]["spec"]["rayClusterSpec"]
    return found


def test_a_job_has_the_same_time_for_its_last_checkpoint_everywhere() -> None:
    grace = VALUES["grace_s"]
    assert grace == VALUES["environment"]["RAY_JOB_STOP_WAIT_TIME_S"]
    for group in (_train()["headGroupSpec"], *_train()["workerGroupSpecs"]):
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] == grace
    for path in (ROOT / "deploy/slurm").glob("*.sbatch"):
        (before,) = re.findall(r"--signal=B:USR1@(\d+)", path.read_text())
        assert int(before) >= grace + 120  # Ray's own end takes a minute


def test_ports_and_hosts_are_the_same_everywhere() -> None:
    ports = VALUES["ports"]
    for path in [*rendered(VALUES)]:
        text = (ROOT / path).read_text()
        assert set(re.findall(r"--port=(\d+)|RAY_HEAD_IP:(\d+)", text)) <= {
            (str(ports["gcs"]), ""),
            ("", str(ports["gcs"])),
        }
    uri = f"http://{VALUES['mlflow_host']}:{ports['mlflow']}"
    for config in (ROOT / "jobs/configs/m18").glob("*.yaml"):
        assert yaml.safe_load(config.read_text())["tracking"]["uri"] == uri, config


def test_no_file_has_a_secret() -> None:
    secret = re.compile(r"(PASSWORD|SECRET_KEY|TOKEN)\b\s*[=:]\s*['\"]?(?!\$|\\\$|postgres|\{)[A-Za-z0-9/+]{8,}")
    for path in (ROOT / "deploy").rglob("*"):
        if path.is_file() and path.suffix in (".yaml", ".sh", ".sbatch", ".j2", ".jinja"):
            assert not secret.search(path.read_text()), path


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"curation": {"node": 3}}, "curation.node is not a key of deploy/values.yaml; did you mean curation.nodes?"),
        ({"a100": {"nodes": "eight"}}, "a100.nodes is 'eight', but a whole number is needed; write it like 8"),
        ({"a100": {"nodes": -1}}, "a100.nodes is -1, but must not be negative"),
        ({"name": "My Cluster"}, "name is 'My Cluster', but must be a-z, 0-9 and -"),
        ({"gcp": {"machines": {"a100": None}}}, "gcp.machines.a100 is None, but a text is needed"),
        ({"aws": "us-east-1"}, "aws is 'us-east-1', but a mapping is needed"),
    ],
)
def test_own_values_are_checked(tmp_path: Path, given: dict[str, object], problem: str) -> None:
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(ValuesError) as caught:
        read_values(str(tmp_path / "my.yaml"))
    assert problem in str(caught.value)


def test_a_value_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("bucket: one\nbucket: two\n")
    with pytest.raises(ValuesError, match="the key bucket is given twice"):
        read_values(str(tmp_path / "my.yaml"))


def test_own_values_make_files_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("bucket: mine\na100: {nodes: 2, resources: {fast: 1}}\n")
    command = [sys.executable, "-m", "deploy.render", "--values", str(tmp_path / "my.yaml")]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "--values needs --to FOLDER" in refused.stderr
    subprocess.run([*command, "--to", str(tmp_path / "made")], cwd=ROOT, capture_output=True, check=True)
    made = yaml.safe_load((tmp_path / "made/cluster.yaml").read_text())["available_node_types"]["a100"]
    assert made["max_workers"] == 2 and made["resources"]["fast"] == 1 and made["resources"]["training"] == 8
    assert "gs://mine" not in (ROOT / "deploy/gcp/setup.sh").read_text()
    assert "bucket=mine" in (tmp_path / "made/deploy/gcp/setup.sh").read_text()
