"""Kubernetes objects against the types of their API: unknown fields, wrong types and missing fields are found offline.

The core types are those of lightkube-models, which is made from Kubernetes' OpenAPI description. The types of KubeRay
(v1, as of 1.5) and Kueue (v1beta2) are below: the fields of the specifications, without those of the status. Kubernetes
itself drops an unknown field of these with no more than a warning, so a misspelt one has no effect.
"""

from __future__ import annotations

import re
import types
import typing
from typing import Any

from lightkube.models import apps_v1, core_v1, meta_v1, networking_v1, policy_v1
from msgspec import NODEFAULT, Struct, defstruct, structs

Quantity = str
_QUANTITY = re.compile(r"^[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?$")


class AuthOptions(Struct, kw_only=True):
    mode: str | None = None
    secretName: str | None = None
    enableK8sTokenAuth: bool | None = None


class AutoscalerOptions(Struct, kw_only=True):
    version: str | None = None
    idleTimeoutSeconds: int | None = None
    upscalingMode: str | None = None
    image: str | None = None
    imagePullPolicy: str | None = None
    resources: core_v1.ResourceRequirements | None = None
    securityContext: core_v1.SecurityContext | None = None
    env: list[core_v1.EnvVar] | None = None
    envFrom: list[core_v1.EnvFromSource] | None = None
    volumeMounts: list[core_v1.VolumeMount] | None = None


class HeadGroupSpec(Struct, kw_only=True):
    rayStartParams: dict[str, str]
    template: core_v1.PodTemplateSpec
    serviceType: str | None = None
    headService: core_v1.Service | None = None
    enableIngress: bool | None = None
    resources: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class WorkerGroupSpec(Struct, kw_only=True):
    groupName: str
    minReplicas: int
    maxReplicas: int
    rayStartParams: dict[str, str]
    template: core_v1.PodTemplateSpec
    replicas: int | None = None
    numOfHosts: int | None = None
    idleTimeoutSeconds: int | None = None
    suspend: bool | None = None
    resources: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class RayClusterSpec(Struct, kw_only=True):
    headGroupSpec: HeadGroupSpec
    rayVersion: str | None = None
    authOptions: AuthOptions | None = None
    autoscalerOptions: AutoscalerOptions | None = None
    enableInTreeAutoscaling: bool | None = None
    headServiceAnnotations: dict[str, str] | None = None
    workerGroupSpecs: list[WorkerGroupSpec] | None = None
    suspend: bool | None = None
    managedBy: str | None = None


class SubmitterConfig(Struct, kw_only=True):
    backoffLimit: int | None = None


class RayJobSpec(Struct, kw_only=True):
    entrypoint: str | None = None
    rayClusterSpec: RayClusterSpec | None = None
    clusterSelector: dict[str, str] | None = None
    submissionMode: str | None = None
    submitterPodTemplate: core_v1.PodTemplateSpec | None = None
    submitterConfig: SubmitterConfig | None = None
    runtimeEnvYAML: str | None = None
    jobId: str | None = None
    metadata: dict[str, str] | None = None
    activeDeadlineSeconds: int | None = None
    backoffLimit: int | None = None
    ttlSecondsAfterFinished: int | None = None
    shutdownAfterJobFinishes: bool | None = None
    suspend: bool | None = None
    managedBy: str | None = None
    entrypointNumCpus: float | None = None
    entrypointNumGpus: float | None = None
    entrypointResources: str | None = None


class ResourceFlavorSpec(Struct, kw_only=True):
    nodeLabels: dict[str, str] | None = None
    nodeTaints: list[core_v1.Taint] | None = None
    tolerations: list[core_v1.Toleration] | None = None
    topologyName: str | None = None


class ResourceQuota(Struct, kw_only=True):
    name: str
    nominalQuota: Quantity
    borrowingLimit: str | None = None
    lendingLimit: str | None = None


class FlavorQuotas(Struct, kw_only=True):
    name: str
    resources: list[ResourceQuota]


class ResourceGroup(Struct, kw_only=True):
    coveredResources: list[str]
    flavors: list[FlavorQuotas]


class Preemption(Struct, kw_only=True):
    withinClusterQueue: str | None = None
    reclaimWithinCohort: str | None = None


class ClusterQueueSpec(Struct, kw_only=True):
    resourceGroups: list[ResourceGroup] | None = None
    namespaceSelector: meta_v1.LabelSelector | None = None
    queueingStrategy: str | None = None
    preemption: Preemption | None = None
    cohortName: str | None = None
    stopPolicy: str | None = None


class LocalQueueSpec(Struct, kw_only=True):
    clusterQueue: str | None = None
    stopPolicy: str | None = None


def _object(spec: Any) -> type:
    fields = [("apiVersion", str), ("kind", str), ("metadata", meta_v1.ObjectMeta), ("spec", spec | None, None)]
    return defstruct(spec.__name__.removesuffix("Spec"), fields)


OBJECTS: dict[tuple[str, str], type] = {
    ("v1", "Namespace"): core_v1.Namespace,
    ("v1", "ServiceAccount"): core_v1.ServiceAccount,
    ("v1", "ConfigMap"): core_v1.ConfigMap,
    ("v1", "Service"): core_v1.Service,
    ("apps/v1", "Deployment"): apps_v1.Deployment,
    ("apps/v1", "StatefulSet"): apps_v1.StatefulSet,
    ("policy/v1", "PodDisruptionBudget"): policy_v1.PodDisruptionBudget,
    ("networking.k8s.io/v1", "NetworkPolicy"): networking_v1.NetworkPolicy,
    ("ray.io/v1", "RayCluster"): _object(RayClusterSpec),
    ("ray.io/v1", "RayJob"): _object(RayJobSpec),
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): _object(ResourceFlavorSpec),
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): _object(ClusterQueueSpec),
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): _object(LocalQueueSpec),
}
CHOICES = {
    ("AuthOptions", "mode"): {"disabled", "token"},
    ("AutoscalerOptions", "version"): {"v1", "v2"},
    ("RayJobSpec", "submissionMode"): {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
    ("ClusterQueueSpec", "queueingStrategy"): {"StrictFIFO", "BestEffortFIFO"},
    ("Preemption", "withinClusterQueue"): {"Never", "LowerPriority", "LowerOrNewerEqualPriority"},
    ("NetworkPolicySpec", "policyTypes"): {"Ingress", "Egress"},
    ("PodSpec", "restartPolicy"): {"Always", "OnFailure", "Never"},
}


def problems(tree: Any) -> list[str]:
    """Return what the API would refuse or drop in an object, each with the path of the field."""
    kind = OBJECTS.get((tree.get("apiVersion"), tree.get("kind")))
    if kind is None:
        return [f"no such object: {tree.get('apiVersion')} {tree.get('kind')}"]
    return list(_in(tree, kind, tree["kind"]))


def _in(value: Any, kind: Any, at: str) -> typing.Iterator[str]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        alternatives = [one for one in arguments if one is not type(None)]
        found = [list(_in(value, one, at)) for one in alternatives]
        yield from min(found, key=len)
    elif origin is list:
        if not isinstance(value, list):
            yield f"{at}: {value!r} is not a list"
            return
        for place, one in enumerate(value):
            yield from _in(one, arguments[0], f"{at}[{place}]")
    elif kind is dict or origin is dict:
        if not isinstance(value, dict):
            yield f"{at}: {value!r} is not a mapping"
            return
        for key, one in value.items():
            is_quantity = at.rpartition(".")[2] in ("requests", "limits")
            if is_quantity and not (isinstance(one, str | int) and _QUANTITY.match(str(one))):
                yield f"{at}.{key}: {one!r} is not a quantity"
            elif not is_quantity:
                yield from _in(one, (arguments or (str, Any))[1], f"{at}.{key}")
    elif isinstance(kind, type) and issubclass(kind, Struct):
        yield from _fields(value, kind, at)
    elif kind in (str, int, float, bool):
        right = {float: (int, float)}.get(kind, (kind,))
        if not isinstance(value, right) or (isinstance(value, bool) and kind is not bool):
            yield f"{at}: {value!r} is not {kind.__name__}"


def _fields(value: Any, kind: Any, at: str) -> typing.Iterator[str]:
    if not isinstance(value, dict):
        yield f"{at}: {value!r} is not a mapping"
        return
    fields = {field.encode_name: field for field in structs.fields(kind)}
    for key, one in value.items():
        if key not in fields:
            yield f"{at}.{key}: no such field"
            continue
        yield from _in(one, fields[key].type, f"{at}.{key}")
        choices = CHOICES.get((kind.__name__, key))
        for chosen in one if isinstance(one, list) else [one]:
            if choices is not None and chosen not in choices:
                yield f"{at}.{key}: {chosen!r} is not one of {', '.join(sorted(choices))}"
    for name, field in fields.items():
        if field.default is NODEFAULT and field.default_factory is NODEFAULT and name not in value:
            yield f"{at}.{name}: is missing"
