"""Pod Security `restricted`, and what goes beyond it: read-only roots, no API tokens, no literal secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llm_replicas.chart.objects import Object, Objects, containers, name_of, pod_spec, workloads
from llm_replicas.chart.rules.base import Finding, Rule

# Volume kinds that `restricted` admits.
VOLUME_KINDS = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SECRET_NAME = re.compile(r"(PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|ACCESS_KEY|CREDENTIAL)", re.IGNORECASE)


def restricted_pod(objects: Objects) -> Iterator[Finding]:
    """The pod itself asks for nothing that `restricted` forbids."""
    for workload in workloads(objects):
        spec, where = pod_spec(workload), name_of(workload)
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(key):
                yield Finding(
                    "restricted-pod", where, f"{key} is true; a pod must keep to its own namespaces"
                )
        for volume in spec.get("volumes", []):
            for kind in set(volume) - {"name"} - VOLUME_KINDS:
                yield Finding(
                    "restricted-pod", where, f"volume {volume['name']} is a {kind}, which is not admitted"
                )
        profile = spec.get("securityContext", {}).get("seccompProfile", {}).get("type")
        if profile not in {"RuntimeDefault", "Localhost"}:
            yield Finding(
                "restricted-pod", where, f"seccompProfile is {profile}; RuntimeDefault or Localhost is needed"
            )


def restricted_containers(objects: Objects) -> Iterator[Finding]:
    """No container is root, may become more than it is, or holds a capability."""
    for workload in workloads(objects):
        pod = pod_spec(workload).get("securityContext", {})
        for found in containers(workload):
            where = f"{name_of(workload)} {found['name']}"
            own = found.get("securityContext", {})
            yield from _restricted(where, {**pod, **own}, own)
            for port in found.get("ports", []):
                if port.get("hostPort"):
                    yield Finding(
                        "restricted-containers", where, f"port {port['containerPort']} takes a host port"
                    )


def _restricted(where: str, both: Object, own: Object) -> Iterator[Finding]:
    if not both.get("runAsNonRoot"):
        yield Finding("restricted-containers", where, "runAsNonRoot is not true")
    if both.get("runAsUser") == 0:
        yield Finding("restricted-containers", where, "runAsUser is 0")
    if own.get("privileged"):
        yield Finding("restricted-containers", where, "privileged is true")
    if own.get("allowPrivilegeEscalation") is not False:
        yield Finding("restricted-containers", where, "allowPrivilegeEscalation is not false")
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield Finding("restricted-containers", where, "capabilities are not all dropped")
    for added in set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield Finding("restricted-containers", where, f"capability {added} is added")


def read_only_root(objects: Objects) -> Iterator[Finding]:
    """Nothing can be planted in a container's own files."""
    for workload in workloads(objects):
        for found in containers(workload):
            if not found.get("securityContext", {}).get("readOnlyRootFilesystem"):
                yield Finding(
                    "read-only-root",
                    f"{name_of(workload)} {found['name']}",
                    "readOnlyRootFilesystem is not true",
                )


def no_api_token(objects: Objects) -> Iterator[Finding]:
    """A pod that never calls the API server holds no key to it; no Service appears in its environment."""
    for workload in workloads(objects):
        spec, where = pod_spec(workload), name_of(workload)
        if spec.get("automountServiceAccountToken") is not False:
            yield Finding("no-api-token", where, "automountServiceAccountToken is not false")
        if spec.get("enableServiceLinks") is not False:
            yield Finding("no-api-token", where, "enableServiceLinks is not false")


def no_literal_secret(objects: Objects) -> Iterator[Finding]:
    """Secrets come by reference: what is literal here stays readable in the release's history."""
    for workload in workloads(objects):
        for found in containers(workload):
            for variable in found.get("env", []):
                if variable.get("value") and SECRET_NAME.search(variable["name"]):
                    yield Finding(
                        "no-literal-secret",
                        f"{name_of(workload)} {found['name']}",
                        f"environment variable {variable['name']} holds a literal; take it from a Secret",
                    )


SECURITY_RULES: tuple[Rule, ...] = (
    restricted_pod,
    restricted_containers,
    read_only_root,
    no_api_token,
    no_literal_secret,
)
