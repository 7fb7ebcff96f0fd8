"""deploy/kuberay against the types of the API, what KubeRay and Kueue refuse, and what may reach what."""

from __future__ import annotations

import copy
import ipaddress
import re
from pathlib import Path
from typing import Any

import pytest
from ray._private import ray_constants

from altdiffusion.config import load_config
from deploy.render import read_values
from pipelines.train import TrainJobConfig
from tests.deploy.clusters import ROOT, kuberay
from tests.deploy.kubernetes_types import problems

FILES = sorted(path.name for path in (ROOT / "deploy/kuberay").glob("*.yaml"))
VALUES = read_values()
Tree = dict[str, Any]
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "m": 1e-3, "": 1}


def objects() -> list[Tree]:
    return [tree for name in FILES for tree in kuberay(name)]


def of_kind(kind: str) -> list[Tree]:
    return [tree for tree in objects() if tree["kind"] == kind]


def amount(quantity: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(quantity)).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def pods(tree: Tree) -> list[tuple[str, int, Tree]]:
    """Return the name, the number and the template of each kind of pod of a training job."""
    spec = tree["spec"]["rayClusterSpec"]
    found = [("head", 1, spec["headGroupSpec"]["template"]), ("submitter", 1, tree["spec"]["submitterPodTemplate"])]
    return found + [(group["groupName"], group["replicas"], group["template"]) for group in spec["workerGroupSpecs"]]


@pytest.mark.parametrize("name", FILES)
def test_objects_have_the_fields_and_types_of_the_api(name: str) -> None:
    for tree in kuberay(name):
        assert not problems(tree)


@pytest.mark.parametrize(
    ("file", "path", "value", "problem"),
    [
        ("cluster.yaml", "spec.headGroupSpec.rayStartParam", {}, "rayStartParam: no such field"),
        ("cluster.yaml", "spec.workerGroupSpecs.0.maxReplicas", "64", "maxReplicas: '64' is not int"),
        ("cluster.yaml", "spec.workerGroupSpecs.0.rayStartParams.num-cpus", 64, "num-cpus: 64 is not str"),
        ("cluster.yaml", "spec.authOptions.mode", "tokens", "mode: 'tokens' is not one of disabled, token"),
        ("cluster.yaml", "spec.headGroupSpec.template.spec.terminationGracePeriod", 9, "no such field"),
        (
            "cluster.yaml",
            "spec.headGroupSpec.template.spec.containers.0.resources.limits.memory",
            "8Gb",
            "not a quantity",
        ),
        ("train.yaml", "spec.rayClusterSpec.headGroupSpec.template", None, "template: None is not a mapping"),
        ("train.yaml", "spec.suspended", True, "suspended: no such field"),
        ("queue.yaml", "spec.clusterQueues", "x", "clusterQueues: no such field"),
        ("network.yaml", "spec.policyTypes", ["Egres"], "'Egres' is not one of Egress, Ingress"),
        ("cluster.yaml", "kind", "RayClusters", "no such object: ray.io/v1 RayClusters"),
    ],
)
def test_a_planted_fault_is_found(file: str, path: str, value: Any, problem: str) -> None:
    tree = copy.deepcopy(kuberay(file)[-1])
    *parents, last = path.split(".")
    at: Any = tree
    for key in parents:
        at = at[int(key) if key.isdigit() else key]
    at[last] = value
    found = problems(tree)
    assert len(found) == 1 and problem in found[0], found


def test_what_kuberay_refuses_is_not_in_the_files() -> None:
    """KubeRay's own validation: names, token authentication, autoscaler v2, suspended jobs."""
    for tree in [*of_kind("RayCluster"), *of_kind("RayJob")]:
        name = tree["metadata"].get("name") or tree["metadata"]["generateName"] + "x" * 5
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 47
        spec = tree["spec"] if tree["kind"] == "RayCluster" else tree["spec"].get("rayClusterSpec")
        if spec is None:
            assert tree["spec"]["clusterSelector"] == {"ray.io/cluster": of_kind("RayCluster")[0]["metadata"]["name"]}
            assert not tree["spec"].get("suspend")
            continue
        assert spec["authOptions"]["mode"] == "token" and tuple(map(int, spec["rayVersion"].split("."))) >= (2, 52)
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            assert pod.get("restartPolicy", "Never") == "Never"  # autoscaler v2
            assert "labels" not in group["rayStartParams"] and not group.get("resources")
            assert not {one["name"] for one in pod["containers"][0]["env"]} & {
                "RAY_enable_autoscaler_v2",
                "REDIS_PASSWORD",
            }
    for tree in of_kind("RayJob"):
        if tree["spec"].get("suspend"):
            assert tree["spec"]["shutdownAfterJobFinishes"]


def test_the_autoscaled_cluster_uses_version_2() -> None:
    (cluster,) = of_kind("RayCluster")
    assert (
        cluster["spec"]["enableInTreeAutoscaling"] is True and cluster["spec"]["autoscalerOptions"]["version"] == "v2"
    )
    assert {group["replicas"] for group in cluster["spec"]["workerGroupSpecs"]} == {0}


def test_training_is_started_whole_by_kueue() -> None:
    """All pods of a training job are in one workload, and the quota has room for exactly one job on all GPUs."""
    (job,) = kuberay("train.yaml")
    (queue,) = of_kind("LocalQueue")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
    assert job["metadata"]["namespace"] == queue["metadata"]["namespace"]
    assert job["spec"]["suspend"] is True
    spec = job["spec"]["rayClusterSpec"]
    assert not spec.get("enableInTreeAutoscaling") and len(spec["workerGroupSpecs"]) <= 7  # Kueue's own limits
    for group in spec["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    (cluster_queue,) = of_kind("ClusterQueue")
    assert queue["spec"]["clusterQueue"] == cluster_queue["metadata"]["name"]
    (resources,) = cluster_queue["spec"]["resourceGroups"]
    flavors = {tree["metadata"]["name"] for tree in of_kind("ResourceFlavor")}
    quotas: dict[str, dict[str, float]] = {}
    for flavor in resources["flavors"]:
        assert flavor["name"] in flavors
        assert [one["name"] for one in flavor["resources"]] == resources["coveredResources"]
        quotas[flavor["name"]] = {one["name"]: amount(one["nominalQuota"]) for one in flavor["resources"]}
    for name, count, template in pods(job):
        requests = template["spec"]["containers"][0]["resources"]["requests"]
        assert set(requests) <= set(resources["coveredResources"]), "an uncovered resource is never admitted"
        flavor = "a100" if "nvidia.com/gpu" in requests else "system"
        for key, value in requests.items():
            quotas[flavor][key] -= count * amount(value)
        assert all(left >= 0 for left in quotas[flavor].values()), (name, quotas[flavor])
    assert quotas["a100"]["nvidia.com/gpu"] == 0


def test_pods_fit_their_machines_and_ray_fits_the_pods() -> None:
    (cluster,) = of_kind("RayCluster")
    spec = cluster["spec"]
    groups = {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    for name, group in groups.items():
        (container,) = group["template"]["spec"]["containers"]
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert amount(requests["cpu"]) < VALUES[name]["cpus"], "kubelet and daemons take a part of each machine"
        assert amount(requests["memory"]) == amount(limits["memory"]) < VALUES[name]["memory_gib"] * 2**30
        store = int(group["rayStartParams"]["object-store-memory"])
        assert int(group["rayStartParams"].get("memory", 0)) + store <= amount(limits["memory"])
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        shared = volumes[mounts["/dev/shm"]]["emptyDir"]  # 64 MiB otherwise: Ray would use the disk in its place
        assert shared["medium"] == "Memory" and amount(shared["sizeLimit"]) > store
        assert group["rayStartParams"]["object-spilling-directory"] in mounts


def test_a_pod_that_is_taken_away_has_time_for_a_checkpoint() -> None:
    (job,) = kuberay("train.yaml")
    for name, _, template in pods(job):
        if name == "submitter":
            continue
        (stop,) = (template["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][2],)
        if name == "head":
            assert "pkill -TERM -f 'python -m jobs[.]'" in stop
            assert job["spec"]["entrypoint"].startswith("python -m jobs.")
        else:
            env = {one["name"]: one["value"] for one in template["spec"]["containers"][0]["env"]}
            notice = float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            assert hasattr(ray_constants, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")
            assert notice < template["spec"]["terminationGracePeriodSeconds"]
            assert "pkill -TERM -f 'ray[ ]start'" in stop  # a shell in front of Ray would not pass the signal on
    budgets = {tree["metadata"]["name"]: tree["spec"] for tree in of_kind("PodDisruptionBudget")}
    labels = {name: template["metadata"]["labels"] for name, _, template in pods(job)}
    assert budgets["altdiffusion-head"]["selector"]["matchLabels"] == labels["head"]
    assert budgets["altdiffusion-training"]["selector"]["matchLabels"] == labels["a100"]


def templates() -> list[Tree]:
    found = []
    for tree in objects():
        spec = tree.get("spec", {})
        found += [spec[key] for key in ("template", "submitterPodTemplate") if key in spec]
        cluster = spec.get("rayClusterSpec", spec)
        groups = [cluster.get("headGroupSpec"), *cluster.get("workerGroupSpecs", [])]
        found += [group["template"] for group in groups if group]
    return found


def test_pods_have_no_more_rights_than_they_use() -> None:
    """The token of the API server is in one pod only: the head whose autoscaler uses it."""
    assert len(templates()) == 10
    accounts = {tree["metadata"]["name"] for tree in of_kind("ServiceAccount")}
    assert not any(tree["automountServiceAccountToken"] for tree in of_kind("ServiceAccount"))
    with_token = [one for one in templates() if one["spec"]["automountServiceAccountToken"]]
    assert [one["metadata"]["labels"]["app.kubernetes.io/component"] for one in with_token] == ["head"]
    for template in templates():
        pod = template["spec"]
        assert pod.get("serviceAccountName", "altdiffusion-head") in accounts


def allowed(labels: dict[str, str], direction: str) -> list[Tree]:
    """Return the rules of all policies that select a pod."""
    rules = []
    for policy in of_kind("NetworkPolicy"):
        wanted = policy["spec"]["podSelector"].get("matchLabels", {})
        if wanted.items() <= labels.items() and direction.capitalize() in policy["spec"]["policyTypes"]:
            rules += policy["spec"].get(direction, [])
    return rules


def _in_block(address: ipaddress.IPv4Address | ipaddress.IPv6Address, block: Tree) -> bool:
    networks = [ipaddress.ip_network(one) for one in block.get("except", [])]
    return address in ipaddress.ip_network(block["cidr"]) and not any(address in one for one in networks)


def reaches(labels: dict[str, str], address: str, port: int) -> bool:
    found = ipaddress.ip_address(address)
    for rule in allowed(labels, "egress"):
        if port not in {one["port"] for one in rule.get("ports", [{"port": port}])}:
            continue
        for target in rule["to"]:
            block = target.get("ipBlock")
            if block and _in_block(found, block):
                return True
    return False


def test_downloads_reach_the_web_and_nothing_private() -> None:
    worker = {"app.kubernetes.io/part-of": "altdiffusion", "app.kubernetes.io/component": "curation"}
    assert reaches(worker, "93.184.216.34", 443) and reaches(worker, "93.184.216.34", 80)
    assert reaches(worker, "2606:2800:220:1::1", 443) and not reaches(worker, "93.184.216.34", 22)
    for private in ("169.254.169.254", "169.254.170.2", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1",
                    "127.0.0.1", "fd00:ec2::254", "fe80::1", "::1"):  # fmt: skip
        assert not reaches(worker, private, 80), private
    head = worker | {"app.kubernetes.io/component": "head"}
    server = VALUES["kubernetes"]["api_server"].partition("/")[0]
    assert reaches(head, server, 443) and not reaches(worker, server, 443)


def test_head_ports_are_reached_by_ray_the_operator_and_prometheus_alone() -> None:
    head = {"app.kubernetes.io/part-of": "altdiffusion", "app.kubernetes.io/component": "head"}
    found = [
        (peer, [port["port"] for port in rule.get("ports", ())])
        for rule in allowed(head, "ingress")
        for peer in rule["from"]
    ]
    operator = {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
    assert found == [
        ({"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "altdiffusion"}}}, []),
        ({"namespaceSelector": {}, "podSelector": operator}, [VALUES["ports"]["dashboard"]]),
        (
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},
            [VALUES["ports"]["metrics"]],
        ),
    ]
    assert all(template["metadata"]["labels"].get("app.kubernetes.io/part-of") == "altdiffusion"
               or template["metadata"]["labels"]["app.kubernetes.io/name"] in ("mlflow", "postgres")
               for template in templates())  # fmt: skip


def test_restricted_pods_are_what_the_namespace_demands() -> None:
    (namespace,) = of_kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for template in templates():
        pod = template["spec"]
        context = pod.get("securityContext", {}) | pod["containers"][0].get("securityContext", {})
        assert context.get("runAsNonRoot") and context.get("capabilities") == {"drop": ["ALL"]}
        assert (
            context.get("allowPrivilegeEscalation") is False and context["seccompProfile"]["type"] == "RuntimeDefault"
        )


def test_configs_are_mounted_where_the_entry_points_look(tmp_path: Path) -> None:
    for tree in of_kind("RayJob"):
        (config,) = re.findall(r"--config /configs/(\S+)", tree["spec"]["entrypoint"])
        assert (ROOT / "jobs/configs/m18" / config).is_file()


def test_rows_by_language_leave_room_on_the_disk_of_a_pod() -> None:
    (job,) = kuberay("train.yaml")
    config, *overrides = job["spec"]["entrypoint"].partition("--config /configs/")[2].split()
    limit_gb = load_config(
        TrainJobConfig, str(ROOT / "jobs/configs/m18" / config), overrides
    ).train.workers.language_disk_gb
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (disk,) = [one["emptyDir"]["sizeLimit"] for one in group["template"]["spec"]["volumes"] if one["name"] == "local"]
    assert limit_gb is not None and 0.4 < limit_gb * 1e9 / (int(disk.removesuffix("Gi")) * 2**30) <= 0.5
