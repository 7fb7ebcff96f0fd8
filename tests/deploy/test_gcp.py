"""deploy/gcp/cluster.yaml as Ray's own launcher reads it, against a stand-in for Google's API: no cloud is asked.

The stand-in answers what Ray sends through Google's own client, with its discovery documents. The bodies of new
instances are held against the schema in these documents, which is what the API itself does with them.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httplib2
import pytest
from googleapiclient import discovery_cache
from ray.autoscaler._private import util as launcher
from ray.autoscaler._private.gcp import config as gcp_config
from ray.autoscaler._private.gcp import node as gcp_node
from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider
from ray.autoscaler.tags import TAG_RAY_LAUNCH_CONFIG, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from tests.deploy.clusters import ROOT, launcher_file

PROJECT = "your-project"
RAYS_ACCOUNT = f"ray-autoscaler-sa-v1@{PROJECT}.iam.gserviceaccount.com"
SETUP = (ROOT / "deploy/gcp/setup.sh").read_text()


class Cloud:
    """What setup.sh leaves in a project, and what is asked of it."""

    def __init__(self) -> None:
        member = f"serviceAccount:{RAYS_ACCOUNT}"
        (roles,) = re.findall(r"^for role in (.*); do$", SETUP, re.M)
        never = {"title": "never", "expression": 'request.time < timestamp("2020-01-01T00:00:00Z")'}
        assert f"title={never['title']},expression={never['expression']}" in SETUP
        self.policy = {
            "version": 3,
            "bindings": [{"role": f"roles/{role}", "members": [member], "condition": never} for role in roles.split()],
        }
        self.instances: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str]] = []

    def request(self, uri: str, method: str = "GET", body: Any = None, **_: Any) -> tuple[httplib2.Response, bytes]:
        """Answer as httplib2 does."""
        path = urlsplit(uri).path
        self.asked.append((method, path))
        found = self._answer(method, path, json.loads(body) if body else None)
        return httplib2.Response({"status": "200" if found is not None else "404"}), json.dumps(found or {}).encode()

    def close(self) -> None:
        pass

    def _answer(self, method: str, path: str, body: Any) -> Any:
        if path == f"/v1/projects/{PROJECT}" and method == "GET":
            return {"projectId": PROJECT, "lifecycleState": "ACTIVE"}
        if path.endswith(f"/serviceAccounts/{RAYS_ACCOUNT}"):
            return {"email": RAYS_ACCOUNT, "projectId": PROJECT, "disabled": True}
        if path.endswith(":getIamPolicy"):
            return self.policy
        if path.endswith("/instances") and method == "POST":
            self.instances.append(body)
            return {"name": "operation"}
        if path.endswith("/instances"):
            return {"items": [{**one, "status": "RUNNING"} for one in self.instances]}
        if "/operations/" in path:
            return {"status": "DONE"}
        return None


@pytest.fixture()
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    found = Cloud()

    class Http:
        def __new__(cls, *_: Any, **__: Any) -> Any:
            return found

    for module in (gcp_config, gcp_node):
        monkeypatch.setattr(module.httplib2, "Http", Http)
    monkeypatch.setenv("HOME", str(tmp_path))
    return found


def config() -> dict[str, Any]:
    given = copy.deepcopy(launcher_file("gcp"))
    given["provider"]["gcp_credentials"] = {"type": "credentials_token", "credentials": "token"}
    prepared = launcher.prepare_config(given)
    launcher.validate_config(prepared)
    made: dict[str, Any] = gcp_config.bootstrap_gcp(prepared)
    return made


def launch(cloud: Cloud, made: dict[str, Any], node_type: str) -> dict[str, Any]:
    """Start a node of a type as the launcher and the autoscaler do; return what the API is asked to make."""
    provider = GCPNodeProvider(made["provider"], made["cluster_name"])
    settings = copy.deepcopy(made["available_node_types"][node_type]["node_config"])
    kind = "head" if node_type == made["head_node_type"] else "worker"
    tags = {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: node_type, TAG_RAY_LAUNCH_CONFIG: "hash"}
    provider.create_node(settings, {**tags, "ray-node-name": f"ray-{kind}"}, 1)
    return cloud.instances[-1]


def misfits(value: Any, schema: dict[str, Any], schemas: dict[str, Any], at: str = "") -> Iterator[str]:
    """Yield what a body has that the API's own schema has not."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    kind = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}[schema["type"]]
    is_long = schema.get("format") in ("int64", "uint64") and isinstance(value, int)  # JSON has them as text
    if not isinstance(value, kind) and not is_long:
        yield f"{at}: {value!r} is not {schema['type']}"
    elif kind is list:
        for place, one in enumerate(value):
            yield from misfits(one, schema["items"], schemas, f"{at}[{place}]")
    elif kind is dict:
        for key, one in value.items():
            known = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if known is None:
                yield f"{at}.{key}: no such field"
            else:
                yield from misfits(one, known, schemas, f"{at}.{key}")
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is not one of {', '.join(schema['enum'])}"


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    path = Path(discovery_cache.DISCOVERY_DOC_DIR) / "compute.v1.json"
    found: dict[str, Any] = json.loads(path.read_text())["schemas"]
    return found


def test_nodes_of_every_type_are_what_the_api_takes(cloud: Cloud, schemas: dict[str, Any]) -> None:
    made = config()
    for node_type in made["available_node_types"]:
        body = launch(cloud, made, node_type)
        assert list(misfits(body, {"$ref": "Instance"}, schemas)) == [], node_type
        (card,) = body["networkInterfaces"]
        assert "accessConfigs" not in card, "no address on the internet"
        (account,) = body["serviceAccounts"]
        kind = "head" if node_type == "head" else "worker"
        assert account["email"] == f"altdiffusion-{kind}@{PROJECT}.iam.gserviceaccount.com"
        assert "for kind in head worker" in SETUP
    body["networkInterfaces"][0]["subnetwrk"] = body["disks"][0].pop("boot")
    body["scheduling"]["onHostMaintenance"] = "STOP"
    found = list(misfits(body, {"$ref": "Instance"}, schemas))
    assert any("subnetwrk: no such field" in one for one in found) and any(
        "'STOP' is not one of" in one for one in found
    )


def test_ray_grants_itself_no_rights(cloud: Cloud) -> None:
    """Its launcher gives an account of its own all of Compute and Storage, unless it finds these bindings."""
    config()
    assert [path for method, path in cloud.asked if method == "POST"] == [f"/v1/projects/{PROJECT}:getIamPolicy"]
    cloud.policy["bindings"] = []  # without setup.sh
    with pytest.raises(Exception, match=r"404|HttpError"):
        config()
    assert cloud.asked[-1] == ("POST", f"/v1/projects/{PROJECT}:setIamPolicy")
    assert 'accounts disable "ray-autoscaler-sa-v1@' in SETUP


def test_training_nodes_are_next_to_each_other_with_local_disks(cloud: Cloud) -> None:
    body = launch(cloud, config(), "a100")
    assert body["resourcePolicies"] == [f"projects/{PROJECT}/regions/us-central1/resourcePolicies/altdiffusion"]
    assert "resource-policies create group-placement" in SETUP
    assert body["scheduling"]["onHostMaintenance"] == "TERMINATE"  # machines with GPUs cannot move
    assert [disk["interface"] for disk in body["disks"][1:]] == ["NVME"] * 8
    commands = launcher_file("gcp")["initialization_commands"]
    assert "google-local-nvme-ssd" in commands[0] and "/mnt/local" in commands[0]


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the words of every `gcloud` command of a script, its variables left as they are."""
    text = path.read_text().replace("\\\n", " ")
    for line in re.findall(r"(?<![\w(])gcloud [^\n;|]*", text):
        yield shlex.split(re.sub(r"\$\([^()]*(\([^()]*\)[^()]*)*\)", "x", line), comments=True)


def test_ssh_comes_through_googles_proxy_alone() -> None:
    rules = [words for words in commands(ROOT / "deploy/gcp/setup.sh") if words[1:3] == ["compute", "firewall-rules"]]
    assert len(rules) == 2
    (ssh,) = [words for words in rules if "--allow=tcp:22" in words]
    assert "--source-ranges=35.235.240.0/20" in ssh
    (inside,) = [words for words in rules if words is not ssh]
    assert "--source-tags=$name" in inside and not any(word.startswith("--source-ranges") for word in inside)


def test_the_heads_role_has_no_more_than_ray_calls() -> None:
    (granted,) = re.findall(r"--permissions=(\S+?)\nfor|--permissions=([\s\S]+?)\ngcloud", SETUP)[0][1:] or [""]
    rights = granted.replace("\\\n", "").split(",")
    assert "compute.instances.create" in rights and not [one for one in rights if "*" in one or "IamPolicy" in one]
    broad = {"roles/editor", "roles/owner", "roles/compute.admin", "roles/storage.admin"}
    for words in commands(ROOT / "deploy/gcp/setup.sh"):
        given = {word.removeprefix("--role=") for word in words if word.startswith("--role=")}
        assert not given & broad


@pytest.mark.parametrize("script", ["deploy/gcp/setup.sh", "deploy/gcp/mlflow.sh", "deploy/mlflow/serve.sh"])
def test_scripts_are_valid_shell(script: str) -> None:
    subprocess.run(["sh", "-n", str(ROOT / script)], check=True)
