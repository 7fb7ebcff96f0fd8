"""A Ray cluster of one machine whose autoscaler starts and stops nodes: Ray's fake_multinode provider.

A node is a raylet with its workers on this machine. The head has no CPUs, so work waits until a node is there. The
autoscaler is the one that `ray up` uses (v2). Ray's wheel lacks the defaults file of `type: fake_multinode`, so the
same provider is named as an external module.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution import cluster
from tests.ports import free_port
from tests.ray_folder import ray_folder

STORE_BYTES = 100 * 2**20
HEAD_ID = "f" * 51 + "00000"
"""Id that the provider gives to the head."""
HEAD_TYPE = "ray.head.default"
"""Node type that the provider gives to the head."""
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
NODE_TYPE = "generation"


@dataclass(frozen=True, kw_only=True)
class FakeCluster:
    """A running cluster; this process is connected to it, and its environment lets jobs join."""

    address: str

    def nodes(self) -> list[str]:
        """Return the ids of the nodes that Ray sees alive, without the head."""
        import ray

        return sorted(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != HEAD_ID)

    def workers(self) -> dict[int, str]:
        """Return the pool's worker processes: process id -> id of the node."""
        found: dict[int, str] = {}
        for node_id, raylet in _raylets(self.address).items():
            for child in _children(raylet):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "UnitActor" in "".join(child.cmdline()[:1]):
                        found[child.pid] = node_id
        return found

    def kill(self, node_id: str) -> None:
        """Kill a node as a power failure does: SIGKILL for its raylet and for every process that it started."""
        raylet = _raylets(self.address)[node_id]
        for process in [raylet, *_children(raylet, recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def fake_cluster(max_nodes: int, idle_s: float) -> Iterator[FakeCluster]:
    """Run a cluster of 0 to `max_nodes` nodes with one CPU each for the block, and end all of its processes after it.

    Ray reads its authentication when it is imported, so nothing may have imported it before.

    Args:
        max_nodes: largest number of nodes.
        idle_s: how long a node without work stays.

    Raises:
        AltDiffusionError: the head did not start.
    """
    if "ray" in sys.modules:
        raise RuntimeError("ray was imported before its authentication was set")
    with ray_folder() as folder:
        variables = {
            "RAY_TMPDIR": folder,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # with Ray's 15, a node of a busy machine is idle before its worker has started
        }
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield _start(Path(folder), max_nodes, idle_s)
        finally:
            cluster.shutdown()
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def autoscaling_config(address: str, max_nodes: int, idle_s: float) -> dict[str, Any]:
    """Return the cluster config of the head's autoscaler."""
    parts = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    lists = [*(f"{part}_commands" for part in parts), "cluster_synced_files", "rsync_exclude", "rsync_filter"]
    return {
        "cluster_name": "fake",
        "max_workers": max_nodes,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "gcs_address": address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
        },
        "auth": {},
        "head_node_type": HEAD_TYPE,
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            NODE_TYPE: {
                "resources": {"CPU": 1, "object_store_memory": STORE_BYTES},
                "node_config": {},
                "min_workers": 0,
                "max_workers": max_nodes,
            },
        },
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in lists},
    }


def _start(folder: Path, max_nodes: int, idle_s: float) -> FakeCluster:
    import ray.util

    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"
    config = folder / "autoscaling.yaml"
    config.write_text(json.dumps(autoscaling_config(address, max_nodes, idle_s)))  # JSON is YAML too
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}", "--num-cpus=0"),
        *(f"--temp-dir={folder}", f"--autoscaling-config={config}", f"--object-store-memory={STORE_BYTES}"),
        *("--include-dashboard=false", f"--ray-client-server-port={free_port()}", "--dashboard-agent-listen-port=0"),
    ]
    environment = {
        **os.environ,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    started = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if started.returncode:
        raise AltDiffusionError(
            "Ray's head", f"did not start ({started.stderr.strip()[-500:]})", "look at this machine's load and memory"
        )
    cluster.connect(address)
    return FakeCluster(address=address)


def _raylets(address: str) -> dict[str, psutil.Process]:
    """Return the processes that are nodes of a cluster, by node id."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            words = process.cmdline()
            if words and words[0].endswith("/raylet") and f"--gcs-address={address}" in words:
                node_id = next(word.partition("=")[2] for word in words if word.startswith("--node_id="))
                if node_id != HEAD_ID and process.status() != psutil.STATUS_ZOMBIE:
                    found[node_id] = process
    return found


def _children(process: psutil.Process, recursive: bool = False) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=recursive)
    return []
